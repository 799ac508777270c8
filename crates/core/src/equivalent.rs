//! Whether two states mean the same for any pods that could exist, and a pair of ends that shows it
//! where they do not.
//!
//! A connection that one state allows and the other refuses is allowed at each end by nothing or by
//! some entry of the one, and refused at an end by all entries of the other. So for each choice of
//! those there is a conjunction of terms that must hold and of terms that must not hold together,
//! over regions of labels, addresses and traffic: it has a solution or it has none.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::diff::Side;
use crate::labels::{Labels, Selector};
use crate::model::{
    Cluster, ContainerPort, Direction, NAMESPACE_NAME_LABEL, Peer, Pod, Policy, PortRule,
};
use crate::net::{Family, IpNet, IpRange, Traffic, next_address, previous_address};
use crate::possible::{LabelRegion, TrafficRegion};
use crate::space;

/// What is known of two states.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Equivalence {
    /// No two ends that could exist can tell them apart.
    Equal,
    /// These two can.
    Differs(Box<Witness>),
    /// The search was given up after the number of steps that it was allowed.
    NotDecided,
}

/// A connection that is allowed in one state and refused in the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Witness {
    /// The end that opens it.
    pub source: Someone,
    /// The end that accepts it.
    pub destination: Someone,
    /// What it is opened on.
    pub traffic: Traffic,
    /// The state that allows it.
    pub allowed: Side,
}

/// An end that could exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Someone {
    /// A pod, and the labels of its namespace if neither state has that namespace.
    Pod(Box<Pod>, Option<Labels>),
    /// An address that is no pod's.
    Outside(IpAddr),
}

/// Decides whether two states allow the same connections between any pods, in any namespaces, with
/// any labels, addresses and port names, and between them and any address outside.
///
/// Namespaces that a state has an object of keep their labels; a namespace without one, and a
/// namespace that does not exist yet, may have any. Pods and nodes of the states are not looked at.
pub fn equivalent(clusters: [&Cluster; 2], steps: u64) -> Equivalence {
    let places = places(clusters);
    let relabelled = places.iter().any(|p| p.labels.as_ref().is_some_and(|[old, new]| old != new));
    let numbers: BTreeMap<&str, usize> =
        places.iter().enumerate().map(|(i, place)| (place.name, i)).collect();
    let mut by_namespace: [BTreeMap<&str, Vec<&Policy>>; 2] = Default::default();
    for (policies, cluster) in by_namespace.iter_mut().zip(clusters) {
        for policy in &cluster.policies {
            policies.entry(policy.namespace.as_str()).or_default().push(policy);
        }
    }
    let mut search = Search { places, ends: BTreeMap::new(), steps, found: None };
    for side in Side::ALL {
        for policy in by_namespace[side as usize].values().flatten() {
            let namespace = policy.namespace.as_str();
            let others = by_namespace[1 - side as usize].get(namespace);
            for direction in Direction::ALL {
                let Some(rules) = policy.rules(direction) else { continue };
                let same = |other: &&Policy| {
                    other.subject == policy.subject && other.rules(direction) == Some(rules)
                };
                let of_labels =
                    |peer: &Peer| matches!(peer, Peer::Pods { namespaces: Some(_), .. });
                let changed = !others.into_iter().flatten().any(same)
                    || relabelled && rules.iter().any(|rule| rule.peers.iter().any(of_labels));
                let end = search.ends.entry((numbers[namespace], direction, side)).or_default();
                end.policies.push(Isolating { subject: &policy.subject, changed });
                for rule in rules {
                    let peers = rule.peers.iter().map(Some);
                    for peer in peers.chain(rule.peers.is_empty().then_some(None)) {
                        let ports = rule.ports.iter().map(Some);
                        for port in ports.chain(rule.ports.is_empty().then_some(None)) {
                            let subject = &policy.subject;
                            end.entries.push(Allowance { subject, peer, port, changed });
                        }
                    }
                }
            }
        }
    }
    search.run();
    match search.found {
        Some(witness) => Equivalence::Differs(Box::new(witness)),
        None if search.steps == 0 => Equivalence::NotDecided,
        None => Equivalence::Equal,
    }
}

/// A namespace, or the last of them: any that does not exist yet.
struct Place<'a> {
    /// Empty for that one.
    name: &'a str,
    /// Its labels in each state; `None` where they may be any.
    labels: Option<[Labels; 2]>,
    /// What it may be labelled, where that is not known.
    region: LabelRegion<'a>,
}

