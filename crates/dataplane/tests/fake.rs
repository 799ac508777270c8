//! The plan, interpreted as the kernel would, against what the state says.

#![allow(clippy::unwrap_used, reason = "clippy allows it in the tests, but not beside them")]

mod random;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use portcullis_core::net::{Family, Protocol};
use portcullis_dataplane::plan::{ChainId, Direction, plan};
use portcullis_dataplane::state::{Entry, NodeState, PeerSet, Ports, Profile};
use portcullis_dataplane::{Dataplane, Error, Fake, Packet, Violation};
use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, prop_assert, prop_assert_eq, proptest};

/// The entries of one end that allow the packet; `None` if the end imposes nothing.
fn allowing<'a>(
    state: &'a NodeState,
    local: IpAddr,
    remote: IpAddr,
    direction: fn(&Profile) -> Option<&[Entry]>,
    packet: &Packet,
) -> Option<Vec<&'a Entry>> {
    let profile = &state.profiles[state.endpoints.get(&local)?];
    let entries = direction(profile)?;
    let allows = |entry: &&Entry| {
        let peer = entry.peers.is_none_or(|peers| state.peers[&peers].contains(remote));
        let port = entry.ports.is_none_or(|ports| {
            ports.protocol.number() == packet.protocol
                && packet.port.is_some_and(|port| ports.first <= port && port <= ports.last)
        });
        peer && port
    };
    Some(entries.iter().filter(allows).collect())
}

/// Entries of one form are looked up together, so that all of them count. `None` where a peer set
/// is too large or too mixed to tell from here.
fn form(state: &NodeState, entry: &Entry) -> Option<(&'static str, &'static str)> {
    let ports = match entry.ports {
        None => "none",
        Some(ports) if ports.first == ports.last => "exact",
        Some(_) => "range",
    };
    match entry.peers.map(|peers| &state.peers[&peers]) {
        None => Some(("any", "")),
        Some(PeerSet::Addresses(addresses)) if addresses.len() <= 64 => Some(("addresses", ports)),
        Some(PeerSet::Ranges(_)) if ports != "exact" => Some(("ranges", ports)),
        Some(_) => None,
    }
}

