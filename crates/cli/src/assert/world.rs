//! What the ends of a test stand for in a cluster, as sets of pods and addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use portcullis_core::Program;
use portcullis_core::labels::Labels;
use portcullis_core::model::{Cluster, Pod};
use portcullis_core::net::{Family, IpNet, IpRange, Traffic, next_address};
use portcullis_core::program::{End, Exemption, Fact, Path};
use portcullis_core::reach::{Allowed, ClassId, Opens, Reach, Unit};
use portcullis_kube::{Diagnostic, Input, Place, Reason, closest};

use super::file::{EndItem, Ends, Selection, What};
use super::ports::{Claim, Ports};
use crate::ends::{Names, Target, shown_pod};
use crate::groups::{By, Groups, complement};
use crate::reach::groups;

/// A cluster that tests are held against.
pub(super) struct World<'a> {
    pub(super) input: &'a Input,
    /// That of the input, or what the lab made of it.
    pub(super) cluster: &'a Cluster,
    pub(super) program: &'a Program,
    pub(super) names: Names<'a>,
    /// The namespace of names that give none.
    pub(super) namespace: &'a str,
    pub(super) reach: Reach<'a>,
    pub(super) groups: Groups,
    /// All units: pods, and addresses of the families that pods have.
    pub(super) units: Vec<Unit>,
    /// Addresses of pods that are not finished.
    owned: BTreeSet<IpAddr>,
    nodes: BTreeSet<IpAddr>,
}

/// What may be opened between two units, and what depends on facts that are missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Open {
    pub(super) family: Option<Family>,
    pub(super) open: Claim,
    pub(super) unknown: Claim,
}

/// Pods, each with the families that are meant, and addresses that no pod has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Set {
    pub(super) pods: BTreeMap<usize, [bool; 2]>,
    /// Disjoint and ascending.
    pub(super) ranges: Vec<IpRange>,
    /// Whether nobody in it is named: all that there are, all but some, blocks. What holds whatever
    /// policies say, between a pod and its own node, is then not meant.
    pub(super) rest: bool,
}

/// Which pods without an address are counted among those of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Counts {
    /// Those that will get one of its addresses, whichever it will be.
    Surely,
    /// Those that may get one.
    Perhaps,
}

/// One item of a side of a test.
pub(super) struct Side {
    pub(super) place: Option<Place>,
    pub(super) set: Set,
    /// What is asked about connections to it.
    pub(super) claim: Claim,
}

impl<'a> World<'a> {
    pub(super) fn of(input: &'a Input, cluster: &'a Cluster, program: &'a Program) -> World<'a> {
        let mut reach = Reach::of(program);
        let units = reach.units(cluster);
        let pods = cluster.pods.iter().filter(|pod| !pod.finished && !pod.host_network);
        World {
            input,
            cluster,
            program,
            names: Names::of(cluster),
            namespace: &input.namespace,
            groups: groups(cluster, &units, By::Workload),
            units,
            reach,
            owned: pods.flat_map(|pod| &pod.addresses).copied().collect(),
            nodes: cluster.nodes.iter().flat_map(|node| &node.addresses).copied().collect(),
        }
    }

    /// The families that there are addresses outside of.
    fn families(&self) -> Vec<Family> {
        let outside = |family: &Family| {
            let here = |range: &IpRange| Family::of(range.first) == *family;
            self.units.iter().any(|unit| unit.addresses.iter().any(here))
        };
        Family::ALL.into_iter().filter(outside).collect()
    }

    /// Everything that is in no other set.
    pub(super) fn others<'s>(&self, sets: impl IntoIterator<Item = &'s Set>) -> Set {
        let mut union = Set::default();
        for set in sets {
            union.add(set);
        }
        let mut others = Set { rest: true, ..Set::default() };
        for (i, _) in self.cluster.pods.iter().enumerate().filter(|(_, pod)| !pod.finished) {
            let not = union.pods.get(&i).map_or([true; 2], |families| families.map(|f| !f));
            if not != [false; 2] {
                others.pods.insert(i, not);
            }
        }
        for family in self.families() {
            let here: Vec<IpRange> = union.ranges_of(family);
            others.ranges.extend(complement(&here, everywhere(family)));
        }
        others
    }

