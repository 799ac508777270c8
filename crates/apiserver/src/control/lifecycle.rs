//! From a pod that was made to a pod that runs, and to its end.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use serde_json::{Value, json};

use super::{PodNetwork, all, set_condition};
use crate::store::{Key, State, Store};
use crate::{meta, objects};

/// Whether the node selector of a pod (or pod template) has this node.
pub(super) fn selects_node(pod: &Value, node: &Value) -> bool {
    let labels = meta::labels(node);
    let wanted: Vec<_> = meta::strings(pod.pointer("/spec/nodeSelector"));
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
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
            node.pointer("/spec/unschedulable") != Some(&json!(true)) && selects_node(pod, node)
        });
        let names = open.map(|node| meta::name(node));
        let best = names.min_by_key(|name| (load.get(name).copied().unwrap_or_default(), *name));
        objects::amend(state, key, |pod| match best {
            Some(node) => {
                pod["spec"]["nodeName"] = json!(node);
                set_condition(&mut pod["status"], "PodScheduled", true, "", "");
            }
            None => {
                let count = nodes.len();
                let message = format!("0/{count} nodes are available.");
                let status = &mut pod["status"];
                set_condition(status, "PodScheduled", false, "Unschedulable", &message);
            }
        });
        if let Some(node) = best {
            *load.entry(node).or_default() += 1;
        }
    }
}

/// The pods that are up, by uid.
#[derive(Debug)]
pub(super) struct Lifecycle {
    network: Arc<dyn PodNetwork>,
    up: HashMap<String, Arc<Value>>,
}

impl Lifecycle {
    pub(super) fn new(network: Arc<dyn PodNetwork>) -> Lifecycle {
        Lifecycle { network, up: HashMap::new() }
    }

    /// Brings up what has a node, takes down what is to go or is gone. Whether all went well.
    pub(super) fn run(&mut self, store: &Store) -> bool {
        let pods = store.read(|state| all(state, "Pod"));
        let there: HashMap<&str, &Arc<Value>> =
            pods.iter().map(|(_, pod)| (meta::uid(pod), pod)).collect();
        let network = &self.network;
        self.up.retain(|uid, pod| {
            let stays = there.get(&**uid).is_some_and(|pod| !meta::is_terminating(pod));
            if !stays {
                network.down(pod);
            }
            stays
        });
        let mut well = true;
        for (key, pod) in &pods {
            if meta::is_terminating(pod) {
                store.write(|state| end(state, key, pod));
                continue;
            }
            let placed = !meta::text(pod, "/spec/nodeName").is_empty();
            let finished = matches!(meta::text(pod, "/status/phase"), "Succeeded" | "Failed");
            if !placed || finished || self.up.contains_key(meta::uid(pod)) {
                continue;
            }
            match self.network.up(pod) {
                Ok(addresses) => {
                    self.up.insert(meta::uid(pod).to_owned(), pod.clone());
                    store.write(|state| started(state, key, pod, &addresses));
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

fn containers(pod: &Value, state: &Value, ready: bool) -> Value {
    let each = meta::list(pod, "/spec/containers").iter().map(|container| {
        json!({
            "name": container["name"],
            "image": container["image"],
            "imageID": "",
            "ready": ready,
            "started": ready,
            "restartCount": 0,
            "lastState": {},
            "state": state,
        })
    });
    each.collect()
}

fn started(state: &mut State, key: &Key, pod: &Value, addresses: &[IpAddr]) {
    let host = host_of(state, pod);
    amend(state, key, pod, |pod| {
        let now = meta::now();
        let running = json!({"running": {"startedAt": now}});
        let statuses = containers(pod, &running, true);
        let status = &mut pod["status"];
        status["phase"] = json!("Running");
        for condition in
            ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"]
        {
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
        status["containerStatuses"] = statuses;
    });
}

fn waiting(state: &mut State, key: &Key, pod: &Value, why: &str) {
    amend(state, key, pod, |pod| {
        let waiting = json!({"waiting": {"reason": "ContainerCreating"}});
        let statuses = containers(pod, &waiting, false);
        let status = &mut pod["status"];
        let condition = "PodReadyToStartContainers";
        set_condition(status, condition, false, "NetworkNotReady", why);
        set_condition(status, "Ready", false, "ContainersNotReady", why);
        status["containerStatuses"] = statuses;
    });
}
