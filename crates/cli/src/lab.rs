//! `portcullis lab`: policies tried with real packets, without a cluster and without root.

use std::collections::BTreeSet;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use portcullis_core::explain::{EndExplanation, explain};
use portcullis_core::model::Direction;
use portcullis_core::net::Traffic;
use portcullis_core::program::{End, Origin};
use portcullis_kube::{Input, ObjectRef};
use portcullis_lab::{
    Enforcement, Families, Kind, Lab as Network, Observation, Options, Outcome, Plan, Step, Trial,
};
use serde::Serialize;

use crate::ends::PortName;
use crate::input::InputArgs;
use crate::matrix;
use crate::output::{Output, json, plural, print};
use crate::style::{ALLOWED, BOLD, DIM, ERROR};
use crate::trouble::Trouble;

/// Real packets without a cluster
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Lab {
    /// Up, try every pair and port with real packets, compare with the prediction, down
    Run(Run),
}

impl Lab {
    pub(crate) fn run(self) -> Result<ExitCode, Trouble> {
        match self {
            Lab::Run(run) => run.run(),
        }
    }
}

#[derive(Debug, clap::Args)]
struct LabArgs {
    #[command(flatten)]
    input: InputArgs,
    /// Least number of nodes
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=200))]
    nodes: u32,
    /// Address families of the lab
    #[arg(long, value_enum, default_value_t = FamiliesName::Dual)]
    ip_families: FamiliesName,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum FamiliesName {
    /// IPv4 and IPv6
    Dual,
    /// IPv4 alone
    Ipv4,
    /// IPv6 alone
    Ipv6,
}

impl LabArgs {
    /// Reads the input and plans the lab for it. No namespace is made yet.
    fn plan(&self) -> Result<(Input, Plan), Trouble> {
        let input = self.input.read_sound()?;
        let options = Options {
            nodes: self.nodes,
            families: match self.ip_families {
                FamiliesName::Dual => Families::Both,
                FamiliesName::Ipv4 => Families::V4,
                FamiliesName::Ipv6 => Families::V6,
            },
        };
        let plan = portcullis_lab::plan(&input.cluster, &options)?;
        Ok((input, plan))
    }
}

/// Up, try every pair and port with real packets, compare with the prediction, down
#[derive(Debug, clap::Args)]
#[command(after_help = "Exits 1 if anything comes out other than predicted.")]
pub(crate) struct Run {
    #[command(flatten)]
    lab: LabArgs,
    /// Try this port (80, 53/udp, icmp) instead of all that policies and pods speak of; may be
    /// repeated
    #[arg(short, long = "port", value_name = "PORT")]
    ports: Vec<PortName>,
    /// Show every row of the matrix, and what each rule let pass
    #[arg(short, long)]
    verbose: bool,
    /// Output format
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

impl Run {
    fn run(self) -> Result<ExitCode, Trouble> {
        let started = Instant::now();
        let (input, plan) = self.lab.plan()?;
        let traffics = traffics(&plan, &self.ports)?;
        portcullis_lab::enter()?;
        let mut progress = Progress::new();
        let mut network = Network::up(&plan, |done, all| progress.show(Step::Up, done, all))?;
        let trial = network.trial(&traffics, &mut |step, done, all| progress.show(step, done, all));
        progress.clear();
        let (trial, enforcement) = trial?;
        drop(network);
        let page = Page { input: &input, plan: &plan, enforcement: &enforcement };
        let differences = page.differences(&trial.observations);
        match self.output {
            Output::Table => {
                let mut text =
                    matrix::text(&plan, &trial.observations, self.verbose, terminal_width());
                if self.verbose {
                    text.push_str(&page.hits(&trial));
                }
                text.push_str(&page.summary(&trial, &differences, started.elapsed()));
                print(&text)?;
            }
            Output::Json => json(&page.report(&trial, differences.len(), started.elapsed()))?,
        }
        Ok(if differences.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// What is tried: what was asked for, or everything that the input speaks of.
fn traffics(plan: &Plan, asked: &[PortName]) -> Result<BTreeSet<Traffic>, Trouble> {
    if asked.is_empty() {
        return Ok(portcullis_lab::traffics(&plan.cluster));
    }
    Ok(asked.iter().map(|port| port.traffic()).collect::<Result<_, _>>()?)
}

fn terminal_width() -> usize {
    let columns = std::env::var("COLUMNS").ok().and_then(|c| c.parse().ok());
    let terminal = || terminal_size::terminal_size().map(|(width, _)| usize::from(width.0));
    columns.or_else(terminal).unwrap_or(100)
}

/// One line on a terminal that says how far the lab is.
struct Progress {
    shown: Option<Instant>,
}

impl Progress {
    const PAUSE: Duration = Duration::from_millis(100);

    fn new() -> Progress {
        Progress { shown: None }
    }

    fn show(&mut self, step: Step, done: usize, all: usize) {
        let recent = self.shown.is_some_and(|shown| shown.elapsed() < Self::PAUSE);
        if recent && done < all || !std::io::stderr().is_terminal() {
            return;
        }
        self.shown = Some(Instant::now());
        let doing = match step {
            Step::Up => "making namespaces",
            Step::Before => "trying connections without policies",
            Step::Enforce => "programming the kernels of nodes",
            Step::Under => "trying connections under the policies",
        };
        anstream::eprint!("\r\x1b[K{DIM}{doing}: {done} of {all}{DIM:#}");
        // Progress that cannot be shown is no reason to stop.
        let _ = std::io::stderr().flush();
    }

    fn clear(&mut self) {
        if self.shown.take().is_some() {
            anstream::eprint!("\r\x1b[K");
        }
    }
}

/// Most differences that are told one by one.
const MOST_DIFFERENCES: usize = 20;

struct Page<'a> {
    input: &'a Input,
    plan: &'a Plan,
    enforcement: &'a Enforcement,
}

impl Page<'_> {
    fn differences<'o>(&self, observations: &'o [Observation]) -> Vec<&'o Observation> {
        observations.iter().filter(|o| !o.as_predicted(self.plan)).collect()
    }

