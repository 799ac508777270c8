//! The seam to whatever runs the pods. The API server knows no network, no namespaces, no processes:
//! a [`Runtime`] has them.

use std::fmt::Debug;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream};
use std::sync::Arc;

use serde_json::Value;

/// Runs pods, the way a kubelet and what is below it do.
///
/// Called with whole Pod objects, with nothing locked, from threads that may block. [`up`] and [`down`]
/// come one after the other, from one thread. [`start`] may come from any thread, but only between
/// the two. The other calls come at any time, for pods that were up when they were asked for.
/// Whatever is shown to people is an error of one sentence.
///
/// [`up`]: Runtime::up
/// [`start`]: Runtime::start
/// [`down`]: Runtime::down
pub trait Runtime: Send + Sync + Debug {
    /// Brings up the network of a pod that has been given a node; its addresses, the first one its
    /// `podIP`. With `hostNetwork` those are the node's. An error is shown in the pod's status, and
    /// the pod is tried again later. A pod that has a `podIP` already was up before the server was
    /// started anew, and keeps its addresses if that can be.
    fn up(&self, pod: &Value) -> Result<Vec<IpAddr>, String>;

    /// Takes down a pod that was brought up, and all that runs in it.
    fn down(&self, pod: &Value);

    /// Starts the command of a container (its `command` and `args`) of a pod that is up; again each
    /// time that it has ended, as `restartPolicy` says. `None` for a container that runs nothing of
    /// its own and is there until the pod goes. Its output is the log of the container.
    fn start(&self, _pod: &Value, _container: &str) -> Result<Option<Process>, String> {
        Ok(None)
    }

    /// Runs another command in a container.
    fn exec(&self, _pod: &Value, _container: &str, _exec: &Exec) -> Result<Process, String> {
        Err("commands cannot be run in these pods".to_owned())
    }

    /// Connects to a port of a pod, from within it (`kubectl port-forward`).
    fn connect(&self, _pod: &Value, _port: u16) -> Result<TcpStream, String> {
        Err("the ports of these pods cannot be forwarded".to_owned())
    }
}

/// A command as it is to be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exec {
    /// The program and its arguments; never empty.
    pub command: Vec<String>,
    /// Whether it reads what the client sends. If not, it reads nothing (`/dev/null`).
    pub stdin: bool,
    /// Whether it runs on a terminal, which then is its input, its output and its errors.
    pub tty: bool,
}

/// A command that runs.
#[derive(Debug)]
pub struct Process {
    /// What it reads; closed when dropped.
    pub stdin: Option<Input>,
    /// What it writes, and with a terminal also what it complains of.
    pub stdout: Option<Output>,
    /// What it complains of, without a terminal.
    pub stderr: Option<Output>,
    /// Its end.
    pub control: Arc<dyn Control>,
}

/// What a command reads.
pub struct Input(pub Box<dyn Write + Send>);

/// What a command writes. A read blocks until there is something; its end is the end of the command
/// and of what it started.
pub struct Output(pub Box<dyn Read + Send>);

impl Debug for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Input")
    }
}

impl Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Output")
    }
}

/// What can be done to a command that runs. Each may be called from any thread.
pub trait Control: Send + Sync + Debug {
    /// Blocks until the command has ended: its exit status, 128 + N if signal N ended it. Called
    /// once.
    fn wait(&self) -> i32;

    /// Ends it, and what it started. Nothing if it has ended.
    fn kill(&self);

    /// Tells its terminal how large it is. Nothing if it has none.
    fn resize(&self, _columns: u16, _rows: u16) {}
}
