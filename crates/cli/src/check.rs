//! `portcullis check`: what the API server would say, and what was probably not meant.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::ValueEnum;
use portcullis_kube::{Diagnostic, Input, Location, Reason, Severity};
use portcullis_lint::{Config, Finding, Patch, render};
use serde::Serialize;

use crate::focus::known;
use crate::input::{InputArgs, line};
use crate::output::{json, plural, print};
use crate::style::{ALLOWED, BOLD, ERROR};
use crate::trouble::Trouble;

/// Is it valid, and is it what was meant? Exits 1 if anything is an error.
#[derive(Debug, clap::Args)]
#[command(mut_arg("namespace", |arg| arg.help(NAMESPACE)))]
pub(crate) struct Check {
    #[command(flatten)]
    input: InputArgs,
    /// All namespaces; -n is then only that of objects that give none
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Output format
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
    /// Show what is only worth knowing, too
    #[arg(long)]
    notes: bool,
    /// Exit 1 at findings of this weight, too
    #[arg(long, value_enum, default_value_t = Weight::Error, value_name = "SEVERITY")]
    fail_on: Weight,
    /// The same as --fail-on warning
    #[arg(long, conflicts_with = "fail_on")]
    strict: bool,
    /// What the project wants of the rules [default: .portcullis.yaml here or above, up to the root
    /// of the repository]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Write what is safe to write: edits that keep every comment and change no meaning
    #[arg(long, requires = "filename", conflicts_with = "kustomize")]
    fix: bool,
    /// Print those edits as a patch and write nothing; exits 1 if there are any, or errors
    #[arg(long, requires = "filename", conflicts_with = "kustomize")]
    diff: bool,
    /// With --fix, the same as --diff
    #[arg(long, requires = "fix")]
    dry_run: bool,
    /// Print what a rule is about, why, and what to write instead; nothing is checked
    #[arg(long, value_name = "RULE", conflicts_with_all = ["filename", "output"])]
    explain: Option<String>,
}

/// The format of findings.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// For people
    Table,
    /// For programs; the shape is stable
    Json,
    /// GitHub Actions: annotations of the lines in a pull request
    Github,
    /// SARIF 2.1.0, for code scanning and editors
    Sarif,
    /// JUnit XML: a test for each policy
    Junit,
}

/// A severity, on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Weight {
    /// What the API server would reject
    Error,
    /// What is probably not what was meant
    Warning,
    /// What is worth knowing
    Note,
}

/// What `-n` means here.
const NAMESPACE: &str = "Only what is found in objects of this namespace, and errors; it is also \
                         that of objects that give none";

#[derive(Serialize)]
struct Report<'a> {
    diagnostics: Vec<Entry<'a>>,
    /// How many objects of each kind were read.
    objects: &'a BTreeMap<&'static str, usize>,
    /// How many objects of each other kind were passed over.
    #[serde(rename = "passedOver")]
    passed_over: &'a BTreeMap<String, usize>,
    errors: usize,
    warnings: usize,
    notes: usize,
}

#[derive(Serialize)]
struct Entry<'a> {
    severity: String,
    reason: &'static str,
    object: Option<&'a str>,
    path: &'a str,
    message: &'a str,
    location: Option<Place<'a>>,
    #[serde(skip_serializing_if = "str::is_empty")]
    help: &'a str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    related: Vec<Related<'a>>,
    /// Whether `--fix` may answer it.
    fixable: bool,
}

#[derive(Serialize)]
struct Related<'a> {
    message: &'a str,
    location: Place<'a>,
}

#[derive(Serialize)]
struct Place<'a> {
    file: &'a str,
    line: u32,
    column: u32,
}