    /// The items of one side, each as the set that it stands for.
    pub(super) fn sides(
        &self,
        ends: &Ends,
        place: &Place,
        counts: Counts,
    ) -> Result<Vec<Side>, Diagnostic> {
        let side =
            |place: &Place, set| Side { place: Some(place.clone()), set, claim: Claim::all() };
        let each = |items: &[EndItem]| {
            let sets = items.iter().map(|item| Ok(side(&item.at, self.set(item, counts)?)));
            sets.collect::<Result<Vec<_>, _>>()
        };
        match ends {
            Ends::All => Ok(vec![side(place, self.others([]))]),
            Ends::AllBut(items) => {
                let but = each(items)?;
                let set = self.others(but.iter().map(|side| &side.set));
                match set.is_empty() {
                    true => {
                        Err(place
                            .error(Reason::Test, "allBut leaves nothing: there is nobody else"))
                    }
                    false => Ok(vec![side(place, set)]),
                }
            }
            Ends::These(items) => each(items),
        }
    }

    /// The same for a side that accepts connections, on the ports that are asked about.
    pub(super) fn targets(
        &self,
        ends: &Ends,
        ports: &Ports,
        place: &Place,
        counts: Counts,
    ) -> Result<Vec<Side>, Diagnostic> {
        let mut targets = Vec::new();
        if let Ends::These(items) = ends {
            for item in items {
                match self.service(item) {
                    Some(service) => targets.extend(self.endpoints(item, service, ports)?),
                    None => {
                        let at = &item.at;
                        let set = self.set(item, counts)?;
                        targets.extend(self.on_ports(set, ports, at, Some(at))?);
                    }
                }
            }
        } else {
            for side in self.sides(ends, place, counts)? {
                targets.extend(self.on_ports(side.set, ports, place, side.place.as_ref())?);
            }
        }
        Ok(targets)
    }

    /// A set, in parts where the names of ports stand for different numbers.
    fn on_ports(
        &self,
        set: Set,
        ports: &Ports,
        at: &Place,
        place: Option<&Place>,
    ) -> Result<Vec<Side>, Diagnostic> {
        let mut parts: BTreeMap<Claim, Set> = BTreeMap::new();
        let claim = |pod| ports.claim(pod).map_err(|why| at.error(Reason::Test, &why.to_string()));
        if !set.ranges.is_empty() {
            let part = parts.entry(claim(None)?).or_default();
            part.ranges = set.ranges;
        }
        for (pod, families) in set.pods {
            let part = parts.entry(claim(Some(&self.cluster.pods[pod]))?).or_default();
            part.pods.insert(pod, families);
        }
        if parts.is_empty() {
            parts.insert(claim(None).unwrap_or_else(|_| Claim::all()), Set::default());
        }
        let side = |(claim, part)| Side {
            place: place.cloned(),
            set: Set { rest: set.rest, ..part },
            claim,
        };
        Ok(parts.into_iter().map(side).collect())
    }

    fn service(&self, item: &EndItem) -> Option<usize> {
        let What::Name(name) = &item.what else { return None };
        match self.names.find(name, self.namespace) {
            Ok(Target::Service(service)) => Some(service),
            _ => None,
        }
    }

    /// The endpoints of a Service at its target port (SEMANTICS 19).
    fn endpoints(
        &self,
        item: &EndItem,
        service: usize,
        ports: &Ports,
    ) -> Result<Vec<Side>, Diagnostic> {
        let Some(names) = ports.names() else {
            let why = "a Service has single ports: write one of them, by number or name";
            return Err(item.at.error(Reason::Test, why));
        };
        let mut sides: BTreeMap<Claim, Set> = BTreeMap::new();
        for port in names {
            let found = self.names.destinations(&Target::Service(service), port);
            for (end, traffic) in
                found.map_err(|why| item.at.error(Reason::Test, &why.to_string()))?
            {
                if let End::Pod(pod) = end {
                    sides.entry(Claim::one(traffic)).or_default().pods.insert(pod, [true; 2]);
                }
            }
        }
        let side = |(claim, set)| Side { place: Some(item.at.clone()), set, claim };
        Ok(sides.into_iter().map(side).collect())
    }

