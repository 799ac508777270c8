//! Commands in pods, as their clients meet them on the wire.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use portcullis_apiserver::{FakeRuntime, Key, Node, Options, Resource, Server};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

const LONG: Duration = Duration::from_secs(60);

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(LONG, test).await.expect("in time") });
}

/// A server with one pod `a` that runs.
async fn start() -> Server {
    let runtime = Arc::new(FakeRuntime::default());
    let server = Server::start(Options::default(), runtime).await.expect("starts");
    server.add_node(&Node {
        name: "node-1".to_owned(),
        addresses: vec![[192, 0, 2, 1].into()],
        pod_cidrs: vec!["10.244.1.0/24".to_owned()],
    });
    let pods = Resource::of_kind("Pod").expect("served");
    let key = Key::new(pods, "default", "a");
    server.store().write(|state| {
        let container = json!({"name": "a", "image": "a"});
        state.put(
            key.clone(),
            json!({
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": "a", "namespace": "default", "uid": "a"},
                "spec": {"containers": [container], "nodeName": "node-1"},
            }),
        );
    });
    let running = |pod: &Value| pod["status"]["phase"] == "Running";
    while !server.store().read(|state| state.get(&key).is_some_and(|pod| running(pod))) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    server
}

type Socket = WebSocketStream<TlsStream<TcpStream>>;

async fn open(
    server: &Server,
    path: &str,
    protocol: &str,
) -> Result<(Socket, String), (u16, Value)> {
    let mut roots = rustls::RootCertStore::empty();
    let certificate = CertificateDer::from_pem_slice(server.certificate().as_bytes()).unwrap();
    roots.add(certificate).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(server.address()).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let stream = TlsConnector::from(Arc::new(tls)).connect(name, stream).await.unwrap();
    let url = format!("wss://{}/api/v1/namespaces/default/pods/{path}", server.address());
    let mut request = url.into_client_request().unwrap();
    let headers = request.headers_mut();
    headers.insert("authorization", format!("Bearer {}", server.token()).parse().unwrap());
    headers.insert("sec-websocket-protocol", protocol.parse().unwrap());
    match client_async(request, stream).await {
        Ok((socket, answer)) => {
            let chosen = answer.headers()["sec-websocket-protocol"].to_str().unwrap().to_owned();
            Ok((socket, chosen))
        }
        Err(Error::Http(answer)) => {
            let body = answer.body().clone().unwrap_or_default();
            Err((answer.status().as_u16(), serde_json::from_slice(&body).unwrap_or_default()))
        }
        Err(other) => panic!("{other}"),
    }
}

/// What comes until the end: output, errors, and the status.
async fn collect(socket: &mut Socket) -> (String, String, Value) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    while let Some(message) = socket.next().await {
        let Message::Binary(data) = message.expect("readable") else { continue };
        match data[0] {
            1 => out.extend_from_slice(&data[1..]),
            2 => err.extend_from_slice(&data[1..]),
            3 => {
                let status = serde_json::from_slice(&data[1..]).expect("a status");
                let text = |bytes| String::from_utf8(bytes).expect("text");
                return (text(out), text(err), status);
            }
            other => panic!("channel {other}"),
        }
    }
    panic!("no status came");
}

fn shell(script: &str, more: &str) -> String {
    let script =
        script.replace(' ', "%20").replace(';', "%3B").replace('&', "%26").replace('>', "%3E");
    format!("a/exec?command=sh&command=-c&command={script}&stdout=true&stderr=true{more}")
}

#[test]
fn output_errors_and_the_exit_status_come_apart() {
    run(async {
        let server = start().await;
        for protocol in ["v4.channel.k8s.io", "v5.channel.k8s.io"] {
            let path = shell("echo out; echo err >&2; exit 3", "");
            let (mut socket, chosen) = open(&server, &path, protocol).await.expect("upgraded");
            assert_eq!(chosen, protocol);
            let (out, err, status) = collect(&mut socket).await;
            assert_eq!((&*out, &*err), ("out\n", "err\n"));
            assert_eq!(status["reason"], "NonZeroExitCode");
            assert_eq!(status["details"]["causes"][0]["message"], "3");
        }
        let (mut socket, _) =
            open(&server, &shell("true", ""), "v5.channel.k8s.io").await.expect("upgraded");
        assert_eq!(collect(&mut socket).await.2, json!({"metadata": {}, "status": "Success"}));
        let missing = "a/exec?command=no-such-program&stdout=true";
        let (mut socket, _) = open(&server, missing, "v5.channel.k8s.io").await.expect("upgraded");
        let (_, _, status) = collect(&mut socket).await;
        assert_eq!(status["reason"], "InternalError");
        assert!(status["message"].as_str().unwrap().contains("no-such-program"), "{status}");
    });
}

