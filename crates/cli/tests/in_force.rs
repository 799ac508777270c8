//! `wait`, `status` and `observe` in a lab of three nodes, by port-forwards to the agents: what a policy
//! refuses never passes after `wait` has returned, which probers check with real packets.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that clippy does not take for one, as it has no harness"
)]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkFlags, LinkMessage};
use portcullis_dataplane::netlink::{NETLINK_ROUTE, NetlinkSocket};
use portcullis_lab::{Cluster, Families, Lab, Options};
use portcullis_tests::folder::Folder;
use portcullis_tests::process::Running;
use serde_json::{Value, json};

const PORT: u16 = 5353;
const CHANGES: usize = 40;
/// Every fifth change only audits.
const AUDIT: usize = 5;
/// Manifests without a policy.
const NO_POLICY: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/default-deny-all/app.yaml");

fn main() -> ExitCode {
    let own: Vec<_> = std::env::args_os().skip(1).collect();
    if let Some(code) = portcullis_lab::started_by_a_lab(&own) {
        return code;
    }
    let test = Trial::test("no_refused_packet_passes_after_wait_has_returned", || {
        // The panic's message has been printed already.
        thread::spawn(test).join().map_err(|_| "the test panicked".into())
    });
    portcullis_tests::in_lab::run(|| Ok(vec![test]))
}

/// The API server is reached from the network that this process is in.
fn raise_loopback() {
    let mut loopback = LinkMessage::default();
    loopback.header.index = 1;
    loopback.header.flags = LinkFlags::Up;
    loopback.header.change_mask = LinkFlags::Up;
    let mut socket = NetlinkSocket::open(NETLINK_ROUTE).unwrap();
    socket.request(RouteNetlinkMessage::SetLink(loopback), 0).unwrap();
}

fn pod(name: &str, app: &str, node: usize) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "labels": {"app": app}},
        "spec": {
            "nodeName": format!("node-{node}"),
            "containers": [{"name": "c", "image": "example.com/c"}],
        },
    })
}

/// The databases take what one application sends.
fn policy(from: &str, mode: Option<&str>) -> Value {
    let annotations = mode.map(|mode| json!({"portcullis.dev/mode": mode}));
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "db", "namespace": "shop", "annotations": annotations},
        "spec": {
            "podSelector": {"matchLabels": {"app": "db"}},
            "ingress": [{
                "from": [{"podSelector": {"matchLabels": {"app": from}}}],
                "ports": [{"port": PORT, "protocol": "UDP"}],
            }],
        },
    })
}

struct Portcullis<'a> {
    kubeconfig: &'a PathBuf,
}

impl Portcullis<'_> {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
        command.args(arguments).arg("--kubeconfig").arg(self.kubeconfig).env("COLUMNS", "100");
        command
    }

    /// Exit code, standard output, standard error.
    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        let output = self.command(arguments).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }
}

/// A packet that has arrived at a database.
struct Arrived {
    database: usize,
    /// The application that sent it.
    app: u8,
    sent: Duration,
}

fn endpoint(lab: &Lab, name: &str) -> (usize, IpAddr) {
    let endpoints = &lab.plan().endpoints;
    let index = endpoints.iter().position(|e| e.name == format!("shop/{name}")).unwrap();
    (index, endpoints[index].addresses[0])
}

/// Sends to every database until it is over, on flows that go on and, now and then, on new ones.
fn send(app: u8, from: IpAddr, databases: &[IpAddr], start: Instant, over: &AtomicBool) {
    let socket = || UdpSocket::bind((from, 0)).unwrap();
    let known: Vec<UdpSocket> = databases.iter().map(|_| socket()).collect();
    for number in 0_u64.. {
        if over.load(Relaxed) {
            return;
        }
        for (socket_of, database) in known.iter().zip(databases) {
            let mut packet = vec![app];
            packet.extend((start.elapsed().as_nanos() as u64).to_be_bytes());
            // What is refused may be told to whoever sends.
            let _ = socket_of.send_to(&packet, (*database, PORT));
            if number % 20 == 0 {
                let _ = socket().send_to(&packet, (*database, PORT));
            }
        }
        thread::sleep(Duration::from_millis(2));
    }
}

