//! The agent from an API server to a data plane: the fake one, and this machine's kernel, without
//! root, in a user namespace and for each test a network namespace of its own.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that clippy does not take for one, as it has no harness"
)]

mod adding;
mod holding;
#[path = "../../../dataplane/tests/kernel/network.rs"]
#[allow(dead_code)]
mod network;
mod observe;
mod server;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkFlags, LinkMessage};
use network::Network;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getgid, getuid};
use portcullis_agent::{
    Desired, Logging, Mode, Options, Socket, Unprogrammed, desired_once, run, run_until,
};
use portcullis_core::model::LogLevel;
use portcullis_dataplane::netlink::{NETLINK_ROUTE, NetlinkSocket};
use portcullis_dataplane::state::NodeState;
use portcullis_dataplane::{Dataplane, Difference, Ended, Error, Fake, Hits, Nftables, Report};
use portcullis_kube::live::Access;
use portcullis_kube::{Source, load};
use serde_json::{Value, json};
use server::Server;

/// The kubeconfig of an agent that this program is to be, instead of a test.
const BE_AN_AGENT: &str = "PORTCULLIS_TEST_AGENT";
const NODE: &str = "node-1";
const NO_LOG: Logging = Logging { level: LogLevel::None, group: 86, rate: 100 };
const PATIENCE: Duration = Duration::from_secs(90);

fn main() -> ExitCode {
    if let Some(kubeconfig) = std::env::var_os(BE_AN_AGENT) {
        let options = options(kubeconfig.into(), None);
        run(options, Nftables::open().unwrap()).unwrap();
        return ExitCode::SUCCESS;
    }
    let arguments = Arguments::from_args();
    if let Err(error) = become_root_of_a_user_namespace() {
        eprintln!("These tests need a user namespace, and this machine refuses one: {error}.");
        return ExitCode::FAILURE;
    }
    let test = |name: &str, test: fn()| Trial::test(name, move || run_in_namespace(test));
    let tests = vec![
        test("what_is_programmed_follows_the_cluster", follows),
        test("what_is_in_the_kernel_follows_the_cluster", follows_in_the_kernel),
        test("a_server_with_streaming_lists_is_followed_too", follows_streams),
        test("a_server_that_went_away_and_forgot_is_caught_up_with", forgetful),
        test("a_list_that_expires_between_its_pages_is_read_again", expired_pages),
        test("a_watch_goes_on_from_the_last_bookmark", bookmarks),
        test("what_is_in_force_stands_while_a_server_is_away_for_an_hour", away_for_long),
        test("a_server_that_is_slow_is_followed_too", follows_slowly),
        test("a_server_that_repeats_itself_is_followed_too", follows_repeated),
        test("objects_that_are_written_again_unchanged_cost_no_change_of_the_rules", unchanged),
        test("a_storm_of_events_is_enforced_in_few_pieces", storm),
        test("nothing_is_programmed_while_a_kind_may_not_be_read", forbidden),
        test("a_policy_that_cannot_be_understood_is_closed_and_counted", unreadable),
        test("a_node_that_the_cluster_does_not_have_is_never_ready", unknown_node),
        test("a_pod_that_the_runtime_adds_is_enforced_when_that_is_answered", adding::known),
        test("a_pod_does_not_go_on_with_connections_of_the_one_before", adding::left_open),
        test("an_address_goes_to_the_next_pod_at_once_and_without_flows", adding::handed_over),
        test("a_pod_that_is_made_anew_under_its_name_is_another", adding::same_name),
        test("an_address_is_told_as_free_when_nothing_of_it_is_open", adding::freed),
        test("a_pod_that_nobody_has_told_of_is_closed", adding::unknown),
        test("what_was_added_while_no_agent_was_there_is_known_to_the_next", adding::away),
        test("no_pod_is_added_before_the_cluster_is_known", adding::not_heard),
        test("what_is_no_request_is_answered_and_harms_nobody", adding::strange_lines),
        test(
            "the_policies_that_the_kernel_holds_are_told_by_their_generation",
            holding::generations,
        ),
        test("what_the_kernel_refused_is_not_told_as_held", holding::refused),
        test("an_agent_in_audit_refuses_nothing", holding::audit),
        test("nothing_is_asked_of_the_server_but_lists_and_watches", only_reads),
        with_nft("what_somebody_else_changes_is_repaired", repairs),
        test("no_refused_packet_passes_while_agents_are_killed", killed),
        test("a_refused_connection_is_reported_with_all_that_explains_it", observe::fields),
        test("a_packet_that_is_sent_again_is_no_other_connection", observe::again),
        with_nft("what_is_reported_is_what_was_asked_for", observe::levels),
        with_nft("a_namespace_says_what_is_reported_of_its_pods", observe::annotation),
        test(
            "of_a_flood_what_is_not_logged_is_counted_and_nothing_allowed_is_lost",
            observe::flood,
        ),
        test("a_connection_that_is_cut_is_reported_and_counted", observe::cut),
        with_nft("what_somebody_else_changes_of_the_guard_is_repaired", observe::repairs),
        test("whoever_follows_is_told_of_what_happens", observe::follow),
        test("hits_are_told_by_rule_those_of_none_too", observe::rule_hits),
        test("refused_connections_are_events_on_pods_if_that_is_asked_for", observe::events),
        test("an_address_that_pods_dispute_is_closed_until_one_has_it", disputed),
        test("open_connections_and_unknown_addresses_follow_what_is_heard", guards),
    ];
    libtest_mimic::run(&arguments, tests).exit_code()
}

