//! A node with pods, each a network namespace behind a veth pair. Pod 1 has 10.0.1.2 and
//! fd00:1::2, pod 2 has 10.0.2.2 and fd00:2::2, and so on; the node is .1 of each.

use std::fs::File;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::sched::{CloneFlags, unshare};
use portcullis_dataplane::netlink::{NETLINK_ROUTE, NetlinkSocket};

pub(crate) struct Network {
    pub(crate) pods: Vec<Pod>,
}

type Job = Box<dyn FnOnce() + Send>;

/// A thread in the pod's namespace, and what it is told to do there.
pub(crate) struct Pod {
    jobs: mpsc::Sender<Job>,
}

impl Network {
    /// Makes the calling thread's namespace the node.
    pub(crate) fn with_pods(count: u8) -> Network {
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
        use_addresses_at_once();
        let mut node = NetlinkSocket::open(NETLINK_ROUTE).unwrap();
        Network { pods: (1..=count).map(|number| Pod::new(&mut node, number)).collect() }
    }
}

/// Has an IPv4 address reached over a link of the calling thread's namespace, whatever led there
/// before.
pub(crate) fn route(address: IpAddr, link: &str) {
    let mut node = NetlinkSocket::open(NETLINK_ROUTE).unwrap();
    let IpAddr::V4(to) = address else { panic!("{address}") };
    let index = up(&mut node, link);
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.destination_prefix_length = 32;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Link;
    message.header.kind = RouteType::Unicast;
    message.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(to)));
    message.attributes.push(RouteAttribute::Oif(index));
    let new = RouteNetlinkMessage::NewRoute(message);
    node.request(new, NLM_F_CREATE | NLM_F_REPLACE).unwrap();
}

/// Two pods on one link, fd00::1 and fd00::2, 10.0.0.1 and 10.0.0.2, in the calling thread's namespace
/// as the node: their bridge hands what it passes on to the IP hooks. `None` if the kernel cannot do
/// that.
pub(crate) fn two_pods_on_a_bridge() -> Option<[Pod; 2]> {
    Some(pods_on_a_bridge()?.0)
}

/// The same, with the node's own address on the bridge, fd00::9.
pub(crate) fn two_pods_and_the_node_on_a_bridge() -> Option<[Pod; 2]> {
    let (pods, mut node, bridge) = pods_on_a_bridge()?;
    add_address(&mut node, bridge, v6(0, 9));
    Some(pods)
}

fn pods_on_a_bridge() -> Option<([Pod; 2], NetlinkSocket, u32)> {
    for hooks in ["iptables", "ip6tables"] {
        std::fs::write(format!("/proc/sys/net/bridge/bridge-nf-call-{hooks}"), "1").ok()?;
    }
    use_addresses_at_once();
    let mut node = NetlinkSocket::open(NETLINK_ROUTE).unwrap();
    let mut bridge = named("bridge");
    bridge.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]));
    let new = RouteNetlinkMessage::NewLink(bridge);
    node.request(new, NLM_F_CREATE | NLM_F_EXCL).unwrap();
    let bridge = up(&mut node, "bridge");
    let pods = [1, 2].map(|number| {
        let (pod, mut inside) = Pod::linked(&mut node, number);
        let outer = up(&mut node, &format!("pod{number}"));
        let mut port = LinkMessage::default();
        port.header.index = outer;
        port.attributes.push(LinkAttribute::Controller(bridge));
        node.request(RouteNetlinkMessage::SetLink(port), 0).unwrap();
        let index = up(&mut inside, "eth0");
        for address in [v4(0, number), v6(0, number)] {
            add_address(&mut inside, index, address);
        }
        pod
    });
    Some((pods, node, bridge))
}

