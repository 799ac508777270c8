//! A data plane without a kernel: it holds a plan to the kernel's rules and interprets it as the
//! kernel would.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use portcullis_core::net::{Family, IpRange, Protocol};

use crate::plan::{
    Chain, ChainId, Element, Expression, Field, Key, OriginsId, Plan, Set, SetId, Type, Verdict,
    plan,
};
use crate::state::{NodeState, Ports};
use crate::{Dataplane, Difference, Error, Hits, Report};

/// Stands in for [`Nftables`](crate::Nftables) in tests.
#[derive(Debug, Default)]
pub struct Fake {
    plan: Plan,
    /// The elements of each set.
    elements: Vec<BTreeMap<Key, Element>>,
    hits: BTreeMap<u32, Hits>,
    final_hits: Vec<Hits>,
}

/// The first packet of a connection, as it is at the hook: after Service DNAT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Who opens the connection.
    pub source: IpAddr,
    /// To whom. Of the source's family.
    pub destination: IpAddr,
    /// The protocol number above IP.
    pub protocol: u8,
    /// The destination port, if the protocol has ports.
    pub port: Option<u16>,
    /// The length with the IP header.
    pub bytes: u64,
}

/// What the kernel would not accept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// No base chain.
    #[error("the plan has no base chain")]
    NoBaseChain,
    /// Two sets, or two chains, of one name.
    #[error("two sets or two chains have the name {0}")]
    DuplicateName(String),
    /// A name of no byte, or of more bytes than the kernel's limit.
    #[error("the name {0:?} does not have 1 to {NAME_LIMIT} bytes")]
    NameLength(String),
    /// A rule looks into a set that is not there.
    #[error("chain {chain} looks into {set:?}, which is not in the plan")]
    DanglingSet {
        /// The chain of the rule.
        chain: String,
        /// The bad index.
        set: SetId,
    },
    /// A verdict leads to a chain that is not there, or to the base chain.
    #[error("{place} leads to {chain:?}, which is not in the plan or is the base chain")]
    DanglingChain {
        /// The chain or map with the verdict.
        place: String,
        /// The bad index.
        chain: ChainId,
    },
    /// A counter stands for a list of origins that is not there.
    #[error("{place} counts for {origins:?}, which is not in the plan")]
    DanglingOrigins {
        /// The chain or set with the counter.
        place: String,
        /// The bad index.
        origins: OriginsId,
    },
    /// A rule looks for something that is not a key of the set, or takes a set for a map.
    #[error("chain {chain} does not look for what {set} holds")]
    WrongLookup {
        /// The chain of the rule.
        chain: String,
        /// The set.
        set: String,
    },
    /// An element that does not belong into its set by its type, verdict or counter.
    #[error("{key:?} does not fit the set {set}")]
    WrongElement {
        /// The set.
        set: String,
        /// The element.
        key: Key,
    },
    /// An element that is there already, or overlaps one.
    #[error("{key:?} is in the set {set} already")]
    Overlap {
        /// The set.
        set: String,
        /// The element.
        key: Key,
    },
    /// Chains that lead to themselves, or deeper than the kernel's stack.
    #[error("chain {0} leads to itself, or deeper than {DEPTH_LIMIT} chains")]
    Depth(String),
    /// Parts of a rule after its verdict, or no part at all.
    #[error("a rule of chain {0} does not end with its verdict")]
    Unreachable(String),
}

/// `NFT_NAME_MAXLEN`, less the zero byte.
const NAME_LIMIT: usize = 255;
/// `NFT_JUMP_STACK_SIZE`.
const DEPTH_LIMIT: usize = 16;

impl Fake {
    /// A node on which nothing is enforced.
    pub fn new() -> Fake {
        Fake::default()
    }

    /// What was applied last; empty before the first time.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Applies a plan that was made elsewhere. The error is [`Error::Contract`].
    pub fn apply_plan(&mut self, plan: Plan) -> Result<(), Error> {
        let elements = contract(&plan)?;
        let final_hits = std::mem::take(&mut self.hits).into_values().collect();
        *self = Fake { plan, elements, hits: BTreeMap::new(), final_hits };
        Ok(())
    }

