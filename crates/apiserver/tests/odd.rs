//! Requests that nobody in their right mind sends: each has an answer, and none of them harms.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::SendRequest;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use portcullis_apiserver::{FakeRuntime, Node, Options, Server, State};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const LONG: Duration = Duration::from_secs(120);

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(LONG, test).await.expect("in time") });
}

async fn start() -> Server {
    let runtime = Arc::new(FakeRuntime::default());
    let server = Server::start(Options::default(), runtime).await.expect("starts");
    server.add_node(&Node {
        name: "node-1".to_owned(),
        addresses: vec![[192, 0, 2, 1].into()],
        pod_cidrs: vec!["10.244.1.0/24".to_owned()],
    });
    server
}

/// A client without any of the manners of a library.
struct Rude {
    tls: TlsConnector,
    address: SocketAddr,
    token: String,
    send: Option<SendRequest<Full<Bytes>>>,
}

impl Rude {
    fn new(server: &Server) -> Rude {
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(server.certificate().as_bytes()).unwrap())
            .unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let (tls, token) = (Arc::new(tls).into(), format!("Bearer {}", server.token()));
        Rude { tls, address: server.address(), token, send: None }
    }

    async fn connect(&self) -> SendRequest<Full<Bytes>> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let stream = self.tls.connect(name, stream).await.unwrap();
        let (send, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        send
    }

    async fn ask(&mut self, method: &str, path: &str, kind: &str, body: Vec<u8>) -> (u16, Vec<u8>) {
        let body = Bytes::from(body);
        // A server that answers before it has read everything may hang up after that. Whoever asks
        // again has an answer.
        for _ in 0..2 {
            let mut send = match self.send.take() {
                Some(send) => send,
                None => self.connect().await,
            };
            let request = Request::builder()
                .method(method)
                .uri(path)
                .header("host", "x")
                .header("authorization", &self.token)
                .header("content-type", kind)
                .body(Full::from(body.clone()))
                .unwrap();
            if send.ready().await.is_err() {
                continue;
            }
            let Ok(answer) = send.send_request(request).await else { continue };
            let code = answer.status().as_u16();
            let Ok(body) = answer.into_body().collect().await else { continue };
            self.send = Some(send);
            return (code, body.to_bytes().to_vec());
        }
        panic!("no answer to {method} {path}");
    }
}

/// Numbers that are the same in each run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }

    fn of<'a, T: ?Sized>(&mut self, list: &[&'a T]) -> &'a T {
        list[self.below(list.len())]
    }
}