fn places<'a>(clusters: [&'a Cluster; 2]) -> Vec<Place<'a>> {
    let mut names: BTreeSet<&str> = BTreeSet::new();
    for cluster in clusters {
        names.extend(cluster.namespaces.keys().map(String::as_str));
        names.extend(cluster.policies.iter().map(|p| p.namespace.as_str()));
    }
    let place = |name: &&'a str| {
        let known = clusters.map(|c| c.namespaces.contains_key(*name).then_some(c));
        let labels =
            |side: usize| known[side].or(known[1 - side]).map(|c| c.namespace_labels(name));
        let labels = labels(0).zip(labels(1)).map(|(old, new)| [old, new]);
        Place { name, labels, region: LabelRegion::fixed(NAMESPACE_NAME_LABEL, name) }
    };
    let mut places: Vec<Place<'_>> = names.iter().map(place).collect();
    let region = LabelRegion::having(NAMESPACE_NAME_LABEL, names);
    places.push(Place { name: "", labels: None, region });
    places
}

/// What the policies of a namespace say for a direction in a state.
#[derive(Default)]
struct PlaceRules<'a> {
    policies: Vec<Isolating<'a>>,
    entries: Vec<Allowance<'a>>,
}

#[derive(Clone, Copy)]
struct Isolating<'a> {
    subject: &'a Selector,
    /// Whether the other state does not have it.
    changed: bool,
}

#[derive(Clone, Copy)]
struct Allowance<'a> {
    subject: &'a Selector,
    peer: Option<&'a Peer>,
    port: Option<&'a PortRule>,
    changed: bool,
}

/// Ends and traffic that could be.
#[derive(Clone)]
struct Case<'a> {
    /// The end that refuses in one state, and the other end.
    ends: [Party<'a>; 2],
    traffic: TrafficRegion<'a>,
}

#[derive(Clone)]
struct Party<'a> {
    /// `None` for what is no pod.
    pod: Option<PodRegion<'a>>,
    /// Of one family, ascending.
    addresses: Vec<IpRange>,
}

#[derive(Clone)]
struct PodRegion<'a> {
    place: usize,
    namespace: LabelRegion<'a>,
    labels: LabelRegion<'a>,
}

/// Which of the ends of a [`Case`].
#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    Subject = 0,
    Remote = 1,
}

