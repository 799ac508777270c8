//! Real packets through real labs.
//!
//! Labs need a process that is single-threaded when it enters its namespaces, so this has a `main`
//! of its own. What has to be seen from outside, the end of a lab, comes first; then this process
//! enters namespaces, and everything else runs inside.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{env, error, process, thread};

use libtest_mimic::{Arguments, Trial};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use portcullis_core::model::{Cluster, IpBlock, Peer, Pod, Policy, Rule};
use portcullis_core::net::{Family, Protocol, Traffic};
use portcullis_dataplane::state::{Entry, NodeState, PeerSet, Ports, Profile};
use portcullis_dataplane::{Dataplane, Nftables};
use portcullis_lab::{
    Control, Error, Event, Families, Kind, Lab, Options, Outcome, Plan, Probe, Topology, enter,
    plan,
};
use socket2::{Domain, Socket, Type};

type Result<T = ()> = std::result::Result<T, Box<dyn error::Error>>;

fn main() -> Result {
    if let Some(name) = env::var_os(HOLD) {
        return hold_a_lab(&name.to_string_lossy());
    }
    let arguments = Arguments::from_args();
    let killed = a_killed_lab_leaves_nothing().map_err(|e| e.to_string());
    let ended = a_lab_ends_cleanly_on_sigterm().map_err(|e| e.to_string());
    enter()?;
    let test = |name: &str, test: fn() -> Result| {
        Trial::test(name, move || test().map_err(|e| e.to_string().into()))
    };
    let trials = vec![
        Trial::test("a_killed_lab_leaves_nothing", move || Ok(killed?)),
        Trial::test("a_lab_ends_cleanly_on_sigterm", move || Ok(ended?)),
        test("without_rules_everybody_answers_everybody", without_rules_everybody_answers),
        test("rules_in_a_node_silence_what_they_drop_and_no_more", rules_silence_what_they_drop),
        test("pods_on_a_bridge_answer_and_are_silenced_as_well", pods_on_a_bridge_answer_as_well),
        test("a_bridge_that_asks_no_rules_is_told", a_bridge_that_asks_no_rules_is_told),
        test("an_echo_reply_is_its_senders", an_echo_reply_is_its_senders),
        test("a_closed_port_is_refused_by_a_live_host", a_closed_port_is_refused),
        test("listening_anew_closes_what_is_not_named", listening_anew_closes),
        test("a_host_network_pod_is_its_node", a_host_network_pod_is_its_node),
        test("a_lab_may_have_one_family", a_lab_may_have_one_family),
        test("too_many_ports_are_refused_and_as_many_as_fit_are_not", too_many_ports_are_refused),
        test(
            "a_node_that_is_not_there_cannot_be_entered",
            a_node_that_is_not_there_cannot_be_entered,
        ),
        test("a_process_with_threads_cannot_enter", a_process_with_threads_cannot_enter),
    ];
    libtest_mimic::run(&arguments, trials).exit()
}

fn without_rules_everybody_answers() -> Result {
    everybody_answers(&small(Families::Both)?)
}

fn pods_on_a_bridge_answer_as_well() -> Result {
    let mut plan = small(Families::Both)?;
    plan.topology = Topology::Bridged;
    everybody_answers(&plan)?;
    rules_hold(&plan)
}

/// Rules that close web, on a bridge that does not ask them: pods of the node get in, and the data
/// plane says so, family by family.
fn a_bridge_that_asks_no_rules_is_told() -> Result {
    let mut plan = small(Families::Both)?;
    plan.topology = Topology::Bridged;
    let mut lab = Lab::up(&plan, |_, _| ())?;
    lab.listen(&ports())?;
    let web = endpoint(&lab, "shop/web");
    let node = lab.plan().endpoints[web].node.ok_or("a pod has a node")?;
    let addresses = lab.plan().endpoints[web].addresses.clone();
    let closed = NodeState {
        endpoints: addresses.iter().map(|address| (*address, 0)).collect(),
        profiles: [(0, Profile { ingress: Some([].into()), ..Profile::default() })].into(),
        ..NodeState::default()
    };
    let mut rules = lab.in_node(node, Nftables::open)??;
    rules.apply(&closed)?;
    let neighbour = |probe: &Probe| {
        let of = &lab.plan().endpoints[probe.source];
        of.kind == Kind::Pod && of.node == Some(node) && probe.source != web
    };
    let mut probes = all_pairs(lab.plan(), &[Traffic::Port(Protocol::Tcp, 80)]);
    probes.retain(|probe| neighbour(probe) && addresses.contains(&probe.to));
    assert_eq!(probes.len(), 2, "one for each family");
    for setting in [None, Some("bridge-nf-call-iptables"), Some("bridge-nf-call-ip6tables")] {
        if let Some(setting) = setting {
            let path = format!("/proc/sys/net/bridge/{setting}");
            lab.in_node(node, || fs::write(path, "0"))??;
        }
        let unseen = lab.in_node(node, || rules.unseen())??;
        let outcomes = lab.probe(&probes, |_| ())?;
        for (probe, outcome) in probes.iter().zip(outcomes) {
            let family = Family::of(probe.to);
            let told = unseen.iter().any(|unseen| unseen.family == family);
            assert_eq!(told, outcome != Outcome::Silent, "{family} with {setting:?}: {unseen:?}");
        }
        let off = match setting {
            None => 0,
            Some("bridge-nf-call-iptables") => 1,
            Some(_) => 2,
        };
        assert_eq!(unseen.len(), off, "{unseen:?}");
    }
    Ok(())
}

