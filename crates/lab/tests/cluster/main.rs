//! Clusters that are up: what their pods can send from their first instruction on, and what becomes
//! of all that while everything changes.
//!
//! Labs need a process that is single-threaded when it enters its namespaces, so this has a `main`
//! of its own. It is also the agents of these labs, and the commands of their pods.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that clippy does not take for one, as it has no harness"
)]

mod chaos;
mod first_packet;
mod streams;

use std::net::{IpAddr, TcpListener};
use std::process::ExitCode;
use std::sync::Mutex;
use std::thread;

use libtest_mimic::{Arguments, Trial};
use portcullis_apiserver::{Resource, Server};
use portcullis_lab::{Cluster, Options, Topology, enter, started_by_a_lab};
use serde_json::Value;

/// Where the API servers of these labs listen, each once: opened before the lab's own network is
/// entered.
static LISTENERS: Mutex<Vec<TcpListener>> = Mutex::new(Vec::new());

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    if let Some(code) = started_by_a_lab(&arguments) {
        return code;
    }
    if arguments.first().is_some_and(|first| first == first_packet::COMMAND) {
        first_packet::be_a_command(&arguments[1..]);
        return ExitCode::SUCCESS;
    }
    let mut arguments = Arguments::from_args();
    // One cluster at a time is enough for a small machine.
    arguments.test_threads = Some(1);
    let tests: [(&str, fn()); 4] = [
        ("the_first_packet_of_a_pod_meets_its_policies", || first_packet::test(Topology::Routed)),
        ("so_it_does_on_a_bridge", || first_packet::test(Topology::Bridged)),
        ("nothing_gets_through_that_no_state_allows", || chaos::test(Topology::Routed)),
        ("nor_does_it_on_a_bridge", || chaos::test(Topology::Bridged)),
    ];
    let listeners = tests.iter().map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    LISTENERS.lock().unwrap().extend(listeners);
    if let Err(error) = enter() {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    let trial = |(name, test): (&str, fn())| {
        // The panic's message has been printed already.
        let run = move || thread::spawn(test).join().map_err(|_| "the test panicked".into());
        Trial::test(name, run)
    };
    libtest_mimic::run(&arguments, tests.into_iter().map(trial).collect()).exit_code()
}

/// A cluster of three nodes.
fn cluster(topology: Topology) -> Cluster {
    let listener = LISTENERS.lock().unwrap().pop().expect("a listener for each test");
    let options = Options { nodes: 3, topology, ..Options::default() };
    let name = format!("agents-{}", listener.local_addr().unwrap().port());
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    // What a run before has left.
    let _ = std::fs::remove_dir_all(&folder);
    Cluster::up(listener, &options, &folder, None).unwrap()
}

/// A pod as the API server has it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Known {
    uid: String,
    /// `namespace/name`
    name: String,
    node: String,
    addresses: Vec<IpAddr>,
}

/// All pods, and the revision that they are of.
fn pods(server: &Server) -> (Vec<Known>, u64) {
    let kind = Resource::of_kind("Pod").unwrap();
    server.store().read(|state| {
        let all = state.list(kind, None).map(|(key, pod)| {
            let text = |path: &str| {
                pod.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned()
            };
            let ips = pod.pointer("/status/podIPs").and_then(Value::as_array);
            let ips = ips.into_iter().flatten();
            Known {
                uid: text("/metadata/uid"),
                name: format!("{}/{}", key.namespace, key.name),
                node: text("/spec/nodeName"),
                addresses: ips.map(|ip| ip["ip"].as_str().unwrap().parse().unwrap()).collect(),
            }
        });
        (all.collect(), state.revision())
    })
}
