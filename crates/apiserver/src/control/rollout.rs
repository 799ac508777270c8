//! Deployments make ReplicaSets, and ReplicaSets make pods.

use std::sync::Arc;

use serde_json::{Value, json};

use super::pods::{by_worth, claim, delete_pod, make_pod, ready};
use super::{all, controlled_by, delete, events, is_controlled_by, make, set_condition};
use crate::store::{Key, State};
use crate::{meta, objects};

/// The most pods that are made of a ReplicaSet at once; the others follow.
const BURST: usize = 500;
const SETS: &str = "replicaset-controller";
const DEPLOYMENTS: &str = "deployment-controller";
const HASH: &str = "pod-template-hash";
const REVISION: &str = "deployment.kubernetes.io/revision";

/// Has each ReplicaSet as many pods as it asks for, and says how many it has.
pub(super) fn replica_sets(state: &mut State) {
    for (key, set) in all(state, "ReplicaSet") {
        if meta::is_terminating(&set) {
            continue;
        }
        let mut pods = claim(state, &set);
        let wanted = usize::try_from(meta::integer(&set, "/spec/replicas")).unwrap_or_default();
        let count = pods.len();
        for _ in count..wanted.min(count.saturating_add(BURST)) {
            make_pod(state, SETS, &set, |_| {});
        }
        if count > wanted {
            by_worth(&mut pods);
            for (pod, _) in pods.drain(..count - wanted) {
                delete_pod(state, SETS, &set, &pod);
            }
        }
        let (now, ready) = (pods.len(), ready(&pods));
        objects::amend(state, &key, |set| {
            let generation = set["metadata"]["generation"].clone();
            set["status"] = json!({
                "replicas": now,
                "fullyLabeledReplicas": now,
                "readyReplicas": ready,
                "availableReplicas": ready,
                "observedGeneration": generation,
            });
            drop_zeros(&mut set["status"]);
        });
    }
}

/// Counts of nothing are not written, but for how many replicas there are.
fn drop_zeros(status: &mut Value) {
    if let Some(status) = status.as_object_mut() {
        status.retain(|key, value| key == "replicas" || *value != 0);
    }
}

type Set = (Key, Arc<Value>);

/// Has each Deployment a ReplicaSet for its template, and moves pods to it from older ones.
pub(super) fn deployments(state: &mut State) {
    for (key, deployment) in all(state, "Deployment") {
        if meta::is_terminating(&deployment) {
            continue;
        }
        let sets = all(state, "ReplicaSet").into_iter().filter(|(at, set)| {
            at.namespace == key.namespace
                && is_controlled_by(set, &deployment)
                && !meta::is_terminating(set)
        });
        let sets: Vec<Set> = sets.collect();
        let template = &deployment["spec"]["template"];
        let (current, old): (Vec<Set>, Vec<Set>) =
            sets.iter().cloned().partition(|(_, set)| plain_template(set) == *template);
        let recreate = deployment["spec"]["strategy"]["type"] == "Recreate";
        let paused = deployment["spec"]["paused"] == true;
        let running: i64 = old.iter().map(|(_, set)| meta::integer(set, "/status/replicas")).sum();
        match current.first() {
            None if paused => {}
            None => {
                let last = sets.iter().map(|(_, set)| revision(set)).max().unwrap_or_default();
                let wanted = meta::integer(&deployment, "/spec/replicas");
                let at_once = if old.is_empty() { wanted } else { 0 };
                make_set(state, &deployment, last.saturating_add(1), at_once);
            }
            Some(_) if recreate && running > 0 => {
                for old in &old {
                    scale(state, &deployment, old, 0);
                }
            }
            Some(current) => {
                rank(state, current, &sets);
                roll(state, &deployment, current, &old, recreate);
                forget(state, &deployment, &old);
            }
        }
        report(state, &key, &deployment);
    }
}

fn plain_template(set: &Value) -> Value {
    let mut template = set["spec"]["template"].clone();
    if let Some(labels) = template["metadata"]["labels"].as_object_mut() {
        labels.shift_remove(HASH);
    }
    template
}

