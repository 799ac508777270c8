//! Why a connection is allowed or refused: read off the [`Program`], worded from the cluster.

use std::collections::BTreeSet;

use crate::change::Change;
use crate::labels::{Labels, Selector};
use crate::model::{
    Cluster, ContainerPort, Direction, IpBlock, NAMESPACE_NAME_LABEL, Peer, Policy, PortMatch,
    PortRule, Rule,
};
use crate::net::Traffic;
use crate::program::{End, Endpoint, Exemption, Fact, Judgement, Origin, Path, Program, Verdict};

/// Why a connection between two ends gets its verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// The verdict that [`Program::verdict`] gives.
    pub verdict: Verdict,
    /// One for each family that the connection can take; empty where the ends have none in common.
    pub paths: Vec<PathExplanation>,
}

/// Why one path passes or does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathExplanation {
    /// The addresses.
    pub path: Path,
    /// Whether it passes.
    pub judgement: Judgement,
    /// The facts that this depends on and that are not known; none unless it is undetermined.
    pub missing: Vec<Fact>,
    /// Why no policy applies, if so.
    pub exemption: Option<Exemption>,
    /// What the source's egress policies say.
    pub egress: EndExplanation,
    /// What the destination's ingress policies say.
    pub ingress: EndExplanation,
}

/// What the policies of one end say in one direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndExplanation {
    /// The end is no pod, or on the host network: it imposes nothing (SEMANTICS 4, 12).
    NoSubject,
    /// A pod that no policy isolates in this direction (SEMANTICS 1).
    Open,
    /// Isolated, and allowed.
    Allowed {
        /// The policies that isolate, by index in the cluster.
        isolated_by: Vec<u32>,
        /// Everything that allows it, in the order of the input.
        by: Vec<Origin>,
    },
    /// Isolated, and allowed or not by what is not known.
    Undetermined {
        /// The policies that isolate, by index in the cluster.
        isolated_by: Vec<u32>,
        /// Everything that may allow it, in the order of the input.
        perhaps: Vec<Origin>,
    },
    /// Isolated, and not allowed.
    Refused {
        /// The policies that isolate, by index in the cluster.
        isolated_by: Vec<u32>,
        /// Whether all of these are in audit, so that it passes all the same (SEMANTICS 28).
        audited: bool,
        /// The rule that comes nearest; `None` where those policies have no rule at all.
        nearest: Option<NearMiss>,
        /// The smallest change that would allow it; `None` where no rule can name the other end.
        change: Option<Change>,
    },
}

/// A rule that does not allow a connection, and what would have had to be different.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NearMiss {
    /// The rule, with the peer and the port of it that come nearest.
    pub origin: Origin,
    /// The terms that do not match; never empty.
    pub misses: Vec<Miss>,
}

/// One term of a rule that does not match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Miss {
    /// What kind of term.
    pub term: Term,
    /// The field path of the term in the policy.
    pub path: String,
    /// What the rule asks for.
    pub expected: String,
    /// What there is instead.
    pub found: String,
}

/// The kinds of terms a rule is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Term {
    /// A label of the pod.
    PodLabel,
    /// A label of its namespace.
    NamespaceLabel,
    /// The policy's own namespace.
    Namespace,
    /// That the peer is a pod.
    Pod,
    /// The CIDR of an `ipBlock`.
    Cidr,
    /// An exception of an `ipBlock`.
    Except,
    /// The protocol.
    Protocol,
    /// The port.
    Port,
}

impl Term {
    /// The name in JSON output.
    pub fn as_str(self) -> &'static str {
        match self {
            Term::PodLabel => "podLabel",
            Term::NamespaceLabel => "namespaceLabel",
            Term::Namespace => "namespace",
            Term::Pod => "pod",
            Term::Cidr => "cidr",
            Term::Except => "except",
            Term::Protocol => "protocol",
            Term::Port => "port",
        }
    }

    /// How far off a peer or port is that misses on this.
    fn weight(self) -> u32 {
        match self {
            Term::Pod => 4,
            Term::Cidr => 3,
            Term::Namespace => 2,
            Term::PodLabel | Term::NamespaceLabel | Term::Except | Term::Protocol | Term::Port => 1,
        }
    }
}

