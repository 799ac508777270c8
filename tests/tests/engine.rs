//! The engine and the fake nodes against the oracle, on random worlds.

use std::collections::BTreeMap;
use std::fmt::Debug;

use portcullis_core::Program;
use portcullis_core::net::Family;
use portcullis_core::program::Effect;
use portcullis_tests::generate::{self, Counts, Flow, Size};
use portcullis_tests::nodes::Nodes;
use portcullis_tests::oracle::{self, End, World};
use portcullis_tests::{engine, property, scenario};
use proptest::prelude::TestCaseError;

#[test]
fn the_engine_agrees_with_the_oracle_on_every_flow_of_small_worlds() {
    property::holds(generate::world(Size::SMALL), |world| engine_agrees(&world, 20_000));
}

#[test]
fn the_engine_agrees_with_the_oracle_where_many_policies_overlap() {
    property::holds(generate::world(Size::MEDIUM), |world| engine_agrees(&world, 2_000));
}

#[test]
fn the_order_of_policies_changes_nothing() {
    property::holds(generate::world(Size::MEDIUM), |world| {
        let mut reversed = world.clone();
        reversed.policies.reverse();
        engine_agrees(&reversed, 500)
    });
}

#[test]
fn the_nodes_let_pass_what_the_oracle_allows() {
    property::holds(generate::world(Size::SMALL), |world| nodes_agree(&world, 5_000));
}

#[test]
fn the_nodes_let_pass_what_the_oracle_allows_where_many_policies_overlap() {
    property::holds(generate::world(Size::MEDIUM), |world| nodes_agree(&world, 1_000));
}

#[test]
fn the_engine_and_the_nodes_agree_with_the_oracle_on_clusters_that_look_real()
-> Result<(), TestCaseError> {
    for seed in 0..4 {
        let counts = Counts { namespaces: 4, nodes: 3, pods: 80, policies: 48 };
        let world = generate::cluster(seed, counts);
        engine_agrees(&world, 4_000)?;
        nodes_agree(&world, 2_000)?;
    }
    Ok(())
}

fn engine_agrees(world: &World, flows: usize) -> Result<(), TestCaseError> {
    let program = Program::compile(&engine::cluster(world));
    for flow in generate::flows(world, flows) {
        let Flow { source, destination, traffic } = flow;
        let expected = oracle::allowed(world, source, destination, traffic);
        let found = engine::allowed(&program, &flow);
        if found != expected {
            return differs(world, flow, &expected, &found);
        }
        let (expected_through, through) = (
            oracle::forwarded(world, source, destination, traffic),
            engine::forwarded(&program, &flow),
        );
        if through != expected_through {
            return differs(world, flow, &expected_through, &format!("passing: {through:?}"));
        }
        let verdict =
            program.closed_verdict(engine::end(source), engine::end(destination), traffic);
        if verdict != engine::verdict(&expected) {
            return differs(world, flow, &expected, &verdict);
        }
        if let (End::Address(source), End::Address(destination)) = (source, destination)
            && source.is_ipv4() == destination.is_ipv4()
        {
            let passes = program.passes(source, destination, traffic);
            if passes != oracle::passes(world, source, destination, traffic) {
                return differs(world, flow, &expected, &passes);
            }
            let through = program.effect(source, destination, traffic) != Effect::Dropped;
            if through != oracle::lets_through(world, source, destination, traffic) {
                return differs(world, flow, &expected, &format!("passing: {through}"));
            }
        }
    }
    Ok(())
}

fn nodes_agree(world: &World, flows: usize) -> Result<(), TestCaseError> {
    let mut nodes =
        Nodes::program(world).map_err(|error| TestCaseError::fail(error.to_string()))?;
    for flow in generate::flows(world, flows) {
        let expected = oracle::forwarded(world, flow.source, flow.destination, flow.traffic);
        if let Some(found) = nodes.allowed(&flow)
            && found != expected
        {
            return differs(world, flow, &expected, &found);
        }
    }
    Ok(())
}

fn differs(
    world: &World,
    flow: Flow,
    expected: &BTreeMap<Family, bool>,
    found: &dyn Debug,
) -> Result<(), TestCaseError> {
    let title = format!("Found {found:?}.");
    Err(TestCaseError::fail(scenario::write(&title, world, &[(flow, expected.clone())])))
}
