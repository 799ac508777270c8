//! What the agent reports of real packets, to whoever asks at its socket.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use portcullis_agent::{Logging, Options, Socket, Unprogrammed};
use portcullis_cni::flow::{Filter, Flow, RuleHits, Verdict};
use portcullis_cni::protocol::{Answer, Request, line};
use portcullis_core::model::LogLevel;
use portcullis_dataplane::Nftables;
use serde_json::{Value, json};

use crate::network::{Network, Pod};
use crate::server::Server;
use crate::{
    EVENTS_ROLE, NODE, ROLE, Running, adding, cluster, eventually, namespace, nft, own_network,
    permitted, pod, policy,
};

const DENIED: Logging = Logging { level: LogLevel::Denied, group: 86, rate: 1000 };
const ALL: Logging = Logging { level: LogLevel::All, ..DENIED };
const NONE: Logging = Logging { level: LogLevel::None, ..DENIED };

/// A node with the pods `web` (10.0.1.2) and `db` (10.0.2.2), and an agent that reports.
struct Node {
    network: Network,
    server: Server,
    agent: Option<Running>,
    socket: Socket,
}

impl Node {
    fn new(name: &str, log: Logging) -> Node {
        own_network();
        let network = Network::with_pods(3);
        // Links that are new take a moment.
        for to in ["10.0.2.2", "fd00:2::2", "10.0.3.2"].map(|to| to.parse::<IpAddr>().unwrap()) {
            let number = if to == "10.0.3.2".parse::<IpAddr>().unwrap() { 2 } else { 1 };
            let listening = network.pods[number].listen(to, 7);
            network.pods[0].connect(to, 7);
            drop(listening);
        }
        let server = Server::start(30);
        cluster(&server);
        let socket = adding::socket(name);
        let mut node = Node { network, server, agent: None, socket };
        node.start(log);
        node
    }

    fn start(&mut self, log: Logging) {
        self.start_with(|options| options.log = log);
    }

    fn start_with(&mut self, change: impl FnOnce(&mut Options)) {
        let socket = self.socket.clone();
        let agent = Running::with(&self.server, Nftables::open().unwrap(), |options| {
            options.socket = Some(socket);
            change(options);
            options.allow_spoofing = false;
            options.unprogrammed = Unprogrammed::Closed(vec!["10.0.3.0/24".parse().unwrap()]);
        });
        eventually("ready", || agent.get("/readyz").0 == 200);
        eventually("a socket", || UnixStream::connect(&self.socket.path).is_ok());
        self.agent = Some(agent);
    }

    fn stop(&mut self) {
        self.agent.take().unwrap().stop();
    }

    fn web(&self) -> &Pod {
        &self.network.pods[0]
    }

    fn db(&self) -> &Pod {
        &self.network.pods[1]
    }

    fn metric(&self, name: &str) -> u64 {
        self.agent.as_ref().unwrap().metric(name) as u64
    }

    fn asked(&self, request: &Request) -> Vec<Answer> {
        let mut stream = UnixStream::connect(&self.socket.path).unwrap();
        stream.write_all(&line(request)).unwrap();
        let mut answers = Vec::new();
        for text in BufReader::new(stream).lines() {
            match serde_json::from_str(&text.unwrap()).unwrap() {
                Answer::Done => break,
                answer => answers.push(answer),
            }
        }
        answers
    }

    fn flows(&self, filter: Filter) -> Vec<Flow> {
        let answers = self.asked(&Request::Observe { filter, last: None, follow: false });
        let flow = |answer| match answer {
            Answer::Flow(flow) => *flow,
            other => panic!("{other:?}"),
        };
        answers.into_iter().map(flow).collect()
    }

    /// All of them, when there are so many.
    fn many(&self, count: usize) -> Vec<Flow> {
        eventually(&format!("{count} reported"), || self.flows(Filter::default()).len() >= count);
        // And not one more.
        std::thread::sleep(Duration::from_millis(400));
        let flows = self.flows(Filter::default());
        assert_eq!(flows.len(), count, "{flows:#?}");
        flows
    }

