//! Lays a node's state out as a table in which a new connection costs the same few lookups
//! whatever the number of policies.
//!
//! The base chain sends a connection to the egress chain of its source and then to the ingress
//! chain of its destination. A profile's chain has one lookup for each *form* of entry:
//!
//! 1. exact ports of single addresses, unless they are many: one hash set of
//!    `address . protocol . port`;
//! 2. every port: a hash set of addresses, one of address ranges, and the large peer sets, which
//!    are shared between profiles instead of copied;
//! 3. the rest by port: a verdict map from ports to chains with the lookups of 2.
//!
//! What is allowed returns, so that the other end is judged too.
//!
//! States come one after the other, and most of one is in the next: what belongs to a profile is
//! laid out again only if its entries are others, or peer sets of which it has copies.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use portcullis_core::net::{Family, IpRange, Protocol};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::Error;
use crate::plan::{
    Chain, ChainId, Direction, Element, Elements, Expression, Field, Key, Limit, OriginsId, Plan,
    Rule, Set, SetId, Type, Verdict,
};
use crate::state::{Addresses, Entry, NodeState, PeerSet, Ports, Profile};

/// A peer set of more addresses is not copied into the sets of a chain, nor multiplied with ports.
const COPY_LIMIT: usize = 64;
/// A chain looks into so many shared sets; what is beyond is copied after all.
const SHARED_LIMIT: usize = 8;

/// Lays out the state. Equal states give equal plans. An error says which number of the state
/// stands for nothing or which range is upside down.
pub fn plan(state: &NodeState) -> Result<Plan, Error> {
    Planner::default().plan(state)
}

/// Lays out states one after the other. It gives the same as [`plan`], and takes over what it can.
#[derive(Debug, Default)]
pub struct Planner {
    /// What was laid out last.
    state: NodeState,
    local: Arc<BTreeSet<IpAddr>>,
    shared: BTreeMap<u32, Arc<Shared>>,
    parts: BTreeMap<(u32, Direction), Arc<Part>>,
    base: Option<Base>,
}

/// What belongs to no profile.
#[derive(Debug)]
struct Base {
    part: Arc<Part>,
    /// The chains of profiles that it leads to.
    chain_of: FxHashMap<(u32, Direction), ChainId>,
}

/// The sets of a large peer set.
#[derive(Debug)]
struct Shared {
    sets: Vec<(SetId, Arc<Set>)>,
}

/// What belongs to one profile and direction, or to none.
#[derive(Debug, Default)]
struct Part {
    chains: Vec<(ChainId, Arc<Chain>)>,
    sets: Vec<(SetId, Arc<Set>)>,
    /// The peer sets of which it has copies.
    copied: BTreeSet<u32>,
    /// Those that it looks into, with the names of their sets.
    looked_into: BTreeMap<u32, Vec<SetId>>,
    /// Where packets end that its chains refuse.
    ends: BTreeSet<ChainId>,
}

