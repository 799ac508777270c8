//! A second evaluator: slow, obvious, and written straight from the API text. The engine is tested
//! against it, so it shares nothing with the engine but the types of the input: labels, CIDRs and
//! ports are matched here once more, policy by policy and rule by rule, without any index.
//!
//! It is to be read beside the semantics; the numbers in the comments are their lines.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use portcullis_core::api::{
    IntOrString, IpBlock, LabelSelector, LabelSelectorRequirement, NetworkPolicy,
    NetworkPolicySpec, Peer, Port, Rule,
};
use portcullis_core::labels::Labels;
use portcullis_core::model::{Cluster, Direction, Mode, Pod};
use portcullis_core::net::{Family, Protocol, Traffic};

/// What the oracle judges by: a cluster, and the policies as a person wrote them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct World {
    /// The namespaces, pods, nodes and Services. Its own `policies` are not looked at.
    pub cluster: Cluster,
    /// The policies. They are taken to be valid; what is not readable in one allows nothing.
    pub policies: Vec<NetworkPolicy>,
}

/// One end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// A pod, by its index in [`Cluster::pods`].
    Pod(usize),
    /// An address, whoever owns it.
    Address(IpAddr),
}

/// Whether the source may open a connection to the destination: an answer for each address family
/// that both ends have (20). A pod that has no address yet counts as having both.
pub fn allowed(
    world: &World,
    source: End,
    destination: End,
    traffic: Traffic,
) -> BTreeMap<Family, bool> {
    by_family(world, source, destination, |source, destination| {
        connection_allowed(world, source, destination, traffic)
    })
}

/// Whether the first packet of such a connection gets through, in the same way: also what is not
/// allowed does where all that refuses it is in audit (28).
pub fn forwarded(
    world: &World,
    source: End,
    destination: End,
    traffic: Traffic,
) -> BTreeMap<Family, bool> {
    by_family(world, source, destination, |source, destination| {
        connection_forwarded(world, source, destination, traffic)
    })
}

fn by_family<T>(
    world: &World,
    source: End,
    destination: End,
    judge: impl Fn(&Party, &Party) -> T,
) -> BTreeMap<Family, T> {
    let mut answers = BTreeMap::new();
    for family in Family::ALL {
        if let Some(source) = Party::of_end(world, source, family)
            && let Some(destination) = Party::of_end(world, destination, family)
        {
            answers.insert(family, judge(&source, &destination));
        }
    }
    answers
}

/// Whether a connection between two addresses of one family may be opened.
pub fn passes(world: &World, source: IpAddr, destination: IpAddr, traffic: Traffic) -> bool {
    let source = Party::of_address(world, source);
    let destination = Party::of_address(world, destination);
    connection_allowed(world, &source, &destination, traffic)
}

/// Whether the first packet of such a connection gets through.
pub fn lets_through(world: &World, source: IpAddr, destination: IpAddr, traffic: Traffic) -> bool {
    let source = Party::of_address(world, source);
    let destination = Party::of_address(world, destination);
    connection_forwarded(world, &source, &destination, traffic)
}

/// What may be opened from one end to another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Opened {
    /// Whether everything is: every port of every protocol, and what has no ports.
    pub everything: bool,
    /// Otherwise, the ports of each protocol, first and last: ascending, and neither overlapping nor
    /// touching.
    pub ports: BTreeMap<Protocol, Vec<(u16, u16)>>,
}

/// What the source may open to the destination, for each address family that both ends have: all
/// that [`allowed`] allows, by walking through the rules once.
pub fn opened(world: &World, source: End, destination: End) -> BTreeMap<Family, Opened> {
    by_family(world, source, destination, |source, destination| {
        connection_opened(world, source, destination)
    })
}

impl Opened {
    fn everything() -> Opened {
        Opened { everything: true, ports: BTreeMap::new() }
    }

    /// Whether some traffic is in it.
    pub fn contains(&self, traffic: Traffic) -> bool {
        match traffic {
            _ if self.everything => true,
            Traffic::Other => false,
            Traffic::Port(protocol, port) => {
                let mut ranges = self.ports.get(&protocol).into_iter().flatten();
                ranges.any(|(first, last)| *first <= port && port <= *last)
            }
        }
    }

    /// What both have in them.
    fn intersection(&self, other: &Opened) -> Opened {
        if self.everything {
            return other.clone();
        }
        if other.everything {
            return self.clone();
        }
        let mut both = Vec::new();
        for (protocol, a, b) in self.ranges() {
            for (other_protocol, c, d) in other.ranges() {
                if protocol == other_protocol && a.max(c) <= b.min(d) {
                    both.push((protocol, a.max(c), b.min(d)));
                }
            }
        }
        Opened::of_ranges(both)
    }

