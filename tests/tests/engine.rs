//! The engine against the oracle, on random worlds.
#![allow(clippy::panic, reason = "the checks that tests share fail by panicking, too")]

use std::fmt::Debug;

use portcullis_core::Program;
use portcullis_tests::generate::{self, Flow, Size};
use portcullis_tests::oracle::{self, End, World};
use portcullis_tests::{engine, scenario};
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
    let program = Program::compile(&engine::cluster(world));
    for flow in generate::flows(world, most) {
        let Flow { source, destination, traffic } = flow;
        let expected = oracle::allowed(world, source, destination, traffic);
        let fail = |found: &dyn Debug| {
            let title = format!("The engine says {found:?}.");
            let text = scenario::write(&title, world, &[(flow, expected.clone())]);
            Err(TestCaseError::fail(text))
        };
        let found = engine::allowed(&program, &flow);
        if found != expected {
            return fail(&found);
        }
        let verdict = program.verdict(engine::end(source), engine::end(destination), traffic);
        if verdict != engine::verdict(&expected) {
            return fail(&verdict);
        }
        if let (End::Address(source), End::Address(destination)) = (source, destination)
            && source.is_ipv4() == destination.is_ipv4()
        {
            let passes = program.passes(source, destination, traffic);
            if passes != oracle::passes(world, source, destination, traffic) {
                return fail(&passes);
            }
        }
    }
    Ok(())
}
