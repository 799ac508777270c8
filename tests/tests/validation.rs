//! Policies with mistakes: every one is found, and none opens anything.

use std::collections::BTreeSet;

use portcullis_core::api::NetworkPolicy;
use portcullis_core::{Program, validate};
use portcullis_tests::generate::{self, Invalid, Size};
use portcullis_tests::oracle::{self, World};
use portcullis_tests::{engine, property, scenario};
use proptest::prelude::TestCaseError;

#[test]
fn semantics_21_every_mistake_is_reported_with_its_path_and_reason() {
    property::holds(generate::invalid(), |Invalid { policy, errors, .. }| {
        let found = validate::read(&policy).errors.into_iter();
        let found: BTreeSet<_> = found.map(|error| (error.path, error.reason)).collect();
        if found == errors {
            return Ok(());
        }
        let world = with_policy(World::default(), &policy);
        let title = format!("Found {found:?},\n# not {errors:?}.");
        Err(TestCaseError::fail(scenario::write(&title, &world, &[])))
    });
}

#[test]
fn semantics_22_a_rule_that_cannot_be_read_opens_nothing() {
    let inputs = (generate::world(Size::SMALL), generate::invalid());
    property::holds(inputs, |(world, mut invalid)| {
        if wrong(&invalid, "spec.podSelector") {
            return Ok(());
        }
        if wrong(&invalid, "spec.policyTypes") {
            // It isolates in both directions, and its rules hold in both.
            let both = ["Ingress", "Egress"].map(str::to_owned);
            invalid.intended.spec.policy_types = Some(both.to_vec());
        }
        let valid = with_policy(world.clone(), &invalid.intended);
        opens_nothing(&valid, &with_policy(world, &invalid.policy))
    });
}

#[test]
fn semantics_22_a_policy_whose_subject_cannot_be_read_opens_nothing() {
    let inputs = (generate::world(Size::SMALL), generate::invalid());
    property::holds(inputs, |(world, invalid)| {
        if !wrong(&invalid, "spec.podSelector") {
            return Ok(());
        }
        opens_nothing(&world, &with_policy(world.clone(), &invalid.policy))
    });
}

fn wrong(invalid: &Invalid, field: &str) -> bool {
    invalid.errors.iter().any(|(path, _)| path.starts_with(field))
}

fn with_policy(mut world: World, policy: &NetworkPolicy) -> World {
    world.policies.push(policy.clone());
    world
}

/// What the engine allows in a world with a policy that is not valid, the oracle allows in one
/// without such a policy.
fn opens_nothing(valid: &World, invalid: &World) -> Result<(), TestCaseError> {
    let program = Program::compile(&engine::cluster(invalid));
    for flow in generate::flows(invalid, 4_000) {
        let valid = oracle::allowed(valid, flow.source, flow.destination, flow.traffic);
        for (family, allowed) in engine::allowed(&program, &flow) {
            if allowed && valid.get(&family) != Some(&true) {
                let text = scenario::write("Opened by mistake.", invalid, &[(flow, valid)]);
                return Err(TestCaseError::fail(text));
            }
        }
    }
    Ok(())
}
