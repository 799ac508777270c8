//! Pods that send, and are sent to, from their first instruction on.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use portcullis_lab::{Cluster, Topology};
use serde_json::{Value, json};

use crate::{cluster, pods};

/// The first argument by which this program knows that it is the command of a pod of this test.
pub(crate) const COMMAND: &str = "first-packet";
/// What pods send to, and what is sent to them.
const OUT: u16 = 7001;
const IN: u16 = 7002;
/// Of these, every other one may send.
const PODS: usize = 60;

/// Sends at once, waits a while for what is sent to it, and says whether anything came: to the socket
/// at the path, as its number and `1` or `0`.
pub(crate) fn be_a_command(arguments: &[OsString]) {
    let [number, to, report] = arguments else { panic!("{arguments:?}") };
    let (number, to) = (number.to_str().unwrap(), to.to_str().unwrap());
    let sending = UdpSocket::bind("0.0.0.0:0").unwrap();
    // The kernel may refuse, which is as good as losing it.
    let _ = sending.send_to(number.as_bytes(), (to, OUT));
    let listening = UdpSocket::bind(("0.0.0.0", IN)).unwrap();
    listening.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let came = u8::from(listening.recv(&mut [0; 8]).is_ok());
    let said =
        UnixDatagram::unbound().unwrap().send_to(format!("{number} {came}").as_bytes(), report);
    said.unwrap();
    // A command that ends is started again.
    thread::sleep(Duration::from_secs(600));
}

fn pod(name: &str, app: &str, node: &str, command: Option<Vec<String>>) -> Value {
    let mut container = json!({"name": "c", "image": "none"});
    if let Some(command) = command {
        container["stdin"] = true.into();
        container["command"] = command.into();
    }
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "first", "labels": {"app": app}},
        "spec": {"nodeName": node, "containers": [container]},
    })
}

fn policy(name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": "first"},
        "spec": spec,
    })
}

fn socket_in(cluster: &Cluster, uid: &str, port: u16) -> UdpSocket {
    let socket = cluster.in_pod(uid, || UdpSocket::bind(("0.0.0.0", port)).unwrap());
    let socket = socket.expect("it is up").unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

/// No pod may be sent anything, and of the pods only `talks` may send, to the one that listens.
pub(crate) fn test(topology: Topology) {
    let cluster = cluster(topology);
    let server = cluster.server();
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "first"}});
    server.apply(&namespace).unwrap();
    server.apply(&pod("peer", "peer", "node-1", None)).unwrap();
    let both = json!(["Ingress", "Egress"]);
    let silent =
        json!({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["peer"]}]});
    server.apply(&policy("nothing", json!({"podSelector": silent, "policyTypes": both}))).unwrap();
    let to = json!([{"podSelector": {"matchLabels": {"app": "peer"}}}]);
    let talks = json!({
        "podSelector": {"matchLabels": {"app": "talks"}}, "policyTypes": ["Egress"],
        "egress": [{"to": to, "ports": [{"port": OUT, "protocol": "UDP"}]}],
    });
    server.apply(&policy("talks", talks)).unwrap();
    cluster.settle().unwrap();
    let peer = pods(server).0.into_iter().find(|pod| pod.name == "first/peer").unwrap();
    let address = peer.addresses[0];
    let received = socket_in(&cluster, &peer.uid, OUT);
    let knocking = socket_in(&cluster, &peer.uid, 0);

    let reports = report_path(topology);
    let _ = std::fs::remove_file(&reports);
    let report = UnixDatagram::bind(&reports).unwrap();
    report.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let program = std::env::current_exe().unwrap().to_str().unwrap().to_owned();
    let end = AtomicBool::new(false);
    let mut reached = Vec::new();
    thread::scope(|scope| {
        // Somebody who tries every address that a pod can get, all the time.
        scope.spawn(|| {
            while !end.load(Relaxed) {
                for node in 1..=3u8 {
                    for host in 2..(PODS as u8) {
                        let to = SocketAddr::new(IpAddr::from([10, 244, node, host]), IN);
                        let _ = knocking.send_to(b"?", to);
                    }
                    thread::sleep(Duration::from_micros(300));
                }
            }
        });
        for number in 0..PODS {
            let app = if number.is_multiple_of(2) { "talks" } else { "silent" };
            let command = [&program, COMMAND, &number.to_string(), &address.to_string()];
            let mut command: Vec<String> = command.iter().map(|word| (*word).to_owned()).collect();
            command.push(reports.to_str().unwrap().to_owned());
            let node = format!("node-{}", number % 3 + 1);
            server.apply(&pod(&format!("p{number}"), app, &node, Some(command))).unwrap();
        }
        for _ in 0..PODS {
            let mut buffer = [0; 16];
            let length = report.recv(&mut buffer).expect("a command that does not report");
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if text.ends_with(" 1") {
                reached.push(text);
            }
        }
        end.store(true, Relaxed);
    });
    std::fs::remove_file(&reports).unwrap();
    let mut sent = Vec::new();
    let mut buffer = [0; 16];
    while let Ok(length) = received.recv(&mut buffer) {
        sent.push(String::from_utf8_lossy(&buffer[..length]).parse::<usize>().unwrap());
    }
    sent.sort_unstable();
    let allowed: Vec<usize> = (0..PODS).step_by(2).collect();
    assert_eq!(sent, allowed, "the pods whose first packet arrived");
    assert_eq!(reached, [""; 0], "pods that were reached");
    // Otherwise nobody knocked.
    cluster.server().delete("networking.k8s.io/v1", "NetworkPolicy", "first", "nothing").unwrap();
    let talks = "networking.k8s.io/v1";
    cluster.server().delete(talks, "NetworkPolicy", "first", "talks").unwrap();
    cluster.settle().unwrap();
    let open = pods(server).0.into_iter().find(|pod| pod.name == "first/p1").unwrap();
    let listening = socket_in(&cluster, &open.uid, IN + 1);
    let start = Instant::now();
    while listening.recv(&mut buffer).is_err() {
        let _ = knocking.send_to(b"?", SocketAddr::new(open.addresses[0], IN + 1));
        assert!(start.elapsed() < Duration::from_secs(30), "nobody reaches a pod that is open");
        thread::sleep(Duration::from_millis(1));
    }
}

/// In a directory that pods see too.
fn report_path(topology: Topology) -> PathBuf {
    let name = format!("first-{topology:?}-{}", std::process::id());
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(name)
}
