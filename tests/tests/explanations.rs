//! Explanations against the oracle: each rule that is named does what is said of it, when it is
//! alone in the world.

use portcullis_core::Program;
use portcullis_core::api::{NetworkPolicy, Peer, Port, Rule};
use portcullis_core::explain::{EndExplanation, PathExplanation, explain};
use portcullis_core::model::Direction;
use portcullis_core::net::Family;
use portcullis_core::program::{Judgement, Origin};
use portcullis_tests::generate::{self, Flow, Size};
use portcullis_tests::oracle::{self, World};
use portcullis_tests::{engine, property, scenario};
use proptest::prelude::TestCaseError;

#[test]
fn an_explanation_names_every_policy_that_isolates_and_every_rule_that_allows() {
    property::holds(generate::world(Size::SMALL), |world| explained(&world));
}

fn explained(world: &World) -> Result<(), TestCaseError> {
    let cluster = engine::cluster(world);
    let program = Program::compile(&cluster);
    for flow in generate::flows(world, 200) {
        let (source, destination) = (engine::end(flow.source), engine::end(flow.destination));
        let explanation = explain(&cluster, &program, source, destination, flow.traffic);
        let verdict = program.verdict(source, destination, flow.traffic);
        let mut fault = (explanation.verdict != verdict).then(|| format!("not {verdict:?}"));
        for path in &explanation.paths {
            fault = fault.or_else(|| path_fault(world, &program, &flow, path));
        }
        if let Some(fault) = fault {
            let answers = oracle::allowed(world, flow.source, flow.destination, flow.traffic);
            let title = format!("{fault}\n# {explanation:?}");
            return Err(TestCaseError::fail(scenario::write(&title, world, &[(flow, answers)])));
        }
    }
    Ok(())
}

/// What is wrong with the explanation of a path.
fn path_fault(
    world: &World,
    program: &Program,
    flow: &Flow,
    path: &PathExplanation,
) -> Option<String> {
    let family = path.path.family().unwrap_or(Family::V4);
    // What hangs on facts that are missing is the business of `undetermined`.
    if path.judgement == Judgement::Undetermined {
        return None;
    }
    if (path.judgement == Judgement::Allowed) != passes(world, flow, family) {
        return Some(format!("{:?}", path.judgement));
    }
    if path.exemption.is_some() {
        // Not even a policy that closes everything would refuse it.
        let closed =
            world.cluster.namespaces.keys().chain(world.cluster.pods.iter().map(|p| &p.namespace));
        let policies = closed.map(|namespace| only(&closing(namespace), Direction::Egress, None));
        let closed = World { policies: policies.collect(), cluster: world.cluster.clone() };
        return (!passes(&closed, flow, family)).then(|| "not exempt".to_owned());
    }
    let ends = [(Direction::Egress, &path.egress), (Direction::Ingress, &path.ingress)];
    ends.into_iter().find_map(|(direction, end)| {
        let alone = |policy: &NetworkPolicy, rule| {
            let policies = vec![only(policy, direction, rule)];
            passes(&World { policies, cluster: world.cluster.clone() }, flow, family)
        };
        let isolating: Vec<u32> = (0..)
            .zip(&world.policies)
            .filter(|(_, policy)| has_type(policy, direction) && !alone(policy, None))
            .map(|(index, _)| index)
            .collect();
        let allowing: Vec<Origin> = isolating
            .iter()
            .flat_map(|&index| parts(&world.policies[index as usize], index, direction))
            .filter(|(origin, rule)| {
                alone(&world.policies[origin.policy as usize], Some(rule.clone()))
            })
            .map(|(origin, _)| origin)
            .collect();
        let right = match end {
            EndExplanation::NoSubject | EndExplanation::Open => isolating.is_empty(),
            EndExplanation::Allowed { isolated_by, by } => {
                // Where a rule surely allows, those that only perhaps do are not named. The oracle
                // takes what is not known for what is not there.
                let doubtful = doubtful(program, path, direction, flow);
                let mut unnamed = allowing.iter().filter(|origin| !by.contains(origin));
                *isolated_by == isolating
                    && !by.is_empty()
                    && by.iter().all(|origin| allowing.contains(origin))
                    && unnamed.all(|origin| doubtful.contains(origin))
            }
            EndExplanation::Undetermined { isolated_by, .. } => *isolated_by == isolating,
            EndExplanation::Refused { isolated_by, nearest, .. } => {
                let near = nearest.as_ref().is_none_or(|near| {
                    isolating.contains(&near.origin.policy) && !near.misses.is_empty()
                });
                let rules = isolating
                    .iter()
                    .any(|&i| !parts(&world.policies[i as usize], i, direction).is_empty());
                *isolated_by == isolating
                    && allowing.is_empty()
                    && near
                    && nearest.is_some() == rules
            }
        };
        (!right)
            .then(|| format!("{direction} is isolated by {isolating:?}, allowed by {allowing:?}"))
    })
}

