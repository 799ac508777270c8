//! Connections that were open before a state was in force.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use libtest_mimic::Trial;
use portcullis_core::net::Protocol;
use portcullis_dataplane::state::{Entry, NodeState, PeerSet, Ports, Profile};
use portcullis_dataplane::{Connections, Dataplane, Nftables};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use socket2::SockRef;

use crate::network::{Network, Pod};
use crate::{address, in_namespace, nft, with_nft};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        in_namespace("a_connection_that_its_client_speaks_on_is_reset_at_both_ends", client_talks),
        in_namespace("a_server_that_streams_is_reset_and_never_heard_again", server_streams),
        in_namespace("an_idle_connection_is_cut_whoever_speaks_first", idle),
        in_namespace("both_idle_ends_of_a_cut_connection_are_reset", both_idle_ends),
        in_namespace("datagrams_of_a_cut_flow_pass_neither_way", datagrams),
        in_namespace("ping_that_is_no_longer_allowed_is_not_answered", ping),
        in_namespace("what_is_allowed_again_goes_on", allowed_again),
        in_namespace("a_connection_that_is_still_allowed_loses_nothing", still_allowed),
        in_namespace("what_is_allowed_again_goes_on_at_once", released),
        in_namespace("another_process_cuts_the_same_and_no_more", another_process),
        in_namespace("an_address_carries_nothing_over_to_its_next_owner", next_owner),
        in_namespace("an_address_is_handed_over_before_connections_are_judged", handed_over),
        in_namespace("an_address_that_passes_on_twice_carries_nothing_over", handed_over_twice),
        in_namespace("what_a_process_handed_over_stays_so_when_it_ends", handed_over_by_another),
        with_nft("nft_lists_what_is_cut", listed),
        with_nft("nft_lists_what_is_handed_over", handed_over_listed),
        with_nft("a_table_that_somebody_removed_is_put_there_again", removed),
        with_nft("a_connection_through_a_service_is_cut_by_its_endpoint", service),
        with_nft("a_connection_through_a_node_port_is_judged_as_its_client_s", node_port),
        with_nft("a_pod_that_calls_itself_through_a_node_port_is_left_alone", node_port_to_itself),
        with_nft("a_connection_whose_source_is_translated_is_cut", masqueraded),
        with_nft("a_pod_that_calls_itself_through_a_service_is_left_alone", hairpin),
    ]
}

const PORT: u16 = 80;
const OTHER: u16 = 81;

/// Pod 2 lets pod 1 in on these TCP and UDP ports and on nothing else. Pod 1 is open, so that what
/// pod 2 opens to it passes.
fn state(ports: &[u16]) -> NodeState {
    let allowed = ports.iter().flat_map(|port| {
        [Protocol::Tcp, Protocol::Udp].map(|protocol| Entry {
            peers: Some(0),
            ports: Some(Ports { protocol, first: *port, last: *port }),
            origin: 0,
        })
    });
    let profile = |ingress| Profile { ingress, ..Profile::default() };
    let both = |n: u8| [format!("10.0.{n}.2"), format!("fd00:{n}::2")].map(|a| address(&a));
    NodeState {
        endpoints: both(1).map(|a| (a, 0)).into_iter().chain(both(2).map(|a| (a, 1))).collect(),
        profiles: [(0, profile(None)), (1, profile(Some(allowed.collect())))].into(),
        peers: [(0, PeerSet::Addresses(both(1).into_iter().collect()))].into(),
        ..NodeState::default()
    }
}

const SERVERS: [&str; 2] = ["10.0.2.2", "fd00:2::2"];

/// A node with pod 1, the client, and pod 2, the server.
struct Cluster {
    network: Network,
    nftables: Nftables,
    connections: Connections,
}

impl Cluster {
    fn new() -> Cluster {
        Cluster::with(Connections::open().unwrap())
    }

    /// One that does not make idle ends speak, for want of the capability.
    fn that_waits() -> Cluster {
        let opened = std::thread::spawn(|| {
            let mut sets = capabilities(None).unwrap();
            sets.effective.remove(CapabilitySet::NET_RAW);
            set_capabilities(None, sets).unwrap();
            Connections::open().unwrap()
        });
        let connections = opened.join().unwrap();
        assert!(!connections.resets_idle_ends());
        Cluster::with(connections)
    }