fn receive(database: usize, socket: &UdpSocket, over: &AtomicBool, arrived: &Mutex<Vec<Arrived>>) {
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let mut packet = [0; 16];
    while !over.load(Relaxed) {
        let Ok(9) = socket.recv(&mut packet) else { continue };
        let sent = Duration::from_nanos(u64::from_be_bytes(packet[1..9].try_into().unwrap()));
        arrived.lock().unwrap().push(Arrived { database, app: packet[0], sent });
    }
}

/// A policy as it was for some time.
struct Period {
    allowed: u8,
    audit: bool,
    applied: Duration,
    /// When `wait` returned.
    enforced: Duration,
    ended: Duration,
}

fn test() {
    raise_loopback();
    let listener = TcpListener::bind(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0)).unwrap();
    let options = Options { nodes: 3, families: Families::V4, ..Options::default() };
    let sockets = std::env::temp_dir().join(format!("in-force-{}", std::process::id()));
    let mut cluster = Cluster::up(listener, &options, &sockets, None).unwrap();
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}});
    cluster.server().apply(&namespace).unwrap();
    for node in 1..=3 {
        cluster.server().apply(&pod(&format!("db-{node}"), "db", node)).unwrap();
    }
    for (name, app, node) in [("a-1", "a", 1), ("a-3", "a", 3), ("b-1", "b", 1), ("b-2", "b", 2)] {
        cluster.server().apply(&pod(name, app, node)).unwrap();
    }
    let state = cluster.settle().unwrap();
    let kubeconfig = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("in-force.kubeconfig");
    cluster.server().write_kubeconfig(&kubeconfig).unwrap();
    let portcullis = Portcullis { kubeconfig: &kubeconfig };
    // Whatever else it says, it names the policy.
    let manifest = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("in-force.yaml");
    fs::write(&manifest, policy("nobody", None).to_string()).unwrap();
    let manifest = manifest.to_str().unwrap();

    let lab = cluster.lab(&state.cluster).unwrap();
    let databases: Vec<(usize, IpAddr)> =
        (1..=3).map(|node| endpoint(&lab, &format!("db-{node}"))).collect();
    let addresses: Vec<IpAddr> = databases.iter().map(|(_, address)| *address).collect();
    let (start, over, arrived) = (Instant::now(), AtomicBool::new(false), Mutex::new(Vec::new()));
    let mut periods: Vec<Period> = Vec::new();
    thread::scope(|scope| {
        let (lab, over, arrived, addresses) = (&lab, &over, &arrived, &addresses);
        for (number, (index, address)) in databases.iter().enumerate() {
            let socket = lab.in_endpoint(*index, || UdpSocket::bind((*address, PORT)));
            let socket = socket.unwrap().unwrap();
            scope.spawn(move || receive(number, &socket, over, arrived));
        }
        for (name, app) in [("a-1", b'a'), ("a-3", b'a'), ("b-1", b'b'), ("b-2", b'b')] {
            let (index, from) = endpoint(lab, name);
            scope.spawn(move || {
                lab.in_endpoint(index, || send(app, from, addresses, start, over)).unwrap();
            });
        }
        let changes = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for change in 0..CHANGES {
                let (app, allowed) = if change % 2 == 0 { ("a", b'a') } else { ("b", b'b') };
                let audit = change % AUDIT == AUDIT - 1;
                let applied = start.elapsed();
                let mode = if audit { "audit" } else { "enforce" };
                cluster.server().apply(&policy(app, Some(mode))).unwrap();
                let condition = if audit { "--for=audit" } else { "--for=enforced" };
                let wait = [
                    &["wait", "policy/db", "-n", "shop", condition][..],
                    &["wait", "netpol", "db", "-n", "shop", condition],
                    &["wait", "--all", "-n", "shop", condition],
                    &["wait", "policy", "--all", "-A", condition],
                    &["wait", "-f", manifest, condition],
                ];
                // Not in step with the changes that audit.
                let (code, out, err) = portcullis.run(wait[change / AUDIT % wait.len()]);
                let enforced = start.elapsed();
                assert_eq!((code, &*err), (0, ""), "change {change}");
                assert_eq!(out, "networkpolicy.networking.k8s.io/db condition met\n");
                thread::sleep(Duration::from_millis(60));
                let ended = start.elapsed();
                periods.push(Period { allowed, audit, applied, enforced, ended });
            }
        }));
        over.store(true, Relaxed);
        if let Err(panic) = changes {
            std::panic::resume_unwind(panic);
        }
    });
    judge(&periods, &arrived.into_inner().unwrap());
    observed(&cluster, &lab, &portcullis);
    statuses(&cluster, &portcullis);
    cluster.put_back(lab).unwrap();
}

