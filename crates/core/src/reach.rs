//! Who can reach whom on what: worked out between classes of addresses, never between pods.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use indexmap::IndexSet;
use rustc_hash::{FxBuildHasher, FxHashMap};

use crate::model::{Cluster, Direction};
use crate::net::{Family, IpRange, Protocol, previous_address};
use crate::portset::PortSet;
use crate::program::{
    End, Endpoint, Entry, IdentityId, PeerId, Ports, Program, RuleSet, Whereabouts,
};
use crate::space;

/// A class of addresses that fare alike as sources and as destinations, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClassId(u32);

/// A [`PortSet`], by number: equal sets have equal numbers in one [`Reach`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetId(u32);

impl SetId {
    /// Nothing.
    pub const NOTHING: SetId = SetId(0);
    /// Everything, ICMP included.
    pub const EVERYTHING: SetId = SetId(1);
}

/// What may be opened. They differ where some fact is missing; the first is part of the second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Opens {
    /// However the missing facts turn out.
    pub surely: SetId,
    /// If the missing facts turn out so. Each fact is judged by itself.
    pub perhaps: SetId,
}

/// What policies know of an address: what isolates it, and which peers it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Class {
    egress: Option<u32>,
    ingress: Option<u32>,
    identity: IdentityId,
}

/// Pods that fare alike in every respect, or addresses outside that do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// The pods, by index in the cluster, ascending.
    pub pods: Vec<usize>,
    /// The addresses, if these are not pods: of one family, disjoint and ascending.
    pub addresses: Vec<IpRange>,
    /// The class it is in each family (IPv4, IPv6); `None` where it has no address. What has no
    /// address yet goes with any family.
    pub classes: [Option<ClassId>; 2],
}

/// What one unit may open to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Allowed {
    /// The same on every family that both have.
    Alike(Opens),
    /// Differently on IPv4 and on IPv6.
    ByFamily([Opens; 2]),
    /// They have no family in common, so nothing can be opened. The set is what policies would
    /// allow if they had.
    NoFamily(Opens),
}

/// The connectivity of a compiled cluster. A pod's traffic to itself and to the node it runs on is
/// not in it: that passes always (SEMANTICS 6, 7).
#[derive(Debug)]
pub struct Reach<'a> {
    program: &'a Program,
    classes: IndexSet<Class, FxBuildHasher>,
    sets: Sets,
    /// What is allowed surely.
    surely: View,
    /// What is allowed perhaps; `None` where no fact is missing.
    perhaps: Option<View>,
    /// By rule set, where an address may be, and family: what it allows what has no address yet,
    /// because it may be in some `ipBlock`, and because it is in one of them wherever it is. Empty
    /// where no fact is missing.
    unaddressed: Vec<[[Opens; 2]; 2]>,
}

/// What the rule sets allow, as far as that is decided by which peers an identity is. There are
/// many pairs of rule sets and identities, so each is kept only where a row will look for it.
#[derive(Debug)]
struct View {
    /// By rule set: what it allows everybody.
    everybody: Vec<SetId>,
    /// By rule set, if it is for egress: the identities that it allows more.
    egress: Vec<Vec<(IdentityId, SetId)>>,
    /// By identity: the rule sets for ingress that allow it more.
    ingress: Vec<Vec<(u32, SetId)>>,
}

/// What a rule set allows: everybody, and some identities more.
struct Effect {
    everybody: SetId,
    more: Vec<(IdentityId, SetId)>,
}

impl<'a> Reach<'a> {
    /// Prepares to answer for a program.
    pub fn of(program: &'a Program) -> Self {
        let mut sets = Sets::new();
        let surely = View::of(program, false, &mut sets);
        let doubts = &program.doubts;
        let missing = doubts.iter().any(|doubt| *doubt != Default::default())
            || program.rule_sets().iter().any(|rules| !rules.doubtful.is_empty());
        let perhaps = missing.then(|| View::of(program, true, &mut sets));
        let unaddressed = |rules: &RuleSet| {
            [Whereabouts::Pods, Whereabouts::Anywhere].map(|whereabouts| {
                Family::ALL.map(|f| unaddressed(program, rules, whereabouts, f, &mut sets))
            })
        };
        let rules = if missing { program.rule_sets() } else { &[] };
        let unaddressed = rules.iter().map(unaddressed).collect();
        Reach { program, classes: IndexSet::default(), sets, surely, perhaps, unaddressed }
    }

