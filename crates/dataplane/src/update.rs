//! What leads from one plan to the next, so that no packet passes that both refuse.
//!
//! A packet goes through the rules that were there when it came to the base chain, and so through
//! the old ones or the new ones, in all chains. But a set is looked into as it is at that moment.
//! So what changes with the rules may change in any way, and what changes in place (elements of a
//! set that stays) has to be such that no packet in the old rules passes by it. What is not is put
//! there again, beside the old one, and the rules change with it:
//!
//! - An element less in a set of what is allowed makes the old rules refuse more, and that is always
//!   right.
//! - A connection with a remote address is judged by one chain, which allows it if one of its sets
//!   does. If the chain is the same before and after, whatever it allows in between is allowed
//!   before or after. If it is another chain afterwards, none of the sets that the old one looked into
//!   gets more remote addresses in place.
//! - What is about a local pod may change in any way, and in every set and map: its address is put into
//!   a set that the old rules ask for last, and the new ones do not. A packet in the old rules that comes
//!   there afterwards, from or to that pod, is dropped, because it may have met some of the old and some
//!   of the new. One that came there before has met nothing new. Packets of others look for other keys.
//!   So for any address while the ranges of the node change, as those can refuse what a set allows.
//! - Intervals, and maps of ports, never change in place.
//!
//! So a first packet that both plans allow can be lost, if it is in the rules in the nanoseconds of that
//! moment: also if a remote address moves from one set of a chain to an earlier one, and is found in
//! neither. It comes again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use portcullis_core::net::Family;

use crate::plan::{
    Chain, ChainId, Direction, Element, Elements, Expression, Key, Plan, Set, SetId,
};
use crate::state::Addresses;

/// The steps.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Update {
    /// To be put beside what is enforced.
    pub(crate) new_sets: BTreeSet<SetId>,
    pub(crate) new_chains: BTreeSet<ChainId>,
    /// Chains that stay and get other rules.
    pub(crate) changed_chains: BTreeSet<ChainId>,
    /// Sets that change in place.
    pub(crate) in_place: BTreeMap<SetId, Delta>,
    /// The addresses of which packets in the old rules may be allowed more than before, or led elsewhere:
    /// those of local pods, and of others if the node's ranges change too.
    pub(crate) changed: BTreeSet<IpAddr>,
    /// Elements that stay where they are and count for others than before.
    pub(crate) count_anew: BTreeMap<SetId, Vec<Key>>,
    /// What is not needed any more. A set that is new too is the old one of that name.
    pub(crate) old_sets: BTreeSet<SetId>,
    pub(crate) old_chains: BTreeSet<ChainId>,
}

/// How a set changes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Delta {
    pub(crate) added: Vec<Element>,
    pub(crate) removed: Vec<Element>,
}

impl Update {
    /// What leads from one plan to another. `in_place` allows to change sets in place.
    pub(crate) fn between(old: &Plan, new: &Plan, in_place: bool) -> Update {
        let mut update = Update::default();
        let sets = others(&old.sets, &new.sets);
        let mut chains = others(&old.chains, &new.chains);
        chains.retain(|(_, before, after)| before != after);
        for (id, before, set) in &sets {
            match (before, set) {
                (Some(before), Some(set)) => match changes(**id, before, set) {
                    Change::Same => {}
                    Change::Elements(delta) => _ = update.in_place.insert(**id, delta),
                    Change::Other => _ = update.new_sets.insert(**id),
                },
                (None, Some(_)) => _ = update.new_sets.insert(**id),
                (_, None) => _ = update.old_sets.insert(**id),
            }
        }
        let others = update.restructured(old, &chains);
        let read_by_others: BTreeSet<SetId> = match others.is_empty() {
            true => BTreeSet::new(),
            false => old
                .chains
                .iter()
                .filter(|(id, _)| id.family().is_some_and(|family| others.contains(&family)))
                .flat_map(|(_, chain)| looked_into(chain))
                .collect(),
        };
        let is_local =
            |address: &IpAddr| old.local.contains(address) || new.local.contains(address);
        let may_come = |id: &SetId, element: &Element| match element.key.address() {
            Some(address) => is_local(&address) || !read_by_others.contains(id),
            None => matches!(element.key, Key::Pair(..)),
        };
        let anew = update.in_place.iter().filter(|(id, delta)| {
            !in_place || !delta.added.iter().all(|element| may_come(id, element))
        });
        update.put_anew(anew.map(|(id, _)| *id).collect());
        update.find_changed(old, is_local);
        // They are asked for in both, or one of the two refuses nothing.
        let families = update.changed.iter().map(|address| SetId::Changed(Family::of(*address)));
        let both = |id: &SetId| old.sets.contains_key(id) && new.sets.contains_key(id);
        update.new_sets.extend(families.filter(both));
        update.change_chains(new, &chains);
        for (id, before, set) in &sets {
            if let (Some(before), Some(set), false) = (before, set, update.new_sets.contains(id)) {
                let keys = other_origins(before, set);
                if !keys.is_empty() {
                    update.count_anew.insert(**id, keys);
                }
            }
        }
        let again = update.new_sets.iter().filter(|id| old.sets.contains_key(id));
        update.old_sets.extend(again);
        for (id, before, after) in &chains {
            match (before, after) {
                (None, _) => _ = update.new_chains.insert(**id),
                (_, None) => _ = update.old_chains.insert(**id),
                _ => {}
            }
        }
        update
    }

