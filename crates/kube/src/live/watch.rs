//! A cluster as it changes: what a watch tells, as objects of the model.
//!
//! Of every object only what the model has is kept, from the moment that it is read. Everything
//! else about a watch (pages, bookmarks, versions that have expired, connections that break) ends
//! here.

use std::collections::hash_map::RandomState;
use std::convert::Infallible;
use std::fmt;
use std::hash::BuildHasher;
use std::pin::pin;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::{ApiResource, DynamicResourceScope};
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client};
use portcullis_core::labels::Labels;
use portcullis_core::model::{LOG_ANNOTATION, LogLevel, MODE_ANNOTATION, Mode, Node, Pod, Policy};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use tokio::task::JoinSet;

use super::access::{Access, CONNECT};
use super::error::Error;
use super::list::{RESOURCES, Resource};
use crate::diagnostic::{Reason, Severity};
use crate::document;
use crate::object::{self, Body, Written};
use crate::objects;

/// A kind that is watched: what decides about connections of pods on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `networkpolicies.networking.k8s.io`
    Policy,
    /// `namespaces`
    Namespace,
    /// `pods`
    Pod,
    /// `nodes`
    Node,
}

/// What is new.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// All objects of the kind are told from the beginning, one by one as [`Event::Applied`]. What
    /// is known stands until they have come.
    Listing(Kind),
    /// They have come: whatever else was known of the kind is no longer there.
    Listed(Kind),
    /// An object is there, or is another than before.
    Applied(Object),
    /// An object is no longer there. The namespace is empty where the kind has none.
    Deleted(Kind, String, String),
    /// The API server could not be heard; it is asked again. Whatever was known stands.
    Failed(Kind, String),
}

/// An object, and what is wrong with it: errors, each in a line. That is never left unsaid, because
/// what cannot be read is not taken into account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// What it is.
    pub body: Known,
    /// What is wrong with it.
    pub problems: Vec<String>,
    /// Which of the objects of this name it is, and which state of it.
    pub version: Box<Version>,
    /// Of a namespace: which connections of its pods are to be reported, if it says that.
    pub log: Option<LogLevel>,
}

/// Which object of a name, and which state of it. What the server does not say is empty, or 0.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Version {
    /// `metadata.uid`: what tells it from an earlier one of the same name.
    pub uid: String,
    /// `metadata.generation`: changes with the spec, and only with that.
    pub generation: i64,
    /// `metadata.resourceVersion`: changes with anything.
    pub resource_version: String,
}

/// What is known of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    /// What a NetworkPolicy means. Where something is wrong this is the closed reading: it isolates
    /// at least what its author can have meant, and what cannot be read allows nothing
    /// (SEMANTICS 22).
    Policy(Policy),
    /// The name and the labels of a namespace, and the mode that it says.
    Namespace(String, Labels, Option<Mode>),
    /// A pod. Its owner is not among what is known.
    Pod(Pod),
    /// A node.
    Node(Node),
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 4] = [Kind::Policy, Kind::Namespace, Kind::Pod, Kind::Node];

    pub(super) fn resource(self) -> Resource {
        match self {
            Kind::Policy => RESOURCES[0],
            Kind::Namespace => RESOURCES[1],
            Kind::Pod => RESOURCES[2],
            Kind::Node => RESOURCES[3],
        }
    }

    /// The API group and the resource, as rules of RBAC name them: `("", "pods")`.
    pub fn group_and_resource(self) -> (&'static str, &'static str) {
        (self.resource().group(), self.resource().plural)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.resource().plural)
    }
}

impl Known {
    /// The kind of the object.
    pub fn kind(&self) -> Kind {
        match self {
            Known::Policy(_) => Kind::Policy,
            Known::Namespace(..) => Kind::Namespace,
            Known::Pod(_) => Kind::Pod,
            Known::Node(_) => Kind::Node,
        }
    }

    /// Its namespace, empty where the kind has none, and its name.
    pub fn name(&self) -> (&str, &str) {
        match self {
            Known::Policy(policy) => (&policy.namespace, &policy.name),
            Known::Namespace(name, ..) => ("", name),
            Known::Pod(pod) => (&pod.namespace, &pod.name),
            Known::Node(node) => ("", &node.name),
        }
    }
}