    /// The pods of the cluster that the program was compiled from, and all addresses of the
    /// families that they have, as few units as can be. Finished pods are left out; a
    /// `hostNetwork` pod fares as its node's address.
    pub fn units(&mut self, cluster: &Cluster) -> Vec<Unit> {
        let mut by_classes: FxHashMap<[Option<ClassId>; 2], usize> = FxHashMap::default();
        let mut units: Vec<Unit> = Vec::new();
        for (i, _) in cluster.pods.iter().enumerate().filter(|(_, pod)| !pod.finished) {
            let classes = self.pod(i);
            let unit = *by_classes.entry(classes).or_insert(units.len());
            match units.get_mut(unit) {
                Some(unit) => unit.pods.push(i),
                None => units.push(Unit { pods: vec![i], addresses: Vec::new(), classes }),
            }
        }
        for family in Family::ALL {
            let here = |unit: &Unit| unit.classes[family as usize].is_some();
            if !units.is_empty() && !units.iter().any(here) {
                continue;
            }
            let mut by_class: FxHashMap<ClassId, usize> = FxHashMap::default();
            for range in self.intervals(family) {
                let class = self.outside(range.first);
                let unit = *by_class.entry(class).or_insert(units.len());
                if unit == units.len() {
                    let mut classes = [None; 2];
                    classes[family as usize] = Some(class);
                    units.push(Unit { pods: Vec::new(), addresses: Vec::new(), classes });
                }
                units[unit].addresses.push(range);
            }
        }
        units
    }

    /// The classes of a pod, by family; both the same while it has no address.
    pub fn pod(&mut self, pod: usize) -> [Option<ClassId>; 2] {
        let endpoints = self.program.endpoints(End::Pod(pod));
        match endpoints {
            [Some(only), None] if only.address.is_none() => [Some(self.class(&only)); 2],
            _ => endpoints.map(|endpoint| endpoint.map(|e| self.class(&e))),
        }
    }

    /// The class of an endpoint.
    pub fn class(&mut self, endpoint: &Endpoint) -> ClassId {
        let profile = self.program.profile_of(endpoint);
        let profile = profile.map(|p| self.program.profiles()[p]).unwrap_or_default();
        let (egress, ingress) = (profile.egress, profile.ingress);
        self.number_class(Class { egress, ingress, identity: endpoint.identity })
    }

    /// The class of an address as if no pod had it.
    pub fn outside(&mut self, address: IpAddr) -> ClassId {
        let interval = self.program.space.interval(address);
        let identity = self.program.outside[Family::of(address) as usize][interval];
        self.number_class(Class { egress: None, ingress: None, identity })
    }

    /// All addresses of a family, cut where an `ipBlock` begins or ends.
    pub fn intervals(&self, family: Family) -> Vec<IpRange> {
        let last = match family {
            Family::V4 => IpAddr::V4(Ipv4Addr::BROADCAST),
            Family::V6 => IpAddr::V6(Ipv6Addr::from(u128::MAX)),
        };
        let firsts = self.program.space.intervals(family).iter().map(|(first, _)| *first);
        let ends = firsts.clone().skip(1).filter_map(previous_address).chain([last]);
        firsts.zip(ends).map(|(first, last)| IpRange { first, last }).collect()
    }

    /// What a class may open on a family to each of the classes that were asked for so far, by
    /// their number.
    pub fn row(&mut self, source: ClassId, family: Family) -> Vec<Opens> {
        let class = self.classes[source.0 as usize];
        let surely = self.surely.row(&class);
        let perhaps = self.perhaps.as_ref().map(|view| view.row(&class));
        let Reach { program, classes, sets, unaddressed, .. } = self;
        let Some(perhaps) = perhaps else {
            let to_each = classes.iter().map(|to| {
                let both = surely.both(to, [SetId::NOTHING; 2], sets);
                Opens { surely: both, perhaps: both }
            });
            return to_each.collect();
        };
        let more = |subject: Option<u32>, remote: &Class| match subject {
            Some(rules) => {
                let of_blocks = &unaddressed[rules as usize];
                of_blocks_for(program, of_blocks, remote.identity, family)
            }
            None => Opens::default(),
        };
        let to_each = classes.iter().map(|to| {
            let more = [more(class.egress, to), more(to.ingress, &class)];
            Opens {
                surely: surely.both(to, more.map(|opens| opens.surely), sets),
                perhaps: perhaps.both(to, more.map(|opens| opens.perhaps), sets),
            }
        });
        to_each.collect()
    }

