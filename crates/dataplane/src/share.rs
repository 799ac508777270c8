//! One node's share of a cluster that is known whole.

use std::collections::BTreeMap;

use portcullis_core::incremental::NodeProgram;
use portcullis_core::model::Cluster;
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
    for (i, pod) in cluster.pods.iter().enumerate() {
        program.pod(&pod.namespace, &i.to_string(), Some(pod));
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
