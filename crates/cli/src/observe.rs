//! `portcullis observe`: which connections the agents of nodes refuse and allow, and why.

mod hits;
mod shown;

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use portcullis_cni::flow::{Filter, Port, Verdict, Who};
use portcullis_cni::protocol::{Answer, LONGEST, Request, line};
use portcullis_core::net::{IpNet, Protocol};

use crate::lab::Name;
use crate::output::{Output, print};
use crate::trouble::Trouble;
use shown::Shown;

/// Show which connections are refused and allowed at nodes, and why
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(
    after_help = "Filters of different kinds all have to hold; of one kind, one is enough. A pod is \
                  [NAMESPACE/]NAME, or the beginning of its name with * behind it.\n\n\
                  Agents log what is refused, and what is allowed only if they are told to: \
                  docs/observe.md."
)]
pub(crate) struct Observe {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    agents: Agents,
    /// Go on, and show connections as they happen
    #[arg(long)]
    follow: bool,
    /// Show so many of the last connections; without --follow 20, with it none
    #[arg(long, value_name = "NUMBER")]
    last: Option<usize>,
    /// Only what was allowed, or refused
    #[arg(long, value_enum, value_name = "VERDICT")]
    verdict: Vec<WantedVerdict>,
    /// Only from this pod, address or CIDR
    #[arg(long, value_name = "POD|CIDR")]
    from: Vec<String>,
    /// Only to this pod, address or CIDR
    #[arg(long, value_name = "POD|CIDR")]
    to: Vec<String>,
    /// Only to this port, of any protocol or of one
    #[arg(long, value_name = "PORT[/PROTOCOL]")]
    port: Vec<String>,
    /// Only from or to pods of this namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Vec<String>,
    /// Format; JSON has a connection in each line
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Hits(hits::Hits),
}

/// The agents that are asked.
#[derive(Debug, clap::Args)]
pub(crate) struct Agents {
    /// Unix socket of an agent on this machine; may be given several times
    #[arg(
        long,
        default_value = portcullis_cni::SOCKET,
        value_name = "PATH",
        conflicts_with = "lab"
    )]
    socket: Vec<PathBuf>,
    /// Ask the agents of a lab that is up
    #[arg(long)]
    lab: bool,
    #[command(flatten)]
    name: Name,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum WantedVerdict {
    /// What passed
    Allowed,
    /// What did not
    Refused,
}

/// What is shown if nothing is said.
const LAST: usize = 20;
/// What comes within so long is shown in the order of time, whichever agent tells it.
const GATHER: Duration = Duration::from_millis(50);

/// An agent that can be asked.
pub(crate) struct Agent {
    /// What it is called in messages.
    pub(crate) name: String,
    /// Where requests go, and answers come from.
    pub(crate) stream: Box<dyn Stream>,
}

pub(crate) trait Stream: Read + Write + Send {}

impl<T: Read + Write + Send> Stream for T {}

/// What is heard of agents.
enum Heard {
    Answer(Answer),
    /// One agent has said all, or broke off.
    End(Result<(), Trouble>),
}

impl Observe {
    pub(crate) fn run(self) -> Result<ExitCode, Trouble> {
        match &self.command {
            Some(Command::Hits(hits)) => hits.run(),
            None => self.observe(),
        }
    }

    fn observe(&self) -> Result<ExitCode, Trouble> {
        let last = self.last.unwrap_or(if self.follow { 0 } else { LAST });
        let request =
            Request::Observe { filter: self.filter()?, last: Some(last), follow: self.follow };
        let agents = self.agents.open()?;
        let mut shown = Shown::new(self.output, agents.len() > 1);
        let (say, heard) = mpsc::channel();
        for agent in agents {
            let (say, request) = (say.clone(), request.clone());
            thread::spawn(move || {
                let end =
                    converse(agent, &request, |answer| say.send(Heard::Answer(answer)).is_ok());
                // Nobody listens when this process ends.
                let _ = say.send(Heard::End(end));
            });
        }
        drop(say);
        while let Ok(first) = heard.recv() {
            let mut batch = vec![first];
            match self.follow {
                true => {
                    thread::sleep(GATHER);
                    batch.extend(heard.try_iter());
                }
                false => batch.extend(heard.iter()),
            }
            let mut flows = Vec::new();
            for heard in batch {
                match heard {
                    Heard::Answer(Answer::Flow(flow)) => flows.push(*flow),
                    Heard::Answer(Answer::Missed { count }) => {
                        anstream::eprintln!(
                            "{count} connections are not shown: they were too many"
                        );
                    }
                    Heard::Answer(_) => {}
                    Heard::End(end) => end?,
                }
            }
            flows.sort_by(|a, b| a.time.cmp(&b.time));
            if !self.follow {
                flows.drain(..flows.len().saturating_sub(last));
            }
            print(&shown.lines(&flows)?)?;
        }
        if shown.is_empty() && self.output == Output::Table {
            anstream::eprintln!("no such connection was logged");
        }
        Ok(ExitCode::SUCCESS)
    }

