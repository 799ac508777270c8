//! `portcullis lab`: policies tried with real packets, without a cluster and without root.

mod up;

use std::collections::BTreeSet;
use std::io::{IsTerminal, Write};
use std::net::IpAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use portcullis_core::Program;
use portcullis_core::explain::{EndExplanation, explain};
use portcullis_core::model::Direction;
use portcullis_core::net::Traffic;
use portcullis_core::program::{End, Origin};
use portcullis_kube::{Input, ObjectRef};
use portcullis_lab::{
    Control, Endpoint, Families, Kind, Lab as Network, Observation, Options, Outcome, Plan, Step,
    Topology, Trial,
};
use serde::{Deserialize, Serialize};

use crate::ends::{Names, NotAnEnd, PortName};
use crate::input::InputArgs;
use crate::matrix;
use crate::output::{Output, json, plural, print, terminal_width};
use crate::style::{ALLOWED, BOLD, DIM, ERROR, REFUSED, WARNING};
use crate::trouble::Trouble;
use up::Up;

/// Real packets without a cluster
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Lab {
    /// Up, try every pair and port with real packets, compare with the prediction, down
    Run(Run),
    /// Bring a cluster up that kubectl can talk to, and keep it until Ctrl-C or `lab down`
    Up(Up),
    /// Try a connection in a lab that is up, or all of them
    Probe(Probe),
    /// End a lab that is up
    Down(Down),
}

