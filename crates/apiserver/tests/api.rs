//! The server as clients of the API see it, over HTTPS, through kube's own client.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::TcpListener;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _};
use hyper::{Method, Request};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::Status;
use kube::runtime::watcher::{self, watcher};
use kube::{Client, Config, Error, ResourceExt as _};
use portcullis_apiserver::{FakeRuntime, Node, Options, Server, State};
use serde_json::{Value, json};
use tokio::time::timeout;

const LONG: Duration = Duration::from_secs(120);

async fn start(options: Options) -> (Server, Client) {
    let server = Server::start(options, Arc::new(FakeRuntime::default())).await.expect("starts");
    server.add_node(&Node {
        name: "node-1".to_owned(),
        addresses: vec![[192, 0, 2, 1].into()],
        pod_cidrs: vec!["10.244.1.0/24".to_owned()],
    });
    let client = client(&server).await;
    (server, client)
}

async fn client(server: &Server) -> Client {
    let kubeconfig = Kubeconfig::from_yaml(&server.kubeconfig()).expect("a kubeconfig");
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &options).await.expect("a config");
    Client::try_from(config).expect("a client")
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async { timeout(LONG, test).await.expect("in time") });
}

/// A request as it stands on the wire.
async fn ask(client: &Client, method: Method, path: &str, body: Value) -> Result<Value, Status> {
    ask_as(client, method, path, "application/json", body).await
}

async fn ask_as(
    client: &Client,
    method: Method,
    path: &str,
    content_type: &str,
    body: Value,
) -> Result<Value, Status> {
    let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    let request = Request::builder().method(method).uri(path);
    let request = request.header("content-type", content_type).body(body).expect("a request");
    match client.request(request).await {
        Ok(value) => Ok(value),
        Err(Error::Api(status)) => Err(*status),
        Err(other) => panic!("{other}"),
    }
}

fn config_map(name: &str, count: u32) -> ConfigMap {
    let object = json!({"metadata": {"name": name}, "data": {"count": count.to_string()}});
    serde_json::from_value(object).expect("a ConfigMap")
}

fn count(of: &ConfigMap) -> u32 {
    of.data.as_ref().and_then(|data| data["count"].parse().ok()).expect("a count")
}

#[test]
fn ten_clients_of_a_thousand_updates_lose_nothing_and_see_nothing_out_of_order() {
    run(async {
        let (server, watching) = start(Options::default()).await;
        let maps: Api<ConfigMap> = Api::default_namespaced(watching);
        for i in 0..10 {
            let map = config_map(&format!("c{i}"), 0);
            maps.create(&PostParams::default(), &map).await.expect("created");
        }
        let from = maps.list(&ListParams::default()).await.expect("a list").metadata;
        let from = from.resource_version.expect("a revision");
        let mut writers = Vec::new();
        for i in 0..10 {
            let maps: Api<ConfigMap> = Api::default_namespaced(client(&server).await);
            writers.push(tokio::spawn(async move {
                let name = format!("c{i}");
                for n in 1..=1000 {
                    let map = config_map(&name, n);
                    maps.replace(&name, &PostParams::default(), &map).await.expect("replaced");
                }
            }));
        }
        let mut seen = [0u32; 10];
        let mut last: u64 = from.parse().expect("a number");
        let mut at = from;
        while seen.iter().any(|count| *count < 1000) {
            // The watch ends every second, and goes on from where it was.
            let params = WatchParams::default().timeout(1);
            let mut events = pin!(maps.watch(&params, &at).await.expect("a watch"));
            while let Some(event) = events.try_next().await.expect("an event") {
                let WatchEvent::Modified(map) = event else { panic!("{event:?}") };
                at = map.resource_version().expect("a revision");
                let revision: u64 = at.parse().expect("a number");
                assert!(revision > last, "{revision} after {last}");
                last = revision;
                let of: usize = map.name_any()[1..].parse().expect("a number");
                assert_eq!(count(&map), seen[of] + 1, "of c{of}");
                seen[of] += 1;
            }
        }
        for writer in writers {
            writer.await.expect("wrote");
        }
    });
}