    fn set(&self, item: &EndItem, counts: Counts) -> Result<Set, Diagnostic> {
        let wrong = |message: &str| item.at.error(Reason::Test, message);
        match &item.what {
            What::Outside { blocks, except } => {
                let all = || self.families().into_iter().map(everywhere).collect();
                let inside = match blocks.is_empty() {
                    true => all(),
                    false => blocks.iter().map(|net| IpRange::from(*net)).collect(),
                };
                let holes: Vec<IpRange> = except.iter().map(|net| IpRange::from(*net)).collect();
                let [mut set, mut holes] =
                    [inside, holes].map(|ranges| Set { ranges, rest: true, ..Set::default() });
                set.settle();
                holes.settle();
                let rest = Family::ALL.map(|f| complement(&holes.ranges_of(f), everywhere(f)));
                let left = |range| rest.iter().flatten().filter_map(move |r| overlap(range, r));
                set.ranges = set.ranges.iter().flat_map(left).collect();
                match set.is_empty() {
                    true => Err(wrong("except leaves nothing of it")),
                    false => Ok(set),
                }
            }
            What::Block(net) => Ok(self.block(*net, counts)),
            What::Namespace(namespace) => {
                let selection =
                    Selection { namespace: Some(namespace.clone()), ..Selection::default() };
                self.selected(&selection).map_err(|why| wrong(&why))
            }
            What::Selected(selection) => self.selected(selection).map_err(|why| wrong(&why)),
            What::Name(name) => match self.names.find(name, self.namespace) {
                Err(why) => Err(wrong(&self.unknown(name).unwrap_or_else(|| why.to_string()))),
                Ok(Target::Address(address)) => Ok(self.block(address.into(), counts)),
                Ok(Target::Pod(pod)) => Ok(self.pods([pod])),
                Ok(Target::Workload(pods)) => {
                    let alive = |pod: &usize| !self.cluster.pods[*pod].finished;
                    let pods: Vec<usize> = pods.into_iter().filter(alive).collect();
                    match pods.is_empty() {
                        true => Err(wrong(&format!("the pods of {name} have finished"))),
                        false => Ok(self.pods(pods)),
                    }
                }
                Ok(Target::Service(_)) => Err(wrong(&format!(
                    "{name} is a Service, which stands for its endpoints in `to` of a test with \
                     a port alone: name the pod or workload"
                ))),
            },
        }
    }

    /// What is wrong with a name that is nearly one of the input.
    fn unknown(&self, name: &str) -> Option<String> {
        let mut known = BTreeSet::new();
        for pod in self.cluster.pods.iter().filter(|pod| !pod.finished) {
            let workload = pod.workload.as_ref();
            known.extend(workload.map(|owner| format!("{}/{}", pod.namespace, owner.name)));
            known.insert(shown_pod(pod));
        }
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        let full = match name.contains('/') {
            true => name.to_owned(),
            false => format!("{}/{name}", self.namespace),
        };
        let meant = closest(&full, &known).filter(|meant| *meant != full)?;
        Some(format!("{name:?} is not in the input, did you mean {meant:?}?"))
    }

    /// Pods; one on the host network is its node's addresses too.
    fn pods(&self, pods: impl IntoIterator<Item = usize>) -> Set {
        let mut set = Set::default();
        for pod in pods {
            set.pods.insert(pod, [true; 2]);
            if self.cluster.pods[pod].host_network {
                let endpoints = self.program.endpoints(End::Pod(pod)).into_iter().flatten();
                let addresses = endpoints.filter_map(|endpoint| endpoint.address);
                set.ranges.extend(addresses.map(|a| IpRange { first: a, last: a }));
            }
        }
        set.settle();
        set
    }

