//! Hosts outside the cluster, so that what an `ipBlock` says can be tried.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use portcullis_core::model::IpBlock;
use portcullis_core::net::{Family, IpRange, next_address, previous_address};

use crate::plan::Families;

/// The most hosts that one lab has outside, whatever its policies say.
const MOST: usize = 128;

/// Ranges for documentation, which nobody has: "the rest of the world" comes from here (RFC 5737,
/// RFC 3849).
const DOCUMENTATION: [IpNet; 4] = [
    v4(Ipv4Addr::new(203, 0, 113, 0), 24),
    v4(Ipv4Addr::new(198, 51, 100, 0), 24),
    v4(Ipv4Addr::new(192, 0, 2, 0), 24),
    v6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
];

const EVERYTHING: [IpNet; 2] = [v4(Ipv4Addr::UNSPECIFIED, 0), v6(Ipv6Addr::UNSPECIFIED, 0)];

/// What no host can have.
const UNUSABLE: [IpNet; 8] = [
    // "This network", loopback, link-local, multicast and reserved.
    v4(Ipv4Addr::UNSPECIFIED, 8),
    v4(Ipv4Addr::new(127, 0, 0, 0), 8),
    v4(Ipv4Addr::new(169, 254, 0, 0), 16),
    v4(Ipv4Addr::new(224, 0, 0, 0), 3),
    // Unspecified, loopback and IPv4-compatible; IPv4-mapped, link-local, multicast.
    v6(Ipv6Addr::UNSPECIFIED, 96),
    v6(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96),
    v6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
    v6(Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8),
];

pub(crate) const fn v4(address: Ipv4Addr, length: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(address, length))
}

pub(crate) const fn v6(address: Ipv6Addr, length: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(address, length))
}

/// Whether a host can have the address.
pub(crate) fn is_usable(address: IpAddr) -> bool {
    !UNUSABLE.iter().any(|net| net.contains(&address))
}

/// The addresses of the external hosts: for each block one inside, then one inside each exception,
/// then the last address of each block; and one per family outside of all blocks. None of them is
/// taken or unusable. If they are more than [`MOST`], the later kinds are cut short.
pub(crate) fn hosts(
    blocks: &BTreeSet<IpBlock>,
    taken: &BTreeSet<IpAddr>,
    families: Families,
) -> Vec<IpAddr> {
    let mut closed: Vec<IpRange> = UNUSABLE.map(IpRange::from).to_vec();
    closed.extend(taken.iter().map(|address| IpRange { first: *address, last: *address }));
    let closed = Closed::new(closed);

    let mut found = Vec::new();
    for family in families.iter() {
        found.extend(outside(blocks, &closed, family));
    }
    let blocks = || blocks.iter().filter(|b| families.contains(Family::of(b.cidr.addr())));
    for block in blocks() {
        let open = closed.with(block.except.iter().copied());
        found.extend(in_documentation(block, &open).or_else(|| open.first(host_range(block.cidr))));
    }
    for except in blocks().flat_map(|block| &block.except) {
        found.extend(closed.first(host_range(*except)));
    }
    for block in blocks().filter(|block| !is_vast(block.cidr)) {
        let open = closed.with(block.except.iter().copied());
        found.extend(open.last(host_range(block.cidr)));
    }
    let mut seen = BTreeSet::new();
    found.retain(|address| seen.insert(*address));
    found.truncate(MOST);
    found
}

/// An address in none of the blocks, not even in an exception.
fn outside(blocks: &BTreeSet<IpBlock>, closed: &Closed, family: Family) -> Option<IpAddr> {
    let open = closed.with(blocks.iter().map(|block| block.cidr));
    DOCUMENTATION
        .into_iter()
        .chain(EVERYTHING)
        .filter(|net| Family::of(net.addr()) == family)
        .find_map(|net| open.first(host_range(net)))
}

/// For blocks whose first address would mean nothing to anybody, such as `0.0.0.0/0`.
fn in_documentation(block: &IpBlock, open: &Closed) -> Option<IpAddr> {
    DOCUMENTATION
        .into_iter()
        .filter(|net| is_vast(block.cidr) && block.cidr.contains(net))
        // Not the first: that is the host outside of all blocks, in a lab that has both.
        .find_map(|net| open.last(host_range(net)))
}

fn is_vast(net: IpNet) -> bool {
    match net {
        IpNet::V4(net) => net.prefix_len() < 8,
        IpNet::V6(net) => net.prefix_len() < 32,
    }
}

/// The addresses a network gives to hosts: without the first and the last, where it has more.
fn host_range(net: IpNet) -> IpRange {
    let whole = IpRange::from(net);
    if net.max_prefix_len() - net.prefix_len() < 2 {
        return whole;
    }
    IpRange {
        first: next_address(whole.first).unwrap_or(whole.first),
        last: previous_address(whole.last).unwrap_or(whole.last),
    }
}

/// Addresses not to be used: sorted, overlapping ones joined.
struct Closed(Vec<IpRange>);

impl Closed {
    fn new(mut ranges: Vec<IpRange>) -> Closed {
        ranges.sort();
        let mut joined: Vec<IpRange> = Vec::new();
        for range in ranges {
            match joined.last_mut() {
                Some(last) if last.contains(range.first) || follows(range, *last) => {
                    last.last = last.last.max(range.last);
                }
                _ => joined.push(range),
            }
        }
        Closed(joined)
    }

    fn with(&self, nets: impl Iterator<Item = IpNet>) -> Closed {
        Closed::new(self.0.iter().copied().chain(nets.map(IpRange::from)).collect())
    }

    /// The lowest address of the range that is not closed.
    fn first(&self, range: IpRange) -> Option<IpAddr> {
        let address = match self.around(range.first) {
            Some(closed) => next_address(closed.last)?,
            None => range.first,
        };
        range.contains(address).then_some(address)
    }

    /// The highest address of the range that is not closed.
    fn last(&self, range: IpRange) -> Option<IpAddr> {
        let address = match self.around(range.last) {
            Some(closed) => previous_address(closed.first)?,
            None => range.last,
        };
        range.contains(address).then_some(address)
    }

    fn around(&self, address: IpAddr) -> Option<IpRange> {
        let after = self.0.partition_point(|range| range.first <= address);
        self.0[..after].last().copied().filter(|range| range.contains(address))
    }
}

/// Whether nothing lies between the two.
fn follows(range: IpRange, before: IpRange) -> bool {
    next_address(before.last) == Some(range.first)
}
