//! One finding, whoever made it: the reader or a rule.

use portcullis_kube::{Diagnostic, Location, Severity};

use crate::fix::Edit;

/// Something to be said about the input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The id of the rule, or the reason of the reader.
    pub rule: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// Which object it is about: `networkpolicy shop/web`.
    pub object: Option<String>,
    /// The field, as the API server writes paths; empty where it is about a whole object.
    pub path: String,
    /// Where that is.
    pub location: Option<Location>,
    /// What is wrong, in one line.
    pub message: String,
    /// What to write instead; empty where the message says all.
    pub help: String,
    /// Other places that have to do with it.
    pub related: Vec<Related>,
    /// An edit that makes it go away, where there is one that is safe.
    pub fix: Option<Edit>,
    /// The index of the policy it is about, by which it can be ignored.
    pub(crate) policy: Option<usize>,
}

/// A place that has to do with a finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Related {
    /// What is there.
    pub message: String,
    /// Where it is.
    pub location: Location,
}

impl Finding {
    /// The namespace of the object that it is about, or that it is about itself.
    pub fn namespace(&self) -> Option<&str> {
        let (kind, name) = self.object.as_ref()?.split_once(' ')?;
        match name.split_once('/') {
            Some((namespace, _)) => Some(namespace),
            None => (kind == "namespace").then_some(name),
        }
    }
}

impl From<&Diagnostic> for Finding {
    fn from(diagnostic: &Diagnostic) -> Finding {
        Finding {
            rule: diagnostic.reason.id(),
            severity: diagnostic.severity,
            object: diagnostic.object.clone(),
            path: diagnostic.path.clone(),
            location: diagnostic.location.clone(),
            message: diagnostic.message.clone(),
            help: String::new(),
            related: Vec::new(),
            fix: None,
            policy: None,
        }
    }
}
