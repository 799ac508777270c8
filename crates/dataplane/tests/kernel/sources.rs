//! Packets whose source is not their sender's.

use std::net::IpAddr;

use libtest_mimic::Trial;
use portcullis_core::net::Family;
use portcullis_dataplane::Sources;
use portcullis_dataplane::state::{NodeState, Profile};

use crate::network::{self, Network, Pod};
use crate::raw::{Ear, Ends, Sender, UDP};
use crate::{address, in_namespace, nft, with_nft};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        in_namespace("a_pod_sends_only_from_its_own_addresses", own_addresses),
        in_namespace("pods_on_a_bridge_that_the_node_is_not_on_are_left_alone", bridge),
        in_namespace("pods_on_a_bridge_have_any_address_of_the_bridge_alone", bridge_of_the_node),
        with_nft("nft_lists_what_sources_are_dropped", listed),
        with_nft("whoever_changes_the_rules_on_sources_finds_them_again", changed),
        with_nft("an_address_that_moves_to_another_link_is_followed", moved),
    ]
}

/// The loopback of a namespace, and links that come later, take packets from anywhere.
fn take_any_source() {
    for kind in ["all", "default"] {
        std::fs::write(format!("/proc/sys/net/ipv4/conf/{kind}/rp_filter"), "0").unwrap();
    }
}

fn pod(n: u8) -> [IpAddr; 2] {
    [format!("10.0.{n}.2"), format!("fd00:{n}::2")].map(|a| address(&a))
}

/// The pods are open, so that nothing but their sources decides.
fn state(pods: &[u8]) -> NodeState {
    NodeState {
        endpoints: pods.iter().flat_map(|n| pod(*n)).map(|address| (address, 0)).collect(),
        profiles: [(0, Profile::default())].into(),
        ..NodeState::default()
    }
}

/// Sends a datagram that says that it is from the first address, and tells whether it arrives.
fn arrives(pods: [&Pod; 2], ends: [IpAddr; 2], number: u32, expected: bool) -> bool {
    let ([from, to], [source, destination]) = (pods, ends);
    let ear = Ear::new(to, Family::of(destination), UDP);
    let marker = [&b"mark"[..], &number.to_be_bytes()].concat();
    let ends = Ends { source, destination };
    let packet = ends.packet(UDP, &ends.udp([9, 9], &marker));
    Sender::new(from).send(destination, &packet);
    ear.hears(&marker, expected)
}

/// Pods 1 and 2 are this node's, pod 3 stands for everything outside.
fn own_addresses() {
    take_any_source();
    let network = Network::with_pods(3);
    let [one, two, outside] = &*network.pods else { panic!("three pods") };
    for (server, n) in [(two, 2), (outside, 3)] {
        for to in pod(n) {
            let listening = server.listen(to, 7);
            one.connect(to, 7);
            drop(listening);
        }
    }
    let foreign = [address("203.0.113.9"), address("2001:db8:9::9")];
    let mut sources = Sources::open().unwrap();
    let mut number = 0;
    for enforced in [false, true] {
        if enforced {
            assert_eq!(sources.follow(&state(&[1, 2])).unwrap(), 2, "links");
        }
        for family in [0, 1] {
            let (a, b, far) = (pod(1)[family], pod(2)[family], pod(3)[family]);
            let other = foreign[family];
            let gateway = [address("10.0.1.1"), address("fd00:1::1")][family];
            for (what, from, source, to, destination, wanted) in [
                ("its own", one, a, two, b, true),
                ("its own, to the outside", one, a, outside, far, true),
                ("another pod's", one, b, outside, far, false),
                ("that of the pod it sends to", one, b, two, b, false),
                ("one from outside", one, far, two, b, false),
                ("one of nobody", one, other, outside, far, false),
                ("the node's", one, gateway, outside, far, false),
                ("from outside, a pod's", outside, a, two, b, false),
                ("from outside, its own", outside, far, two, b, true),
                ("from outside, by another way than back", outside, other, two, b, true),
            ] {
                number += 1;
                // The kernel itself takes no packet from outside that has one of its own addresses.
                let by_kernel = source == gateway || source == b && destination == b;
                if enforced || !by_kernel {
                    let wanted = wanted || !enforced;
                    let arrived = arrives([from, to], [source, destination], number, wanted);
                    assert_eq!(arrived, wanted, "{what}: {source} -> {destination}");
                }
            }
        }
    }
    // A pod that is gone sends from where it likes, as whoever is there is not known.
    assert_eq!(sources.follow(&state(&[2])).unwrap(), 1);
    let (pods, ends) = ([one, outside], [foreign[0], pod(3)[0]]);
    assert!(arrives(pods, ends, 1000, true));
    sources.follow(&state(&[1, 2])).unwrap();
    assert!(!arrives(pods, ends, 1001, false));
    sources.remove().unwrap();
    assert!(arrives(pods, ends, 1002, true));
}

/// On a bridge, pods have one link: which of them sends cannot be told by it. Where the node has no
/// address on the bridge, it cannot even tell that they are there.
fn bridge() {
    let Some([one, two]) = network::two_pods_on_a_bridge() else {
        eprintln!("not tested: net.bridge.bridge-nf-call-ip6tables cannot be set here");
        return;
    };
    holds_on_a_bridge(&one, &two, 0);
}

