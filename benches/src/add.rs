//! How long a pod's start waits for the agent to enforce its policies: the CNI plugin's request `add`,
//! on a node of a large cluster where many flows are tracked.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use portcullis_agent::{Agent, Metrics, Unprogrammed};
use portcullis_cni::protocol::{Answer, Attachment, Request};
use portcullis_core::model::{Cluster, Node, Pod};
use portcullis_dataplane::Nftables;
use portcullis_kube::live::{Event, Kind, Known, Object};
use portcullis_lab::{Families, Lab, Options};
use portcullis_tests::engine;
use portcullis_tests::generate;
use tokio::sync::oneshot;

use crate::Outcome;
use crate::agent::{LOCAL, NODE, SIZES, all, local_pods};
use crate::cut::{FIRST_PORT, ask};
use crate::figures::{Digits, Runs};

/// The argument that makes this program do the measuring, in namespaces of its own.
pub(crate) const ONCE: &str = "add-once";

const FLOWS: u16 = 20_000;
const PORT: u16 = 65_000;
/// Links of the node to pods that come and go; two more are for flows.
const LINKS: u8 = 20;
const ADDS: usize = 200;
/// What the guard needs to be done with everything between two pods.
const PAUSE: Duration = Duration::from_millis(300);

pub(crate) fn run() -> Outcome {
    crate::in_its_own_process(ONCE)
}

fn address(n: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(192, 168, 200, n))
}

/// The links of the node are those of a lab.
fn lab() -> Outcome<Lab> {
    let pod = |n: u8| Pod {
        namespace: "default".to_owned(),
        name: format!("pod-{n}"),
        node: Some(NODE.to_owned()),
        addresses: vec![address(n)],
        ..Pod::default()
    };
    let node = Node { name: NODE.to_owned(), ..Node::default() };
    let pods = (2..4 + LINKS).map(pod).collect();
    let cluster = Cluster { pods, nodes: vec![node], ..Cluster::default() };
    let options = Options { families: Families::V4, ..Options::default() };
    Ok(Lab::up(&portcullis_lab::plan(&cluster, &options)?, |_, _| {})?)
}

/// A pod that comes and goes, with the labels of one that is there.
struct Guest {
    pod: Pod,
    attachment: Attachment,
}

impl Guest {
    fn new(like: &Pod, number: usize) -> Guest {
        let name = format!("guest-{number}");
        let attachment = Attachment {
            network: "lab".to_owned(),
            container: name.clone(),
            interface: "eth0".to_owned(),
            namespace: like.namespace.clone(),
            pod: name.clone(),
            uid: None,
            addresses: vec![address(4 + (number % usize::from(LINKS)) as u8)],
        };
        Guest { pod: Pod { name, addresses: Vec::new(), ..like.clone() }, attachment }
    }
}

fn hear(agent: &mut Agent<Nftables>, event: Event) {
    agent.hear(event, Instant::now());
    agent.step();
}

/// From the request to its answer.
fn add(agent: &mut Agent<Nftables>, guest: &Guest) -> Outcome<f64> {
    let (answer, mut answered) = oneshot::channel();
    let start = Instant::now();
    agent.asked(Request::Add(guest.attachment.clone()), start, answer);
    loop {
        let next = agent.step();
        match answered.try_recv() {
            Ok(Answer::Enforced) => return Ok(start.elapsed().as_secs_f64() * 1e3),
            Ok(other) => return Err(format!("{other:?}").into()),
            Err(_) => thread::sleep(next.saturating_duration_since(Instant::now())),
        }
    }
}

fn remove(agent: &mut Agent<Nftables>, guest: &Guest) {
    let Attachment { container, interface, .. } = guest.attachment.clone();
    let (answer, _) = oneshot::channel();
    agent.asked(Request::Delete { container, interface }, Instant::now(), answer);
    let Pod { namespace, name, .. } = guest.pod.clone();
    hear(agent, Event::Deleted(Kind::Pod, namespace, name));
}

/// Lets everything come to its end.
fn pause(agent: &mut Agent<Nftables>) {
    let end = Instant::now() + PAUSE;
    while Instant::now() < end {
        agent.step();
        thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn once() -> Outcome {
    portcullis_lab::enter()?;
    let counts = SIZES[2];
    let world = generate::cluster(1, counts);
    let mut cluster = engine::cluster(&world);
    let local = local_pods(&mut cluster);

    let lab = lab()?;
    // Flows that have been answered once stay for two minutes and more.
    let timeouts = ["udp_timeout", "udp_timeout_stream"];
    lab.in_node(0, || {
        timeouts.iter().try_for_each(|timeout| {
            fs::write(format!("/proc/sys/net/netfilter/nf_conntrack_{timeout}"), "3600")
        })
    })??;
    let metrics = Arc::<Mutex<Metrics>>::default();
    let range: IpNet = "192.168.200.0/24".parse()?;
    let agent = Agent::new(NODE, lab.in_node(0, Nftables::open)??, metrics)
        .with_unprogrammed(Unprogrammed::Closed(vec![range]));
    let mut agent = lab.in_node(0, || agent.with_guard())??;
    for kind in Kind::ALL {
        agent.hear(Event::Listing(kind), Instant::now());
        all(&cluster, kind, |object| {
            agent.hear(Event::Applied(Object::from(object)), Instant::now());
        });
        // The ends of the flows are in a namespace without policies.
        for n in [2, 3].into_iter().filter(|_| kind == Kind::Pod) {
            let pod = Pod {
                namespace: "flows".to_owned(),
                name: format!("end-{n}"),
                node: Some(NODE.to_owned()),
                addresses: vec![address(n)],
                ..Pod::default()
            };
            agent.hear(Event::Applied(Object::from(Known::Pod(pod))), Instant::now());
        }
        agent.hear(Event::Listed(kind), Instant::now());
    }
    agent.step();
    let server = lab.in_endpoint(1, || UdpSocket::bind((address(3), PORT)))??;
    let ports = FIRST_PORT..FIRST_PORT + FLOWS;
    lab.in_endpoint(0, || ports.clone().try_for_each(|port| ask(address(2), &server, port)))??;
    pause(&mut agent);

    println!(
        "{LOCAL} local pods and {} policies known, {FLOWS} flows tracked. From the request to its",
        counts.policies
    );
    println!("answer, without the plugin's process and the socket; {ADDS} pods, one by one.\n");
    println!("| the address was last another pod's | median, ms | p99, ms | greatest, ms |");
    println!("|---|---|---|---|");
    let mut number = 0;
    for (when, waits) in [("0.3 seconds ago or more", true), ("right before", false)] {
        let mut runs = Runs::default();
        for i in local.iter().cycle().take(ADDS) {
            let guest = Guest::new(&cluster.pods[*i], number);
            number += usize::from(waits);
            hear(&mut agent, Event::Applied(Object::from(Known::Pod(guest.pod.clone()))));
            runs.push(add(&mut agent, &guest)?);
            remove(&mut agent, &guest);
            if waits {
                pause(&mut agent);
            }
        }
        let [median, p99, greatest] = [runs.median(), runs.p99(), runs.greatest()].map(Digits);
        println!("| {when} | {median} | {p99} | {greatest} |");
    }
    agent.stop();
    Ok(())
}
