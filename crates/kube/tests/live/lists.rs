//! Lists, page by page.

use std::sync::atomic::{AtomicBool, Ordering};

use portcullis_kube::{ObjectRef, Options, Reason, Source, load};
use serde_json::{Value, json};

use crate::server::{Objects, Reply, Server, list, status};

fn pods(n: usize) -> Objects {
    let pod = |i| json!({"metadata": {"name": format!("p-{i}"), "namespace": "shop"}});
    [("pods", (0..n).map(pod).collect())].into()
}

fn policy(spec: Value) -> Objects {
    let policy = json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": spec});
    let namespace = json!({"metadata": {"name": "shop"}});
    [("networkpolicies", vec![policy]), ("namespaces", vec![namespace])].into()
}

fn owner(kind: &str, name: &str) -> Value {
    json!([{"kind": kind, "name": name, "controller": true}])
}

#[test]
fn long_lists_are_read_page_by_page() {
    let server = Server::of(pods(1100));
    let input = load(&[Source::Live(server.read().unwrap())], &Options::default());
    let names: Vec<_> = input.cluster.pods.iter().map(|p| p.name.clone()).collect();
    assert_eq!(names, (0..1100).map(|i| format!("p-{i}")).collect::<Vec<_>>());
    let asked = server.asked();
    let pages: Vec<_> = asked.iter().filter(|a| a.plural == "pods").map(|a| &a.line).collect();
    assert_eq!(pages.len(), 3, "{pages:?}");
}

#[test]
fn nothing_is_ever_asked_but_to_list() {
    let server = Server::of(pods(600));
    server.read().unwrap();
    for asked in server.asked() {
        assert!(asked.line.starts_with("GET /api"), "{}", asked.line);
        assert!(!asked.query.contains_key("watch"), "{}", asked.line);
    }
}

#[test]
fn a_list_that_expires_is_read_again_in_one_piece() {
    let objects = pods(1200);
    let expired = AtomicBool::new(false);
    let server = Server::start(move |asked| match asked.query.get("continue").map(|c| &**c) {
        Some("1000") => {
            expired.store(true, Ordering::Relaxed);
            status(410, "Expired", "The provided continue parameter is too old")
        }
        None if expired.load(Ordering::Relaxed) && asked.plural == "pods" => {
            assert!(!asked.query.contains_key("limit"));
            list(&objects, asked)
        }
        _ => list(&objects, asked),
    });
    let input = load(&[Source::Live(server.read().unwrap())], &Options::default());
    assert_eq!(input.cluster.pods.len(), 1200);
    assert!(input.diagnostics.is_empty(), "{:?}", input.diagnostics);
}

#[test]
fn the_same_page_without_end_is_an_error() {
    let server = Server::start(|_| {
        let page = json!({"kind": "PodList", "metadata": {"continue": "x"}, "items": []});
        Reply::Answer(200, page.to_string())
    });
    let error = server.read().unwrap_err().to_string();
    assert!(error.contains("the same page again"), "{error}");
}

#[test]
fn fields_that_only_a_newer_server_knows_are_no_findings() {
    let pod = json!({
        "metadata": {"name": "p", "namespace": "shop", "shards": 3},
        "spec": {"containers": [{"name": "c", "wings": 2}], "gravity": "low"},
        "status": {"podIPs": [{"ip": "10.0.0.1", "zone": "b"}], "weather": "fine"},
    });
    let namespace = json!({"metadata": {"name": "shop"}, "spec": {"finalizers": [], "moon": 1}});
    let server = Server::of([("pods", vec![pod]), ("namespaces", vec![namespace])].into());
    let input = load(&[Source::Live(server.read().unwrap())], &Options::default());
    assert!(input.diagnostics.is_empty(), "{:?}", input.diagnostics);
    assert_eq!(input.cluster.pods[0].addresses.len(), 1);
}

#[test]
fn a_field_of_a_policy_that_is_not_known_is_an_error_because_it_may_change_what_it_means() {
    let server = Server::of(policy(json!({"podSelector": {}, "ingress": [{"via": "mesh"}]})));
    let input = load(&[Source::Live(server.read().unwrap())], &Options::default());
    let lines: Vec<_> = input.diagnostics.iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        ["cluster/test networkpolicies/shop/web: error: networkpolicy shop/web: \
          unknown field \"spec.ingress[0].via\""]
    );
    assert!(input.cluster.policies.is_empty());
    assert!(input.meanings().next().unwrap().ingress.is_some());
}

#[test]
fn a_place_in_a_live_policy_is_its_name_and_the_field() {
    let spec = json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]});
    let server = Server::of(policy(spec));
    let input = load(&[Source::Live(server.read().unwrap())], &Options::default());
    let at = |path| input.locate(ObjectRef::Policy(0), path).unwrap();
    assert_eq!(
        at("spec.ingress[0].from[0]").to_string(),
        "cluster/test networkpolicies/shop/web spec.ingress[0].from[0]"
    );
    assert_eq!(at("").to_string(), "cluster/test networkpolicies/shop/web");
    assert_eq!(input.line(&at("spec")), None);
    assert_eq!(input.policy_document(0), None);
}

#[test]
fn workloads_tell_whose_pods_they_are_and_stand_for_none() {
    let pod = json!({"metadata": {
        "name": "web-1", "namespace": "shop", "ownerReferences": owner("ReplicaSet", "web-77"),
    }});
    let set = |name: &str, rollout: &str| {
        json!({
            "metadata": {
                "name": name, "namespace": "shop",
                "ownerReferences": owner("Rollout", rollout),
            },
            "spec": {"replicas": 3},
        })
    };
    let sets = vec![set("web-77", "web"), set("api-12", "api")];
    let namespace = json!({"metadata": {"name": "shop"}});
    let objects = [("pods", vec![pod]), ("replicasets", sets), ("namespaces", vec![namespace])];
    let server = Server::of(objects.into());
    let input = load(&[Source::Live(server.read().unwrap())], &Options::default());
    assert!(input.diagnostics.is_empty(), "{:?}", input.diagnostics);
    assert_eq!(input.cluster.pods.len(), 1);
    let workload = input.cluster.pods[0].workload.clone().unwrap();
    assert_eq!((&*workload.kind, &*workload.name), ("Rollout", "web"));
}

#[test]
fn an_empty_cluster_says_that_nothing_is_there() {
    let server = Server::start(|_| Reply::Answer(200, r#"{"kind":"L","items":null}"#.to_owned()));
    let input = load(&[Source::Live(server.read().unwrap())], &Options::default());
    assert_eq!(input.diagnostics[0].reason, Reason::NoObjects);
    assert_eq!(input.diagnostics[0].message, "no objects found in cluster/test");
}
