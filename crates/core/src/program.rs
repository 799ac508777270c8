//! The compiled state: one small thing that every answer and every kernel rule is read off.

use std::net::IpAddr;

use rustc_hash::FxHashMap;

use crate::model::Direction;
use crate::net::{ByAddress, Family, IpRange, Protocol, Traffic};
use crate::space::{self, Space};

/// Policies and cluster state, compiled. Pods and policies keep the index that they have in the
/// [`Cluster`](crate::model::Cluster) it was made from.
#[derive(Debug, Clone, Default)]
pub struct Program {
    pub(crate) pods: Vec<PodEntry>,
    /// The pods of each namespace, ascending.
    pub(crate) of_namespace: FxHashMap<String, Vec<u32>>,
    /// The pods and nodes that have an address. A pod's addresses are found in no other way.
    pub(crate) owners: ByAddress<(Owner, IdentityId)>,
    /// What addresses that several pods claim are to policies.
    pub(crate) several: Vec<Several>,
    pub(crate) profiles: Vec<Profile>,
    pub(crate) rule_sets: Vec<RuleSet>,
    pub(crate) peers: Vec<PeerClass>,
    pub(crate) identities: Vec<Vec<PeerId>>,
    /// By identity: what is not known of it.
    pub(crate) doubts: Vec<Doubt>,
    /// Where pods get their addresses from.
    pub(crate) pod_ranges: Vec<IpRange>,
    pub(crate) space: Space,
    /// The identity of an address that is no pod's, by family and interval of the space.
    pub(crate) outside: [Vec<IdentityId>; 2],
}

/// One end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum End {
    /// A pod, by its index in the cluster: with whatever addresses it has.
    Pod(usize),
    /// An address, whoever owns it.
    Address(IpAddr),
}

/// Whether a path passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Judgement {
    /// It does not, whatever the facts are that are not known.
    Refused,
    /// That depends on a [`Fact`] that is not known.
    Undetermined,
    /// It does, whatever the facts are that are not known.
    Allowed,
}

/// One of the two ends of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// The one that opens it.
    Source,
    /// The one that accepts it.
    Destination,
}

/// What a judgement can depend on that the cluster does not tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fact {
    /// The labels of the namespace of this pod, which has no object. Its name is known.
    NamespaceLabels(Role),
    /// The address of this pod, or of the node of this `hostNetwork` pod.
    Address(Role),
    /// Which node this pod runs on.
    Node(Role),
    /// The ports that the containers of the destination declare, and so the numbers of their names.
    Ports,
}

/// What becomes of the first packet of a connection (SEMANTICS 28).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Effect {
    /// The policies allow it, and it passes.
    Passes,
    /// They refuse it, and it passes: those that isolate the ends that refuse it are in audit.
    Audited,
    /// They refuse it, and it is dropped.
    Dropped,
}

/// Whether a connection is allowed. Each family is judged by itself (SEMANTICS 20).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Allowed, on every family that both ends have.
    Allowed,
    /// Refused, on every family that both ends have; also where they have none in common.
    Refused,
    /// Allowed on one family and refused on the other.
    Mixed {
        /// The family on which it is allowed.
        allowed: Family,
    },
    /// Not known on at least one family: [`Program::missing`] says what that depends on.
    Undetermined,
}

/// One way a connection between two ends can take: an address of each, of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path {
    /// The end that opens the connection.
    pub source: Endpoint,
    /// The end that accepts it.
    pub destination: Endpoint,
}

impl Path {
    /// The family of its addresses; `None` where neither end has an address yet.
    pub fn family(&self) -> Option<Family> {
        self.source.address.or(self.destination.address).map(Family::of)
    }

    /// Which end a direction's policies are about, and which is the peer.
    pub fn subject_and_remote(&self, direction: Direction) -> (&Endpoint, &Endpoint) {
        match direction {
            Direction::Ingress => (&self.destination, &self.source),
            Direction::Egress => (&self.source, &self.destination),
        }
    }
}

