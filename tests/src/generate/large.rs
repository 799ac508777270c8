//! Clusters of any size that look like real ones: applications of a few pods in namespaces of
//! teams, and policies in the shapes that people write.

use std::net::{Ipv4Addr, Ipv6Addr};

use portcullis_core::api::{
    IntOrString, IpBlock, LabelSelector, LabelSelectorRequirement, NetworkPolicy,
    NetworkPolicySpec, Peer, Port, Rule,
};
use portcullis_core::labels::Labels;
use portcullis_core::model::{ContainerPort, Node, Pod};
use portcullis_core::net::Protocol;

use crate::oracle::World;

/// How many of each thing a cluster has, exactly.
#[derive(Debug, Clone, Copy)]
pub struct Counts {
    /// Namespaces, at least one.
    pub namespaces: usize,
    /// Nodes, from 1 to 250.
    pub nodes: usize,
    /// Pods, at most 60 000 for each node.
    pub pods: usize,
    /// Policies.
    pub policies: usize,
}

/// How many pods an application has, in namespaces with enough of them for every kind.
const REPLICAS: usize = 4;

/// A named port of an application.
type NamedPort = (&'static str, u16, Protocol);

/// What kinds of application there are: name, tier, ports.
const KINDS: &[(&str, &str, &[NamedPort])] = &[
    ("web", "frontend", &[("http", 8080, Protocol::Tcp), ("metrics", 9090, Protocol::Tcp)]),
    ("api", "backend", &[("http", 8000, Protocol::Tcp), ("grpc", 9000, Protocol::Tcp)]),
    ("db", "data", &[("postgres", 5432, Protocol::Tcp), ("metrics", 9187, Protocol::Tcp)]),
    ("dns", "infra", &[("dns", 53, Protocol::Udp), ("dns-tcp", 53, Protocol::Tcp)]),
    ("worker", "backend", &[("metrics", 9100, Protocol::Tcp)]),
    ("signal", "backend", &[("diameter", 3868, Protocol::Sctp), ("http", 8081, Protocol::Tcp)]),
];

/// A dual-stack cluster; equal arguments give equal clusters. One pod in ten has only an IPv4
/// address, one only an IPv6 address. Policies select an application or a namespace each; about
/// one in six isolates a whole namespace.
pub fn cluster(seed: u64, counts: Counts) -> World {
    let mut random = Random(seed);
    let namespaces = counts.namespaces.max(1);
    let each = counts.pods.div_ceil(namespaces);
    let apps = each.div_ceil(REPLICAS).max(each.min(KINDS.len())).max(1);
    let mut world = World::default();
    for n in 0..namespaces {
        let env = random.pick(&["dev", "staging", "prod"]);
        let labels = labels(&[("env", env), ("team", &format!("team-{}", n % 7))]);
        world.cluster.namespaces.insert(namespace(n), labels);
    }
    world.cluster.nodes = (0..counts.nodes.max(1) as u8).map(node).collect();
    for n in 0..counts.pods {
        let app = n / namespaces % apps;
        world.cluster.pods.push(pod(&mut random, n, n % namespaces, app, counts.nodes.max(1)));
    }
    for n in 0..counts.policies {
        let spec = policy(&mut random, n / namespaces, namespaces, apps);
        let name = format!("policy-{n}");
        let namespace = namespace(n % namespaces);
        world.policies.push(NetworkPolicy { name, namespace, spec, ..NetworkPolicy::default() });
    }
    world
}

fn namespace(number: usize) -> String {
    format!("space-{number}")
}

fn node(number: u8) -> Node {
    let v4 = Ipv4Addr::new(192, 168, 0, number + 1);
    let v6 = Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, u16::from(number) + 1);
    let pod_cidrs = [format!("10.{number}.0.0/16"), format!("fd00:0:0:{number:x}::/64")];
    Node {
        name: format!("node-{number}"),
        addresses: vec![v4.into(), v6.into()],
        pod_cidrs: pod_cidrs.iter().filter_map(|cidr| cidr.parse().ok()).collect(),
    }
}

