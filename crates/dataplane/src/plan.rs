//! A table of nf_tables as plain data: sets, maps, chains and rules.
//!
//! There is one table, `inet portcullis`. Its chains and sets refer to each other by what they are
//! for, so that two plans can be held against each other, and names depend on the state alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use portcullis_core::model;
use portcullis_core::net::{Family, IpRange};

use crate::Report;
use crate::state::{Addresses, Log, Ports};

pub use crate::layout::{Planner, plan};
pub use crate::render::render;

/// The name of the table; its family is `inet`.
pub const TABLE: &str = "portcullis";

/// The name of the base chain, which is at the hook `forward`.
pub const BASE_CHAIN: &str = "forward";

/// Everything in the table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Sets and maps.
    pub sets: BTreeMap<SetId, Arc<Set>>,
    /// Chains, [`ChainId::Base`] among them: at the hook `forward`, with policy accept.
    pub chains: BTreeMap<ChainId, Arc<Chain>>,
    /// The addresses of local pods. Connections between two of these are judged twice in this table.
    pub local: Arc<BTreeSet<IpAddr>>,
}

/// A chain. Its name follows from what it is for, and so is the same in every plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChainId {
    /// The base chain.
    Base,
    /// Of a profile, by its number in the state.
    Profile(u32, Direction),
    /// Of a profile, for some destination ports: the first, second, … kind of such.
    Ports(u32, Direction, u32),
    /// Where every packet goes that is refused in this direction.
    Refused(Direction),
    /// Where every packet goes that would be refused in this direction, and passes.
    Audited(Direction),
}

/// A set or map. Its name follows from what it is for, and so is the same in every plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetId {
    /// Each local pod with itself.
    Selves(Family),
    /// From isolated local pods to their chains.
    Isolated(Direction, Family),
    /// Of the chain of a profile: addresses with exact ports.
    Exact(u32, Direction, Family),
    /// Of the chain of a profile: from ports to chains.
    Ports(u32, Direction),
    /// Of a chain: addresses.
    Addresses(ChainId, Family),
    /// Of a chain: ranges of addresses.
    Blocks(ChainId, Family),
    /// A large peer set, by its number in the state: its addresses that are not of local pods.
    Remote(u32, Family),
    /// And those that are.
    Local(u32, Family),
    /// The ranges of the node.
    Ranges(Family),
    /// The local pods.
    Pods(Family),
    /// The sources of packets that were told of, or would have been, not long ago.
    Heard(Family),
    /// Empty, until other rules take the place of these: then the addresses, mostly of local pods, about
    /// which sets and maps change at that moment.
    Changed(Family),
}

/// Which end of a connection is the local one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// The source.
    Egress,
    /// The destination.
    Ingress,
}

/// A place in [`Set::origins`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OriginsId(pub u32);

/// A set, or a verdict map if its elements have verdicts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// The parts of a key.
    pub key: Vec<Type>,
    /// Whether elements are ranges, which must not overlap; otherwise they are single keys, and
    /// the set is a hash table.
    pub interval: bool,
    /// Whether each element has a counter.
    pub counted: bool,
    /// Whether each element has a verdict.
    pub map: bool,
    /// Whether the kernel fills it from packets, for [`Expression::Exceeds`]. Then `elements` is
    /// empty; there is room for [`HEARD`](Set::HEARD) of them, each for [`QUIET`](Set::QUIET).
    pub dynamic: bool,
    /// What is in it.
    pub elements: Elements,
    /// What counters stand for: lists of origins, each sorted. The first is the empty list.
    pub origins: Vec<Vec<u32>>,
}

/// What is in a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Elements {
    /// One by one, sorted by key.
    Listed(Vec<Element>),
    /// The addresses of a family, without those of local pods. The set has neither counters nor
    /// verdicts.
    Remote {
        /// Addresses of both families.
        of: Addresses,
        /// The family.
        family: Family,
        /// Those of local pods, ascending.
        local: Vec<IpAddr>,
    },
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
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chain {
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
    /// Counts the packet, for these origins.
    Count(Vec<u32>),
    /// Matches if more packets than this limit have come with what the packet has in this field. The
    /// dynamic set remembers that; what it has no room for does not match.
    Exceeds(Field, SetId, Limit),
    /// Tells of a packet that has come to this chain, and counts it as told; up to a rate, beyond
    /// which it does not match.
    Tell(ChainId, Log),
    /// Counts a packet that has come to this chain.
    Tally(ChainId),
    /// Ends the rule.
    Verdict(Verdict),
}

/// How many packets may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Limit {
    /// In a second.
    pub rate: u32,
    /// At once, when none has come for a while.
    pub burst: u32,
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

impl Limit {
    /// All that is told in one direction.
    pub fn of_all(log: Log) -> Limit {
        Limit { rate: log.rate, burst: log.rate }
    }

    /// What of that is told of one source: a tenth, and half of what may come at once. So nobody
    /// uses up what is for all.
    pub fn of_one_source(log: Log) -> Limit {
        Limit { rate: (log.rate / 10).max(1), burst: (log.rate / 2).max(1) }
    }
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

impl Direction {
    /// Egress, then ingress: the order in which a connection meets them.
    pub const BOTH: [Direction; 2] = [Direction::Egress, Direction::Ingress];
}

impl From<Direction> for model::Direction {
    fn from(direction: Direction) -> model::Direction {
        match direction {
            Direction::Egress => model::Direction::Egress,
            Direction::Ingress => model::Direction::Ingress,
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Direction::Egress => "egress",
            Direction::Ingress => "ingress",
        })
    }
}

