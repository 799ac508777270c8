//! Who owns an address. An address of a node is the node's, whatever pods say. One that several pods
//! claim is theirs as if they were one if they are alike; otherwise it is nobody's, and closed
//! (SEMANTICS 13).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::{NodeProgram, number_for, number_of};
use crate::model::{Direction, Mode};
use crate::net::ByAddress;
use crate::node::Profile;

#[derive(Debug, Default)]
pub(super) struct Claims {
    /// Of several pods that are alike, the first by name.
    owners: ByAddress<u32>,
    /// The pods that claim an address and do not own it.
    others: BTreeMap<IpAddr, Vec<u32>>,
    /// How many nodes and pods on host networks have an address.
    nodes: ByAddress<u32>,
    /// The numbers of the profiles of disputed addresses, as of the last state.
    closed: BTreeMap<IpAddr, u32>,
}

impl Claims {
    /// The pod that owns the address.
    pub(super) fn owner(&self, address: IpAddr) -> Option<u32> {
        self.owners.get(&address).copied()
    }

    /// All pods that an address can be; none if it is a node's.
    pub(super) fn claimants(&self, address: IpAddr) -> impl Iterator<Item = u32> {
        let others = self.others.get(&address).filter(|_| !self.nodes.contains_key(&address));
        self.owner(address).into_iter().chain(others.into_iter().flatten().copied())
    }
}

impl NodeProgram {
    /// A pod claims its addresses, or brings them to its node.
    pub(super) fn announce(&mut self, id: u32) {
        let Some(pod) = self.pods.get(id) else { return };
        let subject = pod.class.is_some();
        for address in pod.addresses.clone() {
            match subject {
                true => self.change_claims(address, |pods| pods.push(id)),
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
                Some(_) => self.change_claims(address, |pods| pods.retain(|pod| *pod != id)),
                None => self.node_leaves(address),
            }
        }
        was
    }

    pub(super) fn node_claims(&mut self, address: IpAddr) {
        *self.claims.nodes.entry(address).or_default() += 1;
        self.change_claims(address, |_| {});
    }

