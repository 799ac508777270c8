//! The same cluster served and written to a file is the same cluster.

use portcullis_core::Program;
use portcullis_core::net::{Protocol, Traffic};
use portcullis_core::program::End;
use portcullis_kube::{Diagnostic, Input, Options, Source, load};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use crate::server::{Objects, Server};

const KINDS: [(&str, &str, &str); 7] = [
    ("networkpolicies", "networking.k8s.io/v1", "NetworkPolicy"),
    ("namespaces", "v1", "Namespace"),
    ("pods", "v1", "Pod"),
    ("nodes", "v1", "Node"),
    ("services", "v1", "Service"),
    ("replicasets", "apps/v1", "ReplicaSet"),
    ("jobs", "batch/v1", "Job"),
];

/// YAML as `kubectl get -o yaml` prints it.
fn yaml(value: &Value, indent: usize, out: &mut String) {
    let margin = "  ".repeat(indent);
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                *out += &format!("\n{margin}{key:?}:");
                yaml(value, indent + 1, out);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                *out += &format!("\n{margin}-");
                yaml(item, indent + 1, out);
            }
        }
        scalar => *out += &format!(" {scalar}"),
    }
}

fn file(objects: &Objects) -> String {
    let mut items = Vec::new();
    for (plural, version, kind) in KINDS {
        for object in objects.get(plural).into_iter().flatten() {
            let mut item: Map<String, Value> = Map::new();
            item.insert("apiVersion".into(), version.into());
            item.insert("kind".into(), kind.into());
            item.extend(object.as_object().unwrap().clone());
            items.push(Value::Object(item));
        }
    }
    let mut text = String::new();
    yaml(&json!({"apiVersion": "v1", "kind": "List", "items": items}), 0, &mut text);
    text.trim_start().to_owned()
}

fn labels() -> impl Strategy<Value = Value> {
    let value = prop::sample::select(vec!["web", "db", "on", "1"]);
    prop::collection::btree_map(prop::sample::select(vec!["app", "tier"]), value, 0..3)
        .prop_map(|labels| json!(labels))
}

fn namespace() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["shop", "ops"])
}

fn pod(i: usize) -> impl Strategy<Value = Value> {
    let owner = prop::option::of((
        prop::sample::select(vec!["ReplicaSet", "Job", "StatefulSet"]),
        prop::sample::select(vec!["web-5d", "api-7f", "nightly-1"]),
    ));
    let phase = prop::sample::select(vec!["Running", "Pending", "Succeeded"]);
    (namespace(), labels(), owner, phase, any::<bool>()).prop_map(
        move |(namespace, labels, owner, phase, host)| {
            let mut labels = labels;
            labels["pod-template-hash"] = "5d".into();
            let owners: Vec<_> = owner
                .into_iter()
                .map(|(kind, name)| json!({"kind": kind, "name": name, "controller": true}))
                .collect();
            json!({
                "metadata": {
                    "name": format!("p-{i}"), "namespace": namespace, "labels": labels,
                    "ownerReferences": owners, "creationTimestamp": "2026-01-01T00:00:00Z",
                },
                "spec": {
                    "nodeName": "n-0", "hostNetwork": host,
                    "containers": [{
                        "name": "c", "image": "c:1",
                        "ports": [{"name": "http", "containerPort": 8000 + i, "protocol": "TCP"}],
                    }],
                },
                "status": {
                    "phase": phase, "podIPs": [{"ip": format!("10.0.0.{i}")}],
                    "conditions": [{"type": "Ready", "status": "True"}],
                    "containerStatuses": [{"name": "c", "ready": true}],
                },
            })
        },
    )
}

fn policy(i: usize) -> impl Strategy<Value = Value> {
    let peer = prop_oneof![
        labels().prop_map(|l| json!({"podSelector": {"matchLabels": l}})),
        labels().prop_map(|l| json!({"namespaceSelector": {"matchLabels": l}})),
        Just(json!({"ipBlock": {"cidr": "10.0.0.0/24", "except": ["10.0.0.8/30"]}})),
        // Not valid: the reader's words must be the same, too.
        Just(json!({"ipBlock": {"cidr": "10.0.0.300/24"}})),
    ];
    let port = prop_oneof![
        Just(json!({"protocol": "TCP", "port": "http"})),
        (1..9000).prop_map(|p| json!({"protocol": "UDP", "port": p})),
    ];
    let rule = (prop::collection::vec(peer, 0..3), prop::collection::vec(port, 0..3))
        .prop_map(|(from, ports)| json!({"from": from, "ports": ports}));
    (namespace(), labels(), prop::collection::vec(rule, 0..3)).prop_map(
        move |(namespace, labels, ingress)| {
            json!({
                "metadata": {"name": format!("np-{i}"), "namespace": namespace},
                "spec": {
                    "podSelector": {"matchLabels": labels},
                    "policyTypes": ["Ingress"], "ingress": ingress,
                },
            })
        },
    )
}