impl From<Known> for Object {
    /// An object of which this is all, and with which nothing is wrong.
    fn from(body: Known) -> Object {
        Object { body, problems: Vec::new(), version: Box::default(), log: None }
    }
}

impl Object {
    /// Reads an object of this kind as the API server sends it. There is always an object: of one
    /// that cannot be read at all, what its name alone says.
    pub fn read(kind: Kind, mut item: Map<String, Value>) -> Object {
        let name = |key: &str| {
            let name = item.get("metadata").and_then(|m| m.get(key)?.as_str());
            name.unwrap_or_default().to_owned()
        };
        let log = item.get("metadata").and_then(|m| m.get("annotations")?.get(LOG_ANNOTATION));
        let log = log.filter(|_| kind == Kind::Namespace).cloned();
        let (namespace, version) = (
            name("namespace"),
            Version {
                uid: name("uid"),
                generation: item
                    .get("metadata")
                    .and_then(|metadata| metadata.get("generation")?.as_i64())
                    .unwrap_or_default(),
                resource_version: name("resourceVersion"),
            },
        );
        let name = name("name");
        strip(&mut item);
        let text = kind.resource().object("", item).text;
        let mut documents = document::split(&text).into_iter();
        let mut found =
            documents.next().map(|d| object::read(&text, 0, &d, "")).unwrap_or_default();
        let found = found.pop();
        let mut problems = Vec::new();
        for problem in found.iter().flat_map(|found| &found.problems) {
            // A server may be newer than this program. In a policy, that can change what it means.
            let counts = kind == Kind::Policy || problem.reason != Reason::UnknownField;
            if problem.severity == Severity::Error && counts {
                problems.push(problem.message.clone());
            }
        }
        let level = log.as_ref().and_then(|log| LogLevel::of_name(log.as_str()?));
        if let (Some(log), None) = (log, level) {
            problems.push(format!(
                "metadata.annotations[{LOG_ANNOTATION}]: {log} is none of \"denied\", \"all\" and \
                 \"none\"; it has no effect"
            ));
        }
        let body = found.and_then(|found| known(kind, found.body));
        let body = body.filter(|body| body.name() == (&*namespace, &*name));
        let body = body.unwrap_or_else(|| {
            problems.push("it cannot be read at all".to_owned());
            nothing_but_its_name(kind, namespace, name)
        });
        Object { body, problems, version: Box::new(version), log: level }
    }
}

/// Drops what is large and not looked at, before anything else is done with it.
fn strip(item: &mut Map<String, Value>) {
    if let Some(Value::Object(metadata)) = item.get_mut("metadata") {
        metadata.retain(|key, _| ["name", "namespace", "labels", "annotations"].contains(&&**key));
        if let Some(Value::Object(annotations)) = metadata.get_mut("annotations") {
            annotations.retain(|key, _| key == MODE_ANNOTATION);
        }
    }
}

fn known(kind: Kind, body: Body) -> Option<Known> {
    match body {
        Body::Policy(written) if kind == Kind::Policy => {
            let Written { closed, .. } = *written;
            Some(Known::Policy(closed))
        }
        Body::Object(object) => match *object {
            objects::Object::Namespace { name, labels, mode } => {
                Some(Known::Namespace(name, labels, mode))
            }
            objects::Object::Pod(pod, _) => Some(Known::Pod(pod)),
            objects::Object::Node(node) => Some(Known::Node(node)),
            _ => None,
        },
        _ => None,
    }
}

/// A policy of which nothing else is known can select every pod of its namespace, for both
/// directions (SEMANTICS 22).
fn nothing_but_its_name(kind: Kind, namespace: String, name: String) -> Known {
    match kind {
        Kind::Policy => Known::Policy(Policy {
            namespace,
            name,
            ingress: Some(Vec::new()),
            egress: Some(Vec::new()),
            ..Policy::default()
        }),
        Kind::Namespace => Known::Namespace(name, Labels::new(), None),
        Kind::Pod => Known::Pod(Pod { namespace, name, ..Pod::default() }),
        Kind::Node => Known::Node(Node { name, ..Node::default() }),
    }
}

/// A failure so long after the one before is a new one.
const FORGET: Duration = Duration::from_secs(120);
/// From this minor version of Kubernetes on, a list as a stream is something to rely on.
const STREAMS: u32 = 34;

