//! Server-side apply: which manager owns which fields, and what happens where two want the same.
//!
//! A field is named by the steps of `fieldsV1`: `f:` a field, `k:` an item of a list by its keys,
//! `v:` a value of a set, `.` the item itself.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use crate::meta;
use crate::resource::Resource;
use crate::schema::{self, Merge, Type};

type Path = Vec<String>;
type Owned = BTreeSet<Path>;

/// One entry of `metadata.managedFields`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    manager: String,
    operation: String,
    subresource: String,
    time: String,
    owned: Owned,
}

impl Entry {
    /// As conflicts name it.
    fn display(&self, resource: &Resource) -> String {
        match &*self.operation {
            "Update" => format!("{:?} using {}", self.manager, resource.api_version()),
            _ => format!("{:?}", self.manager),
        }
    }
}

/// Notes in the managed fields of `new` what a manager changed by an update.
pub(crate) fn track(
    resource: &'static Resource,
    old: &Value,
    new: &mut Value,
    manager: &str,
    subresource: &str,
) {
    let before = leaves(resource, old, subresource);
    let after = leaves(resource, new, subresource);
    let changed: Owned = after
        .iter()
        .filter(|(path, value)| before.get(*path) != Some(*value))
        .map(|(path, _)| path.clone())
        .collect();
    let removed = before.keys().filter(|path| !after.contains_key(*path));
    let lost: Owned = removed.chain(&changed).cloned().collect();
    let mut entries = read(old);
    if !lost.is_empty() {
        for entry in &mut entries {
            entry.owned.retain(|path| !lost.contains(path));
        }
        let mine = |entry: &&mut Entry| {
            (&*entry.manager, &*entry.operation, &*entry.subresource)
                == (manager, "Update", subresource)
        };
        match entries.iter_mut().find(mine) {
            _ if changed.is_empty() => {}
            Some(entry) => {
                entry.owned.extend(changed);
                entry.time = meta::now();
            }
            None => entries.push(Entry {
                manager: manager.to_owned(),
                operation: "Update".to_owned(),
                subresource: subresource.to_owned(),
                time: meta::now(),
                owned: changed,
            }),
        }
    }
    write(resource, entries, new);
}

/// What an applied configuration makes of an object. Where others own what it would change, and
/// `force` is not given, who and which fields.
pub(crate) fn apply(
    resource: &'static Resource,
    live: &Value,
    config: Value,
    manager: &str,
    force: bool,
) -> Result<Value, Vec<(String, String)>> {
    let wanted = leaves(resource, &config, "");
    let present = leaves(resource, live, "");
    let (mut mine, mut others): (Vec<Entry>, Vec<Entry>) =
        read(live).into_iter().partition(|entry| {
            (&*entry.manager, &*entry.operation, &*entry.subresource) == (manager, "Apply", "")
        });
    let mut conflicts = Vec::new();
    for entry in &mut others {
        let who = entry.display(resource);
        entry.owned.retain(|path| {
            let contested = wanted
                .get(path)
                .is_some_and(|value| present.get(path).is_some_and(|present| present != value));
            if contested {
                conflicts.push((who.clone(), display(path)));
            }
            !contested
        });
    }
    if !conflicts.is_empty() && !force {
        return Err(conflicts);
    }
    let kind = Type::Struct(resource.kind);
    let mut object = if live.is_null() { json!({}) } else { live.clone() };
    let before = mine.pop();
    for path in before.iter().flat_map(|entry| &entry.owned) {
        let kept = |other: &Path| match path.split_last() {
            // An item stays as long as anybody owns anything of it.
            Some((last, item)) if last == "." => other.starts_with(item),
            _ => other == path,
        };
        if !wanted.keys().any(kept) && !others.iter().any(|entry| entry.owned.iter().any(kept)) {
            remove(&kind, &mut object, path);
        }
    }
    merge(&kind, &mut object, config);
    let owned: Owned = wanted.into_keys().collect();
    let time = match &before {
        Some(before) if before.owned == owned && object == *live => before.time.clone(),
        _ => meta::now(),
    };
    others.push(Entry {
        manager: manager.to_owned(),
        operation: "Apply".to_owned(),
        subresource: String::new(),
        time,
        owned,
    });
    write(resource, others, &mut object);
    if !live.is_null()
        && let Some(metadata) = object["metadata"].as_object_mut()
    {
        metadata.shift_remove("resourceVersion");
    }
    Ok(object)
}

