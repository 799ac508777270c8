//! New TCP connections per second through the kernel rules, by the number of policies.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use portcullis_core::labels::{Labels, Selector};
use portcullis_core::model::{
    Cluster, IpBlock, Node, Peer, Pod, Policy, PortMatch, PortRule, Rule,
};
use portcullis_core::net::{IpNet, IpRange, Protocol};
use portcullis_dataplane::state::NodeState;
use portcullis_dataplane::{Dataplane, Nftables, share};
use portcullis_lab::{Families, Lab, Options};
use socket2::{Domain, Socket, Type};

use crate::Outcome;
use crate::figures::{Runs, in_turns};

/// Short ones, so that most are not interrupted by whatever else the machine does.
const CONNECTIONS: u32 = 100;
const ROUNDS: usize = 1_001;
/// Before each measurement, on its new thread.
const WARM_UP: u32 = 10;

pub(crate) const NODE: &str = "node-1";
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));
pub(crate) const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 3));
pub(crate) const PORT: u16 = 65_000;

/// How the policies allow; each has a peer and ports of its own.
pub(crate) enum Form {
    /// A pod selector and a port.
    Pods,
    /// An `ipBlock` and a range of ports.
    Blocks,
}

/// A lab of two pods with some rules on their node.
struct Way {
    rules: String,
    lab: Lab,
    listener: TcpListener,
    runs: Runs,
}

impl Way {
    /// `None` is no rules at all.
    fn new(rules: String, state: Option<&NodeState>) -> Outcome<Way> {
        let options = Options { families: Families::V4, ..Options::default() };
        let lab = Lab::up(&portcullis_lab::plan(&pair(), &options)?, |_, _| {})?;
        let listener = lab.in_endpoint(1, || TcpListener::bind((SERVER, PORT)))??;
        if let Some(state) = state {
            lab.in_node(0, Nftables::open)??.apply(state)?;
        }
        Ok(Way { rules, lab, listener, runs: Runs::default() })
    }
}

pub(crate) fn run() -> Outcome {
    // This process has one thread so far.
    portcullis_lab::enter()?;
    let tracking = "connection tracking alone";
    let mut ways = vec![
        Way::new(tracking.to_owned(), Some(&NodeState::default()))?,
        Way::new(format!("{tracking}, once more"), Some(&NodeState::default()))?,
        Way::new("no rules".to_owned(), None)?,
    ];
    for (form, count) in [
        (Form::Pods, 1),
        (Form::Pods, 100),
        (Form::Pods, 1_000),
        (Form::Pods, 10_000),
        (Form::Blocks, 1),
        (Form::Blocks, 100),
        (Form::Blocks, 1_000),
    ] {
        let cluster = cluster(&form, count)?;
        let state = state(&cluster)?;
        let form = match form {
            Form::Pods => "a pod and a port",
            Form::Blocks => "an ipBlock and a port range",
        };
        ways.push(Way::new(format!("{count} × {form}"), Some(&state))?);
    }

    in_turns(ROUNDS, &mut ways, |way| {
        way.runs.push(way.lab.in_endpoint(0, || per_second(&way.listener))??);
        Ok(())
    })?;

    println!("Median (least–greatest) of {ROUNDS} rounds of {CONNECTIONS} connections; each round");
    println!("measures all rows, in random order.\n");
    println!("| rules | connections/s | of tracking alone |");
    println!("|---|---|---|");
    let alone = ways[0].runs.median();
    for Way { rules, runs, .. } in &ways {
        println!("| {rules} | {runs} | {:.3} |", runs.median() / alone);
    }
    Ok(())
}

/// Connects, accepts and resets, all on this thread: the kernel does the work of both ends and of
/// the node between them in the calls of the client, and nobody waits for a second core.
pub(crate) fn per_second(listener: &TcpListener) -> io::Result<f64> {
    for _ in 0..WARM_UP {
        connect(listener)?;
    }
    let started = Instant::now();
    for _ in 0..CONNECTIONS {
        connect(listener)?;
    }
    Ok(f64::from(CONNECTIONS) / started.elapsed().as_secs_f64())
}

fn connect(listener: &TcpListener) -> io::Result<()> {
    let client = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    // It closes with a reset, so that no port waits for late packets.
    client.set_linger(Some(Duration::ZERO))?;
    client.connect(&SocketAddr::new(SERVER, PORT).into())?;
    let (server, _) = listener.accept()?;
    drop(client);
    drop(server);
    Ok(())
}

/// What the agent of the node would put in force. As an agent does by default, it closes the
/// addresses of the node's range that are no pod's.
pub(crate) fn state(cluster: &Cluster) -> Outcome<NodeState> {
    let range: IpNet = "10.0.0.0/15".parse()?;
    Ok(NodeState { ranges: vec![IpRange::from(range)], ..share(cluster, NODE).0 })
}

/// The two pods that the lab has, and the node of both.
pub(crate) fn pair() -> Cluster {
    let node = Node { name: NODE.to_owned(), ..Node::default() };
    let pods = vec![pod("client", CLIENT, NODE), pod("server", SERVER, NODE)];
    Cluster { pods, nodes: vec![node], ..Cluster::default() }
}

/// The two pods, and policies that select the server. Only the last allows the client; the others
/// allow one pod or one block elsewhere each.
pub(crate) fn cluster(form: &Form, policies: u32) -> Outcome<Cluster> {
    let mut cluster = pair();
    for number in 0..policies {
        let last = number + 1 == policies;
        // Blocks of 256 addresses from 11.0.0.0 on, of which a pod has one.
        let network = Ipv4Addr::from(0x0b00_0000 + number * 256);
        let (peer, ports) = match form {
            Form::Pods => {
                let name = if last { "client".to_owned() } else { format!("pod-{number}") };
                if !last {
                    cluster.pods.push(pod(&name, IpAddr::V4(network), "node-2"));
                }
                let pods = Some(selector(&name));
                let port = if last { PORT } else { 1 + number as u16 };
                (Peer::Pods { pods, namespaces: None }, (port, port))
            }
            Form::Blocks => {
                let network = if last { CLIENT } else { IpAddr::V4(network) };
                let cidr = IpNet::new(network, if last { 31 } else { 24 })?.trunc();
                let first = if last { PORT } else { 1 + 50 * number as u16 };
                (Peer::Block(IpBlock { cidr, except: Vec::new() }), (first, first + 24))
            }
        };
        let port = PortRule { protocol: Protocol::Tcp, port: PortMatch::Range(ports.0, ports.1) };
        cluster.policies.push(Policy {
            namespace: "default".to_owned(),
            name: format!("policy-{number}"),
            subject: selector("server"),
            ingress: Some(vec![Rule { peers: vec![peer], ports: vec![port] }]),
            ..Policy::default()
        });
    }
    Ok(cluster)
}

pub(crate) fn pod(name: &str, address: IpAddr, node: &str) -> Pod {
    Pod {
        namespace: "default".to_owned(),
        name: name.to_owned(),
        labels: app(name),
        node: Some(node.to_owned()),
        addresses: vec![address],
        ..Pod::default()
    }
}

pub(crate) fn selector(name: &str) -> Selector {
    Selector { match_labels: app(name), match_expressions: Vec::new() }
}

fn app(name: &str) -> Labels {
    Labels::from([("app".to_owned(), name.to_owned())])
}