/// Something that holds for a part of a case.
#[derive(Clone, Copy)]
enum Term<'a> {
    /// The selector of a policy of its namespace selects an end.
    Selected(Which, &'a Selector),
    /// An end is a peer that a policy of this place names, in a state.
    Peer(Which, &'a Peer, usize, Side),
    /// An item of `ports` covers the traffic.
    Port(&'a PortRule),
}

/// Terms that must not all hold.
type Clause<'a> = Vec<Term<'a>>;

struct Search<'a> {
    places: Vec<Place<'a>>,
    ends: BTreeMap<(usize, Direction, Side), PlaceRules<'a>>,
    steps: u64,
    found: Option<Witness>,
}

/// What a search is about: what one state allows and another refuses, at one end.
#[derive(Clone, Copy)]
struct Question {
    place: usize,
    direction: Direction,
    has: Side,
    lacks: Side,
    family: Family,
}

impl<'a> Search<'a> {
    fn run(&mut self) {
        for family in Family::ALL {
            for direction in Direction::ALL {
                for (has, lacks) in [(Side::Old, Side::New), (Side::New, Side::Old)] {
                    for place in 0..self.places.len() {
                        self.end(Question { place, direction, has, lacks, family });
                        if self.found.is_some() || self.steps == 0 {
                            return;
                        }
                    }
                }
            }
        }
    }

    fn rules(&self, place: usize, direction: Direction, side: Side) -> PlaceRules<'a> {
        let rules = self.ends.get(&(place, direction, side));
        rules.map_or_else(PlaceRules::default, |rules| PlaceRules {
            policies: rules.policies.clone(),
            entries: rules.entries.clone(),
        })
    }

    /// Looks for what one end allows in one state and refuses in the other.
    fn end(&mut self, question: Question) {
        let Question { place, direction, has, lacks, .. } = question;
        let here = self.rules(place, direction, has);
        let there = self.rules(place, direction, lacks);
        let changed = here.entries.iter().any(|e| e.changed);
        if !changed && !there.policies.iter().any(|p| p.changed) {
            return;
        }
        let refusals: Vec<Clause<'a>> =
            there.entries.iter().map(|e| e.terms(Which::Subject, place, lacks)).collect();
        let open: Vec<Clause<'a>> =
            here.policies.iter().map(|p| vec![Term::Selected(Which::Subject, p.subject)]).collect();
        for isolating in &there.policies {
            let isolated = Term::Selected(Which::Subject, isolating.subject);
            // What both states allow in one way is no difference.
            if isolating.changed {
                let clauses = [open.as_slice(), &refusals].concat();
                self.with_remotes(question, &[isolated], &clauses);
            }
            for entry in here.entries.iter().filter(|entry| entry.changed) {
                let mut terms = entry.terms(Which::Subject, place, has);
                terms.push(isolated);
                self.with_remotes(question, &terms, &refusals);
            }
            if self.found.is_some() || self.steps == 0 {
                return;
            }
        }
    }

    /// Tries whoever may be at the other end: what nothing isolates first.
    fn with_remotes(&mut self, question: Question, terms: &[Term<'a>], refusals: &[Clause<'a>]) {
        let whole = vec![IpRange::from(match question.family {
            Family::V4 => IpNet::V4(Default::default()),
            Family::V6 => IpNet::V6(Default::default()),
        })];
        let pod = |place: usize| PodRegion {
            place,
            namespace: self.places[place].region.clone(),
            labels: LabelRegion::default(),
        };
        let subject = Party { pod: Some(pod(question.place)), addresses: whole.clone() };
        let remotes = std::iter::once(None).chain((0..self.places.len()).rev().map(Some));
        let remotes: Vec<_> = remotes.map(|place| place.map(pod)).collect();
        for remote in remotes {
            let place = remote.as_ref().map(|pod| pod.place);
            let remote = Party { pod: remote, addresses: whole.clone() };
            let case =
                Case { ends: [subject.clone(), remote], traffic: TrafficRegion::everything() };
            let Some(case) = self.all(case, terms, question.direction) else { continue };
            self.other_end(question, case, place, refusals);
            if self.found.is_some() || self.steps == 0 {
                return;
            }
        }
    }

    /// Tries every way in which the other end allows it too.
    fn other_end(
        &mut self,
        question: Question,
        case: Case<'a>,
        place: Option<usize>,
        refusals: &[Clause<'a>],
    ) {
        let other = match question.direction {
            Direction::Ingress => Direction::Egress,
            Direction::Egress => Direction::Ingress,
        };
        let rules = place.map(|place| self.rules(place, other, question.has)).unwrap_or_default();
        let open =
            rules.policies.iter().map(|p| vec![Term::Selected(Which::Remote, p.subject)]).collect();
        let clauses = [refusals.to_vec(), open].concat();
        if self.solve(question, case.clone(), &clauses) {
            return;
        }
        for entry in &rules.entries {
            let terms = entry.terms(Which::Remote, place.unwrap_or_default(), question.has);
            if let Some(case) = self.all(case.clone(), &terms, question.direction)
                && self.solve(question, case, refusals)
            {
                return;
            }
        }
    }

    /// Whether there is a part of the case where no clause holds; it is then the witness. Also
    /// where the steps are used up, so that whoever asked stops.
    fn solve(&mut self, question: Question, case: Case<'a>, clauses: &[Clause<'a>]) -> bool {
        if self.steps == 0 {
            return true;
        }
        self.steps -= 1;
        let direction = question.direction;
        let Some((clause, rest)) = clauses.split_first() else {
            self.found = self.witness(question, &case);
            return self.found.is_some();
        };
        // A clause that cannot hold costs nothing.
        if self.all(case.clone(), clause, direction).is_none() {
            return self.solve(question, case, rest);
        }
        let mut so_far = Some(case);
        for term in clause {
            let Some(case) = so_far else { break };
            for part in self.without(&case, *term, direction) {
                if self.solve(question, part, rest) {
                    return true;
                }
            }
            so_far = self.with(case, *term, direction);
        }
        false
    }

    fn all(&self, case: Case<'a>, terms: &[Term<'a>], direction: Direction) -> Option<Case<'a>> {
        terms.iter().try_fold(case, |case, term| self.with(case, *term, direction))
    }

    /// The part of a case where a term holds.
    fn with(&self, mut case: Case<'a>, term: Term<'a>, direction: Direction) -> Option<Case<'a>> {
        match term {
            Term::Selected(which, selector) => {
                let pod = case.ends[which as usize].pod.as_mut()?;
                pod.labels = pod.labels.matching(selector)?;
            }
            Term::Peer(which, Peer::Block(block), ..) => {
                let end = &mut case.ends[which as usize];
                end.addresses = intersection(&end.addresses, &space::ranges(block));
                if end.addresses.is_empty() {
                    return None;
                }
            }
            Term::Peer(which, Peer::Pods { pods, namespaces }, place, side) => {
                let pod = case.ends[which as usize].pod.as_mut()?;
                match (namespaces, &self.places[pod.place].labels) {
                    (None, _) if pod.place != place => return None,
                    (None, _) => {}
                    (Some(selector), Some(labels)) => {
                        if !selector.matches(&labels[side as usize]) {
                            return None;
                        }
                    }
                    (Some(selector), None) => {
                        let namespace = pod.namespace.matching(selector)?;
                        case.label_namespace(which, &namespace);
                    }
                }
                if let Some(selector) = pods {
                    let pod = case.ends[which as usize].pod.as_mut()?;
                    pod.labels = pod.labels.matching(selector)?;
                }
            }
            Term::Port(port) => {
                case.traffic = case.traffic.covered(port, case.has_names(direction))?;
            }
        }
        Some(case)
    }

    /// The parts of a case where a term does not hold.
    fn without(&self, case: &Case<'a>, term: Term<'a>, direction: Direction) -> Vec<Case<'a>> {
        let mut parts = Vec::new();
        let mut add = |change: &dyn Fn(&mut Case<'a>)| {
            let mut part = case.clone();
            change(&mut part);
            parts.push(part);
        };
        let pod = |which: Which| case.ends[which as usize].pod.as_ref();
        match term {
            Term::Selected(which, selector) => match pod(which) {
                Some(pod) => {
                    for labels in pod.labels.not_matching(selector) {
                        add(&|part| part.label_pod(which, &labels));
                    }
                }
                None => add(&|_| ()),
            },
            Term::Peer(which, Peer::Block(block), ..) => {
                let end = &case.ends[which as usize];
                let left = difference(&end.addresses, &space::ranges(block));
                if !left.is_empty() {
                    add(&|part| part.ends[which as usize].addresses.clone_from(&left));
                }
            }
            Term::Peer(which, Peer::Pods { pods, namespaces }, place, side) => {
                let Some(pod) = pod(which) else {
                    add(&|_| ());
                    return parts;
                };
                let there = match (namespaces, &self.places[pod.place].labels) {
                    (None, _) => pod.place == place,
                    (Some(selector), Some(labels)) => selector.matches(&labels[side as usize]),
                    (Some(selector), None) => {
                        for labels in pod.namespace.not_matching(selector) {
                            add(&|part| part.label_namespace(which, &labels));
                        }
                        true
                    }
                };
                match pods {
                    _ if !there => add(&|_| ()),
                    Some(selector) => {
                        for labels in pod.labels.not_matching(selector) {
                            add(&|part| part.label_pod(which, &labels));
                        }
                    }
                    None => {}
                }
            }
            Term::Port(port) => {
                if let Some(left) = case.traffic.not_covered(port, case.has_names(direction)) {
                    add(&|part| part.traffic = left.clone());
                }
            }
        }
        parts
    }

    /// Ends and traffic of a case; `None` where the two ends can only be one address, or where a
    /// namespace can have no name.
    fn witness(&self, question: Question, case: &Case<'a>) -> Option<Witness> {
        let [subject, remote] = &case.ends;
        let (ours, theirs) = (candidates(subject), candidates(remote));
        let mut pairs = ours.iter().flat_map(|a| theirs.iter().map(move |b| (*a, *b)));
        // What has the same address is the same.
        let (own, other) = pairs.find(|(a, b)| a != b)?;
        let (traffic, names) = case.traffic.example();
        let someone = |party: &Party<'_>, address: IpAddr, is_destination: bool| {
            let Some(pod) = &party.pod else { return Some(Someone::Outside(address)) };
            let place = &self.places[pod.place];
            let namespace = pod.namespace.value(NAMESPACE_NAME_LABEL, is_name)?;
            let mut labels = pod.namespace.example();
            labels.insert(NAMESPACE_NAME_LABEL.to_owned(), namespace.clone());
            let mut ports = Vec::new();
            if let (true, Traffic::Port(_, number)) = (is_destination, traffic) {
                let named = |(name, protocol): &(&str, _)| ContainerPort {
                    name: Some((*name).to_owned()),
                    port: number,
                    protocol: *protocol,
                };
                ports.extend(names.iter().map(named));
            }
            let pod = Pod {
                name: if is_destination { "destination" } else { "source" }.to_owned(),
                namespace,
                labels: pod.labels.example(),
                addresses: vec![address],
                ports,
                ..Pod::default()
            };
            Some(Someone::Pod(Box::new(pod), place.labels.is_none().then_some(labels)))
        };
        let incoming = question.direction == Direction::Ingress;
        let subject = someone(subject, own, incoming)?;
        let remote = someone(remote, other, !incoming)?;
        let (source, destination) = if incoming { (remote, subject) } else { (subject, remote) };
        Some(Witness { source, destination, traffic, allowed: question.has })
    }
}

