//! A trial: every connection that a lab can have, as predicted and as observed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::time::{Duration, Instant};

use portcullis_core::Program;
use portcullis_core::model::{Cluster, PortMatch};
use portcullis_core::net::{Family, Protocol, Traffic};
use portcullis_core::program::{Effect, Origin};
use portcullis_dataplane::{Dataplane, Nftables, Report, share};

use crate::plan::{Kind, Plan};
use crate::probe::{Outcome, Probe};
use crate::{Error, Lab};

/// What a lab is doing; told to whoever shows progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Namespaces that are ready.
    Up,
    /// Connections tried where no policy can refuse them.
    Before,
    /// Nodes whose kernel has the policies.
    Enforce,
    /// Connections tried under the policies.
    Under,
}

/// Whoever shows progress: the step, how much of it is done, and how much there is.
pub type Progress<'a> = &'a mut (dyn FnMut(Step, usize, usize) + Send);

/// What was tried and what came of it.
#[derive(Debug)]
pub struct Trial {
    /// One for each connection, in the order they were given.
    pub observations: Vec<Observation>,
    /// How many packets that open connections each origin let pass at its end, also none. What
    /// egress let pass can have been refused by ingress at the other end.
    pub hits: BTreeMap<Origin, u64>,
    /// Packets that the nodes received while connections were tried.
    pub packets: u64,
    /// How long it all took.
    pub elapsed: Duration,
}

/// One connection, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    /// The connection: the ends are endpoints of the plan.
    pub probe: Probe,
    /// The other end.
    pub destination: usize,
    /// Whether the engine says that it passes, as it does also where policies in audit refuse it.
    pub predicted: bool,
    /// What came of it where no policy could refuse it: while none was in force, or from the
    /// destination's own node. Where the right host did not answer, `under` means nothing.
    pub before: Outcome,
    /// What came of it under the policies.
    pub under: Outcome,
}

impl Observation {
    /// The family of its addresses.
    pub fn family(&self) -> Family {
        Family::of(self.probe.to)
    }

    /// Whether the right host answered where no policy could refuse it.
    pub fn is_up(&self, plan: &Plan) -> bool {
        self.before == self.right(plan)
    }

    /// Whether it passed, which is an answer from the right host, or was refused, which is silence.
    /// `None` where nothing can be said: anything else came of it, or that host did not answer
    /// without policies either.
    pub fn passed(&self, plan: &Plan) -> Option<bool> {
        match &self.under {
            _ if !self.is_up(plan) => None,
            Outcome::Silent => Some(false),
            under => (*under == self.right(plan)).then_some(true),
        }
    }

    /// Whether it came out as predicted.
    pub fn as_predicted(&self, plan: &Plan) -> bool {
        self.passed(plan) == Some(self.predicted)
    }

    fn right(&self, plan: &Plan) -> Outcome {
        Outcome::Answered(plan.endpoints[self.destination].name.clone())
    }
}

/// Every port and protocol that policies name and pods declare, the ends of ranges and what lies
/// just outside them, one TCP port that nobody speaks of, and ICMP.
pub fn traffics(cluster: &Cluster) -> BTreeSet<Traffic> {
    let mut ports: BTreeSet<(Protocol, u16)> = BTreeSet::new();
    for pod in cluster.pods.iter().filter(|pod| !pod.finished) {
        ports.extend(pod.ports.iter().map(|port| (port.protocol, port.port)));
    }
    let rules = cluster.policies.iter().flat_map(|p| p.ingress.iter().chain(&p.egress)).flatten();
    for port in rules.flat_map(|rule| &rule.ports) {
        match port.port {
            PortMatch::Range(first, last) => {
                ports.insert((port.protocol, first));
                if last > first {
                    ports.insert((port.protocol, last));
                    let outside = [first.checked_sub(1), last.checked_add(1)];
                    ports.extend(outside.into_iter().flatten().map(|p| (port.protocol, p)));
                }
            }
            // A protocol without ports is tried on the port that nobody speaks of.
            PortMatch::All => _ = ports.insert((port.protocol, NOBODYS_PORT)),
            // A name is the number that some pod declares for it.
            PortMatch::Named(_) => {}
        }
    }
    ports.remove(&(Protocol::Tcp, 0));
    ports.remove(&(Protocol::Udp, 0));
    ports.remove(&(Protocol::Sctp, 0));
    let spoken_of = |port: u16| ports.iter().any(|(_, p)| *p == port);
    let nobodys = (NOBODYS_PORT..).find(|port| !spoken_of(*port)).unwrap_or(NOBODYS_PORT);
    ports.insert((Protocol::Tcp, nobodys));
    let mut traffics: BTreeSet<_> = ports.into_iter().map(|(p, n)| Traffic::Port(p, n)).collect();
    traffics.insert(Traffic::Other);
    traffics
}

