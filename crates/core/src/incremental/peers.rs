//! Peers that rules of local pods name, and the sets of addresses that they come to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::{ClassKey, NodeProgram, number_for};
use crate::labels::{Labels, Selector};
use crate::model::IpBlock;
use crate::net::Protocol;
use crate::node::PeerSet;
use crate::space;

/// A set of addresses: of a peer, those that resolve its port name to this number; 0 where it is
/// not about a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct SetKey {
    pub(super) peer: u32,
    pub(super) port: u16,
}

/// What a rule names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct PeerKey {
    pub(super) base: Base,
    /// A named port of egress: only the pods that have it.
    pub(super) name: Option<(String, Protocol)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Base {
    /// Every address.
    Any,
    Block(IpBlock),
    Pods {
        /// The namespace of the policy, where that matters.
        own: Option<Arc<str>>,
        pods: Option<Selector>,
        namespaces: Option<Selector>,
    },
}

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) key: Arc<PeerKey>,
    /// How many classes of local pods use it.
    users: u32,
    /// The numbers of its sets in the state, by port. Where it is about a name, only those that
    /// have addresses.
    pub(super) sets: BTreeMap<u16, u32>,
}

impl PeerKey {
    /// Whether it can have pods of a namespace.
    fn is_in(&self, namespace: &str, labels: &Labels) -> bool {
        match &self.base {
            Base::Any | Base::Block(_) => self.name.is_some(),
            Base::Pods { own: Some(own), .. } => **own == *namespace,
            Base::Pods { namespaces, .. } => {
                namespaces.as_ref().is_none_or(|selector| selector.matches(labels))
            }
        }
    }

    /// The ports of the sets that pods of a class are in, in a namespace where it can have pods.
    /// Nothing if they are not.
    fn ports(&self, class: &ClassKey) -> BTreeSet<u16> {
        if let Base::Pods { pods: Some(selector), .. } = &self.base
            && !selector.matches(&class.labels)
        {
            return BTreeSet::new();
        }
        let Some((name, protocol)) = &self.name else { return [0].into() };
        let named = class.ports.iter().filter(|port| {
            port.name.as_ref() == Some(name) && port.protocol == *protocol && port.port != 0
        });
        named.map(|port| port.port).collect()
    }

    /// Whether an address of such a pod is in its sets.
    pub(super) fn admits(&self, address: IpAddr) -> bool {
        match &self.base {
            Base::Block(block) => block.contains(address),
            Base::Any | Base::Pods { .. } => true,
        }
    }
}

impl NodeProgram {
    /// The peer, with one user more.
    pub(super) fn acquire(&mut self, key: PeerKey) -> u32 {
        if let Some(id) = self.peer_of.get(&key).copied() {
            if let Some(peer) = self.peers.get_mut(&id) {
                peer.users += 1;
            }
            return id;
        }
        let key = Arc::new(key);
        let sets = BTreeMap::new();
        let mut id = self.next_peer;
        while self.peers.contains_key(&id) {
            id = id.wrapping_add(1);
        }
        self.next_peer = id.wrapping_add(1);
        self.peers.insert(id, Peer { key: key.clone(), users: 1, sets });
        self.peer_of.insert(key.clone(), id);
        match (&key.base, &key.name) {
            (Base::Block(block), None) => {
                self.new_set(id, 0, PeerSet::Ranges(space::ranges(block).into()));
                return id;
            }
            (_, None) => self.new_set(id, 0, PeerSet::Addresses(Default::default())),
            // Its sets come with the ports that the name has.
            (_, Some(_)) => {}
        }
        let names: Vec<_> = match &key.base {
            Base::Pods { own: Some(own), .. } => vec![own.clone()],
            _ => self.namespaces.keys().cloned().collect(),
        };
        for name in names {
            if key.is_in(&name, &self.labels_of(&name)) {
                self.change_peers(&name, &BTreeSet::new(), &[id].into());
            }
        }
        id
    }

