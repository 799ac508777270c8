//! The names that people give to the two ends of a connection, and what they stand for.

use std::net::IpAddr;

use portcullis_core::model::{Cluster, ContainerPort, Pod, Service, ServicePort, TargetPort};
use portcullis_core::net::{ByAddress, IpNet, Protocol, Traffic};
use portcullis_core::program::{End, Fact, Role};
use rustc_hash::FxHashMap;

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// One address.
    Address(IpAddr),
    /// One pod, by index in the cluster.
    Pod(usize),
    /// The pods of a workload, by index; never empty.
    Workload(Vec<usize>),
    /// A Service, by index.
    Service(usize),
}

/// Why a question cannot be asked. The text says what was expected and what there is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct NotAnEnd(String);

impl NotAnEnd {
    pub(crate) fn new(why: String) -> NotAnEnd {
        NotAnEnd(why)
    }
}

/// One connection that a question is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flow {
    pub(crate) source: End,
    pub(crate) destination: End,
    pub(crate) traffic: Traffic,
}

/// Finds what names stand for. Built once, so that many questions are cheap.
pub(crate) struct Names<'a> {
    cluster: &'a Cluster,
    pods: FxHashMap<(&'a str, &'a str), usize>,
    workloads: FxHashMap<(&'a str, String, &'a str), Vec<usize>>,
    services: FxHashMap<(&'a str, &'a str), usize>,
    cluster_ips: ByAddress<usize>,
}

impl<'a> Names<'a> {
    pub(crate) fn of(cluster: &'a Cluster) -> Self {
        let mut workloads: FxHashMap<_, Vec<usize>> = FxHashMap::default();
        let mut pods = FxHashMap::default();
        for (i, pod) in cluster.pods.iter().enumerate() {
            pods.insert((pod.namespace.as_str(), pod.name.as_str()), i);
            if let Some(owner) = &pod.workload {
                let key = (pod.namespace.as_str(), owner.kind.to_lowercase(), owner.name.as_str());
                workloads.entry(key).or_default().push(i);
            }
        }
        let services = cluster.services.iter().enumerate();
        let cluster_ips =
            services.clone().flat_map(|(i, s)| s.cluster_ips.iter().map(move |a| (*a, i)));
        Names {
            cluster,
            pods,
            workloads,
            cluster_ips: cluster_ips.collect(),
            services: services.map(|(i, s)| ((s.namespace.as_str(), s.name.as_str()), i)).collect(),
        }
    }

    /// What a name stands for: an address; `[namespace/]name` of a pod, else of a workload, else
    /// of a Service; `[namespace/]kind/name`.
    pub(crate) fn find(&self, text: &str, namespace: &str) -> Result<Target, NotAnEnd> {
        // Nearly every name of many is of this kind.
        if let Some(pod) = text.split_once('/').and_then(|name| self.pods.get(&name)) {
            return self.unfinished(Target::Pod(*pod));
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            // An IPv4 address in IPv6 clothes is what packets have: IPv4.
            let address = address.to_canonical();
            let service = self.cluster_ips.get(&address);
            return Ok(service.map_or(Target::Address(address), |i| Target::Service(*i)));
        }
        let parts: Vec<&str> = text.split('/').collect();
        let found = match parts.as_slice() {
            [name] => self.by_name(namespace, name),
            [kind, name] if full_kind(kind).is_some() && !self.has_namespace(kind) => {
                self.by_kind(namespace, kind, name)
            }
            [namespace, name] => self.by_name(namespace, name),
            [namespace, kind, name] => self.by_kind(namespace, kind, name),
            _ => None,
        };
        let found = found.ok_or_else(|| NotAnEnd(self.unknown(text, namespace, &parts)))?;
        self.unfinished(found)
    }

    fn unfinished(&self, target: Target) -> Result<Target, NotAnEnd> {
        match target {
            Target::Pod(pod) if self.pod(pod).finished => Err(NotAnEnd(format!(
                "{} has finished: it has given its address back, and is no end of a connection",
                shown_pod(self.pod(pod))
            ))),
            target => Ok(target),
        }
    }

    fn has_namespace(&self, name: &str) -> bool {
        self.cluster.namespaces.contains_key(name)
            || self.cluster.pods.iter().any(|pod| pod.namespace == name)
    }

    fn by_name(&self, namespace: &str, name: &str) -> Option<Target> {
        if let Some(pod) = self.pods.get(&(namespace, name)) {
            return Some(Target::Pod(*pod));
        }
        let workload = WORKLOADS.iter().find_map(|(kind, _)| self.by_kind(namespace, kind, name));
        let service = || self.services.get(&(namespace, name)).map(|i| Target::Service(*i));
        workload.or_else(service)
    }

