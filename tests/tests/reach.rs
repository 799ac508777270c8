//! Connectivity between classes against the oracle: expanded to pairs, it says the same.

use std::cell::Cell;
use std::collections::BTreeMap;

use portcullis_core::Program;
use portcullis_core::fold::fold;
use portcullis_core::model::{Cluster, Direction, Pod};
use portcullis_core::net::Family;
use portcullis_core::potential::{Description, Namespaces, potential};
use portcullis_core::program::Judgement;
use portcullis_core::reach::{Allowed, Opens, Reach, Unit};
use portcullis_tests::generate::{self, Counts, Flow, Size};
use portcullis_tests::oracle::{self, End, World};
use portcullis_tests::{engine, property, scenario};
use proptest::collection::vec;
use proptest::prelude::{Strategy, TestCaseError, any};

#[test]
fn reach_says_of_every_pair_what_the_oracle_says() {
    property::holds(generate::world(Size::SMALL), |world| agrees(&world, 20_000).map(drop));
}

#[test]
fn reach_agrees_with_the_oracle_where_many_policies_overlap() {
    let tried = Cell::new([0; 3]);
    property::holds((generate::world(Size::MEDIUM), any::<u64>()), |(mut world, bits)| {
        forget(&mut world, bits);
        let more = agrees(&world, 3_000)?;
        tried.set(std::array::from_fn(|i| tried.get()[i] + more[i]));
        Ok(())
    });
    assert!(tried.get().into_iter().all(|count| count > 50), "{tried:?}");
}

#[test]
fn reach_agrees_with_the_oracle_on_clusters_that_look_real() -> Result<(), TestCaseError> {
    for seed in 0..4 {
        let counts = Counts { namespaces: 4, nodes: 3, pods: 80, policies: 48 };
        agrees(&generate::cluster(seed, counts), 6_000)?;
    }
    Ok(())
}

#[test]
fn a_folded_table_has_every_cell_exactly_once() {
    let tables = (0..8usize).prop_flat_map(|width| vec(vec(0..4u32, width), 0..8));
    property::holds(tables, |table| {
        let mut left = table.clone();
        for product in fold(table) {
            for source in &product.sources {
                for destination in &product.destinations {
                    let cell = &mut left[*source][*destination];
                    proptest::prop_assert_eq!(*cell, product.value);
                    *cell = 0;
                }
            }
        }
        proptest::prop_assert!(left.iter().flatten().all(|cell| *cell == 0));
        Ok(())
    });
}

/// Takes facts out of a world.
fn forget(world: &mut World, bits: u64) {
    if bits & 1 == 0 {
        world.cluster.namespaces.clear();
    }
    for (i, pod) in world.cluster.pods.iter_mut().enumerate() {
        match bits >> (2 * i + 1) & 3 {
            0 => pod.addresses.clear(),
            1 => {
                pod.ports.clear();
                pod.ports_unknown = true;
            }
            _ => {}
        }
    }
}

/// Expands what is said of units to flows between their members.
///
/// Gives how many paths of each judgement there were.
fn agrees(world: &World, flows: usize) -> Result<[u64; 3], TestCaseError> {
    let mut tried = [0; 3];
    let cluster = engine::cluster(world);
    let program = Program::compile(&cluster);
    let mut reach = Reach::of(&program);
    let units = reach.units(&cluster);
    let table: Vec<Vec<Allowed>> = units.iter().map(|u| reach.unit_row(&units, u)).collect();
    for flow in generate::flows(world, flows) {
        let (Some(source), Some(destination)) =
            (unit(world, &units, flow.source), unit(world, &units, flow.destination))
        else {
            continue;
        };
        let mut paths = program.paths(engine::end(flow.source), engine::end(flow.destination));
        if paths.any(|path| program.exempt(&path).is_some()) {
            // Itself, or its own node: left out, and it passes always.
            continue;
        }
        let expected = oracle::allowed(world, flow.source, flow.destination, flow.traffic);
        let opens = |family: Family| match table[source][destination] {
            Allowed::Alike(opens) => Some(opens),
            Allowed::ByFamily(opens) => Some(opens[family as usize]),
            Allowed::NoFamily(_) => None,
        };
        let says = |family: Family| {
            let Opens { surely, perhaps } = opens(family)?;
            match [surely, perhaps].map(|set| reach.set(set).contains(flow.traffic)) {
                [true, _] => Some(Judgement::Allowed),
                [false, true] => Some(Judgement::Undetermined),
                [false, false] => Some(Judgement::Refused),
            }
        };
        let found: BTreeMap<Family, Judgement> =
            Family::ALL.into_iter().filter_map(|f| Some((f, says(f)?))).collect();
        let addressed = [flow.source, flow.destination].iter().all(|end| match end {
            End::Pod(pod) => !world.cluster.pods[*pod].addresses.is_empty(),
            End::Address(_) => true,
        });
        // The oracle goes by what is known, which is one of the ways that it can turn out, but for
        // an address: that will be somewhere.
        for (family, allowed) in &expected {
            let fits = match found.get(family) {
                Some(Judgement::Allowed) => *allowed || !addressed,
                Some(Judgement::Refused) => !allowed,
                Some(Judgement::Undetermined) => true,
                None => false,
            };
            if !fits {
                return differs(world, flow, &expected, &found);
            }
        }
        for path in program.paths(engine::end(flow.source), engine::end(flow.destination)) {
            let Some(family) = path.family() else { continue };
            let ends = Direction::ALL.map(|d| program.judge_end(&path, d, flow.traffic));
            if found.get(&family) != ends.iter().min() {
                return differs(world, flow, &expected, &found);
            }
            tried[ends[0].min(ends[1]) as usize] += 1;
        }
    }
    Ok(tried)
}

