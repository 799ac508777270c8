//! Connectivity between classes against the oracle: expanded to pairs, it says the same.

use std::collections::BTreeMap;

use portcullis_core::Program;
use portcullis_core::fold::fold;
use portcullis_core::net::Family;
use portcullis_core::reach::{Allowed, Reach, SetId, Unit};
use portcullis_tests::generate::{self, Counts, Flow, Size};
use portcullis_tests::oracle::{self, End, World};
use portcullis_tests::{engine, property, scenario};
use proptest::collection::vec;
use proptest::prelude::{Strategy, TestCaseError};

#[test]
fn reach_says_of_every_pair_what_the_oracle_says() {
    property::holds(generate::world(Size::SMALL), |world| agrees(&world, 20_000));
}

#[test]
fn reach_agrees_with_the_oracle_where_many_policies_overlap() {
    property::holds(generate::world(Size::MEDIUM), |world| agrees(&world, 3_000));
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

/// Expands what is said of units to flows between their members.
fn agrees(world: &World, flows: usize) -> Result<(), TestCaseError> {
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
        let allows = |set: SetId| reach.set(set).contains(flow.traffic);
        let found: BTreeMap<Family, bool> = match table[source][destination] {
            Allowed::Alike(set) => expected.keys().map(|f| (*f, allows(set))).collect(),
            Allowed::ByFamily(sets) => Family::ALL.into_iter().zip(sets.map(allows)).collect(),
            Allowed::NoFamily(_) => BTreeMap::new(),
        };
        if found != expected {
            return differs(world, flow, &expected, &found);
        }
    }
    Ok(())
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
    found: &BTreeMap<Family, bool>,
) -> Result<(), TestCaseError> {
    let title = format!("Reach says {found:?}.");
    Err(TestCaseError::fail(scenario::write(&title, world, &[(flow, expected.clone())])))
}