/// One address of an end, or a pod that has none yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    /// The pod it is, if it is one. A `hostNetwork` pod is its node and so is not one. An address that
    /// several pods claim is the first of them if they are alike, and none otherwise.
    pub pod: Option<usize>,
    /// What it is if several pods claim it, as an index into [`Program::several`].
    pub(crate) several: Option<u32>,
    /// The node whose address it is, if it is one.
    pub(crate) node: Option<usize>,
    /// The address.
    pub address: Option<IpAddr>,
    /// Which peers it is.
    pub identity: IdentityId,
    /// A `hostNetwork` pod of which nothing says on which node it runs: it may be any node.
    pub(crate) unplaced: bool,
}

impl Endpoint {
    fn at(address: IpAddr, identity: IdentityId) -> Endpoint {
        let address = Some(address);
        Endpoint { pod: None, several: None, node: None, address, identity, unplaced: false }
    }
}

/// What is not known of an identity. What it is taken for in [`Program::passes`] is among its peers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Doubt {
    /// The peers of which it is not known whether it is one, ascending.
    pub(crate) peers: Vec<PeerId>,
    /// Where its address can be.
    pub(crate) address: Whereabouts,
}

/// Where an address can be: it may be in any `ipBlock` that is there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) enum Whereabouts {
    /// It is known.
    #[default]
    Known,
    /// Where pods get theirs from, if that is known.
    Pods,
    /// Anywhere.
    Anywhere,
}

/// A class of addresses that no peer of any policy can tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdentityId(pub(crate) u32);

/// A peer that entries name: a class of addresses that some rule speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub(crate) u32);

impl PeerId {
    /// Every address. All identities are members without saying so.
    pub const ANY: PeerId = PeerId(0);

    /// The number of the peer, below [`Program::peer_count`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// What kind of addresses a peer has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PeerClass {
    /// Every address.
    Any,
    /// Addresses of pods.
    Pods,
    /// Addresses of an `ipBlock`: disjoint and ascending.
    Block(Vec<IpRange>),
}

/// Where an allowance comes from. Indices are those of the cluster and of the spec.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin {
    /// Index of the policy in the cluster.
    pub policy: u32,
    /// The section of its spec.
    pub direction: Direction,
    /// Index of the rule in the section.
    pub rule: u32,
    /// Index of the peer in `from` or `to`; `None` where that is absent or empty.
    pub peer: Option<u32>,
    /// Index in `ports`; `None` where that is absent or empty.
    pub port: Option<u32>,
}

impl Origin {
    /// The field path of the rule: `spec.ingress[0]`.
    pub fn rule_path(&self) -> String {
        format!("spec.{}[{}]", self.direction.section(), self.rule)
    }

    /// The field path of the peer, or of the rule where it names none.
    pub fn peer_path(&self) -> String {
        match self.peer {
            Some(i) => format!("{}.{}[{i}]", self.rule_path(), self.direction.peers()),
            None => self.rule_path(),
        }
    }

    /// The field path of the port, or of the rule where it names none.
    pub fn port_path(&self) -> String {
        match self.port {
            Some(i) => format!("{}.ports[{i}]", self.rule_path()),
            None => self.rule_path(),
        }
    }
}

/// One thing that isolated pods of a profile may do: named ports are numbers by now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Entry {
    /// Who may be at the other end.
    pub peer: PeerId,
    /// On what; `None` is everything, ICMP included.
    pub ports: Option<Ports>,
    /// The rule that says so.
    pub origin: Origin,
}

/// Destination ports of one protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ports {
    /// The protocol.
    pub protocol: Protocol,
    /// The lowest port.
    pub first: u16,
    /// The highest port, included.
    pub last: u16,
}

impl Entry {
    /// Whether it allows some traffic.
    pub fn covers(&self, traffic: Traffic) -> bool {
        match (self.ports, traffic) {
            (None, _) => true,
            (Some(ports), Traffic::Port(protocol, port)) => {
                ports.protocol == protocol && (ports.first..=ports.last).contains(&port)
            }
            (Some(_), Traffic::Other) => false,
        }
    }
}

