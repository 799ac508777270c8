//! For people: place, message, the line, and what to write instead.

use std::fmt::Write;

use anstyle::{AnsiColor, Style};
use portcullis_kube::{Input, Location, Severity};

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
        let (before, width) = under(line, at);
        let carets = "^".repeat(width);
        let line = line.trim_end();
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

/// What stands before the caret, as blanks, and how long the word above it is.
fn under(line: &str, at: &Location) -> (String, usize) {
    let column = at.column.saturating_sub(1) as usize;
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
