//! Packets that are not nice: each arrives, or not, as the fake says of the first packet of such a
//! connection. docs/packets.md is the list.

use std::net::IpAddr;

use libtest_mimic::Trial;
use portcullis_core::net::{Family, Protocol};
use portcullis_dataplane::state::{Entry, NodeState, PeerSet, Ports, Profile};
use portcullis_dataplane::{Dataplane, Fake, Nftables, Packet};

use crate::network::{Network, Pod};
use crate::raw::{
    ACK, Ear, Ends, FIN, Fragment, GRE, ICMP, ICMP_V6, PUSH, RST, SYN, Sender, TCP, UDP, URGENT,
};
use crate::{address, in_namespace, nft, with_nft};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        in_namespace("packets_that_are_not_nice_are_judged_as_the_fake_says", not_nice),
        in_namespace("errors_pass_if_they_belong_to_a_known_flow_and_only_then", errors),
        in_namespace("a_source_route_is_not_followed", source_route),
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
        } else {
            for (name, header) in [("hop-by-hop options", 0), ("destination options", 60)] {
                let payload = [&[UDP, 0, 1, 4, 0, 0, 0, 0][..], &udp].concat();
                case(name, UDP, vec![ends.v6(header, &payload)]);
            }
            let payload = [&[60, 0, 1, 4, 0, 0, 0, 0, UDP, 0, 1, 4, 0, 0, 0, 0][..], &udp].concat();
            case("two extension headers", UDP, vec![ends.v6(0, &payload)]);
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
    for enforced in [false, true] {
        if enforced {
            nftables.apply(&state()).unwrap();
            fake.apply(&state()).unwrap();
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
                let arrived = ear.hears(&marker);
                assert_eq!(arrived, wanted, "{name}, {port:?}: {source} -> {destination}");
                if wanted { passed += 1 } else { refused += 1 }
            }
        }
        assert_eq!(refused > 30 && passed > 30, enforced, "{passed} pass, {refused} do not");
    }
}

/// Whether an error that a pod sends about a packet arrives at the other.
fn error_arrives(from: &Pod, to: &Pod, ends: Ends, inner: &[u8]) -> bool {
    let (protocol, kind, code) = if ends.source.is_ipv4() { (ICMP, 3, 3) } else { (ICMP_V6, 1, 4) };
    let ear = Ear::new(to, Family::of(ends.source), protocol);
    let error = ends.packet(protocol, &ends.icmp(kind, code, [0; 4], inner));
    Sender::new(from).send(ends.destination, &error);
    ear.hears(&inner[inner.len() - 8..])
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
            assert!(error_arrives(client, server, ends, &known), "about a known flow");
            for ports in [[80, 1], [4000, from.port()]] {
                let forged = inner(ports);
                let arrived = error_arrives(client, server, ends, &forged);
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
        assert!(!ear.hears(&marker), "option {kind}");
    }
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
    let wait = Some(std::time::Duration::from_millis(300));
    [&asking, &answering, &refused].iter().for_each(|s| s.set_read_timeout(wait).unwrap());
    let heard = || {
        asking.send_to(b"?", (two, 80)).unwrap();
        asking.send_to(b"?", (two, 81)).unwrap();
        let asked = answering.recv_from(&mut [0; 8]).is_ok();
        answering.send_to(b"!", (one, 4000)).unwrap();
        (asked, refused.recv_from(&mut [0; 8]).is_ok(), asking.recv_from(&mut [0; 8]).is_ok())
    };
    assert_eq!(heard(), (true, false, true), "pod 2 may send to pod 1");
    // An answer is a packet like the first: that it is one, nobody knows.
    state.profiles.get_mut(&0).unwrap().egress = Some([].into());
    Nftables::open().unwrap().apply(&state).unwrap();
    assert_eq!(heard(), (true, false, false), "pod 2 may send nothing");
}