/// What isolates a class of pods in one direction: the policies, and all that they allow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RuleSet {
    /// The policies that isolate, by index, ascending.
    pub policies: Vec<u32>,
    /// What they allow, by peer.
    pub entries: Vec<Entry>,
    /// What they allow on ports that are not known: those that a name has at pods of which the
    /// ports are not known. The ports are all that these can be.
    pub doubtful: Vec<Entry>,
    /// Whether all these policies are in audit: what they do not allow passes (SEMANTICS 28).
    pub audited: bool,
}

impl RuleSet {
    pub(crate) fn of_peer(&self, peer: PeerId) -> &[Entry] {
        let first = self.entries.partition_point(|e| e.peer < peer);
        let rest = &self.entries[first..];
        &rest[..rest.partition_point(|e| e.peer == peer)]
    }
}

/// A class of pods that the same policies select, with the same answer for their named ports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Profile {
    /// What isolates it for ingress, as an index into the rule sets; `None` is open.
    pub(crate) ingress: Option<u32>,
    /// The same for egress.
    pub(crate) egress: Option<u32>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct PodEntry {
    /// `None` for a pod that is no subject: `hostNetwork` or finished.
    pub(crate) profile: Option<u32>,
    /// Its addresses (its node's where it is on the host network), each with its identity.
    pub(crate) addresses: Vec<(IpAddr, IdentityId)>,
    /// The identity it has while it has no address.
    pub(crate) without_address: IdentityId,
    pub(crate) node: Option<usize>,
    /// Whether it is on the host network of a node that is not known.
    pub(crate) unplaced: bool,
    /// Whether its namespace has no object, so that only one of its labels is known.
    pub(crate) namespace_unknown: bool,
}

impl Default for IdentityId {
    /// The identity of what is in no peer but [`PeerId::ANY`].
    fn default() -> Self {
        IdentityId(0)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    Pod(usize),
    Node(usize),
    /// Several pods, as an index into [`Program::several`].
    Several(u32),
}

/// Pods that claim one address (SEMANTICS 13).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Several {
    /// The first of them, if they are alike.
    pub(crate) pod: Option<usize>,
    /// That of each, if they are alike. Otherwise it allows nothing where any of them is isolated.
    pub(crate) profile: u32,
    /// The node, if all are on one.
    pub(crate) node: Option<usize>,
}

impl Program {
    /// The pods of a namespace, by index in the cluster, ascending.
    pub fn pods_of(&self, namespace: &str) -> impl Iterator<Item = usize> {
        self.of_namespace.get(namespace).into_iter().flatten().map(|pod| *pod as usize)
    }

    /// Whether a connection from one address to another passes both ends. Never allocates.
    pub fn passes(&self, source: IpAddr, destination: IpAddr, traffic: Traffic) -> bool {
        let path = Path { source: self.endpoint(source), destination: self.endpoint(destination) };
        self.path_passes(&path, traffic)
    }

    /// What becomes of a connection from one address to another. [`Program::passes`] says what the
    /// policies mean, which may be more than is enforced.
    pub fn effect(&self, source: IpAddr, destination: IpAddr, traffic: Traffic) -> Effect {
        let path = Path { source: self.endpoint(source), destination: self.endpoint(destination) };
        self.path_effect(&path, traffic)
    }

    /// Whether a connection is allowed, over all the families it can take.
    pub fn verdict(&self, source: End, destination: End, traffic: Traffic) -> Verdict {
        self.sum_up(source, destination, |path| self.judge(path, traffic))
    }

    /// The same as [`Program::path_passes`] has it, so never undetermined.
    pub fn closed_verdict(&self, source: End, destination: End, traffic: Traffic) -> Verdict {
        self.sum_up(source, destination, |path| match self.path_passes(path, traffic) {
            true => Judgement::Allowed,
            false => Judgement::Refused,
        })
    }