    /// The addresses of a block, whoever has them: also pods that will get one of them, whichever
    /// it will be, and if they count, pods that may get one. That one will get a certain address is
    /// not thought of.
    pub(super) fn block(&self, net: IpNet, counts: Counts) -> Set {
        let rest = net.prefix_len() < net.max_prefix_len();
        let mut set = Set { ranges: vec![net.into()], rest, ..Set::default() };
        let block = IpRange::from(net);
        for (i, pod) in self.cluster.pods.iter().enumerate().filter(|(_, pod)| !pod.finished) {
            for endpoint in self.program.endpoints(End::Pod(i)).into_iter().flatten() {
                let is_in = match endpoint.address {
                    Some(address) => net.contains(&address),
                    None if !rest => false,
                    None => {
                        let possible = self.whereabouts(pod, Family::of(net.addr()));
                        let may = possible.iter().any(|range| overlap(range, &block).is_some());
                        let will = |range: &IpRange| overlap(range, &block) == Some(*range);
                        may && (counts == Counts::Perhaps || possible.iter().all(will))
                    }
                };
                if is_in {
                    set.pods.entry(i).or_default()[Family::of(net.addr()) as usize] = true;
                }
            }
        }
        set
    }

    /// Where the address of a pod can be that has none yet.
    fn whereabouts(&self, pod: &Pod, family: Family) -> Vec<IpRange> {
        let blocks = self.cluster.pod_cidrs.iter().filter(|_| !pod.host_network);
        let ranges: Vec<IpRange> = blocks.map(|net| IpRange::from(*net)).collect();
        if ranges.is_empty() {
            return vec![everywhere(family)];
        }
        ranges.into_iter().filter(|range| Family::of(range.first) == family).collect()
    }

    /// The pods that a selection is true of; else what there is instead.
    fn selected(&self, selection: &Selection) -> Result<Set, String> {
        let alive = self.cluster.pods.iter().enumerate().filter(|(_, pod)| !pod.finished);
        let in_namespaces: Vec<(usize, &Pod)> = alive
            .filter(|(_, pod)| {
                selection.namespace.as_ref().is_none_or(|name| *name == pod.namespace)
                    && has(
                        &self.cluster.namespace_labels(&pod.namespace),
                        &selection.namespace_labels,
                    )
            })
            .collect();
        let found = in_namespaces.iter().filter(|(_, pod)| has(&pod.labels, &selection.labels));
        let found: Vec<usize> = found.map(|(i, _)| *i).collect();
        if !found.is_empty() || selection.or_none {
            return Ok(self.pods(found));
        }
        let mut why = format!("there are no {selection}");
        if in_namespaces.is_empty() {
            let names: BTreeSet<&str> =
                self.cluster.pods.iter().map(|pod| pod.namespace.as_str()).collect();
            let names: Vec<&str> = names.into_iter().collect();
            let meant = selection.namespace.as_ref().and_then(|name| closest(name, &names));
            match meant {
                Some(meant) if selection.namespace_labels.is_empty() => {
                    why.push_str(&format!(": did you mean namespace {meant}?"));
                }
                _ => why.push_str(&format!(": pods are in namespaces {}", names.join(", "))),
            }
        } else {
            for (key, value) in selection.labels.iter() {
                let values: BTreeSet<&str> = in_namespaces
                    .iter()
                    .filter_map(|(_, pod)| pod.labels.get(key).map(String::as_str))
                    .collect();
                if values.contains(value.as_str()) {
                    continue;
                }
                let values: Vec<&str> = values.into_iter().collect();
                why.push_str(&match values.as_slice() {
                    [] => format!(": none there has a label {key}"),
                    values => format!(": {key} is {} there", values.join(", ")),
                });
                break;
            }
        }
        Err(why + "; orNone: true if that is meant")
    }

