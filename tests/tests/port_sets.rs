//! What may be opened between two ends, as sets: the engine's against the oracle's, and both against
//! their own answers for single connections.

use std::collections::BTreeMap;

use portcullis_core::Program;
use portcullis_core::net::Family;
use portcullis_core::portset::PortSet;
use portcullis_core::program::Ports;
use portcullis_core::reach::{Allowed, Opens, Reach, Unit};
use portcullis_tests::generate::{self, Counts, Size};
use portcullis_tests::oracle::{self, End, Opened, World};
use portcullis_tests::{engine, manifests, property, scenario};
use proptest::prelude::TestCaseError;

#[test]
fn reach_opens_between_every_pair_what_the_oracle_opens() {
    property::holds(generate::world(Size::SMALL), |world| agrees(&world, usize::MAX));
}

#[test]
fn reach_opens_what_the_oracle_opens_where_many_policies_overlap() {
    property::holds(generate::world(Size::MEDIUM), |world| agrees(&world, 400));
}

#[test]
fn reach_opens_what_the_oracle_opens_on_clusters_that_look_real() -> Result<(), TestCaseError> {
    for seed in 0..4 {
        let counts = Counts { namespaces: 4, nodes: 3, pods: 80, policies: 48 };
        agrees(&generate::cluster(seed, counts), 4_000)?;
    }
    Ok(())
}

#[test]
fn the_oracle_opens_exactly_what_it_allows() {
    property::holds(generate::world(Size::SMALL), |world| {
        for flow in generate::flows(&world, 2_000) {
            let expected = oracle::allowed(&world, flow.source, flow.destination, flow.traffic);
            let opened = oracle::opened(&world, flow.source, flow.destination);
            let found: BTreeMap<Family, bool> =
                opened.iter().map(|(f, opened)| (*f, opened.contains(flow.traffic))).collect();
            if found != expected {
                let title = format!("Opened are {opened:?}.");
                let text = scenario::write(&title, &world, &[(flow, expected)]);
                return Err(TestCaseError::fail(text));
            }
        }
        Ok(())
    });
}

/// Compares the sets of so many pairs of ends, evenly spread.
fn agrees(world: &World, most: usize) -> Result<(), TestCaseError> {
    let program = Program::compile(&engine::cluster(world));
    let mut reach = Reach::of(&program);
    let ends = generate::ends(world);
    let units: Vec<Unit> = ends.iter().map(|end| unit(&program, &mut reach, *end)).collect();
    let table: Vec<Vec<Allowed>> = units.iter().map(|u| reach.unit_row(&units, u)).collect();
    let pairs = ends.len() * ends.len();
    for n in (0..pairs).step_by(pairs.div_ceil(most).max(1)) {
        let (source, destination) = (n / ends.len(), n % ends.len());
        let expected = oracle::opened(world, ends[source], ends[destination]);
        let of = |family: Family, opens: Opens| {
            // Where a fact is missing the oracle goes by what is known: that is another suite's.
            match opens.surely == opens.perhaps && addressed(world, ends[source], ends[destination])
            {
                true => as_opened(reach.set(opens.surely)),
                false => expected.get(&family).cloned().unwrap_or_default(),
            }
        };
        let mut found: BTreeMap<Family, Opened> = match table[source][destination] {
            Allowed::Alike(opens) => expected.keys().map(|f| (*f, of(*f, opens))).collect(),
            Allowed::ByFamily(opens) => {
                Family::ALL.into_iter().zip(opens).map(|(f, opens)| (f, of(f, opens))).collect()
            }
            Allowed::NoFamily(_) => BTreeMap::new(),
        };
        // Itself, and its own node: Reach leaves them out, and they pass always.
        for path in program.paths(engine::end(ends[source]), engine::end(ends[destination])) {
            if program.exempt(&path).is_some() {
                let always =
                    found.iter_mut().filter(|(f, _)| path.family().is_none_or(|p| p == **f));
                always.for_each(|(_, opened)| *opened = as_opened(&PortSet::Everything));
            }
        }
        if found != expected {
            let ends = [ends[source], ends[destination]];
            let world = manifests::yaml(world);
            let reason = format!("{ends:?}: found {found:?},\n# not {expected:?}.\n{world}");
            return Err(TestCaseError::fail(reason));
        }
    }
    Ok(())
}

/// Whether both ends have an address.
fn addressed(world: &World, source: End, destination: End) -> bool {
    [source, destination].iter().all(|end| match end {
        End::Pod(pod) => !world.cluster.pods[*pod].addresses.is_empty(),
        End::Address(_) => true,
    })
}

/// An end on its own.
fn unit(program: &Program, reach: &mut Reach, end: End) -> Unit {
    let classes = match end {
        End::Pod(pod) => reach.pod(pod),
        End::Address(address) => {
            let endpoints = program.endpoints(engine::end(end)).into_iter().flatten();
            let mut classes = [None; 2];
            for endpoint in endpoints {
                classes[Family::of(address) as usize] = Some(reach.class(&endpoint));
            }
            classes
        }
    };
    Unit { pods: Vec::new(), addresses: Vec::new(), classes }
}

/// The engine's set in the oracle's terms.
fn as_opened(set: &PortSet) -> Opened {
    let mut opened = Opened::default();
    match set {
        PortSet::Everything => opened.everything = true,
        PortSet::Ports(ports) => {
            for Ports { protocol, first, last } in ports {
                opened.ports.entry(*protocol).or_default().push((*first, *last));
            }
        }
    }
    opened
}