    fn sum_up(&self, source: End, destination: End, judge: impl Fn(&Path) -> Judgement) -> Verdict {
        let mut allowed = None;
        let mut refused = false;
        for path in self.paths(source, destination) {
            match judge(&path) {
                Judgement::Allowed => allowed = Some(path.family()),
                Judgement::Refused => refused = true,
                Judgement::Undetermined => return Verdict::Undetermined,
            }
        }
        match (allowed, refused) {
            (Some(_), false) => Verdict::Allowed,
            (Some(Some(allowed)), true) => Verdict::Mixed { allowed },
            // A path without family is the only one, so nothing else was allowed.
            (None, _) | (Some(None), true) => Verdict::Refused,
        }
    }

    /// The ways that a connection between two ends can take: one for each family that both have,
    /// none where they have none in common. A pod without an address yet goes with any family.
    pub fn paths(&self, source: End, destination: End) -> impl Iterator<Item = Path> {
        let from = self.endpoints(source);
        let to = self.endpoints(destination);
        from.into_iter().flatten().flat_map(move |source| {
            let family = |e: &Endpoint| e.address.map(Family::of);
            let reaches = move |destination: &Endpoint| {
                let (a, b) = (family(&source), family(destination));
                a == b || a.is_none() || b.is_none()
            };
            let paths = to.into_iter().flatten().filter(reaches);
            paths.map(move |destination| Path { source, destination })
        })
    }

    /// Whether a connection passes both ends (SEMANTICS 4), if what is not known is as little as it
    /// can be: a namespace has its name label only, a pod without an address is in no `ipBlock`.
    pub fn path_passes(&self, path: &Path, traffic: Traffic) -> bool {
        self.exempt(path).is_some()
            || Direction::ALL.iter().all(|d| self.refusing(path, *d, traffic).is_none())
    }

    /// The same, and what becomes of a connection that does not.
    pub fn path_effect(&self, path: &Path, traffic: Traffic) -> Effect {
        if self.exempt(path).is_some() {
            return Effect::Passes;
        }
        let refusing = Direction::ALL.iter().filter_map(|d| self.refusing(path, *d, traffic));
        let effects =
            refusing.map(|rules| if rules.audited { Effect::Audited } else { Effect::Dropped });
        effects.max().unwrap_or(Effect::Passes)
    }

    /// What isolates the end that a direction is about, if it does not allow the connection.
    fn refusing(&self, path: &Path, direction: Direction, traffic: Traffic) -> Option<&RuleSet> {
        let (subject, remote) = path.subject_and_remote(direction);
        let rules = self.isolation(subject, direction)?;
        let peers = self.identities[remote.identity.0 as usize].iter();
        let mut peers = std::iter::once(&PeerId::ANY).chain(peers);
        let allows = peers.any(|p| rules.of_peer(*p).iter().any(|e| e.covers(traffic)));
        (!allows).then_some(rules)
    }

    /// Whether a connection passes both ends, whatever is not known. Each term of a rule is judged
    /// by itself: selectors of which it takes all to match whatever labels there may be are
    /// undetermined one by one.
    pub fn judge(&self, path: &Path, traffic: Traffic) -> Judgement {
        if self.exempt(path).is_some() {
            return Judgement::Allowed;
        }
        let ends = Direction::ALL.iter().map(|direction| self.judge_end(path, *direction, traffic));
        match ends.min() {
            None | Some(Judgement::Allowed) => Judgement::Allowed,
            Some(_) if own_node_unknown(self, path).is_some() => Judgement::Undetermined,
            Some(judgement) => judgement,
        }
    }

    /// Whether a connection passes the policies of one end.
    pub fn judge_end(&self, path: &Path, direction: Direction, traffic: Traffic) -> Judgement {
        let (subject, remote) = path.subject_and_remote(direction);
        let Some(rules) = self.isolation(subject, direction) else { return Judgement::Allowed };
        if self.allowing(rules, remote.identity, traffic).next().is_some() {
            return Judgement::Allowed;
        }
        let mut doubtful = self.doubtful(rules, path, direction, traffic).peekable();
        if doubtful.peek().is_none() {
            return Judgement::Refused;
        }
        let blocks = doubtful.filter_map(|entry| match &self.peers[entry.peer.index()] {
            PeerClass::Block(ranges) if entry.covers(traffic) => Some(ranges.as_slice()),
            _ => None,
        });
        // A port that is not known stands for all of them, which is more than it is.
        let blocks: Vec<&[IpRange]> =
            if rules.doubtful.is_empty() { blocks.collect() } else { vec![] };
        let doubt = &self.doubts[remote.identity.0 as usize];
        let possible = self.whereabouts(doubt.address, path.family());
        if !possible.is_empty() && space::cover(&blocks, &possible) {
            Judgement::Allowed
        } else {
            Judgement::Undetermined
        }
    }

