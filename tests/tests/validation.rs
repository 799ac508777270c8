//! Policies with mistakes: every one is found, and none opens anything.

use std::collections::BTreeSet;

use portcullis_core::api::NetworkPolicy;
use portcullis_core::{Program, validate};
use portcullis_tests::generate::{self, Invalid, Size};
use portcullis_tests::oracle::{self, World};
use portcullis_tests::{engine, scenario};
use proptest::prelude::{ProptestConfig, TestCaseError};
use proptest::{prop_assert_eq, proptest};

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_mistake_is_reported_with_its_path_and_reason(invalid in generate::invalid()) {
        let errors = validate::read(&invalid.policy).errors.into_iter();
        let found: BTreeSet<_> = errors.map(|error| (error.path, error.reason)).collect();
        prop_assert_eq!(found, invalid.errors);
    }

    #[test]
    fn a_rule_that_cannot_be_read_opens_nothing(
        world in generate::world(Size::SMALL), invalid in generate::invalid()
    ) {
        if !subject_unclear(&invalid) {
            let intended = with_policy(&world, &invalid.intended);
            opens_nothing_beyond(&intended, &with_policy(&world, &invalid.policy))?;
        }
    }

    #[test]
    fn a_policy_whose_subject_or_types_cannot_be_read_opens_nothing(
        world in generate::world(Size::SMALL), invalid in generate::invalid()
    ) {
        if subject_unclear(&invalid) {
            opens_nothing_beyond(&world, &with_policy(&world, &invalid.policy))?;
        }
    }
}

/// Whether it cannot be known which pods the policy is about, or in which direction.
fn subject_unclear(invalid: &Invalid) -> bool {
    let unclear = ["spec.podSelector", "spec.policyTypes"];
    invalid.errors.iter().any(|(path, _)| unclear.iter().any(|field| path.starts_with(field)))
}

fn with_policy(world: &World, policy: &NetworkPolicy) -> World {
    let mut world = world.clone();
    world.policies.push(policy.clone());
    world
}

/// What the engine allows in a world with a policy that is not valid, the oracle allows in one
/// without such a policy.
fn opens_nothing_beyond(valid: &World, invalid: &World) -> Result<(), TestCaseError> {
    let program = Program::compile(&engine::cluster(invalid));
    for flow in generate::flows(invalid, 4_000) {
        let valid = oracle::allowed(valid, flow.source, flow.destination, flow.traffic);
        for (family, allowed) in engine::allowed(&program, &flow) {
            if allowed && valid.get(&family) != Some(&true) {
                return Err(TestCaseError::fail(scenario::write(
                    "Opened:",
                    invalid,
                    &[(flow, valid)],
                )));
            }
        }
    }
    Ok(())
}
