//! The reader from outside: manifests as text, findings as text.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod callers;
mod cluster;
mod documents;
mod hostile;
mod never_lost;
mod objects;
mod places;
mod policies;
mod properties;
mod sources;

use portcullis_kube::{Input, Options, Source, load};

/// Reads one text, called `m.yaml`.
fn read(text: &str) -> Input {
    load(&[Source::Text { name: "m.yaml".into(), text: text.into() }], &Options::default())
}

/// What is said about a text, a line for each finding.
fn says(text: &str) -> String {
    lines(&read(text))
}

fn lines(input: &Input) -> String {
    input.diagnostics.iter().map(|d| format!("{d}\n")).collect()
}

/// What is said about a NetworkPolicy with this `spec`: a line break, then line 5 and so on.
fn policy(spec: &str) -> String {
    says(&format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: web, namespace: shop}}\n\
         spec:{spec}"
    ))
}
