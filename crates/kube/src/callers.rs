//! Who calls pods from outside their policies, where objects of the input say so: monitors and
//! scrape annotations, webhooks, and routes from outside. Nothing of these objects is validated;
//! what is not understood is left out.

use portcullis_core::labels::Selector;
use portcullis_core::model::{Backend, TargetPort};

use crate::decode::{Cursor, Problems};
use crate::diagnostic::Location;
use crate::kind::Kind;
use crate::routes;
use crate::rules;
use crate::scalar::Resolved;
use crate::tree::{Node, Position};

/// A call that some object asks for, and where that stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The object: `servicemonitor shop/web`.
    pub object: String,
    /// Where it says so.
    pub location: Location,
    /// The call.
    pub call: Call,
}

/// Who calls whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Who calls.
    pub by: CalledBy,
    /// The namespaces of those called; `None` is all.
    pub namespaces: Option<Vec<String>>,
    /// Who is called.
    pub target: CallTarget,
    /// On which port; `None` where that is not said.
    pub port: Option<CallPort>,
}

/// Who makes a [`Call`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CalledBy {
    /// Prometheus, which scrapes.
    Prometheus,
    /// The API server, which asks a webhook.
    ApiServer,
    /// The controller of an Ingress or a Gateway, which routes requests.
    Router,
}

/// Who is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallTarget {
    /// The pods behind the Service of this name.
    Service(String),
    /// The pods behind Services with these labels.
    Services(Selector),
    /// Pods with these labels.
    Pods(Selector),
    /// The pods of the object of this kind and name; a Pod is its own.
    Object(String, String),
}

/// A port of a [`Call`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallPort {
    /// A port of the Service, by its name.
    ServiceName(String),
    /// A port of the Service, by its number.
    Service(u16),
    /// A port of the pod, by its name.
    PodName(String),
    /// A port of the pod, by its number.
    Pod(u16),
}

/// The calls that an object asks for that is no route: see [`of_route`].
pub(crate) fn of(root: &Node<'_>, namespace: &str) -> Vec<(Position, Call)> {
    let text = |key: &str| root.get(key).and_then(Node::text).unwrap_or_default();
    let metadata = root.get("metadata");
    let namespace = metadata
        .and_then(|m| m.get("namespace")?.text())
        .filter(|namespace| !namespace.is_empty())
        .unwrap_or(namespace);
    let group = text("apiVersion").split_once('/').map_or("", |(group, _)| group);
    match (group, text("kind")) {
        ("monitoring.coreos.com", "ServiceMonitor") => monitor(root, namespace, false),
        ("monitoring.coreos.com", "PodMonitor") => monitor(root, namespace, true),
        (
            "admissionregistration.k8s.io",
            "ValidatingWebhookConfiguration" | "MutatingWebhookConfiguration",
        ) => webhooks(root),
        ("" | "apps" | "batch", kind) => annotated(root, namespace, kind).into_iter().collect(),
        _ => Vec::new(),
    }
}

fn monitor(root: &Node<'_>, namespace: &str, of_pods: bool) -> Vec<(Position, Call)> {
    let Some(spec) = root.get("spec") else { return Vec::new() };
    let Some(selector) = selector(spec) else { return Vec::new() };
    let names = spec.get("namespaceSelector");
    let any = names.and_then(|n| n.get("any")?.resolve()) == Some(Resolved::Bool(true));
    let listed = names.and_then(|n| n.get("matchNames")).map(Node::items).unwrap_or_default();
    let listed: Vec<String> = listed.iter().filter_map(Node::text).map(str::to_owned).collect();
    let namespaces = match (any, listed.is_empty()) {
        (true, _) => None,
        (false, true) => Some(vec![namespace.to_owned()]),
        (false, false) => Some(listed),
    };
    let target = if of_pods { CallTarget::Pods(selector) } else { CallTarget::Services(selector) };
    let list = if of_pods { "podMetricsEndpoints" } else { "endpoints" };
    let endpoints = spec.get(list).map(Node::items).unwrap_or_default();
    let call = |endpoint: &Node<'_>| {
        let named = endpoint.get("port").and_then(Node::text).map(str::to_owned);
        let on_pod = ["targetPort", "portNumber"].into_iter().find_map(|key| endpoint.get(key));
        let port = match (named, on_pod.and_then(Node::resolve)) {
            (Some(name), _) if of_pods => Some(CallPort::PodName(name)),
            (Some(name), _) => Some(CallPort::ServiceName(name)),
            (None, Some(Resolved::Int(n))) => u16::try_from(n).ok().map(CallPort::Pod),
            (None, Some(Resolved::String(name))) => Some(CallPort::PodName(name.to_owned())),
            _ => None,
        };
        let (by, namespaces, target) = (CalledBy::Prometheus, namespaces.clone(), target.clone());
        (endpoint.at, Call { by, namespaces, target, port })
    };
    endpoints.iter().map(call).collect()
}