impl Lab {
    pub(crate) fn run(self) -> Result<ExitCode, Trouble> {
        match self {
            Lab::Run(run) => run.run(),
            Lab::Up(up) => up.run(),
            Lab::Probe(probe) => probe.run(),
            Lab::Down(down) => down.run(),
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
    /// Have a host outside the cluster at this address, besides those that ipBlocks ask for; may be
    /// repeated
    #[arg(long = "host", value_name = "IP")]
    hosts: Vec<IpAddr>,
    /// How the pods of a node are joined
    #[arg(long, value_enum, default_value_t = TopologyName::Routed)]
    topology: TopologyName,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum TopologyName {
    /// A route to each pod, as Calico does it
    Routed,
    /// Ports of a bridge, as Flannel does it
    Bridged,
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
        let plan = portcullis_lab::plan(&input.cluster, &self.options())?;
        Ok((input, plan))
    }

    fn options(&self) -> Options {
        Options {
            nodes: self.nodes,
            families: match self.ip_families {
                FamiliesName::Dual => Families::Both,
                FamiliesName::Ipv4 => Families::V4,
                FamiliesName::Ipv6 => Families::V6,
            },
            hosts: self.hosts.clone(),
            topology: match self.topology {
                TopologyName::Routed => Topology::Routed,
                TopologyName::Bridged => Topology::Bridged,
            },
            ..Options::default()
        }
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
    /// Show every row of the matrix, and how many packets each rule let pass at its end
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
        let connections = portcullis_lab::connections(&plan, &traffics);
        if connections.is_empty() {
            return Err(Trouble::NothingToTry);
        }
        portcullis_lab::enter()?;
        let mut progress = Progress::new();
        let mut network = Network::up(&plan, |done, all| progress.show(Step::Up, done, all))?;
        let trial =
            network.trial(connections, &mut |step, done, all| progress.show(step, done, all));
        progress.clear();
        let (trial, enforcement) = trial?;
        drop(network);
        let page = Page { input: &input, plan: &plan, program: &enforcement.program };
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

/// Which of several labs.
#[derive(Debug, clap::Args)]
pub(crate) struct Name {
    /// Name of the lab; labs of one user with different names live side by side
    #[arg(long = "name", env = "PORTCULLIS_LAB", default_value = "default", value_name = "NAME")]
    pub(crate) lab_name: String,
}

/// Try a connection in a lab that is up, or all of them
#[derive(Debug, clap::Args)]
#[command(after_help = "Exits 1 if anything comes out other than predicted.\n\n\
                        Example:\n  portcullis lab probe shop/web shop/db 3306")]
pub(crate) struct Probe {
    /// Who opens the connection; without it, everything is tried
    #[arg(value_name = "SRC", requires_all = ["destination", "port"])]
    source: Option<String>,
    /// Who accepts it
    #[arg(value_name = "DST")]
    destination: Option<String>,
    /// Port number or name, with /tcp, /udp or /sctp; or icmp
    port: Option<PortName>,
    /// Namespace of names that give none
    #[arg(short, long, default_value = "default", value_name = "NAME")]
    namespace: String,
    #[command(flatten)]
    name: Name,
    /// Show every row of the matrix
    #[arg(short, long)]
    verbose: bool,
    /// Output format
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

/// End a lab that is up
#[derive(Debug, clap::Args)]
pub(crate) struct Down {
    #[command(flatten)]
    name: Name,
}

/// What one process asks of the lab that another one keeps up: a line of JSON. The answer is the
/// exit code on a line, and then what to print.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Request {
    Probe { ends: Option<Ends>, namespace: String, verbose: bool, json: bool, width: usize },
    Down,
}

#[derive(Debug, Serialize, Deserialize)]
struct Ends {
    source: String,
    destination: String,
    port: String,
}

impl Probe {
    fn run(self) -> Result<ExitCode, Trouble> {
        let ends = match (self.source, self.destination, self.port) {
            (Some(source), Some(destination), Some(port)) => {
                Some(Ends { source, destination, port: port.to_string() })
            }
            _ => None,
        };
        let request = Request::Probe {
            ends,
            namespace: self.namespace,
            verbose: self.verbose,
            json: self.output == Output::Json,
            width: terminal_width(),
        };
        let (code, text) = ask(&self.name.lab_name, &request)?;
        match code {
            2 => anstream::eprint!("{text}"),
            _ => print(&text)?,
        }
        Ok(ExitCode::from(code))
    }
}

impl Down {
    fn run(self) -> Result<ExitCode, Trouble> {
        let (code, _) = ask(&self.name.lab_name, &Request::Down)?;
        Ok(ExitCode::from(code))
    }
}

/// Asks a running lab, and waits until it has said everything and closed.
fn ask(name: &str, request: &Request) -> Result<(u8, String), Trouble> {
    let io = |source| Trouble::Io { what: format!("cannot talk to the lab {name:?}"), source };
    let mut connection = Control::connect(name)?;
    let request = serde_json::to_string(request).map_err(|e| io(e.into()))?;
    connection.send(&request).map_err(io)?;
    let closed = || io(std::io::ErrorKind::UnexpectedEof.into());
    let code = connection.receive().map_err(io)?.ok_or_else(closed)?;
    let code = code.parse().map_err(|_| closed())?;
    let mut text = String::new();
    while let Some(line) = connection.receive().map_err(io)? {
        text.push_str(&line);
        text.push('\n');
    }
    Ok((code, text))
}

struct Asked {
    ends: Option<Ends>,
    namespace: String,
    verbose: bool,
    json: bool,
    width: usize,
}

/// What is tried: what was asked for, or everything that the input speaks of.
fn traffics(plan: &Plan, asked: &[PortName]) -> Result<BTreeSet<Traffic>, Trouble> {
    if asked.is_empty() {
        return Ok(portcullis_lab::traffics(&plan.cluster));
    }
    Ok(asked.iter().map(|port| port.traffic()).collect::<Result<_, _>>()?)
}

/// One line on a terminal that says how far the lab is.
pub(crate) struct Progress {
    shown: Option<Instant>,
}

impl Progress {
    const PAUSE: Duration = Duration::from_millis(100);

    pub(crate) fn new() -> Progress {
        Progress { shown: None }
    }

    pub(crate) fn show(&mut self, step: Step, done: usize, all: usize) {
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

    pub(crate) fn clear(&mut self) {
        if self.shown.take().is_some() {
            anstream::eprint!("\r\x1b[K");
        }
    }
}

/// Most addresses without a host that are told one by one.
const MOST_LEFT_OUT: usize = 3;
/// Most differences that are told one by one.
const MOST_DIFFERENCES: usize = 20;

struct Page<'a> {
    input: &'a Input,
    plan: &'a Plan,
    program: &'a Program,
}

impl Page<'_> {
    /// Answers `lab probe`: the exit code and the text.
    fn probe(&self, network: &mut Network, asked: Asked) -> Result<(u8, String), Trouble> {
        let started = Instant::now();
        let connections = match &asked.ends {
            None => {
                let traffics = portcullis_lab::traffics(&self.plan.cluster);
                portcullis_lab::connections(self.plan, &traffics)
            }
            Some(ends) => self.connections(ends, &asked.namespace)?,
        };
        let observations = network.observe(self.program, connections, &mut |_, _, _| {})?;
        let differences = self.differences(&observations);
        let code = if differences.is_empty() { 0 } else { 1 };
        if asked.json {
            let connections: Vec<_> = observations.iter().map(|o| self.connection(o)).collect();
            let text = serde_json::to_string_pretty(&connections);
            return Ok((code, text.map_err(|e| Trouble::output(e.into()))?));
        }
        let mut text = match asked.ends {
            None => matrix::text(self.plan, &observations, asked.verbose, asked.width),
            Some(_) => observations.iter().map(|o| self.line(o)).collect(),
        };
        if asked.ends.is_none() {
            text.push_str(&self.left_out());
        }
        for difference in differences.iter().take(MOST_DIFFERENCES) {
            text.push_str(&self.difference(difference));
        }
        let count = plural(observations.len(), "connection");
        let verdict = match differences.len() {
            0 => format!("{ALLOWED}as predicted{ALLOWED:#}"),
            n => format!("{ERROR}{}{ERROR:#}", plural(n, "difference")),
        };
        let elapsed = started.elapsed().as_secs_f64();
        text.push_str(&format!("{BOLD}{verdict}{BOLD:#} ({count}, {elapsed:.1} s)"));
        Ok((code, text))
    }

    /// The connections between two named ends, on every family that both have.
    fn connections(
        &self,
        ends: &Ends,
        namespace: &str,
    ) -> Result<Vec<(portcullis_lab::Probe, usize)>, Trouble> {
        let names = Names::of(&self.plan.cluster);
        let port = ends.port.parse().map_err(NotAnEnd::new)?;
        let (from, to) =
            (names.find(&ends.source, namespace)?, names.find(&ends.destination, namespace)?);
        let mut connections = Vec::new();
        for flow in names.flows(&from, &to, &port)? {
            for path in self.program.paths(flow.source, flow.destination) {
                let (Some(from), Some(to)) = (path.source.address, path.destination.address) else {
                    continue;
                };
                let at = |address: IpAddr| {
                    self.plan.endpoint_at(address).ok_or_else(|| {
                        let why = "the lab has nobody at this address; `lab up` lists who is there, \
                                   and its --host adds somebody";
                        NotAnEnd::new(format!("{address}: {why}"))
                    })
                };
                let (source, destination) = (at(from)?, at(to)?);
                let traffic = flow.traffic;
                let probe = portcullis_lab::Probe { source, from, to, traffic, expect: None };
                connections.push((probe, destination));
            }
        }
        Ok(connections)
    }

    fn line(&self, o: &Observation) -> String {
        let name = |endpoint: usize| &self.plan.endpoints[endpoint].name;
        let (from, to) = (name(o.probe.source), name(o.destination));
        let (traffic, family) = (o.probe.traffic, o.family());
        let word = |passes| match passes {
            Some(true) => format!("{ALLOWED}passes{ALLOWED:#}"),
            Some(false) => format!("{REFUSED}refused{REFUSED:#}"),
            None => format!("{ERROR}unknown{ERROR:#}"),
        };
        let (predicted, observed) = (word(Some(o.predicted)), word(o.passed(self.plan)));
        format!(
            "{from} -> {to} on {traffic} ({family}): predicted {predicted}, observed {observed}\n"
        )
    }

    fn differences<'o>(&self, observations: &'o [Observation]) -> Vec<&'o Observation> {
        observations.iter().filter(|o| !o.as_predicted(self.plan)).collect()
    }

    fn summary(&self, trial: &Trial, differences: &[&Observation], elapsed: Duration) -> String {
        let mut text = self.left_out();
        for difference in differences.iter().take(MOST_DIFFERENCES) {
            text.push_str(&self.difference(difference));
        }
        if differences.len() > MOST_DIFFERENCES {
            let more = differences.len() - MOST_DIFFERENCES;
            text.push_str(&format!("and {}\n", plural(more, "more difference")));
        }
        let count = plural(trial.observations.len(), "connection");
        let packets = plural(trial.packets as usize, "packet");
        let tried = format!("{count}, {packets}, {:.1} s", elapsed.as_secs_f64());
        let verdict = match differences.len() {
            0 => format!("{ALLOWED}kernel and engine agree on all{ALLOWED:#}"),
            n => format!("{ERROR}{}{ERROR:#}", plural(n, "difference")),
        };
        text + &format!("{BOLD}{verdict}{BOLD:#} ({tried})\n")
    }

    /// What should have been tried, and is not.
    fn left_out(&self) -> String {
        let addresses = &self.plan.left_out;
        if addresses.is_empty() {
            return String::new();
        }
        let some: Vec<_> = addresses.iter().take(MOST_LEFT_OUT).map(IpAddr::to_string).collect();
        let (count, some) = (addresses.len(), some.join(", "));
        let more = match count.saturating_sub(MOST_LEFT_OUT) {
            0 => String::new(),
            n => format!(" and {n} more"),
        };
        let what = if count == 1 { "address of ipBlocks is" } else { "addresses of ipBlocks are" };
        format!(
            "{WARNING}note{WARNING:#}: {count} {what} left out: {some}{more}; --host tries one\n"
        )
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
            Outcome::Error(errno) => format!("failed: {}", reason(*errno)),
        };
        if !o.is_up(self.plan) {
            text.push_str(&format!("where no policy can refuse it, it {}\n", shown(&o.before)));
            return text;
        }
        text.push_str(&format!("it {}\n", shown(&o.under)));
        let (from, to) = (End::Address(o.probe.from), End::Address(o.probe.to));
        let cluster = &self.plan.cluster;
        let why = explain(cluster, self.program, from, to, o.probe.traffic);
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
                    EndExplanation::Refused { isolated_by, .. }
                    | EndExplanation::Undetermined { isolated_by, .. } => {
                        let audited = match end {
                            EndExplanation::Refused { audited: true, .. } => ", in audit",
                            _ => "",
                        };
                        let policy = |i: &u32| {
                            let policy = &cluster.policies[*i as usize];
                            format!("{}/{}", policy.namespace, policy.name)
                        };
                        let names: Vec<_> = isolated_by.iter().map(policy).collect();
                        let names = names.join(", ");
                        text.push_str(&format!(
                            "  {direction} isolated by {names}, not allowed{audited}\n"
                        ));
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
        let mut text = format!("\n{BOLD}PACKETS  PASSED AT ITS END BY{BOLD:#}\n");
        for (origin, packets) in &trial.hits {
            let policy = &self.plan.cluster.policies[origin.policy as usize];
            let (namespace, name) = (&policy.namespace, &policy.name);
            let port = origin.port.map_or(String::new(), |i| format!(" ports[{i}]"));
            let peer = origin.peer_path();
            text.push_str(&format!("{packets:>7}  {namespace}/{name} {peer}{port}\n"));
        }
        let note = "what egress passed, ingress at the other end may still have refused";
        text + &format!("{DIM}{note}{DIM:#}\n\n")
    }

    fn endpoints(&self) -> Vec<EndpointReport<'_>> {
        let nodes = &self.plan.cluster.nodes;
        let report = |e: &'_ Endpoint| EndpointReport {
            kind: match e.kind {
                Kind::Pod => "pod",
                Kind::Node => "node",
                Kind::External => "external",
            },
            name: e.name.clone(),
            addresses: e.addresses.iter().map(|a| a.to_string()).collect(),
            node: e.node.map(|i| nodes[i].name.as_str()),
        };
        self.plan.endpoints.iter().map(report).collect()
    }

    fn connection<'a>(&'a self, o: &'a Observation) -> ConnectionReport<'a> {
        let name = |endpoint: usize| self.plan.endpoints[endpoint].name.as_str();
        let allow = |passes| if passes { "allow" } else { "deny" };
        let (port, protocol) = match o.probe.traffic {
            Traffic::Port(protocol, port) => (Some(port), protocol.to_string()),
            Traffic::Other => (None, o.probe.traffic.to_string()),
        };
        ConnectionReport {
            from: name(o.probe.source),
            to: name(o.destination),
            source: o.probe.from.to_string(),
            destination: o.probe.to.to_string(),
            port,
            protocol,
            predicted: allow(o.predicted),
            observed: o.passed(self.plan).map_or("unknown", allow),
            outcome: OutcomeReport::of(&o.under),
            without_policies: (!o.is_up(self.plan)).then(|| OutcomeReport::of(&o.before)),
        }
    }

    fn report<'a>(&'a self, trial: &'a Trial, differences: usize, elapsed: Duration) -> Report<'a> {
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
            endpoints: self.endpoints(),
            connections: trial.observations.iter().map(|o| self.connection(o)).collect(),
            left_out: self.plan.left_out.iter().map(IpAddr::to_string).collect(),
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
    connections: Vec<ConnectionReport<'a>>,
    /// Addresses of ipBlocks that should have been tried, and are too many.
    left_out: Vec<String>,
    allowed_by: Vec<RuleReport>,
    differences: usize,
    packets: u64,
    seconds: f64,
}

