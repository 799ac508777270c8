//! An API server on loopback, as much of it as a watch needs: lists in pages, watches with
//! bookmarks, lists as streams, versions that expire; and it can go away.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Namespace and name.
type Name = (String, String);

#[derive(Default)]
struct State {
    version: u64,
    /// By plural.
    objects: BTreeMap<String, BTreeMap<Name, Value>>,
    /// Version, plural, what happened, and to what.
    log: Vec<(u64, String, &'static str, Value)>,
    /// Changes up to this version are forgotten.
    forgotten: u64,
    /// Says that it is not there.
    away: bool,
    /// Of these nothing may be read.
    forbidden: Vec<String>,
    /// Watches of an older one end.
    epoch: u64,
    /// So many requests for another page are told that the list has expired.
    expired_pages: u32,
    /// How often all watches have been told where the present is.
    bookmarks: u64,
    /// How many watches have told the last one.
    told: usize,
    /// Each event is told so many times more.
    repeats: usize,
    /// Pauses within whatever is sent.
    pause: Duration,
    /// The first lines of all requests.
    asked: Vec<String>,
    /// What has been created, and when.
    created: Vec<(Instant, Value)>,
}

struct Request {
    method: String,
    path: String,
    query: BTreeMap<String, String>,
    body: Vec<u8>,
}

#[derive(Clone)]
pub(crate) struct Server {
    address: SocketAddr,
    minor: u32,
    shared: Arc<(Mutex<State>, Condvar)>,
}

impl Server {
    /// A server of Kubernetes 1.`minor`.
    pub(crate) fn start(minor: u32) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server { address, minor, shared: Arc::default() };
        let serving = server.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let serving = serving.clone();
                thread::spawn(move || serving.serve(stream));
            }
        });
        server
    }

    /// A kubeconfig for it, as a file.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        let name = format!("agent-{}-{}", std::process::id(), self.address.port());
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: here\n\
             clusters: [{{name: test, cluster: {{server: \"http://{}\"}}}}]\n\
             contexts: [{{name: here, context: {{cluster: test, user: me}}}}]\n\
             users: [{{name: me, user: {{token: secret}}}}]\n",
            self.address
        );
        std::fs::write(&path, text).unwrap();
        path
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.0.lock().unwrap()
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.shared.1.notify_all();
    }

    /// Creates or replaces an object.
    pub(crate) fn put(&self, plural: &str, mut object: Value) {
        self.change(|state| {
            state.version += 1;
            object["metadata"]["resourceVersion"] = state.version.to_string().into();
            let objects = state.objects.entry(plural.to_owned()).or_default();
            let old = objects.insert(name(&object), object.clone());
            let what = if old.is_some() { "MODIFIED" } else { "ADDED" };
            state.log.push((state.version, plural.to_owned(), what, object));
        });
    }

    pub(crate) fn delete(&self, plural: &str, namespace: &str, name: &str) {
        self.change(|state| {
            state.version += 1;
            let objects = state.objects.get_mut(plural).unwrap();
            let mut object = objects.remove(&(namespace.to_owned(), name.to_owned())).unwrap();
            object["metadata"]["resourceVersion"] = state.version.to_string().into();
            state.log.push((state.version, plural.to_owned(), "DELETED", object));
        });
    }

    /// Breaks all connections, and answers none until it is back.
    pub(crate) fn go_away(&self) {
        self.change(|state| {
            state.away = true;
            state.epoch += 1;
        });
    }

    /// Comes back, having forgotten which changes there were.
    pub(crate) fn come_back(&self) {
        self.change(|state| {
            state.away = false;
            state.forgotten = state.version;
            state.log.clear();
        });
    }

    /// Breaks all watches, once.
    pub(crate) fn break_off(&self) {
        self.change(|state| state.epoch += 1);
    }

    /// Forgets which changes there were, and goes on with the watches that it has.
    pub(crate) fn forget(&self) {
        self.change(|state| {
            state.forgotten = state.version;
            state.log.clear();
        });
    }

    /// Tells all watches where the present is.
    pub(crate) fn bookmark(&self) {
        self.change(|state| {
            state.bookmarks += 1;
            state.told = 0;
        });
    }

    /// How many watches have told it.
    pub(crate) fn told(&self) -> usize {
        self.state().told
    }

    /// Lets the next lists expire between their pages, so many times.
    pub(crate) fn expire_pages(&self, times: u32) {
        self.change(|state| state.expired_pages = times);
    }

    /// Tells each event so many times more.
    pub(crate) fn repeat(&self, times: usize) {
        self.change(|state| state.repeats = times);
    }

    /// Pauses so long in the middle of whatever it sends.
    pub(crate) fn pause(&self, pause: Duration) {
        self.change(|state| state.pause = pause);
    }

    pub(crate) fn forbid(&self, plural: &[&str]) {
        self.change(|state| state.forbidden = plural.iter().map(|p| (*p).to_owned()).collect());
    }

    /// All that there is, as a manifest.
    pub(crate) fn manifests(&self) -> String {
        let kinds = [
            ("networkpolicies", "networking.k8s.io/v1", "NetworkPolicy"),
            ("namespaces", "v1", "Namespace"),
            ("pods", "v1", "Pod"),
            ("nodes", "v1", "Node"),
        ];
        let state = self.state();
        let items = kinds.iter().flat_map(|(plural, version, kind)| {
            let objects = state.objects.get(*plural).into_iter().flat_map(|o| o.values());
            objects.map(move |object| {
                let mut object = object.clone();
                object["apiVersion"] = (*version).into();
                object["kind"] = (*kind).into();
                object
            })
        });
        let items: Vec<Value> = items.collect();
        json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
    }

    pub(crate) fn asked(&self) -> Vec<String> {
        self.state().asked.clone()
    }

    /// What has been created, and when.
    pub(crate) fn created(&self) -> Vec<(Instant, Value)> {
        self.state().created.clone()
    }

    fn serve(&self, stream: TcpStream) {
        let mut stream = BufReader::new(stream);
        while let Some(Request { method, path, query, body }) = self.request(&mut stream) {
            let out = stream.get_mut();
            let (away, forbidden, epoch) = {
                let state = self.state();
                let plural = path.rsplit('/').next().unwrap_or_default();
                (state.away, state.forbidden.iter().any(|f| f == plural), state.epoch)
            };
            if away {
                return;
            }
            let sent = if forbidden {
                answer(out, 403, &status(403, "Forbidden"))
            } else if method == "POST" {
                let object: Value = serde_json::from_slice(&body).unwrap();
                self.state().created.push((Instant::now(), object.clone()));
                answer(out, 201, &object)
            } else if path == "/version" {
                let version = json!({
                    "major": "1", "minor": self.minor.to_string(), "gitVersion": "", "platform": "",
                    "gitCommit": "", "gitTreeState": "", "buildDate": "", "goVersion": "",
                    "compiler": "",
                });
                answer(out, 200, &version)
            } else if query.get("watch").is_some_and(|watch| watch == "true") {
                // A watch ends with its connection.
                let _ = self.watch(out, &path, &query, epoch);
                return;
            } else if query.contains_key("continue") && self.page_has_expired() {
                answer(out, 410, &status(410, "Expired"))
            } else {
                let list = self.list(&path, &query);
                thread::sleep(self.state().pause);
                answer(out, 200, &list)
            };
            if sent.is_err() {
                return;
            }
        }
    }

    fn request(&self, stream: &mut impl BufRead) -> Option<Request> {
        let mut first = None;
        let mut length = 0;
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if let Some(text) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = text.trim().parse().unwrap();
            }
            match line.trim_end() {
                "" => break,
                line => _ = first.get_or_insert(line.to_owned()),
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).ok()?;
        let first = first?;
        self.state().asked.push(first.clone());
        let (method, rest) = first.split_once(' ')?;
        let target = rest.split(' ').next()?;
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let pair = |pair: &str| {
            let (key, value) = pair.split_once('=')?;
            Some((key.to_owned(), value.to_owned()))
        };
        let query = query.split('&').filter_map(pair).collect();
        Some(Request { method: method.to_owned(), path: path.to_owned(), query, body })
    }

    fn page_has_expired(&self) -> bool {
        let expired = &mut self.state().expired_pages;
        let has = *expired > 0;
        *expired = expired.saturating_sub(1);
        has
    }

    fn list(&self, path: &str, query: &BTreeMap<String, String>) -> Value {
        let state = self.state();
        let plural = path.rsplit('/').next().unwrap_or_default();
        let all: Vec<&Value> =
            state.objects.get(plural).into_iter().flat_map(|o| o.values()).collect();
        let number = |key: &str| query.get(key).and_then(|n| n.parse::<usize>().ok());
        let start = number("continue").unwrap_or(0).min(all.len());
        let end = number("limit").map_or(all.len(), |n| all.len().min(start + n));
        let mut metadata = json!({"resourceVersion": state.version.to_string()});
        if end < all.len() {
            metadata["continue"] = end.to_string().into();
        }
        json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": all[start..end]})
    }

    fn watch(
        &self,
        out: &mut TcpStream,
        path: &str,
        query: &BTreeMap<String, String>,
        epoch: u64,
    ) -> std::io::Result<()> {
        let plural = path.rsplit('/').next().unwrap_or_default();
        write!(
            out,
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        )?;
        let pause = self.state().pause;
        let mut chunk = |event: Value| {
            let line = format!("{event}\n");
            // An event need not come in one piece.
            let (head, tail) = line.split_at(line.len() / 2);
            for part in [head, tail] {
                write!(out, "{:x}\r\n{part}\r\n", part.len())?;
                out.flush()?;
                thread::sleep(pause);
            }
            Ok(())
        };
        let bookmark = |version: u64, end: bool| {
            let annotations =
                if end { json!({"k8s.io/initial-events-end": "true"}) } else { json!({}) };
            json!({"type": "BOOKMARK", "object": {
                "kind": "Any", "apiVersion": "v1",
                "metadata": {"resourceVersion": version.to_string(), "annotations": annotations},
            }})
        };
        let mut at = query.get("resourceVersion").and_then(|v| v.parse::<u64>().ok()).unwrap_or(0);
        let mut state = self.state();
        if query.get("sendInitialEvents").is_some_and(|send| send == "true") {
            let objects: Vec<Value> =
                state.objects.get(plural).into_iter().flat_map(|o| o.values().cloned()).collect();
            at = state.version;
            for object in objects {
                chunk(json!({"type": "ADDED", "object": object}))?;
            }
            chunk(bookmark(at, true))?;
        }
        let mut bookmarks = state.bookmarks;
        loop {
            if state.epoch != epoch {
                return Ok(());
            }
            if at < state.forgotten {
                return chunk(json!({"type": "ERROR", "object": status(410, "Expired")}));
            }
            let news: Vec<_> =
                state.log.iter().filter(|(v, p, ..)| *v > at && p == plural).cloned().collect();
            let repeats = state.repeats;
            let owed = bookmarks != state.bookmarks;
            (at, bookmarks) = (state.version, state.bookmarks);
            drop(state);
            let any = !news.is_empty();
            for (_, _, what, object) in news {
                for _ in 0..=repeats {
                    chunk(json!({"type": what, "object": object}))?;
                }
            }
            if any || owed {
                chunk(bookmark(at, false))?;
            }
            state = self.state();
            state.told += usize::from(owed);
            if (state.version, state.epoch, state.bookmarks) == (at, epoch, bookmarks) {
                state = self.shared.1.wait_timeout(state, Duration::from_millis(500)).unwrap().0;
            }
        }
    }
}

fn name(object: &Value) -> Name {
    let part = |key: &str| object["metadata"][key].as_str().unwrap_or_default().to_owned();
    (part("namespace"), part("name"))
}

fn status(code: u16, reason: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": reason, "reason": reason, "code": code,
    })
}

fn answer(out: &mut TcpStream, status: u16, body: &Value) -> std::io::Result<()> {
    let body = body.to_string();
    let length = body.len();
    write!(
        out,
        "HTTP/1.1 {status} Status\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    )?;
    out.flush()
}
