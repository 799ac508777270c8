//! What the rules tell of packets.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use portcullis_core::net::Protocol;
use portcullis_dataplane::plan::Direction;
use portcullis_dataplane::state::{Log, NodeState, Profile};
use portcullis_dataplane::{
    Allowed, Dataplane, FlowLog, Headers, Logged, Nftables, Outcome, Sources, Tally,
};

use crate::network::{Network, Pod};
use crate::raw::{Ends, Sender, UDP};
use crate::{address, addresses, in_namespace, nft, udp, with_nft};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        in_namespace("what_is_refused_is_told_with_its_headers_and_counted", refused),
        in_namespace("what_is_allowed_is_told_of_the_pods_that_are_asked_for", allowed),
        in_namespace("a_false_source_is_told", false_source),
        in_namespace("one_link_does_not_use_up_what_is_told_of_false_sources", false_shares),
        in_namespace("of_a_flood_a_bounded_part_is_told_and_all_is_counted", flood),
        in_namespace("one_source_does_not_use_up_what_is_told_of_others", shares),
        in_namespace("more_sources_than_are_remembered_share_what_is_left", many_sources),
        in_namespace("what_was_refused_stays_counted_whatever_is_applied", counts_last),
        with_nft("nft_lists_the_tables_with_logs", listed),
        in_namespace("a_group_has_one_listener", one_listener),
    ]
}

const LOG: Log = Log { group: 7, rate: 1000 };
const EGRESS: Outcome = Outcome::Refused(Direction::Egress);
const INGRESS: Outcome = Outcome::Refused(Direction::Ingress);

/// Pod 1 is open. Pod 2 takes port 54 over UDP from pod 1, and opens nothing.
fn state(log: Option<Log>) -> NodeState {
    let both = |n: u8| [format!("10.0.{n}.2"), format!("fd00:{n}::2")].map(|a| address(&a));
    let guarded = Profile {
        ingress: Some([udp(Some(0), 54, 54)].into()),
        egress: Some([].into()),
        ..Profile::default()
    };
    NodeState {
        endpoints: [(1, 0), (2, 1)]
            .into_iter()
            .flat_map(|(n, profile)| both(n).map(|address| (address, profile)))
            .collect(),
        profiles: [(0, Profile::default()), (1, guarded)].into(),
        peers: [(0, addresses(&["10.0.1.2", "fd00:1::2"]))].into(),
        log,
        ..NodeState::default()
    }
}

/// Two pods whose links are up.
fn network() -> Network {
    let network = Network::with_pods(2);
    for to in ["10.0.2.2", "fd00:2::2"].map(address) {
        let listening = network.pods[1].listen(to, 7);
        network.pods[0].connect(to, 7);
        drop(listening);
    }
    network
}

/// All that is told within a time, or until there are so many.
fn heard(log: &mut FlowLog, wanted: usize) -> Vec<(Outcome, Headers)> {
    let start = Instant::now();
    let mut all = Vec::new();
    while all.len() < wanted && start.elapsed() < Duration::from_secs(20) {
        all.extend(
            log.receive()
                .unwrap()
                .iter()
                .map(|Logged { outcome, headers, .. }| (*outcome, *headers)),
        );
    }
    // And nothing more.
    all.extend(log.receive().unwrap().iter().map(|logged| (logged.outcome, logged.headers)));
    all
}

fn headers(source: &str, destination: &str, ports: (u16, u16)) -> Headers {
    let [source, destination] = [source, destination].map(address);
    Headers { source, destination, protocol: Protocol::Udp.number(), ports: Some(ports) }
}

fn send(from: &Pod, source: &str, port: u16, to: &str, to_port: u16) {
    from.udp(address(source), port).send_to(b"?", (address(to), to_port)).unwrap();
}

