//! What a lab costs on this machine: the time to bring up 4, 100 and 1000 pods, and the number of
//! probes per second, of which a third are silent because rules drop them.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::time::Instant;

use portcullis_core::model::{Cluster, Pod};
use portcullis_core::net::{Family, Protocol, Traffic};
use portcullis_dataplane::state::{NodeState, Profile};
use portcullis_dataplane::{Dataplane, Nftables};
use portcullis_lab::{Kind, Lab, Options, Outcome, Plan, Probe, enter, plan};

const PROBES: usize = 30_000;

fn main() -> Result<(), Box<dyn Error>> {
    enter()?;
    for pods in [4, 100, 1000] {
        let plan = plan(&cluster(pods), &Options { nodes: 2, ..Options::default() })?;
        let start = Instant::now();
        let mut lab = Lab::up(&plan, |_, _| ())?;
        println!("{pods} pods, dual stack, 2 nodes: up in {:?}", start.elapsed());

        let ports: BTreeSet<_> = Protocol::ALL.map(|protocol| (protocol, 80)).into();
        let start = Instant::now();
        lab.listen(&ports)?;
        println!("  TCP, UDP and SCTP on each: {:?}", start.elapsed());

        let traffics = [Traffic::Other]
            .into_iter()
            .chain(ports.iter().map(|(protocol, port)| Traffic::Port(*protocol, *port)));
        let closed = isolate_every_third_pod(&lab)?;
        for traffic in traffics {
            let probes = probes(lab.plan(), traffic, &closed);
            let start = Instant::now();
            let outcomes = lab.probe(&probes, |_| ())?;
            let time = start.elapsed();
            let silent = outcomes.iter().filter(|o| **o == Outcome::Silent).count();
            let right = probes.iter().zip(&outcomes).filter(|(probe, outcome)| {
                probe.expect == Some(matches!(outcome, Outcome::Answered(_)))
            });
            println!(
                "  {:>5} probes, {silent:>5} silent, {} not as expected: {time:?}, {:.0}/s, {traffic}",
                probes.len(),
                probes.len() - right.count(),
                probes.len() as f64 / time.as_secs_f64(),
            );
        }
        let start = Instant::now();
        drop(lab);
        println!("  down in {:?}", start.elapsed());
    }
    Ok(())
}

fn cluster(pods: usize) -> Cluster {
    let pod = |n| Pod { namespace: "shop".into(), name: format!("pod-{n}"), ..Pod::default() };
    Cluster { pods: (0..pods).map(pod).collect(), ..Cluster::default() }
}

/// Nothing is let in to the pods 0, 3, 6 and so on. Returns their endpoints.
fn isolate_every_third_pod(lab: &Lab) -> Result<BTreeSet<usize>, Box<dyn Error>> {
    let pods = lab.plan().endpoints.iter().enumerate().filter(|(_, e)| e.kind == Kind::Pod);
    let closed: BTreeSet<usize> = pods.map(|(index, _)| index).step_by(3).collect();
    let mut states = BTreeMap::<usize, NodeState>::new();
    for endpoint in closed.iter().map(|index| &lab.plan().endpoints[*index]) {
        let state = states.entry(endpoint.node.unwrap_or_default()).or_default();
        state.profiles = [(0, Profile { ingress: Some([].into()), ..Profile::default() })].into();
        state.endpoints.extend(endpoint.addresses.iter().map(|address| (*address, 0)));
    }
    for (node, state) in states {
        lab.in_node(node, Nftables::open)??.apply(&state)?;
    }
    Ok(closed)
}

/// Probes between pods, the same number for each family, spread over all.
fn probes(plan: &Plan, traffic: Traffic, closed: &BTreeSet<usize>) -> Vec<Probe> {
    let pods: Vec<usize> =
        (0..plan.endpoints.len()).filter(|e| plan.endpoints[*e].kind == Kind::Pod).collect();
    let pairs = pods.iter().flat_map(|source| pods.iter().map(move |to| (*source, *to)));
    // Odd, so as to meet both families.
    let step = (pods.len() * pods.len() * 2 / PROBES) | 1;
    let all = pairs.filter(|(source, to)| source != to).flat_map(|(source, to)| {
        Family::ALL.map(|family| (source, to, family)).into_iter().filter_map(move |found| {
            let address = |e: usize| {
                plan.endpoints[e].addresses.iter().copied().find(|a| Family::of(*a) == found.2)
            };
            Some((found, address(found.0)?, address(found.1)?))
        })
    });
    all.step_by(step)
        .take(PROBES)
        .map(|((source, to, _), from_address, to_address)| Probe {
            source,
            from: from_address,
            to: to_address,
            traffic,
            expect: Some(!closed.contains(&to)),
        })
        .collect()
}