    fn ranges(&self) -> impl Iterator<Item = (Protocol, u16, u16)> {
        let of = |(protocol, ranges): (&Protocol, &Vec<(u16, u16)>)| {
            let protocol = *protocol;
            ranges.clone().into_iter().map(move |(first, last)| (protocol, first, last))
        };
        self.ports.iter().flat_map(of)
    }

    fn of_ranges(mut ranges: Vec<(Protocol, u16, u16)>) -> Opened {
        ranges.sort();
        let mut ports: BTreeMap<Protocol, Vec<(u16, u16)>> = BTreeMap::new();
        for (protocol, first, last) in ranges {
            let merged = ports.entry(protocol).or_default();
            match merged.last_mut() {
                Some((_, before)) if u32::from(first) <= u32::from(*before) + 1 => {
                    *before = last.max(*before);
                }
                _ => merged.push((first, last)),
            }
        }
        Opened { everything: false, ports }
    }
}

/// What policies can know of one end of a connection.
struct Party<'a> {
    /// The pods it is, of those that can be subject and peer: more than one if several claim it.
    pods: Vec<&'a Pod>,
    /// The name of the node it is, if it is one.
    node: Option<&'a str>,
    /// The address it has in the family looked at; `None` if it has none yet.
    address: Option<IpAddr>,
}

