//! What there is: `/api`, `/apis` and what is below them, `/version`, and OpenAPI documents.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::resource::{RESOURCES, Resource};
use crate::schema::{self, Type};

/// The version of Kubernetes whose API is served.
pub(crate) const MINOR: &str = "32";

/// `/version`.
pub(crate) fn version() -> Value {
    json!({
        "major": "1",
        "minor": MINOR,
        "gitVersion": format!("v1.{MINOR}.0+portcullis"),
        "gitCommit": "",
        "gitTreeState": "",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "",
        "platform": "linux/amd64",
    })
}

/// `/api`.
pub(crate) fn core_versions(address: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    })
}

fn groups() -> BTreeSet<&'static str> {
    RESOURCES.iter().map(|r| r.group).filter(|group| !group.is_empty()).collect()
}

/// `/apis`.
pub(crate) fn group_list() -> Value {
    let groups: Vec<Value> = groups().into_iter().map(group_versions).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/GROUP`.
pub(crate) fn group(name: &str) -> Option<Value> {
    let name = groups().into_iter().find(|group| *group == name)?;
    let mut group = group_versions(name);
    group["kind"] = json!("APIGroup");
    group["apiVersion"] = json!("v1");
    Some(group)
}

fn group_versions(name: &str) -> Value {
    let version = json!({"groupVersion": format!("{name}/v1"), "version": "v1"});
    json!({"name": name, "versions": [version], "preferredVersion": version})
}

fn of_group(group: &str) -> impl Iterator<Item = &'static Resource> {
    RESOURCES.iter().filter(move |resource| resource.group == group)
}

/// The parts of an object with an address of their own: name, kind, verbs.
fn parts(resource: &Resource) -> Vec<(&'static str, Value, &'static [&'static str])> {
    let kind = |group: &str, kind: &str| json!({"group": group, "version": "v1", "kind": kind});
    let change: &[&str] = &["get", "patch", "update"];
    let mut parts: Vec<(_, _, &[&str])> = Vec::new();
    if resource.kind == "Pod" {
        let reach: &[&str] = &["create", "get"];
        parts.push(("attach", kind("", "PodAttachOptions"), reach));
        parts.push(("binding", kind("", "Binding"), &["create"]));
        parts.push(("eviction", kind("policy", "Eviction"), &["create"]));
        parts.push(("exec", kind("", "PodExecOptions"), reach));
        parts.push(("log", kind("", "Pod"), &["get"]));
        parts.push(("portforward", kind("", "PodPortForwardOptions"), reach));
    }
    if resource.scale {
        parts.push(("scale", kind("autoscaling", "Scale"), change));
    }
    if resource.status {
        parts.push(("status", kind(resource.group, resource.kind), change));
    }
    parts
}

/// `/api/v1` and `/apis/GROUP/v1`.
pub(crate) fn resources(group: &str) -> Option<Value> {
    let mut list = Vec::new();
    for resource in of_group(group) {
        let mut entry = json!({
            "name": resource.plural,
            "singularName": resource.singular,
            "namespaced": resource.namespaced,
            "kind": resource.kind,
            "verbs": resource.verbs(),
        });
        if !resource.short.is_empty() {
            entry["shortNames"] = json!(resource.short);
        }
        if resource.in_all {
            entry["categories"] = json!(["all"]);
        }
        list.push(entry);
        for (part, kind, verbs) in parts(resource) {
            let mut entry = json!({
                "name": format!("{}/{part}", resource.plural),
                "singularName": "",
                "namespaced": resource.namespaced,
                "kind": kind["kind"],
                "verbs": verbs,
            });
            if kind["group"] != resource.group {
                entry["group"] = kind["group"].clone();
                entry["version"] = kind["version"].clone();
            }
            list.push(entry);
        }
    }
    let version = if group.is_empty() { "v1".to_owned() } else { format!("{group}/v1") };
    (!list.is_empty()).then(|| {
        json!({
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": version,
            "resources": list,
        })
    })
}

/// `/api` (for the core group) and `/apis` with everything that is below them.
pub(crate) fn aggregated(core: bool) -> Value {
    let groups: BTreeSet<&str> = if core { [""].into() } else { groups() };
    let items: Vec<Value> = groups.into_iter().map(aggregated_group).collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {},
        "items": items,
    })
}

fn aggregated_group(group: &str) -> Value {
    let resources: Vec<Value> = of_group(group)
        .map(|resource| {
            let kind = |kind: &Value| {
                json!({"group": kind["group"], "version": kind["version"], "kind": kind["kind"]})
            };
            let parts: Vec<Value> = parts(resource)
                .into_iter()
                .map(|(part, of, verbs)| {
                    json!({"subresource": part, "responseKind": kind(&of), "verbs": verbs})
                })
                .collect();
            let own =
                json!({"group": group, "version": resource.version, "kind": resource.kind});
            let mut entry = json!({
                "resource": resource.plural,
                "responseKind": own,
                "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
                "singularResource": resource.singular,
                "verbs": resource.verbs(),
            });
            if !resource.short.is_empty() {
                entry["shortNames"] = json!(resource.short);
            }
            if resource.in_all {
                entry["categories"] = json!(["all"]);
            }
            if !parts.is_empty() {
                entry["subresources"] = json!(parts);
            }
            entry
        })
        .collect();
    let mut metadata = json!({"creationTimestamp": null});
    if !group.is_empty() {
        metadata["name"] = json!(group);
    }
    let version = json!({"version": "v1", "resources": resources, "freshness": "Current"});
    json!({"metadata": metadata, "versions": [version]})
}

/// `/openapi/v2` as kubectl asks for it: a document without definitions, in the protocol buffers
/// encoding. Everything that kubectl needs of a schema it finds in version 3.
pub(crate) const OPENAPI_V2: &[u8] = b"\n\x032.0\x12\x12\n\nKubernetes\x12\x04v1.0";

/// `/openapi/v3`.
pub(crate) fn openapi_index() -> Value {
    let mut paths = Map::new();
    paths.insert("api/v1".to_owned(), json!({"serverRelativeURL": "/openapi/v3/api/v1"}));
    for group in groups() {
        let path = format!("apis/{group}/v1");
        let url = format!("/openapi/v3/{path}");
        paths.insert(path, json!({"serverRelativeURL": url}));
    }
    json!({"paths": paths})
}

/// `/openapi/v3/api/v1` and `/openapi/v3/apis/GROUP/v1`: that patches take `fieldValidation`, which
/// is what kubectl looks for, and the fields of the types, for `kubectl explain`.
pub(crate) fn openapi(group: &str) -> Option<Value> {
    let mut paths = Map::new();
    let mut schemas = Map::new();
    for resource in of_group(group) {
        let root = if group.is_empty() { "/api".to_owned() } else { format!("/apis/{group}") };
        let scope = if resource.namespaced { "/namespaces/{namespace}" } else { "" };
        let path = format!("{root}/{}{scope}/{}/{{name}}", resource.version, resource.plural);
        let kind = json!({"group": group, "version": resource.version, "kind": resource.kind});
        let parameters: Vec<Value> = ["dryRun", "fieldManager", "fieldValidation", "force"]
            .iter()
            .map(|name| json!({"name": name, "in": "query", "schema": {"type": "string"}}))
            .collect();
        let operation = |action: &str| {
            json!({
                "parameters": parameters,
                "responses": {},
                "x-kubernetes-action": action,
                "x-kubernetes-group-version-kind": kind,
            })
        };
        paths.insert(path, json!({"patch": operation("patch"), "put": operation("put")}));
        define(resource.kind, &mut schemas);
        if let Some(schema) = schemas.get_mut(&component(resource.kind)) {
            schema["x-kubernetes-group-version-kind"] = json!([kind]);
        }
    }
    (!paths.is_empty()).then(|| {
        json!({
            "openapi": "3.0.0",
            "info": {"title": "Kubernetes", "version": "unversioned"},
            "paths": paths,
            "components": {"schemas": schemas},
        })
    })
}

fn component(name: &str) -> String {
    format!("io.k8s.api.{name}")
}

fn define(name: &'static str, schemas: &mut Map<String, Value>) {
    if schemas.contains_key(&component(name)) {
        return;
    }
    schemas.insert(component(name), Value::Null);
    let mut properties = Map::new();
    for field in &schema::fields(name).fields {
        properties.insert(field.name.to_owned(), property(&field.kind, schemas));
    }
    let schema = json!({"type": "object", "description": name, "properties": properties});
    schemas.insert(component(name), schema);
}

fn property(kind: &Type, schemas: &mut Map<String, Value>) -> Value {
    match kind {
        Type::String | Type::Quantity => json!({"type": "string"}),
        Type::Time => json!({"type": "string", "format": "date-time"}),
        Type::Bytes => json!({"type": "string", "format": "byte"}),
        Type::Integer => json!({"type": "integer", "format": "int32"}),
        Type::Bool => json!({"type": "boolean"}),
        Type::IntOrString => json!({"type": "string", "format": "int-or-string"}),
        Type::Any => json!({"type": "object"}),
        Type::Map(of) => json!({"type": "object", "additionalProperties": property(of, schemas)}),
        Type::List(of, _) => json!({"type": "array", "items": property(of, schemas)}),
        Type::Struct(name) => {
            define(name, schemas);
            let reference = format!("#/components/schemas/{}", component(name));
            json!({"allOf": [{"$ref": reference}], "default": {}})
        }
    }
}
