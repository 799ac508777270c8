//! Pods, namespaces, nodes, Services and the workloads that make pods, from their documents.
//!
//! Everything that is walked through is strict; fields that mean nothing here are known by name and
//! not looked into. `status` comes from a cluster and is taken as it is.

use std::net::IpAddr;

use portcullis_core::api::{IntOrString, LabelSelector};
use portcullis_core::labels::Labels;
use portcullis_core::model::{
    ContainerPort, Mode, Node as ClusterNode, Pod, Route, Service, ServicePort, TargetPort,
};
use portcullis_core::net::{IpNet, Protocol};
use portcullis_core::validate;

use crate::decode::{Cursor, Fields, Problems};
use crate::diagnostic::Reason;
use crate::fields::{self, CONTAINER, CONTAINER_PORT, OBJECT_META};
use crate::kind::Kind;
use crate::metadata::{self, Metadata};
use crate::routes;
use crate::rules;
use crate::tree::Node;

const ROOT: Fields = Fields {
    names: &["apiVersion", "kind", "metadata", "spec", "status"],
    nearby: &[("metadata", OBJECT_META)],
};

/// An object of any kind but NetworkPolicy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Object {
    Namespace {
        name: String,
        labels: Labels,
        mode: Option<Mode>,
    },
    /// A pod, with its controller.
    Pod(Pod, Option<(String, String)>),
    Node(ClusterNode),
    Service(Service),
    Workload(Workload),
    Route(Kind, Route),
    /// Name and controller.
    IngressClass(String, String),
    /// Namespace, name and class.
    Gateway(String, String, String),
}

/// A Deployment, ReplicaSet, StatefulSet, DaemonSet, Job, CronJob or ReplicationController.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Workload {
    pub(crate) kind: Kind,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) owner: Option<(String, String)>,
    /// How many pods it asks for; for a DaemonSet that is up to the nodes.
    pub(crate) replicas: u32,
    /// Its pod template, as a pod without a name.
    pub(crate) template: Pod,
}

impl Workload {
    /// Where its template is, as a path.
    pub(crate) fn template_path(kind: Kind) -> &'static str {
        match kind {
            Kind::CronJob => "spec.jobTemplate.spec.template",
            _ => "spec.template",
        }
    }
}

/// Decodes an object of this kind. NetworkPolicy is not among them.
pub(crate) fn decode(
    kind: Kind,
    root: &Cursor<'_, '_>,
    namespace: &str,
    out: &mut Problems,
) -> (Metadata, Object) {
    root.fields(ROOT, out);
    let mut metadata = metadata::decode(root, namespace, out);
    if !kind.is_namespaced() {
        metadata.namespace = String::new();
    }
    check_metadata(&metadata, kind, root.node, out);
    let object = match kind {
        Kind::Namespace => namespace_object(root, &metadata, out),
        Kind::Node => node(root, &metadata, out),
        Kind::Service => service(root, &metadata, out),
        Kind::Pod => {
            let pod = pod(root, &metadata, out);
            Object::Pod(pod, metadata.owner.clone())
        }
        kind if kind.is_routing() => routes::decode(kind, root.node, &metadata),
        _ => Object::Workload(workload(kind, root, &metadata, out)),
    };
    (metadata, object)
}

/// Names and labels as the API server wants them.
fn check_metadata(metadata: &Metadata, kind: Kind, root: &Node<'_>, out: &mut Problems) {
    let namespace = match kind {
        Kind::Namespace => &metadata.name,
        Kind::Node | Kind::IngressClass => "default",
        _ => &metadata.namespace,
    };
    for mut error in rules::metadata(&metadata.name, namespace, &metadata.labels) {
        if kind == Kind::Namespace && error.path == "metadata.namespace" {
            error.path = "metadata.name".to_owned();
        }
        out.field_error(root, error);
    }
}

fn namespace_object(root: &Cursor<'_, '_>, metadata: &Metadata, out: &mut Problems) -> Object {
    if let Some(spec) = root.get("spec") {
        spec.fields(Fields { names: &["finalizers"], nearby: &[] }, out);
    }
    let mode = metadata.mode.as_deref().and_then(Mode::of_name);
    Object::Namespace { name: metadata.name.clone(), labels: metadata.labels.clone(), mode }
}

