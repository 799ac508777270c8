//! What controllers tell people: Events.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{all, delete};
use crate::meta;
use crate::objects;
use crate::resource::Resource;
use crate::store::State;

/// An event is kept for so many seconds after it has last happened.
const KEPT: i64 = 60 * 60;
/// The most events that are kept.
const MOST: usize = 5_000;

/// Says that something happened to an object. The same thing again is counted.
pub(crate) fn record(state: &mut State, by: &str, about: &Value, what: Happened<'_>) {
    let Some(resource) = Resource::of_kind("Event") else { return };
    let Happened { normal, reason, message } = what;
    let uid = meta::uid(about);
    let namespace = match meta::namespace(about) {
        "" => "default",
        namespace => namespace,
    };
    // The names are in the order of the first time.
    let prefix = format!("{}.", meta::name(about));
    let now = meta::now();
    let before = state.list(resource, Some(namespace)).find(|(key, event)| {
        key.name.starts_with(&prefix)
            && meta::text(event, "/involvedObject/uid") == uid
            && event["reason"] == *reason
            && event["message"] == *message
    });
    if let Some(key) = before.map(|(key, _)| key.clone()) {
        return objects::amend(state, &key, |event| {
            event["count"] = json!(meta::integer(event, "/count") + 1);
            event["lastTimestamp"] = json!(now);
        });
    }
    let mut source = json!({"component": by});
    if by == "kubelet" {
        source["host"] = about["spec"]["nodeName"].clone();
    }
    let event = json!({
        "metadata": {"name": format!("{prefix}{:016x}", Timestamp::now().as_nanosecond())},
        "involvedObject": {
            "kind": about["kind"],
            "namespace": namespace,
            "name": meta::name(about),
            "uid": uid,
            "apiVersion": about["apiVersion"],
            "resourceVersion": about["metadata"]["resourceVersion"],
        },
        "reason": reason,
        "message": message,
        "source": source,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
        "type": if normal { "Normal" } else { "Warning" },
        "reportingComponent": by,
    });
    // A namespace that is going takes none.
    let _ = objects::create(state, resource, namespace, event, false);
}

/// Something that happened.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Happened<'a> {
    normal: bool,
    /// `Scheduled`.
    reason: &'a str,
    message: &'a str,
}

/// As it should.
pub(crate) fn normal<'a>(reason: &'a str, message: &'a str) -> Happened<'a> {
    Happened { normal: true, reason, message }
}

/// Not as it should.
pub(crate) fn warning<'a>(reason: &'a str, message: &'a str) -> Happened<'a> {
    Happened { normal: false, reason, message }
}

/// Forgets what is long past, and the oldest of too many.
pub(super) fn forget(state: &mut State) {
    let mut events = all(state, "Event");
    events.sort_by_key(|(_, event)| meta::revision(event));
    let surplus = events.len().saturating_sub(MOST);
    for (i, (key, event)) in events.iter().enumerate() {
        let last = ["/lastTimestamp", "/eventTime", "/metadata/creationTimestamp"];
        let age = last.iter().find_map(|at| meta::seconds_since(meta::text(event, at)));
        if i < surplus || age.is_some_and(|age| age > KEPT) {
            delete(state, "Event", key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Key, Store};

    fn events(store: &Store) -> Vec<(String, i64)> {
        let one = |(_, event): (Key, std::sync::Arc<Value>)| {
            (meta::text(&event, "/reason").to_owned(), meta::integer(&event, "/count"))
        };
        store.read(|state| all(state, "Event").into_iter().map(one).collect())
    }

    #[test]
    fn the_same_again_is_counted_and_what_is_long_past_is_forgotten() {
        let store = Store::new(1000);
        crate::control::found(&store, ([127, 0, 0, 1], 1).into());
        let pod =
            json!({"kind": "Pod", "metadata": {"name": "a", "namespace": "default", "uid": "u"}});
        for (reason, message) in [("Started", "it runs"), ("Started", "it runs"), ("Other", "x")] {
            store.write(|state| record(state, "kubelet", &pod, normal(reason, message)));
        }
        let mut found = events(&store);
        found.sort();
        assert_eq!(found, [("Other".to_owned(), 1), ("Started".to_owned(), 2)]);
        store.write(|state| {
            for (key, event) in all(state, "Event") {
                if event["reason"] == "Other" {
                    let long_ago = json!(meta::after(-KEPT - 5));
                    objects::amend(state, &key, |event| event["lastTimestamp"] = long_ago);
                }
            }
            forget(state);
        });
        assert_eq!(events(&store), [("Started".to_owned(), 2)]);
    }
}