fn everybody_answers(plan: &Plan) -> Result {
    let mut lab = Lab::up(plan, |_, _| ())?;
    lab.listen(&ports())?;
    let probes = all_pairs(lab.plan(), &traffics());
    let kinds: BTreeSet<(Kind, Kind, bool)> =
        probes.iter().map(|p| (kind(&lab, p.from), kind(&lab, p.to), p.to.is_ipv4())).collect();
    assert_eq!(kinds.len(), 3 * 3 * 2, "every kind of endpoint probes every kind");
    let expected = |probe: &Probe| Outcome::Answered(name(&lab, probe.to));
    let expected: Vec<Outcome> = probes.iter().map(expected).collect();
    compare(&probes, &lab.probe(&probes, |_| ())?, &expected)
}

/// The rules isolate db for ingress and allow web on TCP port 80.
fn rules_silence_what_they_drop() -> Result {
    rules_hold(&small(Families::Both)?)
}

fn rules_hold(plan: &Plan) -> Result {
    let mut lab = Lab::up(plan, |_, _| ())?;
    lab.listen(&ports())?;
    let probes = all_pairs(lab.plan(), &traffics());
    let before = lab.probe(&probes, |_| ())?;

    let web = endpoint(&lab, "shop/web");
    let db = endpoint(&lab, "shop/db");
    let node = lab.plan().endpoints[db].node.ok_or("a pod has a node")?;
    let addresses = |lab: &Lab, endpoint: usize| lab.plan().endpoints[endpoint].addresses.clone();
    let peers = addresses(&lab, web);
    let ports = Some(Ports { protocol: Protocol::Tcp, first: 80, last: 80 });
    let entry = Entry { peers: Some(0), ports, origin: 0 };
    let state = NodeState {
        endpoints: addresses(&lab, db).into_iter().map(|address| (address, 0)).collect(),
        profiles: [(0, Profile { ingress: Some([entry].into()), ..Profile::default() })].into(),
        peers: [(0, PeerSet::Addresses(peers.into_iter().collect()))].into(),
        ..NodeState::default()
    };
    let mut rules = lab.in_node(node, Nftables::open)??;
    rules.apply(&state)?;

    let expected: Vec<Outcome> = probes
        .iter()
        .zip(&before)
        .map(|(probe, before)| {
            let own_node = lab.plan().endpoints[probe.source].node == Some(node)
                && kind(&lab, probe.from) == Kind::Node;
            let passes = lab.plan().endpoint_at(probe.to) != Some(db)
                || probe.source == db
                || own_node
                || probe.source == web && probe.traffic == Traffic::Port(Protocol::Tcp, 80);
            if passes { before.clone() } else { Outcome::Silent }
        })
        .collect();
    let silent = expected.iter().filter(|outcome| **outcome == Outcome::Silent).count();
    assert!(silent > 50 && silent < probes.len() / 2, "{silent} of {}", probes.len());
    compare(&probes, &lab.probe(&probes, |_| ())?, &expected)?;

    rules.remove()?;
    compare(&probes, &lab.probe(&probes, |_| ())?, &before)
}