/// Must come before the first thread. The network stays: the API server is on its loopback.
fn become_root_of_a_user_namespace() -> std::io::Result<()> {
    let (uid, gid) = (getuid(), getgid());
    unshare(CloneFlags::CLONE_NEWUSER)?;
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    std::fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
}

fn run_in_namespace(test: fn()) -> Result<(), Failed> {
    // The panic's message has been printed already.
    thread::spawn(test).join().map_err(|_| "the test panicked".into())
}

/// A test that needs the `nft` program. Without it, it is skipped, or fails if
/// `PORTCULLIS_REQUIRE_NFT` is 1.
fn with_nft(name: &str, test: fn()) -> Trial {
    Trial::ignorable_test(name, move || {
        if Command::new("nft").arg("--version").output().is_err() {
            let required = std::env::var("PORTCULLIS_REQUIRE_NFT").is_ok_and(|value| value == "1");
            return if required {
                Err("nft is not installed, and PORTCULLIS_REQUIRE_NFT is 1".into())
            } else {
                Ok(Completion::ignored_with("skipped: nft is not installed"))
            };
        }
        run_in_namespace(test).map(|()| Completion::Completed)
    })
}

fn options(kubeconfig: PathBuf, metrics_address: Option<SocketAddr>) -> Options {
    let access = Access { kubeconfig: Some(kubeconfig), ..Access::default() };
    let unprogrammed = Unprogrammed::default();
    Options {
        node: NODE.to_owned(),
        access,
        metrics_address,
        api_address: None,
        unprogrammed,
        mode: Mode::Enforce,
        keep_established: true,
        allow_spoofing: true,
        log: NO_LOG,
        events: false,
        socket: None,
    }
}

/// An agent on threads of its own.
struct Running {
    stop: tokio::sync::oneshot::Sender<()>,
    thread: JoinHandle<Result<(), portcullis_agent::Error>>,
    metrics: SocketAddr,
}

impl Running {
    fn start(server: &Server, dataplane: impl Dataplane + Send + 'static) -> Running {
        Running::on(NODE, server, dataplane)
    }

    fn on(node: &str, server: &Server, dataplane: impl Dataplane + Send + 'static) -> Running {
        Running::with(server, dataplane, |options| options.node = node.to_owned())
    }

    fn with_socket(
        server: &Server,
        dataplane: impl Dataplane + Send + 'static,
        socket: Socket,
    ) -> Running {
        Running::with(server, dataplane, |options| options.socket = Some(socket))
    }

    fn with(
        server: &Server,
        dataplane: impl Dataplane + Send + 'static,
        change: impl FnOnce(&mut Options),
    ) -> Running {
        let metrics = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut options = options(server.kubeconfig(), Some(metrics));
        change(&mut options);
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let thread = thread::spawn(move || {
            run_until(options, dataplane, async {
                let _ = stopped.await;
                Ok(())
            })
        });
        Running { stop, thread, metrics }
    }

    fn stop(self) {
        self.stop.send(()).unwrap();
        self.thread.join().unwrap().unwrap();
    }

    /// Status and body.
    fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.metrics);
        eventually("an agent that answers", || {
            if stream.is_err() {
                stream = TcpStream::connect(self.metrics);
            }
            stream.is_ok()
        });
        let mut stream = stream.unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    fn metric(&self, name: &str) -> f64 {
        let (_, page) = self.get("/metrics");
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in\n{page}")).parse().unwrap()
    }
}

