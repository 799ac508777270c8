//! Hosts outside the cluster, so that what an `ipBlock` says can be tried.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use portcullis_core::model::IpBlock;
use portcullis_core::net::{Family, IpRange, next_address, previous_address};

use crate::families::Families;

/// The most hosts that one lab has outside because of its policies.
pub(crate) const MOST: usize = 128;

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

/// The addresses that external hosts should have: one per family outside of all blocks; then for
/// each block one inside, then one inside each exception, then the last address of each block. None
/// of them is taken or unusable. What matters most comes first, as there may be more than [`MOST`].
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Each block is a line: the CIDR, then its exceptions.
    fn blocks(text: &str) -> BTreeSet<IpBlock> {
        let nets = |line: &str| line.split_whitespace().map(|w| w.parse().unwrap()).collect();
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        lines
            .map(|line| {
                let nets: Vec<IpNet> = nets(line);
                IpBlock { cidr: nets[0], except: nets[1..].to_vec() }
            })
            .collect()
    }

    fn check(text: &str, taken: &str, expected: &str) {
        let taken = taken.split_whitespace().map(|a| a.parse().unwrap()).collect();
        let found = hosts(&blocks(text), &taken, Families::Both);
        let found: Vec<String> = found.iter().map(IpAddr::to_string).collect();
        assert_eq!(found.join(" "), expected);
    }

    #[test]
    fn without_blocks_there_is_the_rest_of_the_world() {
        check("", "", "203.0.113.1 2001:db8::1");
    }

    #[test]
    fn a_block_has_a_host_at_each_end_and_in_each_exception() {
        check(
            "192.168.0.0/16 192.168.5.0/24 192.168.7.0/24",
            "",
            "203.0.113.1 2001:db8::1 192.168.0.1 192.168.5.1 192.168.7.1 192.168.255.254",
        );
        check(
            "fd01::/64 fd01::8000:0:0:0/65",
            "",
            "203.0.113.1 2001:db8::1 fd01::1 fd01::8000:0:0:1 fd01::7fff:ffff:ffff:ffff",
        );
    }

    #[test]
    fn a_single_address_is_a_host() {
        check("192.168.5.10/32", "", "203.0.113.1 2001:db8::1 192.168.5.10");
        check("192.168.5.10/31", "", "203.0.113.1 2001:db8::1 192.168.5.10 192.168.5.11");
    }

    #[test]
    fn an_exception_at_the_end_moves_the_host_past_it() {
        check(
            "10.0.0.0/24 10.0.0.0/25",
            "",
            "203.0.113.1 2001:db8::1 10.0.0.128 10.0.0.1 10.0.0.254",
        );
    }

    #[test]
    fn addresses_that_are_taken_or_unusable_are_passed_over() {
        check("10.0.0.0/30", "10.0.0.1 10.0.0.2", "203.0.113.1 2001:db8::1");
        check("10.0.0.0/30", "10.0.0.1", "203.0.113.1 2001:db8::1 10.0.0.2");
        check("169.254.0.0/16\n127.0.0.1/32\nfe80::/10", "", "203.0.113.1 2001:db8::1");
    }

    #[test]
    fn the_whole_internet_has_one_host_with_a_telling_address() {
        check(
            "0.0.0.0/0 10.0.0.0/8 192.168.0.0/16",
            "",
            "2001:db8::1 203.0.113.254 10.0.0.1 192.168.0.1",
        );
        check("::/0", "", "203.0.113.1 2001:db8:ffff:ffff:ffff:ffff:ffff:fffe");
    }

    #[test]
    fn the_rest_of_the_world_is_outside_of_documentation_ranges_that_a_policy_names() {
        check("203.0.113.0/24", "", "198.51.100.1 2001:db8::1 203.0.113.1 203.0.113.254");
    }

    fn small_net() -> impl Strategy<Value = IpNet> {
        let v4 = (any::<u16>(), 22u8..=32).prop_map(|(low, length)| {
            let address = Ipv4Addr::from(0x0a00_0000 | u32::from(low & 0xfff));
            IpNet::new_assert(address.into(), length).trunc()
        });
        let v6 = (any::<u16>(), 118u8..=128).prop_map(|(low, length)| {
            let address = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, low & 0xfff);
            IpNet::new_assert(address.into(), length).trunc()
        });
        prop_oneof![v4, v6]
    }

    fn block() -> impl Strategy<Value = IpBlock> {
        (small_net(), prop::collection::vec(small_net(), 0..12)).prop_map(|(cidr, mut except)| {
            except.retain(|e| cidr.contains(e) && cidr != *e);
            IpBlock { cidr, except }
        })
    }

    /// Every address that a host in the network may have.
    fn members(net: IpNet) -> impl Iterator<Item = IpAddr> {
        let has_ends = net.max_prefix_len() - net.prefix_len() >= 2;
        net.hosts().filter(move |a| !has_ends || ![net.network(), net.broadcast()].contains(a))
    }

    proptest! {
        /// The oracle looks at every single address of every block.
        #[test]
        fn every_block_and_every_exception_that_can_have_a_host_has_one(
            blocks in prop::collection::btree_set(block(), 0..5),
            nodes in prop::collection::btree_set(small_net().prop_map(|n| n.addr()), 0..40),
        ) {
            let found = hosts(&blocks, &nodes, Families::Both);
            let distinct: BTreeSet<IpAddr> = found.iter().copied().collect();
            prop_assert_eq!(distinct.len(), found.len());
            prop_assert!(found.iter().all(|a| !nodes.contains(a) && is_usable(*a)));
            for block in &blocks {
                let possible = members(block.cidr).any(|a| block.contains(a) && !nodes.contains(&a));
                prop_assert_eq!(found.iter().any(|a| block.contains(*a)), possible);
                for except in &block.except {
                    let possible = members(*except).any(|a| !nodes.contains(&a));
                    prop_assert!(!possible || found.iter().any(|a| except.contains(a)));
                }
            }
            for family in Family::ALL {
                let outside = |a: &IpAddr| {
                    Family::of(*a) == family && !blocks.iter().any(|b| b.cidr.contains(a))
                };
                prop_assert!(found.iter().any(outside));
            }
        }
    }
}
