//! The data plane against this machine's kernel, without root: in a user namespace, and for each
//! test a network namespace of its own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that clippy does not take for one, as it has no harness"
)]

mod network;
#[path = "../random/mod.rs"]
mod random;

use std::io::Write;
use std::net::IpAddr;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use network::Network;
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getgid, getuid};
use portcullis_core::net::{IpNet, Protocol};
use portcullis_dataplane::netlink::{NETLINK_NETFILTER, NETLINK_ROUTE, NetlinkSocket};
use portcullis_dataplane::plan::{TABLE, plan, render};
use portcullis_dataplane::state::{Entry, NodeState, PeerSet, Ports, Profile};
use portcullis_dataplane::{Dataplane, Error, Fake, Nftables};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use serde_json::Value;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    if let Err(error) = become_root_of_a_user_namespace() {
        eprintln!(
            "These tests need a user namespace, and this machine refuses one: {error}.\n\
             Look at the sysctls user.max_user_namespaces, kernel.unprivileged_userns_clone and \
             kernel.apparmor_restrict_unprivileged_userns, or run them as root."
        );
        return ExitCode::FAILURE;
    }
    let tests = vec![
        in_namespace("random_plans_are_accepted_and_replace_each_other", random_plans),
        with_nft("nft_lists_what_the_rendered_text_means", nft_lists_what_the_text_means),
        with_nft("nft_lists_the_whole_ruleset_as_text", nft_lists_the_whole_ruleset),
        with_nft("what_was_removed_is_gone_and_other_tables_stay", removal),
        with_nft("elements_that_need_many_messages_all_arrive", many_elements),
        with_nft("what_is_too_large_for_one_send_is_put_beside_and_switched_to", in_pieces),
        in_namespace("real_packets_pass_as_the_fake_says_and_are_counted", packets),
        in_namespace("a_known_connection_survives_a_new_state", known_connection),
        in_namespace("the_kernel_s_refusal_names_the_request_and_the_reason", refusal),
    ];
    libtest_mimic::run(&arguments, tests).exit_code()
}

/// Must come before the first thread.
fn become_root_of_a_user_namespace() -> std::io::Result<()> {
    let (uid, gid) = (getuid(), getgid());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)?;
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    std::fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
}

/// A test on a thread in a network namespace of its own.
fn in_namespace(name: &str, test: fn()) -> Trial {
    Trial::test(name, move || run_in_namespace(test))
}

/// A test that needs the `nft` program. Without it, it is skipped, or fails if
/// `PORTCULLIS_REQUIRE_NFT` is 1.
fn with_nft(name: &str, test: fn()) -> Trial {
    Trial::ignorable_test(name, move || {
        if Command::new("nft").arg("--version").output().is_err() {
            let required = std::env::var("PORTCULLIS_REQUIRE_NFT").is_ok_and(|value| value == "1");
            return if required {
                Err("nft is not installed, and PORTCULLIS_REQUIRE_NFT is 1".into())
            } else {
                Ok(Completion::ignored_with("skipped: nft is not installed"))
            };
        }
        run_in_namespace(test).map(|()| Completion::Completed)
    })
}

fn run_in_namespace(test: fn()) -> Result<(), Failed> {
    let thread = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        test();
    });
    // The panic's message has been printed already.
    thread.join().map_err(|_| "the test panicked".into())
}

/// The same random states in every run.
fn states(count: usize) -> impl Iterator<Item = NodeState> {
    let mut runner = TestRunner::deterministic();
    (0..count).map(move |_| random::state().new_tree(&mut runner).unwrap().current())
}

fn random_plans() {
    let mut nftables = Nftables::open().unwrap();
    let mut elements = 0;
    for state in states(150) {
        let report = nftables.apply(&state).unwrap();
        assert_eq!(nftables.hits().unwrap(), []);
        elements += report.elements;
    }
    assert!(elements > 5000, "{elements} elements are too few to show anything");
}

fn nft(arguments: &[&str], input: &str) -> String {
    let mut child = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "nft {arguments:?}: {errors}\n{input}");
    String::from_utf8(output.stdout).unwrap()
}

/// The ruleset as JSON, without handles, and with unordered things in order.
fn listed() -> Value {
    let mut ruleset = serde_json::from_str(&nft(&["-j", "list", "ruleset"], "")).unwrap();
    forget_order(&mut ruleset);
    let Value::Object(mut ruleset) = ruleset else { panic!("not an object") };
    let mut objects: Vec<_> = ruleset.remove("nftables").unwrap().as_array().unwrap().clone();
    // Rules keep their order within a chain: a stable sort by kind and names.
    objects.sort_by_key(|object| {
        let (kind, object) = object.as_object().unwrap().iter().next().unwrap();
        format!("{kind} {} {}", object["chain"], object["name"])
    });
    Value::Array(objects)
}

fn forget_order(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.remove("handle");
            fields.values_mut().for_each(forget_order);
            if let Some(Value::Array(elements)) = fields.get_mut("elem") {
                elements.sort_by_key(Value::to_string);
            }
        }
        Value::Array(values) => values.iter_mut().for_each(forget_order),
        _ => {}
    }
}

