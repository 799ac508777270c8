//! Objects as rows, the way `kubectl get` shows them.

use serde_json::{Value, json};

use crate::resource::Resource;
use crate::{meta, select};

/// A column: its name, its type, and whether only `-o wide` shows it.
type Column = (&'static str, &'static str, bool);

const NAME: Column = ("Name", "string", false);
const AGE: Column = ("Age", "string", false);

fn text(name: &'static str) -> Column {
    (name, "string", false)
}

fn number(name: &'static str) -> Column {
    (name, "integer", false)
}

fn wide(name: &'static str) -> Column {
    (name, "string", true)
}

fn columns(kind: &str) -> Vec<Column> {
    match kind {
        "Pod" => vec![
            NAME,
            text("Ready"),
            text("Status"),
            text("Restarts"),
            AGE,
            wide("IP"),
            wide("Node"),
            wide("Nominated Node"),
            wide("Readiness Gates"),
        ],
        "Service" => vec![
            NAME,
            text("Type"),
            text("Cluster-IP"),
            text("External-IP"),
            text("Port(s)"),
            AGE,
            wide("Selector"),
        ],
        "Deployment" => vec![
            NAME,
            text("Ready"),
            number("Up-to-date"),
            number("Available"),
            AGE,
            wide("Containers"),
            wide("Images"),
            wide("Selector"),
        ],
        "ReplicaSet" => vec![
            NAME,
            number("Desired"),
            number("Current"),
            number("Ready"),
            AGE,
            wide("Containers"),
            wide("Images"),
            wide("Selector"),
        ],
        "StatefulSet" => vec![NAME, text("Ready"), AGE, wide("Containers"), wide("Images")],
        "DaemonSet" => vec![
            NAME,
            number("Desired"),
            number("Current"),
            number("Ready"),
            number("Up-to-date"),
            number("Available"),
            text("Node Selector"),
            AGE,
            wide("Containers"),
            wide("Images"),
            wide("Selector"),
        ],
        "Namespace" => vec![NAME, text("Status"), AGE],
        "Node" => vec![
            NAME,
            text("Status"),
            text("Roles"),
            AGE,
            text("Version"),
            wide("Internal-IP"),
            wide("External-IP"),
            wide("OS-Image"),
            wide("Kernel-Version"),
            wide("Container-Runtime"),
        ],
        "Endpoints" => vec![NAME, text("Endpoints"), AGE],
        "EndpointSlice" => vec![NAME, text("AddressType"), text("Ports"), text("Endpoints"), AGE],
        "ServiceAccount" => vec![NAME, number("Secrets"), AGE],
        "ConfigMap" => vec![NAME, number("Data"), AGE],
        "Secret" => vec![NAME, text("Type"), number("Data"), AGE],
        "Event" => vec![
            text("Last Seen"),
            text("Type"),
            text("Reason"),
            text("Object"),
            wide("Subobject"),
            wide("Source"),
            text("Message"),
            wide("First Seen"),
            wide("Count"),
            wide("Name"),
        ],
        "NetworkPolicy" => vec![NAME, text("Pod-Selector"), AGE],
        "Ingress" => vec![NAME, text("Class"), text("Hosts"), text("Address"), text("Ports"), AGE],
        _ => vec![NAME, AGE],
    }
}

/// How much of each object a row carries (`includeObject`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Include {
    None,
    Metadata,
    Object,
}

/// A table of these objects. Column headers are left out where they have been sent before.
pub(crate) fn table<'a>(
    resource: &Resource,
    objects: impl Iterator<Item = &'a Value>,
    metadata: Value,
    include: Include,
    headers: bool,
) -> Value {
    let columns = columns(resource.kind).into_iter().map(|(name, kind, wide)| {
        json!({
            "name": name,
            "type": kind,
            "format": if name == "Name" { "name" } else { "" },
            "description": name,
            "priority": u8::from(wide),
        })
    });
    let columns: Vec<Value> = if headers { columns.collect() } else { Vec::new() };
    let row = |object: &Value| {
        let mut row = json!({"cells": cells(resource.kind, object)});
        match include {
            Include::None => {}
            Include::Metadata => row["object"] = partial(object),
            Include::Object => row["object"] = object.clone(),
        }
        row
    };
    let rows: Vec<Value> = objects.map(row).collect();
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": columns,
        "rows": rows,
    })
}