impl Check {
    pub(crate) fn run(self) -> Result<ExitCode, Trouble> {
        if let Some(id) = &self.explain {
            let rules = portcullis_lint::rules();
            let rule = rules.iter().find(|rule| rule.id == id);
            let unknown = || Trouble::UnknownRule {
                id: id.clone(),
                known: rules.iter().map(|rule| rule.id).collect::<Vec<_>>().join(", "),
            };
            print(&rule.ok_or_else(unknown)?.explanation())?;
            return Ok(ExitCode::SUCCESS);
        }
        let config = configuration(self.config.as_deref())?;
        let mut input = self.input.read()?;
        let [mut reader, mut lint] = self.findings(&input, &config)?;
        if self.fix || self.diff {
            let findings = [reader.as_slice(), &lint].concat();
            let patches = portcullis_lint::fix(&input, &self.input.options(None), &findings);
            if self.diff || self.dry_run {
                print(&patches.iter().map(Patch::unified).collect::<String>())?;
                if input.has_errors() {
                    anstream::eprintln!(
                        "files with errors are left as they are: see `portcullis check`"
                    );
                }
                let clean = patches.is_empty() && !input.has_errors();
                return Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE });
            }
            if self.input.reads_stdin() {
                return Err(Trouble::FixStdin);
            }
            for patch in &patches {
                write(patch)?;
            }
            if !patches.is_empty() {
                input = self.input.read()?;
                [reader, lint] = self.findings(&input, &config)?;
            }
        }
        let count = |severity| {
            reader.iter().chain(&lint).filter(|finding| finding.severity == severity).count()
        };
        let counts = [Severity::Error, Severity::Warning, Severity::Note].map(count);
        let fail_on = match self.fail_on {
            _ if self.strict => Severity::Warning,
            Weight::Error => Severity::Error,
            Weight::Warning => Severity::Warning,
            Weight::Note => Severity::Note,
        };
        match self.output {
            Format::Table => {
                let shown = |f: &&Finding| self.notes || f.severity != Severity::Note;
                let of_lint = lint.iter().filter(shown);
                let hidden = lint.len() - of_lint.clone().count();
                let fixable = |f: &&Finding| f.fix.is_some() && self.input.is_files();
                let fixable = reader.iter().chain(&lint).filter(fixable).count();
                print(&table(&input, reader.iter().chain(of_lint), counts, [hidden, fixable]))?;
            }
            Format::Github => {
                let all = reader.iter().chain(&lint);
                print(&all.map(render::github).collect::<String>())?;
            }
            Format::Sarif => {
                let findings = [reader, lint].concat();
                let options = self.input.options(None);
                let safe = match self.input.is_files() {
                    true => portcullis_lint::safe_edits(&input, &options, &findings),
                    false => Vec::new(),
                };
                print(&render::sarif(&input, &findings, &safe))?;
            }
            Format::Junit => print(&render::junit(&input, &[reader, lint].concat(), fail_on))?,
            Format::Json => {
                let [errors, warnings, notes] = counts;
                let report = Report {
                    diagnostics: reader.iter().chain(&lint).map(entry).collect(),
                    objects: &input.read,
                    passed_over: &input.passed_over,
                    errors,
                    warnings,
                    notes,
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
        if input.diagnostics.iter().any(unread) {
            return Ok(ExitCode::from(2));
        }
        let weights = [Severity::Error, Severity::Warning, Severity::Note];
        let failed = weights.iter().zip(counts).any(|(weight, n)| *weight <= fail_on && n > 0);
        Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    /// What the reader and the rules find in the namespace that is asked about. Errors are told
    /// whatever it is: rules say less where something could not be read.
    fn findings(&self, input: &Input, config: &Config) -> Result<[Vec<Finding>; 2], Trouble> {
        let reader = portcullis_lint::reader_findings(input);
        let mut found = [reader, portcullis_lint::lint_with(input, config)];
        if let Some(name) = self.input.namespace.as_ref().filter(|_| !self.all_namespaces) {
            if !input.has_errors() {
                known(name, &[&input.cluster])?;
            }
            let [reader, lint] = &mut found;
            let is_asked = |f: &Finding| f.namespace().is_none_or(|namespace| namespace == name);
            reader.retain(|f| f.severity == Severity::Error || is_asked(f));
            lint.retain(is_asked);
        }
        Ok(found)
    }
}

/// Writes a file, if it still is what was read.
fn write(patch: &Patch) -> Result<(), Trouble> {
    let file = &patch.file;
    let trouble = |source| Trouble::Io { what: format!("cannot write {file}"), source };
    let there = fs::read_to_string(&**file).map_err(trouble)?;
    let mark = if there.starts_with('\u{FEFF}') { "\u{FEFF}" } else { "" };
    if there[mark.len()..] != patch.old {
        return Err(trouble(io::Error::other("it has changed since it was read")));
    }
    fs::write(&**file, format!("{mark}{}", patch.new)).map_err(trouble)?;
    anstream::eprintln!("{BOLD}fixed{BOLD:#} {} in {file}", plural(patch.fixed, "finding"));
    Ok(())
}

/// The name of the file that a project says in what it wants.
const CONFIG: &str = ".portcullis.yaml";

/// What the project wants: of this file, or else of the nearest one.
fn configuration(file: Option<&Path>) -> Result<Config, Trouble> {
    let found = match file {
        Some(file) => Some(file.to_owned()),
        None => nearest_config(),
    };
    let Some(file) = found else { return Ok(Config::default()) };
    let shown = file.display();
    let text = fs::read_to_string(&file)
        .map_err(|source| Trouble::Io { what: format!("cannot read {shown}"), source })?;
    let base = match file.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let wrong = |wrong: Vec<Diagnostic>| {
        Trouble::Config(wrong.iter().map(line).collect::<Vec<_>>().join("\n"))
    };
    Config::parse(&shown.to_string(), &text, base).map_err(wrong)
}

/// The file of the working directory, or of the nearest directory above it that is of the same
/// repository.
fn nearest_config() -> Option<PathBuf> {
    let here = std::env::current_dir().ok()?;
    let root = here.ancestors().find(|directory| directory.join(".git").exists());
    let within = here.ancestors().take_while(|d| root.map_or(*d == here, |r| d.starts_with(r)));
    within.map(|directory| directory.join(CONFIG)).find(|file| file.is_file())
}

fn entry(finding: &Finding) -> Entry<'_> {
    let related = finding.related.iter();
    Entry {
        severity: finding.severity.to_string(),
        reason: finding.rule,
        object: finding.object.as_deref(),
        path: &finding.path,
        message: &finding.message,
        location: finding.location.as_ref().map(place),
        help: &finding.help,
        related: related
            .map(|r| Related { message: &r.message, location: place(&r.location) })
            .collect(),
        fixable: finding.fix.is_some(),
    }
}

fn place(location: &Location) -> Place<'_> {
    Place { file: &location.file, line: location.line, column: location.column }
}

