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

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hash};
use std::net::IpAddr;

use portcullis_core::net::{Family, IpRange, Protocol};
use rustc_hash::{FxBuildHasher, FxHashMap};

use crate::Error;
use crate::plan::{
    BASE_CHAIN, Chain, ChainId, Element, Expression, Field, Key, OriginsId, Plan, Rule, Set, SetId,
    Type, Verdict,
};
use crate::state::{Entry, NodeState, PeerSet, Ports, Profile};

/// A peer set of more addresses is not copied into the sets of a chain, nor multiplied with ports.
const COPY_LIMIT: usize = 512;
/// A chain looks into so many shared sets; what is beyond is copied after all.
const SHARED_LIMIT: usize = 8;

/// Lays out the state. Equal states give equal plans. An error says which index of the state is
/// out of bounds or which range is upside down.
pub fn plan(state: &NodeState) -> Result<Plan, Error> {
    check(state)?;
    let mut layout = Layout::new(state);
    let mut chains = Vec::with_capacity(state.profiles.len());
    for (number, profile) in state.profiles.iter().enumerate() {
        chains.push(Direction::BOTH.map(|direction| {
            let entries = direction.entries(profile)?;
            Some(layout.profile_chain(
                direction,
                &format!("p{number}-{}", direction.name()),
                entries,
            ))
        }));
    }
    layout.base_chain(&chains);
    Ok(layout.plan)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Direction {
    Egress,
    Ingress,
}

impl Direction {
    const BOTH: [Direction; 2] = [Direction::Egress, Direction::Ingress];

    fn name(self) -> &'static str {
        match self {
            Direction::Egress => "egress",
            Direction::Ingress => "ingress",
        }
    }

    fn entries(self, profile: &Profile) -> Option<&[Entry]> {
        match self {
            Direction::Egress => profile.egress.as_deref(),
            Direction::Ingress => profile.ingress.as_deref(),
        }
    }

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
    plan: Plan,
    origins: FxHashMap<Vec<u32>, OriginsId>,
    /// By the hash of the content.
    sets: FxHashMap<u64, Vec<SetId>>,
    chains: FxHashMap<(Direction, Vec<Rule>), ChainId>,
    /// By peer set and family; `None` if it has no address of the family.
    shared: FxHashMap<(u32, Family), Option<SetId>>,
}

