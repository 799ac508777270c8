//! Which kinds are listed, how, and what is kept of an object.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kube::Client;
use kube::core::ApiResource;
use kube::core::params::ListParams;
use serde_json::{Map, Value};

use super::LiveObject;
use crate::fields::OBJECT_META;

/// How many objects one answer may hold. The one that kubectl uses.
pub(super) const PAGE: u32 = 500;

/// A kind, as the API server serves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Resource {
    /// The `apiVersion`.
    version: &'static str,
    pub(crate) plural: &'static str,
    kind: &'static str,
    /// What is not known without it. `None` if no answer would be right.
    pub(crate) without: Option<&'static str>,
    /// Whether only the metadata is asked for: the owner is all that is needed.
    metadata: bool,
}

/// What is listed. Workloads are not: the pods are there themselves, and ReplicaSets and Jobs only
/// tell whose pods they are.
pub(crate) const RESOURCES: [Resource; 7] = [
    Resource::needed("networking.k8s.io/v1", "networkpolicies", "NetworkPolicy"),
    Resource::needed("v1", "namespaces", "Namespace"),
    Resource::needed("v1", "pods", "Pod"),
    Resource {
        without: Some("the addresses of nodes are taken for addresses outside the cluster"),
        ..Resource::needed("v1", "nodes", "Node")
    },
    Resource {
        without: Some("no Service is known by name or by cluster IP"),
        ..Resource::needed("v1", "services", "Service")
    },
    Resource {
        without: Some("pods of a ReplicaSet without a Deployment may go by a wrong name"),
        metadata: true,
        ..Resource::needed("apps/v1", "replicasets", "ReplicaSet")
    },
    Resource {
        without: Some("the pods of a CronJob go by the name of their Job"),
        metadata: true,
        ..Resource::needed("batch/v1", "jobs", "Job")
    },
];

impl Resource {
    const fn needed(version: &'static str, plural: &'static str, kind: &'static str) -> Resource {
        Resource { version, plural, kind, without: None, metadata: false }
    }

    /// The group of its API; empty for the core.
    pub(crate) fn group(&self) -> &'static str {
        self.version.split_once('/').map_or("", |(group, _)| group)
    }

    /// The same, as the client has it.
    pub(crate) fn api(&self) -> ApiResource {
        ApiResource {
            group: self.group().to_owned(),
            version: self.version.rsplit('/').next().unwrap_or_default().to_owned(),
            api_version: self.version.to_owned(),
            kind: self.kind.to_owned(),
            plural: self.plural.to_owned(),
        }
    }

    fn path(&self) -> String {
        let root = if self.version.contains('/') { "apis" } else { "api" };
        format!("/{root}/{}/{}", self.version, self.plural)
    }

    /// As RBAC and kubectl write it: `networkpolicies.networking.k8s.io`.
    pub(crate) fn qualified(&self) -> String {
        match self.group() {
            "" => self.plural.to_owned(),
            group => format!("{}.{group}", self.plural),
        }
    }

    /// Lists all of them in all namespaces, and adds up in `count` what has come so far.
    pub(crate) async fn list(
        &self,
        client: &Client,
        cluster: &str,
        timeout: Duration,
        count: &AtomicUsize,
    ) -> Result<Vec<LiveObject>, Failure> {
        let request = kube::core::Request::new(self.path());
        let mut params = ListParams::default().limit(PAGE);
        let mut objects = Vec::new();
        loop {
            let request = match self.metadata {
                true => request.list_metadata(&params),
                false => request.list(&params),
            };
            let request = request.map_err(|e| Failure::Client(kube::Error::BuildRequest(e)))?;
            let answer = tokio::time::timeout(timeout, client.request_text(request)).await;
            let text = match answer {
                Err(_) => return Err(Failure::TimedOut),
                // The server keeps a list for some minutes. Then it is read again at once and in
                // one piece, which cannot expire.
                Ok(Err(kube::Error::Api(status)))
                    if status.code == 410 && params.continue_token.is_some() =>
                {
                    count.fetch_sub(objects.len(), Ordering::Relaxed);
                    objects.clear();
                    params = ListParams::default();
                    continue;
                }
                Ok(answer) => answer.map_err(Failure::Client)?,
            };
            let Page { items, next } = page(&text).map_err(Failure::NoList)?;
            count.fetch_add(items.len(), Ordering::Relaxed);
            objects.extend(items.into_iter().map(|item| self.object(cluster, item)));
            match next {
                None => return Ok(objects),
                Some(next) if params.continue_token.as_ref() == Some(&next) => {
                    return Err(Failure::NoList("the same page again".to_owned()));
                }
                Some(next) => params = params.continue_token(&next),
            }
        }
    }

    /// The object as a manifest would have it. Items of a list do not say what they are; some of
    /// what a server adds is large, or newer than this program, and says nothing about the network.
    pub(crate) fn object(&self, cluster: &str, mut item: Map<String, Value>) -> LiveObject {
        let mut object = Map::new();
        object.insert("apiVersion".to_owned(), self.version.into());
        object.insert("kind".to_owned(), self.kind.into());
        let mut name = format!("cluster/{cluster} {}", self.plural);
        if let Some(Value::Object(metadata)) = item.get_mut("metadata") {
            metadata.retain(|key, _| OBJECT_META.contains(&&**key) && key != "managedFields");
            for part in ["namespace", "name"].map(|key| metadata.get(key).and_then(Value::as_str)) {
                name += &part.map_or(String::new(), |part| format!("/{part}"));
            }
        }
        if let Some(Value::Object(status)) = item.get_mut("status") {
            status.retain(|key, _| !NOT_KEPT.contains(&&**key));
        }
        item.retain(|key, _| !object.contains_key(key));
        object.extend(item);
        LiveObject { name: name.into(), text: Value::Object(object).to_string().into() }
    }
}

/// Parts of `status` that are most of an object and say nothing about the network.
const NOT_KEPT: [&str; 6] = [
    "conditions",
    "containerStatuses",
    "initContainerStatuses",
    "ephemeralContainerStatuses",
    "images",
    "volumesAttached",
];

/// Why a kind could not be listed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// No answer within the time.
    TimedOut,
    /// An answer that is no list: what is wrong with it.
    NoList(String),
    /// No answer, or one that says no.
    Client(kube::Error),
}

/// A part of a list.
struct Page {
    items: Vec<Map<String, Value>>,
    /// The token for the next one.
    next: Option<String>,
}

/// An answer as a page, or why it is none.
fn page(text: &str) -> Result<Page, String> {
    let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let Value::Object(mut list) = value else {
        return Err("JSON that is not an object".to_owned());
    };
    let next = list.get("metadata").and_then(|m| m.get("continue")?.as_str());
    let next = next.filter(|token| !token.is_empty()).map(str::to_owned);
    let items = match list.remove("items") {
        Some(Value::Array(items)) => items,
        // An empty list, as Go writes it.
        Some(Value::Null) => Vec::new(),
        _ => return Err("an object without items".to_owned()),
    };
    let object = |item| match item {
        Value::Object(object) => Ok(object),
        other => Err(format!("an item that is not an object: {other}")),
    };
    Ok(Page { items: items.into_iter().map(object).collect::<Result<_, _>>()?, next })
}
