//! The lab's network as data: which namespaces there are, and what goes into each over netlink.
//!
//! It is a tree. The outside holds the external hosts and a veth to every node; a node has a veth
//! to each of its pods. Every lower end has host addresses (/32, /128) and a default route to a
//! link-local gateway, every upper end a route to each address below, as Calico and the ptp plugin
//! do it. Neighbours are permanent, so no ARP and no neighbour discovery happen at all: nothing to
//! wait for, and no limit of the kernel's shared neighbour table to run into.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::RawFd;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
    RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use portcullis_core::net::Family;

use crate::plan::{Kind, Plan};

/// The gateway of every lower end. No packet ever carries these addresses.
const GATEWAY_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1));
const GATEWAY_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));

/// Link numbers are ours to choose, and then need not be asked for. Lower ones are taken by the
/// tunnel devices that some kernels put into every namespace.
const LOOPBACK: u32 = 1;
const UPLINK: u32 = 100;
const FIRST_DOWNLINK: u32 = 1000;

/// The namespace of the external hosts.
pub(crate) const OUTSIDE: usize = 0;

/// One network namespace. They are named by their index: the outside, then the nodes, then the
/// pods in the order of the endpoints.
#[derive(Debug)]
pub(crate) struct Space {
    /// Whose it is, for messages.
    pub(crate) owner: String,
    /// Its own addresses.
    pub(crate) addresses: Vec<IpAddr>,
    /// Where its uplink ends; only the outside has none.
    pub(crate) parent: Option<usize>,
    /// The spaces at the ends of its downlinks.
    pub(crate) children: Vec<usize>,
}

/// The namespaces of a plan, and for each endpoint the index of the one it lives in.
pub(crate) fn spaces(plan: &Plan) -> (Vec<Space>, Vec<usize>) {
    let mut spaces = vec![Space {
        owner: "the outside".to_owned(),
        addresses: Vec::new(),
        parent: None,
        children: Vec::new(),
    }];
    let add = |spaces: &mut Vec<Space>, owner: &str, addresses: &[IpAddr], parent: usize| {
        let index = spaces.len();
        spaces[parent].children.push(index);
        spaces.push(Space {
            owner: owner.to_owned(),
            addresses: addresses.to_vec(),
            parent: Some(parent),
            children: Vec::new(),
        });
        index
    };
    for node in &plan.cluster.nodes {
        add(&mut spaces, &node.name, &node.addresses, OUTSIDE);
    }
    let mut space_of = Vec::new();
    for endpoint in &plan.endpoints {
        let node = endpoint.node.map_or(OUTSIDE, node_space);
        space_of.push(match endpoint.kind {
            Kind::Pod => add(&mut spaces, &endpoint.name, &endpoint.addresses, node),
            Kind::Node => node,
            Kind::External => {
                spaces[OUTSIDE].addresses.extend(&endpoint.addresses);
                OUTSIDE
            }
        });
    }
    (spaces, space_of)
}

/// The namespace of a node of the plan.
pub(crate) fn node_space(node: usize) -> usize {
    OUTSIDE + 1 + node
}

impl Space {
    /// Whether packets for others pass through it.
    pub(crate) fn is_router(&self) -> bool {
        self.parent.is_none() || !self.children.is_empty()
    }
}

/// A kernel setting below `/proc/sys/net`, made before the namespace has any link.
pub(crate) type Setting = (&'static str, &'static str);

/// Settings of every space.
pub(crate) const SETTINGS: [Setting; 4] = [
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    // Every refusal counts here, so none of them may be held back.
    ("ipv4/icmp_ratemask", "0"),
    ("ipv4/ping_group_range", "0 0"),
];

/// Settings of every space, where the lab has IPv6: no addresses but those we give, and nothing
/// asked of the link.
pub(crate) const SETTINGS_V6: [Setting; 5] = [
    ("ipv6/conf/all/disable_ipv6", "0"),
    ("ipv6/conf/default/disable_ipv6", "0"),
    ("ipv6/conf/default/addr_gen_mode", "1"),
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv6/icmp/ratelimit", "0"),
];

/// Settings of routers.
pub(crate) const FORWARDING: Setting = ("ipv4/conf/all/forwarding", "1");
/// The same for IPv6.
pub(crate) const FORWARDING_V6: Setting = ("ipv6/conf/all/forwarding", "1");

/// What a space needs, in order. The namespaces above it have to have theirs already; `file`
/// gives the open file of a namespace.
pub(crate) fn requests(
    spaces: &[Space],
    space: usize,
    file: impl Fn(usize) -> RawFd,
) -> Vec<(RouteNetlinkMessage, u16)> {
    let this = &spaces[space];
    let mut out = vec![up(LOOPBACK)];
    match this.parent {
        None => out.extend(this.addresses.iter().map(|a| address(LOOPBACK, *a))),
        Some(_) => {
            out.push(up(UPLINK));
            out.extend(this.addresses.iter().map(|a| address(UPLINK, *a)));
            for gateway in [GATEWAY_V4, GATEWAY_V6] {
                if this.addresses.iter().any(|a| Family::of(*a) == Family::of(gateway)) {
                    out.push(neighbour(UPLINK, gateway, upper_mac(space)));
                    out.push(route(UPLINK, None, Some(gateway), None));
                }
            }
        }
    }
    for &child in &this.children {
        let link = downlink(child);
        out.push(veth(child, file(child)));
        for &to in &spaces[child].addresses {
            out.push(neighbour(link, to, lower_mac(child)));
            out.push(route(link, Some(to), None, source(this, to)));
        }
        for &grandchild in &spaces[child].children {
            for &to in &spaces[grandchild].addresses {
                let via = source(&spaces[child], to);
                out.push(route(link, Some(to), via, None));
            }
        }
    }
    out
}

