//! The data plane against this machine's kernel, without root: in a user namespace, and for each
//! test a network namespace of its own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that clippy does not take for one, as it has no harness"
)]

mod broken;
mod connections;
mod flow_log;
mod network;
mod packets;
#[path = "../random/mod.rs"]
mod random;
mod raw;
mod sources;

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

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
use portcullis_dataplane::state::{Addresses, Entry, NodeState, PeerSet, Ports, Profile};
use portcullis_dataplane::{Connections, Dataplane, Error, Fake, Nftables};
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
        with_nft("updates_lead_to_what_the_text_means", updates),
        in_namespace("what_is_sent_is_in_proportion_to_the_change", proportional),
        with_nft("elements_that_need_many_messages_all_arrive", many_elements),
        with_nft("what_is_put_there_in_many_sends_is_what_the_text_means", in_pieces),
        with_nft("what_a_process_that_died_left_behind_is_replaced_and_removed", left_behind),
        in_namespace("a_pod_that_comes_or_goes_is_an_element_in_each_set", one_pod_more),
        in_namespace("what_was_applied_is_found_again_as_it_was", nothing_changed),
        in_namespace("our_other_tables_are_no_reason_to_read_all_of_the_first", our_other_tables),
        with_nft("what_somebody_else_changed_is_told_and_the_next_apply_mends_it", drift),
        in_namespace("hits_survive_whatever_is_applied", hits_last),
        in_namespace("real_packets_pass_as_the_fake_says_and_are_counted", packets),
        in_namespace("a_known_connection_survives_a_new_state", known_connection),
        in_namespace("isolated_pods_on_one_bridge_find_each_other_over_ipv6", neighbours),
        in_namespace("no_refused_packet_passes_while_local_pods_change", || {
            flood_between(local_pods())
        }),
        in_namespace("no_refused_packet_passes_while_a_pod_comes_and_goes", || {
            flood_between(pod_comes())
        }),
        in_namespace("no_refused_packet_passes_while_remote_pods_change", || {
            flood_between(remote_pods())
        }),
        in_namespace("no_refused_packet_passes_while_both_ends_change", || {
            flood_between(both_ends())
        }),
        in_namespace("no_refused_packet_passes_while_rules_and_sets_change", || {
            flood_between(rules_and_sets())
        }),
        in_namespace("no_refused_packet_passes_while_a_pod_leaves_a_profile", || {
            flood_between(profile_left())
        }),
        in_namespace("it_is_one_state_or_the_other_and_never_both_or_neither", broken::flips),
        in_namespace("a_pod_that_gets_other_policies_is_never_half_of_each", broken::policies_flip),
        in_namespace(
            "whatever_message_is_the_last_nothing_opens_and_the_next_goes_on",
            broken::off,
        ),
        in_namespace("an_address_that_is_not_programmed_yet_is_closed_both_ways", unprogrammed),
        in_namespace("the_kernel_s_refusal_names_the_request_and_the_reason", refusal),
    ];
    let tests = tests.into_iter();
    let tests = tests
        .chain(connections::tests())
        .chain(flow_log::tests())
        .chain(sources::tests())
        .chain(packets::tests());
    let tests = tests.collect();
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

/// The ruleset as JSON, without handles and generations, and with unordered things in order.
fn listed() -> Value {
    let mut ruleset = serde_json::from_str(&nft(&["-j", "list", "ruleset"], "")).unwrap();
    normalize(&mut ruleset);
    let Value::Object(mut ruleset) = ruleset else { panic!("not an object") };
    let mut objects: Vec<_> = ruleset.remove("nftables").unwrap().as_array().unwrap().clone();
    // Rules keep their order within a chain: a stable sort by kind and names.
    objects.sort_by_key(|object| {
        let (kind, object) = object.as_object().unwrap().iter().next().unwrap();
        format!("{kind} {} {}", object["chain"], object["name"])
    });
    Value::Array(objects)
}

fn normalize(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.remove("handle");
            fields.values_mut().for_each(normalize);
            if let Some(Value::Array(elements)) = fields.get_mut("elem") {
                elements.sort_by_key(Value::to_string);
            }
        }
        Value::Array(values) => values.iter_mut().for_each(normalize),
        // Names have one full stop, addresses and versions more.
        Value::String(text) => {
            if let Some((name, generation)) = text.split_once('.')
                && generation.parse::<u32>().is_ok()
            {
                *text = name.to_owned();
            }
        }
        _ => {}
    }
}

