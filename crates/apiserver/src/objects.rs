//! What it means to create, update and delete an object.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::meta;
use crate::refusal::{Cause, Refusal};
use crate::resource::Resource;
use crate::store::{Key, State};
use crate::{defaults, services, validate};

/// Which part of an object a request is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Whole,
    Status,
}

/// What came of a request, and what is to be said about it.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) object: Arc<Value>,
    pub(crate) warnings: Vec<String>,
}

/// Creates an object. Nothing is stored on a dry run.
pub(crate) fn create(
    state: &mut State,
    resource: &'static Resource,
    namespace: &str,
    mut object: Value,
    dry_run: bool,
) -> Result<Done, Refusal> {
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    let prefix = meta::text(&object, "/metadata/generateName").to_owned();
    if meta::name(&object).is_empty() && !prefix.is_empty() {
        let end = prefix.char_indices().nth(58).map_or(prefix.len(), |(i, _)| i);
        object["metadata"]["name"] = json!(format!("{}{}", &prefix[..end], meta::suffix()));
    }
    let name = meta::name(&object).to_owned();
    if resource.namespaced {
        object["metadata"]["namespace"] = json!(namespace);
        check_namespace(state, resource, namespace, &name)?;
    } else if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.shift_remove("namespace");
    }
    if meta::revision(&object) != 0 {
        let message = "resourceVersion should not be set on objects to be created";
        return Err(Refusal::bad_request(message));
    }
    if let Some(map) = object.as_object_mut()
        && resource.status
    {
        map.shift_remove("status");
    }
    if let Some(metadata) = object["metadata"].as_object_mut() {
        for set_by_server in [
            "resourceVersion",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "generation",
            "selfLink",
        ] {
            metadata.shift_remove(set_by_server);
        }
        metadata.insert("uid".to_owned(), json!(meta::new_uid()));
        metadata.insert("creationTimestamp".to_owned(), json!(meta::now()));
        if resource.generation {
            metadata.insert("generation".to_owned(), json!(1));
        }
    }
    object["apiVersion"] = json!(resource.api_version());
    object["kind"] = json!(resource.kind);
    defaults::fill(resource, &mut object);
    let mut causes = Vec::new();
    if resource.kind == "Service" {
        causes = services::families(&mut object);
    }
    let warnings = judge(resource, &object, causes)?;
    if resource.kind == "Service" {
        services::allocate(state, &mut object)?;
    }
    let key = Key::new(resource, namespace, &name);
    if state.get(&key).is_some() {
        return Err(Refusal::already_exists(resource, &name));
    }
    let object = if dry_run { Arc::new(object) } else { state.put(key, object) };
    Ok(Done { object, warnings })
}

fn check_namespace(
    state: &State,
    resource: &Resource,
    namespace: &str,
    name: &str,
) -> Result<(), Refusal> {
    let Some(kind) = Resource::of_kind("Namespace") else { return Ok(()) };
    match state.find(kind, "", namespace) {
        None => Err(Refusal::not_found(kind, namespace)),
        Some(found) if meta::is_terminating(found) => {
            Err(Refusal::terminating(resource, name, namespace))
        }
        Some(_) => Ok(()),
    }
}

fn judge(resource: &Resource, object: &Value, more: Vec<Cause>) -> Result<Vec<String>, Refusal> {
    let mut judgement = validate::object(resource, object);
    judgement.warnings.extend(services::warning(resource, object));
    judgement.causes.extend(more);
    match judgement.causes.is_empty() {
        true => Ok(judgement.warnings),
        false => Err(Refusal::invalid(resource, meta::name(object), &judgement.causes)),
    }
}