    fn summary(&self, trial: &Trial, differences: &[&Observation], elapsed: Duration) -> String {
        let mut text = String::new();
        for difference in differences.iter().take(MOST_DIFFERENCES) {
            text.push_str(&self.difference(difference));
        }
        if differences.len() > MOST_DIFFERENCES {
            let more = differences.len() - MOST_DIFFERENCES;
            text.push_str(&format!("and {}\n", plural(more, "more difference")));
        }
        let count = plural(trial.observations.len(), "connection");
        let packets = plural(trial.packets as usize, "packet");
        let tried = format!(
            "{count}, each tried without policies and with them: {packets}, {:.1} s",
            elapsed.as_secs_f64()
        );
        let verdict = match differences.len() {
            0 => format!("{ALLOWED}kernel and engine agree on all{ALLOWED:#}"),
            n => format!("{ERROR}{}{ERROR:#}", plural(n, "difference")),
        };
        text + &format!("{BOLD}{verdict}{BOLD:#} ({tried})\n")
    }

    /// A connection that came out other than predicted, with the rules that it hangs on.
    fn difference(&self, o: &Observation) -> String {
        let name = |endpoint: usize| &self.plan.endpoints[endpoint].name;
        let (from, to) = (name(o.probe.source), name(o.destination));
        let predicted = if o.predicted { "pass" } else { "be refused" };
        let family = o.family();
        let mut text = format!(
            "{ERROR}difference{ERROR:#}: {from} -> {to} on {} ({family}) should {predicted}, and ",
            o.probe.traffic
        );
        let shown = |outcome: &Outcome| match outcome {
            Outcome::Answered(who) if who == to => "was answered".to_owned(),
            Outcome::Answered(who) => format!("was answered by {who}"),
            Outcome::Refused => "arrived where nothing listens".to_owned(),
            Outcome::Silent => "got no answer".to_owned(),
            Outcome::Error(errno) => {
                format!("failed: {}", std::io::Error::from_raw_os_error(*errno))
            }
        };
        match o.before.as_ref().filter(|_| o.passed(self.plan).is_none()) {
            Some(before) => {
                text.push_str(&format!("without any policy it {}\n", shown(before)));
                return text;
            }
            None => text.push_str(&format!("it {}\n", shown(&o.under))),
        }
        let (from, to) = (End::Address(o.probe.from), End::Address(o.probe.to));
        let cluster = &self.plan.cluster;
        let why = explain(cluster, &self.enforcement.program, from, to, o.probe.traffic);
        for path in &why.paths {
            for direction in Direction::ALL {
                let end = match direction {
                    Direction::Egress => &path.egress,
                    Direction::Ingress => &path.ingress,
                };
                match end {
                    EndExplanation::NoSubject | EndExplanation::Open => {}
                    EndExplanation::Allowed { by, .. } => {
                        let rules: Vec<_> = by.iter().map(|origin| self.rule(origin)).collect();
                        text.push_str(&format!("  {direction} allowed by {}\n", rules.join(", ")));
                    }
                    EndExplanation::Refused { isolated_by, .. } => {
                        let policy = |i: &u32| {
                            let policy = &cluster.policies[*i as usize];
                            format!("{}/{}", policy.namespace, policy.name)
                        };
                        let names: Vec<_> = isolated_by.iter().map(policy).collect();
                        let names = names.join(", ");
                        text.push_str(&format!("  {direction} isolated by {names}, not allowed\n"));
                    }
                }
            }
        }
        text
    }

