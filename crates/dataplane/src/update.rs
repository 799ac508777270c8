//! What leads from one plan to the next, so that no packet passes that both refuse.
//!
//! A packet goes through the rules that were there when it came to the base chain, and so through
//! the old ones or the new ones, in all chains. But a set is looked into as it is at that moment.
//! So what changes with the rules may change in any way, and what changes in place (elements of a
//! set that stays) has to be such that no packet in the old rules passes by it:
//!
//! - A connection between two local pods is judged by two chains. What a set says of the address of
//!   a local pod never changes in place: the set is put there again, beside the old one, and the
//!   rules change with it.
//! - A connection with a remote address is judged by one chain, which allows it if one of its sets
//!   does. If the chain is the same before and after, whatever it allows in between is allowed
//!   before or after. If it is another chain afterwards, or another chain's turn, none of the sets
//!   that the old one looked into gets more elements in place.
//! - Intervals and maps never change in place.
//!
//! An address that moves from one set of a chain to an earlier one can, for the nanoseconds of that
//! moment, be found in neither: a first packet that both plans allow is then lost, and comes again.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::plan::{
    Chain, ChainId, Direction, Element, Elements, Expression, Key, OriginsId, Plan, Set, SetId,
    Verdict,
};

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
        for (id, set) in &new.sets {
            match old.sets.get(id) {
                Some(before) if Arc::ptr_eq(before, set) => {}
                Some(before) => match changes(before, set) {
                    Change::Same => {}
                    Change::Elements(delta) => _ = update.in_place.insert(*id, delta),
                    Change::Other => _ = update.new_sets.insert(*id),
                },
                None => _ = update.new_sets.insert(*id),
            }
        }
        let is_local = |element: &Element| match element.key {
            Key::Address(a) | Key::Service(a, ..) => {
                old.local.contains(&a) || new.local.contains(&a)
            }
            Key::Pair(..) | Key::Addresses(_) | Key::Ports(_) => true,
        };
        let others = update.restructured(old, new);
        let keep = |id: &SetId, delta: &Delta| {
            in_place
                && !delta.added.iter().chain(&delta.removed).any(is_local)
                && id.family().is_none_or(|family| !others.contains(&family))
        };
        let mut anew: BTreeSet<SetId> = BTreeSet::new();
        anew.extend(
            update.in_place.iter().filter(|(id, delta)| !keep(id, delta)).map(|(id, _)| *id),
        );
        for (id, chain) in &old.chains {
            if id.family().is_some_and(|family| others.contains(&family)) {
                anew.extend(looked_into(chain).filter(|set| {
                    update.in_place.get(set).is_some_and(|delta| !delta.added.is_empty())
                }));
            }
        }
        update.in_place.retain(|id, _| !anew.contains(id));
        update.new_sets.extend(anew);

        for (id, chain) in &new.chains {
            let Some(before) = old.chains.get(id) else {
                update.new_chains.insert(*id);
                continue;
            };
            if before.rules != chain.rules
                || looked_into(chain).any(|set| update.new_sets.contains(&set))
            {
                update.changed_chains.insert(*id);
            }
        }
        for (id, set) in &new.sets {
            let before = old.sets.get(id).filter(|_| !update.new_sets.contains(id));
            let Some(before) = before.filter(|before| !Arc::ptr_eq(before, set)) else { continue };
            let keys = other_origins(before, set);
            if !keys.is_empty() {
                update.count_anew.insert(*id, keys);
            }
        }
        let of_old = |id: &&SetId| !new.sets.contains_key(id) || update.new_sets.contains(id);
        update.old_sets = old.sets.keys().filter(of_old).copied().collect();
        let gone = old.chains.keys().filter(|id| !new.chains.contains_key(id));
        update.old_chains = gone.copied().collect();
        update
    }

    /// The profiles and directions that mean something else to a packet in the old rules than they
    /// do afterwards: whose chains or maps are others, or that a pod leaves for another.
    fn restructured(&self, old: &Plan, new: &Plan) -> BTreeSet<(u32, Direction)> {
        let chains = old.chains.iter().filter(|(id, chain)| {
            new.chains.get(id).is_none_or(|after| !Arc::ptr_eq(chain, after) && *chain != after)
        });
        let chains = chains.filter_map(|(id, _)| id.family());
        let sets = self.new_sets.iter().filter(|id| old.sets.contains_key(id));
        let mut others: BTreeSet<_> = chains.chain(sets.filter_map(|id| id.family())).collect();
        for id in &self.new_sets {
            let (SetId::Isolated(..), Some(before), Some(after)) = (id, old.set(*id), new.set(*id))
            else {
                continue;
            };
            let after: BTreeMap<Key, Element> = after.elements().map(|e| (e.key, e)).collect();
            for element in before.elements() {
                let moved = after.get(&element.key).is_some_and(|e| e.verdict != element.verdict);
                if let (true, Some(Verdict::Jump(chain))) = (moved, element.verdict) {
                    others.extend(chain.family());
                }
            }
        }
        others
    }

    /// How many elements are sent.
    pub(crate) fn elements(&self, new: &Plan) -> usize {
        let sets = self.new_sets.iter().filter_map(|id| new.set(*id)).map(Set::len);
        let deltas = self.in_place.values().map(|delta| delta.added.len() + delta.removed.len());
        sets.chain(deltas).sum()
    }
}