    fn with(connections: Connections) -> Cluster {
        let network = Network::with_pods(3);
        let mut cluster = Cluster { network, nftables: Nftables::open().unwrap(), connections };
        cluster.set(&state(&[PORT, OTHER]));
        cluster
    }

    /// Puts the state in force, and returns how many flows are cut.
    fn set(&mut self, state: &NodeState) -> usize {
        self.nftables.apply(state).unwrap();
        let judged = self.connections.judge(state).unwrap();
        assert!(judged.elapsed < Duration::from_secs(5), "{judged:?}");
        judged.cut
    }

    fn client(&self) -> &Pod {
        &self.network.pods[0]
    }

    fn server(&self) -> &Pod {
        &self.network.pods[1]
    }

    /// The client's end and the server's, which have spoken both.
    fn tcp(&self, server: IpAddr, port: u16) -> [TcpStream; 2] {
        self.tcp_through(server, port, server, port)
    }

    /// The same where the client calls another address than the server has.
    fn tcp_through(&self, called: IpAddr, call: u16, server: IpAddr, port: u16) -> [TcpStream; 2] {
        let listener = self.server().listen(server, port);
        let mut client = self.client().connect(called, call);
        let (mut server, _) = listener.accept().unwrap();
        server.set_read_timeout(wait(true)).unwrap();
        say(&mut client, &mut server);
        say(&mut server, &mut client);
        [client, server]
    }

    /// The same with datagrams.
    fn udp(&self, server: IpAddr, port: u16) -> [UdpSocket; 2] {
        let answering = self.server().udp(server, port);
        let local = address(if server.is_ipv4() { "10.0.1.2" } else { "fd00:1::2" });
        let asking = self.client().udp(local, 0);
        asking.connect((server, port)).unwrap();
        asking.send(b"?").unwrap();
        let (_, from) = answering.recv_from(&mut [0; 8]).expect("a datagram arrives");
        answering.connect(from).unwrap();
        answering.send(b"!").unwrap();
        asking.recv(&mut [0; 8]).unwrap();
        [asking, answering]
    }
}

/// What is said arrives.
#[track_caller]
fn say(from: &mut TcpStream, to: &mut TcpStream) {
    from.write_all(b"x").unwrap();
    assert_eq!(to.read(&mut [0; 1]).unwrap(), 1);
}

/// Speaks, and is answered by a reset.
#[track_caller]
fn is_reset(end: &mut TcpStream) {
    let _ = end.write_all(b"x");
    let read = end.read(&mut [0; 1]);
    assert!(read.as_ref().is_err_and(|e| e.kind() == ErrorKind::ConnectionReset), "{read:?}");
}

/// How long is waited for what is expected, on however busy a machine, and for anything else.
fn wait(expected: bool) -> Option<Duration> {
    Some(if expected { Duration::from_secs(30) } else { Duration::from_millis(300) })
}

/// Whether a datagram arrives.
fn arrives(from: &UdpSocket, to: &UdpSocket, expected: bool) -> bool {
    to.set_read_timeout(wait(expected)).unwrap();
    from.send(b"x").unwrap();
    to.recv(&mut [0; 8]).is_ok()
}

fn client_talks() {
    let mut cluster = Cluster::that_waits();
    for server in SERVERS.map(address) {
        cluster.set(&state(&[PORT, OTHER]));
        let [mut client, mut server] = cluster.tcp(server, PORT);
        assert!(cluster.set(&state(&[OTHER])) >= 1);
        is_reset(&mut client);
        is_reset(&mut server);
    }
}

fn server_streams() {
    let mut cluster = Cluster::that_waits();
    for server in SERVERS.map(address) {
        cluster.set(&state(&[PORT, OTHER]));
        let [mut client, mut server] = cluster.tcp(server, PORT);
        assert!(cluster.set(&state(&[OTHER])) >= 1);
        is_reset(&mut server);
        client.set_read_timeout(wait(false)).unwrap();
        let read = client.read(&mut [0; 1]);
        assert!(read.is_err(), "the client heard the server: {read:?}");
        client.set_read_timeout(wait(true)).unwrap();
        let _ = client.write_all(b"x");
        assert!(client.read(&mut [0; 1]).is_err());
    }
}

