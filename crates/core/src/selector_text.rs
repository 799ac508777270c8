//! Selectors as `kubectl -l` and the addresses of the API take them.

use std::fmt;
use std::str::FromStr;

use crate::labels::{Operator, Requirement, Selector};

/// Why a text is no selector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoSelector(String);

impl fmt::Display for NoSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NoSelector {}

/// `a=b,c!=d,e in (f, g),h notin (i),j,!k`; the empty text is the empty selector.
impl FromStr for Selector {
    type Err = NoSelector;

    fn from_str(text: &str) -> Result<Selector, NoSelector> {
        let mut selector = Selector::default();
        if text.trim().is_empty() {
            return Ok(selector);
        }
        for term in split(text) {
            let requirement = requirement(term.trim()).map_err(NoSelector)?;
            selector.match_expressions.push(requirement);
        }
        Ok(selector)
    }
}

/// At commas that are in no parentheses.
fn split(text: &str) -> Vec<&str> {
    let mut depth = 0u32;
    let parts = text.split(|c| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    });
    parts.collect()
}

fn requirement(term: &str) -> Result<Requirement, String> {
    let (key, operator) = if let Some(key) = term.strip_prefix('!') {
        (key, Operator::DoesNotExist)
    } else if let Some((key, value)) = term.split_once("!=") {
        (key, Operator::NotIn(vec![value.trim().to_owned()]))
    } else if let Some((key, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
        (key, Operator::In(vec![value.trim().to_owned()]))
    } else if let Some((head, rest)) = term.split_once('(') {
        let list = rest.strip_suffix(')').ok_or_else(|| format!("')' is missing in {term:?}"))?;
        let values = list.split(',').map(|value| value.trim().to_owned()).collect();
        match head.trim().rsplit_once(char::is_whitespace) {
            Some((key, "in")) => (key, Operator::In(values)),
            Some((key, "notin")) => (key, Operator::NotIn(values)),
            _ => return Err(format!("expected 'in' or 'notin' before '(' in {term:?}")),
        }
    } else {
        (term, Operator::Exists)
    };
    let key = key.trim();
    let good = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    let values: &[String] = match &operator {
        Operator::In(values) | Operator::NotIn(values) => values,
        Operator::Exists | Operator::DoesNotExist => &[],
    };
    if key.is_empty() || !key.chars().all(good) {
        return Err(format!("{key:?} is not a label key"));
    }
    if let Some(bad) = values.iter().find(|value| !value.chars().all(good)) {
        return Err(format!("{bad:?} is not a label value"));
    }
    Ok(Requirement { key: key.to_owned(), operator })
}

#[cfg(test)]
mod tests {
    use crate::labels::{Labels, Selector};

    fn selects(text: &str) -> bool {
        let labels = [("app", "web"), ("x/y", "")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        text.parse::<Selector>().unwrap().matches(&Labels::from(labels))
    }

    #[test]
    fn a_selector_has_all_forms_that_kubectl_takes() {
        for yes in [
            "",
            "app",
            "app=web",
            "app==web",
            "app in (db, web)",
            "x/y",
            "x/y=",
            "!tier",
            "tier!=a",
            "tier notin (a,b),app=web",
            "app notin (db)",
        ] {
            assert!(selects(yes), "{yes}");
        }
        for no in ["tier", "app=db", "!app", "app in (db,cache)", "app!=web", "app,tier"] {
            assert!(!selects(no), "{no}");
        }
    }

    #[test]
    fn a_selector_reads_as_it_is_written() {
        for text in ["a in (b,c),d notin (e),f,!g", "a in (b)"] {
            assert_eq!(text.parse::<Selector>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_selector_says_why() {
        for (text, why) in [
            ("a in (b", "')' is missing"),
            ("a,,b", "\"\" is not a label key"),
            ("a b", "\"a b\" is not a label key"),
            ("a of (b)", "expected 'in' or 'notin'"),
            ("a=b c", "\"b c\" is not a label value"),
        ] {
            let error = text.parse::<Selector>().unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
