//! What rules ask of an input, computed once.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use portcullis_core::api;
use portcullis_core::labels::{Labels, Operator, Selector};
use portcullis_core::model::{
    Cluster, ContainerPort, Direction, Peer, Pod, Policy, PortMatch, PortRule,
};
use portcullis_core::net::Protocol;
use portcullis_core::program::{End, IdentityId, Program};
use portcullis_kube::Input;

/// The labels that DNS pods go by where the input does not have them.
const DNS_NAMESPACE: &str = "kube-system";

/// The label of the DNS pods of OpenShift.
const OPENSHIFT_DNS: &str = "dns.operator.openshift.io/daemonset-dns";

/// The input, and what follows from it.
#[derive(Debug)]
pub(crate) struct Context<'a> {
    pub(crate) input: &'a Input,
    /// The cluster of the input, with the pods that had to be imagined after its own.
    pub(crate) cluster: Cluster,
    /// The compiled cluster.
    pub(crate) program: Program,
    /// How many pods are the input's own.
    pub(crate) known: usize,
    /// The DNS pods, known or imagined.
    pub(crate) dns: Vec<usize>,
    /// By policy: as written.
    raw: Vec<&'a api::NetworkPolicy>,
    /// The pods that selectors can match, by namespace and labels.
    groups: BTreeMap<String, BTreeMap<Labels, Vec<usize>>>,
}

impl<'a> Context<'a> {
    pub(crate) fn new(input: &'a Input) -> Context<'a> {
        let mut cluster = input.cluster.clone();
        let known = cluster.pods.len();
        imagine_subjects(&mut cluster);
        let dns = dns_pods(&mut cluster, known);
        let mut groups: BTreeMap<String, BTreeMap<Labels, Vec<usize>>> = BTreeMap::new();
        for (i, pod) in cluster.pods.iter().enumerate().filter(|(_, p)| selectable(p)) {
            let of_namespace = groups.entry(pod.namespace.clone()).or_default();
            of_namespace.entry(pod.labels.clone()).or_default().push(i);
        }
        let program = Program::compile(&cluster);
        let valid = input.policies.iter().filter(|p| p.index().is_some());
        let raw = valid.map(|p| &p.raw).collect();
        Context { input, cluster, program, known, dns, raw, groups }
    }

    /// The valid policies: index, as understood, as written.
    pub(crate) fn policies(
        &self,
    ) -> impl Iterator<Item = (usize, &Policy, &'a api::NetworkPolicy)> {
        let policies = self.cluster.policies.iter().zip(&self.raw).enumerate();
        policies.map(|(i, (policy, raw))| (i, policy, *raw))
    }

    /// Every rule of every policy that has an effect.
    pub(crate) fn rules(&self) -> impl Iterator<Item = RuleRef<'_>> {
        self.policies().flat_map(|(policy, model, raw)| {
            Direction::ALL.into_iter().flat_map(move |direction| {
                let rules = model.rules(direction).unwrap_or_default().iter();
                let written = section(raw, direction).iter();
                rules.zip(written).enumerate().map(move |(index, (rule, raw))| RuleRef {
                    policy,
                    namespace: &model.namespace,
                    direction,
                    index,
                    rule,
                    raw,
                })
            })
        })
    }

    /// Every namespaceSelector of a peer, with its rule and the index of the peer.
    pub(crate) fn namespace_selectors(
        &self,
    ) -> impl Iterator<Item = (RuleRef<'_>, usize, &Selector)> {
        self.rules().flat_map(|rule| {
            let peers = rule.rule.peers.iter().enumerate();
            peers.filter_map(move |(i, peer)| match peer {
                Peer::Pods { namespaces: Some(selector), .. } => Some((rule, i, selector)),
                _ => None,
            })
        })
    }