    /// The peer has one user less. Without any, it is no longer kept up.
    pub(super) fn release(&mut self, id: u32) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        peer.users -= 1;
        if peer.users > 0 {
            return;
        }
        for namespace in self.namespaces.values_mut() {
            namespace.peers.remove(&id);
        }
        self.pending.retain(|(set, ..)| set.peer != id);
        if let Some(peer) = self.peers.remove(&id) {
            self.peer_of.remove(&peer.key);
            for number in peer.sets.into_values() {
                self.state.peers.remove(&number);
            }
        }
    }

    /// Which peers can have pods of a namespace may have changed.
    pub(super) fn find_peers_of(&mut self, name: &Arc<str>) {
        let labels = self.labels_of(name);
        let of = self.peers.iter().filter(|(_, peer)| peer.key.is_in(name, &labels));
        let now: BTreeSet<u32> = of.map(|(id, _)| *id).collect();
        let Some(namespace) = self.namespaces.get(name) else { return };
        let gone = &namespace.peers - &now;
        let new = &now - &namespace.peers;
        if !gone.is_empty() || !new.is_empty() {
            self.change_peers(name, &gone, &new);
        }
    }

    /// Some peers no longer have pods of the namespace, and some now can have.
    fn change_peers(&mut self, name: &Arc<str>, gone: &BTreeSet<u32>, new: &BTreeSet<u32>) {
        let Some(namespace) = self.namespaces.get_mut(name) else { return };
        namespace.peers.retain(|peer| !gone.contains(peer));
        namespace.peers.extend(new);
        // What the addresses of each class lose and gain.
        let mut changes: BTreeMap<u32, (Vec<SetKey>, Vec<SetKey>)> = BTreeMap::new();
        let new: Vec<(u32, &Peer)> =
            new.iter().filter_map(|id| Some((*id, self.peers.get(id)?))).collect();
        for (key, id) in &namespace.classes {
            let gained: Vec<SetKey> = new
                .iter()
                .flat_map(|(peer, known)| {
                    let ports = known.key.ports(key).into_iter();
                    ports.map(move |port| SetKey { peer: *peer, port })
                })
                .collect();
            // Most classes are not concerned by one peer more.
            if gone.is_empty() && gained.is_empty() {
                continue;
            }
            let Some(class) = self.classes.get_mut(*id) else { continue };
            let lost: Vec<SetKey> =
                class.sets.iter().copied().filter(|set| gone.contains(&set.peer)).collect();
            if !lost.is_empty() || !gained.is_empty() {
                let stays = |peer: &u32| !gone.contains(peer) && self.peers.contains_key(peer);
                class.sets.retain(|set| stays(&set.peer));
                class.sets.extend(&gained);
                class.sets.sort_unstable();
                changes.insert(*id, (lost, gained));
            }
        }
        if changes.is_empty() {
            return;
        }
        for id in namespace.pods.values() {
            let Some(pod) = self.pods.get(*id) else { continue };
            let Some((lost, gained)) = pod.class.and_then(|class| changes.get(&class)) else {
                continue;
            };
            for address in &pod.addresses {
                if self.claims.owner(*address) != Some(*id) {
                    continue;
                }
                for (sets, count) in [(lost, -1), (gained, 1)] {
                    for set in sets {
                        let peer = self.peers.get(&set.peer);
                        if peer.is_some_and(|peer| peer.key.admits(*address)) {
                            self.pending.push((*set, *address, count));
                        }
                    }
                }
            }
        }
    }

    /// The sets that pods of a class are in, ascending.
    pub(super) fn sets_of(&self, namespace: &str, class: &ClassKey) -> Vec<SetKey> {
        let peers = self.namespaces.get(namespace).into_iter().flat_map(|known| &known.peers);
        let peers = peers.filter_map(|id| Some((*id, self.peers.get(id)?)));
        let sets = peers.flat_map(|(peer, known)| {
            known.key.ports(class).into_iter().map(move |port| SetKey { peer, port })
        });
        sets.collect()
    }

    fn new_set(&mut self, id: u32, port: u16, set: PeerSet) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        let taken = |number: u32| self.state.peers.contains_key(&number);
        let number = number_for(&(&peer.key, port), taken);
        peer.sets.insert(port, number);
        self.state.peers.insert(number, set);
    }

    /// Brings the sets of addresses up to date.
    pub(super) fn fill_sets(&mut self) {
        let mut pending = std::mem::take(&mut self.pending);
        pending.sort_unstable();
        let mut renamed = BTreeSet::new();
        for group in pending.chunk_by(|(a, ..), (b, ..)| a == b) {
            let key = group[0].0;
            let changes = group.chunk_by(|(_, a, _), (_, b, _)| a == b);
            let changes =
                changes.map(|same| (same[0].1, same.iter().map(|(.., n)| n).sum::<i32>()));
            let changes: Vec<_> = changes.filter(|(_, count)| *count != 0).collect();
            let Some(peer) = self.peers.get(&key.peer).filter(|_| !changes.is_empty()) else {
                continue;
            };
            let named = peer.key.name.is_some();
            if !peer.sets.contains_key(&key.port) {
                self.new_set(key.peer, key.port, PeerSet::Addresses(Default::default()));
                renamed.insert(key.peer);
            }
            let Some(peer) = self.peers.get_mut(&key.peer) else { continue };
            let Some(number) = peer.sets.get(&key.port).copied() else { continue };
            let Some(PeerSet::Addresses(set)) = self.state.peers.get_mut(&number) else { continue };
            if set.is_empty() {
                let came = changes.iter().filter(|(_, count)| *count > 0);
                *set = came.map(|(address, _)| *address).collect();
            } else {
                for (address, count) in changes {
                    match count > 0 {
                        true => set.insert(address),
                        false => set.remove(address),
                    };
                }
            }
            if named && set.is_empty() {
                peer.sets.remove(&key.port);
                self.state.peers.remove(&number);
                renamed.insert(key.peer);
            }
        }
        pending.clear();
        if pending.capacity() < 1 << 16 {
            self.pending = pending;
        }
        // Entries name the ports that a name has.
        for (id, class) in self.classes.iter().filter(|_| !renamed.is_empty()) {
            if class.profile.as_ref().is_some_and(|local| !local.uses.is_disjoint(&renamed)) {
                self.stale.insert(id);
            }
        }
    }
}
