//! The ports that a test speaks of.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use portcullis_core::model::Pod;
use portcullis_core::net::{Protocol, Traffic};
use portcullis_core::portset::PortSet;
use portcullis_core::program;

use crate::ends::{NotAnEnd, PortName};

/// Ports as a test says them.
#[derive(Debug, Clone)]
pub(super) struct Ports {
    pub(super) items: Vec<PortItem>,
    /// Whether everything is meant but these; without any, everything.
    pub(super) all_but: bool,
}

/// A port, or several that follow each other.
#[derive(Debug, Clone)]
pub(super) enum PortItem {
    One(PortName),
    Range(program::Ports),
}

/// What a connection may be opened on: ports of protocols that have some, and all the others.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Claim {
    ports: PortSet,
    other: bool,
}

/// No connection is opened to port 0.
const FIRST: u16 = 1;

impl Ports {
    /// What is meant towards a pod, or towards what is none and so has no names of ports.
    pub(super) fn claim(&self, pod: Option<&Pod>) -> Result<Claim, NotAnEnd> {
        let (mut ports, mut other) = (Vec::new(), false);
        for item in &self.items {
            match item {
                PortItem::Range(range) => ports.push(Some(*range)),
                PortItem::One(name) => {
                    for traffic in name.numbers(pod)? {
                        match traffic {
                            Traffic::Other => other = true,
                            Traffic::Port(protocol, port) => {
                                ports.push(Some(program::Ports {
                                    protocol,
                                    first: port,
                                    last: port,
                                }));
                            }
                        }
                    }
                }
            }
        }
        let claim = Claim { ports: PortSet::of(ports), other };
        Ok(if self.all_but { claim.complement() } else { claim })
    }

    /// In words, with one for all.
    pub(super) fn words(&self, all: &str) -> String {
        let items = self.items.iter().map(PortItem::to_string).collect::<Vec<_>>().join(", ");
        match (self.all_but, items.is_empty()) {
            (true, true) => format!("{all} port"),
            (true, false) => format!("{all} port but {items}"),
            (false, _) => items,
        }
    }

    /// The names that are ports of a Service, which are told one by one; `None` for the rest.
    pub(super) fn names(&self) -> Option<Vec<&PortName>> {
        if self.all_but {
            return None;
        }
        let mut names = Vec::new();
        for item in &self.items {
            match item {
                PortItem::One(name) => names.push(name),
                PortItem::Range(_) => return None,
            }
        }
        Some(names)
    }
}

impl Claim {
    /// Nothing.
    pub(super) const NOTHING: Claim = Claim { ports: PortSet::NOTHING, other: false };

    /// Everything.
    pub(super) fn all() -> Claim {
        Claim::NOTHING.complement()
    }

    /// One kind of traffic.
    pub(super) fn one(traffic: Traffic) -> Claim {
        match traffic {
            Traffic::Other => Claim { ports: PortSet::NOTHING, other: true },
            Traffic::Port(protocol, port) => {
                let ports = program::Ports { protocol, first: port, last: port };
                Claim { ports: PortSet::of([Some(ports)]), other: false }
            }
        }
    }

    /// What a set of allowed traffic is.
    pub(super) fn of(allowed: &PortSet) -> Claim {
        match allowed {
            PortSet::Everything => Claim::all(),
            PortSet::Ports(_) => {
                Claim { ports: allowed.intersection(&Claim::all().ports), other: false }
            }
        }
    }

    pub(super) fn is_nothing(&self) -> bool {
        self.ports.is_nothing() && !self.other
    }

    pub(super) fn contains(&self, traffic: Traffic) -> bool {
        match traffic {
            Traffic::Other => self.other,
            Traffic::Port(..) => self.ports.contains(traffic),
        }
    }

    /// What is in both.
    pub(super) fn and(&self, other: &Claim) -> Claim {
        Claim { ports: self.ports.intersection(&other.ports), other: self.other && other.other }
    }

    /// What is in this one alone.
    pub(super) fn without(&self, other: &Claim) -> Claim {
        self.and(&other.complement())
    }

    /// What is in either.
    pub(super) fn or(&self, other: &Claim) -> Claim {
        Claim { ports: self.ports.union(&other.ports), other: self.other || other.other }
    }

    /// All that is not in it.
    pub(super) fn complement(&self) -> Claim {
        let PortSet::Ports(ports) = &self.ports else {
            return Claim { ports: PortSet::NOTHING, other: !self.other };
        };
        let mut rest = Vec::new();
        for protocol in Protocol::ALL {
            let mut next = Some(FIRST);
            for range in ports.iter().filter(|range| range.protocol == protocol) {
                if let Some(first) = next.filter(|first| *first < range.first) {
                    rest.push(Some(program::Ports { protocol, first, last: range.first - 1 }));
                }
                next = range.last.checked_add(1);
            }
            let left = next.map(|first| program::Ports { protocol, first, last: u16::MAX });
            rest.extend(left.map(Some));
        }
        Claim { ports: PortSet::of(rest), other: !self.other }
    }