    /// What a unit may open to each unit, in their order.
    pub fn unit_row(&mut self, units: &[Unit], source: &Unit) -> Vec<Allowed> {
        let [v4, v6] = Family::ALL.map(|f| Some(self.row(source.classes[f as usize]?, f)));
        let get = |row: &Option<Vec<Opens>>, class: Option<ClassId>| {
            Some(row.as_ref()?[class?.0 as usize])
        };
        let any = v4.as_ref().or(v6.as_ref());
        let allowed = |to: &Unit| match (get(&v4, to.classes[0]), get(&v6, to.classes[1])) {
            (Some(a), Some(b)) if a != b => Allowed::ByFamily([a, b]),
            (Some(set), _) | (None, Some(set)) => Allowed::Alike(set),
            (None, None) => {
                let class = to.classes[0].or(to.classes[1]);
                let set = any.zip(class).map(|(row, class)| row[class.0 as usize]);
                Allowed::NoFamily(set.unwrap_or_default())
            }
        };
        units.iter().map(allowed).collect()
    }

    /// The number of a set.
    pub fn number(&mut self, set: PortSet) -> SetId {
        self.sets.number(set)
    }

    /// The set of a number.
    pub fn set(&self, id: SetId) -> &PortSet {
        &self.sets.values[id.0 as usize]
    }

    /// What isolates a class in a direction; `None` where nothing does.
    pub fn isolation(&self, subject: ClassId, direction: Direction) -> Option<&'a RuleSet> {
        let class = &self.classes[subject.0 as usize];
        let rules = match direction {
            Direction::Ingress => class.ingress,
            Direction::Egress => class.egress,
        };
        rules.map(|i| &self.program.rule_sets()[i as usize])
    }

    /// Everything that an isolated class is allowed with another class on a family, surely or
    /// perhaps, on any traffic.
    pub fn entries(
        &self,
        subject: ClassId,
        direction: Direction,
        remote: ClassId,
        family: Family,
    ) -> Vec<Entry> {
        let Some(rules) = self.isolation(subject, direction) else { return Vec::new() };
        let identity = self.classes[remote.0 as usize].identity;
        let peers = &self.program.identities[identity.0 as usize];
        let all = std::iter::once(&PeerId::ANY).chain(peers);
        let known = all.flat_map(|peer| rules.of_peer(*peer)).copied();
        known.chain(self.program.doubtful_of(rules, identity, Some(family))).collect()
    }

    /// What the policies of one end allow with another class on a family.
    pub fn end(
        &mut self,
        subject: ClassId,
        direction: Direction,
        remote: ClassId,
        family: Family,
    ) -> Opens {
        let class = &self.classes[subject.0 as usize];
        let rules = match direction {
            Direction::Ingress => class.ingress,
            Direction::Egress => class.egress,
        };
        let Some(rules) = rules else {
            return Opens { surely: SetId::EVERYTHING, perhaps: SetId::EVERYTHING };
        };
        let identity = self.classes[remote.0 as usize].identity;
        let more = self.unaddressed.get(rules as usize);
        let more = more.map(|more| of_blocks_for(self.program, more, identity, family));
        let more = more.unwrap_or_default();
        let surely = self.surely.of_remote(rules, identity);
        let perhaps = self.perhaps.as_ref().map_or(surely, |view| view.of_remote(rules, identity));
        Opens {
            surely: self.sets.union(surely, more.surely),
            perhaps: self.sets.union(perhaps, more.perhaps),
        }
    }

    /// What an isolated class is allowed with any pod, whatever address of a family it has,
    /// because blocks have all of them.
    pub(crate) fn anywhere(
        &mut self,
        subject: ClassId,
        direction: Direction,
        family: Family,
    ) -> PortSet {
        let Some(rules) = self.isolation(subject, direction) else { return PortSet::Everything };
        let (whereabouts, sets) = (Whereabouts::Pods, &mut self.sets);
        let opens = unaddressed(self.program, rules, whereabouts, family, sets);
        self.set(opens.surely).clone()
    }

    fn number_class(&mut self, class: Class) -> ClassId {
        ClassId(self.classes.insert_full(class).0 as u32)
    }
}

/// What a class is allowed: by rule set of the destination, and by identity of it.
struct Row {
    ingress: Vec<SetId>,
    egress: Vec<SetId>,
}

impl Row {
    /// What both ends allow, and by blocks besides: the source to the destination, and the other
    /// way round.
    fn both(&self, to: &Class, [given, taken]: [SetId; 2], sets: &mut Sets) -> SetId {
        let given = sets.union(self.egress[to.identity.0 as usize], given);
        let taken = to
            .ingress
            .map_or(SetId::EVERYTHING, |rules| sets.union(self.ingress[rules as usize], taken));
        sets.intersection(given, taken)
    }
}