fn several<S>(make: fn(usize) -> S) -> BoxedStrategy<Vec<Value>>
where
    S: Strategy<Value = Value> + 'static,
{
    (0..6usize).prop_flat_map(move |n| (0..n).map(make).collect::<Vec<_>>()).boxed()
}

fn owner_of(name: &str, kind: &str, owner: &str) -> Value {
    json!({
        "metadata": {
            "name": name, "namespace": "shop",
            "ownerReferences": [{"kind": kind, "name": owner, "controller": true}],
        },
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": {"app": "x"}},
            "template": {"metadata": {"labels": {"app": "x"}}, "spec": {"containers": []}},
        },
        "status": {"completionTime": "2026-01-01T00:00:00Z"},
    })
}

fn world() -> impl Strategy<Value = Objects> {
    (several(pod), several(policy), labels(), any::<bool>()).prop_map(
        |(pods, policies, labels, both)| {
            let namespaces = ["shop", "ops"].into_iter().take(if both { 2 } else { 1 });
            let namespaces =
                namespaces.map(|n| json!({"metadata": {"name": n, "labels": labels}})).collect();
            let node = json!({
                "metadata": {"name": "n-0"},
                "spec": {"podCIDR": "10.0.0.0/24", "podCIDRs": ["10.0.0.0/24"]},
                "status": {
                    "addresses": [{"type": "InternalIP", "address": "192.168.0.1"}],
                    "images": [{"names": ["c:1"], "sizeBytes": 1}],
                },
            });
            let service = json!({
                "metadata": {"name": "web", "namespace": "shop"},
                "spec": {
                    "selector": {"app": "web"}, "clusterIP": "10.96.0.1",
                    "clusterIPs": ["10.96.0.1"],
                    "ports": [{"port": 80, "targetPort": "http", "protocol": "TCP"}],
                },
            });
            let job = {
                let mut job = owner_of("nightly-1", "CronJob", "nightly");
                job["spec"].as_object_mut().unwrap().remove("replicas");
                job
            };
            [
                ("networkpolicies", policies),
                ("namespaces", namespaces),
                ("pods", pods),
                ("nodes", vec![node]),
                ("services", vec![service]),
                ("replicasets", vec![owner_of("api-7f", "Rollout", "api")]),
                ("jobs", vec![job]),
            ]
            .into()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_cluster_is_the_same_served_and_as_a_file(objects in world()) {
        let text = file(&objects);
        let source = Source::Text { name: "get.yaml".to_owned(), text: text.clone() };
        let written = load(&[source], &Options::default());
        let server = Server::of(objects);
        let served = load(&[Source::Live(server.read().unwrap())], &Options::default());

        prop_assert_eq!(&served.cluster, &written.cluster, "{}", text);
        prop_assert_eq!(&served.policies, &written.policies);
        prop_assert_eq!(&served.read, &written.read);
        let answers = |input: &Input| -> Vec<_> {
            let program = Program::compile(&input.cluster);
            let pods = (0..input.cluster.pods.len()).map(End::Pod);
            let ends: Vec<_> = pods.chain([End::Address([192, 168, 0, 1].into())]).collect();
            let pairs = ends.iter().flat_map(|a| ends.iter().map(move |b| (*a, *b)));
            let traffic = [Traffic::Port(Protocol::Tcp, 8001), Traffic::Other];
            let asked = pairs.flat_map(|(a, b)| traffic.map(|traffic| (a, b, traffic)));
            asked.map(|(a, b, traffic)| program.verdict(a, b, traffic)).collect()
        };
        prop_assert_eq!(answers(&served), answers(&written));
        // What is said is the same but for where, and for workloads, which are only asked for
        // their owners.
        let said = |input: &Input| -> Vec<_> {
            let of_workload = |d: &Diagnostic| {
                let kinds = ["replicaset ", "job "];
                d.object.as_ref().is_some_and(|o| kinds.iter().any(|kind| o.starts_with(kind)))
            };
            let each = input.diagnostics.iter().filter(|d| !of_workload(d));
            each.map(|d| (d.severity, d.object.clone(), d.path.clone(), d.reason)).collect()
        };
        prop_assert_eq!(said(&served), said(&written));
    }
}
