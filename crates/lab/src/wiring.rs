//! The lab's network as data: which namespaces there are, and what goes into each over netlink.
//!
//! It is a tree. The outside holds the external hosts and a veth to every node; a node has a veth
//! to each of its pods. Every lower end has host addresses (/32, /128) and a default route to a
//! link-local gateway, every upper end a route to each address below, as Calico and the ptp plugin
//! do it. Neighbours are permanent, so no ARP and no neighbour discovery happen at all: nothing to
//! wait for, and no limit of the kernel's shared neighbour table to run into.
//!
//! With [`Topology::Bridged`] the upper ends on a node are ports of one bridge, as Flannel does it,
//! and what goes between two pods of a node is not routed: they find each other on the link.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::RawFd;

use ipnet::IpNet;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage,
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

use crate::plan::{Kind, Plan, Topology};

/// The gateway of every lower end. No packet ever carries these addresses.
const GATEWAY_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1));
const GATEWAY_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));

/// Link numbers are ours to choose, and then need not be asked for. Lower ones are taken by the
/// tunnel devices that some kernels put into every namespace.
const LOOPBACK: u32 = 1;
const UPLINK: u32 = 100;
const BRIDGE: u32 = 101;
const FIRST_DOWNLINK: u32 = 1000;

/// A request to the kernel, and its flags.
pub(crate) type Request = (RouteNetlinkMessage, u16);

/// One network namespace.
#[derive(Debug, Clone)]
pub(crate) struct Space {
    /// Tells it from all others of its lab: the numbers of links and hardware addresses come from
    /// it.
    pub(crate) number: u32,
    /// Whose it is, for messages.
    pub(crate) owner: String,
    /// What it is in the tree.
    pub(crate) place: Place,
    /// Its own addresses.
    pub(crate) addresses: Vec<IpAddr>,
}

/// Where a space is in the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// The root: the hosts outside.
    Outside,
    /// Below the outside.
    Node,
    /// Below a node.
    Pod,
}

/// The spaces of a plan, by which each is named in it: the outside, then the nodes, then the pods in
/// the order of the endpoints.
#[derive(Debug)]
pub(crate) struct Spaces {
    pub(crate) all: Vec<Space>,
    /// For each space its parent; of the outside it is itself.
    pub(crate) parents: Vec<usize>,
    /// For each endpoint its space.
    pub(crate) of_endpoints: Vec<usize>,
    topology: Topology,
}

/// The space of the external hosts.
pub(crate) const OUTSIDE: usize = 0;

/// The space of a node of the plan.
pub(crate) fn node_space(node: usize) -> usize {
    OUTSIDE + 1 + node
}

impl Spaces {
    pub(crate) fn of(plan: &Plan) -> Spaces {
        let mut spaces = Spaces {
            all: Vec::new(),
            parents: Vec::new(),
            of_endpoints: Vec::new(),
            topology: plan.topology,
        };
        spaces.add("the outside", Place::Outside, &[], OUTSIDE);
        for node in &plan.cluster.nodes {
            spaces.add(&node.name, Place::Node, &node.addresses, OUTSIDE);
        }
        for endpoint in &plan.endpoints {
            let node = endpoint.node.map_or(OUTSIDE, node_space);
            let space = match endpoint.kind {
                Kind::Pod => spaces.add(&endpoint.name, Place::Pod, &endpoint.addresses, node),
                Kind::Node => node,
                Kind::External => {
                    spaces.all[OUTSIDE].addresses.extend(&endpoint.addresses);
                    OUTSIDE
                }
            };
            spaces.of_endpoints.push(space);
        }
        spaces
    }

    fn add(&mut self, owner: &str, place: Place, addresses: &[IpAddr], parent: usize) -> usize {
        let number = u32::try_from(self.all.len()).unwrap_or(u32::MAX);
        let (owner, addresses) = (owner.to_owned(), addresses.to_vec());
        self.all.push(Space { number, owner, place, addresses });
        self.parents.push(parent);
        self.all.len() - 1
    }