impl View {
    /// With what is doubtful, or without it.
    fn of(program: &Program, doubtful: bool, sets: &mut Sets) -> View {
        let mut members: Vec<Vec<IdentityId>> = vec![Vec::new(); program.peer_count()];
        for (i, (peers, doubt)) in program.identities.iter().zip(&program.doubts).enumerate() {
            let id = IdentityId(i as u32);
            let certain = peers.iter().filter(|peer| doubt.peers.binary_search(peer).is_err());
            certain.for_each(|peer| members[peer.index()].push(id));
            if doubtful {
                doubt.peers.iter().for_each(|peer| members[peer.index()].push(id));
            }
        }
        let mut scratch = vec![SetId::NOTHING; program.identity_count()];
        let mut view = View {
            everybody: Vec::new(),
            egress: Vec::new(),
            ingress: vec![Vec::new(); program.identity_count()],
        };
        for (number, rules) in (0..).zip(program.rule_sets()) {
            let more: &[Entry] = if doubtful { &rules.doubtful } else { &[] };
            let effect = Effect::of(&rules.entries, more, &members, sets, &mut scratch);
            view.everybody.push(effect.everybody);
            // A rule set is for one direction; without an entry it allows nobody anything.
            let first = rules.entries.first().or(rules.doubtful.first());
            if first.is_some_and(|entry| entry.origin.direction == Direction::Egress) {
                view.egress.push(effect.more);
                continue;
            }
            view.egress.push(Vec::new());
            for (id, set) in effect.more {
                view.ingress[id.0 as usize].push((number, set));
            }
        }
        view.ingress.iter_mut().for_each(Vec::shrink_to_fit);
        view
    }

    fn row(&self, source: &Class) -> Row {
        let mut ingress = self.everybody.clone();
        for (rules, set) in &self.ingress[source.identity.0 as usize] {
            ingress[*rules as usize] = *set;
        }
        let mut egress = vec![SetId::EVERYTHING; self.ingress.len()];
        if let Some(rules) = source.egress {
            egress.fill(self.everybody[rules as usize]);
            let more = self.egress[rules as usize].iter();
            more.for_each(|(id, set)| egress[id.0 as usize] = *set);
        }
        Row { ingress, egress }
    }

    fn of_remote(&self, rules: u32, remote: IdentityId) -> SetId {
        let egress = self.egress[rules as usize].iter();
        let ingress = self.ingress[remote.0 as usize].iter();
        let known = egress.filter(|(id, _)| *id == remote).map(|(_, set)| *set);
        let known = known.chain(ingress.filter(|(by, _)| *by == rules).map(|(_, set)| *set)).next();
        known.unwrap_or(self.everybody[rules as usize])
    }
}

impl Effect {
    /// `scratch` is nothing for each identity, and is left so.
    fn of(
        entries: &[Entry],
        doubtful: &[Entry],
        members: &[Vec<IdentityId>],
        sets: &mut Sets,
        scratch: &mut [SetId],
    ) -> Effect {
        let of_any = |entries: &[Entry]| {
            let any = entries.iter().filter(|entry| entry.peer == PeerId::ANY);
            PortSet::of(any.map(|entry| entry.ports))
        };
        let everybody = sets.number(of_any(entries).union(&of_any(doubtful)));
        let mut touched = Vec::new();
        let by_peer = [entries, doubtful].map(|e| e.chunk_by(|a, b| a.peer == b.peer));
        for entries in by_peer.into_iter().flatten() {
            if entries[0].peer == PeerId::ANY || everybody == SetId::EVERYTHING {
                continue;
            }
            let alone = sets.number(PortSet::of(entries.iter().map(|e| e.ports)));
            let set = sets.union(alone, everybody);
            if set == everybody {
                continue;
            }
            for id in &members[entries[0].peer.index()] {
                let so_far = &mut scratch[id.0 as usize];
                if *so_far == SetId::NOTHING {
                    touched.push(*id);
                }
                *so_far = sets.union(*so_far, set);
            }
        }
        let mut take = |id: IdentityId| (id, std::mem::take(&mut scratch[id.0 as usize]));
        Effect { everybody, more: touched.into_iter().map(&mut take).collect() }
    }
}