/// The port that stands for all that nobody speaks of, unless somebody does: then the next one.
const NOBODYS_PORT: u16 = 39_999;

/// Every connection between two endpoints of which one at least is a pod, on every family that
/// both have. A pod's connections to itself never leave it, so they are not among them.
pub fn connections(plan: &Plan, traffics: &BTreeSet<Traffic>) -> Vec<(Probe, usize)> {
    let mut connections = Vec::new();
    for traffic in traffics {
        for (source, a) in plan.endpoints.iter().enumerate() {
            for (destination, b) in plan.endpoints.iter().enumerate() {
                if source == destination || (a.kind != Kind::Pod && b.kind != Kind::Pod) {
                    continue;
                }
                for from in &a.addresses {
                    for to in b.addresses.iter().filter(|to| Family::of(**to) == Family::of(*from))
                    {
                        let (from, to, traffic) = (*from, *to, *traffic);
                        let probe = Probe { source, from, to, traffic, expect: Some(true) };
                        connections.push((probe, destination));
                    }
                }
            }
        }
    }
    connections
}

impl Lab {
    /// Puts the policies of the plan's cluster into every node's kernel, by way of the program that
    /// was compiled from it.
    pub fn enforce(&self, program: Program, progress: Progress<'_>) -> Result<Enforcement, Error> {
        let cluster = &self.plan().cluster;
        let mut nodes = Vec::new();
        for (i, node) in cluster.nodes.iter().enumerate() {
            let (state, origins) = share(cluster, &node.name);
            let kernel = |source| Error::Kernel { node: node.name.clone(), source };
            let mut dataplane = self.in_node(i, Nftables::open)?.map_err(kernel)?;
            let report = dataplane.apply(&state).map_err(kernel)?;
            nodes.push(EnforcedNode { name: node.name.clone(), dataplane, origins, report });
            progress(Step::Enforce, i + 1, cluster.nodes.len());
        }
        Ok(Enforcement { program, nodes })
    }

    /// Tries connections without policies and then with them. The policies stay in force as long as
    /// what comes back is kept. Connections on one kind of traffic should be next to each other, as
    /// [`connections`] has them.
    pub fn trial(
        &mut self,
        connections: Vec<(Probe, usize)>,
        progress: Progress<'_>,
    ) -> Result<(Trial, Enforcement), Error> {
        let started = Instant::now();
        let packets_before = self.packets_received()?;
        let program = Program::compile(&self.plan().cluster);
        let before = self.try_all(&connections, Step::Before, progress)?;
        let mut enforcement = self.enforce(program, progress)?;
        let trial = Trial {
            observations: self.under(&enforcement.program, connections, before, progress)?,
            hits: enforcement.hits()?,
            packets: self.packets_received()? - packets_before,
            elapsed: started.elapsed(),
        };
        Ok((trial, enforcement))
    }

    /// Tries connections under the policies in force, of which this is the program. Whether a destination answers at all is asked
    /// from its own node, which it may always talk to (SEMANTICS 7).
    pub fn observe(
        &mut self,
        program: &Program,
        connections: Vec<(Probe, usize)>,
        progress: Progress<'_>,
    ) -> Result<Vec<Observation>, Error> {
        let mut asked = BTreeMap::new();
        let mut witnesses = Vec::new();
        for (probe, destination) in &connections {
            asked.entry((probe.traffic, probe.to)).or_insert_with(|| {
                witnesses.push((self.witness(probe, *destination), *destination));
                witnesses.len() - 1
            });
        }
        let answers = self.try_all(&witnesses, Step::Before, progress)?;
        let before =
            |(probe, _): &(Probe, usize)| answers[asked[&(probe.traffic, probe.to)]].clone();
        let before = connections.iter().map(before).collect();
        self.under(program, connections, before, progress)
    }

    /// The same question, asked by the destination's node, or by any node of a host outside.
    fn witness(&self, probe: &Probe, destination: usize) -> Probe {
        let node = self.plan().endpoints[destination].node.unwrap_or(0);
        let mut endpoints = self.plan().endpoints.iter().enumerate();
        let source = endpoints.find(|(_, e)| e.kind == Kind::Node && e.node == Some(node));
        let Some((source, node)) = source else { return *probe };
        let mut addresses = node.addresses.iter().copied();
        let from = addresses.find(|a| Family::of(*a) == Family::of(probe.to)).unwrap_or(probe.from);
        Probe { source, from, expect: Some(true), ..*probe }
    }

