//! Calls that the input asks for, and whether policies let them in.

use std::collections::{BTreeMap, BTreeSet};

use portcullis_core::model::{Direction, Pod, Service, TargetPort};
use portcullis_core::net::{Protocol, Traffic};
use portcullis_core::program::{End, Judgement, PeerId};
use portcullis_kube::{Call, CallPort, CallTarget, CalledBy, Caller};

use crate::context::Context;

/// A call to pods that policies isolate for ingress.
#[derive(Debug)]
pub(crate) struct Called<'a> {
    pub(crate) caller: &'a Caller,
    pub(crate) pods: Vec<usize>,
    pub(crate) port: u16,
}

/// Every call by this caller to isolated pods of the input, each port of a workload once.
pub(crate) fn calls<'a>(context: &'a Context<'_>, by: CalledBy) -> Vec<Called<'a>> {
    let mut called: Vec<Called<'a>> = Vec::new();
    let mut seen: BTreeSet<(String, u16)> = BTreeSet::new();
    for caller in context.input.callers.iter().filter(|caller| caller.call.by == by) {
        let mut by_port: BTreeMap<u16, Vec<usize>> = BTreeMap::new();
        for (pod, port) in targets(context, &caller.call) {
            let isolated = context.isolating(pod, Direction::Ingress).is_some();
            if isolated && seen.insert((context.name(pod), port)) {
                by_port.entry(port).or_default().push(pod);
            }
        }
        called.extend(by_port.into_iter().map(|(port, pods)| Called { caller, pods, port }));
    }
    called
}

/// Those of the called pods that policies keep the caller from: these pods where it is known to be
/// them, and whoever it is where it is not.
pub(crate) fn refused(context: &Context<'_>, called: &Called<'_>, callers: &[usize]) -> Vec<usize> {
    let refused = |pod: &&usize| match callers.is_empty() {
        true => admitted(context, **pod, called.port) == Admitted::Nobody,
        false => !any_passes(context, callers, **pod, called.port),
    };
    called.pods.iter().filter(refused).copied().collect()
}

/// The pods of the input that go by one of these names.
pub(crate) fn pods_called(context: &Context<'_>, names: &[&str]) -> Vec<usize> {
    let named = |pod: &Pod| {
        ["app.kubernetes.io/name", "app", "k8s-app"]
            .iter()
            .any(|key| pod.labels.get(key).is_some_and(|name| names.contains(&name.as_str())))
    };
    (0..context.known).filter(|pod| named(&context.cluster.pods[*pod])).collect()
}

/// The pods that a call is for, each with the port.
fn targets(context: &Context<'_>, call: &Call) -> Vec<(usize, u16)> {
    let here = |namespace: &String| call.namespaces.as_ref().is_none_or(|n| n.contains(namespace));
    let pods = context.cluster.pods[..context.known].iter().enumerate();
    let pods = pods.filter(|(_, pod)| here(&pod.namespace) && !pod.finished && !pod.host_network);
    let behind = |wanted: &dyn Fn(&Service) -> bool| {
        let services = context.cluster.services.iter();
        let services: Vec<&Service> =
            services.filter(|s| here(&s.namespace) && wanted(s)).collect();
        let each = pods.clone().flat_map(|(i, pod)| {
            let of_pod = services.iter().filter(|service| selects(service, pod));
            of_pod
                .filter_map(|s| Some((i, service_port(s, call.port.as_ref()?, pod)?)))
                .collect::<Vec<_>>()
        });
        each.collect::<Vec<_>>()
    };
    let of_pods = |wanted: &dyn Fn(&Pod) -> bool| {
        let each = pods.clone().filter(|(_, pod)| wanted(pod));
        each.flat_map(|(i, pod)| {
            let ports = pod_ports(pod, call.port.as_ref());
            ports.into_iter().map(move |port| (i, port))
        })
        .collect()
    };
    match &call.target {
        CallTarget::Service(name) => behind(&|service| service.name == *name),
        CallTarget::Services(selector) => behind(&|service| selector.matches(&service.labels)),
        CallTarget::Pods(selector) => of_pods(&|pod| selector.matches(&pod.labels)),
        CallTarget::Object(kind, name) => of_pods(&|pod| {
            let owner = pod.workload.as_ref();
            match kind.as_str() {
                "Pod" => pod.name == *name,
                _ => owner.is_some_and(|w| w.kind == *kind && w.name == *name),
            }
        }),
    }
}