    /// What a judgement of a path depends on that is not known; nothing unless it is undetermined.
    pub fn missing(&self, path: &Path, traffic: Traffic) -> Vec<Fact> {
        let mut facts = Vec::new();
        if self.judge(path, traffic) != Judgement::Undetermined {
            return facts;
        }
        facts.extend(own_node_unknown(self, path));
        for direction in Direction::ALL {
            if self.judge_end(path, direction, traffic) != Judgement::Undetermined {
                continue;
            }
            let (subject, remote) = path.subject_and_remote(direction);
            let role = match direction {
                Direction::Egress => Role::Destination,
                Direction::Ingress => Role::Source,
            };
            let Some(rules) = self.isolation(subject, direction) else { continue };
            let doubt = &self.doubts[remote.identity.0 as usize];
            let namespace = remote.pod.is_some_and(|pod| self.pods[pod].namespace_unknown);
            for entry in self.doubtful(rules, path, direction, traffic) {
                let is_pods = matches!(self.peers[entry.peer.index()], PeerClass::Pods);
                if rules.doubtful.contains(&entry) {
                    facts.push(Fact::Ports);
                } else if is_pods && namespace {
                    facts.push(Fact::NamespaceLabels(role));
                } else if doubt.address != Whereabouts::Known {
                    facts.push(Fact::Address(role));
                }
            }
        }
        facts.sort_unstable();
        facts.dedup();
        facts
    }

    /// The entries of a rule set that allow the remote end if some fact is so, beside those that
    /// allow it in any case.
    pub fn doubtful(
        &self,
        rules: &RuleSet,
        path: &Path,
        direction: Direction,
        traffic: Traffic,
    ) -> impl Iterator<Item = Entry> {
        let (_, remote) = path.subject_and_remote(direction);
        let family = path.family();
        self.doubtful_of(rules, remote.identity, family).filter(move |entry| entry.covers(traffic))
    }

    /// The same on any traffic, for addresses of a family if that is known.
    pub fn doubtful_of(
        &self,
        rules: &RuleSet,
        remote: IdentityId,
        family: Option<Family>,
    ) -> impl Iterator<Item = Entry> {
        let doubt = &self.doubts[remote.0 as usize];
        let certain = &self.identities[remote.0 as usize];
        let possible = self.whereabouts(doubt.address, family);
        let unknown = !possible.is_empty();
        let fits = move |peer: PeerId| match &self.peers[peer.index()] {
            PeerClass::Block(ranges) => {
                let meets =
                    |a: &IpRange| ranges.iter().any(|b| a.first <= b.last && b.first <= a.last);
                possible.iter().any(meets)
            }
            _ => false,
        };
        let of_peers = doubt.peers.iter().flat_map(|peer| rules.of_peer(*peer));
        let anywhere = if unknown { rules.entries.as_slice() } else { &[] };
        let in_block = fits.clone();
        let of_blocks = anywhere.iter().filter(move |entry| in_block(entry.peer));
        let of_ports = rules.doubtful.iter().filter(move |Entry { peer, .. }| {
            *peer == PeerId::ANY
                || certain.binary_search(peer).is_ok()
                || doubt.peers.binary_search(peer).is_ok()
                || fits(*peer)
        });
        of_peers.chain(of_blocks).chain(of_ports).copied()
    }

    /// Where an address can be that is not known; nothing where it is.
    pub(crate) fn whereabouts(&self, known: Whereabouts, family: Option<Family>) -> Vec<IpRange> {
        let fits = |range: &IpRange| family.is_none_or(|f| f == Family::of(range.first));
        match known {
            Whereabouts::Known => Vec::new(),
            Whereabouts::Pods if !self.pod_ranges.is_empty() => {
                self.pod_ranges.iter().copied().filter(fits).collect()
            }
            Whereabouts::Pods | Whereabouts::Anywhere => {
                Family::ALL.map(IpRange::all).into_iter().filter(fits).collect()
            }
        }
    }

