//! A watch: what is there, what changes, and now and then where it has got to.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, interval_at, sleep_until};

use crate::api::View;
use crate::refusal::Refusal;
use crate::resource::Resource;
use crate::select::Select;
use crate::store::{Change, Compacted, State, Store, with_revision};

/// A client that watches gets a bookmark this often, so that it can go on from there.
const BOOKMARK: Duration = Duration::from_secs(30);
/// A watch ends after so long, in seconds, if its client does not say when.
const USUAL: u64 = 45 * 60;
/// No watch is longer.
const LONGEST: u64 = 24 * 60 * 60;
/// The most changes that are turned into events at once.
const BATCH: usize = 500;

/// A watch that was asked for.
#[derive(Debug)]
pub(crate) struct Watching {
    pub(crate) resource: &'static Resource,
    pub(crate) namespace: Option<String>,
    pub(crate) select: Select,
    pub(crate) view: View,
    /// Changes after this revision; `None` for everything that is there, then what changes.
    pub(crate) from: Option<u64>,
    /// Whether a bookmark says where that which was there ends.
    pub(crate) initial_end: bool,
    pub(crate) bookmarks: bool,
    /// Seconds.
    pub(crate) timeout: Option<u64>,
    pub(crate) changes: watch::Receiver<u64>,
}

impl Watching {
    /// Sends events until the client goes away, time is up, or history is lost.
    pub(crate) async fn run(mut self, store: Arc<Store>, to: mpsc::Sender<Bytes>) {
        let end = Instant::now() + Duration::from_secs(self.timeout.unwrap_or(USUAL).min(LONGEST));
        let mut ticks = interval_at(Instant::now() + BOOKMARK, BOOKMARK);
        let mut headers = true;
        let mut at = match self.from {
            Some(revision) => revision,
            None => {
                let (revision, events) = store.read(|state| self.initial(state, &mut headers));
                if to.send(events).await.is_err() {
                    return;
                }
                revision
            }
        };
        loop {
            self.changes.borrow_and_update();
            let batch = store.read(|state| {
                let changes = state.changes_after(at)?.take(BATCH).cloned();
                let future = at > state.revision();
                if future { Err(Compacted) } else { Ok(changes.collect::<Vec<_>>()) }
            });
            let Ok(batch) = batch else {
                let message = format!("too old resource version: {at}");
                let status = Refusal::gone(message).status();
                let _ = to.send(line("ERROR", status)).await;
                return;
            };
            let mut events = Vec::new();
            for change in &batch {
                at = change.revision;
                if let Some(event) = self.event(change, &mut headers) {
                    events.extend_from_slice(&event);
                }
            }
            if !events.is_empty() && to.send(events.into()).await.is_err() {
                return;
            }
            if batch.len() == BATCH {
                continue;
            }
            tokio::select! {
                changed = self.changes.changed() => if changed.is_err() { return },
                _ = ticks.tick() => {
                    if self.bookmarks && to.send(self.bookmark(at, false)).await.is_err() {
                        return;
                    }
                }
                () = sleep_until(end) => return,
                () = to.closed() => return,
            }
        }
    }

    fn initial(&self, state: &State, headers: &mut bool) -> (u64, Bytes) {
        let mut events = Vec::new();
        for (_, object) in state.list(self.resource, self.namespace.as_deref()) {
            if self.select.matches(object) {
                events.extend_from_slice(&self.line("ADDED", object, headers));
            }
        }
        if self.initial_end {
            events.extend_from_slice(&self.bookmark(state.revision(), true));
        }
        (state.revision(), events.into())
    }

    /// What a change is to this watch: an object may come into its sight, or leave it.
    fn event(&self, change: &Change, headers: &mut bool) -> Option<Bytes> {
        if !change.key.is_of(self.resource)
            || self.namespace.as_ref().is_some_and(|n| *n != change.key.namespace)
        {
            return None;
        }
        let seen = |object: &Option<Arc<Value>>| {
            object.clone().filter(|object| self.select.matches(object))
        };
        match (seen(&change.before), seen(&change.after)) {
            (None, None) => None,
            (None, Some(object)) => Some(self.line("ADDED", &object, headers)),
            (Some(_), Some(object)) => Some(self.line("MODIFIED", &object, headers)),
            (Some(object), None) => {
                let last = with_revision(&object, change.revision);
                Some(self.line("DELETED", &last, headers))
            }
        }
    }

    fn line(&self, kind: &str, object: &Value, headers: &mut bool) -> Bytes {
        line(kind, self.view.of(self.resource, object, std::mem::take(headers)))
    }

    fn bookmark(&self, revision: u64, initial_end: bool) -> Bytes {
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        if initial_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = match self.view {
            View::Table(_) => json!({
                "kind": "Table",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": metadata,
                "columnDefinitions": [],
                "rows": [],
            }),
            View::Metadata => json!({
                "kind": "PartialObjectMetadata",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": metadata,
            }),
            View::Whole => json!({
                "kind": self.resource.kind,
                "apiVersion": self.resource.api_version(),
                "metadata": metadata,
            }),
        };
        line("BOOKMARK", object)
    }
}

fn line(kind: &str, object: Value) -> Bytes {
    let mut text = json!({"type": kind, "object": object}).to_string();
    text.push('\n');
    text.into()
}
