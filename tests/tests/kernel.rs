//! Engine against kernel, packet by packet: scenario files, saved cases and random clusters in the
//! lab. `soak` goes on with other random clusters for PORTCULLIS_SOAK_MINUTES.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use libtest_mimic::{Failed, Trial};
use portcullis_core::Program;
use portcullis_core::model::Cluster;
use portcullis_core::net::{Family, Traffic};
use portcullis_core::program::Effect;
use portcullis_lab::{Error, Lab, Observation, Options, Plan, Probe, Topology, connections, plan};
use portcullis_tests::generate::{self, Counts, Flow, Size};
use portcullis_tests::oracle::{End, World};
use portcullis_tests::scenario::{Scenario, View};
use portcullis_tests::{engine, in_lab, manifests, oracle};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// Random worlds are tried until so many connections were.
const PAIR_PORTS: usize = 60_000;
/// The most connections of one random world; more are taken evenly from all of them.
const MOST: usize = 4_000;

fn main() -> ExitCode {
    in_lab::run(tests)
}

fn tests() -> Result<Vec<Trial>, String> {
    let mut tests = Vec::new();
    for directory in ["scenarios", "cases"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
        for scenario in Scenario::all(&path, "")? {
            let scenario = Arc::new(scenario);
            for (topology, way) in [(Topology::Routed, ""), (Topology::Bridged, "::bridged")] {
                let name = format!("{directory}::{}{way}", scenario.name);
                let scenario = scenario.clone();
                tests.push(Trial::test(name, move || scenario_holds(&scenario, topology)));
            }
        }
    }
    tests.push(Trial::test("random_worlds_are_as_predicted", || random_worlds(1)));
    tests.push(Trial::test("a_cluster_that_looks_real_is_as_predicted", looks_real));
    tests.push(Trial::test("soak", soak).with_ignored_flag(true));
    Ok(tests)
}

