//! Services with real packets: two nodes, pods on both, and a host outside.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{env, error};

use libtest_mimic::{Arguments, Completion, Trial};
use nix::errno::Errno;
use portcullis_core::model::{Cluster, Pod};
use portcullis_core::net::{Family, Protocol, Traffic};
use portcullis_dataplane::state::{Entry, NodeState, PeerSet, Ports, Profile};
use portcullis_dataplane::{Dataplane, Nftables};
use portcullis_lab::services::{
    Endpoint, EndpointPort, EndpointSlice, Service, ServicePort, ServiceTable, TABLE, Table, table,
};
use portcullis_lab::{Lab, Options, Outcome, Probe, enter, plan};

type Result<T = ()> = std::result::Result<T, Box<dyn error::Error>>;

fn main() -> Result {
    let arguments = Arguments::from_args();
    enter()?;
    let test = |name: &str, test: fn() -> Result| {
        Trial::test(name, move || test().map_err(|e| e.to_string().into()))
    };
    let trials = vec![
        test("a_service_is_answered_by_its_endpoints_on_either_node", endpoints_answer),
        test("a_client_of_a_sticky_service_stays_with_one_endpoint", sticky),
        test("the_endpoint_sees_the_client_unless_answers_would_not_come_back", sources),
        test("a_node_port_is_open_at_every_node", node_ports),
        test("what_is_for_the_endpoints_of_a_node_goes_to_no_other", local),
        test("a_service_without_ready_endpoints_is_refused", nothing_ready),
        test("policies_are_asked_after_the_destination_is_rewritten", policies),
        test("connections_stay_when_the_table_is_replaced", replacement),
        Trial::ignorable_test("nft_lists_what_was_meant", || {
            if Command::new("nft").arg("--version").output().is_ok() {
                nft_lists_what_was_meant().map_err(|e| e.to_string())?;
                return Ok(Completion::Completed);
            }
            if env::var("PORTCULLIS_REQUIRE_NFT").is_ok_and(|value| value == "1") {
                return Err("nft is not installed, and PORTCULLIS_REQUIRE_NFT is 1".into());
            }
            Ok(Completion::ignored_with("skipped: nft is not installed"))
        }),
    ];
    libtest_mimic::run(&arguments, trials).exit()
}

/// The port of the Service, of its endpoints, and of the nodes.
const SERVICE_PORT: u16 = 80;
const ENDPOINT_PORT: u16 = 8080;
const NODE_PORT: u16 = 30080;
const ADDRESSES: [&str; 2] = ["10.96.0.7", "fd00:10:96::7"];
const HOSTS: [&str; 2] = ["203.0.113.9", "2001:db8::9"];
/// So often that chance does not leave out one of two: once in 2^59.
const TRIES: usize = 60;

/// `web` and `api` on the first node, `db` and `cache` on the second, and the host outside. Everybody
/// listens on the endpoints' port.
fn lab() -> Result<Lab> {
    let pod = |name: &str, node: &str| Pod {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        node: Some(node.to_owned()),
        ..Pod::default()
    };
    let pods = [("web", "one"), ("api", "one"), ("db", "two"), ("cache", "two")];
    let pods = pods.map(|(name, node)| pod(name, node)).into();
    let hosts =
        HOSTS.map(|host| host.parse()).into_iter().collect::<std::result::Result<_, _>>()?;
    let options = Options { hosts, ..Options::default() };
    let plan = plan(&Cluster { pods, ..Cluster::default() }, &options)?;
    let mut lab = Lab::up(&plan, |_, _| ())?;
    lab.listen(&Protocol::ALL.map(|protocol| (protocol, ENDPOINT_PORT)).into())?;
    Ok(lab)
}

fn traffics() -> [Traffic; 3] {
    Protocol::ALL.map(|protocol| Traffic::Port(protocol, SERVICE_PORT))
}

