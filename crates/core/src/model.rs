//! The state that a [`Program`](crate::Program) is compiled from. An invalid policy cannot be
//! expressed here: see [`crate::validate`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use crate::labels::{Labels, Operator, Requirement, Selector};
use crate::net::{IpNet, Protocol};

/// The label that every namespace carries, whatever its manifest says (SEMANTICS 11).
pub const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// The annotation of a Namespace that says its [`LogLevel`].
pub const LOG_ANNOTATION: &str = "portcullis.dev/log";

/// Which connections of a pod are reported.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LogLevel {
    /// None.
    None,
    /// Those that are refused.
    #[default]
    Denied,
    /// All.
    All,
}

impl LogLevel {
    /// The level of this name.
    pub fn of_name(name: &str) -> Option<LogLevel> {
        match name {
            "none" => Some(LogLevel::None),
            "denied" => Some(LogLevel::Denied),
            "all" => Some(LogLevel::All),
            _ => None,
        }
    }
}

/// The annotation of a NetworkPolicy or Namespace that says its [`Mode`].
pub const MODE_ANNOTATION: &str = "portcullis.dev/mode";

/// What becomes of what policies isolate and no rule allows (SEMANTICS 28).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// It is refused.
    #[default]
    Enforce,
    /// It passes, and is counted and reported as what would be refused.
    Audit,
}

impl Mode {
    /// Both.
    pub const ALL: [Mode; 2] = [Mode::Enforce, Mode::Audit];

    /// Its name, as [`MODE_ANNOTATION`] has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Mode::Enforce => "enforce",
            Mode::Audit => "audit",
        }
    }

    /// The mode of this name.
    pub fn of_name(name: &str) -> Option<Mode> {
        Mode::ALL.into_iter().find(|mode| mode.as_str() == name)
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Everything policies speak of, as known at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cluster {
    /// The labels of each namespace that has an object in the input. A namespace that is only
    /// mentioned need not be here: it then has [`NAMESPACE_NAME_LABEL`] alone (SEMANTICS 11).
    pub namespaces: BTreeMap<String, Labels>,
    /// The modes of those namespaces that say one. It is that of their policies that say none.
    pub modes: BTreeMap<String, Mode>,
    /// The pods, in input order.
    pub pods: Vec<Pod>,
    /// The nodes.
    pub nodes: Vec<Node>,
    /// The Services.
    pub services: Vec<Service>,
    /// The policies, in input order. Order never matters (SEMANTICS 3).
    pub policies: Vec<Policy>,
    /// What lets connections in from outside. No policy speaks of it.
    pub routing: Routing,
    /// Where pods without an address will get theirs from; empty if nobody has said. It only makes
    /// fewer answers undetermined.
    pub pod_cidrs: Vec<IpNet>,
}

impl Cluster {
    /// The labels of a namespace, with [`NAMESPACE_NAME_LABEL`] always there and always right.
    pub fn namespace_labels(&self, name: &str) -> Labels {
        let mut labels = self.namespaces.get(name).cloned().unwrap_or_default();
        labels.insert(NAMESPACE_NAME_LABEL.to_owned(), name.to_owned());
        labels
    }

    /// The mode of a policy: its own, or that of its namespace (SEMANTICS 28).
    pub fn mode(&self, policy: &Policy) -> Mode {
        policy.mode.or_else(|| self.modes.get(&policy.namespace).copied()).unwrap_or_default()
    }
}

/// A pod, or one of the pods that a workload's template stands for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pod {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.labels`.
    pub labels: Labels,
    /// The workload that owns it, if one does: the outermost owner, so a Deployment and not its
    /// ReplicaSet.
    pub workload: Option<Workload>,
    /// `spec.nodeName`.
    pub node: Option<String>,
    /// `spec.hostNetwork`. Such a pod is its node to the network: never a subject and never
    /// matched by a selector (SEMANTICS 12).
    pub host_network: bool,
    /// Phase `Succeeded` or `Failed`: neither subject nor peer (SEMANTICS 13).
    pub finished: bool,
    /// `status.podIPs`. Empty before it has an address, and for a template.
    pub addresses: Vec<IpAddr>,
    /// The ports of its containers and restartable init containers, in order.
    pub ports: Vec<ContainerPort>,
    /// Whether nothing is said of its containers, and so of its ports. The API asks for at least
    /// one container, so this is a pod that the input tells in part.
    pub ports_unknown: bool,
}