fn idle() {
    let mut cluster = Cluster::that_waits();
    for first in [0, 1] {
        cluster.set(&state(&[PORT, OTHER]));
        let mut ends = SERVERS.map(|server| cluster.tcp(address(server), PORT));
        // The second and third change nothing for them.
        for ports in [&[OTHER][..], &[OTHER, 82], &[]] {
            assert!(cluster.set(&state(ports)) >= 2);
        }
        for ends in &mut ends {
            is_reset(&mut ends[first]);
        }
    }
}

/// Neither end says anything.
fn both_idle_ends() {
    let mut cluster = Cluster::new();
    assert!(cluster.connections.resets_idle_ends());
    let cut = SERVERS.map(|server| cluster.tcp(address(server), PORT));
    let [mut client, mut server] = cluster.tcp(address(SERVERS[0]), OTHER);
    cluster.set(&state(&[OTHER]));
    for mut end in cut.into_iter().flatten() {
        hears_a_reset(&mut end);
    }
    say(&mut client, &mut server);
    say(&mut server, &mut client);
}

/// Without speaking.
#[track_caller]
fn hears_a_reset(end: &mut TcpStream) {
    let read = end.read(&mut [0; 1]);
    assert!(read.as_ref().is_err_and(|e| e.kind() == ErrorKind::ConnectionReset), "{read:?}");
}

fn datagrams() {
    let mut cluster = Cluster::new();
    for server in SERVERS.map(address) {
        cluster.set(&state(&[PORT, OTHER]));
        for server_first in [false, true] {
            cluster.set(&state(&[PORT, OTHER]));
            let [client, server] = cluster.udp(server, PORT);
            cluster.set(&state(&[OTHER]));
            for _ in 0..3 {
                // A packet of the server never admits the flow again.
                if server_first {
                    assert!(!arrives(&server, &client, false), "from the server");
                }
                assert!(!arrives(&client, &server, false), "from the client");
                assert!(!arrives(&server, &client, false), "from the server");
            }
        }
    }
}

fn ping() {
    use socket2::{Domain, Socket, Type};
    let mut cluster = Cluster::new();
    let everything = |allowed: bool| {
        let mut state = state(&[]);
        let entry = Entry { peers: Some(0), ports: None, origin: 0 };
        state.profiles.get_mut(&1).unwrap().ingress =
            Some(if allowed { [entry].into() } else { [].into() });
        state
    };
    cluster.set(&everything(true));
    let socket = cluster.client().inside(|| {
        std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0").unwrap();
        Socket::new(Domain::IPV4, Type::DGRAM, Some(1.into())).unwrap()
    });
    let to = std::net::SocketAddr::new(address("10.0.2.2"), 0).into();
    let echoed = |expected: bool| {
        socket.set_read_timeout(wait(expected)).unwrap();
        socket.send_to(&[8, 0, 0, 0, 0, 0, 0, 1], &to).unwrap();
        socket.recv(&mut [std::mem::MaybeUninit::uninit(); 64]).is_ok()
    };
    assert!(echoed(true));
    assert_eq!(cluster.set(&everything(false)), 1);
    assert!(!echoed(false) && !echoed(false));
    assert_eq!(cluster.set(&everything(true)), 0);
    assert!(echoed(true));
}

fn allowed_again() {
    let mut cluster = Cluster::new();
    let [client, server] = cluster.udp(address(SERVERS[0]), PORT);
    assert_eq!(cluster.set(&state(&[OTHER])), 1);
    assert!(!arrives(&client, &server, false));
    assert_eq!(cluster.set(&state(&[PORT])), 0);
    assert!(arrives(&client, &server, true) && arrives(&server, &client, true));
}

/// Two numbered streams each way go on while another connection is cut and let go.
fn still_allowed() {
    let mut cluster = Cluster::new();
    let [mut client, mut server] = cluster.tcp(address(SERVERS[0]), OTHER);
    let [asking, answering] = cluster.udp(address(SERVERS[0]), OTHER);
    let _cut = cluster.tcp(address(SERVERS[0]), PORT);
    let mut cuts = 0;
    for round in 0..30u32 {
        let ports: &[u16] = if round % 2 == 0 { &[OTHER] } else { &[OTHER, PORT] };
        cuts += cluster.set(&state(ports));
        for number in round * 50..(round + 1) * 50 {
            let number = number.to_be_bytes();
            let mut read = [0; 4];
            client.write_all(&number).unwrap();
            server.read_exact(&mut read).unwrap();
            assert_eq!(read, number);
            server.write_all(&number).unwrap();
            client.read_exact(&mut read).unwrap();
            assert_eq!(read, number);
            for (from, to) in [(&asking, &answering), (&answering, &asking)] {
                from.send(&number).unwrap();
                to.recv(&mut read).unwrap();
                assert_eq!(read, number);
            }
        }
    }
    assert!(cuts > 10, "{cuts}");
}

