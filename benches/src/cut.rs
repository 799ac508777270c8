//! How soon connections are cut that a new state does not allow, and what packets of known
//! connections pay for that.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use portcullis_core::model::{Cluster, Node, Pod};
use portcullis_core::net::Protocol;
use portcullis_dataplane::state::{Entry, NodeState, PeerSet, Ports, Profile};
use portcullis_dataplane::{Connections, Dataplane, Nftables, Sources};
use portcullis_lab::{Families, Lab, Options};

use crate::Outcome;
use crate::figures::{Runs, in_turns};

/// The argument that makes this program do the measuring, in namespaces of its own.
pub(crate) const ONCE: &str = "--cut-once";

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));
const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 3));
/// Allowed by every state.
const ALLOWED: u16 = 65_000;
/// Allowed by every other state.
const AT_TIMES: u16 = 65_001;
pub(crate) const FIRST_PORT: u16 = 20_000;
const SIZES: [u16; 3] = [1_000, 5_000, 20_000];
const CUTS: usize = 21;
const ROUNDS: usize = 201;
const ROUND_TRIPS: u32 = 500;
const STREAM_BYTES: usize = 32 << 20;

pub(crate) fn run() -> Outcome {
    crate::in_its_own_process(ONCE)
}

pub(crate) fn once() -> Outcome {
    portcullis_lab::enter()?;
    cut()?;
    println!();
    known()
}

/// A lab of two pods on one node.
fn lab() -> Outcome<Lab> {
    let pod = |name: &str, address| Pod {
        namespace: "default".to_owned(),
        name: name.to_owned(),
        node: Some("node-1".to_owned()),
        addresses: vec![address],
        ..Pod::default()
    };
    let node = Node { name: "node-1".to_owned(), ..Node::default() };
    let pods = vec![pod("client", CLIENT), pod("server", SERVER)];
    let cluster = Cluster { pods, nodes: vec![node], ..Cluster::default() };
    let options = Options { families: Families::V4, ..Options::default() };
    Ok(Lab::up(&portcullis_lab::plan(&cluster, &options)?, |_, _| {})?)
}

/// The server lets the client in on these ports, and other pods on a port each.
fn state(ports: &[u16], others: u32) -> NodeState {
    let entry = |peers, port| {
        [Protocol::Tcp, Protocol::Udp].map(|protocol| Entry {
            peers: Some(peers),
            ports: Some(Ports { protocol, first: port, last: port }),
            origin: 0,
        })
    };
    let other = |n: u32| IpAddr::from(Ipv4Addr::from(0x0b00_0000 + n));
    let client = ports.iter().flat_map(|port| entry(0, *port));
    let entries = client.chain((0..others).flat_map(|n| entry(1 + n, 1 + n as u16))).collect();
    let peers = [CLIENT].into_iter().chain((0..others).map(other));
    NodeState {
        endpoints: [(CLIENT, 0), (SERVER, 1)].into(),
        profiles: [
            (0, Profile::default()),
            (1, Profile { ingress: Some(entries), ..Profile::default() }),
        ]
        .into(),
        peers: (0..).zip(peers.map(|a| PeerSet::Addresses([a].into_iter().collect()))).collect(),
        ..NodeState::default()
    }
}

fn cut() -> Outcome {
    println!(
        "Half of the flows are no longer allowed. Milliseconds from the state in force to the"
    );
    println!("kernel's word that they are cut, median (least–greatest) of {CUTS}.\n");
    println!("| flows tracked | of these cut | ms |");
    println!("|---|---|---|");
    for flows in SIZES {
        let lab = lab()?;
        let mut nftables = lab.in_node(0, Nftables::open)??;
        let mut connections = lab.in_node(0, Connections::open)??;
        let (before, after) = (state(&[ALLOWED, AT_TIMES], 1000), state(&[ALLOWED], 1000));
        nftables.apply(&before)?;
        connections.judge(&before)?;
        for port in [ALLOWED, AT_TIMES] {
            let server = lab.in_endpoint(1, || UdpSocket::bind((SERVER, port)))??;
            lab.in_endpoint(0, || {
                (0..flows / 2).try_for_each(|n| ask(CLIENT, &server, FIRST_PORT + n))
            })??;
        }
        let mut runs = Runs::default();
        let mut tracked = 0;
        for _ in 0..CUTS {
            nftables.apply(&after)?;
            let judged = connections.judge(&after)?;
            if judged.newly_cut != usize::from(flows / 2) {
                return Err(format!("cut {} of {flows}", judged.newly_cut).into());
            }
            tracked = judged.tracked;
            runs.push(judged.elapsed.as_secs_f64() * 1000.0);
            nftables.apply(&before)?;
            connections.judge(&before)?;
        }
        println!("| {tracked} | {} | {runs} |", flows / 2);
    }
    Ok(())
}

/// A datagram from this port and its answer make a known flow.
pub(crate) fn ask(client: IpAddr, server: &UdpSocket, port: u16) -> io::Result<()> {
    let client = UdpSocket::bind((client, port))?;
    client.set_read_timeout(Some(Duration::from_secs(5)))?;
    client.connect(server.local_addr()?)?;
    client.send(b"?")?;
    let (_, from) = server.recv_from(&mut [0; 8])?;
    server.send_to(b"!", from)?;
    client.recv(&mut [0; 8]).map(drop)
}

