//! One node's share of a [`Program`]: the only place where the engine's words become the seam's.

use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasher;

use indexmap::IndexSet;
use portcullis_core::Program;
use portcullis_core::model::{Cluster, Direction};
use portcullis_core::program::{self, Origin, PeerId};
use rustc_hash::FxBuildHasher;

use crate::state::{Entry, NodeState, PeerSet, Ports, Profile};

/// What a node must enforce, and the origins that its entries name by index.
///
/// `program` must have been compiled from `cluster`. A node that no pod runs on has nothing to
/// enforce.
pub fn share(cluster: &Cluster, program: &Program, node: &str) -> (NodeState, Vec<Origin>) {
    let addresses = program.peer_addresses();
    let mut profiles: IndexSet<usize> = IndexSet::new();
    let mut endpoints = BTreeMap::new();
    let mut owners = BTreeMap::new();
    for (i, pod) in cluster.pods.iter().enumerate() {
        let Some(profile) = program.profile(i).filter(|_| pod.node.as_deref() == Some(node)) else {
            continue;
        };
        let profile = profiles.insert_full(profile).0 as u32;
        // An address that several pods claim is the one's that the engine takes for its owner.
        let owned =
            program.pod_addresses(i).filter(|address| program.endpoint(*address).pod == Some(i));
        let owner = FxBuildHasher.hash_one((&pod.namespace, &pod.name));
        for address in owned {
            endpoints.insert(address, profile);
            owners.insert(address, owner);
        }
    }

    let mut origins: IndexSet<Origin> = IndexSet::new();
    let mut peers: IndexSet<PeerSet> = IndexSet::new();
    let mut peer_of: HashMap<PeerId, u32> = HashMap::new();
    let mut entry = |entry: &program::Entry| Entry {
        peers: (entry.peer != PeerId::ANY).then(|| {
            *peer_of.entry(entry.peer).or_insert_with(|| {
                let set = match program.peer_block(entry.peer) {
                    Some(ranges) => PeerSet::Ranges(ranges.to_vec()),
                    None => PeerSet::Addresses(addresses[entry.peer.index()].clone()),
                };
                peers.insert_full(set).0 as u32
            })
        }),
        ports: entry.ports.map(|p| Ports { protocol: p.protocol, first: p.first, last: p.last }),
        origin: origins.insert_full(entry.origin).0 as u32,
    };
    let mut rules = |profile: usize, direction| -> Option<Vec<Entry>> {
        let rules = &program.rule_sets()[program.profile_rules(profile, direction)?];
        Some(rules.entries.iter().map(&mut entry).collect())
    };
    let profiles = profiles
        .iter()
        .map(|profile| Profile {
            ingress: rules(*profile, Direction::Ingress),
            egress: rules(*profile, Direction::Egress),
        })
        .collect();
    let state = NodeState {
        endpoints,
        ranges: Vec::new(),
        owners,
        profiles,
        peers: peers.into_iter().collect(),
        origins: origins.len() as u32,
    };
    (state, origins.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use portcullis_core::labels::Selector;
    use portcullis_core::model::{Pod, Policy};

    use super::*;

    #[test]
    fn an_address_that_two_pods_claim_is_enforced_for_the_one_that_the_engine_judges() {
        let pod = |name: &str, app: &str| Pod {
            namespace: "default".to_owned(),
            name: name.to_owned(),
            labels: [("app".to_owned(), app.to_owned())].into(),
            node: Some("node".to_owned()),
            addresses: vec!["10.0.0.1".parse().unwrap()],
            ..Pod::default()
        };
        let closed = Policy {
            namespace: "default".to_owned(),
            name: "closed".to_owned(),
            subject: Selector {
                match_labels: [("app".to_owned(), "closed".to_owned())].into(),
                ..Selector::default()
            },
            ingress: Some(Vec::new()),
            egress: None,
        };
        let (a, b) = (pod("a", "closed"), pod("b", "open"));
        for pods in [vec![a.clone(), b.clone()], vec![b, a]] {
            let policies = vec![closed.clone()];
            let cluster = Cluster { pods, policies, ..Cluster::default() };
            let program = Program::compile(&cluster);
            let (state, _) = share(&cluster, &program, "node");
            let (address, profile) = state.endpoints.first_key_value().unwrap();
            let owner = program.endpoint(*address).pod.unwrap();
            let isolated = state.profiles[*profile as usize].ingress.is_some();
            assert_eq!(isolated, cluster.pods[owner].name == "a");
        }
    }
}