    fn rule(&self, origin: &Origin) -> String {
        let policy = &self.plan.cluster.policies[origin.policy as usize];
        let path = origin.rule_path();
        let object = ObjectRef::Policy(origin.policy as usize);
        let place = self.input.locate(object, &path).map_or(String::new(), |l| format!(" ({l})"));
        format!("{path} of {}/{}{place}", policy.namespace, policy.name)
    }

    fn hits(&self, trial: &Trial) -> String {
        let mut text = format!("\n{BOLD}PACKETS  ALLOWED BY{BOLD:#}\n");
        for (origin, packets) in &trial.hits {
            let path = origin.peer_path();
            let policy = &self.plan.cluster.policies[origin.policy as usize];
            let (namespace, name) = (&policy.namespace, &policy.name);
            text.push_str(&format!("{packets:>7}  {namespace}/{name} {path}\n"));
        }
        text.push('\n');
        text
    }

    fn report(&self, trial: &Trial, differences: usize, elapsed: Duration) -> Report<'_> {
        let endpoint = |i: usize| self.plan.endpoints[i].name.as_str();
        let allow = |passes| if passes { "allow" } else { "deny" };
        let connection = |o: &Observation| {
            let (port, protocol) = match o.probe.traffic {
                Traffic::Port(protocol, port) => (Some(port), protocol.to_string()),
                Traffic::Other => (None, o.probe.traffic.to_string()),
            };
            Connection {
                from: endpoint(o.probe.source),
                to: endpoint(o.destination),
                source: o.probe.from.to_string(),
                destination: o.probe.to.to_string(),
                port,
                protocol,
                predicted: allow(o.predicted),
                observed: o.passed(self.plan).map_or("unknown", allow),
            }
        };
        let kind = |kind| match kind {
            Kind::Pod => "pod",
            Kind::Node => "node",
            Kind::External => "external",
        };
        let nodes = &self.plan.cluster.nodes;
        let endpoints = self.plan.endpoints.iter().map(|e| EndpointReport {
            name: &e.name,
            kind: kind(e.kind),
            addresses: e.addresses.iter().map(|a| a.to_string()).collect(),
            node: e.node.map(|i| nodes[i].name.as_str()),
        });
        let rules = trial.hits.iter().map(|(origin, packets)| {
            let policy = &self.plan.cluster.policies[origin.policy as usize];
            RuleReport {
                policy: format!("{}/{}", policy.namespace, policy.name),
                peer: origin.peer_path(),
                port: origin.port.map(|_| origin.port_path()),
                packets: *packets,
            }
        });
        Report {
            endpoints: endpoints.collect(),
            connections: trial.observations.iter().map(connection).collect(),
            allowed_by: rules.collect(),
            differences,
            packets: trial.packets,
            seconds: elapsed.as_secs_f64(),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Report<'a> {
    endpoints: Vec<EndpointReport<'a>>,
    connections: Vec<Connection<'a>>,
    allowed_by: Vec<RuleReport>,
    differences: usize,
    packets: u64,
    seconds: f64,
}

#[derive(Serialize)]
struct EndpointReport<'a> {
    name: &'a str,
    kind: &'static str,
    addresses: Vec<String>,
    node: Option<&'a str>,
}

#[derive(Serialize)]
struct Connection<'a> {
    from: &'a str,
    to: &'a str,
    source: String,
    destination: String,
    port: Option<u16>,
    protocol: String,
    predicted: &'static str,
    observed: &'static str,
}

#[derive(Serialize)]
struct RuleReport {
    policy: String,
    peer: String,
    port: Option<String>,
    packets: u64,
}
