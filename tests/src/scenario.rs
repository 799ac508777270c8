//! Scenario files: manifests, and which connections they allow.
//!
//! A file is YAML that `kubectl apply` takes too. What is expected stands in its comments, from a
//! line `# expect:` to the first line that is no comment:
//!
//! ```yaml
//! # expect:
//! #   dev/web -> dev/db 5432/TCP: allow
//! #   dev/web, 198.51.100.7 -> dev/db 5433/TCP, 5432/UDP, ICMP: deny
//! #   dev/web -> dev/dual 80/TCP: allow IPv4, deny IPv6
//! #   dev/web -> dev/service/db 5432/TCP: allow
//! ```
//!
//! Ends are `namespace/pod`, an address, or, as a destination, `namespace/service/name`, which
//! means every endpoint of the Service, on the port it has there. Commas stand between
//! alternatives; each combination is expected. A verdict without a family is that of every family
//! that both ends have; without such a family it is `deny`. `audit` is what policies in audit refuse:
//! they say `deny`, and its packets pass.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use portcullis_core::model::{Cluster, ContainerPort, Service, TargetPort};
use portcullis_core::net::{Family, Protocol, Traffic};
use portcullis_kube::{Options, Reason, Severity, Source};

use crate::generate::Flow;
use crate::manifests;
use crate::oracle::{End, World};

/// A scenario file, read.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// The name of the file without its ending.
    pub name: String,
    /// What its manifests describe.
    pub world: World,
    /// What it expects.
    pub expectations: Vec<Expectation>,
}

impl Scenario {
    /// The scenarios of a directory whose names start with a prefix, by name. An error names the
    /// file, and also if there is no such scenario.
    pub fn all(directory: &Path, prefix: &str) -> Result<Vec<Scenario>, String> {
        let place = directory.display();
        let entries = directory.read_dir().map_err(|error| format!("{place}: {error}"))?;
        let mut paths = entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| format!("{place}: {error}"))?;
        paths.retain(|path| path.extension().is_some_and(|e| e == "yaml"));
        paths.retain(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix))
        });
        paths.sort();
        if paths.is_empty() {
            return Err(format!("{place}: expected a scenario file {prefix}*.yaml"));
        }
        paths.iter().map(|path| Scenario::read(path)).collect()
    }

    /// Reads a scenario file.
    pub fn read(path: &Path) -> Result<Scenario, String> {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let text = fs::read_to_string(path).map_err(|error| format!("{name}: {error}"))?;
        Scenario::parse(&name, &text)
    }

    /// Reads the text of a scenario file.
    pub fn parse(name: &str, text: &str) -> Result<Scenario, String> {
        let source = Source::Text { name: name.to_owned(), text: text.to_owned() };
        let input = portcullis_kube::load(&[source], &Options::default());
        // No file should say so, and a cluster can.
        let counts = |reason: Reason| reason != Reason::SharedAddress;
        let mut errors = input.diagnostics.iter().filter(|d| d.severity == Severity::Error);
        if let Some(error) = errors.find(|d| counts(d.reason)) {
            return Err(format!("{name}: {error}"));
        }
        let policies = input.policies.into_iter().map(|policy| policy.raw).collect();
        let cluster = Cluster { policies: Vec::new(), ..input.cluster };
        let expectations =
            expectations(text, &cluster).map_err(|error| format!("{name}: {error}"))?;
        Ok(Scenario { name: name.to_owned(), world: World { cluster, policies }, expectations })
    }

    /// The expectations that some back end does not meet, a line each. The back end answers for
    /// every address family that both ends of a flow have, and `None` for a flow it cannot try.
    pub fn differences(
        &self,
        view: View,
        mut answer: impl FnMut(&Flow) -> Option<BTreeMap<Family, bool>>,
    ) -> Vec<String> {
        let mut differences = Vec::new();
        for expected in &self.expectations {
            let Some(found) = answer(&expected.flow) else { continue };
            if !expected.holds(view, &found) {
                let Expectation { line, flow, verdicts } = expected;
                let flow = describe(flow, &self.world.cluster);
                let name = &self.name;
                let wanted = if verdicts.contains_key(&None) {
                    verdict_text(verdicts.values().any(|v| v.seen(view))).to_owned()
                } else {
                    answers_text(verdicts.iter().filter_map(|(f, v)| Some(((*f)?, v.seen(view)))))
                };
                let found = answers_text(found.into_iter());
                differences
                    .push(format!("{name}.yaml:{line}: {flow}: expected {wanted}, found {found}"));
            }
        }
        differences
    }
}

