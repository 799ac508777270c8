//! Labels and traffic that could be, as regions: what is left open, cut by the terms of policies.
//!
//! No value is ever tried. A key may have some values, or all but some, or be absent; a selector
//! cuts that exactly, because it is a conjunction of such choices.

use std::collections::{BTreeMap, BTreeSet};

use crate::labels::{Labels, Operator, Selector};
use crate::model::{PortMatch, PortRule};
use crate::net::{Protocol, Traffic};
use crate::program::Ports;

/// Sets of labels, as what each key may be. A key that is not here may be anything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LabelRegion<'a> {
    keys: BTreeMap<&'a str, Choice<'a>>,
}

/// What a key may be: absent, if it may, and these values.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Choice<'a> {
    absent: bool,
    values: Values<'a>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Values<'a> {
    Only(BTreeSet<&'a str>),
    AllBut(BTreeSet<&'a str>),
}

impl<'a> LabelRegion<'a> {
    /// Where a key has a value, and none of these.
    pub(crate) fn having(key: &'a str, not: BTreeSet<&'a str>) -> Self {
        let choice = Choice { absent: false, values: Values::AllBut(not) };
        LabelRegion { keys: BTreeMap::from([(key, choice)]) }
    }

    /// Where a key has this value.
    pub(crate) fn fixed(key: &'a str, value: &'a str) -> Self {
        LabelRegion { keys: BTreeMap::from([(key, Choice::one(value))]) }
    }

    /// The part that a selector matches; `None` where there is none.
    pub(crate) fn matching(&self, selector: &'a Selector) -> Option<Self> {
        let mut part = self.clone();
        for (key, choice) in terms(selector) {
            part = part.and(key, &choice)?;
        }
        Some(part)
    }

    /// The part that a selector does not match, in pieces that do not overlap.
    pub(crate) fn not_matching(&self, selector: &'a Selector) -> Vec<Self> {
        let mut matching = Some(self.clone());
        let mut pieces = Vec::new();
        for (key, choice) in terms(selector) {
            let Some(so_far) = matching else { break };
            matching = so_far.and(key, &choice);
            pieces.extend(so_far.and(key, &choice.not()));
        }
        pieces
    }

    /// Labels in the region, as few as can be.
    pub(crate) fn example(&self) -> Labels {
        let needed = self.keys.iter().filter(|(_, choice)| !choice.absent);
        let pair = |(key, choice): (&&str, &Choice<'_>)| Some(((*key).to_owned(), choice.value()?));
        needed.filter_map(pair).collect()
    }

    /// A value that a key may have, among those that the test accepts if they are listed.
    pub(crate) fn value(&self, key: &str, accepts: impl Fn(&str) -> bool) -> Option<String> {
        match self.keys.get(key).map(|choice| &choice.values) {
            Some(Values::Only(values)) => {
                values.iter().find(|v| accepts(v)).map(|v| (*v).to_owned())
            }
            Some(Values::AllBut(not)) => fresh(not),
            None => fresh(&BTreeSet::new()),
        }
    }

    fn and(&self, key: &'a str, choice: &Choice<'a>) -> Option<Self> {
        let both = match self.keys.get(key) {
            Some(known) => known.and(choice),
            None => choice.clone(),
        };
        if both.is_empty() {
            return None;
        }
        let mut part = self.clone();
        part.keys.insert(key, both);
        Some(part)
    }
}

/// What a selector asks of each key.
fn terms(selector: &Selector) -> impl Iterator<Item = (&str, Choice<'_>)> {
    let labels = selector.match_labels.iter().map(|(k, v)| (k.as_str(), Choice::one(v)));
    let expressions = selector.match_expressions.iter();
    labels.chain(expressions.map(|r| (r.key.as_str(), Choice::of(&r.operator))))
}

impl<'a> Choice<'a> {
    fn one(value: &'a str) -> Self {
        Choice { absent: false, values: Values::Only(BTreeSet::from([value])) }
    }

    fn of(operator: &'a Operator) -> Self {
        let set = |values: &'a [String]| values.iter().map(String::as_str).collect();
        match operator {
            Operator::In(values) => Choice { absent: false, values: Values::Only(set(values)) },
            Operator::NotIn(values) => Choice { absent: true, values: Values::AllBut(set(values)) },
            Operator::Exists => Choice { absent: false, values: Values::AllBut(BTreeSet::new()) },
            Operator::DoesNotExist => {
                Choice { absent: true, values: Values::Only(BTreeSet::new()) }
            }
        }
    }

    fn and(&self, other: &Self) -> Self {
        let minus =
            |a: &BTreeSet<&'a str>, b: &BTreeSet<&'a str>| a.difference(b).copied().collect();
        let values = match (&self.values, &other.values) {
            (Values::Only(a), Values::Only(b)) => {
                Values::Only(a.intersection(b).copied().collect())
            }
            (Values::Only(a), Values::AllBut(b)) => Values::Only(minus(a, b)),
            (Values::AllBut(a), Values::Only(b)) => Values::Only(minus(b, a)),
            (Values::AllBut(a), Values::AllBut(b)) => Values::AllBut(a.union(b).copied().collect()),
        };
        Choice { absent: self.absent && other.absent, values }
    }

    fn not(self) -> Self {
        let values = match self.values {
            Values::Only(values) => Values::AllBut(values),
            Values::AllBut(values) => Values::Only(values),
        };
        Choice { absent: !self.absent, values }
    }

    fn is_empty(&self) -> bool {
        !self.absent && matches!(&self.values, Values::Only(values) if values.is_empty())
    }

    fn value(&self) -> Option<String> {
        match &self.values {
            Values::Only(values) => values.first().map(|v| (*v).to_owned()),
            Values::AllBut(not) => fresh(not),
        }
    }
}

/// A value that nobody uses.
fn fresh(not: &BTreeSet<&str>) -> Option<String> {
    let mut tries = std::iter::once("any".to_owned()).chain((2..).map(|n: u64| format!("any-{n}")));
    tries.find(|value| !not.contains(value.as_str()))
}

/// What a connection may be opened on, and which port names of its destination mean that port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TrafficRegion<'a> {
    other: bool,
    /// Port 0 is left out: no connection is opened to it.
    ports: Vec<Ports>,
    /// Whether the destination resolves a name and protocol to the port; free where not here.
    names: BTreeMap<(&'a str, Protocol), bool>,
}

impl<'a> TrafficRegion<'a> {
    /// Anything.
    pub(crate) fn everything() -> Self {
        let all = |protocol| Ports { protocol, first: 1, last: u16::MAX };
        let ports = Protocol::ALL.map(all).to_vec();
        TrafficRegion { other: true, ports, names: BTreeMap::new() }
    }

    /// The part that an item of `ports` covers. `named` is whether the destination can have port
    /// names at all.
    pub(crate) fn covered(&self, port: &'a PortRule, named: bool) -> Option<Self> {
        let (first, last) = match &port.port {
            PortMatch::All => (0, u16::MAX),
            PortMatch::Range(first, last) => (*first, *last),
            PortMatch::Named(_) if !named => return None,
            PortMatch::Named(_) => (0, u16::MAX),
        };
        let mut part = TrafficRegion { other: false, ..self.clone() };
        part.ports.retain_mut(|own| {
            own.first = own.first.max(first);
            own.last = own.last.min(last);
            own.protocol == port.protocol && own.first <= own.last
        });
        if let PortMatch::Named(name) = &port.port
            && !*part.names.entry((name, port.protocol)).or_insert(true)
        {
            return None;
        }
        (!part.ports.is_empty()).then_some(part)
    }

    /// The part that it does not cover.
    pub(crate) fn not_covered(&self, port: &'a PortRule, named: bool) -> Option<Self> {
        let mut part = self.clone();
        let (first, last) = match &port.port {
            PortMatch::All => (0, u16::MAX),
            PortMatch::Range(first, last) => (*first, *last),
            PortMatch::Named(_) if !named => return Some(part),
            PortMatch::Named(name) => {
                // That it is not so named never forbids anything else.
                let is = *part.names.entry((name, port.protocol)).or_insert(false);
                return (!is).then_some(part);
            }
        };
        part.ports.clear();
        for own in &self.ports {
            if own.protocol != port.protocol || own.last < first || last < own.first {
                part.ports.push(*own);
                continue;
            }
            let before = first.checked_sub(1).map(|last| Ports { last, ..*own });
            let after = last.checked_add(1).map(|first| Ports { first, ..*own });
            part.ports.extend([before, after].into_iter().flatten().filter(|p| p.first <= p.last));
        }
        (part.other || !part.ports.is_empty()).then_some(part)
    }

    /// Something in the region, and the names that the destination must have for it.
    pub(crate) fn example(&self) -> (Traffic, Vec<(&'a str, Protocol)>) {
        let needed = self.names.iter().filter(|(_, is)| **is).map(|(name, _)| *name).collect();
        // A port that people know is easier to read than the lowest.
        let usual = |p: &&Ports| p.protocol == Protocol::Tcp && (p.first..=p.last).contains(&80);
        let traffic = match (self.ports.iter().find(usual), self.ports.first()) {
            (Some(ports), _) => Traffic::Port(ports.protocol, 80),
            (None, Some(ports)) => Traffic::Port(ports.protocol, ports.first),
            (None, None) => Traffic::Other,
        };
        (traffic, needed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::labels::Requirement;

    fn selector(text: &str) -> Selector {
        let mut selector = Selector::default();
        for term in text.split(',').filter(|t| !t.is_empty()) {
            let (key, operator) = match (term.split_once("!="), term.split_once('=')) {
                (Some((key, value)), _) => (key, Operator::NotIn(vec![value.to_owned()])),
                (None, Some((key, value))) => {
                    let values = value.split('|').map(str::to_owned).collect();
                    (key, Operator::In(values))
                }
                _ if term.starts_with('!') => (&term[1..], Operator::DoesNotExist),
                _ => (term, Operator::Exists),
            };
            let requirement = Requirement { key: key.to_owned(), operator };
            selector.match_expressions.push(requirement);
        }
        selector
    }

    #[test]
    fn a_selector_cuts_a_region_in_parts_that_it_matches_and_does_not() {
        let texts = ["app=web", "app=web|db,!tier", "app!=web,tier", "app,tier!=a", "!app", ""];
        let selectors = texts.map(selector);
        for a in &selectors {
            for b in &selectors {
                let Some(region) = LabelRegion::default().matching(a) else { panic!("{a}") };
                if let Some(both) = region.matching(b) {
                    let labels = both.example();
                    assert!(a.matches(&labels) && b.matches(&labels), "{a} and {b}: {labels:?}");
                }
                let pieces = region.not_matching(b);
                for labels in pieces.iter().map(LabelRegion::example) {
                    assert!(a.matches(&labels) && !b.matches(&labels), "{a}, not {b}: {labels:?}");
                }
                assert!(region.matching(b).is_some() || !pieces.is_empty(), "{a} and {b}");
            }
        }
        let web = LabelRegion::default().matching(&selectors[0]).unwrap();
        assert!(web.matching(&selectors[4]).is_none());
        assert!(web.not_matching(&selectors[0]).is_empty());
    }

    #[test]
    fn traffic_is_cut_by_numbers_and_by_names() {
        let rule = |port: PortMatch| PortRule { protocol: Protocol::Tcp, port };
        let (all, http) = (rule(PortMatch::All), rule(PortMatch::Named("http".to_owned())));
        let low = rule(PortMatch::Range(1, 1023));
        let everything = TrafficRegion::everything();
        let high = everything.covered(&all, true).and_then(|t| t.not_covered(&low, true)).unwrap();
        assert_eq!(high.example().0, Traffic::Port(Protocol::Tcp, 1024));
        let named = high.covered(&http, true).unwrap();
        assert_eq!(named.example().1, [("http", Protocol::Tcp)]);
        assert!(named.not_covered(&http, true).is_none() && high.covered(&http, false).is_none());
        assert!(high.not_covered(&http, true).unwrap().covered(&http, true).is_none());
        let rest = everything.not_covered(&all, true).unwrap();
        assert_eq!(rest.example().0, Traffic::Port(Protocol::Udp, 1));
    }
}
