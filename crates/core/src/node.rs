//! What one node must enforce: addresses, ports and numbers, and nothing of Kubernetes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use crate::addresses::Addresses;
use crate::model::Direction;
use crate::net::IpRange;

pub use crate::program::Ports;

/// The desired state of one node. Profiles, peer sets and origins are known by numbers, which say
/// nothing but that: what has the same number in two states is the same thing, changed.
///
/// A copy shares with the original what is large, and so do two states of which one was made from
/// the other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeState {
    /// The addresses of the local pods, each with the number of its profile.
    pub endpoints: Shared<BTreeMap<IpAddr, u32>>,
    /// Who has them, as numbers that say nothing but who is another: an address that passes to
    /// another owner carries no flows over (SEMANTICS 25). An endpoint need not have one.
    pub owners: Shared<BTreeMap<IpAddr, u64>>,
    /// Where the addresses of local pods come from. One of these that no endpoint has is closed,
    /// both ways: it is of a pod that nobody has spoken of yet (SEMANTICS 26). Without ranges
    /// such an address is like any other.
    pub ranges: Vec<IpRange>,
    /// The profiles in use.
    pub profiles: Shared<BTreeMap<u32, Profile>>,
    /// Sets of remote addresses that entries name.
    pub peers: Shared<BTreeMap<u32, PeerSet>>,
    /// Where packets that are refused are told; without it they are only counted.
    pub log: Option<Log>,
    /// Whether nothing at all is refused, and what would be is only reported (SEMANTICS 28).
    pub audit: bool,
}

/// Something of which copies are one until one of them changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shared<T>(Arc<T>);

impl<T> Shared<T> {
    /// Whether they are one, and so are equal. Others can be equal too.
    pub fn same(&self, other: &Shared<T>) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Clone> DerefMut for Shared<T> {
    fn deref_mut(&mut self) -> &mut T {
        Arc::make_mut(&mut self.0)
    }
}

impl<T, I> FromIterator<I> for Shared<T>
where
    T: FromIterator<I>,
{
    fn from_iter<A: IntoIterator<Item = I>>(items: A) -> Shared<T> {
        Shared(Arc::new(items.into_iter().collect()))
    }
}

impl<K: Ord, V, const N: usize> From<[(K, V); N]> for Shared<BTreeMap<K, V>> {
    fn from(items: [(K, V); N]) -> Self {
        Shared(Arc::new(items.into()))
    }
}

impl<T> From<T> for Shared<T> {
    fn from(value: T) -> Shared<T> {
        Shared(Arc::new(value))
    }
}

impl<'a, T> IntoIterator for &'a Shared<T>
where
    &'a T: IntoIterator,
{
    type Item = <&'a T as IntoIterator>::Item;
    type IntoIter = <&'a T as IntoIterator>::IntoIter;

    fn into_iter(self) -> Self::IntoIter {
        (&*self.0).into_iter()
    }
}

/// Where packets are told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Log {
    /// The NFLOG group.
    pub group: u16,
    /// The most packets a second, in each direction. What is beyond is counted.
    pub rate: u32,
}

/// A class of local pods that the same rules select.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Profile {
    /// Connections to the pod: `None` is open, a list is isolated, and only what an entry allows
    /// passes.
    pub ingress: Option<Arc<[Entry]>>,
    /// Connections from the pod.
    pub egress: Option<Arc<[Entry]>>,
    /// Whether what no entry of ingress allows passes, and is only reported (SEMANTICS 28).
    pub audit_ingress: bool,
    /// The same for egress.
    pub audit_egress: bool,
}

impl Profile {
    /// What a direction allows; `None` where it is open.
    pub fn entries(&self, direction: Direction) -> Option<&Arc<[Entry]>> {
        match direction {
            Direction::Ingress => self.ingress.as_ref(),
            Direction::Egress => self.egress.as_ref(),
        }
    }

    /// Whether what a direction does not allow passes all the same.
    pub fn is_audited(&self, direction: Direction) -> bool {
        match direction {
            Direction::Ingress => self.audit_ingress,
            Direction::Egress => self.audit_egress,
        }
    }
}

/// One thing that is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Entry {
    /// The remote end: a key of [`NodeState::peers`]; `None` is any address at all.
    pub peers: Option<u32>,
    /// The destination ports; `None` is every protocol, also those without ports.
    pub ports: Option<Ports>,
    /// The rule that it comes from. Hits are counted by it.
    pub origin: u32,
}

/// Remote addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PeerSet {
    /// Pod addresses of both families. This is what grows.
    Addresses(Addresses),
    /// An `ipBlock` less its exceptions: sorted and disjoint.
    Ranges(Arc<[IpRange]>),
}

impl PeerSet {
    /// Whether the address is one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        match self {
            PeerSet::Addresses(addresses) => addresses.contains(address),
            PeerSet::Ranges(ranges) => ranges.iter().any(|range| range.contains(address)),
        }
    }

    /// Whether they share everything, and so are equal. Others can be equal too.
    pub fn same(&self, other: &PeerSet) -> bool {
        match (self, other) {
            (PeerSet::Addresses(a), PeerSet::Addresses(b)) => a.same(b),
            (PeerSet::Ranges(a), PeerSet::Ranges(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}
