//! What isolates a class of local pods, and what its policies allow.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::peers::{Base, PeerKey};
use super::{NodeOrigin, NodeProgram, number_for};
use crate::model::{self, Direction, Mode, Policy, PortMatch};
use crate::node::{Entry, Ports, Profile};

/// Where in a policy an allowance comes from: direction, rule, peer, port.
pub(super) type Place = (Direction, u32, Option<u32>, Option<u32>);

impl NodeProgram {
    /// Makes the rules of a class of local pods again.
    pub(super) fn make_rules(&mut self, id: u32) {
        let Some(class) = self.classes.get(id).filter(|class| class.profile.is_some()) else {
            return;
        };
        let (namespace, key) = (class.namespace.clone(), class.key.clone());
        let known = self.namespaces.get(&namespace);
        let mode_of_namespace = known.and_then(|namespace| namespace.mode);
        let policies = known.into_iter().flat_map(|n| &n.policies);
        let selecting = policies.filter(|(_, stored)| stored.policy.subject.matches(&key.labels));
        let selecting: Vec<(Arc<str>, Arc<Policy>)> =
            selecting.map(|(name, stored)| (name.clone(), stored.policy.clone())).collect();

        let mut uses = BTreeSet::new();
        let mut rules = |direction| {
            let isolating =
                || selecting.iter().filter(|(_, policy)| policy.rules(direction).is_some());
            isolating().next()?;
            let mut entries = Vec::new();
            for (name, policy) in isolating() {
                let place = (&namespace, name);
                self.allowed(place, policy, direction, &key.ports, &mut uses, &mut entries);
            }
            entries.sort_unstable();
            entries.dedup();
            Some(entries)
        };
        let (ingress, egress) = (rules(Direction::Ingress), rules(Direction::Egress));
        let audited = |direction| {
            let mut isolating =
                selecting.iter().filter(|(_, policy)| policy.rules(direction).is_some()).peekable();
            isolating.peek().is_some()
                && isolating.all(|(_, p)| p.mode.or(mode_of_namespace) == Some(Mode::Audit))
        };
        let (audit_ingress, audit_egress) =
            (audited(Direction::Ingress), audited(Direction::Egress));

        let Some(local) = self.classes.get_mut(id).and_then(|class| class.profile.as_mut()) else {
            return;
        };
        let number = local.number;
        local.policies = selecting.into_iter().map(|(name, _)| name).collect();
        let old_uses = std::mem::replace(&mut local.uses, uses);
        // What is as it was stays the same thing, and what another profile has is one thing with that.
        let own = self.state.profiles.get(&number);
        let one = |new: Vec<Entry>, direction| {
            let known = own.into_iter().chain(self.state.profiles.values());
            let mut known = known.filter_map(|profile| profile.entries(direction));
            known.find(|known| ***known == *new).cloned().unwrap_or_else(|| new.into())
        };
        let profile = Profile {
            ingress: ingress.map(|new| one(new, Direction::Ingress)),
            egress: egress.map(|new| one(new, Direction::Egress)),
            audit_ingress,
            audit_egress,
        };
        if own != Some(&profile) {
            self.state.profiles.insert(number, profile);
        }
        self.version += 1;
        for peer in old_uses {
            self.release(peer);
        }
    }

    /// The policies that select a class, of this node or not, with their modes.
    pub(super) fn selecting(&self, id: u32) -> impl Iterator<Item = (&Arc<Policy>, Mode)> {
        let class = self.classes.get(id);
        let known = class.and_then(|class| self.namespaces.get(&class.namespace));
        let policies = known.into_iter().flat_map(|namespace| {
            let mode = namespace.mode;
            namespace.policies.values().map(move |stored| (&stored.policy, mode))
        });
        policies
            .filter(move |(policy, _)| {
                class.is_some_and(|class| policy.subject.matches(&class.key.labels))
            })
            .map(|(policy, mode)| (policy, policy.mode.or(mode).unwrap_or_default()))
    }