/// The Service `shop/shop` on all protocols, with these pods as its ready endpoints.
fn service(lab: &Lab, pods: &[&str]) -> Result<(Service, EndpointSlice)> {
    let port = |protocol: Protocol| ServicePort {
        name: protocol.to_string(),
        protocol,
        port: SERVICE_PORT,
        node_port: Some(NODE_PORT),
    };
    let addresses = ADDRESSES.iter().map(|a| a.parse());
    let service = Service {
        namespace: "shop".to_owned(),
        name: "shop".to_owned(),
        cluster_ips: addresses.collect::<std::result::Result<_, _>>()?,
        ports: Protocol::ALL.map(port).into(),
        ..Service::default()
    };
    let endpoint = |pod: &&str| Endpoint {
        addresses: of(lab, pod),
        node: lab.plan().cluster.pods.iter().find(|p| p.name == *pod).and_then(|p| p.node.clone()),
        ready: true,
        hostname: None,
    };
    let slice = EndpointSlice {
        namespace: "shop".to_owned(),
        service: "shop".to_owned(),
        ports: service
            .ports
            .iter()
            .map(|port| EndpointPort {
                name: port.name.clone(),
                protocol: port.protocol,
                port: ENDPOINT_PORT,
            })
            .collect(),
        endpoints: pods.iter().map(endpoint).collect(),
    };
    Ok((service, slice))
}

/// Puts the Service into both nodes.
fn serve(lab: &Lab, service: &Service, slice: &EndpointSlice) -> Result {
    for (index, node) in lab.plan().cluster.nodes.iter().enumerate() {
        let (services, slices) = (std::slice::from_ref(service), std::slice::from_ref(slice));
        let table = table(services, slices, &node.name, &node.addresses);
        apply(lab, index, &table)?;
    }
    Ok(())
}

fn apply(lab: &Lab, node: usize, table: &Table) -> Result {
    Ok(lab.in_node(node, || ServiceTable::open()?.apply(table))??)
}

fn index(lab: &Lab, name: &str) -> usize {
    let name = if name.contains(['/', '.', ':'])
        || !lab.plan().cluster.pods.iter().any(|p| p.name == name)
    {
        name.to_owned()
    } else {
        format!("shop/{name}")
    };
    lab.plan().endpoints.iter().position(|e| e.name == name).unwrap_or(usize::MAX)
}

/// The addresses of a pod by its name, of a node or of a host.
fn of(lab: &Lab, name: &str) -> Vec<IpAddr> {
    lab.plan().endpoints[index(lab, name)].addresses.clone()
}

/// Probes from an endpoint to an address, of the family that the address has.
fn probe(lab: &Lab, from: &str, to: IpAddr, traffic: Traffic) -> Option<Probe> {
    let from_address = of(lab, from).into_iter().find(|a| Family::of(*a) == Family::of(to))?;
    Some(Probe { source: index(lab, from), from: from_address, to, traffic, expect: None })
}

fn cluster_ips() -> [IpAddr; 2] {
    ADDRESSES.map(|a| a.parse().unwrap_or(IpAddr::from([0; 4])))
}

/// Who answers, for each address of the Service and each protocol, when it is tried often.
fn answers(lab: &mut Lab, from: &str) -> Result<BTreeMap<(IpAddr, Traffic), BTreeSet<String>>> {
    let mut found = BTreeMap::new();
    for to in cluster_ips() {
        for traffic in traffics() {
            let one = probe(lab, from, to, traffic).ok_or("no address of the family")?;
            let outcomes = lab.probe(&vec![one; TRIES], |_| ())?;
            let names = outcomes.iter().map(|outcome| match outcome {
                Outcome::Answered(name) => name.clone(),
                other => format!("{other:?}"),
            });
            found.insert((to, traffic), names.collect::<BTreeSet<String>>());
        }
    }
    assert_eq!(found.len(), 6);
    Ok(found)
}