    fn hits(&self) -> Vec<RuleHits> {
        let rules = |answer| match answer {
            Answer::Hits { rules } => rules,
            other => panic!("{other:?}"),
        };
        self.asked(&Request::Hits).into_iter().flat_map(rules).collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(self.socket.path.parent().unwrap());
    }
}

fn udp(from: &Pod, source: &str, port: u16, to: &str) {
    let to: SocketAddr = to.parse().unwrap();
    from.udp(source.parse().unwrap(), port).send_to(b"?", to).unwrap();
}

/// Without its time, which is checked to be one.
fn timeless(flow: &Flow) -> Value {
    let mut value = serde_json::to_value(flow).unwrap();
    let time = value.as_object_mut().unwrap().remove("time").unwrap();
    let time: jiff::Timestamp = time.as_str().unwrap().parse().unwrap();
    let age = jiff::Timestamp::now().duration_since(time);
    assert!(age.as_secs().abs() < 60, "{time}");
    value
}

pub(crate) fn fields() {
    let mut node = Node::new("fields", DENIED);
    udp(node.web(), "10.0.1.2", 4001, "10.0.2.2:80");
    udp(node.web(), "10.0.1.2", 4002, "10.0.3.2:53");
    udp(&node.network.pods[2], "10.0.3.2", 4003, "10.0.2.2:80");
    assert!(!node.web().connects("10.0.2.2".parse().unwrap(), 81, false));
    let flows = node.many(4);
    let web =
        |port| json!({"address": "10.0.1.2", "port": port, "namespace": "shop", "pod": "web"});
    let db = |port| json!({"address": "10.0.2.2", "port": port, "namespace": "shop", "pod": "db"});
    let unknown = |port| json!({"address": "10.0.3.2", "port": port});
    let miss = |field: &str, expected: &str, found: &str| {
        let path = format!("spec.ingress[0].ports[0].{field}");
        json!([{"path": path, "expected": expected, "found": found}])
    };
    let nearest =
        |misses| json!({"policy": "shop/db", "rule": "spec.ingress[0]", "misses": misses});
    assert_eq!(
        timeless(&flows[0]),
        json!({
            "node": "node-1", "verdict": "refused", "direction": "ingress", "reason": "policy",
            "source": web(4001), "destination": db(80), "protocol": "UDP",
            "isolatedBy": ["shop/db"], "nearest": nearest(miss("protocol", "TCP", "UDP")),
        })
    );
    assert_eq!(
        timeless(&flows[1]),
        json!({
            "node": "node-1", "verdict": "refused", "direction": "ingress", "reason": "unknown-pod",
            "source": web(4002), "destination": unknown(53), "protocol": "UDP",
        })
    );
    assert_eq!(
        timeless(&flows[2]),
        json!({
            "node": "node-1", "verdict": "refused", "direction": "egress", "reason": "unknown-pod",
            "source": unknown(4003), "destination": db(80), "protocol": "UDP",
        })
    );
    let mut tcp = timeless(&flows[3]);
    tcp["source"].as_object_mut().unwrap().remove("port").unwrap();
    assert_eq!(
        tcp,
        json!({
            "node": "node-1", "verdict": "refused", "direction": "ingress", "reason": "policy",
            "source": {"address": "10.0.1.2", "namespace": "shop", "pod": "web"},
            "destination": db(81), "protocol": "TCP", "isolatedBy": ["shop/db"],
            "nearest": nearest(miss("port", "\"http\", which is 80", "81")),
        })
    );

    // Filters are the agent's.
    let filter = |text: Value| node.flows(serde_json::from_value(text).unwrap()).len();
    assert_eq!(filter(json!({"ports": [{"port": 80}]})), 2);
    assert_eq!(filter(json!({"ports": [{"port": 80}], "namespaces": ["ops"]})), 0);
    assert_eq!(filter(json!({"from": [{"pod": {"namespace": "shop", "name": "w*"}}]})), 3);
    assert_eq!(filter(json!({"to": [{"net": "10.0.3.0/24"}], "verdicts": ["refused"]})), 1);
    let last = Request::Observe { filter: Filter::default(), last: Some(2), follow: false };
    assert_eq!(node.asked(&last).len(), 2);
    node.stop();
}

