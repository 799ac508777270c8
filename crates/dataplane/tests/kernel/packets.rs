//! Packets that are not nice: each arrives, or not, as the fake says of the first packet of such a
//! connection. docs/packets.md is the list.

use std::net::{IpAddr, Ipv4Addr};

use libtest_mimic::Trial;
use portcullis_core::net::{Family, IpNet, IpRange, Protocol};
use portcullis_dataplane::state::{Entry, NodeState, PeerSet, Ports, Profile};
use portcullis_dataplane::{Dataplane, Fake, Nftables, Packet};

use crate::network::{Network, Pod, two_pods_on_a_bridge};
use crate::raw::{
    ACK, Ear, Ends, FIN, Fragment, GRE, ICMP, ICMP_V6, PUSH, ROUTING, RST, SYN, Sender, TCP, UDP,
    URGENT, with_hop_limit,
};
use crate::{address, in_namespace, nft, with_nft};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        in_namespace("packets_that_are_not_nice_are_judged_as_the_fake_says", not_nice),
        in_namespace("errors_pass_if_they_belong_to_a_known_flow_and_only_then", errors),
        in_namespace("fragments_that_overlap_or_are_not_all_there_never_arrive", no_whole),
        in_namespace("a_source_route_is_not_followed", source_route),
        in_namespace("a_group_on_a_bridge_is_a_destination_like_others", groups),
        in_namespace("isolated_neighbours_are_found_on_a_bridge", neighbours),
        in_namespace("what_looks_like_a_neighbour_over_a_router_is_refused", strangers),
        with_nft("untracked_packets_are_judged_one_by_one", untracked),
    ]
}

/// The port that pod 2 lets pod 1 in on, and one that it does not.
const PORTS: [u16; 2] = [80, 81];

const CLIENTS: [&str; 2] = ["10.0.1.2", "fd00:1::2"];
const SERVERS: [&str; 2] = ["10.0.2.2", "fd00:2::2"];

/// Pod 2 lets pod 1 in on one TCP and UDP port. Pod 1 is open.
fn state() -> NodeState {
    let allowed = [Protocol::Tcp, Protocol::Udp].map(|protocol| Entry {
        peers: Some(0),
        ports: Some(Ports { protocol, first: PORTS[0], last: PORTS[0] }),
        origin: 0,
    });
    NodeState {
        endpoints: SERVERS.map(|server| (address(server), 0)).into(),
        profiles: [(0, Profile { ingress: Some(allowed.into()), ..Profile::default() })].into(),
        peers: [(0, PeerSet::Addresses(CLIENTS.map(address).into_iter().collect()))].into(),
        ..NodeState::default()
    }
}

/// Pod 2 lets pod 1 in on everything.
fn without_ports() -> NodeState {
    let mut state = state();
    let entry = Entry { peers: Some(0), ports: None, origin: 0 };
    state.profiles.insert(0, Profile { ingress: Some([entry].into()), ..Profile::default() });
    state
}

/// Pods 1 and 2, whose links are up.
fn network() -> Network {
    let network = Network::with_pods(2);
    for server in SERVERS.map(address) {
        let listening = network.pods[1].listen(server, 7);
        network.pods[0].connect(server, 7);
        drop(listening);
    }
    network
}

/// Packets that are one case, of which the last, or what all of them are together, is to arrive.
struct Case {
    name: &'static str,
    protocol: u8,
    port: Option<u16>,
    packets: Vec<Vec<u8>>,
}

