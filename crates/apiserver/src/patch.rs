//! Patches: JSON patch (RFC 6902), merge patch (RFC 7386) and strategic merge patch.

use serde_json::{Map, Value};

use crate::schema::{self, Merge, Type};

/// Applies a merge patch.
pub(crate) fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(map) = target else { return };
    for (key, value) in patch {
        match value {
            Value::Null => drop(map.shift_remove(&key)),
            value => merge(map.entry(key).or_insert(Value::Null), value),
        }
    }
}

/// Applies a JSON patch. On error, in the words that the API server sends.
pub(crate) fn json(target: &mut Value, patch: &Value) -> Result<(), String> {
    let Some(operations) = patch.as_array() else {
        return Err("json patch is not a list of operations".to_owned());
    };
    for operation in operations {
        let text = |key: &str| operation.get(key).and_then(Value::as_str);
        let value = || operation.get("value").cloned().ok_or("the operation has no value");
        let path = text("path").ok_or("the operation has no path")?;
        let from = || text("from").ok_or("the operation has no from");
        match text("op") {
            Some("add") => add(target, path, value()?)?,
            Some("remove") => drop(remove(target, path)?),
            Some("replace") => {
                *find(target, path)? = value()?;
            }
            Some("move") => {
                let from = from()?;
                if path.strip_prefix(from).is_some_and(|rest| rest.starts_with('/')) {
                    return Err(format!("cannot move {from:?} into itself"));
                }
                let value = remove(target, from)?;
                add(target, path, value)?;
            }
            Some("copy") => {
                let value = find(target, from()?)?.clone();
                add(target, path, value)?;
            }
            Some("test") => {
                if *find(target, path)? != value()? {
                    return Err(format!("testing value {path} failed: test failed"));
                }
            }
            other => return Err(format!("unexpected kind: {}", other.unwrap_or("unknown"))),
        }
    }
    Ok(())
}

fn find<'a>(target: &'a mut Value, path: &str) -> Result<&'a mut Value, String> {
    target
        .pointer_mut(path)
        .ok_or_else(|| format!("the path {path:?} does not exist: missing value"))
}

/// The container of the last step of a path, and that step.
fn parent<'a>(target: &'a mut Value, path: &str) -> Result<(&'a mut Value, String), String> {
    let (outer, last) =
        path.rsplit_once('/').ok_or_else(|| format!("the path {path:?} begins without '/'"))?;
    Ok((find(target, outer)?, last.replace("~1", "/").replace("~0", "~")))
}

fn add(target: &mut Value, path: &str, value: Value) -> Result<(), String> {
    if path.is_empty() {
        *target = value;
        return Ok(());
    }
    let (container, last) = parent(target, path)?;
    match container {
        Value::Object(map) => drop(map.insert(last, value)),
        Value::Array(items) => {
            let index = if last == "-" { Some(items.len()) } else { last.parse().ok() };
            match index.filter(|index| *index <= items.len()) {
                Some(index) => items.insert(index, value),
                None => return Err(format!("invalid index {last:?} in {path:?}")),
            }
        }
        _ => return Err(format!("{path:?} is neither in an object nor in a list")),
    }
    Ok(())
}

fn remove(target: &mut Value, path: &str) -> Result<Value, String> {
    let missing = || format!("remove operation does not apply: unable to remove {path:?}");
    let (container, last) = parent(target, path)?;
    match container {
        Value::Object(map) => map.shift_remove(&last).ok_or_else(missing),
        Value::Array(items) => {
            let index: Option<usize> = last.parse().ok();
            let index = index.filter(|index| *index < items.len()).ok_or_else(missing)?;
            Ok(items.remove(index))
        }
        _ => Err(missing()),
    }
}

/// Applies a strategic merge patch to an object of a type of the schema.
pub(crate) fn strategic(
    kind: &'static str,
    target: &mut Value,
    patch: Value,
) -> Result<(), String> {
    merge_typed(&Type::Struct(kind), target, patch)
}

fn merge_typed(kind: &Type, target: &mut Value, patch: Value) -> Result<(), String> {
    match (kind, patch) {
        (Type::List(of, how), Value::Array(patch)) => merge_list(of, how, target, patch),
        (_, Value::Object(patch)) => merge_map(kind, target, patch),
        (_, patch) => {
            *target = patch;
            Ok(())
        }
    }
}