/// A node with an agent that cuts, and a connection of `web` to `db` that is cut.
fn with_one_cut(name: &str) -> (Node, [TcpStream; 2]) {
    let mut node = Node::new(name, DENIED);
    node.stop();
    node.start_with(|options| (options.log, options.keep_established) = (DENIED, false));
    let db = "10.0.2.2".parse().unwrap();
    let listening = node.db().listen(db, 80);
    let client = node.web().connect(db, 80);
    let (server, _) = listening.accept().unwrap();
    let subject = json!({"matchLabels": {"app": "db"}});
    node.server.put("networkpolicies", policy("db", json!({"podSelector": subject})));
    eventually("cut", || node.metric("portcullis_connections_cut_total") == 1);
    (node, [client, server])
}

pub(crate) fn cut() {
    let (mut node, ends) = with_one_cut("cut");
    let flows = node.many(1);
    let port = ends[0].local_addr().unwrap().port();
    assert_eq!(
        timeless(&flows[0]),
        json!({
            "node": "node-1", "verdict": "cut", "direction": "ingress", "reason": "policy",
            "source": {"address": "10.0.1.2", "port": port, "namespace": "shop", "pod": "web"},
            "destination": {"address": "10.0.2.2", "port": 80, "namespace": "shop", "pod": "db"},
            "protocol": "TCP", "isolatedBy": ["shop/db"],
        })
    );
    let filter = serde_json::from_value(json!({"verdicts": ["cut"]})).unwrap();
    assert_eq!(node.flows(filter).len(), 1);
    assert_eq!(node.metric("portcullis_flows_total{verdict=\"cut\"}"), 1);
    node.stop();
}