    /// A set as units, which fare alike.
    pub(super) fn parts(&mut self, set: &Set) -> Vec<Unit> {
        let mut pods: BTreeMap<[Option<ClassId>; 2], Vec<usize>> = BTreeMap::new();
        for (pod, families) in &set.pods {
            let classes = self.reach.pod(*pod);
            let meant = [0, 1].map(|f| classes[f].filter(|_| families[f]));
            if meant != [None; 2] {
                pods.entry(meant).or_default().push(*pod);
            }
        }
        let pods = pods.into_iter();
        let mut parts: Vec<Unit> =
            pods.map(|(classes, pods)| Unit { pods, addresses: Vec::new(), classes }).collect();
        for unit in &self.units {
            let mut addresses = Vec::new();
            for range in &unit.addresses {
                addresses.extend(set.ranges.iter().filter_map(|other| overlap(range, other)));
            }
            if !addresses.is_empty() {
                parts.push(Unit { pods: Vec::new(), addresses, classes: unit.classes });
            }
        }
        parts
    }

    /// What may be opened from one unit to another, by family where the families differ. Nothing
    /// where they are of different families and one is of addresses. Where somebody is named, what
    /// is refused of a claim is unknown if the one may be the node that the other runs on.
    pub(super) fn open(
        &self,
        from: &Unit,
        to: &Unit,
        allowed: Allowed,
        named: Option<&Claim>,
    ) -> Vec<Open> {
        let claims = |opens: Opens| {
            let [surely, perhaps] =
                [opens.surely, opens.perhaps].map(|set| Claim::of(self.reach.set(set)));
            [surely, perhaps]
        };
        let by_family: Vec<(Option<Family>, [Claim; 2])> = match allowed {
            Allowed::Alike(opens) => vec![(None, claims(opens))],
            // Which of the families they will talk on nobody knows.
            Allowed::ByFamily(opens) if [from, to].iter().all(|unit| self.is_unaddressed(unit)) => {
                let families = self.families_between(from, to).into_iter();
                let each = families.map(|family| claims(opens[family as usize]));
                let all = each.reduce(|[a, b], [c, d]| [a.and(&c), b.or(&d)]);
                all.into_iter().map(|all| (None, all)).collect()
            }
            Allowed::ByFamily(opens) => {
                Family::ALL.into_iter().map(Some).zip(opens.map(claims)).collect()
            }
            // Pods that have no family in common cannot talk, whatever policies say.
            Allowed::NoFamily(_) if from.pods.is_empty() || to.pods.is_empty() => Vec::new(),
            Allowed::NoFamily(_) => vec![(None, claims(Opens::default()))],
        };
        let known = |(family, [open, mut perhaps]): (Option<Family>, [Claim; 2])| {
            let refused = named.map_or(Claim::NOTHING, |claim| claim.without(&perhaps));
            if !refused.is_nothing() && self.is_perhaps_own_node(from, to, family, &refused) {
                perhaps = perhaps.or(&refused);
            }
            Open { family, unknown: perhaps.without(&open), open }
        };
        by_family.into_iter().map(known).collect()
    }

    /// The families that two units can talk on: those that both have, and while neither has an
    /// address, those that pods get.
    pub(super) fn families_between(&self, from: &Unit, to: &Unit) -> Vec<Family> {
        let mut families = Family::ALL.to_vec();
        families.retain(|f| [from, to].iter().all(|unit| unit.classes[*f as usize].is_some()));
        let (cidrs, none_yet) = (&self.cluster.pod_cidrs, |u: &&Unit| self.is_unaddressed(u));
        if !cidrs.is_empty() && [from, to].iter().all(none_yet) {
            families.retain(|family| cidrs.iter().any(|net| Family::of(net.addr()) == *family));
        }
        families
    }

    /// Whether these are pods that will get an address and have none yet.
    fn is_unaddressed(&self, unit: &Unit) -> bool {
        unit.pods.first().is_some_and(|pod| {
            let mut endpoints = self.program.endpoints(End::Pod(*pod)).into_iter().flatten();
            !self.cluster.pods[*pod].host_network && endpoints.all(|e| e.address.is_none())
        })
    }