impl Planner {
    /// Lays out the state. After an error, what was laid out last is still that.
    pub fn plan(&mut self, state: &NodeState) -> Result<Plan, Error> {
        let dangling = |what, number, place: String| Error::Dangling { what, number, place };
        for (address, profile) in &state.endpoints {
            if !state.profiles.contains_key(profile) {
                return Err(dangling("profile", *profile, format!("endpoint {address}")));
            }
        }
        check_ranges(&state.ranges, || "the ranges of the node".to_owned())?;
        let mut local = self.local.clone();
        let mut moved: Vec<IpAddr> = Vec::new();
        if !state.endpoints.keys().eq(local.iter()) {
            local = Arc::new(state.endpoints.keys().copied().collect());
            moved.extend(local.symmetric_difference(&self.local));
        }

        let others = other_peers(&self.state, state);
        let mut layout = Layout { state, local: &local, shared: self.shared.clone() };
        let moved = self.shared.keys().filter(|number| {
            let peers = state.peers.get(number);
            peers.is_some_and(|peers| moved.iter().any(|address| peers.contains(*address)))
        });
        for number in others.iter().chain(moved) {
            match state.peers.get(number) {
                Some(PeerSet::Addresses(addresses)) if addresses.exceed(COPY_LIMIT) => {
                    layout.shared.insert(*number, layout.shared(*number, addresses));
                }
                _ => _ = layout.shared.remove(number),
            }
        }

        let mut parts = BTreeMap::new();
        let mut first_with = FxHashMap::<(Direction, Rules<'_>, bool), u32>::default();
        let mut chain_of = FxHashMap::<(u32, Direction), ChainId>::default();
        for (number, profile) in &state.profiles {
            for direction in Direction::BOTH {
                let Some(entries) = profile.entries(direction.into()) else { continue };
                // Profiles with equal rules share a chain.
                let audited = is_audited(state, profile, direction);
                let rules = (direction, Rules(entries), audited);
                let owner = *first_with.entry(rules).or_insert(*number);
                chain_of.insert((*number, direction), ChainId::Profile(owner, direction));
                if owner != *number {
                    continue;
                }
                let key = (*number, direction);
                let old = self.parts.get(&key).filter(|part| {
                    self.state.profiles.get(number).is_some_and(|old| {
                        same_entries(old, profile, direction)
                            && is_audited(&self.state, old, direction) == audited
                            && self.is_as_it_was(part, &others, &layout.shared)
                    })
                });
                let part = match old {
                    Some(part) => part.clone(),
                    None => {
                        check(state, *number, direction, entries)?;
                        Arc::new(layout.part(*number, direction, entries, audited))
                    }
                };
                parts.insert(key, part);
            }
        }

        let base = match &self.base {
            Some(base)
                if base.chain_of == chain_of
                    && self.state.endpoints == state.endpoints
                    && self.state.ranges == state.ranges
                    && self.state.audit == state.audit =>
            {
                base.part.clone()
            }
            _ => Arc::new(layout.base(&chain_of)),
        };

        let all = || parts.values().chain([&base]);
        let used: FxHashSet<u32> =
            all().flat_map(|part| part.looked_into.keys().copied()).collect();
        let shared = layout.shared.iter().filter(|(number, _)| used.contains(number));
        let shared = shared.flat_map(|(_, shared)| shared.sets.iter().cloned());
        let mut plan = Plan {
            sets: all().flat_map(|part| part.sets.iter().cloned()).chain(shared).collect(),
            chains: all().flat_map(|part| part.chains.iter().cloned()).collect(),
            local: local.clone(),
        };
        let ends = all().flat_map(|part| part.ends.iter().copied()).collect();
        layout.last_chains(&mut plan, &ends);
        let (shared, base) = (layout.shared, Some(Base { part: base, chain_of }));
        *self = Planner { state: state.clone(), local, shared, parts, base };
        Ok(plan)
    }

    /// Whether what a part was made from, beside its entries, is as it was.
    fn is_as_it_was(
        &self,
        part: &Part,
        others: &BTreeSet<u32>,
        shared: &BTreeMap<u32, Arc<Shared>>,
    ) -> bool {
        part.copied.is_disjoint(others)
            && part.looked_into.iter().all(|(number, sets)| {
                let now = shared.get(number).map(|shared| shared.sets.iter().map(|(id, _)| id));
                now.is_some_and(|now| now.eq(sets))
            })
    }
}

/// The peer sets that may not be the same in both, or are in one only.
fn other_peers(old: &NodeState, new: &NodeState) -> BTreeSet<u32> {
    let mut others = BTreeSet::new();
    if old.peers.same(&new.peers) {
        return others;
    }
    let mut old = old.peers.iter().peekable();
    for (number, peers) in &new.peers {
        while let Some((gone, _)) = old.next_if(|(before, _)| *before < number) {
            others.insert(*gone);
        }
        let before = old.next_if(|(before, _)| *before == number);
        if !before.is_some_and(|(_, before)| before.same(peers)) {
            others.insert(*number);
        }
    }
    others.extend(old.map(|(gone, _)| *gone));
    others
}

/// Rules by what they are. Most that are equal are in one place, and most others differ at once.
struct Rules<'a>(&'a Arc<[Entry]>);