pub(crate) fn repairs() {
    let (mut node, _ends) = with_one_cut("repairs");
    let listed = |table: &str| {
        let output = Command::new("nft").args(["-s", "list", "table", "inet", table]).output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    let tables = ["portcullis-cut", "portcullis-sources"];
    let before = tables.map(listed);
    let edits = [
        ("delete table inet portcullis-cut", 1),
        ("flush set inet portcullis-cut tcp4", 1),
        ("insert rule inet portcullis-cut cut accept", 1),
        ("flush chain inet portcullis-sources prerouting", 1),
        ("flush set inet portcullis-sources own4", 1),
        ("delete table inet portcullis-sources; delete table inet portcullis-cut", 2),
    ];
    let mut repairs = 0;
    for (edit, tables_changed) in edits {
        nft(edit);
        let start = Instant::now();
        eventually(edit, || tables.map(listed) == before);
        let took = start.elapsed();
        eprintln!("{edit}: repaired after {took:?}");
        // Every ten seconds all is put there anyway, whether anybody has noticed or not.
        assert!(took < Duration::from_secs(5), "{edit}: {took:?}");
        repairs += tables_changed;
        eventually("counted", || node.metric("portcullis_drift_repairs_total") == repairs);
    }
    node.stop();
}

pub(crate) fn again() {
    let mut node = Node::new("again", DENIED);
    let to = "10.0.2.2:81".parse().unwrap();
    // Long enough for the first packet to be sent again, twice.
    node.web()
        .inside(move || TcpStream::connect_timeout(&to, Duration::from_millis(3500)).unwrap_err());
    node.many(1);
    let repeated = node.metric("portcullis_flows_repeated_packets_total");
    assert!(repeated >= 1, "it was not sent again");
    let refused = node.metric("portcullis_refused_packets_total{by=\"ingress\"}");
    assert_eq!(refused, 1 + repeated);
    // From another port it is another connection.
    udp(node.web(), "10.0.1.2", 4001, "10.0.2.2:81");
    udp(node.web(), "10.0.1.2", 4001, "10.0.2.2:81");
    udp(node.web(), "10.0.1.2", 4002, "10.0.2.2:81");
    node.many(3);
    node.stop();
}

/// Waits until the kernel tells of what it allows, or does not: it is asked to a moment after it enforces.
fn told_of_what_is_allowed(told: bool) {
    let table = ["list", "table", "inet", "portcullis-log"];
    let there = || Command::new("nft").args(table).output().unwrap().status.success();
    eventually("told of what is allowed", || there() == told);
}

pub(crate) fn levels() {
    let mut node = Node::new("levels", NONE);
    let db: IpAddr = "10.0.2.2".parse().unwrap();
    let listening = node.db().listen(db, 80);
    let both = |node: &Node| {
        assert!(node.web().connects(db, 80, true));
        udp(node.web(), "10.0.1.2", 4001, "10.0.2.2:81");
    };
    both(&node);
    assert_eq!(node.many(0), []);
    assert_eq!(node.metric("portcullis_refused_packets_total{by=\"ingress\"}"), 1);
    node.stop();
    node.start(ALL);
    told_of_what_is_allowed(true);
    both(&node);
    let flows = node.many(2);
    let allowed = flows.iter().find(|flow| flow.verdict == Verdict::Allowed).unwrap();
    let allowed = timeless(allowed);
    assert_eq!(allowed["isolatedBy"], json!(["shop/db"]));
    assert_eq!(allowed["allowedBy"], json!([{"policy": "shop/db", "rule": "spec.ingress[0]"}]));
    assert_eq!(allowed["destination"]["pod"], "db");
    node.stop();
    node.start(DENIED);
    both(&node);
    assert_eq!(node.many(1)[0].verdict, Verdict::Refused);
    node.stop();
    drop(listening);
}

/// A namespace says otherwise than the agent.
pub(crate) fn annotation() {
    let mut node = Node::new("annotation", NONE);
    let db: IpAddr = "10.0.2.2".parse().unwrap();
    let listening = node.db().listen(db, 80);
    let say = |node: &Node, level: &str| {
        let applies = node.metric("portcullis_apply_duration_seconds_count");
        let mut shop = namespace("shop", "a");
        shop["metadata"]["annotations"] = json!({"portcullis.dev/log": level});
        node.server.put("namespaces", shop);
        if level != "all" {
            eventually("in force", || {
                node.metric("portcullis_apply_duration_seconds_count") > applies
            });
        }
        told_of_what_is_allowed(level == "all");
    };
    let mut port = 4000;
    let mut both = |node: &Node| {
        port += 1;
        assert!(node.web().connects(db, 80, true));
        udp(node.web(), "10.0.1.2", port, "10.0.2.2:81");
    };
    both(&node);
    assert_eq!(node.many(0), []);
    say(&node, "denied");
    both(&node);
    assert_eq!(node.many(1)[0].verdict, Verdict::Refused);
    say(&node, "all");
    both(&node);
    assert_eq!(node.many(3).iter().filter(|f| f.verdict == Verdict::Allowed).count(), 1);
    say(&node, "none");
    both(&node);
    node.many(3);
    node.stop();

    // The other way round: what is refused is told by the kernel, and not wanted.
    node.start(DENIED);
    both(&node);
    assert_eq!(node.many(0), []);
    let unwanted = || node.metric("portcullis_flows_unwanted_packets_total");
    eventually("seen", || unwanted() == 1);
    node.stop();
    drop(listening);
}

pub(crate) fn flood() {
    const PACKETS: u64 = 30_000;
    let mut node = Node::new("flood", Logging { rate: 20, ..DENIED });
    let endpoints = node.metric("portcullis_endpoints");
    node.server.put("pods", pod("third", NODE, "10.0.3.2", "third"));
    eventually("one pod more", || node.metric("portcullis_endpoints") == endpoints + 1);
    let db: IpAddr = "10.0.2.2".parse().unwrap();
    let listening = node.db().listen(db, 80);
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| {
            let sockets: Vec<_> =
                (0..50).map(|_| node.web().udp("10.0.1.2".parse().unwrap(), 0)).collect();
            for i in 0..PACKETS {
                sockets[(i % 50) as usize].send_to(b"?", "10.0.2.2:81").unwrap();
            }
        });
        let mut tried = 0;
        while !flood.is_finished() {
            assert!(node.web().connects(db, 80, true), "what is allowed is not lost");
            // Or the listener takes no more.
            listening.accept().unwrap();
            tried += 1;
        }
        assert!(tried > 0);
    });
    // What one pod had too much of is not what another one has too little of.
    udp(&node.network.pods[2], "10.0.3.2", 4001, "10.0.2.2:81");
    let from = json!({"from": [{"pod": {"namespace": "shop", "name": "third"}}]});
    let of_third = || node.flows(serde_json::from_value(from.clone()).unwrap()).len();
    eventually("the third pod's is reported", || of_third() == 1);
    let refused = |node: &Node| node.metric("portcullis_refused_packets_total{by=\"ingress\"}");
    eventually("all are counted", || refused(&node) == PACKETS + 1);
    let unlogged = node.metric("portcullis_refused_unlogged_packets_total{by=\"ingress\"}");
    let accounted = |node: &Node| {
        node.metric("portcullis_flows_total{verdict=\"refused\"}")
            + node.metric("portcullis_flows_repeated_packets_total")
            + node.metric("portcullis_flows_lost_packets_total")
    };
    eventually("every packet is accounted for", || accounted(&node) + unlogged == PACKETS + 1);
    assert!(unlogged > PACKETS / 2, "{unlogged} are not many");
    let flows = node.flows(Filter::default()).len();
    assert!((2..=51).contains(&flows), "{flows} of 51 connections");
    drop(listening);
    node.stop();
}

