//! Policies and cluster state to a [`Program`]: a pure function.
//!
//! Selectors are tried once for each distinct set of labels, through an index, and never once
//! for each pod and policy. Pods that no rule can tell apart are one class from the start.

use std::collections::BTreeMap;
use std::collections::hash_map;
use std::hash::Hash;
use std::net::IpAddr;

use indexmap::IndexSet;
use rustc_hash::{FxBuildHasher, FxHashMap, FxHashSet};

use crate::index::SelectorIndex;
use crate::labels::{Labels, Selector};
use crate::model::{
    Cluster, ContainerPort, Direction, IpBlock, Mode, NAMESPACE_NAME_LABEL, Peer, Pod, PortMatch,
    PortRule,
};
use crate::net::{ByAddress, Family, IpRange, Protocol};
use crate::program::{
    Doubt, Entry, IdentityId, Origin, Owner, PeerClass, PeerId, PodEntry, Ports, Profile, Program,
    RuleSet, Several, Whereabouts,
};
use crate::space::{self, Space};

impl Program {
    /// Compiles a cluster. The same cluster always gives the same program.
    pub fn compile(cluster: &Cluster) -> Program {
        let named = NamedPorts::in_use(cluster);
        let peers = Peers::collect(cluster, &named);
        let mut compiler = Compiler {
            cluster,
            subjects: Subjects::collect(cluster),
            space: Space::cut(peers.blocks.iter().map(|(block, id)| (id.0, *block))),
            labels_of_namespaces: FxHashMap::default(),
            parts: Numbered::default(),
            identities: Numbered::default(),
            identity_of: FxHashMap::default(),
            profiles: Numbered::default(),
            rule_sets: Vec::new(),
            rule_set_of: FxHashMap::default(),
            peers,
            named,
        };
        compiler.run()
    }
}

/// Numbers equal values equally, in order of first sight.
type Numbered<T> = IndexSet<T, FxBuildHasher>;

fn number<T: Eq + Hash>(values: &mut Numbered<T>, value: T) -> u32 {
    values.insert_full(value).0 as u32
}

/// A named port of a pod that some policy names: the number of the (name, protocol), and a port.
type Resolution = (u32, u16);

/// Stands for the port that a name has at a pod of which the ports are not known. No container can
/// declare it.
const UNKNOWN: u16 = 0;

/// The (name, protocol) pairs that policies use, and the port numbers that pods give them.
struct NamedPorts<'a> {
    numbers: FxHashMap<(&'a str, Protocol), u32>,
    /// By number: the ports that any pod resolves it to, ascending.
    ports: Vec<Vec<u16>>,
}

impl<'a> NamedPorts<'a> {
    fn in_use(cluster: &'a Cluster) -> Self {
        let mut names = NamedPorts { numbers: FxHashMap::default(), ports: Vec::new() };
        let rules = cluster.policies.iter().flat_map(|p| p.ingress.iter().chain(&p.egress));
        for port in rules.flatten().flat_map(|rule| &rule.ports) {
            if let PortMatch::Named(name) = &port.port {
                let next = names.numbers.len() as u32;
                names.numbers.entry((name, port.protocol)).or_insert(next);
            }
        }
        names.ports = vec![Vec::new(); names.numbers.len()];
        if names.numbers.is_empty() {
            return names;
        }
        for pod in cluster.pods.iter().filter(|p| is_subject(p)) {
            for (name, port) in names.resolve(pod) {
                let ports = &mut names.ports[name as usize];
                if let Err(at) = ports.binary_search(&port) {
                    ports.insert(at, port);
                }
            }
        }
        names
    }

    fn number(&self, port: &PortRule) -> Option<u32> {
        match &port.port {
            PortMatch::Named(name) => self.numbers.get(&(name.as_str(), port.protocol)).copied(),
            PortMatch::All | PortMatch::Range(..) => None,
        }
    }

    /// What the ports of a pod answer for the names in use, sorted, each once.
    fn resolve(&self, pod: &Pod) -> Vec<Resolution> {
        if pod.ports_unknown {
            return (0..self.ports.len() as u32).map(|name| (name, UNKNOWN)).collect();
        }
        let answer = |port: &ContainerPort| {
            let name = port.name.as_deref()?;
            self.numbers.get(&(name, port.protocol)).map(|number| (*number, port.port))
        };
        let mut answers: Vec<_> = pod.ports.iter().filter_map(answer).collect();
        answers.sort_unstable();
        answers.dedup();
        answers
    }
}

