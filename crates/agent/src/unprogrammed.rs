//! What becomes of addresses of the node's pods that nothing has been heard of yet.

use portcullis_core::model::Node;
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
    /// The ranges in which an address without a pod is closed.
    pub(crate) fn ranges(&self, nodes: &[Node], node: &str) -> Vec<IpRange> {
        let of_node = || nodes.iter().find(|known| known.name == node).map(|node| &*node.pod_cidrs);
        let ranges = match self {
            Unprogrammed::Open => &[],
            Unprogrammed::Closed(ranges) if ranges.is_empty() => of_node().unwrap_or_default(),
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
        let node = |name: &str, range| Node {
            name: name.to_owned(),
            pod_cidrs: nets(range),
            ..Node::default()
        };
        let nodes = [node("a", "10.0.0.0/24"), node("b", "10.0.1.0/24")];
        let ranges = |unprogrammed: Unprogrammed, node| unprogrammed.ranges(&nodes, node);
        let range = |text| vec![IpRange::from(nets(text)[0])];
        assert_eq!(ranges(Unprogrammed::Open, "b"), []);
        assert_eq!(ranges(Unprogrammed::Closed(Vec::new()), "b"), range("10.0.1.0/24"));
        assert_eq!(ranges(Unprogrammed::Closed(Vec::new()), "c"), []);
        assert_eq!(ranges(Unprogrammed::Closed(nets("10.9.0.0/16")), "b"), range("10.9.0.0/16"));
    }
}