    /// Sets that are put there again after all.
    fn put_anew(&mut self, sets: Vec<SetId>) {
        for id in sets {
            self.in_place.remove(&id);
            self.new_sets.insert(id);
        }
    }

    /// Finds the addresses about which something changes in place that the old rules must not pass by.
    fn find_changed(&mut self, old: &Plan, is_local: impl Fn(&IpAddr) -> bool) {
        // Whoever is isolated no longer, or known no longer, may be allowed more.
        let opens = |id: &SetId| matches!(id, SetId::Isolated(..) | SetId::Pods(_));
        let address = |element: &Element| element.key.address();
        for (id, Delta { added, removed }) in &self.in_place {
            let removed = removed.iter().filter(|_| opens(id));
            self.changed.extend(added.iter().chain(removed).filter_map(address));
        }
        // An address that is not a pod's is judged by one chain, and by the ranges of the node.
        let other_ranges = |address: &IpAddr| {
            let ranges = SetId::Ranges(Family::of(*address));
            self.new_sets.contains(&ranges) || self.old_sets.contains(&ranges)
        };
        self.changed.retain(|address| is_local(address) || other_ranges(address));
        for set in self.old_sets.iter().filter(|id| opens(id)).filter_map(|id| old.set(*id)) {
            self.changed.extend(set.elements().filter_map(|element| address(&element)));
        }
    }

