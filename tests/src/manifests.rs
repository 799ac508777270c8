//! Worlds as the manifests that a user could have written.

use std::fmt::{self, Display, Write};

use portcullis_core::api::{
    IntOrString, IpBlock, LabelSelector, NetworkPolicy, NetworkPolicySpec, Peer, Port, Rule,
};
use portcullis_core::labels::Labels;
use portcullis_core::model::{
    ContainerPort, MODE_ANNOTATION, Mode, Node, Pod, Service, ServicePort, TargetPort,
};

use crate::oracle::World;

/// All objects of a world, one YAML document each: Nodes, Namespaces, Pods, Services, policies.
pub fn yaml(world: &World) -> String {
    let cluster = &world.cluster;
    let mut out = String::new();
    for node in &cluster.nodes {
        document(&mut out, "v1", "Node", &node_yaml(node));
    }
    for (name, labels) in &cluster.namespaces {
        let mode = cluster.modes.get(name).copied().map(Mode::as_str);
        document(&mut out, "v1", "Namespace", &(metadata(None, name, labels) + &annotation(mode)));
    }
    for pod in &cluster.pods {
        document(&mut out, "v1", "Pod", &pod_yaml(pod));
    }
    for service in &cluster.services {
        document(&mut out, "v1", "Service", &service_yaml(service));
    }
    for policy in &world.policies {
        document(&mut out, "networking.k8s.io/v1", "NetworkPolicy", &policy_yaml(policy));
    }
    out
}

fn document(out: &mut String, version: &str, kind: &str, body: &str) {
    if !out.is_empty() {
        out.push_str("---\n");
    }
    let _ = write!(out, "apiVersion: {version}\nkind: {kind}\n{body}");
}

fn metadata(namespace: Option<&str>, name: &str, labels: &Labels) -> String {
    let mut out = String::from("metadata:\n");
    if let Some(namespace) = namespace {
        let _ = writeln!(out, "  namespace: {}", Scalar(namespace));
    }
    let _ = writeln!(out, "  name: {}", Scalar(name));
    if !labels.is_empty() {
        let _ = writeln!(out, "  labels: {}", map(labels));
    }
    out
}

fn annotation(mode: Option<&str>) -> String {
    let mode = mode.map(|mode| format!("  annotations: {{{MODE_ANNOTATION}: {}}}\n", Scalar(mode)));
    mode.unwrap_or_default()
}

fn node_yaml(node: &Node) -> String {
    let mut out = metadata(None, &node.name, &Labels::new());
    if !node.pod_cidrs.is_empty() {
        let cidrs = list(node.pod_cidrs.iter().map(|cidr| scalar(&cidr.to_string())));
        let _ = writeln!(out, "spec:\n  podCIDRs: {cidrs}");
    }
    if !node.addresses.is_empty() {
        out.push_str("status:\n  addresses:\n");
        for address in &node.addresses {
            let address = scalar(&address.to_string());
            let _ = writeln!(out, "  - {{type: InternalIP, address: {address}}}");
        }
    }
    out
}

fn pod_yaml(pod: &Pod) -> String {
    let mut out = metadata(Some(&pod.namespace), &pod.name, &pod.labels);
    out.push_str("spec:\n");
    if let Some(node) = &pod.node {
        let _ = writeln!(out, "  nodeName: {}", Scalar(node));
    }
    if pod.host_network {
        out.push_str("  hostNetwork: true\n");
    }
    let containers = if pod.ports_unknown { Vec::new() } else { containers(&pod.ports) };
    out.push_str(if containers.is_empty() { "  containers: []\n" } else { "  containers:\n" });
    for (number, ports) in containers.iter().enumerate() {
        let _ = writeln!(out, "  - name: c{number}\n    image: example.com/app");
        if !ports.is_empty() {
            out.push_str("    ports:\n");
        }
        for port in *ports {
            let name = port.name.as_deref().map(|name| format!("name: {}, ", Scalar(name)));
            let name = name.unwrap_or_default();
            let (number, protocol) = (port.port, port.protocol);
            let _ = writeln!(out, "    - {{{name}containerPort: {number}, protocol: {protocol}}}");
        }
    }
    let phase = if pod.finished { "Succeeded" } else { "Running" };
    let _ = writeln!(out, "status:\n  phase: {phase}");
    if !pod.addresses.is_empty() {
        let ips = pod.addresses.iter().map(|ip| format!("{{ip: {}}}", scalar(&ip.to_string())));
        let _ = writeln!(out, "  podIPs: {}", list(ips));
    }
    out
}