fn nft_lists_what_the_text_means() {
    let mut nftables = Nftables::open().unwrap();
    for state in states(40) {
        nftables.apply(&state).unwrap();
        let by_netlink = listed();
        nftables.remove().unwrap();
        let text = render(&plan(&state).unwrap());
        nft(&["-f", "-"], &text);
        let by_text = listed();
        nftables.remove().unwrap();
        assert_eq!(by_netlink, by_text, "{text}");
    }
}

fn nft_lists_the_whole_ruleset() {
    let mut nftables = Nftables::open().unwrap();
    for state in states(40) {
        nftables.apply(&state).unwrap();
        let text = nft(&["list", "ruleset"], "");
        let plan = plan(&state).unwrap();
        let sets = plan
            .sets
            .iter()
            .map(|set| format!("\t{} {} {{", if set.map { "map" } else { "set" }, set.name));
        for line in sets.chain(plan.chains.iter().map(|chain| format!("\tchain {} {{", chain.name)))
        {
            assert!(text.contains(&line), "{line} is missing in\n{text}");
        }
    }
}

fn removal() {
    nft(&["-f", "-"], "table inet other {\n chain forward {\n counter\n }\n}");
    let before = listed();
    let mut nftables = Nftables::open().unwrap();
    nftables.remove().unwrap();
    nftables.apply(&states(5).last().unwrap()).unwrap();
    assert!(nft(&["list", "tables"], "").contains(TABLE));
    nftables.remove().unwrap();
    nftables.remove().unwrap();
    assert_eq!(listed(), before);
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn ports(protocol: Protocol, first: u16, last: u16) -> Option<Ports> {
    Some(Ports { protocol, first, last })
}

fn many_elements() {
    // One address allowed on each of many ports, in both families.
    let entry = |port| Entry { peers: Some(0), ports: ports(Protocol::Tcp, port, port), origin: 0 };
    let state = NodeState {
        endpoints: [(address("10.0.0.1"), 0)].into(),
        profiles: vec![Profile { ingress: Some((0..5000).map(entry).collect()), egress: None }],
        peers: vec![PeerSet::Addresses(vec![address("10.0.0.2"), address("fd00::2")])],
        origins: 1,
    };
    let mut nftables = Nftables::open().unwrap();
    let report = nftables.apply(&state).unwrap();
    assert_eq!(report.elements, 10_002);
    let held = |object: &Value| object["set"]["elem"].as_array().map_or(0, Vec::len);
    assert_eq!(listed().as_array().unwrap().iter().map(held).max(), Some(5000));
}

fn in_pieces() {
    let mut socket = NetlinkSocket::open(NETLINK_NETFILTER).unwrap();
    socket.set_send_limit(40_000).unwrap();
    let limit = socket.send_limit().unwrap();
    let mut nftables = Nftables::over(socket);
    let mut generations = Vec::new();
    for state in states(60) {
        let report = nftables.apply(&state).unwrap();
        assert_eq!(nftables.hits().unwrap(), []);

        let listed = listed();
        let objects = || listed.as_array().unwrap().iter().map(|o| o.as_object().unwrap());
        let count = |kinds: &[&str]| {
            objects().filter(|object| kinds.iter().any(|kind| object.contains_key(*kind))).count()
        };
        assert_eq!(count(&["chain"]), report.chains);
        assert_eq!(count(&["rule"]), report.rules);
        assert_eq!(count(&["set", "map"]), report.sets);

        let chain = objects().filter_map(|object| object.get("chain")?["name"].as_str());
        let generation = chain.filter_map(|name| name.rsplit_once('.')).map(|(_, g)| g.to_owned());
        let generation = generation.max();
        assert_eq!(generation.is_some(), report.bytes > limit);
        generations.push(generation);
    }
    let follow = |a: &str, b: &str| {
        generations.windows(2).any(|w| w[0].as_deref() == Some(a) && w[1].as_deref() == Some(b))
    };
    assert!(follow("1", "2"), "no large state came after a large one: {generations:?}");
}

/// Pods 1 and 2 are behind this node. Pod 2 (10.0.2.2, fd00:2::2) is isolated.
fn two_pods() -> NodeState {
    let block = |text: &str| text.parse::<IpNet>().unwrap().into();
    let ingress = vec![
        Entry { peers: Some(0), ports: ports(Protocol::Tcp, 80, 80), origin: 0 },
        Entry { peers: Some(1), ports: ports(Protocol::Tcp, 8000, 8100), origin: 1 },
        Entry { peers: None, ports: ports(Protocol::Udp, 0, 65535), origin: 2 },
        Entry { peers: Some(2), ports: None, origin: 3 },
    ];
    NodeState {
        endpoints: [(address("10.0.2.2"), 0), (address("fd00:2::2"), 0)].into(),
        profiles: vec![Profile { ingress: Some(ingress), egress: None }],
        peers: vec![
            PeerSet::Addresses(vec![address("10.0.1.2"), address("fd00:1::2")]),
            PeerSet::Ranges(vec![block("10.0.1.0/24"), block("10.0.7.0/24")]),
            PeerSet::Ranges(vec![block("fd00:1::/64")]),
        ],
        origins: 4,
    }
}

fn packets() {
    let network = Network::with_pods(2);
    let (client, server) = (&network.pods[0], &network.pods[1]);
    let mut nftables = Nftables::open().unwrap();
    let mut fake = Fake::new();
    let attempts = [
        ("10.0.2.2", 80),
        ("10.0.2.2", 81),
        ("10.0.2.2", 7999),
        ("10.0.2.2", 8000),
        ("10.0.2.2", 8100),
        ("10.0.2.2", 8101),
        ("fd00:2::2", 80),
        ("fd00:2::2", 8050),
    ];
    let listeners: Vec<_> =
        attempts.iter().map(|(to, port)| server.listen(address(to), *port)).collect();
    for (to, port) in attempts {
        // New links take up to a second to come up.
        let connected = (0..20).any(|_| client.connects(address(to), port));
        assert!(connected, "{to} {port} without policies");
    }

    let state = two_pods();
    nftables.apply(&state).unwrap();
    fake.apply(&state).unwrap();
    for (to, port) in attempts {
        let destination = address(to);
        let source = address(if destination.is_ipv4() { "10.0.1.2" } else { "fd00:1::2" });
        // A SYN as Linux sends it has 40 bytes.
        let bytes = if destination.is_ipv4() { 60 } else { 80 };
        let packet = portcullis_dataplane::Packet {
            source,
            destination,
            protocol: Protocol::Tcp.number(),
            port: Some(port),
            bytes,
        };
        assert_eq!(client.connects(destination, port), fake.passes(&packet), "{to} {port}");
    }
    drop(listeners);
    let udp = server.udp(address("10.0.2.2"), 53);
    client.udp(address("10.0.1.2"), 0).send_to(b"?", "10.0.2.2:53").unwrap();
    let (_, from) = udp.recv_from(&mut [0; 8]).unwrap();
    assert_eq!(from.ip(), address("10.0.1.2"));

    let mut hits = nftables.hits().unwrap();
    // Blocked SYNs come again, but they count for no origin.
    let udp = hits.remove(hits.iter().position(|hits| hits.origin == 2).unwrap());
    assert_eq!((udp.packets, udp.bytes), (1, 29));
    assert_eq!(hits, fake.hits().unwrap());
}

fn known_connection() {
    let network = Network::with_pods(2);
    let (client, server) = (&network.pods[0], &network.pods[1]);
    let mut nftables = Nftables::open().unwrap();
    let two_pods = two_pods();
    nftables.apply(&two_pods).unwrap();

    let socket = server.udp(address("10.0.2.2"), 53);
    let asking = client.udp(address("10.0.1.2"), 0);
    asking.send_to(b"?", "10.0.2.2:53").unwrap();
    let (_, from) = socket.recv_from(&mut [0; 8]).unwrap();
    socket.send_to(b"!", from).unwrap();
    asking.recv_from(&mut [0; 8]).unwrap();

    let mut closed = two_pods;
    closed.profiles[0].ingress = Some(Vec::new());
    nftables.apply(&closed).unwrap();
    asking.send_to(b"?", "10.0.2.2:53").unwrap();
    socket.recv_from(&mut [0; 8]).expect("the known connection goes on");
    let other = client.udp(address("10.0.1.2"), 0);
    other.send_to(b"?", "10.0.2.2:53").unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    socket.recv_from(&mut [0; 8]).expect_err("a new connection is refused");
}

fn refusal() {
    let mut socket = NetlinkSocket::open(NETLINK_ROUTE).unwrap();
    let links = socket.dump(RouteNetlinkMessage::GetLink(LinkMessage::default())).unwrap();
    assert_eq!(links.len(), 1, "a new namespace has the loopback alone");

    let unknown = |name: &str| {
        let mut link = LinkMessage::default();
        link.attributes.push(LinkAttribute::IfName(name.to_owned()));
        RouteNetlinkMessage::GetLink(link)
    };
    assert_eq!(socket.request(unknown("lo"), 0).unwrap().len(), 1);
    let error = socket.request(unknown("nowhere"), 0).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::ENODEV as i32));

    // A batch goes on after a refused request only as far as one send.
    let mut requests: Vec<_> = (0..200).map(|_| (unknown("lo"), 0)).collect();
    requests[150].0 = unknown("nowhere");
    match socket.batch(requests).unwrap_err() {
        Error::Refused { index, count, .. } => assert_eq!((index, count), (150, 200)),
        other => panic!("{other}"),
    }
    // The socket is good for more.
    assert_eq!(socket.request(unknown("lo"), 0).unwrap().len(), 1);

    let mut long = LinkMessage::default();
    long.attributes.push(LinkAttribute::IfName("x".repeat(64)));
    let error = socket.request(RouteNetlinkMessage::NewLink(long), 0).unwrap_err();
    assert!(error.to_string().contains("(Attribute failed policy validation)"), "{error}");
}