/// The unit that an end is in: none for a finished pod, and for an address that is somebody's.
fn unit(world: &World, units: &[Unit], end: End) -> Option<usize> {
    match end {
        End::Pod(pod) => units.iter().position(|unit| unit.pods.contains(&pod)),
        End::Address(address) => {
            let mut pods = world.cluster.pods.iter().filter(|pod| !pod.finished);
            if pods.any(|pod| pod.addresses.contains(&address)) {
                return None;
            }
            units.iter().position(|unit| unit.addresses.iter().any(|r| r.contains(address)))
        }
    }
}

fn differs(
    world: &World,
    flow: Flow,
    expected: &BTreeMap<Family, bool>,
    found: &BTreeMap<Family, Judgement>,
) -> Result<[u64; 3], TestCaseError> {
    let title = format!("Reach says {found:?}.");
    Err(TestCaseError::fail(scenario::write(&title, world, &[(flow, expected.clone())])))
}

/// Whether a pod is one that a description is about.
fn is_described(cluster: &Cluster, pod: &Pod, description: &Description) -> bool {
    let namespace = match &description.namespaces {
        Namespaces::Named(name) => pod.namespace == *name,
        Namespaces::Selected(selector) => {
            selector.matches(&cluster.namespace_labels(&pod.namespace))
        }
    };
    namespace && description.pods.matches(&pod.labels)
}

#[test]
fn a_pod_is_let_in_by_what_is_said_of_pods_that_could_exist_and_by_nothing_else() {
    let (allowed, refused) = (Cell::new(0), Cell::new(0));
    property::holds(generate::world(Size::MEDIUM), |mut world| {
        let cluster = &mut world.cluster;
        // Where nothing is known of addresses, nothing but descriptions can let a pod in.
        for pod in &mut cluster.pods {
            pod.addresses.clear();
            cluster.namespaces.entry(pod.namespace.clone()).or_default();
        }
        let flows = generate::flows(&world, 2_000);
        let cluster = engine::cluster(&world);
        let program = Program::compile(&cluster);
        let mut reach = Reach::of(&program);
        let units = reach.units(&cluster);
        let rows = potential(&cluster, &mut reach, &units, Direction::Ingress);
        for flow in flows {
            let (End::Pod(from), End::Pod(to)) = (flow.source, flow.destination) else { continue };
            let (source, destination) = (&cluster.pods[from], &cluster.pods[to]);
            let pods = [source, destination];
            if from == to || pods.iter().any(|pod| pod.finished || pod.host_network) {
                continue;
            }
            let unit = units.iter().position(|unit| unit.pods.contains(&to)).unwrap();
            let described = rows.iter().any(|(description, row)| {
                is_described(&cluster, source, description)
                    && reach.set(row[unit].set).contains(flow.traffic)
            });
            let (from, to) = (engine::end(flow.source), engine::end(flow.destination));
            let path = program.paths(from, to).next().unwrap();
            let judgement = program.judge_end(&path, Direction::Ingress, flow.traffic);
            proptest::prop_assert_eq!(
                described,
                judgement == Judgement::Allowed,
                "{:?} {:?} {:?}",
                flow,
                judgement,
                world
            );
            let count = if described { &allowed } else { &refused };
            count.set(count.get() + 1);
        }
        Ok(())
    });
    let (allowed, refused) = (allowed.get(), refused.get());
    assert!(allowed > 1_000 && refused > 1_000, "{allowed} allowed, {refused} not");
}
