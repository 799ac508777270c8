//! From a pod that was made to a pod that runs, and to its end.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use serde_json::{Value, json};

use super::{all, delete, events, set_condition};
use crate::containers::{Containers, is_finished};
use crate::store::{Key, State, Store};
use crate::{meta, objects};

/// Whether the node selector of a pod (or pod template) has this node.
pub(super) fn selects_node(pod: &Value, node: &Value) -> bool {
    let labels = meta::labels(node);
    let wanted: Vec<_> = meta::strings(pod.pointer("/spec/nodeSelector"));
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// Whether a pod may come to this node: it tolerates each taint that keeps pods away.
fn tolerates(pod: &Value, node: &Value) -> bool {
    let taints = meta::list(node, "/spec/taints").iter();
    let mut strict = taints.filter(|taint| taint["effect"] != "PreferNoSchedule");
    strict.all(|taint| {
        meta::list(pod, "/spec/tolerations").iter().any(|toleration| {
            let any = toleration["operator"] == "Exists";
            let key = meta::text(toleration, "/key");
            let effect = meta::text(toleration, "/effect");
            (effect.is_empty() || effect == meta::text(taint, "/effect"))
                && (key == meta::text(taint, "/key") || (any && key.is_empty()))
                && (any || meta::text(toleration, "/value") == meta::text(taint, "/value"))
        })
    })
}

/// Gives each pod without a node the one with the fewest pods.
pub(super) fn schedule(state: &mut State) {
    let pods = all(state, "Pod");
    let nodes: Vec<_> = all(state, "Node").into_iter().map(|(_, node)| node).collect();
    let mut load: HashMap<&str, usize> = HashMap::new();
    for (_, pod) in &pods {
        *load.entry(meta::text(pod, "/spec/nodeName")).or_default() += 1;
    }
    for (key, pod) in &pods {
        if !meta::text(pod, "/spec/nodeName").is_empty() || meta::is_terminating(pod) {
            continue;
        }
        let open = nodes.iter().filter(|node| {
            node.pointer("/spec/unschedulable") != Some(&json!(true))
                && selects_node(pod, node)
                && tolerates(pod, node)
        });
        let names = open.map(|node| meta::name(node));
        let best = names.min_by_key(|name| (load.get(name).copied().unwrap_or_default(), *name));
        let message = format!("0/{} nodes are available.", nodes.len());
        objects::amend(state, key, |pod| match best {
            Some(node) => {
                pod["spec"]["nodeName"] = json!(node);
                set_condition(&mut pod["status"], "PodScheduled", true, "", "");
            }
            None => {
                let status = &mut pod["status"];
                set_condition(status, "PodScheduled", false, "Unschedulable", &message);
            }
        });
        let by = "default-scheduler";
        if let Some(node) = best {
            *load.entry(node).or_default() += 1;
            let message = format!("Successfully assigned {}/{} to {node}", key.namespace, key.name);
            events::record(state, by, pod, events::normal("Scheduled", &message));
        } else if state.get(key) != Some(pod) {
            events::record(state, by, pod, events::warning("FailedScheduling", &message));
        }
    }
}

/// Deletes the pods of nodes that are gone.
pub(super) fn forsake(state: &mut State) {
    let nodes = all(state, "Node");
    for (key, pod) in all(state, "Pod") {
        let node = meta::text(&pod, "/spec/nodeName");
        if !node.is_empty() && !nodes.iter().any(|(key, _)| key.name == node) {
            delete(state, "Pod", &key);
        }
    }
}

/// The pods whose network is up, by uid.
#[derive(Debug)]
pub(super) struct Lifecycle {
    containers: Arc<Containers>,
    up: HashMap<String, Arc<Value>>,
}

impl Lifecycle {
    pub(super) fn new(containers: Arc<Containers>) -> Lifecycle {
        Lifecycle { containers, up: HashMap::new() }
    }

    /// Brings up what has a node, takes down what is to go, is gone or is finished. Whether all went
    /// well.
    pub(super) fn run(&mut self, store: &Store) -> bool {
        let pods = store.read(|state| all(state, "Pod"));
        let there: HashMap<&str, &Arc<Value>> =
            pods.iter().map(|(_, pod)| (meta::uid(pod), pod)).collect();
        let (containers, runtime) = (&self.containers, &self.containers.runtime);
        let lives = |pod: &Value| !meta::is_terminating(pod) && !is_finished(pod);
        self.up.retain(|uid, pod| {
            let stays = there.get(&**uid).is_some_and(|pod| lives(pod));
            if !stays {
                containers.end(uid);
                runtime.down(pod);
            }
            if there.get(&**uid).is_some_and(|pod| meta::is_terminating(pod)) {
                store.write(|state| killing(state, pod));
            }
            stays
        });
        containers.keep(|uid| there.contains_key(uid));
        let mut well = true;
        for (key, pod) in &pods {
            if meta::is_terminating(pod) {
                store.write(|state| end(state, key, pod));
                continue;
            }
            let placed = !meta::text(pod, "/spec/nodeName").is_empty();
            if !placed || is_finished(pod) || self.up.contains_key(meta::uid(pod)) {
                continue;
            }
            match runtime.up(pod) {
                Ok(addresses) => {
                    self.up.insert(meta::uid(pod).to_owned(), pod.clone());
                    containers.begin(key, pod);
                    store.write(|state| started(state, key, pod, &addresses, containers));
                }
                Err(why) => {
                    well = false;
                    store.write(|state| waiting(state, key, pod, &why));
                }
            }
        }
        well
    }
}

/// Changes a pod unless another one has taken its name meanwhile.
fn amend(state: &mut State, key: &Key, pod: &Value, change: impl FnOnce(&mut Value)) {
    if state.get(key).is_some_and(|now| meta::uid(now) == meta::uid(pod)) {
        objects::amend(state, key, change);
    }
}

/// A pod whose network is gone has no reason to stay.
fn end(state: &mut State, key: &Key, pod: &Value) {
    amend(state, key, pod, |pod| pod["metadata"]["deletionGracePeriodSeconds"] = json!(0));
}

fn host_of(state: &State, pod: &Value) -> Option<String> {
    let kind = crate::Resource::of_kind("Node")?;
    let node = state.find(kind, "", meta::text(pod, "/spec/nodeName"))?;
    let mut addresses = meta::list(node, "/status/addresses").iter();
    let internal = addresses.find(|address| address["type"] == "InternalIP")?;
    Some(meta::text(internal, "/address").to_owned())
}

fn started(
    state: &mut State,
    key: &Key,
    pod: &Value,
    addresses: &[IpAddr],
    containers: &Containers,
) {
    let host = host_of(state, pod);
    amend(state, key, pod, |pod| {
        let now = meta::now();
        let status = &mut pod["status"];
        for condition in ["PodReadyToStartContainers", "PodScheduled"] {
            set_condition(status, condition, true, "", "");
        }
        if let Some(host) = host {
            status["hostIP"] = json!(host);
            status["hostIPs"] = json!([{"ip": host}]);
        }
        if let Some(first) = addresses.first() {
            status["podIP"] = json!(first);
            let all: Vec<Value> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
            status["podIPs"] = Value::Array(all);
        }
        if status.get("startTime").is_none() {
            status["startTime"] = json!(now);
        }
        let uid = meta::uid(pod).to_owned();
        containers.describe(&uid, pod);
    });
}

fn killing(state: &mut State, pod: &Value) {
    for container in meta::list(pod, "/spec/containers") {
        let message = format!("Stopping container {}", meta::text(container, "/name"));
        events::record(state, "kubelet", pod, events::normal("Killing", &message));
    }
}

fn waiting(state: &mut State, key: &Key, pod: &Value, why: &str) {
    let before = state.get(key).cloned();
    amend(state, key, pod, |pod| {
        let statuses: Value = meta::list(pod, "/spec/containers")
            .iter()
            .map(|container| {
                json!({
                    "name": container["name"],
                    "image": container["image"],
                    "imageID": "",
                    "ready": false,
                    "started": false,
                    "restartCount": 0,
                    "lastState": {},
                    "state": {"waiting": {"reason": "ContainerCreating"}},
                })
            })
            .collect();
        let status = &mut pod["status"];
        let condition = "PodReadyToStartContainers";
        set_condition(status, condition, false, "NetworkNotReady", why);
        set_condition(status, "Ready", false, "ContainersNotReady", why);
        status["containerStatuses"] = statuses;
    });
    if state.get(key).cloned() != before {
        let message = format!("Failed to create pod sandbox: {why}");
        let what = events::warning("FailedCreatePodSandBox", &message);
        events::record(state, "kubelet", pod, what);
    }
}
