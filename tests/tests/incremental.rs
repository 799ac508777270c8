//! What is kept up to date change by change is what a full compile gives.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use portcullis_core::Program;
use portcullis_core::incremental::NodeProgram;
use portcullis_core::model::{Cluster, Direction};
use portcullis_core::net::IpRange;
use portcullis_core::node::{PeerSet, Ports, Profile};
use portcullis_core::program::PeerId;
use portcullis_tests::engine::cluster;
use portcullis_tests::generate::{Size, dispute, disputes, world};
use portcullis_tests::property::holds;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

const NODE: &str = "node-1";

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Whom {
    Any,
    Addresses(Vec<IpAddr>),
    Ranges(Vec<IpRange>),
}

type Place = (String, String, Direction, u32, Option<u32>, Option<u32>);
type Allowed = BTreeSet<(Whom, Option<Ports>, Place)>;
/// By address of a local pod: what it may do, egress and ingress, and whether that is only audited;
/// `None` where it is open.
type Meaning = BTreeMap<IpAddr, [Option<(Allowed, bool)>; 2]>;

/// What allows nobody says nothing.
fn says_something(whom: &Whom) -> bool {
    !matches!(whom, Whom::Addresses(addresses) if addresses.is_empty())
}

fn meaning_of_full(cluster: &Cluster) -> Meaning {
    let program = Program::compile(cluster);
    let addresses = program.peer_addresses();
    let mut meaning = Meaning::new();
    for (i, pod) in cluster.pods.iter().enumerate() {
        if pod.node.as_deref() != Some(NODE) {
            continue;
        }
        let rules = |profile| {
            Direction::ALL.map(|direction| {
                let rules = &program.rule_sets()[program.profile_rules(profile, direction)?];
                let allowed = rules.entries.iter().map(|entry| {
                    let whom = match program.peer_block(entry.peer) {
                        _ if entry.peer == PeerId::ANY => Whom::Any,
                        Some(ranges) => Whom::Ranges(ranges.to_vec()),
                        None => Whom::Addresses(addresses[entry.peer.index()].clone()),
                    };
                    let origin = entry.origin;
                    let policy = &cluster.policies[origin.policy as usize];
                    let (namespace, name) = (policy.namespace.clone(), policy.name.clone());
                    let place =
                        (namespace, name, origin.direction, origin.rule, origin.peer, origin.port);
                    (whom, entry.ports, place)
                });
                Some((allowed.filter(|(whom, ..)| says_something(whom)).collect(), rules.audited))
            })
        };
        for address in program.pod_addresses(i) {
            // Not where it is a node's. What several pods claim is what they are together.
            if let Some(profile) = program.profile_of(&program.endpoint(address)) {
                meaning.insert(address, rules(profile));
            }
        }
    }
    meaning
}

fn meaning_of(program: &mut NodeProgram) -> Meaning {
    let state = program.state().clone();
    let origins = program.origins();
    let allowed = |profile: &Profile| {
        Direction::ALL.map(|direction| {
            let entries = profile.entries(direction)?.iter().map(|entry| {
                let whom = match entry.peers.map(|number| &state.peers[&number]) {
                    None => Whom::Any,
                    Some(PeerSet::Addresses(addresses)) => {
                        Whom::Addresses(addresses.iter().collect())
                    }
                    Some(PeerSet::Ranges(ranges)) => Whom::Ranges(ranges.to_vec()),
                };
                let origin = &origins[&entry.origin];
                let (namespace, name) = (origin.namespace.to_string(), origin.name.to_string());
                let place =
                    (namespace, name, origin.direction, origin.rule, origin.peer, origin.port);
                (whom, entry.ports, place)
            });
            let allowed = entries.filter(|(whom, ..)| says_something(whom)).collect();
            Some((allowed, profile.is_audited(direction)))
        })
    };
    let endpoints = state.endpoints.iter();
    endpoints.map(|(address, number)| (*address, allowed(&state.profiles[number]))).collect()
}

/// One change.
type Change<'a> = Box<dyn Fn(&mut NodeProgram) -> bool + 'a>;

/// What leads from one cluster to another, each thing once or twice.
fn changes<'a>(old: &'a Cluster, new: &'a Cluster) -> Vec<Change<'a>> {
    let mut changes: Vec<Change<'a>> = Vec::new();
    for name in old.namespaces.keys().chain(new.namespaces.keys()) {
        changes.push(Box::new(|p| {
            let mode = new.modes.get(name).copied();
            p.namespace(name, new.namespaces.get(name).cloned(), mode)
        }));
    }
    for node in old.nodes.iter().chain(&new.nodes) {
        let now = new.nodes.iter().find(|n| n.name == node.name);
        changes.push(Box::new(move |p| p.node(&node.name, now.map(|node| &*node.addresses))));
    }
    for pod in old.pods.iter().chain(&new.pods) {
        let same =
            |p: &&portcullis_core::model::Pod| p.namespace == pod.namespace && p.name == pod.name;
        let now = new.pods.iter().find(same);
        changes.push(Box::new(move |p| p.pod(&pod.namespace, &pod.name, now)));
    }
    for policy in old.policies.iter().chain(&new.policies) {
        let same = |p: &&portcullis_core::model::Policy| {
            p.namespace == policy.namespace && p.name == policy.name
        };
        let now = new.policies.iter().find(same);
        changes.push(Box::new(move |p| p.policy(&policy.namespace, &policy.name, now.cloned())));
    }
    changes
}

#[test]
fn any_sequence_of_changes_ends_in_what_a_full_compile_gives() {
    let size = Size { namespaces: 3, nodes: 2, pods: 8, policies: 5 };
    let inputs = (vec((world(size), disputes()), 1..6), any::<u64>());
    holds(inputs, |(worlds, mut row)| {
        let clusters = worlds.iter().map(|(world, disputes)| {
            let mut cluster = cluster(world);
            dispute(&mut cluster, disputes);
            cluster
        });
        let clusters: Vec<Cluster> = clusters.collect();
        let mut draw = |below: usize| {
            row =
                row.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (row >> 33) as usize % below
        };
        let mut program = NodeProgram::new(NODE);
        let mut old = Cluster::default();
        for cluster in clusters {
            let mut changes = changes(&old, &cluster);
            while !changes.is_empty() {
                let change = changes.swap_remove(draw(changes.len()));
                change(&mut program);
                if change(&mut program) {
                    return Err(TestCaseError::fail("what is there already is no change"));
                }
                if draw(4) == 0 {
                    program.state();
                }
            }
            drop(changes);
            prop_assert_eq!(meaning_of(&mut program), meaning_of_full(&cluster), "{:#?}", cluster);

            let mut fresh = NodeProgram::new(NODE);
            self::changes(&Cluster::default(), &cluster).iter().for_each(|c| _ = c(&mut fresh));
            prop_assert_eq!(program.state(), fresh.state());
            prop_assert_eq!(program.class_count(), fresh.class_count());
            prop_assert_eq!(program.local_policies(), fresh.local_policies());
            old = cluster;
        }
        Ok(())
    });
}