/// A fake data plane of which the test has a hand too.
#[derive(Clone, Default)]
struct Watched(Arc<Mutex<(Fake, Option<NodeState>)>>);

impl Watched {
    fn state(&self) -> Option<NodeState> {
        self.0.lock().unwrap().1.clone()
    }
}

impl Dataplane for Watched {
    fn apply(&mut self, state: &NodeState) -> Result<Report, Error> {
        let mut inner = self.0.lock().unwrap();
        inner.1 = Some(state.clone());
        inner.0.apply(state)
    }

    fn hits(&mut self) -> Result<Vec<Hits>, Error> {
        self.0.lock().unwrap().0.hits()
    }

    fn ended(&mut self) -> Result<Ended, Error> {
        self.0.lock().unwrap().0.ended()
    }

    fn tidy(&mut self, wait: bool) -> bool {
        self.0.lock().unwrap().0.tidy(wait)
    }

    fn differences(&mut self) -> Result<Vec<Difference>, Error> {
        Ok(Vec::new())
    }

    fn remove(&mut self) -> Result<(), Error> {
        self.0.lock().unwrap().0.remove()
    }
}

#[track_caller]
fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// What a full compile of all that the server has says, by way of the reader of manifests.
fn wanted(server: &Server) -> NodeState {
    let text = server.manifests();
    let source = Source::Text { name: "server".to_owned(), text };
    let mut input = load(&[source], &portcullis_kube::Options::default());
    input.cluster.policies = input.meanings().cloned().collect();
    Desired::of(&input.cluster, NODE).state
}

fn pod(name: &str, node: &str, address: &str, app: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "shop", "labels": {"app": app}},
        "spec": {
            "nodeName": node,
            "containers": [{"name": "c", "ports": [{"containerPort": 80, "name": "http"}]}],
        },
        "status": {"phase": "Running", "podIPs": [{"ip": address}]},
    })
}

fn node(name: &str, address: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "status": {"addresses": [{"type": "InternalIP", "address": address}]},
    })
}

fn namespace(name: &str, team: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"team": team}}})
}

fn policy(name: &str, spec: Value) -> Value {
    json!({"metadata": {"name": name, "namespace": "shop"}, "spec": spec})
}

/// Two nodes, a few pods, and policies for them.
fn cluster(server: &Server) {
    server.put("namespaces", namespace("shop", "a"));
    server.put("namespaces", namespace("ops", "b"));
    server.put("nodes", node(NODE, "192.168.0.1"));
    server.put("nodes", node("node-2", "192.168.0.2"));
    server.put("pods", pod("web", NODE, "10.0.1.2", "web"));
    server.put("pods", pod("db", NODE, "10.0.2.2", "db"));
    server.put("pods", pod("far", "node-2", "10.0.9.2", "web"));
    let from = json!([{"podSelector": {"matchLabels": {"app": "web"}}}]);
    let ports = json!([{"port": "http"}]);
    let subject = json!({"matchLabels": {"app": "db"}});
    server.put(
        "networkpolicies",
        policy("db", json!({"podSelector": subject, "ingress": [{"from": from, "ports": ports}]})),
    );
}

type Change = Box<dyn Fn(&Server)>;

/// Changes of every sort, one after the other.
fn changes() -> Vec<Change> {
    let team_b = json!([{"namespaceSelector": {"matchLabels": {"team": "b"}}}]);
    let mut ops = pod("probe", "node-2", "10.0.9.3", "probe");
    ops["metadata"]["namespace"] = "ops".into();
    vec![
        Box::new(|server| server.put("pods", pod("far2", "node-2", "10.0.9.4", "web"))),
        Box::new(|server| server.put("pods", pod("web", NODE, "10.0.1.2", "other"))),
        Box::new(move |server| server.put("pods", ops.clone())),
        Box::new(move |server| {
            let rule = json!([{"from": team_b}]);
            server
                .put("networkpolicies", policy("ops", json!({"podSelector": {}, "ingress": rule})));
        }),
        Box::new(|server| server.put("namespaces", namespace("shop", "b"))),
        Box::new(|server| server.put("namespaces", namespace("ops", "c"))),
        Box::new(|server| server.delete("pods", "shop", "db")),
        Box::new(|server| server.put("pods", pod("db-2", NODE, "10.0.2.2", "db"))),
        Box::new(|server| server.put("pods", pod("web", "node-2", "10.0.9.9", "web"))),
        Box::new(|server| {
            let spec = json!({"podSelector": {}, "policyTypes": ["Egress"]});
            server.put("networkpolicies", policy("no-egress", spec));
        }),
        Box::new(|server| server.delete("networkpolicies", "shop", "db")),
        Box::new(|server| server.delete("namespaces", "", "ops")),
        Box::new(|server| server.delete("networkpolicies", "shop", "ops")),
        Box::new(|server| server.delete("networkpolicies", "shop", "no-egress")),
    ]
}