impl Access {
    /// Watches all kinds in all namespaces, and tells what is new, for ever: the first thing of each
    /// kind is [`Event::Listing`]. It comes again whenever the thread of changes is lost. Must be called
    /// within a runtime of tokio.
    ///
    /// # Errors
    /// Where nothing says how the cluster is reached. That it cannot be reached is an event.
    pub async fn watch(
        &self,
        tell: impl Fn(Event) + Clone + Send + 'static,
    ) -> Result<Infallible, Error> {
        let (_, mut config) = self.config().await?;
        config.connect_timeout = Some(CONNECT.min(self.timeout));
        let asked = self.asked(&config);
        let client = Client::try_from(config).map_err(|e| asked.error(e))?;
        let mut running = JoinSet::new();
        for kind in Kind::ALL {
            running.spawn(follow(kind, client.clone(), self.waits, tell.clone()));
        }
        match running.join_next().await {
            Some(Err(error)) => Err(Error::Runtime(error.into())),
            Some(Ok(never)) => match never {},
            None => std::future::pending().await,
        }
    }
}

/// Watches one kind.
async fn follow(
    kind: Kind,
    client: Client,
    waits: [Duration; 2],
    tell: impl Fn(Event),
) -> Infallible {
    let api = Api::<Item>::all_with(client.clone(), &kind.resource().api());
    let mut streams = None;
    let mut waits = Waits::new(waits);
    loop {
        if streams.is_none() {
            streams = has_streams(&client).await;
        }
        let stream = streams == Some(true);
        let config = watcher::Config::default();
        let config = if stream { config.streaming_lists() } else { config };
        let mut events = pin!(watcher(api.clone(), config));
        while let Some(event) = events.next().await {
            let read = |item: Item| Object::read(kind, item.object);
            match event {
                Ok(watcher::Event::Init) => tell(Event::Listing(kind)),
                Ok(watcher::Event::InitDone) => tell(Event::Listed(kind)),
                Ok(watcher::Event::InitApply(item) | watcher::Event::Apply(item)) => {
                    tell(Event::Applied(read(item)));
                }
                Ok(watcher::Event::Delete(item)) => {
                    let ObjectMeta { namespace, name, .. } = item.metadata;
                    let (namespace, name) =
                        (namespace.unwrap_or_default(), name.unwrap_or_default());
                    tell(Event::Deleted(kind, namespace, name));
                }
                Err(error) => {
                    tell(Event::Failed(kind, words(&error)));
                    tokio::time::sleep(waits.next()).await;
                    if stream && refuses_streams(&error) {
                        streams = Some(false);
                        break;
                    }
                    if thread_is_lost(&error) {
                        break;
                    }
                }
            }
        }
    }
}

/// Whether the server can send a list as the beginning of a watch, which costs it far less. `None`
/// if it does not say.
async fn has_streams(client: &Client) -> Option<bool> {
    let version = client.apiserver_version().await.ok()?;
    let digits = version.minor.trim_end_matches(|c: char| !c.is_ascii_digit());
    Some(version.major == "1" && digits.parse().is_ok_and(|minor: u32| minor >= STREAMS))
}

fn refuses_streams(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) => {
            matches!(status.code, 400 | 405 | 406 | 422)
        }
        _ => false,
    }
}

/// Whether changes may have been missed that would not come again: then everything is listed anew.
fn thread_is_lost(error: &watcher::Error) -> bool {
    use watcher::Error::{WatchFailed, WatchStartFailed};
    match error {
        WatchStartFailed(kube::Error::Api(status)) => status.code == 410,
        WatchFailed(kube::Error::SerdeError(_)) => true,
        _ => false,
    }
}

fn words(error: &watcher::Error) -> String {
    let causes = std::iter::successors(Some(error as &dyn std::error::Error), |e| e.source());
    let mut text = String::new();
    for cause in causes.map(|cause| cause.to_string()) {
        if !text.contains(&cause) {
            text = if text.is_empty() { cause } else { format!("{text}: {cause}") };
        }
    }
    text
}

/// How long to wait before the next attempt: each time twice as long, and never all nodes of a
/// cluster at once.
struct Waits {
    first: Duration,
    longest: Duration,
    next: Duration,
    last: Option<Instant>,
}