/// db is deaf to echo requests, and api answers in its stead, from its own address.
fn an_echo_reply_is_its_senders() -> Result {
    let mut lab = Lab::up(&small(Families::Both)?, |_, _| ())?;
    let [web, api, db] = ["shop/web", "shop/api", "shop/db"].map(|name| endpoint(&lab, name));
    lab.in_endpoint(db, || {
        fs::write("/proc/sys/net/ipv4/icmp_echo_ignore_all", "1")?;
        fs::write("/proc/sys/net/ipv6/icmp/echo_ignore_all", "1")
    })??;
    let probes: Vec<Probe> = all_pairs(lab.plan(), &[Traffic::Other])
        .into_iter()
        .filter(|p| p.source == web && lab.plan().endpoint_at(p.to) == Some(db))
        .collect();
    compare(&probes, &lab.probe(&probes, |_| ())?, &[Outcome::Silent, Outcome::Silent])?;

    let replies: Vec<(Socket, Vec<Vec<u8>>, IpAddr)> = lab.in_endpoint(api, || {
        let raw = |probe: &Probe| {
            let (domain, protocol, kind) = match Family::of(probe.from) {
                Family::V4 => (Domain::IPV4, socket2::Protocol::ICMPV4, 0),
                Family::V6 => (Domain::IPV6, socket2::Protocol::ICMPV6, 129),
            };
            let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
            // Every probe has another identifier.
            let replies = (16384u16..16400).map(|identifier| echo_reply(kind, identifier));
            Ok((socket, replies.collect(), probe.from))
        };
        probes.iter().map(raw).collect::<io::Result<_>>()
    })??;
    let done = AtomicBool::new(false);
    let outcomes = thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for (socket, replies, to) in &replies {
                    for reply in replies {
                        let _ = socket.send_to(reply, &SocketAddr::new(*to, 0).into());
                    }
                }
                thread::sleep(Duration::from_millis(5));
            }
        });
        let outcomes = lab.probe(&probes, |_| ());
        done.store(true, Ordering::Relaxed);
        outcomes
    })?;
    let api = Outcome::Answered("shop/api".to_owned());
    compare(&probes, &outcomes, &[api.clone(), api])
}

/// With its checksum, which for ICMPv6 the kernel fills in.
fn echo_reply(kind: u8, identifier: u16) -> Vec<u8> {
    let [high, low] = identifier.to_be_bytes();
    let mut sum = u32::from(kind) * 256 + u32::from(identifier) + 1;
    sum = (sum & 0xffff) + (sum >> 16);
    let [sum_high, sum_low] = (!(sum as u16)).to_be_bytes();
    vec![kind, 0, sum_high, sum_low, high, low, 0, 1]
}

fn a_closed_port_is_refused() -> Result {
    let mut lab = Lab::up(&small(Families::Both)?, |_, _| ())?;
    lab.listen(&ports())?;
    let closed = Protocol::ALL.map(|protocol| Traffic::Port(protocol, 4000));
    let probes = all_pairs(lab.plan(), &closed);
    let expected = vec![Outcome::Refused; probes.len()];
    compare(&probes, &lab.probe(&probes, |_| ())?, &expected)
}

fn listening_anew_closes() -> Result {
    let mut lab = Lab::up(&small(Families::Both)?, |_, _| ())?;
    let (old, new) = (Protocol::ALL.map(|p| (p, 81)), Protocol::ALL.map(|p| (p, 82)));
    for (open, closed) in [(old, new), (new, old)] {
        lab.listen(&open.into())?;
        let probes = all_pairs(lab.plan(), &open.map(|(p, port)| Traffic::Port(p, port)));
        let expected: Vec<_> = probes.iter().map(|p| Outcome::Answered(name(&lab, p.to))).collect();
        compare(&probes, &lab.probe(&probes, |_| ())?, &expected)?;
        let probes = all_pairs(lab.plan(), &closed.map(|(p, port)| Traffic::Port(p, port)));
        let expected = vec![Outcome::Refused; probes.len()];
        compare(&probes, &lab.probe(&probes, |_| ())?, &expected)?;
    }
    Ok(())
}

fn a_host_network_pod_is_its_node() -> Result {
    let mut lab = Lab::up(&small(Families::Both)?, |_, _| ())?;
    lab.listen(&ports())?;
    let agent = lab.plan().cluster.pods.iter().find(|pod| pod.host_network).ok_or("none")?;
    let node = agent.node.clone().ok_or("it has no node")?;
    let web = endpoint(&lab, "shop/web");
    let probes: Vec<Probe> = all_pairs(lab.plan(), &[Traffic::Port(Protocol::Tcp, 80)])
        .into_iter()
        .filter(|p| p.source == web && agent.addresses.contains(&p.to))
        .collect();
    assert_eq!(probes.len(), 2, "one for each family");
    let expected = vec![Outcome::Answered(node); 2];
    compare(&probes, &lab.probe(&probes, |_| ())?, &expected)
}

