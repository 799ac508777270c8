//! A flood of connections that policies refuse: what the agent spends on telling of them, and whether
//! anything is lost that is allowed.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};
use std::{env, fs, process};

use portcullis_lab::{Cluster, Families, Lab, Options};
use serde_json::{Value, json};
use socket2::{Domain, Protocol, Socket, Type};

use crate::Outcome;

/// The argument that makes this program do the measuring, in namespaces of its own.
pub(crate) const ONCE: &str = "--flood-once";

const NODE: &str = "node-1";
/// What an agent has that is told nothing else.
const LOG_RATE: u32 = 100;
/// The port of the server, and of the client on it.
const PORT: u16 = 9000;
const FLOODERS: usize = 20;
/// How many of them send, and how many packets a second in all; as many as they can without a number.
const ROWS: [(usize, Option<u64>); 6] = [
    (0, None),
    (1, Some(1_000)),
    (1, Some(10_000)),
    (1, None),
    (FLOODERS, Some(10_000)),
    (FLOODERS, None),
];
const LASTS: Duration = Duration::from_secs(10);
/// Between two packets that are allowed.
const EVERY: Duration = Duration::from_millis(1);
/// Of those, every such one opens a connection of its own.
const FRESH: u64 = 10;
/// When the flood has ended: for packets under way, and for what the agent reads once a second.
const SETTLES: Duration = Duration::from_secs(20);
/// Where the agent of a lab tells how it is.
const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9464);

pub(crate) fn run() -> Outcome {
    crate::in_its_own_process(ONCE)
}

pub(crate) fn once() -> Outcome {
    // Of the network outside, where nobody uses it.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    portcullis_lab::enter()?;
    let options = Options { families: Families::V4, log_rate: LOG_RATE, ..Options::default() };
    let files = env::temp_dir().join(format!("portcullis-flood-{}", process::id()));
    let measured =
        Cluster::up(listener, &options, &files, None).map_err(Into::into).and_then(measure);
    fs::remove_dir_all(&files)?;
    measured
}

fn measure(mut cluster: Cluster) -> Outcome {
    let shop = json!({"name": "shop", "annotations": {"portcullis.dev/log": "denied"}});
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": shop});
    cluster.server().apply(&namespace)?;
    let flooders: Vec<String> = (0..FLOODERS).map(|n| format!("flooder-{n}")).collect();
    for name in ["client", "server"].into_iter().chain(flooders.iter().map(String::as_str)) {
        cluster.server().apply(&pod(name))?;
    }
    cluster.server().apply(&policy())?;
    let state = cluster.settle()?;
    let lab = cluster.lab(&state.cluster)?;
    let node = Node { cluster: &cluster, lab: &lab };
    let [client, server] = [node.pod("client")?, node.pod("server")?];
    let flooders: Vec<Pod> = flooders.iter().map(|name| node.pod(name)).collect::<Outcome<_>>()?;

    println!(
        "Each row {} s. Beside it, one packet a millisecond is allowed, and every",
        LASTS.as_secs()
    );
    println!("{FRESH}th of these opens a connection. `--log-rate` is {LOG_RATE}.\n");
    println!(
        "| pods that flood | sent/s | refused/s | logged/s | not logged/s | agent, % of a core | allowed, sent | lost |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let mut lost = 0;
    for (sending, rate) in ROWS {
        lost += row(&node, client, server, &flooders[..sending], rate)?;
    }
    cluster.put_back(lab)?;
    match lost {
        0 => Ok(()),
        lost => Err(format!("{lost} packets were lost that are allowed").into()),
    }
}

fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "labels": {"app": name}},
        "spec": {"nodeName": NODE, "containers": [{"name": "c", "image": "example.com/c"}]},
    })
}

/// The server takes what the client sends.
fn policy() -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "server", "namespace": "shop"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "server"}},
            "ingress": [{
                "from": [{"podSelector": {"matchLabels": {"app": "client"}}}],
                "ports": [{"port": PORT, "protocol": "UDP"}],
            }],
        },
    })
}