/// What is expected of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// The policies allow it, and it passes.
    Allow,
    /// They refuse it, and it does not pass.
    Deny,
    /// They refuse it, and it passes.
    Audit,
}

/// Which part of what is expected a back end knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// What the policies allow.
    Policies,
    /// What passes.
    Packets,
}

impl Expected {
    fn seen(self, view: View) -> bool {
        match self {
            Expected::Allow => true,
            Expected::Deny => false,
            Expected::Audit => view == View::Packets,
        }
    }
}

/// One connection, and what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expectation {
    /// The line of the file, counted from 1.
    pub line: usize,
    /// The connection. A Service is already replaced by one of its endpoints.
    pub flow: Flow,
    /// What becomes of it in each family. [`None`] stands for every family there is.
    pub verdicts: Verdicts,
}

impl Expectation {
    /// Whether answers by family are as expected.
    pub fn holds(&self, view: View, answers: &BTreeMap<Family, bool>) -> bool {
        let verdict = |family| self.verdicts.get(&family).map(|verdict| verdict.seen(view));
        match verdict(None) {
            Some(true) => !answers.is_empty() && answers.values().all(|&allowed| allowed),
            Some(false) => answers.values().all(|&allowed| !allowed),
            None => {
                answers.len() == self.verdicts.len()
                    && answers.iter().all(|(&f, a)| verdict(Some(f)) == Some(*a))
            }
        }
    }
}

/// The expectations in the text of a scenario file about this cluster. An error names the line.
fn expectations(text: &str, cluster: &Cluster) -> Result<Vec<Expectation>, String> {
    let mut expectations = Vec::new();
    let mut inside = false;
    for (line, content) in (1..).zip(text.lines()) {
        let comment = content.strip_prefix('#').map(str::trim);
        match comment {
            Some("expect:") => inside = true,
            Some("") => {}
            Some(comment) if inside => {
                let (flows, verdicts) = expectation(comment, cluster)
                    .map_err(|reason| format!("line {line}: {reason}"))?;
                let flows = flows.into_iter();
                expectations.extend(flows.map(|flow| Expectation {
                    line,
                    flow,
                    verdicts: verdicts.clone(),
                }));
            }
            Some(_) => {}
            None => inside = false,
        }
    }
    Ok(expectations)
}

/// The text of a scenario file: the world, and what is expected of it.
pub fn write(title: &str, world: &World, expected: &[(Flow, BTreeMap<Family, bool>)]) -> String {
    let mut out = format!("# {title}\n# expect:\n");
    for (flow, answers) in expected {
        let answers = answers_text(answers.iter().map(|(&family, &allowed)| (family, allowed)));
        let _ = writeln!(out, "#   {}: {answers}", describe(flow, &world.cluster));
    }
    out + &manifests::yaml(world)
}

/// A flow as a scenario file writes it: `dev/web -> 10.0.0.1 80/TCP`.
pub fn describe(flow: &Flow, cluster: &Cluster) -> String {
    let end = |end| match end {
        End::Pod(index) => {
            let pod = &cluster.pods[index];
            format!("{}/{}", pod.namespace, pod.name)
        }
        End::Address(address) => address.to_string(),
    };
    format!("{} -> {} {}", end(flow.source), end(flow.destination), flow.traffic)
}

/// `allow IPv4, deny IPv6`. Without a family in common nothing can pass.
fn answers_text(answers: impl Iterator<Item = (Family, bool)>) -> String {
    let answers: Vec<_> =
        answers.map(|(f, allowed)| format!("{} {f}", verdict_text(allowed))).collect();
    if answers.is_empty() { verdict_text(false).to_owned() } else { answers.join(", ") }
}

fn verdict_text(allowed: bool) -> &'static str {
    if allowed { "allow" } else { "deny" }
}

/// By family.
pub type Verdicts = BTreeMap<Option<Family>, Expected>;

