//! What the API server accepts and is probably not what was meant.
//!
//! A rule is a file in `rules/`: its documentation, its check and its tests. Whatever a rule says of
//! a pod it reads off the compiled [`Program`](portcullis_core::Program), and so off all the policies
//! that select the pod together, never off one of them.
#![forbid(unsafe_code)]

mod calls;
mod cni;
mod config;
mod context;
mod dns;
mod finding;
mod fix;
mod glob;
mod ignore;
pub mod render;
mod rule;
mod rules;
#[cfg(test)]
mod testing;

pub use config::Config;
pub use finding::{Finding, Related};
pub use fix::{Edit, Patch, fix, reader_findings, safe_edits};
pub use rule::Rule;

use context::Context;
use portcullis_kube::Input;
use rule::Report;

/// Every rule, by id.
pub fn rules() -> &'static [&'static Rule] {
    rules::ALL
}

/// The findings of every rule, by place, as a project without a configuration wants them.
pub fn lint(input: &Input) -> Vec<Finding> {
    lint_with(input, &Config::default())
}

/// The findings of every rule, by place. Those that the input asks to ignore are not among them.
///
/// An input with errors is judged as far as it goes: rules about pods and not about a policy by
/// itself say nothing, because a policy that could not be read may be the answer.
pub fn lint_with(input: &Input, config: &Config) -> Vec<Finding> {
    let context = Context::new(input);
    let mut findings = Vec::new();
    for rule in rules::ALL {
        if rule.whole && input.has_errors() {
            continue;
        }
        let mut report = Report { context: &context, rule, findings: Vec::new() };
        (rule.check)(&context, &mut report);
        findings.extend(report.findings);
    }
    findings.retain(|finding| !ignore::ignored(input, finding));
    config.apply(&mut findings);
    findings
        .sort_by(|a, b| (&a.location, a.rule, &a.message).cmp(&(&b.location, b.rule, &b.message)));
    findings.dedup();
    findings
}
