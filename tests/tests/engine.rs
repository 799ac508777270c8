//! The engine against the oracle, on random worlds.
#![allow(clippy::panic, reason = "the checks that tests share fail by panicking, too")]

use std::collections::BTreeMap;

use portcullis_core::net::Family;
use portcullis_core::program::{self, Verdict};
use portcullis_core::{Program, validate};
use portcullis_tests::generate::{self, Flow, Size};
use portcullis_tests::oracle::{self, End, World};
use portcullis_tests::scenario;
use proptest::prelude::{ProptestConfig, TestCaseError};
use proptest::test_runner::{TestError, TestRunner};

#[test]
fn the_engine_agrees_with_the_oracle_on_every_flow_of_small_worlds() {
    agree(Size::SMALL, 20_000);
}

#[test]
fn the_engine_agrees_with_the_oracle_where_many_policies_overlap() {
    agree(Size::MEDIUM, 2_000);
}

/// Compares up to so many flows in each of many random worlds. Panics with the smallest world and
/// flow on which they differ, as the text of a scenario file, to be kept in `cases/`.
#[track_caller]
fn agree(size: Size, flows: usize) {
    let mut runner = TestRunner::new(ProptestConfig {
        failure_persistence: None,
        max_shrink_iters: 50_000,
        ..ProptestConfig::default()
    });
    let result = runner.run(&generate::world(size), |world| compare(&world, flows));
    match result {
        Ok(()) => {}
        Err(TestError::Fail(reason, _)) => panic!("the engine and the oracle differ:\n{reason}"),
        Err(TestError::Abort(reason)) => panic!("{reason}"),
    }
}

/// Fails with the text of a scenario file.
fn compare(world: &World, most: usize) -> Result<(), TestCaseError> {
    let program = compile(world);
    for flow in generate::flows(world, most) {
        let expected = oracle::allowed(world, flow.source, flow.destination, flow.traffic);
        let found = verdict(&program, &flow);
        if found != summary(&expected) {
            return Err(difference(world, flow, expected, format!("{found:?}")));
        }
        if let (End::Address(source), End::Address(destination)) = (flow.source, flow.destination)
            && source.is_ipv4() == destination.is_ipv4()
        {
            let expected = oracle::passes(world, source, destination, flow.traffic);
            let found = program.passes(source, destination, flow.traffic);
            if found != expected {
                let expected = BTreeMap::from([(Family::of(source), expected)]);
                return Err(difference(world, flow, expected, format!("passes: {found}")));
            }
        }
    }
    Ok(())
}

fn compile(world: &World) -> Program {
    let mut cluster = world.cluster.clone();
    for raw in &world.policies {
        let reading = validate::read(raw);
        assert_eq!(reading.errors, [], "{raw:?}");
        cluster.policies.push(reading.policy);
    }
    Program::compile(&cluster)
}

fn verdict(program: &Program, flow: &Flow) -> Verdict {
    let end = |end| match end {
        End::Pod(index) => program::End::Pod(index),
        End::Address(address) => program::End::Address(address),
    };
    program.verdict(end(flow.source), end(flow.destination), flow.traffic)
}

fn summary(answers: &BTreeMap<Family, bool>) -> Verdict {
    let mut allowed = answers.iter().filter(|(_, allowed)| **allowed);
    match (allowed.next(), allowed.next(), answers.len()) {
        (None, ..) => Verdict::Refused,
        (Some((&family, _)), None, 2) => Verdict::Mixed { allowed: family },
        _ => Verdict::Allowed,
    }
}

fn difference(
    world: &World,
    flow: Flow,
    expected: BTreeMap<Family, bool>,
    found: String,
) -> TestCaseError {
    let title = format!("The engine says {found}.");
    TestCaseError::fail(scenario::write(&title, world, &[(flow, expected)]))
}
