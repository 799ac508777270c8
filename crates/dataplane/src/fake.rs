//! A data plane without a kernel: it holds a plan to the kernel's rules and interprets it as the
//! kernel would.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Instant;

use portcullis_core::net::{Family, IpRange, Protocol};

use crate::plan::{
    ChainId, Element, Expression, Field, Key, OriginsId, Plan, Planner, Set, SetId, Type, Verdict,
};
use crate::state::{NodeState, Ports};
use crate::{Dataplane, Difference, Ended, Error, Hits, Report};

/// Stands in for [`Nftables`](crate::Nftables) in tests.
#[derive(Debug, Default)]
pub struct Fake {
    planner: Planner,
    plan: Plan,
    /// The elements of each set.
    elements: BTreeMap<SetId, BTreeMap<Key, Element>>,
    hits: BTreeMap<u32, Hits>,
    ended: Ended,
    #[cfg(test)]
    pub(crate) meanwhile: Meanwhile,
}

/// What changes while a packet is on its way: from so many lookups on, sets have other elements.
#[cfg(test)]
#[derive(Debug, Default)]
pub(crate) struct Meanwhile {
    pub(crate) lookups: usize,
    pub(crate) elements: BTreeMap<SetId, BTreeMap<Key, Element>>,
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
    /// A rule looks into a set that is not there.
    #[error("chain {chain} looks into {set}, which is not in the plan")]
    DanglingSet {
        /// The chain of the rule.
        chain: ChainId,
        /// The set.
        set: SetId,
    },
    /// A verdict leads to a chain that is not there, or to the base chain.
    #[error("{place} leads to {chain}, which is not in the plan or is the base chain")]
    DanglingChain {
        /// The chain or map with the verdict.
        place: String,
        /// The chain that is not there.
        chain: ChainId,
    },
    /// The counter of an element stands for a list of origins that is not there.
    #[error("an element of {set} counts for {origins:?}, which the set does not have")]
    DanglingOrigins {
        /// The set.
        set: SetId,
        /// The bad index.
        origins: OriginsId,
    },
    /// A rule looks for something that is not a key of the set, or takes a set for a map.
    #[error("chain {chain} does not look for what {set} holds")]
    WrongLookup {
        /// The chain of the rule.
        chain: ChainId,
        /// The set.
        set: SetId,
    },
    /// An element that does not belong into its set by its type, verdict or counter.
    #[error("{key:?} does not fit the set {set}")]
    WrongElement {
        /// The set.
        set: SetId,
        /// The element.
        key: Key,
    },
    /// An element that is there already, or overlaps one.
    #[error("{key:?} is in the set {set} already")]
    Overlap {
        /// The set.
        set: SetId,
        /// The element.
        key: Key,
    },
    /// Chains that lead to themselves, or deeper than the kernel's stack.
    #[error("chain {0} leads to itself, or deeper than {DEPTH_LIMIT} chains")]
    Depth(ChainId),
    /// Parts of a rule after its verdict, or no part at all.
    #[error("a rule of chain {0} does not end with its verdict")]
    Unreachable(ChainId),
}

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
        self.elements = contract(&plan)?;
        self.plan = plan;
        Ok(())
    }

    /// Whether a new connection passes. It is counted.
    pub fn passes(&mut self, packet: &Packet) -> bool {
        let mut returns = Vec::new();
        let mut at = (ChainId::Base, 0);
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
                self.count(origins, packet);
                Some(None)
            }
            // However many there are, no limit is exceeded, and it tells of all.
            Expression::Exceeds(..) => None,
            Expression::Tell(chain, _) => {
                self.ended.of(*chain, |tally| tally.told += 1);
                Some(None)
            }
            Expression::Tally(chain) => {
                self.ended.of(*chain, |tally| tally.packets += 1);
                Some(None)
            }
            Expression::Verdict(verdict) => Some(Some(*verdict)),
        }
    }

    fn lookup(&mut self, fields: &[Field], id: SetId, packet: &Packet) -> Option<Element> {
        let wanted = packet.key(fields)?;
        let elements = self.elements.get(&id)?;
        #[cfg(test)]
        let elements = match self.meanwhile.lookups.checked_sub(1) {
            Some(left) => {
                self.meanwhile.lookups = left;
                elements
            }
            None => self.meanwhile.elements.get(&id).unwrap_or(elements),
        };
        let set = self.plan.set(id)?;
        let element = if set.interval {
            let (_, element) = elements.range(..=from(wanted)).next_back()?;
            holds(element.key, wanted).then_some(*element)?
        } else {
            *elements.get(&wanted)?
        };
        let origins = set.origins(element.origins).to_vec();
        self.count(&origins, packet);
        Some(element)
    }

    fn count(&mut self, origins: &[u32], packet: &Packet) {
        for origin in origins {
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
        let plan = self.planner.plan(state)?;
        self.apply_plan(plan)?;
        let elements = self.elements.values().map(BTreeMap::len).sum();
        Ok(self.plan.report(elements, 0, start.elapsed()))
    }

    fn hits(&mut self) -> Result<Vec<Hits>, Error> {
        Ok(self.hits.values().copied().collect())
    }

    fn ended(&mut self) -> Result<Ended, Error> {
        Ok(self.ended)
    }

    fn tidy(&mut self, _wait: bool) -> bool {
        false
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
fn contract(plan: &Plan) -> Result<BTreeMap<SetId, BTreeMap<Key, Element>>, Violation> {
    let elements = plan.sets.iter().map(|(id, set)| Ok((*id, set_contract(plan, *id, set)?)));
    let elements = elements.collect::<Result<_, _>>()?;
    for id in plan.chains.keys() {
        chain_contract(plan, *id)?;
    }
    if !plan.chains.contains_key(&ChainId::Base) {
        return Err(Violation::NoBaseChain);
    }
    depth(plan, ChainId::Base, &mut BTreeMap::new())?;
    Ok(elements)
}

fn set_contract(plan: &Plan, id: SetId, set: &Set) -> Result<BTreeMap<Key, Element>, Violation> {
    let mut elements = BTreeMap::new();
    for element in set.elements() {
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
            return Err(Violation::WrongElement { set: id, key });
        }
        verdict_contract(plan, &id, element.verdict)?;
        let origins = element.origins;
        if set.counted && origins.0 as usize >= set.origins.len() {
            return Err(Violation::DanglingOrigins { set: id, origins });
        }
        if elements.insert(key, element).is_some() {
            return Err(Violation::Overlap { set: id, key });
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
                return Err(Violation::Overlap { set: id, key: *higher });
            }
        }
    }
    Ok(elements)
}