/// The ports by container, in their order: a name may stand only once in a container.
fn containers(mut ports: &[ContainerPort]) -> Vec<&[ContainerPort]> {
    let mut containers = Vec::new();
    loop {
        let repeats = |&n: &usize| {
            ports[n].name.is_some() && ports[..n].iter().any(|port| port.name == ports[n].name)
        };
        let end = (0..ports.len()).find(repeats).unwrap_or(ports.len());
        containers.push(&ports[..end]);
        ports = &ports[end..];
        if ports.is_empty() {
            return containers;
        }
    }
}

fn service_yaml(service: &Service) -> String {
    let mut out = metadata(Some(&service.namespace), &service.name, &Labels::new());
    out.push_str("spec:\n");
    if let Some(selector) = &service.selector {
        let _ = writeln!(out, "  selector: {}", map(selector));
    }
    if !service.cluster_ips.is_empty() {
        let ips = service.cluster_ips.iter().map(|ip| scalar(&ip.to_string()));
        let _ = writeln!(out, "  clusterIPs: {}", list(ips));
    }
    if !service.ports.is_empty() {
        out.push_str("  ports:\n");
    }
    for port in &service.ports {
        let _ = writeln!(out, "  - {}", service_port(port));
    }
    out
}

fn service_port(port: &ServicePort) -> String {
    let name = port.name.as_deref().map(|name| format!("name: {}, ", Scalar(name)));
    let (name, number, protocol) = (name.unwrap_or_default(), port.port, port.protocol);
    let target = match &port.target {
        TargetPort::Number(target) => target.to_string(),
        TargetPort::Name(target) => scalar(target),
    };
    format!("{{{name}port: {number}, protocol: {protocol}, targetPort: {target}}}")
}

fn policy_yaml(policy: &NetworkPolicy) -> String {
    let NetworkPolicySpec { pod_selector, ingress, egress, policy_types } = &policy.spec;
    let mut out = metadata(Some(&policy.namespace), &policy.name, &policy.labels);
    out.push_str(&annotation(policy.mode.as_deref()));
    let _ = writeln!(out, "spec:\n  podSelector: {}", selector(pod_selector));
    if let Some(types) = policy_types {
        let _ = writeln!(out, "  policyTypes: {}", list(types.iter().map(|t| scalar(t))));
    }
    rules(&mut out, "ingress", "from", ingress.as_deref());
    rules(&mut out, "egress", "to", egress.as_deref());
    out
}

fn rules(out: &mut String, section: &str, peers: &str, rules: Option<&[Rule]>) {
    match rules {
        None => {}
        Some([]) => {
            let _ = writeln!(out, "  {section}: []");
        }
        Some(rules) => {
            let _ = writeln!(out, "  {section}:");
            for rule in rules {
                rule_yaml(out, peers, rule);
            }
        }
    }
}

fn rule_yaml(out: &mut String, peers: &str, rule: &Rule) {
    let mut fields = Vec::new();
    let items = rule.peers.as_deref().map(|items| items.iter().map(peer).collect());
    fields.extend(items.map(|items| (peers, items)));
    let items = rule.ports.as_deref().map(|items| items.iter().map(port).collect());
    fields.extend(items.map(|items: Vec<String>| ("ports", items)));
    if fields.is_empty() {
        out.push_str("  - {}\n");
    }
    let mut lead = "-";
    for (name, items) in fields {
        let empty = if items.is_empty() { " []" } else { "" };
        let _ = writeln!(out, "  {lead} {name}:{empty}");
        for item in items {
            let _ = writeln!(out, "    - {item}");
        }
        lead = " ";
    }
}