    /// Why policies do not apply to a connection at all, if they do not.
    pub fn exempt(&self, path: &Path) -> Option<Exemption> {
        let (a, b) = (&path.source, &path.destination);
        let one = |end: &Endpoint| end.pod.filter(|_| end.several.is_none());
        if one(a).is_some() && one(a) == one(b) || a.address.is_some() && a.address == b.address {
            return Some(Exemption::Itself);
        }
        let own_node = |pod: &Endpoint, node: &Endpoint| {
            let home = match pod.several {
                Some(several) => self.several[several as usize].node,
                None => pod.pod.and_then(|pod| self.pods[pod].node),
            };
            home.is_some() && home == node.node
        };
        (own_node(a, b) || own_node(b, a)).then_some(Exemption::OwnNode)
    }

    /// What isolates an endpoint in a direction; `None` where nothing does.
    pub fn isolation(&self, subject: &Endpoint, direction: Direction) -> Option<&RuleSet> {
        let profile = &self.profiles[self.profile_of(subject)?];
        let rule_set = match direction {
            Direction::Ingress => profile.ingress,
            Direction::Egress => profile.egress,
        };
        rule_set.map(|i| &self.rule_sets[i as usize])
    }

    /// The entries of a rule set that allow a remote identity on some traffic, whatever is not
    /// known of it.
    pub fn allowing(
        &self,
        rules: &RuleSet,
        remote: IdentityId,
        traffic: Traffic,
    ) -> impl Iterator<Item = Entry> {
        self.about(rules, remote).filter(move |entry| entry.covers(traffic))
    }

    /// The same on any traffic, by peer.
    pub fn about(&self, rules: &RuleSet, remote: IdentityId) -> impl Iterator<Item = Entry> {
        let doubts = &self.doubts[remote.0 as usize].peers;
        let certain = |peer: &&PeerId| doubts.is_empty() || doubts.binary_search(peer).is_err();
        let peers = self.identities[remote.0 as usize].iter().filter(certain);
        std::iter::once(&PeerId::ANY).chain(peers).flat_map(|p| rules.of_peer(*p)).copied()
    }

    /// The endpoint that an address is. The address of no pod and no node is outside.
    pub fn endpoint(&self, address: IpAddr) -> Endpoint {
        let outside = || {
            let family = Family::of(address) as usize;
            self.outside[family][self.space.interval(address)]
        };
        match self.owners.get(&address) {
            Some((owner, identity)) => {
                let end = Endpoint::at(address, *identity);
                match *owner {
                    Owner::Pod(pod) => Endpoint { pod: Some(pod), ..end },
                    Owner::Node(node) => Endpoint { node: Some(node), ..end },
                    Owner::Several(several) => {
                        let pod = self.several[several as usize].pod;
                        Endpoint { pod, several: Some(several), ..end }
                    }
                }
            }
            None => Endpoint::at(address, outside()),
        }
    }

    /// The endpoints of an end: at most one of each family, or one without an address.
    pub fn endpoints(&self, end: End) -> [Option<Endpoint>; 2] {
        let pod = match end {
            End::Address(address) => return [Some(self.endpoint(address)), None],
            End::Pod(pod) => pod,
        };
        let entry = &self.pods[pod];
        let subject = entry.profile.map(|_| pod);
        if entry.addresses.is_empty() {
            let identity = entry.without_address;
            let node = entry.node.filter(|_| subject.is_none());
            let unplaced = entry.unplaced;
            return [
                Some(Endpoint {
                    pod: subject,
                    several: None,
                    node,
                    address: None,
                    identity,
                    unplaced,
                }),
                None,
            ];
        }
        Family::ALL.map(|family| {
            let mut known = entry.addresses.iter();
            let (address, identity) = *known.find(|(a, _)| Family::of(*a) == family)?;
            Some(match subject {
                // What is not a subject is whatever else has its address: its node.
                None => self.endpoint(address),
                Some(_) => Endpoint { pod: subject, ..Endpoint::at(address, identity) },
            })
        })
    }