/// Nothing that is refused arrives once `wait` has returned; and the probers would have seen it.
fn judge(periods: &[Period], arrived: &[Arrived]) {
    let mut before = 0;
    for (number, period) in periods.iter().enumerate() {
        let within = |from: Duration, to: Duration| {
            arrived.iter().filter(move |packet| from < packet.sent && packet.sent < to)
        };
        let refused = |packet: &&Arrived| packet.app != period.allowed;
        let after = within(period.enforced, period.ended);
        let (not_allowed, allowed): (Vec<_>, Vec<_>) = after.partition(refused);
        let reached = |packets: &[&Arrived]| {
            packets.iter().map(|packet| packet.database).collect::<BTreeSet<_>>().len()
        };
        assert_eq!(reached(&allowed), 3, "change {number}: what is allowed arrives everywhere");
        match period.audit {
            true => assert_eq!(reached(&not_allowed), 3, "change {number}: audit refuses nothing"),
            false => {
                assert_eq!(not_allowed.len(), 0, "change {number}: refused packets have passed");
                before += within(period.applied, period.enforced).filter(refused).count();
            }
        }
    }
    assert!(before > 0, "the probers saw nothing pass before wait returned either");
    let waits = periods.iter().map(|period| period.enforced - period.applied);
    let longest = waits.max().unwrap_or_default();
    eprintln!(
        "{} changes, {before} refused packets before wait returned, none after; the longest \
               wait took {longest:?}",
        periods.len()
    );
}

