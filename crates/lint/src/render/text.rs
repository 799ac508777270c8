//! For people: place, message, the line, and what to write instead.

use std::fmt::Write;

use anstyle::{AnsiColor, Style};
use portcullis_kube::{Input, Severity};

use crate::finding::Finding;

const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();
const HELP: Style = AnsiColor::Cyan.on_default().bold();

/// A finding, with the line that it is about and a caret below it.
pub fn text(input: &Input, finding: &Finding) -> String {
    let style = match finding.severity {
        Severity::Error => AnsiColor::Red.on_default().bold(),
        Severity::Warning => AnsiColor::Yellow.on_default().bold(),
        Severity::Note => DIM,
    };
    let place = finding.location.as_ref().map_or(String::new(), |at| format!("{at}: "));
    let object = finding.object.as_ref().map_or(String::new(), |object| format!("{object}: "));
    // The reader's own reasons are in the message; the ids of rules can be explained and ignored.
    let known = crate::rules().iter().any(|rule| rule.id == finding.rule);
    let id = if known { format!("[{}]", finding.rule) } else { String::new() };
    let (severity, message) = (finding.severity, &finding.message);
    let mut out =
        format!("{BOLD}{place}{BOLD:#}{style}{severity}{id}{style:#}: {object}{message}\n");
    let source = finding.location.as_ref().and_then(|at| Some((at, input.line(at)?)));
    let mut margin = 4;
    if let Some((at, line)) = source {
        let number = at.line.to_string();
        margin = number.len().max(3);
        let (line, column) = around(line.trim_end(), at.column.saturating_sub(1) as usize);
        let (before, width) = under(&line, column);
        let carets = "^".repeat(width);
        _ = writeln!(out, "{DIM}{number:>margin$} |{DIM:#} {line}");
        _ = writeln!(out, "{DIM}{:margin$} |{DIM:#} {before}{style}{carets}{style:#}", "");
    }
    if !finding.help.is_empty() {
        _ = writeln!(out, "{:margin$} {HELP}help{HELP:#}: {}", "", finding.help);
    }
    for related in &finding.related {
        _ = writeln!(
            out,
            "{:margin$} {DIM}see{DIM:#} {}: {}",
            "", related.location, related.message
        );
    }
    out
}

/// The most characters of a line that are shown: a file may be one line.
const LONGEST: usize = 120;

/// A line, or what stands around a column of it, and where the column is in that.
fn around(line: &str, column: usize) -> (String, usize) {
    let length = line.chars().count();
    if length <= LONGEST {
        return (line.to_owned(), column);
    }
    let start = column.saturating_sub(LONGEST / 2).min(length - LONGEST);
    let part: String = line.chars().skip(start).take(LONGEST).collect();
    let before = if start > 0 { "…" } else { "" };
    let after = if start + LONGEST < length { "…" } else { "" };
    (format!("{before}{part}{after}"), column - start + before.chars().count())
}

/// What stands before the caret, as blanks, and how long the word above it is.
fn under(line: &str, column: usize) -> (String, usize) {
    let blank = |c: char| if c == '\t' { '\t' } else { ' ' };
    let before = line.chars().take(column).map(blank).collect();
    let word =
        line.chars().skip(column).take_while(|c| !c.is_whitespace() && !"{}[],".contains(*c));
    let word: String = word.collect();
    (before, word.trim_end_matches(':').chars().count().max(1))
}

#[cfg(test)]
mod tests {
    use portcullis_kube::{Options, Source, load};

    #[test]
    fn a_finding_shows_its_line_and_what_to_write_instead() {
        let text = "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {}
  policyTypes: [Ingress]
  ingress:
    - from: []
";
        let source = Source::Text { name: "web.yaml".to_owned(), text: text.to_owned() };
        let input = load(&[source], &Options::default());
        let found = crate::lint(&input);
        let shown = anstyle_free(&super::text(&input, &found[0]));
        let expected = "\
web.yaml:8:7: warning[allows-everything]: networkpolicy shop/web: an empty `from` allows everybody, also from outside the cluster
  8 |     - from: []
    |       ^^^^
    help: name the peers, remove the rule to allow none, or remove `from` to say that all are meant
";
        assert_eq!(shown, expected);
    }

    #[test]
    fn of_a_file_in_one_line_only_what_stands_around_it_is_shown() {
        let labels: Vec<String> = (0..400).map(|i| format!(r#""label-{i}":"x""#)).collect();
        let text = format!(
            r#"{{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{{"name":"web","labels":{{{}}}}},"spec":{{"podSelector":{{}},"policyTypes":["Ingress"],"ingress":[{{"from":[]}}]}}}}"#,
            labels.join(",")
        );
        let source = Source::Text { name: "web.json".to_owned(), text };
        let input = load(&[source], &Options::default());
        let found = crate::lint(&input);
        let shown = anstyle_free(&super::text(&input, &found[0]));
        let lines: Vec<&str> = shown.lines().collect();
        assert!(lines[1].chars().count() < 130, "{}", lines[1]);
        let caret = lines[2].chars().position(|c| c == '^').unwrap();
        let marked: String = lines[1].chars().skip(caret).take(6).collect();
        assert_eq!((marked.as_str(), lines[1].chars().nth(6)), ("\"from\"", Some('…')));
    }

    /// The text without its colours.
    fn anstyle_free(text: &str) -> String {
        let mut parts = text.split('\u{1b}');
        let mut plain = parts.next().unwrap().to_owned();
        for part in parts {
            plain += part.split_once('m').unwrap().1;
        }
        plain
    }
}