/// Whether policies can select a pod and peers can match it (SEMANTICS 12, 13).
fn is_subject(pod: &Pod) -> bool {
    !pod.host_network && !pod.finished
}

/// Everything that rules name as a peer, each once.
struct Peers<'a> {
    classes: Vec<PeerClass>,
    /// Peers by what the policy wrote; a `podSelector` alone is of the policy's namespace.
    written: FxHashMap<(Option<&'a str>, &'a Peer), PeerId>,
    blocks: Vec<(&'a IpBlock, PeerId)>,
    /// The peer and a name: those of its pods that resolve the name to this port.
    named: FxHashMap<(PeerId, Resolution), PeerId>,
    /// Pod selectors of peers within one namespace, and within those of a namespace selector.
    of_namespace: FxHashMap<&'a str, SelectorIndex<'a, PeerId>>,
    of_selector: Vec<SelectorIndex<'a, PeerId>>,
    namespace_selectors: SelectorIndex<'a, usize>,
    /// The pod selectors of peers, with their namespace selector, that a pod of a namespace may be
    /// or not be as long as only the name of the namespace is known.
    of_unknown: SelectorIndex<'a, (PeerId, &'a Selector)>,
}

/// The selector of a peer that names namespaces only.
static EVERYTHING: Selector =
    Selector { match_labels: Labels::new(), match_expressions: Vec::new() };

impl<'a> Peers<'a> {
    fn collect(cluster: &'a Cluster, ports: &NamedPorts<'_>) -> Self {
        let mut classes = vec![PeerClass::Any];
        let mut written: FxHashMap<_, PeerId> = FxHashMap::default();
        let mut blocks = Vec::new();
        let mut named = FxHashMap::default();
        let mut by_namespace: FxHashMap<&str, Vec<(&Selector, PeerId)>> = FxHashMap::default();
        let mut by_selector: Vec<Vec<(&Selector, PeerId)>> = Vec::new();
        let mut selectors: FxHashMap<&Selector, usize> = FxHashMap::default();
        let mut selector_list: Vec<(&Selector, usize)> = Vec::new();
        let mut of_unknown: Vec<(&Selector, (PeerId, &Selector))> = Vec::new();

        for policy in &cluster.policies {
            for direction in Direction::ALL {
                for rule in policy.rules(direction).unwrap_or_default() {
                    let mut ids = Vec::with_capacity(rule.peers.len().max(1));
                    for peer in &rule.peers {
                        let key = (own_namespace(&policy.namespace, peer), peer);
                        if let Some(known) = written.get(&key) {
                            ids.push(*known);
                            continue;
                        }
                        let id = PeerId(classes.len() as u32);
                        written.insert(key, id);
                        ids.push(id);
                        match peer {
                            Peer::Block(block) => {
                                classes.push(PeerClass::Block(space::ranges(block)));
                                blocks.push((block, id));
                            }
                            Peer::Pods { pods, namespaces } => {
                                classes.push(PeerClass::Pods);
                                let pods = pods.as_ref().unwrap_or(&EVERYTHING);
                                let of = match namespaces {
                                    None => by_namespace.entry(&policy.namespace).or_default(),
                                    Some(namespaces) => {
                                        if namespaces.asks_beyond(NAMESPACE_NAME_LABEL) {
                                            of_unknown.push((pods, (id, namespaces)));
                                        }
                                        let next = by_selector.len();
                                        let i = *selectors.entry(namespaces).or_insert(next);
                                        if i == next {
                                            selector_list.push((namespaces, i));
                                            by_selector.push(Vec::new());
                                        }
                                        &mut by_selector[i]
                                    }
                                };
                                of.push((pods, id));
                            }
                        }
                    }
                    if rule.peers.is_empty() {
                        ids.push(PeerId::ANY);
                    }
                    // At ingress a name is resolved at the subject, so its profile knows it.
                    if direction == Direction::Ingress {
                        continue;
                    }
                    for name in rule.ports.iter().filter_map(|port| ports.number(port)) {
                        for port in &ports.ports[name as usize] {
                            for id in &ids {
                                named.entry((*id, (name, *port))).or_insert_with(|| {
                                    classes.push(PeerClass::Pods);
                                    PeerId(classes.len() as u32 - 1)
                                });
                            }
                        }
                    }
                }
            }
        }
        Peers {
            classes,
            written,
            blocks,
            named,
            of_namespace: by_namespace
                .into_iter()
                .map(|(namespace, selectors)| (namespace, SelectorIndex::new(selectors)))
                .collect(),
            of_selector: by_selector.into_iter().map(SelectorIndex::new).collect(),
            namespace_selectors: SelectorIndex::new(selector_list),
            of_unknown: SelectorIndex::new(of_unknown),
        }
    }
}