/// A lab with some rules on its node, and known connections through them.
struct Way {
    rules: String,
    // What is in force is in force as long as the lab is there.
    _lab: Lab,
    stream: [TcpStream; 2],
    datagrams: [UdpSocket; 2],
    bytes: Runs,
    round_trips: Runs,
}

impl Way {
    fn new(rules: &str, policies: Option<u32>, guarded: bool, cut: u16) -> Outcome<Way> {
        let lab = lab()?;
        let mut nftables = lab.in_node(0, Nftables::open)??;
        let open = policies.map_or_else(NodeState::default, |n| state(&[ALLOWED, AT_TIMES], n));
        nftables.apply(&open)?;
        let listener = lab.in_endpoint(1, || TcpListener::bind((SERVER, ALLOWED)))??;
        let to = SocketAddr::new(SERVER, ALLOWED);
        let client = lab.in_endpoint(0, || TcpStream::connect(to))??;
        let (server, _) = listener.accept()?;
        let answering = lab.in_endpoint(1, || UdpSocket::bind((SERVER, ALLOWED)))??;
        let asking = lab.in_endpoint(0, || UdpSocket::bind((CLIENT, FIRST_PORT)))??;
        asking.connect(to)?;
        answering.connect((CLIENT, FIRST_PORT))?;
        if cut > 0 {
            let server = lab.in_endpoint(1, || UdpSocket::bind((SERVER, AT_TIMES)))??;
            let ports = FIRST_PORT + 1..=FIRST_PORT + cut;
            lab.in_endpoint(0, || ports.clone().try_for_each(|port| ask(CLIENT, &server, port)))??;
            let closed = state(&[ALLOWED], policies.unwrap_or_default());
            nftables.apply(&closed)?;
            let judged = lab.in_node(0, Connections::open)??.judge(&closed)?;
            if judged.cut != usize::from(cut) {
                return Err(format!("cut {}, not {cut}", judged.cut).into());
            }
        }
        if guarded {
            lab.in_node(0, Sources::open)??.follow(&open)?;
        }
        Ok(Way {
            rules: rules.to_owned(),
            _lab: lab,
            stream: [client, server],
            datagrams: [asking, answering],
            bytes: Runs::default(),
            round_trips: Runs::default(),
        })
    }

    fn measure(&mut self) -> io::Result<()> {
        let [asking, answering] = &self.datagrams;
        let started = Instant::now();
        for _ in 0..ROUND_TRIPS {
            asking.send(b"?")?;
            answering.recv(&mut [0; 8])?;
            answering.send(b"!")?;
            asking.recv(&mut [0; 8])?;
        }
        self.round_trips.push(f64::from(ROUND_TRIPS) / started.elapsed().as_secs_f64());

        self.bytes.push(gigabits(&mut self.stream)?);
        Ok(())
    }
}

/// Gigabits per second of a stream from the client to the server.
pub(crate) fn gigabits(stream: &mut [TcpStream; 2]) -> io::Result<f64> {
    let [client, server] = stream;
    let started = Instant::now();
    thread::scope(|scope| {
        let writing = scope.spawn(|| {
            let block = [0; 128 << 10];
            (0..STREAM_BYTES / block.len()).try_for_each(|_| client.write_all(&block))
        });
        let mut left = STREAM_BYTES;
        let mut block = [0; 128 << 10];
        while left > 0 {
            match server.read(&mut block)? {
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
                read => left -= read,
            }
        }
        writing.join().unwrap_or_else(|_| Err(io::Error::other("the writer broke")))
    })?;
    let bits = STREAM_BYTES as f64 * 8.0 / 1e9;
    Ok(bits / started.elapsed().as_secs_f64())
}

fn known() -> Outcome {
    let mut ways = vec![
        Way::new("connection tracking alone", None, false, 0)?,
        Way::new("connection tracking alone, once more", None, false, 0)?,
        Way::new("1000 policies", Some(1000), false, 0)?,
        Way::new("1000 policies, sources guarded", Some(1000), true, 0)?,
        Way::new("the same, while 1000 flows are cut", Some(1000), true, 1000)?,
    ];
    in_turns(ROUNDS, &mut ways, |way| Ok(way.measure()?))?;
    println!(
        "Packets of known connections: one TCP stream, and datagrams of one byte that are sent,"
    );
    println!("received, answered and received by one thread. Median (least–greatest) of {ROUNDS}");
    println!("rounds, each with all rows in random order.\n");
    println!("| rules | stream, Gbit/s | of tracking alone | round trips/s | of tracking alone |");
    println!("|---|---|---|---|---|");
    let alone = [ways[0].bytes.median(), ways[0].round_trips.median()];
    for Way { rules, bytes, round_trips, .. } in &ways {
        let [stream, trips] = [bytes.median() / alone[0], round_trips.median() / alone[1]];
        println!("| {rules} | {bytes} | {stream:.3} | {round_trips} | {trips:.3} |");
    }
    Ok(())
}
