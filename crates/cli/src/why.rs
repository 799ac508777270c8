//! `portcullis why`: allowed or refused, and by what.

use std::process::ExitCode;

use portcullis_core::Program;
use portcullis_core::change::Change;
use portcullis_core::explain::{
    EndExplanation, Explanation, Miss, NearMiss, PathExplanation, explain,
};
use portcullis_core::labels::Selector;
use portcullis_core::model::{Cluster, Direction, Peer, PortMatch, PortRule};
use portcullis_core::net::Traffic;
use portcullis_core::program::{End, Endpoint, Exemption, Judgement, Origin, Verdict};
use portcullis_kube::{Input, ObjectRef};
use serde::Serialize;

use crate::ends::{Flow, Names, PortName, Target, shown_pod};
use crate::input::InputArgs;
use crate::manifest;
use crate::output::{Output, json, plural, print};
use crate::style::{ALLOWED, BOLD, DIM, DOUBT, REFUSED};
use crate::trouble::Trouble;

/// Is a connection allowed or refused, and by which policy, rule, peer and port?
#[derive(Debug, clap::Args)]
#[command(
    after_help = "SRC and DST are namespace/pod, namespace/kind/name of a workload, or an IP \
                        address; DST may be a Service.\n\n\
                        Examples:\n  \
                        portcullis why shop/web shop/db 3306 -f examples/three-tier\n  \
                        portcullis why shop/db 192.168.5.10 80 -f examples/three-tier\n  \
                        portcullis why shop/deployment/web shop/db icmp -f examples/three-tier"
)]
pub(crate) struct Why {
    /// Who opens the connection
    #[arg(value_name = "SRC")]
    source: String,
    /// Who accepts it
    #[arg(value_name = "DST")]
    destination: String,
    /// Port number or name, with /tcp, /udp or /sctp (tcp where left out); or icmp
    port: PortName,
    #[command(flatten)]
    input: InputArgs,
    /// Show everything: all policies that isolate, all rules that allow, each pod
    #[arg(short, long)]
    verbose: bool,
    /// Output format
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

impl Why {
    pub(crate) fn run(self) -> Result<ExitCode, Trouble> {
        let input = self.input.read_sound()?;
        let program = Program::compile(&input.cluster);
        let names = Names::of(&input.cluster);
        let from = names.find(&self.source, &input.namespace)?;
        let to = names.find(&self.destination, &input.namespace)?;
        let flows = names.flows(&from, &to, &self.port)?;
        let answers: Vec<Answer> = flows
            .into_iter()
            .map(|flow| Answer {
                flow,
                why: explain(&input.cluster, &program, flow.source, flow.destination, flow.traffic),
            })
            .collect();
        let mut page = Page { input: &input, names: &names, verbose: self.verbose, changes: true };
        match self.output {
            Output::Table => {
                let mut text = page.text(&answers, &to);
                if !self.verbose && text.lines().count() > LINES {
                    page.changes = false;
                    let short = page.text(&answers, &to);
                    if short != text {
                        text = format!("{short}{DIM}-v shows what would allow it{DIM:#}\n");
                    }
                }
                print(&text)?;
            }
            Output::Json => {
                json(&answers.iter().map(|answer| page.report(answer)).collect::<Vec<_>>())?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The short answer about one connection of a cluster, which may have more addresses than that of
/// the input, and what would allow it if that is asked for.
pub(crate) fn text(
    input: &Input,
    cluster: &Cluster,
    program: &Program,
    names: &Names<'_>,
    flow: Flow,
    changes: bool,
) -> String {
    let why = explain(cluster, program, flow.source, flow.destination, flow.traffic);
    let mut text = String::new();
    Page { input, names, verbose: false, changes }.answer(&Answer { flow, why }, &mut text);
    text
}

/// The same without colour.
pub(crate) fn plain(input: &Input, program: &Program, names: &Names<'_>, flow: Flow) -> String {
    let text = text(input, &input.cluster, program, names, flow, true);
    anstream::adapter::strip_str(&text).to_string()
}

struct Answer {
    flow: Flow,
    why: Explanation,
}

struct Page<'a> {
    input: &'a Input,
    names: &'a Names<'a>,
    verbose: bool,
    /// Whether to show what would allow what is refused.
    changes: bool,
}

/// So many lines are read at a glance.
const LINES: usize = 12;
/// How many policies or rules are listed before the rest is only counted.
const SHORT: usize = 2;

impl Page<'_> {
    /// One answer for each verdict there is; all of them with `-v`.
    fn text(&self, answers: &[Answer], to: &Target) -> String {
        let mut text = String::new();
        if let Target::Service(i) = to {
            let service = &self.input.cluster.services[*i];
            let (namespace, name) = (&service.namespace, &service.name);
            let count = plural(answers.len(), "connection");
            text.push_str(&format!(
                "{DIM}Service {namespace}/{name} means its endpoints: {count}{DIM:#}\n"
            ));
        }
        let mut shown: Vec<&Answer> = Vec::new();
        for answer in answers {
            let alike = |other: &&Answer| {
                let (a, b) = (&answer.why, &other.why);
                a.verdict == b.verdict
                    && a.paths.len() == b.paths.len()
                    && a.paths.iter().zip(&b.paths).all(|(a, b)| same(a, b))
            };
            if !self.verbose && shown.iter().any(alike) {
                continue;
            }
            shown.push(answer);
            self.answer(answer, &mut text);
        }
        if shown.len() < answers.len() {
            let count = answers.len();
            text.push_str(&format!("{DIM}{count} pairs of pods in all; -v shows each{DIM:#}\n"));
        }
        text
    }

    fn answer(&self, answer: &Answer, text: &mut String) {
        let Flow { source, destination, traffic } = answer.flow;
        let (from, to) = (self.names.show(source), self.names.show(destination));
        let verdict = match answer.why.verdict {
            Verdict::Allowed => format!("{ALLOWED}allowed{ALLOWED:#}"),
            Verdict::Refused => format!("{REFUSED}refused{REFUSED:#}"),
            Verdict::Mixed { allowed } => {
                format!("{REFUSED}mixed{REFUSED:#}, only {allowed} is allowed")
            }
            Verdict::Undetermined => format!("{DOUBT}undetermined{DOUBT:#}"),
        };
        text.push_str(&format!("{BOLD}{from} -> {to} on {traffic}{BOLD:#}: {verdict}\n"));
        match answer.why.paths.as_slice() {
            [] => text.push_str("  the two have no address family in common\n"),
            [first, rest @ ..] if rest.iter().all(|path| same(path, first)) => {
                self.path(first, answer.flow, text);
            }
            paths => {
                for path in paths {
                    if let Some(family) = path.path.family() {
                        let word = match path.judgement {
                            Judgement::Allowed => "allowed",
                            Judgement::Refused => "refused",
                            Judgement::Undetermined => "undetermined",
                        };
                        text.push_str(&format!("  {BOLD}{family}{BOLD:#}: {word}\n"));
                    }
                    self.path(path, answer.flow, text);
                }
            }
        }
    }

    fn path(&self, path: &PathExplanation, flow: Flow, text: &mut String) {
        match path.exemption {
            Some(Exemption::Itself) => text.push_str("  a pod always reaches itself\n"),
            Some(Exemption::OwnNode) => {
                text.push_str("  a pod and the node it runs on always reach each other\n");
            }
            None => {
                for direction in Direction::ALL {
                    self.end(path, flow, direction, text);
                }
            }
        }
        for fact in &path.missing {
            let fact = self.names.fact(&flow, *fact);
            text.push_str(&format!("  {DOUBT}depends on{DOUBT:#} {fact}\n"));
        }
    }

    fn end(&self, path: &PathExplanation, flow: Flow, direction: Direction, text: &mut String) {
        let end = if direction == Direction::Egress { flow.source } else { flow.destination };
        let (subject, _) = path.path.subject_and_remote(direction);
        let name = self.endpoint(subject);
        let lead = format!("  {:<8} ", direction.section());
        let more = " ".repeat(lead.len());
        match of(path, direction) {
            EndExplanation::NoSubject => {
                let why = self.no_subject(end);
                text.push_str(&format!("{lead}{why}: no policy applies to it\n"));
            }
            EndExplanation::Open => {
                text.push_str(&format!("{lead}{name} is open: no policy isolates it\n"));
            }
            EndExplanation::Allowed { isolated_by, by } => {
                let policies = self.policies(isolated_by);
                text.push_str(&format!("{lead}{name} is isolated by {policies}\n"));
                let shown = if self.verbose { by.len() } else { 1 };
                for origin in &by[..shown] {
                    let (rule, place) = self.rule(origin);
                    let on = self.allows(origin);
                    text.push_str(&format!(
                        "{more}{ALLOWED}allowed{ALLOWED:#} by {rule}{place}\n{more}  {on}\n"
                    ));
                }
                if shown < by.len() {
                    let rest = plural(by.len() - shown, "more rule");
                    text.push_str(&format!("{more}{DIM}and by {rest}{DIM:#}\n"));
                }
            }
            EndExplanation::Undetermined { isolated_by, perhaps } => {
                let policies = self.policies(isolated_by);
                text.push_str(&format!("{lead}{name} is isolated by {policies}\n"));
                let shown = if self.verbose { perhaps.len() } else { 1.min(perhaps.len()) };
                for origin in &perhaps[..shown] {
                    let (rule, place) = self.rule(origin);
                    let on = self.allows(origin);
                    text.push_str(&format!(
                        "{more}{DOUBT}perhaps allowed{DOUBT:#} by {rule}{place}\n{more}  {on}\n"
                    ));
                }
                if shown < perhaps.len() {
                    let rest = plural(perhaps.len() - shown, "more rule");
                    text.push_str(&format!("{more}{DIM}or by {rest}{DIM:#}\n"));
                }
            }
            EndExplanation::Refused { isolated_by, audited, nearest, change } => {
                let policies = self.policies(isolated_by);
                text.push_str(&format!("{lead}{name} is isolated by {policies}\n"));
                if *audited {
                    let (who, are) =
                        if isolated_by.len() == 1 { ("it", "is") } else { ("they", "are") };
                    text.push_str(&format!(
                        "{more}{DOUBT}in audit{DOUBT:#}: {who} {are} not enforced, so this passes and is only reported\n"
                    ));
                }
                match nearest {
                    None => text.push_str(&format!(
                        "{more}{REFUSED}refused{REFUSED:#}: no {direction} rule there\n"
                    )),
                    Some(near) => {
                        let (rule, place) = self.rule(&near.origin);
                        text.push_str(&format!(
                            "{more}{REFUSED}refused{REFUSED:#}; nearest is {rule}{place}\n"
                        ));
                        for miss in &near.misses {
                            text.push_str(&self.miss(near, miss, &more));
                        }
                    }
                }
                if let Some(change) = change.as_ref().filter(|_| self.changes) {
                    text.push_str(&self.change(change, path, flow, &more));
                }
            }
        }
    }

    /// What would have to be written to allow it.
    fn change(&self, change: &Change, path: &PathExplanation, flow: Flow, more: &str) -> String {
        let what = match change.policy {
            Some(policy) => {
                let section = change.direction.section();
                format!("add to {section} of {}{}", self.policy(policy), self.place(policy, ""))
            }
            None => "apply".to_owned(),
        };
        let yaml = manifest::indented(&self.yaml(change, path, flow), &format!("{more}  "));
        let all = match change.rule.ports.is_empty() {
            true => ", which opens every port: no rule can allow ICMP alone",
            false => "",
        };
        format!("{more}to allow it, {what}{all}:\n{yaml}")
    }

    fn yaml(&self, change: &Change, path: &PathExplanation, flow: Flow) -> String {
        if change.policy.is_some() {
            return manifest::rule(&change.rule, change.direction);
        }
        let name = |end: End| match end {
            End::Pod(pod) => {
                let pod = &self.input.cluster.pods[pod];
                pod.workload.as_ref().map_or(&pod.name, |workload| &workload.name).clone()
            }
            End::Address(address) => address.to_string(),
        };
        let (_, remote) = path.path.subject_and_remote(change.direction);
        let remote = remote.pod.map(End::Pod).or(remote.address.map(End::Address));
        let wanted = match change.direction {
            Direction::Egress => {
                format!("{}-to-{}", name(flow.source), name(remote.unwrap_or(flow.destination)))
            }
            Direction::Ingress => {
                format!("{}-from-{}", name(flow.destination), name(remote.unwrap_or(flow.source)))
            }
        };
        let wanted = wanted.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        let policies = &self.input.cluster.policies;
        let name = manifest::free_name(policies, &change.namespace, wanted.trim_matches('-'));
        manifest::policy(change, &name)
    }

    fn miss(&self, near: &NearMiss, miss: &Miss, more: &str) -> String {
        // The file was named with the rule.
        let location =
            self.input.locate(ObjectRef::Policy(near.origin.policy as usize), &miss.path);
        let place = location.filter(|l| l.line > 0).map_or(String::new(), |l| {
            format!(" {DIM}(line {}, column {}){DIM:#}", l.line, l.column)
        });
        let field = miss.path.strip_prefix(&near.origin.rule_path()).unwrap_or(&miss.path);
        let field = field.strip_prefix('.').unwrap_or(field);
        let Miss { expected, found, .. } = miss;
        format!("{more}  {field}: expected {expected}, found {found}{place}\n")
    }

    /// What an end is that is no subject.
    fn no_subject(&self, end: End) -> String {
        let name = self.names.show(end);
        match end {
            End::Address(_) => format!("{name} is no pod"),
            End::Pod(pod) if self.input.cluster.pods[pod].finished => {
                format!("{name} has finished")
            }
            End::Pod(_) => format!("{name} is on the host network"),
        }
    }

    fn endpoint(&self, endpoint: &Endpoint) -> String {
        match (endpoint.pod, endpoint.address) {
            (Some(pod), _) => shown_pod(&self.input.cluster.pods[pod]),
            (None, Some(address)) => address.to_string(),
            (None, None) => "a pod on the host network".to_owned(),
        }
    }

    fn policy(&self, index: u32) -> String {
        let policy = &self.input.cluster.policies[index as usize];
        format!("{}/{}", policy.namespace, policy.name)
    }

    fn policies(&self, indices: &[u32]) -> String {
        let shown = if self.verbose { indices.len() } else { SHORT.min(indices.len()) };
        let name = |i: &u32| format!("{}{}", self.policy(*i), self.place(*i, ""));
        let mut text = indices[..shown].iter().map(name).collect::<Vec<_>>().join(", ");
        if shown < indices.len() {
            text.push_str(&format!(" and {} more", indices.len() - shown));
        }
        text
    }

    fn rule(&self, origin: &Origin) -> (String, String) {
        let path = origin.rule_path();
        let rule = path.strip_prefix("spec.").unwrap_or(&path);
        let text = format!("{rule} of {}", self.policy(origin.policy));
        (text, self.place(origin.policy, &path))
    }

    /// Which peer and port of a rule it is that allow.
    fn allows(&self, origin: &Origin) -> String {
        let policy = &self.input.cluster.policies[origin.policy as usize];
        let rule = &policy.rules(origin.direction).unwrap_or_default()[origin.rule as usize];
        let (section, peers) = (origin.direction.peers(), &rule.peers);
        let peer =
            origin.peer.map(|i| format!("{section}[{i}]: {}", show_peer(&peers[i as usize])));
        let port =
            origin.port.map(|i| format!("ports[{i}]: {}", show_port(&rule.ports[i as usize])));
        let (peer, port) = (peer.as_deref(), port.as_deref());
        format!("{}, {}", peer.unwrap_or("every peer"), port.unwrap_or("every port"))
    }

    fn place(&self, policy: u32, path: &str) -> String {
        let location = self.input.locate(ObjectRef::Policy(policy as usize), path);
        location.map_or(String::new(), |l| format!(" {DIM}({l}){DIM:#}"))
    }

    fn report(&self, answer: &Answer) -> Report {
        let Flow { source, destination, traffic } = answer.flow;
        let (port, protocol) = match traffic {
            Traffic::Port(protocol, port) => (Some(port), protocol.to_string()),
            Traffic::Other => (None, traffic.to_string()),
        };
        Report {
            from: self.names.show(source),
            to: self.names.show(destination),
            port,
            protocol,
            verdict: match answer.why.verdict {
                Verdict::Allowed => "allow",
                Verdict::Refused => "deny",
                Verdict::Mixed { .. } => "mixed",
                Verdict::Undetermined => "undetermined",
            },
            paths: answer
                .why
                .paths
                .iter()
                .map(|path| self.path_report(path, answer.flow))
                .collect(),
        }
    }

    fn path_report(&self, path: &PathExplanation, flow: Flow) -> PathReport {
        PathReport {
            family: path.path.family().map(|family| family.to_string()),
            source: path.path.source.address.map(|a| a.to_string()),
            destination: path.path.destination.address.map(|a| a.to_string()),
            verdict: match path.judgement {
                Judgement::Allowed => "allow",
                Judgement::Refused => "deny",
                Judgement::Undetermined => "undetermined",
            },
            missing: path.missing.iter().map(|fact| self.names.fact(&flow, *fact)).collect(),
            exemption: path.exemption.map(|exemption| match exemption {
                Exemption::Itself => "itself",
                Exemption::OwnNode => "ownNode",
            }),
            egress: self.end_report(path, flow, Direction::Egress),
            ingress: self.end_report(path, flow, Direction::Ingress),
        }
    }

    fn end_report(&self, path: &PathExplanation, flow: Flow, direction: Direction) -> EndReport {
        let (subject, _) = path.path.subject_and_remote(direction);
        let mut report = EndReport {
            subject: self.endpoint(subject),
            state: "open",
            audited: false,
            isolated_by: Vec::new(),
            allowed_by: Vec::new(),
            perhaps_allowed_by: Vec::new(),
            nearest: None,
            change: None,
        };
        let policies = |indices: &[u32]| {
            let policy =
                |i: &u32| PolicyReport { policy: self.policy(*i), location: self.location(*i, "") };
            indices.iter().map(policy).collect()
        };
        match of(path, direction) {
            EndExplanation::NoSubject => report.state = "noSubject",
            EndExplanation::Open => {}
            EndExplanation::Allowed { isolated_by, by } => {
                report.state = "allowed";
                report.isolated_by = policies(isolated_by);
                report.allowed_by = by.iter().map(|origin| self.origin_report(origin)).collect();
            }
            EndExplanation::Undetermined { isolated_by, perhaps } => {
                report.state = "undetermined";
                report.isolated_by = policies(isolated_by);
                report.perhaps_allowed_by =
                    perhaps.iter().map(|origin| self.origin_report(origin)).collect();
            }
            EndExplanation::Refused { isolated_by, audited, nearest, change } => {
                report.state = "refused";
                report.audited = *audited;
                report.isolated_by = policies(isolated_by);
                report.change = change.as_ref().map(|change| ChangeReport {
                    add_to: change.policy.map(|policy| self.policy(policy)),
                    section: change.direction.section(),
                    yaml: self.yaml(change, path, flow),
                });
                report.nearest = nearest.as_ref().map(|near| NearReport {
                    origin: self.origin_report(&near.origin),
                    misses: near
                        .misses
                        .iter()
                        .map(|miss| MissReport {
                            term: miss.term.as_str(),
                            path: miss.path.clone(),
                            expected: miss.expected.clone(),
                            found: miss.found.clone(),
                            location: self.location(near.origin.policy, &miss.path),
                        })
                        .collect(),
                });
            }
        }
        report
    }

    fn origin_report(&self, origin: &Origin) -> OriginReport {
        OriginReport {
            policy: self.policy(origin.policy),
            rule: origin.rule_path(),
            peer: origin.peer.map(|_| origin.peer_path()),
            port: origin.port.map(|_| origin.port_path()),
            location: self.location(origin.policy, &origin.rule_path()),
        }
    }

    fn location(&self, policy: u32, path: &str) -> Option<String> {
        self.input.locate(ObjectRef::Policy(policy as usize), path).map(|l| l.to_string())
    }
}

fn of(path: &PathExplanation, direction: Direction) -> &EndExplanation {
    match direction {
        Direction::Ingress => &path.ingress,
        Direction::Egress => &path.egress,
    }
}

fn show_peer(peer: &Peer) -> String {
    match peer {
        Peer::Pods { pods, namespaces } => {
            let namespaces = match namespaces {
                Some(selector) => format!("namespaces {selector}, "),
                None => String::new(),
            };
            let pods = pods.as_ref().map_or("<any>".to_owned(), Selector::to_string);
            format!("{namespaces}pods {pods}")
        }
        Peer::Block(block) if block.except.is_empty() => block.cidr.to_string(),
        Peer::Block(block) => {
            let except = block.except.iter().map(|e| e.to_string()).collect::<Vec<_>>();
            format!("{} except {}", block.cidr, except.join(", "))
        }
    }
}

fn show_port(port: &PortRule) -> String {
    let protocol = port.protocol;
    match &port.port {
        PortMatch::All => format!("every {protocol} port"),
        PortMatch::Range(first, last) if first == last => format!("{first}/{protocol}"),
        PortMatch::Range(first, last) => format!("{first}-{last}/{protocol}"),
        PortMatch::Named(name) => format!("{name}/{protocol}"),
    }
}

/// Whether two paths differ in their addresses only.
fn same(a: &PathExplanation, b: &PathExplanation) -> bool {
    (a.exemption, &a.missing, &a.egress, &a.ingress)
        == (b.exemption, &b.missing, &b.egress, &b.ingress)
}

#[derive(Serialize)]
struct Report {
    from: String,
    to: String,
    port: Option<u16>,
    protocol: String,
    verdict: &'static str,
    paths: Vec<PathReport>,
}

#[derive(Serialize)]
struct PathReport {
    family: Option<String>,
    source: Option<String>,
    destination: Option<String>,
    verdict: &'static str,
    /// What an undetermined verdict depends on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    missing: Vec<String>,
    exemption: Option<&'static str>,
    egress: EndReport,
    ingress: EndReport,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EndReport {
    subject: String,
    state: &'static str,
    /// Whether what is refused passes, and is only reported.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    audited: bool,
    isolated_by: Vec<PolicyReport>,
    allowed_by: Vec<OriginReport>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    perhaps_allowed_by: Vec<OriginReport>,
    nearest: Option<NearReport>,
    /// The smallest change that would allow it.
    change: Option<ChangeReport>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ChangeReport {
    /// The policy that the rule is added to; without one the YAML is a policy of its own.
    add_to: Option<String>,
    section: &'static str,
    yaml: String,
}

#[derive(Serialize)]
struct PolicyReport {
    policy: String,
    location: Option<String>,
}

#[derive(Serialize)]
struct OriginReport {
    policy: String,
    rule: String,
    peer: Option<String>,
    port: Option<String>,
    location: Option<String>,
}

#[derive(Serialize)]
struct NearReport {
    #[serde(flatten)]
    origin: OriginReport,
    misses: Vec<MissReport>,
}

#[derive(Serialize)]
struct MissReport {
    term: &'static str,
    path: String,
    expected: String,
    found: String,
    location: Option<String>,
}
