//! What is reported in audit is what is refused once it is enforced, and nothing is refused before:
//! with real packets, in a lab of two nodes (SEMANTICS 28).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;

use libtest_mimic::{Failed, Trial};
use portcullis_core::Program;
use portcullis_core::model::{Cluster, Mode};
use portcullis_core::net::{Protocol, Traffic};
use portcullis_dataplane::state::{Log, NodeState};
use portcullis_dataplane::{Dataplane, FlowLog, Logged, Nftables, Outcome, share};
use portcullis_lab::{Lab, Observation, Options, Plan, Probe, connections, plan, traffics};
use portcullis_tests::generate::{self, Counts};
use portcullis_tests::{engine, in_lab};

/// More than there are.
const LOG: Log = Log { group: 86, rate: 100_000 };
/// So many connections are tried of each world, evenly spread.
const MOST: usize = 1500;

/// A connection, as its first packet has it.
type Known = (IpAddr, IpAddr, Traffic);

fn main() -> ExitCode {
    in_lab::run(|| {
        Ok(vec![
            Trial::test("policies_in_audit_report_what_they_refuse_when_enforced", || {
                compare(
                    |cluster| cluster.policies.iter_mut().for_each(|p| p.mode = Some(Mode::Audit)),
                    |_| {},
                )
            }),
            Trial::test("namespaces_in_audit_report_what_they_refuse_when_enforced", || {
                compare(
                    |cluster| {
                        let names = cluster.policies.iter().map(|policy| policy.namespace.clone());
                        cluster.modes = names.map(|name| (name, Mode::Audit)).collect();
                    },
                    |_| {},
                )
            }),
            Trial::test("a_node_in_audit_reports_what_it_refuses_otherwise", || {
                compare(|_| {}, |state| state.audit = true)
            }),
        ])
    })
}

/// Tries all connections in audit and then enforced.
fn compare(
    audit: impl Fn(&mut Cluster),
    audit_node: impl Fn(&mut NodeState),
) -> Result<(), Failed> {
    let counts = Counts { namespaces: 3, nodes: 2, pods: 14, policies: 12 };
    let world = generate::cluster(11, counts);
    let options = Options { nodes: 2, ..Options::default() };
    let plan = plan(&engine::cluster(&world), &options)?;
    let all = connections(&plan, &traffics(&plan.cluster));
    let step = all.len().div_ceil(MOST).max(1);
    let tried: Vec<(Probe, usize)> = all.into_iter().step_by(step).collect();
    let mut lab = Lab::up(&plan, |_, _| {})?;
    let mut nodes = Vec::new();
    for node in 0..plan.cluster.nodes.len() {
        let log = lab.in_node(node, || FlowLog::open(LOG.group))??;
        nodes.push((lab.in_node(node, Nftables::open)??, log));
    }

    let mut audited = plan.cluster.clone();
    audit(&mut audited);
    for ((dataplane, _), node) in nodes.iter_mut().zip(&plan.cluster.nodes) {
        let (mut state, _) = share(&audited, &node.name);
        audit_node(&mut state);
        state.log = Some(LOG);
        dataplane.apply(&state)?;
    }
    let over = AtomicBool::new(false);
    let (passed, reported) = thread::scope(|scope| {
        let hearing: Vec<_> =
            nodes.iter_mut().map(|(_, log)| scope.spawn(|| hear(log, &over))).collect();
        let passed = observe(&mut lab, &Program::compile(&audited), &tried);
        over.store(true, Relaxed);
        let mut reported = BTreeSet::new();
        for thread in hearing {
            reported.extend(thread.join().map_err(|_| "the listener panicked")??);
        }
        Ok::<_, Failed>((passed?, reported))
    })?;
    let refused = of(&plan, &passed, false);
    if !refused.is_empty() {
        return Err(format!("refused in audit: {refused:?}").into());
    }

    for ((dataplane, _), node) in nodes.iter_mut().zip(&plan.cluster.nodes) {
        dataplane.apply(&share(&plan.cluster, &node.name).0)?;
    }
    let enforced = observe(&mut lab, &Program::compile(&plan.cluster), &tried)?;
    let refused = of(&plan, &enforced, false);
    let lost: u64 = nodes.iter().map(|(_, log)| log.lost()).sum();
    let (too_much, missing): (Vec<_>, Vec<_>) =
        (reported.difference(&refused).collect(), refused.difference(&reported).collect());
    if !too_much.is_empty() || !missing.is_empty() || lost > 0 {
        return Err(format!(
            "reported and not refused: {too_much:?}; refused and not reported: {missing:?}; {lost} lost"
        )
        .into());
    }
    let allowed = of(&plan, &enforced, true).len();
    eprintln!(
        "{} connections: {} reported, and refused; {allowed} allowed",
        tried.len(),
        refused.len()
    );
    match refused.len() > 50 && allowed > 50 {
        true => Ok(()),
        false => Err("too few of one kind to show anything".into()),
    }
}

/// Tries connections. What no responder answers at all cannot be told from what is refused.
fn observe(
    lab: &mut Lab,
    program: &Program,
    tried: &[(Probe, usize)],
) -> Result<Vec<Observation>, Failed> {
    let observations = lab.observe(program, tried.to_vec(), &mut |_, _, _| {})?;
    let plan = lab.plan();
    match observations.iter().find(|o| o.passed(plan).is_none()) {
        Some(odd) => Err(format!("nothing can be said of {odd:?}").into()),
        None => Ok(observations),
    }
}

/// The connections that passed, or did not.
fn of(plan: &Plan, observations: &[Observation], passed: bool) -> BTreeSet<Known> {
    let those = observations.iter().filter(|o| o.passed(plan) == Some(passed));
    those.map(|o| (o.probe.from, o.probe.to, o.probe.traffic)).collect()
}

/// The connections that a node reports as what would be refused.
fn hear(log: &mut FlowLog, over: &AtomicBool) -> Result<BTreeSet<Known>, Failed> {
    let mut reported = BTreeSet::new();
    loop {
        let was_over = over.load(Relaxed);
        let heard = log.receive()?;
        let nothing = heard.is_empty();
        for Logged { outcome, headers, .. } in heard {
            if !matches!(outcome, Outcome::Audited(_)) {
                return Err(format!("{outcome:?}: {headers:?}").into());
            }
            let protocol = Protocol::ALL.into_iter().find(|p| p.number() == headers.protocol);
            let traffic = match (protocol, headers.ports) {
                (Some(protocol), Some((_, port))) => Traffic::Port(protocol, port),
                _ => Traffic::Other,
            };
            reported.insert((headers.source, headers.destination, traffic));
        }
        if was_over && nothing {
            return Ok(reported);
        }
    }
}
