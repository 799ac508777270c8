//! Which objects are read.

use crate::decode::{Problems, closest};
use crate::diagnostic::Reason;
use crate::tree::{Entry, Node, Value};

/// The kinds that are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    NetworkPolicy,
    Namespace,
    Pod,
    Node,
    Service,
    Deployment,
    ReplicaSet,
    StatefulSet,
    DaemonSet,
    Job,
    CronJob,
    ReplicationController,
    Ingress,
    IngressClass,
    Gateway,
    HttpRoute,
    GrpcRoute,
    TcpRoute,
    TlsRoute,
}

/// What to do with an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Class {
    /// Read it.
    Read(Kind),
    /// It is a list: its items are the objects.
    List,
    /// Another kind, counted by this name.
    PassOver(String),
}

impl Kind {
    const ALL: [Kind; 19] = [
        Kind::NetworkPolicy,
        Kind::Namespace,
        Kind::Pod,
        Kind::Node,
        Kind::Service,
        Kind::Deployment,
        Kind::ReplicaSet,
        Kind::StatefulSet,
        Kind::DaemonSet,
        Kind::Job,
        Kind::CronJob,
        Kind::ReplicationController,
        Kind::Ingress,
        Kind::IngressClass,
        Kind::Gateway,
        Kind::HttpRoute,
        Kind::GrpcRoute,
        Kind::TcpRoute,
        Kind::TlsRoute,
    ];

    /// As the API spells it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Kind::NetworkPolicy => "NetworkPolicy",
            Kind::Namespace => "Namespace",
            Kind::Pod => "Pod",
            Kind::Node => "Node",
            Kind::Service => "Service",
            Kind::Deployment => "Deployment",
            Kind::ReplicaSet => "ReplicaSet",
            Kind::StatefulSet => "StatefulSet",
            Kind::DaemonSet => "DaemonSet",
            Kind::Job => "Job",
            Kind::CronJob => "CronJob",
            Kind::ReplicationController => "ReplicationController",
            Kind::Ingress => "Ingress",
            Kind::IngressClass => "IngressClass",
            Kind::Gateway => "Gateway",
            Kind::HttpRoute => "HTTPRoute",
            Kind::GrpcRoute => "GRPCRoute",
            Kind::TcpRoute => "TCPRoute",
            Kind::TlsRoute => "TLSRoute",
        }
    }

    fn api_version(self) -> &'static str {
        match self {
            Kind::NetworkPolicy | Kind::Ingress | Kind::IngressClass => "networking.k8s.io/v1",
            Kind::Gateway | Kind::HttpRoute | Kind::GrpcRoute => "gateway.networking.k8s.io/v1",
            Kind::TcpRoute | Kind::TlsRoute => "gateway.networking.k8s.io/v1alpha2",
            Kind::Namespace
            | Kind::Pod
            | Kind::Node
            | Kind::Service
            | Kind::ReplicationController => "v1",
            Kind::Deployment | Kind::ReplicaSet | Kind::StatefulSet | Kind::DaemonSet => "apps/v1",
            Kind::Job | Kind::CronJob => "batch/v1",
        }
    }

    pub(crate) fn is_namespaced(self) -> bool {
        !matches!(self, Kind::Namespace | Kind::Node | Kind::IngressClass)
    }

    /// Whether it says how connections come in. What policies mean does not depend on it.
    pub(crate) fn is_routing(self) -> bool {
        matches!(
            self,
            Kind::Ingress
                | Kind::IngressClass
                | Kind::Gateway
                | Kind::HttpRoute
                | Kind::GrpcRoute
                | Kind::TcpRoute
                | Kind::TlsRoute
        )
    }

    /// Whether a version of the API has it, in the form that is read.
    fn is_in(self, version: &str) -> bool {
        let group = |version: &str| version.split('/').next().map(str::to_owned);
        let gateway = self.is_routing() && group(self.api_version()) == group(version);
        // The versions of the Gateway API differ in nothing that is read.
        version == self.api_version() || gateway && version.starts_with("gateway.")
    }
}