/// Each in both families and, where there are ports, for the allowed one and the other.
fn cases(ends: Ends, marker: &[u8], source_port: u16) -> Vec<Case> {
    let v4 = ends.source.is_ipv4();
    let mut cases = Vec::new();
    for port in PORTS {
        let ports = [source_port, port];
        let mut case = |name, protocol, packets| {
            cases.push(Case { name, protocol, port: Some(port), packets });
        };
        let udp = ends.udp(ports, marker);
        case("plain", UDP, vec![ends.packet(UDP, &udp)]);

        let long = ends.udp(ports, &[&[0; 40], marker].concat());
        let part = |id, offset: usize, end: usize| {
            let more = end < long.len();
            let fragment = Fragment { id, offset: offset as u16, more };
            ends.fragment(UDP, fragment, &long[offset..end])
        };
        let all = long.len();
        case("two fragments", UDP, vec![part(1, 0, 24), part(1, 24, all)]);
        case("the later fragment first", UDP, vec![part(2, 24, all), part(2, 0, 24)]);
        let tiny: Vec<_> = (0..all).step_by(8).map(|at| part(3, at, (at + 8).min(all))).collect();
        case("tiny fragments, the ports in the first", UDP, tiny);
        case("a fragment twice", UDP, vec![part(4, 0, 24), part(4, 0, 24), part(4, 24, all)]);
        // The port that is allowed, where there was the other, and the other way round.
        let rewritten = ends.udp([source_port, PORTS[0] + PORTS[1] - port], &[0; 48]);
        let within =
            ends.fragment(UDP, Fragment { id: 5, offset: 0, more: true }, &rewritten[..16]);
        case(
            "other ports, for a part that is there",
            UDP,
            vec![part(5, 0, 24), within, part(5, 24, all)],
        );

        let mut wrong = udp.clone();
        wrong[6] ^= 0x55;
        case("a wrong checksum", UDP, vec![ends.packet(UDP, &wrong)]);
        let mut wrong = udp.clone();
        wrong[5] = 200;
        case("a length beyond the packet", UDP, vec![ends.packet(UDP, &wrong)]);

        for (name, flags) in [
            ("TCP without flags", 0),
            ("TCP with all flags", FIN | SYN | RST | PUSH | ACK | URGENT),
            ("SYN and FIN", SYN | FIN),
            ("SYN and RST", SYN | RST),
            ("an unsolicited SYN-ACK", SYN | ACK),
            ("an unsolicited ACK", ACK),
            ("an unsolicited RST", RST),
            ("an unsolicited FIN", FIN | ACK),
        ] {
            let tcp = ends.tcp(ports, flags, marker);
            case(name, TCP, vec![ends.packet(TCP, &tcp)]);
        }
        let mut wrong = ends.tcp(ports, SYN, marker);
        wrong[16] ^= 0x55;
        case("TCP with a wrong checksum", TCP, vec![ends.packet(TCP, &wrong)]);
        let mut wrong = ends.tcp(ports, SYN, marker);
        wrong[12] = 2 << 4;
        case("a TCP header of two words", TCP, vec![ends.packet(TCP, &wrong)]);

        if v4 {
            // No operation, twice, and a timestamp of nobody.
            let options = [1, 1, 68, 8, 5, 0, 0, 0, 0, 0, 0, 0];
            case("IPv4 options", UDP, vec![ends.v4(UDP, &options, Fragment::WHOLE, &udp)]);
            let syn = ends.tcp(ports, SYN, &[&[0; 4], marker].concat());
            let part = |offset: usize, end: usize| {
                let more = end < syn.len();
                let fragment = Fragment { id: 6, offset: offset as u16, more };
                ends.fragment(TCP, fragment, &syn[offset..end])
            };
            let tiny = vec![part(0, 8), part(8, 16), part(16, 24), part(24, syn.len())];
            case("a SYN in tiny fragments, the flags in the second", TCP, tiny);
        } else {
            for (name, header) in [("hop-by-hop options", 0), ("destination options", 60)] {
                let payload = [&[UDP, 0, 1, 4, 0, 0, 0, 0][..], &udp].concat();
                case(name, UDP, vec![ends.v6(header, &payload)]);
            }
            let payload = [&[60, 0, 1, 4, 0, 0, 0, 0, UDP, 0, 1, 4, 0, 0, 0, 0][..], &udp].concat();
            case("two extension headers", UDP, vec![ends.v6(0, &payload)]);
            let payload = [&[UDP, 2, 0, 0, 0, 0, 0, 0][..], &[0; 16], &udp].concat();
            case("a routing header that leads nowhere else", UDP, vec![ends.v6(ROUTING, &payload)]);
        }
    }
    let echo = if v4 { (ICMP, 8) } else { (ICMP_V6, 128) };
    let ping = ends.icmp(echo.1, 0, [0, 1, 0, 1], marker);
    let mut case = |name, protocol, payload: &[u8]| {
        let packets = vec![ends.packet(protocol, payload)];
        cases.push(Case { name, protocol, port: None, packets });
    };
    case("an echo request", echo.0, &ping);
    case(
        "an echo reply to nothing",
        echo.0,
        &ends.icmp(if v4 { 0 } else { 129 }, 0, [0, 9, 0, 1], marker),
    );
    case("GRE", GRE, &[&[0, 0, 8, 0][..], marker].concat());
    case("a protocol of nobody", 253, marker);
    cases
}

