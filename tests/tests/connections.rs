//! Open connections in a lab of two nodes, when a policy comes that does not allow them: the four
//! sorts of talk, on one node and across two, cut where the client is or where the server is
//! (SEMANTICS 24).

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::time::Duration;

use libtest_mimic::{Failed, Trial};
use portcullis_core::labels::{Labels, Selector};
use portcullis_core::model::{Cluster, Node, Peer, Pod, Policy, PortMatch, PortRule, Rule};
use portcullis_core::net::Protocol;
use portcullis_dataplane::{Connections, Dataplane, Nftables, Sources, share};
use portcullis_lab::{Lab, Options};
use portcullis_tests::in_lab;

/// The port that is closed, and the one that stays open.
const PORT: u16 = 80;
const OTHER: u16 = 81;

fn main() -> ExitCode {
    in_lab::run(|| Ok(tests()))
}

fn tests() -> Vec<Trial> {
    let mut tests = Vec::new();
    for (place, server) in [("on_one_node", "near"), ("across_two_nodes", "far")] {
        for (side, egress) in [("of_the_server", false), ("of_the_client", true)] {
            let name = format!("connections_{place}_are_cut_by_a_policy_{side}");
            tests.push(Trial::test(name, move || cut(server, egress)));
        }
    }
    tests
}

fn app(name: &str) -> Labels {
    Labels::from([("app".to_owned(), name.to_owned())])
}

/// A client and a server on one node, and a server on another.
fn cluster() -> Result<Cluster, Failed> {
    let mut cluster = Cluster::default();
    for (node, names) in [("node-1", &["client", "near"][..]), ("node-2", &["far"])] {
        cluster.nodes.push(Node { name: node.to_owned(), ..Node::default() });
        for name in names {
            let number = 1 + cluster.pods.len();
            cluster.pods.push(Pod {
                namespace: "default".to_owned(),
                name: (*name).to_owned(),
                labels: app(name),
                node: Some(node.to_owned()),
                addresses: vec![
                    format!("10.244.0.{number}").parse()?,
                    format!("fd00:244::{number}").parse()?,
                ],
                ..Pod::default()
            });
        }
    }
    Ok(cluster)
}

/// A policy of one side that leaves the port, other ports, or none.
fn policy(server: &str, egress: bool, ports: &[u16]) -> Policy {
    let selector = |name| Selector { match_labels: app(name), ..Selector::default() };
    let pods = |name| Peer::Pods { pods: Some(selector(name)), namespaces: None };
    let protocols = [Protocol::Tcp, Protocol::Udp];
    let port = |port: &u16| {
        let port = PortMatch::Range(*port, *port);
        protocols.map(|protocol| PortRule { protocol, port: port.clone() })
    };
    let ports = ports.iter().flat_map(port).collect();
    let (subject, peer) = if egress { ("client", server) } else { (server, "client") };
    let rules = vec![Rule { peers: vec![pods(peer)], ports }];
    let (ingress, egress) = if egress { (None, Some(rules)) } else { (Some(rules), None) };
    Policy {
        namespace: "default".to_owned(),
        name: "policy".to_owned(),
        subject: selector(subject),
        ingress,
        egress,
        mode: None,
    }
}

struct Enforced {
    nftables: Nftables,
    connections: Connections,
    sources: Sources,
}

/// Enforces on every node, and returns how many flows are newly cut.
fn enforce(nodes: &mut [Enforced], cluster: &Cluster) -> Result<usize, Failed> {
    let mut cut = 0;
    for (enforced, node) in nodes.iter_mut().zip(&cluster.nodes) {
        let (state, _) = share(cluster, &node.name);
        enforced.nftables.apply(&state)?;
        enforced.sources.follow(&state)?;
        cut += enforced.connections.judge(&state)?.newly_cut;
    }
    Ok(cut)
}

/// How long is waited for what is expected, on however busy a machine.
const LONG: Duration = Duration::from_secs(30);

struct Talk {
    tcp: [TcpStream; 2],
    udp: [UdpSocket; 2],
}

