//! Manifests as text in, findings as text out.

use portcullis_kube::{Options, Severity, Source, load};

use crate::finding::Finding;
use crate::lint;
use crate::rule::Rule;

/// Rules about what could be there and is not. Most texts of tests are no more than a test needs.
const ADVICE: [&str; 3] = ["default-deny-missing", "open-workload", "policy-types-omitted"];

/// The findings about a text, which must be valid, without advice.
pub(crate) fn findings(yaml: &str) -> Vec<Finding> {
    let mut findings = every_finding(yaml);
    findings.retain(|finding| !ADVICE.contains(&finding.rule));
    findings
}

/// The findings of one rule of advice.
pub(crate) fn advice(rule: &Rule, yaml: &str) -> Vec<Finding> {
    assert!(ADVICE.contains(&rule.id), "{}", rule.id);
    let mut findings = every_finding(yaml);
    findings.retain(|finding| finding.rule == rule.id);
    findings
}

/// `line:column` of each.
pub(crate) fn places(findings: &[Finding]) -> Vec<String> {
    let places = findings.iter().filter_map(|finding| finding.location.as_ref());
    places.map(|at| format!("{}:{}", at.line, at.column)).collect()
}

/// All findings about a text, which must be valid.
fn every_finding(yaml: &str) -> Vec<Finding> {
    let source = Source::Text { name: "test.yaml".to_owned(), text: yaml.to_owned() };
    let input = load(&[source], &Options::default());
    assert!(!input.has_errors(), "{:#?}", input.diagnostics);
    lint(&input)
}

/// `line:column rule` of each finding that is more than a note.
pub(crate) fn found(yaml: &str) -> Vec<String> {
    let of_weight = findings(yaml).into_iter().filter(|f| f.severity != Severity::Note);
    of_weight.map(|f| text(&f)).collect()
}

/// `line:column rule` of each note.
pub(crate) fn notes(yaml: &str) -> Vec<String> {
    let notes = findings(yaml).into_iter().filter(|f| f.severity == Severity::Note);
    notes.map(|f| text(&f)).collect()
}

fn text(finding: &Finding) -> String {
    let at = finding.location.as_ref().map(|l| format!("{}:{}", l.line, l.column));
    format!("{} {}", at.unwrap_or_default(), finding.rule)
}

/// A text with every fix that is safe.
pub(crate) fn fixed(yaml: &str) -> String {
    let source = Source::Text { name: "test.yaml".to_owned(), text: yaml.to_owned() };
    let input = load(&[source], &Options::default());
    let mut findings = crate::reader_findings(&input);
    findings.extend(lint(&input));
    let mut patches = crate::fix(&input, &Options::default(), &findings);
    patches.pop().map_or_else(|| yaml.to_owned(), |patch| patch.new)
}

/// A policy of namespace shop with this name and spec (indented by two, no leading line break).
pub(crate) fn policy(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  name: {name}\n  namespace: shop\nspec:\n{spec}\n"
    )
}

/// A pod with these labels and ports, both in flow style, as a further document.
pub(crate) fn pod(namespace: &str, name: &str, labels: &str, ports: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{{labels}}}}}\nspec: {{containers: [{{name: main, image: app, ports: [{ports}]}}]}}\n"
    )
}

/// A namespace with these labels, in flow style, as a further document.
pub(crate) fn namespace(name: &str, labels: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{{labels}}}}}\n"
    )
}

/// A DaemonSet of namespace kube-system, as a further document.
pub(crate) fn daemon_set(name: &str) -> String {
    format!(
        "---\napiVersion: apps/v1\nkind: DaemonSet\nmetadata: {{name: {name}, namespace: kube-system}}\nspec: {{selector: {{matchLabels: {{app: {name}}}}}, template: {{metadata: {{labels: {{app: {name}}}}}, spec: {{containers: [{{name: main, image: app}}]}}}}}}\n"
    )
}
