//! Ingresses and routes of the Gateway API.
//!
//! No verdict depends on them, so they are taken as they are: what is not there leads nowhere.

use portcullis_core::model::{Backend, Route, TargetPort};

use crate::kind::Kind;
use crate::metadata::Metadata;
use crate::objects::Object;
use crate::scalar::Resolved;
use crate::tree::Node;

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
            let (class, backends) = match kind {
                Kind::Ingress => {
                    let annotations = root.get("metadata").and_then(|m| m.get("annotations"));
                    (spec("ingressClassName").or_else(|| text(annotations, CLASS)), ingress(root))
                }
                _ => (None, route(root)),
            };
            let mut backends: Vec<Backend> = backends
                .into_iter()
                .map(|(own, service, port)| Backend {
                    namespace: own.unwrap_or_else(|| namespace.clone()),
                    service,
                    port,
                })
                .collect();
            backends.sort_unstable();
            backends.dedup();
            let gateways = parents(root, &namespace);
            let kind_name = kind.as_str().to_owned();
            let route = Route { kind: kind_name, namespace, name, class, gateways, backends };
            Object::Route(kind, route)
        }
    }
}

/// The namespace if it is another than that of the route, the Service and its port.
type Reference = (Option<String>, String, TargetPort);

fn ingress(root: &Node<'_>) -> Vec<Reference> {
    let Some(spec) = root.get("spec") else { return Vec::new() };
    let paths = items(spec, "rules").iter().filter_map(|rule| rule.get("http"));
    let paths = paths.flat_map(|http| items(http, "paths"));
    let backends = paths.filter_map(|path| path.get("backend")).chain(spec.get("defaultBackend"));
    let service = |backend: &Node<'_>| {
        let service = backend.get("service")?;
        let port = service.get("port")?;
        let port = match text(Some(port), "name") {
            Some(name) => TargetPort::Name(name),
            None => TargetPort::Number(number(port, "number")?),
        };
        Some((None, text(Some(service), "name")?, port))
    };
    backends.filter_map(service).collect()
}

fn route(root: &Node<'_>) -> Vec<Reference> {
    let rules = root.get("spec").map_or(&[][..], |spec| items(spec, "rules"));
    let backend = |reference: &Node<'_>| {
        let is = |field: &str, usual: &str| {
            text(Some(reference), field).is_none_or(|found| found == usual)
        };
        if !is("kind", "Service") || !is("group", "") {
            return None;
        }
        let port = number(reference, "port")?;
        let name = text(Some(reference), "name")?;
        Some((text(Some(reference), "namespace"), name, TargetPort::Number(port)))
    };
    rules.iter().flat_map(|rule| items(rule, "backendRefs")).filter_map(backend).collect()
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