fn a_lab_may_have_one_family() -> Result {
    for (families, family) in [(Families::V4, Family::V4), (Families::V6, Family::V6)] {
        let mut lab = Lab::up(&small(families)?, |_, _| ())?;
        lab.listen(&ports())?;
        let probes = all_pairs(lab.plan(), &traffics());
        assert!(probes.iter().all(|p| Family::of(p.to) == family) && probes.len() > 100);
        let expected: Vec<_> = probes.iter().map(|p| Outcome::Answered(name(&lab, p.to))).collect();
        compare(&probes, &lab.probe(&probes, |_| ())?, &expected)?;
    }
    Ok(())
}

fn too_many_ports_are_refused() -> Result {
    let mut lab = Lab::up(&small(Families::Both)?, |_, _| ())?;
    let many = (1..=u16::MAX).flat_map(|port| [(Protocol::Tcp, port), (Protocol::Udp, port)]);
    let refused = lab.listen(&many.collect());
    assert!(matches!(refused, Err(Error::TooManyFiles { .. })), "{refused:?}");
    let probes = all_pairs(lab.plan(), &[Traffic::Port(Protocol::Tcp, 1)]);
    let expected = vec![Outcome::Refused; probes.len()];
    compare(&probes, &lab.probe(&probes, |_| ())?, &expected)?;

    let most = lab.ports_at_once().min(usize::from(u16::MAX));
    lab.listen(&(1..=u16::MAX).take(most).map(|port| (Protocol::Tcp, port)).collect())?;
    let expected: Vec<_> = probes.iter().map(|p| Outcome::Answered(name(&lab, p.to))).collect();
    compare(&probes, &lab.probe(&probes, |_| ())?, &expected)
}

fn a_node_that_is_not_there_cannot_be_entered() -> Result {
    let lab = Lab::up(&small(Families::V4)?, |_, _| ())?;
    let refused = lab.in_node(2, || ());
    assert!(matches!(refused, Err(Error::NoSuchNode { node: 2, nodes: 2 })), "{refused:?}");
    Ok(())
}

fn a_process_with_threads_cannot_enter() -> Result {
    thread::scope(|scope| {
        let _sleeper = scope.spawn(|| thread::sleep(Duration::from_millis(100)));
        let refused = enter();
        assert!(matches!(refused, Err(Error::Threads { .. })), "{refused:?}");
        Ok(())
    })
}

/// Set to the name of a lab, it makes this program hold one until it is ended.
const HOLD: &str = "PORTCULLIS_TEST_HOLD_LAB";

fn hold_a_lab(name: &str) -> Result {
    let mut control = Control::bind(name)?;
    enter()?;
    let plan = small(Families::Both)?;
    let _lab = Lab::up(&plan, |_, _| ())?;
    loop {
        match control.next_event()? {
            Event::Stop => return Ok(()),
            Event::Connection(mut connection) => {
                while let Some(line) = connection.receive()? {
                    connection.send(&format!("{line} {}", plan.endpoints.len()))?;
                    connection.send(".")?;
                }
            }
        }
    }
}

fn a_killed_lab_leaves_nothing() -> Result {
    let name = format!("test-kill-{}", process::id());
    let mut child = start(&name)?;
    let spaces = network_namespaces(Some(child.0.id()))?;
    let others = &network_namespaces(Some(process::id()))?;
    // The outside, 2 nodes, 4 pods, and the one it entered first.
    assert_eq!((&spaces - others).len(), 8);
    assert!(matches!(Control::bind(&name), Err(Error::NameTaken { .. })));
    let children = format!("/proc/{0}/task/{0}/children", child.0.id());
    assert_eq!(fs::read_to_string(children)?, "", "it needs no other process");

    child.0.kill()?;
    child.0.wait()?;
    let left = &(&spaces - others) & &network_namespaces(None)?;
    assert_eq!(left, BTreeSet::new());
    assert!(matches!(Control::connect(&name), Err(Error::NotRunning { .. })));
    Ok(())
}

fn a_lab_ends_cleanly_on_sigterm() -> Result {
    let mut child = start(&format!("test-term-{}", process::id()))?;
    kill(Pid::from_raw(child.0.id().try_into()?), Signal::SIGTERM)?;
    assert_eq!(child.0.wait()?.code(), Some(0));
    Ok(())
}

/// Ends with the test, also with one that fails.
struct Held(Child);

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a lab in another process, and has talked to it when it returns.
fn start(name: &str) -> Result<Held> {
    let mut child = Held(Command::new(env::current_exe()?).env(HOLD, name).spawn()?);
    let started = Instant::now();
    let mut connection = loop {
        match Control::connect(name) {
            Ok(connection) => break connection,
            Err(Error::NotRunning { .. }) if started.elapsed() < Duration::from_secs(60) => {
                if let Some(status) = child.0.try_wait()? {
                    return Err(format!("the lab ended: {status}").into());
                }
                thread::sleep(Duration::from_millis(5));
            }
            Err(e) => return Err(e.into()),
        }
    };
    connection.send("endpoints")?;
    let answer = format!("endpoints {}", small(Families::Both)?.endpoints.len());
    assert_eq!(connection.receive()?, Some(answer));
    assert_eq!(connection.receive()?.as_deref(), Some("."));
    Ok(child)
}