    /// Finds the chains that stay and get other rules.
    fn change_chains(&mut self, new: &Plan, others: &[Other<'_, ChainId, Chain>]) {
        let stays =
            |id: &ChainId| !others.iter().any(|(new, before, _)| *new == id && before.is_none());
        let rules = others.iter().filter(|(_, before, after)| before.is_some() && after.is_some());
        self.changed_chains = rules.map(|(id, ..)| **id).collect();
        if !self.new_sets.is_empty() {
            // Only what several profiles share can be looked into by chains of any.
            let shared = |id: &SetId| matches!(id, SetId::Remote(..) | SetId::Local(..));
            let by_any = self.new_sets.iter().any(shared);
            let families: BTreeSet<_> = self.new_sets.iter().map(|id| id.family()).collect();
            let looks = |(id, chain): &(&ChainId, &Arc<Chain>)| {
                (by_any || families.contains(&id.family()))
                    && looked_into(chain).any(|set| self.new_sets.contains(&set))
            };
            let looking = new.chains.iter().filter(looks).map(|(id, _)| id);
            self.changed_chains.extend(looking.filter(|id| stays(id)));
        }
    }

    /// The profiles and directions whose chains or sets are others afterwards.
    fn restructured(
        &self,
        old: &Plan,
        chains: &[Other<'_, ChainId, Chain>],
    ) -> BTreeSet<(u32, Direction)> {
        let chains = chains.iter().filter(|(_, before, _)| before.is_some());
        let chains = chains.filter_map(|(id, ..)| id.family());
        let sets = self.new_sets.iter().filter(|id| old.sets.contains_key(id));
        chains.chain(sets.filter_map(|id| id.family())).collect()
    }

    /// Whether what is new may come with the rules, in one transaction, instead of before them. The
    /// kernel fills a set of intervals only after it has changed the rules.
    ///
    /// A chain that is new with the rules is empty to a packet in the old ones, but those lead only
    /// packets of [changed](Update::changed) addresses there.
    pub(crate) fn at_once(&self, new: &Plan) -> bool {
        !self.new_sets.iter().any(|id| new.set(*id).is_some_and(|set| set.interval))
    }

    /// How many elements are sent.
    pub(crate) fn elements(&self, new: &Plan) -> usize {
        let sets = self.new_sets.iter().filter_map(|id| new.set(*id)).map(Set::len);
        let deltas = self.in_place.values().map(|delta| delta.added.len() + delta.removed.len());
        sets.chain(deltas).sum::<usize>() + self.changed.len()
    }
}

/// Something that may not be the same in both plans: what it is in the old one and in the new one.
type Other<'a, Id, T> = (&'a Id, Option<&'a Arc<T>>, Option<&'a Arc<T>>);

/// All that the plans do not share.
fn others<'a, Id: Ord, T>(
    old: &'a BTreeMap<Id, Arc<T>>,
    new: &'a BTreeMap<Id, Arc<T>>,
) -> Vec<Other<'a, Id, T>> {
    let (mut before, mut after) = (old.iter().peekable(), new.iter().peekable());
    let mut others = Vec::new();
    while let Some(id) = match (before.peek(), after.peek()) {
        (Some((a, _)), Some((b, _))) => Some(*a.min(b)),
        (a, b) => a.or(b).map(|(id, _)| *id),
    } {
        let (_, old) = before.next_if(|(a, _)| *a == id).unzip();
        let (_, new) = after.next_if(|(b, _)| *b == id).unzip();
        if !old.zip(new).is_some_and(|(old, new)| Arc::ptr_eq(old, new)) {
            others.push((id, old, new));
        }
    }
    others
}

enum Change {
    Same,
    Elements(Delta),
    Other,
}

fn changes(id: SetId, old: &Set, new: &Set) -> Change {
    let kind = |set: &Set| (set.interval, set.counted, set.map);
    if kind(old) != kind(new) || old.key != new.key {
        return Change::Other;
    }
    let delta = match (&old.elements, &new.elements) {
        (Elements::Listed(old), Elements::Listed(new)) => listed(old, new),
        (
            Elements::Remote { of: before, local: old_local, family },
            Elements::Remote { of: after, local, .. },
        ) => {
            // Only these can be in one of the two.
            let (came, went) = after.changes(before);
            let of_one = |these: &[IpAddr], others: &[IpAddr]| -> Vec<IpAddr> {
                let one = these.iter().filter(|address| others.binary_search(address).is_err());
                one.copied().collect()
            };
            let moved = of_one(old_local, local).into_iter().chain(of_one(local, old_local));
            let candidates: BTreeSet<IpAddr> = came.into_iter().chain(went).chain(moved).collect();
            let mut delta = Delta::default();
            for address in candidates {
                if Family::of(address) != *family {
                    continue;
                }
                let is_in = |of: &Addresses, local: &[IpAddr]| {
                    of.contains(address) && local.binary_search(&address).is_err()
                };
                let (was, is) = (is_in(before, old_local), is_in(after, local));
                let element = Element::plain(Key::Address(address));
                match (was, is) {
                    (false, true) => delta.added.push(element),
                    (true, false) => delta.removed.push(element),
                    _ => {}
                }
            }
            delta
        }
        _ => return Change::Other,
    };
    match delta {
        Delta { added, removed } if added.is_empty() && removed.is_empty() => Change::Same,
        _ if new.interval => Change::Other,
        _ if new.map && !matches!(id, SetId::Isolated(..)) => Change::Other,
        delta => Change::Elements(delta),
    }
}