/// The address a space speaks with to this one. The outside is many hosts and has none.
fn source(space: &Space, to: IpAddr) -> Option<IpAddr> {
    space.parent?;
    space.addresses.iter().copied().find(|a| Family::of(*a) == Family::of(to))
}

/// The number of the link in its parent that leads to this space.
fn downlink(child: usize) -> u32 {
    FIRST_DOWNLINK.saturating_add(u32::try_from(child).unwrap_or(u32::MAX))
}

fn lower_mac(child: usize) -> Vec<u8> {
    [&[0x02, 0x00][..], &downlink(child).to_be_bytes()].concat()
}

fn upper_mac(child: usize) -> Vec<u8> {
    [&[0x02, 0x01][..], &downlink(child).to_be_bytes()].concat()
}

fn up(link: u32) -> (RouteNetlinkMessage, u16) {
    let mut message = LinkMessage::default();
    message.header.index = link;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    (RouteNetlinkMessage::SetLink(message), 0)
}

/// By default a veth has a queue per processor and then gives up all but one of them, for which
/// the kernel waits until no processor can see them any more: a millisecond for every pod.
const ONE_QUEUE: [LinkAttribute; 2] =
    [LinkAttribute::NumTxQueues(1), LinkAttribute::NumRxQueues(1)];

/// A veth whose upper end is here and up, and whose lower end is `eth0` of the child.
fn veth(child: usize, file: RawFd) -> (RouteNetlinkMessage, u16) {
    let mut lower = LinkMessage::default();
    lower.header.index = UPLINK;
    lower.attributes = vec![
        LinkAttribute::IfName("eth0".to_owned()),
        LinkAttribute::Address(lower_mac(child)),
        LinkAttribute::NetNsFd(file),
        ONE_QUEUE[0].clone(),
        ONE_QUEUE[1].clone(),
    ];
    let mut upper = LinkMessage::default();
    upper.header.index = downlink(child);
    upper.header.flags = LinkFlags::Up;
    upper.header.change_mask = LinkFlags::Up;
    upper.attributes = vec![
        LinkAttribute::IfName(format!("veth{child}")),
        LinkAttribute::Address(upper_mac(child)),
        ONE_QUEUE[0].clone(),
        ONE_QUEUE[1].clone(),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(lower))),
        ]),
    ];
    (RouteNetlinkMessage::NewLink(upper), NLM_F_CREATE | NLM_F_EXCL)
}

fn address(link: u32, address: IpAddr) -> (RouteNetlinkMessage, u16) {
    let mut message = AddressMessage::default();
    message.header.family = address_family(address);
    message.header.prefix_len = full_length(address);
    // Nobody else has it: do not ask.
    message.header.flags = AddressHeaderFlags::Nodad;
    message.header.index = link;
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    (RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)
}

fn neighbour(link: u32, address: IpAddr, mac: Vec<u8>) -> (RouteNetlinkMessage, u16) {
    let mut message = NeighbourMessage::default();
    message.header.family = address_family(address);
    message.header.ifindex = link;
    message.header.state = NeighbourState::Permanent;
    message.attributes = vec![
        NeighbourAttribute::Destination(match address {
            IpAddr::V4(a) => NeighbourAddress::Inet(a),
            IpAddr::V6(a) => NeighbourAddress::Inet6(a),
        }),
        NeighbourAttribute::LinkLayerAddress(mac),
    ];
    (RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_EXCL)
}

/// A route over the link: to one address or (`None`) to all, directly or via another address.
fn route(
    link: u32,
    to: Option<IpAddr>,
    via: Option<IpAddr>,
    source: Option<IpAddr>,
) -> (RouteNetlinkMessage, u16) {
    let mut message = RouteMessage::default();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.kind = RouteType::Unicast;
    message.header.scope = RouteScope::Universe;
    message.attributes.push(RouteAttribute::Oif(link));
    if let Some(to) = to {
        message.header.address_family = address_family(to);
        message.header.destination_prefix_length = full_length(to);
        message.attributes.push(RouteAttribute::Destination(route_address(to)));
        if to.is_ipv4() && via.is_none() {
            message.header.scope = RouteScope::Link;
        }
    }
    if let Some(via) = via {
        message.header.address_family = address_family(via);
        message.header.flags = RouteFlags::Onlink;
        message.attributes.push(RouteAttribute::Gateway(route_address(via)));
    }
    if let Some(source) = source {
        message.attributes.push(RouteAttribute::PrefSource(route_address(source)));
    }
    (RouteNetlinkMessage::NewRoute(message), NLM_F_CREATE | NLM_F_EXCL)
}

fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(a) => RouteAddress::Inet(a),
        IpAddr::V6(a) => RouteAddress::Inet6(a),
    }
}

fn address_family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn full_length(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}