/// What a state allows again goes on when the state is told, without a judgement, and also where a
/// judgement by an earlier state comes after it.
fn released() {
    let mut cluster = Cluster::new();
    let [client, server] = cluster.udp(address(SERVERS[0]), PORT);
    assert_eq!(cluster.set(&state(&[OTHER])), 1);
    assert!(!arrives(&client, &server, false));
    let open = Arc::new(state(&[PORT]));
    cluster.nftables.apply(&open).unwrap();
    cluster.connections.release().allow(open).unwrap();
    assert!(arrives(&client, &server, true) && arrives(&server, &client, true));
    cluster.connections.judge(&state(&[OTHER])).unwrap();
    assert!(arrives(&client, &server, true) && arrives(&server, &client, true));
}

fn another_process() {
    let mut cluster = Cluster::new();
    let [client, server] = cluster.udp(address(SERVERS[0]), PORT);
    let [asking, answering] = cluster.udp(address(SERVERS[1]), OTHER);
    assert_eq!(cluster.set(&state(&[OTHER])), 1);
    cluster.connections = Connections::open().unwrap();
    assert!(!arrives(&client, &server, false), "nobody is needed");
    let judged = cluster.connections.judge(&state(&[OTHER])).unwrap();
    assert_eq!((judged.cut, judged.newly_cut), (1, 1), "the first look of a process");
    assert!(!arrives(&server, &client, false));
    assert!(arrives(&asking, &answering, true) && arrives(&answering, &asking, true));
    assert_eq!(cluster.connections.judge(&state(&[OTHER])).unwrap().newly_cut, 0);
    cluster.connections.remove().unwrap();
    assert!(arrives(&asking, &answering, true));
}

/// Pod 1 lets nobody in, and calls pod 2, which answers.
fn next_owner() {
    let mut cluster = Cluster::new();
    let closed = |owner: u64| {
        let mut state = state(&[PORT, OTHER]);
        state.profiles.get_mut(&0).unwrap().ingress = Some([].into());
        state.owners = state.endpoints.keys().map(|address| (*address, 7)).collect();
        state.owners.insert(address("10.0.1.2"), owner);
        state
    };
    cluster.set(&closed(1));
    let [client, server] = cluster.udp(address(SERVERS[0]), PORT);
    let [other_client, other_server] = cluster.udp(address(SERVERS[1]), PORT);
    for _ in 0..2 {
        cluster.set(&closed(1));
        assert!(arrives(&server, &client, true) && arrives(&other_server, &other_client, true));
    }
    cluster.nftables.apply(&closed(2)).unwrap();
    let judged = cluster.connections.judge(&closed(2)).unwrap();
    assert_eq!((judged.forgotten, judged.cut), (1, 0), "{judged:?}");
    assert!(!arrives(&server, &client, false), "an answer to the pod before");
    assert!(arrives(&other_server, &other_client, true), "an answer to another pod");
    assert!(
        arrives(&client, &server, true) && arrives(&server, &client, true),
        "a call of the next pod"
    );
    let judged = cluster.connections.judge(&closed(2)).unwrap();
    assert_eq!((judged.forgotten, judged.cut), (0, 0), "{judged:?}");
    // A pod that is gone has no flows.
    let mut gone = closed(2);
    gone.endpoints.remove(&address("10.0.1.2"));
    gone.owners.remove(&address("10.0.1.2"));
    cluster.nftables.apply(&gone).unwrap();
    assert_eq!(cluster.connections.judge(&gone).unwrap().forgotten, 1);
}