    fn filter(&self) -> Result<Filter, Trouble> {
        let who = |option, texts: &[String]| -> Result<Vec<Who>, Trouble> {
            let wanted = "a pod ([NAMESPACE/]NAME), an address or a CIDR";
            let ends =
                texts.iter().map(|text| who(text).ok_or_else(|| wrong(option, text, wanted)));
            ends.collect()
        };
        let port = |text: &String| {
            let wanted =
                "a port from 0 to 65535, and after / a protocol if only one is meant: 53/udp";
            port(text).ok_or_else(|| wrong("--port", text, wanted))
        };
        let verdicts = self.verdict.iter().map(|verdict| match verdict {
            WantedVerdict::Allowed => Verdict::Allowed,
            WantedVerdict::Refused => Verdict::Refused,
        });
        Ok(Filter {
            verdicts: verdicts.collect(),
            from: who("--from", &self.from)?,
            to: who("--to", &self.to)?,
            ports: self.port.iter().map(port).collect::<Result<_, _>>()?,
            namespaces: self.namespace.clone(),
        })
    }
}

fn wrong(option: &'static str, found: &str, wanted: &'static str) -> Trouble {
    Trouble::Option { option, found: found.to_owned(), wanted }
}

fn who(text: &str) -> Option<Who> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(Who::Net(address.into()));
    }
    if let Ok(net) = text.parse::<IpNet>() {
        return Some(Who::Net(net.trunc()));
    }
    let (namespace, name) = match text.split_once('/') {
        Some((namespace, name)) => (Some(namespace), name),
        None => (None, text),
    };
    let is_name = |name: &str| {
        !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-.".contains(c))
    };
    let beginning = name.strip_suffix('*').unwrap_or(name);
    let fits = (beginning.is_empty() && name == "*" || is_name(beginning))
        && namespace.is_none_or(is_name);
    fits.then(|| Who::Pod { namespace: namespace.map(str::to_owned), name: name.to_owned() })
}

fn port(text: &str) -> Option<Port> {
    let (port, protocol) = match text.split_once('/') {
        Some((port, protocol)) => (port, Some(protocol.to_ascii_uppercase())),
        None => (text, None),
    };
    let known = |name: &String| Protocol::from_api(name).is_some();
    let fits = protocol.as_ref().is_none_or(known);
    Some(Port { port: port.parse().ok().filter(|_| fits)?, protocol })
}

impl Agents {
    /// Connections to all of them.
    pub(crate) fn open(&self) -> Result<Vec<Agent>, Trouble> {
        let sockets = match self.lab {
            true => self.of_the_lab()?,
            false => self.socket.clone(),
        };
        let open = |path: &PathBuf| {
            let name = path.display().to_string();
            let stream = UnixStream::connect(path).map_err(|source| {
                let hint = match source.kind() {
                    io::ErrorKind::PermissionDenied => "; only its owner and root may ask it",
                    io::ErrorKind::NotFound if self.socket.iter().eq([portcullis_cni::SOCKET]) => {
                        "; does an agent run on this machine? --socket names another one, --lab \
                         asks those of a lab"
                    }
                    _ => "",
                };
                Trouble::NoAgent { name: name.clone(), source, hint }
            })?;
            Ok(Agent { name, stream: Box::new(stream) })
        };
        sockets.iter().map(open).collect()
    }

    fn of_the_lab(&self) -> Result<Vec<PathBuf>, Trouble> {
        let name = &self.name.lab_name;
        // An error if there is no such lab.
        portcullis_lab::Control::connect(name)?;
        let folder = portcullis_lab::sockets(name);
        let what = || format!("cannot look for the agents of the lab {name:?}");
        let nodes = fs::read_dir(&folder).and_then(|nodes| {
            nodes.map(|node| Ok(node?.path().join("agent.sock"))).collect::<io::Result<Vec<_>>>()
        });
        let mut nodes = nodes.map_err(|source| Trouble::Io { what: what(), source })?;
        nodes.sort();
        Ok(nodes)
    }
}

/// Asks an agent, and hands on what it says until it has said all, or nobody wants more.
pub(crate) fn converse(
    agent: Agent,
    request: &Request,
    mut hear: impl FnMut(Answer) -> bool,
) -> Result<(), Trouble> {
    let Agent { name, mut stream } = agent;
    let broke = |source| Trouble::NoAgent { name: name.clone(), source, hint: "" };
    stream.write_all(&line(request)).map_err(broke)?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut text = String::new();
        (&mut reader).take(LONGEST as u64).read_line(&mut text).map_err(broke)?;
        if text.is_empty() {
            return Err(broke(io::Error::new(io::ErrorKind::UnexpectedEof, "it hung up")));
        }
        match serde_json::from_str(&text).map_err(|error| broke(error.into()))? {
            Answer::Done => return Ok(()),
            Answer::Failed { why } => return Err(broke(io::Error::other(why))),
            answer => {
                if !hear(answer) {
                    return Ok(());
                }
            }
        }
    }
}