impl Pod {
    /// Whether no policy can tell the pods apart, wherever they are: they have one namespace, equal
    /// labels, and the same names of ports.
    pub(crate) fn is_like(&self, other: &Pod) -> bool {
        self.namespace == other.namespace
            && self.labels == other.labels
            && self.named_ports() == other.named_ports()
    }

    /// Its ports that have names, ascending, each once. Of a pod that is told in part there are none.
    pub(crate) fn named_ports(&self) -> Vec<ContainerPort> {
        let ports: &[ContainerPort] = if self.ports_unknown { &[] } else { &self.ports };
        let named: BTreeSet<&ContainerPort> = ports.iter().filter(|p| p.name.is_some()).collect();
        named.into_iter().cloned().collect()
    }
}

/// The controller of a pod.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Workload {
    /// The kind, as the API spells it: `Deployment`.
    pub kind: String,
    /// `metadata.name`. The namespace is that of the pod.
    pub name: String,
}

/// A port that a container declares.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerPort {
    /// `name`.
    pub name: Option<String>,
    /// `containerPort`.
    pub port: u16,
    /// `protocol`; TCP where absent.
    pub protocol: Protocol,
}

/// A node and its addresses: those of type `InternalIP` in `status.addresses`. What goes to another
/// address of it may leave the node and be forwarded back, so that is an address like any other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    /// `metadata.name`.
    pub name: String,
    /// Its addresses. Traffic between these and the pods of this node is always allowed
    /// (SEMANTICS 7).
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
}

/// A Service. In offline answers it means its endpoints (SEMANTICS 19).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Service {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.labels`, by which monitors find it. No policy asks for them.
    pub labels: Labels,
    /// `spec.selector`; `None` where there is none, and so no endpoints of its own.
    pub selector: Option<Labels>,
    /// `spec.clusterIPs` that are addresses.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.clusterIP: None`: its name stands for the pods themselves, and nothing rewrites
    /// addresses or ports.
    pub headless: bool,
    /// `spec.ports`.
    pub ports: Vec<ServicePort>,
}

/// One port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// `name`.
    pub name: Option<String>,
    /// `protocol`; TCP where absent.
    pub protocol: Protocol,
    /// `port`.
    pub port: u16,
    /// `targetPort`; the same number as `port` where absent.
    pub target: TargetPort,
}

/// `ServicePort.targetPort`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum TargetPort {
    /// A number.
    Number(u16),
    /// The name of a container port of the endpoint.
    Name(String),
}

/// Ingresses and routes of the Gateway API, and what tells who serves them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Routing {
    /// In input order.
    pub routes: Vec<Route>,
    /// By name of an IngressClass: `spec.controller`.
    pub ingress_classes: BTreeMap<String, String>,
    /// By namespace and name of a Gateway: `spec.gatewayClassName`.
    pub gateways: BTreeMap<(String, String), String>,
}

/// An Ingress, or a route of the Gateway API: it makes a controller open connections to the
/// endpoints of Services.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Route {
    /// The kind, as the API spells it: `Ingress`, `HTTPRoute`.
    pub kind: String,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `spec.ingressClassName` of an Ingress, or the annotation that was before it.
    pub class: Option<String>,
    /// The Gateways that a route is attached to: namespace and name.
    pub gateways: Vec<(String, String)>,
    /// Where it leads, each once.
    pub backends: Vec<Backend>,
}