/// The fields of an object that managers own, with their values.
fn leaves(resource: &Resource, object: &Value, subresource: &str) -> BTreeMap<Path, Value> {
    let mut out = BTreeMap::new();
    for field in &schema::fields(resource.kind).fields {
        let Some(value) = object.get(field.name) else { continue };
        let path = vec![format!("f:{}", field.name)];
        match field.name {
            "apiVersion" | "kind" => {}
            "status" if subresource == "status" => walk(&field.kind, false, value, path, &mut out),
            "status" => {}
            _ if subresource == "status" => {}
            "metadata" => {
                let owned = ["labels", "annotations", "finalizers", "ownerReferences"];
                for field in &schema::fields("ObjectMeta").fields {
                    if let Some(value) = value.get(field.name)
                        && owned.contains(&field.name)
                    {
                        let mut path = path.clone();
                        path.push(format!("f:{}", field.name));
                        walk(&field.kind, false, value, path, &mut out);
                    }
                }
            }
            _ => walk(&field.kind, field.atomic, value, path, &mut out),
        }
    }
    out
}

fn walk(kind: &Type, atomic: bool, value: &Value, path: Path, out: &mut BTreeMap<Path, Value>) {
    let below = |step: String| {
        let mut path = path.clone();
        path.push(step);
        path
    };
    match (kind, value) {
        (Type::Struct(name), Value::Object(map)) if !atomic && !map.is_empty() => {
            for (key, value) in map {
                if let Some(field) = schema::fields(name).field(key) {
                    walk(&field.kind, field.atomic, value, below(format!("f:{key}")), out);
                }
            }
        }
        (Type::Map(of), Value::Object(map)) if !atomic && !map.is_empty() => {
            for (key, value) in map {
                walk(of, false, value, below(format!("f:{key}")), out);
            }
        }
        (Type::List(of, Merge::Keys(keys)), Value::Array(items)) => {
            for item in items {
                let path = below(step(keys, item));
                let mut itself = path.clone();
                itself.push(".".to_owned());
                out.insert(itself, Value::Null);
                walk(of, false, item, path, out);
            }
        }
        (Type::List(_, Merge::Set), Value::Array(items)) => {
            for item in items {
                out.insert(below(format!("v:{item}")), item.clone());
            }
        }
        _ => drop(out.insert(path, value.clone())),
    }
}

/// What an item of a list is known by. Ports are TCP where they do not say.
fn step(keys: &[&str], item: &Value) -> String {
    let mut named = Map::new();
    for key in keys {
        match item.get(*key) {
            Some(value) => drop(named.insert((*key).to_owned(), value.clone())),
            None if *key == "protocol" => drop(named.insert("protocol".to_owned(), json!("TCP"))),
            None => {}
        }
    }
    format!("k:{}", Value::Object(named))
}

/// `.spec.template.spec.containers[name="web"].image`.
fn display(path: &Path) -> String {
    let mut text = String::new();
    for step in path {
        match (step.strip_prefix("f:"), step.strip_prefix("k:"), step.strip_prefix("v:")) {
            (Some(field), _, _) => {
                text.push('.');
                text.push_str(field);
            }
            (_, Some(keys), _) => {
                let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
                let keys: Vec<String> = keys.iter().map(|(k, v)| format!("{k}={v}")).collect();
                text.push_str(&format!("[{}]", keys.join(",")));
            }
            (_, _, Some(value)) => text.push_str(&format!("[={value}]")),
            _ => {}
        }
    }
    text
}