/// The namespace that a peer's meaning depends on, if it does.
fn own_namespace<'a>(namespace: &'a str, peer: &Peer) -> Option<&'a str> {
    match peer {
        Peer::Pods { namespaces: None, .. } => Some(namespace),
        Peer::Pods { .. } | Peer::Block(_) => None,
    }
}

/// The policies of each namespace, by what they select.
struct Subjects<'a> {
    of_namespace: FxHashMap<&'a str, SelectorIndex<'a, u32>>,
}

impl<'a> Subjects<'a> {
    fn collect(cluster: &'a Cluster) -> Self {
        let mut by_namespace: FxHashMap<&str, Vec<(&Selector, u32)>> = FxHashMap::default();
        for (i, policy) in cluster.policies.iter().enumerate() {
            by_namespace.entry(&policy.namespace).or_default().push((&policy.subject, i as u32));
        }
        let indexed = by_namespace.into_iter();
        Subjects { of_namespace: indexed.map(|(n, s)| (n, SelectorIndex::new(s))).collect() }
    }
}

/// What rules can know of a pod before its address: the peers that it is, and its named ports.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
struct PodPart {
    peers: Vec<PeerId>,
    /// Those that it may be or not be, ascending.
    doubtful: Vec<PeerId>,
    named: Vec<Resolution>,
}

/// Where an address is.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum At {
    /// In an interval of the space.
    Interval(Family, usize),
    /// What has no address yet.
    Unknown(Whereabouts),
}

/// What a class of pods comes to.
#[derive(Clone, Copy)]
struct PodClass {
    profile: u32,
    part: u32,
}

struct Compiler<'a> {
    cluster: &'a Cluster,
    named: NamedPorts<'a>,
    peers: Peers<'a>,
    subjects: Subjects<'a>,
    space: Space,
    /// The namespace selectors that match each namespace.
    labels_of_namespaces: FxHashMap<&'a str, Vec<usize>>,
    parts: Numbered<PodPart>,
    identities: Numbered<(Vec<PeerId>, Doubt)>,
    /// The identity of a part at a place.
    identity_of: FxHashMap<(u32, At), IdentityId>,
    profiles: Numbered<Profile>,
    rule_sets: Vec<RuleSet>,
    rule_set_of: FxHashMap<(Direction, Vec<u32>, Vec<Resolution>), u32>,
}