/// `PartialObjectMetadata`.
pub(crate) fn partial(object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": object["metadata"],
    })
}

fn cells(kind: &str, object: &Value) -> Vec<Value> {
    let name = || json!(meta::name(object));
    let age = || json!(age(meta::text(object, "/metadata/creationTimestamp")));
    let at = |pointer: &str| json!(meta::text(object, pointer));
    let count = |pointer: &str| json!(meta::integer(object, pointer));
    let or_none = |pointer: &str| none_if_empty(meta::text(object, pointer).to_owned());
    let template = || containers(object, "/spec/template/spec/containers");
    let selector = || json!(select::display(object.pointer("/spec/selector")));
    let ready = |of: &str| {
        let ready = meta::integer(object, "/status/readyReplicas");
        json!(format!("{ready}/{}", meta::integer(object, of)))
    };
    match kind {
        "Pod" => pod(object),
        "Service" => vec![
            name(),
            at("/spec/type"),
            or_none("/spec/clusterIP"),
            external(object),
            ports(object),
            age(),
            json!(select::display_labels(&meta::strings(object.pointer("/spec/selector")))),
        ],
        "Deployment" => {
            let (names, images) = template();
            let status = [count("/status/updatedReplicas"), count("/status/availableReplicas")];
            let [updated, available] = status;
            vec![
                name(),
                ready("/spec/replicas"),
                updated,
                available,
                age(),
                names,
                images,
                selector(),
            ]
        }
        "ReplicaSet" => {
            let (names, images) = template();
            vec![
                name(),
                count("/spec/replicas"),
                count("/status/replicas"),
                count("/status/readyReplicas"),
                age(),
                names,
                images,
                selector(),
            ]
        }
        "StatefulSet" => {
            let (names, images) = template();
            vec![name(), ready("/spec/replicas"), age(), names, images]
        }
        "DaemonSet" => {
            let (names, images) = template();
            let nodes = meta::strings(object.pointer("/spec/template/spec/nodeSelector"));
            vec![
                name(),
                count("/status/desiredNumberScheduled"),
                count("/status/currentNumberScheduled"),
                count("/status/numberReady"),
                count("/status/updatedNumberScheduled"),
                count("/status/numberAvailable"),
                json!(select::display_labels(&nodes)),
                age(),
                names,
                images,
                selector(),
            ]
        }
        "Namespace" => vec![name(), at("/status/phase"), age()],
        "Node" => node(object),
        "Endpoints" => vec![name(), endpoints(object), age()],
        "EndpointSlice" => slice(object),
        "ServiceAccount" => vec![name(), json!(meta::list(object, "/secrets").len()), age()],
        "ConfigMap" => vec![name(), json!(entries(object, &["data", "binaryData"])), age()],
        "Secret" => vec![name(), at("/type"), json!(entries(object, &["data"])), age()],
        "Event" => event(object),
        "NetworkPolicy" => {
            let selector = select::display(object.pointer("/spec/podSelector"));
            vec![name(), none_if_empty(selector), age()]
        }
        "Ingress" => ingress(object),
        _ => vec![name(), age()],
    }
}

fn none_if_empty(text: String) -> Value {
    json!(if text.is_empty() { "<none>".to_owned() } else { text })
}

fn join<'a>(of: impl Iterator<Item = &'a str>) -> String {
    of.collect::<Vec<_>>().join(",")
}

fn entries(object: &Value, fields: &[&str]) -> usize {
    fields.iter().filter_map(|field| object[*field].as_object()).map(serde_json::Map::len).sum()
}

fn containers(object: &Value, pointer: &str) -> (Value, Value) {
    let list = meta::list(object, pointer);
    let each = |field: &str| json!(join(list.iter().map(|c| meta::text(c, field))));
    (each("/name"), each("/image"))
}