    /// Whether a new connection passes. It is counted.
    pub fn passes(&mut self, packet: &Packet) -> bool {
        let mut returns = Vec::new();
        let mut at = (ChainId(0), 0);
        loop {
            let (chain, rule) = at;
            let verdict = match self.plan.chain(chain).map(|chain| chain.rules.get(rule).cloned()) {
                // The end of a chain is a return; without any chain, nothing is enforced.
                None | Some(None) => Some(Verdict::Return),
                Some(Some(rule)) => {
                    rule.0.iter().map_while(|part| self.evaluate(part, packet)).last().flatten()
                }
            };
            at.1 += 1;
            match verdict {
                None => {}
                Some(Verdict::Accept) => return true,
                Some(Verdict::Drop) => return false,
                Some(Verdict::Goto(chain)) => at = (chain, 0),
                Some(Verdict::Jump(chain)) => {
                    returns.push(at);
                    at = (chain, 0);
                }
                Some(Verdict::Return) => match returns.pop() {
                    Some(after) => at = after,
                    None => return true,
                },
            }
        }
    }

    /// `None` if the rule does not match, otherwise the verdict if this part has one.
    fn evaluate(&mut self, part: &Expression, packet: &Packet) -> Option<Option<Verdict>> {
        match part {
            // A Packet opens a connection.
            Expression::KnownConnection | Expression::NeighborDiscovery => None,
            Expression::Lookup(fields, set) => self.lookup(fields, *set, packet).map(|_| None),
            Expression::Absent(fields, set) => {
                packet.key(fields)?;
                self.lookup(fields, *set, packet).is_none().then_some(None)
            }
            Expression::Map(fields, set) => {
                self.lookup(fields, *set, packet).map(|element| element.verdict)
            }
            Expression::Count(origins) => {
                self.count(*origins, packet);
                Some(None)
            }
            Expression::Verdict(verdict) => Some(Some(*verdict)),
        }
    }

    fn lookup(&mut self, fields: &[Field], id: SetId, packet: &Packet) -> Option<Element> {
        let wanted = packet.key(fields)?;
        let elements = self.elements.get(id.0 as usize)?;
        let element = if self.plan.set(id)?.interval {
            let (_, element) = elements.range(..=from(wanted)).next_back()?;
            holds(element.key, wanted).then_some(*element)?
        } else {
            *elements.get(&wanted)?
        };
        self.count(element.origins, packet);
        Some(element)
    }

    fn count(&mut self, origins: OriginsId, packet: &Packet) {
        for origin in self.plan.origins(origins) {
            let hits = self.hits.entry(*origin).or_default();
            hits.origin = *origin;
            hits.packets += 1;
            hits.bytes += packet.bytes;
        }
    }
}

impl Dataplane for Fake {
    fn apply(&mut self, state: &NodeState) -> Result<Report, Error> {
        let start = Instant::now();
        self.apply_plan(plan(state)?)?;
        Ok(self.plan.report(0, start.elapsed()))
    }

    fn hits(&mut self) -> Result<Vec<Hits>, Error> {
        Ok(self.hits.values().copied().collect())
    }

    fn take_final_hits(&mut self) -> Vec<Hits> {
        std::mem::take(&mut self.final_hits)
    }

    fn differences(&mut self) -> Result<Vec<Difference>, Error> {
        // Nobody else can reach it.
        Ok(Vec::new())
    }

    fn remove(&mut self) -> Result<(), Error> {
        *self = Fake::default();
        Ok(())
    }
}

