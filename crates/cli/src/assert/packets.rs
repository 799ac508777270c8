//! Tests held against real packets: a lab is built, and what they speak of is tried in it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use portcullis_core::Program;
use portcullis_core::net::Traffic;
use portcullis_core::program::Path;
use portcullis_kube::{Diagnostic, Input};
use portcullis_lab::{
    Lab, Observation, Options, Plan, Probe, Step, connections, enter, plan, traffics,
};

use super::file::{Assertion, Test};
use super::judge::Expectation;
use super::report::Outcome;
use super::world::World;
use crate::lab::Progress;
use crate::trouble::Trouble;

/// Holds tests against the engine, and then the engine against packets: every connection that a
/// test speaks of has to come out as the engine says.
pub(super) fn run(
    input: &Input,
    tests: &[&Test],
    diagnostics: &mut Vec<Diagnostic>,
) -> Result<Vec<Outcome>, Trouble> {
    let plan = with_hosts(input, tests)?;
    let program = Program::compile(&plan.cluster);
    let mut world = World::of(input, &plan.cluster, &program);
    let mut outcomes = super::judge_all(&mut world, tests, diagnostics);
    if !diagnostics.is_empty() {
        return Ok(outcomes);
    }
    let mut questions = Vec::new();
    for test in tests {
        match world.question(test) {
            Ok(question) => questions.push(question.claims),
            Err(diagnostic) => diagnostics.push(diagnostic),
        }
    }
    let spoken_of = traffics(&plan.cluster);
    let to = questions.iter().flatten().flat_map(|expectation| &expectation.to);
    let tries: BTreeSet<Traffic> = to.flat_map(|side| side.claim.tries(&spoken_of)).collect();
    let mut asked = connections(&plan, &tries);
    asked.retain(|(probe, _)| questions.iter().any(|claims| speaks(&world, claims, probe)));
    if asked.is_empty() {
        return Err(Trouble::NothingToTry);
    }
    enter()?;
    let mut progress = Progress::new();
    let mut network = Lab::up(&plan, |done, all| progress.show(Step::Up, done, all))?;
    let trial = network.trial(asked, &mut |step, done, all| progress.show(step, done, all));
    progress.clear();
    let (trial, _enforcement) = trial?;
    drop(network);
    for ((test, claims), outcome) in tests.iter().zip(&questions).zip(&mut outcomes) {
        let ours: Vec<&Observation> =
            trial.observations.iter().filter(|o| speaks(&world, claims, &o.probe)).collect();
        let differences = ours.iter().filter(|o| !o.as_predicted(&plan));
        outcome.problems.extend(differences.map(|o| difference(&plan, o)));
        if matches!(test.assertion, Assertion::Isolated { .. }) {
            continue;
        }
        outcome.tried = Some(ours.len());
        let empty = claims.iter().any(|c| c.from.iter().chain(&c.to).any(|s| s.set.is_empty()));
        if ours.is_empty() && !empty {
            outcome.problems.push("the lab has nobody to try it with".to_owned());
        }
    }
    Ok(outcomes)
}

/// The lab of an input, with a host for each address outside that tests speak of.
fn with_hosts(input: &Input, tests: &[&Test]) -> Result<Plan, Trouble> {
    let first = plan(&input.cluster, &Options::default())?;
    let program = Program::compile(&first.cluster);
    let world = World::of(input, &first.cluster, &program);
    let mut hosts: BTreeSet<IpAddr> = BTreeSet::new();
    for test in tests {
        // What cannot be asked is told when it is asked.
        let Ok(question) = world.question(test) else { continue };
        let sides = question.claims.iter().flat_map(|claim| claim.from.iter().chain(&claim.to));
        for side in sides.filter(|side| !side.set.rest) {
            for range in &side.set.ranges {
                let there =
                    |e: &portcullis_lab::Endpoint| e.addresses.iter().any(|a| range.contains(*a));
                if !first.endpoints.iter().any(there) {
                    hosts.extend(world.nobodys(range));
                }
            }
        }
    }
    let with = |hosts| plan(&input.cluster, &Options { hosts, ..Options::default() });
    // No host can have some addresses: those that clouds keep for themselves, for one.
    hosts.retain(|host| with(vec![*host]).is_ok());
    Ok(with(hosts.into_iter().collect())?)
}

/// Whether a connection is one that a test speaks of.
fn speaks(world: &World<'_>, claims: &[Expectation], probe: &Probe) -> bool {
    let source = world.program.endpoint(probe.from);
    let destination = world.program.endpoint(probe.to);
    let pods = (source.pod, destination.pod);
    let exempt = world.program.exempt(&Path { source, destination }).is_some();
    claims.iter().any(|claim| {
        let from = claim.from.iter().filter(|side| side.set.contains(pods.0, probe.from));
        from.into_iter().any(|from| {
            claim.to.iter().any(|to| {
                to.set.contains(pods.1, probe.to)
                    && to.claim.contains(probe.traffic)
                    && !(exempt && (from.set.rest || to.set.rest))
            })
        })
    })
}

fn difference(plan: &Plan, observation: &Observation) -> String {
    let name = |endpoint: usize| &plan.endpoints[endpoint].name;
    let (from, to) = (name(observation.probe.source), name(observation.destination));
    let (traffic, family) = (observation.probe.traffic, observation.family());
    let found = match observation.passed(plan) {
        Some(true) => "passes with real packets, and the policies refuse it",
        Some(false) => "is refused with real packets, and the policies allow it",
        None => "gives no clear answer with real packets, also where no policy is in force",
    };
    format!("{from} -> {to} on {traffic} ({family}) {found}")
}
