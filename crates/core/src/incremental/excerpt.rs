//! What concerns two addresses, for explanations that must not cost what the whole cluster costs.

use std::net::IpAddr;
use std::sync::Arc;

use super::{ClassKey, NodeProgram};
use crate::labels::Labels;
use crate::model::{Cluster, LogLevel, Node, Pod, Policy};

/// All that decides about connections between two addresses at the pods of one node. It shares
/// what is large with the [`NodeProgram`] that it is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Excerpt {
    node: String,
    source: IpAddr,
    destination: IpAddr,
    /// Of the source and the destination, if they are pods.
    pods: [Option<PodExcerpt>; 2],
    nodes: Vec<Node>,
    policies: Vec<Arc<Policy>>,
}

/// What is known of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
struct PodExcerpt {
    namespace: Arc<str>,
    /// Of the namespace; none if it has no object.
    labels: Labels,
    /// What the namespace says.
    log: Option<LogLevel>,
    name: Arc<str>,
    class: Arc<ClassKey>,
    local: bool,
}

impl Excerpt {
    /// The source and the destination.
    pub fn ends(&self) -> (IpAddr, IpAddr) {
        (self.source, self.destination)
    }

    /// The namespaces and the names of the pods that have the source and the destination.
    pub fn pods(&self) -> [Option<(&str, &str)>; 2] {
        self.pods.each_ref().map(|pod| pod.as_ref().map(|pod| (&*pod.namespace, &*pod.name)))
    }

    /// Whether the source and the destination are pods of the node.
    pub fn local(&self) -> [bool; 2] {
        self.pods.each_ref().map(|pod| pod.as_ref().is_some_and(|pod| pod.local))
    }

    /// What the namespaces of the source and the destination say of reports.
    pub fn levels(&self) -> [Option<LogLevel>; 2] {
        self.pods.each_ref().map(|pod| pod.as_ref().and_then(|pod| pod.log))
    }

    /// A cluster in which connections between the two addresses have the verdicts that they have
    /// in the whole one, as far as the policies of pods of this node decide.
    pub fn cluster(&self) -> Cluster {
        let mut cluster = Cluster { nodes: self.nodes.clone(), ..Cluster::default() };
        for (pod, address) in self.pods.iter().zip([self.source, self.destination]) {
            let Some(pod) = pod else { continue };
            cluster.namespaces.insert(pod.namespace.to_string(), pod.labels.clone());
            let same =
                |known: &&mut Pod| known.namespace == *pod.namespace && known.name == *pod.name;
            if let Some(known) = cluster.pods.iter_mut().find(same) {
                known.addresses.push(address);
                continue;
            }
            cluster.pods.push(Pod {
                namespace: pod.namespace.to_string(),
                name: pod.name.to_string(),
                labels: pod.class.labels.clone(),
                // Where else others are decides about nothing here.
                node: Some(if pod.local { self.node.clone() } else { String::new() }),
                addresses: vec![address],
                ports: pod.class.ports.clone(),
                ..Pod::default()
            });
        }
        cluster.policies = self.policies.iter().map(|policy| (**policy).clone()).collect();
        cluster
    }
}

impl NodeProgram {
    /// What concerns connections between two addresses.
    pub fn excerpt(&self, source: IpAddr, destination: IpAddr) -> Excerpt {
        let mut policies = Vec::new();
        let mut pod = |address| {
            let pod = self.pods.get(self.claims.owner(address)?)?;
            let class = self.classes.get(pod.class?)?;
            let namespace = self.namespaces.get(&pod.namespace)?;
            let selecting = class.profile.iter().flat_map(|local| &local.policies);
            let selecting = selecting.filter_map(|name| namespace.policies.get(name));
            policies.extend(selecting.map(|stored| stored.policy.clone()));
            Some(PodExcerpt {
                namespace: pod.namespace.clone(),
                log: namespace.log,
                labels: namespace.labels.clone().unwrap_or_default(),
                name: pod.name.clone(),
                class: class.key.clone(),
                local: pod.local,
            })
        };
        let pods = [pod(source), pod(destination)];
        // Two pods of one class are selected by the same ones.
        let mut known = rustc_hash::FxHashSet::default();
        policies.retain(|policy| known.insert(Arc::as_ptr(policy)));
        let ends = [source, destination];
        let has = |addresses: &[IpAddr]| addresses.iter().any(|address| ends.contains(address));
        let nodes = self.nodes.iter().filter(|(_, addresses)| has(addresses));
        let nodes = nodes.map(|(name, addresses)| Node {
            name: name.clone(),
            addresses: addresses.clone(),
            ..Node::default()
        });
        Excerpt {
            node: self.node.clone(),
            source,
            destination,
            pods,
            nodes: nodes.collect(),
            policies,
        }
    }
}