impl<'a> Compiler<'a> {
    fn run(&mut self) -> Program {
        number(&mut self.identities, Default::default());
        let nobody = number(&mut self.parts, PodPart::default());
        let outside = Family::ALL.map(|family| {
            let intervals = 0..self.space.intervals(family).len();
            intervals.map(|i| self.identity_at(nobody, At::Interval(family, i))).collect()
        });

        let nodes = Nodes::of(self.cluster);
        let mut owners = ByAddress::default();
        // The pods that claim an address, where it is more than one.
        let mut claimed: BTreeMap<IpAddr, Vec<usize>> = BTreeMap::new();
        owners.reserve(self.cluster.pods.len());
        for (i, addresses) in nodes.addresses.iter().enumerate() {
            for address in addresses {
                let identity = self.identity(nobody, *address);
                owners.entry(*address).or_insert((Owner::Node(i), identity));
            }
        }

        let cluster = self.cluster;
        let mut classes: FxHashMap<(&str, &Labels, Vec<Resolution>), PodClass> =
            FxHashMap::default();
        let mut pods = Vec::with_capacity(cluster.pods.len());
        let mut of_namespace: FxHashMap<&str, Vec<u32>> = FxHashMap::default();
        for (i, pod) in cluster.pods.iter().enumerate() {
            of_namespace.entry(&pod.namespace).or_default().push(i as u32);
            let node = pod.node.as_deref().and_then(|name| nodes.numbers.get(name)).copied();
            if !is_subject(pod) {
                let known = match node {
                    _ if pod.finished => &[],
                    Some(node) if pod.addresses.is_empty() => nodes.addresses[node].as_slice(),
                    _ => pod.addresses.as_slice(),
                };
                let addresses = known.iter().map(|a| (*a, self.identity(nobody, *a))).collect();
                pods.push(if pod.finished {
                    PodEntry { addresses, ..PodEntry::default() }
                } else {
                    let without_address =
                        self.identity_at(nobody, At::Unknown(Whereabouts::Anywhere));
                    let unplaced = node.is_none() && addresses.is_empty();
                    PodEntry { addresses, without_address, node, unplaced, ..PodEntry::default() }
                });
                continue;
            }
            let key = (pod.namespace.as_str(), &pod.labels, self.named.resolve(pod));
            let class = match classes.get(&key) {
                Some(class) => *class,
                None => {
                    let class = self.class(pod, &key.2);
                    classes.insert(key, class);
                    class
                }
            };
            let mut addresses = Vec::with_capacity(pod.addresses.len());
            for address in &pod.addresses {
                let identity = self.identity(class.part, *address);
                addresses.push((*address, identity));
                match owners.entry(*address) {
                    hash_map::Entry::Vacant(free) => {
                        free.insert((Owner::Pod(i), identity));
                    }
                    hash_map::Entry::Occupied(taken) => match taken.get().0 {
                        Owner::Pod(first) if first != i => {
                            claimed.entry(*address).or_insert_with(|| vec![first]).push(i);
                        }
                        _ => {}
                    },
                }
            }
            let without_address = self.identity_at(class.part, At::Unknown(Whereabouts::Pods));
            pods.push(PodEntry {
                profile: Some(class.profile),
                addresses,
                without_address,
                node,
                unplaced: false,
                namespace_unknown: !cluster.namespaces.contains_key(&pod.namespace),
            });
        }
        let mut several = Vec::new();
        let mut closed = FxHashMap::default();
        for (address, claimants) in claimed {
            let (them, alike) = self.several(&claimants, &pods, &mut closed);
            if !alike {
                let identity = self.identity(nobody, address);
                owners.insert(address, (Owner::Several(several.len() as u32), identity));
            } else if let Some((owner, _)) = owners.get_mut(&address) {
                *owner = Owner::Several(several.len() as u32);
            }
            several.push(them);
        }
        let (identities, doubts) = std::mem::take(&mut self.identities).into_iter().unzip();

        Program {
            pods,
            of_namespace: of_namespace.into_iter().map(|(n, pods)| (n.to_owned(), pods)).collect(),
            owners,
            several,
            profiles: std::mem::take(&mut self.profiles).into_iter().collect(),
            rule_sets: std::mem::take(&mut self.rule_sets),
            peers: std::mem::take(&mut self.peers.classes),
            identities,
            doubts,
            pod_ranges: self.cluster.pod_cidrs.iter().copied().map(IpRange::from).collect(),
            space: std::mem::take(&mut self.space),
            outside,
        }
    }

    /// What an address is to policies that these pods claim, and whether the pods are alike. The rules
    /// that allow nothing are made once for each list of policies.
    fn several(
        &mut self,
        claimants: &[usize],
        pods: &[PodEntry],
        closed: &mut FxHashMap<Vec<u32>, u32>,
    ) -> (Several, bool) {
        let pod = |i: usize| &self.cluster.pods[i];
        let name = |i: &usize| (&pod(*i).namespace, &pod(*i).name);
        let first = claimants.iter().copied().min_by_key(name).unwrap_or_default();
        let alike = claimants.iter().all(|i| pod(*i).is_like(pod(first)));
        let one_node = claimants.iter().all(|i| pod(*i).node == pod(first).node);
        let node = pods[first].node.filter(|_| one_node);
        if alike {
            let profile = pods[first].profile.unwrap_or_default();
            return (Several { pod: Some(first), profile, node }, true);
        }
        let profiles: Vec<Profile> = claimants
            .iter()
            .filter_map(|i| self.profiles.get_index(pods[*i].profile? as usize).copied())
            .collect();
        let mut rules = |of: fn(&Profile) -> Option<u32>| {
            let isolating = || profiles.iter().filter_map(of).map(|i| &self.rule_sets[i as usize]);
            isolating().next()?;
            let audited = isolating().all(|rules| rules.audited);
            let mut policies: Vec<u32> = isolating().flat_map(|r| &r.policies).copied().collect();
            policies.sort_unstable();
            policies.dedup();
            Some(*closed.entry(policies).or_insert_with_key(|policies| {
                let policies = policies.clone();
                self.rule_sets.push(RuleSet { policies, audited, ..RuleSet::default() });
                self.rule_sets.len() as u32 - 1
            }))
        };
        let (ingress, egress) = (rules(|p| p.ingress), rules(|p| p.egress));
        let profile = number(&mut self.profiles, Profile { ingress, egress });
        (Several { pod: None, profile, node }, false)
    }