    fn by_kind(&self, namespace: &str, kind: &str, name: &str) -> Option<Target> {
        match full_kind(kind) {
            Some("pod") => self.pods.get(&(namespace, name)).map(|i| Target::Pod(*i)),
            Some("service") => self.services.get(&(namespace, name)).map(|i| Target::Service(*i)),
            known => {
                // Owners may be of any kind, also of those that operators bring.
                let kind = known.map_or_else(|| kind.to_lowercase(), str::to_owned);
                let pods = self.workloads.get(&(namespace, kind, name))?;
                Some(Target::Workload(pods.clone()))
            }
        }
    }

    fn unknown(&self, text: &str, namespace: &str, parts: &[&str]) -> String {
        let form = "write namespace/pod, namespace/kind/name, a Service, or an IP address";
        if text.parse::<IpNet>().is_ok() {
            return format!("{text:?} is a block of addresses: write one address of it");
        }
        let (namespace, name) = match parts {
            [name] => (namespace, *name),
            [namespace, name] | [namespace, _, name] => (*namespace, *name),
            _ => return format!("{text:?} names nothing: {form}"),
        };
        let same_name = self
            .cluster
            .pods
            .iter()
            .filter(|p| p.name == name || p.workload.as_ref().is_some_and(|w| w.name == name));
        let mut like: Vec<String> = same_name.map(shown_pod).collect();
        if like.is_empty() {
            let here = self.cluster.pods.iter().filter(|p| p.namespace == namespace);
            like = here.map(shown_pod).collect();
        }
        like.dedup();
        let hint = match like.len() {
            0 => format!("the input has no pod in namespace {namespace:?}"),
            n if n > 5 => format!("there are {}, … ({n} in all)", like[..5].join(", ")),
            _ => format!("there is {}", like.join(", ")),
        };
        format!("{text:?} is not in the input: {hint}; {form}")
    }

    /// The connections that a question is about: every pod of a workload, every endpoint of a
    /// Service (at its target port). A pod never stands for its own replica.
    pub(crate) fn flows(
        &self,
        from: &Target,
        to: &Target,
        port: &PortName,
    ) -> Result<Vec<Flow>, NotAnEnd> {
        let sources: Vec<End> = match from {
            Target::Address(address) => vec![End::Address(*address)],
            Target::Pod(pod) => vec![End::Pod(*pod)],
            Target::Workload(pods) => pods.iter().map(|p| End::Pod(*p)).collect(),
            Target::Service(i) => {
                let service = &self.cluster.services[*i];
                let what = format!("{}/{}", service.namespace, service.name);
                return Err(NotAnEnd(format!(
                    "Service {what} opens no connections: name the pod or workload that does"
                )));
            }
        };
        let destinations = self.destinations(to, port)?;
        // A pod of several is asked about the others: by itself it always reaches itself.
        let several = destinations.len() > 1 || sources.len() > 1;
        let among = several && matches!(to, Target::Workload(_) | Target::Service(_));
        let mut flows = Vec::new();
        for source in &sources {
            for (destination, traffic) in &destinations {
                if !(among && source == destination) {
                    let (source, destination, traffic) = (*source, *destination, *traffic);
                    flows.push(Flow { source, destination, traffic });
                }
            }
        }
        Ok(flows)
    }

    /// The ends that a name accepts connections at: every pod of a workload, every endpoint of a
    /// Service (at its target port).
    pub(crate) fn destinations(
        &self,
        to: &Target,
        port: &PortName,
    ) -> Result<Vec<(End, Traffic)>, NotAnEnd> {
        Ok(match to {
            Target::Address(address) => vec![(End::Address(*address), port.traffic()?)],
            Target::Pod(pod) => self.on(*pod, port)?,
            Target::Workload(pods) => {
                let each = pods.iter().map(|pod| self.on(*pod, port));
                each.collect::<Result<Vec<_>, _>>()?.concat()
            }
            Target::Service(i) => self.endpoints(&self.cluster.services[*i], port)?,
        })
    }

    /// A pod with each number that it has a port at.
    fn on(&self, pod: usize, port: &PortName) -> Result<Vec<(End, Traffic)>, NotAnEnd> {
        let numbers = port.numbers(Some(self.pod(pod)))?;
        Ok(numbers.into_iter().map(|traffic| (End::Pod(pod), traffic)).collect())
    }