fn not_nice() {
    let network = network();
    let (client, server) = (&network.pods[0], &network.pods[1]);
    let sender = Sender::new(client);
    let mut nftables = Nftables::open().unwrap();
    let mut fake = Fake::new();
    let mut number = 0u32;
    // Without rules everything arrives, or else its silence would show nothing.
    for (state, refuses) in [(None, false), (Some(state()), true), (Some(without_ports()), false)] {
        if let Some(state) = &state {
            nftables.apply(state).unwrap();
            fake.apply(state).unwrap();
        }
        let (mut passed, mut refused) = (0, 0);
        for (source, destination) in CLIENTS.into_iter().zip(SERVERS) {
            let ends = Ends { source: address(source), destination: address(destination) };
            for index in 0..cases(ends, b"", 1).len() {
                number += 1;
                let marker = [&b"mark"[..], &number.to_be_bytes()].concat();
                // A port of its own, so that no case is of the flow of another.
                let Case { name, protocol, port, packets } =
                    cases(ends, &marker, 20_000 + number as u16).swap_remove(index);
                let ear = Ear::new(server, Family::of(ends.source), protocol);
                for packet in &packets {
                    sender.send(ends.destination, packet);
                }
                let Ends { source, destination } = ends;
                let packet = Packet { source, destination, protocol, port, bytes: 60 };
                let wanted = fake.passes(&packet);
                let arrived = ear.hears(&marker, wanted);
                assert_eq!(arrived, wanted, "{name}, {port:?}: {source} -> {destination}");
                if wanted { passed += 1 } else { refused += 1 }
            }
        }
        assert!(passed > 30, "{passed} pass");
        assert_eq!(refused > 30, refuses, "{refused} do not");
        assert!(refuses || refused == 0);
    }
}

/// What is wrong with the pieces of a packet: of these nothing comes over the link of pod 2, whatever
/// the rules say of the whole.
fn no_whole() {
    let network = network();
    let (client, server) = (&network.pods[0], &network.pods[1]);
    let (sender, ear) = (Sender::new(client), Ear::on_the_link(server));
    let mut number = 0u16;
    // Without rules the node sends on each piece, or else its silence would show nothing.
    for enforced in [false, true] {
        if enforced {
            Nftables::open().unwrap().apply(&without_ports()).unwrap();
        }
        for (source, destination) in CLIENTS.into_iter().zip(SERVERS) {
            let ends = Ends { source: address(source), destination: address(destination) };
            for port in PORTS {
                // The ports are in the first part, and the marker is in every part.
                let mut pieces: Vec<(&str, u8, &[[usize; 2]])> = vec![
                    ("the last is not there", UDP, &[[0, 24], [24, 48]]),
                    ("the first is not there", UDP, &[[24, 48], [48, 72]]),
                    ("two overlap", UDP, &[[0, 32], [24, 72]]),
                    ("the ports come once more", UDP, &[[8, 32], [0, 24], [32, 72]]),
                ];
                let more: (_, _, &[_]) = if ends.source.is_ipv4() {
                    // IPv6 leaves out the second end alone.
                    ("it ends twice", UDP, &[[24, 72], [48, 96], [0, 24]])
                } else {
                    ("a TCP header in two, which IPv6 forbids", TCP, &[[0, 16], [16, 72]])
                };
                pieces.push(more);
                for (what, protocol, pieces) in pieces {
                    number += 1;
                    let marker = [&b"piece "[..], &number.to_be_bytes()].concat();
                    let (ports, data) = ([20_000 + number, port], marker.repeat(11));
                    let whole = match protocol {
                        TCP => ends.tcp(ports, SYN, &data),
                        _ => ends.udp(ports, &data),
                    };
                    for [from, to] in pieces.iter().copied() {
                        let more = to < 72;
                        let fragment = Fragment { id: number, offset: from as u16, more };
                        let packet = ends.fragment(protocol, fragment, &whole[from..to]);
                        sender.send(ends.destination, &packet);
                    }
                    assert_eq!(
                        ear.hears(&marker, !enforced),
                        !enforced,
                        "{what}, {port}: {destination}"
                    );
                }
            }
        }
    }
}