fn node(root: &Cursor<'_, '_>, metadata: &Metadata, out: &mut Problems) -> Object {
    let mut node = ClusterNode { name: metadata.name.clone(), ..ClusterNode::default() };
    if let Some(spec) = root.get("spec") {
        spec.fields(Fields { names: fields::NODE_SPEC, nearby: &[] }, out);
        let cidr = |c: &Cursor<'_, '_>, out: &mut Problems| -> Option<IpNet> {
            let text = c.string(out);
            let network = validate::cidr(&text).map(|(network, _)| network);
            if network.is_none() && !text.is_empty() {
                c.invalid(&format!("{text:?}"), "must be a CIDR", out);
            }
            network
        };
        let list = spec.get("podCIDRs").map(|c| c.list(out, cidr)).unwrap_or_default();
        node.pod_cidrs.extend(list.into_iter().flatten());
        if let Some(one) = spec.get("podCIDR").and_then(|c| cidr(&c, out))
            && !node.pod_cidrs.contains(&one)
        {
            node.pod_cidrs.insert(0, one);
        }
    }
    let addresses = root.node.get("status").and_then(|s| s.get("addresses"));
    let addresses = addresses.map(Node::items).unwrap_or_default();
    // What goes to an ExternalIP may leave the node and come back: it is an address like any other.
    let internal =
        addresses.iter().filter(|a| a.get("type").and_then(Node::text) == Some("InternalIP"));
    node.addresses = each_once(internal.filter_map(|a| a.get("address")?.text()));
    Object::Node(node)
}

fn service(root: &Cursor<'_, '_>, metadata: &Metadata, out: &mut Problems) -> Object {
    let mut service = Service {
        namespace: metadata.namespace.clone(),
        name: metadata.name.clone(),
        labels: metadata.labels.clone(),
        ..Service::default()
    };
    let Some(spec) = root.get("spec") else { return Object::Service(service) };
    spec.fields(Fields { names: fields::SERVICE_SPEC, nearby: &[] }, out);
    let external = spec.get("type").is_some_and(|c| c.string(out) == "ExternalName");
    let selector = spec.get("selector").map(|c| c.labels(out)).filter(|s| !s.is_empty());
    service.selector = selector.filter(|_| !external);
    let mut ips = spec.get("clusterIPs").map(|c| c.strings(out)).unwrap_or_default();
    ips.extend(spec.get("clusterIP").map(|c| c.string(out)));
    service.headless = ips.iter().any(|ip| ip == "None");
    service.cluster_ips = each_once(ips.iter().map(String::as_str));
    let ports = spec.get("ports").map(|c| c.list(out, service_port)).unwrap_or_default();
    service.ports = ports.into_iter().flatten().collect();
    Object::Service(service)
}

fn service_port(at: &Cursor<'_, '_>, out: &mut Problems) -> Option<ServicePort> {
    at.fields(Fields { names: fields::SERVICE_PORT, nearby: &[] }, out);
    let name = at.get("name").map(|c| c.string(out)).filter(|n| !n.is_empty());
    let protocol = protocol(at, out);
    let port = required_port(at, "port", out);
    let target = match at.get("targetPort").map(|c| (c, c.int_or_string(out))) {
        None => port.map(TargetPort::Number),
        Some((c, Some(IntOrString::Int(n)))) => port_number(&c, n, out).map(TargetPort::Number),
        Some((_, Some(IntOrString::String(name)))) => Some(TargetPort::Name(name)),
        Some((_, None)) => None,
    };
    Some(ServicePort { name, protocol: protocol?, port: port?, target: target? })
}

fn pod(root: &Cursor<'_, '_>, metadata: &Metadata, out: &mut Problems) -> Pod {
    let mut pod = Pod {
        namespace: metadata.namespace.clone(),
        name: metadata.name.clone(),
        labels: metadata.labels.clone(),
        ..Pod::default()
    };
    if let Some(spec) = root.get("spec") {
        pod_spec(&spec, &mut pod, out);
    }
    if let Some(status) = root.node.get("status") {
        let phase = status.get("phase").and_then(Node::text);
        pod.finished = matches!(phase, Some("Succeeded" | "Failed"));
        let list = status.get("podIPs").map(Node::items).unwrap_or_default();
        let list = list.iter().filter_map(|item| item.get("ip")?.text());
        pod.addresses = each_once(list.chain(status.get("podIP").and_then(Node::text)));
    }
    pod
}

