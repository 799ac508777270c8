//! A live cluster as input: what its API server lists, read by the decoder of manifests.
//!
//! Nothing is written but [`Events`], if that is asked for. To read a cluster once is to list, page by page; what comes back is a
//! [`Snapshot`], which is plain data and a [`Source`](crate::Source) like any other. To follow it
//! is to [watch](Access::watch).

mod access;
mod agents;
mod error;
mod events;
mod list;
mod watch;

use std::collections::BTreeSet;
use std::sync::Arc;

use portcullis_core::model::Cluster;

pub use access::Access;
pub use agents::{AGENT_LABEL, AgentPod, Agents, Forwarded};
pub use error::Error;
pub use events::{Events, PodEvent};
pub use watch::{Event, Kind, Known, Object, Version};

use crate::diagnostic::Diagnostic;
use crate::input::Input;

/// The objects of a cluster that decide about connections, in the order of their kinds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The name of the cluster, as its kubeconfig has it.
    pub cluster: String,
    /// The namespace that the context says; names without one are in it.
    pub namespace: String,
    /// What could not be listed and is not needed for a right answer.
    pub(crate) notes: Vec<Diagnostic>,
    pub(crate) objects: Vec<LiveObject>,
}

impl Snapshot {
    /// The objects that an API server has, each by its resource, its name (`networkpolicies`,
    /// `shop/web`), and as JSON.
    pub fn of<'a>(
        cluster: &str,
        objects: impl IntoIterator<Item = (&'a str, String, String)>,
    ) -> Snapshot {
        let objects = objects.into_iter().map(|(resource, name, text)| LiveObject {
            name: format!("cluster/{cluster} {resource}/{name}").into(),
            text: text.into(),
        });
        Snapshot {
            cluster: cluster.to_owned(),
            namespace: "default".to_owned(),
            notes: Vec::new(),
            objects: objects.collect(),
        }
    }

    /// The cluster as it is beneath manifests that are applied to it: without the objects of which
    /// these say anew what they are.
    pub fn beneath(mut self, manifests: &Input) -> Snapshot {
        let of = |kind: &str, namespace: &str, name: &str| format!("{kind}/{namespace}/{name}");
        let Cluster { pods, services, nodes, .. } = &manifests.cluster;
        let policies = manifests.policies.iter().map(|p| &p.raw);
        let policies = policies.map(|p| of("networkpolicies", &p.namespace, &p.name));
        let pods = pods.iter().map(|p| of("pods", &p.namespace, &p.name));
        let services = services.iter().map(|s| of("services", &s.namespace, &s.name));
        let nodes = nodes.iter().map(|n| format!("nodes/{}", n.name));
        let namespaces = manifests.places.namespaces.keys().map(|n| format!("namespaces/{n}"));
        let named = policies.chain(pods).chain(services).chain(nodes).chain(namespaces);
        let anew: BTreeSet<String> = named.collect();
        let is_anew = |o: &LiveObject| o.name.rsplit(' ').next().is_some_and(|n| anew.contains(n));
        self.objects.retain(|object| !is_anew(object));
        self
    }
}

/// An object as JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LiveObject {
    /// `cluster/prod networkpolicies/shop/web`: what stands in the place of a file name.
    pub(crate) name: Arc<str>,
    pub(crate) text: Arc<str>,
}