fn follow(server: &Server) {
    cluster(server);
    let fake = Watched::default();
    let agent = Running::start(server, fake.clone());
    eventually("the first state", || fake.state() == Some(wanted(server)));
    eventually("ready", || agent.get("/readyz").0 == 200);
    let mut last = fake.state();
    let mut different = 0;
    for (i, change) in changes().iter().enumerate() {
        change(server);
        let wanted = wanted(server);
        eventually(&format!("change {i}"), || fake.state().as_ref() == Some(&wanted));
        different += usize::from(last.replace(wanted.clone()) != Some(wanted));
    }
    assert!(different > 8, "only {different} changes concern the node");
    assert_eq!(agent.metric("portcullis_watch_errors_total{resource=\"pods\"}"), 0.0);
    assert_eq!(agent.get("/healthz"), (200, "ok\n".to_owned()));
    agent.stop();
    assert_eq!(fake.state(), last, "stopping changes nothing");
}

fn follows() {
    follow(&Server::start(30));
}

fn follows_streams() {
    let server = Server::start(35);
    follow(&server);
    let asked = server.asked();
    assert!(asked.iter().any(|line| line.contains("sendInitialEvents=true")), "{asked:?}");
    assert!(!asked.iter().any(|line| line.contains("limit=")), "{asked:?}");
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

fn follows_in_the_kernel() {
    own_network();
    let server = &Server::start(30);
    cluster(server);
    let mut kernel = Nftables::open().unwrap();
    let mut is = |server: &Server| {
        let wanted = wanted(server);
        eventually("in the kernel", || {
            // A listing while the agent changes things can be refused.
            kernel.compare(&wanted).is_ok_and(|differences| differences.is_empty())
        });
    };
    let agent = Running::start(server, Nftables::open().unwrap());
    is(server);
    for change in changes() {
        change(server);
        is(server);
    }
    thread::sleep(Duration::from_secs(1));
    assert_eq!(agent.metric("portcullis_drift_repairs_total"), 0.0, "nobody else was there");
    let wanted_at_last = wanted(server);
    agent.stop();
    assert_eq!(kernel.compare(&wanted_at_last).unwrap(), [], "stopping changes nothing");

    // What was left is taken over, and what has changed meanwhile is caught up with.
    server.put("networkpolicies", policy("closed", json!({"podSelector": {}})));
    let asked = Access { kubeconfig: Some(server.kubeconfig()), ..Access::default() };
    let desired =
        desired_once(&asked, NODE, &Unprogrammed::Open, Mode::Enforce, NO_LOG, &[], PATIENCE);
    let desired = desired.unwrap();
    assert_eq!(desired.state, wanted(server));
    assert_ne!(kernel.compare(&desired.state).unwrap(), []);
    let agent = Running::start(server, Nftables::open().unwrap());
    eventually("taken over", || kernel.compare(&desired.state).is_ok_and(|d| d.is_empty()));
    agent.stop();
    kernel.remove().unwrap();
    assert_eq!(kernel.compare(&desired.state).unwrap(), [Difference::NoTable]);
}

fn forgetful() {
    let server = Server::start(30);
    cluster(&server);
    let fake = Watched::default();
    let agent = Running::start(&server, fake.clone());
    eventually("the first state", || fake.state() == Some(wanted(&server)));
    for round in 0..3 {
        let before = fake.state();
        server.go_away();
        eventually("errors", || {
            agent.metric("portcullis_watch_errors_total{resource=\"pods\"}") > f64::from(round)
        });
        server.delete("pods", "shop", "web");
        let spec = json!({"podSelector": {}, "policyTypes": ["Egress"]});
        server.put("networkpolicies", policy(&format!("p{round}"), spec));
        thread::sleep(Duration::from_millis(300));
        assert_eq!(fake.state(), before, "what is in force stands");
        assert_eq!(agent.get("/readyz").0, 200);
        server.come_back();
        eventually("caught up", || fake.state() == Some(wanted(&server)));
        server.put("pods", pod("web", NODE, "10.0.1.2", "web"));
        eventually("goes on", || fake.state() == Some(wanted(&server)));
    }
    agent.stop();
}

/// So many requests for a list of this kind, from its beginning, there were.
fn lists(server: &Server, path: &str) -> usize {
    let asked = server.asked();
    let lists = asked.iter().filter(|line| {
        let from_the_beginning = !line.contains("watch=true") && !line.contains("continue=");
        line.starts_with(&format!("GET {path}?")) && from_the_beginning
    });
    lists.count()
}

fn expired_pages() {
    let server = Server::start(30);
    cluster(&server);
    for i in 0..1200u32 {
        let address = format!("10.1.{}.{}", i / 200, i % 200 + 2);
        server.put("pods", pod(&format!("p-{i}"), "node-2", &address, "web"));
    }
    server.expire_pages(2);
    let fake = Watched::default();
    let agent = Running::start(&server, fake.clone());
    eventually("the first state", || fake.state() == Some(wanted(&server)));
    assert_eq!(agent.metric("portcullis_watch_errors_total{resource=\"pods\"}"), 2.0);
    assert_eq!(lists(&server, "/api/v1/pods"), 3);

    // The same in the middle of its life, and nothing is new: then nothing is changed.
    let applies = || agent.metric("portcullis_apply_duration_seconds_count");
    let before = applies();
    server.expire_pages(2);
    // As if something else had happened, which is forgotten too.
    server.put("events", json!({"metadata": {"name": "e", "namespace": "shop"}}));
    server.forget();
    server.break_off();
    eventually("read again", || lists(&server, "/api/v1/pods") == 6);
    // The last page has come when it is watched from there on.
    eventually("watched again", || {
        let asked = server.asked();
        let last = asked.iter().rfind(|line| line.contains("/api/v1/pods?"));
        last.is_some_and(|line| line.contains("watch=true"))
    });
    server.put("pods", pod("far2", "node-2", "10.0.9.4", "web"));
    eventually("goes on", || fake.state() == Some(wanted(&server)));
    assert_eq!(applies(), before + 1.0, "of the pod that is new");
    agent.stop();
}

fn bookmarks() {
    let server = Server::start(30);
    cluster(&server);
    let fake = Watched::default();
    let agent = Running::start(&server, fake.clone());
    eventually("the first state", || fake.state() == Some(wanted(&server)));
    let path = "/api/v1/nodes";
    assert_eq!(lists(&server, path), 1);
    for told in [true, false] {
        // Of these the watch of nodes hears nothing, but by a bookmark.
        server
            .put("pods", pod("far2", "node-2", if told { "10.0.9.4" } else { "10.0.9.5" }, "web"));
        eventually("heard", || fake.state() == Some(wanted(&server)));
        if told {
            server.bookmark();
            eventually("told", || server.told() == 4);
        }
        server.forget();
        server.break_off();
        server.put("nodes", node("node-3", if told { "192.168.0.3" } else { "192.168.0.4" }));
        let last = if told { "10.0.3.2" } else { "10.0.3.3" };
        server.put("pods", pod("web-2", NODE, last, "web"));
        eventually("goes on", || fake.state() == Some(wanted(&server)));
        if told {
            assert_eq!(lists(&server, path), 1, "it could go on from where the bookmark was");
        } else {
            eventually("a list", || lists(&server, path) == 2);
        }
    }
    agent.stop();
}

/// An hour in which each attempt fails has a hundred and some of them. Here they come one soon after
/// the other.
fn away_for_long() {
    let server = Server::start(30);
    cluster(&server);
    let fake = Watched::default();
    let agent = Running::with(&server, fake.clone(), |options| {
        options.access.waits = [Duration::from_millis(1), Duration::from_millis(8)];
    });
    eventually("the first state", || fake.state() == Some(wanted(&server)));
    let before = fake.state();
    server.go_away();
    for kind in ["pods", "namespaces", "nodes", "networkpolicies"] {
        let metric = format!("portcullis_watch_errors_total{{resource=\"{kind}\"}}");
        eventually("an hour of attempts", || agent.metric(&metric) > 150.0);
    }
    assert_eq!(fake.state(), before, "what is in force stands");
    assert_eq!(agent.get("/readyz").0, 200);
    server.delete("pods", "shop", "web");
    server.put("networkpolicies", policy("closed", json!({"podSelector": {}})));
    server.come_back();
    eventually("caught up", || fake.state() == Some(wanted(&server)));
    agent.stop();
}

fn follows_slowly() {
    for minor in [30, 35] {
        let server = Server::start(minor);
        server.pause(Duration::from_millis(40));
        follow(&server);
    }
}

fn follows_repeated() {
    for minor in [30, 35] {
        let server = Server::start(minor);
        server.repeat(2);
        follow(&server);
    }
}

fn unchanged() {
    let server = Server::start(30);
    cluster(&server);
    let fake = Watched::default();
    let agent = Running::start(&server, fake.clone());
    eventually("the first state", || fake.state() == Some(wanted(&server)));
    let applies = || agent.metric("portcullis_apply_duration_seconds_count");
    let before = applies();
    for _ in 0..20 {
        cluster(&server);
    }
    server.put("pods", pod("web-2", NODE, "10.0.3.2", "web"));
    eventually("the last event", || fake.state() == Some(wanted(&server)));
    assert_eq!(applies(), before + 1.0, "of the pod that is new");
    agent.stop();
}

fn storm() {
    let server = Server::start(30);
    cluster(&server);
    let fake = Watched::default();
    let agent = Running::start(&server, fake.clone());
    eventually("the first state", || fake.state() == Some(wanted(&server)));
    for i in 0..3000u32 {
        let address = format!("10.1.{}.{}", i / 7 % 50, i % 7 + 2);
        let name = format!("p-{}", i % 350);
        server.put("pods", pod(&name, "node-2", &address, ["web", "db"][i as usize % 2]));
    }
    let wanted = wanted(&server);
    eventually("the last state", || fake.state().as_ref() == Some(&wanted));
    let applies = agent.metric("portcullis_apply_duration_seconds_count");
    assert!(applies < 1000.0, "{applies} applies for 3000 events");
    agent.stop();
}

fn forbidden() {
    let server = Server::start(30);
    cluster(&server);
    server.forbid(&["nodes"]);
    let fake = Watched::default();
    let agent = Running::start(&server, fake.clone());
    eventually("an error", || {
        agent.metric("portcullis_watch_errors_total{resource=\"nodes\"}") > 1.0
    });
    assert_eq!(fake.state(), None);
    assert_eq!(agent.get("/readyz"), (503, "nothing has been enforced yet\n".to_owned()));
    assert_eq!(agent.get("/healthz").0, 200);
    server.forbid(&[]);
    eventually("permitted", || fake.state() == Some(wanted(&server)));
    agent.stop();
}

fn unreadable() {
    let server = Server::start(30);
    cluster(&server);
    let fake = Watched::default();
    let agent = Running::start(&server, fake.clone());
    eventually("the first state", || fake.state() == Some(wanted(&server)));
    let spec = json!({
        "podSelector": {"matchLabels": {"app": "web"}},
        "ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}, "realm": "mesh"}]}],
    });
    server.put("networkpolicies", policy("new", spec));
    eventually("counted", || agent.metric("portcullis_unreadable_policies") == 1.0);
    eventually("closed", || fake.state() == Some(wanted(&server)));
    let state = fake.state().unwrap();
    let profile = state.endpoints[&"10.0.1.2".parse::<IpAddr>().unwrap()];
    let ingress = state.profiles[&profile].ingress.clone().expect("isolated");
    let nobody = portcullis_dataplane::state::PeerSet::Addresses(Default::default());
    let allows =
        ingress.iter().any(|entry| entry.peers.is_none_or(|peers| state.peers[&peers] != nobody));
    assert!(!allows, "{state:?}");
    server.delete("networkpolicies", "shop", "new");
    eventually("gone", || agent.metric("portcullis_unreadable_policies") == 0.0);
    agent.stop();
}

fn unknown_node() {
    let server = Server::start(30);
    cluster(&server);
    let fake = Watched::default();
    let agent = Running::on("elsewhere", &server, fake.clone());
    eventually("programmed", || fake.state().is_some());
    eventually("said", || {
        agent.get("/readyz") == (503, "the cluster has no node of this name\n".to_owned())
    });
    agent.stop();
    let access = Access { kubeconfig: Some(server.kubeconfig()), ..Access::default() };
    let error = desired_once(
        &access,
        "elsewhere",
        &Unprogrammed::Open,
        Mode::Enforce,
        NO_LOG,
        &[],
        PATIENCE,
    );
    let error = error.unwrap_err();
    assert_eq!(error.to_string(), "the cluster has no node \"elsewhere\": it has node-1, node-2");
}

fn only_reads() {
    let server = Server::start(35);
    follow(&server);
    for line in server.asked() {
        assert!(permitted(&line, ROLE), "{line}");
    }
    assert!(!permitted("POST /api/v1/namespaces/shop/events? HTTP/1.1", ROLE));
}

/// What agents may do: those of every cluster, and those that write Events.
const ROLE: &str = include_str!("../../../../deploy/manifests/rbac.yaml");
const EVENTS_ROLE: &str = include_str!("../../../../deploy/manifests-events/rbac.yaml");

/// Whether a role permits what a request asks for, given its first line.
fn permitted(request: &str, role: &str) -> bool {
    let [method, target, ..] = request.split(' ').collect::<Vec<_>>()[..] else { return false };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    if path == "/version" {
        // Everybody may.
        return method == "GET";
    }
    let verb = match (method, query.contains("watch=true")) {
        ("GET", true) => "watch",
        ("GET", false) => "list",
        ("POST", _) => "create",
        _ => return false,
    };
    let parts: Vec<&str> = path.split('/').collect();
    let (group, rest) = match &parts[..] {
        ["", "api", "v1", rest @ ..] => ("", rest),
        ["", "apis", group, "v1", rest @ ..] => (*group, rest),
        _ => return false,
    };
    let (["namespaces", _, resource] | [resource]) = rest else { return false };
    let (_, rules) = role.split_once("\nrules:\n").expect("a ClusterRole with rules");
    let rules = rules.split("\n---\n").next().unwrap_or_default();
    let lists = rules.lines().map(|line| {
        let (_, list) = line.split_once(": ").expect("a list on each line");
        serde_json::from_str::<Vec<&str>>(list).expect("in brackets")
    });
    let lists: Vec<Vec<&str>> = lists.collect();
    lists.chunks(3).any(|rule| {
        let [groups, resources, verbs] = rule else { return false };
        groups.contains(&group) && resources.contains(resource) && verbs.contains(&verb)
    })
}

pub(crate) fn nft(input: &str) {
    let mut child = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{input}");
}

fn repairs() {
    own_network();
    let server = Server::start(30);
    cluster(&server);
    let others = "table inet others { chain c { type filter hook forward priority 5; counter; }; }";
    nft(others);
    let listed = || {
        let output =
            Command::new("nft").args(["list", "table", "inet", "others"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let before = listed();
    let agent = Running::start(&server, Nftables::open().unwrap());
    let mut kernel = Nftables::open().unwrap();
    let state = wanted(&server);
    eventually("programmed", || kernel.compare(&state).is_ok_and(|d| d.is_empty()));
    let edits = [
        "flush chain inet portcullis forward".to_owned(),
        "insert rule inet portcullis forward accept".to_owned(),
        "add table inet portcullis { flags dormant; }".to_owned(),
        "delete table inet portcullis".to_owned(),
        "flush ruleset".to_owned(),
    ];
    for (i, edit) in (1u32..).zip(&edits) {
        // The last thing that happened was not just now.
        thread::sleep(Duration::from_millis(700));
        nft(edit);
        let start = Instant::now();
        eventually(edit, || kernel.compare(&state).is_ok_and(|d| d.is_empty()));
        eprintln!("{edit}: repaired after {:?}", start.elapsed());
        eventually("counted", || agent.metric("portcullis_drift_repairs_total") == f64::from(i));
        if edit != "flush ruleset" {
            assert_eq!(listed(), before, "a table of others, after {edit}");
        }
    }
    nft(others);
    thread::sleep(Duration::from_secs(1));
    assert_eq!(agent.metric("portcullis_drift_repairs_total"), edits.len() as f64);
    // The API server is not needed for it.
    server.go_away();
    nft("flush ruleset");
    eventually("repaired alone", || kernel.compare(&state).is_ok_and(|d| d.is_empty()));
    agent.stop();
}

/// An agent in a process of its own, in the network of the calling thread. SIGKILL when dropped.
struct Process(Child);

impl Process {
    fn start(server: &Server) -> Process {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env(BE_AN_AGENT, server.kubeconfig()).stdin(Stdio::null());
        Process(command.spawn().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Whatever the policies are, port 53 of `db` is refused and port 54 is allowed.
fn guards() {
    own_network();
    let network = Network::with_pods(3);
    let [client, db, third] = &*network.pods else { panic!("three pods") };
    let server = Server::start(30);
    cluster(&server);
    let ranges = ["10.0.1.0/24", "10.0.2.0/24", "10.0.3.0/24"].map(|range| range.parse().unwrap());
    let agent = Running::with(&server, Nftables::open().unwrap(), |options| {
        options.keep_established = false;
        options.allow_spoofing = false;
        options.unprogrammed = Unprogrammed::Closed(ranges.to_vec());
    });
    eventually("ready", || agent.get("/readyz").0 == 200);

    let (address, unknown) = ("10.0.2.2".parse().unwrap(), "10.0.3.2".parse().unwrap());
    let listener = db.listen(address, 80);
    let mut open = client.connect(address, 80);
    let (_accepted, _) = listener.accept().unwrap();
    let _listener = third.listen(unknown, 80);
    assert!(!client.connects(unknown, 80, false), "nobody has spoken of it");
    server.put("pods", pod("third", NODE, "10.0.3.2", "web"));
    eventually("it is known", || client.connects(unknown, 80, false));

    let subject = json!({"matchLabels": {"app": "db"}});
    server.put("networkpolicies", policy("db", json!({"podSelector": subject, "ingress": []})));
    let heard = open.read(&mut [0; 1]);
    let reset = std::io::ErrorKind::ConnectionReset;
    assert!(heard.as_ref().is_err_and(|error| error.kind() == reset), "{heard:?}");
    eventually("counted", || agent.metric("portcullis_connections_cut_total") >= 1.0);
    agent.stop();
}

/// `other` claims the address of `db`, which lets everybody in.
fn disputed() {
    own_network();
    let network = Network::with_pods(2);
    let [client, db] = &*network.pods else { panic!("two pods") };
    let server = Server::start(30);
    cluster(&server);
    let subject = json!({"matchLabels": {"app": "db"}});
    server.put("networkpolicies", policy("db", json!({"podSelector": subject, "ingress": [{}]})));
    let agent = Running::start(&server, Nftables::open().unwrap());
    eventually("ready", || agent.get("/readyz").0 == 200);

    let address = "10.0.2.2".parse().unwrap();
    let _listener = db.listen(address, 80);
    let connects = || client.connects(address, 80, false);
    eventually("one pod has it", connects);
    server.put("pods", pod("other", NODE, "10.0.2.2", "other"));
    eventually("two claim it", || !connects());
    server.delete("pods", "shop", "other");
    eventually("one has it again", connects);
    agent.stop();
}

fn killed() {
    own_network();
    let network = Network::with_pods(2);
    let (client, web_server) = (&network.pods[0], &network.pods[1]);
    let server = Server::start(30);
    cluster(&server);
    let spec = |more: u32| {
        let ports: Vec<_> =
            (54..=54 + more).map(|p| json!({"port": p, "protocol": "UDP"})).collect();
        let from = json!([{"podSelector": {"matchLabels": {"app": "web"}}}]);
        json!({"podSelector": {"matchLabels": {"app": "db"}}, "ingress": [{"from": from, "ports": ports}]})
    };
    server.put("networkpolicies", policy("db", spec(0)));
    let mut kernel = Nftables::open().unwrap();
    let mut agent = Some(Process::start(&server));
    let state = wanted(&server);
    eventually("programmed", || kernel.compare(&state).is_ok_and(|d| d.is_empty()));

    let db: IpAddr = "10.0.2.2".parse().unwrap();
    let [refused, allowed] = [53, 54].map(|port| web_server.udp(db, port));
    let arrived =
        |socket: &UdpSocket| std::iter::from_fn(|| socket.recv_from(&mut [0; 8]).ok()).count();
    refused.set_nonblocking(true).unwrap();
    allowed.set_nonblocking(true).unwrap();
    let end = AtomicBool::new(false);
    let (mut passed, mut leaked) = (0, 0);
    thread::scope(|scope| {
        for port in [53, 54] {
            let (socket, end) = (client.udp("10.0.1.2".parse().unwrap(), 0), &end);
            scope.spawn(move || {
                while !end.load(Relaxed) {
                    let _ = socket.send_to(b"?", (db, port));
                    thread::sleep(Duration::from_micros(50));
                }
            });
        }
        for round in 0..25u64 {
            for step in 0..3 {
                server.put("networkpolicies", policy("db", spec((step * 100) % 250)));
                thread::sleep(Duration::from_millis((round * 7 + u64::from(step) * 13) % 40));
            }
            drop(agent.take());
            agent = Some(Process::start(&server));
            thread::sleep(Duration::from_millis(round * 5 % 120));
            passed += arrived(&allowed);
            leaked += arrived(&refused);
        }
        end.store(true, Relaxed);
    });
    leaked += arrived(&refused);
    let state = wanted(&server);
    eventually("caught up", || kernel.compare(&state).is_ok_and(|d| d.is_empty()));
    drop(agent);
    assert_eq!(kernel.compare(&state).unwrap(), [], "what is in force stands");
    assert!(passed > 100, "{passed} allowed packets show nothing");
    assert_eq!(leaked, 0, "refused packets that arrived");
}