#[test]
fn a_command_sees_the_end_of_its_input_when_the_client_closes_it() {
    run(async {
        let server = start().await;
        let path = shell("cat; echo end", "&stdin=true");
        let (mut socket, _) = open(&server, &path, "v5.channel.k8s.io").await.expect("upgraded");
        for text in [&b"\0one\n"[..], b"\0two\n", b"\xff\0"] {
            socket.send(Message::binary(text.to_vec())).await.expect("sent");
        }
        assert_eq!(collect(&mut socket).await.0, "one\ntwo\nend\n");
    });
}

#[test]
fn more_than_fits_into_any_buffer_goes_both_ways() {
    run(async {
        let server = start().await;
        let path = shell("cat", "&stdin=true");
        let (socket, _) = open(&server, &path, "v5.channel.k8s.io").await.expect("upgraded");
        let (mut to, mut from) = socket.split();
        let total = 4 << 20;
        let writer = tokio::spawn(async move {
            for _ in 0..total / 65536 {
                let mut data = vec![b'x'; 65537];
                data[0] = 0;
                to.send(Message::binary(data)).await.expect("sent");
            }
            to.send(Message::binary(vec![255, 0])).await.expect("sent");
            to
        });
        let mut seen = 0;
        while let Some(Ok(Message::Binary(data))) = from.next().await {
            match data[0] {
                1 => seen += data.len() - 1,
                3 => break,
                other => panic!("channel {other}"),
            }
        }
        assert_eq!(seen, total);
        drop(writer.await.expect("wrote"));
    });
}

#[test]
fn a_terminal_has_the_size_of_that_of_the_client() {
    run(async {
        let server = start().await;
        let path = shell("read line; stty size; test -t 0; echo $?", "&stdin=true&tty=true");
        let (mut socket, _) = open(&server, &path, "v5.channel.k8s.io").await.expect("upgraded");
        for text in ["\u{4}{\"Width\":123,\"Height\":45}", "\0\n"] {
            socket.send(Message::binary(text.as_bytes().to_vec())).await.expect("sent");
        }
        let (out, _, status) = collect(&mut socket).await;
        assert!(out.contains("45 123\r\n0\r\n"), "{out:?}");
        assert_eq!(status["status"], "Success");
    });
}

#[test]
fn a_command_ends_with_its_client() {
    run(async {
        let server = start().await;
        let file = std::env::temp_dir().join(format!("portcullis-exec-{}", std::process::id()));
        std::fs::remove_file(&file).ok();
        let script = format!("echo $$ > {}; echo begun; sleep 1000", file.display());
        let (mut socket, _) =
            open(&server, &shell(&script, ""), "v5.channel.k8s.io").await.expect("upgraded");
        let begun = socket.next().await.expect("goes on").expect("readable");
        assert_eq!(begun.into_data().as_ref(), b"\x01begun\n");
        let pid = std::fs::read_to_string(&file).expect("written");
        let process = format!("/proc/{}", pid.trim());
        assert!(std::path::Path::new(&process).exists());
        drop(socket);
        while std::path::Path::new(&process).exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        std::fs::remove_file(file).expect("removed");
    });
}

#[test]
fn what_cannot_be_done_is_said_before_the_upgrade() {
    run(async {
        let server = start().await;
        let v5 = "v5.channel.k8s.io";
        for (path, protocol, code, says) in [
            ("b/exec?command=true&stdout=true", v5, 404, "pods \"b\" not found"),
            ("a/exec?stdout=true", v5, 400, "at least one command"),
            ("a/exec?command=true", v5, 400, "at least one of stdin, stdout, stderr"),
            ("a/exec?command=true&stdout=true&container=x", v5, 400, "container x is not valid"),
            ("a/exec?command=true&stdout=true", "v1.channel.k8s.io", 400, "negotiate"),
        ] {
            let (found, status) = open(&server, path, protocol).await.expect_err("refused");
            assert_eq!(found, code, "{path}: {status}");
            assert!(status["message"].as_str().unwrap().contains(says), "{path}: {status}");
        }
    });
}