fn merge_map(kind: &Type, target: &mut Value, mut patch: Map<String, Value>) -> Result<(), String> {
    match patch.shift_remove("$patch").as_ref().map(Value::as_str) {
        None | Some(Some("merge")) => {}
        Some(Some("replace")) => {
            *target = Value::Object(patch);
            return Ok(());
        }
        Some(Some("delete")) => {
            *target = Value::Object(Map::new());
            return Ok(());
        }
        Some(other) => return Err(format!("unknown patch type found: {other:?}")),
    }
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(map) = target else { return Ok(()) };
    if let Some(retain) = patch.shift_remove("$retainKeys") {
        let retain = retain.as_array().cloned().ok_or("invalid patch format of retainKeys")?;
        map.retain(|key, _| retain.iter().any(|r| r == key));
    }
    let type_of = |name: &str| match kind {
        Type::Struct(of) => schema::fields(of).field(name).map_or(&Type::Any, |field| &field.kind),
        Type::Map(of) => of,
        _ => &Type::Any,
    };
    let mut orders = Vec::new();
    for (key, value) in patch {
        if let Some(field) = key.strip_prefix("$setElementOrder/") {
            orders.push((field.to_owned(), value));
        } else if let Some(field) = key.strip_prefix("$deleteFromPrimitiveList/") {
            let gone = value.as_array().cloned().unwrap_or_default();
            if let Some(Value::Array(items)) = map.get_mut(field) {
                items.retain(|item| !gone.contains(item));
            }
        } else if value.is_null() {
            map.shift_remove(&key);
        } else {
            let kind = type_of(&key);
            merge_typed(kind, map.entry(key).or_insert(Value::Null), value)?;
        }
    }
    for (field, order) in orders {
        if let (Some(Value::Array(items)), Some(order)) = (map.get_mut(&field), order.as_array()) {
            set_order(type_of(&field), items, order);
        }
    }
    Ok(())
}

fn merge_list(of: &Type, how: &Merge, target: &mut Value, patch: Vec<Value>) -> Result<(), String> {
    let directive = |item: &Value, word: &str| item.get("$patch").is_some_and(|p| p == word);
    let replace = patch.iter().any(|item| directive(item, "replace"));
    if replace || *how == Merge::Atomic || !target.is_array() {
        *target = Value::Array(Vec::new());
    }
    let Value::Array(items) = target else { return Ok(()) };
    for item in patch {
        match how {
            _ if directive(&item, "replace") => {}
            Merge::Atomic => items.push(plain(of, item)?),
            Merge::Set if items.contains(&item) => {}
            Merge::Set => items.push(item),
            Merge::Keys(keys) => {
                let key = keys.first().copied().unwrap_or_default();
                let Some(wanted) = item.get(key).cloned() else {
                    return Err(format!("map: {item} does not contain declared merge key: {key}"));
                };
                if directive(&item, "delete") {
                    items.retain(|old| old.get(key) != Some(&wanted));
                } else if let Some(old) = items.iter_mut().find(|old| old.get(key) == Some(&wanted))
                {
                    merge_typed(of, old, item)?;
                } else {
                    items.push(plain(of, item)?);
                }
            }
        }
    }
    Ok(())
}

/// What a patch makes of nothing: itself, without directives.
fn plain(of: &Type, patch: Value) -> Result<Value, String> {
    let mut value = Value::Null;
    merge_typed(of, &mut value, patch)?;
    Ok(value)
}

