//! What goes when something else goes: the contents of namespaces, and what has no owner left.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::{all, delete, make};
use crate::meta;
use crate::objects;
use crate::resource::RESOURCES;
use crate::store::{Key, State};

/// Gives each namespace its service account.
pub(super) fn tend_namespaces(state: &mut State) {
    for (_, namespace) in all(state, "Namespace") {
        if !meta::is_terminating(&namespace) {
            let account = json!({"metadata": {"name": "default"}});
            let there = crate::Resource::of_kind("ServiceAccount")
                .is_some_and(|kind| state.find(kind, meta::name(&namespace), "default").is_some());
            if !there {
                let _ = make(state, "ServiceAccount", meta::name(&namespace), account);
            }
        }
    }
}

/// Empties the namespaces that are to go, and removes those that are empty.
pub(super) fn clear_namespaces(state: &mut State) {
    for (key, namespace) in all(state, "Namespace") {
        if !meta::is_terminating(&namespace) {
            continue;
        }
        let mut left = 0;
        for resource in RESOURCES.iter().filter(|resource| resource.namespaced) {
            let found = state
                .list(resource, Some(&key.name))
                .map(|(key, object)| (key.clone(), meta::is_terminating(object)));
            for (key, terminating) in found.collect::<Vec<_>>() {
                left += 1;
                if !terminating {
                    delete(state, resource.kind, &key);
                }
            }
        }
        if left == 0 && meta::list(&namespace, "/metadata/finalizers").is_empty() {
            state.remove(&key);
        }
    }
}

/// Removes what names owners of which none is there, and what was deleted in the foreground once
/// nothing depends on it.
pub(super) fn collect(state: &mut State) {
    let mut there: HashSet<String> = HashSet::new();
    let mut owned: Vec<(&'static str, Key, Vec<String>)> = Vec::new();
    let mut waiting: Vec<(Key, String)> = Vec::new();
    for resource in RESOURCES {
        for (key, object) in state.list(resource, None) {
            there.insert(meta::uid(object).to_owned());
            let owners = meta::list(object, "/metadata/ownerReferences").iter();
            let owners: Vec<String> = owners.map(|o| meta::text(o, "/uid").to_owned()).collect();
            if !owners.is_empty() {
                owned.push((resource.kind, key.clone(), owners));
            }
            if meta::is_terminating(object) && waits_for_dependents(object) {
                waiting.push((key.clone(), meta::uid(object).to_owned()));
            }
        }
    }
    for (_, owner) in &waiting {
        there.remove(owner);
    }
    for (kind, key, owners) in &owned {
        let terminating = state.get(key).is_none_or(|object| meta::is_terminating(object));
        if !terminating && !owners.iter().any(|owner| there.contains(owner)) {
            delete(state, kind, key);
        }
    }
    for (key, uid) in waiting {
        if objects::dependents(state, &uid).is_empty() {
            objects::amend(state, &key, |object| {
                let finalizers = object["metadata"]["finalizers"].as_array_mut();
                if let Some(finalizers) = finalizers {
                    finalizers.retain(|finalizer| finalizer != "foregroundDeletion");
                }
            });
        }
    }
}

fn waits_for_dependents(object: &Value) -> bool {
    meta::list(object, "/metadata/finalizers").iter().any(|f| f == "foregroundDeletion")
}