/// Explains a connection. The program must have been compiled from this cluster.
pub fn explain(
    cluster: &Cluster,
    program: &Program,
    source: End,
    destination: End,
    traffic: Traffic,
) -> Explanation {
    let paths = program.paths(source, destination).map(|path| {
        let exemption = program.exempt(&path);
        let judgement = program.judge(&path, traffic);
        let missing = program.missing(&path, traffic);
        let of = |direction| end(cluster, program, &path, direction, traffic);
        let (egress, ingress) = (of(Direction::Egress), of(Direction::Ingress));
        PathExplanation { path, judgement, missing, exemption, egress, ingress }
    });
    Explanation { paths: paths.collect(), verdict: program.verdict(source, destination, traffic) }
}

fn end(
    cluster: &Cluster,
    program: &Program,
    path: &Path,
    direction: Direction,
    traffic: Traffic,
) -> EndExplanation {
    let (subject, remote) = path.subject_and_remote(direction);
    if program.profile_of(subject).is_none() {
        return EndExplanation::NoSubject;
    }
    let Some(rules) = program.isolation(subject, direction) else {
        return EndExplanation::Open;
    };
    let isolated_by = rules.policies.clone();
    let allowing = program.allowing(rules, remote.identity, traffic);
    let sorted = |mut origins: Vec<Origin>| {
        origins.sort_unstable();
        origins.dedup();
        origins
    };
    let doubtful = program.doubtful(rules, path, direction, traffic).map(|entry| entry.origin);
    let certain: Vec<Origin> = allowing.map(|entry| entry.origin).collect();
    match program.judge_end(path, direction, traffic) {
        // Blocks that hold every address there is allow whatever address it will be.
        Judgement::Allowed if certain.is_empty() => {
            EndExplanation::Allowed { isolated_by, by: sorted(doubtful.collect()) }
        }
        Judgement::Allowed => EndExplanation::Allowed { isolated_by, by: sorted(certain) },
        Judgement::Undetermined => {
            EndExplanation::Undetermined { isolated_by, perhaps: sorted(doubtful.collect()) }
        }
        Judgement::Refused => {
            let question = Question { cluster, direction, remote, path, traffic };
            // Where pods that are not alike claim an address, no rule is near.
            let nearest = subject.pod.and_then(|_| question.nearest(&isolated_by));
            let change = Change::that_allows(cluster, program, path, direction, traffic);
            EndExplanation::Refused { isolated_by, audited: rules.audited, nearest, change }
        }
    }
}

struct Question<'a> {
    cluster: &'a Cluster,
    direction: Direction,
    remote: &'a Endpoint,
    path: &'a Path,
    traffic: Traffic,
}

/// An item of a list, and the terms of it that do not match.
type Candidate = (Option<u32>, Vec<Miss>);