/// Lays a configuration over an object.
fn merge(kind: &Type, target: &mut Value, config: Value) {
    merge_field(kind, false, target, config);
}

fn merge_field(kind: &Type, atomic: bool, target: &mut Value, config: Value) {
    match (kind, config) {
        (Type::Struct(_) | Type::Map(_), Value::Object(config)) if !atomic => {
            if !target.is_object() {
                *target = Value::Object(Map::new());
            }
            let Value::Object(map) = target else { return };
            for (key, value) in config {
                let (of, atomic) = match kind {
                    Type::Struct(name) => schema::fields(name)
                        .field(&key)
                        .map_or((&Type::Any, true), |field| (&field.kind, field.atomic)),
                    Type::Map(of) => (&**of, false),
                    _ => (&Type::Any, true),
                };
                merge_field(of, atomic, map.entry(key).or_insert(Value::Null), value);
            }
        }
        (Type::List(of, Merge::Keys(keys)), Value::Array(config)) if target.is_array() => {
            let Value::Array(items) = target else { return };
            for item in config {
                let wanted = step(keys, &item);
                match items.iter_mut().find(|old| step(keys, old) == wanted) {
                    Some(old) => merge_field(of, false, old, item),
                    None => items.push(item),
                }
            }
        }
        (Type::List(_, Merge::Set), Value::Array(config)) if target.is_array() => {
            let Value::Array(items) = target else { return };
            for item in config {
                if !items.contains(&item) {
                    items.push(item);
                }
            }
        }
        (_, config) => *target = config,
    }
}

/// Removes a field, and what it leaves empty.
fn remove(kind: &Type, target: &mut Value, path: &[String]) {
    let Some((first, rest)) = path.split_first() else { return };
    if let (Some(field), Value::Object(map)) = (first.strip_prefix("f:"), &mut *target) {
        if rest.is_empty() {
            map.shift_remove(field);
            return;
        }
        let of = match kind {
            Type::Struct(name) => schema::fields(name).field(field).map(|field| &field.kind),
            Type::Map(of) => Some(&**of),
            _ => None,
        };
        if let (Some(of), Some(value)) = (of, map.get_mut(field)) {
            remove(of, value, rest);
            let empty = value.as_array().is_some_and(Vec::is_empty)
                || value.as_object().is_some_and(Map::is_empty);
            if empty {
                map.shift_remove(field);
            }
        }
        return;
    }
    let (Type::List(of, how), Value::Array(items)) = (kind, target) else { return };
    match how {
        Merge::Keys(keys) if rest.first().is_some_and(|step| step == ".") => {
            items.retain(|item| step(keys, item) != *first);
        }
        Merge::Keys(keys) => {
            if let Some(item) = items.iter_mut().find(|item| step(keys, item) == *first) {
                remove(of, item, rest);
            }
        }
        Merge::Set => items.retain(|item| format!("v:{item}") != *first),
        Merge::Atomic => {}
    }
}

fn read(object: &Value) -> Vec<Entry> {
    let list = meta::list(object, "/metadata/managedFields").iter();
    list.map(|entry| {
        let text = |pointer| meta::text(entry, pointer).to_owned();
        let mut owned = Owned::new();
        paths(&entry["fieldsV1"], &mut Vec::new(), &mut owned);
        Entry {
            manager: text("/manager"),
            operation: text("/operation"),
            subresource: text("/subresource"),
            time: text("/time"),
            owned,
        }
    })
    .collect()
}

fn paths(tree: &Value, at: &mut Path, out: &mut Owned) {
    for (step, below) in tree.as_object().into_iter().flatten() {
        at.push(step.clone());
        match below.as_object().is_none_or(Map::is_empty) {
            true => drop(out.insert(at.clone())),
            false => paths(below, at, out),
        }
        at.pop();
    }
}

