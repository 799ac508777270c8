//! Ingresses and routes of the Gateway API.
//!
//! No verdict depends on them, so they are taken as they are: what is not there leads nowhere.

use portcullis_core::model::{Backend, Route, TargetPort};

use crate::kind::Kind;
use crate::metadata::Metadata;
use crate::objects::Object;
use crate::scalar::Resolved;
use crate::tree::{Node, Position};

/// The annotation that named the class before `spec.ingressClassName` did.
const CLASS: &str = "kubernetes.io/ingress.class";

/// Decodes an object of a kind that [`Kind::is_routing`].
pub(crate) fn decode(kind: Kind, root: &Node<'_>, metadata: &Metadata) -> Object {
    let (namespace, name) = (metadata.namespace.clone(), metadata.name.clone());
    let spec = |field: &str| text(root.get("spec"), field);
    match kind {
        Kind::IngressClass => Object::IngressClass(name, spec("controller").unwrap_or_default()),
        Kind::Gateway => {
            Object::Gateway(namespace, name, spec("gatewayClassName").unwrap_or_default())
        }
        _ => {
            let class = || {
                let annotations = root.get("metadata").and_then(|m| m.get("annotations"));
                spec("ingressClassName").or_else(|| text(annotations, CLASS))
            };
            let class = if kind == Kind::Ingress { class() } else { None };
            let backends = backends(kind, root, &namespace);
            let mut backends: Vec<Backend> = backends.into_iter().map(|(_, b)| b).collect();
            backends.sort_unstable();
            backends.dedup();
            let gateways = parents(root, &namespace);
            let kind_name = kind.as_str().to_owned();
            let route = Route { kind: kind_name, namespace, name, class, gateways, backends };
            Object::Route(kind, route)
        }
    }
}

/// Where an Ingress or a route of a namespace leads, in the order written, each with the place of
/// the name of the Service.
pub(crate) fn backends(kind: Kind, root: &Node<'_>, namespace: &str) -> Vec<(Position, Backend)> {
    let Some(spec) = root.get("spec") else { return Vec::new() };
    let rules = items(spec, "rules").iter();
    if kind == Kind::Ingress {
        let paths = rules.filter_map(|rule| rule.get("http")).flat_map(|h| items(h, "paths"));
        let backends = paths.filter_map(|path| path.get("backend"));
        let backends = backends.chain(spec.get("defaultBackend"));
        return backends.filter_map(|backend| of_ingress(backend, namespace)).collect();
    }
    let backends = rules.flat_map(|rule| items(rule, "backendRefs"));
    backends.filter_map(|backend| of_route(backend, namespace)).collect()
}

fn of_ingress(backend: &Node<'_>, namespace: &str) -> Option<(Position, Backend)> {
    let service = backend.get("service")?;
    let port = service.get("port")?;
    let port = match text(Some(port), "name") {
        Some(name) => TargetPort::Name(name),
        None => TargetPort::Number(number(port, "number")?),
    };
    to_service(service, namespace.to_owned(), port)
}

fn of_route(backend: &Node<'_>, namespace: &str) -> Option<(Position, Backend)> {
    let of = |field: &str| text(Some(backend), field);
    let is = |field: &str, usual: &str| of(field).is_none_or(|found| found == usual);
    if !is("kind", "Service") || !is("group", "") {
        return None;
    }
    let namespace = of("namespace").unwrap_or_else(|| namespace.to_owned());
    to_service(backend, namespace, TargetPort::Number(number(backend, "port")?))
}

fn to_service(
    reference: &Node<'_>,
    namespace: String,
    port: TargetPort,
) -> Option<(Position, Backend)> {
    let at = reference.get("name")?.at;
    Some((at, Backend { namespace, service: text(Some(reference), "name")?, port }))
}

/// The Gateways that a route is attached to.
fn parents(root: &Node<'_>, namespace: &str) -> Vec<(String, String)> {
    let parents = root.get("spec").map_or(&[][..], |spec| items(spec, "parentRefs"));
    let gateway = |parent: &Node<'_>| {
        if text(Some(parent), "kind").is_some_and(|kind| kind != "Gateway") {
            return None;
        }
        let of = text(Some(parent), "namespace").unwrap_or_else(|| namespace.to_owned());
        Some((of, text(Some(parent), "name")?))
    };
    parents.iter().filter_map(gateway).collect()
}

fn items<'n, 't>(node: &'n Node<'t>, field: &str) -> &'n [Node<'t>] {
    node.get(field).map_or(&[], Node::items)
}

/// A text that is not empty.
fn text(node: Option<&Node<'_>>, field: &str) -> Option<String> {
    let text = node?.get(field)?.text()?;
    (!text.is_empty()).then(|| text.to_owned())
}

fn number(node: &Node<'_>, field: &str) -> Option<u16> {
    match node.get(field)?.resolve()? {
        Resolved::Int(number) => number.try_into().ok(),
        _ => None,
    }
}
