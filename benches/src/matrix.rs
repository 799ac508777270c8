//! New connections and throughput through the kernel rules, by the number of local pods and of
//! policies.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};

use portcullis_dataplane::state::NodeState;
use portcullis_dataplane::{Dataplane, Nftables};
use portcullis_lab::{Families, Lab, Options};

use crate::Outcome;
use crate::connections::{
    self, Form, NODE, PORT, SERVER, cluster, pair, per_second, pod, selector,
};
use crate::cut::gigabits;
use crate::figures::{Runs, in_turns};

/// The argument that makes this program do the measuring, in namespaces of its own.
pub(crate) const ONCE: &str = "--matrix-once";

/// The client and the server among them.
const PODS: [u32; 3] = [2, 110, 1_000];
const POLICIES: [u32; 3] = [1, 100, 10_000];
const ROUNDS: usize = 301;

/// A lab with some rules on its node, and a stream through them.
struct Way {
    rules: String,
    lab: Lab,
    listener: TcpListener,
    stream: [TcpStream; 2],
    rate: Runs,
    bits: Runs,
}

impl Way {
    fn new(rules: String, state: Option<&NodeState>) -> Outcome<Way> {
        let options = Options { families: Families::V4, ..Options::default() };
        let lab = Lab::up(&portcullis_lab::plan(&pair(), &options)?, |_, _| {})?;
        let listener = lab.in_endpoint(1, || TcpListener::bind((SERVER, PORT)))??;
        if let Some(state) = state {
            lab.in_node(0, Nftables::open)??.apply(state)?;
        }
        let to = SocketAddr::new(SERVER, PORT);
        let client = lab.in_endpoint(0, || TcpStream::connect(to))??;
        let (server, _) = listener.accept()?;
        let (rate, bits) = (Runs::default(), Runs::default());
        Ok(Way { rules, lab, listener, stream: [client, server], rate, bits })
    }
}

/// The client, the server that all policies select, and other pods of the node, each of which one of
/// the policies selects.
fn state(pods: u32, policies: u32) -> Outcome<NodeState> {
    let mut cluster = cluster(&Form::Pods, policies)?;
    for number in 0..pods - 2 {
        let name = format!("local-{number}");
        let address = IpAddr::V4(Ipv4Addr::from(0x0a01_0000 + number));
        cluster.pods.push(pod(&name, address, NODE));
        let mut policy = cluster.policies[(number % policies) as usize].clone();
        policy.name = format!("of-{name}");
        policy.subject = selector(&name);
        cluster.policies.push(policy);
    }
    connections::state(&cluster)
}

pub(crate) fn run() -> Outcome {
    crate::in_its_own_process(ONCE)
}

pub(crate) fn once() -> Outcome {
    portcullis_lab::enter()?;
    let tracking = "connection tracking alone";
    let mut ways = vec![
        Way::new(tracking.to_owned(), Some(&NodeState::default()))?,
        Way::new(format!("{tracking}, once more"), Some(&NodeState::default()))?,
        Way::new("no rules".to_owned(), None)?,
    ];
    for pods in PODS {
        for policies in POLICIES {
            let state = state(pods, policies)?;
            ways.push(Way::new(format!("{pods} pods, {policies} policies"), Some(&state))?);
        }
    }
    in_turns(ROUNDS, &mut ways, |way| {
        way.rate.push(way.lab.in_endpoint(0, || per_second(&way.listener))??);
        way.bits.push(gigabits(&mut way.stream)?);
        Ok(())
    })?;
    println!("Median (least–greatest) of {ROUNDS} rounds; each round measures all rows, in random");
    println!("order.\n");
    println!("| rules | connections/s | of tracking alone | stream, Gbit/s | of tracking alone |");
    println!("|---|---|---|---|---|");
    let alone = [ways[0].rate.median(), ways[0].bits.median()];
    for Way { rules, rate, bits, .. } in &ways {
        let [rates, bitss] = [rate.median() / alone[0], bits.median() / alone[1]];
        println!("| {rules} | {rate} | {rates:.3} | {bits} | {bitss:.3} |");
    }
    Ok(())
}
