//! ObjectMeta.

use portcullis_core::labels::Labels;
use portcullis_core::model::MODE_ANNOTATION;

use crate::decode::{Cursor, Fields, Problems};
use crate::fields::{OBJECT_META, OWNER_REFERENCE};

/// What is read of ObjectMeta.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Metadata {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) labels: Labels,
    /// The annotation that says a mode.
    pub(crate) mode: Option<String>,
    /// Kind and name of the owner that is the controller.
    pub(crate) owner: Option<(String, String)>,
}

/// Decodes `metadata` below `object`, which is an object or a pod template.
pub(crate) fn decode(object: &Cursor<'_, '_>, namespace: &str, out: &mut Problems) -> Metadata {
    let mut metadata = Metadata { namespace: namespace.to_owned(), ..Metadata::default() };
    let Some(at) = object.get("metadata") else { return metadata };
    at.fields(Fields { names: OBJECT_META, nearby: &[] }, out);
    if let Some(name) = at.get("name") {
        metadata.name = name.string(out);
    } else if let Some(prefix) = at.get("generateName") {
        // The API server makes one up; any will do here.
        metadata.name = prefix.string(out).trim_end_matches('-').to_owned();
    }
    if let Some(namespace) = at.get("namespace").map(|c| c.string(out)).filter(|n| !n.is_empty()) {
        metadata.namespace = namespace;
    }
    if let Some(annotations) = at.get("annotations") {
        let annotations = annotations.labels(out);
        metadata.mode = annotations.get(MODE_ANNOTATION).cloned();
    }
    metadata.labels = at.get("labels").map(|c| c.labels(out)).unwrap_or_default();
    let owners = at.get("ownerReferences").map(|c| c.list(out, owner)).unwrap_or_default();
    metadata.owner = owners.into_iter().flatten().next();
    metadata
}

fn owner(at: &Cursor<'_, '_>, out: &mut Problems) -> Option<(String, String)> {
    at.fields(Fields { names: OWNER_REFERENCE, nearby: &[] }, out);
    let controller = at.get("controller").is_some_and(|c| c.bool(out));
    let kind = at.get("kind").map(|c| c.string(out)).unwrap_or_default();
    let name = at.get("name").map(|c| c.string(out)).unwrap_or_default();
    controller.then_some((kind, name))
}