fn revision(object: &Value) -> i64 {
    object["metadata"]["annotations"][REVISION].as_str().and_then(|r| r.parse().ok()).unwrap_or(0)
}

fn make_set(state: &mut State, deployment: &Value, revision: i64, replicas: i64) {
    let hash = meta::hash(&deployment["spec"]["template"]);
    let mut spec = json!({
        "replicas": replicas,
        "selector": deployment["spec"]["selector"],
        "template": deployment["spec"]["template"],
    });
    if !spec["selector"]["matchLabels"].is_object() {
        spec["selector"]["matchLabels"] = json!({});
    }
    spec["selector"]["matchLabels"][HASH] = json!(hash);
    spec["template"]["metadata"]["labels"][HASH] = json!(hash);
    let wanted = meta::integer(deployment, "/spec/replicas");
    let labels = spec["template"]["metadata"]["labels"].clone();
    let made = make(
        state,
        "ReplicaSet",
        meta::namespace(deployment),
        json!({
            "metadata": {
                "name": format!("{}-{hash}", meta::name(deployment)),
                "labels": labels,
                "annotations": {
                    REVISION: revision.to_string(),
                    "deployment.kubernetes.io/desired-replicas": wanted.to_string(),
                    "deployment.kubernetes.io/max-replicas":
                        (wanted + surge(deployment)).to_string(),
                },
                "ownerReferences": controlled_by(deployment),
            },
            "spec": spec,
        }),
    );
    if let Some(made) = made
        && replicas > 0
    {
        has_scaled(state, deployment, meta::name(&made), 0, replicas);
    }
}

/// The set of the current template has the highest revision, also if it is an old one again.
fn rank(state: &mut State, current: &Set, sets: &[Set]) {
    let mine = revision(&current.1);
    let others = sets.iter().filter(|(key, _)| *key != current.0);
    let highest = others.map(|(_, set)| revision(set)).max().unwrap_or_default();
    if mine <= highest {
        objects::amend(state, &current.0, |set| {
            set["metadata"]["annotations"][REVISION] = json!(highest.saturating_add(1).to_string());
        });
    }
}

fn scale(state: &mut State, deployment: &Value, (key, set): &Set, replicas: i64) {
    let before = meta::integer(set, "/spec/replicas");
    objects::amend(state, key, |set| set["spec"]["replicas"] = json!(replicas));
    if before != replicas {
        has_scaled(state, deployment, &key.name, before, replicas);
    }
}

fn has_scaled(state: &mut State, deployment: &Value, set: &str, before: i64, now: i64) {
    let way = if now > before { "up" } else { "down" };
    let message = format!("Scaled {way} replica set {set} from {before} to {now}");
    let what = events::normal("ScalingReplicaSet", &message);
    events::record(state, DEPLOYMENTS, deployment, what);
}

/// `25%` of the replicas, or a number.
fn share(deployment: &Value, field: &str, round_up: bool) -> i64 {
    let value = &deployment["spec"]["strategy"]["rollingUpdate"][field];
    let replicas = meta::integer(deployment, "/spec/replicas");
    match value {
        Value::String(text) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or_default();
            let hundredths = replicas.saturating_mul(percent);
            if round_up { hundredths.saturating_add(99) / 100 } else { hundredths / 100 }
        }
        number => number.as_i64().unwrap_or_default(),
    }
    .clamp(0, i64::from(i32::MAX))
}

fn surge(deployment: &Value) -> i64 {
    share(deployment, "maxSurge", true)
}