impl Question<'_> {
    fn nearest(&self, policies: &[u32]) -> Option<NearMiss> {
        let mut nearest: Option<(u32, NearMiss)> = None;
        for index in policies {
            let policy = &self.cluster.policies[*index as usize];
            let rules = policy.rules(self.direction).unwrap_or_default();
            for (rule_index, rule) in (0..).zip(rules) {
                let mut origin = Origin {
                    policy: *index,
                    direction: self.direction,
                    rule: rule_index,
                    peer: None,
                    port: None,
                };
                let (peer, mut misses) = self.nearest_peer(policy, rule, origin);
                let (port, more) = self.nearest_port(rule, origin);
                (origin.peer, origin.port) = (peer, port);
                misses.extend(more);
                let distance = weight(&misses);
                if nearest.as_ref().is_none_or(|(best, _)| distance < *best) {
                    nearest = Some((distance, NearMiss { origin, misses }));
                }
            }
        }
        nearest.map(|(_, near)| near)
    }

    fn nearest_peer(&self, policy: &Policy, rule: &Rule, mut origin: Origin) -> Candidate {
        let candidates = (0..).zip(&rule.peers).map(|(i, peer)| {
            origin.peer = Some(i);
            let path = origin.peer_path();
            let misses = match peer {
                Peer::Pods { pods, namespaces } => {
                    self.pod_misses(policy, pods.as_ref(), namespaces.as_ref(), &path)
                }
                Peer::Block(block) => self.block_misses(block, &format!("{path}.ipBlock")),
            };
            (Some(i), misses)
        });
        nearest_of(candidates)
    }

    fn pod_misses(
        &self,
        policy: &Policy,
        pods: Option<&Selector>,
        namespaces: Option<&Selector>,
        path: &str,
    ) -> Vec<Miss> {
        let Some(pod) = self.remote.pod.map(|i| &self.cluster.pods[i]) else {
            let found = match self.remote.address {
                Some(address) => format!("{address}, which no pod has to itself"),
                None => "a pod on the host network".to_owned(),
            };
            let selectors = [("namespaces", namespaces), ("pods", pods)];
            let wanted = selectors.iter().filter_map(|(what, s)| Some(format!("{what} {}", (*s)?)));
            let expected = wanted.collect::<Vec<_>>().join(", ");
            return vec![Miss { term: Term::Pod, path: path.to_owned(), expected, found }];
        };
        let mut misses = Vec::new();
        match namespaces {
            None if pod.namespace != policy.namespace => misses.push(Miss {
                term: Term::Namespace,
                path: path.to_owned(),
                expected: format!("a pod of namespace {}, the policy's own", policy.namespace),
                found: format!("namespace {}", pod.namespace),
            }),
            None => {}
            Some(selector) => {
                let labels = self.cluster.namespace_labels(&pod.namespace);
                let path = format!("{path}.namespaceSelector");
                selector_misses(selector, &labels, Term::NamespaceLabel, &path, &mut misses);
            }
        }
        if let Some(selector) = pods {
            let path = format!("{path}.podSelector");
            selector_misses(selector, &pod.labels, Term::PodLabel, &path, &mut misses);
        }
        misses
    }

    fn block_misses(&self, block: &IpBlock, path: &str) -> Vec<Miss> {
        let miss = |term, path, expected: String| {
            let found = match self.remote.address {
                Some(address) => address.to_string(),
                None => "no address yet".to_owned(),
            };
            vec![Miss { term, path, expected, found }]
        };
        let inside =
            |net: &crate::net::IpNet| self.remote.address.is_some_and(|a| net.contains(&a));
        if !inside(&block.cidr) {
            return miss(Term::Cidr, format!("{path}.cidr"), block.cidr.to_string());
        }
        match block.except.iter().enumerate().find(|(_, hole)| inside(hole)) {
            Some((i, hole)) => {
                miss(Term::Except, format!("{path}.except[{i}]"), format!("not in {hole}"))
            }
            None => Vec::new(),
        }
    }

    fn nearest_port(&self, rule: &Rule, mut origin: Origin) -> Candidate {
        let candidates = (0..).zip(&rule.ports).map(|(i, port)| {
            origin.port = Some(i);
            (Some(i), self.port_misses(port, &origin.port_path()))
        });
        // Of ports that miss by as much, the one nearest in number says most.
        let distance = |candidate: &Candidate| {
            let port = candidate.0.and_then(|i| rule.ports.get(i as usize));
            (weight(&candidate.1), port.map_or(u16::MAX, |port| self.distance(&port.port)))
        };
        candidates.min_by_key(distance).unwrap_or((None, Vec::new()))
    }

    /// How far the port asked for is from those of a rule.
    fn distance(&self, rule: &PortMatch) -> u16 {
        match (rule, self.traffic) {
            (PortMatch::All, _) => 0,
            (PortMatch::Range(first, last), Traffic::Port(_, port)) => {
                first.saturating_sub(port).max(port.saturating_sub(*last))
            }
            (PortMatch::Named(_), _) | (_, Traffic::Other) => u16::MAX,
        }
    }

    fn port_misses(&self, rule: &PortRule, path: &str) -> Vec<Miss> {
        let miss = |term, field: &str, expected: String, found: String| Miss {
            term,
            path: format!("{path}.{field}"),
            expected,
            found,
        };
        let protocol = rule.protocol.to_string();
        let Traffic::Port(asked, port) = self.traffic else {
            return vec![miss(Term::Protocol, "protocol", protocol, self.traffic.to_string())];
        };
        let mut misses = Vec::new();
        if asked != rule.protocol {
            misses.push(miss(Term::Protocol, "protocol", protocol, asked.to_string()));
        }
        let expected = match &rule.port {
            PortMatch::All => None,
            PortMatch::Range(first, last) if (*first..=*last).contains(&port) => None,
            PortMatch::Range(first, last) if first == last => Some(first.to_string()),
            PortMatch::Range(first, last) => Some(format!("{first}-{last}")),
            PortMatch::Named(name) => self.named_port_miss(name, rule, port),
        };
        misses.extend(expected.map(|e| miss(Term::Port, "port", e, port.to_string())));
        misses
    }

    fn named_port_miss(&self, name: &str, rule: &PortRule, port: u16) -> Option<String> {
        let Some(pod) = self.path.destination.pod.map(|i| &self.cluster.pods[i]) else {
            return Some(format!("{name:?}, which only pods with a network of their own resolve"));
        };
        let named =
            |p: &&ContainerPort| p.name.as_deref() == Some(name) && p.protocol == rule.protocol;
        let numbers: BTreeSet<u16> = pod.ports.iter().filter(named).map(|p| p.port).collect();
        let shown: Vec<String> = numbers.iter().map(u16::to_string).collect();
        match (numbers.contains(&port), numbers.is_empty()) {
            (true, _) => None,
            (false, true) => {
                Some(format!("{name:?}, which the pod does not have for {}", rule.protocol))
            }
            (false, false) => Some(format!("{name:?}, which is {}", shown.join(" and "))),
        }
    }
}

