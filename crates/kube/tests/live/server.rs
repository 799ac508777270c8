//! A small API server on loopback that serves lists, well or badly.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use portcullis_kube::live::{Access, Error, Snapshot};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

/// The objects of a cluster, by the plural of their kind.
pub(crate) type Objects = BTreeMap<&'static str, Vec<Value>>;

/// What a request asks for.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) line: String,
    pub(crate) plural: String,
    pub(crate) query: BTreeMap<String, String>,
    /// By lower-case name.
    pub(crate) headers: BTreeMap<String, String>,
}

/// What a server does with a request.
pub(crate) enum Reply {
    /// A status and a body.
    Answer(u16, String),
    /// Ends the connection in the middle of the body.
    Close,
    /// Says nothing for a minute.
    Silence,
}

type Handler = dyn Fn(&Asked) -> Reply + Send + Sync;

pub(crate) struct Server {
    pub(crate) url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Server {
    pub(crate) fn start(handler: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Server {
        Server::listen(None, handler)
    }

    /// Serves the objects as an API server does.
    pub(crate) fn of(objects: Objects) -> Server {
        Server::start(move |asked| list(&objects, asked))
    }

    pub(crate) fn listen(
        tls: Option<ServerConfig>,
        handler: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
    ) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (handler, log): (Arc<Handler>, _) = (Arc::new(handler), asked.clone());
        let tls = tls.map(Arc::new);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (handler, log, tls) = (handler.clone(), log.clone(), tls.clone());
                thread::spawn(move || match tls {
                    None => serve(stream, &*handler, &log),
                    Some(tls) => {
                        let connection = ServerConnection::new(tls).unwrap();
                        serve(StreamOwned::new(connection, stream), &*handler, &log);
                    }
                });
            }
        });
        Server { url, asked }
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// Reads it with a kubeconfig that has a token.
    pub(crate) fn read(&self) -> Result<Snapshot, Error> {
        let config = kubeconfig(&self.url, "", "token: secret");
        access(&config).read(|_| ())
    }
}

fn serve(stream: impl Read + Write, handler: &Handler, log: &Mutex<Vec<Asked>>) {
    let mut stream = BufReader::new(stream);
    while let Some(asked) = request(&mut stream) {
        log.lock().unwrap().push(asked.clone());
        let out = stream.get_mut();
        let sent = match handler(&asked) {
            Reply::Answer(status, body) => {
                let length = body.len();
                write!(
                    out,
                    "HTTP/1.1 {status} Status\r\nContent-Type: application/json\r\n\
                     Content-Length: {length}\r\n\r\n{body}"
                )
            }
            Reply::Close => {
                let _ = write!(out, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{{\"kind\"");
                let _ = out.flush();
                return;
            }
            Reply::Silence => {
                thread::sleep(Duration::from_secs(60));
                return;
            }
        };
        if sent.and_then(|()| out.flush()).is_err() {
            return;
        }
    }
}

fn request(stream: &mut impl BufRead) -> Option<Asked> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).ok()? == 0 {
            return None;
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let target = lines.first()?.split(' ').nth(1)?.to_owned();
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let pair = |pair: &str| {
        let (key, value) = pair.split_once('=')?;
        Some((key.to_owned(), value.to_owned()))
    };
    let header = |line: &String| {
        let (name, value) = line.split_once(": ")?;
        Some((name.to_lowercase(), value.to_owned()))
    };
    Some(Asked {
        plural: path.rsplit('/').next()?.to_owned(),
        query: query.split('&').filter_map(pair).collect(),
        headers: lines.iter().skip(1).filter_map(header).collect(),
        line: lines.remove(0),
    })
}

/// A list as an API server gives it: items without kind, in pages if asked for.
pub(crate) fn list(objects: &Objects, asked: &Asked) -> Reply {
    let none = Vec::new();
    let all = objects.get(&*asked.plural).unwrap_or(&none);
    let number = |key: &str| asked.query.get(key).and_then(|n| n.parse::<usize>().ok());
    let start = number("continue").unwrap_or(0);
    let end = number("limit").map_or(all.len(), |n| all.len().min(start + n));
    let metadata_only =
        asked.headers.get("accept").is_some_and(|a| a.contains("PartialObjectMetadataList"));
    let item = |item: &Value| {
        let mut item = item.clone();
        let object = item.as_object_mut().unwrap();
        object.remove("kind");
        object.remove("apiVersion");
        if metadata_only {
            object.retain(|key, _| key == "metadata");
            object.insert("kind".into(), "PartialObjectMetadata".into());
            object.insert("apiVersion".into(), "meta.k8s.io/v1".into());
        }
        let metadata = object["metadata"].as_object_mut().unwrap();
        metadata.insert("managedFields".into(), json!([{"manager": "kubectl", "fieldsV1": {}}]));
        metadata.insert("resourceVersion".into(), "17".into());
        item
    };
    let items: Vec<Value> = all[start..end].iter().map(item).collect();
    let mut metadata = json!({"resourceVersion": "4711"});
    if end < all.len() {
        metadata["continue"] = end.to_string().into();
    }
    let list = json!({"kind": "AnyList", "apiVersion": "v1", "metadata": metadata, "items": items});
    Reply::Answer(200, list.to_string())
}

/// What an API server says when it says no.
pub(crate) fn status(code: u16, reason: &str, message: &str) -> Reply {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    });
    Reply::Answer(code, status.to_string())
}

/// A kubeconfig with one cluster, context and user, as a file.
pub(crate) fn kubeconfig(server: &str, cluster: &str, user: &str) -> PathBuf {
    file(&format!(
        "apiVersion: v1
kind: Config
current-context: here
clusters:
- name: test
  cluster: {{server: \"{server}\", {cluster}}}
contexts:
- name: here
  context: {{cluster: test, user: me, namespace: shop}}
- name: elsewhere
  context: {{cluster: nowhere, user: me}}
users:
- name: me
  user: {{{user}}}
"
    ))
}

/// A file of its own, in the directory that cargo has for tests.
pub(crate) fn file(text: &str) -> PathBuf {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("live-{}-{number}", std::process::id());
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, text).unwrap();
    path
}

pub(crate) fn access(kubeconfig: &std::path::Path) -> Access {
    Access {
        kubeconfig: Some(kubeconfig.to_owned()),
        timeout: Duration::from_secs(20),
        ..Access::default()
    }
}
