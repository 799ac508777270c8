//! What it means to create, update and delete an object.

use std::net::Ipv4Addr;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::meta;
use crate::refusal::{Cause, Refusal};
use crate::resource::Resource;
use crate::store::{Key, State};
use crate::{defaults, validate};

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
    let warnings = judge(resource, &object, Vec::new())?;
    if resource.kind == "Service" {
        allocate(state, &mut object)?;
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
    judgement.causes.extend(more);
    match judgement.causes.is_empty() {
        true => Ok(judgement.warnings),
        false => Err(Refusal::invalid(resource, meta::name(object), &judgement.causes)),
    }
}

/// The addresses of Services.
const SERVICES: (Ipv4Addr, u32) = (Ipv4Addr::new(10, 96, 0, 0), 1 << 16);
/// The ports of Services on nodes.
const NODE_PORTS: std::ops::RangeInclusive<i64> = 30000..=32767;

/// Gives a Service its address and its node ports.
fn allocate(state: &State, object: &mut Value) -> Result<(), Refusal> {
    let Some(resource) = Resource::of_kind("Service") else { return Ok(()) };
    let name = meta::name(object).to_owned();
    let invalid = |cause| Refusal::invalid(resource, &name, &[cause]);
    let others = || {
        state.list(resource, None).map(|(_, service)| service).filter(|service| {
            (meta::name(service), meta::namespace(service)) != (&*name, meta::namespace(object))
        })
    };
    let spec = &object["spec"];
    let kind = meta::text(spec, "/type").to_owned();
    let mut address = meta::text(spec, "/clusterIP").to_owned();
    if address.is_empty() {
        address = meta::text(spec, "/clusterIPs/0").to_owned();
    }
    if kind != "ExternalName" && address != "None" {
        let used: Vec<&str> = others().map(|s| meta::text(s, "/spec/clusterIP")).collect();
        if address.is_empty() {
            let first = u32::from(SERVICES.0);
            let free = (10..SERVICES.1 - 1).map(|i| Ipv4Addr::from(first + i).to_string());
            let Some(free) = free.into_iter().find(|free| !used.contains(&&**free)) else {
                let detail = "failed to allocate IP: range is full";
                return Err(invalid(Cause::forbidden("spec.clusterIPs[0]", detail)));
            };
            address = free;
        } else {
            let given: Option<Ipv4Addr> = address.parse().ok();
            let first = u32::from(SERVICES.0);
            let inside =
                given.is_some_and(|a| (first + 1..first + SERVICES.1 - 1).contains(&u32::from(a)));
            if !inside || used.contains(&&*address) {
                let detail = match inside {
                    true => "failed to allocate IP: provided IP is already allocated",
                    false => "the provided IP is not in the valid range 10.96.0.0/16",
                };
                let cause = Cause::invalid("spec.clusterIPs", &json!([address]), detail);
                return Err(invalid(cause));
            }
        }
    }
    let mut taken: Vec<i64> = others()
        .flat_map(|service| meta::list(service, "/spec/ports"))
        .filter_map(|port| port["nodePort"].as_i64())
        .collect();
    if !address.is_empty() && kind != "ExternalName" {
        object["spec"]["clusterIP"] = json!(address);
        object["spec"]["clusterIPs"] = json!([address]);
    }
    let on_nodes = matches!(&*kind, "NodePort" | "LoadBalancer");
    let ports = object["spec"].get_mut("ports").and_then(Value::as_array_mut);
    for (i, port) in ports.into_iter().flatten().enumerate().filter(|_| on_nodes) {
        let field = format!("spec.ports[{i}].nodePort");
        let number = match port["nodePort"].as_i64() {
            None | Some(0) => NODE_PORTS.clone().find(|n| !taken.contains(n)),
            Some(n) if !NODE_PORTS.contains(&n) => {
                let detail = "provided port is not in the valid range. The range of valid ports \
                              is 30000-32767";
                return Err(invalid(Cause::invalid(&field, &json!(n), detail)));
            }
            Some(n) if taken.contains(&n) => {
                let detail = "provided port is already allocated";
                return Err(invalid(Cause::invalid(&field, &json!(n), detail)));
            }
            given => given,
        };
        let Some(number) = number else {
            let detail = "failed to allocate a nodePort: range is full";
            return Err(invalid(Cause::forbidden(&field, detail)));
        };
        taken.push(number);
        port["nodePort"] = json!(number);
    }
    if let Some(map) = object.as_object_mut() {
        map.entry("status").or_insert_with(|| json!({"loadBalancer": {}}));
    }
    Ok(())
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
        warnings = judge(resource, &object, validate::update(resource, &old, &object))?;
        if resource.kind == "Service" {
            allocate(state, &mut object)?;
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
    if resource.kind == "Service" {
        drop_what_the_type_has_not(old, &mut new);
    }
    match resource.kind {
        "Service" if new["spec"].is_object() && new["spec"]["type"] != "ExternalName" => {
            for field in ["clusterIP", "clusterIPs"] {
                if new["spec"].get(field).is_none() {
                    keep(field, &old["spec"], &mut new["spec"]);
                }
            }
            let on_nodes = matches!(meta::text(&new, "/spec/type"), "NodePort" | "LoadBalancer");
            let before = meta::list(old, "/spec/ports");
            for port in
                new["spec"].get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten()
            {
                let same = before.iter().find(|old| old["port"] == port["port"]);
                if let Some(number) = same.and_then(|old| old.get("nodePort"))
                    && on_nodes
                    && port.get("nodePort").is_none()
                {
                    port["nodePort"] = number.clone();
                }
            }
        }
        "Namespace" => keep("spec", old, &mut new),
        "Pod" if new["spec"].is_object() && new["spec"].get("nodeName").is_none() => {
            keep("nodeName", &old["spec"], &mut new["spec"]);
        }
        _ => {}
    }
    new
}

/// A Service that changes its type loses what only the old type has, unless its author changed it.
fn drop_what_the_type_has_not(old: &Value, new: &mut Value) {
    let (before, now) = (&old["spec"]["type"], new["spec"]["type"].clone());
    let on_nodes = |kind: &Value| *kind == "NodePort" || *kind == "LoadBalancer";
    let mut fields: Vec<&str> = Vec::new();
    if on_nodes(before) && !on_nodes(&now) {
        fields.extend(["externalTrafficPolicy", "allocateLoadBalancerNodePorts"]);
        let ports = meta::list(old, "/spec/ports").to_vec();
        for port in new["spec"].get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten()
        {
            let kept = ports.iter().any(|old| old["nodePort"] == port["nodePort"]);
            if let Some(port) = port.as_object_mut().filter(|_| kept) {
                port.shift_remove("nodePort");
            }
        }
    }
    if now == "ExternalName" && *before != "ExternalName" {
        fields.extend([
            "clusterIP",
            "clusterIPs",
            "ipFamilies",
            "ipFamilyPolicy",
            "internalTrafficPolicy",
        ]);
    }
    for field in fields {
        if new["spec"].get(field) == old["spec"].get(field)
            && let Some(spec) = new["spec"].as_object_mut()
        {
            spec.shift_remove(field);
        }
    }
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
