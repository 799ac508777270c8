//! The controllers: what a cluster does by itself.
//!
//! Each looks at the whole state and takes a step towards what it asks for, if one is missing;
//! together they run until none has anything left to do, then wait for a change. What they do
//! depends on the state alone, so it does not matter which changes came together.

mod endpoints;
pub(crate) mod events;
mod lifecycle;
mod owners;
mod pods;
mod rollout;
mod stateful;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::containers::Containers;
use crate::meta;
use crate::objects;
use crate::resource::Resource;
use crate::store::{Key, State, Store};
use lifecycle::Lifecycle;

/// Changes that come within this time are looked at together.
const TOGETHER: Duration = Duration::from_millis(5);
/// What failed is tried again after so long.
const AGAIN: Duration = Duration::from_secs(1);
/// Events of the past are forgotten this often.
const FORGET: Duration = Duration::from_secs(60);
/// A round in which every controller has its turn; many more than any chain of consequences needs.
const ROUNDS: usize = 200;

/// The objects that every cluster has.
pub(crate) fn found(store: &Store, endpoint: SocketAddr) {
    let (address, port) = (endpoint.ip(), endpoint.port());
    store.write(|state| {
        for name in ["default", "kube-node-lease", "kube-public", "kube-system"] {
            make(state, "Namespace", "", json!({"metadata": {"name": name}}));
        }
        owners::tend_namespaces(state);
        let labels = json!({"component": "apiserver", "provider": "kubernetes"});
        let service = json!({
            "metadata": {"name": "kubernetes", "labels": labels},
            "spec": {
                "clusterIP": "10.96.0.1",
                "ports": [{"name": "https", "port": 443, "targetPort": port}],
            },
        });
        ensure(state, "Service", service, |service| {
            service["spec"]["ports"][0]["targetPort"] = json!(port);
        });
        let ports = json!([{"name": "https", "port": port, "protocol": "TCP"}]);
        let subsets = json!([{"addresses": [{"ip": address}], "ports": ports}]);
        let endpoints = json!({"metadata": {"name": "kubernetes"}, "subsets": subsets});
        ensure(state, "Endpoints", endpoints, |endpoints| endpoints["subsets"] = subsets);
        let behind = json!([{"addresses": [address], "conditions": {"ready": true}}]);
        let slice = json!({
            "metadata": {
                "name": "kubernetes",
                "labels": {"kubernetes.io/service-name": "kubernetes"},
            },
            "addressType": if address.is_ipv4() { "IPv4" } else { "IPv6" },
            "endpoints": behind,
            "ports": ports,
        });
        ensure(state, "EndpointSlice", slice, |slice| {
            slice["endpoints"] = behind;
            slice["ports"] = ports;
        });
    });
}

/// Has an object in the namespace `default` that is as it should be, also if it is there already from
/// before a restart.
fn ensure(state: &mut State, kind: &str, object: Value, renew: impl FnOnce(&mut Value)) {
    let Some(resource) = Resource::of_kind(kind) else { return };
    let key = Key::new(resource, "default", meta::name(&object));
    make(state, kind, "default", object);
    objects::amend(state, &key, renew);
}

/// Runs the controllers until the server goes down.
pub(crate) async fn run(store: Arc<Store>, containers: Arc<Containers>) {
    let mut changes = store.subscribe();
    let mut lifecycle = Some(Lifecycle::new(containers));
    let mut minutes = tokio::time::interval(FORGET);
    loop {
        changes.borrow_and_update();
        let Some(mut pods) = lifecycle.take() else { return };
        let state = store.clone();
        // The runtime may block: this is no place for a thread that others wait for.
        let round = tokio::task::spawn_blocking(move || {
            let settled = reconcile(&state, &mut pods);
            (pods, settled)
        });
        let Ok((pods, settled)) = round.await else { return };
        lifecycle = Some(pods);
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(AGAIN), if !settled => {}
            _ = minutes.tick() => store.write(events::forget),
        }
        tokio::time::sleep(TOGETHER).await;
    }
}

/// Every controller in turn, until nothing changes. Whether nothing failed.
fn reconcile(store: &Store, lifecycle: &mut Lifecycle) -> bool {
    for _ in 0..ROUNDS {
        let before = store.read(State::revision);
        store.write(|state| {
            owners::tend_namespaces(state);
            owners::collect(state);
            rollout::deployments(state);
            rollout::replica_sets(state);
            stateful::stateful_sets(state);
            stateful::daemon_sets(state);
            lifecycle::schedule(state);
            lifecycle::forsake(state);
        });
        let settled = lifecycle.run(store);
        store.write(|state| {
            owners::clear_namespaces(state);
            endpoints::run(state);
        });
        if store.read(State::revision) == before {
            return settled;
        }
    }
    false
}

/// Creates an object in the name of the cluster. What is there stays as it is; what cannot be
/// created now (its namespace is going) is not needed.
fn make(state: &mut State, kind: &str, namespace: &str, object: Value) -> Option<Arc<Value>> {
    let resource = Resource::of_kind(kind)?;
    let made = objects::create(state, resource, namespace, object, false);
    made.ok().map(|done| done.object)
}

/// The objects of a kind, so that the state can be changed while they are looked at.
fn all(state: &State, kind: &str) -> Vec<(Key, Arc<Value>)> {
    let Some(resource) = Resource::of_kind(kind) else { return Vec::new() };
    state.list(resource, None).map(|(key, object)| (key.clone(), object.clone())).collect()
}

/// Deletes an object as `kubectl delete` would.
fn delete(state: &mut State, kind: &str, key: &Key) {
    let Some(resource) = Resource::of_kind(kind) else { return };
    let how = objects::Deletion {
        grace: None,
        propagation: objects::Propagation::Background,
        uid: None,
        revision: None,
        dry_run: false,
    };
    // It may be gone already, which is what was wanted.
    let _ = objects::delete(state, key, resource, &how);
}

/// The reference by which an object says that another one controls it.
fn controlled_by(owner: &Value) -> Value {
    json!([{
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": meta::name(owner),
        "uid": meta::uid(owner),
        "controller": true,
        "blockOwnerDeletion": true,
    }])
}

/// Whether an object is controlled by this owner.
fn is_controlled_by(object: &Value, owner: &Value) -> bool {
    meta::controller(object).is_some_and(|reference| reference["uid"] == owner["metadata"]["uid"])
}

/// Sets a condition. The time of its last transition changes with its status only.
pub(crate) fn set_condition(status: &mut Value, kind: &str, is: bool, reason: &str, message: &str) {
    if !status.is_object() {
        *status = json!({});
    }
    if !status["conditions"].is_array() {
        status["conditions"] = json!([]);
    }
    let Some(conditions) = status["conditions"].as_array_mut() else { return };
    let value = if is { "True" } else { "False" };
    let old = conditions.iter().position(|condition| condition["type"] == kind);
    let since = match old.map(|i| &conditions[i]) {
        Some(old) if old["status"] == value => old["lastTransitionTime"].clone(),
        _ => json!(meta::now()),
    };
    let mut condition = json!({"type": kind, "status": value, "lastTransitionTime": since});
    if !reason.is_empty() {
        condition["reason"] = json!(reason);
    }
    if !message.is_empty() {
        condition["message"] = json!(message);
    }
    match old {
        Some(i) => conditions[i] = condition,
        None => conditions.push(condition),
    }
}