/// What an object is, by its `apiVersion` and `kind`; for an item of a list that names neither,
/// by those of the list. `None` where that cannot be told, which is then reported.
pub(crate) fn classify(root: &Node<'_>, list: &[Entry<'_>], out: &mut Problems) -> Option<Class> {
    let Value::Map(entries) = &root.value else {
        let found = crate::decode::found(root);
        let message = format!("expected an object with apiVersion and kind, found {found}");
        out.error(root.at, String::new(), Reason::NotAnObject, message);
        return None;
    };
    let from_list = list_item_type(list).filter(|_| {
        !entries.iter().any(|e| (e.key == "kind" || e.key == "apiVersion") && !e.node.is_null())
    });
    let (version, kind) = match from_list {
        Some((version, kind)) => (version.to_owned(), kind.to_owned()),
        None => {
            let missing = |name: &str| root.get(name).is_none_or(Node::is_null);
            if is_tests(entries) {
                return Some(Class::PassOver("file of tests".to_owned()));
            }
            if missing("kind") && missing("apiVersion") {
                let message = "not an object: apiVersion and kind are not set".to_owned();
                out.error(root.at, String::new(), Reason::NotAnObject, message);
                return None;
            }
            let kind = field(root, "kind", out);
            let version = field(root, "apiVersion", out);
            (version?, kind?)
        }
    };
    let at = root.find("kind");
    let group = version.split_once('/').map_or("", |(group, _)| group);
    // Custom resources cannot have such groups, so this is a mistake and not another kind.
    let built_in = !group.contains('.') || group.ends_with(".k8s.io");
    if let Some(known) = Kind::ALL.into_iter().find(|k| k.as_str() == kind) {
        if known.is_in(&version) {
            return Some(Class::Read(known));
        }
        // Older versions of these are another form of what no verdict depends on.
        if built_in && !known.is_routing() {
            let at = root.find("apiVersion");
            let right = known.api_version();
            let message =
                format!("no kind {kind:?} in version {version:?}: write `apiVersion: {right}`");
            out.error(at, "apiVersion".to_owned(), Reason::WrongVersion, message);
            return None;
        }
        if known == Kind::NetworkPolicy {
            let message = format!(
                "a NetworkPolicy of {group} is another kind than that of networking.k8s.io: passed over"
            );
            out.warn(at, "kind".to_owned(), Reason::OtherGroup, message);
        }
        return Some(Class::PassOver(if built_in { kind } else { format!("{kind}.{group}") }));
    }
    let meant = built_in.then(|| misspelt(&kind)).flatten();
    // What stands in the group of NetworkPolicy is one, or is known to be something else.
    let unknown = group == "networking.k8s.io" && !NETWORKING.contains(&kind.as_str());
    let malformed = !kind.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if meant.is_some() || unknown || malformed {
        let mut message = format!("no kind {kind:?} in version {version:?}");
        if let Some(meant) = meant.or_else(|| closest(&kind, NETWORKING)) {
            message += &format!(", did you mean {meant:?}?");
        }
        out.error(at, "kind".to_owned(), Reason::WrongVersion, message);
        return None;
    }
    if kind.ends_with("List") && root.entries().iter().any(|e| e.key == "items")
        || kind == "List" && version == "v1"
    {
        return Some(Class::List);
    }
    if kind.ends_with("NetworkPolicy") {
        let message = format!(
            "{kind} decides about connections too, and is not read: answers are given without it"
        );
        out.warn(at, "kind".to_owned(), Reason::OtherGroup, message);
    }
    Some(Class::PassOver(if built_in { kind } else { format!("{kind}.{group}") }))
}

/// Whether a document is one of `portcullis test`, which may lie beside the manifests.
fn is_tests(entries: &[Entry<'_>]) -> bool {
    entries.iter().any(|e| e.key == "tests")
        && entries.iter().all(|e| ["tests", "manifests", "podCIDRs"].contains(&&*e.key))
}

/// The type that the items of a `PodList` have without saying so.
fn list_item_type<'n>(list: &'n [Entry<'_>]) -> Option<(&'n str, &'n str)> {
    let text = |key: &str| list.iter().find(|e| e.key == key)?.node.text();
    let kind = text("kind")?.strip_suffix("List").filter(|kind| !kind.is_empty())?;
    Some((text("apiVersion")?, kind))
}

fn field(root: &Node<'_>, name: &str, out: &mut Problems) -> Option<String> {
    let node = root.get(name).filter(|n| !n.is_null());
    match node.map(|n| (n, n.text())) {
        Some((_, Some(text))) if !text.is_empty() => return Some(text.to_owned()),
        Some((node, _)) => {
            let found = crate::decode::found(node);
            let message = format!("{name}: expected a name, found {found}");
            out.error(root.find(name), name.to_owned(), Reason::NotAnObject, message);
        }
        None => {
            let message = format!("not an object: {name} is not set");
            out.error(root.at, name.to_owned(), Reason::NotAnObject, message);
        }
    }
    None
}

/// The kinds of networking.k8s.io, in any version.
const NETWORKING: &[&str] = &[
    "NetworkPolicy",
    "NetworkPolicyList",
    "Ingress",
    "IngressList",
    "IngressClass",
    "IngressClassList",
    "IPAddress",
    "IPAddressList",
    "ServiceCIDR",
    "ServiceCIDRList",
];

/// A kind that is read here, in other case or in the plural.
fn misspelt(kind: &str) -> Option<&'static str> {
    let plural = |name: &str| match name.strip_suffix('y') {
        Some(stem) => format!("{stem}ies"),
        None => format!("{name}s"),
    };
    let names = Kind::ALL.into_iter().map(Kind::as_str);
    names.into_iter().find(|n| n.eq_ignore_ascii_case(kind) || plural(n).eq_ignore_ascii_case(kind))
}
