//! Differences between states: held against the oracle, and turned round.

use std::collections::BTreeMap;

use portcullis_core::Program;
use portcullis_core::diff::{Diff, Joint, Kind, MayOpen, Side};
use portcullis_core::equivalent::{Equivalence, Someone, Witness, equivalent};
use portcullis_tests::generate::{self, Flow, Size};
use portcullis_tests::oracle::{self, End, World};
use portcullis_tests::{engine, property};
use proptest::prelude::Strategy;
use proptest::{prop_assert, prop_assert_eq};

/// One cluster with the policies of two worlds.
fn two_states() -> impl Strategy<Value = (World, World)> {
    (generate::world(Size::SMALL), generate::world(Size::SMALL)).prop_map(|(old, other)| {
        let new = World { cluster: old.cluster.clone(), policies: other.policies };
        (old, new)
    })
}

#[test]
fn a_state_does_not_differ_from_itself() {
    property::holds(generate::world(Size::MEDIUM), |world| {
        let cluster = engine::cluster(&world);
        let program = Program::compile(&cluster);
        let mut diff = Diff::of([&cluster; 2], [&program; 2]);
        for source in 0..diff.joints.len() {
            for [old, new] in diff.row(source) {
                prop_assert_eq!(diff.sets(Side::Old, old), diff.sets(Side::New, new));
            }
        }
        Ok(())
    });
}

#[test]
fn every_difference_is_one_for_the_oracle_and_has_a_cause() {
    property::holds(two_states(), |(old, new)| {
        let clusters = [engine::cluster(&old), engine::cluster(&new)];
        let programs = clusters.each_ref().map(Program::compile);
        let mut diff = Diff::of(clusters.each_ref(), programs.each_ref());
        let rows: Vec<_> = (0..diff.joints.len()).map(|source| diff.row(source)).collect();
        for flow in generate::flows(&old, 4_000).into_iter().chain(generate::flows(&new, 4_000)) {
            let ends = [flow.source, flow.destination].map(|end| joint(&old, &diff, end));
            let [Some(source), Some(destination)] = ends else { continue };
            let (from, to) = (engine::end(flow.source), engine::end(flow.destination));
            let mut paths = programs[0].paths(from, to);
            if paths.any(|path| programs[0].exempt(&path).is_some()) {
                continue;
            }
            let values = rows[source][destination];
            let addressed = [flow.source, flow.destination].iter().all(|end| match end {
                End::Pod(pod) => !old.cluster.pods[*pod].addresses.is_empty(),
                End::Address(_) => true,
            });
            for (side, world) in [(Side::Old, &old), (Side::New, &new)] {
                let Flow { traffic, .. } = flow;
                let expected = oracle::allowed(world, flow.source, flow.destination, traffic);
                let sets = diff.sets(side, values[side as usize]);
                for (family, allowed) in expected {
                    let MayOpen { surely, perhaps } = &sets[family as usize];
                    let (surely, perhaps) = (surely.contains(traffic), perhaps.contains(traffic));
                    // What is known is one of the ways that what is missing can turn out, but for
                    // an address: that will be somewhere.
                    let fits = if allowed { perhaps } else { !surely || !addressed };
                    prop_assert!(fits, "{:?} of {:?} in {:?}", flow, world, side);
                }
            }
            let [before, after] = Side::ALL.map(|side| diff.sets(side, values[side as usize]));
            let causes = diff.causes(source, destination, values);
            prop_assert_eq!(before == after, causes.is_empty(), "{:?} {:?}", values, causes);
        }
        Ok(())
    });
}

#[test]
fn turned_round_what_opened_closes_and_what_widened_narrows() {
    property::holds(two_states(), |(old, new)| {
        let clusters = [engine::cluster(&old), engine::cluster(&new)];
        let programs = clusters.each_ref().map(Program::compile);
        let forth = kinds(Diff::of(clusters.each_ref(), programs.each_ref()));
        let back = kinds(Diff::of([&clusters[1], &clusters[0]], [&programs[1], &programs[0]]));
        let turned = |kind: &Kind| match kind {
            Kind::Opened => Kind::Closed,
            Kind::Closed => Kind::Opened,
            Kind::Widened => Kind::Narrowed,
            Kind::Narrowed => Kind::Widened,
            Kind::Shifted => Kind::Shifted,
        };
        let forth: BTreeMap<_, Kind> =
            forth.into_iter().map(|(pair, kind)| (pair, turned(&kind))).collect();
        prop_assert_eq!(forth, back);
        Ok(())
    });
}

#[test]
fn what_only_the_new_state_has_opens() {
    property::holds(generate::world(Size::SMALL), |world| {
        let clusters = [engine::cluster(&World::default()), engine::cluster(&world)];
        let programs = clusters.each_ref().map(Program::compile);
        let found = kinds(Diff::of(clusters.each_ref(), programs.each_ref()));
        prop_assert!(found.values().all(|kind| *kind == Kind::Opened));
        Ok(())
    });
}

/// What becomes of each pair of pods, by name of either end; only what changes.
fn kinds(mut diff: Diff<'_>) -> BTreeMap<(usize, usize), Kind> {
    let mut kinds = BTreeMap::new();
    for source in 0..diff.joints.len() {
        for (destination, [old, new]) in diff.row(source).into_iter().enumerate() {
            let (old, new) = (diff.sets(Side::Old, old), diff.sets(Side::New, new));
            if old == new {
                continue;
            }
            for from in &diff.joints[source].pods {
                for to in &diff.joints[destination].pods {
                    kinds.insert((*from, *to), Kind::between(&old, &new));
                }
            }
        }
    }
    kinds
}