const METHODS: &[&str] =
    &["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "BREW"];

const PATHS: &[&str] = &[
    "/",
    "//",
    "/api",
    "/api/v1",
    "/api/v2/pods",
    "/apis/apps/v1/deployments/web/scale",
    "/apis/apps/v1/namespaces/default/deployments/web/scale",
    "/apis/apps/v1/namespaces/default/deployments/web/status",
    "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies",
    "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies/web",
    "/api/v1/namespaces/default/pods",
    "/api/v1/namespaces/default/pods/web",
    "/api/v1/namespaces/default/pods/web/binding",
    "/api/v1/namespaces/default/pods/web/exec",
    "/api/v1/namespaces/default/pods/web/log",
    "/api/v1/namespaces/default/pods/web/portforward",
    "/api/v1/namespaces/default/pods/web/log/more",
    "/api/v1/namespaces/default/services/kubernetes",
    "/api/v1/namespaces/none/services",
    "/api/v1/namespaces/web/finalize",
    "/api/v1/namespaces/%ff%fe/pods",
    "/api/v1/namespaces/default/pods/..%2f..",
    "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
    "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews/x",
    "/openapi/v3/apis/none/v1",
];

const QUERIES: &[&str] = &[
    "",
    "?",
    "?limit=-1",
    "?limit=99999999999999999999",
    "?continue=%00%ff",
    "?continue=bm9wZQ",
    "?labelSelector=a%20in%20(",
    "?labelSelector=,,,",
    "?fieldSelector=a",
    "?fieldSelector=metadata.name=%zz",
    "?resourceVersion=x&resourceVersionMatch=Exact",
    "?watch=true&timeoutSeconds=0",
    "?watch=true&resourceVersion=18446744073709551615&timeoutSeconds=0",
    "?dryRun=Some",
    "?fieldValidation=Perhaps",
    "?fieldManager=x&force=maybe",
    "?gracePeriodSeconds=-5",
    "?propagationPolicy=Sideways",
    "?tailLines=many&container=%00",
    "?command=&command=&stdout=1",
];

const KINDS: &[&str] = &[
    "",
    "application/json",
    "application/yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
    "application/vnd.kubernetes.protobuf",
    "text/html; charset=;;;",
];

fn bodies() -> Vec<Vec<u8>> {
    let nested = |open: &str, close: &str| open.repeat(5_000) + &close.repeat(5_000);
    let texts = [
        "",
        "null",
        "[]",
        "{",
        "\u{0}",
        "{\"metadata\":null}",
        "{\"metadata\":[]}",
        "{\"metadata\":{\"name\":{}}}",
        "{\"metadata\":{\"name\":\"web\",\"labels\":[1]},\"spec\":\"x\"}",
        "{\"metadata\":{\"name\":\"../x\"}}",
        "{\"metadata\":{\"name\":\"web\",\"finalizers\":[\"\",\"a/b/c\"]}}",
        "{\"kind\":\"Pod\",\"apiVersion\":\"v1\",\"metadata\":{\"generateName\":\"\u{1F512}\"}}",
        "{\"spec\":{\"containers\":[null,{},{\"name\":1}]}}",
        "{\"spec\":{\"replicas\":-9223372036854775808}}",
        "{\"spec\":{\"ingress\":[{\"from\":[{\"ipBlock\":{\"cidr\":\"::/999\"}}]}]}}",
        "{\"spec\":{\"ports\":[{\"port\":1e400}]}}",
        "{\"spec\":{\"clusterIPs\":[\"None\",\"x\",\"10.96.0.1\"],\"ipFamilies\":[\"IPv7\"]}}",
        "{\"status\":{\"conditions\":{}}}",
        "{\"target\":{\"name\":\"nowhere\"}}",
        "[{\"op\":\"add\",\"path\":\"/metadata/-1\",\"value\":1}]",
        "[{\"op\":\"move\",\"from\":\"/spec\",\"path\":\"/spec/a\"}]",
        "[{\"op\":\"remove\",\"path\":\"\"}]",
        "{\"metadata\":{\"$patch\":\"delete\"},\"spec\":{\"$setElementOrder/containers\":7}}",
        "{\"spec\":{\"containers\":[{\"$patch\":\"replace\"}]}}",
    ];
    let mut bodies: Vec<Vec<u8>> = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
    bodies.push(nested("[", "]").into_bytes());
    bodies.push(nested("{\"a\":", "}").into_bytes());
    bodies.push(b"k8s\0\x0a\xff\xff\xff\xff\x0f".to_vec());
    bodies.push((0..=255).collect());
    bodies
}

#[test]
fn every_odd_request_has_a_proper_answer() {
    run(async {
        let server = start().await;
        let mut client = Rude::new(&server);
        let pods = "/api/v1/namespaces/default/pods";
        let pod = json!({
            "metadata": {"name": "web"},
            "spec": {"containers": [{"name": "web", "image": "web"}]},
        });
        let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
        let bodies = bodies();
        let mut refused = 0;
        for i in 0..6_000 {
            if i % 500 == 0 {
                // It may be there still, or on its way out.
                client.ask("POST", pods, "application/json", pod.to_string().into()).await;
            }
            let (method, kind) = (numbers.of(METHODS), numbers.of(KINDS));
            let path = format!("{}{}", numbers.of(PATHS), numbers.of(QUERIES));
            let body = bodies[numbers.below(bodies.len())].clone();
            let what = format!("{method} {path} {kind} {:?}", String::from_utf8_lossy(&body));
            let what: String = what.chars().take(300).collect();
            let (code, answer) = client.ask(method, &path, kind, body).await;
            assert!(code < 500, "{what}: {code} {}", String::from_utf8_lossy(&answer));
            if code >= 400 && method != "HEAD" {
                let status: Value = serde_json::from_slice(&answer).expect(&what);
                assert_eq!(status["kind"], "Status", "{what}");
                assert_eq!(status["code"], code, "{what}");
                assert!(!status["message"].as_str().unwrap_or_default().is_empty(), "{what}");
                refused += 1;
            }
        }
        assert!(refused > 3_000, "{refused}");
        // It is as well as before.
        let (code, _) = client.ask("GET", "/api/v1/namespaces/default", "", Vec::new()).await;
        assert_eq!(code, 200);
    });
}

#[test]
fn a_body_that_is_too_large_is_refused() {
    run(async {
        let server = start().await;
        let mut client = Rude::new(&server);
        let before = server.store().read(State::revision);
        let body = vec![b' '; (3 << 20) + 1];
        let maps = "/api/v1/namespaces/default/configmaps";
        let (code, _) = client.ask("POST", maps, "application/json", body).await;
        assert_eq!(code, StatusCode::PAYLOAD_TOO_LARGE.as_u16());
        let mut client = Rude::new(&server);
        let object = json!({"metadata": {"name": "big"}, "data": {"x": "y".repeat(2 << 20)}});
        let (code, _) =
            client.ask("POST", maps, "application/json", object.to_string().into()).await;
        assert_eq!(code, 201, "a large one is not too large");
        assert!(server.store().read(State::revision) > before);
    });
}
