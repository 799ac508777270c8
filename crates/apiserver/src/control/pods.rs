//! What controllers know of their pods.

use std::cmp::Reverse;
use std::sync::Arc;

use serde_json::{Value, json};

use super::{all, controlled_by, delete, events, is_controlled_by, make};
use crate::store::{Key, State};
use crate::{meta, objects, select};

/// A pod and its place.
pub(super) type Pod = (Key, Arc<Value>);

/// The pods of a controller that run or are to run. Pods that its selector no longer selects are
/// let go; pods that it selects and nobody controls become its own.
pub(super) fn claim(state: &mut State, owner: &Value) -> Vec<Pod> {
    let selector = select::label_selector(owner.pointer("/spec/selector"));
    let namespace = meta::namespace(owner);
    let mut claimed = Vec::new();
    for (key, pod) in all(state, "Pod") {
        let finished = matches!(meta::text(&pod, "/status/phase"), "Succeeded" | "Failed");
        if key.namespace != namespace || finished || meta::is_terminating(&pod) {
            continue;
        }
        let selected = selector.matches(&meta::labels(&pod));
        match (is_controlled_by(&pod, owner), selected) {
            (true, true) => claimed.push((key, pod)),
            (true, false) => objects::amend(state, &key, |pod| {
                let owners = pod["metadata"]["ownerReferences"].as_array_mut();
                if let Some(owners) = owners {
                    owners.retain(|o| o["uid"] != owner["metadata"]["uid"]);
                }
                if let Some(metadata) = pod["metadata"].as_object_mut()
                    && metadata["ownerReferences"] == json!([])
                {
                    metadata.shift_remove("ownerReferences");
                }
            }),
            (false, true) if meta::controller(&pod).is_none() => {
                objects::amend(state, &key, |pod| {
                    pod["metadata"]["ownerReferences"] = controlled_by(owner);
                });
                claimed.push((key, pod));
            }
            (false, _) => {}
        }
    }
    claimed
}

pub(super) fn is_ready(pod: &Value) -> bool {
    meta::list(pod, "/status/conditions")
        .iter()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

pub(super) fn ready(pods: &[Pod]) -> usize {
    pods.iter().filter(|(_, pod)| is_ready(pod)).count()
}

/// Makes a pod of an owner's template. `shape` has the last word.
pub(super) fn make_pod(state: &mut State, by: &str, owner: &Value, shape: impl FnOnce(&mut Value)) {
    let template = &owner["spec"]["template"];
    let mut pod = json!({"metadata": {}, "spec": template["spec"]});
    for field in ["labels", "annotations"] {
        if let Some(value) = template["metadata"].get(field) {
            pod["metadata"][field] = value.clone();
        }
    }
    pod["metadata"]["generateName"] = json!(format!("{}-", meta::name(owner)));
    pod["metadata"]["ownerReferences"] = controlled_by(owner);
    shape(&mut pod);
    if let Some(pod) = make(state, "Pod", meta::namespace(owner), pod) {
        let message = format!("Created pod: {}", meta::name(&pod));
        events::record(state, by, owner, events::normal("SuccessfulCreate", &message));
    }
}

/// Deletes a pod of an owner that has no use for it any more.
pub(super) fn delete_pod(state: &mut State, by: &str, owner: &Value, pod: &Key) {
    delete(state, "Pod", pod);
    let message = format!("Deleted pod: {}", pod.name);
    events::record(state, by, owner, events::normal("SuccessfulDelete", &message));
}

/// In the order in which they are given up: those without a node, those that are not ready, the
/// youngest.
pub(super) fn by_worth(pods: &mut [Pod]) {
    pods.sort_by_key(|(_, pod)| {
        (!meta::text(pod, "/spec/nodeName").is_empty(), is_ready(pod), Reverse(meta::revision(pod)))
    });
}