fn counts(fake: &mut Fake) -> BTreeMap<u32, (u64, u64)> {
    let hits = fake.hits().unwrap();
    hits.into_iter().map(|hits| (hits.origin, (hits.packets, hits.bytes))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn a_connection_passes_if_both_ends_allow_it_and_counts_for_what_allowed_it(
        state in random::state(),
        packets in vec(random::packet(), 40),
    ) {
        let mut fake = Fake::new();
        fake.apply(&state).unwrap();
        for packet in packets {
            let Packet { source, destination, .. } = packet;
            let own = source == destination && state.endpoints.contains_key(&source);
            let ends = [
                allowing(&state, source, destination, |profile| profile.egress.as_deref(), &packet),
                allowing(&state, destination, source, |profile| profile.ingress.as_deref(), &packet),
            ];
            let audited = |local: IpAddr, of: fn(&Profile) -> bool| {
                let profile = state.endpoints.get(&local).map(|number| &state.profiles[number]);
                state.audit || profile.is_some_and(of)
            };
            let audited = [
                audited(source, |profile| profile.audit_egress),
                audited(destination, |profile| profile.audit_ingress),
            ];
            let refused = ends.iter().zip(audited).position(|(end, audited)| {
                !audited && end.as_ref().is_some_and(Vec::is_empty)
            });
            let unprogrammed = [source, destination].iter().any(|address| {
                let local = state.ranges.iter().any(|range| range.contains(*address));
                local && !state.endpoints.contains_key(address)
            });

            let before = counts(&mut fake);
            let closed = unprogrammed && !state.audit;
            let passes = own || !closed && refused.is_none();
            prop_assert_eq!(fake.passes(&packet), passes, "{:?}", packet);
            let mut counted = counts(&mut fake);
            counted.retain(|origin, count| before.get(origin) != Some(count));
            let counted: BTreeSet<u32> = counted.into_keys().collect();

            // Ends before the one that refuses have counted.
            let judged = if own || unprogrammed { 0 } else { refused.unwrap_or(ends.len()) };
            let mut may_count = BTreeSet::new();
            let mut exact = true;
            // What is only audited counts for nobody.
            for end in ends[..judged].iter().flatten().filter(|end| !end.is_empty()) {
                let origins: BTreeSet<u32> = end.iter().map(|entry| entry.origin).collect();
                prop_assert!(!counted.is_disjoint(&origins), "{:?} counted for none", packet);
                may_count.extend(origins);
                let first = form(&state, end[0]);
                exact &= first.is_some() && end.iter().all(|entry| form(&state, entry) == first);
            }
            prop_assert!(counted.is_subset(&may_count), "{:?}: {:?}", packet, counted);
            if exact {
                prop_assert_eq!(counted, may_count, "{:?}", packet);
            }
        }
    }

    #[test]
    fn equal_states_have_equal_plans(state in random::state()) {
        prop_assert_eq!(plan(&state).unwrap(), plan(&state.clone()).unwrap());
    }
}

/// One pod at 10.0.0.1 with this ingress.
fn pod(ingress: Vec<Entry>, peers: Vec<PeerSet>) -> NodeState {
    NodeState {
        endpoints: [("10.0.0.1".parse().unwrap(), 0)].into(),
        profiles: [(0, Profile { ingress: Some(ingress.into()), ..Profile::default() })].into(),
        peers: (0..).zip(peers).collect(),
        ..NodeState::default()
    }
}

fn to_pod(source: &str) -> Packet {
    let (source, destination) = (source.parse().unwrap(), "10.0.0.1".parse().unwrap());
    Packet { source, destination, protocol: 6, port: Some(80), bytes: 60 }
}

#[test]
fn more_large_peer_sets_than_a_chain_looks_into_are_copied_and_still_count_apart() {
    let set = |n: u32| (0..600).map(move |i| IpAddr::V4((0x0b00_0000 + n * 1000 + i).into()));
    let peers: Vec<_> = (0..12).map(|n| PeerSet::Addresses(set(n).collect())).collect();
    let entry = |n| Entry { peers: Some(n), ports: None, origin: n };
    let mut fake = Fake::new();
    fake.apply(&pod((0..12).map(entry).collect(), peers)).unwrap();
    let chain = fake.plan().chain(ChainId::Profile(0, Direction::Ingress)).unwrap();
    let lookups = chain.rules.len() - 1;
    assert_eq!(lookups, 9, "8 shared sets and the set of copies");
    for n in 0..12 {
        let source = IpAddr::V4((0x0b00_0000 + n * 1000 + 599).into());
        assert!(fake.passes(&to_pod(&source.to_string())));
    }
    let hits: Vec<_> = counts(&mut fake).into_iter().collect();
    assert_eq!(hits, (0..12).map(|n| (n, (1, 60))).collect::<Vec<_>>());
}

#[test]
fn a_large_peer_set_is_one_set_for_all_profiles_and_ports() {
    let many = (0..5000).map(|i| IpAddr::V4((0x0b00_0000 + i).into())).collect();
    let ports = |first, last| Some(Ports { protocol: Protocol::Tcp, first, last });
    let mut state = pod(
        vec![
            Entry { peers: Some(0), ports: ports(80, 80), origin: 0 },
            Entry { peers: Some(0), ports: ports(90, 99), origin: 1 },
        ],
        vec![PeerSet::Addresses(many)],
    );
    let entry = Entry { peers: Some(0), ports: None, origin: 0 };
    state.profiles.insert(1, Profile { ingress: Some([entry].into()), ..Profile::default() });
    state.endpoints.insert("10.0.0.2".parse().unwrap(), 1);
    let plan = plan(&state).unwrap();
    let large: Vec<_> = plan.sets.values().filter(|set| set.len() >= 5000).collect();
    assert_eq!(large.len(), 1);
    assert!(!large[0].counted);
}

#[test]
fn all_pods_on_some_ports_are_one_set_however_many_profiles_allow_them() {
    let elements = |pods: u32| {
        let all = (0..pods).map(|i| IpAddr::V4((0x0b00_0000 + i).into())).collect();
        let mut state = pod(vec![], vec![PeerSet::Addresses(all)]);
        state.profiles = (0..25)
            .map(|profile: u32| {
                let entry = |n: u16| Entry {
                    peers: Some(0),
                    ports: Some(Ports { protocol: Protocol::Tcp, first: 80 + n, last: 80 + n }),
                    origin: profile * 3 + u32::from(n),
                };
                (
                    profile,
                    Profile { ingress: Some((0..3).map(entry).collect()), ..Profile::default() },
                )
            })
            .collect();
        plan(&state).unwrap().sets.values().map(|set| set.len()).sum::<usize>()
    };
    // The set, three ports in the map of each profile, and the one endpoint in two places.
    assert_eq!(elements(1000), 1000 + 25 * 3 + 2);
    assert_eq!(elements(4000), 4000 + 25 * 3 + 2);
}

#[test]
fn a_state_that_names_what_it_does_not_have_is_refused() {
    let entry = Entry { peers: Some(3), ports: None, origin: 0 };
    let error = Fake::new().apply(&pod(vec![entry], vec![])).unwrap_err();
    assert_eq!(
        error.to_string(),
        "profile 0, ingress entry 0 names peer set 3, which is not there"
    );

    let mut state = pod(vec![], vec![]);
    state.endpoints.insert("10.0.0.9".parse().unwrap(), 4);
    let error = Fake::new().apply(&state).unwrap_err();
    assert_eq!(error.to_string(), "endpoint 10.0.0.9 names profile 4, which is not there");

    let ports = Some(Ports { protocol: Protocol::Udp, first: 9, last: 8 });
    let error = Fake::new().apply(&pod(vec![Entry { peers: None, ports, origin: 0 }], vec![]));
    assert_eq!(
        error.unwrap_err().to_string(),
        "profile 0, ingress entry 0 has the range 9-8, which is not from low to high in one family"
    );
}

#[test]
fn after_an_error_the_state_before_is_enforced() {
    let mut fake = Fake::new();
    fake.apply(&pod(vec![], vec![])).unwrap();
    let bad = Entry { peers: Some(7), ports: None, origin: 7 };
    fake.apply(&pod(vec![bad], vec![])).unwrap_err();
    assert!(!fake.passes(&to_pod("10.9.9.9")));
}

#[test]
fn after_removal_everything_passes() {
    let mut fake = Fake::new();
    fake.apply(&pod(vec![], vec![])).unwrap();
    assert!(!fake.passes(&to_pod("10.9.9.9")));
    fake.remove().unwrap();
    fake.remove().unwrap();
    assert!(fake.passes(&to_pod("10.9.9.9")));
}

#[test]
fn the_fake_refuses_what_the_kernel_would_refuse() {
    use portcullis_dataplane::plan::{Elements, Expression, Plan, Rule, Set, SetId, Verdict};
    use std::sync::Arc;

    let good = plan(&pod(
        vec![Entry { peers: Some(0), ports: None, origin: 0 }],
        vec![PeerSet::Addresses(["10.1.0.1".parse().unwrap()].into_iter().collect())],
    ))
    .unwrap();
    let violation = |spoil: &dyn Fn(&mut Plan)| {
        let mut plan = good.clone();
        spoil(&mut plan);
        match Fake::new().apply_plan(plan).unwrap_err() {
            Error::Contract(violation) => violation,
            other => panic!("{other}"),
        }
    };
    let verdict = |verdict| Rule(vec![Expression::Verdict(verdict)]);
    let chain = ChainId::Profile(0, Direction::Ingress);
    let set = SetId::Addresses(chain, Family::V4);
    let nowhere = ChainId::Profile(9, Direction::Ingress);
    let add = |plan: &mut Plan, rule| {
        Arc::make_mut(plan.chains.get_mut(&chain).unwrap()).rules.push(rule);
    };
    let elements = |plan: &mut Plan, spoil: &dyn Fn(&mut Set)| {
        spoil(Arc::make_mut(plan.sets.get_mut(&set).unwrap()));
    };

    assert!(matches!(
        violation(&|plan| plan.chains.retain(|id, _| *id == ChainId::Base)),
        Violation::DanglingChain { .. }
    ));
    assert!(matches!(
        violation(&|plan| drop(plan.sets.remove(&set))),
        Violation::DanglingSet { .. }
    ));
    assert!(matches!(
        violation(&|plan| add(plan, verdict(Verdict::Jump(nowhere)))),
        Violation::DanglingChain { .. }
    ));
    assert!(matches!(
        violation(&|plan| add(plan, verdict(Verdict::Goto(chain)))),
        Violation::Depth(_)
    ));
    assert!(matches!(violation(&|plan| add(plan, Rule(vec![]))), Violation::Unreachable(_)));
    assert!(matches!(
        violation(&|plan| elements(plan, &|set| {
            if let Elements::Listed(elements) = &mut set.elements {
                elements.push(elements[0]);
            }
        })),
        Violation::Overlap { .. }
    ));
    assert!(matches!(
        violation(&|plan| elements(plan, &|set| {
            if let Elements::Listed(elements) = &mut set.elements {
                elements[0].verdict = Some(Verdict::Drop);
            }
        })),
        Violation::WrongElement { .. }
    ));
    assert!(matches!(
        violation(&|plan| {
            let selves = plan.sets[&SetId::Selves(Family::V4)].clone();
            plan.sets.insert(set, selves);
        }),
        Violation::WrongLookup { .. }
    ));
    assert!(matches!(
        violation(&|plan| elements(plan, &|set| set.origins.clear())),
        Violation::DanglingOrigins { .. }
    ));
}