/// The joint of an end; none for a finished pod, and for an address that is somebody's.
fn joint(world: &World, diff: &Diff<'_>, end: End) -> Option<usize> {
    match end {
        End::Pod(pod) => {
            let number = diff.pods.iter().position(|[old, _]| *old == Some(pod))?;
            diff.joints.iter().position(|joint| joint.pods.contains(&number))
        }
        End::Address(address) => {
            let mut pods = world.cluster.pods.iter().filter(|pod| !pod.finished);
            if pods.any(|pod| pod.addresses.contains(&address)) {
                return None;
            }
            let has = |joint: &Joint| joint.addresses.iter().any(|r| r.contains(address));
            diff.joints.iter().position(has)
        }
    }
}

/// Enough for every pair of small worlds.
const STEPS: u64 = 200_000;

/// A world as it is, and as somebody rewrote it without changing its meaning, or with a slip.
fn rewritten() -> impl Strategy<Value = (World, World)> {
    let slips = proptest::collection::vec((0..7u8, proptest::prelude::any::<usize>()), 0..4);
    (generate::world(Size::SMALL), slips).prop_map(|(old, slips)| {
        let mut new = old.clone();
        for (how, at) in slips {
            let count = new.policies.len();
            if count == 0 {
                break;
            }
            if how == 6 {
                // A namespace that is labelled otherwise.
                if let Some(labels) = new.cluster.namespaces.values_mut().next() {
                    labels.insert("team".to_owned(), "a".to_owned());
                }
                continue;
            }
            let policy = &mut new.policies[at % count];
            let rules = match at % 2 {
                0 => policy.spec.ingress.as_mut(),
                _ => policy.spec.egress.as_mut(),
            };
            match (how, rules) {
                (0, _) => new.policies.reverse(),
                (1, _) => {
                    let again = new.policies[at % count].clone();
                    new.policies.push(again);
                }
                (2, Some(rules)) => rules.reverse(),
                (3, Some(rules)) if !rules.is_empty() => {
                    // A rule of its own for each peer.
                    let rule = rules.remove(at % rules.len());
                    for peer in rule.peers.clone().unwrap_or_default() {
                        rules.push(portcullis_core::api::Rule {
                            peers: Some(vec![peer]),
                            ..rule.clone()
                        });
                    }
                    if rule.peers.clone().unwrap_or_default().is_empty() {
                        rules.push(rule);
                    }
                }
                (4, Some(rules)) if !rules.is_empty() => _ = rules.remove(at % rules.len()),
                (5, _) => _ = new.policies.remove(at % count),
                _ => {}
            }
        }
        (old, new)
    })
}

/// A world with the ends of a witness in it and nobody else, and the flow between them.
fn staged(world: &World, witness: &Witness) -> (World, Flow) {
    let mut staged = world.clone();
    staged.cluster.pods.clear();
    staged.cluster.nodes.clear();
    let mut end = |someone: &Someone| match someone {
        Someone::Outside(address) => End::Address(*address),
        Someone::Pod(pod, namespace) => {
            if let Some(labels) = namespace {
                let known = staged.cluster.namespaces.insert(pod.namespace.clone(), labels.clone());
                assert!(known.is_none_or(|known| known == *labels), "{witness:?}");
            }
            staged.cluster.pods.push((**pod).clone());
            End::Pod(staged.cluster.pods.len() - 1)
        }
    };
    let (source, destination) = (end(&witness.source), end(&witness.destination));
    (staged, Flow { source, destination, traffic: witness.traffic })
}

#[test]
fn a_witness_is_a_real_difference_and_equal_states_have_none() {
    let (equal, differ) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
    // Half of the pairs have little in common.
    let pairs = proptest::prop_oneof![3 => rewritten(), 1 => two_states()];
    property::holds((pairs, generate::world(Size::MEDIUM)), |((old, new), others)| {
        let clusters = [engine::cluster(&old), engine::cluster(&new)];
        match equivalent(clusters.each_ref(), STEPS) {
            Equivalence::NotDecided => prop_assert!(false, "too many steps: {:?} {:?}", old, new),
            Equivalence::Differs(witness) => {
                differ.set(differ.get() + 1);
                let answers = [&old, &new].map(|world| {
                    let (world, flow) = staged(world, &witness);
                    oracle::allowed(&world, flow.source, flow.destination, flow.traffic)
                });
                let all = |side: Side| answers[side as usize].values().all(|allowed| *allowed);
                let none = |side: Side| !answers[side as usize].values().any(|allowed| *allowed);
                let other = Side::ALL[1 - witness.allowed as usize];
                prop_assert!(all(witness.allowed), "{:?} {:?} {:?}", witness, old, new);
                prop_assert!(none(other), "{:?} {:?} {:?}", witness, old, new);
            }
            Equivalence::Equal => {
                equal.set(equal.get() + 1);
                let peopled = |world: &World| {
                    let mut cluster = others.cluster.clone();
                    cluster.pods.retain(|pod| !pod.addresses.is_empty());
                    cluster.namespaces.extend(world.cluster.namespaces.clone());
                    World { cluster, policies: world.policies.clone() }
                };
                let [old, new] = [peopled(&old), peopled(&new)];
                for flow in generate::flows(&old, 3_000) {
                    let Flow { source, destination, traffic } = flow;
                    let [before, after] = [&old, &new]
                        .map(|world| oracle::allowed(world, source, destination, traffic));
                    prop_assert_eq!(before, after, "{:?} {:?} {:?}", flow, old, new);
                }
            }
        }
        Ok(())
    });
    let (equal, differ) = (equal.get(), differ.get());
    assert!(equal > 20 && differ > 20, "{equal} were equal, {differ} differed");
}
