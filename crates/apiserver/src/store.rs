//! The objects, one counter of changes, and the changes of late.
//!
//! Everything that changes goes through [`State::put`] and [`State::remove`], which both end in
//! [`State::commit`]. A store that is kept on disk writes what was committed there before it answers.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde_json::{Value, json};
use tokio::sync::watch;

use crate::Error;
use crate::disk::Disk;
use crate::resource::Resource;

/// Where an object is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    plural: &'static str,
    group: &'static str,
    /// Its namespace; empty for what has none.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Key {
    /// The place of the object of this name.
    pub fn new(resource: &'static Resource, namespace: &str, name: &str) -> Key {
        let namespace = if resource.namespaced { namespace } else { "" };
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        Key { plural: resource.plural, group: resource.group, namespace, name }
    }

    /// The group and the plural of its resource.
    pub(crate) fn resource(&self) -> (&'static str, &'static str) {
        (self.group, self.plural)
    }

    /// Whether it is an object of this resource.
    pub fn is_of(&self, resource: &Resource) -> bool {
        self.plural == resource.plural && self.group == resource.group
    }
}

/// One change: what was there before, and what is there now.
#[derive(Debug, Clone)]
pub struct Change {
    /// The `resourceVersion` that it made.
    pub revision: u64,
    /// Which object.
    pub key: Key,
    /// The object before; `None` if it was made by this change.
    pub before: Option<Arc<Value>>,
    /// The object after; `None` if it was removed by this change.
    pub after: Option<Arc<Value>>,
}

/// The changes after a revision are not known any more: 410 Gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compacted;

/// The state of a cluster.
#[derive(Debug)]
pub struct State {
    objects: BTreeMap<Key, Arc<Value>>,
    revision: u64,
    /// The latest changes, oldest first. Their revisions are consecutive.
    history: VecDeque<Change>,
    capacity: usize,
    /// What is not on disk yet; `None` for a state that is kept in memory only.
    unsaved: Option<Vec<Change>>,
}

/// The state, shared: any number of readers and writers, each of which sees it whole.
#[derive(Debug)]
pub struct Store {
    state: Mutex<State>,
    revision: watch::Sender<u64>,
    disk: Option<Disk>,
    /// Why it cannot be written any more. Memory may be ahead of the disk then.
    broken: OnceLock<String>,
}

impl Store {
    /// An empty one that remembers this many changes.
    ///
    /// Its revisions begin at the time, in microseconds: no store makes more changes than that, so a
    /// revision from before a restart is too old here, and its owner starts anew instead of waiting
    /// for changes that it believes to have seen.
    pub fn new(capacity: usize) -> Store {
        Store::of(BTreeMap::new(), beginning(), capacity, None)
    }

    /// One that is kept in a directory, with what is there from before. Its revisions go on.
    pub fn open(directory: &Path, capacity: usize) -> Result<Store, Error> {
        let (disk, (objects, revision)) = Disk::open(directory)?;
        let objects = objects.into_iter().collect();
        Ok(Store::of(objects, revision.unwrap_or_else(beginning), capacity, Some(disk)))
    }

    fn of(
        objects: BTreeMap<Key, Arc<Value>>,
        revision: u64,
        capacity: usize,
        disk: Option<Disk>,
    ) -> Store {
        let unsaved = disk.as_ref().map(|_| Vec::new());
        let state = State { objects, revision, history: VecDeque::new(), capacity, unsaved };
        let (state, revision) = (Mutex::new(state), watch::Sender::new(revision));
        Store { state, revision, disk, broken: OnceLock::new() }
    }

    /// Why nothing can be written any more, if that is so. What was answered since is not kept.
    pub fn broken(&self) -> Option<&str> {
        self.broken.get().map(String::as_str)
    }

    /// Looks at the state.
    pub fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes the state, with nobody between its reads and its writes. Where it is kept on disk it is
    /// there when this returns, unless the store is [`broken`](Store::broken).
    pub fn write<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = change(&mut state);
        let now = state.revision;
        if let (Some(disk), Some(unsaved)) = (&self.disk, &mut state.unsaved)
            && self.broken.get().is_none()
            && let Err(error) = disk.save(&std::mem::take(unsaved))
        {
            let _ = self.broken.set(error.to_string());
        }
        drop(state);
        self.revision.send_if_modified(|revision| {
            let later = now > *revision;
            *revision = now.max(*revision);
            later
        });
        answer
    }

    /// Tells of each new revision; several may come as one.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }
}

impl State {
    /// The `resourceVersion` of the latest change.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// One object.
    pub fn get(&self, key: &Key) -> Option<&Arc<Value>> {
        self.objects.get(key)
    }

    /// The object of this name.
    pub fn find(
        &self,
        kind: &'static Resource,
        namespace: &str,
        name: &str,
    ) -> Option<&Arc<Value>> {
        self.objects.get(&Key::new(kind, namespace, name))
    }