fn expectation(text: &str, cluster: &Cluster) -> Result<(Vec<Flow>, Verdicts), String> {
    let shape = "expected `source -> destination port/PROTOCOL: allow|deny|audit`";
    let (source, rest) = text.split_once(" -> ").ok_or(shape)?;
    let (rest, verdicts) = rest.rsplit_once(": ").ok_or(shape)?;
    // Ports come after the last destination: the only place of a space without a comma before.
    let words: Vec<&str> = rest.split(' ').collect();
    let first_port = (1..words.len()).find(|&n| !words[n - 1].ends_with(',')).ok_or(shape)?;
    let (destinations, traffic) = words.split_at(first_port);

    let mut flows = Vec::new();
    for source in items(source) {
        let source = end(source, cluster)?;
        for destination in destinations.iter().map(|word| word.trim_end_matches(',')) {
            for word in traffic.iter().map(|word| word.trim_end_matches(',')) {
                let traffic = traffic_of(word)?;
                for (destination, traffic) in destinations_of(destination, traffic, cluster)? {
                    flows.push(Flow { source, destination, traffic });
                }
            }
        }
    }
    let verdicts = items(verdicts).map(verdict).collect::<Result<Verdicts, _>>()?;
    if verdicts.len() > 1 && verdicts.contains_key(&None) {
        return Err("a verdict for every family stands alone".to_owned());
    }
    Ok((flows, verdicts))
}

fn items(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim)
}

fn verdict(text: &str) -> Result<(Option<Family>, Expected), String> {
    let (verdict, family) = match text.split_once(' ') {
        None => (text, None),
        Some((verdict, "IPv4")) => (verdict, Some(Family::V4)),
        Some((verdict, "IPv6")) => (verdict, Some(Family::V6)),
        Some(_) => return Err(format!("{text:?}: expected IPv4 or IPv6 after the verdict")),
    };
    match verdict {
        "allow" => Ok((family, Expected::Allow)),
        "deny" => Ok((family, Expected::Deny)),
        "audit" => Ok((family, Expected::Audit)),
        _ => Err(format!("{verdict:?}: expected allow, deny or audit")),
    }
}

fn traffic_of(text: &str) -> Result<Traffic, String> {
    if text == "ICMP" {
        return Ok(Traffic::Other);
    }
    text.split_once('/')
        .and_then(|(port, protocol)| {
            Some(Traffic::Port(Protocol::from_api(protocol)?, port.parse().ok()?))
        })
        .ok_or_else(|| format!("{text:?}: expected a port like 80/TCP, or ICMP"))
}

fn end(text: &str, cluster: &Cluster) -> Result<End, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(End::Address(address));
    }
    let (namespace, name) = text
        .split_once('/')
        .ok_or_else(|| format!("{text:?}: expected namespace/pod or an address"))?;
    let pod = cluster.pods.iter().position(|p| p.namespace == namespace && p.name == name);
    pod.map(End::Pod).ok_or_else(|| format!("there is no pod {text}"))
}

/// The destination, and the traffic that arrives there.
fn destinations_of(
    text: &str,
    traffic: Traffic,
    cluster: &Cluster,
) -> Result<Vec<(End, Traffic)>, String> {
    let Some((namespace, name)) = text.split_once("/service/") else {
        return Ok(vec![(end(text, cluster)?, traffic)]);
    };
    let mut services = cluster.services.iter();
    let endpoints = services
        .find(|s| s.namespace == namespace && s.name == name)
        .map(|service| endpoints(service, traffic, cluster))
        .unwrap_or_default();
    match endpoints.is_empty() {
        true => Err(format!("there is no Service {text} with endpoints on {traffic}")),
        false => Ok(endpoints),
    }
}

/// The pods of a Service, with what a connection to the Service on some port becomes there.
fn endpoints(service: &Service, traffic: Traffic, cluster: &Cluster) -> Vec<(End, Traffic)> {
    let (Some(selector), Traffic::Port(protocol, number)) = (&service.selector, traffic) else {
        return Vec::new();
    };
    let mut endpoints = Vec::new();
    for (index, pod) in cluster.pods.iter().enumerate() {
        let selected = pod.namespace == service.namespace
            && !pod.finished
            && selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value));
        let port = service.ports.iter().find(|p| p.protocol == protocol && p.port == number);
        let (true, Some(port)) = (selected, port) else { continue };
        let target = match &port.target {
            // 19: the name of a headless Service is its pods, so nothing rewrites the port
            _ if service.headless => Some(port.port),
            TargetPort::Number(target) => Some(*target),
            TargetPort::Name(name) => {
                let mut ports = pod.ports.iter();
                let named =
                    |p: &&ContainerPort| Some(name) == p.name.as_ref() && p.protocol == protocol;
                ports.find(named).map(|p| p.port)
            }
        };
        endpoints.extend(target.map(|target| (End::Pod(index), Traffic::Port(protocol, target))));
    }
    endpoints
}