/// Pod 1 is of this owner. Whoever it is may open the same.
fn owned(owner: u64) -> NodeState {
    let mut state = state(&[PORT, OTHER, THIRD]);
    let both = |address: &IpAddr| CLIENTS.contains(&&*address.to_string());
    let owner = |address: &IpAddr| if both(address) { owner } else { 7 };
    state.owners = state.endpoints.keys().map(|address| (*address, owner(address))).collect();
    state
}

const THIRD: u16 = 82;
const CLIENTS: [&str; 2] = ["10.0.1.2", "fd00:1::2"];

/// A connection of each sort between the pods.
struct Open {
    tcp: Vec<[TcpStream; 2]>,
    udp: Vec<[UdpSocket; 2]>,
}

impl Open {
    fn on(cluster: &Cluster, port: u16) -> Open {
        Open {
            tcp: SERVERS.map(|server| cluster.tcp(address(server), port)).into(),
            udp: SERVERS.map(|server| cluster.udp(address(server), port)).into(),
        }
    }

    #[track_caller]
    fn goes_on(&mut self) {
        for [client, server] in &mut self.tcp {
            say(client, server);
            say(server, client);
        }
        for [client, server] in &self.udp {
            assert!(arrives(client, server, true) && arrives(server, client, true));
        }
    }

    /// Nothing that either end says arrives.
    #[track_caller]
    fn stands_still(&mut self) {
        for ends in &mut self.tcp {
            for i in [0, 1] {
                let [from, to] = [i, 1 - i];
                ends[to].set_read_timeout(wait(false)).unwrap();
                ends[from].write_all(b"x").unwrap();
                let read = ends[to].read(&mut [0; 1]);
                assert!(
                    read.as_ref().is_err_and(|e| e.kind() == ErrorKind::WouldBlock),
                    "{read:?}"
                );
            }
        }
        for [client, server] in &self.udp {
            assert!(!arrives(client, server, false) && !arrives(server, client, false));
        }
    }
}

impl Cluster {
    /// Hands pod 1 over to this owner, and judges nothing.
    fn hand_over(&mut self, owner: u64) {
        self.nftables.apply(&owned(owner)).unwrap();
        assert!(self.connections.release().hand_over(&CLIENTS.map(address)).unwrap());
    }
}

fn handed_over() {
    let mut cluster = Cluster::new();
    cluster.set(&owned(1));
    let mut before = Open::on(&cluster, PORT);
    let elsewhere = cluster.network.pods[2].udp(address("10.0.3.2"), PORT);
    let from_server = cluster.server().udp(address(SERVERS[0]), 0);
    from_server.connect((address("10.0.3.2"), PORT)).unwrap();
    elsewhere.connect(from_server.local_addr().unwrap()).unwrap();
    before.goes_on();
    cluster.hand_over(2);
    before.stands_still();
    // What is said again later would open it anew.
    for end in before.tcp.iter().flatten() {
        SockRef::from(end).set_linger(Some(Duration::ZERO)).unwrap();
    }
    drop(before);
    let mut after = Open::on(&cluster, OTHER);
    after.goes_on();
    assert!(
        arrives(&from_server, &elsewhere, true) && arrives(&elsewhere, &from_server, true),
        "of others"
    );
    let judged = cluster.connections.judge(&owned(2)).unwrap();
    assert_eq!((judged.forgotten, judged.cut), (4, 0), "{judged:?}");
    after.goes_on();
    let judged = cluster.connections.judge(&owned(2)).unwrap();
    assert_eq!((judged.forgotten, judged.cut), (0, 0), "{judged:?}");
    // What was opened since is judged too.
    cluster.hand_over(3);
    let opened = Open::on(&cluster, THIRD);
    let mut closed = owned(3);
    for (number, profile) in &state(&[PORT, OTHER]).profiles {
        closed.profiles.insert(*number, profile.clone());
    }
    cluster.nftables.apply(&closed).unwrap();
    let judged = cluster.connections.judge(&closed).unwrap();
    assert_eq!((judged.forgotten, judged.cut), (4, 4), "{judged:?}");
    drop(opened);
}

fn handed_over_twice() {
    let mut cluster = Cluster::new();
    cluster.set(&owned(1));
    let mut first = Open::on(&cluster, PORT);
    cluster.hand_over(2);
    let mut second = Open::on(&cluster, OTHER);
    cluster.hand_over(3);
    first.stands_still();
    second.stands_still();
    let mut third = Open::on(&cluster, THIRD);
    third.goes_on();
    let judged = cluster.connections.judge(&owned(3)).unwrap();
    assert_eq!((judged.forgotten, judged.cut), (8, 0), "{judged:?}");
    third.goes_on();
}