    fn children(&self, parent: usize) -> impl Iterator<Item = usize> + '_ {
        (parent + 1..self.all.len()).filter(move |child| self.parents[*child] == parent)
    }

    /// What a space needs, in order. Those above it have to have theirs already; `file` gives the
    /// open file of a namespace.
    pub(crate) fn requests(&self, space: usize, file: impl Fn(usize) -> RawFd) -> Vec<Request> {
        let this = &self.all[space];
        let parent = &self.all[self.parents[space]];
        let bridged = self.topology == Topology::Bridged;
        let mut out = match this.place {
            Place::Outside => outside(this),
            Place::Node => {
                [uplink(this, parent, Topology::Routed), node(self.topology, this)].concat()
            }
            Place::Pod => uplink(this, parent, self.topology),
        };
        if this.place == Place::Pod && bridged {
            let siblings = self.children(self.parents[space]).filter(|sibling| *sibling != space);
            let addresses = siblings.flat_map(|sibling| &self.all[sibling].addresses);
            out.extend(addresses.map(|address| on_link(IpNet::from(*address))));
        }
        for child in self.children(space) {
            out.extend(downlink(this, &self.all[child], file(child), self.topology));
            for grandchild in self.children(child) {
                let addresses = self.all[grandchild].addresses.iter();
                out.extend(addresses.map(|a| beyond(&self.all[child], IpNet::from(*a))));
            }
        }
        out
    }
}

impl Space {
    /// Whether packets for others pass through it.
    pub(crate) fn is_router(&self) -> bool {
        self.place != Place::Pod
    }

    /// The number of the link in its parent that leads to this space.
    fn downlink(&self) -> u32 {
        FIRST_DOWNLINK.saturating_add(self.number)
    }

    fn lower_mac(&self) -> Vec<u8> {
        [&[0x02, 0x00][..], &self.downlink().to_be_bytes()].concat()
    }

    fn upper_mac(&self) -> Vec<u8> {
        [&[0x02, 0x01][..], &self.downlink().to_be_bytes()].concat()
    }

    /// That of its bridge.
    fn bridge_mac(&self) -> Vec<u8> {
        [&[0x02, 0x02][..], &self.downlink().to_be_bytes()].concat()
    }

    fn address(&self, family: Family) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|address| Family::of(*address) == family)
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
/// Settings of nodes with a bridge: what passes over it meets the same rules as what is routed.
pub(crate) const BRIDGE_NETFILTER: [Setting; 2] =
    [("bridge/bridge-nf-call-iptables", "1"), ("bridge/bridge-nf-call-ip6tables", "1")];

/// What the outside needs itself.
pub(crate) fn outside(outside: &Space) -> Vec<Request> {
    let mut out = vec![up(LOOPBACK)];
    out.extend(outside.addresses.iter().map(|a| host(*a)));
    out
}

/// Gives the outside another host.
pub(crate) fn host(at: IpAddr) -> Request {
    address(LOOPBACK, at)
}

/// Takes a host away from the outside.
pub(crate) fn no_host(at: IpAddr) -> Request {
    match address(LOOPBACK, at) {
        (RouteNetlinkMessage::NewAddress(message), _) => {
            (RouteNetlinkMessage::DelAddress(message), 0)
        }
        other => other,
    }
}

/// What a space needs itself towards its parent, which has made the link.
pub(crate) fn uplink(space: &Space, parent: &Space, topology: Topology) -> Vec<Request> {
    let mut out = vec![up(LOOPBACK), up(UPLINK)];
    out.extend(space.addresses.iter().map(|a| address(UPLINK, *a)));
    for gateway in [GATEWAY_V4, GATEWAY_V6] {
        if space.address(Family::of(gateway)).is_some() {
            let mac = match topology {
                Topology::Routed => space.upper_mac(),
                Topology::Bridged => parent.bridge_mac(),
            };
            out.push(neighbour(UPLINK, gateway, mac));
            out.push(route(UPLINK, None, Some(gateway), None));
        }
    }
    out
}

/// Has a pod look for these addresses on its own link.
pub(crate) fn on_link(net: IpNet) -> Request {
    route(UPLINK, Some(net), None, None)
}

/// What a node needs for pods that are to come.
pub(crate) fn node(topology: Topology, node: &Space) -> Vec<Request> {
    match topology {
        Topology::Routed => Vec::new(),
        Topology::Bridged => vec![bridge(node.bridge_mac())],
    }
}

/// What a space needs for a child: a link to it, which `file` is the open namespace of, and routes.
pub(crate) fn downlink(
    parent: &Space,
    child: &Space,
    file: RawFd,
    topology: Topology,
) -> Vec<Request> {
    let is_port = child.place == Place::Pod && topology == Topology::Bridged;
    let mut out = vec![veth(child, file, is_port)];
    if is_port {
        out.push(hairpin(child.downlink()));
    }
    let link = if is_port { BRIDGE } else { child.downlink() };
    for &to in &child.addresses {
        // The outside is many hosts and has no address to speak with.
        let source = parent.address(Family::of(to)).filter(|_| parent.place == Place::Node);
        out.push(neighbour(link, to, child.lower_mac()));
        out.push(route(link, Some(IpNet::from(to)), None, source));
    }
    out
}