fn refused() {
    let network = network();
    let [one, two] = &*network.pods else { panic!("two pods") };
    let mut log = FlowLog::open(LOG.group).unwrap();
    let mut nftables = Nftables::open().unwrap();
    nftables.apply(&state(Some(LOG))).unwrap();
    let mut wanted = Vec::new();
    for (a, b) in [("10.0.1.2", "10.0.2.2"), ("fd00:1::2", "fd00:2::2")] {
        send(one, a, 4001, b, 53);
        wanted.push((INGRESS, headers(a, b, (4001, 53))));
        send(one, a, 4002, b, 54);
        send(two, b, 4003, a, 53);
        wanted.push((EGRESS, headers(b, a, (4003, 53))));
    }
    assert_eq!(heard(&mut log, wanted.len()), wanted);
    let twice = Tally { packets: 2, told: 2 };
    assert_eq!(nftables.ended().unwrap().refused, [twice, twice]);
    assert_eq!(log.lost(), 0);
    // What is not to be told is counted all the same.
    nftables.apply(&state(None)).unwrap();
    send(one, "10.0.1.2", 4004, "10.0.2.2", 53);
    assert_eq!(heard(&mut log, 0), []);
    assert_eq!(nftables.ended().unwrap().refused, [twice, Tally { packets: 3, told: 2 }]);
}

fn allowed() {
    let network = network();
    let [one, two] = &*network.pods else { panic!("two pods") };
    let mut log = FlowLog::open(LOG.group).unwrap();
    Nftables::open().unwrap().apply(&state(None)).unwrap();
    let mut allowed = Allowed::open(LOG).unwrap();
    let server = two.udp(address("10.0.2.2"), 54);
    let client = one.udp(address("10.0.1.2"), 4000);
    let exchange = || {
        client.send_to(b"?", "10.0.2.2:54").unwrap();
        let (_, from) = server.recv_from(&mut [0; 8]).unwrap();
        server.send_to(b"!", from).unwrap();
        client.recv_from(&mut [0; 8]).unwrap();
    };
    exchange();
    assert_eq!(heard(&mut log, 0), [], "nothing was asked for");
    allowed.tell(&[address("10.0.2.2"), address("fd00:2::2")].into()).unwrap();
    exchange();
    assert_eq!(heard(&mut log, 0), [], "it was known before");
    send(one, "10.0.1.2", 4001, "10.0.2.2", 53);
    send(one, "10.0.1.2", 4001, "10.0.2.2", 54);
    send(one, "fd00:1::2", 4001, "fd00:2::2", 54);
    let wanted = [
        (Outcome::Allowed, headers("10.0.1.2", "10.0.2.2", (4001, 54))),
        (Outcome::Allowed, headers("fd00:1::2", "fd00:2::2", (4001, 54))),
    ];
    assert_eq!(heard(&mut log, 2), wanted);
    assert_eq!(allowed.counted(), Tally { packets: 2, told: 2 });
    allowed.tell(&[].into()).unwrap();
    send(one, "10.0.1.2", 4002, "10.0.2.2", 54);
    assert_eq!(heard(&mut log, 0), []);
    assert_eq!(allowed.counted(), Tally { packets: 2, told: 2 });
}

fn false_source() {
    let network = network();
    let [one, two] = &*network.pods else { panic!("two pods") };
    let mut log = FlowLog::open(LOG.group).unwrap();
    let mut sources = Sources::open().unwrap();
    sources.follow(&state(Some(LOG))).unwrap();
    let ends = Ends { source: address("10.0.9.9"), destination: address("10.0.2.2") };
    let packet = ends.packet(UDP, &ends.udp([9, 54], b"mark"));
    Sender::new(one).send(ends.destination, &packet);
    let wanted = headers("10.0.9.9", "10.0.2.2", (9, 54));
    assert_eq!(heard(&mut log, 1), [(Outcome::FalseSource, wanted)]);
    let once = Tally { packets: 1, told: 1 };
    assert_eq!(sources.dropped(), once);
    sources.follow(&state(None)).unwrap();
    assert_eq!(sources.dropped(), once, "it stays counted");
    Sender::new(one).send(ends.destination, &packet);
    assert_eq!(heard(&mut log, 0), []);
    assert_eq!(sources.dropped(), Tally { packets: 2, told: 1 });
    drop(two.udp(address("10.0.2.2"), 54));
}