fn endpoints_answer() -> Result {
    let mut lab = lab()?;
    let (service, slice) = service(&lab, &["api", "db"])?;
    serve(&lab, &service, &slice)?;
    // A client on the node of either, an endpoint itself, and a node.
    for client in ["web", "cache", "api", "one"] {
        for ((to, traffic), names) in answers(&mut lab, client)? {
            // An SCTP answer tells no name, only that it came from the Service.
            let expected = match traffic {
                Traffic::Port(Protocol::Sctp, _) => BTreeSet::from([to.to_string()]),
                _ => BTreeSet::from(["shop/api".to_owned(), "shop/db".to_owned()]),
            };
            assert_eq!(names, expected, "{client} to {to} {traffic}");
        }
    }
    Ok(())
}

fn sticky() -> Result {
    let mut lab = lab()?;
    let (mut service, slice) = service(&lab, &["web", "api", "db", "cache"])?;
    service.sticky = true;
    serve(&lab, &service, &slice)?;
    let mut seen = BTreeSet::new();
    for client in ["web", "api", "db", "cache", "one", "two"] {
        for ((to, traffic), names) in answers(&mut lab, client)? {
            assert_eq!(names.len(), 1, "{client} to {to} {traffic}: {names:?}");
            seen.extend(names.into_iter().filter(|name| name.starts_with("shop/")));
        }
    }
    assert!(seen.len() > 1, "not all clients got {seen:?}");
    Ok(())
}

/// Listens at the pod, connects from somewhere, and tells whom the pod sees.
fn seen_by(lab: &Lab, pod: &str, from: &str, to: SocketAddr) -> Result<IpAddr> {
    const PORT: u16 = 9000;
    let at = of(lab, pod).into_iter().find(|a| Family::of(*a) == Family::of(to.ip()));
    let at = SocketAddr::new(at.ok_or("no address of the family")?, PORT);
    let listener = lab.in_endpoint(index(lab, pod), || TcpListener::bind(at))??;
    let patience = Duration::from_secs(10);
    let client =
        lab.in_endpoint(index(lab, from), || TcpStream::connect_timeout(&to, patience))??;
    let (_, peer) = listener.accept()?;
    drop(client);
    Ok(peer.ip())
}

/// A Service in front of one pod's port 9000, at both nodes.
fn serve_9000(lab: &Lab, pod: &str) -> Result {
    let (mut service, mut slice) = service(lab, &[pod])?;
    service.ports.truncate(1);
    slice.ports.truncate(1);
    slice.ports[0].port = 9000;
    serve(lab, &service, &slice)
}

fn sources() -> Result {
    let lab = lab()?;
    serve_9000(&lab, "api")?;
    let node = |ip: IpAddr| of(&lab, "one").into_iter().find(|a| a.is_ipv4() == ip.is_ipv4());
    for (position, to) in cluster_ips().into_iter().enumerate() {
        let to = SocketAddr::new(to, SERVICE_PORT);
        for client in ["web", "db"] {
            assert_eq!(seen_by(&lab, "api", client, to)?, of(&lab, client)[position]);
        }
        // Its own address as the source would stay inside the pod, and the answer unchanged.
        assert_eq!(Some(seen_by(&lab, "api", "api", to)?), node(to.ip()));
    }
    // The node that is asked: an answer has to come back through it.
    for asked in ["one", "two"] {
        for (position, host) in HOSTS.into_iter().enumerate() {
            let at = of(&lab, asked)[position];
            let to = SocketAddr::new(at, NODE_PORT);
            for client in [host, "web"] {
                assert_eq!(seen_by(&lab, "api", client, to)?, at, "{client} to {to}");
            }
        }
    }
    Ok(())
}

