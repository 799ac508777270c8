//! `portcullis reach --routes`: do policies let connections in where routes lead?

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

use portcullis_core::Program;
use portcullis_core::model::{Backend, Cluster, Direction, Pod, Route, Service, TargetPort};
use portcullis_core::net::Traffic;
use portcullis_core::potential::{Description, potential};
use portcullis_core::program::{End, Verdict};
use portcullis_core::reach::Reach;
use serde::Serialize;

use crate::ends::{Names, named_ports};
use crate::groups::{Groups, Members};
use crate::output::{json, plural, print, yaml};
use crate::reach::Format;
use crate::table::Table;
use crate::trouble::Trouble;

/// The label of the pods that serve a Gateway: the Gateway API asks for it.
const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";

/// Where a route leads, and what policies say to that.
#[derive(Debug, Serialize)]
pub(crate) struct Found {
    /// `Ingress shop/front`.
    route: String,
    /// `Service shop/web:80`.
    backend: String,
    /// The pods behind it that fare alike.
    to: Vec<String>,
    /// `8080/TCP`; absent where it leads to no pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<String>,
    /// The controller's pods; empty where the input does not have them.
    from: Vec<String>,
    verdict: Word,
    /// What is the matter with a backend; or from whom connections are allowed, where the
    /// controller is not in the input.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    detail: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Word {
    Allowed,
    Refused,
    /// From some of the controller's pods, or on some families.
    Partly,
    /// Some fact is missing, be it where the controller is.
    NotKnown,
    /// It leads to no pod of the input.
    Nowhere,
}

/// All routes with the pods among those that are asked for.
pub(crate) fn found(
    cluster: &Cluster,
    program: &Program,
    names: &Names<'_>,
    groups: &Groups,
    asked: &dyn Fn(usize) -> bool,
) -> Vec<Found> {
    let mut found = Vec::new();
    let mut admitted = None;
    for route in &cluster.routing.routes {
        let controllers = controllers(cluster, route);
        for backend in &route.backends {
            let Backend { namespace, service, port } = backend;
            let shown = match port {
                TargetPort::Number(number) => number.to_string(),
                TargetPort::Name(name) => name.clone(),
            };
            let line = Found {
                route: format!("{} {}/{}", route.kind, route.namespace, route.name),
                backend: format!("Service {namespace}/{service}:{shown}"),
                to: Vec::new(),
                port: None,
                from: called(groups, &controllers),
                verdict: Word::Nowhere,
                detail: Vec::new(),
            };
            let (endpoints, why) = endpoints(cluster, names, backend);
            if endpoints.is_empty() {
                found.push(Found { detail: vec![why.to_owned()], from: Vec::new(), ..line });
                continue;
            }
            // Those that fare alike together.
            let mut alike: BTreeMap<(Traffic, Word, Vec<String>), Vec<usize>> = BTreeMap::new();
            for (pod, traffic) in endpoints.into_iter().filter(|(pod, _)| asked(*pod)) {
                let (word, detail) = if controllers.is_empty() {
                    let admitted = admitted.get_or_insert_with(|| Admitted::of(cluster, program));
                    admitted.to(pod, traffic)
                } else {
                    let sources = controllers.iter().filter(|source| **source != pod);
                    let verdicts = sources
                        .map(|source| program.verdict(End::Pod(*source), End::Pod(pod), traffic));
                    (Word::sum(verdicts), Vec::new())
                };
                alike.entry((traffic, word, detail)).or_default().push(pod);
            }
            for ((traffic, verdict, detail), pods) in alike {
                found.push(Found {
                    route: line.route.clone(),
                    backend: line.backend.clone(),
                    to: called(groups, &pods),
                    port: Some(traffic.to_string()),
                    from: line.from.clone(),
                    verdict,
                    detail,
                });
            }
        }
    }
    found
}

fn called(groups: &Groups, pods: &[usize]) -> Vec<String> {
    let mut pods = pods.to_vec();
    pods.sort_unstable();
    pods.dedup();
    let ends = groups.ends(&Members { pods, addresses: Vec::new() });
    ends.into_iter().map(|end| end.name).collect()
}