/// Pod 1 sends many, and of what pod 2 sends once is told all the same.
fn false_shares() {
    const PACKETS: u64 = 300;
    let network = network();
    let [one, two] = &*network.pods else { panic!("two pods") };
    let state = state(Some(Log { rate: 10, ..LOG }));
    let mut log = FlowLog::open(LOG.group).unwrap();
    let mut sources = Sources::open().unwrap();
    sources.follow(&state).unwrap();
    let start = Instant::now();
    let sender = Sender::new(one);
    for n in 0..PACKETS {
        // Another one each time: it is not the source that is remembered.
        let source = IpAddr::from([10, 0, 9, n as u8]);
        let ends = Ends { source, destination: address("10.0.2.2") };
        sender.send(ends.destination, &ends.packet(UDP, &ends.udp([9, 54], b"?")));
    }
    let ends = Ends { source: address("10.0.8.8"), destination: address("10.0.1.2") };
    Sender::new(two).send(ends.destination, &ends.packet(UDP, &ends.udp([9, 54], b"?")));
    let told = heard(&mut log, 6);
    let wanted = (Outcome::FalseSource, headers("10.0.8.8", "10.0.1.2", (9, 54)));
    assert!(told.contains(&wanted), "{told:?}");
    let seconds = start.elapsed().as_secs() + 1;
    assert!(told.len() as u64 <= 5 + seconds + 1, "{} in {seconds} s", told.len());
    let counted = Tally { packets: PACKETS + 1, told: told.len() as u64 };
    assert_eq!(sources.dropped(), counted);
    // Somebody else's change has it read back.
    Allowed::open(LOG).unwrap();
    assert_eq!(sources.differences().unwrap(), [], "what the kernel remembers is no difference");
}

/// The rate of the kernel is a share of a core for whoever listens, whatever is refused.
fn flood() {
    const PACKETS: u64 = 100_000;
    const ASKED: u32 = 2000;
    let network = network();
    let [one, two] = &*network.pods else { panic!("two pods") };
    let log = Log { rate: 50, ..LOG };
    let mut listening = FlowLog::open(log.group).unwrap();
    let mut nftables = Nftables::open().unwrap();
    nftables.apply(&state(Some(log))).unwrap();
    let server = two.udp(address("10.0.2.2"), 54);
    let client = one.udp(address("10.0.1.2"), 0);
    client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    server.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let refused = one.udp(address("10.0.1.2"), 0);
    let start = Instant::now();
    let (mut told, mut answered) = (0, 0);
    std::thread::scope(|scope| {
        let flood = scope.spawn(move || {
            for _ in 0..PACKETS {
                refused.send_to(b"?", "10.0.2.2:53").unwrap();
            }
        });
        scope.spawn(move || {
            for _ in 0..ASKED {
                let (length, from) = server.recv_from(&mut [0; 8]).unwrap();
                server.send_to(&[0; 8][..length], from).unwrap();
            }
        });
        let ask = scope.spawn(move || {
            for _ in 0..ASKED {
                client.send_to(b"?", "10.0.2.2:54").unwrap();
                client.recv_from(&mut [0; 8]).expect("what is allowed arrives");
            }
            ASKED
        });
        while !flood.is_finished() || !ask.is_finished() {
            told += listening.receive().unwrap().len() as u64;
        }
        answered = ask.join().unwrap();
    });
    let seconds = start.elapsed().as_secs() + 1;
    told += heard(&mut listening, 0).len() as u64;
    assert_eq!(answered, ASKED);
    let [_, ingress] = nftables.ended().unwrap().refused;
    assert_eq!(ingress.packets, PACKETS, "all are counted");
    assert_eq!(told + listening.lost(), ingress.told, "what was told came, or is known to be lost");
    let (burst, rate) = (25, 5);
    assert!(ingress.told >= burst, "{ingress:?}");
    assert!(ingress.told <= burst + rate * (seconds + 1), "{ingress:?} in {seconds} s");
    assert_eq!(nftables.differences().unwrap(), [], "what the kernel remembers is no difference");
}