/// The selector of a monitor, if it is a valid one.
fn selector(spec: &Node<'_>) -> Option<Selector> {
    let node = spec.get("selector")?;
    let mut problems = Problems::default();
    let raw = Cursor::root(node).selector(&mut problems);
    let (selector, errors) = rules::selector(&raw, "spec.selector");
    (problems.0.is_empty() && errors.is_empty()).then_some(selector)
}

fn webhooks(root: &Node<'_>) -> Vec<(Position, Call)> {
    let hooks = root.get("webhooks").map(Node::items).unwrap_or_default();
    let call = |hook: &Node<'_>| {
        let service = hook.get("clientConfig")?.get("service")?;
        let name = service.get("name")?;
        let namespace = service.get("namespace")?.text()?.to_owned();
        let port = match service.get("port").and_then(Node::resolve) {
            Some(Resolved::Int(n)) => u16::try_from(n).ok()?,
            // What the API server takes where nothing is said.
            _ => 443,
        };
        let call = Call {
            by: CalledBy::ApiServer,
            namespaces: Some(vec![namespace]),
            target: CallTarget::Service(name.text()?.to_owned()),
            port: Some(CallPort::Service(port)),
        };
        Some((name.at, call))
    };
    hooks.iter().filter_map(call).collect()
}

/// The calls that an Ingress or a route asks for.
pub(crate) fn of_route(kind: Kind, root: &Node<'_>, namespace: &str) -> Vec<(Position, Call)> {
    let call = |(at, Backend { namespace, service, port }): (Position, Backend)| {
        let port = match port {
            TargetPort::Name(name) => CallPort::ServiceName(name),
            TargetPort::Number(number) => CallPort::Service(number),
        };
        let call = Call {
            by: CalledBy::Router,
            namespaces: Some(vec![namespace]),
            target: CallTarget::Service(service),
            port: Some(port),
        };
        (at, call)
    };
    routes::backends(kind, root, namespace).into_iter().map(call).collect()
}

/// A pod, or a pod template, with the annotations that Prometheus is usually told to look for.
fn annotated(root: &Node<'_>, namespace: &str, kind: &str) -> Option<(Position, Call)> {
    let spec = root.get("spec");
    let template = spec.and_then(|spec| {
        spec.get("template").or_else(|| spec.get("jobTemplate")?.get("spec")?.get("template"))
    });
    let object = match kind {
        "Pod" => root,
        _ => template?,
    };
    let annotations = object.get("metadata")?.get("annotations")?;
    let scrape = annotations.get("prometheus.io/scrape").filter(|s| s.text() == Some("true"))?;
    let port = annotations.get("prometheus.io/port").and_then(|port| port.text()?.parse().ok());
    let name = root.get("metadata")?.get("name")?.text()?.to_owned();
    let call = Call {
        by: CalledBy::Prometheus,
        namespaces: Some(vec![namespace.to_owned()]),
        target: CallTarget::Object(kind.to_owned(), name),
        port: port.map(CallPort::Pod),
    };
    Some((scrape.at, call))
}