fn handed_over_by_another() {
    let mut cluster = Cluster::new();
    cluster.set(&owned(1));
    let mut before = Open::on(&cluster, PORT);
    cluster.hand_over(2);
    let mut after = Open::on(&cluster, OTHER);
    cluster.connections = Connections::open().unwrap();
    before.stands_still();
    after.goes_on();
    // It does not know who had the address before.
    let judged = cluster.connections.judge(&owned(2)).unwrap();
    assert_eq!((judged.forgotten, judged.cut), (4, 0), "{judged:?}");
    after.goes_on();
}

fn handed_over_listed() {
    let mut cluster = Cluster::new();
    cluster.hand_over(1);
    let _open = Open::on(&cluster, PORT);
    let text = nft(&["list", "table", "inet", "portcullis-handover-1"], "");
    let key = "ct original ip saddr . ct original ip daddr . ct protocol . ct original proto-src . ct \
               original proto-dst";
    for line in [
        "type filter hook forward priority filter - 1; policy accept;",
        "ct original ip saddr @addresses4 goto handed-over4",
        "ct reply ip6 saddr @addresses6 goto handed-over6",
        "type ipv6_addr . ipv6_addr . inet_proto . inet_service . inet_service",
        "size 65536",
        "flags dynamic",
        &format!("ct state new add @opened4 {{ {key} }}"),
        &format!("{key} @opened4 accept"),
        "counter packets 0 bytes 0 drop",
    ] {
        assert!(text.lines().any(|found| found.trim() == line), "{line}\n{text}");
    }
    assert!(text.contains("10.0.1.2 . 10.0.2.2 . tcp . "), "{text}");
    // As JSON too.
    nft(&["-j", "list", "ruleset"], "");
    cluster.connections.judge(&owned(1)).unwrap();
    assert!(!nft(&["list", "ruleset"], "").contains("handover"), "all is judged");
    cluster.hand_over(2);
    cluster.connections.remove().unwrap();
    assert!(!nft(&["list", "ruleset"], "").contains("handover"), "nothing is enforced");
}

fn table() -> String {
    nft(&["list", "table", "inet", "portcullis-cut"], "")
}

fn listed() {
    let mut cluster = Cluster::new();
    let tcp = SERVERS.map(|server| cluster.tcp(address(server), PORT));
    let udp = SERVERS.map(|server| cluster.udp(address(server), PORT));
    cluster.set(&state(&[]));
    let text = table();
    let tcp = tcp.iter().map(|[a, b]| (a.local_addr().unwrap(), b.local_addr().unwrap()));
    let udp = udp.iter().map(|[a, b]| (a.local_addr().unwrap(), b.local_addr().unwrap()));
    for (client, server) in tcp.chain(udp) {
        let element = format!("{} . {} . {}", client.ip(), server.ip(), server.port());
        assert!(text.contains(&element), "{element}\n{text}");
    }
    for line in [
        "type filter hook forward priority filter - 1; policy accept;",
        "meta l4proto tcp ct state established,related ct original ip saddr . ct reply ip saddr . ct \
         reply proto-src @tcp4 goto cut",
        "meta l4proto udp ct state established,related ct original ip6 saddr . ct reply ip6 saddr . ct \
         reply proto-src @udp6 goto cut",
        "ct state established,related ct original ip saddr . ct reply ip saddr . ct protocol @other4 \
         goto cut",
        "meta l4proto tcp reject with tcp reset",
    ] {
        assert!(text.lines().any(|found| found.trim() == line), "{line}\n{text}");
    }
    // As JSON too.
    nft(&["-j", "list", "ruleset"], "");
    cluster.set(&state(&[PORT]));
    assert!(!nft(&["list", "ruleset"], "").contains("portcullis-cut"), "nothing is cut");
}

