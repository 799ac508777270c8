//! How the results of tests are told: to people, and to what collects them.

use std::collections::BTreeMap;

use portcullis_kube::Location;
use portcullis_lint::render::xml_escaped as escaped;
use serde::Serialize;

use crate::output::{json, plural, print};
use crate::style::{ALLOWED, BOLD, DIM, ERROR};
use crate::trouble::Trouble;

/// The formats of results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Format {
    /// For people: a line for each test, and why those fail that do
    Text,
    /// Test Anything Protocol, version 14
    Tap,
    /// JUnit XML, a suite for each file
    Junit,
    /// For programs; the shape is stable
    Json,
}

/// What came of all tests.
pub(super) struct Report {
    pub(super) results: Vec<Result>,
}

/// What came of one test.
pub(super) struct Result {
    pub(super) name: String,
    pub(super) location: Location,
    pub(super) outcome: Outcome,
}

/// What is told of a test.
pub(super) struct Outcome {
    /// What is not as it should be; nothing where the test holds.
    pub(super) problems: Vec<String>,
    /// Why a connection is as it is that should be otherwise, in several lines.
    pub(super) why: String,
    /// How many connections were tried with real packets; `None` without a lab.
    pub(super) tried: Option<usize>,
}

/// Most problems of a test that are listed.
const MOST: usize = 8;

impl Result {
    fn holds(&self) -> bool {
        self.outcome.problems.is_empty()
    }

    /// What is wrong and why, without colours.
    fn details(&self) -> String {
        let mut text = self.listed().into_iter().fold(String::new(), |text, p| text + &p + "\n");
        text.push_str(&anstream::adapter::strip_str(&self.outcome.why).to_string());
        text
    }

    fn listed(&self) -> Vec<String> {
        let problems = &self.outcome.problems;
        let mut listed: Vec<String> = problems.iter().take(MOST).cloned().collect();
        if problems.len() > MOST {
            listed.push(format!("and {} more", problems.len() - MOST));
        }
        listed
    }
}

impl Report {
    pub(super) fn failed(&self) -> usize {
        self.results.iter().filter(|result| !result.holds()).count()
    }

    pub(super) fn print(&self, format: Format) -> std::result::Result<(), Trouble> {
        match format {
            Format::Text => print(&self.text()),
            Format::Tap => print(&self.tap()),
            Format::Junit => print(&self.junit()),
            Format::Json => json(&self.report()),
        }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for result in &self.results {
            let (name, location) = (&result.name, &result.location);
            if result.holds() {
                text.push_str(&format!("{ALLOWED}✓{ALLOWED:#} {name}\n"));
                continue;
            }
            text.push_str(&format!(
                "{ERROR}✗{ERROR:#} {BOLD}{name}{BOLD:#} {DIM}({location}){DIM:#}\n"
            ));
            for problem in result.listed() {
                text.push_str(&format!("    {problem}\n"));
            }
            for line in result.outcome.why.lines() {
                text.push_str(&format!("    {line}\n"));
            }
        }
        let all = plural(self.results.len(), "test");
        let packets = match self.tried() {
            None => String::new(),
            Some(tried) => format!(", {} tried with real packets", plural(tried, "connection")),
        };
        let verdict = match (self.failed(), self.results.len()) {
            (0, 1) => format!("{ALLOWED}holds{ALLOWED:#}"),
            (0, _) => format!("{ALLOWED}all hold{ALLOWED:#}"),
            (failed, _) => format!("{ERROR}{failed} failed{ERROR:#}"),
        };
        text + &format!("{BOLD}{all}, {verdict}{BOLD:#}{packets}\n")
    }

    fn tried(&self) -> Option<usize> {
        self.results.iter().filter_map(|result| result.outcome.tried).reduce(|a, b| a + b)
    }

    fn tap(&self) -> String {
        let mut text = format!("TAP version 14\n1..{}\n", self.results.len());
        for (number, result) in (1..).zip(&self.results) {
            let ok = if result.holds() { "ok" } else { "not ok" };
            // A number sign would begin a directive.
            let name = result.name.replace('\\', "\\\\").replace('#', "\\#");
            text.push_str(&format!("{ok} {number} - {name}\n"));
            if !result.holds() {
                text.push_str(&format!(
                    "  ---\n  at: '{}'\n  message: |\n",
                    quoted(&result.location)
                ));
                for line in result.details().lines() {
                    text.push_str(&format!("    {line}\n"));
                }
                text.push_str("  ...\n");
            }
        }
        text
    }