impl<'a> Layout<'a> {
    fn new(state: &'a NodeState) -> Layout<'a> {
        let base = Chain { name: BASE_CHAIN.to_owned(), rules: Vec::new() };
        Layout {
            state,
            plan: Plan { chains: vec![base], origins: vec![Vec::new()], ..Plan::default() },
            origins: FxHashMap::from_iter([(Vec::new(), OriginsId(0))]),
            sets: FxHashMap::default(),
            chains: FxHashMap::default(),
            shared: FxHashMap::default(),
        }
    }

    fn base_chain(&mut self, chains: &[[Option<ChainId>; 2]]) {
        // Neighbour discovery is how pods on one bridge find each other. It comes here where the
        // kernel hands bridged packets to IP hooks, and is of no known connection.
        let passing = [Expression::KnownConnection, Expression::NeighborDiscovery];
        let passing = passing.map(|part| Rule(vec![part, Expression::Verdict(Verdict::Accept)]));
        let mut rules = Vec::from(passing);
        for family in Family::ALL {
            // A pod reaches itself: through a Service, the packet comes back to it by the node.
            let selves =
                self.endpoints(family).map(|(address, _)| (Key::Pair(address, address), None));
            let set = self.set(format!("self{}", digit(family)), plain(selves));
            let fields = vec![Field::Source(family), Field::Destination(family)];
            rules.extend(set.map(|set| lookup(fields, set, None, Verdict::Accept)));
        }
        for direction in Direction::BOTH {
            rules.extend(Family::ALL.iter().filter_map(|f| self.unprogrammed(direction, *f)));
        }
        for (index, direction) in Direction::BOTH.into_iter().enumerate() {
            for family in Family::ALL {
                let isolated = self.endpoints(family).filter_map(|(address, profile)| {
                    let chain = chains.get(profile as usize)?[index]?;
                    Some((Key::Address(address), Some(Verdict::Jump(chain))))
                });
                let map =
                    self.set(format!("{}{}", direction.name(), digit(family)), plain(isolated));
                let fields = vec![direction.local(family)];
                rules.extend(map.map(|map| Rule(vec![Expression::Map(fields, map)])));
            }
        }
        self.plan.chains[0].rules = rules;
    }

    /// Drops what is from or to an address of the node's ranges that no endpoint has.
    fn unprogrammed(&mut self, direction: Direction, family: Family) -> Option<Rule> {
        let of_family = |range: &&IpRange| Family::of(range.first) == family;
        let ranges = self.state.ranges.iter().filter(of_family);
        let pieces = cut(ranges.map(|range| (number(range.first), number(range.last), 0)));
        let ranges = pieces.iter().map(|piece| (Key::Addresses(piece.range(family)), None));
        let ranges = self.set(format!("ranges{}", digit(family)), plain(ranges))?;
        let pods = self.endpoints(family).map(|(address, _)| (Key::Address(address), None));
        let pods = self.set(format!("pods{}", digit(family)), plain(pods));
        let field = || vec![direction.local(family)];
        // Most packets are of pods that are known, and looking for those is the cheaper part.
        let mut rule: Vec<_> =
            pods.map(|pods| Expression::Absent(field(), pods)).into_iter().collect();
        rule.push(Expression::Lookup(field(), ranges));
        rule.push(Expression::Count(OriginsId::default()));
        rule.push(Expression::Verdict(Verdict::Drop));
        Some(Rule(rule))
    }

    fn endpoints(&self, family: Family) -> impl Iterator<Item = (IpAddr, u32)> + use<'a> {
        let endpoints = self.state.endpoints.iter().map(|(address, profile)| (*address, *profile));
        endpoints.filter(move |(address, _)| Family::of(*address) == family)
    }