fn removed() {
    let mut cluster = Cluster::new();
    let [client, server] = cluster.udp(address(SERVERS[0]), PORT);
    let _other = cluster.udp(address(SERVERS[1]), PORT);
    cluster.set(&state(&[OTHER]));
    let edits = [
        "delete table inet portcullis-cut",
        "flush set inet portcullis-cut udp4",
        "flush chain inet portcullis-cut forward",
    ];
    for edit in edits {
        nft(&["-f", "-"], edit);
        assert!(arrives(&client, &server, true), "{edit}");
        assert_ne!(cluster.connections.differences().unwrap(), [], "{edit}");
        cluster.set(&state(&[OTHER]));
        assert!(!arrives(&client, &server, false), "{edit}: put there again");
        assert_eq!(cluster.connections.differences().unwrap(), [], "{edit}");
    }
}

fn service() {
    let mut cluster = Cluster::new();
    let rules = "table inet service {
        chain prerouting {
            type nat hook prerouting priority dstnat;
            ip daddr 10.99.0.1 tcp dport 8000 dnat ip to 10.0.2.2:80
            ip6 daddr fd99::1 tcp dport 8000 dnat ip6 to [fd00:2::2]:80
        }
    }";
    nft(&["-f", "-"], rules);
    for (called, server) in ["10.99.0.1", "fd99::1"].iter().zip(SERVERS) {
        cluster.set(&state(&[PORT, OTHER]));
        let (called, server) = (address(called), address(server));
        let [mut client, mut server] = cluster.tcp_through(called, 8000, server, PORT);
        assert_eq!(cluster.set(&state(&[PORT])), 0, "the port of the endpoint is what counts");
        say(&mut client, &mut server);
        assert!(cluster.set(&state(&[8000])) >= 1, "that of the service is not");
        hears_a_reset(&mut client);
        hears_a_reset(&mut server);
    }
}

/// Port 30080 of the node leads to port 80 of pod 2, which takes the node for the client.
const NODE_PORT: &str = "table inet service {
    chain prerouting {
        type nat hook prerouting priority dstnat;
        fib daddr type local meta nfproto ipv4 meta l4proto { tcp, udp } th dport 30080 \
            dnat ip to 10.0.2.2:80
        fib daddr type local meta nfproto ipv6 meta l4proto { tcp, udp } th dport 30080 \
            dnat ip6 to [fd00:2::2]:80
    }
    chain postrouting {
        type nat hook postrouting priority srcnat;
        ct status dnat masquerade
    }
}";

/// Pod 2 lets these addresses in on its port. Pod 3 is of the outside.
fn lets_in(addresses: &[IpAddr], ports: &[u16]) -> NodeState {
    let mut state = state(ports);
    state.peers = [(0, PeerSet::Addresses(addresses.iter().copied().collect()))].into();
    state
}

/// From a pod of the node, and from outside.
fn node_port() {
    let mut cluster = Cluster::new();
    nft(&["-f", "-"], NODE_PORT);
    let node: Vec<IpAddr> = (1..=3)
        .flat_map(|n| [format!("10.0.{n}.1"), format!("fd00:{n}::1")].map(|a| address(&a)))
        .collect();
    // Their flows stay.
    let mut before = Vec::new();
    for number in [1, 3] {
        for family in [4, 6] {
            let own = |pod: u8, host: u8| match family {
                4 => address(&format!("10.0.{pod}.{host}")),
                _ => address(&format!("fd00:{pod}::{host}")),
            };
            let (client, called, server) = (own(number, 2), own(number, 1), own(2, 2));
            let with = |others: &[IpAddr]| [&before, others].concat();
            let (it, others) = (with(&[client]), with(&node));
            cluster.set(&lets_in(&it, &[PORT]));
            let pod = &cluster.network.pods[usize::from(number) - 1];
            let listener = cluster.server().listen(server, PORT);
            let mut asking = pod.connect(called, 30080);
            let (mut answering, from) = listener.accept().unwrap();
            answering.set_read_timeout(wait(true)).unwrap();
            assert_eq!(from.ip(), own(2, 1), "the server sees the node");
            let udp = pod.udp(client, 0);
            udp.connect((called, 30080)).unwrap();
            let udp_server = cluster.server().udp(server, PORT);
            udp.send(b"?").unwrap();
            let (_, from) = udp_server.recv_from(&mut [0; 8]).unwrap();
            udp_server.connect(from).unwrap();
            udp_server.send(b"!").unwrap();
            udp.recv(&mut [0; 8]).unwrap();

            for state in [lets_in(&it, &[PORT, OTHER]), lets_in(&it, &[PORT])] {
                assert_eq!(cluster.set(&state), 0, "the client is still let in");
                say(&mut asking, &mut answering);
                say(&mut answering, &mut asking);
                assert!(arrives(&udp, &udp_server, true) && arrives(&udp_server, &udp, true));
            }
            // That the node is let in is no matter: it is the client whom the rules see.
            assert_eq!(cluster.set(&lets_in(&others, &[PORT, 30080])), 2);
            hears_a_reset(&mut asking);
            hears_a_reset(&mut answering);
            for _ in 0..2 {
                assert!(!arrives(&udp_server, &udp, false), "from the server");
                assert!(!arrives(&udp, &udp_server, false), "from the client");
            }
            cluster.set(&lets_in(&it, &[PORT]));
            assert!(
                arrives(&udp, &udp_server, true) && arrives(&udp_server, &udp, true),
                "let in again"
            );
            before.push(client);
        }
    }
}

