//! Exposure to pods that do not exist yet, in the words of the rules that would admit them.

use std::fmt;

use rustc_hash::FxHashMap;

use crate::labels::Selector;
use crate::model::{Cluster, Direction, NAMESPACE_NAME_LABEL, Peer, PortMatch};
use crate::net::{Family, Protocol};
use crate::portset::PortSet;
use crate::possible::LabelRegion;
use crate::program::Origin;
use crate::reach::{Reach, SetId, Unit};

/// Any pod of some namespaces, with some labels: as a rule describes them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Description {
    /// Of which namespaces.
    pub namespaces: Namespaces,
    /// With which labels; empty is any.
    pub pods: Selector,
}

/// Namespaces that a rule describes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Namespaces {
    /// Those that a selector matches; empty is any.
    Selected(Selector),
    /// The one of this name.
    Named(String),
}

/// What a pod of a description may open to a unit, or a unit to it. The policies that isolate the
/// pod itself are not counted: whether there will be any is not known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Exposure {
    /// On which ports.
    pub set: SetId,
    /// And on the ports of the pod that have these names.
    pub named: Vec<(String, Protocol)>,
}

impl Description {
    /// Every pod.
    pub fn any() -> Description {
        let namespaces = Namespaces::Selected(Selector::default());
        Description { namespaces, pods: Selector::default() }
    }

    fn of(peer: &Peer, own: &str) -> Option<Description> {
        let Peer::Pods { pods, namespaces } = peer else { return None };
        let namespaces = match namespaces {
            None => Namespaces::Named(own.to_owned()),
            Some(selector) => match selector.match_labels.get(NAMESPACE_NAME_LABEL) {
                Some(name)
                    if selector.match_labels.len() == 1
                        && selector.match_expressions.is_empty() =>
                {
                    Namespaces::Named(name.clone())
                }
                _ => Namespaces::Selected(selector.clone()),
            },
        };
        Some(Description { namespaces, pods: pods.clone().unwrap_or_default() })
    }

    /// Whether there can be such a pod.
    fn is_possible(&self) -> bool {
        let namespaces = match &self.namespaces {
            Namespaces::Named(_) => true,
            Namespaces::Selected(selector) => LabelRegion::default().matching(selector).is_some(),
        };
        namespaces && LabelRegion::default().matching(&self.pods).is_some()
    }

    /// Whether every pod that is so described is also described by the other.
    fn implies(&self, other: &Description, cluster: &Cluster) -> bool {
        let inside =
            |region: LabelRegion<'_>, selector: &Selector| region.not_matching(selector).is_empty();
        let namespaces = match (&self.namespaces, &other.namespaces) {
            (Namespaces::Named(own), Namespaces::Named(other)) => own == other,
            (Namespaces::Selected(_), Namespaces::Named(_)) => false,
            (Namespaces::Named(own), Namespaces::Selected(selector)) => {
                match cluster.namespaces.contains_key(own) {
                    true => selector.matches(&cluster.namespace_labels(own)),
                    false => inside(LabelRegion::fixed(NAMESPACE_NAME_LABEL, own), selector),
                }
            }
            (Namespaces::Selected(own), Namespaces::Selected(selector)) => {
                LabelRegion::default().matching(own).is_none_or(|region| inside(region, selector))
            }
        };
        let pods = LabelRegion::default().matching(&self.pods);
        namespaces && pods.is_none_or(|region| inside(region, &other.pods))
    }
}

/// `any pod`, `any pod with app=web of namespace shop`, `any pod of a namespace with team=a`.
impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any pod")?;
        if !self.pods.is_empty() {
            write!(f, " with {}", self.pods)?;
        }
        match &self.namespaces {
            Namespaces::Named(name) => write!(f, " of namespace {name}"),
            Namespaces::Selected(selector) if selector.is_empty() => Ok(()),
            Namespaces::Selected(selector) => write!(f, " of a namespace with {selector}"),
        }
    }
}