/// Items that are in the order come in that order; the others keep their place among each other,
/// after the item that they followed.
fn set_order(kind: &Type, items: &mut Vec<Value>, order: &[Value]) {
    let key = match kind {
        Type::List(_, Merge::Keys(keys)) => keys.first().copied(),
        _ => None,
    };
    let place = |item: &Value| {
        order.iter().position(|wanted| match key {
            Some(key) => wanted.get(key) == item.get(key),
            None => wanted == item,
        })
    };
    let mut last = 0;
    let mut placed: Vec<(usize, bool, Value)> = Vec::new();
    for item in items.drain(..) {
        let (at, ordered) = match place(&item) {
            Some(at) => (at, true),
            None => (last, false),
        };
        last = at;
        placed.push((at, !ordered, item));
    }
    placed.sort_by_key(|(at, after, _)| (*at, *after));
    items.extend(placed.into_iter().map(|(_, _, item)| item));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_merge_patch_removes_by_null_and_replaces_lists() {
        let mut object = json!({"a": {"b": 1, "c": 2}, "l": [1, 2]});
        merge(&mut object, json!({"a": {"b": null, "d": {"e": null, "f": 1}}, "l": [3]}));
        assert_eq!(object, json!({"a": {"c": 2, "d": {"f": 1}}, "l": [3]}));
    }

    #[test]
    fn a_json_patch_does_its_operations_in_order() {
        let mut object = json!({"labels": {"a/b": "1"}, "l": [1, 3]});
        let patch = json!([
            {"op": "test", "path": "/labels/a~1b", "value": "1"},
            {"op": "add", "path": "/l/1", "value": 2},
            {"op": "add", "path": "/l/-", "value": 4},
            {"op": "copy", "from": "/l/0", "path": "/first"},
            {"op": "move", "from": "/labels/a~1b", "path": "/labels/c"},
            {"op": "remove", "path": "/l/0"},
            {"op": "replace", "path": "/l/0", "value": 9},
        ]);
        json(&mut object, &patch).expect("applies");
        assert_eq!(object, json!({"labels": {"c": "1"}, "l": [9, 3, 4], "first": 1}));
    }

    #[test]
    fn a_json_patch_that_does_not_apply_says_why() {
        let refused = |patch| json(&mut json!({"a": [1]}), &patch).expect_err("does not apply");
        for patch in [
            json!([{"op": "remove", "path": "/b"}]),
            json!([{"op": "replace", "path": "/b/c", "value": 1}]),
            json!([{"op": "add", "path": "/a/3", "value": 1}]),
            json!([{"op": "test", "path": "/a/0", "value": 2}]),
            json!([{"op": "add", "path": "/c"}]),
            json!([{"op": "move", "from": "/a", "path": "/a/0"}]),
            json!({"op": "remove"}),
        ] {
            assert!(!refused(patch).is_empty());
        }
    }

    fn pod(containers: Value) -> Value {
        json!({"spec": {"containers": containers}})
    }

    #[test]
    fn containers_merge_by_name_and_their_commands_are_replaced() {
        let mut object = pod(json!([
            {"name": "a", "image": "1", "command": ["x", "y"], "env": [{"name": "E", "value": "1"}]},
            {"name": "b", "image": "1"},
        ]));
        let patch = pod(json!([
            {"name": "b", "$patch": "delete"},
            {"name": "a", "image": "2", "command": ["z"], "env": [{"name": "F", "value": "2"}]},
            {"name": "c", "image": "3"},
        ]));
        strategic("Pod", &mut object, patch).expect("applies");
        let expected = pod(json!([
            {"name": "a", "image": "2", "command": ["z"],
             "env": [{"name": "E", "value": "1"}, {"name": "F", "value": "2"}]},
            {"name": "c", "image": "3"},
        ]));
        assert_eq!(object, expected);
    }

    #[test]
    fn rules_of_policies_are_replaced_as_a_whole() {
        let mut object = json!({"spec": {"ingress": [{"ports": [{"port": 1}]}, {}]}});
        let patch = json!({"spec": {"ingress": [{"from": [{"podSelector": {}}]}]}});
        strategic("NetworkPolicy", &mut object, patch.clone()).expect("applies");
        assert_eq!(object, patch);
    }

    #[test]
    fn directives_order_retain_replace_and_remove() {
        let mut object = json!({
            "metadata": {"finalizers": ["a", "b"], "labels": {"x": "1"}},
            "spec": {
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}},
                "template": {"spec": {
                    "containers": [{"name": "b"}, {"name": "a"}],
                    "volumes": [{"name": "v", "emptyDir": {}}],
                }},
            },
        });
        let patch = json!({
            "metadata": {
                "$deleteFromPrimitiveList/finalizers": ["a"],
                "labels": {"$patch": "replace", "y": "2"},
            },
            "spec": {
                "strategy": {"$retainKeys": ["type"], "type": "Recreate"},
                "template": {"spec": {
                    "$setElementOrder/containers": [{"name": "a"}, {"name": "b"}],
                    "containers": [{"name": "a", "image": "1"}],
                    "volumes": [
                        {"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/"}},
                    ],
                }},
            },
        });
        strategic("Deployment", &mut object, patch).expect("applies");
        let expected = json!({
            "metadata": {"finalizers": ["b"], "labels": {"y": "2"}},
            "spec": {
                "strategy": {"type": "Recreate"},
                "template": {"spec": {
                    "containers": [{"name": "a", "image": "1"}, {"name": "b"}],
                    "volumes": [{"name": "v", "hostPath": {"path": "/"}}],
                }},
            },
        });
        assert_eq!(object, expected);
    }

    #[test]
    fn an_item_without_its_merge_key_is_refused() {
        let refused = strategic("Pod", &mut pod(json!([])), pod(json!([{"image": "1"}])));
        assert!(refused.expect_err("no name").contains("merge key: name"));
    }
}
