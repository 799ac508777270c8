//! `portcullis observe`: which connections the agents of nodes refuse and allow, and why.

mod hits;
mod shown;

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use portcullis_cni::flow::{Filter, Port, Verdict, Who};
use portcullis_cni::protocol::{Answer, Request};
use portcullis_core::net::{IpNet, Protocol};

use crate::agents::{Agent, AgentArgs, Line, Reach, each};
use crate::input::LiveArgs;
use crate::lab::Name;
use crate::output::{Output, print};
use crate::style::WARNING;
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
    asked: Asked,
    /// Go on, and show connections as they happen
    #[arg(long)]
    follow: bool,
    /// Show so many of the last connections; without --follow 20, with it none
    #[arg(long, value_name = "NUMBER")]
    last: Option<usize>,
    /// Only what was allowed, refused or audited
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
pub(crate) struct Asked {
    #[command(flatten)]
    agents: AgentArgs,
    /// Ask the agents of a lab that is up
    #[arg(long, conflicts_with_all = ["socket", "agent_port"])]
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
    /// What passed because it is only audited
    Audited,
    /// What was open and is no longer allowed
    Cut,
}

/// What is shown if nothing is said.
const LAST: usize = 20;
/// What comes within so long is shown in the order of time, whichever agent tells it.
const GATHER: Duration = Duration::from_millis(50);

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
        let reach = self.asked.reach()?;
        let lines = lines(&reach)?;
        let mut shown = Shown::new(self.output, lines.len() > 1);
        let (say, heard) = mpsc::channel();
        for (agent, mut line) in lines {
            let (say, request, follow) = (say.clone(), request.clone(), self.follow);
            thread::spawn(move || {
                let hear = |answer| say.send(Heard::Answer(answer)).map_err(|e| e.to_string());
                let end = match follow {
                    true => line.without_hurry().and_then(|()| line.ask(&request, hear)),
                    false => line.ask(&request, hear),
                };
                // Nobody listens when this process ends.
                let _ = say.send(Heard::End(end.map_err(|why| unheard(&agent, why))));
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
            WantedVerdict::Audited => Verdict::Audited,
            WantedVerdict::Cut => Verdict::Cut,
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

impl Asked {
    /// How the agents are reached.
    pub(crate) fn reach(&self) -> Result<Reach, Trouble> {
        let LiveArgs { kubeconfig, context, .. } = &self.agents.live;
        let own = Path::new(portcullis_cni::SOCKET);
        let named = kubeconfig.is_some() || context.is_some();
        match self.lab {
            true => Ok(Reach::Sockets(self.of_the_lab()?)),
            // On a node, its own agent.
            false if self.agents.socket.is_empty() && !named && own.exists() => {
                Ok(Reach::Sockets(vec![own.to_owned()]))
            }
            false => self.agents.reach(),
        }
    }

    fn of_the_lab(&self) -> Result<Vec<PathBuf>, Trouble> {
        let name = &self.name.lab_name;
        // An error if there is no such lab.
        portcullis_lab::Control::connect(name)?;
        let nodes = fs::read_dir(portcullis_lab::sockets(name)).and_then(|nodes| {
            nodes.map(|node| Ok(node?.path().join("agent.sock"))).collect::<io::Result<Vec<_>>>()
        });
        let what = format!("cannot look for the agents of the lab {name:?}");
        let mut nodes = nodes.map_err(|source| Trouble::Io { what, source })?;
        nodes.sort();
        Ok(nodes)
    }
}

/// Connects to all agents. Says which cannot be reached; that none can is an error.
pub(crate) fn lines(reach: &Reach) -> Result<Vec<(Agent, Line)>, Trouble> {
    let agents = reach.agents()?;
    let lines = each(agents, |agent| {
        let line = reach.connect(&agent);
        (agent, line)
    });
    let (mut connected, mut missing) = (Vec::new(), Vec::new());
    for (agent, line) in lines {
        match line {
            Ok(line) => connected.push((agent, line)),
            Err(why) => missing.push(unheard(&agent, why)),
        }
    }
    if connected.is_empty() {
        return Err(missing.into_iter().next().unwrap_or(Trouble::NoAgents));
    }
    for trouble in missing {
        anstream::eprintln!("{WARNING}warning{WARNING:#}: {trouble}");
    }
    Ok(connected)
}

pub(crate) fn unheard(agent: &Agent, why: String) -> Trouble {
    let name = match agent {
        Agent::Socket(path) => path.display().to_string(),
        Agent::Pod(pod) => format!("{}/{} on {}", pod.namespace, pod.name, pod.node),
    };
    Trouble::NoAgent { name, why }
}