impl PartialEq for Rules<'_> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(self.0, other.0) || self.0 == other.0
    }
}

impl Eq for Rules<'_> {}

impl Hash for Rules<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let entries = &**self.0;
        (entries.len(), entries.first(), entries.get(entries.len() / 2), entries.last())
            .hash(state);
    }
}

/// Whether what the direction does not allow passes (SEMANTICS 28).
fn is_audited(state: &NodeState, profile: &Profile, direction: Direction) -> bool {
    state.audit || profile.is_audited(direction.into())
}

fn same_entries(old: &Profile, new: &Profile, direction: Direction) -> bool {
    match (old.entries(direction.into()), new.entries(direction.into())) {
        (Some(old), Some(new)) => Rules(old) == Rules(new),
        _ => false,
    }
}

impl Direction {
    fn local(self, family: Family) -> Field {
        match self {
            Direction::Egress => Field::Source(family),
            Direction::Ingress => Field::Destination(family),
        }
    }

    fn remote(self, family: Family) -> Field {
        match self {
            Direction::Egress => Field::Destination(family),
            Direction::Ingress => Field::Source(family),
        }
    }
}

struct Layout<'a> {
    state: &'a NodeState,
    local: &'a Arc<BTreeSet<IpAddr>>,
    /// By the number of the peer set: every large one.
    shared: BTreeMap<u32, Arc<Shared>>,
}