    /// Every port that a rule names by one number, with the pods whose port it is.
    pub(crate) fn numbered_ports(&self) -> impl Iterator<Item = NumberedPort<'_>> {
        self.rules().flat_map(|rule| {
            let ports = rule.rule.ports.iter().enumerate();
            let ports: Vec<(usize, Protocol, u16)> = ports
                .filter_map(|(i, port)| match port.port {
                    PortMatch::Range(first, last) if first == last => {
                        Some((i, port.protocol, first))
                    }
                    _ => None,
                })
                .collect();
            let targets = if ports.is_empty() { Vec::new() } else { self.targets(&rule) };
            let targets = Rc::new(targets);
            ports.into_iter().map(move |(index, protocol, port)| NumberedPort {
                rule,
                index,
                protocol,
                port,
                targets: targets.clone(),
            })
        })
    }

    /// Whether the pod is of the input, and not imagined.
    pub(crate) fn is_known(&self, pod: usize) -> bool {
        pod < self.known
    }

    /// Whether every namespace that something of the input is in has its Namespace there.
    pub(crate) fn knows_all_namespaces(&self) -> bool {
        let cluster = &self.input.cluster;
        let pods = cluster.pods.iter().map(|pod| &pod.namespace);
        let policies = cluster.policies.iter().map(|policy| &policy.namespace);
        pods.chain(policies).all(|namespace| cluster.namespaces.contains_key(namespace))
    }

    /// The pods of the input that policies can select, of one namespace.
    pub(crate) fn known_in(&self, namespace: &str) -> Vec<usize> {
        let groups = self.groups.get(namespace).into_iter().flatten();
        groups.flat_map(|(_, pods)| pods.iter().copied()).filter(|p| self.is_known(*p)).collect()
    }

    /// The pods that a policy selects, known or imagined.
    pub(crate) fn subjects(&self, policy: usize) -> Vec<usize> {
        let policy = &self.cluster.policies[policy];
        let mut pods = Vec::new();
        self.select(&policy.namespace, &policy.subject, &mut pods);
        pods
    }

    /// The pods that a peer of a policy in this namespace matches; none for an `ipBlock`.
    pub(crate) fn peers(&self, own: &str, peer: &Peer) -> Vec<usize> {
        let Peer::Pods { pods, namespaces } = peer else { return Vec::new() };
        let everything = Selector::default();
        let pods = pods.as_ref().unwrap_or(&everything);
        let mut found = Vec::new();
        match namespaces {
            None => self.select(own, pods, &mut found),
            Some(namespaces) => {
                for namespace in self.groups.keys() {
                    if namespaces.matches(&self.cluster.namespace_labels(namespace)) {
                        self.select(namespace, pods, &mut found);
                    }
                }
            }
        }
        found
    }

    /// The pods whose ports a rule speaks of: its subjects, or its peers.
    pub(crate) fn targets(&self, rule: &RuleRef<'_>) -> Vec<usize> {
        match rule.direction {
            Direction::Ingress => self.subjects(rule.policy),
            Direction::Egress => {
                let peers = rule.rule.peers.iter();
                let pods: BTreeSet<_> =
                    peers.flat_map(|peer| self.peers(rule.namespace, peer)).collect();
                pods.into_iter().collect()
            }
        }
    }

    fn select(&self, namespace: &str, selector: &Selector, pods: &mut Vec<usize>) {
        for (labels, of_class) in self.groups.get(namespace).into_iter().flatten() {
            if selector.matches(labels) {
                pods.extend(of_class);
            }
        }
    }

    /// The policies that isolate a pod.
    pub(crate) fn isolating(&self, pod: usize, direction: Direction) -> Option<&[u32]> {
        let endpoint = self.program.endpoints(End::Pod(pod)).into_iter().flatten().next()?;
        self.program.isolation(&endpoint, direction).map(|rules| rules.policies.as_slice())
    }

    /// What policies know of a pod: pods of equal classes fare alike.
    pub(crate) fn class(&self, pod: usize) -> PodClass {
        let identities = self.program.endpoints(End::Pod(pod)).map(|e| e.map(|e| e.identity));
        (self.program.profile(pod), identities)
    }

    /// What messages call a pod: its workload, if it has one.
    pub(crate) fn name(&self, pod: usize) -> String {
        let pod = &self.cluster.pods[pod];
        match &pod.workload {
            Some(w) => format!("{}/{}/{}", pod.namespace, w.kind.to_lowercase(), w.name),
            None => format!("{}/{}", pod.namespace, pod.name),
        }
    }

    /// The names of pods, each once, the first three.
    pub(crate) fn names(&self, pods: &[usize]) -> String {
        let known = pods.iter().filter(|p| self.is_known(**p));
        let names: BTreeSet<String> = known.map(|p| self.name(*p)).collect();
        let shown: Vec<&str> = names.iter().take(3).map(String::as_str).collect();
        match names.len() {
            0 => "the pods that it selects".to_owned(),
            n if n > 3 => format!("{} and {} more", shown.join(", "), n - 3),
            _ => shown.join(", "),
        }
    }

    /// The comments of the document that a policy is in, each with its line.
    pub(crate) fn comments(&self, policy: usize) -> Vec<(u32, &'a str)> {
        let Some((first, text)) = self.input.policy_document(policy) else { return Vec::new() };
        let lines = (first..).zip(text.lines());
        let comment = |(line, text): (u32, &'a str)| {
            let at =
                if text.trim_start().starts_with('#') { text.find('#') } else { text.find(" #") };
            at.map(|at| (line, text[at..].trim_start_matches([' ', '#'])))
        };
        lines.filter_map(comment).collect()
    }
}

/// The profile and the identities of a pod.
pub(crate) type PodClass = (Option<usize>, [Option<IdentityId>; 2]);

/// A rule of a policy: where it stands, as understood and as written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RuleRef<'a> {
    pub(crate) policy: usize,
    pub(crate) namespace: &'a str,
    pub(crate) direction: Direction,
    pub(crate) index: usize,
    pub(crate) rule: &'a portcullis_core::model::Rule,
    pub(crate) raw: &'a api::Rule,
}