    /// Whether refused traffic may pass, because the one end may be the node of the other.
    fn is_perhaps_own_node(
        &self,
        from: &Unit,
        to: &Unit,
        family: Option<Family>,
        refused: &Claim,
    ) -> bool {
        let on_node = |unit: &Unit| {
            let on_host = |pod: &usize| self.cluster.pods[*pod].host_network;
            unit.pods.iter().any(on_host) || self.has_node(unit)
        };
        (on_node(from) || on_node(to))
            && self.example(from, to, family).is_some_and(|(source, destination)| {
                let mut paths = self.paths(source, destination, family);
                paths.any(|path| self.misses_node(&path, refused.example()))
            })
    }

    /// Whether a connection depends on which node a pod runs on.
    fn misses_node(&self, path: &Path, traffic: Traffic) -> bool {
        let facts = self.program.missing(path, traffic);
        facts.iter().any(|fact| matches!(fact, Fact::Node(_)))
    }

    /// Whether an address of a node is in a unit.
    fn has_node(&self, unit: &Unit) -> bool {
        let mut nodes = self.nodes.iter();
        nodes.any(|node| unit.addresses.iter().any(|range| range.contains(*node)))
    }

    /// A connection between two units that policies can be asked about, on a family if one is
    /// given. Of addresses it is one that nobody has, if there is one.
    pub(super) fn example(
        &self,
        from: &Unit,
        to: &Unit,
        family: Option<Family>,
    ) -> Option<(End, End)> {
        let sources = self.ends(from);
        let destinations = self.ends(to);
        for source in &sources {
            for destination in destinations.iter().filter(|end| *end != source) {
                let mut paths = self.paths(*source, *destination, family).peekable();
                let none = paths.peek().is_none() && family.is_none();
                if none || paths.any(|path| self.program.exempt(&path).is_none()) {
                    return Some((*source, *destination));
                }
            }
        }
        None
    }

    /// A connection between a pod and its own node, which passes whatever policies say.
    pub(super) fn own_node(&self, from: &Set, to: &Set) -> Option<(End, End)> {
        self.of_node(from, to, |path| self.program.exempt(path) == Some(Exemption::OwnNode))
    }

    /// A connection between a pod and what may be its own node, and that may so pass.
    pub(super) fn perhaps_own_node(&self, from: &Side, to: &Side) -> Option<(End, End)> {
        let traffic = to.claim.example();
        self.of_node(&from.set, &to.set, |path| self.misses_node(path, traffic))
    }

    fn of_node(&self, from: &Set, to: &Set, is: impl Fn(&Path) -> bool) -> Option<(End, End)> {
        let (sources, destinations) = (self.on_nodes(from), self.on_nodes(to));
        let pods = |set: &Set| set.pods.keys().map(|pod| End::Pod(*pod)).collect::<Vec<_>>();
        let outward = (sources, pods(to));
        let inward = (pods(from), destinations);
        for (sources, destinations) in [outward, inward] {
            for source in &sources {
                for destination in destinations.iter().filter(|end| *end != source) {
                    if self.paths(*source, *destination, None).any(|path| is(&path)) {
                        return Some((*source, *destination));
                    }
                }
            }
        }
        None
    }

    fn on_nodes(&self, set: &Set) -> Vec<End> {
        let pods = set.pods.keys().filter(|pod| self.cluster.pods[**pod].host_network);
        let inside = |address: &&IpAddr| set.ranges.iter().any(|r| r.contains(**address));
        let addresses = self.nodes.iter().filter(inside).map(|address| End::Address(*address));
        pods.map(|pod| End::Pod(*pod)).chain(addresses).collect()
    }

    pub(super) fn paths(
        &self,
        source: End,
        destination: End,
        family: Option<Family>,
    ) -> impl Iterator<Item = Path> {
        let paths = self.program.paths(source, destination);
        paths.filter(move |path| {
            family.is_none() || path.family().is_none() || path.family() == family
        })
    }