    /// The entries of a policy for pods that have these ports.
    fn allowed(
        &mut self,
        (namespace, name): (&Arc<str>, &Arc<str>),
        policy: &Policy,
        direction: Direction,
        ports: &[model::ContainerPort],
        uses: &mut BTreeSet<u32>,
        entries: &mut Vec<Entry>,
    ) {
        for (rule_index, rule) in (0..).zip(policy.rules(direction).unwrap_or_default()) {
            let named = (0..).zip(&rule.peers).map(|(i, peer)| (Some(i), base(namespace, peer)));
            let mut peers: Vec<(Option<u32>, Base)> = named.collect();
            if rule.peers.is_empty() {
                peers.push((None, Base::Any));
            }
            for (peer_index, base) in peers {
                let mut allow = |program: &mut Self, port, peers, ports| {
                    let place = (direction, rule_index, peer_index, port);
                    let origin = program.origin(namespace, name, place);
                    entries.push(Entry { peers, ports, origin });
                };
                if rule.ports.is_empty() {
                    let peers = self.whole(&base, uses);
                    allow(self, None, peers, None);
                }
                for (port_index, port) in (0..).zip(&rule.ports) {
                    let protocol = port.protocol;
                    let ports_of = |first, last| Some(Ports { protocol, first, last });
                    let port_index = Some(port_index);
                    match &port.port {
                        PortMatch::All => {
                            let peers = self.whole(&base, uses);
                            allow(self, port_index, peers, ports_of(0, u16::MAX));
                        }
                        PortMatch::Range(first, last) => {
                            let peers = self.whole(&base, uses);
                            allow(self, port_index, peers, ports_of(*first, *last));
                        }
                        // At ingress a name is resolved at the subject.
                        PortMatch::Named(wanted) if direction == Direction::Ingress => {
                            let numbers = ports.iter().filter(|p| {
                                p.name.as_ref() == Some(wanted) && p.protocol == protocol
                            });
                            for number in numbers.map(|p| p.port).filter(|port| *port != 0) {
                                let peers = self.whole(&base, uses);
                                allow(self, port_index, peers, ports_of(number, number));
                            }
                        }
                        PortMatch::Named(wanted) => {
                            let name = Some((wanted.clone(), protocol));
                            let peer = self.use_peer(PeerKey { base: base.clone(), name }, uses);
                            let sets = self.peers.get(&peer).map(|peer| peer.sets.clone());
                            for (number, set) in sets.into_iter().flatten() {
                                allow(self, port_index, Some(set), ports_of(number, number));
                            }
                        }
                    }
                }
            }
        }
    }

    /// The set of all that a rule names; `None` is every address.
    fn whole(&mut self, base: &Base, uses: &mut BTreeSet<u32>) -> Option<u32> {
        if *base == Base::Any {
            return None;
        }
        let peer = self.use_peer(PeerKey { base: base.clone(), name: None }, uses);
        self.peers.get(&peer)?.sets.get(&0).copied()
    }

    /// The peer, used once by the class whose rules are being made.
    fn use_peer(&mut self, key: PeerKey, uses: &mut BTreeSet<u32>) -> u32 {
        let peer = self.acquire(key);
        if !uses.insert(peer) {
            self.release(peer);
        }
        peer
    }

    fn origin(&mut self, namespace: &Arc<str>, name: &Arc<str>, place: Place) -> u32 {
        let stored = self.namespaces.get_mut(namespace).and_then(|n| n.policies.get_mut(name));
        let Some(stored) = stored else { return 0 };
        if let Some(origin) = stored.origins.get(&place) {
            return *origin;
        }
        let taken = |number: u32| self.origins.contains_key(&number);
        let number = number_for(&(namespace, name, place), taken);
        stored.origins.insert(place, number);
        let (direction, rule, peer, port) = place;
        let (namespace, name) = (namespace.clone(), name.clone());
        let origin = NodeOrigin { namespace, name, direction, rule, peer, port };
        self.origins.insert(number, origin);
        number
    }
}

fn base(namespace: &Arc<str>, peer: &model::Peer) -> Base {
    match peer {
        model::Peer::Block(block) => Base::Block(block.clone()),
        model::Peer::Pods { pods, namespaces } => Base::Pods {
            own: namespaces.is_none().then(|| namespace.clone()),
            pods: pods.clone(),
            namespaces: namespaces.clone(),
        },
    }
}