impl Talk {
    fn new(lab: &Lab, ends: [(usize, IpAddr); 2], port: u16) -> Result<Talk, Failed> {
        let [(client, from), (server, to)] = ends;
        let address = SocketAddr::new(to, port);
        let listener = lab.in_endpoint(server, || TcpListener::bind(address))??;
        let tcp = [lab.in_endpoint(client, || TcpStream::connect(address))??, listener.accept()?.0];
        let answering = lab.in_endpoint(server, || UdpSocket::bind(address))??;
        let asking = lab.in_endpoint(client, || UdpSocket::bind((from, 0)))??;
        asking.connect(address)?;
        answering.connect(asking.local_addr()?)?;
        let talk = Talk { tcp, udp: [asking, answering] };
        for end in &talk.tcp {
            end.set_read_timeout(Some(LONG))?;
        }
        Ok(talk)
    }

    /// Whether a number that each end sends on each connection arrives.
    fn goes_on(&mut self, number: u32) -> bool {
        let sent = number.to_be_bytes();
        let mut read = [0; 4];
        let [client, server] = &mut self.tcp;
        let mut say = |from: &mut TcpStream, to: &mut TcpStream| {
            from.write_all(&sent).is_ok() && to.read_exact(&mut read).is_ok() && read == sent
        };
        say(client, server) && say(server, client) && self.datagrams(number, LONG) == [true, true]
    }

    /// Whether a datagram arrives from the client in this time, and from the server.
    fn datagrams(&self, number: u32, wait: Duration) -> [bool; 2] {
        let sent = number.to_be_bytes();
        let [a, b] = &self.udp;
        [(a, b), (b, a)].map(|(from, to)| {
            let mut read = [0; 4];
            let waits = to.set_read_timeout(Some(wait)).is_ok();
            waits && from.send(&sent).is_ok() && to.recv(&mut read).is_ok() && read == sent
        })
    }
}

fn cut(server: &str, egress: bool) -> Result<(), Failed> {
    let mut cluster = cluster()?;
    cluster.policies = vec![policy(server, egress, &[PORT, OTHER])];
    let plan = portcullis_lab::plan(&cluster, &Options::default())?;
    let mut cluster = plan.cluster.clone();
    let lab = Lab::up(&plan, |_, _| {})?;
    let mut nodes = Vec::new();
    for node in 0..cluster.nodes.len() {
        nodes.push(Enforced {
            nftables: lab.in_node(node, Nftables::open)??,
            connections: lab.in_node(node, Connections::open)??,
            sources: lab.in_node(node, Sources::open)??,
        });
    }
    let pod = |name: &str| plan.endpoints.iter().position(|e| e.name == format!("default/{name}"));
    let ends = [pod("client").ok_or("no client")?, pod(server).ok_or("no server")?];
    for family in [0, 1] {
        cluster.policies = vec![policy(server, egress, &[PORT, OTHER])];
        enforce(&mut nodes, &cluster)?;
        let ends = ends.map(|end| (end, plan.endpoints[end].addresses[family]));
        let mut going_on = Talk::new(&lab, ends, OTHER)?;
        let mut idle = Talk::new(&lab, ends, PORT)?;
        if !idle.goes_on(0) || !going_on.goes_on(0) {
            return Err("what is allowed does not pass".into());
        }
        cluster.policies = vec![policy(server, egress, &[OTHER])];
        let cut = enforce(&mut nodes, &cluster)?;
        // Those of the other family are cut again.
        if cut != 2 * (1 + family) {
            return Err(format!("{cut} flows are cut, not one of TCP and one of UDP").into());
        }
        for end in &mut idle.tcp {
            match end.read(&mut [0; 1]) {
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
                other => return Err(format!("an idle end is not reset: {other:?}").into()),
            }
        }
        for round in 0..4 {
            // The server goes on sending, whether or not the client does.
            let passed = idle.datagrams(round, Duration::from_millis(300));
            if passed != [false, false] {
                return Err(format!("datagrams pass: {passed:?}, round {round}").into());
            }
            enforce(&mut nodes, &cluster)?;
        }
        for number in 1..200 {
            if number % 50 == 0 {
                enforce(&mut nodes, &cluster)?;
            }
            if !going_on.goes_on(number) {
                return Err(format!("what is still allowed lost number {number}").into());
            }
        }
    }
    Ok(())
}
