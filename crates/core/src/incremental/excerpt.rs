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
    /// Of the source and the destination, the pods that claim it.
    pods: [Vec<PodExcerpt>; 2],
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

    /// The namespaces and the names of the pods that have the source and the destination. What several
    /// claim, none has.
    pub fn pods(&self) -> [Option<(&str, &str)>; 2] {
        self.pods.each_ref().map(|pods| match &pods[..] {
            [pod] => Some((&*pod.namespace, &*pod.name)),
            _ => None,
        })
    }

    /// Whether the source and the destination are pods of the node.
    pub fn local(&self) -> [bool; 2] {
        self.pods.each_ref().map(|pods| pods.iter().any(|pod| pod.local))
    }

    /// What the namespaces of the source and the destination say of reports.
    pub fn levels(&self) -> [Option<LogLevel>; 2] {
        self.pods.each_ref().map(|pods| pods.iter().filter_map(|pod| pod.log).max())
    }

    /// A cluster in which connections between the two addresses have the verdicts that they have
    /// in the whole one, as far as the policies of pods of this node decide.
    pub fn cluster(&self) -> Cluster {
        let mut cluster = Cluster { nodes: self.nodes.clone(), ..Cluster::default() };
        let ends = self.pods.iter().zip([self.source, self.destination]);
        for (pod, address) in ends.flat_map(|(pods, a)| pods.iter().map(move |pod| (pod, a))) {
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
        let mut excerpt_of = |id: u32, local: bool| {
            let pod = self.pods.get(id)?;
            let class = self.classes.get(pod.class?)?;
            let namespace = self.namespaces.get(&pod.namespace)?;
            match &class.profile {
                _ if !local => {}
                Some(known) => {
                    let known =
                        known.policies.iter().filter_map(|name| namespace.policies.get(name));
                    policies.extend(known.map(|stored| stored.policy.clone()));
                }
                None => policies.extend(self.selecting(pod.class?).map(|(p, _)| p.clone())),
            }
            Some(PodExcerpt {
                namespace: pod.namespace.clone(),
                log: namespace.log,
                labels: namespace.labels.clone().unwrap_or_default(),
                name: pod.name.clone(),
                class: class.key.clone(),
                local: pod.local,
            })
        };
        let is_local = |id: &u32| self.pods.get(*id).is_some_and(|pod| pod.local);
        let pods = [source, destination].map(|address| {
            let claimants: Vec<u32> = self.claims.claimants(address).collect();
            // The policies of others that claim it decide, too.
            let local = claimants.iter().any(is_local);
            claimants.into_iter().filter_map(|id| excerpt_of(id, local)).collect()
        });
        // Two pods of one class are selected by the same ones.
        let mut known = rustc_hash::FxHashSet::default();
        policies.retain(|policy| known.insert(Arc::as_ptr(policy)));
        policies.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
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