impl Waits {
    fn new([first, longest]: [Duration; 2]) -> Waits {
        Waits { first, longest, next: first, last: None }
    }

    fn next(&mut self) -> Duration {
        if self.last.is_some_and(|last| last.elapsed() > FORGET) {
            self.next = self.first;
        }
        self.last = Some(Instant::now());
        let wait = self.next;
        self.next = (wait * 2).min(self.longest);
        // A number that is another in each process and at each call.
        let percent = RandomState::new().hash_one(0u8) % 50;
        wait * (75 + percent as u32) / 100
    }
}

/// An object as JSON. It reads whatever is an object at all, so that nothing is passed over.
#[derive(Debug, Clone)]
pub(super) struct Item {
    /// Name, namespace and version.
    metadata: ObjectMeta,
    pub(super) object: Map<String, Value>,
}

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Item, D::Error> {
        let object = Map::deserialize(deserializer)?;
        let text = |key: &str| Some(object.get("metadata")?.get(key)?.as_str()?.to_owned());
        let metadata = ObjectMeta {
            name: text("name"),
            namespace: text("namespace"),
            resource_version: text("resourceVersion"),
            ..ObjectMeta::default()
        };
        Ok(Item { metadata, object })
    }
}

impl kube::Resource for Item {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(resource: &ApiResource) -> std::borrow::Cow<'_, str> {
        resource.kind.as_str().into()
    }

    fn group(resource: &ApiResource) -> std::borrow::Cow<'_, str> {
        resource.group.as_str().into()
    }

    fn version(resource: &ApiResource) -> std::borrow::Cow<'_, str> {
        resource.version.as_str().into()
    }

    fn plural(resource: &ApiResource) -> std::borrow::Cow<'_, str> {
        resource.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(kind: Kind, item: Value) -> Object {
        let Value::Object(item) = item else { panic!("{item} is not an object") };
        Object::read(kind, item)
    }

    #[test]
    fn a_policy_with_a_field_that_is_not_known_isolates_and_its_rule_allows_nothing() {
        let item = json!({
            "metadata": {"name": "web", "namespace": "shop", "resourceVersion": "1"},
            "spec": {"podSelector": {}, "ingress": [{"via": "mesh"}], "policyTypes": ["Ingress"]},
        });
        let Object { body: Known::Policy(policy), problems, .. } = read(Kind::Policy, item) else {
            panic!("no policy");
        };
        assert_eq!(problems, ["unknown field \"spec.ingress[0].via\""]);
        let rules = policy.ingress.unwrap();
        assert!(rules.iter().all(|rule| !rule.peers.is_empty()), "{rules:?}");
    }

    #[test]
    fn a_policy_that_cannot_be_read_at_all_isolates_its_namespace() {
        let deep = (0..1000).fold(json!(1), |inner, _| json!([inner]));
        let item = json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": deep});
        let Object { body: Known::Policy(policy), problems, .. } = read(Kind::Policy, item) else {
            panic!("no policy");
        };
        assert!(!problems.is_empty());
        assert_eq!((&*policy.namespace, &*policy.name), ("shop", "web"));
        assert!(policy.subject.is_empty());
        assert!(policy.ingress.is_some());
    }

    #[test]
    fn what_a_newer_server_says_of_a_pod_is_no_problem() {
        let item = json!({
            "metadata": {"name": "p", "namespace": "shop", "shards": 3, "managedFields": []},
            "spec": {"containers": [{"name": "c", "wings": 2}], "nodeName": "n"},
            "status": {"podIPs": [{"ip": "10.0.0.1"}], "phase": "Running", "conditions": []},
        });
        let Object { body: Known::Pod(pod), problems, .. } = read(Kind::Pod, item) else {
            panic!("no pod");
        };
        assert_eq!(problems, [""; 0]);
        assert_eq!((pod.node.as_deref(), pod.addresses.len()), (Some("n"), 1));
    }

    #[test]
    fn waits_grow_up_to_half_a_minute() {
        let mut waits = Waits::new(Access::default().waits);
        let all: Vec<_> = (0..12).map(|_| waits.next()).collect();
        assert!(all[0] < Duration::from_millis(300), "{all:?}");
        assert!(all[11] > Duration::from_secs(20) && all[11] < Duration::from_secs(45), "{all:?}");
    }
}