/// A port of a Service that a route leads to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Backend {
    /// The namespace of the Service.
    pub namespace: String,
    /// Its name.
    pub service: String,
    /// `port` of the Service: a number or a name.
    pub port: TargetPort,
}

/// Ingress or egress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// Connections to the subject.
    Ingress,
    /// Connections from the subject.
    Egress,
}

impl Direction {
    /// Egress, then ingress: the order in which a connection meets them.
    pub const ALL: [Direction; 2] = [Direction::Egress, Direction::Ingress];

    /// The name of the section in a spec: `ingress` or `egress`.
    pub fn section(self) -> &'static str {
        match self {
            Direction::Ingress => "ingress",
            Direction::Egress => "egress",
        }
    }

    /// What a rule of this direction calls its peers: `from` or `to`.
    pub fn peers(self) -> &'static str {
        match self {
            Direction::Ingress => "from",
            Direction::Egress => "to",
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.section())
    }
}

/// A valid NetworkPolicy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// Which pods of its namespace it isolates.
    pub subject: Selector,
    /// The ingress rules if it isolates for ingress, `None` if it does not: `policyTypes` is
    /// resolved (SEMANTICS 2).
    pub ingress: Option<Vec<Rule>>,
    /// The same for egress.
    pub egress: Option<Vec<Rule>>,
    /// The mode that it says itself; [`Cluster::mode`] is the one it is in.
    pub mode: Option<Mode>,
}

impl Policy {
    /// The rules of a direction, `None` if the policy does not isolate for it.
    pub fn rules(&self, direction: Direction) -> Option<&[Rule]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }
}

/// One rule: any of the peers on any of the ports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rule {
    /// Empty means every peer, also outside the cluster (SEMANTICS 14).
    pub peers: Vec<Peer>,
    /// Empty means every port and every protocol (SEMANTICS 15).
    pub ports: Vec<PortRule>,
}

impl Rule {
    /// A rule that allows nothing: what is left of one that cannot be read (SEMANTICS 22). Its
    /// peer asks for a label with one of no values.
    pub fn nothing() -> Rule {
        let never = Requirement { key: String::new(), operator: Operator::In(Vec::new()) };
        let pods = Selector { match_expressions: vec![never], ..Selector::default() };
        let nobody = Peer::Pods { pods: Some(pods), namespaces: None };
        Rule { peers: vec![nobody], ports: Vec::new() }
    }
}

/// Who may be at the other end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    /// Pods, by their labels and those of their namespace. Never both `None` (SEMANTICS 9).
    Pods {
        /// `podSelector`; `None` means all pods of the namespaces.
        pods: Option<Selector>,
        /// `namespaceSelector`; `None` means the policy's own namespace.
        namespaces: Option<Selector>,
    },
    /// `ipBlock`: addresses, whoever owns them (SEMANTICS 18).
    Block(IpBlock),
}

/// Addresses of a CIDR less some.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IpBlock {
    /// `cidr`, host bits cleared.
    pub cidr: IpNet,
    /// `except`, host bits cleared; each strictly inside `cidr`.
    pub except: Vec<IpNet>,
}

impl IpBlock {
    /// Whether the address is in the block and in none of its exceptions.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.cidr.contains(&address) && !self.except.iter().any(|e| e.contains(&address))
    }
}

/// One item of `ports`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRule {
    /// The protocol; TCP where the policy names none (SEMANTICS 16).
    pub protocol: Protocol,
    /// Which ports of it.
    pub port: PortMatch,
}

/// `port` and `endPort` of a `NetworkPolicyPort`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortMatch {
    /// `port` absent: all ports of the protocol, from 0 to 65535.
    All,
    /// `port` to `endPort`, both included; equal where there is no `endPort`.
    Range(u16, u16),
    /// A name, resolved at the destination pod (SEMANTICS 17).
    Named(String),
}