/// The network namespaces that a process, or any process, is in or holds open.
fn network_namespaces(process: Option<u32>) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let id = path.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok());
        if id.is_none() || process.is_some() && id != process {
            continue;
        }
        // Processes of others, and those that have just ended, cannot be looked into.
        let files = fs::read_dir(path.join("fd")).into_iter().flatten().flatten();
        let links = files.map(|file| file.path()).chain([path.join("ns/net")]);
        let targets =
            links.filter_map(|link| Some(fs::read_link(link).ok()?.display().to_string()));
        found.extend(targets.filter(|target| target.starts_with("net:[")));
    }
    Ok(found)
}

/// Two nodes, four pods, a hostNetwork pod, and the hosts that an ipBlock asks for.
fn small(families: Families) -> Result<Plan> {
    let block = |cidr: &str, except: &str| -> Result<Peer> {
        Ok(Peer::Block(IpBlock { cidr: cidr.parse()?, except: vec![except.parse()?] }))
    };
    let pod =
        |name: &str| Pod { namespace: "shop".to_owned(), name: name.to_owned(), ..Pod::default() };
    let cluster = Cluster {
        pods: vec![
            pod("web"),
            pod("api"),
            pod("db"),
            pod("cache"),
            Pod { host_network: true, ..pod("agent") },
        ],
        policies: vec![Policy {
            namespace: "shop".to_owned(),
            name: "backup".to_owned(),
            ingress: Some(vec![Rule {
                peers: vec![
                    block("192.168.0.0/16", "192.168.5.0/24")?,
                    block("2001:db8:5::/48", "2001:db8:5:6::/64")?,
                ],
                ports: Vec::new(),
            }]),
            ..Policy::default()
        }],
        ..Cluster::default()
    };
    Ok(plan(&cluster, &Options { nodes: 2, families, ..Options::default() })?)
}

fn ports() -> BTreeSet<(Protocol, u16)> {
    [(Protocol::Tcp, 80), (Protocol::Tcp, 443), (Protocol::Udp, 53), (Protocol::Sctp, 3868)].into()
}

/// [`ports`] and ICMP.
fn traffics() -> Vec<Traffic> {
    let ports = ports().into_iter().map(|(protocol, port)| Traffic::Port(protocol, port));
    ports.chain([Traffic::Other]).collect()
}

fn all_pairs(plan: &Plan, traffics: &[Traffic]) -> Vec<Probe> {
    let mut probes = Vec::new();
    for (source, endpoint) in plan.endpoints.iter().enumerate() {
        for &from in &endpoint.addresses {
            let other_ends = plan.endpoints.iter().flat_map(|e| &e.addresses);
            for &to in other_ends.filter(|to| Family::of(**to) == Family::of(from)) {
                probes.extend(traffics.iter().map(|&traffic| Probe {
                    source,
                    from,
                    to,
                    traffic,
                    expect: None,
                }));
            }
        }
    }
    probes
}

fn endpoint(lab: &Lab, name: &str) -> usize {
    lab.plan().endpoints.iter().position(|e| e.name == name).unwrap_or(usize::MAX)
}

fn at(lab: &Lab, address: IpAddr) -> usize {
    lab.plan().endpoint_at(address).unwrap_or(usize::MAX)
}

fn name(lab: &Lab, address: IpAddr) -> String {
    lab.plan().endpoints[at(lab, address)].name.clone()
}

fn kind(lab: &Lab, address: IpAddr) -> Kind {
    lab.plan().endpoints[at(lab, address)].kind
}

fn compare(probes: &[Probe], found: &[Outcome], expected: &[Outcome]) -> Result {
    assert_eq!((found.len(), expected.len()), (probes.len(), probes.len()));
    let wrong: Vec<String> = probes
        .iter()
        .zip(found.iter().zip(expected))
        .filter(|(_, (found, expected))| found != expected)
        .map(|(probe, (found, expected))| {
            let Probe { from, to, traffic, .. } = probe;
            format!("{from} -> {to} {traffic}: expected {expected:?}, found {found:?}")
        })
        .collect();
    if wrong.is_empty() {
        return Ok(());
    }
    Err(format!("{} of {} differ:\n{}", wrong.len(), probes.len(), wrong.join("\n")).into())
}