/// Pod 1 floods, and of what pod 3 sends once is told all the same.
fn shares() {
    const PACKETS: u64 = 300;
    let network = Network::with_pods(3);
    let [one, two, three] = &*network.pods else { panic!("three pods") };
    for to in ["10.0.2.2", "fd00:2::2"].map(address) {
        let _listening = two.listen(to, 7);
        one.connect(to, 7);
        three.connect(to, 7);
    }
    let log = Log { rate: 10, ..LOG };
    let state = state(Some(log));
    let mut listening = FlowLog::open(log.group).unwrap();
    let mut nftables = Nftables::open().unwrap();
    nftables.apply(&state).unwrap();
    let start = Instant::now();
    for (from, third, to) in
        [("10.0.1.2", "10.0.3.2", "10.0.2.2"), ("fd00:1::2", "fd00:3::2", "fd00:2::2")]
    {
        // What is told of all together is there again.
        std::thread::sleep(Duration::from_secs(1));
        let flood = one.udp(address(from), 0);
        for _ in 0..PACKETS {
            flood.send_to(b"?", (address(to), 53)).unwrap();
        }
        send(three, third, 4001, to, 53);
    }
    let told = heard(&mut listening, 12);
    for (source, destination) in [("10.0.3.2", "10.0.2.2"), ("fd00:3::2", "fd00:2::2")] {
        let wanted = (INGRESS, headers(source, destination, (4001, 53)));
        assert!(told.contains(&wanted), "{source}: {told:?}");
    }
    let [_, ingress] = nftables.ended().unwrap().refused;
    assert_eq!(ingress.packets, 2 * (PACKETS + 1), "all are counted");
    assert_eq!(ingress.told, told.len() as u64);
    // Five at once and one a second, of each of the two.
    let seconds = start.elapsed().as_secs() + 1;
    assert!(told.len() as u64 <= 2 * (5 + seconds) + 2, "{} in {seconds} s", told.len());

    // What the kernel remembers is there, and in nobody's way.
    assert_eq!(nftables.compare(&state).unwrap(), []);
    let bytes = |nftables: &mut Nftables, state: &NodeState| nftables.apply(state).unwrap().bytes;
    assert_eq!(bytes(&mut nftables, &state), 0, "nothing is put there again");
    let open = NodeState {
        profiles: [(0, Profile::default()), (1, Profile::default())].into(),
        ..state.clone()
    };
    for next in [&open, &state] {
        nftables.apply(next).unwrap();
        nftables.tidy(true);
        assert_eq!(nftables.differences().unwrap(), []);
        assert_eq!(nftables.compare(next).unwrap(), []);
    }
}

fn many_sources() {
    const SOURCES: u32 = 20_000;
    let network = network();
    let [one, two] = &*network.pods else { panic!("two pods") };
    let _server = two.udp(address("10.0.2.2"), 53);
    let mut listening = FlowLog::open(LOG.group).unwrap();
    let mut nftables = Nftables::open().unwrap();
    nftables.apply(&state(Some(LOG))).unwrap();
    let sender = Sender::new(one);
    let from = |n: u32| {
        let source = IpAddr::V4((0x0b00_0000 + n).into());
        let ends = Ends { source, destination: address("10.0.2.2") };
        sender.send(ends.destination, &ends.packet(UDP, &ends.udp([9, 53], b"?")));
        source
    };
    (0..SOURCES).for_each(|n| _ = from(n));
    // Then what is told of all together is there again, too.
    while !listening.receive().unwrap().is_empty() {}
    let last = from(SOURCES);
    let told = heard(&mut listening, 1);
    assert!(told.iter().any(|(_, headers)| headers.source == last), "{told:?}");
    let [_, ingress] = nftables.ended().unwrap().refused;
    assert_eq!(ingress.packets, u64::from(SOURCES) + 1, "all are counted");
}