impl fmt::Display for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ChainId::Base => f.write_str(BASE_CHAIN),
            ChainId::Profile(profile, direction) => write!(f, "p{profile:08x}-{direction}"),
            ChainId::Ports(profile, direction, nth) => {
                write!(f, "p{profile:08x}-{direction}-ports{nth}")
            }
            ChainId::Refused(direction) => write!(f, "refused-{direction}"),
            ChainId::Audited(direction) => write!(f, "audited-{direction}"),
        }
    }
}

impl fmt::Display for SetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SetId::Selves(family) => write!(f, "self{}", digit(family)),
            SetId::Isolated(direction, family) => write!(f, "{direction}{}", digit(family)),
            SetId::Exact(profile, direction, family) => {
                let chain = ChainId::Profile(*profile, *direction);
                write!(f, "{chain}-exact{}", digit(family))
            }
            SetId::Ports(profile, direction) => {
                write!(f, "{}-ports", ChainId::Profile(*profile, *direction))
            }
            SetId::Addresses(chain, family) => write!(f, "{chain}-addresses{}", digit(family)),
            SetId::Blocks(chain, family) => write!(f, "{chain}-blocks{}", digit(family)),
            SetId::Remote(peers, family) => write!(f, "peers{peers:08x}-{}", digit(family)),
            SetId::Local(peers, family) => write!(f, "peers{peers:08x}-local{}", digit(family)),
            SetId::Ranges(family) => write!(f, "ranges{}", digit(family)),
            SetId::Pods(family) => write!(f, "pods{}", digit(family)),
            SetId::Heard(family) => write!(f, "heard{}", digit(family)),
            SetId::Changed(family) => write!(f, "changed{}", digit(family)),
        }
    }
}

fn digit(family: &Family) -> char {
    match family {
        Family::V4 => '4',
        Family::V6 => '6',
    }
}

impl ChainId {
    /// The profile and direction that it belongs to; `None` if it belongs to none alone.
    pub fn family(self) -> Option<(u32, Direction)> {
        match self {
            ChainId::Base | ChainId::Refused(_) | ChainId::Audited(_) => None,
            ChainId::Profile(profile, direction) | ChainId::Ports(profile, direction, _) => {
                Some((profile, direction))
            }
        }
    }
}

impl SetId {
    /// The profile and direction that it belongs to; `None` if it belongs to none alone.
    pub fn family(self) -> Option<(u32, Direction)> {
        match self {
            SetId::Exact(profile, direction, _) | SetId::Ports(profile, direction) => {
                Some((profile, direction))
            }
            SetId::Addresses(chain, _) | SetId::Blocks(chain, _) => chain.family(),
            SetId::Selves(_)
            | SetId::Isolated(..)
            | SetId::Remote(..)
            | SetId::Local(..)
            | SetId::Ranges(_)
            | SetId::Pods(_)
            | SetId::Heard(_)
            | SetId::Changed(_) => None,
        }
    }
}

impl Key {
    /// The one address that it is about.
    pub(crate) fn address(self) -> Option<IpAddr> {
        match self {
            Key::Address(address) | Key::Service(address, ..) => Some(address),
            Key::Pair(..) | Key::Addresses(_) | Key::Ports(_) => None,
        }
    }
}

impl Element {
    /// One without a verdict, that is not counted.
    pub(crate) fn plain(key: Key) -> Element {
        Element { key, origins: OriginsId::default(), verdict: None }
    }
}

impl Set {
    /// So many elements a dynamic set has room for.
    pub const HEARD: u32 = 16_384;
    /// After so long without a packet an element of a dynamic set goes. Whoever was quiet for that
    /// long may send a whole [burst](Limit::of_one_source) again, remembered or not.
    pub const QUIET: Duration = Duration::from_secs(10);

    /// The elements, sorted by key.
    pub fn elements(&self) -> Box<dyn Iterator<Item = Element> + '_> {
        match &self.elements {
            Elements::Listed(elements) => Box::new(elements.iter().copied()),
            Elements::Remote { of, family, local } => {
                let remote = of.of(*family).filter(|a| local.binary_search(a).is_err());
                Box::new(remote.map(|address| Element::plain(Key::Address(address))))
            }
        }
    }

    /// How many elements there are.
    pub fn len(&self) -> usize {
        match &self.elements {
            Elements::Listed(elements) => elements.len(),
            Elements::Remote { .. } => self.elements().count(),
        }
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.elements().next().is_none()
    }

    /// What the counter of an element stands for; nothing if it is not counted.
    pub fn origins(&self, id: OriginsId) -> &[u32] {
        self.origins.get(id.0 as usize).map_or(&[], Vec::as_slice)
    }
}

impl Chain {
    /// Whether any of its rules counts.
    pub(crate) fn counts(&self) -> bool {
        let mut parts = self.rules.iter().flat_map(|rule| &rule.0);
        parts.any(|part| {
            matches!(part, Expression::Count(_) | Expression::Tell(..) | Expression::Tally(_))
        })
    }
}

impl Plan {
    /// The set, if it is there.
    pub fn set(&self, id: SetId) -> Option<&Set> {
        self.sets.get(&id).map(Arc::as_ref)
    }

    /// The chain, if it is there.
    pub fn chain(&self, id: ChainId) -> Option<&Chain> {
        self.chains.get(&id).map(Arc::as_ref)
    }

    pub(crate) fn report(&self, elements: usize, bytes: usize, elapsed: Duration) -> Report {
        Report {
            chains: self.chains.len(),
            rules: self.chains.values().map(|chain| chain.rules.len()).sum(),
            sets: self.sets.len(),
            elements,
            bytes,
            elapsed,
        }
    }
}