/// Whether an error that a pod sends about a packet arrives at the other.
fn error_arrives([from, to]: [&Pod; 2], ends: Ends, inner: &[u8], expected: bool) -> bool {
    let (protocol, kind, code) = if ends.source.is_ipv4() { (ICMP, 3, 3) } else { (ICMP_V6, 1, 4) };
    let ear = Ear::new(to, Family::of(ends.source), protocol);
    let error = ends.packet(protocol, &ends.icmp(kind, code, [0; 4], inner));
    Sender::new(from).send(ends.destination, &error);
    ear.hears(&inner[inner.len() - 8..], expected)
}

/// Pod 1 sends errors to pod 2 about what pod 2 has sent, or not.
fn errors() {
    let network = network();
    let (client, server) = (&network.pods[0], &network.pods[1]);
    for enforced in [false, true] {
        let mut nftables = Nftables::open().unwrap();
        if enforced {
            nftables.apply(&state()).unwrap();
        }
        for (source, destination) in CLIENTS.into_iter().zip(SERVERS) {
            let ends = Ends { source: address(source), destination: address(destination) };
            let number = [u8::from(enforced), u8::from(ends.source.is_ipv4())];
            let marker = [&b"inside"[..], &number].concat();
            // What pod 2 has answered to pod 1 belongs to a flow.
            let (asking, answering) =
                (client.udp(ends.source, 0), server.udp(ends.destination, 80));
            asking.send_to(b"?", (ends.destination, 80)).unwrap();
            let (_, from) = answering.recv_from(&mut [0; 8]).unwrap();
            answering.send_to(&marker, from).unwrap();
            asking.recv(&mut [0; 16]).unwrap();
            let inner = |ports| ends.turned().packet(UDP, &ends.turned().udp(ports, &marker));
            let known = inner([80, from.port()]);
            assert!(error_arrives([client, server], ends, &known, true), "about a known flow");
            for ports in [[80, 1], [4000, from.port()]] {
                let forged = inner(ports);
                let arrived = error_arrives([client, server], ends, &forged, !enforced);
                assert_eq!(arrived, !enforced, "about a flow that never was, {ports:?}");
            }
        }
    }
}

/// Pod 1 sends to the node, which is to send it on to pod 2.
fn source_route() {
    let network = network();
    let (client, server) = (&network.pods[0], &network.pods[1]);
    let [one, two, node] = ["10.0.1.2", "10.0.2.2", "10.0.1.1"].map(address);
    Nftables::open().unwrap().apply(&state()).unwrap();
    let ear = Ear::new(server, Family::V4, UDP);
    for (number, kind) in [131, 137].into_iter().enumerate() {
        let marker = [&b"routed"[..], &[number as u8; 2]].concat();
        let IpAddr::V4(last) = two else { panic!("{two}") };
        let options = [&[kind, 7, 4][..], &last.octets(), &[0]].concat();
        let ends = Ends { source: one, destination: node };
        let udp = Ends { source: one, destination: two }.udp([9, PORTS[0]], &marker);
        let packet = ends.v4(UDP, &options, Fragment::WHOLE, &udp);
        Sender::new(client).send(node, &packet);
        assert!(!ear.hears(&marker, false), "option {kind}");
    }

    // The same with IPv6: by way of the node to pod 2, in the headers of all sorts that do that.
    let [one, two, node] = ["fd00:1::2", "fd00:2::2", "fd00:1::1"].map(address);
    let IpAddr::V6(last) = two else { panic!("{two}") };
    let ear = Ear::on_the_link(server);
    for kind in [0, 2, 4] {
        let marker = [&b"routed"[..], &[kind; 2]].concat();
        let udp = Ends { source: one, destination: two }.udp([9, PORTS[0]], &marker);
        let header = [&[UDP, 2, kind, 1, 0, 0, 0, 0][..], &last.octets()].concat();
        let packet = Ends { source: one, destination: node }.v6(ROUTING, &[header, udp].concat());
        Sender::new(client).send(node, &packet);
        assert!(!ear.hears(&marker, false), "routing header {kind}");
    }
}

