//! Requests that reach into pods: `exec`, `attach`, `log`, `portforward`.

use std::sync::Arc;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::api::pairs;
use crate::containers::{Container, Containers, is_finished};
use crate::forward;
use crate::log::{Lines, Log, Part};
use crate::meta;
use crate::refusal::Refusal;
use crate::resource::Resource;
use crate::runtime::Exec;
use crate::session::{Session, Wanted};
use crate::store::Store;

/// The protocols of `exec` and `attach`, best first.
const CHANNELS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];

/// A request that reaches into a pod.
#[derive(Debug)]
pub(crate) struct Remote {
    namespace: String,
    name: String,
    what: What,
    query: Vec<(String, String)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Exec,
    Attach,
    Log,
    PortForward,
}

/// What is answered: an upgraded connection, or text that goes on coming.
pub(crate) enum Reached {
    Upgrade(Response<()>),
    Text(mpsc::Receiver<Bytes>),
}

/// A container of a pod that was asked for.
struct Asked {
    pod: Arc<Value>,
    name: String,
    spec: Value,
    container: Option<Arc<Container>>,
}

impl Remote {
    /// Reads an address, if it is one of these.
    pub(crate) fn read(path: &str, query: &str) -> Option<Remote> {
        let words: Vec<&str> = path.split('/').filter(|word| !word.is_empty()).collect();
        let ["api", "v1", "namespaces", namespace, "pods", name, what] = words[..] else {
            return None;
        };
        let what = match what {
            "exec" => What::Exec,
            "attach" => What::Attach,
            "log" => What::Log,
            "portforward" => What::PortForward,
            _ => return None,
        };
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        Some(Remote { namespace, name, what, query: pairs(query) })
    }

    fn asks(&self, key: &str) -> &str {
        self.query.iter().find(|(k, _)| k == key).map(|(_, v)| &**v).unwrap_or_default()
    }

    fn is(&self, key: &str) -> bool {
        matches!(self.asks(key), "true" | "1")
    }