fn write(resource: &Resource, entries: Vec<Entry>, object: &mut Value) {
    let entries = entries.into_iter().filter(|entry| !entry.owned.is_empty());
    let list: Vec<Value> = entries
        .map(|entry| {
            let mut tree = json!({});
            for path in &entry.owned {
                let mut at = &mut tree;
                for step in path {
                    if !at[step].is_object() {
                        at[step] = json!({});
                    }
                    at = &mut at[step];
                }
            }
            let mut written = json!({
                "manager": entry.manager,
                "operation": entry.operation,
                "apiVersion": resource.api_version(),
                "time": entry.time,
                "fieldsType": "FieldsV1",
                "fieldsV1": tree,
            });
            if !entry.subresource.is_empty() {
                written["subresource"] = json!(entry.subresource);
            }
            written
        })
        .collect();
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    match list.is_empty() {
        true => drop(object["metadata"].as_object_mut().map(|m| m.shift_remove("managedFields"))),
        false => object["metadata"]["managedFields"] = Value::Array(list),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(replicas: Option<u32>, containers: Value) -> Value {
        let mut object = json!({
            "metadata": {"name": "web"},
            "spec": {"template": {"spec": {"containers": containers}}},
        });
        if let Some(replicas) = replicas {
            object["spec"]["replicas"] = json!(replicas);
        }
        object
    }

    fn applied(live: &Value, config: Value, by: &str) -> Result<Value, Vec<(String, String)>> {
        apply(Resource::of_kind("Deployment").expect("served"), live, config, by, false)
    }

    #[test]
    fn what_one_applies_another_cannot_change_without_force() {
        let containers = json!([{"name": "a", "image": "1"}]);
        let live = applied(&Value::Null, deployment(Some(1), containers), "ann").expect("new");
        let other = json!([{"name": "a", "image": "2"}]);
        let conflicts = applied(&live, deployment(None, other.clone()), "bob").expect_err("owned");
        let field = ".spec.template.spec.containers[name=\"a\"].image".to_owned();
        assert_eq!(conflicts, [("\"ann\"".to_owned(), field)]);
        let kind = Resource::of_kind("Deployment").expect("served");
        let forced = apply(kind, &live, deployment(None, other), "bob", true).expect("forced");
        assert_eq!(forced["spec"]["template"]["spec"]["containers"][0]["image"], "2");
        assert_eq!(forced["spec"]["replicas"], 1);
        let back = deployment(Some(1), json!([{"name": "a", "image": "1"}]));
        assert!(applied(&forced, back, "ann").is_err(), "bob owns the image now");
    }

    #[test]
    fn what_is_applied_no_longer_goes_unless_somebody_else_owns_it() {
        let two = json!([{"name": "a", "image": "1"}, {"name": "b", "image": "1"}]);
        let live = applied(&Value::Null, deployment(Some(2), two), "ann").expect("new");
        let shared = json!({"metadata": {"name": "web"}, "spec": {"replicas": 2}});
        let live = applied(&live, shared, "bob").expect("the same value");
        let one = json!([{"name": "a", "image": "1"}]);
        let live = applied(&live, deployment(None, one), "ann").expect("her own");
        assert_eq!(live["spec"]["replicas"], 2, "bob still wants it");
        let names = &live["spec"]["template"]["spec"]["containers"];
        assert_eq!(*names, json!([{"name": "a", "image": "1"}]));
    }

    #[test]
    fn an_update_takes_ownership_of_what_it_changes() {
        let kind = Resource::of_kind("Deployment").expect("served");
        let containers = json!([{"name": "a", "image": "1"}]);
        let live = applied(&Value::Null, deployment(Some(1), containers.clone()), "ann");
        let live = live.expect("new");
        let mut scaled = live.clone();
        scaled["spec"]["replicas"] = json!(5);
        track(kind, &live, &mut scaled, "kubectl", "");
        let conflicts = applied(&scaled, deployment(Some(1), containers), "ann");
        let expected = ("\"kubectl\" using apps/v1".to_owned(), ".spec.replicas".to_owned());
        assert_eq!(conflicts, Err(vec![expected]));
    }
}