/// An endpoint of the lab, and its address.
type Pod = (usize, Ipv4Addr);

struct Node<'a> {
    cluster: &'a Cluster,
    lab: &'a Lab,
}

impl Node<'_> {
    fn pod(&self, name: &str) -> Outcome<Pod> {
        let mut endpoints = self.lab.plan().endpoints.iter().enumerate();
        let found = endpoints.find(|(_, endpoint)| endpoint.name == format!("shop/{name}"));
        match found.map(|(number, endpoint)| (number, endpoint.addresses.first())) {
            Some((number, Some(IpAddr::V4(address)))) => Ok((number, *address)),
            _ => Err(format!("the pod {name} is not up").into()),
        }
    }

    /// The CPU time of the agent so far, in seconds.
    fn cpu(&self) -> Outcome<f64> {
        // USER_HZ, which the kernel's interface has had for good.
        const TICKS_PER_SECOND: f64 = 100.0;
        let process = self.cluster.agent_process(NODE).ok_or("the agent has ended")?;
        let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
        // After the name, which may have anything in it, the third field is the first.
        let (_, fields) = stat.rsplit_once(')').ok_or("a process without a name")?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let [user, system] = [fields.get(11), fields.get(12)]
            .map(|field| field.and_then(|field| field.parse::<f64>().ok()));
        let ticks = user.zip(system).ok_or("a process without times")?;
        Ok((ticks.0 + ticks.1) / TICKS_PER_SECOND)
    }

    /// What the agent says, by the name of the metric with its labels.
    fn counts(&self) -> Outcome<Counts> {
        let page = self.lab.in_node(0, || -> io::Result<String> {
            let mut stream = TcpStream::connect(METRICS)?;
            stream
                .write_all(b"GET /metrics HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
            let mut page = String::new();
            stream.read_to_string(&mut page)?;
            Ok(page)
        })??;
        let line = |line: &str| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.strip_prefix("portcullis_")?.to_owned(), value.parse::<f64>().ok()? as u64))
        };
        let metrics: BTreeMap<String, u64> = page.lines().filter_map(line).collect();
        let of = |name: &str| {
            metrics.get(name).copied().ok_or_else(|| format!("the agent tells no {name}"))
        };
        Ok(Counts {
            refused: of("refused_packets_total{by=\"ingress\"}")?,
            unlogged: of("refused_unlogged_packets_total{by=\"ingress\"}")?
                + of("flows_lost_packets_total")?,
            logged: metrics.get("flows_total{verdict=\"refused\"}").copied().unwrap_or_default()
                + of("flows_repeated_packets_total")?,
        })
    }
}

/// Packets that were refused.
#[derive(Clone, Copy)]
struct Counts {
    refused: u64,
    logged: u64,
    unlogged: u64,
}

impl Counts {
    fn since(self, before: Counts) -> Counts {
        Counts {
            refused: self.refused - before.refused,
            logged: self.logged - before.logged,
            unlogged: self.unlogged - before.unlogged,
        }
    }
}

