//! Pods that the container runtime adds, before the API server says what their addresses are.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use portcullis_agent::{Mode, Socket, Unprogrammed, desired_once};
use portcullis_cni::InForce;
use portcullis_cni::protocol::{Answer, Attachment, Request, ask};
use portcullis_dataplane::Nftables;
use portcullis_kube::live::Access;
use serde_json::{Value, json};

use crate::network::{self, Network};
use crate::server::Server;
use crate::{
    NO_LOG, NODE, PATIENCE, Running, Watched, cluster, eventually, own_network, pod, policy,
};

/// More than the agent takes to give up.
const LONG: Duration = Duration::from_secs(20);

pub(crate) fn socket(name: &str) -> Socket {
    let folder = std::env::temp_dir().join(format!("adding-{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(folder.join("attachments")).unwrap();
    Socket { path: folder.join("agent.sock"), attachments: folder.join("attachments") }
}

fn without_address(name: &str, app: &str, uid: &str) -> Value {
    let mut pod = pod(name, NODE, "0.0.0.0", app);
    pod["metadata"]["uid"] = uid.into();
    pod["status"] = json!({"phase": "Pending"});
    pod
}

fn attachment(pod: &str, uid: &str, address: &str) -> Attachment {
    Attachment {
        network: "net".to_owned(),
        container: format!("sandbox-of-{uid}"),
        interface: "eth0".to_owned(),
        namespace: "shop".to_owned(),
        pod: pod.to_owned(),
        uid: Some(uid.to_owned()),
        addresses: vec![address.parse().unwrap()],
    }
}

fn asked(socket: &Socket, request: &Request) -> Answer {
    ask(&socket.path, request, LONG).unwrap()
}

/// Whether the fake lets the address be reached on port 80 by `web`, and by `far`, which are the
/// pods that the policy of `db` tells apart from others.
fn isolated(fake: &Watched, address: &str) -> Option<bool> {
    let state = fake.state()?;
    let profile = *state.endpoints.get(&address.parse::<IpAddr>().unwrap())?;
    Some(state.profiles[&profile].ingress.is_some())
}

fn running(server: &Server, fake: &Watched, socket: &Socket) -> Running {
    let agent = Running::with_socket(server, fake.clone(), socket.clone());
    eventually("ready", || {
        ask(&socket.path, &Request::Status, LONG).is_ok_and(|answer| answer == Answer::Ready)
    });
    agent
}

pub(crate) fn known() {
    let server = Server::start(30);
    cluster(&server);
    let (fake, socket) = (Watched::default(), socket("known"));
    let agent = running(&server, &fake, &socket);
    server.put("pods", without_address("db-2", "db", "2"));
    let added = attachment("db-2", "2", "10.0.3.2");
    assert_eq!(asked(&socket, &Request::Add(added.clone())), Answer::Enforced);
    assert_eq!(isolated(&fake, "10.0.3.2"), Some(true), "when it is answered, not later");
    assert_eq!(asked(&socket, &Request::Check(added.clone())), Answer::Enforced);
    // Who asks only once, as `agent dump` does, comes to the same by what the plugin has written.
    let access = Access { kubeconfig: Some(server.kubeconfig()), ..Access::default() };
    let once = |attachments: &[Attachment]| {
        let (open, mode) = (Unprogrammed::Open, Mode::Enforce);
        desired_once(&access, NODE, &open, mode, NO_LOG, attachments, PATIENCE).unwrap().state
    };
    assert_eq!(Some(once(std::slice::from_ref(&added))), fake.state());
    assert_ne!(Some(once(&[])), fake.state());
    let stranger = once(&[attachment("stranger", "9", "10.0.3.9")]);
    let profile = stranger.endpoints[&"10.0.3.9".parse::<IpAddr>().unwrap()];
    assert_eq!(stranger.profiles[&profile].ingress.as_deref(), Some(&[][..]), "nobody knows it");
    let told = InForce::read(&socket.path).unwrap();
    assert!(told.programmed.contains(&added.addresses[0]), "{told:?}");

    // The next pod has the address before the server knows that the last one has gone.
    server.put("pods", without_address("open", "other", "3"));
    assert_eq!(
        asked(&socket, &Request::Add(attachment("open", "3", "10.0.3.2"))),
        Answer::Enforced
    );
    assert_eq!(isolated(&fake, "10.0.3.2"), Some(false));
    let Answer::Failed { why } = asked(&socket, &Request::Check(added)) else { panic!() };
    assert_eq!(why, "[10.0.3.2] are not the addresses of shop/db-2");
    let delete = |uid: &str| Request::Delete {
        container: format!("sandbox-of-{uid}"),
        interface: "eth0".to_owned(),
    };
    assert_eq!(asked(&socket, &delete("2")), Answer::Done);
    assert_eq!(isolated(&fake, "10.0.3.2"), Some(false), "it is another's");
    assert_eq!(asked(&socket, &delete("3")), Answer::Done);
    eventually("free", || isolated(&fake, "10.0.3.2").is_none());
    agent.stop();
    fs::remove_dir_all(socket.path.parent().unwrap()).unwrap();
}

/// A connection that the pod before had open, and the next may not have, ends before the next begins.
pub(crate) fn left_open() {
    own_network();
    let network = Network::with_pods(3);
    let (web, third) = (&network.pods[0], &network.pods[2]);
    let server = Server::start(30);
    cluster(&server);
    server.put("pods", pod("third", NODE, "10.0.3.2", "other"));
    let subject = json!({"matchLabels": {"app": "silent"}});
    let spec = json!({"podSelector": subject, "policyTypes": ["Egress"]});
    server.put("networkpolicies", policy("silent", spec));
    let socket = socket("left-open");
    let agent = Running::with(&server, Nftables::open().unwrap(), |options| {
        options.keep_established = false;
        options.socket = Some(socket.clone());
    });
    eventually("ready", || {
        ask(&socket.path, &Request::Status, LONG).is_ok_and(|answer| answer == Answer::Ready)
    });
    let (from, to) = ("10.0.1.2".parse().unwrap(), "10.0.3.2".parse().unwrap());
    let (sending, receiving) = (web.udp(from, 20_000), third.udp(to, 81));
    receiving.set_nonblocking(true).unwrap();
    // What is not answered is no connection.
    let arrives = || {
        let _ = sending.send_to(b"?", (to, 81));
        let asked = receiving.recv_from(&mut [0; 8]);
        asked.is_ok_and(|(_, by)| receiving.send_to(b"!", by).is_ok())
    };
    eventually("open", arrives);
    // So many that to judge them takes a while.
    for port in 20_001..20_041 {
        let socket = web.udp(from, port);
        (1000..1100).for_each(|port| _ = socket.send_to(b"?", (to, port)));
    }
    server.put("pods", without_address("next", "silent", "9"));
    let added = attachment("next", "9", "10.0.1.2");
    while receiving.recv(&mut [0; 8]).is_ok() {}
    assert_eq!(asked(&socket, &Request::Add(added)), Answer::Enforced);
    for _ in 0..100 {
        assert!(!arrives(), "the next pod goes on with what is not its own");
    }
    agent.stop();
    fs::remove_dir_all(socket.path.parent().unwrap()).unwrap();
}

/// A flow each way, of each sort: the client's ends and the servers', which have spoken both.
struct Flows {
    tcp: [(TcpStream, TcpStream); 2],
    udp: [(UdpSocket, UdpSocket); 2],
}

impl Flows {
    fn open(ends: [(&network::Pod, IpAddr); 2], port: u16) -> Flows {
        let [a, b] = ends;
        let tcp = [[a, b], [b, a]].map(|[(from, _), (to, at)]| {
            let listener = to.listen(at, port);
            (from.connect(at, port), listener.accept().unwrap().0)
        });
        let udp = [[a, b], [b, a]].map(|[(from, of), (to, at)]| {
            let (client, server) = (from.udp(of, port + 1), to.udp(at, port));
            client.connect((at, port)).unwrap();
            server.connect((of, port + 1)).unwrap();
            (client, server)
        });
        let mut flows = Flows { tcp, udp };
        flows.go_on();
        flows
    }

    #[track_caller]
    fn go_on(&mut self) {
        for (client, server) in &mut self.tcp {
            for [from, to] in [[&*client, &*server], [&*server, &*client]] {
                to.set_read_timeout(Some(PATIENCE)).unwrap();
                { from }.write_all(b"x").unwrap();
                { to }.read_exact(&mut [0; 1]).unwrap();
            }
        }
        for (client, server) in &self.udp {
            for [from, to] in [[client, server], [server, client]] {
                to.set_read_timeout(Some(PATIENCE)).unwrap();
                from.send(b"?").unwrap();
                to.recv(&mut [0; 8]).unwrap();
            }
        }
    }

    /// Whether anybody hears what the other end says.
    fn is_heard(&mut self) -> bool {
        let wait = Some(Duration::from_millis(100));
        let tcp = self.tcp.iter_mut().any(|(client, server)| {
            [[&*client, &*server], [&*server, &*client]].into_iter().any(|[mut from, mut to]| {
                to.set_read_timeout(wait).unwrap();
                let _ = from.write_all(b"x");
                to.read(&mut [0; 1]).is_ok_and(|bytes| bytes > 0)
            })
        });
        let udp = self.udp.iter().any(|(client, server)| {
            [[client, server], [server, client]].into_iter().any(|[from, to]| {
                to.set_read_timeout(wait).unwrap();
                let _ = from.send(b"!");
                to.recv(&mut [0; 8]).is_ok()
            })
        });
        tcp || udp
    }
}

/// Each pod may open what the others may not: what one hears of the flows of another, it hears because
/// they are still open.
pub(crate) fn handed_over() {
    const PODS: [(&str, &str, u16); 3] =
        [("first", "7", 81), ("next", "8", 91), ("last", "9", 101)];
    own_network();
    let network = Network::with_pods(3);
    let (web, third) = (&network.pods[0], &network.pods[2]);
    let server = Server::start(30);
    cluster(&server);
    let (ours, passing) = ("10.0.1.2".parse().unwrap(), "10.0.3.2".parse().unwrap());
    let peers = json!([{"podSelector": {"matchLabels": {"app": "web"}}}]);
    for (name, _, port) in PODS {
        let ports = ["TCP", "UDP"].map(|of| json!({"port": port, "protocol": of}));
        let spec = json!({
            "podSelector": {"matchLabels": {"app": name}},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": peers, "ports": ports}],
            "egress": [{"to": peers, "ports": ports}],
        });
        server.put("networkpolicies", policy(name, spec));
    }
    let [(first, _, port), rest @ ..] = PODS;
    server.put("pods", pod(first, NODE, "10.0.3.2", first));
    let socket = socket("handed-over");
    let agent = Running::with(&server, Nftables::open().unwrap(), |options| {
        options.keep_established = false;
        options.allow_spoofing = false;
        options.socket = Some(socket.clone());
        options.unprogrammed = Unprogrammed::Closed(vec!["10.0.3.0/24".parse().unwrap()]);
    });
    eventually("ready", || {
        ask(&socket.path, &Request::Status, LONG).is_ok_and(|answer| answer == Answer::Ready)
    });
    let ends = [(web, ours), (third, passing)];
    let mut before = vec![Flows::open(ends, port)];
    // So many that to judge them takes a while.
    for from in 20_001..24_001 {
        let _ = web.udp(ours, from).send_to(b"?", (passing, port));
    }
    for (name, uid, _) in rest {
        server.put("pods", without_address(name, name, uid));
    }
    for (name, uid, port) in rest {
        let forgotten = || agent.metric("portcullis_connections_forgotten_total");
        let so_far = forgotten();
        // The server has not told that the pod before is gone.
        let added = attachment(name, uid, "10.0.3.2");
        assert_eq!(asked(&socket, &Request::Add(added)), Answer::Enforced);
        for flows in &mut before {
            assert!(!flows.is_heard(), "{name} goes on with what is not its own");
        }
        let mut own = Flows::open(ends, port);
        eventually("all is judged", || forgotten() >= so_far + 4.0);
        own.go_on();
        before.push(own);
    }
    agent.stop();
    fs::remove_dir_all(socket.path.parent().unwrap()).unwrap();
}

/// No plugin tells of it: the uid alone does.
pub(crate) fn same_name() {
    own_network();
    let network = Network::with_pods(3);
    let (web, third) = (&network.pods[0], &network.pods[2]);
    let server = Server::start(30);
    cluster(&server);
    let of_uid = |uid: &str, app: &str| {
        let mut pod = pod("third", NODE, "10.0.3.2", app);
        pod["metadata"]["uid"] = uid.into();
        pod
    };
    server.put("pods", of_uid("1", "silent"));
    let subject = json!({"matchExpressions": [{"key": "app", "operator": "In", "values": ["silent", "mute"]}]});
    let spec = json!({"podSelector": subject, "policyTypes": ["Egress"]});
    server.put("networkpolicies", policy("silent", spec));
    let socket = socket("same-name");
    let start = || {
        let agent = Running::with(&server, Nftables::open().unwrap(), |options| {
            options.keep_established = false;
            options.socket = Some(socket.clone());
        });
        eventually("ready", || agent.get("/readyz").0 == 200);
        agent
    };
    let agent = start();
    let (from, to): (IpAddr, IpAddr) = ("10.0.1.2".parse().unwrap(), "10.0.3.2".parse().unwrap());
    let (asking, answering) = (web.udp(from, 20_000), third.udp(to, 81));
    asking.connect((to, 81)).unwrap();
    answering.connect((from, 20_000)).unwrap();
    asking.send(b"?").unwrap();
    answering.recv(&mut [0; 8]).unwrap();
    let answers = || {
        asking.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        answering.send(b"!").unwrap();
        asking.recv(&mut [0; 8]).is_ok()
    };
    assert!(answers());
    // The same pod, with another label that means the same.
    let enforced = agent.metric("portcullis_apply_duration_seconds_count");
    server.put("pods", of_uid("1", "mute"));
    eventually("enforced", || agent.metric("portcullis_apply_duration_seconds_count") > enforced);
    assert!((0..10).all(|_| answers()), "it is the same pod");
    let is_another = |agent: &Running| {
        let forgotten = || agent.metric("portcullis_connections_forgotten_total");
        eventually("forgotten", || forgotten() >= 1.0);
        assert!(!answers(), "an answer to what the pod before was asked");
        asking.send(b"?").unwrap();
        answering.recv(&mut [0; 8]).unwrap();
        assert!(answers(), "the next one is asked itself");
    };
    let noted = || InForce::read(&socket.path).unwrap_or_default().owners;
    eventually("noted", || noted().len() == 3);
    let first = noted();
    server.put("pods", of_uid("2", "mute"));
    is_another(&agent);
    eventually("noted anew", || noted() != first);
    agent.stop();
    // An agent knows it from the one before it.
    let agent = start();
    eventually("judged", || agent.metric("portcullis_cut_duration_seconds_count") >= 1.0);
    assert!((0..10).all(|_| answers()), "it is the same pod to the next agent");
    agent.stop();
    server.put("pods", of_uid("3", "mute"));
    let agent = start();
    is_another(&agent);
    agent.stop();
    fs::remove_dir_all(socket.path.parent().unwrap()).unwrap();
}

/// What an address has open ends before the address is told as free, and before a pod is there that
/// started without an agent.
pub(crate) fn freed() {
    own_network();
    let network = Network::with_pods(3);
    let (web, third) = (&network.pods[0], &network.pods[2]);
    let server = Server::start(30);
    cluster(&server);
    let socket = socket("freed");
    let (from, to): (IpAddr, IpAddr) = ("10.0.3.2".parse().unwrap(), "10.0.1.2".parse().unwrap());
    let (sending, receiving) = (third.udp(from, 20_000), web.udp(to, 81));
    receiving.set_nonblocking(true).unwrap();
    let arrives = || {
        let _ = sending.send_to(b"?", (to, 81));
        let asked = receiving.recv_from(&mut [0; 8]);
        // What is not answered is no connection.
        asked.is_ok_and(|(_, by)| receiving.send_to(b"!", by).is_ok())
    };
    eventually("open before there is an agent", arrives);
    let agent = Running::with(&server, Nftables::open().unwrap(), |options| {
        options.keep_established = false;
        options.socket = Some(socket.clone());
        options.unprogrammed = Unprogrammed::Closed(vec!["10.0.3.0/24".parse().unwrap()]);
    });
    let is_free = || InForce::read(&socket.path).is_ok_and(|told| told.is_closed(from));
    eventually("told as closed", is_free);
    for _ in 0..100 {
        assert!(!arrives(), "whoever has the address goes on with what was open");
    }
    server.put("pods", pod("third", NODE, "10.0.3.2", "other"));
    eventually("allowed", arrives);
    assert!(!is_free());
    // So many that to judge them takes a while.
    for port in 20_001..20_041 {
        let socket = third.udp(from, port);
        (1000..1100).for_each(|port| _ = socket.send_to(b"?", (to, port)));
    }
    while receiving.recv(&mut [0; 8]).is_ok() {}
    server.delete("pods", "shop", "third");
    let start = Instant::now();
    while !is_free() {
        assert!(start.elapsed() < LONG, "never told as free");
    }
    for _ in 0..100 {
        assert!(!arrives(), "the next pod goes on with what is not its own");
    }
    agent.stop();
    fs::remove_dir_all(socket.path.parent().unwrap()).unwrap();
}

pub(crate) fn unknown() {
    let server = Server::start(30);
    cluster(&server);
    let (fake, socket) = (Watched::default(), socket("unknown"));
    let agent = running(&server, &fake, &socket);
    let added = attachment("late", "9", "10.0.3.2");
    let Answer::Closed { why } = asked(&socket, &Request::Add(added.clone())) else { panic!() };
    assert_eq!(why, "the API server has not told of the pod shop/late");
    let state = fake.state().unwrap();
    let profile = &state.profiles[&state.endpoints[&added.addresses[0]]];
    for rules in [&profile.ingress, &profile.egress] {
        assert!(rules.as_ref().is_some_and(|rules| rules.is_empty()), "{profile:?}");
    }
    // One of that name is not enough.
    server.put("pods", without_address("late", "db", "8"));
    let Answer::Closed { .. } = asked(&socket, &Request::Check(added.clone())) else { panic!() };
    server.put("pods", without_address("late", "db", "9"));
    eventually("told", || isolated(&fake, "10.0.3.2") == Some(true));
    assert_eq!(asked(&socket, &Request::Check(added)), Answer::Enforced);
    agent.stop();
    fs::remove_dir_all(socket.path.parent().unwrap()).unwrap();
}

pub(crate) fn away() {
    let server = Server::start(30);
    cluster(&server);
    let (fake, socket) = (Watched::default(), socket("away"));
    server.put("pods", without_address("db-2", "db", "2"));
    // What a plugin leaves that found no agent.
    let added = attachment("db-2", "2", "10.0.2.2");
    let file = socket.attachments.join("10.0.2.2");
    fs::write(file, serde_json::to_vec(&added).unwrap()).unwrap();
    let agent = running(&server, &fake, &socket);
    assert_eq!(asked(&socket, &Request::Check(added.clone())), Answer::Enforced);
    let web = pod("db", NODE, "10.0.2.2", "db");
    // The server tells again that it is another's.
    server.put("pods", web);
    let Answer::Enforced = asked(&socket, &Request::Check(added)) else { panic!() };
    agent.stop();
    assert!(ask(&socket.path, &Request::Status, LONG).is_err());
    fs::remove_dir_all(socket.path.parent().unwrap()).unwrap();
}

pub(crate) fn not_heard() {
    let server = Server::start(30);
    cluster(&server);
    server.forbid(&["networkpolicies"]);
    let (fake, socket) = (Watched::default(), socket("not-heard"));
    let agent = Running::with_socket(&server, fake.clone(), socket.clone());
    let status = || ask(&socket.path, &Request::Status, LONG);
    eventually("a socket", || status().is_ok());
    let why = "nothing has been enforced yet".to_owned();
    assert_eq!(status().unwrap(), Answer::Unready { why });
    let answer = asked(&socket, &Request::Add(attachment("web", "1", "10.0.3.2")));
    let why = "the agent has not heard all of the cluster yet".to_owned();
    assert_eq!(answer, Answer::Failed { why });
    agent.stop();
    fs::remove_dir_all(socket.path.parent().unwrap()).unwrap();
}

pub(crate) fn strange_lines() {
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixStream;
    let server = Server::start(30);
    cluster(&server);
    let (fake, socket) = (Watched::default(), socket("strange"));
    let agent = running(&server, &fake, &socket);
    let path: &PathBuf = &socket.path;
    let mut stream = UnixStream::connect(path).unwrap();
    stream.write_all(b"{\"request\":\"status\"}\nnonsense\n{\"request\":\"dance\"}\n").unwrap();
    let mut lines = BufReader::new(&stream).lines().map(Result::unwrap);
    assert_eq!(lines.next().unwrap(), r#"{"answer":"ready"}"#);
    for _ in 0..2 {
        let line = lines.next().unwrap();
        assert!(line.starts_with(r#"{"answer":"failed","why":"not a request: "#), "{line}");
    }
    // A line without end is not kept for ever, and does not harm others.
    let mut endless = UnixStream::connect(path).unwrap();
    let _ = endless.write_all(&vec![b'x'; 1 << 20]);
    assert_eq!(asked(&socket, &Request::Status), Answer::Ready);
    agent.stop();
    fs::remove_dir_all(path.parent().unwrap()).unwrap();
}