impl Pod {
    /// In a namespace whose `eth0` is linked to `pod1` or so of the node; both are down.
    fn linked(node: &mut NetlinkSocket, number: u8) -> (Pod, NetlinkSocket) {
        let (jobs, todo) = mpsc::channel::<Job>();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            use_addresses_at_once();
            todo.into_iter().for_each(|job| job());
        });
        let pod = Pod { jobs };
        let (namespace, inside) = pod.inside(|| {
            let namespace = File::open("/proc/thread-self/ns/net").unwrap();
            (namespace, NetlinkSocket::open(NETLINK_ROUTE).unwrap())
        });

        let mut peer = named("eth0");
        peer.attributes.push(LinkAttribute::NetNsFd(namespace.as_raw_fd()));
        let mut veth = named(&format!("pod{number}"));
        veth.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        let new = RouteNetlinkMessage::NewLink(veth);
        node.request(new, NLM_F_CREATE | NLM_F_EXCL).unwrap();
        (pod, inside)
    }

    fn new(node: &mut NetlinkSocket, number: u8) -> Pod {
        let (pod, mut inside) = Pod::linked(node, number);
        let outer = format!("pod{number}");
        for (socket, name, host) in [(node, &*outer, 1), (&mut inside, "eth0", 2)] {
            let index = up(socket, name);
            for address in [v4(number, host), v6(number, host)] {
                add_address(socket, index, address);
            }
        }
        for gateway in [v4(number, 1), v6(number, 1)] {
            let mut message = RouteMessage::default();
            message.header.address_family = family(gateway);
            message.header.table = RouteHeader::RT_TABLE_MAIN;
            message.header.protocol = RouteProtocol::Static;
            message.header.scope = RouteScope::Universe;
            message.header.kind = RouteType::Unicast;
            message.attributes.push(RouteAttribute::Gateway(match gateway {
                IpAddr::V4(gateway) => RouteAddress::Inet(gateway),
                IpAddr::V6(gateway) => RouteAddress::Inet6(gateway),
            }));
            let new = RouteNetlinkMessage::NewRoute(message);
            inside.request(new, NLM_F_CREATE | NLM_F_EXCL).unwrap();
        }
        pod
    }

    pub(crate) fn inside<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        self.jobs.send(Box::new(move || done.send(job()).unwrap())).unwrap();
        result.recv().unwrap()
    }

    pub(crate) fn listen(&self, address: IpAddr, port: u16) -> TcpListener {
        self.inside(move || TcpListener::bind((address, port)).unwrap())
    }

    /// Whether a TCP connection is established. One that is expected is waited for, as long as a busy
    /// machine and links that are new may need; any other within time for a first packet but not a
    /// second.
    pub(crate) fn connects(&self, to: IpAddr, port: u16, expected: bool) -> bool {
        let to = SocketAddr::new(to, port);
        let wait = if expected { Duration::from_secs(30) } else { Duration::from_millis(300) };
        self.inside(move || TcpStream::connect_timeout(&to, wait).is_ok())
    }

    /// A connection, for which links that are new are waited for.
    pub(crate) fn connect(&self, to: IpAddr, port: u16) -> TcpStream {
        let to = SocketAddr::new(to, port);
        let wait = Duration::from_millis(300);
        let connect = move || (0..20).find_map(|_| TcpStream::connect_timeout(&to, wait).ok());
        let stream = self.inside(connect).unwrap_or_else(|| panic!("no connection to {to}"));
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream
    }

    pub(crate) fn udp(&self, address: IpAddr, port: u16) -> UdpSocket {
        let socket = self.inside(move || UdpSocket::bind((address, port)).unwrap());
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        socket
    }
}

/// Without it, the link-local address that neighbours are asked from is a second in coming.
fn use_addresses_at_once() {
    std::fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0").unwrap();
}

fn add_address(socket: &mut NetlinkSocket, index: u32, address: IpAddr) {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.prefix_len = if address.is_ipv4() { 24 } else { 64 };
    message.header.index = index;
    message.header.flags = AddressHeaderFlags::Nodad;
    message.attributes.push(AddressAttribute::Local(address));
    message.attributes.push(AddressAttribute::Address(address));
    let new = RouteNetlinkMessage::NewAddress(message);
    socket.request(new, NLM_F_CREATE | NLM_F_EXCL).unwrap();
}

fn named(name: &str) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::IfName(name.to_owned()));
    link
}

/// Sets the link up and returns its index.
fn up(socket: &mut NetlinkSocket, name: &str) -> u32 {
    let answer = socket.request(RouteNetlinkMessage::GetLink(named(name)), 0).unwrap();
    let [RouteNetlinkMessage::NewLink(link)] = &*answer else { panic!("{answer:?}") };
    let mut change = LinkMessage::default();
    change.header.index = link.header.index;
    change.header.flags = LinkFlags::Up;
    change.header.change_mask = LinkFlags::Up;
    socket.request(RouteNetlinkMessage::SetLink(change), 0).unwrap();
    link.header.index
}

fn v4(pod: u8, host: u8) -> IpAddr {
    IpAddr::from([10, 0, pod, host])
}

fn v6(pod: u8, host: u8) -> IpAddr {
    IpAddr::from([0xfd00, pod.into(), 0, 0, 0, 0, 0, host.into()])
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}