fn bridge_of_the_node() {
    let Some([one, two]) = network::two_pods_and_the_node_on_a_bridge() else {
        eprintln!("not tested: net.bridge.bridge-nf-call-ip6tables cannot be set here");
        return;
    };
    holds_on_a_bridge(&one, &two, 1);
}

fn holds_on_a_bridge(one: &Pod, two: &Pod, links: usize) {
    let [a, b] = [address("fd00::1"), address("fd00::2")];
    let state = NodeState {
        endpoints: [(a, 0), (b, 0)].into(),
        profiles: [(0, Profile::default())].into(),
        ..NodeState::default()
    };
    // Neighbours find each other before and after.
    for port in [7, 8] {
        let listening = two.listen(b, port);
        one.connect(b, port);
        drop(listening);
        assert_eq!(Sources::open().unwrap().follow(&state).unwrap(), links);
    }
    let pods = [one, two];
    assert!(arrives(pods, [a, b], 1, true), "its own");
    let foreign = address("2001:db8:9::9");
    assert_eq!(arrives(pods, [foreign, b], 2, links == 0), links == 0, "one of nobody");
    assert!(arrives(pods, [address("fd00::77"), b], 3, true), "another of the bridge");
}

fn listed() {
    let network = Network::with_pods(2);
    let listening = network.pods[1].listen(pod(2)[0], 7);
    network.pods[0].connect(pod(2)[0], 7);
    drop(listening);
    let mut sources = Sources::open().unwrap();
    sources.follow(&state(&[1, 2])).unwrap();
    let text = nft(&["list", "ruleset"], "");
    for line in [
        "type filter hook prerouting priority raw; policy accept;",
        "ip saddr . iif @own4 accept",
        "ip6 saddr . iif @own6 accept",
        "ip6 saddr fe80::/10 accept",
        "iif @links fib saddr . iif oif missing goto false-source",
        "ip saddr @pods4 fib saddr . iif oif missing goto false-source",
        "ip6 saddr @pods6 fib saddr . iif oif missing goto false-source",
        "elements = { 10.0.1.2, 10.0.2.2 }",
        "elements = { \"pod1\", \"pod2\" }",
    ] {
        let without = |text: &str| {
            let mut words: Vec<&str> = text.split_whitespace().collect();
            for word in ["packets", "bytes"] {
                if let Some(at) = words.iter().position(|found| *found == word) {
                    words.drain(at..at + 2);
                }
            }
            words.join(" ")
        };
        assert!(text.lines().any(|found| without(found) == without(line)), "{line}\n{text}");
    }
    nft(&["-j", "list", "ruleset"], "");
}

/// Whoever changes it finds it again as it was.
fn changed() {
    let _network = Network::with_pods(2);
    let mut sources = Sources::open().unwrap();
    sources.follow(&state(&[1, 2])).unwrap();
    assert_eq!(sources.differences().unwrap(), []);
    let edits = [
        ("delete table inet portcullis-sources", "the table is missing"),
        (
            "flush chain inet portcullis-sources prerouting",
            "chain prerouting is not as it should be",
        ),
        (
            "flush set inet portcullis-sources links",
            "set links: 2 elements are missing, 0 do not belong there",
        ),
        (
            "add element inet portcullis-sources own4 { 203.0.113.9 . pod1 }",
            "set own4: 0 elements are missing, 1 do not belong there",
        ),
        (
            "add rule inet portcullis-sources false-source accept",
            "chain false-source is not as it should be",
        ),
        ("add table inet portcullis-sources { flags dormant; }", "the table is dormant"),
    ];
    for (edit, wanted) in edits {
        nft(&["-f", "-"], edit);
        let differences = sources.differences().unwrap();
        let differences: Vec<String> = differences.iter().map(ToString::to_string).collect();
        assert_eq!(differences, [wanted], "{edit}");
        sources.follow(&state(&[1, 2])).unwrap();
        assert_eq!(sources.differences().unwrap(), [], "{edit}");
    }
}

/// What the routes said is in force no longer than they say so.
fn moved() {
    let _network = Network::with_pods(2);
    let mut sources = Sources::open().unwrap();
    sources.follow(&state(&[1, 2])).unwrap();
    sources.have_moved();
    assert!(!sources.have_moved());
    // The next address that the runtime gives to the pod, and no more than that.
    let mut next = state(&[1, 2]);
    let address = address("10.0.1.77");
    next.endpoints.insert(address, 0);
    network::route(address, "pod1");
    assert!(sources.have_moved());
    sources.admit(&next, &[address]).unwrap();
    let listed = || nft(&["list", "set", "inet", "portcullis-sources", "own4"], "");
    assert!(listed().contains("10.0.1.77 . \"pod1\""), "{}", listed());
    assert_eq!(sources.differences().unwrap(), []);
    // The address moves to the other link.
    network::route(address, "pod2");
    assert!(sources.have_moved());
    sources.admit(&next, &[address]).unwrap();
    assert!(listed().contains("10.0.1.77 . \"pod2\""), "{}", listed());
    assert!(!listed().contains("10.0.1.77 . \"pod1\""), "{}", listed());
}
