//! StatefulSets and DaemonSets make their pods themselves.

use serde_json::{Value, json};

use super::pods::{Pod, claim, delete_pod, is_ready, make_pod, ready};
use super::{all, lifecycle};
use crate::store::State;
use crate::{meta, objects};

const HASH: &str = "controller-revision-hash";
const STATEFUL: &str = "statefulset-controller";
const DAEMONS: &str = "daemonset-controller";

/// Has each StatefulSet its pods, one after the other, and replaces those of an old template.
pub(super) fn stateful_sets(state: &mut State) {
    for (key, set) in all(state, "StatefulSet") {
        if meta::is_terminating(&set) {
            continue;
        }
        let name = meta::name(&set).to_owned();
        let hash = format!("{name}-{}", meta::hash(&set["spec"]["template"]));
        let first = meta::integer(&set, "/spec/ordinals/start").clamp(0, i64::from(i32::MAX));
        let wanted = first..first + meta::integer(&set, "/spec/replicas");
        let pods = claim(state, &set);
        let ordinal = |pod: &Pod| -> Option<i64> {
            pod.0.name.strip_prefix(&*name)?.strip_prefix('-')?.parse().ok()
        };
        let parallel = set["spec"]["podManagementPolicy"] == "Parallel";
        let mut settled = true;
        for number in wanted.clone() {
            match pods.iter().find(|pod| ordinal(pod) == Some(number)) {
                Some((_, pod)) => settled &= is_ready(pod),
                None if settled || parallel => {
                    settled = false;
                    let (pod_name, hash) = (format!("{name}-{number}"), hash.clone());
                    let service = set["spec"]["serviceName"].clone();
                    make_pod(state, STATEFUL, &set, |pod| {
                        shape(pod, &pod_name, number, hash, service)
                    });
                }
                None => {}
            }
        }
        let mut surplus: Vec<&Pod> =
            pods.iter().filter(|pod| ordinal(pod).is_none_or(|n| !wanted.contains(&n))).collect();
        surplus.sort_by_key(|pod| ordinal(pod));
        let on_delete = set["spec"]["updateStrategy"]["type"] == "OnDelete";
        let stale = |pod: &&Pod| pod.1["metadata"]["labels"][HASH] != *hash;
        let stale = pods.iter().filter(stale).max_by_key(|pod| ordinal(pod));
        let going = match (surplus.last(), stale) {
            (Some(last), _) if settled || parallel => Some(*last),
            (None, Some(stale)) if settled && !on_delete => Some(stale),
            _ => None,
        };
        if let Some((pod, _)) = going {
            delete_pod(state, STATEFUL, &set, pod);
        }
        let current = pods.iter().filter(|(_, pod)| pod["metadata"]["labels"][HASH] == *hash);
        let current = current.count();
        let (count, ready) = (pods.len(), ready(&pods));
        objects::amend(state, &key, |set| {
            set["status"] = json!({
                "observedGeneration": set["metadata"]["generation"],
                "replicas": count,
                "readyReplicas": ready,
                "availableReplicas": ready,
                "currentReplicas": current,
                "updatedReplicas": current,
                "currentRevision": hash,
                "updateRevision": hash,
                "collisionCount": 0,
            });
        });
    }
}

fn shape(pod: &mut Value, name: &str, number: i64, hash: String, service: Value) {
    let metadata = &mut pod["metadata"];
    metadata["name"] = json!(name);
    metadata["labels"]["apps.kubernetes.io/pod-index"] = json!(number.to_string());
    metadata["labels"][HASH] = json!(hash);
    metadata["labels"]["statefulset.kubernetes.io/pod-name"] = json!(name);
    pod["spec"]["hostname"] = json!(name);
    if !service.is_null() {
        pod["spec"]["subdomain"] = service;
    }
}

/// Has each DaemonSet a pod on every node that its template allows.
pub(super) fn daemon_sets(state: &mut State) {
    for (key, set) in all(state, "DaemonSet") {
        if meta::is_terminating(&set) {
            continue;
        }
        let hash = meta::hash(&set["spec"]["template"]);
        let nodes = all(state, "Node").into_iter();
        let nodes: Vec<String> = nodes
            .filter(|(_, node)| lifecycle::selects_node(&set["spec"]["template"], node))
            .map(|(key, _)| key.name)
            .collect();
        let pods = claim(state, &set);
        let node_of = |pod: &Pod| meta::text(&pod.1, "/spec/nodeName").to_owned();
        let mut kept: Vec<Pod> = Vec::new();
        for pod in &pods {
            let node = node_of(pod);
            match nodes.contains(&node) && !kept.iter().any(|kept| node_of(kept) == node) {
                true => kept.push(pod.clone()),
                false => delete_pod(state, DAEMONS, &set, &pod.0),
            }
        }
        for node in &nodes {
            if !kept.iter().any(|pod| node_of(pod) == *node) {
                make_pod(state, DAEMONS, &set, |pod| {
                    pod["metadata"]["labels"][HASH] = json!(hash);
                    pod["metadata"]["labels"]["pod-template-generation"] =
                        json!(meta::integer(&set, "/metadata/generation").to_string());
                    pod["spec"]["nodeName"] = json!(node);
                });
            }
        }
        let is_current = |pod: &&Pod| pod.1["metadata"]["labels"][HASH] == *hash;
        let current = kept.iter().filter(is_current).count();
        let all_ready = ready(&kept) == nodes.len();
        let rolling = set["spec"]["updateStrategy"]["type"] != "OnDelete";
        if let Some((pod, _)) = kept.iter().find(|pod| !is_current(pod))
            && all_ready
            && rolling
        {
            delete_pod(state, DAEMONS, &set, pod);
        }
        let (wanted, there, ready) = (nodes.len(), kept.len(), ready(&kept));
        objects::amend(state, &key, |set| {
            let mut status = json!({
                "currentNumberScheduled": there,
                "numberMisscheduled": 0,
                "desiredNumberScheduled": wanted,
                "numberReady": ready,
                "observedGeneration": set["metadata"]["generation"],
                "updatedNumberScheduled": current,
                "numberAvailable": ready,
            });
            if wanted > ready {
                status["numberUnavailable"] = json!(wanted - ready);
            }
            set["status"] = status;
        });
    }
}