/// Whether a pod is an endpoint of a Service.
pub(crate) fn selects(service: &Service, pod: &Pod) -> bool {
    let asks = service.selector.as_ref();
    pod.namespace == service.namespace
        && asks.is_some_and(|s| s.iter().all(|(k, v)| pod.labels.get(k) == Some(v)))
}

/// The port of the pod behind a port of a Service.
fn service_port(service: &Service, port: &CallPort, pod: &Pod) -> Option<u16> {
    let of_service = match port {
        CallPort::ServiceName(name) => {
            service.ports.iter().find(|p| p.name.as_ref() == Some(name))?
        }
        CallPort::Service(number) => service.ports.iter().find(|p| p.port == *number)?,
        CallPort::PodName(_) | CallPort::Pod(_) => return pod_ports(pod, Some(port)).pop(),
    };
    match &of_service.target {
        TargetPort::Number(number) => Some(*number),
        TargetPort::Name(name) => named(pod, name),
    }
}

/// The ports of a pod that a call is for: all that it declares where that is not said.
fn pod_ports(pod: &Pod, port: Option<&CallPort>) -> Vec<u16> {
    match port {
        Some(CallPort::Pod(number)) => vec![*number],
        Some(CallPort::PodName(name)) => named(pod, name).into_iter().collect(),
        Some(CallPort::ServiceName(_) | CallPort::Service(_)) => Vec::new(),
        // Of several, it is not known which one answers.
        None => match pod.ports.as_slice() {
            [only] if only.protocol == Protocol::Tcp => vec![only.port],
            _ => Vec::new(),
        },
    }
}

fn named(pod: &Pod, name: &str) -> Option<u16> {
    let mut ports = pod.ports.iter();
    ports.find(|p| p.protocol == Protocol::Tcp && p.name.as_deref() == Some(name)).map(|p| p.port)
}

/// Who may call a pod on a TCP port, as far as its ingress goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admitted {
    Nobody,
    /// Pods of some labels only.
    PodsOnly,
    /// Everybody, or some addresses.
    Addresses,
}

/// Who may call a pod that is isolated for ingress.
pub(crate) fn admitted(context: &Context<'_>, pod: usize, port: u16) -> Admitted {
    let program = &context.program;
    let endpoint = program.endpoints(End::Pod(pod)).into_iter().flatten().next();
    let Some(rules) = endpoint.and_then(|e| program.isolation(&e, Direction::Ingress)) else {
        return Admitted::Addresses;
    };
    let covers = |entry: &&portcullis_core::program::Entry| {
        entry
            .ports
            .is_none_or(|p| p.protocol == Protocol::Tcp && (p.first..=p.last).contains(&port))
    };
    let entries = rules.entries.iter().chain(&rules.doubtful).filter(covers);
    let addresses = |peer: PeerId| peer == PeerId::ANY || program.peer_block(peer).is_some();
    let each = entries.map(|entry| match addresses(entry.peer) {
        true => Admitted::Addresses,
        false => Admitted::PodsOnly,
    });
    each.max_by_key(|a| *a as usize).unwrap_or(Admitted::Nobody)
}

/// Whether any of these may connect to a pod on a TCP port, or might, as far as policies go.
fn any_passes(context: &Context<'_>, sources: &[usize], pod: usize, port: u16) -> bool {
    let traffic = Traffic::Port(Protocol::Tcp, port);
    sources.iter().any(|source| {
        let mut paths = context.program.paths(End::Pod(*source), End::Pod(pod));
        paths.any(|path| context.program.judge(&path, traffic) != Judgement::Refused)
    })
}
