//! Annotations of Portcullis' own, on whatever object. What they mean is not looked at here.

use crate::diagnostic::Location;
use crate::tree::{Node, Position};

/// How their names begin.
pub const PREFIX: &str = "portcullis.dev/";

/// An annotation of an object of the input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Annotation {
    /// The object: `namespace shop`.
    pub object: String,
    /// Its index in the policies of the cluster, if it is one of them.
    pub policy: Option<usize>,
    /// Where the name of the annotation stands.
    pub location: Location,
    /// What comes after [`PREFIX`] in its name.
    pub name: String,
    /// Empty where it is no string.
    pub value: String,
}

/// Those of an object: where each is, its name without the prefix, its value.
pub(crate) fn of(root: &Node<'_>) -> Vec<(Position, String, String)> {
    let annotations = root.get("metadata").and_then(|metadata| metadata.get("annotations"));
    let entries = annotations.map(Node::entries).unwrap_or_default().iter();
    let own = entries.filter_map(|entry| {
        let name = entry.key.strip_prefix(PREFIX)?.to_owned();
        Some((entry.at, name, entry.node.text().unwrap_or_default().to_owned()))
    });
    own.collect()
}