    /// One kind of traffic of it.
    pub(super) fn example(&self) -> Traffic {
        match &self.ports {
            PortSet::Ports(ports) if !ports.is_empty() => {
                Traffic::Port(ports[0].protocol, ports[0].first.max(FIRST))
            }
            _ => Traffic::Other,
        }
    }

    /// What of it is tried with packets: single ports, and of many those that somebody speaks of.
    pub(super) fn tries(&self, spoken_of: &BTreeSet<Traffic>) -> BTreeSet<Traffic> {
        let mut tries: BTreeSet<Traffic> =
            spoken_of.iter().copied().filter(|traffic| self.contains(*traffic)).collect();
        let PortSet::Ports(ports) = &self.ports else { return tries };
        for range in ports.iter().filter(|range| range.last - range.first < 2) {
            let each = range.first.max(FIRST)..=range.last;
            tries.extend(each.map(|port| Traffic::Port(range.protocol, port)));
        }
        if tries.is_empty() && !self.is_nothing() {
            tries.insert(self.example());
        }
        tries
    }

    /// Whether it is shorter to say what is not in it.
    pub(super) fn is_open_ended(&self) -> bool {
        self.complement().items().len() < self.items().len()
    }

    /// The ports as a test would list them.
    pub(super) fn items(&self) -> Vec<String> {
        let PortSet::Ports(ports) = &self.ports else { return Vec::new() };
        let item = |range: &program::Ports| match (range.first, range.last) {
            (first, last) if first == last => format!("{first}{}", suffix(range.protocol)),
            (first, last) => format!("{first}-{last}{}", suffix(range.protocol)),
        };
        let icmp = self.other.then(|| "icmp".to_owned());
        ports.iter().map(item).chain(icmp).collect()
    }
}

fn suffix(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "",
        Protocol::Udp => "/udp",
        Protocol::Sctp => "/sctp",
    }
}

/// `everything`, or as [`PortSet`] shows it.
impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self == &Claim::all(), self.ports.is_nothing(), self.other) {
            (true, ..) => f.write_str("everything"),
            (_, true, true) => f.write_str("ICMP"),
            (_, _, true) => write!(f, "{}, ICMP", self.ports),
            (_, _, false) => write!(f, "{}", self.ports),
        }
    }
}

impl fmt::Display for PortItem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PortItem::One(name) => write!(f, "{name}"),
            PortItem::Range(range) => {
                write!(f, "{}-{}/{}", range.first, range.last, range.protocol)
            }
        }
    }
}

impl FromStr for PortItem {
    type Err = String;

    /// `80`, `53/udp`, `8000-8100`, `8000-8100/udp`, a port name, `icmp`.
    fn from_str(text: &str) -> Result<PortItem, String> {
        let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        let Some((first, last)) = ports.split_once('-').filter(|(a, b)| digits(a) && digits(b))
        else {
            return text.parse().map(PortItem::One);
        };
        let end = |end: &str| {
            let number = end.parse::<u16>().ok().filter(|port| *port >= FIRST);
            number.ok_or_else(|| format!("{end} is not a port: write one from 1 to 65535"))
        };
        let (first, last) = (end(first)?, end(last)?);
        if first >= last {
            return Err(format!("{ports} ends before it begins: write the lower port first"));
        }
        let protocol = Protocol::from_api(&protocol.to_uppercase())
            .ok_or_else(|| format!("unknown protocol {protocol:?}: write tcp, udp or sctp"))?;
        Ok(PortItem::Range(program::Ports { protocol, first, last }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(text: &str, all_but: bool) -> Claim {
        let items = text.split_whitespace().map(|item| item.parse().unwrap()).collect();
        Ports { items, all_but }.claim(None).unwrap()
    }

    #[test]
    fn everything_but_some_is_the_rest_of_every_protocol_and_icmp() {
        let rest = claim("80 443 9000-65535/udp", true);
        assert_eq!(rest.to_string(), "1-79, 81-442, 444-65535/TCP, 1-8999/UDP, all SCTP, ICMP");
        assert_eq!(rest.complement(), claim("80 443 9000-65535/udp", false));
        assert_eq!(claim("", true), Claim::all());
        assert_eq!(claim("icmp", true).without(&claim("80", false)).example(), {
            Traffic::Port(Protocol::Tcp, 1)
        });
    }

    #[test]
    fn a_port_that_is_none_is_refused_in_words() {
        for (text, why) in [
            ("0", "0 is not a port: write one from 1 to 65535"),
            ("80-70", "80-70 ends before it begins: write the lower port first"),
            ("70-70000", "70000 is not a port: write one from 1 to 65535"),
            ("53/upd", "unknown protocol \"upd\": write tcp, udp or sctp"),
            ("1-2/upd", "unknown protocol \"upd\": write tcp, udp or sctp"),
        ] {
            assert_eq!(text.parse::<PortItem>().unwrap_err(), why);
        }
    }
}
