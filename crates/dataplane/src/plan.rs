//! A table of nf_tables as plain data: sets, maps, chains and rules.
//!
//! There is one table, `inet portcullis`. Its chains and sets refer to each other by index, and the
//! names depend on the state alone.

use std::net::IpAddr;
use std::time::Duration;

use portcullis_core::net::{Family, IpRange};

use crate::Report;
use crate::state::Ports;

pub use crate::layout::plan;
pub use crate::render::render;

/// The name of the table; its family is `inet`.
pub const TABLE: &str = "portcullis";

/// The name of the base chain, which is at the hook `forward`.
pub const BASE_CHAIN: &str = "forward";

/// Everything in the table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Sets and maps.
    pub sets: Vec<Set>,
    /// Chains. The first is the base chain, at the hook `forward` with policy accept.
    pub chains: Vec<Chain>,
    /// What counters stand for: lists of origins, each sorted. The first is the empty list.
    pub origins: Vec<Vec<u32>>,
}

/// A set by its place in [`Plan::sets`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetId(pub u32);

/// A chain by its place in [`Plan::chains`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChainId(pub u32);

/// A list of origins by its place in [`Plan::origins`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OriginsId(pub u32);

/// A set, or a verdict map if its elements have verdicts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Unique among the sets.
    pub name: String,
    /// The parts of a key.
    pub key: Vec<Type>,
    /// Whether elements are ranges, which must not overlap; otherwise they are single keys, and
    /// the set is a hash table.
    pub interval: bool,
    /// Whether each element has a counter.
    pub counted: bool,
    /// Whether each element has a verdict.
    pub map: bool,
    /// The elements, sorted by key.
    pub elements: Vec<Element>,
}

/// The type of a part of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Type {
    /// An address of the family.
    Address(Family),
    /// A protocol number.
    Protocol,
    /// A port.
    Port,
}

/// An element of a set or map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Element {
    /// What is looked up.
    pub key: Key,
    /// What its counter stands for; empty where the set is not counted.
    pub origins: OriginsId,
    /// What follows, in a map.
    pub verdict: Option<Verdict>,
}

/// The key of an element.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// Source and destination.
    Pair(IpAddr, IpAddr),
    /// One address.
    Address(IpAddr),
    /// Addresses.
    Addresses(IpRange),
    /// An address, and one port of a protocol by its number.
    Service(IpAddr, u8, u16),
    /// Ports of a protocol. In a set that is not an interval set, one port.
    Ports(Ports),
}

/// A chain of rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Unique among the chains.
    pub name: String,
    /// In order.
    pub rules: Vec<Rule>,
}

/// A rule: expressions from left to right, until one does not match.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Rule(pub Vec<Expression>);

/// A part of a rule.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Expression {
    /// Matches packets of known connections and those related to them.
    KnownConnection,
    /// Matches IPv6 neighbour discovery: ICMPv6 types 133 to 137 that no router has passed on
    /// (hop limit 255, RFC 4861).
    NeighborDiscovery,
    /// Matches if the set holds what the packet has in these fields.
    Lookup(Vec<Field>, SetId),
    /// Matches if the set does not hold what the packet has in these fields. A packet that lacks
    /// one does not match.
    Absent(Vec<Field>, SetId),
    /// Takes the verdict that the map has for these fields; matches nothing if it has none.
    Map(Vec<Field>, SetId),
    /// Counts the packet.
    Count(OriginsId),
    /// Ends the rule.
    Verdict(Verdict),
}

/// A field of a packet. A packet of the other family, or without ports, does not match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Field {
    /// The source address.
    Source(Family),
    /// The destination address.
    Destination(Family),
    /// The protocol number of the layer above IP.
    Protocol,
    /// The destination port.
    Port,
}

/// Where a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// It passes this table.
    Accept,
    /// It is dropped.
    Drop,
    /// It goes on after the last jump.
    Return,
    /// It goes to the chain and comes back.
    Jump(ChainId),
    /// It goes to the chain and does not come back here.
    Goto(ChainId),
}

impl Field {
    /// The type of what the field holds.
    pub fn kind(self) -> Type {
        match self {
            Field::Source(family) | Field::Destination(family) => Type::Address(family),
            Field::Protocol => Type::Protocol,
            Field::Port => Type::Port,
        }
    }
}

impl Plan {
    /// The set, if the index is good.
    pub fn set(&self, id: SetId) -> Option<&Set> {
        self.sets.get(id.0 as usize)
    }

    /// The chain, if the index is good.
    pub fn chain(&self, id: ChainId) -> Option<&Chain> {
        self.chains.get(id.0 as usize)
    }

    pub(crate) fn report(&self, bytes: usize, elapsed: Duration) -> Report {
        Report {
            chains: self.chains.len(),
            rules: self.chains.iter().map(|chain| chain.rules.len()).sum(),
            sets: self.sets.len(),
            elements: self.sets.iter().map(|set| set.elements.len()).sum(),
            bytes,
            elapsed,
        }
    }

    /// The origins of a counter; none if the index is bad.
    pub fn origins(&self, id: OriginsId) -> &[u32] {
        self.origins.get(id.0 as usize).map_or(&[], Vec::as_slice)
    }
}
