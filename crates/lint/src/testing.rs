//! Manifests as text in, findings as text out.

use portcullis_kube::{Options, Severity, Source, load};

use crate::finding::Finding;
use crate::lint;

/// All findings about a text, which must be valid.
pub(crate) fn findings(yaml: &str) -> Vec<Finding> {
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