    fn class(&mut self, pod: &'a Pod, named: &[Resolution]) -> PodClass {
        let mut policies = Vec::new();
        if let Some(index) = self.subjects.of_namespace.get(pod.namespace.as_str()) {
            index.matching(&pod.labels, |policy| policies.push(policy));
        }
        policies.sort_unstable();
        let profile = Profile {
            ingress: self.rule_set(Direction::Ingress, &policies, named),
            egress: self.rule_set(Direction::Egress, &policies, named),
        };

        let mut peers = Vec::new();
        if let Some(index) = self.peers.of_namespace.get(pod.namespace.as_str()) {
            index.matching(&pod.labels, |peer| peers.push(peer));
        }
        let selectors =
            self.labels_of_namespaces.entry(&pod.namespace).or_insert_with_key(|namespace| {
                let mut found = Vec::new();
                let labels = self.cluster.namespace_labels(namespace);
                self.peers.namespace_selectors.matching(&labels, |i| found.push(i));
                found
            });
        for selector in selectors {
            self.peers.of_selector[*selector].matching(&pod.labels, |peer| peers.push(peer));
        }
        peers.sort_unstable();
        let mut doubtful = Vec::new();
        if !self.cluster.namespaces.contains_key(&pod.namespace) {
            let labels = self.cluster.namespace_labels(&pod.namespace);
            self.peers.of_unknown.matching(&pod.labels, |(peer, namespaces)| {
                if namespaces.matches_key(NAMESPACE_NAME_LABEL, &labels) {
                    doubtful.push(peer);
                }
            });
            doubtful.sort_unstable();
        }
        PodClass {
            profile: number(&mut self.profiles, profile),
            part: number(&mut self.parts, PodPart { peers, doubtful, named: named.to_vec() }),
        }
    }

    fn rule_set(
        &mut self,
        direction: Direction,
        selecting: &[u32],
        named: &[Resolution],
    ) -> Option<u32> {
        let policy = |i: u32| &self.cluster.policies[i as usize];
        let isolating = |i: &u32| policy(*i).rules(direction).is_some();
        let policies: Vec<u32> = selecting.iter().copied().filter(isolating).collect();
        if policies.is_empty() {
            return None;
        }
        // Only the names that these policies use at ingress make a difference here.
        let named: Vec<Resolution> = if direction == Direction::Ingress && !named.is_empty() {
            let rules = policies.iter().flat_map(|i| policy(*i).rules(direction)).flatten();
            let ports = rules.flat_map(|rule| &rule.ports);
            let used: FxHashSet<u32> = ports.filter_map(|p| self.named.number(p)).collect();
            named.iter().copied().filter(|(name, _)| used.contains(name)).collect()
        } else {
            Vec::new()
        };
        let key = (direction, policies, named);
        if let Some(known) = self.rule_set_of.get(&key) {
            return Some(*known);
        }
        let in_audit = |i: &u32| self.cluster.mode(policy(*i)) == Mode::Audit;
        let audited = key.1.iter().all(in_audit);
        let mut rules = RuleSet { policies: key.1.clone(), audited, ..RuleSet::default() };
        for policy in &key.1 {
            self.entries(*policy, direction, &key.2, &mut rules);
        }
        rules.entries.sort_unstable();
        let number = self.rule_sets.len() as u32;
        self.rule_sets.push(rules);
        self.rule_set_of.insert(key, number);
        Some(number)
    }