    fn profile_chain(&mut self, direction: Direction, name: &str, entries: &[Entry]) -> ChainId {
        let mut exact = Vec::new();
        let mut every_port = Peers::default();
        let mut by_port = Vec::new();
        for entry in entries {
            match entry.ports {
                None => every_port.add(self.state, entry.peers, entry.origin),
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
            let set = self.counted(format!("{name}-exact{}", digit(family)), of_family);
            let fields = vec![direction.remote(family), Field::Protocol, Field::Port];
            rules.extend(set.map(|set| lookup(fields, set, None, Verdict::Return)));
        }
        self.peer_rules(direction, name, &every_port, &mut rules);
        rules.extend(self.port_map(direction, name, &by_port, &every_port.any));
        rules.push(self.last_rule(&every_port.any));
        self.chain(direction, name.to_owned(), rules)
    }

    /// Gives the keys of an entry with a port that fit the exact set. False if something is left.
    fn exact_keys(&self, peers: Option<u32>, ports: Ports, mut give: impl FnMut(Key)) -> bool {
        let exact = ports.first == ports.last;
        let mut key = |address| give(Key::Service(address, ports.protocol.number(), ports.first));
        match peers.map(|peers| &self.state.peers[peers as usize]) {
            None => false,
            Some(PeerSet::Addresses(addresses)) => {
                let fits = exact && addresses.len() <= COPY_LIMIT;
                if fits {
                    addresses.iter().copied().for_each(key);
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
        &mut self,
        direction: Direction,
        name: &str,
        entries: &[(Ports, &Entry)],
        any: &[u32],
    ) -> Option<Rule> {
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
                            peers.add(self.state, entry.peers, entry.origin);
                        }
                        peers.any.extend(any);
                        let name = format!("{name}-ports{}", chains.len());
                        let mut rules = Vec::new();
                        self.peer_rules(direction, &name, &peers, &mut rules);
                        rules.push(self.last_rule(&peers.any));
                        let chain = self.chain(direction, name, rules);
                        chains.insert(piece.labels, chain);
                        chain
                    }
                };
                let ports = Ports { protocol, first: piece.first as u16, last: piece.last as u16 };
                elements.push((Key::Ports(ports), Some(Verdict::Goto(chain))));
            }
        }
        let map = self.set(format!("{name}-ports"), plain(elements))?;
        // The kernel compares part by part, and goes on with every element that fits so far. All
        // may be of one protocol, so the port comes first.
        Some(Rule(vec![Expression::Map(vec![Field::Port, Field::Protocol], map)]))
    }

    /// The lookups of addresses that are not tied to a port.
    fn peer_rules(
        &mut self,
        direction: Direction,
        name: &str,
        peers: &Peers,
        rules: &mut Vec<Rule>,
    ) {
        let mut shared = Vec::new();
        let mut copied = peers.addresses.clone();
        for (set, origins) in &peers.large {
            if shared.len() < SHARED_LIMIT {
                shared.push((*set, self.origins(origins)));
            } else if let PeerSet::Addresses(addresses) = &self.state.peers[*set as usize] {
                let keys = addresses.iter().map(|address| Key::Address(*address));
                copied.extend(keys.flat_map(|key| origins.iter().map(move |o| (key, *o))));
            }
        }
        for family in Family::ALL {
            let fields = vec![direction.remote(family)];
            let copied = copied.iter().copied().filter(|(key, _)| key_family(key) == Some(family));
            let set = self.counted(format!("{name}-addresses{}", digit(family)), copied);
            rules.extend(set.map(|set| lookup(fields.clone(), set, None, Verdict::Return)));
            for (peers, origins) in &shared {
                let set = self.shared(*peers, family);
                let origins = Some(*origins);
                rules.extend(set.map(|set| lookup(fields.clone(), set, origins, Verdict::Return)));
            }
            let ranges = peers.ranges.iter().filter(|(range, _)| Family::of(range.first) == family);
            let pieces =
                cut(ranges.map(|(range, o)| (number(range.first), number(range.last), *o)));
            let elements = pieces.into_iter().map(|piece| Element {
                key: Key::Addresses(piece.range(family)),
                origins: self.origins(&piece.labels),
                verdict: None,
            });
            let elements = elements.collect();
            let set = self.set(format!("{name}-blocks{}", digit(family)), (elements, true));
            rules.extend(set.map(|set| lookup(fields, set, None, Verdict::Return)));
        }
    }

    fn last_rule(&mut self, any: &[u32]) -> Rule {
        let verdict = if any.is_empty() { Verdict::Drop } else { Verdict::Return };
        Rule(vec![Expression::Count(self.origins(any)), Expression::Verdict(verdict)])
    }

    fn origins(&mut self, origins: &[u32]) -> OriginsId {
        let mut origins = origins.to_vec();
        origins.sort_unstable();
        origins.dedup();
        if let Some(id) = self.origins.get(&origins) {
            return *id;
        }
        let id = OriginsId(self.plan.origins.len() as u32);
        self.plan.origins.push(origins.clone());
        self.origins.insert(origins, id);
        id
    }

    /// A large peer set's addresses of one family.
    fn shared(&mut self, peers: u32, family: Family) -> Option<SetId> {
        if let Some(set) = self.shared.get(&(peers, family)) {
            return *set;
        }
        let addresses = match &self.state.peers[peers as usize] {
            PeerSet::Addresses(addresses) => addresses.as_slice(),
            PeerSet::Ranges(_) => &[],
        };
        let of_family = addresses.iter().filter(|address| Family::of(**address) == family);
        let keys = of_family.map(|address| (Key::Address(*address), None));
        let set = self.set(format!("peers{peers}-{}", digit(family)), plain(keys));
        self.shared.insert((peers, family), set);
        set
    }

    /// A hash set with a counter for each element: equal keys become one with all their origins.
    fn counted(&mut self, name: String, keys: impl Iterator<Item = (Key, u32)>) -> Option<SetId> {
        let mut keys: Vec<_> = keys.collect();
        keys.sort_unstable();
        let mut elements = Vec::with_capacity(keys.len());
        let mut origins = Vec::new();
        for group in keys.chunk_by(|(a, _), (b, _)| a == b) {
            origins.clear();
            origins.extend(group.iter().map(|(_, origin)| *origin));
            let origins = self.origins(&origins);
            elements.push(Element { key: group[0].0, origins, verdict: None });
        }
        self.set(name, (elements, true))
    }

    /// The set with these elements, which is not made again if there is one. `None` if there are no elements.
    fn set(&mut self, name: String, (elements, counted): (Vec<Element>, bool)) -> Option<SetId> {
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
        let map = first.verdict.is_some();
        let hash = FxBuildHasher.hash_one((counted, &elements));
        let same = self.sets.entry(hash).or_default();
        let sets = &mut self.plan.sets;
        let is_same = |id: &&SetId| {
            let set = &sets[id.0 as usize];
            set.counted == counted && set.elements == elements
        };
        if let Some(id) = same.iter().find(is_same) {
            return Some(*id);
        }
        let id = SetId(sets.len() as u32);
        same.push(id);
        sets.push(Set { name, key, interval, counted, map, elements });
        Some(id)
    }

    /// The chain with these rules, which is not made again if there is one for the direction.
    fn chain(&mut self, direction: Direction, name: String, rules: Vec<Rule>) -> ChainId {
        let next = ChainId(self.plan.chains.len() as u32);
        let id = *self.chains.entry((direction, rules.clone())).or_insert(next);
        if id == next {
            self.plan.chains.push(Chain { name, rules });
        }
        id
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
    fn add(&mut self, state: &NodeState, peers: Option<u32>, origin: u32) {
        let Some(index) = peers else { return self.any.push(origin) };
        match &state.peers[index as usize] {
            PeerSet::Addresses(addresses) if addresses.len() > COPY_LIMIT => {
                self.large.entry(index).or_default().push(origin);
            }
            PeerSet::Addresses(addresses) => {
                self.addresses.extend(addresses.iter().map(|a| (Key::Address(*a), origin)));
            }
            PeerSet::Ranges(ranges) => self.ranges.extend(ranges.iter().map(|r| (*r, origin))),
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

fn plain(keys: impl IntoIterator<Item = (Key, Option<Verdict>)>) -> (Vec<Element>, bool) {
    let element = |(key, verdict)| Element { key, origins: OriginsId(0), verdict };
    (keys.into_iter().map(element).collect(), false)
}

fn lookup(fields: Vec<Field>, set: SetId, count: Option<OriginsId>, verdict: Verdict) -> Rule {
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

fn digit(family: Family) -> char {
    match family {
        Family::V4 => '4',
        Family::V6 => '6',
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

fn check(state: &NodeState) -> Result<(), Error> {
    let index = |what, index: u32, count: usize, place: &dyn Fn() -> String| {
        if (index as usize) < count {
            return Ok(());
        }
        Err(Error::Dangling { what, index, count, place: place() })
    };
    for (address, profile) in &state.endpoints {
        let place = || format!("endpoint {address}");
        index("profile", *profile, state.profiles.len(), &place)?;
    }
    for (number, profile) in state.profiles.iter().enumerate() {
        for direction in Direction::BOTH {
            for (entry, n) in direction.entries(profile).into_iter().flatten().zip(0..) {
                let place = || format!("profile {number}, {} entry {n}", direction.name());
                index("origin", entry.origin, state.origins as usize, &place)?;
                if let Some(peers) = entry.peers {
                    index("peer set", peers, state.peers.len(), &place)?;
                }
                if let Some(ports) = entry.ports
                    && ports.first > ports.last
                {
                    let range = format!("{}-{}", ports.first, ports.last);
                    return Err(Error::UpsideDown { range, place: place() });
                }
            }
        }
    }
    for (number, peers) in state.peers.iter().enumerate() {
        if let PeerSet::Ranges(ranges) = peers {
            check_ranges(ranges, &|| format!("peer set {number}"))?;
        }
    }
    check_ranges(&state.ranges, &|| "the ranges of the node".to_owned())
}

fn check_ranges(ranges: &[IpRange], place: &dyn Fn() -> String) -> Result<(), Error> {
    let upright = |range: &IpRange| range.contains(range.first) && range.contains(range.last);
    match ranges.iter().find(|range| !upright(range)) {
        Some(IpRange { first, last }) => {
            Err(Error::UpsideDown { range: format!("{first}-{last}"), place: place() })
        }
        None => Ok(()),
    }
}
