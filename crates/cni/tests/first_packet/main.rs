//! 2000 pods that send from their first instruction, each at an address that others had before, next
//! to an agent that is there, is slow, is killed in the middle of ADD, or is away: none of them sends
//! or receives a packet that its policies forbid. On this machine's kernel, without root, in a user
//! namespace and a network namespace of its own.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that clippy does not take for one, as it has no harness"
)]

#[path = "../../../dataplane/tests/kernel/network.rs"]
#[allow(dead_code)]
mod network;
#[path = "../../../agent/tests/live/server.rs"]
#[allow(dead_code)]
mod server;

use std::fs;
use std::io::Write;
use std::net::{IpAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Trial};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkFlags, LinkMessage};
use network::Network;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getgid, getuid};
use portcullis_agent::{Logging, Mode, Options, Socket, Unprogrammed, run};
use portcullis_cni::InForce;
use portcullis_cni::protocol::{Answer, Request, ask};
use portcullis_dataplane::Nftables;
use portcullis_dataplane::netlink::{NETLINK_ROUTE, NetlinkSocket};
use portcullis_kube::live::Access;
use serde_json::{Value, json};
use server::Server;

const BE_AN_AGENT: &str = "PORTCULLIS_TEST_AGENT";
const NODE: &str = "node-1";
/// Pods one after the other; PORTCULLIS_PODS says another number.
const PODS: usize = 2000;
/// Where pods are started, by turns: each has one address.
const PLACES: usize = 8;

fn main() -> ExitCode {
    if let Some(folder) = std::env::var_os(BE_AN_AGENT) {
        be_an_agent(Path::new(&folder));
        return ExitCode::SUCCESS;
    }
    let arguments = Arguments::from_args();
    if let Err(error) = become_root_of_a_user_namespace() {
        eprintln!("This test needs a user namespace, and this machine refuses one: {error}.");
        return ExitCode::FAILURE;
    }
    let test = Trial::test("no_pod_sends_or_receives_what_its_policies_forbid", || {
        // The panic's message has been printed already.
        thread::spawn(first_packets).join().map_err(|_| "the test panicked".into())
    });
    libtest_mimic::run(&arguments, vec![test]).exit_code()
}

fn be_an_agent(folder: &Path) {
    let options = Options {
        node: NODE.to_owned(),
        access: Access { kubeconfig: Some(folder.join("kubeconfig")), ..Access::default() },
        metrics_address: None,
        api_address: None,
        unprogrammed: Unprogrammed::Closed(Vec::new()),
        log: Logging::default(),
        events: false,
        mode: Mode::Enforce,
        keep_established: false,
        allow_spoofing: false,
        socket: Some(socket(folder)),
    };
    run(options, Nftables::open().unwrap()).unwrap();
}

fn socket(folder: &Path) -> Socket {
    Socket { path: folder.join("agent.sock"), attachments: folder.join("attachments") }
}

/// Must come before the first thread.
fn become_root_of_a_user_namespace() -> std::io::Result<()> {
    let (uid, gid) = (getuid(), getgid());
    unshare(CloneFlags::CLONE_NEWUSER)?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
}

/// Moves the calling thread, and those that it will start, into a network of their own.
fn own_network() {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    let mut loopback = LinkMessage::default();
    loopback.header.index = 1;
    loopback.header.flags = LinkFlags::Up;
    loopback.header.change_mask = LinkFlags::Up;
    let mut socket = NetlinkSocket::open(NETLINK_ROUTE).unwrap();
    socket.request(RouteNetlinkMessage::SetLink(loopback), 0).unwrap();
}

/// An agent in a process of its own. SIGKILL when dropped.
struct Agent(Child);