    /// The profile of an endpoint; `None` where it is no subject.
    pub fn profile_of(&self, endpoint: &Endpoint) -> Option<usize> {
        match endpoint.several {
            Some(several) => Some(self.several[several as usize].profile as usize),
            None => self.profile(endpoint.pod?),
        }
    }

    /// The profile of a pod; `None` where the pod is no subject.
    pub fn profile(&self, pod: usize) -> Option<usize> {
        self.pods[pod].profile.map(|p| p as usize)
    }

    /// The classes of pods that the same rules select.
    pub fn profiles(&self) -> &[Profile] {
        &self.profiles
    }

    /// What isolates a profile in a direction, as an index into [`Program::rule_sets`].
    pub fn profile_rules(&self, profile: usize, direction: Direction) -> Option<usize> {
        let profile = &self.profiles[profile];
        let rules = match direction {
            Direction::Ingress => profile.ingress,
            Direction::Egress => profile.egress,
        };
        rules.map(|i| i as usize)
    }

    /// All rule sets. Profiles that the same policies isolate share one.
    pub fn rule_sets(&self) -> &[RuleSet] {
        &self.rule_sets
    }

    /// The addresses of a pod that is a subject; none for any other.
    pub fn pod_addresses(&self, pod: usize) -> impl Iterator<Item = IpAddr> {
        let entry = &self.pods[pod];
        let known = if entry.profile.is_some() { entry.addresses.as_slice() } else { &[] };
        known.iter().map(|(address, _)| *address)
    }

    /// How many peers there are, [`PeerId::ANY`] included.
    pub fn peer_count(&self) -> usize {
        self.peers.len()
    }

    /// How many identities there are.
    pub fn identity_count(&self) -> usize {
        self.identities.len()
    }

    /// The addresses of a peer that is an `ipBlock`, disjoint and ascending; `None` for another.
    pub fn peer_block(&self, peer: PeerId) -> Option<&[IpRange]> {
        match &self.peers[peer.index()] {
            PeerClass::Block(ranges) => Some(ranges),
            PeerClass::Any | PeerClass::Pods => None,
        }
    }

    /// For every peer that is of pods, the addresses that its pods own, ascending.
    pub fn peer_addresses(&self) -> Vec<Vec<IpAddr>> {
        let mut members: Vec<Vec<IpAddr>> = vec![Vec::new(); self.peers.len()];
        for entry in self.pods.iter().filter(|entry| entry.profile.is_some()) {
            for (address, identity) in &entry.addresses {
                // Not where it is a node, or several pods that are not alike.
                if self.owners.get(address).is_none_or(|(_, of_owner)| of_owner != identity) {
                    continue;
                }
                for peer in &self.identities[identity.0 as usize] {
                    if self.peers[peer.index()] == PeerClass::Pods {
                        members[peer.index()].push(*address);
                    }
                }
            }
        }
        for addresses in &mut members {
            addresses.sort_unstable();
            addresses.dedup();
        }
        members
    }
}

/// Why policies do not apply to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exemption {
    /// A pod always reaches itself (SEMANTICS 6).
    Itself,
    /// A pod and the node it runs on always reach each other (SEMANTICS 7).
    OwnNode,
}

/// The fact that decides whether one end is the node that the other, a pod, runs on.
fn own_node_unknown(program: &Program, path: &Path) -> Option<Fact> {
    let ends = [
        (&path.source, Role::Source, &path.destination, Role::Destination),
        (&path.destination, Role::Destination, &path.source, Role::Source),
    ];
    ends.into_iter().find_map(|(pod, pod_role, node, node_role)| {
        let home = program.pods[pod.pod?].node;
        match node {
            Endpoint { unplaced: true, .. } => Some(Fact::Node(node_role)),
            Endpoint { node: Some(_), .. } if home.is_none() => Some(Fact::Node(pod_role)),
            _ => None,
        }
    })
}
