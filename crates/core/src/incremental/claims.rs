//! Who owns an address. An address of a node is the node's, whatever pods say; of several pods it
//! is the first one's, by namespace and name.

use std::collections::BTreeMap;
use std::hash::BuildHasher;
use std::net::IpAddr;

use rustc_hash::FxBuildHasher;

use super::NodeProgram;
use crate::net::ByAddress;

#[derive(Debug, Default)]
pub(super) struct Claims {
    owners: ByAddress<u32>,
    /// Pods that claim an address that is another's.
    others: BTreeMap<IpAddr, Vec<u32>>,
    /// How many nodes and pods on host networks have an address.
    nodes: ByAddress<u32>,
}

impl Claims {
    /// The pod that owns the address.
    pub(super) fn owner(&self, address: IpAddr) -> Option<u32> {
        self.owners.get(&address).copied()
    }

    fn forget_other(&mut self, address: IpAddr, pod: u32) {
        if let Some(others) = self.others.get_mut(&address) {
            others.retain(|other| *other != pod);
            if others.is_empty() {
                self.others.remove(&address);
            }
        }
    }
}

impl NodeProgram {
    /// A pod claims its addresses, or brings them to its node.
    pub(super) fn announce(&mut self, id: u32) {
        let Some(pod) = self.pods.get(id) else { return };
        let subject = pod.class.is_some();
        for address in pod.addresses.clone() {
            match subject {
                true => self.claim(address, id),
                false => self.node_claims(address),
            }
        }
    }

    /// The reverse. Returns the pod's class, and whether it counts as one of this node's there.
    pub(super) fn withdraw(&mut self, id: u32) -> (Option<u32>, bool) {
        let Some(pod) = self.pods.get(id) else { return (None, false) };
        let was = (pod.class, pod.local);
        for address in pod.addresses.clone() {
            match was.0 {
                Some(_) => self.give_up(address, id),
                None => self.node_leaves(address),
            }
        }
        was
    }

    pub(super) fn node_claims(&mut self, address: IpAddr) {
        *self.claims.nodes.entry(address).or_default() += 1;
        if let Some(pod) = self.claims.owner(address) {
            self.disown(address, pod);
            self.claims.others.entry(address).or_default().push(pod);
        }
    }

    pub(super) fn node_leaves(&mut self, address: IpAddr) {
        if let Some(count) = self.claims.nodes.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                self.claims.nodes.remove(&address);
                self.pass_on(address);
            }
        }
    }

    fn claim(&mut self, address: IpAddr, pod: u32) {
        let owner = self.claims.owner(address);
        let is_node = self.claims.nodes.contains_key(&address);
        match owner {
            None if !is_node => self.own(address, pod),
            Some(owner) if self.pod_name(pod) < self.pod_name(owner) => {
                self.disown(address, owner);
                self.claims.others.entry(address).or_default().push(owner);
                self.own(address, pod);
            }
            _ => self.claims.others.entry(address).or_default().push(pod),
        }
    }

    fn give_up(&mut self, address: IpAddr, pod: u32) {
        if self.claims.owner(address) == Some(pod) {
            self.disown(address, pod);
            self.pass_on(address);
        } else {
            self.claims.forget_other(address, pod);
        }
    }

    /// Gives an address that nobody owns to the first that claims it.
    fn pass_on(&mut self, address: IpAddr) {
        let Some(others) = self.claims.others.get(&address) else { return };
        if let Some(next) = others.iter().copied().min_by_key(|pod| self.pod_name(*pod)) {
            self.claims.forget_other(address, next);
            self.own(address, next);
        }
    }

    fn pod_name(&self, pod: u32) -> Option<(&str, &str)> {
        self.pods.get(pod).map(|pod| (&*pod.namespace, &*pod.name))
    }

    fn own(&mut self, address: IpAddr, id: u32) {
        self.claims.owners.insert(address, id);
        self.count_in_sets(address, id, 1);
        let Some(pod) = self.pods.get(id).filter(|pod| pod.local) else { return };
        let class = pod.class.and_then(|class| self.classes.get(class));
        if let Some(profile) = class.and_then(|class| class.profile.as_ref()) {
            self.state.endpoints.insert(address, profile.number);
            let owner = FxBuildHasher.hash_one((&pod.namespace, &pod.name));
            self.state.owners.insert(address, owner);
        }
    }

    fn disown(&mut self, address: IpAddr, id: u32) {
        self.claims.owners.remove(&address);
        self.count_in_sets(address, id, -1);
        if self.pods.get(id).is_some_and(|pod| pod.local) {
            self.state.endpoints.remove(&address);
            self.state.owners.remove(&address);
        }
    }

    fn count_in_sets(&mut self, address: IpAddr, pod: u32, count: i32) {
        let class = self.pods.get(pod).and_then(|pod| self.classes.get(pod.class?));
        for set in class.iter().flat_map(|class| &class.sets) {
            if self.peers.get(&set.peer).is_some_and(|peer| peer.key.admits(address)) {
                self.pending.push((*set, address, count));
            }
        }
    }
}