/// A port that a rule names by one number.
#[derive(Debug, Clone)]
pub(crate) struct NumberedPort<'a> {
    pub(crate) rule: RuleRef<'a>,
    /// Its index in `ports`.
    pub(crate) index: usize,
    pub(crate) protocol: Protocol,
    pub(crate) port: u16,
    /// The pods whose port it is, known or imagined.
    pub(crate) targets: Rc<Vec<usize>>,
}

impl RuleRef<'_> {
    /// `spec.ingress[0]`.
    pub(crate) fn path(&self) -> String {
        format!("spec.{}[{}]", self.direction.section(), self.index)
    }

    /// `spec.ingress[0].from[1]`.
    pub(crate) fn peer_path(&self, peer: usize) -> String {
        format!("{}.{}[{peer}]", self.path(), self.direction.peers())
    }

    /// `spec.ingress[0].ports[1]`.
    pub(crate) fn port_path(&self, port: usize) -> String {
        format!("{}.ports[{port}]", self.path())
    }

    /// Whether it allows a port of these pods, by number.
    pub(crate) fn covers(&self, protocol: Protocol, port: u16) -> bool {
        let covers = |p: &PortRule| {
            p.protocol == protocol
                && match p.port {
                    PortMatch::All => true,
                    PortMatch::Range(first, last) => (first..=last).contains(&port),
                    PortMatch::Named(_) => false,
                }
        };
        self.rule.ports.is_empty() || self.rule.ports.iter().any(covers)
    }
}

/// The rules of a section as written.
pub(crate) fn section(raw: &api::NetworkPolicy, direction: Direction) -> &[api::Rule] {
    let section = match direction {
        Direction::Ingress => &raw.spec.ingress,
        Direction::Egress => &raw.spec.egress,
    };
    section.as_deref().unwrap_or_default()
}

/// Whether policies can select a pod and peers can match it (SEMANTICS 12, 13).
fn selectable(pod: &Pod) -> bool {
    !pod.host_network && !pod.finished
}

/// Gives each namespace without any pod one for each policy, so that what policies come to
/// together can be asked all the same.
fn imagine_subjects(cluster: &mut Cluster) {
    let with_pods: BTreeSet<String> = cluster.pods.iter().map(|p| p.namespace.clone()).collect();
    let mut imagined: BTreeSet<(String, Labels)> = BTreeSet::new();
    for policy in &cluster.policies {
        if !with_pods.contains(&policy.namespace) {
            imagined.insert((policy.namespace.clone(), witness(&policy.subject)));
        }
    }
    for (i, (namespace, labels)) in imagined.into_iter().enumerate() {
        let name = format!("imagined-{i}");
        cluster.pods.push(Pod { namespace, name, labels, ..Pod::default() });
    }
}

/// Labels that a selector matches, as few as possible. They may not be any where it contradicts
/// itself.
fn witness(selector: &Selector) -> Labels {
    let mut labels = selector.match_labels.clone();
    for requirement in &selector.match_expressions {
        let value = match &requirement.operator {
            Operator::In(values) => values.first().cloned().unwrap_or_default(),
            Operator::Exists => String::new(),
            Operator::NotIn(_) | Operator::DoesNotExist => continue,
        };
        if !labels.contains_key(&requirement.key) {
            labels.insert(requirement.key.clone(), value);
        }
    }
    labels
}

/// The DNS pods of the cluster; those that every cluster has are imagined if there are none.
fn dns_pods(cluster: &mut Cluster, known: usize) -> Vec<usize> {
    let serves_dns = |pod: &Pod| {
        let named = ["k8s-app", "app.kubernetes.io/name", "app"];
        let known = |key: &&str| {
            pod.labels.get(key).is_some_and(|v| matches!(v.as_str(), "kube-dns" | "coredns"))
        };
        pod.labels.contains_key(OPENSHIFT_DNS) || named.iter().any(known)
    };
    let pods = cluster.pods.iter().take(known).enumerate();
    let dns: Vec<usize> =
        pods.filter(|(_, p)| selectable(p) && serves_dns(p)).map(|(i, _)| i).collect();
    if !dns.is_empty() {
        return dns;
    }
    let port =
        |name: &str, protocol| ContainerPort { name: Some(name.to_owned()), port: 53, protocol };
    cluster.pods.push(Pod {
        namespace: DNS_NAMESPACE.to_owned(),
        name: "imagined-dns".to_owned(),
        labels: Labels::from([("k8s-app".to_owned(), "kube-dns".to_owned())]),
        ports: vec![port("dns", Protocol::Udp), port("dns-tcp", Protocol::Tcp)],
        ..Pod::default()
    });
    vec![cluster.pods.len() - 1]
}