/// Both are sorted by key. What stays and has another verdict goes and comes.
fn listed(old: &[Element], new: &[Element]) -> Delta {
    let mut delta = Delta::default();
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    loop {
        match (old.peek(), new.peek()) {
            (Some(a), Some(b)) if a.key == b.key => {
                if a.verdict != b.verdict {
                    delta.removed.push(**a);
                    delta.added.push(**b);
                }
                old.next();
                new.next();
            }
            (Some(a), b) if b.is_none_or(|b| a.key < b.key) => delta.removed.extend(old.next()),
            (_, Some(_)) => delta.added.extend(new.next()),
            (_, None) => return delta,
        }
    }
}

/// The keys that are in both and count for others.
fn other_origins(old: &Set, new: &Set) -> Vec<Key> {
    let (Elements::Listed(before), Elements::Listed(after), true) =
        (&old.elements, &new.elements, new.counted)
    else {
        return Vec::new();
    };
    let mut before = before.iter().peekable();
    let mut others = Vec::new();
    for element in after {
        while before.next_if(|b| b.key < element.key).is_some() {}
        if let Some(same) = before.next_if(|b| b.key == element.key)
            && old.origins(same.origins) != new.origins(element.origins)
        {
            others.push(element.key);
        }
    }
    others
}

fn looked_into(chain: &Chain) -> impl Iterator<Item = SetId> {
    chain.rules.iter().flat_map(|rule| &rule.0).filter_map(|part| match part {
        Expression::Lookup(_, set) | Expression::Absent(_, set) | Expression::Map(_, set) => {
            Some(*set)
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use portcullis_core::net::Protocol;
    use proptest::collection::vec;
    use proptest::option::weighted;
    use proptest::prelude::*;

    use super::*;
    use crate::plan::plan;
    use crate::state::{Entry, NodeState, PeerSet, Ports, Profile};
    use crate::{Fake, Packet, random};

    /// A state, and one that may follow it: the same with some addresses more or less in its peer
    /// sets, and perhaps with the pods or the rules of another one.
    fn pairs() -> impl Strategy<Value = (NodeState, NodeState)> {
        // Where much is allowed, little is refused by both.
        let few = || {
            random::state().prop_map(|mut state| {
                for profile in state.profiles.values_mut() {
                    for rules in [&mut profile.ingress, &mut profile.egress].into_iter().flatten() {
                        let named = rules.iter().filter(|entry| entry.peers.is_some()).take(3);
                        *rules = named.copied().collect();
                    }
                }
                state
            })
        };
        let toggled = vec((any::<u32>(), random::address()), 0..12);
        let parts = (weighted(0.3, few()), any::<bool>(), any::<bool>(), any::<bool>());
        (few(), toggled, parts).prop_map(|(old, toggled, (other, pods, rules, ranges))| {
            let mut new = old.clone();
            let numbers: Vec<u32> = new.peers.keys().copied().collect();
            for (number, address) in toggled {
                let number = numbers[number as usize % numbers.len()];
                if let Some(PeerSet::Addresses(set)) = new.peers.get_mut(&number)
                    && !set.remove(address)
                {
                    set.insert(address);
                }
            }
            if let Some(other) = other {
                if rules {
                    new.profiles = other.profiles;
                }
                if pods {
                    new.endpoints = other.endpoints;
                }
                if ranges {
                    (new.ranges, new.audit, new.log) = (other.ranges, other.audit, other.log);
                }
                // What the rules of the other one name is there.
                for (number, set) in &other.peers {
                    new.peers.entry(*number).or_insert_with(|| set.clone());
                }
            }
            let known: Vec<u32> = new.profiles.keys().copied().collect();
            for profile in new.endpoints.values_mut() {
                *profile = known[*profile as usize % known.len()];
            }
            (old, new)
        })
    }

    fn addresses(texts: &[&str]) -> PeerSet {
        PeerSet::Addresses(texts.iter().map(|text| text.parse().unwrap()).collect())
    }

    fn entry(peers: u32, ports: Option<(u16, u16)>) -> Entry {
        let ports = ports.map(|(first, last)| Ports { protocol: Protocol::Udp, first, last });
        Entry { peers: Some(peers), ports, origin: 0 }
    }

    /// Profiles as ingress and egress.
    fn state(
        endpoints: &[(&str, u32)],
        profiles: &[[Option<&[Entry]>; 2]],
        peers: &[PeerSet],
    ) -> NodeState {
        let profile = |[ingress, egress]: &[Option<&[Entry]>; 2]| Profile {
            ingress: ingress.map(Into::into),
            egress: egress.map(Into::into),
            ..Profile::default()
        };
        NodeState {
            endpoints: endpoints
                .iter()
                .map(|(a, profile)| (a.parse().unwrap(), *profile))
                .collect(),
            profiles: (0..).zip(profiles.iter().map(profile)).collect(),
            peers: (0..).zip(peers.iter().cloned()).collect(),
            ..NodeState::default()
        }
    }

    /// Both states refuse what 10.0.0.1 sends to port 53 of 10.0.0.2, whichever follows the other,
    /// and so must every moment in between.
    #[track_caller]
    fn refused_throughout(a: &NodeState, b: &NodeState) {
        for (old, new) in [(a, b), (b, a)] {
            let (before, after) = (plan(old).unwrap(), plan(new).unwrap());
            let update = Update::between(&before, &after, true);
            let packet = Packet {
                source: "10.0.0.1".parse().unwrap(),
                destination: "10.0.0.2".parse().unwrap(),
                protocol: 17,
                port: Some(53),
                bytes: 60,
            };
            for plan in [&before, &after] {
                let mut fake = Fake::new();
                fake.apply_plan(plan.clone()).unwrap();
                assert!(!fake.passes(&packet), "one of the states allows it");
            }
            let passes = passes_in_between(&before, &after, &update, &[packet]);
            assert_eq!(passes, None, "{update:?}");
        }
    }

    #[test]
    fn one_end_opens_while_the_other_one_closes() {
        let rules = [entry(0, Some((53, 53)))];
        let more = [entry(1, Some((53, 53)))];
        let pair = |egress: &[&str], ingress: &[&str]| {
            let profiles = [[None, Some(&rules[..])], [Some(&more[..]), None]];
            let peers = [addresses(egress), addresses(ingress)];
            state(&[("10.0.0.1", 0), ("10.0.0.2", 1)], &profiles, &peers)
        };
        let open_out = pair(&["10.7.0.1", "10.0.0.2"], &["10.7.0.1"]);
        let open_in = pair(&["10.7.0.1"], &["10.7.0.1", "10.0.0.1"]);
        refused_throughout(&open_out, &open_in);
    }

    #[test]
    fn the_rules_change_and_the_set_that_they_look_into_too() {
        let many: Vec<String> = (0..600).map(|n| format!("10.8.{}.{}", n / 250, n % 250)).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let with: Vec<&str> = many.iter().copied().chain(["10.0.0.1"]).collect();
        for (without, with) in [(&many, &with), (&vec!["10.7.0.1"], &vec!["10.7.0.1", "10.0.0.1"])]
        {
            let wide = [entry(0, None)];
            let narrow = [entry(0, None), entry(0, Some((80, 90)))];
            let one = |rules: &[Entry], peers: &[&str]| {
                state(&[("10.0.0.2", 0)], &[[Some(rules), None]], &[addresses(peers)])
            };
            // The other rules name it for some ports only.
            refused_throughout(&one(&wide, without), &one(&narrow[1..], with));
        }
    }

    #[test]
    fn a_pod_leaves_a_profile_whose_set_grows() {
        let wide = [entry(0, None)];
        let profiles = [[Some(&wide[..]), None], [Some(&[][..]), None]];
        let one = |profile, peers: &[&str]| {
            let pods = [("10.0.0.2", profile), ("10.0.0.3", 0)];
            state(&pods, &profiles, &[addresses(peers)])
        };
        refused_throughout(&one(0, &["10.7.0.1"]), &one(1, &["10.7.0.1", "10.0.0.1"]));
    }

    /// 10.0.0.1 is a pod in one of the states: it may open nothing to 10.0.0.2, which would take it.
    fn with_and_without_a_pod(rules: &[Entry], then: &[Entry]) -> [NodeState; 2] {
        let (nothing, everyone) = ([], [entry(1, None)]);
        let one = |pods: &[(&str, u32)], rules: &[Entry], peers: &[&str]| {
            let profiles = [
                [Some(&everyone[..]), Some(&nothing[..])],
                [Some(rules), None],
                [None, Some(&everyone[..])],
            ];
            let peers = [addresses(peers), addresses(&["10.0.0.2", "10.7.0.1"])];
            let ranges = vec!["10.0.0.0/24".parse::<portcullis_core::net::IpNet>().unwrap().into()];
            NodeState { ranges, ..state(pods, &profiles, &peers) }
        };
        let (with, without) = (&["10.0.0.1", "10.0.0.4"][..], &["10.0.0.4"][..]);
        let others = [("10.0.0.2", 1), ("10.0.0.3", 0), ("10.0.0.4", 2)];
        let all: Vec<_> = others.into_iter().chain([("10.0.0.1", 0)]).collect();
        [one(&others, rules, without), one(&all, then, with)]
    }

    /// Nothing is put there again but the rules that ask what changed, and what they ask.
    fn changes_in_place(update: &Update, old: &Plan, pod: &str) -> bool {
        let again = update.new_sets.iter().filter(|id| old.sets.contains_key(id));
        again.eq(&[SetId::Changed(Family::V4)])
            && update.changed_chains == [ChainId::Base].into()
            && update.changed == [pod.parse().unwrap()].into()
    }

    #[test]
    fn a_pod_of_the_node_comes_and_goes_in_place() {
        let allowed = [entry(0, None)];
        let [mut without, mut with] = with_and_without_a_pod(&allowed, &allowed);
        for ranges in [with.ranges.clone(), Vec::new()] {
            (without.ranges, with.ranges) = (ranges.clone(), ranges);
            refused_throughout(&without, &with);
            for (old, new) in [(&without, &with), (&with, &without)] {
                let before = plan(old).unwrap();
                let update = Update::between(&before, &plan(new).unwrap(), true);
                assert!(changes_in_place(&update, &before, "10.0.0.1"), "{update:?}");
            }
        }
    }

    #[test]
    fn a_pod_of_the_node_gets_other_policies_in_place() {
        let (nothing, everyone, some) = ([], [entry(1, None)], [entry(0, None)]);
        let (nothing, everyone, some) = (Some(&nothing[..]), Some(&everyone[..]), Some(&some[..]));
        let one = |profiles: &[[Option<&[Entry]>; 2]], pods: [(&str, u32); 2], peers: &[&str]| {
            let pods: Vec<_> = pods.into_iter().chain([("10.0.0.3", 1), ("10.0.0.4", 2)]).collect();
            let all = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"];
            state(&pods, profiles, &[addresses(peers), addresses(&all)])
        };
        // While the pod closes, the other end opens to what it is then.
        let source = [[None, everyone], [None, nothing], [some, None]];
        let source =
            |profile, peers: &[&str]| one(&source, [("10.0.0.1", profile), ("10.0.0.2", 2)], peers);
        let source = [source(0, &["10.0.0.3"]), source(1, &["10.0.0.1", "10.0.0.3"])];
        let destination = [[everyone, None], [nothing, None], [None, some]];
        let destination = |profile, peers: &[&str]| {
            one(&destination, [("10.0.0.2", profile), ("10.0.0.1", 2)], peers)
        };
        let destination =
            [destination(0, &["10.0.0.3"]), destination(1, &["10.0.0.2", "10.0.0.3"])];
        for ([a, b], pod) in [(source, "10.0.0.1"), (destination, "10.0.0.2")] {
            refused_throughout(&a, &b);
            for (old, new) in [(&a, &b), (&b, &a)] {
                let mut old = old.clone();
                // It is the first that these policies select.
                old.profiles.retain(|number, _| old.endpoints.values().any(|used| used == number));
                let (before, after) = (plan(&old).unwrap(), plan(new).unwrap());
                let update = Update::between(&before, &after, true);
                assert!(changes_in_place(&update, &before, pod), "{update:?}");
                assert!(update.at_once(&after));
            }
        }
    }

    #[test]
    fn the_ranges_become_known_while_a_set_grows() {
        let rules = [entry(0, None)];
        let one = |ranges: &[&str], peers: &[&str]| {
            let ranges = ranges
                .iter()
                .map(|text| text.parse::<portcullis_core::net::IpNet>().unwrap().into());
            let profiles = [[Some(&rules[..]), None]];
            let state = state(&[("10.0.0.2", 0)], &profiles, &[addresses(peers)]);
            NodeState { ranges: ranges.collect(), ..state }
        };
        let unknown = one(&[], &["10.7.0.1"]);
        let known = one(&["10.0.0.0/31"], &["10.7.0.1", "10.0.0.1"]);
        refused_throughout(&unknown, &known);
    }

    #[test]
    fn the_last_pod_of_the_node_goes_while_its_set_grows() {
        let rules = [entry(0, None)];
        let one = |pods: &[(&str, u32)], peers: &[&str]| {
            let ranges = vec!["10.0.0.2/31".parse::<portcullis_core::net::IpNet>().unwrap().into()];
            let profiles = [[Some(&rules[..]), None]];
            NodeState { ranges, ..state(pods, &profiles, &[addresses(peers)]) }
        };
        let with = one(&[("10.0.0.2", 0)], &["10.7.0.1"]);
        let without = one(&[], &["10.7.0.1", "10.0.0.1"]);
        refused_throughout(&with, &without);
    }

    #[test]
    fn an_address_of_the_node_becomes_a_pod_s_while_other_rules_change() {
        let (wide, narrow) = ([entry(0, None)], [entry(0, Some((80, 90)))]);
        for [without, with] in
            [with_and_without_a_pod(&wide, &narrow), with_and_without_a_pod(&narrow, &wide)]
        {
            refused_throughout(&without, &with);
        }
    }

    #[test]
    fn an_address_of_the_node_becomes_that_of_a_pod_with_rules_of_its_own() {
        let (nothing, everyone) = ([], [entry(1, None)]);
        let one = |pods: &[(&str, u32)]| {
            let everyone = Some(&everyone[..]);
            let profiles = [[None, Some(&nothing[..])], [everyone, everyone]];
            let peers = [addresses(&["10.7.0.1"]), addresses(&["10.0.0.1", "10.7.0.1"])];
            let ranges = vec!["10.0.0.0/24".parse::<portcullis_core::net::IpNet>().unwrap().into()];
            NodeState { ranges, ..state(pods, &profiles, &peers) }
        };
        let with = one(&[("10.0.0.1", 0), ("10.0.0.2", 1)]);
        let mut without = one(&[("10.0.0.2", 1)]);
        without.profiles.remove(&0);
        let (before, after) = (plan(&without).unwrap(), plan(&with).unwrap());
        let update = Update::between(&before, &after, true);
        assert!(!update.in_place.is_empty() && !update.new_chains.is_empty(), "{update:?}");
        assert!(update.at_once(&after), "{update:?}");
        refused_throughout(&without, &with);
    }

    #[test]
    fn kinds_of_ports_change_places() {
        // The first kind of ports is 53 in one state, and 80 in the other.
        let (a, b) = (entry(0, Some((50, 55))), entry(1, Some((80, 85))));
        let one = |rules: &[Entry], first: &[&str], second: &[&str]| {
            let peers = [addresses(first), addresses(second)];
            state(&[("10.0.0.2", 0)], &[[Some(rules), None]], &peers)
        };
        let old = one(&[a], &["10.7.0.1"], &["10.7.0.1"]);
        let new = one(&[b], &["10.7.0.1"], &["10.7.0.1", "10.0.0.1"]);
        refused_throughout(&old, &new);
    }

    /// A packet that passes in the old rules if sets change while it is on its way, and after how many
    /// lookups they have to.
    fn passes_in_between(
        old: &Plan,
        new: &Plan,
        update: &Update,
        packets: &[Packet],
    ) -> Option<(Packet, usize)> {
        let mut fake = Fake::new();
        fake.apply_plan(prepared(old, new, update)).unwrap();
        let changed = update.in_place.keys();
        fake.meanwhile.elements = changed
            .map(|id| (*id, new.set(*id).unwrap().elements().map(|e| (e.key, e)).collect()))
            .collect();
        for address in &update.changed {
            let changed = fake.meanwhile.elements.entry(SetId::Changed(Family::of(*address)));
            let element = Element::plain(Key::Address(*address));
            changed.or_default().insert(element.key, element);
        }
        packets.iter().find_map(|packet| {
            (0..).find_map(|lookups| {
                fake.meanwhile.lookups = lookups;
                match fake.passes(packet) {
                    true => Some(Some((*packet, lookups))),
                    // It made fewer lookups, and so found only the old elements.
                    false => (fake.meanwhile.lookups > 0).then_some(None),
                }
            })?
        })
    }

    /// What is in the kernel before the rules change, or to packets that came then: the old plan, and
    /// beside it what is new, of which sets that are put there again have other names.
    fn prepared(old: &Plan, new: &Plan, update: &Update) -> Plan {
        let mut plan = old.clone();
        let beside = |id: SetId| match old.sets.contains_key(&id) {
            true => {
                let nth = update.new_sets.iter().position(|anew| *anew == id).unwrap();
                SetId::Remote(1_000_000 + nth as u32, Family::V4)
            }
            false => id,
        };
        for id in &update.new_sets {
            plan.sets.insert(beside(*id), new.sets[id].clone());
        }
        for id in &update.new_chains {
            if update.at_once(new) {
                plan.chains.insert(*id, Arc::new(Chain { rules: Vec::new() }));
                continue;
            }
            let mut chain = new.chain(*id).unwrap().clone();
            for part in chain.rules.iter_mut().flat_map(|rule| &mut rule.0) {
                if let Expression::Lookup(_, set) | Expression::Map(_, set) = part
                    && update.new_sets.contains(set)
                {
                    *set = beside(*set);
                }
            }
            plan.chains.insert(*id, Arc::new(chain));
        }
        plan
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

        #[test]
        fn what_both_refuse_never_passes_in_between(
            (old, new) in pairs(),
            packets in vec(random::packet(), 60),
        ) {
            let (before, after) = (plan(&old).unwrap(), plan(&new).unwrap());
            let update = Update::between(&before, &after, true);
            let [mut first, mut last] = [&before, &after].map(|plan| {
                let mut fake = Fake::new();
                fake.apply_plan(plan.clone()).unwrap();
                fake
            });
            let refused: Vec<Packet> = packets
                .into_iter()
                .filter(|packet| !first.passes(packet) && !last.passes(packet))
                .collect();
            prop_assert_eq!(passes_in_between(&before, &after, &update, &refused), None);
        }

        #[test]
        fn an_update_leads_to_the_new_plan((old, new) in pairs(), in_place in any::<bool>()) {
            let (before, after) = (plan(&old).unwrap(), plan(&new).unwrap());
            let update = Update::between(&before, &after, in_place);
            prop_assert!(in_place || update.in_place.is_empty());
            for (id, set) in &after.sets {
                if update.new_sets.contains(id) {
                    continue;
                }
                let mut there: BTreeMap<Key, Element> =
                    before.set(*id).unwrap().elements().map(|e| (e.key, e)).collect();
                if let Some(delta) = update.in_place.get(id) {
                    for element in &delta.removed {
                        prop_assert!(there.remove(&element.key).is_some(), "unknown delete");
                    }
                    for element in &delta.added {
                        prop_assert!(there.insert(element.key, *element).is_none(), "there already");
                    }
                }
                let wanted: Vec<_> = set.elements().map(|e| (e.key, e.verdict)).collect();
                let there: Vec<_> = there.into_values().map(|e| (e.key, e.verdict)).collect();
                prop_assert_eq!(there, wanted);
            }
            for (id, chain) in &after.chains {
                let same = before.chain(*id).is_some_and(|old| old.rules == chain.rules);
                let sent =
                    update.new_chains.contains(id) || update.changed_chains.contains(id);
                prop_assert!(same || sent);
            }
        }

        #[test]
        fn what_is_laid_out_after_another_state_is_as_if_it_were_the_first(
            states in vec(random::state(), 1..5),
        ) {
            let mut planner = crate::plan::Planner::default();
            for state in states {
                prop_assert_eq!(planner.plan(&state).unwrap(), plan(&state).unwrap());
                // The same with one address more.
                let mut next = state.clone();
                for set in next.peers.values_mut() {
                    if let PeerSet::Addresses(addresses) = set {
                        addresses.insert("10.0.0.9".parse().unwrap());
                    }
                }
                prop_assert_eq!(planner.plan(&next).unwrap(), plan(&next).unwrap());
            }
        }
    }
}
