//! The agents: on each node the same one as in production, in a process of its own. One that ends is
//! started again, as the DaemonSet of a cluster would be.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};
use portcullis_agent::{Logging, Mode, Options as AgentOptions, Socket, Unprogrammed};
use portcullis_cni::protocol::{Answer, Request, ask};
use portcullis_core::model::LogLevel;
use portcullis_dataplane::Nftables;
use portcullis_dataplane::state::Log;
use portcullis_kube::live::Access;
use rustix::process::{Pid, WaitId, WaitIdOptions, kill_process, waitid};
use serde_json::{Value, json};

use crate::Error;
use crate::cluster::files::{ATTACHMENTS, Files, KUBECONFIG, SOCKET};
use crate::cluster::nodes::Node;
use crate::namespace::Namespace;
use crate::plan::Options;

/// The first argument by which this program knows that it is to be the agent of a node.
pub(crate) const AGENT: &str = "lab-agent";
/// The argument after the node's name and the rate of its log, of an agent that writes Events.
const EVENTS: &str = "events";
/// The folder of the node's files, for its agent: it has it as its standard input.
const FOLDER: &str = "/proc/self/fd/0";
/// Where an agent tells how it is; each has a loopback of its own.
const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9464);
/// By which an agent is told of packets.
const LOG_GROUP: u16 = 86;
/// Where an agent answers people, who come by a port-forward to its pod.
const API: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9465);
/// How long an agent may take until it enforces.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long one that has ended stays away. One that cannot run is not to keep the machine busy.
const PAUSE: Duration = Duration::from_millis(100);

/// The pods of the agents, as deploy/ has them. Nothing runs in them: the agents are processes
/// of the lab, and the network of the nodes is all that they have in common.
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

/// The agents of all nodes. They end when this is dropped; what is in force stands.
#[derive(Debug)]
pub(crate) struct Agents {
    running: Vec<Agent>,
    files: Arc<Files>,
}

#[derive(Debug)]
struct Agent {
    node: String,
    tended: Arc<Tended>,
    /// The kernel ends the process with this thread: also when this whole process is killed.
    thread: Option<JoinHandle<()>>,
}

/// A process that is started again when it ends.
#[derive(Debug, Default)]
struct Tended {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// `None` once it has ended, when its number may be another one's.
    child: Option<Child>,
    /// When it was started, each time.
    starts: Vec<Instant>,
    /// Why it last ended by itself.
    ended: Option<String>,
    over: bool,
}

impl Agents {
    /// Starts an agent on each node. The kubeconfig leads to the API server as the nodes reach it.
    pub(crate) fn start(
        nodes: &[Node],
        files: &Arc<Files>,
        kubeconfig: &str,
        options: &Options,
    ) -> Result<Agents, Error> {
        let mut agents = Agents { running: Vec::new(), files: files.clone() };
        for node in nodes {
            let name = node.space.owner.clone();
            let folder = files.of(&name);
            let io = |e: io::Error| Error::socket("keep the files of an agent", e);
            fs::create_dir(&folder).map_err(io)?;
            fs::write(folder.join(KUBECONFIG), kubeconfig).map_err(io)?;
            let folder = File::open(folder).map_err(io)?;
            let tended = Arc::<Tended>::default();
            let (namespace, shared, of) = (node.namespace.clone(), tended.clone(), name.clone());
            let options = options.clone();
            let work = move || tend(&of, &options, &namespace, &folder, &shared);
            let thread = thread::Builder::new().name(format!("agent {name}")).spawn(work);
            let thread = Some(thread.map_err(|e| Error::socket("start an agent", e))?);
            agents.running.push(Agent { node: name, tended, thread });
        }
        Ok(agents)
    }

    /// Waits until every node enforces.
    pub(crate) fn wait_until_ready(&self) -> Result<(), Error> {
        let started = Instant::now();
        for agent in &self.running {
            while let Err(why) = self.readiness(&agent.node) {
                let ended = agent.tended.state().ended.clone();
                if ended.is_some() || started.elapsed() > PATIENCE {
                    let why = ended.unwrap_or(why);
                    return Err(Error::NotReady { node: agent.node.clone(), why });
                }
                thread::sleep(Duration::from_millis(2));
            }
        }
        Ok(())
    }

    /// Whether the agent of a node can be asked and enforces what it knows; if not, why.
    pub(crate) fn readiness(&self, node: &str) -> Result<(), String> {
        match ask(&self.files.of(node).join(SOCKET), &Request::Status, PATIENCE) {
            Ok(Answer::Ready) => Ok(()),
            Ok(Answer::Unready { why } | Answer::Failed { why }) => Err(why),
            Ok(other) => Err(format!("it answers {other:?}")),
            Err(error) => Err(format!("it does not answer: {error}")),
        }
    }

    /// The number of the process that is the agent of a node now.
    pub(crate) fn process(&self, node: &str) -> Option<u32> {
        let agent = self.running.iter().find(|agent| agent.node == node)?;
        agent.tended.state().child.as_ref().map(Child::id)
    }