fn pod(pod: &Value) -> Vec<Value> {
    let statuses = meta::list(pod, "/status/containerStatuses");
    let ready = statuses.iter().filter(|status| status["ready"] == true).count();
    let restarts = statuses.iter().map(|s| meta::integer(s, "/restartCount"));
    let restarts = restarts.fold(0, i64::saturating_add);
    let waiting = statuses.iter().rev().find_map(|status| {
        let why = |state: &str| status.pointer(state).and_then(Value::as_str);
        why("/state/waiting/reason").or_else(|| why("/state/terminated/reason"))
    });
    let reason = meta::text(pod, "/status/reason");
    let status = match waiting {
        _ if meta::is_terminating(pod) => "Terminating",
        Some(waiting) => waiting,
        None if !reason.is_empty() => reason,
        None => meta::text(pod, "/status/phase"),
    };
    let or_none = |pointer: &str| none_if_empty(meta::text(pod, pointer).to_owned());
    let gates = meta::list(pod, "/spec/readinessGates");
    let conditions = meta::list(pod, "/status/conditions");
    let open = gates.iter().filter(|gate| {
        conditions.iter().any(|c| c["type"] == gate["conditionType"] && c["status"] == "True")
    });
    let gates = match gates.len() {
        0 => json!("<none>"),
        all => json!(format!("{}/{all}", open.count())),
    };
    vec![
        json!(meta::name(pod)),
        json!(format!("{ready}/{}", meta::list(pod, "/spec/containers").len())),
        json!(status),
        json!(restarts.to_string()),
        json!(age(meta::text(pod, "/metadata/creationTimestamp"))),
        or_none("/status/podIP"),
        or_none("/spec/nodeName"),
        or_none("/status/nominatedNodeName"),
        gates,
    ]
}

fn external(service: &Value) -> Value {
    let ips = join(meta::list(service, "/spec/externalIPs").iter().filter_map(Value::as_str));
    match meta::text(service, "/spec/type") {
        "ExternalName" => json!(meta::text(service, "/spec/externalName")),
        "LoadBalancer" if ips.is_empty() => {
            let given = meta::list(service, "/status/loadBalancer/ingress");
            let given = join(given.iter().map(|i| meta::text(i, "/ip")));
            json!(if given.is_empty() { "<pending>".to_owned() } else { given })
        }
        _ => none_if_empty(ips),
    }
}

fn ports(service: &Value) -> Value {
    let each = meta::list(service, "/spec/ports").iter().map(|port| {
        let node = match port["nodePort"].as_i64() {
            Some(number) => format!(":{number}"),
            None => String::new(),
        };
        format!("{}{node}/{}", port["port"], meta::text(port, "/protocol"))
    });
    none_if_empty(each.collect::<Vec<_>>().join(","))
}

fn node(node: &Value) -> Vec<Value> {
    let conditions = meta::list(node, "/status/conditions");
    let mut status = match conditions.iter().find(|c| c["type"] == "Ready") {
        Some(ready) if ready["status"] == "True" => "Ready".to_owned(),
        Some(_) => "NotReady".to_owned(),
        None => "Unknown".to_owned(),
    };
    if node.pointer("/spec/unschedulable") == Some(&json!(true)) {
        status.push_str(",SchedulingDisabled");
    }
    let labels = meta::labels(node);
    let roles = join(labels.keys().filter_map(|k| k.strip_prefix("node-role.kubernetes.io/")));
    let address = |kind: &str| {
        let list = meta::list(node, "/status/addresses");
        none_if_empty(
            list.iter()
                .find(|address| address["type"] == kind)
                .map(|address| meta::text(address, "/address").to_owned())
                .unwrap_or_default(),
        )
    };
    let info = |field: &str| meta::text(node, &format!("/status/nodeInfo/{field}")).to_owned();
    let unknown = |text: String| if text.is_empty() { "<unknown>".to_owned() } else { text };
    vec![
        json!(meta::name(node)),
        json!(status),
        none_if_empty(roles),
        json!(age(meta::text(node, "/metadata/creationTimestamp"))),
        json!(info("kubeletVersion")),
        address("InternalIP"),
        address("ExternalIP"),
        json!(unknown(info("osImage"))),
        json!(unknown(info("kernelVersion"))),
        json!(unknown(info("containerRuntimeVersion"))),
    ]
}

/// Three, and how many more there are.
fn shortened(all: &[String]) -> Value {
    match all.len() {
        0..=3 => none_if_empty(all.join(",")),
        n => json!(format!("{} + {} more...", all[..3].join(","), n - 3)),
    }
}

fn endpoints(object: &Value) -> Value {
    let mut all = Vec::new();
    for subset in meta::list(object, "/subsets") {
        for port in meta::list(subset, "/ports") {
            for address in meta::list(subset, "/addresses") {
                all.push(format!("{}:{}", meta::text(address, "/ip"), port["port"]));
            }
        }
    }
    shortened(&all)
}