fn pod(random: &mut Random, number: usize, space: usize, app: usize, nodes: usize) -> Pod {
    let (kind, tier, ports) = KINDS[app % KINDS.len()];
    let (node, on_node) = (number % nodes, number / nodes);
    let v4 = Ipv4Addr::new(10, node as u8, (on_node / 250) as u8, (on_node % 250 + 2) as u8);
    let v6 = Ipv6Addr::new(0xfd00, 0, 0, node as u16, 0, 0, 0, on_node as u16 + 2);
    let addresses = match random.below(10) {
        0 => vec![v4.into()],
        1 => vec![v6.into()],
        _ => vec![v4.into(), v6.into()],
    };
    let version = if random.below(4) == 0 { "v2" } else { "v1" };
    let port = |&(name, port, protocol): &NamedPort| ContainerPort {
        name: Some(name.to_owned()),
        port,
        protocol,
    };
    Pod {
        namespace: namespace(space),
        name: format!("{kind}-{number}"),
        labels: labels(&[("app", &app_name(app)), ("tier", tier), ("version", version)]),
        node: Some(format!("node-{node}")),
        addresses,
        ports: ports.iter().map(port).collect(),
        ..Pod::default()
    }
}

/// `db-7`: the kind goes with the number, so that a policy can name one it has not seen.
fn app_name(number: usize) -> String {
    format!("{}-{}", KINDS[number % KINDS.len()].0, number / KINDS.len())
}

/// The `nth` policy of a namespace: its shape goes by turns, its choices are random.
fn policy(random: &mut Random, nth: usize, namespaces: usize, apps: usize) -> NetworkPolicySpec {
    let app_number = random.below(apps);
    let app = selector(&[("app", &app_name(app_number))]);
    let ports = KINDS[app_number % KINDS.len()].2;
    let (port_name, number, protocol) = random.pick(ports);
    let own_port = |named: bool| Port {
        protocol: Some(protocol.as_str().to_owned()),
        port: Some(match named {
            true => IntOrString::String(port_name.to_owned()),
            false => IntOrString::Int(number.into()),
        }),
        end_port: None,
    };
    let other_app = pods(&[("app", &app_name(random.below(apps)))]);
    let other_space = namespace(random.below(namespaces));
    let by_name = selector(&[("kubernetes.io/metadata.name", &other_space)]);
    match nth % 12 {
        // An application takes its callers, on its port.
        0 => ingress(app, vec![other_app], vec![own_port(false)]),
        // The same by the name of the port, for two callers.
        1 => {
            let second = pods(&[("tier", random.pick(&["frontend", "backend"]))]);
            ingress(app, vec![other_app, second], vec![own_port(true)])
        }
        // Default deny, then everything within the namespace.
        2 => ingress(selector(&[]), vec![pods(&[])], vec![]),
        // Another namespace scrapes the metrics.
        3 => {
            let scraper = Peer { namespace_selector: Some(by_name), ..pods(&[("tier", "infra")]) };
            let metrics = Some(IntOrString::String("metrics".to_owned()));
            let metrics = Port { port: metrics, ..Port::default() };
            ingress(selector(&[]), vec![scraper], vec![metrics])
        }
        // An application calls another, and DNS anywhere in the cluster.
        4 => {
            let dns =
                Peer { namespace_selector: Some(selector(&[])), ..pods(&[("tier", "infra")]) };
            let dns_ports = vec![port(Protocol::Udp, 53, None), port(Protocol::Tcp, 53, None)];
            let calls = Rule { peers: Some(vec![other_app]), ports: None };
            let resolves = Rule { peers: Some(vec![dns]), ports: Some(dns_ports) };
            egress(app, vec![calls, resolves])
        }
        // All of some environments, by expressions.
        5 => {
            let some = LabelSelectorRequirement {
                key: "env".to_owned(),
                operator: random.pick(&["In", "NotIn"]).to_owned(),
                values: vec!["dev".to_owned(), random.pick(&["staging", "prod"]).to_owned()],
            };
            let spaces = LabelSelector { match_expressions: vec![some], ..selector(&[]) };
            let peer = Peer { namespace_selector: Some(spaces), ..Peer::default() };
            ingress(app, vec![peer], vec![own_port(false)])
        }
        // An API outside the cluster, less a part of it.
        6 => {
            let api = block("198.51.100.0/24", &["198.51.100.128/25"]);
            let rule =
                Rule { peers: Some(vec![api]), ports: Some(vec![port(Protocol::Tcp, 443, None)]) };
            egress(app, vec![rule])
        }
        // Half of the pods by their addresses, on a range of ports.
        7 => {
            let peers = vec![block("10.0.0.0/9", &["10.0.0.0/25"]), block("fd00::/32", &[])];
            ingress(app, peers, vec![port(Protocol::Tcp, 8000, Some(9099))])
        }
        // One version of an application, from everywhere.
        8 => {
            let subject = LabelSelector {
                match_expressions: vec![LabelSelectorRequirement {
                    key: "version".to_owned(),
                    operator: "NotIn".to_owned(),
                    values: vec!["v1".to_owned()],
                }],
                ..app
            };
            ingress(subject, vec![], vec![own_port(false), own_port(true)])
        }
        // A tier talks to another, both ways written down.
        9 => {
            let (upper, lower) = (pods(&[("tier", "frontend")]), pods(&[("tier", "data")]));
            NetworkPolicySpec {
                pod_selector: selector(&[("tier", "backend")]),
                ingress: Some(vec![Rule { peers: Some(vec![upper]), ports: None }]),
                egress: Some(vec![Rule { peers: Some(vec![lower]), ports: None }]),
                policy_types: Some(vec!["Ingress".to_owned(), "Egress".to_owned()]),
            }
        }
        // A whole namespace as caller, the port by its name.
        10 => {
            let peer = Peer { namespace_selector: Some(by_name), ..Peer::default() };
            ingress(app, vec![peer], vec![own_port(true)])
        }
        // Nothing out, for one application.
        _ => egress(app, vec![]),
    }
}