pub(crate) fn follow() {
    let mut node = Node::new("follow", DENIED);
    udp(node.web(), "10.0.1.2", 4001, "10.0.2.2:81");
    node.many(1);
    let mut stream = UnixStream::connect(&node.socket.path).unwrap();
    let filter = serde_json::from_value(json!({"ports": [{"port": 82}]})).unwrap();
    let request = Request::Observe { filter, last: Some(5), follow: true };
    stream.write_all(&line(&request)).unwrap();
    let mut lines = BufReader::new(stream).lines();
    for (source, port) in [(4002, 81), (4003, 82), (4004, 83), (4005, 82)] {
        udp(node.web(), "10.0.1.2", source, &format!("10.0.2.2:{port}"));
    }
    for wanted in [4003, 4005] {
        let text = lines.next().unwrap().unwrap();
        let Answer::Flow(flow) = serde_json::from_str(&text).unwrap() else { panic!("{text}") };
        assert_eq!(flow.source.port, Some(wanted));
    }
    node.stop();
    assert!(lines.next().is_none_or(|end| end.is_err()), "the agent has gone");
}

pub(crate) fn rule_hits() {
    let mut node = Node::new("hits", NONE);
    let from = json!([{"podSelector": {"matchLabels": {"app": "web"}}}]);
    let spec = json!({
        "podSelector": {"matchLabels": {"app": "db"}},
        "ingress": [
            {"from": from, "ports": [{"port": 80}]},
            {"from": from, "ports": [{"port": 81}]},
        ],
    });
    node.server.put("networkpolicies", policy("db", spec));
    eventually("two rules", || node.hits().len() == 2);
    let db: IpAddr = "10.0.2.2".parse().unwrap();
    let listening = node.db().listen(db, 80);
    for _ in 0..3 {
        assert!(node.web().connects(db, 80, true));
    }
    let hits = node.hits();
    let shown: Vec<_> =
        hits.iter().map(|hits| (&*hits.rule.policy, &*hits.rule.rule, hits.hits)).collect();
    assert_eq!(shown, [("shop/db", "spec.ingress[0]", 3), ("shop/db", "spec.ingress[1]", 0)]);
    let since: jiff::Timestamp = hits[1].since.parse().unwrap();
    assert!(jiff::Timestamp::now().duration_since(since).as_secs() < 90);
    let by_rule =
        "portcullis_rule_hits_total{namespace=\"shop\",policy=\"db\",direction=\"ingress\"";
    assert_eq!(node.metric(&format!("{by_rule},rule=\"0\"}}")), 3);
    assert_eq!(node.metric(&format!("{by_rule},rule=\"1\"}}")), 0);
    drop(listening);
    node.stop();
}