impl Layout<'_> {
    fn base(&self, chains: &FxHashMap<(u32, Direction), ChainId>) -> Part {
        let mut part = Part::default();
        // Neighbour discovery is how pods on one bridge find each other. It comes here where the
        // kernel hands bridged packets to IP hooks, and is of no known connection.
        let passing = [Expression::KnownConnection, Expression::NeighborDiscovery];
        let passing = passing.map(|part| Rule(vec![part, Expression::Verdict(Verdict::Accept)]));
        let mut rules = Vec::from(passing);
        for family in Family::ALL {
            // A pod reaches itself: through a Service, the packet comes back to it by the node.
            let selves =
                self.endpoints(family).map(|(address, _)| (Key::Pair(address, address), None));
            let set = part.add(SetId::Selves(family), plain(selves));
            let fields = vec![Field::Source(family), Field::Destination(family)];
            rules.extend(set.map(|set| lookup(fields, set, None, Verdict::Accept)));
        }
        let gates = Direction::BOTH.into_iter().flat_map(|d| Family::ALL.map(|family| (d, family)));
        let gates = gates.filter_map(|(d, family)| self.unprogrammed(&mut part, d, family));
        rules.extend(gates);
        for direction in Direction::BOTH {
            for family in Family::ALL {
                let isolated = self.endpoints(family).filter_map(|(address, profile)| {
                    let chain = *chains.get(&(profile, direction))?;
                    Some((Key::Address(address), Some(Verdict::Jump(chain))))
                });
                let map = part.add(SetId::Isolated(direction, family), plain(isolated));
                let fields = vec![direction.local(family)];
                rules.extend(map.map(|map| Rule(vec![Expression::Map(fields, map)])));
            }
        }
        // Asked last, so that what is about local pods can change in place: see `update.rs`. Where nothing
        // is refused, nothing is lost either.
        for family in Family::ALL.into_iter().filter(|_| !self.state.audit) {
            let set = SetId::Changed(family);
            part.sets.push((set, Arc::new(empty(family, false))));
            rules.extend(
                Direction::BOTH.map(|direction| {
                    lookup(vec![direction.local(family)], set, None, Verdict::Drop)
                }),
            );
        }
        part.chains.push((ChainId::Base, Arc::new(Chain { rules })));
        part.ends = part.chains.iter().flat_map(|(_, chain)| ends_of(chain)).collect();
        part
    }

    /// The chains for what is refused, and for what would be, as far as rules lead there. The latter
    /// return to the base chain, so that the other end is judged too. Where packets are told of, each
    /// source has its share first, and then all of them together theirs.
    fn last_chains(&self, plan: &mut Plan, ends: &BTreeSet<ChainId>) {
        for chain in ends {
            let verdict = match chain {
                ChainId::Audited(_) => Verdict::Return,
                _ => Verdict::Drop,
            };
            let last = [Expression::Tally(*chain), Expression::Verdict(verdict)];
            let mut rules = Vec::new();
            if let Some(log) = self.state.log {
                for family in Family::ALL {
                    let set = SetId::Heard(family);
                    plan.sets.insert(set, Arc::new(empty(family, true)));
                    let share = Limit::of_one_source(log);
                    let mut rule = vec![Expression::Exceeds(Field::Source(family), set, share)];
                    rule.extend(last.iter().cloned());
                    rules.push(Rule(rule));
                }
                rules.push(Rule(vec![Expression::Tell(*chain, log)]));
            }
            rules.push(Rule(last.into()));
            plan.chains.insert(*chain, Arc::new(Chain { rules }));
        }
    }

    /// Refuses what is from or to an address of the node's ranges that no endpoint has.
    fn unprogrammed(&self, part: &mut Part, direction: Direction, family: Family) -> Option<Rule> {
        let of_family = |range: &&IpRange| Family::of(range.first) == family;
        let ranges = self.state.ranges.iter().filter(of_family);
        let pieces = cut(ranges.map(|range| (number(range.first), number(range.last), 0)));
        let ranges = pieces.iter().map(|piece| (Key::Addresses(piece.range(family)), None));
        let ranges = part.add(SetId::Ranges(family), plain(ranges))?;
        let pods = self.endpoints(family).map(|(address, _)| (Key::Address(address), None));
        let pods = part.add(SetId::Pods(family), plain(pods));
        let field = || vec![direction.local(family)];
        // Most packets are of pods that are known, and looking for those is the cheaper part.
        let mut rule: Vec<_> =
            pods.map(|pods| Expression::Absent(field(), pods)).into_iter().collect();
        rule.push(Expression::Lookup(field(), ranges));
        let end = End { direction, audited: self.state.audit };
        rule.push(Expression::Verdict(Verdict::Goto(end.chain())));
        Some(Rule(rule))
    }

    fn endpoints(&self, family: Family) -> impl Iterator<Item = (IpAddr, u32)> {
        let endpoints = self.state.endpoints.iter().map(|(address, profile)| (*address, *profile));
        endpoints.filter(move |(address, _)| Family::of(*address) == family)
    }

    fn part(&self, profile: u32, direction: Direction, entries: &[Entry], audited: bool) -> Part {
        let mut part = Part::default();
        let chain = ChainId::Profile(profile, direction);
        let mut exact = Vec::new();
        let mut every_port = Peers::default();
        let mut by_port = Vec::new();
        for entry in entries {
            if let Some(peers) = entry.peers
                && !self.shared.contains_key(&peers)
            {
                part.copied.insert(peers);
            }
            match entry.ports {
                None => every_port.add(self, entry.peers, entry.origin),
                Some(ports) => {
                    let all =
                        self.exact_keys(entry.peers, ports, |key| exact.push((key, entry.origin)));
                    if !all {
                        by_port.push((ports, entry));
                    }
                }
            }
        }

        let mut rules = Vec::new();
        for family in Family::ALL {
            let of_family =
                exact.iter().copied().filter(|(key, _)| key_family(key) == Some(family));
            let set = part.add(SetId::Exact(profile, direction, family), counted(of_family));
            let fields = vec![direction.remote(family), Field::Protocol, Field::Port];
            rules.extend(set.map(|set| lookup(fields, set, None, Verdict::Return)));
        }
        self.peer_rules(&mut part, direction, chain, &every_port, &mut rules);
        let end = End { direction, audited };
        rules.extend(self.port_map(&mut part, profile, end, &by_port, &every_port.any));
        rules.push(end.rule(&every_port.any));
        part.chains.push((chain, Arc::new(Chain { rules })));
        part.ends = part.chains.iter().flat_map(|(_, chain)| ends_of(chain)).collect();
        part
    }

    /// Gives the keys of an entry with a port that fit the exact set. False if something is left.
    fn exact_keys(&self, peers: Option<u32>, ports: Ports, mut give: impl FnMut(Key)) -> bool {
        let exact = ports.first == ports.last;
        let mut key = |address| give(Key::Service(address, ports.protocol.number(), ports.first));
        match peers.and_then(|peers| self.state.peers.get(&peers)) {
            None => false,
            Some(PeerSet::Addresses(addresses)) => {
                let fits = exact && !addresses.exceed(COPY_LIMIT);
                if fits {
                    addresses.iter().for_each(key);
                }
                fits
            }
            Some(PeerSet::Ranges(ranges)) => {
                let fits = exact
                    && ranges.len() <= COPY_LIMIT
                    && ranges.iter().all(|range| range.first == range.last);
                if fits {
                    ranges.iter().for_each(|range| key(range.first));
                }
                fits
            }
        }
    }

    /// The map from ports to chains, for entries that the exact set cannot hold. `any` are the
    /// origins that allow every address and port.
    fn port_map(
        &self,
        part: &mut Part,
        profile: u32,
        end: End,
        entries: &[(Ports, &Entry)],
        any: &[u32],
    ) -> Option<Rule> {
        let direction = end.direction;
        let mut elements = Vec::new();
        let mut chains = FxHashMap::<Vec<u32>, ChainId>::default();
        for protocol in Protocol::ALL {
            let of_protocol = entries.iter().zip(0..).filter(|((p, _), _)| p.protocol == protocol);
            for piece in
                cut(of_protocol.map(|((p, _), index)| (p.first.into(), p.last.into(), index)))
            {
                let chain = match chains.get(&piece.labels) {
                    Some(chain) => *chain,
                    None => {
                        let mut peers = Peers::default();
                        for index in &piece.labels {
                            let (_, entry) = entries[*index as usize];
                            peers.add(self, entry.peers, entry.origin);
                        }
                        peers.any.extend(any);
                        let chain = ChainId::Ports(profile, direction, chains.len() as u32);
                        let mut rules = Vec::new();
                        self.peer_rules(part, direction, chain, &peers, &mut rules);
                        rules.push(end.rule(&peers.any));
                        part.chains.push((chain, Arc::new(Chain { rules })));
                        chains.insert(piece.labels, chain);
                        chain
                    }
                };
                let ports = Ports { protocol, first: piece.first as u16, last: piece.last as u16 };
                elements.push((Key::Ports(ports), Some(Verdict::Goto(chain))));
            }
        }
        let map = part.add(SetId::Ports(profile, direction), plain(elements))?;
        // The kernel compares part by part, and goes on with every element that fits so far. All
        // may be of one protocol, so the port comes first.
        Some(Rule(vec![Expression::Map(vec![Field::Port, Field::Protocol], map)]))
    }

    /// The lookups of addresses that are not tied to a port.
    fn peer_rules(
        &self,
        part: &mut Part,
        direction: Direction,
        chain: ChainId,
        peers: &Peers,
        rules: &mut Vec<Rule>,
    ) {
        let mut shared = Vec::new();
        let mut copied = peers.addresses.clone();
        for (number, origins) in &peers.large {
            let Some(sets) = self.shared.get(number) else { continue };
            if shared.len() < SHARED_LIMIT {
                let names = sets.sets.iter().map(|(id, _)| *id).collect();
                part.looked_into.insert(*number, names);
                shared.push((*number, origins));
            } else if let Some(PeerSet::Addresses(addresses)) = self.state.peers.get(number) {
                part.copied.insert(*number);
                let keys = addresses.iter().map(Key::Address);
                copied.extend(keys.flat_map(|key| origins.iter().map(move |o| (key, *o))));
            }
        }
        for family in Family::ALL {
            let fields = vec![direction.remote(family)];
            let copied = copied.iter().copied().filter(|(key, _)| key_family(key) == Some(family));
            let set = part.add(SetId::Addresses(chain, family), counted(copied));
            rules.extend(set.map(|set| lookup(fields.clone(), set, None, Verdict::Return)));
            for (number, origins) in &shared {
                let sets = self.shared.get(number).into_iter().flat_map(|shared| &shared.sets);
                for (id, _) in sets {
                    if matches!(id, SetId::Remote(_, f) | SetId::Local(_, f) if *f == family) {
                        let origins = Some(sorted(origins));
                        rules.push(lookup(fields.clone(), *id, origins, Verdict::Return));
                    }
                }
            }
            let ranges = peers.ranges.iter().filter(|(range, _)| Family::of(range.first) == family);
            let mut origins = OriginLists::default();
            let pieces =
                cut(ranges.map(|(range, o)| (number(range.first), number(range.last), *o)));
            let elements = pieces.into_iter().map(|piece| Element {
                key: Key::Addresses(piece.range(family)),
                origins: origins.number(&piece.labels),
                verdict: None,
            });
            let elements = elements.collect();
            let set = part.add(SetId::Blocks(chain, family), (elements, Some(origins)));
            rules.extend(set.map(|set| lookup(fields, set, None, Verdict::Return)));
        }
    }

    /// A large peer set as sets, of each family what is remote and what is local.
    fn shared(&self, number: u32, addresses: &Addresses) -> Arc<Shared> {
        let mut sets = Vec::new();
        let local = addresses.among(&**self.local);
        for family in Family::ALL {
            let of_family = |address: &IpAddr| Family::of(*address) == family;
            let local: Vec<IpAddr> = local.iter().copied().filter(of_family).collect();
            let keys = local.iter().map(|address| (Key::Address(*address), None));
            let known = set(plain(keys));
            let remote = Set {
                key: vec![Type::Address(family)],
                interval: false,
                counted: false,
                map: false,
                dynamic: false,
                elements: Elements::Remote { of: addresses.clone(), family, local },
                origins: vec![Vec::new()],
            };
            if !remote.is_empty() {
                sets.push((SetId::Remote(number, family), Arc::new(remote)));
            }
            sets.extend(known.map(|set| (SetId::Local(number, family), Arc::new(set))));
        }
        Arc::new(Shared { sets })
    }
}

