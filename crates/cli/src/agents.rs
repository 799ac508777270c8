//! How commands talk to agents: by the Unix sockets that are named, or to all agents of a cluster by a
//! port-forward to each one's pod. Either way an agent is a stream that takes and gives lines.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use portcullis_cni::protocol::{Answer, LONGEST, Request, line};
use portcullis_kube::live::{AgentPod, Agents, Forwarded};

use crate::input::LiveArgs;
use crate::trouble::Trouble;

/// The port at which agents answer people, on the loopback of their node.
pub(crate) const PORT: u16 = 9465;
/// How long an agent may be silent that is asked something.
const PATIENCE: Duration = Duration::from_secs(10);
/// So many agents are talked to at one time.
const AT_ONCE: usize = 32;

/// Which agents.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct AgentArgs {
    /// Unix socket of an agent on this machine, instead of the agents of the cluster; may be
    /// repeated
    #[arg(long, value_name = "PATH")]
    #[arg(conflicts_with = "agent_port")]
    pub(crate) socket: Vec<PathBuf>,
    /// Port at which the agents answer people, as their --api-address has it
    #[arg(long, value_name = "PORT", default_value_t = PORT)]
    pub(crate) agent_port: u16,
    #[command(flatten)]
    pub(crate) live: LiveArgs,
}

/// Where agents are reached.
#[derive(Debug)]
pub(crate) enum Reach {
    Sockets(Vec<PathBuf>),
    Cluster { agents: Agents, port: u16 },
}

/// One agent, reached or not.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Agent {
    Socket(PathBuf),
    Pod(AgentPod),
}

/// An agent that listens.
#[derive(Debug)]
pub(crate) struct Line {
    reader: BufReader<UnixStream>,
    forwarded: Option<Forwarded>,
}

impl AgentArgs {
    /// Finds out how agents are reached.
    pub(crate) fn reach(&self) -> Result<Reach, Trouble> {
        match self.socket.is_empty() {
            false => Ok(Reach::Sockets(self.socket.clone())),
            true => {
                let agents = self.live.access().agents()?;
                Ok(Reach::Cluster { agents, port: self.agent_port })
            }
        }
    }
}

impl Reach {
    /// The agents that there are.
    pub(crate) fn agents(&self) -> Result<Vec<Agent>, Trouble> {
        match self {
            Reach::Sockets(sockets) => Ok(sockets.iter().cloned().map(Agent::Socket).collect()),
            Reach::Cluster { agents, .. } => {
                // One that has ended says nothing of what its successor does.
                let ended = |phase: &str| matches!(phase, "Succeeded" | "Failed");
                let pods = agents.pods()?.into_iter().filter(|pod| !ended(&pod.phase));
                Ok(pods.map(Agent::Pod).collect())
            }
        }
    }

    /// Connects to an agent. An error is a sentence for people.
    pub(crate) fn connect(&self, agent: &Agent) -> Result<Line, String> {
        let (stream, forwarded) = match (self, agent) {
            (_, Agent::Socket(path)) => {
                let stream = UnixStream::connect(path);
                (stream.map_err(|error| nobody_at(path, &error))?, None)
            }
            (Reach::Cluster { agents, port }, Agent::Pod(pod)) => {
                if pod.phase != "Running" {
                    return Err(format!("its agent {} is {}", pod.name, pod.phase));
                }
                let forwarded = agents.connect(pod, *port).map_err(|error| error.to_string())?;
                let stream = forwarded.stream.try_clone().map_err(|error| error.to_string())?;
                (stream, Some(forwarded))
            }
            (Reach::Sockets(_), Agent::Pod(pod)) => return Err(format!("no way to {}", pod.name)),
        };
        let quick = stream.set_write_timeout(Some(PATIENCE));
        quick.and_then(|()| stream.set_read_timeout(Some(PATIENCE))).map_err(|e| e.to_string())?;
        Ok(Line { reader: BufReader::new(stream), forwarded })
    }
}

/// Does something with each, many at one time. What comes of it has their order.
pub(crate) fn each<I: Send, T: Send>(items: Vec<I>, something: impl Fn(I) -> T + Sync) -> Vec<T> {
    let mut done = Vec::with_capacity(items.len());
    let mut items = items.into_iter().peekable();
    while items.peek().is_some() {
        thread::scope(|scope| {
            let something = &something;
            let some = items.by_ref().take(AT_ONCE);
            let running: Vec<_> = some.map(|item| scope.spawn(move || something(item))).collect();
            for thread in running {
                match thread.join() {
                    Ok(result) => done.push(result),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
        });
    }
    done
}

impl Line {
    /// Asks something.
    pub(crate) fn say(&mut self, request: &Request) -> Result<(), String> {
        let said = self.reader.get_mut().write_all(&line(request));
        said.map_err(|error| self.why(&error))
    }

    /// The next answer; `None` when the agent has hung up.
    pub(crate) fn hear(&mut self) -> Result<Option<Answer>, String> {
        let mut text = String::new();
        let read = self.reader.by_ref().take(LONGEST as u64 + 1).read_line(&mut text);
        match read {
            Ok(0) => match self.forwarded.as_ref().and_then(Forwarded::why) {
                Some(why) => Err(why.trim().to_owned()),
                None => Ok(None),
            },
            Ok(_) => {
                let answer = serde_json::from_str(&text);
                answer.map(Some).map_err(|error| {
                    let text: String = text.trim().chars().take(80).collect();
                    format!("it says what this program does not understand ({error}): {text}")
                })
            }
            Err(error) => Err(self.why(&error)),
        }
    }

    /// Waits from now on for as long as it takes.
    pub(crate) fn without_hurry(&mut self) -> Result<(), String> {
        self.reader.get_ref().set_read_timeout(None).map_err(|error| error.to_string())
    }

    /// Asks something, and gives every answer up to the last one.
    pub(crate) fn ask(
        &mut self,
        request: &Request,
        mut take: impl FnMut(Answer) -> Result<(), String>,
    ) -> Result<(), String> {
        self.say(request)?;
        loop {
            match self.hear()? {
                Some(Answer::Done) => return Ok(()),
                Some(Answer::Failed { why }) => return Err(why),
                Some(answer) => take(answer)?,
                None => return Err("it hung up without an answer".to_owned()),
            }
        }
    }

    fn why(&self, error: &io::Error) -> String {
        let said = self.forwarded.as_ref().and_then(Forwarded::why);
        said.unwrap_or_else(|| match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                format!("it does not answer within {} s", PATIENCE.as_secs())
            }
            _ => error.to_string(),
        })
    }
}

fn nobody_at(path: &Path, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            format!("no agent listens at {}: {error}", path.display())
        }
        io::ErrorKind::PermissionDenied => {
            format!("only root and the user of the agent may connect to {}", path.display())
        }
        _ => format!("{}: {error}", path.display()),
    }
}
