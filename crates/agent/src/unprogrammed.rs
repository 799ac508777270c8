//! What becomes of addresses of the node's pods that nothing has been heard of yet.

use portcullis_core::net::{IpNet, IpRange};

/// What happens to an address of the node's pod ranges that no known pod has (SEMANTICS 26).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Unprogrammed {
    /// It is an address like any other.
    #[default]
    Open,
    /// It is closed, both ways. The ranges are these, or without any the `podCIDRs` of the node.
    Closed(Vec<IpNet>),
}

impl Unprogrammed {
    /// The ranges in which an address without a pod is closed, by those of the node.
    pub(crate) fn ranges(&self, of_node: &[IpNet]) -> Vec<IpRange> {
        let ranges = match self {
            Unprogrammed::Open => &[],
            Unprogrammed::Closed(ranges) if ranges.is_empty() => of_node,
            Unprogrammed::Closed(ranges) => ranges,
        };
        ranges.iter().map(|range| IpRange::from(*range)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ranges_are_those_that_are_named_or_else_those_of_the_node() {
        let nets = |text: &str| vec![text.parse::<IpNet>().unwrap()];
        let of_node = nets("10.0.1.0/24");
        let range = |text| vec![IpRange::from(nets(text)[0])];
        assert_eq!(Unprogrammed::Open.ranges(&of_node), []);
        assert_eq!(Unprogrammed::Closed(Vec::new()).ranges(&of_node), range("10.0.1.0/24"));
        assert_eq!(Unprogrammed::Closed(Vec::new()).ranges(&[]), []);
        let named = Unprogrammed::Closed(nets("10.9.0.0/16"));
        assert_eq!(named.ranges(&of_node), range("10.9.0.0/16"));
    }
}