/// What is listed after `nft` itself read the rendered text.
fn listed_from_text(state: &NodeState) -> Value {
    nft(&["-f", "-"], &format!("table inet {TABLE}\ndelete table inet {TABLE}"));
    nft(&["-f", "-"], &render(&plan(state).unwrap()));
    listed()
}

fn nft_lists_what_the_text_means() {
    let mut nftables = Nftables::open().unwrap();
    for state in states(40) {
        nftables.apply(&state).unwrap();
        nftables.tidy(true);
        assert_eq!(listed(), listed_from_text(&state), "{state:?}");
        // What `nft` put there is not ours.
        assert_ne!(nftables.differences().unwrap(), []);
    }
}

/// Each state is the one before with other peers, and at times other pods.
fn neighbouring_states(count: usize) -> Vec<NodeState> {
    let all: Vec<_> = states(count).collect();
    let mut current = all[0].clone();
    let mut neighbours = vec![current.clone()];
    for (i, other) in all.iter().enumerate().skip(1) {
        for (number, peers) in &other.peers {
            if let (Some(PeerSet::Addresses(mine)), PeerSet::Addresses(theirs)) =
                (current.peers.get_mut(number), peers)
            {
                for (n, address) in theirs.iter().enumerate().take(30) {
                    match n % 3 {
                        0 => _ = mine.remove(address),
                        _ => _ = mine.insert(address),
                    }
                }
            }
        }
        if i % 5 == 0 {
            let profiles: Vec<u32> = current.profiles.keys().copied().collect();
            for (address, profile) in &other.endpoints {
                current.endpoints.insert(*address, profiles[*profile as usize % profiles.len()]);
            }
        }
        if i % 11 == 0 {
            current.endpoints.pop_first();
        }
        if i % 17 == 0 {
            current = other.clone();
        }
        neighbours.push(current.clone());
    }
    neighbours
}

fn updates() {
    let mut nftables = Nftables::open().unwrap();
    let (mut sent, mut there) = (0, 0);
    for state in neighbouring_states(40) {
        let report = nftables.apply(&state).unwrap();
        nftables.tidy(true);
        let plan = plan(&state).unwrap();
        sent += report.elements;
        there += plan.sets.values().map(|set| set.len()).sum::<usize>();
        assert_eq!(nftables.differences().unwrap(), [], "{state:?}");
        let ours = listed();
        // In another table, so that ours stays.
        let text = render(&plan).replace(&format!("table inet {TABLE} "), "table inet other ");
        nft(&["-f", "-"], &text);
        nft(&["-f", "-"], "delete table inet other");
        assert_eq!(ours, listed());
        assert_eq!(Nftables::open().unwrap().compare(&state).unwrap(), [], "{state:?}");
    }
    assert!(sent * 2 < there, "{sent} elements were sent where {there} are");
}

/// One more address elsewhere is one more element in each set that it belongs to.
fn proportional() {
    let many = (0..50_000u32).map(|n| IpAddr::V4((0x0b00_0000 + n).into()));
    let mut large: Addresses = many.collect();
    let mut small: Addresses = [address("10.9.0.1")].into_iter().collect();
    let rules = [
        Entry { peers: Some(0), ports: ports(Protocol::Tcp, 80, 80), origin: 0 },
        Entry { peers: Some(1), ports: ports(Protocol::Tcp, 81, 81), origin: 1 },
        Entry { peers: Some(1), ports: None, origin: 2 },
    ];
    let profiles: std::collections::BTreeMap<_, _> =
        [(0, Profile { ingress: Some(rules.into()), ..Profile::default() })].into();
    let state = |large: &Addresses, small: &Addresses| NodeState {
        endpoints: [(address("10.0.2.2"), 0)].into(),
        profiles: profiles.clone().into(),
        peers: [(0, PeerSet::Addresses(large.clone())), (1, PeerSet::Addresses(small.clone()))]
            .into(),
        ..NodeState::default()
    };
    let mut nftables = Nftables::open().unwrap();
    nftables.apply(&state(&large, &small)).unwrap();
    for (add, wanted) in [(true, 3), (false, 3)] {
        for set in [&mut large, &mut small] {
            match add {
                true => set.insert(address("10.9.0.7")),
                false => set.remove(address("10.9.0.7")),
            };
        }
        let report = nftables.apply(&state(&large, &small)).unwrap();
        assert_eq!(report.elements, wanted);
        assert!(report.bytes < 800, "{} bytes", report.bytes);
    }
    let report = nftables.apply(&state(&large, &small)).unwrap();
    assert_eq!((report.elements, report.bytes), (0, 0), "nothing is new");
    assert_eq!(nftables.differences().unwrap(), []);
}

