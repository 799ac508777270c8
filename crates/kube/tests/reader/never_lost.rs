//! What must hold for every input there is. The fuzz target and the property tests share it.

use portcullis_kube::{Input, ObjectRef, Options, Reason, Severity, Source, load};

/// Reads a text and checks that no policy of it is lost: a document with the line
/// `kind: NetworkPolicy` is in the cluster, or there is an error within it, or a warning that it
/// is another kind or there already.
pub(crate) fn check(text: &str) {
    let source = Source::Text { name: "m.yaml".into(), text: text.into() };
    let input = load(&[source], &Options::default());
    for diagnostic in &input.diagnostics {
        assert!(!diagnostic.to_string().contains('\n'), "{diagnostic:?}");
    }
    locate_everything(&input);
    if input.diagnostics.iter().any(|d| d.reason == Reason::NotText) {
        return;
    }
    // Directives are of the document after the marker.
    if text.contains('%') {
        return;
    }
    for (first, last) in documents_with_policies(text) {
        let within = |line: u32| (first..=last + 1).contains(&line);
        let taken = (0..input.cluster.policies.len())
            .filter_map(|i| input.locate(ObjectRef::Policy(i), "kind"))
            .any(|location| within(location.line));
        let said = input.diagnostics.iter().any(|d| {
            let counts = d.severity == Severity::Error
                || matches!(d.reason, Reason::OtherGroup | Reason::Repeated);
            counts && d.location.as_ref().is_some_and(|l| within(l.line))
        });
        assert!(
            taken || said,
            "lines {first} to {last} are lost: {:?} in {text:?}",
            input.diagnostics
        );
    }
}

/// Every object has a place, and every place a line.
fn locate_everything(input: &Input) {
    let cluster = &input.cluster;
    let policies = (0..cluster.policies.len().min(50)).map(ObjectRef::Policy);
    let pods = (0..cluster.pods.len().min(50)).map(ObjectRef::Pod);
    let namespaces = cluster.namespaces.keys().take(50).map(|name| ObjectRef::Namespace(name));
    for object in policies.chain(pods).chain(namespaces) {
        for path in ["", "kind", "metadata.name", "spec.ingress[0].from[0]", "nonsense[0].x"] {
            let location = input.locate(object, path).expect("the object is there");
            assert!(input.line(&location).is_some(), "{location}");
        }
    }
}

/// The first and last lines of the documents that have the line; not of those where texts can be
/// quoted, since a line there is not always what it looks like.
fn documents_with_policies(text: &str) -> Vec<(u32, u32)> {
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let mut documents = Vec::new();
    let (mut first, mut found, mut quoted) = (1, false, false);
    let mut number = 0;
    for line in text.split('\n') {
        number += 1;
        let rest = line.strip_prefix("---").or(line.strip_prefix("..."));
        if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t'])) {
            if found && !quoted {
                documents.push((first, number));
            }
            (first, found, quoted) = (number, false, false);
        }
        found |= line == "kind: NetworkPolicy";
        quoted |= line.contains(['"', '\'', '{', '[']);
    }
    if found && !quoted {
        documents.push((first, number));
    }
    documents
}