    fn under(
        &mut self,
        program: &Program,
        mut connections: Vec<(Probe, usize)>,
        before: Vec<Outcome>,
        progress: Progress<'_>,
    ) -> Result<Vec<Observation>, Error> {
        for (probe, _) in &mut connections {
            let effect = program.effect(probe.from, probe.to, probe.traffic);
            probe.expect = Some(effect != Effect::Dropped);
        }
        let outcomes = self.try_all(&connections, Step::Under, progress)?;
        let observation = |(((probe, destination), before), under): (((Probe, usize), _), _)| {
            let predicted = probe.expect == Some(true);
            Observation { probe, destination, predicted, before, under }
        };
        Ok(connections.into_iter().zip(before).zip(outcomes).map(observation).collect())
    }

    /// Tries connections, as many ports at once as there can be responders for.
    fn try_all(
        &mut self,
        connections: &[(Probe, usize)],
        step: Step,
        progress: Progress<'_>,
    ) -> Result<Vec<Outcome>, Error> {
        let mut outcomes = Vec::with_capacity(connections.len());
        let at_once = self.ports_at_once().max(1);
        let mut rest = connections;
        while !rest.is_empty() {
            // Connections come by traffic, so those of a few ports are next to each other.
            let mut ports = BTreeSet::new();
            let mut count = 0;
            for (probe, _) in rest {
                if let Traffic::Port(protocol, port) = probe.traffic
                    && !ports.contains(&(protocol, port))
                {
                    if ports.len() == at_once {
                        break;
                    }
                    ports.insert((protocol, port));
                }
                count += 1;
            }
            self.listen(&ports)?;
            let probes: Vec<Probe> = rest[..count].iter().map(|(probe, _)| *probe).collect();
            let mut done = outcomes.len();
            outcomes.extend(self.probe(&probes, |settled| {
                done += settled;
                progress(step, done, connections.len());
            })?);
            rest = &rest[count..];
        }
        Ok(outcomes)
    }

    /// How many packets all nodes have received so far, on all their links but the loopback.
    fn packets_received(&self) -> Result<u64, Error> {
        let mut sum = 0;
        for (i, node) in self.plan().cluster.nodes.iter().enumerate() {
            let read = self.in_node(i, || fs::read_to_string("/proc/thread-self/net/dev"))?;
            let counted = read.and_then(|table| {
                received(&table).ok_or_else(|| io::Error::other("unexpected form of net/dev"))
            });
            sum +=
                counted.map_err(|source| Error::Statistics { owner: node.name.clone(), source })?;
        }
        Ok(sum)
    }
}

/// The policies in force in a lab.
#[derive(Debug)]
pub struct Enforcement {
    /// What the kernels were programmed from, and predictions are made with.
    pub program: Program,
    nodes: Vec<EnforcedNode>,
}

#[derive(Debug)]
struct EnforcedNode {
    name: String,
    dataplane: Nftables,
    origins: BTreeMap<u32, Origin>,
    report: Report,
}

impl Enforcement {
    /// What each node's kernel was given, by the node's name.
    pub fn reports(&self) -> impl Iterator<Item = (&str, &Report)> {
        self.nodes.iter().map(|node| (node.name.as_str(), &node.report))
    }

    /// How many packets that open connections each origin has let pass at its end so far, on all
    /// nodes together; also none.
    pub fn hits(&mut self) -> Result<BTreeMap<Origin, u64>, Error> {
        let origins = self.nodes.iter().flat_map(|node| node.origins.values());
        let mut hits: BTreeMap<Origin, u64> = origins.map(|origin| (*origin, 0)).collect();
        for node in &mut self.nodes {
            let kernel = |source| Error::Kernel { node: node.name.clone(), source };
            for hit in node.dataplane.hits().map_err(kernel)? {
                if let Some(origin) = node.origins.get(&hit.origin) {
                    *hits.entry(*origin).or_default() += hit.packets;
                }
            }
        }
        Ok(hits)
    }
}

/// The packets received on all links of a `/proc/net/dev` but the loopback: the second number
/// after the colon (proc_pid_net(5)).
fn received(table: &str) -> Option<u64> {
    let links = table.lines().skip(2).map(|line| line.split_once(':'));
    links
        .map(|link| {
            let (name, numbers) = link?;
            let packets: u64 = numbers.split_whitespace().nth(1)?.parse().ok()?;
            Some(if name.trim() == "lo" { 0 } else { packets })
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_counted_on_all_links_but_the_loopback() {
        let table = "Inter-|   Receive      |  Transmit\n \
                     face |bytes    packets errs\n    \
                     lo:  100   7    0    0\n  \
                     eth0: 2000  11    0    0\n  \
                     p1: 3000  13    0    0\n";
        assert_eq!(received(table), Some(24));
        assert_eq!(received("a\nb\nno numbers here"), None);
    }
}
