//! The rules that every object shares, as the engine applies them to NetworkPolicies.

use portcullis_core::api::{LabelSelector, NetworkPolicy, NetworkPolicySpec};
use portcullis_core::labels::{Labels, Selector};
use portcullis_core::validate::{self, FieldError};

/// What is wrong with the metadata of an object.
pub(crate) fn metadata(name: &str, namespace: &str, labels: &Labels) -> Vec<FieldError> {
    let (name, namespace, labels) = (name.to_owned(), namespace.to_owned(), labels.clone());
    validate::read(&NetworkPolicy { name, namespace, labels, ..NetworkPolicy::default() }).errors
}

/// A selector, and what is wrong with it, at this path.
pub(crate) fn selector(raw: &LabelSelector, path: &str) -> (Selector, Vec<FieldError>) {
    const INSIDE: &str = "spec.podSelector";
    let spec = NetworkPolicySpec { pod_selector: raw.clone(), ..NetworkPolicySpec::default() };
    let (name, namespace) = ("any".to_owned(), "any".to_owned());
    let reading =
        validate::read(&NetworkPolicy { name, namespace, spec, ..NetworkPolicy::default() });
    let moved = reading
        .errors
        .into_iter()
        .map(|error| FieldError { path: error.path.replacen(INSIDE, path, 1), ..error });
    (reading.policy.subject, moved.collect())
}