    fn number(&self, key: &str) -> Result<Option<u64>, Refusal> {
        match self.asks(key) {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| {
                let message = format!("{key}: Invalid value: {text:?}: must be a number");
                Refusal::bad_request(message)
            }),
        }
    }

    /// The ports that are asked for.
    fn ports(&self) -> Result<Vec<u16>, Refusal> {
        let asked = self.query.iter().filter(|(key, _)| key == "ports" || key == "port");
        let ports = asked.flat_map(|(_, value)| value.split(',')).map(|port| {
            port.parse().map_err(|_| {
                Refusal::bad_request(format!("ports: Invalid value: {port:?}: must be a port"))
            })
        });
        let ports: Vec<u16> = ports.collect::<Result<_, _>>()?;
        // Two channels for each, and the numbers of channels are bytes.
        match ports.len() {
            1..128 => Ok(ports),
            _ => Err(Refusal::bad_request("ports: between 1 and 127 must be given")),
        }
    }

    pub(crate) fn answer(
        &self,
        store: &Store,
        containers: &Arc<Containers>,
        request: Request<Incoming>,
    ) -> Result<Reached, Refusal> {
        match (self.what, request.method()) {
            (What::Log, &Method::GET) => self.log(store, containers),
            (What::Log, _) => Err(Refusal::method_not_allowed()),
            (_, &Method::GET | &Method::POST) => self.upgrade(store, containers, request),
            _ => Err(Refusal::method_not_allowed()),
        }
    }

    fn pod(&self, store: &Store) -> Result<Arc<Value>, Refusal> {
        let Some(kind) = Resource::of_kind("Pod") else { return Err(Refusal::no_such_path(&[])) };
        let found = store.read(|state| state.find(kind, &self.namespace, &self.name).cloned());
        let pod = found.ok_or_else(|| Refusal::not_found(kind, &self.name))?;
        if meta::text(&pod, "/spec/nodeName").is_empty() {
            let message = format!("pod {} does not have a host assigned", self.name);
            return Err(Refusal::bad_request(message));
        }
        Ok(pod)
    }

    /// The container that is asked for; the only one if none is named.
    fn container(&self, store: &Store, containers: &Containers) -> Result<Asked, Refusal> {
        let (pod, name) = (self.pod(store)?, self.asks("container"));
        let main = meta::list(&pod, "/spec/containers").iter();
        let all: Vec<&Value> =
            main.clone().chain(meta::list(&pod, "/spec/initContainers")).collect();
        let spec = match (name, main.len()) {
            ("", 1) => all[0],
            ("", _) => {
                let names = |list| {
                    let each = meta::list(&pod, list).iter().map(|c| meta::text(c, "/name"));
                    each.collect::<Vec<_>>().join(" ")
                };
                let mut message = format!(
                    "a container name must be specified for pod {}, choose one of: [{}]",
                    self.name,
                    names("/spec/containers")
                );
                if all.len() > main.len() {
                    let init = names("/spec/initContainers");
                    message.push_str(&format!(" or one of the init containers: [{init}]"));
                }
                return Err(Refusal::bad_request(message));
            }
            (name, _) => match all.iter().copied().find(|spec| spec["name"] == name) {
                Some(spec) => spec,
                None => {
                    let message = format!("container {name} is not valid for pod {}", self.name);
                    return Err(Refusal::bad_request(message));
                }
            },
        };
        let (name, spec) = (meta::text(spec, "/name").to_owned(), spec.clone());
        let container = containers.get(meta::uid(&pod), &name);
        Ok(Asked { name, spec, container, pod })
    }

    fn log(&self, store: &Store, containers: &Containers) -> Result<Reached, Refusal> {
        let asked = self.container(store, containers)?;
        let previous = self.is("previous");
        let (pod, name) = (&self.name, &asked.name);
        let log = match (&asked.container, previous) {
            (Some(container), _) if container.waits().is_none() || previous => {
                container.log(previous)
            }
            // A pod that ended before the server was started anew has no log any more.
            (None, _) if is_finished(&asked.pod) => None,
            (container, _) => {
                let reason = container.as_ref().and_then(|container| container.waits());
                let reason = reason.unwrap_or_else(|| "ContainerCreating".to_owned());
                let message =
                    format!("container {name:?} in pod {pod:?} is waiting to start: {reason}");
                return Err(Refusal::bad_request(message));
            }
        };
        if log.is_none() && previous {
            let message =
                format!("previous terminated container {name:?} in pod {pod:?} not found");
            return Err(Refusal::bad_request(message));
        }
        let since = match (self.number("sinceSeconds")?, self.asks("sinceTime")) {
            (Some(seconds), _) => {
                let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
                Timestamp::now().checked_sub(SignedDuration::from_secs(seconds)).ok()
            }
            (None, "") => None,
            (None, time) => Some(time.parse().map_err(|_| {
                let message = format!("sinceTime: Invalid value: {time:?}: must be a time");
                Refusal::bad_request(message)
            })?),
        };
        let tail =
            self.number("tailLines")?.map(|tail| usize::try_from(tail).unwrap_or(usize::MAX));
        let part = Part { tail, since, timestamps: self.is("timestamps") };
        let limit = self.number("limitBytes")?.unwrap_or(u64::MAX);
        let (to, text) = mpsc::channel(16);
        if let Some(log) = log {
            tokio::spawn(send_log(log, part, self.is("follow"), limit, to));
        }
        Ok(Reached::Text(text))
    }

    fn upgrade(
        &self,
        store: &Store,
        containers: &Arc<Containers>,
        mut request: Request<Incoming>,
    ) -> Result<Reached, Refusal> {
        if self.what == What::PortForward {
            let pod = self.pod(store)?;
            let phase = meta::text(&pod, "/status/phase");
            if phase != "Running" {
                let message = format!(
                    "unable to forward port because pod is not running. Current status={phase}"
                );
                return Err(Refusal::bad_request(message));
            }
            let both = [forward::PROTOCOL, forward::CHANNELS];
            let protocol = protocol(request.headers(), &both)?;
            let containers = containers.clone();
            if protocol == forward::CHANNELS {
                let ports = self.ports()?;
                let begin =
                    move |socket: Socket| forward::serve_channels(socket, containers, pod, ports);
                return Ok(Reached::Upgrade(switch(&mut request, protocol, begin)?));
            }
            let begin = move |socket: Socket| forward::serve(socket, containers, pod);
            return Ok(Reached::Upgrade(switch(&mut request, protocol, begin)?));
        }
        let asked = self.container(store, containers)?;
        let wanted = Wanted {
            stdin: self.is("stdin"),
            stdout: self.is("stdout"),
            stderr: self.is("stderr"),
        };
        if !wanted.stdin && !wanted.stdout && !wanted.stderr {
            let message = "you must specify at least one of stdin, stdout, stderr";
            return Err(Refusal::bad_request(message));
        }
        let command = self.query.iter().filter(|(key, _)| key == "command");
        let command: Vec<String> = command.map(|(_, word)| word.clone()).collect();
        if self.what == What::Exec && command.is_empty() {
            let message = "you must specify at least one command for the container";
            return Err(Refusal::bad_request(message));
        }
        let into = match self.what {
            What::Exec => "exec into",
            _ => "attach",
        };
        let Some(container) = asked.container else {
            let message = match is_finished(&asked.pod) {
                true => completed(into, &asked.pod),
                false => format!("container not found ({:?})", asked.name),
            };
            return Err(Refusal::bad_request(message));
        };
        if is_finished(&asked.pod) && (self.what == What::Exec || container.was_seen()) {
            return Err(Refusal::bad_request(completed(into, &asked.pod)));
        }
        let protocol = protocol(request.headers(), &CHANNELS)?;
        let (containers, what, tty) = (containers.clone(), self.what, self.is("tty"));
        let (pod, name, spec) = (asked.pod, asked.name, asked.spec);
        let begin = move |socket: Socket| async move {
            let session = match what {
                What::Attach => Session::of_container(container, &spec, wanted),
                _ => {
                    let exec = Exec { command, stdin: wanted.stdin, tty };
                    let run = move || containers.runtime.exec(&pod, &name, &exec);
                    match tokio::task::spawn_blocking(run).await {
                        Ok(Ok(process)) => Session::of_command(process, wanted),
                        Ok(Err(why)) => Session::failed(&why),
                        Err(_) => Session::failed("the command could not be started"),
                    }
                }
            };
            session.serve(socket).await;
        };
        Ok(Reached::Upgrade(switch(&mut request, protocol, begin)?))
    }
}