    /// Ends the agent of a node where it stands (SIGKILL), and returns when the next one has been
    /// started, with the time of that. `None` if there is no such node, or no next one.
    pub(crate) fn kill(&self, node: &str) -> Option<Instant> {
        let tended = &self.running.iter().find(|agent| agent.node == node)?.tended;
        let mut state = tended.state();
        let before = state.starts.len();
        state.kill();
        while state.starts.len() == before && !state.over {
            state = tended.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.starts.get(before).copied()
    }
}

impl Tended {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn kill(&self) {
        if let Some(child) = &self.child {
            // That it has ended already is fine: nobody has asked for its status yet.
            let _ = kill_process(Pid::from_child(child), rustix::process::Signal::KILL);
        }
    }
}

/// Starts the agent of a node, again and again, until that is over.
fn tend(node: &str, options: &Options, namespace: &Namespace, folder: &File, tended: &Tended) {
    let start = || -> Result<(Child, File), String> {
        namespace.enter().map_err(|error| error.to_string())?;
        let io = |error: io::Error| format!("cannot start it: {error}");
        // What it has to say when it fails; otherwise it says nothing.
        let path = Path::new("/proc/self/fd").join(fd(folder)).join("said");
        let said = File::create(&path).map_err(io)?;
        let mut command = Command::new("/proc/self/exe");
        command.arg0("portcullis").args([AGENT, node, &options.log_rate.to_string()]);
        command.args(options.events.then_some(EVENTS));
        command.process_group(0);
        command.stdin(folder.try_clone().map_err(io)?).stdout(Stdio::null()).stderr(said);
        Ok((command.spawn().map_err(io)?, File::open(path).map_err(io)?))
    };
    loop {
        let mut state = tended.state();
        if state.over {
            return;
        }
        let started = start();
        state.starts.push(Instant::now());
        tended.changed.notify_all();
        let why = match started {
            Err(why) => why,
            Ok((child, mut said)) => {
                let pid = Pid::from_child(&child);
                state.child = Some(child);
                drop(state);
                // It keeps its number until it is asked for its status, which is done under the lock.
                let ended = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
                while matches!(waitid(WaitId::Pid(pid), ended), Err(rustix::io::Errno::INTR)) {}
                state = tended.state();
                let status = state.child.take().map(|mut child| child.wait());
                let mut why = String::new();
                let _ = said.read_to_string(&mut why);
                match status {
                    Some(Ok(status)) if why.is_empty() => format!("it ended: {status}"),
                    _ => why.trim().to_owned(),
                }
            }
        };
        state.ended = Some(why);
        let wait = |state: &mut State| !state.over;
        drop(tended.changed.wait_timeout_while(state, PAUSE, wait));
    }
}

fn fd(file: &File) -> String {
    use std::os::fd::AsRawFd as _;
    file.as_raw_fd().to_string()
}

impl Drop for Agents {
    fn drop(&mut self) {
        for agent in &self.running {
            let mut state = agent.tended.state();
            state.over = true;
            state.kill();
            agent.tended.changed.notify_all();
        }
        for agent in &mut self.running {
            // If it panicked, that was reported when it happened.
            _ = agent.thread.take().map(JoinHandle::join);
        }
    }
}

/// Is the agent of a node, as the arguments after [`AGENT`] say, in whose network this process was
/// started. Returns when that has failed, and has then said why on standard error.
pub(crate) fn run(arguments: &[OsString]) -> ExitCode {
    let (options, events) = match arguments {
        [options @ .., last] if last == EVENTS => (options, true),
        options => (options, false),
    };
    let rate = |text: &OsStr| text.to_str()?.parse().ok();
    let [node, log_rate] = options else { return not_for_people() };
    let Some(rate) = rate(log_rate) else { return not_for_people() };
    match enforce(node, rate, events) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

fn not_for_people() -> ExitCode {
    eprintln!("{AGENT} is how a lab starts the agents of its nodes, and not for people");
    ExitCode::from(126)
}

/// How an agent is told of packets.
pub(crate) fn log(rate: u32) -> Log {
    Log { group: LOG_GROUP, rate }
}

fn enforce(node: &OsStr, rate: u32, events: bool) -> Result<(), String> {
    let text = |error: io::Error| error.to_string();
    // The lab keeps signals from its own threads.
    SigSet::empty().thread_set_mask().map_err(|e| text(e.into()))?;
    set_pdeathsig(Signal::SIGKILL).map_err(|e| text(e.into()))?;
    let folder = Path::new(FOLDER);
    let options = AgentOptions {
        node: node.to_string_lossy().into_owned(),
        access: Access { kubeconfig: Some(folder.join(KUBECONFIG)), ..Access::default() },
        metrics_address: Some(METRICS),
        api_address: Some(API),
        log: Logging { level: LogLevel::All, group: LOG_GROUP, rate },
        events,
        mode: Mode::Enforce,
        unprogrammed: Unprogrammed::Closed(Vec::new()),
        keep_established: false,
        allow_spoofing: false,
        socket: Some(Socket { path: folder.join(SOCKET), attachments: folder.join(ATTACHMENTS) }),
    };
    let dataplane = Nftables::open().map_err(|error| error.to_string())?;
    portcullis_agent::run(options, dataplane).map_err(|error| error.to_string())
}