    fn junit(&self) -> String {
        let mut suites: BTreeMap<&str, Vec<&Result>> = BTreeMap::new();
        for result in &self.results {
            suites.entry(&result.location.file).or_default().push(result);
        }
        let counts = |results: usize, failed: usize| {
            format!("tests=\"{results}\" failures=\"{failed}\" errors=\"0\"")
        };
        let all = counts(self.results.len(), self.failed());
        let mut text = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"portcullis\" {all}>\n"
        );
        for (file, results) in suites {
            let failed = results.iter().filter(|result| !result.holds()).count();
            let (name, counts) = (escaped(file), counts(results.len(), failed));
            text.push_str(&format!("  <testsuite name=\"{name}\" {counts}>\n"));
            for result in results {
                let (test, line) = (escaped(&result.name), result.location.line);
                text.push_str(&format!(
                    "    <testcase name=\"{test}\" classname=\"{name}\" file=\"{name}\" line=\"{line}\""
                ));
                match result.outcome.problems.first() {
                    None => text.push_str("/>\n"),
                    Some(first) => text.push_str(&format!(
                        ">\n      <failure message=\"{}\">{}</failure>\n    </testcase>\n",
                        escaped(first),
                        escaped(&result.details())
                    )),
                }
            }
            text.push_str("  </testsuite>\n");
        }
        text + "</testsuites>\n"
    }

    fn report(&self) -> JsonReport<'_> {
        let tests = self.results.iter().map(|result| JsonTest {
            name: &result.name,
            location: result.location.to_string(),
            holds: result.holds(),
            problems: &result.outcome.problems,
            why: anstream::adapter::strip_str(&result.outcome.why).to_string(),
            tried: result.outcome.tried,
        });
        JsonReport { tests: tests.collect(), failed: self.failed() }
    }
}

/// For single quotes of YAML.
fn quoted(location: &Location) -> String {
    location.to_string().replace('\'', "''")
}

#[derive(Serialize)]
struct JsonReport<'a> {
    tests: Vec<JsonTest<'a>>,
    failed: usize,
}

#[derive(Serialize)]
struct JsonTest<'a> {
    name: &'a str,
    location: String,
    holds: bool,
    problems: &'a [String],
    #[serde(skip_serializing_if = "String::is_empty")]
    why: String,
    /// Connections that were tried with real packets.
    #[serde(skip_serializing_if = "Option::is_none")]
    tried: Option<usize>,
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn report() -> Report {
        let location = |line| Location { file: Arc::from("t's.yaml"), line, column: 3 };
        let fine = Outcome { problems: Vec::new(), why: String::new(), tried: Some(2) };
        let problems = (0..10).map(|n| format!("a -> <{n}> is \"open\" & more"));
        let why = format!("{BOLD}a -> b{BOLD:#}: allowed\n  egress  open\n");
        let wrong = Outcome { problems: problems.collect(), why, tried: Some(3) };
        let result = |name: &str, line, outcome| Result {
            name: name.to_owned(),
            location: location(line),
            outcome,
        };
        Report { results: vec![result("fine #1", 2, fine), result("wrong", 7, wrong)] }
    }

    #[test]
    fn junit_escapes_what_it_must_and_counts() {
        let text = report().junit();
        let head = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
                    <testsuites name=\"portcullis\" tests=\"2\" failures=\"1\" errors=\"0\">\n  \
                    <testsuite name=\"t's.yaml\" tests=\"2\" failures=\"1\" errors=\"0\">\n    \
                    <testcase name=\"fine #1\" classname=\"t's.yaml\" file=\"t's.yaml\" line=\"2\"/>\n";
        assert!(text.starts_with(head), "{text}");
        let failure = "<failure message=\"a -&gt; &lt;0&gt; is &quot;open&quot; &amp; more\">";
        assert!(text.contains(failure), "{text}");
        assert!(text.contains("a -&gt; b: allowed\n  egress  open\n</failure>"), "{text}");
    }

    #[test]
    fn tap_has_a_line_for_each_test_and_a_block_for_what_is_wrong() {
        let text = report().tap();
        let head = "TAP version 14\n1..2\nok 1 - fine \\#1\nnot ok 2 - wrong\n  ---\n  \
                    at: 't''s.yaml:7:3'\n  message: |\n    a -> <0> is \"open\" & more\n";
        assert!(text.starts_with(head), "{text}");
        assert!(text.ends_with("    and 2 more\n    a -> b: allowed\n      egress  open\n  ...\n"));
    }

    #[test]
    fn people_are_told_what_was_tried_and_how_many_failed() {
        let text = anstream::adapter::strip_str(&report().text()).to_string();
        assert!(text.starts_with("✓ fine #1\n✗ wrong (t's.yaml:7:3)\n    a -> <0>"), "{text}");
        let end = "2 tests, 1 failed, 5 connections tried with real packets\n";
        assert!(text.ends_with(end), "{text}");
    }
}
