//! The address space, cut into intervals that no `ipBlock` can tell apart.

use std::net::IpAddr;

use crate::model::IpBlock;
use crate::net::{Family, IpRange, next_address, previous_address};

/// Each family's addresses in intervals, and for each interval the blocks that contain it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Space {
    /// The first address of each interval, ascending; it ends before the next one's first.
    intervals: [Vec<(IpAddr, Vec<u32>)>; 2],
}

impl Space {
    /// Cuts the space by blocks, each with the number it is known by.
    pub(crate) fn cut<'a>(blocks: impl Iterator<Item = (u32, &'a IpBlock)>) -> Space {
        let mut edges: [Vec<(IpAddr, bool, u32)>; 2] = Default::default();
        for (id, block) in blocks {
            for range in ranges(block) {
                let edges = &mut edges[Family::of(range.first) as usize];
                edges.push((range.first, true, id));
                if let Some(after) = next_address(range.last) {
                    edges.push((after, false, id));
                }
            }
        }
        let mut space = Space::default();
        for family in Family::ALL {
            let edges = &mut edges[family as usize];
            edges.sort_unstable();
            let intervals = &mut space.intervals[family as usize];
            intervals.push((IpRange::all(family).first, Vec::new()));
            let mut inside: Vec<u32> = Vec::new();
            for (address, enters, id) in edges.drain(..) {
                match (inside.binary_search(&id), enters) {
                    (Err(at), true) => inside.insert(at, id),
                    (Ok(at), false) => _ = inside.remove(at),
                    // A block's own ranges are disjoint and never touch.
                    (Ok(_), true) | (Err(_), false) => {}
                }
                match intervals.last_mut() {
                    Some((first, blocks)) if *first == address => blocks.clone_from(&inside),
                    _ => intervals.push((address, inside.clone())),
                }
            }
        }
        space
    }

    /// The number of the interval that an address is in, among those of its family.
    pub(crate) fn interval(&self, address: IpAddr) -> usize {
        let intervals = &self.intervals[Family::of(address) as usize];
        intervals.partition_point(|(first, _)| *first <= address).saturating_sub(1)
    }

    /// The intervals of a family, each with the blocks that contain it.
    pub(crate) fn intervals(&self, family: Family) -> &[(IpAddr, Vec<u32>)] {
        &self.intervals[family as usize]
    }
}

/// Whether every address of some ranges is in one of the blocks.
pub(crate) fn cover(blocks: &[&[IpRange]], all: &[IpRange]) -> bool {
    let mut ranges: Vec<&IpRange> = blocks.iter().copied().flatten().collect();
    ranges.sort_unstable();
    all.iter().all(|all| {
        let mut next = Some(all.first);
        for range in &ranges {
            if let Some(first) = next
                && range.contains(first)
            {
                next = next_address(range.last).filter(|after| *after <= all.last);
            }
        }
        next.is_none()
    })
}

/// The addresses of a block as disjoint ranges, ascending, no two of them adjacent.
pub(crate) fn ranges(block: &IpBlock) -> Vec<IpRange> {
    let mut holes: Vec<IpRange> = block.except.iter().map(|e| IpRange::from(*e)).collect();
    holes.sort_unstable();
    let whole = IpRange::from(block.cidr);
    let mut left = Vec::new();
    let mut next = Some(whole.first);
    for hole in holes {
        let Some(first) = next else { break };
        if let Some(last) = previous_address(hole.first).filter(|last| *last >= first) {
            left.push(IpRange { first, last });
        }
        next = next_address(hole.last).map(|after| after.max(first));
    }
    if let Some(first) = next.filter(|first| *first <= whole.last) {
        left.push(IpRange { first, last: whole.last });
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(cidr: &str, except: &[&str]) -> IpBlock {
        IpBlock {
            cidr: cidr.parse().unwrap(),
            except: except.iter().map(|e| e.parse().unwrap()).collect(),
        }
    }

    fn shown(block: &IpBlock) -> Vec<String> {
        ranges(block).iter().map(|r| format!("{}-{}", r.first, r.last)).collect()
    }

    #[test]
    fn exceptions_are_cut_out_wherever_they_lie() {
        let cases: [(&str, &[&str], &[&str]); 7] = [
            ("10.0.0.0/30", &[], &["10.0.0.0-10.0.0.3"]),
            ("10.0.0.0/30", &["10.0.0.0/31"], &["10.0.0.2-10.0.0.3"]),
            ("10.0.0.0/30", &["10.0.0.2/31"], &["10.0.0.0-10.0.0.1"]),
            ("10.0.0.0/30", &["10.0.0.2/31", "10.0.0.0/31"], &[]),
            ("10.0.0.0/29", &["10.0.0.2/32", "10.0.0.0/30"], &["10.0.0.4-10.0.0.7"]),
            ("0.0.0.0/0", &["255.255.255.255/32"], &["0.0.0.0-255.255.255.254"]),
            ("::/0", &["::/1"], &["8000::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]),
        ];
        for (cidr, except, expected) in cases {
            assert_eq!(shown(&block(cidr, except)), expected, "{cidr} except {except:?}");
        }
    }

    #[test]
    fn an_interval_knows_every_block_that_contains_it() {
        let blocks = [
            block("0.0.0.0/0", &["10.0.0.0/8"]),
            block("10.1.0.0/16", &[]),
            block("10.0.0.0/8", &["10.1.2.0/24"]),
            block("fd00::/8", &[]),
        ];
        let space = Space::cut((0u32..).zip(&blocks));
        for address in [
            "9.255.255.255",
            "10.0.0.0",
            "10.1.1.1",
            "10.1.2.3",
            "10.1.3.0",
            "11.0.0.0",
            "fd00::1",
            "fe80::1",
            "0.0.0.0",
            "255.255.255.255",
        ] {
            let address: IpAddr = address.parse().unwrap();
            let expected: Vec<u32> = (0u32..)
                .zip(&blocks)
                .filter(|(_, b)| b.contains(address))
                .map(|(i, _)| i)
                .collect();
            let (_, found) = &space.intervals(Family::of(address))[space.interval(address)];
            assert_eq!(*found, expected, "{address}");
        }
    }
}
