//! What a rule is, and how it reports.

use portcullis_kube::{Location, ObjectRef, Severity};

use crate::context::Context;
use crate::finding::{Finding, Related};

/// One rule: what it says, why, and the check itself. Everything else is generated from this.
#[derive(Debug)]
pub struct Rule {
    /// Its name in findings and suppressions, in kebab-case.
    pub id: &'static str,
    /// How bad what it finds usually is.
    pub severity: Severity,
    /// What it finds, in a sentence.
    pub what: &'static str,
    /// Why that matters.
    pub why: &'static str,
    /// A part of a manifest that it finds something in.
    pub example: &'static str,
    /// What to write instead.
    pub fix: &'static str,
    /// Whether it needs every policy, and so says nothing about an input with errors.
    pub(crate) whole: bool,
    pub(crate) check: fn(&Context<'_>, &mut Report<'_>),
}

impl Rule {
    /// The page of the rule, in Markdown.
    pub fn page(&self) -> String {
        let example = self.example.trim_matches('\n');
        let what = wrapped(&format!("*{}*: {}", self.severity, self.what));
        let (why, fix) = (wrapped(self.why), wrapped(&format!("**Instead:** {}", self.fix)));
        format!("## {}\n\n{what}\n\n{why}\n\n```yaml\n{example}\n```\n\n{fix}\n", self.id)
    }

    /// The same for a terminal.
    pub fn explanation(&self) -> String {
        let lines = self.example.trim_matches('\n').lines();
        let example: String = lines.map(|line| format!("    {line}\n")).collect();
        let (what, why) = (wrapped(self.what), wrapped(self.why));
        let fix = wrapped(&format!("Instead: {}", self.fix));
        format!("{} ({})\n\n{what}\n\n{why}\n\n{example}\n{fix}\n", self.id, self.severity)
    }
}

/// A text in lines of at most a hundred characters.
fn wrapped(text: &str) -> String {
    const WIDTH: usize = 100;
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.chars().count() + 1 + word.chars().count() <= WIDTH => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines.join("\n")
}

/// Where a rule puts what it finds.
pub(crate) struct Report<'a> {
    pub(crate) context: &'a Context<'a>,
    pub(crate) rule: &'static Rule,
    pub(crate) findings: Vec<Finding>,
}

impl Report<'_> {
    /// Reports something about a field of a policy.
    pub(crate) fn policy(
        &mut self,
        policy: usize,
        path: impl Into<String>,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> &mut Finding {
        let path = path.into();
        let written = &self.context.cluster.policies[policy];
        let object = format!("networkpolicy {}/{}", written.namespace, written.name);
        let location = self.context.input.locate(ObjectRef::Policy(policy), &path);
        let finding = self.object(object, location, message, help);
        (finding.path, finding.policy) = (path, Some(policy));
        finding
    }

    /// Reports something about another object: `deployment shop/web`.
    pub(crate) fn object(
        &mut self,
        object: impl Into<String>,
        location: Option<Location>,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> &mut Finding {
        let at = self.findings.len();
        self.findings.push(Finding {
            rule: self.rule.id,
            severity: self.rule.severity,
            object: Some(object.into()),
            location,
            path: String::new(),
            message: message.into(),
            help: help.into(),
            related: Vec::new(),
            fix: None,
            policy: None,
        });
        &mut self.findings[at]
    }

    /// Reports something about a pod, or what makes it.
    pub(crate) fn pod(
        &mut self,
        pod: usize,
        message: impl Into<String>,
        help: impl Into<String>,
    ) -> &mut Finding {
        let of = &self.context.cluster.pods[pod];
        let object = match &of.workload {
            Some(w) => format!("{} {}/{}", w.kind.to_lowercase(), of.namespace, w.name),
            None => format!("pod {}/{}", of.namespace, of.name),
        };
        let location = self.context.input.locate(ObjectRef::Pod(pod), "");
        self.object(object, location, message, help)
    }
}

impl Finding {
    /// The same, only worth knowing.
    pub(crate) fn note(&mut self) -> &mut Finding {
        self.severity = Severity::Note;
        self
    }

    /// With another place that has to do with it.
    pub(crate) fn see(&mut self, context: &Context<'_>, policy: usize, path: &str) -> &mut Finding {
        let written = &context.cluster.policies[policy];
        let message = format!("networkpolicy {}/{}: {path}", written.namespace, written.name);
        if let Some(location) = context.input.locate(ObjectRef::Policy(policy), path) {
            self.related.push(Related { message, location });
        }
        self
    }
}