impl<'a> Case<'a> {
    fn label_pod(&mut self, which: Which, labels: &LabelRegion<'a>) {
        if let Some(pod) = &mut self.ends[which as usize].pod {
            pod.labels = labels.clone();
        }
    }

    /// Two pods of one namespace have one namespace.
    fn label_namespace(&mut self, which: Which, labels: &LabelRegion<'a>) {
        let place = self.ends[which as usize].pod.as_ref().map(|pod| pod.place);
        for pod in self.ends.iter_mut().filter_map(|end| end.pod.as_mut()) {
            if Some(pod.place) == place {
                pod.namespace = labels.clone();
            }
        }
    }

    /// Whether the destination is a pod, and so has port names.
    fn has_names(&self, direction: Direction) -> bool {
        let destination = match direction {
            Direction::Ingress => Which::Subject,
            Direction::Egress => Which::Remote,
        };
        self.ends[destination as usize].pod.is_some()
    }
}

impl<'a> Allowance<'a> {
    /// What must hold for it to allow, with its subject at this end, in a place and a state.
    fn terms(&self, at: Which, place: usize, side: Side) -> Clause<'a> {
        let far = match at {
            Which::Subject => Which::Remote,
            Which::Remote => Which::Subject,
        };
        let selected = std::iter::once(Term::Selected(at, self.subject));
        let peer = self.peer.map(|peer| Term::Peer(far, peer, place, side));
        selected.chain(peer).chain(self.port.map(Term::Port)).collect()
    }
}