/// Replaces an object, or its status. With the `resourceVersion` of another state of it this is a
/// conflict; without one the last writer wins.
pub(crate) fn update(
    state: &mut State,
    key: &Key,
    resource: &'static Resource,
    part: Part,
    new: Value,
    dry_run: bool,
) -> Result<Done, Refusal> {
    let name = &key.name;
    let Some(old) = state.get(key).cloned() else {
        return Err(Refusal::not_found(resource, name));
    };
    let (wanted, uid) = (meta::revision(&new), meta::uid(&new));
    if wanted != 0 && wanted != meta::revision(&old) {
        let why = "the object has been modified; please apply your changes to the latest version \
                   and try again";
        return Err(Refusal::conflict(resource, name, why));
    }
    if !uid.is_empty() && uid != meta::uid(&old) {
        let why = format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            meta::uid(&old)
        );
        return Err(Refusal::conflict(resource, name, &why));
    }
    let mut object = match part {
        Part::Whole => keep_what_is_not_the_authors(resource, &old, new),
        Part::Status => {
            let mut object = (*old).clone();
            let managed = new.pointer("/metadata/managedFields").cloned();
            object["status"] = new.get("status").cloned().unwrap_or_else(|| json!({}));
            if let Some(managed) = managed {
                object["metadata"]["managedFields"] = managed;
            }
            object
        }
    };
    let mut warnings = Vec::new();
    if part == Part::Whole {
        defaults::fill(resource, &mut object);
        let mut causes = validate::update(resource, &old, &object);
        if resource.kind == "Service" {
            causes.extend(services::families(&mut object));
            causes.extend(services::update(&old, &object));
        }
        warnings = judge(resource, &object, causes)?;
        if resource.kind == "Service" {
            services::allocate(state, &mut object)?;
        }
        if resource.generation && object.get("spec") != old.get("spec") {
            object["metadata"]["generation"] =
                json!(meta::integer(&old, "/metadata/generation") + 1);
        }
    }
    if object == *old {
        return Ok(Done { object: old, warnings });
    }
    let object = match dry_run {
        true => Arc::new(object),
        false => settle(state, key, object),
    };
    Ok(Done { object, warnings })
}

/// Metadata that the server sets, the status, and addresses that were allocated.
fn keep_what_is_not_the_authors(resource: &Resource, old: &Value, mut new: Value) -> Value {
    if !new["metadata"].is_object() {
        new["metadata"] = json!({});
    }
    new["apiVersion"] = old["apiVersion"].clone();
    new["kind"] = old["kind"].clone();
    let keep = |field: &str, from: &Value, to: &mut Value| {
        let Some(to) = to.as_object_mut() else { return };
        match from.get(field) {
            Some(value) => drop(to.insert(field.to_owned(), value.clone())),
            None => drop(to.shift_remove(field)),
        }
    };
    for field in [
        "name",
        "namespace",
        "uid",
        "resourceVersion",
        "creationTimestamp",
        "generation",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generateName",
    ] {
        keep(field, &old["metadata"], &mut new["metadata"]);
    }
    if resource.status {
        keep("status", old, &mut new);
    }
    match resource.kind {
        "Service" => services::keep(old, &mut new),
        "Namespace" => keep("spec", old, &mut new),
        "Pod" if new["spec"].is_object() && new["spec"].get("nodeName").is_none() => {
            keep("nodeName", &old["spec"], &mut new["spec"]);
        }
        _ => {}
    }
    new
}

/// Stores an object, or removes it where it was only waiting for its last finalizer to go.
fn settle(state: &mut State, key: &Key, object: Value) -> Arc<Value> {
    let waits = !meta::list(&object, "/metadata/finalizers").is_empty()
        || !meta::list(&object, "/spec/finalizers").is_empty()
        || meta::integer(&object, "/metadata/deletionGracePeriodSeconds") > 0;
    if meta::is_terminating(&object) && !waits {
        state.put(key.clone(), object);
        return state.remove(key).unwrap_or_default();
    }
    state.put(key.clone(), object)
}

/// A change by the cluster itself: nothing is validated, and nothing happens if nothing changes.
pub(crate) fn amend(state: &mut State, key: &Key, change: impl FnOnce(&mut Value)) {
    let Some(old) = state.get(key).cloned() else { return };
    let mut object = (*old).clone();
    change(&mut object);
    if object == *old {
        return;
    }
    if old.get("spec") != object.get("spec")
        && let Some(generation) = old.pointer("/metadata/generation").and_then(Value::as_i64)
    {
        object["metadata"]["generation"] = json!(generation + 1);
    }
    settle(state, key, object);
}

/// What happens to what an object owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Propagation {
    Background,
    Foreground,
    Orphan,
}

/// How an object is to be deleted (`DeleteOptions`).
#[derive(Debug, Clone)]
pub(crate) struct Deletion {
    /// Seconds; what the object says if there is none.
    pub(crate) grace: Option<i64>,
    pub(crate) propagation: Propagation,
    pub(crate) uid: Option<String>,
    pub(crate) revision: Option<String>,
    pub(crate) dry_run: bool,
}