fn chain_contract(plan: &Plan, id: ChainId) -> Result<(), Violation> {
    for rule in plan.chain(id).iter().flat_map(|chain| &chain.rules) {
        for part in &rule.0 {
            match part {
                Expression::Lookup(fields, looked)
                | Expression::Absent(fields, looked)
                | Expression::Map(fields, looked) => {
                    let dangling = || Violation::DanglingSet { chain: id, set: *looked };
                    let set = plan.set(*looked).ok_or_else(dangling)?;
                    let map = matches!(part, Expression::Map(..));
                    if set.map != map
                        || !fields.iter().map(|f| f.kind()).eq(set.key.iter().copied())
                    {
                        return Err(Violation::WrongLookup { chain: id, set: *looked });
                    }
                }
                Expression::Exceeds(field, set, _) => {
                    let dangling = || Violation::DanglingSet { chain: id, set: *set };
                    let looked = plan.set(*set).ok_or_else(dangling)?;
                    if !looked.dynamic || looked.key != [field.kind()] {
                        return Err(Violation::WrongLookup { chain: id, set: *set });
                    }
                }
                Expression::Verdict(verdict) => verdict_contract(plan, &id, Some(*verdict))?,
                Expression::Count(_)
                | Expression::Tell(..)
                | Expression::Tally(_)
                | Expression::KnownConnection
                | Expression::NeighborDiscovery => {}
            }
        }
        let ends = |part: &Expression| {
            matches!(part, Expression::Verdict(_) | Expression::Map(..) | Expression::Tell(..))
        };
        if rule.0.iter().position(ends).map(|index| index + 1) != Some(rule.0.len()) {
            return Err(Violation::Unreachable(id));
        }
    }
    Ok(())
}

fn verdict_contract(
    plan: &Plan,
    place: &impl ToString,
    verdict: Option<Verdict>,
) -> Result<(), Violation> {
    match verdict {
        Some(Verdict::Jump(chain) | Verdict::Goto(chain))
            if chain == ChainId::Base || plan.chain(chain).is_none() =>
        {
            Err(Violation::DanglingChain { place: place.to_string(), chain })
        }
        _ => Ok(()),
    }
}

/// How many chains follow a chain at most; `None` while that is being found out, so that to come
/// there again is a loop.
fn depth(
    plan: &Plan,
    id: ChainId,
    depths: &mut BTreeMap<ChainId, Option<usize>>,
) -> Result<usize, Violation> {
    match depths.insert(id, None) {
        Some(Some(depth)) => {
            depths.insert(id, Some(depth));
            return Ok(depth);
        }
        Some(None) => return Err(Violation::Depth(id)),
        None => {}
    }
    let mut deepest = 0;
    let rules = plan.chain(id).map_or(&[][..], |chain| &chain.rules);
    for part in rules.iter().flat_map(|rule| &rule.0) {
        let verdicts = match part {
            Expression::Verdict(verdict) => vec![*verdict],
            Expression::Map(_, map) => {
                let elements = plan.set(*map).into_iter().flat_map(Set::elements);
                elements.filter_map(|element| element.verdict).collect()
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
        return Err(Violation::Depth(id));
    }
    depths.insert(id, Some(deepest));
    Ok(deepest)
}