/// Pods 1 and 2 are on a bridge, which brings what is sent to a group to all. Of an isolated sender
/// that has to be allowed; the receiver is not asked, as the group is nobody's address.
fn groups() {
    let Some([client, server]) = two_pods_on_a_bridge() else {
        eprintln!("not tested: net.bridge.bridge-nf-call-iptables cannot be set here");
        return;
    };
    let own = ["10.0.0.1", "fd00::1", "10.0.0.2", "fd00::2"].map(address);
    for to in &own[2..] {
        let listening = server.listen(*to, 7);
        client.connect(*to, 7);
        drop(listening);
    }
    let sender = Sender::new(&client);
    sender.send_to_groups_from(Ipv4Addr::new(10, 0, 0, 1));
    let ear = Ear::on_the_link(&server);
    let everything = |profile: u32| Entry { peers: Some(profile), ports: None, origin: 0 };
    let some_groups: Vec<IpNet> = ["239.1.0.0/16", "ff05::/64"].map(|n| n.parse().unwrap()).into();
    let state = |egress: Option<&[Entry]>| NodeState {
        endpoints: own.into_iter().zip([0, 0, 1, 1]).collect(),
        profiles: [
            (0, Profile { egress: egress.map(|entries| entries.into()), ..Profile::default() }),
            (1, Profile { ingress: Some([].into()), ..Profile::default() }),
        ]
        .into(),
        peers: [
            (0, PeerSet::Addresses(own.into_iter().collect())),
            (1, PeerSet::Ranges(some_groups.iter().copied().map(IpRange::from).collect())),
        ]
        .into(),
        ..NodeState::default()
    };
    let states = [
        None,
        Some(state(None)),
        Some(state(Some(&[]))),
        Some(state(Some(&[everything(0)]))),
        Some(state(Some(&[everything(1)]))),
    ];
    let groups =
        ["239.1.2.3", "239.2.2.3", "224.0.0.251", "ff05::1:3", "ff05:0:0:1::1", "ff02::fb"];
    let groups = groups.map(address);
    let (mut nftables, mut fake) = (Nftables::open().unwrap(), Fake::new());
    let mut passed = Vec::new();
    for (number, state) in states.iter().enumerate() {
        if let Some(state) = state {
            nftables.apply(state).unwrap();
            fake.apply(state).unwrap();
        }
        passed.push(0);
        for (group, destination) in groups.into_iter().enumerate() {
            let source = own[usize::from(destination.is_ipv6())];
            let ends = Ends { source, destination };
            let port = 5000 + number as u16;
            let marker = format!("group {group} in state {number}");
            sender.send(destination, &ends.packet(UDP, &ends.udp([port, port], marker.as_bytes())));
            let port = Some(port);
            let wanted =
                fake.passes(&Packet { source, destination, protocol: UDP, port, bytes: 60 });
            let arrived = ear.hears(marker.as_bytes(), wanted);
            assert_eq!(arrived, wanted, "{source} -> {destination}, {number}");
            passed[number] += usize::from(wanted);
        }
    }
    assert_eq!(passed, [6, 6, 0, 0, 2]);
}