#[test]
fn of_writers_that_read_first_one_wins_and_the_others_are_told() {
    run(async {
        let (server, first) = start(Options::default()).await;
        let maps: Api<ConfigMap> = Api::default_namespaced(first);
        maps.create(&PostParams::default(), &config_map("shared", 0)).await.expect("created");
        let mut writers = Vec::new();
        for _ in 0..5 {
            let maps: Api<ConfigMap> = Api::default_namespaced(client(&server).await);
            writers.push(tokio::spawn(async move {
                let mut conflicts = 0;
                for _ in 0..50 {
                    loop {
                        let mut map = maps.get("shared").await.expect("there");
                        map.data = config_map("shared", count(&map) + 1).data;
                        match maps.replace("shared", &PostParams::default(), &map).await {
                            Ok(_) => break,
                            Err(Error::Api(status)) if status.code == 409 => conflicts += 1,
                            Err(other) => panic!("{other}"),
                        }
                    }
                }
                conflicts
            }));
        }
        let mut conflicts = 0;
        for writer in writers {
            conflicts += writer.await.expect("wrote");
        }
        assert_eq!(count(&maps.get("shared").await.expect("there")), 250);
        assert!(conflicts > 0, "nobody was ever too late, so nothing was tested");
    });
}

#[test]
fn a_watch_of_a_forgotten_past_is_told_so_and_a_watcher_starts_anew() {
    run(async {
        let (server, client) = start(Options::default()).await;
        let maps: Api<ConfigMap> = Api::default_namespaced(client);
        let mut events = pin!(watcher(maps.clone(), watcher::Config::default()));
        loop {
            let event = events.next().await.expect("goes on").expect("no error");
            if matches!(event, watcher::Event::InitDone) {
                break;
            }
        }
        let old = server.store().read(State::revision).to_string();
        maps.create(&PostParams::default(), &config_map("a", 1)).await.expect("created");
        server.store().write(|state| state.compact(0));
        let mut direct = pin!(maps.watch(&WatchParams::default(), &old).await.expect("a watch"));
        let first = direct.next().await.expect("an event").expect("readable");
        let WatchEvent::Error(status) = first else { panic!("{first:?}") };
        assert_eq!((status.code, &*status.reason), (410, "Expired"));
        maps.create(&PostParams::default(), &config_map("b", 2)).await.expect("created");
        let mut names = Vec::new();
        while names.len() < 2 {
            // An error is how a watcher says that it has to start anew.
            if let Ok(watcher::Event::Apply(map) | watcher::Event::InitApply(map)) =
                events.next().await.expect("goes on")
            {
                names.push(map.name_any());
            }
        }
        names.sort();
        assert_eq!(names, ["a", "b"]);
    });
}

#[test]
fn a_revision_from_before_a_restart_is_too_old() {
    run(async {
        let (server, _) = start(Options::default()).await;
        let old = server.store().read(State::revision).to_string();
        let address = server.address();
        drop(server);
        // The port is free as soon as the task that listened has ended.
        let listener = loop {
            match TcpListener::bind(address) {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        let options = Options { listeners: vec![listener], ..Options::default() };
        let runtime = Arc::new(FakeRuntime::default());
        let server = Server::start(options, runtime).await.expect("starts");
        let maps: Api<ConfigMap> = Api::default_namespaced(client(&server).await);
        let mut events = pin!(maps.watch(&WatchParams::default(), &old).await.expect("a watch"));
        let first = events.next().await.expect("an event").expect("readable");
        assert!(matches!(&first, WatchEvent::Error(status) if status.code == 410), "{first:?}");
    });
}

#[test]
fn a_watch_with_a_selector_sees_objects_come_and_go() {
    run(async {
        let (_server, client) = start(Options::default()).await;
        let maps: Api<ConfigMap> = Api::default_namespaced(client);
        let params = WatchParams::default().labels("tier=front");
        let mut events = pin!(maps.watch(&params, "0").await.expect("a watch"));
        maps.create(&PostParams::default(), &config_map("a", 1)).await.expect("created");
        for tier in ["front", "front", "back", "front"] {
            let labels = json!({"tier": tier, "at": meta_time()});
            let patch = Patch::Merge(json!({"metadata": {"labels": labels}}));
            maps.patch("a", &PatchParams::default(), &patch).await.expect("patched");
        }
        maps.delete("a", &Default::default()).await.expect("deleted");
        let mut kinds = Vec::new();
        while kinds.len() < 5 {
            kinds.push(match events.try_next().await.expect("readable").expect("goes on") {
                WatchEvent::Added(_) => "added",
                WatchEvent::Modified(_) => "modified",
                WatchEvent::Deleted(_) => "deleted",
                other => panic!("{other:?}"),
            });
        }
        assert_eq!(kinds, ["added", "modified", "deleted", "added", "deleted"]);
    });
}

/// Something that is different each time.
fn meta_time() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed).to_string()
}

