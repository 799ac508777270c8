//! The agents: on each node the same one as in production, on threads of this process.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::memfd::{MFdFlags, memfd_create};
use portcullis_agent::{Logging, Mode, Options, Socket, Unprogrammed};
use portcullis_core::model::LogLevel;
use portcullis_dataplane::Nftables;
use portcullis_dataplane::state::Log;
use portcullis_kube::live::Access;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::Error;
use crate::cluster::nodes::Node;
use crate::namespace::{Namespace, on_own_thread};

/// Where an agent tells how it is; each has a loopback of its own.
const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9464);
/// Everything: a lab is there to be looked at.
const LOGGING: Logging = Logging { level: LogLevel::All, group: LOG.group, rate: LOG.rate };
pub(crate) const LOG: Log = Log { group: 86, rate: 1000 };
/// Where an agent answers people, who come by a port-forward to its pod.
const API: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9465);
/// How long an agent may take until it enforces.
const PATIENCE: Duration = Duration::from_secs(30);

/// The pods of the agents, as deploy/ has them. Nothing runs in them: the agents are threads of this
/// process, and the network of the nodes is all that they have in common.
pub(crate) fn daemon_set() -> Value {
    let labels = json!({"app.kubernetes.io/name": "portcullis"});
    json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "portcullis", "namespace": "kube-system", "labels": labels},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "hostNetwork": true,
                    "containers": [{"name": "agent", "image": "portcullis"}],
                },
            },
        },
    })
}

/// The agents of all nodes. They stop when this is dropped; what is in force stands.
#[derive(Debug)]
pub(crate) struct Agents {
    running: Vec<Agent>,
    // Agents that lose their connection read it again.
    _kubeconfig: File,
}

#[derive(Debug)]
struct Agent {
    node: String,
    namespace: Arc<Namespace>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    /// Why it has ended, if it has.
    ended: Arc<Mutex<Option<String>>>,
}

impl Agents {
    /// Starts an agent on each node. The kubeconfig leads to the API server as the nodes reach it.
    /// Each has a socket in the folder: `NODE/agent.sock`.
    pub(crate) fn start(nodes: &[Node], kubeconfig: &str, sockets: &Path) -> Result<Agents, Error> {
        let io = |source| Error::Socket { step: "keep a kubeconfig".to_owned(), source };
        let file = memfd_create("kubeconfig", MFdFlags::MFD_CLOEXEC);
        let mut file = File::from(file.map_err(|e| io(e.into()))?);
        file.write_all(kubeconfig.as_bytes()).map_err(io)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let running = nodes.iter().map(|node| Agent::start(node, path.clone(), sockets));
        let running = running.collect::<Result<_, _>>()?;
        Ok(Agents { running, _kubeconfig: file })
    }

    /// Waits until every node enforces.
    pub(crate) fn wait_until_ready(&self) -> Result<(), Error> {
        let started = Instant::now();
        for agent in &self.running {
            loop {
                let answer = agent.readiness();
                let Err(why) = answer else { break };
                let ended = agent.ended.lock().unwrap_or_else(PoisonError::into_inner).clone();
                if ended.is_some() || started.elapsed() > PATIENCE {
                    let why = ended.unwrap_or(why);
                    return Err(Error::NotReady { node: agent.node.clone(), why });
                }
                thread::sleep(Duration::from_millis(10));
            }
        }
        Ok(())
    }
}

impl Agent {
    fn start(node: &Node, kubeconfig: PathBuf, sockets: &Path) -> Result<Agent, Error> {
        let name = node.space.owner.clone();
        let options = Options {
            node: name.clone(),
            access: Access { kubeconfig: Some(kubeconfig), ..Access::default() },
            metrics_address: Some(METRICS),
            api_address: Some(API),
            log: LOGGING,
            events: false,
            socket: Some(Socket {
                path: sockets.join(&name).join("agent.sock"),
                // No container runtime adds pods here.
                attachments: sockets.join(&name).join("attachments"),
            }),
            // A pod's command starts with its network, and nothing here makes it wait for the agent:
            // its first packet would be lost.
            unprogrammed: Unprogrammed::Open,
            mode: Mode::Enforce,
            keep_established: false,
            allow_spoofing: false,
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let ended = Arc::new(Mutex::new(None));
        let (namespace, tell) = (node.namespace.clone(), ended.clone());
        let work = move || {
            let stop = async {
                // Also dropped means stop.
                let _ = stopped.await;
                Ok(())
            };
            let done = namespace.enter().map_err(|error| error.to_string()).and_then(|()| {
                let dataplane = Nftables::open().map_err(|error| error.to_string())?;
                portcullis_agent::run_until(options, dataplane, stop).map_err(|e| e.to_string())
            });
            let why = done.err().unwrap_or_else(|| "it was stopped".to_owned());
            *tell.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
        };
        let thread = thread::Builder::new().name(format!("agent {name}")).spawn(work);
        let thread = thread.map_err(|e| Error::socket("start an agent", e))?;
        let namespace = node.namespace.clone();
        Ok(Agent { node: name, namespace, stop: Some(stop), thread: Some(thread), ended })
    }

    /// Asks the agent whether it is ready, as a kubelet would; or why not.
    fn readiness(&self) -> Result<(), String> {
        let ask = || -> io::Result<String> {
            let mut stream = TcpStream::connect(METRICS)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(b"GET /readyz HTTP/1.0\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        let answer = on_own_thread(|| {
            self.namespace.enter().map_err(|error| error.to_string())?;
            ask().map_err(|error| format!("it does not answer: {error}"))
        })?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        match head.split(' ').nth(1) {
            Some("200") => Ok(()),
            _ => Err(body.trim().to_owned()),
        }
    }
}

impl Drop for Agents {
    fn drop(&mut self) {
        for agent in &mut self.running {
            drop(agent.stop.take());
        }
        for agent in &mut self.running {
            // If it panicked, that was reported when it happened.
            _ = agent.thread.take().map(JoinHandle::join);
        }
    }
}
