//! The addresses behind Services: Endpoints and EndpointSlices that follow the ready pods.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use portcullis_core::labels::{Labels, Selector};
use serde_json::{Value, json};

use super::pods::is_ready;
use super::{all, controlled_by, delete, is_controlled_by, make};
use crate::containers::is_finished;
use crate::resource::Resource;
use crate::store::{Key, State};
use crate::{meta, objects};

const MANAGED: &str = "endpoints.kubernetes.io/managed-by";
const SLICE_MANAGED: &str = "endpointslice.kubernetes.io/managed-by";
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// The pods of a Service that resolve its ports to the same numbers.
#[derive(Debug, Default)]
struct Group {
    ready: Vec<Arc<Value>>,
    not_ready: Vec<Arc<Value>>,
}

/// A map of strings, as it stands in objects.
type Strings = BTreeMap<String, String>;

/// Ports as they stand in endpoints, by their text, which gives them an order.
type Groups = BTreeMap<String, Group>;

/// Brings the endpoints of every Service up to date.
pub(super) fn run(state: &mut State) {
    let pods: Vec<Arc<Value>> = all(state, "Pod").into_iter().map(|(_, pod)| pod).collect();
    for (key, service) in all(state, "Service") {
        let match_labels: Labels = meta::strings(service.pointer("/spec/selector"));
        if match_labels.is_empty() || service["spec"]["type"] == "ExternalName" {
            continue;
        }
        let selector = Selector { match_labels, ..Selector::default() };
        let behind = |family: &str| {
            let pods = pods.iter().filter(|pod| {
                meta::namespace(pod) == key.namespace
                    && !meta::is_terminating(pod)
                    && address(pod, family).is_some()
                    && !is_finished(pod)
                    && selector.matches(&meta::labels(pod))
            });
            group(&service, pods)
        };
        let families = meta::list(&service, "/spec/ipFamilies").iter();
        let families: Vec<&str> = families.filter_map(Value::as_str).collect();
        let first = families.first().copied().unwrap_or("IPv4");
        write_endpoints(state, &service, first, &behind(first));
        for family in &families {
            write_slices(state, &service, family, &behind(family));
        }
        for (key, slice) in slices(state, &service) {
            if !families.contains(&meta::text(&slice, "/addressType")) {
                delete(state, "EndpointSlice", &key);
            }
        }
    }
    for (key, endpoints) in all(state, "Endpoints") {
        let orphan = Resource::of_kind("Service")
            .is_some_and(|kind| state.find(kind, &key.namespace, &key.name).is_none());
        if orphan && endpoints["metadata"]["labels"].get(MANAGED).is_some() {
            delete(state, "Endpoints", &key);
        }
    }
}

/// The address of a pod that is of a family.
fn address<'a>(pod: &'a Value, family: &str) -> Option<&'a str> {
    let all = meta::list(pod, "/status/podIPs").iter().map(|ip| meta::text(ip, "/ip"));
    all.into_iter().find(|ip| match ip.parse() {
        Ok(IpAddr::V4(_)) => family == "IPv4",
        Ok(IpAddr::V6(_)) => family == "IPv6",
        Err(_) => false,
    })
}

/// The name under which a pod stands behind its headless Service.
fn hostname<'a>(pod: &'a Value, service: &Value) -> Option<&'a Value> {
    let here = pod["spec"]["subdomain"] == *meta::name(service);
    pod["spec"].get("hostname").filter(|_| here)
}

/// The slices of a Service that are kept here.
fn slices(state: &State, service: &Value) -> Vec<(Key, Arc<Value>)> {
    let all = all(state, "EndpointSlice").into_iter();
    let namespace = meta::namespace(service);
    all.filter(|(key, slice)| key.namespace == namespace && is_controlled_by(slice, service))
        .collect()
}

fn group<'a>(service: &Value, pods: impl Iterator<Item = &'a Arc<Value>>) -> Groups {
    let anyway = service["spec"]["publishNotReadyAddresses"] == true;
    let mut groups = Groups::new();
    for pod in pods {
        let ports = meta::list(service, "/spec/ports").iter();
        let ports: Vec<Value> = ports.filter_map(|port| resolve(port, pod)).collect();
        if ports.is_empty() && !meta::list(service, "/spec/ports").is_empty() {
            continue;
        }
        let group = groups.entry(Value::Array(ports).to_string()).or_default();
        match is_ready(pod) || anyway {
            true => group.ready.push(pod.clone()),
            false => group.not_ready.push(pod.clone()),
        }
    }
    groups
}

