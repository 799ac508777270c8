//! Which objects a request is about: label and field selectors as they stand in addresses.

use portcullis_core::NoSelector;
use portcullis_core::labels::{Labels, Operator, Requirement, Selector};
use serde_json::Value;

use crate::meta;
use crate::refusal::Refusal;
use crate::resource::Resource;

/// The `labelSelector` and `fieldSelector` of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Select {
    labels: Selector,
    /// A field, whether it must be equal, and to what.
    fields: Vec<(String, bool, String)>,
}

/// The fields that selectors of each kind may name, beside name and namespace.
fn selectable(kind: &str) -> &'static [&'static str] {
    match kind {
        "Pod" => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.podIPs",
            "status.nominatedNodeName",
        ],
        "Event" => &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        "Namespace" => &["status.phase"],
        "Node" => &["spec.unschedulable"],
        "Service" => &["spec.clusterIP", "spec.type"],
        "Secret" => &["type"],
        "ReplicaSet" => &["status.replicas"],
        _ => &[],
    }
}

impl Select {
    pub(crate) fn read(kind: &Resource, labels: &str, fields: &str) -> Result<Select, Refusal> {
        let labels = labels.parse().map_err(|why: NoSelector| {
            Refusal::bad_request(format!("unable to parse requirement: {why}"))
        })?;
        let terms = fields.split(',').map(str::trim).filter(|term| !term.is_empty());
        let fields = terms.map(|term| field(kind, term)).collect::<Result<_, _>>()?;
        Ok(Select { labels, fields })
    }

    pub(crate) fn matches(&self, object: &Value) -> bool {
        (self.labels.is_empty() || self.labels.matches(&meta::labels(object)))
            && self
                .fields
                .iter()
                .all(|(path, equal, value)| (field_of(object, path) == *value) == *equal)
    }
}

fn field(kind: &Resource, term: &str) -> Result<(String, bool, String), Refusal> {
    let (path, equal, value) = if let Some((path, value)) = term.split_once("!=") {
        (path, false, value)
    } else if let Some((path, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
        (path, true, value)
    } else {
        let message = format!("invalid selector: {term:?}; can't understand it");
        return Err(Refusal::bad_request(message));
    };
    let named = path == "metadata.name" || (path == "metadata.namespace" && kind.namespaced);
    if !named && !selectable(kind.kind).contains(&path) {
        let message = format!("field label not supported: {path}");
        return Err(Refusal::bad_request(message));
    }
    Ok((path.to_owned(), equal, value.to_owned()))
}

fn field_of(object: &Value, path: &str) -> String {
    let path = if path == "source" { "source.component" } else { path };
    match object.pointer(&format!("/{}", path.replace('.', "/"))) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Bool(value)) => value.to_string(),
        Some(Value::Number(value)) => value.to_string(),
        _ if matches!(path, "spec.hostNetwork" | "spec.unschedulable") => "false".to_owned(),
        _ => String::new(),
    }
}

/// A `metav1.LabelSelector` of a stored object, which has been validated.
pub(crate) fn label_selector(object: Option<&Value>) -> Selector {
    let mut selector = Selector::default();
    let Some(object) = object else { return selector };
    selector.match_labels = meta::strings(object.get("matchLabels"));
    for expression in object["matchExpressions"].as_array().into_iter().flatten() {
        let values = expression["values"].as_array().into_iter().flatten();
        let values = values.filter_map(|v| v.as_str().map(str::to_owned)).collect();
        let operator = match expression["operator"].as_str() {
            Some("In") => Operator::In(values),
            Some("NotIn") => Operator::NotIn(values),
            Some("Exists") => Operator::Exists,
            _ => Operator::DoesNotExist,
        };
        let key = expression["key"].as_str().unwrap_or_default().to_owned();
        selector.match_expressions.push(Requirement { key, operator });
    }
    selector
}

/// The selector as `kubectl get -o wide` shows it and as `scale` carries it.
pub(crate) fn display(object: Option<&Value>) -> String {
    let selector = label_selector(object);
    let equal = selector.match_labels.iter().map(|(k, v)| format!("{k}={v}"));
    let rest = selector.match_expressions.iter().map(|r| match &r.operator {
        Operator::In(values) => format!("{} in ({})", r.key, values.join(",")),
        Operator::NotIn(values) => format!("{} notin ({})", r.key, values.join(",")),
        Operator::Exists => r.key.clone(),
        Operator::DoesNotExist => format!("!{}", r.key),
    });
    equal.chain(rest).collect::<Vec<_>>().join(",")
}

/// Labels in one line, or `<none>`.
pub(crate) fn display_labels(labels: &Labels) -> String {
    match labels.is_empty() {
        true => "<none>".to_owned(),
        false => labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(","),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn selects(labels: &str, fields: &str) -> bool {
        let pod = json!({
            "metadata": {"name": "web", "namespace": "shop", "labels": {"app": "web", "x/y": ""}},
            "spec": {"nodeName": "n1"},
        });
        let kind = Resource::of_kind("Pod").expect("served");
        Select::read(kind, labels, fields).expect("a selector").matches(&pod)
    }

    #[test]
    fn a_selector_that_is_none_is_refused() {
        let kind = Resource::of_kind("Pod").expect("served");
        for (labels, fields) in [
            ("a in (b", ""),
            ("a,,b", ""),
            ("a b", ""),
            ("", "spec.image=x"),
            ("", "spec.nodeName"),
        ] {
            let refused = Select::read(kind, labels, fields).map_err(|r| r.code);
            assert_eq!(refused, Err(400), "{labels} {fields}");
        }
    }

    #[test]
    fn field_selectors_compare_what_the_object_says() {
        assert!(selects(
            "app in (db, web)",
            "metadata.name=web,spec.nodeName!=n2,status.phase!=Failed"
        ));
        assert!(selects("", "spec.hostNetwork=false"));
        assert!(!selects("", "spec.nodeName=n2"));
        assert!(!selects("app=db", "metadata.name=web"));
    }
}