fn ingress(pod_selector: LabelSelector, peers: Vec<Peer>, ports: Vec<Port>) -> NetworkPolicySpec {
    let rule = Rule {
        peers: (!peers.is_empty()).then_some(peers),
        ports: (!ports.is_empty()).then_some(ports),
    };
    let policy_types = Some(vec!["Ingress".to_owned()]);
    NetworkPolicySpec { pod_selector, ingress: Some(vec![rule]), egress: None, policy_types }
}

fn egress(pod_selector: LabelSelector, rules: Vec<Rule>) -> NetworkPolicySpec {
    let policy_types = Some(vec!["Egress".to_owned()]);
    NetworkPolicySpec { pod_selector, ingress: None, egress: Some(rules), policy_types }
}

fn labels(labels: &[(&str, &str)]) -> Labels {
    labels.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect()
}

fn selector(match_labels: &[(&str, &str)]) -> LabelSelector {
    LabelSelector { match_labels: labels(match_labels), match_expressions: Vec::new() }
}

fn pods(match_labels: &[(&str, &str)]) -> Peer {
    Peer { pod_selector: Some(selector(match_labels)), ..Peer::default() }
}

fn block(cidr: &str, except: &[&str]) -> Peer {
    let except = except.iter().map(|&e| e.to_owned()).collect();
    Peer { ip_block: Some(IpBlock { cidr: cidr.to_owned(), except }), ..Peer::default() }
}

fn port(protocol: Protocol, first: i32, end_port: Option<i32>) -> Port {
    let protocol = Some(protocol.as_str().to_owned());
    Port { protocol, port: Some(IntOrString::Int(first)), end_port }
}

/// The SplitMix64 generator (Steele, Lea and Flood, 2014): a cluster must not change with the
/// version of a library.
pub struct Random(u64);

impl Random {
    /// Equal seeds give equal numbers.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// A number below the bound, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}