/// Deletes an object, or begins to. Whether it is gone.
pub(crate) fn delete(
    state: &mut State,
    key: &Key,
    resource: &'static Resource,
    how: &Deletion,
) -> Result<(Arc<Value>, bool), Refusal> {
    let Some(old) = state.get(key).cloned() else {
        return Err(Refusal::not_found(resource, &key.name));
    };
    let precondition = |what: &str, wanted: &Option<String>, found: &str| match wanted {
        Some(wanted) if wanted != found => {
            let why = format!(
                "Precondition failed: {what} in precondition: {wanted}, {what} in object meta: \
                 {found}"
            );
            Err(Refusal::conflict(resource, &key.name, &why))
        }
        _ => Ok(()),
    };
    precondition("UID", &how.uid, meta::uid(&old))?;
    precondition("ResourceVersion", &how.revision, meta::text(&old, "/metadata/resourceVersion"))?;
    if resource.kind == "Namespace" && matches!(&*key.name, "default" | "kube-system") {
        let why = "this namespace may not be deleted";
        return Err(Refusal::forbidden(resource, &key.name, why));
    }
    let mut object = (*old).clone();
    let was_terminating = meta::is_terminating(&old);
    let mut grace = match resource.kind {
        "Pod" => grace_of_pod(&old, how.grace),
        _ => 0,
    };
    if was_terminating {
        grace = grace.min(meta::integer(&old, "/metadata/deletionGracePeriodSeconds"));
    } else {
        match how.propagation {
            Propagation::Background => {}
            Propagation::Foreground => add_finalizer(&mut object, "foregroundDeletion"),
            Propagation::Orphan if !how.dry_run => orphan(state, meta::uid(&old)),
            Propagation::Orphan => {}
        }
    }
    if !was_terminating || grace < meta::integer(&old, "/metadata/deletionGracePeriodSeconds") {
        object["metadata"]["deletionTimestamp"] = json!(meta::after(grace));
        object["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        if let Some(generation) = object["metadata"]["generation"].as_i64() {
            object["metadata"]["generation"] = json!(generation + 1);
        }
    }
    if resource.kind == "Namespace" {
        object["metadata"].as_object_mut().map(|m| m.shift_remove("deletionGracePeriodSeconds"));
        object["status"]["phase"] = json!("Terminating");
    }
    let waits = grace > 0
        || !meta::list(&object, "/metadata/finalizers").is_empty()
        || !meta::list(&object, "/spec/finalizers").is_empty();
    if how.dry_run || (waits && object == *old) {
        return Ok((old, !waits));
    }
    match waits {
        true => Ok((state.put(key.clone(), object), false)),
        false => Ok((state.remove(key).unwrap_or(old), true)),
    }
}

fn grace_of_pod(pod: &Value, asked: Option<i64>) -> i64 {
    let finished = matches!(meta::text(pod, "/status/phase"), "Succeeded" | "Failed");
    if finished || meta::text(pod, "/spec/nodeName").is_empty() {
        return 0;
    }
    asked.unwrap_or_else(|| meta::integer(pod, "/spec/terminationGracePeriodSeconds")).max(0)
}

fn add_finalizer(object: &mut Value, name: &str) {
    if !object["metadata"]["finalizers"].is_array() {
        object["metadata"]["finalizers"] = json!([]);
    }
    if let Some(list) = object["metadata"]["finalizers"].as_array_mut() {
        list.push(json!(name));
    }
}

/// Whoever has this owner has it no longer.
fn orphan(state: &mut State, owner: &str) {
    for key in dependents(state, owner) {
        amend(state, &key, |object| {
            let owners = object["metadata"]["ownerReferences"].as_array_mut();
            if let Some(owners) = owners {
                owners.retain(|reference| reference["uid"] != owner);
            }
        });
    }
}

/// The objects that name this owner.
pub(crate) fn dependents(state: &State, owner: &str) -> Vec<Key> {
    let all = crate::RESOURCES.iter().flat_map(|resource| state.list(resource, None));
    let owned = all.filter(|(_, object)| {
        meta::list(object, "/metadata/ownerReferences").iter().any(|r| r["uid"] == owner)
    });
    owned.map(|(key, _)| key.clone()).collect()
}
