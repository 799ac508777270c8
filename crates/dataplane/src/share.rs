//! One node's share of a cluster that is known whole.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use portcullis_core::incremental::NodeProgram;
use portcullis_core::model::{Cluster, Pod};
use portcullis_core::program::Origin;

use crate::state::NodeState;

/// What a node must enforce, and the origins that its entries name by number. A node that no pod
/// runs on has nothing to enforce.
pub fn share(cluster: &Cluster, node: &str) -> (NodeState, BTreeMap<u32, Origin>) {
    let mut program = NodeProgram::new(node);
    // Names in an input need not be unique, so things are known by their index here.
    for (i, policy) in cluster.policies.iter().enumerate() {
        program.policy(&policy.namespace, &i.to_string(), Some(policy.clone()));
    }
    for (name, labels) in &cluster.namespaces {
        program.namespace(name, Some(labels.clone()), cluster.modes.get(name).copied());
    }
    for known in &cluster.nodes {
        program.node(&known.name, Some(&known.addresses));
    }
    let claims = |pod: &Pod| !pod.host_network && !pod.finished;
    let mut owners: HashMap<IpAddr, usize> = HashMap::new();
    for (i, pod) in cluster.pods.iter().enumerate().filter(|(_, pod)| claims(pod)) {
        for address in &pod.addresses {
            // The one's that the engine takes for its owner.
            let owner = owners.entry(*address).or_insert(i);
            let name = |pod: usize| (&cluster.pods[pod].namespace, &cluster.pods[pod].name);
            if name(i) < name(*owner) {
                *owner = i;
            }
        }
    }
    for (i, pod) in cluster.pods.iter().enumerate() {
        let mut pod = pod.clone();
        if claims(&pod) {
            pod.addresses.retain(|address| owners.get(address) == Some(&i));
        }
        program.pod(&pod.namespace, &i.to_string(), Some(&pod));
    }
    let state = program.state().clone();
    let origins = program.origins().iter().filter_map(|(number, origin)| {
        let policy = origin.name.parse().ok()?;
        let (direction, rule, peer, port) =
            (origin.direction, origin.rule, origin.peer, origin.port);
        Some((*number, Origin { policy, direction, rule, peer, port }))
    });
    (state, origins.collect())
}
