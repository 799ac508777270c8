//! Whatever the events, what is enforced is what a full compile of the last state says.
#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use portcullis_agent::{Agent, Desired, Metrics};
use portcullis_core::model::Cluster;
use portcullis_dataplane::{Dataplane, Fake, plan::plan};
use portcullis_kube::live::{Event, Kind, Known, Object};
use portcullis_tests::engine::cluster;
use portcullis_tests::generate::{Size, world};
use proptest::collection::vec;
use proptest::prelude::{Strategy, any};
use proptest::test_runner::TestCaseError;

fn objects(cluster: &Cluster, kind: Kind) -> Vec<Object> {
    let known: Vec<Known> = match kind {
        Kind::Policy => cluster.policies.iter().cloned().map(Known::Policy).collect(),
        Kind::Pod => cluster.pods.iter().cloned().map(Known::Pod).collect(),
        Kind::Node => cluster.nodes.iter().cloned().map(Known::Node).collect(),
        Kind::Namespace => {
            let namespaces = cluster.namespaces.iter();
            namespaces
                .map(|(name, labels)| {
                    let mode = cluster.modes.get(name).copied();
                    Known::Namespace(name.clone(), labels.clone(), mode)
                })
                .collect()
        }
    };
    known.into_iter().map(Object::from).collect()
}

/// The next of a row of numbers that look random.
fn draw(row: &mut u64, below: usize) -> usize {
    *row = row.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*row >> 33) as usize % below.max(1)
}

fn shuffle<T>(row: &mut u64, things: &mut [T]) {
    for i in (1..things.len()).rev() {
        things.swap(i, draw(row, i + 1));
    }
}

fn same_object(a: &Object, b: &Object) -> bool {
    (a.body.kind(), a.body.name()) == (b.body.kind(), b.body.name())
}

/// Events that lead from one state to the next: a list of a kind, or what changed, each at least
/// once and in any order; and sometimes things that were true in between. Those of one object, and
/// of one list, keep their order, as those of a watch do; all else is mixed.
fn events(row: &mut u64, old: &Cluster, new: &Cluster, first: bool) -> Vec<Event> {
    let mut queues: Vec<VecDeque<Event>> = Vec::new();
    for kind in Kind::ALL {
        let (before, mut after) = (objects(old, kind), objects(new, kind));
        if first || draw(row, 3) == 0 {
            // In a list, an object can come twice: as it was, and as it is. A list can break off,
            // and begin again.
            let mut listed: Vec<Object> = Vec::new();
            let changed = before.into_iter().filter(|b| after.iter().any(|a| same_object(a, b)));
            listed.extend(changed);
            shuffle(row, &mut after);
            listed.extend(after);
            let mut list = VecDeque::new();
            if draw(row, 3) == 0 {
                list.push_back(Event::Listing(kind));
                let part = draw(row, listed.len() + 1);
                list.extend(listed[..part].iter().cloned().map(Event::Applied));
                list.push_back(Event::Failed(kind, "broken off".to_owned()));
            }
            list.push_back(Event::Listing(kind));
            list.extend(listed.into_iter().map(Event::Applied));
            list.push_back(Event::Listed(kind));
            queues.push(list);
            continue;
        }
        let gone = before.iter().filter(|b| !after.iter().any(|a| same_object(a, b)));
        for object in gone {
            let (namespace, name) = object.body.name();
            let deleted = Event::Deleted(kind, namespace.to_owned(), name.to_owned());
            let mut queue = VecDeque::new();
            if draw(row, 2) == 0 {
                queue.push_back(Event::Applied(object.clone()));
            }
            queue.extend(vec![deleted; 1 + draw(row, 2)]);
            queues.push(queue);
        }
        for object in &after {
            let old = before.iter().find(|b| same_object(object, b));
            if old != Some(object) || draw(row, 4) == 0 {
                let mut queue = VecDeque::new();
                if let Some(old) = old.filter(|_| draw(row, 2) == 0) {
                    queue.push_back(Event::Applied(old.clone()));
                }
                queue.extend(vec![Event::Applied(object.clone()); 1 + draw(row, 2)]);
                queues.push(queue);
            }
        }
        if draw(row, 3) == 0 {
            queues.push([Event::Failed(kind, "gone for a while".to_owned())].into());
        }
    }
    let mut mixed = Vec::new();
    while !queues.is_empty() {
        let i = draw(row, queues.len());
        mixed.extend(queues[i].pop_front());
        if queues[i].is_empty() {
            queues.swap_remove(i);
        }
    }
    mixed
}

#[test]
fn every_sequence_of_events_ends_in_the_state_of_the_full_set() {
    let size = Size { namespaces: 3, nodes: 2, pods: 6, policies: 4 };
    let inputs = (vec(world(size), 1..6), any::<u64>());
    let inputs = inputs
        .prop_map(|(worlds, row)| (worlds.iter().map(cluster).collect::<Vec<Cluster>>(), row));
    portcullis_tests::property::holds(inputs, |(clusters, mut row)| {
        let node = "node-1";
        let metrics = Arc::new(Mutex::new(Metrics::default()));
        let mut agent = Agent::new(node, Fake::new(), metrics);
        let mut old = Cluster::default();
        for (i, cluster) in clusters.iter().enumerate() {
            for event in events(&mut row, &old, cluster, i == 0) {
                agent.hear(event, Instant::now());
                // Events come one by one, or many at once.
                if draw(&mut row, 5) == 0 {
                    agent.step();
                }
            }
            agent.step();
            let wanted = Desired::of(cluster, node);
            if agent.in_force() != Some(&wanted.state) {
                return Err(TestCaseError::fail(format!("{:?}\n{wanted:?}", agent.in_force())));
            }
            let plan = plan(&wanted.state).unwrap();
            if *agent.dataplane().plan() != plan {
                return Err(TestCaseError::fail("the data plane has another plan"));
            }
            old = cluster.clone();
        }
        Ok(())
    });
}

#[test]
fn nothing_is_enforced_before_all_kinds_are_known() {
    let mut agent = Agent::new("n", Fake::new(), Arc::default());
    for kind in Kind::ALL {
        agent.step();
        assert_eq!(agent.in_force(), None);
        agent.hear(Event::Listing(kind), Instant::now());
        agent.hear(Event::Listed(kind), Instant::now());
    }
    agent.step();
    assert!(agent.in_force().is_some());
}

#[test]
fn what_does_not_concern_the_node_is_not_applied() {
    let metrics = Arc::<Mutex<Metrics>>::default();
    let mut agent = Agent::new("n", Fake::new(), metrics.clone());
    for kind in Kind::ALL {
        agent.hear(Event::Listing(kind), Instant::now());
        agent.hear(Event::Listed(kind), Instant::now());
    }
    agent.step();
    let labels = [("team".to_owned(), "a".to_owned())].into();
    let namespace = Object::from(Known::Namespace("shop".to_owned(), labels, None));
    agent.hear(Event::Applied(namespace), Instant::now());
    agent.step();
    assert_eq!(metrics.lock().unwrap().applies(), 1);
    assert!(agent.dataplane().hits().unwrap().is_empty());
}
