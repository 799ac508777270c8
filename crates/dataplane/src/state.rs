//! What one node's kernel must enforce: the seam's language. It knows addresses, ports and
//! numbers, and nothing of Kubernetes or of nf_tables.

use std::collections::BTreeMap;
use std::net::IpAddr;

use portcullis_core::net::{IpRange, Protocol};

/// The desired state of one node. Profiles, peer sets and origins are named by their index.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeState {
    /// The addresses of the local pods, each with the index of its profile.
    pub endpoints: BTreeMap<IpAddr, u32>,
    /// Where the addresses of local pods come from. One of these that no endpoint has is closed,
    /// both ways: it is of a pod that nobody has spoken of yet (SEMANTICS 26). Without ranges
    /// such an address is like any other.
    pub ranges: Vec<IpRange>,
    /// Who has them, as numbers that say nothing but who is another: an address that passes to
    /// another owner carries no flows over (SEMANTICS 25). An endpoint need not have one.
    pub owners: BTreeMap<IpAddr, u64>,
    /// The profiles in use.
    pub profiles: Vec<Profile>,
    /// Sets of remote addresses that entries name; equal ones are one.
    pub peers: Vec<PeerSet>,
    /// How many origins there are: an entry's origin is below it.
    pub origins: u32,
}

/// A class of local pods that the same rules select.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Profile {
    /// Connections to the pod: `None` is open, a list is isolated, and only what an entry allows
    /// passes.
    pub ingress: Option<Vec<Entry>>,
    /// Connections from the pod.
    pub egress: Option<Vec<Entry>>,
}

/// One thing that is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The remote end: an index into [`NodeState::peers`]; `None` is any address at all.
    pub peers: Option<u32>,
    /// The destination ports; `None` is every protocol, also those without ports.
    pub ports: Option<Ports>,
    /// The rule that it comes from. Hits are counted by it.
    pub origin: u32,
}

/// Destination ports of one protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ports {
    /// The protocol.
    pub protocol: Protocol,
    /// The lowest port.
    pub first: u16,
    /// The highest port, included.
    pub last: u16,
}

/// Remote addresses.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PeerSet {
    /// Pod addresses of both families, sorted, each once. This is what grows.
    Addresses(Vec<IpAddr>),
    /// An `ipBlock` less its exceptions: sorted and disjoint.
    Ranges(Vec<IpRange>),
}

impl PeerSet {
    /// Whether the address is one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        match self {
            PeerSet::Addresses(addresses) => addresses.binary_search(&address).is_ok(),
            PeerSet::Ranges(ranges) => {
                let after = ranges.partition_point(|range| range.first <= address);
                after > 0 && ranges[after - 1].contains(address)
            }
        }
    }
}