/// The rules of which it is not known whether they allow.
fn doubtful(
    program: &Program,
    path: &PathExplanation,
    direction: Direction,
    flow: &Flow,
) -> Vec<Origin> {
    let (subject, _) = path.path.subject_and_remote(direction);
    let rules = program.isolation(subject, direction).into_iter();
    rules
        .flat_map(|rules| program.doubtful(rules, &path.path, direction, flow.traffic))
        .map(|entry| entry.origin)
        .collect()
}

fn passes(world: &World, flow: &Flow, family: Family) -> bool {
    let answers = oracle::allowed(world, flow.source, flow.destination, flow.traffic);
    answers.get(&family).copied().unwrap_or(false)
}

/// The policy with one direction, and no rule in it or one.
fn only(policy: &NetworkPolicy, direction: Direction, rule: Option<Rule>) -> NetworkPolicy {
    let mut policy = policy.clone();
    let rules = Some(rule.into_iter().collect());
    (policy.spec.ingress, policy.spec.egress) = match direction {
        Direction::Ingress => (rules, None),
        Direction::Egress => (None, rules),
    };
    let name = if direction == Direction::Ingress { "Ingress" } else { "Egress" };
    policy.spec.policy_types = Some(vec![name.to_owned()]);
    policy
}

fn closing(namespace: &str) -> NetworkPolicy {
    NetworkPolicy { namespace: namespace.to_owned(), ..NetworkPolicy::default() }
}

fn has_type(policy: &NetworkPolicy, direction: Direction) -> bool {
    let reading = portcullis_core::validate::read(policy).policy;
    reading.rules(direction).is_some()
}

/// Every combination of one peer and one port of each rule, as a rule of its own.
fn parts(policy: &NetworkPolicy, index: u32, direction: Direction) -> Vec<(Origin, Rule)> {
    let section = match direction {
        Direction::Ingress => &policy.spec.ingress,
        Direction::Egress => &policy.spec.egress,
    };
    let mut parts = Vec::new();
    for (number, rule) in (0..).zip(section.iter().flatten()) {
        for (peer, peers) in each::<Peer>(rule.peers.as_deref()) {
            for (port, ports) in each::<Port>(rule.ports.as_deref()) {
                let origin = Origin { policy: index, direction, rule: number, peer, port };
                parts.push((origin, Rule { peers: peers.clone(), ports }));
            }
        }
    }
    parts
}

/// Each item with its index, as a list of its own; one absent list for an absent or empty one.
fn each<T: Clone>(items: Option<&[T]>) -> Vec<(Option<u32>, Option<Vec<T>>)> {
    match items {
        None | Some([]) => vec![(None, None)],
        Some(items) => {
            (0..).zip(items).map(|(n, item)| (Some(n), Some(vec![item.clone()]))).collect()
        }
    }
}