fn counts_last() {
    let network = network();
    let [one, _] = &*network.pods else { panic!("two pods") };
    let mut nftables = Nftables::open().unwrap();
    let mut closed = state(Some(LOG));
    closed.profiles.insert(1, Profile { ingress: Some([].into()), ..Profile::default() });
    let mut open = state(Some(LOG));
    open.profiles.insert(1, Profile::default());
    let other = state(Some(Log { rate: 5, ..LOG }));
    let mut refused = 0;
    for state in [state(Some(LOG)), closed, open, other, state(None)] {
        nftables.apply(&state).unwrap();
        send(one, "10.0.1.2", 4001, "10.0.2.2", 53);
        let is_open = state.profiles[&1].ingress.is_none();
        refused += u64::from(!is_open);
        let counted = std::iter::repeat_with(|| {
            nftables.tidy(true);
            nftables.ended().unwrap().refused.map(|tally| tally.packets)
        });
        // A packet may be on its way for a moment.
        let begin = Instant::now();
        let mut counted = counted.take_while(|_| begin.elapsed() < Duration::from_secs(20));
        assert!(counted.any(|counted| counted == [0, refused]), "{refused}: {state:?}");
    }
    assert_eq!(refused, 4);
}

fn listed() {
    let network = network();
    let mut nftables = Nftables::open().unwrap();
    nftables.apply(&state(Some(LOG))).unwrap();
    for (source, destination) in [("10.0.1.2", "10.0.2.2"), ("fd00:1::2", "fd00:2::2")] {
        send(&network.pods[0], source, 4001, destination, 53);
    }
    let mut sources = Sources::open().unwrap();
    sources.follow(&state(Some(LOG))).unwrap();
    let mut allowed = Allowed::open(LOG).unwrap();
    let pods: std::collections::BTreeSet<IpAddr> =
        [address("10.0.2.2"), address("fd00:2::2")].into();
    allowed.tell(&pods).unwrap();
    let text = nft(&["list", "ruleset"], "");
    let told = |prefix: &str| {
        format!(
            "limit rate 1000/second burst 1000 packets log prefix \"{prefix}\" group 7 snaplen 128 \
             counter packets"
        )
    };
    for line in [
        &*told("refused-ingress"),
        &told("refused-egress"),
        "update @heard4.1 { ip saddr limit rate over 100/second burst 500 packets } counter",
        "update @heard6.1 { ip6 saddr limit rate over 100/second burst 500 packets } counter",
        "update @heard { iif limit rate over 100/second burst 500 packets } counter",
        "elements = { 10.0.1.2 limit rate over 100/second burst 500 packets expires ",
        "elements = { fd00:1::2 limit rate over 100/second burst 500 packets expires ",
        &told("false-source"),
        &told("allowed"),
        "type filter hook forward priority filter + 1; policy accept;",
        "ct state new goto new",
        "ip saddr @pods4 goto allowed",
        "ip6 daddr @pods6 goto allowed",
    ] {
        assert!(text.lines().any(|found| found.trim().starts_with(line)), "{line}\n{text}");
    }
    nft(&["-j", "list", "ruleset"], "");
}

fn one_listener() {
    let first = FlowLog::open(LOG.group).unwrap();
    let error = FlowLog::open(LOG.group).unwrap_err();
    assert_eq!(error.errno(), Some(nix::errno::Errno::EPERM as i32), "{error}");
    drop(first);
    FlowLog::open(LOG.group).unwrap();
}
