//! The addresses of a node's pods.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use portcullis_core::net::next_address;

/// A range that pods have addresses from. An address that is given back is given again as late as
/// can be: after all others.
#[derive(Debug)]
pub(crate) struct Range {
    net: IpNet,
    /// The one that was given last.
    last: IpAddr,
    taken: BTreeSet<IpAddr>,
}

impl Range {
    /// The first address is the gateway's, by custom.
    pub(crate) fn new(net: IpNet) -> Range {
        let last = next_address(net.network()).unwrap_or(net.network());
        Range { net, last, taken: BTreeSet::from([last]) }
    }

    /// Whether an address is of this range.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        self.net.contains(&address)
    }

    /// The next free address; `None` if there is none.
    pub(crate) fn take(&mut self) -> Option<IpAddr> {
        let mut address = self.last;
        // One more than are taken is enough to find one that is free, or to have seen all.
        for _ in 0..=self.taken.len() + 1 {
            let next = next_address(address).filter(|next| self.is_host(*next));
            address = next.or_else(|| next_address(self.net.network()))?;
            if self.take_this(address) {
                self.last = address;
                return Some(address);
            }
        }
        None
    }

    /// Takes this address, if it is free.
    pub(crate) fn take_this(&mut self, address: IpAddr) -> bool {
        self.is_host(address) && self.taken.insert(address)
    }

    /// Gives an address back.
    pub(crate) fn give_back(&mut self, address: IpAddr) {
        self.taken.remove(&address);
    }

    fn is_host(&self, address: IpAddr) -> bool {
        let ends = [self.net.network(), self.net.broadcast()];
        self.net.contains(&address) && !ends.contains(&address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_was_given_back_is_the_last_to_be_given_again() {
        let address = |last: u8| IpAddr::from([10, 244, 1, last]);
        let mut range = Range::new("10.244.1.0/29".parse().unwrap());
        assert_eq!(range.take(), Some(address(2)));
        assert_eq!(range.take(), Some(address(3)));
        range.give_back(address(2));
        for last in [4, 5, 6, 2] {
            assert_eq!(range.take(), Some(address(last)));
        }
        assert_eq!(range.take(), None);
        range.give_back(address(5));
        assert_eq!(range.take(), Some(address(5)));
    }

    #[test]
    fn the_range_of_a_family_may_be_vast() {
        let mut range = Range::new("fd00:10:244:1::/64".parse().unwrap());
        assert_eq!(range.take(), Some("fd00:10:244:1::2".parse().unwrap()));
        assert!(range.take_this("fd00:10:244:1::3".parse().unwrap()));
        assert!(!range.take_this("fd00:10:244:2::3".parse().unwrap()));
        assert_eq!(range.take(), Some("fd00:10:244:1::4".parse().unwrap()));
    }
}