    fn entries(
        &self,
        policy: u32,
        direction: Direction,
        named: &[Resolution],
        rules: &mut RuleSet,
    ) {
        let written = &self.cluster.policies[policy as usize];
        let namespace = written.namespace.as_str();
        for (rule_index, rule) in (0..).zip(written.rules(direction).unwrap_or_default()) {
            let peers: Vec<(Option<u32>, PeerId)> = if rule.peers.is_empty() {
                vec![(None, PeerId::ANY)]
            } else {
                let id = |peer| self.peers.written[&(own_namespace(namespace, peer), peer)];
                (0..).zip(&rule.peers).map(|(i, peer)| (Some(i), id(peer))).collect()
            };
            for (peer_index, peer) in peers {
                let mut allow = |port, peer, ports: Option<Ports>| {
                    let origin =
                        Origin { policy, direction, rule: rule_index, peer: peer_index, port };
                    match ports {
                        Some(Ports { protocol, last: UNKNOWN, .. }) => {
                            let ports = Some(Ports { protocol, first: 1, last: u16::MAX });
                            rules.doubtful.push(Entry { peer, ports, origin });
                        }
                        _ => rules.entries.push(Entry { peer, ports, origin }),
                    }
                };
                if rule.ports.is_empty() {
                    allow(None, peer, None);
                }
                for (port_index, port) in (0..).zip(&rule.ports) {
                    let protocol = port.protocol;
                    let ports = |first, last| Some(Ports { protocol, first, last });
                    match (&port.port, self.named.number(port)) {
                        (PortMatch::All, _) => allow(Some(port_index), peer, ports(0, u16::MAX)),
                        (PortMatch::Range(first, last), _) => {
                            allow(Some(port_index), peer, ports(*first, *last));
                        }
                        (PortMatch::Named(_), Some(name)) if direction == Direction::Ingress => {
                            for (_, number) in named.iter().filter(|(n, _)| *n == name) {
                                allow(Some(port_index), peer, ports(*number, *number));
                            }
                        }
                        (PortMatch::Named(_), Some(name)) => {
                            for number in &self.named.ports[name as usize] {
                                let those = self.peers.named[&(peer, (name, *number))];
                                allow(Some(port_index), those, ports(*number, *number));
                            }
                        }
                        (PortMatch::Named(_), None) => {}
                    }
                }
            }
        }
    }

    fn identity(&mut self, part: u32, address: IpAddr) -> IdentityId {
        let interval = self.space.interval(address);
        self.identity_at(part, At::Interval(Family::of(address), interval))
    }

    fn identity_at(&mut self, part: u32, at: At) -> IdentityId {
        if let Some(known) = self.identity_of.get(&(part, at)) {
            return *known;
        }
        let PodPart { peers, doubtful, named } = &self.parts[part as usize];
        let mut members = peers.clone();
        let mut doubt = Doubt { peers: doubtful.clone(), ..Doubt::default() };
        match at {
            At::Interval(family, interval) => {
                let (_, blocks) = &self.space.intervals(family)[interval];
                members.extend(blocks.iter().map(|b| PeerId(*b)));
            }
            // What has no address yet may be in any block, which need not be listed.
            At::Unknown(whereabouts) if !self.peers.blocks.is_empty() => {
                doubt.address = whereabouts;
            }
            At::Unknown(_) => {}
        }
        for resolution in named {
            let those = |base: &PeerId| self.peers.named.get(&(*base, *resolution)).copied();
            let more: Vec<_> = members.iter().chain([&PeerId::ANY]).filter_map(those).collect();
            members.extend(more);
            let known = doubt.address == Whereabouts::Known;
            let blocks: &[_] = if known { &[] } else { &self.peers.blocks };
            let bases = doubt.peers.iter().chain(blocks.iter().map(|(_, id)| id));
            let more: Vec<_> = bases.filter_map(those).collect();
            doubt.peers.extend(more);
        }
        members.sort_unstable();
        doubt.peers.sort_unstable();
        let id = IdentityId(number(&mut self.identities, (members, doubt)));
        self.identity_of.insert((part, at), id);
        id
    }
}

/// The nodes that have an object, and those that pods only mention.
struct Nodes<'a> {
    numbers: FxHashMap<&'a str, usize>,
    /// By number: the addresses of the Node object, and of `hostNetwork` pods that run there.
    addresses: Vec<Vec<IpAddr>>,
}

impl<'a> Nodes<'a> {
    fn of(cluster: &'a Cluster) -> Self {
        let mut nodes = Nodes { numbers: FxHashMap::default(), addresses: Vec::new() };
        for node in &cluster.nodes {
            nodes.add(&node.name, &node.addresses);
        }
        for pod in cluster.pods.iter().filter(|pod| !pod.finished) {
            if let Some(name) = &pod.node {
                let addresses: &[IpAddr] = if pod.host_network { &pod.addresses } else { &[] };
                nodes.add(name, addresses);
            }
        }
        nodes
    }

    fn add(&mut self, name: &'a str, addresses: &[IpAddr]) {
        let next = self.addresses.len();
        let number = *self.numbers.entry(name).or_insert(next);
        if number == next {
            self.addresses.push(Vec::new());
        }
        for address in addresses {
            if !self.addresses[number].contains(address) {
                self.addresses[number].push(*address);
            }
        }
    }
}