fn table<'a>(
    input: &Input,
    findings: impl Iterator<Item = &'a Finding>,
    [errors, warnings, _]: [usize; 3],
    [hidden, fixable]: [usize; 2],
) -> String {
    let mut text: String = findings.map(|finding| render::text(input, finding)).collect();
    let read = if input.read.is_empty() { "nothing".to_owned() } else { counted(&input.read) };
    let passed_over = match input.passed_over.is_empty() {
        true => String::new(),
        false => format!("; passed over {}", counted(&input.passed_over)),
    };
    let hidden = match hidden {
        0 => String::new(),
        n => format!(
            "; {} (--notes shows {})",
            plural(n, "note"),
            if n == 1 { "it" } else { "them" }
        ),
    };
    let fixable = match fixable {
        0 => String::new(),
        n => format!("; {n} can be fixed (--fix)"),
    };
    let verdict = match (errors, warnings) {
        (0, 0) => format!("{ALLOWED}valid{ALLOWED:#}"),
        (0, n) => format!("{ALLOWED}valid{ALLOWED:#}, {}", plural(n, "warning")),
        (e, 0) => format!("{ERROR}{}{ERROR:#}", plural(e, "error")),
        (e, n) => format!("{ERROR}{}{ERROR:#}, {}", plural(e, "error"), plural(n, "warning")),
    };
    text.push_str(&format!("{verdict}: read {read}{passed_over}{hidden}{fixable}\n"));
    text
}

/// `3 NetworkPolicy, 1 Pod`.
fn counted<K: std::fmt::Display>(kinds: &BTreeMap<K, usize>) -> String {
    kinds.iter().map(|(kind, n)| format!("{n} {kind}")).collect::<Vec<_>>().join(", ")
}