impl<'a> Party<'a> {
    /// An end in one address family; `None` if it has no address there but one elsewhere.
    fn of_end(world: &'a World, end: End, family: Family) -> Option<Party<'a>> {
        match end {
            End::Address(address) => {
                (Family::of(address) == family).then(|| Party::of_address(world, address))
            }
            End::Pod(index) => {
                let pod = &world.cluster.pods[index];
                if pod.finished {
                    // 13: it is nobody, and its address may be another's by now
                    return Some(Party { pods: Vec::new(), node: None, address: None });
                }
                let addresses = match &pod.node {
                    // 12: a hostNetwork pod is its node, also before it says so itself
                    Some(node) if pod.host_network && pod.addresses.is_empty() => {
                        node_addresses(world, node)
                    }
                    _ => pod.addresses.clone(),
                };
                let address = addresses.iter().copied().find(|a| Family::of(*a) == family);
                if address.is_none() && !addresses.is_empty() {
                    return None; // 20: it is not in this family
                }
                Some(Party {
                    pods: Some(pod).into_iter().filter(|p| can_be_subject_and_peer(p)).collect(),
                    // 12: a hostNetwork pod is its node
                    node: if pod.host_network { pod.node.as_deref() } else { None },
                    address, // 13: a pod without an address is judged too
                })
            }
        }
    }

    fn of_address(world: &'a World, address: IpAddr) -> Party<'a> {
        let Cluster { pods, nodes, .. } = &world.cluster;
        let claim = |p: &&Pod| can_be_subject_and_peer(p) && p.addresses.contains(&address);
        let mut claimants: Vec<&Pod> = pods.iter().filter(claim).collect();
        let names = nodes.iter().map(|node| &node.name).chain(pods.iter().flat_map(|p| &p.node));
        let node = names.into_iter().find(|name| node_addresses(world, name).contains(&address));
        if node.is_some() {
            claimants.clear(); // 12: it is the node's, whatever pods say
        }
        Party { pods: claimants, node: node.map(String::as_str), address: Some(address) }
    }

    /// What policies select. 13: several pods that are not alike are none to them.
    fn pod(&self) -> Option<&'a Pod> {
        let first = self.pods.first()?;
        self.pods.iter().all(|pod| are_alike(pod, first)).then_some(first)
    }
}

/// 13: whether no policy can tell them apart.
fn are_alike(a: &Pod, b: &Pod) -> bool {
    let names = |pod: &Pod| {
        let named = pod.ports.iter().filter_map(|p| Some((p.name.clone()?, p.protocol, p.port)));
        named.collect::<BTreeSet<_>>()
    };
    a.namespace == b.namespace && a.labels == b.labels && names(a) == names(b)
}

/// The addresses of a node. 12: those of its hostNetwork pods are among them, also where there is
/// no Node object to say so.
fn node_addresses(world: &World, name: &str) -> Vec<IpAddr> {
    let nodes = world.cluster.nodes.iter().filter(|node| node.name == name);
    let pods = world
        .cluster
        .pods
        .iter()
        .filter(|pod| pod.host_network && !pod.finished && pod.node.as_deref() == Some(name));
    nodes
        .flat_map(|node| &node.addresses)
        .chain(pods.flat_map(|pod| &pod.addresses))
        .copied()
        .collect()
}

/// 12: hostNetwork pods are neither. 13: finished pods are neither.
fn can_be_subject_and_peer(pod: &Pod) -> bool {
    !pod.host_network && !pod.finished
}

fn connection_allowed(
    world: &World,
    source: &Party,
    destination: &Party,
    traffic: Traffic,
) -> bool {
    // 4: both ends have to allow it
    always_allowed(source, destination)
        || direction_allowed(world, Direction::Egress, source, destination, traffic)
            && direction_allowed(world, Direction::Ingress, source, destination, traffic)
}

fn connection_forwarded(
    world: &World,
    source: &Party,
    destination: &Party,
    traffic: Traffic,
) -> bool {
    let forwarded = |direction| {
        direction_allowed(world, direction, source, destination, traffic)
            || !direction_enforced(world, direction, source, destination)
    };
    always_allowed(source, destination)
        || forwarded(Direction::Egress) && forwarded(Direction::Ingress)
}

/// 28: whether a policy that isolates the subject is not in audit.
fn direction_enforced(
    world: &World,
    direction: Direction,
    source: &Party,
    destination: &Party,
) -> bool {
    let subject = match direction {
        Direction::Egress => source,
        Direction::Ingress => destination,
    };
    let isolating = |policy: &&NetworkPolicy| is_isolated_by(subject, policy, direction);
    world.policies.iter().filter(isolating).any(|policy| !is_in_audit(world, policy))
}

/// 28: by its own annotation, or else by that of its namespace. Other values have no effect.
fn is_in_audit(world: &World, policy: &NetworkPolicy) -> bool {
    match policy.mode.as_deref() {
        Some("audit") => true,
        Some("enforce") => false,
        _ => world.cluster.modes.get(&policy.namespace) == Some(&Mode::Audit),
    }
}

fn connection_opened(world: &World, source: &Party, destination: &Party) -> Opened {
    if always_allowed(source, destination) {
        return Opened::everything();
    }
    // 4: both ends have to allow it
    let egress = direction_opened(world, Direction::Egress, source, destination);
    let ingress = direction_opened(world, Direction::Ingress, source, destination);
    egress.intersection(&ingress)
}

fn always_allowed(source: &Party, destination: &Party) -> bool {
    // 6: a pod can always reach itself
    let itself = match (&source.pods[..], &destination.pods[..]) {
        ([a], [b]) => std::ptr::eq(*a, *b),
        _ => source.address.is_some() && source.address == destination.address,
    };
    // 7: a pod and the node it runs on, both ways
    itself || runs_on(source, destination) || runs_on(destination, source)
}

/// 7: whether one party is a pod, and the other is the node that it runs on.
fn runs_on(pod: &Party, node: &Party) -> bool {
    let there = |pod: &&Pod| pod.node.is_some() && pod.node.as_deref() == node.node;
    !pod.pods.is_empty() && pod.pods.iter().all(there)
}

fn is_isolated_by(subject: &Party, policy: &NetworkPolicy, direction: Direction) -> bool {
    subject.pods.iter().any(|pod| isolates(policy, direction, pod))
}

/// 13: pods that claim one address and are not alike may do nothing where any of them is isolated.
fn is_disputed(subject: &Party) -> bool {
    !subject.pods.is_empty() && subject.pod().is_none()
}

fn direction_allowed(
    world: &World,
    direction: Direction,
    source: &Party,
    destination: &Party,
    traffic: Traffic,
) -> bool {
    let (subject, peer) = match direction {
        Direction::Egress => (source, destination),
        Direction::Ingress => (destination, source),
    };
    if is_disputed(subject) {
        return !world.policies.iter().any(|policy| is_isolated_by(subject, policy, direction));
    }
    // 4, 12, 13: an end that is not a pod, or not one that can be a subject, imposes nothing
    let Some(subject) = subject.pod() else { return true };

    let mut isolated = false;
    for policy in &world.policies {
        if !isolates(policy, direction, subject) {
            continue;
        }
        isolated = true;
        for rule in rules(&policy.spec, direction) {
            // 3: any rule of any policy
            if rule_allows(world, policy, rule, peer, destination, traffic) {
                return true;
            }
        }
    }
    !isolated // 1: open where no policy selects it
}

/// As [`direction_allowed`], for all traffic at once.
fn direction_opened(
    world: &World,
    direction: Direction,
    source: &Party,
    destination: &Party,
) -> Opened {
    let (subject, peer) = match direction {
        Direction::Egress => (source, destination),
        Direction::Ingress => (destination, source),
    };
    if is_disputed(subject) {
        let isolated = world.policies.iter().any(|p| is_isolated_by(subject, p, direction));
        return if isolated { Opened::default() } else { Opened::everything() };
    }
    // 4, 12, 13: an end that is not a pod, or not one that can be a subject, imposes nothing
    let Some(subject) = subject.pod() else { return Opened::everything() };

    let isolating = || world.policies.iter().filter(|p| isolates(p, direction, subject));
    if isolating().next().is_none() {
        return Opened::everything(); // 1: open where no policy selects it
    }
    let mut ranges = Vec::new();
    for policy in isolating() {
        for rule in rules(&policy.spec, direction) {
            if !rule_is_about(world, policy, rule, peer) {
                continue;
            }
            match rule.ports.as_deref().unwrap_or_default() {
                [] => return Opened::everything(), // 15: every port of every protocol
                items => ranges.extend(items.iter().flat_map(|i| item_ranges(i, destination))),
            }
        }
    }
    Opened::of_ranges(ranges) // 3: what any rule of any policy allows
}

fn isolates(policy: &NetworkPolicy, direction: Direction, pod: &Pod) -> bool {
    policy.namespace == pod.namespace // 8: pods of the policy's namespace
        && selector_matches(&policy.spec.pod_selector, &pod.labels)
        && has_type(&policy.spec, direction)
}

/// 2: the policy types, written or implied.
fn has_type(spec: &NetworkPolicySpec, direction: Direction) -> bool {
    let written = spec.policy_types.as_deref().unwrap_or_default();
    if written.is_empty() {
        // The API's defaulting takes an empty list as an absent one.
        return match direction {
            Direction::Ingress => true,
            Direction::Egress => spec.egress.as_ref().is_some_and(|rules| !rules.is_empty()),
        };
    }
    let name = match direction {
        Direction::Ingress => "Ingress",
        Direction::Egress => "Egress",
    };
    written.iter().any(|t| t == name)
}

/// 14: an absent section is one without rules, and so allows nothing.
fn rules(spec: &NetworkPolicySpec, direction: Direction) -> &[Rule] {
    match direction {
        Direction::Ingress => spec.ingress.as_deref().unwrap_or_default(),
        Direction::Egress => spec.egress.as_deref().unwrap_or_default(),
    }
}

fn rule_allows(
    world: &World,
    policy: &NetworkPolicy,
    rule: &Rule,
    peer: &Party,
    destination: &Party,
    traffic: Traffic,
) -> bool {
    let ports = rule.ports.as_deref().unwrap_or_default();
    // 15: absent or empty is every port of every protocol
    let port_matches =
        ports.is_empty() || ports.iter().any(|item| port_matches(item, destination, traffic));
    rule_is_about(world, policy, rule, peer) && port_matches
}

fn rule_is_about(world: &World, policy: &NetworkPolicy, rule: &Rule, peer: &Party) -> bool {
    let peers = rule.peers.as_deref().unwrap_or_default();
    // 14: absent or empty is every peer. 9: several items are alternatives
    peers.is_empty() || peers.iter().any(|item| peer_matches(world, policy, item, peer))
}

fn peer_matches(world: &World, policy: &NetworkPolicy, item: &Peer, party: &Party) -> bool {
    if let Some(block) = &item.ip_block {
        return party.address.is_some_and(|address| block_contains(block, address)); // 18
    }
    let Some(pod) = party.pod() else { return false }; // 12, 13: selectors match only pods
    let namespace_matches = match &item.namespace_selector {
        None => pod.namespace == policy.namespace, // 9: the policy's own namespace
        Some(selector) => selector_matches(selector, &namespace_labels(world, &pod.namespace)),
    };
    let pod_matches = match &item.pod_selector {
        None => true, // 9: all pods of those namespaces
        Some(selector) => selector_matches(selector, &pod.labels),
    };
    namespace_matches && pod_matches // 9: both in one item means AND
}

/// 11: `kubernetes.io/metadata.name` is always there, also for a namespace without an object.
fn namespace_labels(world: &World, namespace: &str) -> Labels {
    let mut labels = world.cluster.namespaces.get(namespace).cloned().unwrap_or_default();
    labels.insert("kubernetes.io/metadata.name".to_owned(), namespace.to_owned());
    labels
}

/// 10: every requirement has to hold. 8: so a selector without any matches everything.
fn selector_matches(selector: &LabelSelector, labels: &Labels) -> bool {
    for (key, value) in selector.match_labels.iter() {
        if labels.get(key) != Some(value) {
            return false;
        }
    }
    for requirement in &selector.match_expressions {
        if !requirement_matches(requirement, labels) {
            return false;
        }
    }
    true
}

/// 10: where the key is absent, `NotIn` and `DoesNotExist` hold, `In` and `Exists` do not.
fn requirement_matches(requirement: &LabelSelectorRequirement, labels: &Labels) -> bool {
    match (requirement.operator.as_str(), labels.get(&requirement.key)) {
        ("In", Some(value)) => requirement.values.contains(value),
        ("In", None) => false,
        ("NotIn", Some(value)) => !requirement.values.contains(value),
        ("NotIn", None) => true,
        ("Exists", value) => value.is_some(),
        ("DoesNotExist", value) => value.is_none(),
        _ => false,
    }
}

fn port_matches(item: &Port, destination: &Party, traffic: Traffic) -> bool {
    let Traffic::Port(protocol, number) = traffic else { return false }; // 15: ICMP never
    if item.protocol.as_deref().unwrap_or("TCP") != protocol.as_str() {
        return false; // 16: TCP where absent
    }
    match &item.port {
        None => true, // 16: all ports of the protocol
        Some(IntOrString::Int(first)) => {
            let last = item.end_port.unwrap_or(*first); // 16: endPort is inclusive
            *first <= i32::from(number) && i32::from(number) <= last
        }
        // 17: by name and protocol, at the destination, which has to be a pod
        Some(IntOrString::String(name)) => destination.pod().is_some_and(|pod| {
            pod.ports.iter().any(|port| {
                port.name.as_deref() == Some(name)
                    && port.protocol == protocol
                    && port.port == number
            })
        }),
    }
}

/// What [`port_matches`] matches, as ranges.
fn item_ranges(item: &Port, destination: &Party) -> Vec<(Protocol, u16, u16)> {
    let name = item.protocol.as_deref().unwrap_or("TCP"); // 16: TCP where absent
    let Some(protocol) = Protocol::ALL.into_iter().find(|p| p.as_str() == name) else {
        return Vec::new();
    };
    match &item.port {
        None => vec![(protocol, 0, u16::MAX)], // 16: all ports of the protocol
        Some(IntOrString::Int(first)) => {
            let last = item.end_port.unwrap_or(*first); // 16: endPort is inclusive
            match (u16::try_from(*first), u16::try_from(last)) {
                (Ok(first), Ok(last)) => vec![(protocol, first, last)],
                _ => Vec::new(),
            }
        }
        // 17: by name and protocol, at the destination, which has to be a pod
        Some(IntOrString::String(name)) => {
            let ports = destination.pod().into_iter().flat_map(|pod| &pod.ports);
            let named =
                ports.filter(|port| port.name.as_ref() == Some(name) && port.protocol == protocol);
            named.map(|port| (protocol, port.port, port.port)).collect()
        }
    }
}

/// 18: `except` narrows its own block.
fn block_contains(block: &IpBlock, address: IpAddr) -> bool {
    cidr_contains(&block.cidr, address)
        && !block.except.iter().any(|except| cidr_contains(except, address))
}

/// 18: whether the first bits agree, as many as the prefix length says. What follows them in the
/// CIDR does not matter. Families never mix.
fn cidr_contains(cidr: &str, address: IpAddr) -> bool {
    let Some((network, length)) = cidr.split_once('/') else { return false };
    let (Some(network), Ok(mut length)) = (parse_address(network), length.parse::<usize>()) else {
        return false;
    };
    let (mut network, address) = (bits(network), bits(address));
    // The API server takes IPv4 written as IPv6, `::ffff:10.0.0.0/104`, for IPv4.
    if network.len() == 128 && length >= 96 && network.starts_with(&bits(MAPPED)[..96]) {
        network.drain(..96);
        length -= 96;
    }
    network.len() == address.len()
        && length <= network.len()
        && network[..length] == address[..length]
}

/// `::ffff:0.0.0.0`.
const MAPPED: IpAddr = IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0));

/// The API server reads `010.0.0.1` as `10.0.0.1`.
fn parse_address(text: &str) -> Option<IpAddr> {
    if text.contains(':') {
        return text.parse().ok();
    }
    let numbers: Vec<u8> = text.split('.').map(str::parse).collect::<Result<_, _>>().ok()?;
    <[u8; 4]>::try_from(numbers).ok().map(IpAddr::from)
}

/// The bits of an address, written as zeros and ones: 32 of them or 128.
fn bits(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => format!("{:032b}", u32::from(address)),
        IpAddr::V6(address) => format!("{:0128b}", u128::from(address)),
    }
}