fn node_ports() -> Result {
    let mut lab = lab()?;
    let (service, slice) = service(&lab, &["api", "db"])?;
    serve(&lab, &service, &slice)?;
    let mut tried = 0;
    for node in ["one", "two"] {
        for to in of(&lab, node) {
            for traffic in Protocol::ALL.map(|protocol| Traffic::Port(protocol, NODE_PORT)) {
                for client in [HOSTS[0], HOSTS[1], "web", "cache", "one"] {
                    let Some(one) = probe(&lab, client, to, traffic) else { continue };
                    let outcomes = lab.probe(&vec![one; TRIES], |_| ())?;
                    let all = outcomes.iter().collect::<Vec<_>>();
                    let answered =
                        |name: &str| outcomes.contains(&Outcome::Answered(name.to_owned()));
                    match traffic {
                        Traffic::Port(Protocol::Sctp, _) => assert!(answered(node), "{all:?}"),
                        _ => assert!(answered("shop/api") && answered("shop/db"), "{all:?}"),
                    }
                    assert!(all.iter().all(|o| matches!(o, Outcome::Answered(_))), "{all:?}");
                    tried += 1;
                }
            }
        }
    }
    assert_eq!(tried, 2 * 3 * 2 * 4);
    Ok(())
}

/// `api` is on the first node, and the second has none.
fn local() -> Result {
    let mut lab = lab()?;
    for internal in [true, false] {
        let (mut service, slice) = service(&lab, &["api", "db"])?;
        service.internal_local = internal;
        service.external_local = !internal;
        serve(&lab, &service, &slice)?;
        for (client, own) in [("web", "shop/api"), ("cache", "shop/db")] {
            for ((to, traffic), names) in answers(&mut lab, client)? {
                let expected = match traffic {
                    Traffic::Port(Protocol::Sctp, _) => BTreeSet::from([to.to_string()]),
                    _ if internal => BTreeSet::from([own.to_owned()]),
                    _ => BTreeSet::from(["shop/api".to_owned(), "shop/db".to_owned()]),
                };
                assert_eq!(names, expected, "{client} to {to} {traffic}");
            }
        }
        for (node, own) in [("one", "shop/api"), ("two", "shop/db")] {
            for (position, to) in of(&lab, node).into_iter().enumerate() {
                let at = Traffic::Port(Protocol::Tcp, NODE_PORT);
                let one = probe(&lab, HOSTS[position], to, at).ok_or("no address of the family")?;
                let outcomes = lab.probe(&vec![one; TRIES], |_| ())?;
                let other = |o: &&Outcome| **o != Outcome::Answered(own.to_owned());
                assert_eq!(outcomes.iter().any(|o| other(&o)), internal, "{to}: {outcomes:?}");
            }
        }
    }

    // Where there is none, nothing is answered; the one that there is sees who asks.
    let (mut service, mut slice) = service(&lab, &["api"])?;
    service.ports.truncate(1);
    slice.ports.truncate(1);
    service.internal_local = true;
    service.external_local = true;
    serve(&lab, &service, &slice)?;
    let mut probes = Vec::new();
    for to in cluster_ips() {
        probes.extend(probe(&lab, "cache", to, Traffic::Port(Protocol::Tcp, SERVICE_PORT)));
    }
    for (position, to) in of(&lab, "two").into_iter().enumerate() {
        let traffic = Traffic::Port(Protocol::Tcp, NODE_PORT);
        probes.extend(probe(&lab, HOSTS[position], to, traffic));
    }
    assert_eq!(lab.probe(&probes, |_| ())?, vec![Outcome::Silent; 4]);
    slice.ports[0].port = 9000;
    serve(&lab, &service, &slice)?;
    for (position, at) in of(&lab, "one").into_iter().enumerate() {
        let seen = seen_by(&lab, "api", HOSTS[position], SocketAddr::new(at, NODE_PORT))?;
        // All hosts outside are one machine, which has addresses of these networks.
        let outside = ["203.0.113.", "2001:db8:"].iter().any(|n| seen.to_string().starts_with(n));
        assert!(outside, "{seen}");
    }
    Ok(())
}