    pub(super) fn node_leaves(&mut self, address: IpAddr) {
        if let Some(count) = self.claims.nodes.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                self.claims.nodes.remove(&address);
                self.change_claims(address, |_| {});
            }
        }
    }

    /// Changes which pods claim an address, and finds out whose it is then.
    fn change_claims(&mut self, address: IpAddr, change: impl FnOnce(&mut Vec<u32>)) {
        let mut pods = self.claims.others.remove(&address).unwrap_or_default();
        if let Some(owner) = self.claims.owner(address) {
            self.disown(address, owner);
            pods.push(owner);
        }
        change(&mut pods);
        let class = |pod: &u32| self.pods.get(*pod).and_then(|pod| pod.class);
        let alike = pods.iter().all(|pod| class(pod) == pods.first().and_then(class));
        if alike
            && !self.claims.nodes.contains_key(&address)
            && let Some(owner) = pods.iter().copied().min_by_key(|pod| self.pod_name(*pod))
        {
            let local = pods.iter().any(|pod| self.pods.get(*pod).is_some_and(|pod| pod.local));
            self.own(address, owner, local);
            pods.retain(|pod| *pod != owner);
        }
        if !pods.is_empty() {
            self.claims.others.insert(address, pods);
        }
    }

    fn pod_name(&self, pod: u32) -> Option<(&str, &str)> {
        self.pods.get(pod).map(|pod| (&*pod.namespace, &*pod.name))
    }

    fn own(&mut self, address: IpAddr, id: u32, local: bool) {
        self.claims.owners.insert(address, id);
        self.count_in_sets(address, id, 1);
        let Some(pod) = self.pods.get(id).filter(|_| local) else { return };
        let class = pod.class.and_then(|class| self.classes.get(class));
        if let Some(profile) = class.and_then(|class| class.profile.as_ref()) {
            self.state.endpoints.insert(address, profile.number);
            self.state.owners.insert(address, pod.owner);
        }
    }

    fn disown(&mut self, address: IpAddr, id: u32) {
        self.claims.owners.remove(&address);
        self.count_in_sets(address, id, -1);
        self.forget_endpoint(address);
    }

    /// The address is no endpoint. Most never were one, and then the state goes on to share what it has with
    /// earlier ones.
    fn forget_endpoint(&mut self, address: IpAddr) {
        if self.state.endpoints.contains_key(&address) {
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

    /// Closes the addresses of this node that pods claim which are not alike. That there are any is
    /// rare, and soon over; so they are looked at anew each time.
    pub(super) fn close_disputed(&mut self) {
        if self.claims.others.is_empty() && self.claims.closed.is_empty() {
            return;
        }
        let disputed = self.claims.others.keys().filter(|address| {
            self.claims.owner(**address).is_none() && !self.claims.nodes.contains_key(address)
        });
        let closed = disputed.filter_map(|address| Some((*address, self.closed(*address)?)));
        let closed: BTreeMap<IpAddr, (Profile, u64)> = closed.collect();
        for (address, number) in std::mem::take(&mut self.claims.closed) {
            if closed.contains_key(&address) {
                self.claims.closed.insert(address, number);
                continue;
            }
            self.state.profiles.remove(&number);
            if self.state.endpoints.get(&address) == Some(&number) {
                self.forget_endpoint(address);
            }
            self.version += 1;
        }
        for (address, (profile, owner)) in closed {
            let taken = |number: u32| self.state.profiles.contains_key(&number);
            let known = self.claims.closed.get(&address).copied();
            let number = known.unwrap_or_else(|| number_for(&("disputed", address), taken));
            self.claims.closed.insert(address, number);
            if self.state.profiles.get(&number) != Some(&profile) {
                self.state.profiles.insert(number, profile);
                self.version += 1;
            }
            if self.state.endpoints.get(&address) != Some(&number)
                || self.state.owners.get(&address) != Some(&owner)
            {
                self.state.endpoints.insert(address, number);
                self.state.owners.insert(address, owner);
            }
        }
    }

    /// The profile of an address that pods claim which are not alike, and who they are together. It
    /// allows nothing in a direction in which any of them is isolated. `None` if none is of this node.
    fn closed(&self, address: IpAddr) -> Option<(Profile, u64)> {
        let pods = || self.claims.claimants(address).filter_map(|id| self.pods.get(id));
        pods().find(|pod| pod.local)?;
        let mut owners: Vec<u64> = pods().map(|pod| pod.owner).collect();
        owners.sort_unstable();
        let classes: BTreeSet<u32> = pods().filter_map(|pod| pod.class).collect();
        let mut profile = Profile::default();
        for direction in Direction::ALL {
            let selecting = classes.iter().flat_map(|class| self.selecting(*class));
            let isolating = selecting.filter(|(policy, _)| policy.rules(direction).is_some());
            let modes: Vec<Mode> = isolating.map(|(_, mode)| mode).collect();
            if modes.is_empty() {
                continue;
            }
            let audited = modes.iter().all(|mode| *mode == Mode::Audit);
            let nothing = Some(Arc::default());
            match direction {
                Direction::Ingress => {
                    (profile.ingress, profile.audit_ingress) = (nothing, audited);
                }
                Direction::Egress => (profile.egress, profile.audit_egress) = (nothing, audited),
            }
        }
        Some((profile, number_of(owners.into_iter().flat_map(u64::to_ne_bytes))))
    }

    /// The numbers of the profiles of disputed addresses that a pod of these profiles claims.
    pub(super) fn closed_for(&self, profiles: &BTreeSet<u32>) -> Vec<u32> {
        let number = |pod: u32| self.classes.get(self.pods.get(pod)?.class?)?.profile.as_ref();
        let of_these = |pod: u32| number(pod).is_some_and(|local| profiles.contains(&local.number));
        let closed = self.claims.closed.iter();
        let closed = closed.filter(|(address, _)| self.claims.claimants(**address).any(of_these));
        closed.map(|(_, number)| *number).collect()
    }
}
