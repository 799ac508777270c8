//! A packet that rules told of, as a connection between pods, and why it was refused.

use jiff::Timestamp;
use portcullis_cni::flow::{Direction, End, Flow, Miss, Nearest, Reason, RuleName, Verdict};
use portcullis_core::Program;
use portcullis_core::explain::{EndExplanation, NearMiss, explain};
use portcullis_core::incremental::Excerpt;
use portcullis_core::model::Cluster;
use portcullis_core::net::{Protocol, Traffic};
use portcullis_core::program::{End as ProgramEnd, Origin};
use portcullis_dataplane::plan::Direction as Hook;
use portcullis_dataplane::{Headers, Logged, Outcome};

/// What concerns two addresses, compiled.
#[derive(Debug)]
pub(crate) struct Explained {
    pub(crate) excerpt: Excerpt,
    cluster: Cluster,
    program: Program,
}

impl Explained {
    pub(crate) fn new(excerpt: Excerpt) -> Explained {
        let cluster = excerpt.cluster();
        let program = Program::compile(&cluster);
        Explained { excerpt, cluster, program }
    }

    /// What the policies of the source and of the destination say.
    fn ends(&self, headers: &Headers) -> Option<[EndExplanation; 2]> {
        let (source, destination) = self.excerpt.ends();
        let traffic = match (known(headers.protocol), headers.ports) {
            (Some(protocol), Some((_, port))) => Traffic::Port(protocol, port),
            _ => Traffic::Other,
        };
        let [source, destination] = [source, destination].map(ProgramEnd::Address);
        let why = explain(&self.cluster, &self.program, source, destination, traffic);
        why.paths.into_iter().next().map(|path| [path.egress, path.ingress])
    }

    fn policy(&self, index: u32) -> String {
        let policy = &self.cluster.policies[index as usize];
        format!("{}/{}", policy.namespace, policy.name)
    }

    fn policies(&self, indices: &[u32]) -> Vec<String> {
        indices.iter().map(|index| self.policy(*index)).collect()
    }

    fn rule(&self, origin: &Origin) -> RuleName {
        RuleName { policy: self.policy(origin.policy), rule: origin.rule_path() }
    }

    fn nearest(&self, near: &NearMiss) -> Nearest {
        let misses = near.misses.iter().map(|miss| Miss {
            path: miss.path.clone(),
            expected: miss.expected.clone(),
            found: miss.found.clone(),
        });
        Nearest { rule: self.rule(&near.origin), misses: misses.collect() }
    }
}

/// The connection that a node's rules told of, by what is known now.
pub(crate) fn record(node: &str, logged: &Logged, known: &Explained) -> Flow {
    let Headers { source, destination, protocol, ports } = logged.headers;
    let pods = known.excerpt.pods();
    let end = |address, port, pod: Option<(&str, &str)>| End {
        address,
        port,
        namespace: pod.map(|(namespace, _)| namespace.to_owned()),
        pod: pod.map(|(_, name)| name.to_owned()),
    };
    let mut flow = Flow {
        time: Timestamp::try_from(logged.time).unwrap_or_default().to_string(),
        node: node.to_owned(),
        verdict: Verdict::Refused,
        direction: None,
        source: end(source, ports.map(|(port, _)| port), pods[0]),
        destination: end(destination, ports.map(|(_, port)| port), pods[1]),
        protocol: protocol_name(protocol),
        reason: None,
        isolated_by: Vec::new(),
        allowed_by: Vec::new(),
        nearest: None,
    };
    match logged.outcome {
        Outcome::Refused(hook) => refused(&mut flow, hook, &logged.headers, known),
        Outcome::Audited(hook) => {
            flow.verdict = Verdict::Audited;
            refused(&mut flow, hook, &logged.headers, known);
        }
        Outcome::Cut => {
            flow.verdict = Verdict::Cut;
            let refuses = |end: &EndExplanation| matches!(end, EndExplanation::Refused { .. });
            let ends = known.ends(&logged.headers);
            let by = ends.and_then(|ends| ends.iter().position(refuses));
            match by {
                Some(0) => refused(&mut flow, Hook::Egress, &logged.headers, known),
                Some(_) => refused(&mut flow, Hook::Ingress, &logged.headers, known),
                None => flow.reason = Some(Reason::Changed),
            }
        }
        Outcome::FalseSource => flow.reason = Some(Reason::FalseSource),
        Outcome::AuditedSource => {
            flow.verdict = Verdict::Audited;
            flow.reason = Some(Reason::FalseSource);
        }
        Outcome::Allowed => {
            flow.verdict = Verdict::Allowed;
            for end in known.ends(&logged.headers).into_iter().flatten() {
                if let EndExplanation::Allowed { isolated_by, by } = end {
                    flow.isolated_by.extend(known.policies(&isolated_by));
                    flow.allowed_by.extend(by.iter().map(|origin| known.rule(origin)));
                }
            }
            flow.allowed_by.dedup();
        }
    }
    flow
}

fn refused(flow: &mut Flow, hook: Hook, headers: &Headers, known: &Explained) {
    let (direction, index) = match hook {
        Hook::Egress => (Direction::Egress, 0),
        Hook::Ingress => (Direction::Ingress, 1),
    };
    flow.direction = Some(direction);
    if !known.excerpt.local()[index] {
        flow.reason = Some(Reason::UnknownPod);
        return;
    }
    flow.reason = Some(Reason::Changed);
    let ends = known.ends(headers);
    if let Some(EndExplanation::Refused { isolated_by, nearest, .. }) =
        ends.map(|mut ends| std::mem::replace(&mut ends[index], EndExplanation::Open))
    {
        flow.reason = Some(Reason::Policy);
        flow.isolated_by = known.policies(&isolated_by);
        flow.nearest = nearest.as_ref().map(|near| known.nearest(near));
    }
}

fn known(number: u8) -> Option<Protocol> {
    Protocol::ALL.into_iter().find(|protocol| protocol.number() == number)
}

fn protocol_name(number: u8) -> String {
    match (known(number), number) {
        (Some(protocol), _) => protocol.to_string(),
        (None, 1) => "ICMP".to_owned(),
        (None, 58) => "ICMPv6".to_owned(),
        (None, other) => other.to_string(),
    }
}