fn nothing_ready() -> Result {
    let mut lab = lab()?;
    let (service, mut slice) = service(&lab, &["api"])?;
    slice.endpoints[0].ready = false;
    serve(&lab, &service, &slice)?;
    let mut probes = Vec::new();
    for client in ["web", "api", "db", "one", HOSTS[0], HOSTS[1]] {
        let own = cluster_ips().into_iter().filter(|_| !HOSTS.contains(&client));
        let own = own.map(|to| (to, SERVICE_PORT));
        let nodes: Vec<IpAddr> = ["one", "two"].iter().flat_map(|node| of(&lab, node)).collect();
        for (to, port) in own.chain(nodes.into_iter().map(|to| (to, NODE_PORT))) {
            // A raw socket is told nothing that is for it alone.
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                probes.extend(probe(&lab, client, to, Traffic::Port(protocol, port)));
            }
        }
    }
    // What a node itself sends is refused by the call that sends it; only TCP then waits to hear.
    let own = index(&lab, "one");
    let expected = |probe: &Probe| match probe.traffic {
        Traffic::Port(Protocol::Udp, _)
            if probe.source == own && !of(&lab, "two").contains(&probe.to) =>
        {
            Outcome::Error(Errno::EPERM as i32)
        }
        _ => Outcome::Refused,
    };
    let expected: Vec<Outcome> = probes.iter().map(expected).collect();
    assert_eq!(probes.len(), (4 * 6 + 2 * 2) * 2);
    assert_eq!(lab.probe(&probes, |_| ())?, expected, "{probes:?}");
    Ok(())
}

/// `db` takes only `web`, and only at the endpoints' port; `api` may open connections only to `db`,
/// there.
fn policies() -> Result {
    let mut lab = lab()?;
    let (service, slice) = service(&lab, &["db"])?;
    serve(&lab, &service, &slice)?;
    let entry = |peers| Entry {
        peers: Some(peers),
        ports: Some(Ports { protocol: Protocol::Tcp, first: ENDPOINT_PORT, last: ENDPOINT_PORT }),
        origin: 0,
    };
    let profile = |ingress: bool| {
        let [into, from] = [ingress, !ingress].map(|this| this.then(|| [entry(0)].into()));
        Profile { ingress: into, egress: from, ..Profile::default() }
    };
    let state = |pod: &str, ingress: bool, peer: &str| NodeState {
        endpoints: of(&lab, pod).into_iter().map(|address| (address, 0)).collect(),
        profiles: [(0, profile(ingress))].into(),
        peers: [(0, PeerSet::Addresses(of(&lab, peer).into_iter().collect()))].into(),
        ..NodeState::default()
    };
    let states = [state("api", false, "db"), state("db", true, "web")];
    for (node, state) in states.iter().enumerate() {
        lab.in_node(node, Nftables::open)??.apply(state)?;
    }
    let mut probes = Vec::new();
    for client in ["web", "api", "cache", "db"] {
        for to in cluster_ips() {
            probes.extend(probe(&lab, client, to, Traffic::Port(Protocol::Tcp, SERVICE_PORT)));
        }
    }
    let answered = || Outcome::Answered("shop/db".to_owned());
    let expected = [answered(), answered(), Outcome::Silent, Outcome::Silent, Outcome::Silent]
        .into_iter()
        .chain([Outcome::Silent, answered(), answered()]);
    assert_eq!(lab.probe(&probes, |_| ())?, expected.collect::<Vec<_>>());

    // With ingress open, api's egress alone decides, and it speaks of the endpoint.
    lab.in_node(1, Nftables::open)??.remove()?;
    let expected = vec![answered(); 8];
    assert_eq!(lab.probe(&probes, |_| ())?, expected);
    let (service, slice) = self::service(&lab, &["cache"])?;
    serve(&lab, &service, &slice)?;
    let refused: Vec<Probe> =
        probes.iter().copied().filter(|p| p.source == index(&lab, "api")).collect();
    assert_eq!(lab.probe(&refused, |_| ())?, [Outcome::Silent, Outcome::Silent]);
    Ok(())
}