enum Change {
    Same,
    Elements(Delta),
    Other,
}

fn changes(old: &Set, new: &Set) -> Change {
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
            let moved = old_local.symmetric_difference(local).copied();
            let candidates: BTreeSet<IpAddr> = came.into_iter().chain(went).chain(moved).collect();
            let mut delta = Delta::default();
            for address in candidates {
                if portcullis_core::net::Family::of(address) != *family {
                    continue;
                }
                let was = before.contains(address) && !old_local.contains(&address);
                let is = after.contains(address) && !local.contains(&address);
                let element = Element {
                    key: Key::Address(address),
                    origins: OriginsId::default(),
                    verdict: None,
                };
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
        _ if new.interval || new.map => Change::Other,
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
        let parts = (weighted(0.3, few()), any::<bool>(), any::<bool>());
        (few(), toggled, parts).prop_map(|(old, toggled, (other, pods, rules))| {
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
                // What the rules of the other one name is there.
                for (number, set) in other.peers {
                    new.peers.entry(number).or_insert(set);
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
            for mut moment in moments(&before, &after, &update) {
                assert!(!moment.passes(&packet), "{update:?}");
            }
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

    /// The old rules while the elements of some sets are already the new ones.
    fn between(old: &Plan, new: &Plan, update: &Update, is_new: impl Fn(SetId) -> bool) -> Fake {
        let mut plan = old.clone();
        for id in update.in_place.keys().filter(|id| is_new(**id)) {
            if let (Some(set), true) = (new.sets.get(id), old.sets.contains_key(id)) {
                plan.sets.insert(*id, set.clone());
            }
        }
        let mut fake = Fake::new();
        fake.apply_plan(plan).unwrap();
        fake
    }

    /// What a packet in the old rules can find, by how far the sets are.
    fn moments(before: &Plan, after: &Plan, update: &Update) -> [Fake; 5] {
        let egress = |id: SetId| id.family().is_some_and(|(_, d)| d == Direction::Egress);
        [
            between(before, after, update, |_| true),
            between(before, after, update, |id| !egress(id)),
            between(before, after, update, egress),
            between(before, after, update, |id| id.family().is_none()),
            between(before, after, update, |id| id.family().is_some()),
        ]
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
            let mut moments = moments(&before, &after, &update);
            let [mut first, mut last] = [before, after].map(|plan| {
                let mut fake = Fake::new();
                fake.apply_plan(plan).unwrap();
                fake
            });
            for packet in packets {
                if first.passes(&packet) || last.passes(&packet) {
                    continue;
                }
                for (i, moment) in moments.iter_mut().enumerate() {
                    prop_assert!(!moment.passes(&packet), "moment {}: {:?}", i, packet);
                }
            }
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
