//! Policies with mistakes: every one is found, and none opens anything.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use portcullis_core::api::NetworkPolicy;
use portcullis_core::{Program, validate};
use portcullis_kube::{Options, Severity, Source};
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

/// In the files, `# error: path: reason` stands at the line that is to be pointed at.
#[test]
fn semantics_21_manifests_that_the_api_server_rejects_are_rejected_at_their_lines() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("rejected");
    let mut files = 0;
    for entry in directory.read_dir().unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let lines = (1..).zip(text.lines());
        let expected: BTreeSet<(u32, String)> = lines
            .filter_map(|(line, text)| Some((line, text.split_once("# error: ")?.1.to_owned())))
            .collect();
        assert!(!expected.is_empty(), "{}", path.display());
        let input = portcullis_kube::load(&[Source::Path(path.clone())], &Options::default());
        let errors = input.diagnostics.iter().filter(|d| d.severity == Severity::Error);
        let found: BTreeSet<(u32, String)> = errors
            .map(|error| {
                let line = error.location.as_ref().map_or(0, |location| location.line);
                (line, format!("{}: {}", error.path, error.reason.id()))
            })
            .collect();
        assert_eq!(found, expected, "{}", path.display());
        files += 1;
    }
    assert!(files >= 10, "only {files} files");
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
