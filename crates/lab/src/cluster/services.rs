//! The Services of the API, for the tables of the nodes and for names.

use std::collections::BTreeSet;
use std::net::IpAddr;

use portcullis_apiserver::{Resource, Store};
use portcullis_core::net::Protocol;
use serde_json::{Value, json};

use crate::cluster::text;
use crate::services::{Endpoint, EndpointPort, EndpointSlice, Service, ServicePort};

/// The label of the pods that answer questions for names.
pub(crate) const DNS_LABEL: (&str, &str) = ("k8s-app", "kube-dns");
/// Where they are.
pub(crate) const DNS_NAMESPACE: &str = "kube-system";
/// The address of their Service.
pub(crate) const DNS_ADDRESS: &str = "10.96.0.10";

/// The objects that make the DNS of a cluster.
pub(crate) fn dns() -> [Value; 2] {
    let labels = json!({DNS_LABEL.0: DNS_LABEL.1});
    let port = |protocol: &str, name: &str| json!({"name": name, "protocol": protocol, "containerPort": 53});
    let front = |protocol: &str, name: &str| json!({"name": name, "protocol": protocol, "port": 53, "targetPort": 53});
    let metadata = |name: &str| json!({"name": name, "namespace": DNS_NAMESPACE, "labels": labels});
    [
        json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata("coredns"),
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {"containers": [{
                        "name": "coredns",
                        "image": "coredns",
                        "ports": [port("UDP", "dns"), port("TCP", "dns-tcp")],
                    }]},
                },
            },
        }),
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata("kube-dns"),
            "spec": {
                "clusterIP": DNS_ADDRESS,
                "selector": labels,
                "ports": [front("UDP", "dns"), front("TCP", "dns-tcp")],
            },
        }),
    ]
}

/// Whether a pod answers questions for names.
pub(crate) fn is_dns(pod: &Value) -> bool {
    text(pod, "/metadata/namespace") == DNS_NAMESPACE
        && pod["metadata"]["labels"][DNS_LABEL.0] == DNS_LABEL.1
}

/// All Services, and what is behind them.
pub(crate) fn read(store: &Store) -> (Vec<Service>, Vec<EndpointSlice>) {
    store.read(|state| {
        let all = |kind: &str| {
            let kind = Resource::of_kind(kind);
            let objects = kind.into_iter().flat_map(|kind| state.list(kind, None));
            objects.map(|(_, object)| object.clone()).collect::<Vec<_>>()
        };
        let services = all("Service").iter().map(|object| service(object)).collect();
        let mut slices: Vec<EndpointSlice> =
            all("EndpointSlice").iter().map(|object| slice(object)).collect();
        // Endpoints that somebody wrote by hand have no slices.
        let sliced: BTreeSet<(String, String)> =
            slices.iter().map(|s| (s.namespace.clone(), s.service.clone())).collect();
        for endpoints in all("Endpoints") {
            let name = |path| text(&endpoints, path).to_owned();
            let (namespace, service) = (name("/metadata/namespace"), name("/metadata/name"));
            if !sliced.contains(&(namespace.clone(), service.clone())) {
                for subset in list(&endpoints["subsets"]) {
                    slices.push(EndpointSlice {
                        namespace: namespace.clone(),
                        service: service.clone(),
                        ports: list(&subset["ports"]).filter_map(endpoint_port).collect(),
                        endpoints: list(&subset["addresses"])
                            .map(|address| Endpoint {
                                addresses: text(address, "/ip").parse().into_iter().collect(),
                                node: address["nodeName"].as_str().map(str::to_owned),
                                ready: true,
                                hostname: None,
                            })
                            .collect(),
                    });
                }
            }
        }
        (services, slices)
    })
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn protocol(port: &Value) -> Protocol {
    match port["protocol"].as_str() {
        Some("UDP") => Protocol::Udp,
        Some("SCTP") => Protocol::Sctp,
        _ => Protocol::Tcp,
    }
}

fn number(value: &Value) -> Option<u16> {
    value.as_u64().and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0)
}

fn service(object: &Value) -> Service {
    let spec = &object["spec"];
    let external = spec["type"] == "ExternalName";
    let mut addresses: Vec<&str> = list(&spec["clusterIPs"]).filter_map(Value::as_str).collect();
    if addresses.is_empty() {
        addresses.extend(spec["clusterIP"].as_str());
    }
    let port = |port: &Value| {
        Some(ServicePort {
            name: text(port, "/name").to_owned(),
            protocol: protocol(port),
            port: number(&port["port"])?,
            node_port: number(&port["nodePort"]),
        })
    };
    Service {
        namespace: text(object, "/metadata/namespace").to_owned(),
        name: text(object, "/metadata/name").to_owned(),
        cluster_ips: addresses.iter().filter_map(|a| a.parse::<IpAddr>().ok()).collect(),
        ports: list(&spec["ports"]).filter_map(port).collect(),
        sticky: spec["sessionAffinity"] == "ClientIP",
        internal_local: spec["internalTrafficPolicy"] == "Local",
        external_local: spec["externalTrafficPolicy"] == "Local",
        external_name: external.then(|| text(spec, "/externalName").to_owned()),
    }
}

fn endpoint_port(port: &Value) -> Option<EndpointPort> {
    Some(EndpointPort {
        name: text(port, "/name").to_owned(),
        protocol: protocol(port),
        port: number(&port["port"])?,
    })
}

fn slice(object: &Value) -> EndpointSlice {
    let endpoint = |endpoint: &Value| Endpoint {
        addresses: list(&endpoint["addresses"])
            .filter_map(|address| address.as_str()?.parse().ok())
            .collect(),
        node: endpoint["nodeName"].as_str().map(str::to_owned),
        ready: endpoint["conditions"]["ready"] != false,
        hostname: endpoint["hostname"].as_str().map(str::to_owned),
    };
    EndpointSlice {
        namespace: text(object, "/metadata/namespace").to_owned(),
        service: text(object, "/metadata/labels/kubernetes.io~1service-name").to_owned(),
        ports: list(&object["ports"]).filter_map(endpoint_port).collect(),
        endpoints: list(&object["endpoints"]).map(endpoint).collect(),
    }
}
