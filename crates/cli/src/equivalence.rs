//! `portcullis diff --equivalent`: are two states equal, for these pods and for any?

use std::process::ExitCode;

use portcullis_core::diff::Side;
use portcullis_core::equivalent::{Equivalence, Someone, Witness, equivalent};
use portcullis_core::labels::Labels;
use portcullis_core::model::{Cluster, NAMESPACE_NAME_LABEL};
use serde::Serialize;

use crate::diff::{Format, Row};
use crate::output::{LabelsReport, json, plural, print};
use crate::trouble::Trouble;

/// How long to search: some seconds.
const STEPS: u64 = 5_000_000;

/// Answers, and gives the exit code of the answer.
pub(crate) fn answer(
    clusters: [&Cluster; 2],
    changes: &[Row],
    output: Format,
) -> Result<ExitCode, Trouble> {
    let any = equivalent(clusters, STEPS);
    match output {
        Format::Json => json(&Report::of(changes, &any))?,
        Format::Table | Format::Md => print(&text(changes, &any))?,
        Format::Svg | Format::Dot | Format::Mermaid | Format::Html => {
            return Err(Trouble::NoPicture("--equivalent", "table, md or json"));
        }
    }
    Ok(match any {
        Equivalence::Equal if changes.is_empty() => ExitCode::SUCCESS,
        Equivalence::NotDecided if changes.is_empty() => ExitCode::from(2),
        _ => ExitCode::FAILURE,
    })
}

fn text(changes: &[Row], any: &Equivalence) -> String {
    let these = match changes.len() {
        0 => "equal".to_owned(),
        n => format!("{}; without --equivalent they are shown", plural(n, "difference")),
    };
    let any = match any {
        Equivalence::Equal => {
            "equal, whatever their labels, namespaces, addresses and ports".to_owned()
        }
        Equivalence::NotDecided => {
            "not decided: there are too many combinations to search".to_owned()
        }
        Equivalence::Differs(witness) => {
            let Witness { source, destination, traffic, allowed } = &**witness;
            let which = match allowed {
                Side::Old => "allowed before, refused after",
                Side::New => "refused before, allowed after",
            };
            let (from, to) =
                (lines(source).join("\n        "), lines(destination).join("\n        "));
            format!("not equal: this is {which}\n  from  {from}\n  to    {to}\n  on    {traffic}")
        }
    };
    format!("these pods: {these}\nany pods: {any}\n")
}

/// What an end is, in words.
fn lines(someone: &Someone) -> Vec<String> {
    let list = |labels: &Labels| {
        let own = labels.iter().filter(|(key, _)| *key != NAMESPACE_NAME_LABEL);
        own.map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(", ")
    };
    let (pod, namespace) = match someone {
        Someone::Outside(address) => return vec![format!("{address}, which is no pod's")],
        Someone::Pod(pod, namespace) => (pod, namespace),
    };
    let labels = list(&pod.labels);
    let labels =
        if labels.is_empty() { "without labels".to_owned() } else { format!("with {labels}") };
    let mut first = format!("a pod {labels} in namespace {}", pod.namespace);
    for port in &pod.ports {
        let name = port.name.as_deref().unwrap_or_default();
        first.push_str(&format!(", its port {name} is {}/{}", port.port, port.protocol));
    }
    first.extend(pod.addresses.iter().map(|address| format!(", at {address}")));
    let mut lines = vec![first];
    if let Some(labels) = namespace.as_ref().map(list).filter(|labels| !labels.is_empty()) {
        lines.push(format!("(if namespace {} has {labels})", pod.namespace));
    }
    lines
}

#[derive(Serialize)]
struct Report {
    /// How many differences there are for the pods of the two states.
    differences: usize,
    /// `equal`, `differs` or `not decided`, for any pods that could exist.
    any: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    witness: Option<WitnessReport>,
}

#[derive(Serialize)]
struct WitnessReport {
    from: SomeoneReport,
    to: SomeoneReport,
    port: Option<u16>,
    /// TCP, UDP, SCTP, or ICMP for whatever has no ports.
    protocol: &'static str,
    /// The state that allows it: `old` or `new`.
    allowed: &'static str,
}

#[derive(Serialize)]
struct SomeoneReport {
    address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
    /// Absent where the namespace is one of the input.
    #[serde(rename = "namespaceLabels", skip_serializing_if = "Option::is_none")]
    namespace_labels: Option<LabelsReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    labels: Option<LabelsReport>,
    #[serde(rename = "namedPorts", skip_serializing_if = "Vec::is_empty")]
    named_ports: Vec<String>,
}

impl Report {
    fn of(changes: &[Row], any: &Equivalence) -> Report {
        let (word, witness) = match any {
            Equivalence::Equal => ("equal", None),
            Equivalence::NotDecided => ("not decided", None),
            Equivalence::Differs(witness) => ("differs", Some(WitnessReport::of(witness))),
        };
        Report { differences: changes.len(), any: word, witness }
    }
}

impl WitnessReport {
    fn of(Witness { source, destination, traffic, allowed }: &Witness) -> WitnessReport {
        let (protocol, port) = match traffic {
            portcullis_core::net::Traffic::Port(protocol, port) => (protocol.as_str(), Some(*port)),
            portcullis_core::net::Traffic::Other => ("ICMP", None),
        };
        let allowed = match allowed {
            Side::Old => "old",
            Side::New => "new",
        };
        let (from, to) = (SomeoneReport::of(source), SomeoneReport::of(destination));
        WitnessReport { from, to, port, protocol, allowed }
    }
}

impl SomeoneReport {
    fn of(someone: &Someone) -> SomeoneReport {
        match someone {
            Someone::Outside(address) => SomeoneReport {
                address: Some(address.to_string()),
                namespace: None,
                namespace_labels: None,
                labels: None,
                named_ports: Vec::new(),
            },
            Someone::Pod(pod, namespace_labels) => SomeoneReport {
                address: pod.addresses.first().map(ToString::to_string),
                namespace: Some(pod.namespace.clone()),
                namespace_labels: namespace_labels.clone().map(LabelsReport),
                labels: Some(LabelsReport(pod.labels.clone())),
                named_ports: pod.ports.iter().filter_map(|port| port.name.clone()).collect(),
            },
        }
    }
}