fn node_port_to_itself() {
    let mut cluster = Cluster::new();
    nft(&["-f", "-"], NODE_PORT);
    for (called, own) in [("10.0.2.1", "10.0.2.2"), ("fd00:2::1", "fd00:2::2")] {
        cluster.set(&state(&[PORT]));
        let listener = cluster.server().listen(address(own), PORT);
        let mut client = cluster.server().connect(address(called), 30080);
        let (mut accepted, _) = listener.accept().unwrap();
        accepted.set_read_timeout(wait(true)).unwrap();
        assert_eq!(cluster.set(&state(&[])), 0);
        say(&mut client, &mut accepted);
        say(&mut accepted, &mut client);
    }
}

/// What pod 1 sends to pod 3 leaves with the address of the node, as it does to the outside.
fn masqueraded() {
    let mut cluster = Cluster::new();
    let rules = "table ip translate {
        chain postrouting {
            type nat hook postrouting priority srcnat;
            ip saddr 10.0.1.2 ip daddr 10.0.3.2 masquerade;
        }
    }";
    nft(&["-f", "-"], rules);
    let listener = cluster.network.pods[2].listen(address("10.0.3.2"), PORT);
    let mut client = cluster.client().connect(address("10.0.3.2"), PORT);
    let (mut server, from) = listener.accept().unwrap();
    server.set_read_timeout(wait(true)).unwrap();
    assert_eq!(from.ip(), address("10.0.3.1"));
    say(&mut client, &mut server);
    let mut closed = state(&[PORT]);
    closed.profiles.get_mut(&0).unwrap().egress =
        Some([Entry { peers: Some(1), ports: None, origin: 0 }].into());
    closed.peers.insert(1, PeerSet::Addresses([address("10.0.3.2")].into_iter().collect()));
    assert_eq!(cluster.set(&closed), 0, "pod 3 is still allowed");
    say(&mut client, &mut server);
    say(&mut server, &mut client);
    closed.peers.insert(1, PeerSet::Addresses([address("10.0.3.1")].into_iter().collect()));
    assert_eq!(cluster.set(&closed), 1, "the destination is pod 3, not the node");
    hears_a_reset(&mut client);
    hears_a_reset(&mut server);
    closed.peers.insert(1, PeerSet::Addresses([address("10.0.3.2")].into_iter().collect()));
    assert_eq!(cluster.set(&closed), 0);
}

/// The node sends what pod 2 sends to the service back to pod 2, as from itself.
fn hairpin() {
    let mut cluster = Cluster::new();
    let rules = "table ip service {
        chain prerouting {
            type nat hook prerouting priority dstnat;
            ip daddr 10.99.0.1 tcp dport 8000 dnat to 10.0.2.2:80
        }
        chain postrouting {
            type nat hook postrouting priority srcnat;
            ip saddr 10.0.2.2 ip daddr 10.0.2.2 masquerade;
        }
    }";
    nft(&["-f", "-"], rules);
    let server = cluster.server();
    let listener = server.listen(address("10.0.2.2"), PORT);
    let mut client = server.connect(address("10.99.0.1"), 8000);
    let (mut accepted, _) = listener.accept().unwrap();
    accepted.set_read_timeout(wait(true)).unwrap();
    assert_eq!(cluster.set(&state(&[])), 0);
    say(&mut client, &mut accepted);
    say(&mut accepted, &mut client);
}