    fn pod(&self, index: usize) -> &'a Pod {
        &self.cluster.pods[index]
    }

    fn endpoints(
        &self,
        service: &Service,
        port: &PortName,
    ) -> Result<Vec<(End, Traffic)>, NotAnEnd> {
        let name = format!("{}/{}", service.namespace, service.name);
        let Some(selector) = &service.selector else {
            return Err(NotAnEnd(format!("Service {name} has no selector, and so no endpoints")));
        };
        // Without a protocol TCP is meant, unless the Service has the port on another one only.
        let mut fitting: Vec<_> =
            service.ports.iter().filter(|p| port.is_service_port(p)).collect();
        fitting.sort_by_key(|p| p.protocol);
        let Some(asked) = fitting.first() else {
            let ports = service.ports.iter().map(|p| format!("{}/{}", p.port, p.protocol));
            let ports = ports.collect::<Vec<_>>().join(", ");
            return Err(NotAnEnd(format!("Service {name} has no port {port}: it has {ports}")));
        };
        let mut endpoints = Vec::new();
        for i in self.pods_of(service) {
            let pod = self.pod(i);
            let number = match &asked.target {
                // Its name stands for the pods themselves: nothing rewrites the port.
                _ if service.headless => Some(asked.port),
                TargetPort::Number(number) => Some(*number),
                TargetPort::Name(name) => named_ports(pod, name, asked.protocol).next(),
            };
            let traffic = number.map(|n| Traffic::Port(asked.protocol, n));
            endpoints.extend(traffic.map(|t| (End::Pod(i), t)));
        }
        if endpoints.is_empty() {
            let labels = selector.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>();
            let labels = labels.join(",");
            return Err(NotAnEnd(format!(
                "Service {name} has no endpoints: no pod of the input has {labels} and its port"
            )));
        }
        Ok(endpoints)
    }

    /// The pods that a Service selects; none where it has no selector.
    pub(crate) fn pods_of(&self, service: &Service) -> Vec<usize> {
        let Some(selector) = &service.selector else { return Vec::new() };
        let selected = |pod: &Pod| {
            let labels = selector.iter().all(|(k, v)| pod.labels.get(k) == Some(v));
            pod.namespace == service.namespace && !pod.finished && labels
        };
        (0..self.cluster.pods.len()).filter(|i| selected(self.pod(*i))).collect()
    }

    /// What a fact is that an answer depends on and that the input does not tell.
    pub(crate) fn fact(&self, flow: &Flow, fact: Fact) -> String {
        let pod = |role| match flow.end(role) {
            End::Pod(pod) => Some(self.pod(pod)),
            End::Address(_) => None,
        };
        let name = |role| self.show(flow.end(role));
        match fact {
            Fact::NamespaceLabels(role) => {
                let namespace = pod(role).map_or("", |pod| pod.namespace.as_str());
                format!("the labels of namespace {namespace}, which has no object in the input")
            }
            Fact::Address(role) if pod(role).is_some_and(|pod| pod.host_network) => {
                format!("the address of the node of {}", name(role))
            }
            Fact::Address(role) => format!("the address of {}, which has none yet", name(role)),
            Fact::Node(role) => format!("the node that {} runs on", name(role)),
            Fact::Ports => {
                let name = name(Role::Destination);
                format!("the ports of {name}, of which the input has no containers")
            }
        }
    }

    /// How an end is called in answers.
    pub(crate) fn show(&self, end: End) -> String {
        match end {
            End::Pod(pod) => shown_pod(self.pod(pod)),
            End::Address(address) => address.to_string(),
        }
    }
}

impl Flow {
    fn end(&self, role: Role) -> End {
        match role {
            Role::Source => self.source,
            Role::Destination => self.destination,
        }
    }
}

/// `namespace/name`.
pub(crate) fn shown_pod(pod: &Pod) -> String {
    format!("{}/{}", pod.namespace, pod.name)
}

/// The kinds of workloads in lower case, with kubectl's short names.
const WORKLOADS: [(&str, &str); 7] = [
    ("deployment", "deploy"),
    ("statefulset", "sts"),
    ("daemonset", "ds"),
    ("replicaset", "rs"),
    ("job", "job"),
    ("cronjob", "cj"),
    ("replicationcontroller", "rc"),
];

/// A kind in any of the forms kubectl takes: `deploy`, `deployment`, `Deployments`.
fn full_kind(text: &str) -> Option<&'static str> {
    let singular = text.strip_suffix(['s', 'S']);
    let is = |full: &str, short: &str| {
        let forms = [Some(text), singular].into_iter().flatten();
        text.eq_ignore_ascii_case(short) || forms.into_iter().any(|t| t.eq_ignore_ascii_case(full))
    };
    let others = [("pod", "po"), ("service", "svc")];
    let mut kinds = WORKLOADS.iter().chain(&others);
    kinds.find(|(full, short)| is(full, short)).map(|(full, _)| *full)
}