/// The pod `third` (10.0.3.2) is there too, and `web` may send to `db` alone.
pub(crate) fn events() {
    let mut node = Node::new("events", DENIED);
    for (name, address) in [("web", "10.0.1.2"), ("db", "10.0.2.2"), ("third", "10.0.3.2")] {
        let mut pod = pod(name, NODE, address, name);
        pod["metadata"]["uid"] = format!("uid-of-{name}").into();
        node.server.put("pods", pod);
    }
    let to = json!([{"podSelector": {"matchLabels": {"app": "db"}}}]);
    let spec = json!({
        "podSelector": {"matchLabels": {"app": "web"}},
        "policyTypes": ["Egress"],
        "egress": [{"to": to}],
    });
    node.server.put("networkpolicies", policy("web", spec));
    let enforces = |node: &Node| {
        let policies = || node.asked(&Request::Policies { namespace: None, name: None });
        eventually("two policies", || match &policies()[..] {
            [Answer::Policies(holding)] => holding.policies.len() == 2,
            _ => false,
        });
    };
    let posts = |node: &Node| {
        let asked = node.server.asked().into_iter();
        asked.filter(|line| !line.starts_with("GET ")).collect::<Vec<_>>()
    };

    enforces(&node);
    udp(node.web(), "10.0.1.2", 4001, "10.0.2.2:53");
    node.many(1);
    assert_eq!(posts(&node), [""; 0], "not without being asked for");
    node.stop();

    // What may not be written, or cannot, is written when the next connection is refused.
    node.server.forbid(&["events"]);
    node.start_with(|options| {
        options.log = DENIED;
        options.events = true;
    });
    enforces(&node);
    udp(node.web(), "10.0.1.2", 4002, "10.0.2.2:53");
    eventually("tried", || posts(&node).len() == 1);
    assert_eq!(node.server.created(), []);
    node.server.forbid(&[]);

    // Of many, one for each pod and direction.
    for source in 4003..4010 {
        udp(node.web(), "10.0.1.2", source, "10.0.2.2:80");
    }
    udp(node.web(), "10.0.1.2", 4010, "10.0.3.2:80");
    udp(node.web(), "10.0.1.2", 4011, "10.0.3.2:81");
    eventually("two Events", || node.server.created().len() >= 2);
    node.many(10);
    // Longer than the agent waits after each.
    std::thread::sleep(Duration::from_millis(2500));
    let created = node.server.created();
    let [(first, at_db), (second, at_web)] = &created[..] else { panic!("{created:#?}") };
    assert!(*second - *first >= Duration::from_secs(1), "one in a second");
    for line in posts(&node) {
        assert!(line.starts_with("POST /api/v1/namespaces/shop/events?"), "{line}");
        assert!(permitted(&line, EVENTS_ROLE) && !permitted(&line, ROLE), "{line}");
    }

    let told = [
        (
            at_db,
            "db",
            "refused from shop/web on 80/UDP: isolated by shop/db; nearest is ingress[0] of shop/db: \
             ports[0].protocol: expected TCP, found UDP",
        ),
        (
            at_web,
            "web",
            "refused to shop/third on 80/UDP: isolated by shop/web; nearest is egress[0] of shop/web: \
             to[0].podSelector.matchLabels[app]: expected app=db, found app=third",
        ),
    ];
    for (event, name, said) in told {
        let mut event = event.clone();
        let time = event["firstTimestamp"].take();
        let time: jiff::Timestamp = time.as_str().unwrap().parse().unwrap();
        assert!(jiff::Timestamp::now().duration_since(time).as_secs().abs() < 60, "{time}");
        event["lastTimestamp"].take();
        let message =
            format!("{said}. More of these within 5 minutes are not told here: portcullis observe");
        let wanted = json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"generateName": format!("{name}.portcullis."), "namespace": "shop"},
            "involvedObject": {
                "apiVersion": "v1", "kind": "Pod", "namespace": "shop", "name": name,
                "uid": format!("uid-of-{name}"),
            },
            "type": "Warning", "reason": "ConnectionRefused", "message": message,
            "source": {"component": "portcullis", "host": NODE},
            "reportingComponent": "portcullis", "reportingInstance": NODE,
            "firstTimestamp": null, "lastTimestamp": null, "count": 1,
        });
        assert_eq!(event, wanted);
    }
    node.stop();
}