fn replacement() -> Result {
    let lab = lab()?;
    serve_9000(&lab, "api")?;
    let to = SocketAddr::new(cluster_ips()[0], SERVICE_PORT);
    let listen = |pod| {
        let at = SocketAddr::new(of(&lab, pod)[0], 9000);
        lab.in_endpoint(index(&lab, pod), || TcpListener::bind(at))
    };
    let (api, db) = (listen("api")??, listen("db")??);
    let connect = || lab.in_endpoint(index(&lab, "web"), || TcpStream::connect(to));
    let mut first = connect()??;
    let (mut first_end, _) = api.accept()?;
    serve_9000(&lab, "db")?;
    let _second = connect()??;
    let (_second_end, peer) = db.accept()?;
    assert_eq!(peer.ip(), of(&lab, "web")[0]);
    for (from, to) in
        [(&mut first, &mut first_end), (&mut _second_end.try_clone()?, &mut _second.try_clone()?)]
    {
        from.write_all(b"still there")?;
        to.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut heard = [0; 11];
        std::io::Read::read_exact(to, &mut heard)?;
        assert_eq!(&heard, b"still there");
    }
    Ok(())
}

fn nft(arguments: &[&str], input: &str) -> Result<String> {
    let mut child = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    child.stdin.take().ok_or("no stdin")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("nft {arguments:?}: {errors}\n{input}").into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// What the table of [`lab`] with two sorts of Services should be, in nft's own words.
const MEANT: &str = include_str!("services.nft");

fn nft_lists_what_was_meant() -> Result {
    let lab = lab()?;
    let (mut web, mut slice) = service(&lab, &["api", "db"])?;
    web.ports.truncate(1);
    slice.ports.truncate(1);
    let mut dns = Service { name: "dns".to_owned(), sticky: true, ..web.clone() };
    dns.cluster_ips = vec!["10.96.0.10".parse()?, "fd00:10:96::a".parse()?];
    dns.ports[0] =
        ServicePort { name: "dns".to_owned(), protocol: Protocol::Udp, port: 53, node_port: None };
    let mut dns_slice = EndpointSlice { service: "dns".to_owned(), ..slice.clone() };
    dns_slice.ports[0] = EndpointPort { name: "dns".to_owned(), protocol: Protocol::Udp, port: 53 };
    let mut empty = Service { name: "empty".to_owned(), ..web.clone() };
    empty.cluster_ips = vec!["10.96.0.11".parse()?];
    empty.ports[0].node_port = None;
    let mut logs = Service { name: "logs".to_owned(), internal_local: true, ..web.clone() };
    logs.cluster_ips = vec!["10.96.0.12".parse()?];
    logs.external_local = true;
    logs.ports[0].node_port = Some(30081);
    let mut logs_slice = EndpointSlice { service: "logs".to_owned(), ..slice.clone() };
    logs_slice.endpoints.remove(0);
    let mut edge = Service { name: "edge".to_owned(), external_local: true, ..web.clone() };
    edge.cluster_ips = vec!["10.96.0.13".parse()?];
    edge.ports[0].node_port = Some(30082);
    let edge_slice = EndpointSlice { service: "edge".to_owned(), ..slice.clone() };
    let node = &lab.plan().cluster.nodes[0];
    let services = [web, dns, empty, logs, edge];
    let slices = [slice, dns_slice, logs_slice, edge_slice];
    let table = table(&services, &slices, &node.name, &node.addresses);
    apply(&lab, 0, &table)?;
    let found = lab.in_node(0, || nft(&["list", "ruleset"], "").map_err(|e| e.to_string()))??;
    let meant = lab.in_node(1, || {
        let loaded = nft(&["-f", "-"], MEANT);
        loaded.and_then(|_| nft(&["list", "ruleset"], "")).map_err(|e| e.to_string())
    })??;
    assert!(found.contains(TABLE), "{found}");
    assert_eq!(found, meant, "found, and meant\n{found}");
    lab.in_node(0, || nft(&["-j", "list", "ruleset"], "").map_err(|e| e.to_string()))??;
    Ok(())
}