    fn ends(&self, unit: &Unit) -> Vec<End> {
        let pods = unit.pods.iter().map(|pod| End::Pod(*pod));
        let nobodys = unit.addresses.iter().filter_map(|range| self.nobodys(range));
        let inside = |address: &&IpAddr| unit.addresses.iter().any(|r| r.contains(**address));
        let nodes = self.nodes.iter().filter(inside).copied();
        let mut addresses: Vec<IpAddr> = nobodys.collect();
        // Nobody knows what the lowest address is of; this one is made for examples.
        let known = |address: &IpAddr| !EXAMPLES.iter().any(|e| e.parse().ok() == Some(*address));
        addresses.sort_by_key(known);
        pods.chain(addresses.into_iter().chain(nodes).map(End::Address)).collect()
    }

    /// An address of a range that neither a pod nor a node has.
    pub(super) fn nobodys(&self, range: &IpRange) -> Option<IpAddr> {
        let free =
            |address: &IpAddr| !self.owned.contains(address) && !self.nodes.contains(address);
        let examples = EXAMPLES.iter().filter_map(|e| e.parse().ok());
        let mut examples = examples.filter(|address| range.contains(*address));
        if let Some(example) = examples.find(&free) {
            return Some(example);
        }
        let within = |address: &IpAddr| range.contains(*address);
        // The first address of a network has no host.
        let second = next_address(range.first).filter(|_| range.cidrs().len() == 1);
        if let Some(address) = second.filter(within).filter(&free) {
            return Some(address);
        }
        let mut all = std::iter::successors(Some(range.first), |a| next_address(*a));
        all.by_ref().take_while(within).find(&free)
    }
}

/// Addresses for documentation (RFC 5737, RFC 3849).
const EXAMPLES: [&str; 2] = ["203.0.113.1", "2001:db8::1"];

impl Set {
    pub(super) fn is_empty(&self) -> bool {
        self.pods.is_empty() && self.ranges.is_empty()
    }

    /// Without what is of another family.
    pub(super) fn only(mut self, family: Option<Family>) -> Set {
        if let Some(family) = family {
            for families in self.pods.values_mut() {
                families[1 - family as usize] = false;
            }
            self.pods.retain(|_, families| *families != [false; 2]);
            self.ranges.retain(|range| Family::of(range.first) == family);
        }
        self
    }

    /// Whether an end with this address is in it.
    pub(super) fn contains(&self, pod: Option<usize>, address: IpAddr) -> bool {
        match pod {
            Some(pod) => self.pods.get(&pod).is_some_and(|f| f[Family::of(address) as usize]),
            None => self.ranges.iter().any(|range| range.contains(address)),
        }
    }

    fn add(&mut self, other: &Set) {
        for (pod, families) in &other.pods {
            let here = self.pods.entry(*pod).or_default();
            *here = [here[0] || families[0], here[1] || families[1]];
        }
        self.ranges.extend(&other.ranges);
        self.settle();
    }

    fn ranges_of(&self, family: Family) -> Vec<IpRange> {
        let here = |range: &&IpRange| Family::of(range.first) == family;
        self.ranges.iter().filter(here).copied().collect()
    }

    /// Makes ranges disjoint and ascending.
    fn settle(&mut self) {
        self.ranges.sort_unstable();
        let mut settled: Vec<IpRange> = Vec::new();
        for range in &self.ranges {
            match settled.last_mut() {
                Some(last) if last.contains(range.first) => last.last = last.last.max(range.last),
                _ => settled.push(*range),
            }
        }
        self.ranges = settled;
    }
}

fn has(labels: &Labels, wanted: &Labels) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

pub(super) fn everywhere(family: Family) -> IpRange {
    match family {
        Family::V4 => IpNet::V4(Default::default()).into(),
        Family::V6 => IpNet::V6(Default::default()).into(),
    }
}

fn overlap(a: &IpRange, b: &IpRange) -> Option<IpRange> {
    let (first, last) = (a.first.max(b.first), a.last.min(b.last));
    let same = Family::of(a.first) == Family::of(b.first);
    (same && first <= last).then_some(IpRange { first, last })
}