impl Packet {
    /// What the packet has in the fields; `None` if it lacks one.
    fn key(&self, fields: &[Field]) -> Option<Key> {
        let address = |field: &Field| {
            let (address, family) = match field {
                Field::Source(family) => (self.source, *family),
                Field::Destination(family) => (self.destination, *family),
                _ => return None,
            };
            (Family::of(address) == family).then_some(address)
        };
        match fields {
            [a] => address(a).map(Key::Address),
            [Field::Port, Field::Protocol] => {
                let numbered = |protocol: &Protocol| protocol.number() == self.protocol;
                let protocol = Protocol::ALL.into_iter().find(numbered)?;
                let port = self.port?;
                Some(Key::Ports(Ports { protocol, first: port, last: port }))
            }
            [a, b] => Some(Key::Pair(address(a)?, address(b)?)),
            [a, Field::Protocol, Field::Port] => {
                Some(Key::Service(address(a)?, self.protocol, self.port?))
            }
            _ => None,
        }
    }
}

/// The greatest key of an interval set that can hold the wanted one.
fn from(wanted: Key) -> Key {
    match wanted {
        Key::Address(first @ IpAddr::V4(_)) => {
            Key::Addresses(IpRange { first, last: IpAddr::V4(u32::MAX.into()) })
        }
        Key::Address(first @ IpAddr::V6(_)) => {
            Key::Addresses(IpRange { first, last: IpAddr::V6(u128::MAX.into()) })
        }
        Key::Ports(ports) => Key::Ports(Ports { last: u16::MAX, ..ports }),
        other => other,
    }
}

fn holds(range: Key, wanted: Key) -> bool {
    match (range, wanted) {
        (Key::Addresses(range), Key::Address(address)) => range.contains(address),
        (Key::Ports(range), Key::Ports(wanted)) => {
            range.protocol == wanted.protocol
                && range.first <= wanted.first
                && wanted.last <= range.last
        }
        _ => false,
    }
}

/// Holds the plan to the kernel's rules. Returns the elements by key.
fn contract(plan: &Plan) -> Result<Vec<BTreeMap<Key, Element>>, Violation> {
    for names in [
        plan.sets.iter().map(|set| &set.name).collect::<Vec<_>>(),
        plan.chains.iter().map(|chain| &chain.name).collect(),
    ] {
        let mut seen = BTreeSet::new();
        for name in names {
            if name.is_empty() || name.len() > NAME_LIMIT {
                return Err(Violation::NameLength(name.clone()));
            }
            if !seen.insert(name) {
                return Err(Violation::DuplicateName(name.clone()));
            }
        }
    }
    let elements = plan.sets.iter().map(|set| set_contract(plan, set)).collect::<Result<_, _>>()?;
    for chain in &plan.chains {
        chain_contract(plan, chain)?;
    }
    if plan.chains.is_empty() {
        return Err(Violation::NoBaseChain);
    }
    let mut depths = vec![Depth::Unknown; plan.chains.len()];
    depth(plan, ChainId(0), &mut depths)?;
    Ok(elements)
}

fn set_contract(plan: &Plan, set: &Set) -> Result<BTreeMap<Key, Element>, Violation> {
    let mut elements = BTreeMap::new();
    for element in &set.elements {
        let key = element.key;
        let of = Family::of;
        let (parts, exact, upright) = match key {
            Key::Pair(a, b) => (vec![Type::Address(of(a)), Type::Address(of(b))], true, true),
            Key::Address(a) => (vec![Type::Address(of(a))], true, true),
            Key::Addresses(range) => {
                let upright = range.contains(range.first) && range.contains(range.last);
                (vec![Type::Address(of(range.first))], false, upright)
            }
            Key::Service(a, ..) => {
                (vec![Type::Address(of(a)), Type::Protocol, Type::Port], true, true)
            }
            Key::Ports(ports) => {
                let exact = ports.first == ports.last && !set.interval;
                (vec![Type::Port, Type::Protocol], exact, ports.first <= ports.last)
            }
        };
        let fits = parts == set.key
            && exact != set.interval
            && upright
            && set.map == element.verdict.is_some()
            && (set.counted || element.origins == OriginsId::default());
        if !fits {
            return Err(Violation::WrongElement { set: set.name.clone(), key });
        }
        verdict_contract(plan, &set.name, element.verdict)?;
        origins_contract(plan, &set.name, element.origins)?;
        if elements.insert(key, *element).is_some() {
            return Err(Violation::Overlap { set: set.name.clone(), key });
        }
    }
    if set.interval {
        for (lower, higher) in elements.keys().zip(elements.keys().skip(1)) {
            let overlap = match (lower, higher) {
                (Key::Addresses(a), Key::Addresses(b)) => a.last >= b.first,
                (Key::Ports(a), Key::Ports(b)) => a.protocol == b.protocol && a.last >= b.first,
                _ => false,
            };
            if overlap {
                return Err(Violation::Overlap { set: set.name.clone(), key: *higher });
            }
        }
    }
    Ok(elements)
}