fn weight(misses: &[Miss]) -> u32 {
    misses.iter().map(|m| m.term.weight()).sum()
}

/// The item that misses by least. No items at all is a list that matches everything.
fn nearest_of(candidates: impl Iterator<Item = Candidate>) -> Candidate {
    candidates.min_by_key(|(_, misses)| weight(misses)).unwrap_or((None, Vec::new()))
}

fn selector_misses(
    selector: &Selector,
    labels: &Labels,
    term: Term,
    path: &str,
    misses: &mut Vec<Miss>,
) {
    let found = |key: &str| match labels.get(key) {
        Some(value) => format!("{key}={value}"),
        None if term == Term::NamespaceLabel => match labels.get(NAMESPACE_NAME_LABEL) {
            Some(name) => format!("namespace {name} has no label {key}"),
            None => format!("no label {key}"),
        },
        None => format!("no label {key}"),
    };
    for (key, value) in selector.match_labels.iter() {
        if labels.get(key) != Some(value) {
            misses.push(Miss {
                term,
                path: format!("{path}.matchLabels[{key}]"),
                expected: format!("{key}={value}"),
                found: found(key),
            });
        }
    }
    for (i, requirement) in selector.match_expressions.iter().enumerate() {
        if !requirement.matches(labels) {
            misses.push(Miss {
                term,
                path: format!("{path}.matchExpressions[{i}]"),
                expected: requirement.to_string(),
                found: found(&requirement.key),
            });
        }
    }
}