/// Whichever node refuses a connection, `observe` hears of it.
fn observed(cluster: &Cluster, lab: &Lab, portcullis: &Portcullis<'_>) {
    cluster.server().apply(&policy("a", Some("enforce"))).unwrap();
    let (code, _, err) = portcullis.run(&["wait", "policy/db", "-n", "shop"]);
    assert_eq!(code, 0, "{err}");
    let try_out = |from: &str, to: &str, port: u16| {
        let ((index, from), (_, to)) = (endpoint(lab, from), endpoint(lab, to));
        let sent = lab
            .in_endpoint(index, || UdpSocket::bind((from, 0)).unwrap().send_to(b"?", (to, port)));
        sent.unwrap().unwrap();
    };
    let flows = |text: &str| -> Vec<Value> {
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    // Of a source that has had much refused not everything is reported.
    let until_told = |something: &mut dyn FnMut() -> bool, what: &str| {
        let start = Instant::now();
        while !something() {
            assert!(start.elapsed() < Duration::from_secs(60), "{what}");
            thread::sleep(Duration::from_millis(200));
        }
    };
    let refused = ["observe", "--port", "4444", "--verdict", "refused"];
    let mut heard = Vec::new();
    let nodes = |heard: &[Value]| -> BTreeSet<String> {
        heard.iter().map(|flow| flow["node"].as_str().unwrap().to_owned()).collect()
    };
    until_told(
        &mut || {
            try_out("b-1", "db-2", 4444);
            try_out("b-2", "db-3", 4444);
            thread::sleep(Duration::from_millis(300));
            let (code, out, err) = portcullis.run(&[&refused[..], &["-o", "json"]].concat());
            assert_eq!((code, &*err), (0, ""), "{out}");
            heard = flows(&out);
            nodes(&heard).len() == 2
        },
        "both databases refuse",
    );
    assert_eq!(nodes(&heard), ["node-2", "node-3"].map(str::to_owned).into());
    for flow in &heard {
        let to = &flow["destination"]["pod"];
        assert_eq!(flow["node"], to.as_str().unwrap().replace("db", "node"), "{flow}");
        assert_eq!((&flow["verdict"], &flow["reason"]), (&json!("refused"), &json!("policy")));
        assert_eq!(flow["isolatedBy"], json!(["shop/db"]));
        assert_eq!(flow["destination"]["port"], 4444);
    }
    let (code, out, err) = portcullis.run(&[&refused[..], &["--from", "shop/b-2"]].concat());
    assert_eq!((code, &*err), (0, ""), "{out}");
    let row = out.lines().nth(1).unwrap();
    for part in ["refused", "shop/b-2", "shop/db-3", "4444/UDP", "node-3: ingress, isolated by"] {
        assert!(row.contains(part), "{part}: {out}");
    }
    assert!(!out.contains("shop/b-1"), "{out}");

    // What happens from now on.
    let mut command = portcullis.command(&["observe", "--follow", "--port", "4445", "-o", "json"]);
    let mut follows = Running(command.stdout(Stdio::piped()).spawn().unwrap());
    let (say, lines) = std::sync::mpsc::channel();
    let out = BufReader::new(follows.0.stdout.take().unwrap());
    thread::spawn(move || out.lines().map_while(Result::ok).try_for_each(|line| say.send(line)));
    let mut followed = None;
    until_told(
        &mut || {
            try_out("b-1", "db-1", 4445);
            followed = lines.recv_timeout(Duration::from_millis(500)).ok();
            followed.is_some()
        },
        "it is followed",
    );
    let flow: Value = serde_json::from_str(&followed.unwrap()).unwrap();
    assert_eq!((&flow["node"], &flow["source"]["pod"]), (&json!("node-1"), &json!("b-1")));
    drop(follows);

    let (code, out, err) = portcullis.run(&["observe", "hits", "-o", "json"]);
    assert_eq!((code, &*err), (0, ""), "{out}");
    assert!(out.contains("shop/db"), "{out}");

    // Nobody listens there.
    let (code, out, err) = portcullis.run(&["observe", "--agent-port", "9"]);
    assert_eq!((code, &*out), (2, ""), "{err}");
    assert!(err.contains("kube-system/portcullis-"), "{err}");
}

fn statuses(cluster: &Cluster, portcullis: &Portcullis<'_>) {
    cluster.server().apply(&policy("a", Some("enforce"))).unwrap();
    let (code, _, err) = portcullis.run(&["wait", "policy/db", "-n", "shop"]);
    assert_eq!(code, 0, "{err}");
    let (code, out, err) = portcullis.run(&["status"]);
    assert_eq!((code, &*err), (0, ""), "{out}");
    shown("docs/status.md", &out);
    let (code, out, _) = portcullis.run(&["status", "-o", "json"]);
    let status: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &status["enforced"]), (0, &json!(true)), "{out}");
    assert_eq!(status["nodes"].as_array().unwrap().len(), 3);
    assert_eq!(status["nodes"][0]["node"], "node-1");
    assert_eq!(status["nodes"][0]["enforced"], 1);

    // Nobody listens there.
    let (code, out, _) = portcullis.run(&["status", "--agent-port", "9"]);
    assert_eq!(code, 1, "{out}");
    shown("docs/status.md", &out);
    let wait = ["wait", "netpol/db", "-n", "shop", "--timeout", "0s", "--agent-port", "9"];
    let (code, out, err) = portcullis.run(&wait);
    assert_eq!((code, &*out), (1, ""), "{err}");
    shown("docs/status.md", &err);

    // Several, in several namespaces: each is told when it is met, and what lags at the end.
    let server = cluster.server();
    let edge = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "edge"}});
    server.apply(&edge).unwrap();
    let mut other = policy("a", Some("audit"));
    other["metadata"]["namespace"] = json!("edge");
    server.apply(&other).unwrap();
    other["metadata"] = json!({"name": "web", "namespace": "shop", "labels": {"tier": "web"}});
    server.apply(&other).unwrap();
    let met = "networkpolicy.networking.k8s.io/db condition met\n\
               networkpolicy.networking.k8s.io/web condition met\n";
    for wait in [&["policy/web", "policy/db"][..], &["policy", "web", "db"], &["--all"]] {
        let (code, out, err) = portcullis.run(&[&["wait", "-n", "shop"], wait].concat());
        // Each is told when it is met, and the agents are asked of one after the other.
        let mut lines: Vec<&str> = out.split_inclusive('\n').collect();
        lines.sort_unstable();
        assert_eq!((code, &*lines.concat(), &*err), (0, met, ""), "{wait:?}");
    }
    let (code, out, err) = portcullis.run(&["wait", "netpol", "-n", "shop", "-l", "tier in (web)"]);
    assert_eq!(code, 0, "{err}");
    assert_eq!(out, "networkpolicy.networking.k8s.io/web condition met\n");
    let (code, out, err) = portcullis.run(&["wait", "--all", "-A", "--timeout", "0s"]);
    assert_eq!((code, &*out), (1, met), "{err}");
    let lag = "error: timed out waiting for the condition on networkpolicies/db of edge:\n  \
               its mode is audit, not enforce: ";
    assert!(err.starts_with(lag), "{err}");
    for (wait, why) in [
        (
            &["wait", "--all", "-n", "nowhere"][..],
            "there is no NetworkPolicy in the namespace nowhere",
        ),
        (&["wait", "-f", NO_POLICY], "there is no NetworkPolicy in the manifests"),
        (&["wait", "policy"], "give a name after policy, or --all or -l"),
        (&["wait", "policy/db", "--all"], "--all and -l go without names"),
        (
            &["wait", "-l", "tier=db", "-A"],
            "there is no NetworkPolicy in any namespace with tier in (db) (-l)",
        ),
        (&["wait", "db"], "expected policy/NAME, found \"db\""),
    ] {
        let (code, out, err) = portcullis.run(wait);
        assert_eq!((code, &*out), (2, ""), "{err}");
        assert!(err.starts_with(&format!("error: {why}")), "{err}");
    }

    // What manifests cannot name, and what no API server takes.
    let folder = Folder::new("wait");
    let file = folder.join("policy.yaml");
    let place = file.display();
    for (metadata, why) in [
        (
            "{generateName: db-, namespace: shop}",
            format!("error: {place}:3:26: expected metadata.name, found generateName: db-: "),
        ),
        (
            "{name: DB}",
            "error: the manifests have 1 error: nothing was waited for; expected ".to_owned(),
        ),
    ] {
        let head = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: ";
        fs::write(&file, format!("{head}{metadata}\nspec: {{podSelector: {{}}}}\n")).unwrap();
        let (code, out, err) = portcullis.run(&["wait", "-f", file.to_str().unwrap()]);
        assert_eq!((code, &*out), (2, ""), "{err}");
        assert!(err.lines().any(|line| line.starts_with(&why)), "{err}");
    }

    // What is waited for is not what the policy says.
    cluster.server().apply(&policy("a", Some("audit"))).unwrap();
    let (code, _, err) = portcullis.run(&["wait", "policy/db", "-n", "shop", "--timeout", "0s"]);
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("its mode is audit, not enforce"), "{err}");
    let (code, _, err) = portcullis.run(&["wait", "policy/nothing", "-n", "shop"]);
    assert_eq!(code, 2, "{err}");
    assert_eq!(err, "error: the namespace shop has no NetworkPolicy \"nothing\"\n");
}

/// What the page shows is what was printed. Names of pods that a DaemonSet makes up end in dots there.
fn shown(page: &str, printed: &str) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../");
    let text = fs::read_to_string(PathBuf::from(path).join(page)).unwrap();
    let words = printed.split(' ').map(|word| match word.strip_prefix("kube-system/portcullis-") {
        Some(rest) => {
            format!("kube-system/portcullis-{}", ".".repeat(rest.chars().take(5).count()))
        }
        None => word.to_owned(),
    });
    let wanted = words.collect::<Vec<_>>().join(" ");
    assert!(text.contains(&wanted), "{page} does not show:\n{wanted}");
}