/// The pod is known of by its address, as isolated in both directions, as reaching itself, and as a
/// peer, all of which hundreds are, and as one that changed. Its profile is another one's too.
fn one_pod_more() {
    let pods = |count: u32| (0..count).map(|n| IpAddr::V4((0x0a00_0100 + n).into()));
    let rules = [Entry { peers: Some(0), ports: ports(Protocol::Tcp, 80, 80), origin: 0 }];
    let profile =
        Profile { ingress: Some(rules.into()), egress: Some(rules.into()), ..Profile::default() };
    let state = |count| NodeState {
        ranges: ["10.0.0.0/16".parse::<IpNet>().unwrap().into()].into(),
        endpoints: pods(count).map(|address| (address, 0)).collect(),
        profiles: [(0, profile.clone())].into(),
        peers: [(0, PeerSet::Addresses(pods(count).collect()))].into(),
        ..NodeState::default()
    };
    let mut nftables = Nftables::open().unwrap();
    nftables.apply(&state(300)).unwrap();
    for count in [301, 300] {
        let report = nftables.apply(&state(count)).unwrap();
        assert_eq!(report.elements, 6);
        // The base chain, of which each rule says what it looks for.
        assert!(report.bytes < 6000, "{} bytes", report.bytes);
        nftables.tidy(true);
        assert_eq!(Nftables::open().unwrap().compare(&state(count)).unwrap(), []);
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
            .map(|(id, set)| format!("\t{} {id}.", if set.map { "map" } else { "set" }));
        let chains = plan.chains.keys().skip(1).map(|id| format!("\tchain {id}."));
        for line in sets.chain(chains) {
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

fn addresses(texts: &[&str]) -> PeerSet {
    PeerSet::Addresses(texts.iter().map(|text| address(text)).collect())
}

fn ports(protocol: Protocol, first: u16, last: u16) -> Option<Ports> {
    Some(Ports { protocol, first, last })
}

fn many_elements() {
    // One address allowed on each of many ports, in both families.
    let entry = |port| Entry { peers: Some(0), ports: ports(Protocol::Tcp, port, port), origin: 0 };
    let state = NodeState {
        endpoints: [(address("10.0.0.1"), 0)].into(),
        profiles: [(
            0,
            Profile { ingress: Some((0..5000).map(entry).collect()), ..Profile::default() },
        )]
        .into(),
        peers: [(0, addresses(&["10.0.0.2", "fd00::2"]))].into(),
        ..NodeState::default()
    };
    let mut nftables = Nftables::open().unwrap();
    let report = nftables.apply(&state).unwrap();
    assert_eq!(report.elements, 10_002);
    let held = |object: &Value| object["set"]["elem"].as_array().map_or(0, Vec::len);
    assert_eq!(listed().as_array().unwrap().iter().map(held).max(), Some(5000));
}

fn in_pieces() {
    let mut socket = NetlinkSocket::open(NETLINK_NETFILTER).unwrap();
    socket.set_send_limit(20_000).unwrap();
    let limit = socket.send_limit().unwrap();
    let mut nftables = Nftables::over(socket);
    let mut large = 0;
    for state in states(40) {
        let report = nftables.apply(&state).unwrap();
        nftables.tidy(true);
        large += usize::from(report.bytes > limit);
        assert_eq!(nftables.hits().unwrap(), []);
        assert_eq!(listed(), listed_from_text(&state), "{state:?}");
        assert_ne!(nftables.differences().unwrap(), []);
    }
    assert!(large > 10, "only {large} states needed more than one send");
}

/// The names in the kernel, as they are.
fn names() -> Vec<String> {
    let text = nft(&["list", "table", "inet", TABLE], "");
    let object = |line: &str| {
        let line = line.strip_suffix(" {")?.trim();
        let (kind, name) = line.split_once(' ')?;
        ["chain", "set", "map"].contains(&kind).then(|| name.to_owned())
    };
    text.lines().filter_map(object).collect()
}

fn left_behind() {
    let states: Vec<_> = states(12).collect();
    for (before, after) in states.iter().zip(&states[1..]) {
        Nftables::open().unwrap().apply(before).unwrap();
        // What the next one prepared, in part, and what one before it could not remove.
        for generation in [2, 7] {
            let leftover = format!(
                "table inet {TABLE} {{
                    chain p00000000-egress.{generation} {{
                    }}
                    map egress4.{generation} {{
                        type ipv4_addr : verdict
                        elements = {{ 10.0.0.1 : jump p00000000-egress.{generation} }}
                    }}
                    chain p00000001-egress.{generation} {{
                        ip saddr vmap @egress4.{generation}
                    }}
                }}"
            );
            nft(&["-f", "-"], &leftover);
        }
        let mut nftables = Nftables::open().unwrap();
        nftables.apply(after).unwrap();
        nftables.tidy(true);
        let names = names();
        let others: Vec<_> =
            names.iter().filter(|name| *name != "forward" && !name.ends_with(".8")).collect();
        assert!(names.len() > 1 && others.is_empty(), "{names:?}");
        assert_eq!(listed(), listed_from_text(after), "{after:?}");
        Nftables::open().unwrap().remove().unwrap();
    }
}

fn nothing_changed() {
    let mut nftables = Nftables::open().unwrap();
    assert_eq!(nftables.differences().unwrap(), [], "before anything was applied");
    let states: Vec<_> = states(60).collect();
    for (state, next) in states.iter().zip(&states[1..]) {
        nftables.apply(state).unwrap();
        assert_eq!(nftables.differences().unwrap(), [], "{state:?}");
        nftables.tidy(true);
        assert_eq!(nftables.differences().unwrap(), [], "asked again");
        assert_eq!(Nftables::open().unwrap().compare(state).unwrap(), [], "asked by another");
        if render(&plan(state).unwrap()) != render(&plan(next).unwrap()) {
            assert_ne!(nftables.compare(next).unwrap(), [], "{next:?}");
        }
    }
}

/// Another thread changes our other tables all the time.
fn our_other_tables() {
    let mut nftables = Nftables::open().unwrap();
    let mut connections = Connections::open().unwrap();
    let (one, other) = (two_pods(), NodeState::default());
    nftables.apply(&one).unwrap();
    let changing = thread::spawn(move || (0..1000).for_each(|_| connections.remove().unwrap()));
    while !changing.is_finished() {
        for state in [&other, &one] {
            nftables.apply(state).unwrap();
            assert_eq!(nftables.differences().unwrap(), []);
        }
    }
    assert_eq!(nftables.listings(), 0, "what is ours is no reason to read all of the table");
}

fn drift() {
    let mut nftables = Nftables::open().unwrap();
    let state = two_pods();
    nftables.apply(&state).unwrap();
    let said = |nftables: &mut Nftables| -> Vec<String> {
        nftables.differences().unwrap().iter().map(ToString::to_string).collect()
    };
    nft(&["-f", "-"], "table inet other { chain c { counter; }; set s { type ipv4_addr; }; }");
    nft(&["-f", "-"], "table ip portcullis { chain forward { drop; }; }");
    assert_eq!(said(&mut nftables), [""; 0], "tables of others");
    assert_eq!(nftables.listings(), 0, "what others do elsewhere is nothing to look after");
    // Far more than is kept for who does not read.
    for thousand in 0..20 {
        let many = (0..1000).map(|n| Ipv4Addr::from(0x0a00_0000 + 1000 * thousand + n).to_string());
        let many = many.collect::<Vec<_>>().join(", ");
        nft(&["-f", "-"], &format!("add element inet other s {{ {many} }}"));
    }
    assert_eq!(said(&mut nftables), [""; 0], "much in tables of others");
    let looked = nftables.listings();
    nft(&["-f", "-"], "add element inet other s { 10.9.0.1 }");
    assert_eq!(said(&mut nftables), [""; 0]);
    assert_eq!(nftables.listings(), looked, "it listens on");
    assert!(looked > 0, "all of that was heard: it is not what this is a test of");

    let ours = |kind: &str, start: &str| {
        let listed = nft(&["list", "table", "inet", TABLE], "");
        let lines =
            listed.lines().filter_map(|line| line.trim().strip_prefix(kind)?.strip_suffix(" {"));
        lines.map(str::trim).find(|name| name.starts_with(start)).unwrap().to_owned()
    };
    type Edit<'a> = &'a dyn Fn() -> String;
    let edits: [(Edit<'_>, &[&str]); 9] = [
        (&|| "flush ruleset".to_owned(), &["the table is missing"]),
        (&|| "delete table inet portcullis".to_owned(), &["the table is missing"]),
        (
            &|| format!("delete element inet {TABLE} {} {{ 10.0.2.2 }}", ours("map", "ingress4")),
            &["set ingress4: 1 elements are missing, 0 do not belong there"],
        ),
        (
            &|| format!("flush set inet {TABLE} {}", ours("set", "p00000000-ingress-exact4")),
            &["set p00000000-ingress-exact4: 1 elements are missing, 0 do not belong there"],
        ),
        (
            &|| {
                let set = ours("set", "p00000000-ingress-exact4");
                format!("add element inet {TABLE} {set} {{ 10.9.9.9 . tcp . 80 }}")
            },
            &["set p00000000-ingress-exact4: 0 elements are missing, 1 do not belong there"],
        ),
        (
            &|| format!("flush chain inet {TABLE} {}", ours("chain", "p00000000-ingress.")),
            &["chain p00000000-ingress is not as it should be"],
        ),
        (
            &|| format!("insert rule inet {TABLE} forward accept"),
            &["chain forward is not as it should be"],
        ),
        (
            &|| {
                let hook = "type filter hook forward priority 0";
                format!("add chain inet {TABLE} mine {{ {hook}; policy drop; }}")
            },
            &["chain mine does not belong there"],
        ),
        (&|| format!("add table inet {TABLE} {{ flags dormant; }}"), &["the table is dormant"]),
    ];
    for (edit, wanted) in edits {
        let edit = edit();
        nft(&["-f", "-"], &edit);
        assert_eq!(said(&mut nftables), wanted, "{edit}");
        assert_eq!(said(&mut nftables), wanted, "{edit}, asked again");
        nftables.apply(&state).unwrap();
        assert_eq!(said(&mut nftables), [""; 0], "{edit}, mended, and the old is still there");
        nftables.tidy(true);
        assert_eq!(said(&mut nftables), [""; 0], "{edit}, mended");
        nft(&["-f", "-"], "table inet other { chain c { counter; }; }");
        assert_eq!(said(&mut nftables), [""; 0], "{edit}, and others go on");
    }
    nft(&["-f", "-"], &format!("delete table inet {TABLE}"));
    nft(&["-f", "-"], "flush ruleset");
    // Nobody has looked, and an update is refused.
    nftables.apply(&NodeState::default()).unwrap();
    nftables.apply(&state).unwrap();
    nftables.tidy(true);
    assert_eq!(said(&mut nftables), [""; 0]);
    assert_eq!(listed(), listed_from_text(&state));
}

fn hits_last() {
    let network = Network::with_pods(2);
    let (client, server) = (&network.pods[0], &network.pods[1]);
    let mut nftables = Nftables::open().unwrap();
    nftables.apply(&two_pods()).unwrap();
    let ask = |port: u16| {
        let udp = server.udp(address("10.0.2.2"), port);
        client.udp(address("10.0.1.2"), 0).send_to(b"?", ("10.0.2.2", port)).unwrap();
        udp.recv_from(&mut [0; 8]).unwrap();
    };
    let count = |nftables: &mut Nftables| -> Vec<(u32, u64)> {
        nftables.hits().unwrap().iter().map(|h| (h.origin, h.packets)).collect()
    };
    // Origin 2 by the counter of a rule, 7 by that of an element.
    let mut state = two_pods();
    let entry = |peers, port, origin| Entry {
        peers: Some(peers),
        ports: ports(Protocol::Udp, port, port),
        origin,
    };
    let with = |state: &mut NodeState, more: &[Entry]| {
        let profile = state.profiles.get_mut(&0).unwrap();
        let udp = Entry { peers: None, ports: ports(Protocol::Udp, 53, 53), origin: 2 };
        profile.ingress = Some([udp].iter().chain(more).copied().collect());
    };
    with(&mut state, &[entry(0, 54, 7)]);
    nftables.apply(&state).unwrap();
    ask(53);
    ask(54);
    assert_eq!(count(&mut nftables), [(2, 1), (7, 1)]);

    // The element counts for another one too from now on.
    with(&mut state, &[entry(0, 54, 7), entry(0, 54, 8)]);
    nftables.apply(&state).unwrap();
    assert_eq!(count(&mut nftables), [(2, 1), (7, 1)]);
    ask(54);
    assert_eq!(count(&mut nftables), [(2, 1), (7, 2), (8, 1)]);

    // An element goes in place, and then everything.
    state.peers.insert(0, addresses(&["10.0.1.2"]));
    nftables.apply(&state).unwrap();
    ask(53);
    assert_eq!(count(&mut nftables), [(2, 2), (7, 2), (8, 1)]);
    state.peers.insert(0, addresses(&["10.0.1.9"]));
    nftables.apply(&state).unwrap();
    assert_eq!(count(&mut nftables), [(2, 2), (7, 2), (8, 1)]);
    with(&mut state, &[]);
    nftables.apply(&state).unwrap();
    ask(53);
    assert_eq!(count(&mut nftables), [(2, 3), (7, 2), (8, 1)]);
    nftables.tidy(true);
    assert_eq!(count(&mut nftables), [(2, 3), (7, 2), (8, 1)]);

    // An update that is refused, because somebody else has been there, ends nothing.
    state.endpoints.insert(address("10.0.2.3"), 0);
    nftables.apply(&state).unwrap();
    let sets = nft(&["list", "sets", "table", "inet", TABLE], "");
    let own = sets.split_whitespace().find(|word| word.starts_with("self4.")).unwrap();
    let gone = format!("delete element inet {TABLE} {own} {{ 10.0.2.3 . 10.0.2.3 }}");
    nft(&["-f", "-"], &gone);
    state.endpoints.remove(&address("10.0.2.3"));
    nftables.apply(&state).unwrap();
    assert_eq!(count(&mut nftables), [(2, 3), (7, 2), (8, 1)]);
    nftables.tidy(true);
    assert_eq!(count(&mut nftables), [(2, 3), (7, 2), (8, 1)]);
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
        profiles: [(0, Profile { ingress: Some(ingress.into()), ..Profile::default() })].into(),
        peers: [
            (0, addresses(&["10.0.1.2", "fd00:1::2"])),
            (1, PeerSet::Ranges([block("10.0.1.0/24"), block("10.0.7.0/24")].into())),
            (2, PeerSet::Ranges([block("fd00:1::/64")].into())),
        ]
        .into(),
        ..NodeState::default()
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
        assert!(client.connects(address(to), port, true), "{to} {port} without policies");
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
        let wanted = fake.passes(&packet);
        assert_eq!(client.connects(destination, port, wanted), wanted, "{to} {port}");
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
    closed.profiles.insert(0, Profile { ingress: Some([].into()), ..Profile::default() });
    nftables.apply(&closed).unwrap();
    asking.send_to(b"?", "10.0.2.2:53").unwrap();
    socket.recv_from(&mut [0; 8]).expect("the known connection goes on");
    let other = client.udp(address("10.0.1.2"), 0);
    other.send_to(b"?", "10.0.2.2:53").unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    socket.recv_from(&mut [0; 8]).expect_err("a new connection is refused");
}

/// Pod 2 allows TCP port 80 alone. It is asked for its link address first.
fn neighbours() {
    let Some([client, server]) = network::two_pods_on_a_bridge() else {
        eprintln!("not tested: net.bridge.bridge-nf-call-ip6tables cannot be set here");
        return;
    };
    let (one, two) = (address("fd00::1"), address("fd00::2"));
    let allowed =
        |peer| Entry { peers: Some(peer), ports: ports(Protocol::Tcp, 80, 80), origin: 0 };
    let profile = |peer| Profile {
        ingress: Some([allowed(peer)].into()),
        egress: Some([allowed(peer)].into()),
        ..Profile::default()
    };
    let state = NodeState {
        endpoints: [(one, 0), (two, 1)].into(),
        profiles: [(0, profile(1)), (1, profile(0))].into(),
        peers: [(0, addresses(&["fd00::1"])), (1, addresses(&["fd00::2"]))].into(),
        ..NodeState::default()
    };
    Nftables::open().unwrap().apply(&state).unwrap();
    let _listeners = [80, 81].map(|port| server.listen(two, port));
    assert!(client.connects(two, 80, true), "the neighbour is not found");
    assert!(!client.connects(two, 81, false), "bridged packets do not come to the hook");
}

/// Pod 1 floods ports 53 and 54 of pod 2 while two states follow each other. Both refuse port 53
/// and allow port 54.
fn flood_between(states: [NodeState; 2]) {
    let network = Network::with_pods(2);
    let (client, server) = (&network.pods[0], &network.pods[1]);
    let mut nftables = Nftables::open().unwrap();
    nftables.apply(&states[0]).unwrap();

    let [refused, allowed] = [53, 54].map(|port| server.udp(address("10.0.2.2"), port));
    let arrived =
        |socket: &UdpSocket| std::iter::from_fn(|| socket.recv_from(&mut [0; 8]).ok()).count();
    refused.set_nonblocking(true).unwrap();
    allowed.set_nonblocking(true).unwrap();
    let end = AtomicBool::new(false);
    let (mut applies, mut passed, mut leaked) = (0, 0, 0);
    thread::scope(|scope| {
        for port in [53, 54] {
            let (socket, end) = (client.udp(address("10.0.1.2"), 0), &end);
            scope.spawn(move || {
                while !end.load(Relaxed) {
                    let _ = socket.send_to(b"?", (address("10.0.2.2"), port));
                }
            });
        }
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(2) {
            applies += 1;
            nftables.apply(&states[applies % 2]).unwrap();
            nftables.tidy(false);
            passed += arrived(&allowed);
            leaked += arrived(&refused);
        }
        end.store(true, Relaxed);
    });
    leaked += arrived(&refused);
    assert!(passed > 100, "{passed} allowed packets in {applies} applies show nothing");
    assert_eq!(leaked, 0, "refused packets that arrived during {applies} applies");
}

fn udp(peers: Option<u32>, first: u16, last: u16) -> Entry {
    Entry { peers, ports: ports(Protocol::Udp, first, last), origin: 0 }
}

fn node_state(
    endpoints: &[(&str, u32)],
    profiles: &[(&[Entry], Option<&[Entry]>)],
    peers: &[PeerSet],
) -> NodeState {
    let profile = |(ingress, egress): &(&[Entry], Option<&[Entry]>)| Profile {
        ingress: Some((*ingress).into()),
        egress: egress.map(Into::into),
        ..Profile::default()
    };
    NodeState {
        endpoints: endpoints.iter().map(|(text, profile)| (address(text), *profile)).collect(),
        profiles: (0..).zip(profiles.iter().map(profile)).collect(),
        peers: (0..).zip(peers.iter().cloned()).collect(),
        ..NodeState::default()
    }
}

const ONE: &str = "10.0.1.2";
const TWO: &str = "10.0.2.2";

/// The client's address is closed while it is no pod's. It may open less than the other end takes.
fn pod_comes() -> [NodeState; 2] {
    let everything = [Entry { peers: Some(0), ports: None, origin: 0 }];
    let (nothing, allowed): (&[Entry], _) = (&[], [udp(None, 54, 54)]);
    let state = |pods: &[(&str, u32)], peers: &[&str]| NodeState {
        ranges: ["10.0.0.0/16".parse::<IpNet>().unwrap().into()].into(),
        ..node_state(
            pods,
            &[(&everything, None), (nothing, Some(&allowed))],
            &[addresses(&[&["10.7.0.1"], peers].concat())],
        )
    };
    // Another one stays in the profile.
    let stays = [(TWO, 0), ("10.0.3.2", 1)];
    [state(&stays, &[]), state(&[&stays[..], &[(ONE, 1)]].concat(), &[ONE])]
}

/// More are allowed, and fewer: what changes is about local pods.
fn local_pods() -> [NodeState; 2] {
    let state = |more: u16| {
        let allowed: Vec<Entry> = (54..=54 + more).map(|port| udp(Some(0), port, port)).collect();
        let mut state =
            node_state(&[(TWO, 0), (ONE, 1)], &[(&allowed, None)], &[addresses(&[ONE])]);
        state.profiles.insert(1, Profile::default());
        state
    };
    [state(0), state(200)]
}

/// The client is elsewhere; elements of others come and go in place, beside its own.
fn remote_pods() -> [NodeState; 2] {
    let far: Vec<String> = (0..200).map(|n| format!("10.7.0.{n}")).collect();
    let far: Vec<&str> = far.iter().map(String::as_str).chain([ONE]).collect();
    let rules = [udp(Some(0), 54, 54), udp(Some(1), 53, 53), udp(Some(1), 54, 54)];
    let state = |peers: &[&str]| {
        node_state(&[(TWO, 0)], &[(&rules, None)], &[addresses(&[ONE]), addresses(peers)])
    };
    [state(&far[..1]), state(&far[..200])]
}

/// One end opens while the other one closes.
fn both_ends() -> [NodeState; 2] {
    let state = |egress: &[&str], ingress: &[&str]| {
        let out = [udp(Some(0), 53, 53), udp(None, 54, 54)];
        let into = [udp(Some(1), 53, 53), udp(None, 54, 54)];
        let nothing: &[Entry] = &[];
        node_state(
            &[(ONE, 0), (TWO, 1)],
            &[(nothing, Some(&out)), (&into, None)],
            &[addresses(egress), addresses(ingress)],
        )
    };
    [state(&[TWO, "10.7.0.1"], &["10.7.0.1"]), state(&["10.7.0.1"], &[ONE, "10.7.0.1"])]
}

/// The rules change, and so does the set that they look into.
fn rules_and_sets() -> [NodeState; 2] {
    let many = || (0..600u32).map(|n| IpAddr::V4((0x0b00_0000 + n).into()));
    let without = PeerSet::Addresses(many().collect());
    let with = PeerSet::Addresses(many().chain([address(ONE)]).collect());
    let every_port = [Entry { peers: Some(0), ports: None, origin: 0 }, udp(None, 54, 54)];
    let some_ports = [udp(Some(0), 80, 90), udp(None, 54, 54)];
    [
        node_state(&[(TWO, 0)], &[(&every_port, None)], &[without]),
        node_state(&[(TWO, 0)], &[(&some_ports, None)], &[with]),
    ]
}

/// The pod leaves a profile whose set gets the client just then.
fn profile_left() -> [NodeState; 2] {
    let wide = [Entry { peers: Some(0), ports: None, origin: 0 }, udp(None, 54, 54)];
    let narrow = [udp(None, 54, 54)];
    let profiles: [(&[Entry], _); 2] = [(&wide, None), (&narrow, None)];
    let other = "10.0.3.2";
    [
        node_state(&[(TWO, 0), (other, 0)], &profiles, &[addresses(&["10.7.0.1"])]),
        node_state(&[(TWO, 1), (other, 0)], &profiles, &[addresses(&["10.7.0.1", ONE])]),
    ]
}

/// Pod 1 is programmed, pod 2 is not, and pod 3 is not of this node's ranges.
fn unprogrammed() {
    let network = Network::with_pods(3);
    let addresses = |n: u8| [format!("10.0.{n}.2"), format!("fd00:{n}::2")].map(|a| address(&a));
    let ranges = ["10.0.1.0/24", "10.0.2.0/24", "fd00:1::/64", "fd00:2::/64"];
    let closed = NodeState {
        endpoints: addresses(1).into_iter().map(|address| (address, 0)).collect(),
        ranges: ranges.iter().map(|range| range.parse::<IpNet>().unwrap().into()).collect(),
        profiles: [(0, Profile::default())].into(),
        ..NodeState::default()
    };
    let open = NodeState { ranges: Vec::new(), ..closed.clone() };
    let mut programmed = closed.clone();
    programmed.endpoints.extend(addresses(2).into_iter().map(|address| (address, 0)));

    let listeners: Vec<_> = (1..=3)
        .zip(&network.pods)
        .flat_map(|(n, pod)| addresses(n).map(|address| pod.listen(address, 80)))
        .collect();
    let pairs = || (1..=3).flat_map(|from| (1..=3).map(move |to| (from, to)));
    let pairs = || pairs().filter(|(from, to)| from != to);
    for (from, to) in pairs() {
        for to in addresses(to) {
            let pod = &network.pods[usize::from(from) - 1];
            assert!(pod.connects(to, 80, true), "{from} -> {to} without rules");
        }
    }
    let mut nftables = Nftables::open().unwrap();
    let mut fake = Fake::new();
    for (state, known) in [(open, true), (closed, false), (programmed, true)] {
        nftables.apply(&state).unwrap();
        fake.apply(&state).unwrap();
        for (from, to) in pairs() {
            for (source, destination) in addresses(from).into_iter().zip(addresses(to)) {
                let wanted = known || from != 2 && to != 2;
                let place = format!("{source} -> {destination}, {state:?}");
                let pod = &network.pods[usize::from(from) - 1];
                assert_eq!(pod.connects(destination, 80, wanted), wanted, "{place}");
                let packet = portcullis_dataplane::Packet {
                    source,
                    destination,
                    protocol: Protocol::Tcp.number(),
                    port: Some(80),
                    bytes: 60,
                };
                assert_eq!(fake.passes(&packet), wanted, "the fake: {place}");
            }
        }
        for to in (1..=3).flat_map(addresses) {
            let connected = std::net::TcpStream::connect((to, 80));
            assert!(connected.is_ok(), "{to} from its own node");
        }
    }
    drop(listeners);
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