impl Part {
    /// Adds the set, unless it would be empty.
    fn add(&mut self, id: SetId, content: Content) -> Option<SetId> {
        self.sets.push((id, Arc::new(set(content)?)));
        Some(id)
    }
}

/// Elements sorted by key, and what their counters stand for if they have any.
type Content = (Vec<Element>, Option<OriginLists>);

/// Numbers equal lists of origins equally.
#[derive(Debug)]
struct OriginLists {
    lists: Vec<Vec<u32>>,
    numbers: FxHashMap<Vec<u32>, u32>,
}

impl Default for OriginLists {
    fn default() -> Self {
        OriginLists { lists: vec![Vec::new()], numbers: FxHashMap::from_iter([(Vec::new(), 0)]) }
    }
}

impl OriginLists {
    fn number(&mut self, origins: &[u32]) -> OriginsId {
        let origins = sorted(origins);
        if let Some(number) = self.numbers.get(&origins) {
            return OriginsId(*number);
        }
        let number = self.lists.len() as u32;
        self.lists.push(origins.clone());
        self.numbers.insert(origins, number);
        OriginsId(number)
    }
}

fn sorted(origins: &[u32]) -> Vec<u32> {
    let mut origins = origins.to_vec();
    origins.sort_unstable();
    origins.dedup();
    origins
}