#[test]
fn a_streaming_list_says_where_the_present_ends() {
    run(async {
        let (_server, client) = start(Options::default()).await;
        let maps: Api<ConfigMap> = Api::default_namespaced(client);
        maps.create(&PostParams::default(), &config_map("a", 1)).await.expect("created");
        let params = WatchParams::default().initial_events();
        let mut events = pin!(maps.watch(&params, "0").await.expect("a watch"));
        let mut next = async || events.try_next().await.expect("readable").expect("goes on");
        assert!(matches!(next().await, WatchEvent::Added(map) if map.name_any() == "a"));
        let WatchEvent::Bookmark(bookmark) = next().await else { panic!("no bookmark") };
        let annotations = bookmark.metadata.annotations;
        assert_eq!(annotations.get("k8s.io/initial-events-end").map(String::as_str), Some("true"));
    });
}

#[test]
fn pages_are_of_one_moment_whatever_happens_between_them() {
    run(async {
        let (server, client) = start(Options::default()).await;
        let maps: Api<ConfigMap> = Api::default_namespaced(client);
        for i in 0..25 {
            let map = config_map(&format!("c{i:02}"), 0);
            maps.create(&PostParams::default(), &map).await.expect("created");
        }
        let mut names = Vec::new();
        let mut sizes = Vec::new();
        let mut params = ListParams::default().limit(10);
        loop {
            let page = maps.list(&params).await.expect("a page");
            sizes.push((page.items.len(), page.metadata.remaining_item_count));
            names.extend(page.items.iter().map(|map| map.name_any()));
            maps.create(&PostParams::default(), &config_map(&format!("c{:02}x", sizes.len()), 0))
                .await
                .expect("created");
            if let Some(last) = maps.get_opt("c24").await.expect("an answer") {
                maps.delete(&last.name_any(), &Default::default()).await.expect("deleted");
            }
            match page.metadata.continue_ {
                Some(token) => params = params.continue_token(&token),
                None => break,
            }
        }
        assert_eq!(sizes, [(10, Some(15)), (10, Some(5)), (5, None)]);
        let expected: Vec<String> = (0..25).map(|i| format!("c{i:02}")).collect();
        assert_eq!(names, expected);

        let page = maps.list(&ListParams::default().limit(10)).await.expect("a page");
        maps.delete("c00", &Default::default()).await.expect("deleted");
        server.store().write(|state| state.compact(0));
        let token = page.metadata.continue_.expect("more");
        let params = ListParams::default().limit(10).continue_token(&token);
        match maps.list(&params).await {
            Err(Error::Api(status)) => assert_eq!(status.code, 410),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn nothing_is_answered_without_the_token() {
    run(async {
        let (server, _client) = start(Options::default()).await;
        for token in ["wrong", "", &"0".repeat(64)] {
            let text = server.kubeconfig().replace(server.token(), token);
            let kubeconfig = Kubeconfig::from_yaml(&text).expect("a kubeconfig");
            let options = KubeConfigOptions::default();
            let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
            let client = Client::try_from(config.expect("a config")).expect("a client");
            for path in ["/api", "/healthz", "/version", "/openapi/v3", "/api/v1/pods", "/none"] {
                let refused = ask(&client, Method::GET, path, Value::Null).await;
                let refused = refused.expect_err("no token, no answer");
                assert_eq!((refused.code, &*refused.reason), (401, "Unauthorized"), "{path}");
            }
        }
        assert!(server.address().ip().is_loopback());
    });
}

#[test]
fn a_client_that_speaks_spdy_only_is_told_so() {
    run(async {
        let (_server, client) = start(Options::default()).await;
        let pods = "/api/v1/namespaces/default/pods";
        let pod = json!({
            "metadata": {"name": "a"},
            "spec": {"containers": [{"name": "a", "image": "a"}]},
        });
        ask(&client, Method::POST, pods, pod).await.expect("created");
        loop {
            let pod = ask(&client, Method::GET, &format!("{pods}/a"), Value::Null).await;
            if pod.expect("there")["status"]["phase"] == "Running" {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        for path in ["exec?command=true&stdout=true", "attach?stdout=true", "portforward"] {
            let request = Request::post(format!("{pods}/a/{path}"))
                .header("connection", "Upgrade")
                .header("upgrade", "SPDY/3.1")
                .body(Vec::new())
                .expect("a request");
            let refused = client.request::<Value>(request).await.expect_err("no SPDY");
            let Error::Api(status) = refused else { panic!("{refused}") };
            assert_eq!(status.code, 400, "{path}");
            assert!(status.message.contains("WebSocket"), "{path}: {status}");
        }
    });
}

#[test]
fn a_server_listens_wherever_it_is_told_to() {
    run(async {
        let bind = |address: &str| TcpListener::bind(address).expect("free");
        let listeners = vec![bind("127.0.0.1:0"), bind("127.0.0.2:0")];
        let second = listeners[1].local_addr().expect("bound");
        let options = Options {
            listeners,
            names: vec!["lab.example".to_owned()],
            endpoint: Some(second),
            ..Options::default()
        };
        let server = Server::start(options, Arc::new(FakeRuntime::default())).await;
        let server = server.expect("starts");
        let texts = [server.kubeconfig(), server.kubeconfig_at(&second.to_string())];
        for text in texts {
            let kubeconfig = Kubeconfig::from_yaml(&text).expect("a kubeconfig");
            let options = KubeConfigOptions::default();
            let config = Config::from_custom_kubeconfig(kubeconfig, &options).await;
            let client = Client::try_from(config.expect("a config")).expect("a client");
            let path = "/api/v1/namespaces/default/endpoints/kubernetes";
            let found = ask(&client, Method::GET, path, Value::Null).await.expect("there");
            assert_eq!(found["subsets"][0]["addresses"][0]["ip"], "127.0.0.2");
            assert_eq!(found["subsets"][0]["ports"][0]["port"], second.port());
        }
    });
}

#[test]
fn the_kubeconfig_is_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt as _;
    run(async {
        let (server, _client) = start(Options::default()).await;
        let directory = std::env::temp_dir().join(format!("portcullis-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let file = directory.join("kubeconfig");
        std::fs::write(&file, "before").expect("written");
        server.write_kubeconfig(&file).expect("written");
        let mode = std::fs::metadata(&file).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(std::fs::read_to_string(&file).expect("readable"), server.kubeconfig());
        let refused = server.write_kubeconfig(&directory.join("none/kubeconfig"));
        assert!(refused.expect_err("no directory").to_string().contains("none/kubeconfig"));
        std::fs::remove_dir_all(&directory).expect("removed");
    });
}

const POLICIES: &str = "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies";

#[test]
fn a_policy_that_check_refuses_is_refused_here_for_the_same_fields() {
    run(async {
        let (_server, client) = start(Options::default()).await;
        let policy = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": "web"},
            "spec": {
                "podSelector": {},
                "policyTypes": ["Ingres"],
                "ingress": [{
                    "from": [{}, {"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}],
                    "ports": [{"port": 0}, {"port": 80, "endPort": 79}],
                }],
            },
        });
        let refused = ask(&client, Method::POST, POLICIES, policy).await.expect_err("invalid");
        assert_eq!((refused.code, &*refused.reason), (422, "Invalid"));
        let beginning = "NetworkPolicy.networking.k8s.io \"web\" is invalid: [";
        assert!(refused.message.starts_with(beginning), "{}", refused.message);
        let causes = refused.details.expect("details").causes;
        let causes: Vec<_> = causes.iter().map(|c| (c.field.as_str(), c.reason.as_str())).collect();
        let expected = [
            ("spec.policyTypes[0]", "FieldValueNotSupported"),
            ("spec.ingress[0].from[0]", "FieldValueRequired"),
            ("spec.ingress[0].from[1]", "FieldValueForbidden"),
            ("spec.ingress[0].ports[0].port", "FieldValueInvalid"),
            ("spec.ingress[0].ports[1].endPort", "FieldValueInvalid"),
        ];
        for cause in expected {
            assert!(causes.contains(&cause), "{cause:?} is not in {causes:?}");
        }
        assert_eq!(causes.len(), expected.len(), "{causes:?}");
    });
}

#[test]
fn unknown_and_doubled_fields_are_errors_only_where_they_are_asked_to_be() {
    run(async {
        let (_server, client) = start(Options::default()).await;
        let body = br#"{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy",
            "metadata":{"name":"a"},
            "spec":{"podSelector":{},"podSelector":{},"ingres":[]}}"#;
        let post = async |validation: &str| {
            let uri = format!("{POLICIES}?fieldValidation={validation}&dryRun=All");
            let request = Request::post(uri).header("content-type", "application/json");
            let request = request.body(kube::client::Body::from(body.to_vec())).expect("a request");
            let reply = client.send(request).await.expect("an answer");
            let warnings = reply.headers().get_all("warning").iter();
            let warnings = warnings.map(|w| w.to_str().expect("text").to_owned());
            (reply.status().as_u16(), warnings.collect::<Vec<_>>())
        };
        assert_eq!(post("Strict").await, (400, vec![]));
        assert_eq!(post("Ignore").await, (201, vec![]));
        let (code, warnings) = post("Warn").await;
        let expected = [
            r#"299 - "duplicate field \"spec.podSelector\"""#,
            r#"299 - "unknown field \"spec.ingres\"""#,
        ];
        assert_eq!((code, warnings.iter().map(String::as_str).collect()), (201, expected.to_vec()));
        let there = ask(&client, Method::GET, &format!("{POLICIES}/a"), Value::Null).await;
        assert_eq!(there.expect_err("a dry run").code, 404);
    });
}

#[test]
fn what_is_refused_is_refused_as_the_api_server_refuses_it() {
    run(async {
        let (_server, client) = start(Options::default()).await;
        let pods = "/api/v1/namespaces/default/pods";
        let named = |name: &str| json!({"metadata": {"name": name}});
        let bad_name = json!({"kind": "ConfigMap", "metadata": {"name": "Not_A_Name"}});
        let maps = "/api/v1/namespaces/default/configmaps";
        for (method, path, body, code, message) in [
            (
                Method::GET,
                "/api/v1/namespaces/default/pods/x",
                Value::Null,
                404,
                "pods \"x\" not found",
            ),
            (
                Method::GET,
                "/apis/batch/v1/jobs",
                Value::Null,
                404,
                "the server could not find the requested resource (this one has no jobs of batch/v1)",
            ),
            (
                Method::POST,
                "/api/v1/namespaces/none/configmaps",
                named("a"),
                404,
                "namespaces \"none\" not found",
            ),
            (
                Method::POST,
                "/api/v1/pods",
                named("a"),
                405,
                "the server does not allow this method on the requested resource",
            ),
            (Method::POST, pods, named("a"), 422, "Pod \"a\" is invalid: spec: Required value"),
            (
                Method::POST,
                maps,
                json!({"metadata": {}}),
                422,
                "ConfigMap \"\" is invalid: metadata.name: Required value: name or generateName \
                 is required",
            ),
            (
                Method::POST,
                maps,
                json!({"metadata": {"name": "a", "namespace": "b"}}),
                400,
                "the namespace of the provided object does not match the namespace sent on the \
                 request",
            ),
            (
                Method::PUT,
                "/api/v1/namespaces/default/configmaps/a",
                named("b"),
                400,
                "the name of the object (b) does not match the name on the URL (a)",
            ),
            (
                Method::GET,
                "/api/v1/pods?fieldSelector=spec.image%3Dx",
                Value::Null,
                400,
                "field label not supported: spec.image",
            ),
        ] {
            let refused = ask(&client, method, path, body).await.expect_err(path);
            assert_eq!((refused.code, &*refused.message), (code, message), "{path}");
        }
        let refused = ask(&client, Method::POST, maps, bad_name).await.expect_err("no name");
        assert_eq!(refused.code, 422);
        let field = refused.details.expect("details").causes[0].field.clone();
        assert_eq!(field, "metadata.name");
    });
}

#[test]
fn a_namespace_that_goes_takes_all_that_is_in_it_and_nothing_new() {
    run(async {
        let (_server, client) = start(Options::default()).await;
        let namespace = json!({"metadata": {"name": "shop"}});
        ask(&client, Method::POST, "/api/v1/namespaces", namespace).await.expect("created");
        let maps = "/api/v1/namespaces/shop/configmaps";
        let held = json!({"metadata": {"name": "held", "finalizers": ["example.com/hold"]}});
        ask(&client, Method::POST, maps, held).await.expect("created");
        let free = json!({"metadata": {"name": "free"}});
        ask(&client, Method::POST, maps, free).await.expect("created");
        let gone = ask(&client, Method::DELETE, "/api/v1/namespaces/shop", Value::Null).await;
        assert_eq!(gone.expect("begun")["status"]["phase"], "Terminating");
        let late = json!({"metadata": {"name": "late"}});
        let refused = ask(&client, Method::POST, maps, late).await.expect_err("terminating");
        assert_eq!(refused.code, 403);
        assert_eq!(refused.details.expect("details").causes[0].reason, "NamespaceTerminating");
        loop {
            let left = ask(&client, Method::GET, maps, Value::Null).await.expect("a list");
            let left = left["items"].as_array().expect("items").clone();
            if let [one] = &left[..]
                && one["metadata"]["deletionTimestamp"].is_string()
            {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let patch = json!({"metadata": {"finalizers": null}});
        let held = format!("{maps}/held");
        ask_as(&client, Method::PATCH, &held, "application/merge-patch+json", patch)
            .await
            .expect("let go");
        while ask(&client, Method::GET, "/api/v1/namespaces/shop", Value::Null).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
}

#[test]
fn pods_of_a_deployment_follow_its_template_and_services_follow_the_pods() {
    run(async {
        let (_server, client) = start(Options::default()).await;
        let deployments = "/apis/apps/v1/namespaces/default/deployments";
        let deployment = json!({
            "metadata": {"name": "web"},
            "spec": {
                "replicas": 3,
                "selector": {"matchLabels": {"app": "web"}},
                "template": {
                    "metadata": {"labels": {"app": "web"}},
                    "spec": {"containers": [{
                        "name": "web", "image": "nginx:1",
                        "ports": [{"name": "http", "containerPort": 8080}],
                    }]},
                },
            },
        });
        ask(&client, Method::POST, deployments, deployment).await.expect("created");
        let service = json!({
            "metadata": {"name": "web"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]},
        });
        let services = "/api/v1/namespaces/default/services";
        let service = ask(&client, Method::POST, services, service).await.expect("created");
        assert_eq!(service["spec"]["clusterIP"], "10.96.0.10");
        let endpoints = async |count: usize, image: &str| loop {
            let path = "/api/v1/namespaces/default/endpoints/web";
            let found = ask(&client, Method::GET, path, Value::Null).await.unwrap_or_default();
            let addresses = found["subsets"][0]["addresses"].as_array().cloned();
            let pods = "/api/v1/namespaces/default/pods?labelSelector=app%3Dweb";
            let pods = ask(&client, Method::GET, pods, Value::Null).await.expect("a list");
            let pods = pods["items"].as_array().expect("items").clone();
            let current = pods.iter().all(|pod| pod["spec"]["containers"][0]["image"] == image);
            let mut ips: Vec<&Value> = pods.iter().map(|pod| &pod["status"]["podIP"]).collect();
            let mut listed: Vec<&Value> = addresses.iter().flatten().map(|a| &a["ip"]).collect();
            ips.sort_by_key(|ip| ip.to_string());
            listed.sort_by_key(|ip| ip.to_string());
            if pods.len() == count && current && ips == listed {
                assert_eq!(found["subsets"][0]["ports"][0]["port"], 8080);
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        endpoints(3, "nginx:1").await;
        let patch = json!({"spec": {"template": {"spec": {"containers": [
            {"name": "web", "image": "nginx:2"},
        ]}}}});
        let web = format!("{deployments}/web");
        let strategic = "application/strategic-merge-patch+json";
        ask_as(&client, Method::PATCH, &web, strategic, patch).await.expect("patched");
        endpoints(3, "nginx:2").await;
        let scale = json!({"spec": {"replicas": 1}});
        let merge = "application/merge-patch+json";
        let scaled = format!("{web}/scale");
        let scaled = ask_as(&client, Method::PATCH, &scaled, merge, scale).await.expect("scaled");
        assert_eq!((&scaled["kind"], &scaled["spec"]["replicas"]), (&json!("Scale"), &json!(1)));
        endpoints(1, "nginx:2").await;
        ask(&client, Method::DELETE, &web, Value::Null).await.expect("deleted");
        let mut left = 1;
        while left > 0 {
            let pods = "/api/v1/namespaces/default/pods";
            let pods = ask(&client, Method::GET, pods, Value::Null).await.expect("a list");
            let sets = "/apis/apps/v1/namespaces/default/replicasets";
            let sets = ask(&client, Method::GET, sets, Value::Null).await.expect("a list");
            left = [pods, sets].iter().map(|l| l["items"].as_array().map_or(0, Vec::len)).sum();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
}

#[test]
fn a_generation_counts_specs_and_nothing_else() {
    run(async {
        let (_server, client) = start(Options::default()).await;
        let policy = json!({"metadata": {"name": "a"}, "spec": {"podSelector": {}}});
        let made = ask(&client, Method::POST, POLICIES, policy).await.expect("created");
        assert_eq!(made["metadata"]["generation"], 1);
        assert_eq!(made["spec"]["policyTypes"], json!(["Ingress"]));
        let path = format!("{POLICIES}/a");
        let patch = async |patch: Value| {
            let merge = "application/merge-patch+json";
            ask_as(&client, Method::PATCH, &path, merge, patch).await.expect("patched")
        };
        let labelled = patch(json!({"metadata": {"labels": {"a": "b"}}})).await;
        assert_eq!(labelled["metadata"]["generation"], 1);
        assert_ne!(labelled["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
        let again = patch(json!({"metadata": {"labels": {"a": "b"}}})).await;
        let (first, second) = (&labelled["metadata"], &again["metadata"]);
        assert_eq!(first["resourceVersion"], second["resourceVersion"], "nothing changed");
        let opened = patch(json!({"spec": {"ingress": [{}]}})).await;
        assert_eq!(opened["metadata"]["generation"], 2);
        assert_eq!(opened["metadata"]["uid"], made["metadata"]["uid"]);
    });
}

/// A network that refuses pods until it is there.
#[derive(Debug, Default)]
struct Reluctant {
    there: std::sync::atomic::AtomicBool,
    down: std::sync::Mutex<Vec<String>>,
}

impl portcullis_apiserver::Runtime for Reluctant {
    fn up(&self, _: &Value) -> Result<Vec<std::net::IpAddr>, String> {
        match self.there.load(std::sync::atomic::Ordering::SeqCst) {
            false => Err("no cable".to_owned()),
            true => Ok(vec![[10, 0, 0, 1].into()]),
        }
    }

    fn down(&self, pod: &Value) {
        let name = pod["metadata"]["name"].as_str().expect("a name").to_owned();
        self.down.lock().expect("not poisoned").push(name);
    }
}

#[test]
fn a_pod_without_a_network_waits_and_says_why_and_its_network_goes_before_it_does() {
    run(async {
        let network = Arc::new(Reluctant::default());
        let server = Server::start(Options::default(), network.clone()).await.expect("starts");
        let client = client(&server).await;
        let pods = "/api/v1/namespaces/default/pods";
        let pod = json!({
            "metadata": {"name": "a"},
            "spec": {"containers": [{"name": "a", "image": "a"}]},
        });
        ask(&client, Method::POST, pods, pod).await.expect("created");
        let path = format!("{pods}/a");
        let until = async |what: &dyn Fn(&Value) -> bool| loop {
            let pod = ask(&client, Method::GET, &path, Value::Null).await.expect("there");
            if what(&pod) {
                break pod;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        let condition = |pod: &Value, kind: &str| {
            let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
            conditions.into_iter().find(|c| c["type"] == kind).unwrap_or_default()
        };
        let unplaced =
            until(&|pod| condition(pod, "PodScheduled")["reason"] == "Unschedulable").await;
        assert_eq!(condition(&unplaced, "PodScheduled")["message"], "0/0 nodes are available.");
        server.add_node(&Node {
            name: "node-1".to_owned(),
            addresses: vec![[192, 0, 2, 1].into()],
            pod_cidrs: vec!["10.0.0.0/24".to_owned()],
        });
        let waiting = until(&|pod| condition(pod, "Ready")["message"] == "no cable").await;
        let state = &waiting["status"]["containerStatuses"][0]["state"];
        assert_eq!(state["waiting"]["reason"], "ContainerCreating");
        network.there.store(true, std::sync::atomic::Ordering::SeqCst);
        let running = until(&|pod| pod["status"]["phase"] == "Running").await;
        assert_eq!(running["status"]["podIP"], "10.0.0.1");
        assert_eq!(running["status"]["hostIP"], "192.0.2.1");
        assert_eq!(condition(&running, "Ready")["status"], "True");
        let gone = ask(&client, Method::DELETE, &path, Value::Null).await.expect("begun");
        assert_eq!(gone["metadata"]["deletionGracePeriodSeconds"], 30);
        while ask(&client, Method::GET, &path, Value::Null).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(*network.down.lock().expect("not poisoned"), ["a"]);
    });
}

#[test]
fn a_service_has_one_address_for_life_and_loses_what_its_type_has_not() {
    run(async {
        let (_server, client) = start(Options::default()).await;
        let services = "/api/v1/namespaces/default/services";
        let service = |name: &str, spec: Value| json!({"metadata": {"name": name}, "spec": spec});
        let ports = json!([{"port": 80}]);
        let on_nodes = service("a", json!({"type": "NodePort", "ports": ports}));
        let made = ask(&client, Method::POST, services, on_nodes).await.expect("created");
        assert_eq!(made["spec"]["ports"][0]["nodePort"], 30000);
        let taken = json!({"clusterIP": made["spec"]["clusterIP"], "ports": ports});
        let refused = ask(&client, Method::POST, services, service("b", taken)).await;
        assert_eq!(refused.expect_err("taken").code, 422);
        let outside = json!({"clusterIP": "10.1.2.3", "ports": ports});
        let refused = ask(&client, Method::POST, services, service("b", outside)).await;
        assert_eq!(refused.expect_err("out of range").code, 422);
        let path = format!("{services}/a");
        let patch = async |patch: Value| {
            let merge = "application/merge-patch+json";
            ask_as(&client, Method::PATCH, &path, merge, json!({"spec": patch})).await
        };
        let moved = patch(json!({"clusterIP": "10.96.0.77"})).await.expect_err("immutable");
        let field = moved.details.expect("details").causes[0].field.clone();
        assert_eq!((moved.code, &*field), (422, "spec.clusterIPs[0]"));
        let inside = patch(json!({"type": "ClusterIP"})).await.expect("another type");
        assert_eq!(inside["spec"]["ports"][0].get("nodePort"), None);
        assert_eq!(inside["spec"]["clusterIP"], made["spec"]["clusterIP"]);
        let named = patch(json!({"type": "ExternalName", "externalName": "example.com"})).await;
        assert_eq!(named.expect("another type")["spec"].get("clusterIP"), None);
        let headless = service("h", json!({"clusterIP": "None", "selector": {"a": "b"}}));
        let headless = ask(&client, Method::POST, services, headless).await.expect("created");
        assert_eq!(headless["spec"]["clusterIP"], "None");
    });
}

#[test]
fn a_watched_table_names_its_columns_once() {
    run(async {
        let (_server, client) = start(Options::default()).await;
        let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
        for name in ["a", "b"] {
            maps.create(&PostParams::default(), &config_map(name, 1)).await.expect("created");
        }
        let uri = "/api/v1/namespaces/default/configmaps?watch=true&timeoutSeconds=1";
        let request = Request::get(uri)
            .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json")
            .body(Vec::new())
            .expect("a request");
        let text = client.request_text(request).await.expect("events");
        let events: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        let shown: Vec<_> = events
            .iter()
            .map(|event| {
                let table = &event["object"];
                let columns = table["columnDefinitions"].as_array().map_or(0, Vec::len);
                (columns, table["rows"][0]["cells"][0].as_str().expect("a name"))
            })
            .collect();
        assert_eq!(shown, [(3, "a"), (0, "b")]);
        let row = &events[0]["object"]["rows"][0]["object"];
        assert_eq!(row["kind"], "PartialObjectMetadata");
        assert_eq!(row.get("data"), None);
    });
}

#[test]
fn absurd_numbers_are_refused_or_harmless() {
    run(async {
        let (_server, client) = start(Options::default()).await;
        let sets = "/apis/apps/v1/namespaces/default/deployments";
        let deployment = |spec: Value| {
            let mut object = json!({
                "metadata": {
                    "name": "a",
                    "annotations": {"deployment.kubernetes.io/revision": i64::MAX.to_string()},
                },
                "spec": {
                    "selector": {"matchLabels": {"a": "b"}},
                    "template": {
                        "metadata": {"labels": {"a": "b"}},
                        "spec": {"containers": [{"name": "a", "image": "a"}]},
                    },
                },
            });
            for (key, value) in spec.as_object().expect("an object") {
                object["spec"][key] = value.clone();
            }
            object
        };
        for replicas in [json!(i64::MAX), json!(u64::MAX), json!(-1), json!(1.5), json!("1")] {
            let refused =
                ask(&client, Method::POST, sets, deployment(json!({"replicas": replicas})));
            let refused = refused.await.expect_err("no number of pods");
            assert!([400, 422].contains(&refused.code), "{replicas}: {refused}");
        }
        let rolling = json!({"maxSurge": format!("{}%", i64::MAX), "maxUnavailable": i64::MAX});
        let spec = json!({"replicas": 2, "strategy": {"rollingUpdate": rolling}});
        ask(&client, Method::POST, sets, deployment(spec)).await.expect("accepted");
        let patch = json!({"spec": {"template": {"metadata": {"labels": {"c": "d"}}}}});
        let path = format!("{sets}/a");
        let merge = "application/merge-patch+json";
        ask_as(&client, Method::PATCH, &path, merge, patch).await.expect("patched");
        loop {
            let now = ask(&client, Method::GET, &path, Value::Null).await.expect("there");
            if now["status"]["availableReplicas"] == 2 && now["status"]["observedGeneration"] == 2 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let endless = "/api/v1/pods?watch=true&timeoutSeconds=18446744073709551615";
        let request = Request::get(endless).body(Vec::new()).expect("a request");
        assert!(client.request_events::<Value>(request).await.is_ok());
    });
}