fn peer(peer: &Peer) -> String {
    let Peer { pod_selector, namespace_selector, ip_block } = peer;
    let mut fields = Vec::new();
    fields.extend(namespace_selector.as_ref().map(|s| ("namespaceSelector", selector(s))));
    fields.extend(pod_selector.as_ref().map(|s| ("podSelector", selector(s))));
    fields.extend(ip_block.as_ref().map(|b| ("ipBlock", block(b))));
    flow_map(fields)
}

fn block(block: &IpBlock) -> String {
    let mut fields = vec![("cidr", scalar(&block.cidr))];
    if !block.except.is_empty() {
        fields.push(("except", list(block.except.iter().map(|e| scalar(e)))));
    }
    flow_map(fields)
}

fn port(port: &Port) -> String {
    let mut fields = Vec::new();
    fields.extend(port.port.as_ref().map(|port| match port {
        IntOrString::Int(number) => ("port", number.to_string()),
        IntOrString::String(name) => ("port", scalar(name)),
    }));
    fields.extend(port.end_port.map(|end| ("endPort", end.to_string())));
    fields.extend(port.protocol.as_deref().map(|protocol| ("protocol", scalar(protocol))));
    flow_map(fields)
}

fn selector(selector: &LabelSelector) -> String {
    let mut fields = Vec::new();
    if !selector.match_labels.is_empty() {
        fields.push(("matchLabels", map(&selector.match_labels)));
    }
    if !selector.match_expressions.is_empty() {
        let requirements = selector.match_expressions.iter().map(|requirement| {
            let mut fields = vec![
                ("key", scalar(&requirement.key)),
                ("operator", scalar(&requirement.operator)),
            ];
            if !requirement.values.is_empty() {
                fields.push(("values", list(requirement.values.iter().map(|v| scalar(v)))));
            }
            flow_map(fields)
        });
        fields.push(("matchExpressions", list(requirements)));
    }
    flow_map(fields)
}

fn map(labels: &Labels) -> String {
    flow_map(labels.iter().map(|(key, value)| (Scalar(key), scalar(value))))
}

fn flow_map<K: Display>(fields: impl IntoIterator<Item = (K, String)>) -> String {
    let fields = fields.into_iter().map(|(key, value)| format!("{key}: {value}"));
    format!("{{{}}}", fields.collect::<Vec<_>>().join(", "))
}

fn list(items: impl Iterator<Item = String>) -> String {
    format!("[{}]", items.collect::<Vec<_>>().join(", "))
}

fn scalar(text: &str) -> String {
    Scalar(text).to_string()
}

/// A string, in quotes wherever YAML could take it for something else.
struct Scalar<'a>(&'a str);

impl Display for Scalar<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = ["null", "true", "false", "yes", "no", "on", "off", "y", "n"];
        let plain = self.0.starts_with(|c: char| c.is_ascii_alphabetic())
            && self.0.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c))
            && !words.contains(&self.0.to_lowercase().as_str());
        let dotted = !self.0.is_empty()
            && self.0.split('.').count() == 4
            && self.0.chars().all(|c| c.is_ascii_digit() || "./".contains(c));
        if plain || dotted {
            return f.write_str(self.0);
        }
        f.write_char('"')?;
        for c in self.0.chars() {
            match c {
                '"' | '\\' => write!(f, "\\{c}")?,
                ' '..='~' => f.write_char(c)?,
                _ => write!(f, "\\U{:08X}", u32::from(c))?,
            }
        }
        f.write_char('"')
    }
}