fn completed(into: &str, pod: &Value) -> String {
    let phase = meta::text(pod, "/status/phase");
    format!("cannot {into} a container in a completed pod; current phase is {phase}")
}

/// The protocol that both sides speak, the client's favourite first.
fn protocol(headers: &HeaderMap, ours: &[&'static str]) -> Result<&'static str, Refusal> {
    let all = |name: HeaderName| -> Vec<&str> {
        let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).map(str::trim).collect()
    };
    let upgrade = all(header::UPGRADE);
    if !upgrade.iter().any(|to| to.eq_ignore_ascii_case("websocket")) {
        let message = match upgrade.iter().any(|to| to.to_ascii_uppercase().starts_with("SPDY")) {
            true => {
                "this server is reached over WebSocket, not over SPDY alone: use kubectl 1.31 or \
                 newer; from 1.29 on KUBECTL_REMOTE_COMMAND_WEBSOCKETS=true is enough for exec"
            }
            false => "Upgrade request required",
        };
        return Err(Refusal::bad_request(message));
    }
    let theirs = all(header::SEC_WEBSOCKET_PROTOCOL);
    let common = theirs.iter().find_map(|name| ours.iter().find(|known| *known == name));
    common.copied().ok_or_else(|| {
        Refusal::bad_request(format!(
            "unable to negotiate protocol: client supports {theirs:?}, server accepts {ours:?}"
        ))
    })
}

type Socket = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;

/// The answer that makes a connection a WebSocket. What begins then runs on its own.
fn switch<F: Future<Output = ()> + Send + 'static>(
    request: &mut Request<Incoming>,
    protocol: &'static str,
    begin: impl FnOnce(Socket) -> F + Send + 'static,
) -> Result<Response<()>, Refusal> {
    let Some(key) = request.headers().get(header::SEC_WEBSOCKET_KEY) else {
        return Err(Refusal::bad_request("a WebSocket needs the header Sec-WebSocket-Key"));
    };
    let accept = derive_accept_key(key.as_bytes());
    let accept = HeaderValue::from_str(&accept)
        .map_err(|_| Refusal::bad_request("Sec-WebSocket-Key cannot be answered"))?;
    let upgraded = hyper::upgrade::on(request);
    tokio::spawn(async move {
        // A client that is gone by now wants nothing.
        if let Ok(upgraded) = upgraded.await {
            let io = TokioIo::new(upgraded);
            begin(WebSocketStream::from_raw_socket(io, Role::Server, None).await).await;
        }
    });
    let mut answer = Response::new(());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = answer.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    Ok(answer)
}

/// Sends a log, and what is added to it if that is asked for.
async fn send_log(log: Arc<Log>, part: Part, follow: bool, limit: u64, to: mpsc::Sender<Bytes>) {
    let mut grown = log.subscribe();
    let mut lines = Lines::new(part);
    let mut left = usize::try_from(limit).unwrap_or(usize::MAX);
    let mut next = None;
    loop {
        grown.borrow_and_update();
        let (chunks, after, ended) = log.from(next.unwrap_or_default());
        let mut text = match next {
            None => lines.first(&chunks),
            Some(_) => lines.next(&chunks),
        };
        next = Some(after);
        text.truncate(left);
        left -= text.len();
        if !text.is_empty() && to.send(text.into()).await.is_err() {
            return;
        }
        if ended || !follow || left == 0 {
            return;
        }
        tokio::select! {
            changed = grown.changed() => if changed.is_err() { return },
            () = to.closed() => return,
        }
    }
}