fn slice(slice: &Value) -> Vec<Value> {
    let ports = meta::list(slice, "/ports").iter().map(|port| port["port"].to_string());
    let ports: Vec<String> = ports.collect();
    let addresses: Vec<String> = meta::list(slice, "/endpoints")
        .iter()
        .flat_map(|endpoint| meta::list(endpoint, "/addresses"))
        .filter_map(|address| address.as_str().map(str::to_owned))
        .collect();
    let unset = |list: &[String]| if list.is_empty() { json!("<unset>") } else { shortened(list) };
    vec![
        json!(meta::name(slice)),
        json!(meta::text(slice, "/addressType")),
        unset(&ports),
        unset(&addresses),
        json!(age(meta::text(slice, "/metadata/creationTimestamp"))),
    ]
}

fn event(event: &Value) -> Vec<Value> {
    let at = |pointer: &str| meta::text(event, pointer);
    let first = [at("/firstTimestamp"), at("/eventTime")];
    let first = first.into_iter().find(|time| !time.is_empty()).unwrap_or_default();
    let last = if at("/lastTimestamp").is_empty() { first } else { at("/lastTimestamp") };
    let object =
        format!("{}/{}", at("/involvedObject/kind").to_lowercase(), at("/involvedObject/name"));
    let source = [at("/source/component"), at("/source/host")];
    let source: Vec<&str> = source.into_iter().filter(|part| !part.is_empty()).collect();
    vec![
        json!(age(last)),
        json!(at("/type")),
        json!(at("/reason")),
        json!(object),
        json!(at("/involvedObject/fieldPath")),
        json!(source.join(", ")),
        json!(at("/message").trim()),
        json!(age(first)),
        json!(meta::integer(event, "/count").max(1)),
        json!(meta::name(event)),
    ]
}

fn ingress(ingress: &Value) -> Vec<Value> {
    let hosts: Vec<String> = meta::list(ingress, "/spec/rules")
        .iter()
        .map(|rule| meta::text(rule, "/host"))
        .filter(|host| !host.is_empty())
        .map(str::to_owned)
        .collect();
    let hosts = if hosts.is_empty() { json!("*") } else { shortened(&hosts) };
    let given = meta::list(ingress, "/status/loadBalancer/ingress");
    let tls = !meta::list(ingress, "/spec/tls").is_empty();
    vec![
        json!(meta::name(ingress)),
        none_if_empty(meta::text(ingress, "/spec/ingressClassName").to_owned()),
        hosts,
        json!(join(given.iter().map(|i| meta::text(i, "/ip")))),
        json!(if tls { "80, 443" } else { "80" }),
        json!(age(meta::text(ingress, "/metadata/creationTimestamp"))),
    ]
}

/// How long ago a time was, as kubectl says it.
fn age(time: &str) -> String {
    meta::seconds_since(time).map_or_else(|| "<unknown>".to_owned(), human)
}

/// Two units at most, and the smaller one only where it matters.
fn human(seconds: i64) -> String {
    let two = |big: i64, big_unit: &str, small: i64, small_unit: &str| match small {
        0 => format!("{big}{big_unit}"),
        small => format!("{big}{big_unit}{small}{small_unit}"),
    };
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match seconds {
        ..-1 => "<invalid>".to_owned(),
        -1 => "0s".to_owned(),
        0..120 => format!("{seconds}s"),
        120..600 => two(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => two(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => two(days, "d", hours % 24, "h"),
        691_200..63_072_000 => format!("{days}d"),
        63_072_000..252_288_000 => two(days / 365, "y", days % 365, "d"),
        _ => format!("{}y", days / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_read_as_kubectl_writes_them() {
        for (seconds, text) in [
            (-5, "<invalid>"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (150, "2m30s"),
            (600, "10m"),
            (10_799, "179m"),
            (10_800, "3h"),
            (11_100, "3h5m"),
            (28_800, "8h"),
            (172_800, "2d"),
            (176_400, "2d1h"),
            (691_200, "8d"),
            (63_072_000, "2y"),
            (63_158_400, "2y1d"),
        ] {
            assert_eq!(human(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn every_row_has_as_many_cells_as_there_are_columns() {
        for resource in crate::RESOURCES {
            let cells = cells(resource.kind, &json!({"metadata": {"name": "x"}}));
            assert_eq!(cells.len(), columns(resource.kind).len(), "{resource}");
        }
    }
}