fn pod_spec(at: &Cursor<'_, '_>, pod: &mut Pod, out: &mut Problems) {
    at.fields(Fields { names: fields::POD_SPEC, nearby: &[("containers[]", CONTAINER)] }, out);
    pod.node = at.get("nodeName").map(|c| c.string(out)).filter(|n| !n.is_empty());
    pod.host_network = at.get("hostNetwork").is_some_and(|c| c.bool(out));
    let containers = at.get("containers").map(|c| c.objects(out, container)).unwrap_or_default();
    let init = at.get("initContainers").map(|c| c.objects(out, container)).unwrap_or_default();
    let restartable = init.into_iter().filter(|c| c.restarts);
    pod.ports_unknown = containers.is_empty();
    pod.ports = containers.into_iter().chain(restartable).flat_map(|c| c.ports).collect();
}

#[derive(Default)]
struct Container {
    /// A sidecar, if it is an init container.
    restarts: bool,
    ports: Vec<ContainerPort>,
}

fn container(at: &Cursor<'_, '_>, out: &mut Problems) -> Container {
    at.fields(Fields { names: CONTAINER, nearby: &[("ports[]", CONTAINER_PORT)] }, out);
    let restarts = at.get("restartPolicy").is_some_and(|c| c.string(out) == "Always");
    let ports = at.get("ports").map(|c| c.list(out, container_port)).unwrap_or_default();
    Container { restarts, ports: ports.into_iter().flatten().collect() }
}

fn container_port(at: &Cursor<'_, '_>, out: &mut Problems) -> Option<ContainerPort> {
    at.fields(Fields { names: CONTAINER_PORT, nearby: &[] }, out);
    let name = at.get("name").map(|c| c.string(out)).filter(|n| !n.is_empty());
    let protocol = protocol(at, out);
    let port = required_port(at, "containerPort", out);
    Some(ContainerPort { name, port: port?, protocol: protocol? })
}

fn protocol(at: &Cursor<'_, '_>, out: &mut Problems) -> Option<Protocol> {
    let Some(c) = at.get("protocol") else { return Some(Protocol::Tcp) };
    let text = c.string(out);
    let protocol = Protocol::from_api(&text);
    if protocol.is_none() && c.node.text().is_some() {
        let value = format!("{text:?}");
        let detail = "supported values: \"SCTP\", \"TCP\", \"UDP\"";
        c.wrong(validate::Reason::NotSupported, Some(value), detail, out);
    }
    protocol
}

fn required_port(at: &Cursor<'_, '_>, field: &str, out: &mut Problems) -> Option<u16> {
    let Some(c) = at.get(field) else {
        let path = format!("{}.{field}", at.path());
        let message = format!("{path}: Required value");
        out.error(at.at, path, Reason::Field(validate::Reason::Required), message);
        return None;
    };
    let number = c.int(out)?;
    port_number(&c, number, out)
}

fn port_number(at: &Cursor<'_, '_>, number: i32, out: &mut Problems) -> Option<u16> {
    let port = u16::try_from(number).ok().filter(|n| *n > 0);
    if port.is_none() {
        at.invalid(&number.to_string(), "must be between 1 and 65535", out);
    }
    port
}