impl Agent {
    fn start(folder: &Path) -> Agent {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env(BE_AN_AGENT, folder).stdin(Stdio::null()).stderr(Stdio::null());
        let agent = Agent(command.spawn().unwrap());
        eventually(|| {
            let answer = ask(&socket(folder).path, &Request::Status, Duration::from_secs(1));
            answer.is_ok_and(|answer| answer == Answer::Ready)
        });
        agent
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id() as i32), signal).unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn eventually(is: impl Fn() -> bool) {
    let start = Instant::now();
    while !is() {
        assert!(start.elapsed() < Duration::from_secs(30), "never");
        thread::sleep(Duration::from_millis(2));
    }
}

/// What the agent does while a pod is added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Behaviour {
    Up,
    Slow,
    Killed,
    Away,
}

/// How ADD ended, for each pod.
#[derive(Debug, Default)]
struct Added {
    enforced: Vec<Duration>,
    /// It started, without an agent that answered.
    closed: usize,
    /// It did not start at first.
    tried_again: usize,
}

/// A pod of the test: `talks` may send to port 54 of the peer; no pod may do anything else.
struct Pod {
    number: usize,
    talks: bool,
    address: IpAddr,
}

impl Pod {
    fn name(&self) -> String {
        // Some names are used again and again, as those of a StatefulSet.
        match self.number / PLACES % 3 {
            0 => format!("p{}", self.number),
            _ => format!("db-{}", self.number % PLACES),
        }
    }

    fn uid(&self) -> String {
        format!("uid-{}", self.number)
    }

    fn container(&self) -> String {
        format!("sandbox-{}", self.number)
    }

    fn object(&self, with_address: bool) -> Value {
        let app = if self.talks { "talks" } else { "silent" };
        let addresses =
            if with_address { json!([{"ip": self.address.to_string()}]) } else { json!([]) };
        json!({
            "metadata": {"name": self.name(), "namespace": "shop", "uid": self.uid(), "labels": {"app": app}},
            "spec": {"nodeName": NODE, "containers": [{"name": "c"}]},
            "status": {"phase": if with_address { "Running" } else { "Pending" }, "podIPs": addresses},
        })
    }

