//! One node's share of a [`Program`]: the only place where the engine's words become the seam's.

use std::collections::{BTreeMap, HashMap};

use indexmap::IndexSet;
use portcullis_core::Program;
use portcullis_core::model::{Cluster, Direction};
use portcullis_core::program::{self, Origin, PeerId};

use crate::state::{Entry, NodeState, PeerSet, Ports, Profile};

/// What a node must enforce, and the origins that its entries name by index.
///
/// `program` must have been compiled from `cluster`. A node that no pod runs on has nothing to
/// enforce.
pub fn share(cluster: &Cluster, program: &Program, node: &str) -> (NodeState, Vec<Origin>) {
    let addresses = program.peer_addresses();
    let mut profiles: IndexSet<usize> = IndexSet::new();
    let mut endpoints = BTreeMap::new();
    for (i, pod) in cluster.pods.iter().enumerate() {
        let Some(profile) = program.profile(i).filter(|_| pod.node.as_deref() == Some(node)) else {
            continue;
        };
        let profile = profiles.insert_full(profile).0 as u32;
        endpoints.extend(program.pod_addresses(i).map(|address| (address, profile)));
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
        profiles,
        peers: peers.into_iter().collect(),
        origins: origins.len() as u32,
    };
    (state, origins.into_iter().collect())
}
