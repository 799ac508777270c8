//! Whether what goes between pods of a node meets the rules at all.
//!
//! Between two ports of a bridge nothing is routed. The kernel then asks the rules at `forward` only
//! where bridge netfilter is on: for all bridges of a network namespace, or for this one.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::net::IpAddr;

use netlink_packet_route::link::{
    InfoBridge, InfoData, InfoKind, LinkAttribute, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use portcullis_core::net::Family;

use crate::Error;
use crate::netlink::NetlinkSocket;

/// A bridge on which packets between pods of the node pass without meeting the rules.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unseen {
    /// The name of the bridge.
    pub bridge: String,
    /// The family of the packets.
    pub family: Family,
}

impl fmt::Display for Unseen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Unseen { bridge, family } = self;
        let setting = setting(*family);
        write!(
            f,
            "pods of this node reach each other over the bridge {bridge}, where {family} packets \
             meet no rules: set net.bridge.{setting}=1 (sysctl; the module br_netfilter has it)"
        )
    }
}

fn setting(family: Family) -> &'static str {
    match family {
        Family::V4 => "bridge-nf-call-iptables",
        Family::V6 => "bridge-nf-call-ip6tables",
    }
}

/// A bridge of the namespace.
#[derive(Debug)]
struct Bridge {
    name: String,
    /// Whether it asks the rules whatever the namespace is set to.
    asks: BTreeMap<Family, bool>,
}

/// The bridges that lead to one of the addresses and on which packets of its family are not seen.
/// The socket is one for routes, and the calling thread has to be in its namespace.
pub(crate) fn unseen(
    socket: &mut NetlinkSocket,
    addresses: impl Iterator<Item = IpAddr>,
) -> Result<Vec<Unseen>, Error> {
    let links = socket.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
    let bridges: BTreeMap<u32, Bridge> = links.iter().filter_map(bridge).collect();
    let mut found = Vec::new();
    if bridges.is_empty() {
        return Ok(found);
    }
    let closed: Vec<Family> = Family::ALL.into_iter().filter(|f| !is_on(*f)).collect();
    for address in addresses.filter(|address| closed.contains(&Family::of(*address))) {
        let family = Family::of(address);
        let Some(bridge) = link_to(socket, address)?.and_then(|link| bridges.get(&link)) else {
            continue;
        };
        let unseen = Unseen { bridge: bridge.name.clone(), family };
        if !bridge.asks.get(&family).is_some_and(|asks| *asks) && !found.contains(&unseen) {
            found.push(unseen);
        }
    }
    Ok(found)
}

/// Whether every bridge of the namespace asks the rules.
fn is_on(family: Family) -> bool {
    let path = format!("/proc/sys/net/bridge/{}", setting(family));
    fs::read_to_string(path).is_ok_and(|value| value.trim() != "0")
}

fn bridge(message: &RouteNetlinkMessage) -> Option<(u32, Bridge)> {
    let RouteNetlinkMessage::NewLink(link) = message else { return None };
    let info = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(info) => Some(info),
        _ => None,
    })?;
    if !info.contains(&LinkInfo::Kind(InfoKind::Bridge)) {
        return None;
    }
    let name = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })?;
    let data = info.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Bridge(data)) => Some(data.as_slice()),
        _ => None,
    });
    let asks = data.unwrap_or_default().iter().filter_map(|data| match data {
        InfoBridge::NfCallIpTables(asks) => Some((Family::V4, *asks)),
        InfoBridge::NfCallIp6Tables(asks) => Some((Family::V6, *asks)),
        _ => None,
    });
    Some((link.header.index, Bridge { name, asks: asks.collect() }))
}

/// The link that packets to an address leave by; `None` without a route.
fn link_to(socket: &mut NetlinkSocket, address: IpAddr) -> Result<Option<u32>, Error> {
    let mut message = RouteMessage::default();
    let (family, length, to) = match address {
        IpAddr::V4(a) => (AddressFamily::Inet, 32, RouteAddress::Inet(a)),
        IpAddr::V6(a) => (AddressFamily::Inet6, 128, RouteAddress::Inet6(a)),
    };
    message.header.address_family = family;
    message.header.destination_prefix_length = length;
    message.attributes = vec![RouteAttribute::Destination(to)];
    let answers = match socket.request(RouteNetlinkMessage::GetRoute(message), 0) {
        Ok(answers) => answers,
        // The pod may be about to come or to go.
        Err(error) if error.errno().is_some() => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(answers.iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewRoute(route) => route.attributes.iter().find_map(|a| match a {
            RouteAttribute::Oif(link) => Some(*link),
            _ => None,
        }),
        _ => None,
    }))
}