/// What blocks allow an identity, if its address is not known.
fn of_blocks_for(
    program: &Program,
    of_blocks: &[[Opens; 2]; 2],
    remote: IdentityId,
    family: Family,
) -> Opens {
    match program.doubts[remote.0 as usize].address {
        Whereabouts::Known => Opens::default(),
        Whereabouts::Pods => of_blocks[0][family as usize],
        Whereabouts::Anywhere => of_blocks[1][family as usize],
    }
}

/// What rules allow an address of a family that is not known: by some block, and by blocks that
/// together have every address that it can be.
fn unaddressed(
    program: &Program,
    rules: &RuleSet,
    whereabouts: Whereabouts,
    family: Family,
    sets: &mut Sets,
) -> Opens {
    let possible = program.whereabouts(whereabouts, Some(family));
    let meets = |a: &IpRange| possible.iter().any(|b| a.first <= b.last && b.first <= a.last);
    let blocks = |entries: &'_ [Entry]| {
        let block = |entry: &Entry| {
            let ranges = program.peer_block(entry.peer)?;
            ranges.iter().any(meets).then_some((entry.ports, ranges))
        };
        entries.iter().filter_map(block).collect::<Vec<_>>()
    };
    let (known, doubtful) = (blocks(&rules.entries), blocks(&rules.doubtful));
    let all = known.iter().chain(&doubtful).map(|(ports, _)| *ports);
    let perhaps = sets.number(PortSet::of(all));
    let covers = |on: &dyn Fn(Option<Ports>) -> bool| {
        let those = known.iter().filter(|(ports, _)| on(*ports));
        let ranges: Vec<&[IpRange]> = those.map(|(_, ranges)| *ranges).collect();
        !possible.is_empty() && space::cover(&ranges, &possible)
    };
    // A port that is not known stands for all of them, which is more than it is.
    if !rules.doubtful.is_empty() || !covers(&|_| true) {
        return Opens { surely: SetId::NOTHING, perhaps };
    }
    if covers(&|ports| ports.is_none()) {
        return Opens { surely: SetId::EVERYTHING, perhaps };
    }
    let mut surely = Vec::new();
    for protocol in Protocol::ALL {
        let cuts = known.iter().filter_map(|(ports, _)| *ports).filter(|p| p.protocol == protocol);
        let cuts: BTreeSet<u32> =
            cuts.flat_map(|p| [u32::from(p.first), u32::from(p.last) + 1]).collect();
        for (first, next) in cuts.iter().zip(cuts.iter().skip(1)) {
            let (first, last) = (*first as u16, (*next - 1) as u16);
            let within = |p: Ports| p.protocol == protocol && p.first <= first && last <= p.last;
            if covers(&|ports| ports.is_none_or(within)) {
                surely.push(Some(Ports { protocol, first, last }));
            }
        }
    }
    Opens { surely: sets.number(PortSet::of(surely)), perhaps }
}

/// All the sets there are, and how they combine.
#[derive(Debug)]
struct Sets {
    values: IndexSet<PortSet, FxBuildHasher>,
    unions: FxHashMap<(SetId, SetId), SetId>,
    intersections: FxHashMap<(SetId, SetId), SetId>,
}

impl Sets {
    fn new() -> Sets {
        let values = IndexSet::from_iter([PortSet::NOTHING, PortSet::Everything]);
        Sets { values, unions: FxHashMap::default(), intersections: FxHashMap::default() }
    }

    fn number(&mut self, set: PortSet) -> SetId {
        SetId(self.values.insert_full(set).0 as u32)
    }

    fn union(&mut self, a: SetId, b: SetId) -> SetId {
        if a == b || b == SetId::NOTHING {
            return a;
        } else if a == SetId::NOTHING {
            return b;
        }
        let key = (a.min(b), a.max(b));
        if let Some(known) = self.unions.get(&key) {
            return *known;
        }
        let set = self.values[a.0 as usize].union(&self.values[b.0 as usize]);
        let id = self.number(set);
        self.unions.insert(key, id);
        id
    }

    fn intersection(&mut self, a: SetId, b: SetId) -> SetId {
        if a == b || b == SetId::EVERYTHING {
            return a;
        } else if a == SetId::EVERYTHING {
            return b;
        } else if a == SetId::NOTHING || b == SetId::NOTHING {
            return SetId::NOTHING;
        }
        let key = (a.min(b), a.max(b));
        if let Some(known) = self.intersections.get(&key) {
            return *known;
        }
        let set = self.values[a.0 as usize].intersection(&self.values[b.0 as usize]);
        let id = self.number(set);
        self.intersections.insert(key, id);
        id
    }
}