#[derive(Serialize)]
struct EndpointReport<'a> {
    name: String,
    kind: &'static str,
    addresses: Vec<String>,
    node: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ConnectionReport<'a> {
    from: &'a str,
    to: &'a str,
    source: String,
    destination: String,
    port: Option<u16>,
    protocol: String,
    predicted: &'static str,
    /// `unknown` where it was neither answered by the right host nor met with silence.
    observed: &'static str,
    #[serde(flatten)]
    outcome: OutcomeReport<'a>,
    /// Where the right host did not answer without policies either.
    #[serde(skip_serializing_if = "Option::is_none")]
    without_policies: Option<OutcomeReport<'a>>,
}

/// What came back.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OutcomeReport<'a> {
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    answered_by: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

impl OutcomeReport<'_> {
    fn of(outcome: &Outcome) -> OutcomeReport<'_> {
        let (outcome, answered_by, error) = match outcome {
            Outcome::Answered(who) => ("answered", Some(who.as_str()), None),
            Outcome::Refused => ("refused", None, None),
            Outcome::Silent => ("silent", None, None),
            Outcome::Error(errno) => ("error", None, Some(reason(*errno))),
        };
        OutcomeReport { outcome, answered_by, error }
    }
}

fn reason(errno: i32) -> String {
    std::io::Error::from_raw_os_error(errno).to_string()
}