fn chain_contract(plan: &Plan, chain: &Chain) -> Result<(), Violation> {
    for rule in &chain.rules {
        for part in &rule.0 {
            match part {
                Expression::Lookup(fields, id)
                | Expression::Absent(fields, id)
                | Expression::Map(fields, id) => {
                    let dangling =
                        || Violation::DanglingSet { chain: chain.name.clone(), set: *id };
                    let set = plan.set(*id).ok_or_else(dangling)?;
                    let map = matches!(part, Expression::Map(..));
                    if set.map != map
                        || !fields.iter().map(|f| f.kind()).eq(set.key.iter().copied())
                    {
                        let (chain, set) = (chain.name.clone(), set.name.clone());
                        return Err(Violation::WrongLookup { chain, set });
                    }
                }
                Expression::Count(origins) => origins_contract(plan, &chain.name, *origins)?,
                Expression::Verdict(verdict) => {
                    verdict_contract(plan, &chain.name, Some(*verdict))?
                }
                Expression::KnownConnection | Expression::NeighborDiscovery => {}
            }
        }
        let ends = |part: &Expression| matches!(part, Expression::Verdict(_) | Expression::Map(..));
        if rule.0.iter().position(ends).map(|index| index + 1) != Some(rule.0.len()) {
            return Err(Violation::Unreachable(chain.name.clone()));
        }
    }
    Ok(())
}

fn verdict_contract(plan: &Plan, place: &str, verdict: Option<Verdict>) -> Result<(), Violation> {
    match verdict {
        Some(Verdict::Jump(chain) | Verdict::Goto(chain))
            if chain.0 == 0 || plan.chain(chain).is_none() =>
        {
            Err(Violation::DanglingChain { place: place.to_owned(), chain })
        }
        _ => Ok(()),
    }
}

fn origins_contract(plan: &Plan, place: &str, origins: OriginsId) -> Result<(), Violation> {
    if (origins.0 as usize) < plan.origins.len() {
        return Ok(());
    }
    Err(Violation::DanglingOrigins { place: place.to_owned(), origins })
}

#[derive(Debug, Clone, Copy)]
enum Depth {
    Unknown,
    /// Being walked: to come here again is a loop.
    Open,
    /// So many chains follow at most.
    Known(usize),
}

fn depth(plan: &Plan, id: ChainId, depths: &mut [Depth]) -> Result<usize, Violation> {
    let index = id.0 as usize;
    let chain = &plan.chains[index];
    match depths[index] {
        Depth::Known(depth) => return Ok(depth),
        Depth::Open => return Err(Violation::Depth(chain.name.clone())),
        Depth::Unknown => depths[index] = Depth::Open,
    }
    let mut deepest = 0;
    for part in chain.rules.iter().flat_map(|rule| &rule.0) {
        let verdicts = match part {
            Expression::Verdict(verdict) => vec![*verdict],
            Expression::Map(_, map) => {
                let elements = plan.set(*map).map_or(&[][..], |set| &set.elements);
                elements.iter().filter_map(|element| element.verdict).collect()
            }
            _ => Vec::new(),
        };
        for verdict in verdicts {
            if let Verdict::Jump(next) | Verdict::Goto(next) = verdict {
                deepest = deepest.max(1 + depth(plan, next, depths)?);
            }
        }
    }
    if deepest >= DEPTH_LIMIT {
        return Err(Violation::Depth(chain.name.clone()));
    }
    depths[index] = Depth::Known(deepest);
    Ok(deepest)
}