/// A scenario in the lab: everything as the engine predicts, and what the file expects as it
/// expects it. Every flow that it speaks of is tried, but for those that cannot be.
fn scenario_holds(scenario: &Scenario, topology: Topology) -> Result<(), Failed> {
    let options = Options { nodes: 2, hosts: hosts(scenario), topology, ..Options::default() };
    let mut cluster = engine::cluster(&scenario.world);
    // Only one of those that claim an address can have it, and the others get another one. What
    // policies are told stays as it was.
    let (mut taken, mut claimed) = (BTreeSet::new(), vec![Vec::new(); cluster.pods.len()]);
    for (pod, claimed) in cluster.pods.iter_mut().zip(&mut claimed) {
        if !pod.host_network && !pod.finished {
            let (own, others) = pod.addresses.iter().partition(|address| taken.insert(**address));
            (pod.addresses, *claimed) = (own, others);
        }
    }
    let mut plan = plan(&cluster, &options)?;
    for (pod, claimed) in plan.cluster.pods.iter_mut().zip(claimed) {
        pod.addresses.extend(claimed);
    }
    let flows: Vec<&Flow> = scenario.expectations.iter().map(|e| &e.flow).collect();
    let mut traffics = portcullis_lab::traffics(&plan.cluster);
    traffics.extend(flows.iter().map(|flow| flow.traffic).filter(|t| !is_port_0(*t)));
    let mut tried = connections(&plan, &traffics);
    let mut known: BTreeSet<_> = tried.iter().map(|(p, _)| (p.traffic, p.from, p.to)).collect();
    // Those between two ends that have no policies, or of a pod to itself, are not among them.
    for flow in &flows {
        for (from, to) in pairs(scenario, &plan, flow).unwrap_or_default() {
            if known.insert((flow.traffic, from, to)) {
                let at = |a| plan.endpoint_at(a).ok_or_else(|| format!("nobody is at {a}"));
                let (source, destination, traffic) = (at(from)?, at(to)?, flow.traffic);
                let probe = Probe { source, from, to, traffic, expect: Some(true) };
                tried.push((probe, destination));
            }
        }
    }
    tried.sort_by_key(|(probe, _)| probe.traffic);
    let mut observed: BTreeMap<(IpAddr, IpAddr, Traffic), bool> = BTreeMap::new();
    for o in &try_out(&plan, tried)? {
        let passed = o.passed(&plan).ok_or("a responder is down")?;
        observed.insert((o.probe.from, o.probe.to, o.probe.traffic), passed);
    }
    let (mut answered, mut wrong) = (0, Vec::new());
    let differences = scenario.differences(View::Packets, |flow| {
        let mut answers = BTreeMap::new();
        for (from, to) in pairs(scenario, &plan, flow)? {
            let Some(passed) = observed.get(&(from, to, flow.traffic)) else {
                wrong.push(format!("{from} -> {to} {} was not tried", flow.traffic));
                return None;
            };
            if answers.insert(Family::of(from), *passed).is_some_and(|other| other != *passed) {
                wrong.push(format!("{from} -> {to} {} differs in its family", flow.traffic));
            }
        }
        answered += 1;
        Some(answers)
    });
    wrong.extend(differences);
    if answered == 0 {
        wrong.push("nothing that this scenario expects could be tried".to_owned());
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n").into()) }
}

/// The addresses that a scenario expects something of and that are no pod's and no node's.
fn hosts(scenario: &Scenario) -> Vec<IpAddr> {
    let cluster = &scenario.world.cluster;
    let pods = cluster.pods.iter().filter(|pod| !pod.finished).flat_map(|pod| &pod.addresses);
    let nodes = cluster.nodes.iter().flat_map(|node| &node.addresses);
    let owned: BTreeSet<IpAddr> = pods.chain(nodes).copied().collect();
    let ends = scenario.expectations.iter().flat_map(|e| [e.flow.source, e.flow.destination]);
    let hosts: BTreeSet<IpAddr> = ends
        .filter_map(|end| match end {
            End::Address(address) if !owned.contains(&address) => Some(address),
            _ => None,
        })
        .collect();
    hosts.into_iter().collect()
}

/// The pairs of addresses that a flow of a scenario is tried on. `None` if it cannot be: a finished
/// pod has no network, and nobody can listen on port 0.
fn pairs(scenario: &Scenario, plan: &Plan, flow: &Flow) -> Option<Vec<(IpAddr, IpAddr)>> {
    let cluster = &scenario.world.cluster;
    let addresses = |end: End| match end {
        End::Address(address) => Some(vec![address]),
        End::Pod(pod) if cluster.pods[pod].finished => None,
        // The lab gives nodes the families that they lack, and the file does not count on these.
        End::Pod(pod) if cluster.pods[pod].host_network => {
            let on = &cluster.pods[pod].node;
            let node = cluster.nodes.iter().find(|node| Some(&node.name) == on.as_ref());
            let beside = cluster.pods.iter().filter(|pod| pod.host_network && pod.node == *on);
            Some(match node {
                Some(node) => node.addresses.clone(),
                None => beside.flat_map(|pod| pod.addresses.clone()).collect(),
            })
        }
        // A pod without an address gets one per family.
        End::Pod(pod) => Some(plan.cluster.pods[pod].addresses.clone()),
    };
    if is_port_0(flow.traffic) {
        return None;
    }
    let (from, to) = (addresses(flow.source)?, addresses(flow.destination)?);
    let pairs = from.iter().flat_map(|from| to.iter().map(move |to| (*from, *to)));
    Some(pairs.filter(|(from, to)| Family::of(*from) == Family::of(*to)).collect())
}

fn is_port_0(traffic: Traffic) -> bool {
    matches!(traffic, Traffic::Port(_, 0))
}

fn looks_real() -> Result<(), Failed> {
    let counts = Counts { namespaces: 4, nodes: 3, pods: 24, policies: 16 };
    let world = generate::cluster(7, counts);
    let tried = world_is_as_predicted(&world, &Options::default(), 20_000)?;
    eprintln!("{tried} connections");
    Ok(())
}

fn random_worlds(seed: u64) -> Result<(), Failed> {
    let mut tried = 0;
    let mut worlds = Worlds::new(seed);
    while tried < PAIR_PORTS {
        tried += worlds.try_next()?;
    }
    eprintln!("{tried} connections in {} worlds, 0 differences", worlds.tried);
    Ok(())
}

fn soak() -> Result<(), Failed> {
    let minutes = std::env::var("PORTCULLIS_SOAK_MINUTES").ok();
    let minutes: u64 = minutes.as_deref().unwrap_or("60").parse()?;
    let seed = match std::env::var("PORTCULLIS_SOAK_SEED") {
        Ok(seed) => seed.parse()?,
        Err(_) => std::time::SystemTime::UNIX_EPOCH.elapsed()?.as_secs(),
    };
    eprintln!("seed {seed}, {minutes} minutes");
    let (started, mut tried, mut worlds) = (Instant::now(), 0, Worlds::new(seed));
    while started.elapsed() < Duration::from_secs(minutes * 60) {
        tried += worlds.try_next()?;
        if worlds.tried % 20 == 0 {
            eprintln!("{tried} connections in {} worlds, 0 differences", worlds.tried);
        }
    }
    Ok(())
}

/// Random worlds, the same for the same seed.
struct Worlds {
    runner: TestRunner,
    tried: usize,
}

impl Worlds {
    fn new(seed: u64) -> Worlds {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        Worlds { runner: TestRunner::new_with_rng(Config::default(), rng), tried: 0 }
    }

    /// Tries the next world, and returns how many connections that were.
    fn try_next(&mut self) -> Result<usize, Failed> {
        let size = if self.tried.is_multiple_of(3) { Size::SMALL } else { Size::MEDIUM };
        let world = generate::world(size).new_tree(&mut self.runner)?.current();
        let options = Options { nodes: 1 + (self.tried % 3) as u32, ..Options::default() };
        self.tried += 1;
        world_is_as_predicted(&world, &options, MOST)
    }
}

/// Tries a world, as the lab has it. The oracle has to say the same of it as the engine.
fn world_is_as_predicted(world: &World, options: &Options, most: usize) -> Result<usize, Failed> {
    let plan = match plan(&engine::cluster(world), options) {
        Ok(plan) => plan,
        // The generator gives pods addresses that policies can speak of and no host can have.
        Err(Error::UnusableAddress { .. } | Error::DuplicateAddress { .. }) => return Ok(0),
        Err(error) => return Err(error.into()),
    };
    let all = connections(&plan, &portcullis_lab::traffics(&plan.cluster));
    let step = all.len().div_ceil(most).max(1);
    let some: Vec<_> = all.into_iter().step_by(step).collect();
    let cluster = Cluster { policies: Vec::new(), ..plan.cluster.clone() };
    let in_lab = World { cluster, policies: world.policies.clone() };
    let program = Program::compile(&plan.cluster);
    for (probe, _) in &some {
        let (from, to, traffic) = (probe.from, probe.to, probe.traffic);
        let expected = oracle::lets_through(&in_lab, from, to, traffic);
        if (program.effect(from, to, traffic) != Effect::Dropped) != expected {
            let world = manifests::yaml(&in_lab);
            return Err(format!("{from} -> {to} {traffic}: expected {expected}\n{world}").into());
        }
    }
    let tried = some.len();
    try_out(&plan, some).map_err(|failed| format!("{failed}\n{}", manifests::yaml(&in_lab)))?;
    Ok(tried)
}

/// Tries connections in a lab of their own. Anything that is not as predicted is an error.
fn try_out(plan: &Plan, connections: Vec<(Probe, usize)>) -> Result<Vec<Observation>, String> {
    let mut lab = Lab::up(plan, |_, _| {}).map_err(|e| e.to_string())?;
    let (trial, _) = lab.trial(connections, &mut |_, _, _| {}).map_err(|e| e.to_string())?;
    let differences: Vec<String> = trial
        .observations
        .iter()
        .filter(|o| !o.as_predicted(plan))
        .map(|o| {
            let Observation { probe, destination, predicted, before, under } = o;
            let to = &plan.endpoints[*destination].name;
            let from = &plan.endpoints[probe.source].name;
            let (a, b, traffic) = (probe.from, probe.to, probe.traffic);
            format!(
                "{from} ({a}) -> {to} ({b}) {traffic}: predicted {predicted}, \
                 without policies {before:?}, with them {under:?}"
            )
        })
        .collect();
    if differences.is_empty() { Ok(trial.observations) } else { Err(differences.join("\n")) }
}