/// Prints all of it.
pub(crate) fn page(found: &[Found], output: Format) -> Result<ExitCode, Trouble> {
    let cells = found.iter().map(|line| {
        let to = if line.to.is_empty() { vec![line.backend.clone()] } else { line.to.clone() };
        let from = match line.from.is_empty() {
            true if line.verdict == Word::Nowhere => vec!["-".to_owned()],
            true => vec!["the controller, which is not in the input".to_owned()],
            false => line.from.clone(),
        };
        let port = line.port.clone().unwrap_or_else(|| "-".to_owned());
        vec![vec![line.route.clone()], from, to, vec![port], vec![line.verdict()]]
    });
    let headers = &["ROUTE", "FROM", "TO", "PORT", "VERDICT"];
    let table = Table { headers, rows: cells.collect() };
    match output {
        Format::Json => json(&found)?,
        Format::Yaml => yaml(&found)?,
        Format::Csv => print(&table.csv())?,
        Format::Svg | Format::Dot | Format::Mermaid | Format::Html => {
            return Err(Trouble::NoPicture("--routes", "table, wide, md, csv, json or yaml"));
        }
        _ if found.is_empty() => print("no route leads to these pods\n")?,
        Format::Md => print(&table.markdown())?,
        Format::Wide | Format::Table => {
            print(&found.iter().map(|line| format!("{}\n", line.sentence())).collect::<String>())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A line for below the table of who reaches whom, if policies are in the way of routes.
pub(crate) fn footnote(found: &[Found]) -> String {
    let blocked = found.iter().filter(|f| matches!(f.verdict, Word::Refused | Word::Partly));
    match blocked.count() {
        0 => String::new(),
        1 => "policies refuse 1 route its pods: --routes shows it\n".to_owned(),
        n => format!("policies refuse {} their pods: --routes shows them\n", plural(n, "route")),
    }
}

impl Found {
    /// `Ingress shop/front: shop/web on 8080/TCP is refused from edge/ingress-nginx`.
    fn sentence(&self) -> String {
        let Found { route, backend, to, port, from, verdict, .. } = self;
        let (Some(port), false) = (port, *verdict == Word::Nowhere) else {
            return format!("{route}: {backend} {}", self.verdict());
        };
        let (to, verdict) = (to.join(", "), self.verdict());
        match from.is_empty() {
            true => {
                format!("{route}: {to} on {port} is {verdict}; the controller is not in the input")
            }
            false => format!("{route}: {to} on {port} is {verdict} from {}", from.join(", ")),
        }
    }

    fn verdict(&self) -> String {
        let detail = self.detail.join(", ");
        match self.verdict {
            Word::Allowed if self.from.is_empty() => "allowed from every pod".to_owned(),
            Word::Allowed => "allowed".to_owned(),
            Word::Refused if self.from.is_empty() => "refused from every pod".to_owned(),
            Word::Refused => "refused".to_owned(),
            Word::Partly => "allowed in part".to_owned(),
            Word::NotKnown if detail.is_empty() => "not known to be allowed".to_owned(),
            Word::NotKnown => format!("allowed only from {detail}"),
            Word::Nowhere => format!("leads nowhere: {detail}"),
        }
    }
}

impl Word {
    fn sum(verdicts: impl Iterator<Item = Verdict>) -> Word {
        let word = |verdict| match verdict {
            Verdict::Allowed => Word::Allowed,
            Verdict::Refused => Word::Refused,
            Verdict::Mixed { .. } => Word::Partly,
            Verdict::Undetermined => Word::NotKnown,
        };
        let words: BTreeSet<Word> = verdicts.map(word).collect();
        match words.iter().collect::<Vec<_>>().as_slice() {
            // A controller that routes to itself.
            [] => Word::Allowed,
            [word] => **word,
            _ if words.contains(&Word::NotKnown) => Word::NotKnown,
            _ => Word::Partly,
        }
    }
}

/// The pods and ports that a backend stands for; if there are none, why. A controller sends to the
/// endpoints themselves.
fn endpoints(
    cluster: &Cluster,
    names: &Names<'_>,
    backend: &Backend,
) -> (Vec<(usize, Traffic)>, &'static str) {
    let mut services = cluster.services.iter();
    let is = |s: &&Service| s.namespace == backend.namespace && s.name == backend.service;
    let Some(service) = services.find(is) else {
        return (Vec::new(), "the Service is not in the input");
    };
    let mut ports = service.ports.iter();
    let port = ports.find(|port| match &backend.port {
        TargetPort::Number(number) => port.port == *number,
        TargetPort::Name(name) => port.name.as_ref() == Some(name),
    });
    let Some(port) = port else { return (Vec::new(), "the Service has no such port") };
    if service.selector.is_none() {
        return (Vec::new(), "the Service has no selector");
    }
    let mut endpoints = Vec::new();
    for pod in names.pods_of(service) {
        let number = match &port.target {
            TargetPort::Number(number) => Some(*number),
            TargetPort::Name(name) => named_ports(&cluster.pods[pod], name, port.protocol).next(),
        };
        endpoints.extend(number.map(|number| (pod, Traffic::Port(port.protocol, number))));
    }
    (endpoints, "the Service has no endpoints in the input")
}

/// The pods that serve a route, as far as names and labels tell; none if they do not.
fn controllers(cluster: &Cluster, route: &Route) -> Vec<usize> {
    let Cluster { routing, pods, .. } = cluster;
    let of = |is: &dyn Fn(&Pod) -> bool| {
        let pods = pods.iter().enumerate().filter(|(_, pod)| !pod.finished && is(pod));
        pods.map(|(i, _)| i).collect::<Vec<_>>()
    };
    let mut labelled = Vec::new();
    let mut called: Vec<String> = Vec::new();
    for gateway in &route.gateways {
        labelled.extend(of(&|pod| {
            pod.namespace == gateway.0 && pod.labels.get(GATEWAY_NAME) == Some(&gateway.1)
        }));
        called.extend(routing.gateways.get(gateway).into_iter().flat_map(|class| by_class(class)));
    }
    if !labelled.is_empty() {
        return labelled;
    }
    if route.kind == "Ingress" {
        let only = routing.ingress_classes.keys().next();
        let only = only.filter(|_| routing.ingress_classes.len() == 1);
        if let Some(class) = route.class.as_ref().or(only) {
            let controller = routing.ingress_classes.get(class);
            called.extend(controller.into_iter().flat_map(|controller| by_controller(controller)));
            called.extend(by_class(class));
        }
    }
    of(&|pod| {
        let label = |key: &str| pod.labels.get(key);
        let app = ["app.kubernetes.io/name", "app", "k8s-app"].into_iter().find_map(label);
        let workload = pod.workload.as_ref().map(|workload| &workload.name);
        app.is_some_and(|app| called.contains(app)) || workload.is_some_and(|w| called.contains(w))
    })
}

/// What the pods of `spec.controller` of an IngressClass are called: `k8s.io/ingress-nginx`,
/// `traefik.io/ingress-controller`.
fn by_controller(controller: &str) -> Vec<String> {
    let (domain, path) = controller.split_once('/').unwrap_or(("", controller));
    let product = domain.split('.').next().unwrap_or_default().to_owned();
    let last = path.rsplit('/').next().unwrap_or_default().to_owned();
    let generic = ["controller", "ingress-controller", "ingress"].contains(&last.as_str());
    if generic { [by_class(&product), vec![product]].concat() } else { vec![last] }
}

/// What the pods of a class are called. A pod that is called like the class alone may be a backend:
/// `nginx` is one more often than not.
fn by_class(class: &str) -> Vec<String> {
    let mut names = vec![
        format!("ingress-{class}"),
        format!("{class}-ingress"),
        format!("{class}-ingress-controller"),
        format!("{class}-gateway"),
    ];
    if class != "nginx" {
        names.push(class.to_owned());
    }
    names
}

/// Which pods that do not exist yet each pod of a cluster lets in.
struct Admitted {
    /// By pod: its number in the rows.
    units: BTreeMap<usize, usize>,
    /// By description and unit: whether some traffic is allowed.
    rows: Vec<(Description, Vec<portcullis_core::portset::PortSet>)>,
}

impl Admitted {
    fn of(cluster: &Cluster, program: &Program) -> Admitted {
        let mut reach = Reach::of(program);
        let units = reach.units(cluster);
        let rows = potential(cluster, &mut reach, &units, Direction::Ingress);
        let sets = rows.into_iter().map(|(description, row)| {
            (description, row.iter().map(|exposure| reach.set(exposure.set).clone()).collect())
        });
        let rows = sets.collect();
        let units = units.iter().enumerate();
        let units = units.flat_map(|(i, unit)| unit.pods.iter().map(move |pod| (*pod, i)));
        Admitted { units: units.collect(), rows }
    }

    fn to(&self, pod: usize, traffic: Traffic) -> (Word, Vec<String>) {
        let unit = self.units[&pod];
        let rows = self.rows.iter().filter(|(_, sets)| sets[unit].contains(traffic));
        let from: Vec<&Description> = rows.map(|(description, _)| description).collect();
        match from.as_slice() {
            [] => (Word::Refused, Vec::new()),
            some if some.contains(&&Description::any()) => (Word::Allowed, Vec::new()),
            some => (Word::NotKnown, some.iter().map(ToString::to_string).collect()),
        }
    }
}