fn workload(
    kind: Kind,
    root: &Cursor<'_, '_>,
    metadata: &Metadata,
    out: &mut Problems,
) -> Workload {
    let mut workload = Workload {
        kind,
        namespace: metadata.namespace.clone(),
        name: metadata.name.clone(),
        owner: metadata.owner.clone(),
        replicas: 1,
        template: Pod::default(),
    };
    let Some(spec) = root.get("spec") else {
        let reason = Reason::Field(validate::Reason::Required);
        out.error(root.at, "spec".to_owned(), reason, "spec: Required value".to_owned());
        return workload;
    };
    spec.fields(workload_fields(kind), out);
    if let Some(replicas) = spec.get("replicas")
        && let Some(n) = replicas.int(out)
    {
        match u32::try_from(n) {
            Ok(n) => workload.replicas = n,
            Err(_) => replicas.invalid(&n.to_string(), "must not be negative", out),
        }
    }
    // A finished Job is what its CronJob left behind.
    let status = root.node.get("status");
    if kind == Kind::Job && status.is_some_and(|s| s.get("completionTime").is_some()) {
        workload.replicas = 0;
    }
    if kind == Kind::CronJob {
        if let Some(job) = spec.get("jobTemplate") {
            job.fields(Fields { names: &["metadata", "spec"], nearby: &[] }, out);
            metadata::decode(&job, "", out);
            if let Some(job_spec) = job.get("spec") {
                job_spec.fields(workload_fields(Kind::Job), out);
                template(&job_spec, &mut workload, out);
            }
        }
    } else {
        template(&spec, &mut workload, out);
    }
    let has_template = spec.get("template").is_some();
    match kind {
        // That it has none is said already.
        _ if !has_template => {}
        Kind::Deployment | Kind::ReplicaSet | Kind::StatefulSet | Kind::DaemonSet => {
            let selector = spec.get("selector").map(|c| c.selector(out));
            check_selector(root.node, selector, &workload.template, out);
        }
        Kind::ReplicationController => {
            if let Some(c) = spec.get("selector") {
                let selector =
                    LabelSelector { match_labels: c.labels(out), ..LabelSelector::default() };
                check_selector(root.node, Some(selector), &workload.template, out);
            }
        }
        _ => {}
    }
    workload
}

fn workload_fields(kind: Kind) -> Fields {
    let names = match kind {
        Kind::Deployment => fields::DEPLOYMENT_SPEC,
        Kind::StatefulSet => fields::STATEFUL_SET_SPEC,
        Kind::DaemonSet => fields::DAEMON_SET_SPEC,
        Kind::Job => fields::JOB_SPEC,
        Kind::CronJob => fields::CRON_JOB_SPEC,
        _ => fields::REPLICA_SET_SPEC,
    };
    Fields { names, nearby: &[] }
}

fn template(spec: &Cursor<'_, '_>, workload: &mut Workload, out: &mut Problems) {
    let Some(at) = spec.get("template") else {
        let path = format!("{}.template", spec.path());
        let message = format!("{path}: Required value");
        out.error(spec.at, path, Reason::Field(validate::Reason::Required), message);
        return;
    };
    at.fields(Fields { names: &["metadata", "spec"], nearby: &[] }, out);
    let metadata = metadata::decode(&at, "", out);
    for error in rules::metadata("pod", "default", &metadata.labels) {
        let path = format!("{}.{}", at.path(), error.path);
        out.field_error_at(at.node.find(&error.path), validate::FieldError { path, ..error });
    }
    workload.template = pod(&at, &metadata, out);
    workload.template.namespace = workload.namespace.clone();
    workload.template.name = String::new();
}

fn check_selector(
    root: &Node<'_>,
    selector: Option<LabelSelector>,
    template: &Pod,
    out: &mut Problems,
) {
    let error = |path: &str, reason, value, detail: &str| validate::FieldError {
        path: path.to_owned(),
        reason,
        value,
        detail: detail.to_owned(),
    };
    let Some(raw) = selector else {
        let detail = "a selector for the pods of the template";
        let error = error("spec.selector", validate::Reason::Required, None, detail);
        return out.field_error(root, error);
    };
    let (selector, errors) = rules::selector(&raw, "spec.selector");
    let valid = errors.is_empty();
    for error in errors {
        out.field_error(root, error);
    }
    if selector.is_empty() && valid {
        let value = Some("{}".to_owned());
        let detail = "an empty selector would own every pod of the namespace";
        out.field_error(root, error("spec.selector", validate::Reason::Invalid, value, detail));
    } else if valid && !selector.matches(&template.labels) {
        let value = Some(format!("{:?}", template.labels));
        let detail = format!("must match spec.selector, which is {selector}");
        let path = "spec.template.metadata.labels";
        out.field_error(root, error(path, validate::Reason::Invalid, value, &detail));
    }
}

/// The texts that are addresses, each once, in order.
fn each_once<'a>(texts: impl Iterator<Item = &'a str>) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for address in texts.filter_map(|text| text.parse().ok()) {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses
}