/// The numbers that a pod has a port name at, in the order of its containers.
pub(crate) fn named_ports(pod: &Pod, name: &str, protocol: Protocol) -> impl Iterator<Item = u16> {
    let named = move |p: &&ContainerPort| p.name.as_deref() == Some(name) && p.protocol == protocol;
    pod.ports.iter().filter(named).map(|p| p.port)
}

/// A port as people write it: `80`, `53/udp`, `http`, `icmp`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PortName {
    /// A number or a name, and the protocol; `None` is TCP unless a name says otherwise.
    Port(Result<u16, String>, Option<Protocol>),
    /// ICMP, and whatever else has no ports.
    Other,
}

impl PortName {
    /// The traffic towards any address. A name has no number without a pod.
    pub(crate) fn traffic(&self) -> Result<Traffic, NotAnEnd> {
        match self.numbers(None)?.as_slice() {
            [traffic] => Ok(*traffic),
            _ => Err(NotAnEnd(format!("{self}: write a number here"))),
        }
    }

    /// The traffic towards a pod, or towards an address that is none. A pod may have a name at
    /// several numbers (SEMANTICS 17); without a protocol it is that of the first.
    pub(crate) fn numbers(&self, pod: Option<&Pod>) -> Result<Vec<Traffic>, NotAnEnd> {
        match self {
            PortName::Other => Ok(vec![Traffic::Other]),
            PortName::Port(Ok(number), protocol) => {
                Ok(vec![Traffic::Port(protocol.unwrap_or(Protocol::Tcp), *number)])
            }
            PortName::Port(Err(name), protocol) => {
                let Some(pod) = pod else {
                    let why = "only a pod has named ports: write a number here";
                    return Err(NotAnEnd(format!("{name:?}: {why}")));
                };
                let protocols = protocol.map_or(Protocol::ALL.to_vec(), |protocol| vec![protocol]);
                let mut found = protocols.into_iter().map(|protocol| {
                    let mut numbers: Vec<u16> = named_ports(pod, name, protocol).collect();
                    numbers.sort_unstable();
                    numbers.dedup();
                    numbers.into_iter().map(|n| Traffic::Port(protocol, n)).collect::<Vec<_>>()
                });
                found.find(|traffics| !traffics.is_empty()).ok_or_else(|| {
                    let ports = pod.ports.iter().filter_map(|p| p.name.clone()).collect::<Vec<_>>();
                    let has = if ports.is_empty() { "none".to_owned() } else { ports.join(", ") };
                    let pod = shown_pod(pod);
                    NotAnEnd(format!("{pod} has no port named {name:?}: it has {has}"))
                })
            }
        }
    }

    fn is_service_port(&self, port: &ServicePort) -> bool {
        match self {
            PortName::Port(asked, protocol) => {
                let same = match asked {
                    Ok(number) => port.port == *number,
                    Err(name) => port.name.as_deref() == Some(name),
                };
                same && protocol.is_none_or(|p| p == port.protocol)
            }
            PortName::Other => false,
        }
    }
}

impl std::str::FromStr for PortName {
    type Err = String;

    fn from_str(text: &str) -> Result<PortName, String> {
        let (port, protocol) = match text.split_once('/') {
            Some((port, protocol)) => (port, Some(protocol)),
            None => (text, None),
        };
        if protocol.is_none() && port.eq_ignore_ascii_case("icmp") {
            return Ok(PortName::Other);
        }
        let protocol = match protocol {
            None => None,
            Some(name) => Some(
                Protocol::from_api(&name.to_uppercase())
                    .ok_or_else(|| format!("unknown protocol {name:?}: write tcp, udp or sctp"))?,
            ),
        };
        if port.is_empty() {
            return Err("expected a port: 80, 53/udp, a port name, or icmp".to_owned());
        }
        let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
        if port.split_once('-').is_some_and(|(first, last)| number(first) && number(last)) {
            return Err(format!("{port} is no port but a range: write one port of it"));
        }
        if !number(port) {
            return Ok(PortName::Port(Err(port.to_owned()), protocol));
        }
        match port.parse() {
            Ok(0) | Err(_) => Err(format!("{port} is not a port: write one from 1 to 65535")),
            Ok(number) => Ok(PortName::Port(Ok(number), protocol)),
        }
    }
}

impl std::fmt::Display for PortName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            PortName::Other => f.write_str("ICMP"),
            PortName::Port(port, protocol) => {
                match port {
                    Ok(number) => write!(f, "{number}")?,
                    Err(name) => f.write_str(name)?,
                }
                protocol.map_or(Ok(()), |p| write!(f, "/{p}"))
            }
        }
    }
}
