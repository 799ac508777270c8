//! What makes the API server answer 422.
//!
//! NetworkPolicies, and what other kinds share with them, are judged by the engine, so that what
//! `check` says and what is said here are the same. Only what the reader of manifests has no use
//! for is judged here.

use portcullis_core::api::NetworkPolicy;
use portcullis_core::validate::read;
use portcullis_kube::{Options, Reason, Severity, Source, load};
use serde_json::{Value, json};

use crate::meta;
use crate::refusal::Cause;
use crate::resource::Resource;

/// What is wrong with an object, and what is worth a warning.
#[derive(Debug, Default)]
pub(crate) struct Judgement {
    pub(crate) causes: Vec<Cause>,
    pub(crate) warnings: Vec<String>,
}

/// Judges an object that has its defaults.
pub(crate) fn object(resource: &Resource, object: &Value) -> Judgement {
    let mut judgement = Judgement::default();
    let causes = &mut judgement.causes;
    if meta::name(object).is_empty() {
        causes.push(Cause::required("metadata.name", "name or generateName is required"));
        return judgement;
    }
    match resource.kind {
        "Namespace" | "Pod" | "Node" | "Service" | "Deployment" | "ReplicaSet" | "StatefulSet"
        | "DaemonSet" | "NetworkPolicy" => by_the_reader(object, &mut judgement),
        _ => {
            let policy = NetworkPolicy {
                name: meta::name(object).to_owned(),
                namespace: "default".to_owned(),
                labels: meta::labels(object),
                ..NetworkPolicy::default()
            };
            causes.extend(read(&policy).errors.into_iter().map(|error| Cause {
                message: error.body(),
                reason: error.reason.as_str(),
                field: error.path,
            }));
        }
    }
    let causes = &mut judgement.causes;
    match resource.kind {
        "Pod" => pod_spec(&object["spec"], "spec", causes),
        "Service" => service(object, causes),
        "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet" => {
            workload(resource.kind, object, causes);
        }
        "ConfigMap" | "Secret" => keys(object, causes),
        _ => {}
    }
    judgement
}

/// The same code as `portcullis check`.
fn by_the_reader(object: &Value, judgement: &mut Judgement) {
    let source = Source::Text { name: "request".to_owned(), text: object.to_string() };
    for found in load(&[source], &Options::default()).diagnostics {
        let reason = match found.reason {
            Reason::Field(reason) => reason.as_str(),
            Reason::WrongType => "FieldValueTypeInvalid",
            _ => continue,
        };
        match found.severity {
            Severity::Error => {
                let message = found.message.strip_prefix(&found.path).unwrap_or(&found.message);
                let message = message.strip_prefix(": ").unwrap_or(message).to_owned();
                judgement.causes.push(Cause { field: found.path, reason, message });
            }
            Severity::Warning => judgement.warnings.push(found.message),
            Severity::Note => {}
        }
    }
}