/// Prints what one flood does. Returns how many packets were lost that are allowed.
fn row(
    node: &Node<'_>,
    client: Pod,
    server: Pod,
    flooders: &[Pod],
    rate: Option<u64>,
) -> Outcome<u64> {
    let sockets = flooders.iter().map(|(endpoint, _)| {
        // The kernel writes the IP header, and the ports are ours.
        let raw = || Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::UDP));
        Ok(node.lab.in_endpoint(*endpoint, raw)??)
    });
    let sockets: Vec<Socket> = sockets.collect::<Outcome<_>>()?;
    let receiving = node.lab.in_endpoint(server.0, || UdpSocket::bind((server.1, PORT)))??;
    receiving.set_read_timeout(Some(Duration::from_millis(100)))?;
    let over = AtomicBool::new(false);
    let (before, used, start) = (node.counts()?, node.cpu()?, Instant::now());
    let (flooded, allowed, arrived, used, seconds) = thread::scope(|scope| -> Outcome<_> {
        let (over, receiving) = (&over, &receiving);
        let receiving = scope.spawn(move || receive(receiving, over));
        let sending =
            scope.spawn(move || node.lab.in_endpoint(client.0, || send(client.1, server.1, start)));
        let flooding = scope.spawn(move || flood(&sockets, server.1, rate, start));
        let flooded = flooding.join();
        let (used, seconds) = (node.cpu().map(|now| now - used), start.elapsed().as_secs_f64());
        let allowed = sending.join();
        // What is under way arrives.
        thread::sleep(Duration::from_millis(500));
        over.store(true, Relaxed);
        let broke = |_| "a thread broke";
        let arrived = receiving.join().map_err(broke)?;
        Ok((flooded.map_err(broke)??, allowed.map_err(broke)???, arrived?, used?, seconds))
    })?;
    let settling = Instant::now();
    let counted = loop {
        let counted = node.counts()?.since(before);
        if counted.logged + counted.unlogged == counted.refused {
            break counted;
        }
        if settling.elapsed() > SETTLES {
            let Counts { refused, logged, unlogged } = counted;
            return Err(format!("{logged} logged and {unlogged} not, of {refused} refused").into());
        }
        thread::sleep(Duration::from_millis(200));
    };
    if counted.refused > flooded {
        return Err(format!("{} refused of {flooded} sent", counted.refused).into());
    }
    let lost = allowed - arrived;
    let per_second = |count: u64| format!("{:.0}", count as f64 / seconds);
    println!(
        "| {} | {} | {} | {} | {} | {:.1} | {allowed} | {lost} |",
        flooders.len(),
        per_second(flooded),
        per_second(counted.refused),
        per_second(counted.logged),
        per_second(counted.unlogged),
        100.0 * used / seconds,
    );
    Ok(lost)
}

/// Sends datagrams to ports that nobody may use, each from another port or to another one than all before.
fn flood(sockets: &[Socket], to: Ipv4Addr, rate: Option<u64>, start: Instant) -> io::Result<u64> {
    let to = SocketAddr::new(to.into(), 0).into();
    let mut sent = 0;
    while start.elapsed() < LASTS {
        if sockets.is_empty() {
            thread::sleep(EVERY);
            continue;
        }
        let due = rate.map(|rate| rate as f64 * start.elapsed().as_secs_f64());
        if due.is_some_and(|due| sent as f64 >= due) {
            thread::sleep(EVERY);
            continue;
        }
        let ports = [1 + sent % 65_535, 10_000 + sent / 65_535].map(|port| port as u16);
        // A UDP header without a checksum, and no data.
        let [[a, b], [c, d]] = ports.map(u16::to_be_bytes);
        sockets[sent as usize % sockets.len()].send_to(&[a, b, c, d, 0, 8, 0, 0], &to)?;
        sent += 1;
    }
    Ok(sent)
}

/// Sends numbered packets that are allowed, and returns how many.
fn send(from: Ipv4Addr, to: Ipv4Addr, start: Instant) -> io::Result<u64> {
    let known = UdpSocket::bind((from, 0))?;
    let mut sent: u64 = 0;
    while start.elapsed() < LASTS {
        let fresh = match sent % FRESH {
            0 => Some(UdpSocket::bind((from, 0))?),
            _ => None,
        };
        fresh.as_ref().unwrap_or(&known).send_to(&sent.to_be_bytes(), (to, PORT))?;
        sent += 1;
        thread::sleep((EVERY * sent as u32).saturating_sub(start.elapsed()));
    }
    Ok(sent)
}

/// How many different packets arrive until it is over.
fn receive(socket: &UdpSocket, over: &AtomicBool) -> io::Result<u64> {
    let mut arrived = HashSet::new();
    let mut packet = [0; 8];
    while !over.load(Relaxed) {
        match socket.recv(&mut packet) {
            Ok(_) => _ = arrived.insert(packet),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(arrived.len() as u64)
}