/// One step: as many new pods as may be more, then as few old ones as may be missing.
fn roll(state: &mut State, deployment: &Value, current: &Set, old: &[Set], recreate: bool) {
    let wanted = meta::integer(deployment, "/spec/replicas");
    let spec = |set: &Set| meta::integer(&set.1, "/spec/replicas");
    let available = |set: &Set| meta::integer(&set.1, "/status/availableReplicas");
    let olds: i64 = old.iter().map(spec).sum();
    if recreate || olds == 0 {
        scale(state, deployment, current, wanted);
        return;
    }
    let surge = surge(deployment);
    let mut missing = share(deployment, "maxUnavailable", false);
    if surge == 0 && missing == 0 {
        missing = 1;
    }
    let room = (wanted + surge - olds - spec(current)).max(0);
    let now = (spec(current) + room).min(wanted);
    scale(state, deployment, current, now);
    let unavailable = now - available(current).min(now);
    let mut spare = olds + now - (wanted - missing) - unavailable;
    for set in old {
        let gone = spare.clamp(0, spec(set));
        if gone > 0 {
            scale(state, deployment, set, spec(set) - gone);
            spare -= gone;
        }
    }
}

/// Old sets without pods are kept for `kubectl rollout undo`, up to a limit.
fn forget(state: &mut State, deployment: &Value, old: &[Set]) {
    let limit = meta::integer(deployment, "/spec/revisionHistoryLimit");
    let limit = usize::try_from(limit).unwrap_or_default();
    let empty = |(_, set): &&Set| {
        meta::integer(set, "/spec/replicas") == 0 && meta::integer(set, "/status/replicas") == 0
    };
    let mut empty: Vec<&Set> = old.iter().filter(empty).collect();
    empty.sort_by_key(|(_, set)| revision(set));
    for (key, _) in empty.iter().take(empty.len().saturating_sub(limit)) {
        delete(state, "ReplicaSet", key);
    }
}

fn report(state: &mut State, key: &Key, deployment: &Value) {
    let sets = all(state, "ReplicaSet")
        .into_iter()
        .filter(|(at, set)| at.namespace == key.namespace && is_controlled_by(set, deployment));
    let sets: Vec<Set> = sets.collect();
    let current =
        sets.iter().find(|(_, set)| plain_template(set) == deployment["spec"]["template"]);
    let sum = |field: &str| -> i64 {
        sets.iter().map(|(_, set)| meta::integer(set, &format!("/status/{field}"))).sum()
    };
    let wanted = meta::integer(deployment, "/spec/replicas");
    let (replicas, available) = (sum("replicas"), sum("availableReplicas"));
    let of_current = |field| current.map_or(0, |(_, set)| meta::integer(set, field));
    let updated = of_current("/status/replicas");
    let name = current.map(|(_, set)| meta::name(set).to_owned()).unwrap_or_default();
    let enough = available >= wanted - share(deployment, "maxUnavailable", false);
    let done = updated == wanted && available == wanted && replicas == wanted;
    let revision = current.map(|(_, set)| revision(set));
    objects::amend(state, key, |deployment| {
        if let Some(revision) = revision {
            let metadata = &mut deployment["metadata"];
            if !metadata["annotations"].is_object() {
                metadata["annotations"] = json!({});
            }
            metadata["annotations"][REVISION] = json!(revision.to_string());
        }
        let conditions = deployment["status"]["conditions"].clone();
        let mut status = json!({
            "observedGeneration": deployment["metadata"]["generation"],
            "replicas": replicas,
            "updatedReplicas": updated,
            "readyReplicas": sum("readyReplicas"),
            "availableReplicas": available,
            "unavailableReplicas": (wanted.max(replicas) - available).max(0),
        });
        if let Some(status) = status.as_object_mut() {
            status.retain(|_, value| *value != 0);
        }
        status["conditions"] = conditions;
        let (reason, message) = match enough {
            true => ("MinimumReplicasAvailable", "Deployment has minimum availability."),
            false => {
                ("MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
            }
        };
        set_condition(&mut status, "Available", enough, reason, message);
        let (reason, message) = match done {
            true => (
                "NewReplicaSetAvailable",
                format!("ReplicaSet {name:?} has successfully progressed."),
            ),
            false => ("ReplicaSetUpdated", format!("ReplicaSet {name:?} is progressing.")),
        };
        set_condition(&mut status, "Progressing", true, reason, &message);
        for condition in status["conditions"].as_array_mut().into_iter().flatten() {
            condition["lastUpdateTime"] = condition["lastTransitionTime"].clone();
        }
        deployment["status"] = status;
    });
}