/// Addresses that an end may have, those that are good to read first. If two ends can have
/// different addresses at all, some of these differ.
fn candidates(party: &Party<'_>) -> Vec<IpAddr> {
    let good = |n: u8| match party.pod {
        Some(_) => [[10, 0, 0, n].into(), [0xfd00, 0, 0, 0, 0, 0, 0, u16::from(n)].into()],
        None => [[203, 0, 113, n].into(), [0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(n)].into()],
    };
    let good = [good(1), good(2)].concat().into_iter();
    let mut found: Vec<IpAddr> = good
        .filter(|good: &IpAddr| party.addresses.iter().any(|range| range.contains(*good)))
        .collect();
    for range in &party.addresses {
        let second = next_address(range.first).filter(|second| *second <= range.last);
        found.extend(second);
        found.extend([range.first, range.last]);
    }
    found
}

/// Whether a namespace can have this name (RFC 1123 label).
fn is_name(text: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let inside = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    text.len() <= 63
        && edge(text.chars().next())
        && edge(text.chars().last())
        && text.chars().all(inside)
}

/// What two lists of ranges have in common; each is ascending and disjoint.
fn intersection(a: &[IpRange], b: &[IpRange]) -> Vec<IpRange> {
    let mut both = Vec::new();
    for a in a {
        for b in b.iter().filter(|b| Family::of(b.first) == Family::of(a.first)) {
            let (first, last) = (a.first.max(b.first), a.last.min(b.last));
            both.extend((first <= last).then_some(IpRange { first, last }));
        }
    }
    both
}

/// What is left of ranges without others.
fn difference(a: &[IpRange], b: &[IpRange]) -> Vec<IpRange> {
    let mut left = a.to_vec();
    for hole in b {
        left = left
            .into_iter()
            .flat_map(|range| {
                if hole.last < range.first || range.last < hole.first {
                    return vec![range];
                }
                let before = previous_address(hole.first)
                    .filter(|last| *last >= range.first)
                    .map(|last| IpRange { last, ..range });
                let after = next_address(hole.last)
                    .filter(|first| *first <= range.last)
                    .map(|first| IpRange { first, ..range });
                before.into_iter().chain(after).collect()
            })
            .collect();
    }
    left
}
