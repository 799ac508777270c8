//! `portcullis check`: what the API server would say, with the place in the file.

use std::collections::BTreeMap;
use std::process::ExitCode;

use portcullis_kube::{Diagnostic, Input, Reason, Severity};
use serde::Serialize;

use crate::input::{InputArgs, line};
use crate::output::{Output, json, plural, print};
use crate::style::{ALLOWED, ERROR};
use crate::trouble::Trouble;

/// Is it valid? Exits 1 if anything is an error.
#[derive(Debug, clap::Args)]
pub(crate) struct Check {
    #[command(flatten)]
    input: InputArgs,
    /// Output format
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Serialize)]
struct Report<'a> {
    diagnostics: Vec<Finding<'a>>,
    /// How many objects of each kind were read.
    objects: &'a BTreeMap<&'static str, usize>,
    /// How many objects of each other kind were passed over.
    #[serde(rename = "passedOver")]
    passed_over: &'a BTreeMap<String, usize>,
    errors: usize,
    warnings: usize,
}

#[derive(Serialize)]
struct Finding<'a> {
    severity: String,
    reason: &'static str,
    object: Option<&'a str>,
    path: &'a str,
    message: &'a str,
    location: Option<Place<'a>>,
}

#[derive(Serialize)]
struct Place<'a> {
    file: &'a str,
    line: u32,
    column: u32,
}

impl Check {
    pub(crate) fn run(self) -> Result<ExitCode, Trouble> {
        let input = self.input.read()?;
        let count = |severity| input.diagnostics.iter().filter(|d| d.severity == severity).count();
        let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
        match self.output {
            Output::Table => print(&table(&input, errors, warnings))?,
            Output::Json => {
                let report = Report {
                    diagnostics: input.diagnostics.iter().map(finding).collect(),
                    objects: &input.read,
                    passed_over: &input.passed_over,
                    errors,
                    warnings,
                };
                json(&report)?;
            }
        }
        // Findings are one thing; not to have been able to look is another.
        let unread = |d: &Diagnostic| {
            let reasons = [
                Reason::Unreadable,
                Reason::TooLarge,
                Reason::NotText,
                Reason::NoObjects,
                Reason::Empty,
            ];
            d.severity == Severity::Error && reasons.contains(&d.reason)
        };
        Ok(match errors {
            0 => ExitCode::SUCCESS,
            _ if input.diagnostics.iter().any(unread) => ExitCode::from(2),
            _ => ExitCode::FAILURE,
        })
    }
}

fn finding(diagnostic: &Diagnostic) -> Finding<'_> {
    Finding {
        severity: diagnostic.severity.to_string(),
        reason: diagnostic.reason.id(),
        object: diagnostic.object.as_deref(),
        path: &diagnostic.path,
        message: &diagnostic.message,
        location: diagnostic.location.as_ref().map(|l| Place {
            file: &l.file,
            line: l.line,
            column: l.column,
        }),
    }
}

fn table(input: &Input, errors: usize, warnings: usize) -> String {
    let mut text: String = input.diagnostics.iter().map(|d| line(d) + "\n").collect();
    let read = if input.read.is_empty() { "nothing".to_owned() } else { counted(&input.read) };
    let passed_over = match input.passed_over.is_empty() {
        true => String::new(),
        false => format!("; passed over {}", counted(&input.passed_over)),
    };
    let verdict = match (errors, warnings) {
        (0, 0) => format!("{ALLOWED}valid{ALLOWED:#}"),
        (0, n) => format!("{ALLOWED}valid{ALLOWED:#}, {}", plural(n, "warning")),
        (e, 0) => format!("{ERROR}{}{ERROR:#}", plural(e, "error")),
        (e, n) => format!("{ERROR}{}{ERROR:#}, {}", plural(e, "error"), plural(n, "warning")),
    };
    text.push_str(&format!("{verdict}: read {read}{passed_over}\n"));
    text
}

/// `3 NetworkPolicy, 1 Pod`.
fn counted<K: std::fmt::Display>(kinds: &BTreeMap<K, usize>) -> String {
    kinds.iter().map(|(kind, n)| format!("{n} {kind}")).collect::<Vec<_>>().join(", ")
}
