//! The smallest change to policies that lets a refused connection pass one of its ends.

use crate::labels::{Labels, Operator, Requirement, Selector};
use crate::model::{
    Cluster, Direction, IpBlock, NAMESPACE_NAME_LABEL, Peer, Pod, Policy, PortMatch, PortRule, Rule,
};
use crate::net::{IpNet, Traffic};
use crate::program::{Path, Program};

/// A rule to add. It names pods by labels that the other pods of the cluster do not have, so it
/// opens nothing between others than these two and the pods that have their labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The policy that the rule is added to, by index in the cluster, if there is one that selects
    /// no other pods; otherwise it is to be a policy of its own.
    pub policy: Option<u32>,
    /// The namespace of the policy.
    pub namespace: String,
    /// What the policy selects.
    pub subject: Selector,
    /// The section that the rule belongs to.
    pub direction: Direction,
    /// The rule. It has no ports where the connection has none, because no rule can allow ICMP
    /// alone (SEMANTICS 15): it then opens every port.
    pub rule: Rule,
}

impl Change {
    /// The change that lets the connection pass its end in this direction; `None` where that end
    /// is no pod, or the other has neither labels nor an address that a rule could name.
    pub fn that_allows(
        cluster: &Cluster,
        program: &Program,
        path: &Path,
        direction: Direction,
        traffic: Traffic,
    ) -> Option<Change> {
        let (subject, remote) = path.subject_and_remote(direction);
        let pod = &cluster.pods[subject.pod?];
        let peer = match (remote.pod, remote.address) {
            (Some(remote), _) => {
                let remote = &cluster.pods[remote];
                let elsewhere = remote.namespace != pod.namespace;
                let named = || (NAMESPACE_NAME_LABEL.to_owned(), remote.namespace.clone());
                let namespaces = elsewhere.then(|| Selector {
                    match_labels: Labels::from([named()]),
                    ..Selector::default()
                });
                let others = others(cluster, program, remote);
                Peer::Pods { pods: Some(selector_of(remote, &others)), namespaces }
            }
            (None, Some(address)) => {
                Peer::Block(IpBlock { cidr: IpNet::from(address), except: Vec::new() })
            }
            (None, None) => return None,
        };
        let ports = match traffic {
            // No rule can name it.
            Traffic::Port(_, 0) => return None,
            Traffic::Port(protocol, port) => {
                vec![PortRule { protocol, port: PortMatch::Range(port, port) }]
            }
            Traffic::Other => Vec::new(),
        };
        let isolating = program.isolation(subject, direction).map(|rules| &rules.policies);
        let others = others(cluster, program, pod);
        let alone = |policy: &&u32| {
            let policy = &cluster.policies[**policy as usize];
            !others.iter().any(|other| policy.subject.matches(&other.labels))
        };
        let policy = isolating.into_iter().flatten().find(alone).copied();
        let subject = match policy {
            Some(policy) => cluster.policies[policy as usize].subject.clone(),
            None => selector_of(pod, &others),
        };
        let rule = Rule { peers: vec![peer], ports };
        Some(Change { policy, namespace: pod.namespace.clone(), subject, direction, rule })
    }

    /// The policy with the change in it; one without a name where it is a policy of its own.
    pub fn applied(&self, cluster: &Cluster) -> Policy {
        let mut policy = match self.policy {
            Some(policy) => cluster.policies[policy as usize].clone(),
            None => Policy {
                namespace: self.namespace.clone(),
                name: String::new(),
                subject: self.subject.clone(),
                ingress: None,
                egress: None,
                mode: None,
            },
        };
        let section = match self.direction {
            Direction::Ingress => &mut policy.ingress,
            Direction::Egress => &mut policy.egress,
        };
        section.get_or_insert_default().push(self.rule.clone());
        policy
    }
}

/// Labels that controllers give to each of their pods, and that say nothing of what it is.
const GENERATED: [&str; 8] = [
    "pod-template-hash",
    "controller-revision-hash",
    "pod-template-generation",
    "statefulset.kubernetes.io/pod-name",
    "apps.kubernetes.io/pod-index",
    "controller-uid",
    "batch.kubernetes.io/controller-uid",
    "batch.kubernetes.io/job-completion-index",
];

/// Whether a label is one that a controller gives to each of its pods.
fn is_generated(key: &str) -> bool {
    GENERATED.contains(&key)
}

fn written(pod: &Pod) -> impl Iterator<Item = (&String, &String)> {
    pod.labels.iter().filter(|(key, _)| !is_generated(key))
}

/// The pods of the same namespace that policies can tell from this one.
fn others<'a>(cluster: &'a Cluster, program: &Program, pod: &Pod) -> Vec<&'a Pod> {
    let here = program.pods_of(&pod.namespace).map(|other| &cluster.pods[other]);
    let subjects = here.filter(|other| !other.host_network && !other.finished);
    subjects.filter(|other| !written(other).eq(written(pod))).collect()
}

/// A selector for this pod and for none of the others, of as few labels as can be.
fn selector_of(pod: &Pod, others: &[&Pod]) -> Selector {
    let labels: Vec<_> = written(pod).map(|(k, v)| (k.clone(), v.clone())).collect();
    let of = |labels: &[&(String, String)]| Selector {
        match_labels: labels.iter().copied().cloned().collect(),
        ..Selector::default()
    };
    let exact = |selector: &Selector| !others.iter().any(|pod| selector.matches(&pod.labels));
    let mut one: Vec<_> = labels.iter().collect();
    // What people name pods by comes first.
    one.sort_by_key(|(key, _)| USUAL.iter().position(|usual| usual == key).unwrap_or(USUAL.len()));
    let alone = one.iter().map(|label| of(&[*label]));
    let pairs = one.iter().enumerate().flat_map(|(i, a)| one[..i].iter().map(move |b| [*b, *a]));
    if let Some(selector) = alone.chain(pairs.map(|pair| of(&pair))).find(exact) {
        return selector;
    }
    let mut selector = of(&one);
    // What it has itself, others have too: they are told by what they have besides.
    while let Some(other) = others.iter().find(|other| selector.matches(&other.labels)) {
        let more = written(other).map(|(key, _)| key).find(|key| !pod.labels.contains_key(key));
        let Some(key) = more else { break };
        let requirement = Requirement { key: key.clone(), operator: Operator::DoesNotExist };
        selector.match_expressions.push(requirement);
    }
    selector
}

/// The labels that pods are usually named by, the most usual first.
const USUAL: [&str; 5] =
    ["app.kubernetes.io/name", "app", "k8s-app", "name", "app.kubernetes.io/component"];
