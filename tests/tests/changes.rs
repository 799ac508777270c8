//! The change that `why` suggests: it allows the connection, and nothing between others.

use std::cell::Cell;

use portcullis_core::Program;
use portcullis_core::explain::{EndExplanation, explain};
use portcullis_core::model::Cluster;
use portcullis_core::net::Traffic;
use portcullis_core::program::{Endpoint, Judgement, Path};
use portcullis_tests::generate::{self, Flow, Size};
use portcullis_tests::oracle::World;
use portcullis_tests::{engine, property, scenario};
use proptest::prelude::TestCaseError;

#[test]
fn a_suggested_change_allows_the_connection_and_nothing_between_others() {
    let tried = Cell::new(0);
    property::holds(generate::world(Size::MEDIUM), |world| {
        let cluster = engine::cluster(&world);
        let program = Program::compile(&cluster);
        let flows = generate::flows(&world, 300);
        let nameable = flows.iter().filter(|flow| !matches!(flow.traffic, Traffic::Port(_, 0)));
        for flow in nameable.step_by(3) {
            let (source, destination) = (engine::end(flow.source), engine::end(flow.destination));
            let why = explain(&cluster, &program, source, destination, flow.traffic);
            for path in why.paths.iter().filter(|p| p.judgement == Judgement::Refused) {
                let mut changed = cluster.clone();
                let mut nameless = false;
                for end in [&path.egress, &path.ingress] {
                    let EndExplanation::Refused { change, .. } = end else { continue };
                    let Some(change) = change else {
                        nameless = true;
                        continue;
                    };
                    let policy = change.applied(&changed);
                    match change.policy {
                        Some(index) => changed.policies[index as usize] = policy,
                        None => changed.policies.push(policy),
                    }
                }
                if nameless {
                    let anonymous = |end: &Endpoint| end.pod.is_none() && end.address.is_none();
                    if anonymous(&path.path.source) || anonymous(&path.path.destination) {
                        continue;
                    }
                    return fails(&world, flow, "there is no change");
                }
                tried.set(tried.get() + 1);
                let after = Program::compile(&changed);
                let again = after
                    .paths(source, destination)
                    .find(|p| p.family() == path.path.family())
                    .map(|p| after.judge(&p, flow.traffic));
                // The other end can still hang on what is not known.
                let unknown = [&path.egress, &path.ingress]
                    .into_iter()
                    .any(|end| matches!(end, EndExplanation::Undetermined { .. }));
                let wanted = if unknown { Judgement::Undetermined } else { Judgement::Allowed };
                if again != Some(wanted) {
                    return fails(&world, flow, &format!("it is {again:?} after the change"));
                }
                for other in &flows {
                    if let Some(what) =
                        differs(&cluster, [&program, &after], flow, &path.path, other)
                    {
                        return fails(&world, flow, &what);
                    }
                }
            }
        }
        Ok(())
    });
    assert!(tried.get() > 500, "only {} changes were tried", tried.get());
}

/// What a change does to a flow between others than those it is about, if it does anything.
fn differs(
    cluster: &Cluster,
    [before, after]: [&Program; 2],
    about: &Flow,
    path: &Path,
    other: &Flow,
) -> Option<String> {
    let (source, destination) = (engine::end(other.source), engine::end(other.destination));
    let paths = before.paths(source, destination).zip(after.paths(source, destination));
    for (old, new) in paths {
        let was = before.judge(&old, other.traffic);
        let is = after.judge(&new, other.traffic);
        let alike = |a: &Endpoint, b: &Endpoint| match (a.pod, b.pod) {
            (Some(a), Some(b)) => {
                let (a, b) = (&cluster.pods[a], &cluster.pods[b]);
                (&a.namespace, &a.labels) == (&b.namespace, &b.labels)
            }
            _ => a == b,
        };
        // A rule for one end alone opens nothing more than what the other end allows already.
        let meant = (alike(&old.source, &path.source)
            && alike(&old.destination, &path.destination))
            && (other.traffic == about.traffic || about.traffic == Traffic::Other);
        // A pod that has no address yet may turn out to have the one that is named.
        let perhaps = (was, is) == (Judgement::Refused, Judgement::Undetermined);
        if was != is && !meant && !perhaps {
            return Some(format!("{other:?} was {was:?} and is {is:?}"));
        }
    }
    None
}

fn fails(world: &World, flow: &Flow, what: &str) -> Result<(), TestCaseError> {
    let text = scenario::write(&format!("{flow:?}: {what}"), world, &[]);
    Err(TestCaseError::fail(text))
}