fn is_dns_label(name: &str) -> bool {
    let good = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    !name.is_empty()
        && name.len() <= 63
        && name.bytes().all(good)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

const DNS_LABEL: &str = "must be a DNS label: lower case letters, digits and '-', 63 at most, \
                         with a letter or digit at both ends";

fn pod_spec(spec: &Value, path: &str, causes: &mut Vec<Cause>) {
    if !spec.is_object() {
        causes.push(Cause::required(path, ""));
        return;
    }
    if meta::list(spec, "/containers").is_empty() {
        causes.push(Cause::required(&format!("{path}.containers"), ""));
    }
    let mut names: Vec<&str> = Vec::new();
    for list in ["initContainers", "containers"] {
        for (i, container) in meta::list(spec, &format!("/{list}")).iter().enumerate() {
            let path = format!("{path}.{list}[{i}]");
            let name = meta::text(container, "/name");
            let field = format!("{path}.name");
            if name.is_empty() {
                causes.push(Cause::required(&field, ""));
            } else if !is_dns_label(name) {
                causes.push(Cause::invalid(&field, &json!(name), DNS_LABEL));
            } else if names.contains(&name) {
                let message = format!("Duplicate value: {name:?}");
                causes.push(Cause { field, reason: "FieldValueDuplicate", message });
            }
            names.push(name);
            if meta::text(container, "/image").is_empty() {
                causes.push(Cause::required(&format!("{path}.image"), ""));
            }
            one_of(
                container,
                &path,
                "imagePullPolicy",
                &["Always", "IfNotPresent", "Never"],
                causes,
            );
            let volumes = meta::list(spec, "/volumes");
            for (j, mount) in meta::list(container, "/volumeMounts").iter().enumerate() {
                let name = &mount["name"];
                let claimed = meta::text(mount, "/name");
                if !volumes.iter().any(|volume| volume["name"] == *name) {
                    let field = format!("{path}.volumeMounts[{j}].name");
                    let message = format!("Not found: {claimed:?}");
                    causes.push(Cause { field, reason: "FieldValueNotFound", message });
                }
            }
        }
    }
    one_of(spec, path, "restartPolicy", &["Always", "OnFailure", "Never"], causes);
    let policies = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    one_of(spec, path, "dnsPolicy", &policies, causes);
}

fn one_of(object: &Value, path: &str, field: &str, of: &[&str], causes: &mut Vec<Cause>) {
    let value = &object[field];
    if value.as_str().is_some_and(|text| !of.contains(&text)) {
        causes.push(Cause::unsupported(&format!("{path}.{field}"), value, of));
    }
}

fn service(object: &Value, causes: &mut Vec<Cause>) {
    let name = meta::name(object);
    if !is_dns_label(name) || name.starts_with(|c: char| c.is_ascii_digit()) {
        let detail = "must be a DNS label that begins with a letter";
        if !causes.iter().any(|cause| cause.field == "metadata.name") {
            causes.push(Cause::invalid("metadata.name", &json!(name), detail));
        }
    }
    let spec = &object["spec"];
    let types = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
    one_of(spec, "spec", "type", &types, causes);
    let ports = meta::list(spec, "/ports");
    if ports.is_empty() && spec["clusterIP"] != "None" && spec["type"] != "ExternalName" {
        causes.push(Cause::required("spec.ports", ""));
    }
    if spec["type"] == "ExternalName" && meta::text(spec, "/externalName").is_empty() {
        causes.push(Cause::required("spec.externalName", ""));
    }
    for (i, port) in ports.iter().enumerate() {
        if ports.len() > 1 && meta::text(port, "/name").is_empty() {
            causes.push(Cause::required(&format!("spec.ports[{i}].name"), ""));
        }
        let same =
            |other: &&Value| other["port"] == port["port"] && other["protocol"] == port["protocol"];
        if ports[..i].iter().any(|other| same(&other)) {
            let field = format!("spec.ports[{i}]");
            let key = json!({"port": port["port"], "protocol": port["protocol"]});
            let message = format!("Duplicate value: {key}");
            causes.push(Cause { field, reason: "FieldValueDuplicate", message });
        }
    }
}

fn workload(kind: &str, object: &Value, causes: &mut Vec<Cause>) {
    let Some(template) = object.pointer("/spec/template/spec") else {
        // That there is no template at all has been said.
        if object.pointer("/spec/template").is_some() {
            causes.push(Cause::required("spec.template.spec", ""));
        }
        return;
    };
    pod_spec(template, "spec.template.spec", causes);
    let policy = &template["restartPolicy"];
    if policy.as_str().is_some_and(|policy| policy != "Always") {
        causes.push(Cause::unsupported("spec.template.spec.restartPolicy", policy, &["Always"]));
    }
    if kind == "StatefulSet" {
        let path = "spec";
        one_of(&object["spec"], path, "podManagementPolicy", &["OrderedReady", "Parallel"], causes);
    }
}

fn keys(object: &Value, causes: &mut Vec<Cause>) {
    for field in ["data", "binaryData"] {
        for key in object[field].as_object().into_iter().flatten().map(|(key, _)| key) {
            let good = |c: u8| c.is_ascii_alphanumeric() || b"-_.".contains(&c);
            if key.is_empty() || key.len() > 253 || !key.bytes().all(good) {
                let detail = "a valid config key must consist of letters, digits, '-', '_' or '.'";
                causes.push(Cause::invalid(&format!("{field}[{key}]"), &json!(key), detail));
            }
        }
    }
}

/// What an update may not change.
pub(crate) fn update(resource: &Resource, old: &Value, new: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    let immutable = |pointer: &str, causes: &mut Vec<Cause>| {
        if old.pointer(pointer) != new.pointer(pointer) {
            let field = pointer[1..].replace('/', ".");
            let value = new.pointer(pointer).unwrap_or(&Value::Null);
            causes.push(Cause::invalid(&field, value, "field is immutable"));
        }
    };
    match resource.kind {
        "Deployment" | "ReplicaSet" | "DaemonSet" => immutable("/spec/selector", &mut causes),
        "StatefulSet" => {
            let frozen = |object: &Value| {
                let mut spec = object["spec"].clone();
                if let Some(spec) = spec.as_object_mut() {
                    for free in [
                        "replicas",
                        "ordinals",
                        "template",
                        "updateStrategy",
                        "minReadySeconds",
                        "persistentVolumeClaimRetentionPolicy",
                        "revisionHistoryLimit",
                    ] {
                        spec.shift_remove(free);
                    }
                }
                spec
            };
            if frozen(old) != frozen(new) {
                let detail = "updates to statefulset spec for fields other than 'replicas', \
                              'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', \
                              'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are \
                              forbidden";
                causes.push(Cause::forbidden("spec", detail));
            }
        }
        "Pod" => {
            let frozen = |object: &Value| {
                let mut spec = object["spec"].clone();
                for list in ["initContainers", "containers"] {
                    for container in
                        spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten()
                    {
                        container["image"] = Value::Null;
                    }
                }
                if let Some(spec) = spec.as_object_mut() {
                    for free in [
                        "activeDeadlineSeconds",
                        "terminationGracePeriodSeconds",
                        "tolerations",
                        "ephemeralContainers",
                        "schedulingGates",
                    ] {
                        spec.shift_remove(free);
                    }
                }
                spec
            };
            if frozen(old) != frozen(new) {
                let detail = "pod updates may not change fields other than \
                              `spec.containers[*].image`,`spec.initContainers[*].image`,\
                              `spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to \
                              existing tolerations),`spec.terminationGracePeriodSeconds` (allow \
                              it to be set to 1 if it was previously negative)";
                causes.push(Cause::forbidden("spec", detail));
            }
        }
        "Secret" => immutable("/type", &mut causes),
        _ => {}
    }
    if matches!(resource.kind, "ConfigMap" | "Secret") && old["immutable"] == true {
        for field in ["data", "binaryData", "immutable"] {
            if old.get(field) != new.get(field) {
                let detail = "field is immutable when `immutable` is set";
                causes.push(Cause::forbidden(field, detail));
            }
        }
    }
    causes
}