/// The end of a chain.
#[derive(Clone, Copy)]
struct End {
    direction: Direction,
    audited: bool,
}

impl End {
    /// Where a packet goes that comes there.
    fn chain(self) -> ChainId {
        match self.audited {
            true => ChainId::Audited(self.direction),
            false => ChainId::Refused(self.direction),
        }
    }

    /// What becomes of a packet that comes there, where these origins allow every address.
    fn rule(self, any: &[u32]) -> Rule {
        match any {
            [] => Rule(vec![Expression::Verdict(Verdict::Goto(self.chain()))]),
            any => Rule(vec![Expression::Count(sorted(any)), Expression::Verdict(Verdict::Return)]),
        }
    }
}

/// The chains that rules of this one lead to, in which packets end that are refused.
fn ends_of(chain: &Chain) -> impl Iterator<Item = ChainId> {
    chain.rules.iter().filter_map(|rule| match rule.0.last() {
        Some(Expression::Verdict(Verdict::Goto(
            chain @ (ChainId::Refused(_) | ChainId::Audited(_)),
        ))) => Some(*chain),
        _ => None,
    })
}

/// With a counter for each element: equal keys become one with all their origins.
fn counted(keys: impl Iterator<Item = (Key, u32)>) -> Content {
    let mut keys: Vec<_> = keys.collect();
    keys.sort_unstable();
    let mut elements = Vec::with_capacity(keys.len());
    let mut lists = OriginLists::default();
    let mut origins = Vec::new();
    for group in keys.chunk_by(|(a, _), (b, _)| a == b) {
        origins.clear();
        origins.extend(group.iter().map(|(_, origin)| *origin));
        let origins = lists.number(&origins);
        elements.push(Element { key: group[0].0, origins, verdict: None });
    }
    (elements, Some(lists))
}