/// What a rule let pass at its end, whatever the other end did with it.
#[derive(Serialize)]
struct RuleReport {
    policy: String,
    peer: String,
    port: Option<String>,
    packets: u64,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use portcullis_core::net::Protocol;
    use portcullis_kube::Source;
    use serde_json::json;

    use super::*;

    const POLICY: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {containers: [{name: web, image: web}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db}}
spec: {containers: [{name: db, image: db}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
    - from:
        - podSelector: {matchLabels: {app: web}}
      ports:
        - port: 5432
";

    /// A trial of one connection, web to db on IPv4, that came out as given.
    fn trial<T>(
        port: u16,
        before: Outcome,
        under: Outcome,
        show: impl FnOnce(&Page, &Trial) -> T,
    ) -> T {
        let source = Source::Text { name: "shop.yaml".to_owned(), text: POLICY.to_owned() };
        let input = portcullis_kube::load(&[source], &portcullis_kube::Options::default());
        let options = Options { families: Families::V4, ..Options::default() };
        let plan = portcullis_lab::plan(&input.cluster, &options).unwrap();
        let program = Program::compile(&plan.cluster);
        let traffic = Traffic::Port(Protocol::Tcp, port);
        let connections = portcullis_lab::connections(&plan, &[traffic].into());
        let web_to_db = |(p, to): &&(portcullis_lab::Probe, usize)| {
            plan.endpoints[p.source].name == "shop/web" && plan.endpoints[*to].name == "shop/db"
        };
        let (probe, destination) = *connections.iter().find(web_to_db).unwrap();
        let predicted = program.passes(probe.from, probe.to, traffic);
        let observation = Observation { probe, destination, predicted, before, under };
        let trial = Trial {
            observations: vec![observation],
            hits: BTreeMap::new(),
            packets: 5,
            elapsed: Duration::ZERO,
        };
        show(&Page { input: &input, plan: &plan, program: &program }, &trial)
    }

    fn summary(port: u16, before: Outcome, under: Outcome) -> String {
        trial(port, before, under, |page, trial| {
            let differences = page.differences(&trial.observations);
            let text = page.summary(trial, &differences, Duration::from_secs(1));
            anstream::adapter::strip_str(&text).to_string()
        })
    }

    /// What JSON says of the connection beyond its ends.
    fn json_of(port: u16, before: Outcome, under: Outcome) -> serde_json::Value {
        trial(port, before, under, |page, trial| {
            let mut value = serde_json::to_value(page.connection(&trial.observations[0])).unwrap();
            let fields = value.as_object_mut().unwrap();
            for field in ["from", "to", "source", "destination", "port", "protocol"] {
                assert!(fields.remove(field).is_some(), "{field}");
            }
            value
        })
    }

    fn answered(name: &str) -> Outcome {
        Outcome::Answered(name.to_owned())
    }

    #[test]
    fn an_outcome_as_predicted_is_no_difference() {
        let agree = "kernel and engine agree on all (1 connection, 5 packets, 1.0 s)\n";
        assert_eq!(summary(5432, answered("shop/db"), answered("shop/db")), agree);
        assert_eq!(summary(5433, answered("shop/db"), Outcome::Silent), agree);
    }

    #[test]
    fn a_difference_names_the_rule_that_it_hangs_on() {
        let closed = summary(5432, answered("shop/db"), Outcome::Silent);
        assert_eq!(
            closed,
            "difference: shop/web -> shop/db on 5432/TCP (IPv4) should pass, and it got no answer\n  \
             ingress allowed by spec.ingress[0] of shop/db (shop.yaml:17:7)\n\
             1 difference (1 connection, 5 packets, 1.0 s)\n"
        );
        let open = summary(5433, answered("shop/db"), answered("shop/db"));
        assert_eq!(
            open,
            "difference: shop/web -> shop/db on 5433/TCP (IPv4) should be refused, and it was \
             answered\n  ingress isolated by shop/db, not allowed\n\
             1 difference (1 connection, 5 packets, 1.0 s)\n"
        );
    }

    #[test]
    fn what_a_rule_let_pass_is_told_as_seen_from_its_end() {
        let table = trial(5432, answered("shop/db"), answered("shop/db"), |page, trial| {
            let direction = Direction::Ingress;
            let origin = Origin { policy: 0, direction, rule: 0, peer: Some(0), port: Some(0) };
            let hits = [(origin, 4)].into();
            let trial = Trial { hits, observations: Vec::new(), ..*trial };
            anstream::adapter::strip_str(&page.hits(&trial)).to_string()
        });
        assert_eq!(
            table,
            "\nPACKETS  PASSED AT ITS END BY\n      4  shop/db spec.ingress[0].from[0] ports[0]\n\
             what egress passed, ingress at the other end may still have refused\n\n"
        );
    }

    #[test]
    fn a_responder_that_is_down_is_told_from_a_policy() {
        let down = "difference: shop/web -> shop/db on 5433/TCP (IPv4) should be refused, and \
                    where no policy can refuse it, it arrived where nothing listens\n";
        assert!(summary(5433, Outcome::Refused, Outcome::Silent).starts_with(down));
        // Something answered, but not the pod that was meant.
        let wrong = summary(5432, answered("shop/db"), answered("shop/web"));
        assert!(wrong.contains("it was answered by shop/web\n"), "{wrong}");
    }

    #[test]
    fn a_difference_can_be_understood_from_json_alone() {
        let up = || answered("shop/db");
        let check = |before, under, expected| assert_eq!(json_of(5433, before, under), expected);
        let deny = "deny";
        check(
            up(),
            Outcome::Silent,
            json!({"predicted": deny, "observed": deny, "outcome": "silent"}),
        );
        check(
            up(),
            up(),
            json!({"predicted": deny, "observed": "allow", "outcome": "answered",
                   "answeredBy": "shop/db"}),
        );
        check(
            up(),
            answered("shop/web"),
            json!({"predicted": deny, "observed": "unknown", "outcome": "answered",
                   "answeredBy": "shop/web"}),
        );
        check(
            up(),
            Outcome::Refused,
            json!({"predicted": deny, "observed": "unknown", "outcome": "refused"}),
        );
        check(
            up(),
            Outcome::Error(113),
            json!({"predicted": deny, "observed": "unknown", "outcome": "error",
                   "error": "No route to host (os error 113)"}),
        );
        check(
            Outcome::Refused,
            Outcome::Silent,
            json!({"predicted": deny, "observed": "unknown", "outcome": "silent",
                   "withoutPolicies": {"outcome": "refused"}}),
        );
    }
}