/// Undoes [`downlink`].
pub(crate) fn remove(child: &Space, topology: Topology) -> Vec<Request> {
    let mut out = Vec::new();
    if child.place == Place::Pod && topology == Topology::Bridged {
        for &to in &child.addresses {
            let (message, _) = route(BRIDGE, Some(IpNet::from(to)), None, None);
            if let RouteNetlinkMessage::NewRoute(message) = message {
                out.push((RouteNetlinkMessage::DelRoute(message), 0));
            }
            let (message, _) = neighbour(BRIDGE, to, child.lower_mac());
            if let RouteNetlinkMessage::NewNeighbour(message) = message {
                out.push((RouteNetlinkMessage::DelNeighbour(message), 0));
            }
        }
    }
    let mut message = LinkMessage::default();
    message.header.index = child.downlink();
    out.push((RouteNetlinkMessage::DelLink(message), 0));
    out
}

/// Leads the outside to addresses behind a node.
pub(crate) fn beyond(node: &Space, net: IpNet) -> Request {
    route(node.downlink(), Some(net), node.address(Family::of(net.addr())), None)
}

/// Has a node refuse what goes to those of its addresses that no pod has.
pub(crate) fn nobody(net: IpNet) -> Request {
    let (mut message, flags) = route(LOOPBACK, Some(net), None, None);
    if let RouteNetlinkMessage::NewRoute(message) = &mut message {
        message.header.kind = RouteType::Unreachable;
        message.header.scope = RouteScope::Universe;
        message.attributes.retain(|a| !matches!(a, RouteAttribute::Oif(_)));
    }
    (message, flags)
}

/// Whether a link is one of those to wait for.
pub(crate) fn is_veth(link: u32) -> bool {
    link == UPLINK || link >= FIRST_DOWNLINK
}

fn up(link: u32) -> Request {
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
fn veth(child: &Space, file: RawFd, is_port: bool) -> Request {
    let mut lower = LinkMessage::default();
    lower.header.index = UPLINK;
    lower.attributes = vec![
        LinkAttribute::IfName("eth0".to_owned()),
        LinkAttribute::Address(child.lower_mac()),
        LinkAttribute::NetNsFd(file),
        ONE_QUEUE[0].clone(),
        ONE_QUEUE[1].clone(),
    ];
    let mut upper = LinkMessage::default();
    upper.header.index = child.downlink();
    upper.header.flags = LinkFlags::Up;
    upper.header.change_mask = LinkFlags::Up;
    upper.attributes = vec![
        LinkAttribute::IfName(format!("veth{}", child.number)),
        LinkAttribute::Address(child.upper_mac()),
        ONE_QUEUE[0].clone(),
        ONE_QUEUE[1].clone(),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(lower))),
        ]),
    ];
    if is_port {
        upper.attributes.push(LinkAttribute::Controller(BRIDGE));
    }
    (RouteNetlinkMessage::NewLink(upper), NLM_F_CREATE | NLM_F_EXCL)
}

/// The bridge of a node.
fn bridge(mac: Vec<u8>) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = BRIDGE;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    message.attributes = vec![
        LinkAttribute::IfName("cni0".to_owned()),
        LinkAttribute::Address(mac),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
    ];
    (RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
}

/// Lets a port of a bridge have its own packets back: a pod that reaches itself through a Service.
fn hairpin(port: u32) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = port;
    message.attributes = vec![LinkAttribute::LinkInfo(vec![
        LinkInfo::PortKind(InfoPortKind::Bridge),
        LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(true)])),
    ])];
    (RouteNetlinkMessage::NewLink(message), 0)
}

fn address(link: u32, address: IpAddr) -> Request {
    let mut message = AddressMessage::default();
    message.header.family = address_family(address);
    message.header.prefix_len = full_length(address);
    // Nobody else has it: do not ask.
    message.header.flags = AddressHeaderFlags::Nodad;
    message.header.index = link;
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    (RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL)
}

fn neighbour(link: u32, address: IpAddr, mac: Vec<u8>) -> Request {
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

/// A route over the link: to a network or (`None`) to all, directly or via another address.
fn route(link: u32, to: Option<IpNet>, via: Option<IpAddr>, source: Option<IpAddr>) -> Request {
    let mut message = RouteMessage::default();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.kind = RouteType::Unicast;
    message.header.scope = RouteScope::Universe;
    message.attributes.push(RouteAttribute::Oif(link));
    if let Some(to) = to {
        message.header.address_family = address_family(to.addr());
        message.header.destination_prefix_length = to.prefix_len();
        message.attributes.push(RouteAttribute::Destination(route_address(to.network())));
        if to.addr().is_ipv4() && via.is_none() {
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
