//! Addresses, blocks, protocols and ports: the words a policy uses for packets.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub use ipnet::IpNet;
use ipnet::{Ipv4Subnets, Ipv6Subnets};

/// Values by address. Not with the quick hasher of the other maps: neighbouring IPv6 addresses
/// differ in their last bytes only, and it would give them all one place.
pub type ByAddress<T> = HashMap<IpAddr, T>;

/// An address family. Families never mix: `0.0.0.0/0` says nothing about IPv6 (SEMANTICS 18).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both families, IPv4 first.
    pub const ALL: [Family; 2] = [Family::V4, Family::V6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Family {
        match address {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
    }
}

/// A protocol that a policy can name (`NetworkPolicyPort.protocol`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP, the default where a policy names none.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// All three.
    pub const ALL: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

    /// The name as the API spells it. Only this spelling is valid in a policy.
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        }
    }

    /// The number in the IP header (IANA protocol numbers).
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }

    /// Reads the API's spelling; `None` for anything else, other case included.
    pub fn from_api(name: &str) -> Option<Protocol> {
        Protocol::ALL.into_iter().find(|p| p.as_str() == name)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a connection is opened on: a port of a protocol that has ports, or anything else.
///
/// A policy cannot tell the protocols without ports from each other (SEMANTICS 15), so ICMP,
/// ICMPv6 and the rest are one value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Traffic {
    /// A destination port of TCP, UDP or SCTP.
    Port(Protocol, u16),
    /// ICMP, ICMPv6 and every other protocol.
    Other,
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Traffic::Port(protocol, port) => write!(f, "{port}/{protocol}"),
            Traffic::Other => f.write_str("ICMP"),
        }
    }
}

/// Addresses from `first` to `last`, both included and of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IpRange {
    /// The lowest address.
    pub first: IpAddr,
    /// The highest address.
    pub last: IpAddr,
}

impl IpRange {
    /// Every address of a family.
    pub fn all(family: Family) -> IpRange {
        match family {
            Family::V4 => {
                IpRange { first: Ipv4Addr::UNSPECIFIED.into(), last: Ipv4Addr::BROADCAST.into() }
            }
            Family::V6 => IpRange {
                first: Ipv6Addr::UNSPECIFIED.into(),
                last: Ipv6Addr::from(u128::MAX).into(),
            },
        }
    }

    /// Whether the address lies in the range. An address of the other family never does.
    pub fn contains(&self, address: IpAddr) -> bool {
        Family::of(address) == Family::of(self.first)
            && self.first <= address
            && address <= self.last
    }

    /// The fewest CIDRs that have exactly these addresses, ascending.
    pub fn cidrs(&self) -> Vec<IpNet> {
        match (self.first, self.last) {
            (IpAddr::V4(first), IpAddr::V4(last)) => {
                Ipv4Subnets::new(first, last, 0).map(IpNet::V4).collect()
            }
            (IpAddr::V6(first), IpAddr::V6(last)) => {
                Ipv6Subnets::new(first, last, 0).map(IpNet::V6).collect()
            }
            _ => Vec::new(),
        }
    }
}

impl From<IpNet> for IpRange {
    fn from(net: IpNet) -> IpRange {
        IpRange { first: net.network(), last: net.broadcast() }
    }
}

/// The address after this one in its family; `None` after the last.
pub fn next_address(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(a) => u32::from(a).checked_add(1).map(|n| Ipv4Addr::from(n).into()),
        IpAddr::V6(a) => u128::from(a).checked_add(1).map(|n| Ipv6Addr::from(n).into()),
    }
}

/// The address before this one in its family; `None` before the first.
pub fn previous_address(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(a) => u32::from(a).checked_sub(1).map(|n| Ipv4Addr::from(n).into()),
        IpAddr::V6(a) => u128::from(a).checked_sub(1).map(|n| Ipv6Addr::from(n).into()),
    }
}