/// The set with these elements. `None` if there are no elements.
fn set((elements, origins): Content) -> Option<Set> {
    let first = elements.first()?;
    let key = match first.key {
        Key::Pair(address, _) => vec![Type::Address(Family::of(address)); 2],
        Key::Address(address) => vec![Type::Address(Family::of(address))],
        Key::Addresses(range) => vec![Type::Address(Family::of(range.first))],
        Key::Service(address, ..) => {
            vec![Type::Address(Family::of(address)), Type::Protocol, Type::Port]
        }
        Key::Ports(_) => vec![Type::Port, Type::Protocol],
    };
    let interval = elements.iter().any(|element| match element.key {
        Key::Addresses(_) => true,
        Key::Ports(ports) => ports.first != ports.last,
        _ => false,
    });
    let (map, counted) = (first.verdict.is_some(), origins.is_some());
    let origins = origins.unwrap_or_default().lists;
    let elements = Elements::Listed(elements);
    Some(Set { key, interval, counted, map, dynamic: false, elements, origins })
}

/// A set of addresses that none are in yet: the kernel adds some if it is dynamic.
fn empty(family: Family, dynamic: bool) -> Set {
    Set {
        key: vec![Type::Address(family)],
        interval: false,
        counted: false,
        map: false,
        dynamic,
        elements: Elements::Listed(Vec::new()),
        origins: vec![Vec::new()],
    }
}

/// Remote ends that are looked up by address alone.
#[derive(Default)]
struct Peers {
    /// Origins that allow any address.
    any: Vec<u32>,
    /// Addresses of small peer sets.
    addresses: Vec<(Key, u32)>,
    ranges: Vec<(IpRange, u32)>,
    /// Large peer sets, with the origins that allow them.
    large: BTreeMap<u32, Vec<u32>>,
}

impl Peers {
    fn add(&mut self, layout: &Layout<'_>, peers: Option<u32>, origin: u32) {
        let Some(number) = peers else { return self.any.push(origin) };
        match layout.state.peers.get(&number) {
            Some(PeerSet::Addresses(_)) if layout.shared.contains_key(&number) => {
                self.large.entry(number).or_default().push(origin);
            }
            Some(PeerSet::Addresses(addresses)) => {
                self.addresses.extend(addresses.iter().map(|a| (Key::Address(a), origin)));
            }
            Some(PeerSet::Ranges(ranges)) => {
                self.ranges.extend(ranges.iter().map(|r| (*r, origin)));
            }
            // Refused before.
            None => {}
        }
    }
}

/// A range of numbers, and the labels of all the ranges that it was cut from.
struct Piece {
    first: u128,
    last: u128,
    labels: Vec<u32>,
}