/// What pods that do not exist yet may open to these units (for ingress), or these units to them
/// (for egress): for each description, in order of the units. What is no more than a wider
/// description has is left out, so every description has something of its own.
pub fn potential(
    cluster: &Cluster,
    reach: &mut Reach<'_>,
    units: &[Unit],
    direction: Direction,
) -> Vec<(Description, Vec<Exposure>)> {
    let mut descriptions = vec![Description::any()];
    let mut numbers = FxHashMap::default();
    numbers.insert(Description::any(), 0);
    // By policy, rule and peer: the number of its description.
    let mut of_peer: FxHashMap<(u32, u32, u32), usize> = FxHashMap::default();
    for (policy, written) in (0..).zip(&cluster.policies) {
        for (rule, written_rule) in (0..).zip(written.rules(direction).unwrap_or_default()) {
            for (peer, written_peer) in (0..).zip(&written_rule.peers) {
                let Some(description) = Description::of(written_peer, &written.namespace) else {
                    continue;
                };
                if !description.is_possible() {
                    continue;
                }
                let next = descriptions.len();
                let number = *numbers.entry(description.clone()).or_insert(next);
                if number == next {
                    descriptions.push(description);
                }
                of_peer.insert((policy, rule, peer), number);
            }
        }
    }
    // The wider ones of each, itself included.
    let wider: Vec<Vec<usize>> = descriptions
        .iter()
        .map(|own| {
            let wider = descriptions.iter().enumerate();
            wider.filter(|(_, other)| own.implies(other, cluster)).map(|(i, _)| i).collect()
        })
        .collect();

    let mut table = vec![vec![Exposure::default(); units.len()]; descriptions.len()];
    for (column, unit) in units.iter().enumerate().filter(|(_, unit)| !unit.pods.is_empty()) {
        let (alone, named) = alone(cluster, reach, unit, direction, &of_peer, descriptions.len());
        for (number, row) in table.iter_mut().enumerate() {
            let sum = |of: usize| {
                let parts = wider[of].iter();
                let set = parts.clone().fold(PortSet::NOTHING, |all, i| all.union(&alone[*i]));
                let mut names: Vec<_> = parts.flat_map(|i| named[*i].iter().cloned()).collect();
                names.sort_unstable();
                names.dedup();
                // What is allowed on everything needs no names.
                if set == PortSet::Everything {
                    names.clear();
                }
                (set, names)
            };
            let own = sum(number);
            // Of two that describe the same, the first is told.
            let narrower = |other: usize| !wider[other].contains(&number) || other < number;
            let mut others = wider[number].iter().filter(|i| **i != number && narrower(**i));
            if !others.any(|other| sum(*other) == own) {
                row[column] = Exposure { set: reach.number(own.0), named: own.1 };
            }
        }
    }
    let rows = descriptions.into_iter().zip(table);
    rows.filter(|(_, row)| row.iter().any(|exposure| *exposure != Exposure::default())).collect()
}

type Names = Vec<(String, Protocol)>;

/// By description, what the rules that name it allow, and on which names of ports.
fn alone(
    cluster: &Cluster,
    reach: &mut Reach<'_>,
    unit: &Unit,
    direction: Direction,
    of_peer: &FxHashMap<(u32, u32, u32), usize>,
    count: usize,
) -> (Vec<PortSet>, Vec<Names>) {
    let mut allowed: Vec<Vec<_>> = vec![Vec::new(); count];
    let mut named: Vec<Names> = vec![Vec::new(); count];
    let Some(class) = unit.classes[0].or(unit.classes[1]) else {
        return (vec![PortSet::NOTHING; count], named);
    };
    let Some(rules) = reach.isolation(class, direction) else {
        allowed[0].push(None);
        return (allowed.into_iter().map(PortSet::of).collect(), named);
    };
    for entry in &rules.entries {
        let Origin { policy, rule, peer, port, .. } = entry.origin;
        let number = match peer {
            None => 0,
            Some(peer) => match of_peer.get(&(policy, rule, peer)) {
                Some(number) => *number,
                None => continue,
            },
        };
        let rules = cluster.policies[policy as usize].rules(direction).unwrap_or_default();
        let written = port.and_then(|port| rules.get(rule as usize)?.ports.get(port as usize));
        match written.map(|written| &written.port) {
            // The port that a name has at a pod that does not exist is not known.
            Some(PortMatch::Named(_)) if direction == Direction::Egress => {}
            _ => allowed[number].push(entry.ports),
        }
    }
    if direction == Direction::Egress {
        for policy in &rules.policies {
            let rules = cluster.policies[*policy as usize].rules(direction).unwrap_or_default();
            for (i, rule) in (0..).zip(rules) {
                let peers =
                    (0..).zip(&rule.peers).filter_map(|(p, _)| of_peer.get(&(*policy, i, p)));
                let peers: Vec<usize> = match rule.peers.is_empty() {
                    true => vec![0],
                    false => peers.copied().collect(),
                };
                for port in &rule.ports {
                    if let PortMatch::Named(name) = &port.port {
                        peers.iter().for_each(|p| named[*p].push((name.clone(), port.protocol)));
                    }
                }
            }
        }
    }
    let mut sets: Vec<PortSet> = allowed.into_iter().map(PortSet::of).collect();
    // Wherever it will be, it is in a block that has every address.
    let families = Family::ALL.into_iter().filter(|f| unit.classes[*f as usize].is_some());
    let anywhere = families.map(|family| reach.anywhere(class, direction, family));
    if let Some(anywhere) = anywhere.reduce(|a, b| a.intersection(&b)) {
        sets[0] = sets[0].union(&anywhere);
    }
    (sets, named)
}