/// A port of a Service on a pod; `None` if the pod has no port of that name.
fn resolve(port: &Value, pod: &Value) -> Option<Value> {
    let number = match &port["targetPort"] {
        Value::String(name) => meta::list(pod, "/spec/containers")
            .iter()
            .flat_map(|container| meta::list(container, "/ports"))
            .find(|p| p["name"] == **name && p["protocol"] == port["protocol"])?["containerPort"]
            .clone(),
        number => number.clone(),
    };
    let mut resolved = json!({"port": number, "protocol": port["protocol"]});
    for field in ["name", "appProtocol"] {
        if let Some(value) = port.get(field) {
            resolved[field] = value.clone();
        }
    }
    Some(resolved)
}

fn target(pod: &Value) -> Value {
    json!({
        "kind": "Pod",
        "namespace": meta::namespace(pod),
        "name": meta::name(pod),
        "uid": meta::uid(pod),
    })
}

fn ports_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_default()
}

fn write_endpoints(state: &mut State, service: &Value, family: &str, groups: &Groups) {
    let one = |pod: &Arc<Value>| {
        let node = &pod["spec"]["nodeName"];
        let ip = address(pod, family);
        let mut one = json!({"ip": ip, "nodeName": node, "targetRef": target(pod)});
        if let Some(hostname) = hostname(pod, service) {
            one["hostname"] = hostname.clone();
        }
        one
    };
    let subsets = groups.iter().map(|(ports, group)| {
        let mut subset = json!({});
        let lists = [("addresses", &group.ready), ("notReadyAddresses", &group.not_ready)];
        for (field, pods) in lists {
            if !pods.is_empty() {
                subset[field] = pods.iter().map(one).collect();
            }
        }
        subset["ports"] = ports_of(ports);
        subset
    });
    let subsets: Vec<Value> = subsets.collect();
    let mut labels: Strings = meta::strings(service.pointer("/metadata/labels"));
    labels.insert(MANAGED.to_owned(), "endpoint-controller".to_owned());
    let Some(resource) = Resource::of_kind("Endpoints") else { return };
    let (namespace, name) = (meta::namespace(service), meta::name(service));
    let key = Key::new(resource, namespace, name);
    if state.get(&key).is_none() {
        let metadata = json!({"name": name, "labels": labels});
        make(state, "Endpoints", namespace, json!({"metadata": metadata}));
    }
    objects::amend(state, &key, |endpoints| {
        endpoints["metadata"]["labels"] = json!(labels);
        match (subsets.is_empty(), endpoints.as_object_mut()) {
            (true, Some(map)) => drop(map.shift_remove("subsets")),
            _ => endpoints["subsets"] = Value::Array(subsets),
        }
    });
}

fn write_slices(state: &mut State, service: &Value, family: &str, groups: &Groups) {
    let namespace = meta::namespace(service);
    let mut old = slices(state, service);
    old.retain(|(_, slice)| slice["addressType"] == family);
    let empty = Groups::from([("[]".to_owned(), Group::default())]);
    for (ports, group) in if groups.is_empty() { &empty } else { groups } {
        let mut ports = ports_of(ports);
        // Every port of a slice has a name, also an empty one: kubectl follows it blindly.
        for port in ports.as_array_mut().into_iter().flatten() {
            if port.get("name").is_none() {
                port["name"] = json!("");
            }
        }
        let endpoints: Vec<Value> = group
            .ready
            .iter()
            .map(|pod| (pod, true))
            .chain(group.not_ready.iter().map(|pod| (pod, false)))
            .map(|(pod, ready)| {
                let mut endpoint = json!({
                    "addresses": [address(pod, family)],
                    "conditions": {"ready": ready, "serving": ready, "terminating": false},
                    "nodeName": pod["spec"]["nodeName"],
                    "targetRef": target(pod),
                });
                if let Some(hostname) = hostname(pod, service) {
                    endpoint["hostname"] = hostname.clone();
                }
                endpoint
            })
            .collect();
        let fits = old
            .iter()
            .position(|(_, slice)| slice.get("ports").unwrap_or(&json!([])) == &ports)
            .or_else(|| (!old.is_empty() && groups.len() <= 1).then_some(0));
        let fill = |slice: &mut Value| {
            slice["endpoints"] = json!(endpoints);
            slice["ports"] = ports.clone();
        };
        match fits.map(|i| old.remove(i)) {
            Some((key, _)) => objects::amend(state, &key, fill),
            None => {
                let mut labels: Strings = meta::strings(service.pointer("/metadata/labels"));
                labels.insert(SERVICE_NAME.to_owned(), meta::name(service).to_owned());
                labels
                    .insert(SLICE_MANAGED.to_owned(), "endpointslice-controller.k8s.io".to_owned());
                let mut slice = json!({
                    "metadata": {
                        "generateName": format!("{}-", meta::name(service)),
                        "labels": labels,
                        "ownerReferences": controlled_by(service),
                    },
                    "addressType": family,
                });
                fill(&mut slice);
                make(state, "EndpointSlice", namespace, slice);
            }
        }
    }
    for (key, _) in old {
        delete(state, "EndpointSlice", &key);
    }
}