impl Piece {
    /// The addresses that the numbers are.
    fn range(&self, family: Family) -> IpRange {
        IpRange { first: address(family, self.first), last: address(family, self.last) }
    }
}

/// Cuts ranges (first, last, label) so that none overlap, in order. Neighbours with equal labels
/// become one.
fn cut(ranges: impl Iterator<Item = (u128, u128, u32)>) -> Vec<Piece> {
    // At each place where something changes: what begins there, and what ended just before.
    let mut changes = BTreeMap::<u128, (Vec<u32>, Vec<u32>)>::new();
    for (first, last, label) in ranges {
        changes.entry(first).or_default().0.push(label);
        if let Some(after) = last.checked_add(1) {
            changes.entry(after).or_default().1.push(label);
        }
    }
    let mut pieces: Vec<Piece> = Vec::new();
    let mut open = BTreeMap::<u32, usize>::new();
    let mut changes = changes.into_iter().peekable();
    while let Some((first, (begun, ended))) = changes.next() {
        for label in begun {
            *open.entry(label).or_default() += 1;
        }
        for label in ended {
            if let Some(times) = open.get_mut(&label) {
                *times -= 1;
                if *times == 0 {
                    open.remove(&label);
                }
            }
        }
        if open.is_empty() {
            continue;
        }
        let last = changes.peek().map_or(u128::MAX, |(next, _)| next - 1);
        let labels: Vec<u32> = open.keys().copied().collect();
        match pieces.last_mut() {
            Some(piece) if piece.last + 1 == first && piece.labels == labels => piece.last = last,
            _ => pieces.push(Piece { first, last, labels }),
        }
    }
    pieces
}

fn plain(keys: impl IntoIterator<Item = (Key, Option<Verdict>)>) -> Content {
    let element = |(key, verdict)| Element { key, origins: OriginsId::default(), verdict };
    (keys.into_iter().map(element).collect(), None)
}

fn lookup(fields: Vec<Field>, set: SetId, count: Option<Vec<u32>>, verdict: Verdict) -> Rule {
    let mut rule = vec![Expression::Lookup(fields, set)];
    rule.extend(count.map(Expression::Count));
    rule.push(Expression::Verdict(verdict));
    Rule(rule)
}

fn key_family(key: &Key) -> Option<Family> {
    match key {
        Key::Pair(address, _) | Key::Address(address) | Key::Service(address, ..) => {
            Some(Family::of(*address))
        }
        Key::Addresses(range) => Some(Family::of(range.first)),
        Key::Ports(_) => None,
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

fn address(family: Family, number: u128) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4((number as u32).into()),
        Family::V6 => IpAddr::V6(number.into()),
    }
}

/// Whether the entries make sense in the state.
fn check(
    state: &NodeState,
    profile: u32,
    direction: Direction,
    entries: &[Entry],
) -> Result<(), Error> {
    for (entry, nth) in entries.iter().zip(0..) {
        let place = || format!("profile {profile}, {direction} entry {nth}");
        match entry.peers.map(|number| (number, state.peers.get(&number))) {
            Some((number, None)) => {
                return Err(Error::Dangling { what: "peer set", number, place: place() });
            }
            Some((number, Some(PeerSet::Ranges(ranges)))) => {
                check_ranges(ranges, || format!("peer set {number}"))?;
            }
            _ => {}
        }
        if let Some(ports) = entry.ports
            && ports.first > ports.last
        {
            let range = format!("{}-{}", ports.first, ports.last);
            return Err(Error::UpsideDown { range, place: place() });
        }
    }
    Ok(())
}

fn check_ranges(ranges: &[IpRange], place: impl Fn() -> String) -> Result<(), Error> {
    let upright = |range: &IpRange| range.contains(range.first) && range.contains(range.last);
    match ranges.iter().find(|range| !upright(range)) {
        Some(IpRange { first, last }) => {
            Err(Error::UpsideDown { range: format!("{first}-{last}"), place: place() })
        }
        None => Ok(()),
    }
}