    /// Calls the plugin as a runtime does, and says whether it succeeded.
    fn call(&self, command: &str, folder: &Path) -> Child {
        let Socket { path, attachments } = socket(folder);
        let configuration = json!({
            "cniVersion": "1.0.0", "name": "net", "type": "portcullis-cni",
            "socket": path, "attachments": attachments,
            "prevResult": {"cniVersion": "1.0.0", "ips": [{"address": format!("{}/24", self.address)}]},
        });
        let arguments = format!(
            "K8S_POD_NAMESPACE=shop;K8S_POD_NAME={};K8S_POD_UID={}",
            self.name(),
            self.uid()
        );
        let mut child = Command::new(env!("CARGO_BIN_EXE_portcullis-cni"))
            .envs([("CNI_COMMAND", command), ("CNI_NETNS", "/run/netns/pod")])
            .envs([("CNI_CONTAINERID", &*self.container()), ("CNI_IFNAME", "eth0")])
            .env("CNI_ARGS", arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(configuration.to_string().as_bytes()).unwrap();
        child
    }
}

fn folder() -> PathBuf {
    let folder = std::env::temp_dir().join(format!("first-packet-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn cluster(server: &Server) {
    server.put("namespaces", json!({"metadata": {"name": "shop"}}));
    server.put(
        "nodes",
        json!({
            "metadata": {"name": NODE},
            "spec": {"podCIDRs": ["10.0.0.0/16"]},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.168.0.1"}]},
        }),
    );
    server.put(
        "pods",
        json!({
            "metadata": {"name": "peer", "namespace": "other", "uid": "peer"},
            "spec": {"nodeName": NODE, "containers": [{"name": "c"}]},
            "status": {"phase": "Running", "podIPs": [{"ip": "10.0.1.2"}]},
        }),
    );
    let policy = |name: &str, spec: Value| {
        let metadata = json!({"name": name, "namespace": "shop"});
        server.put("networkpolicies", json!({"metadata": metadata, "spec": spec}));
    };
    policy("all", json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}));
    policy(
        "talks",
        json!({
            "podSelector": {"matchLabels": {"app": "talks"}}, "policyTypes": ["Egress"],
            "egress": [{"ports": [{"port": 54, "protocol": "UDP"}]}],
        }),
    );
}

/// What the peer has received: number of the pod, and the port.
fn received(sockets: &[(u16, UdpSocket)]) -> Vec<(usize, u16)> {
    let mut all = Vec::new();
    for (port, socket) in sockets {
        let mut buffer = [0; 8];
        while let Ok(length) = socket.recv(&mut buffer) {
            let number = buffer[..length].try_into().map(usize::from_ne_bytes);
            all.push((number.unwrap(), *port));
        }
    }
    all
}

fn behaviour(number: usize, of: usize) -> Behaviour {
    match number * 10 / of {
        0..6 => Behaviour::Up,
        6..8 => Behaviour::Slow,
        8 => Behaviour::Killed,
        _ => Behaviour::Away,
    }
}

fn first_packets() {
    let pods = std::env::var("PORTCULLIS_PODS").ok().and_then(|n| n.parse().ok()).unwrap_or(PODS);
    own_network();
    // The first is the peer of all, the others are the places.
    let network = Network::with_pods(PLACES as u8 + 1);
    let (peer, places) = network.pods.split_first().unwrap();
    let peer_address: IpAddr = "10.0.1.2".parse().unwrap();
    let folder = &folder();
    let server = &Server::start(30);
    fs::copy(server.kubeconfig(), folder.join("kubeconfig")).unwrap();
    cluster(server);
    let sockets: Vec<(u16, UdpSocket)> = [53, 54]
        .map(|port| {
            let socket = peer.udp(peer_address, port);
            socket.set_nonblocking(true).unwrap();
            (port, socket)
        })
        .into();
    let mut agent = Some(Agent::start(folder));
    let mut added = Added::default();
    let (mut forbidden, mut allowed_passed, mut talkers) = (Vec::new(), 0, 0);
    let mut received_by_pods = 0;
    let mut before: Vec<Option<Pod>> = (0..PLACES).map(|_| None).collect();
    let end = AtomicBool::new(false);
    thread::scope(|scope| {
        // Somebody who tries to reach every pod, all the time.
        let knocking = peer.udp(peer_address, 0);
        let end = &end;
        scope.spawn(move || {
            while !end.load(Relaxed) {
                for place in 0..PLACES {
                    let _ = knocking.send_to(b"?", (IpAddr::from([10, 0, place as u8 + 2, 2]), 60));
                }
                thread::sleep(Duration::from_micros(200));
            }
        });
        for number in 0..pods {
            let place = number % PLACES;
            let address = IpAddr::from([10, 0, place as u8 + 2, 2]);
            let pod = Pod { number, talks: number.is_multiple_of(2), address };
            let behaviour = behaviour(number, pods);
            // Every other pod that finds no agent finds an address that is free in the kernel too.
            let freed = behaviour == Behaviour::Away && number.is_multiple_of(2);
            if agent.is_none() && (freed || behaviour != Behaviour::Away) {
                agent = Some(Agent::start(folder));
            }
            // The pod before goes. The server may hear of that late, or when the next is there.
            let old = before[place].take();
            if let Some(old) = &old {
                assert!(old.call("DEL", folder).wait().unwrap().success());
            }
            let told_late = number % 10 == 7 && behaviour != Behaviour::Away;
            let same_name = old.as_ref().is_some_and(|old| old.name() == pod.name());
            let mut old = old.map(|old| old.name());
            let delete = move |name: String| server.delete("pods", "shop", &name);
            if freed || number.is_multiple_of(3) || same_name && !told_late {
                old.take().into_iter().for_each(delete);
            }
            if freed {
                eventually(|| {
                    !InForce::read(&socket(folder).path).unwrap().programmed.contains(&address)
                });
                agent = None;
            }
            if told_late {
                let object = pod.object(false);
                let gone = if same_name { old.take() } else { None };
                scope.spawn(move || {
                    thread::sleep(Duration::from_millis(10));
                    gone.into_iter().for_each(delete);
                    server.put("pods", object);
                });
            } else {
                server.put("pods", pod.object(false));
            }
            add(&pod, behaviour, &mut agent, folder, &mut added);

            // From here on the pod runs.
            let first = &places[place];
            let listening = first.udp(address, 60);
            let sending = first.udp(address, 0);
            for _ in 0..3 {
                for port in [53, 54] {
                    let _ = sending.send_to(&number.to_ne_bytes(), (peer_address, port));
                }
            }
            old.into_iter().for_each(delete);
            server.put("pods", pod.object(true));
            for port in [53, 54] {
                let _ = sending.send_to(&number.to_ne_bytes(), (peer_address, port));
            }
            thread::sleep(Duration::from_millis(2));
            listening.set_nonblocking(true).unwrap();
            received_by_pods += usize::from(listening.recv(&mut [0; 8]).is_ok());
            let came = received(&sockets);
            let passed = came.iter().any(|(from, port)| (*from, *port) == (number, 54));
            if behaviour == Behaviour::Up && pod.talks && !told_late {
                talkers += 1;
                allowed_passed += usize::from(passed);
            }
            forbidden.extend(came.into_iter().filter(|(n, port)| *port == 53 || n % 2 == 1));
            before[place] = Some(pod);
        }
        end.store(true, Relaxed);
    });
    drop(agent);
    added.enforced.sort();
    let at = |percent: usize| added.enforced[(added.enforced.len() - 1) * percent / 100];
    println!(
        "{pods} pods; with the agent {}: ADD p50 {:.1?}, p99 {:.1?}, at most {:.1?}; without it \
         started closed {}, tried again {}",
        added.enforced.len(),
        at(50),
        at(99),
        at(100),
        added.closed,
        added.tried_again
    );
    fs::remove_dir_all(folder).unwrap();
    assert_eq!(forbidden, [], "what a policy forbids was sent: pod and port");
    assert_eq!(received_by_pods, 0, "what a policy forbids was received");
    // Otherwise it would show nothing.
    assert_eq!(allowed_passed, talkers, "pods whose first packets are allowed");
    assert!(talkers > pods / 10, "{talkers}");
    assert!(added.closed > 0 && added.tried_again > 0, "no pod found the agent away");
}

/// Starts the pod, as often as it takes.
fn add(
    pod: &Pod,
    behaviour: Behaviour,
    agent: &mut Option<Agent>,
    folder: &Path,
    added: &mut Added,
) {
    for attempt in 0.. {
        let start = Instant::now();
        let mut child = pod.call("ADD", folder);
        match (behaviour, agent.as_ref()) {
            (Behaviour::Slow, Some(slow)) => {
                slow.signal(Signal::SIGSTOP);
                thread::sleep(Duration::from_millis(pod.number as u64 % 30));
                slow.signal(Signal::SIGCONT);
            }
            (Behaviour::Killed, Some(_)) if attempt == 0 => {
                thread::sleep(Duration::from_micros(pod.number as u64 * 37 % 4000));
                drop(agent.take());
            }
            _ => {}
        }
        let success = child.wait().unwrap().success();
        let took = start.elapsed();
        match (success, behaviour) {
            (true, Behaviour::Up) => added.enforced.push(took),
            (true, _) if agent.is_none() => added.closed += 1,
            _ => {}
        }
        if success {
            return;
        }
        assert!(attempt < 3, "pod {} does not start", pod.number);
        // A runtime tries again, and the agent is back by then.
        added.tried_again += usize::from(attempt == 0);
        if agent.is_none() {
            *agent = Some(Agent::start(folder));
        }
    }
}
