//! Sets of traffic: what a connection may be opened on.

use std::fmt;

use crate::net::Traffic;
use crate::program::Ports;

/// What may be opened between two ends. Equal sets are equal values.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortSet {
    /// Ports of TCP, UDP and SCTP: disjoint, not adjacent, ascending by protocol and port. None
    /// at all is nothing.
    Ports(Vec<Ports>),
    /// Everything, ICMP and what else has no ports included.
    Everything,
}

impl PortSet {
    /// The set without anything in it.
    pub const NOTHING: PortSet = PortSet::Ports(Vec::new());

    /// All that any of these allow; `None` is everything, as in an
    /// [`Entry`](crate::program::Entry).
    pub fn of(allowed: impl IntoIterator<Item = Option<Ports>>) -> PortSet {
        let mut all = Vec::new();
        for ports in allowed {
            match ports {
                None => return PortSet::Everything,
                Some(ports) => all.push(ports),
            }
        }
        all.sort_unstable();
        let mut merged: Vec<Ports> = Vec::with_capacity(all.len());
        for next in all {
            match merged.last_mut() {
                Some(before)
                    if before.protocol == next.protocol
                        && u32::from(next.first) <= u32::from(before.last) + 1 =>
                {
                    before.last = before.last.max(next.last);
                }
                _ => merged.push(next),
            }
        }
        PortSet::Ports(merged)
    }

    /// Whether nothing is in it.
    pub fn is_nothing(&self) -> bool {
        *self == PortSet::NOTHING
    }

    /// Whether some traffic is in it.
    pub fn contains(&self, traffic: Traffic) -> bool {
        match (self, traffic) {
            (PortSet::Everything, _) => true,
            (PortSet::Ports(ports), Traffic::Port(protocol, port)) => {
                ports.iter().any(|p| p.protocol == protocol && (p.first..=p.last).contains(&port))
            }
            (PortSet::Ports(_), Traffic::Other) => false,
        }
    }

    /// What is in either.
    pub fn union(&self, other: &PortSet) -> PortSet {
        match (self, other) {
            (PortSet::Everything, _) | (_, PortSet::Everything) => PortSet::Everything,
            (PortSet::Ports(a), PortSet::Ports(b)) => {
                PortSet::of(a.iter().chain(b).map(|ports| Some(*ports)))
            }
        }
    }

    /// What is in both.
    pub fn intersection(&self, other: &PortSet) -> PortSet {
        let (a, b) = match (self, other) {
            (PortSet::Everything, set) | (set, PortSet::Everything) => return set.clone(),
            (PortSet::Ports(a), PortSet::Ports(b)) => (a, b),
        };
        let (mut i, mut j) = (0, 0);
        let mut both = Vec::new();
        while let (Some(x), Some(y)) = (a.get(i), b.get(j)) {
            let (first, last) = (x.first.max(y.first), x.last.min(y.last));
            if x.protocol == y.protocol && first <= last {
                both.push(Ports { protocol: x.protocol, first, last });
            }
            if (x.protocol, x.last) < (y.protocol, y.last) { i += 1 } else { j += 1 }
        }
        PortSet::Ports(both)
    }

    /// What is in this and not in the other. Everything less some ports is still called everything:
    /// what has no ports is left.
    pub fn without(&self, other: &PortSet) -> PortSet {
        let (own, holes) = match (self, other) {
            (_, PortSet::Everything) => return PortSet::NOTHING,
            (PortSet::Everything, PortSet::Ports(_)) => return PortSet::Everything,
            (PortSet::Ports(own), PortSet::Ports(holes)) => (own, holes),
        };
        let mut left = Vec::new();
        for ports in own {
            let mut rest = Some(*ports);
            for hole in holes.iter().filter(|hole| hole.protocol == ports.protocol) {
                let Some(Ports { first, last, .. }) = rest else { break };
                if hole.last < first || last < hole.first {
                    continue;
                }
                if first < hole.first {
                    left.push(Ports { protocol: ports.protocol, first, last: hole.first - 1 });
                }
                rest = (hole.last < last).then(|| Ports { first: hole.last + 1, ..*ports });
            }
            left.extend(rest);
        }
        PortSet::Ports(left)
    }

    /// Whether all of the other is in this one.
    pub fn covers(&self, other: &PortSet) -> bool {
        self == other || self.intersection(other) == *other
    }
}

/// `everything`, `nothing`, or `80, 443, 8000-8100/TCP, all UDP`.
impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ports = match self {
            PortSet::Everything => return f.write_str("everything"),
            PortSet::Ports(ports) if ports.is_empty() => return f.write_str("nothing"),
            PortSet::Ports(ports) => ports,
        };
        let mut text = Vec::new();
        for of_protocol in ports.chunk_by(|a, b| a.protocol == b.protocol) {
            let protocol = of_protocol[0].protocol;
            let range = |p: &Ports| match (p.first, p.last) {
                (first, last) if first == last => first.to_string(),
                (first, last) => format!("{first}-{last}"),
            };
            let one = of_protocol[0];
            // No connection is opened to port 0, so it makes no difference.
            text.push(if one.first <= 1 && one.last == u16::MAX {
                format!("all {protocol}")
            } else {
                let ranges: Vec<String> = of_protocol.iter().map(range).collect();
                format!("{}/{protocol}", ranges.join(", "))
            });
        }
        f.write_str(&text.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Protocol::{Sctp, Tcp, Udp};

    fn set(ports: &[(crate::net::Protocol, u16, u16)]) -> PortSet {
        PortSet::of(
            ports.iter().map(|&(protocol, first, last)| Some(Ports { protocol, first, last })),
        )
    }

    #[test]
    fn ranges_that_touch_are_one_and_protocols_stay_apart() {
        let merged = set(&[(Udp, 53, 53), (Tcp, 81, 90), (Tcp, 80, 80), (Tcp, 85, 95)]);
        assert_eq!(merged.to_string(), "80-95/TCP, 53/UDP");
        assert_eq!(set(&[(Tcp, 65535, 65535), (Udp, 0, 1)]).to_string(), "65535/TCP, 0-1/UDP");
        assert_eq!(
            set(&[(Sctp, 0, 65535), (Tcp, 80, 80), (Tcp, 443, 443)]).to_string(),
            "80, 443/TCP, all SCTP"
        );
    }

    #[test]
    fn every_port_of_every_protocol_is_still_not_icmp() {
        let all = set(&[(Tcp, 0, 65535), (Udp, 0, 65535), (Sctp, 0, 65535)]);
        assert!(!all.covers(&PortSet::Everything) && PortSet::Everything.covers(&all));
        assert!(!all.contains(Traffic::Other));
        assert_eq!(all.union(&PortSet::Everything), PortSet::Everything);
    }

    #[test]
    fn what_is_in_both_is_what_each_contains() {
        let a = set(&[(Tcp, 10, 20), (Tcp, 30, 40), (Udp, 5, 9)]);
        let b = set(&[(Tcp, 0, 12), (Tcp, 18, 33), (Tcp, 40, 50), (Udp, 9, 9), (Sctp, 1, 1)]);
        let both = a.intersection(&b);
        assert_eq!(both.to_string(), "10-12, 18-20, 30-33, 40/TCP, 9/UDP");
        assert_eq!(both, b.intersection(&a));
        assert!(a.covers(&both) && b.covers(&both) && !both.covers(&a));
        assert_eq!(a.without(&b).to_string(), "13-17, 34-39/TCP, 5-8/UDP");
        assert_eq!(a.without(&b).union(&both), a);
        assert!(a.without(&PortSet::Everything).is_nothing() && a.without(&a).is_nothing());
    }
}