/// Pods that may neither send nor receive anything.
fn closed(own: [&str; 2]) -> NodeState {
    let profile =
        Profile { ingress: Some([].into()), egress: Some([].into()), ..Profile::default() };
    NodeState {
        endpoints: own.map(|own| (address(own), 0)).into(),
        profiles: [(0, profile)].into(),
        ..NodeState::default()
    }
}

/// Of ICMPv6 packets of the sorts of neighbour discovery and others, those come from the one pod to the
/// other that are to pass, by their type and the hop limit with which they were sent.
fn discovery(
    [from, to]: [&Pod; 2],
    [source, destination]: [&str; 2],
    passes: impl Fn(u8, u8) -> bool,
) {
    let ends = Ends { source: address(source), destination: address(destination) };
    let (sender, ear) = (Sender::new(from), Ear::on_the_link(to));
    for kind in (128..=137).chain([143]) {
        for limit in [255, 254, 2] {
            let marker = [&b"neighbour"[..], &[kind, limit]].concat();
            let packet = ends.packet(ICMP_V6, &ends.icmp(kind, 0, [0; 4], &marker));
            sender.send(ends.destination, &with_hop_limit(packet, limit));
            let wanted = passes(kind, limit);
            assert_eq!(ear.hears(&marker, wanted), wanted, "type {kind}, hop limit {limit}");
        }
    }
}

/// Over a router nobody is a neighbour, whatever the packets say.
fn strangers() {
    let network = network();
    let (pods, ends) = ([&network.pods[0], &network.pods[1]], [CLIENTS[1], SERVERS[1]]);
    // Without rules all pass, or else their silence would show nothing.
    discovery(pods, ends, |_, _| true);
    Nftables::open().unwrap().apply(&closed(ends)).unwrap();
    discovery(pods, ends, |_, _| false);
}

fn neighbours() {
    let Some([one, two]) = two_pods_on_a_bridge() else {
        eprintln!("not tested: net.bridge.bridge-nf-call-ip6tables cannot be set here");
        return;
    };
    let ends = ["fd00::1", "fd00::2"];
    let listening = two.listen(address(ends[1]), 7);
    one.connect(address(ends[1]), 7);
    drop(listening);
    discovery([&one, &two], ends, |_, _| true);
    Nftables::open().unwrap().apply(&closed(ends)).unwrap();
    discovery([&one, &two], ends, |kind, limit| (133..=137).contains(&kind) && limit == 255);
}

/// Somebody else's rule keeps a port from being tracked.
fn untracked() {
    let network = network();
    let (client, server) = (&network.pods[0], &network.pods[1]);
    nft(
        &["-f", "-"],
        "table inet other { chain raw { type filter hook prerouting priority raw; \
         udp dport 80 notrack; udp sport 80 notrack; udp dport 81 notrack; }; }",
    );
    let mut state = state();
    Nftables::open().unwrap().apply(&state).unwrap();
    let [one, two] = [address(CLIENTS[0]), address(SERVERS[0])];
    let (asking, answering) = (client.udp(one, 4000), server.udp(two, 80));
    let refused = server.udp(two, 81);
    let long = answering.read_timeout().unwrap();
    refused.set_nonblocking(true).unwrap();
    let heard = |answered: bool| {
        // In this order: when the second has come, the first one will not.
        asking.send_to(b"?", (two, 81)).unwrap();
        asking.send_to(b"?", (two, 80)).unwrap();
        answering.recv_from(&mut [0; 8]).unwrap();
        refused.recv_from(&mut [0; 8]).unwrap_err();
        answering.send_to(b"!", (one, 4000)).unwrap();
        let short = std::time::Duration::from_millis(300);
        asking.set_read_timeout(if answered { long } else { Some(short) }).unwrap();
        assert_eq!(asking.recv_from(&mut [0; 8]).is_ok(), answered, "what pod 2 sends");
    };
    heard(true);
    // An answer is a packet like the first: that it is one, nobody knows.
    state.profiles.get_mut(&0).unwrap().egress = Some([].into());
    Nftables::open().unwrap().apply(&state).unwrap();
    heard(false);
}