    /// The objects of a resource, in the order of namespace and name.
    pub fn list<'a>(
        &'a self,
        resource: &'static Resource,
        namespace: Option<&'a str>,
    ) -> impl Iterator<Item = (&'a Key, &'a Arc<Value>)> {
        let first = Key::new(resource, namespace.unwrap_or_default(), "");
        self.objects
            .range((Bound::Included(first), Bound::Unbounded))
            .take_while(move |(key, _)| key.is_of(resource))
            .take_while(move |(key, _)| namespace.is_none_or(|n| n == key.namespace))
    }

    /// The same as they were at a revision.
    pub fn list_at(
        &self,
        revision: u64,
        resource: &'static Resource,
        namespace: Option<&str>,
    ) -> Result<Vec<(Key, Arc<Value>)>, Compacted> {
        let later = self.changes_after(revision)?;
        let now = self.list(resource, namespace);
        let mut then: BTreeMap<Key, Arc<Value>> =
            now.map(|(key, object)| (key.clone(), object.clone())).collect();
        for change in later.rev() {
            let inside = change.key.is_of(resource)
                && namespace.is_none_or(|namespace| namespace == change.key.namespace);
            match &change.before {
                _ if !inside => {}
                Some(before) => drop(then.insert(change.key.clone(), before.clone())),
                None => drop(then.remove(&change.key)),
            }
        }
        Ok(then.into_iter().collect())
    }

    /// What changed after a revision, oldest first.
    pub fn changes_after(
        &self,
        revision: u64,
    ) -> Result<impl DoubleEndedIterator<Item = &Change>, Compacted> {
        let missing = self.revision.saturating_sub(revision) as usize;
        let known = self.history.len();
        if missing > known {
            return Err(Compacted);
        }
        Ok(self.history.range(known - missing..))
    }

    /// Puts an object in its place and gives it its `resourceVersion`.
    pub fn put(&mut self, key: Key, mut object: Value) -> Arc<Value> {
        let revision = self.revision + 1;
        object["metadata"]["resourceVersion"] = json!(revision.to_string());
        let object = Arc::new(object);
        let before = self.objects.insert(key.clone(), object.clone());
        self.commit(Change { revision, key, before, after: Some(object.clone()) });
        object
    }

    /// Removes an object. Its last `resourceVersion` is that of the removal.
    pub fn remove(&mut self, key: &Key) -> Option<Arc<Value>> {
        let before = self.objects.remove(key)?;
        let revision = self.revision + 1;
        self.commit(Change {
            revision,
            key: key.clone(),
            before: Some(before.clone()),
            after: None,
        });
        Some(Arc::new(with_revision(&before, revision)))
    }

    /// Forgets all but this many of the latest changes.
    pub fn compact(&mut self, keep: usize) {
        let forgotten = self.history.len().saturating_sub(keep);
        self.history.drain(..forgotten);
    }

    fn commit(&mut self, change: Change) {
        self.revision = change.revision;
        if let Some(unsaved) = &mut self.unsaved {
            unsaved.push(change.clone());
        }
        self.history.push_back(change);
        self.compact(self.capacity);
    }
}

/// The first revision of a new store: the time, in microseconds.
fn beginning() -> u64 {
    jiff::Timestamp::now().as_microsecond().unsigned_abs()
}

/// The same object at another `resourceVersion`.
pub(crate) fn with_revision(object: &Value, revision: u64) -> Value {
    let mut object = object.clone();
    object["metadata"]["resourceVersion"] = json!(revision.to_string());
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods() -> &'static Resource {
        Resource::of_kind("Pod").expect("served")
    }

    fn put(store: &Store, namespace: &str, name: &str, version: u32) {
        let object = json!({"metadata": {"name": name}, "version": version});
        store.write(|s| drop(s.put(Key::new(pods(), namespace, name), object)));
    }

    fn names(of: Vec<(Key, Arc<Value>)>) -> Vec<String> {
        of.iter().map(|(k, o)| format!("{}/{} {}", k.namespace, k.name, o["version"])).collect()
    }

    #[test]
    fn a_list_of_the_past_is_the_present_with_the_changes_undone() {
        let store = Store::new(10);
        put(&store, "a", "x", 1);
        put(&store, "b", "y", 1);
        let then = store.read(State::revision);
        put(&store, "a", "x", 2);
        put(&store, "a", "z", 1);
        store.write(|s| s.remove(&Key::new(pods(), "b", "y")));
        let at =
            |revision, namespace| store.read(|s| s.list_at(revision, pods(), namespace)).map(names);
        assert_eq!(at(then, None).expect("known"), ["a/x 1", "b/y 1"]);
        assert_eq!(at(then, Some("a")).expect("known"), ["a/x 1"]);
        assert_eq!(at(then + 3, None).expect("known"), ["a/x 2", "a/z 1"]);
        store.write(|s| s.compact(2));
        assert_eq!(at(then, None), Err(Compacted));
        assert_eq!(at(then + 1, None).expect("known"), ["a/x 2", "b/y 1"]);
    }

    #[test]
    fn what_was_written_is_there_when_it_is_opened_again() {
        let directory =
            std::env::temp_dir().join(format!("portcullis-store-{}", std::process::id()));
        let store = Store::open(&directory, 10).expect("opens");
        put(&store, "a", "x", 1);
        put(&store, "a", "y", 1);
        put(&store, "a", "x", 2);
        store.write(|s| s.remove(&Key::new(pods(), "a", "y")));
        let then = store.read(State::revision);
        let second = Store::open(&directory, 10).expect_err("it is in use");
        assert!(second.to_string().contains("already open"), "{second}");
        drop(store);
        let store = Store::open(&directory, 10).expect("opens again");
        assert_eq!(store.read(State::revision), then);
        let all =
            |s: &State| names(s.list(pods(), None).map(|(k, o)| (k.clone(), o.clone())).collect());
        assert_eq!(store.read(all), ["a/x 2"]);
        assert!(store.read(|s| s.changes_after(then).is_ok()), "a watch goes on from there");
        assert!(store.read(|s| s.changes_after(then - 1).is_err()), "and from nowhere before");
        drop(store);
        std::fs::remove_dir_all(directory).expect("removed");
    }

    #[test]
    fn namespaces_with_a_common_beginning_are_not_mixed_up() {
        let store = Store::new(10);
        for namespace in ["shop", "shop-a", "sho"] {
            put(&store, namespace, "x", 1);
        }
        let listed = store.read(|s| s.list(pods(), Some("shop")).count());
        assert_eq!(listed, 1);
    }
}
