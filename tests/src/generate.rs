//! Random clusters and policies, for property tests, for the lab and for benchmarks.

mod invalid;
mod large;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use portcullis_core::api::{
    IntOrString, IpBlock, LabelSelector, LabelSelectorRequirement, NetworkPolicy,
    NetworkPolicySpec, Peer, Port, Rule,
};
use portcullis_core::labels::Labels;
use portcullis_core::model::{Cluster, ContainerPort, Mode, Node, Pod};
use portcullis_core::net::{Protocol, Traffic, next_address, previous_address};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::{Just, Strategy, any};
use proptest::prop_oneof;
use proptest::sample::select;

use crate::oracle::{End, World};

pub use invalid::{Invalid, invalid};
pub use large::{Counts, Random, cluster};

/// How many of each thing a random world has at most.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Namespaces that pods and policies are in: at most 4.
    pub namespaces: usize,
    /// Nodes with an object; pods can be on one more, that has none.
    pub nodes: usize,
    /// Pods: at most 200.
    pub pods: usize,
    /// Policies.
    pub policies: usize,
}

impl Size {
    /// Few enough of everything that every flow between all ends can be tried.
    pub const SMALL: Size = Size { namespaces: 2, nodes: 2, pods: 4, policies: 3 };
    /// Policies that overlap in every way.
    pub const MEDIUM: Size = Size { namespaces: 4, nodes: 3, pods: 12, policies: 10 };
}

/// Something to ask about a world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// Who opens the connection.
    pub source: End,
    /// To whom.
    pub destination: End,
    /// On what.
    pub traffic: Traffic,
}

// Small alphabets, so that selectors hit about as often as they miss. The first of each is what
// a failing case shrinks to.
const NAMESPACES: &[&str] = &["dev", "prod", "ops", "test"];
const POD_KEYS: &[&str] = &["app", "tier", "example.com/role"];
const NAMESPACE_KEYS: &[&str] = &["env", "team"];
const VALUES: &[&str] = &["a", "b", ""];
const PORT_NAMES: &[&str] = &["http", "dns", "web"];
const NUMBERS: &[u16] = &[80, 53, 8080, 81, 79, 1, 65535, 65534];
const OUTSIDE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7)),
];
/// What random blocks lie around: pods, nodes, the outside, and both ends of a family.
const ANCHORS_V4: &[[u8; 4]] = &[
    [10, 0, 0, 1],
    [10, 0, 1, 2],
    [10, 0, 2, 3],
    [192, 168, 0, 1],
    [198, 51, 100, 7],
    [0, 0, 0, 0],
    [255, 255, 255, 255],
];
const ANCHORS_V6: &[[u16; 8]] = &[
    [0xfd00, 0, 0, 0, 0, 0, 0, 1],
    [0xfd00, 0, 0, 0, 0, 0, 1, 2],
    [0xfd00, 0, 0, 0, 0, 0, 2, 3],
    [0xfd01, 0, 0, 0, 0, 0, 0, 1],
    [0x2001, 0xdb8, 0, 0, 0, 0, 0, 7],
    [0; 8],
    [0xffff; 8],
];

/// A world that an API server would accept, with every feature of the API in it.
pub fn world(size: Size) -> impl Strategy<Value = World> {
    let names = &NAMESPACES[..size.namespaces.clamp(1, NAMESPACES.len())];
    let mode = option::weighted(0.3, select(&Mode::ALL[..]));
    let namespaces = btree_map(select(names), (namespace_labels(), mode), 0..=names.len());
    // The families of every node, and how many have an object.
    let nodes = (vec(families(), size.nodes + 1), 0..=size.nodes);
    let pods = vec(pod(names, size.nodes), 0..=size.pods);
    let policies = vec(policy(names), 0..=size.policies);
    (namespaces, nodes, pods, policies).prop_map(|(namespaces, nodes, pods, policies)| {
        let (families, objects) = nodes;
        let nodes: Vec<Node> = (0..).zip(&families).map(node).take(objects).collect();
        let mut cluster = Cluster { nodes, ..Cluster::default() };
        for (name, (labels, mode)) in namespaces {
            cluster.modes.extend(mode.map(|mode| (name.to_owned(), mode)));
            cluster.namespaces.insert(name.to_owned(), labels);
        }
        for draft in pods {
            draft.settle(&mut cluster, &families);
        }
        let mut world = World { cluster, policies };
        for (index, policy) in world.policies.iter_mut().enumerate() {
            policy.name = format!("policy-{index}");
        }
        world
    })
}

/// Flows worth asking about: between all pods, and all addresses where something changes, on all
/// ports where something changes. No more than `most`, evenly spread; the same for equal worlds.
pub fn flows(world: &World, most: usize) -> Vec<Flow> {
    let (ends, traffic) = (ends(world), traffic(world));
    let all = ends.len() * ends.len() * traffic.len();
    // A prime that is no factor of the count: all flows in an order that mixes them.
    (0..all.min(most))
        .map(|n| n * 1_000_003 % all)
        .map(|n| Flow {
            source: ends[n / traffic.len() % ends.len()],
            destination: ends[n / traffic.len() / ends.len()],
            traffic: traffic[n % traffic.len()],
        })
        .collect()
}

/// Which pods claim the address of another one, and whether they are alike but for their names.
pub type Disputes = Vec<(u8, u8, bool)>;

/// Some disputes about addresses, or none.
pub fn disputes() -> impl Strategy<Value = Disputes> {
    vec((any::<u8>(), any::<u8>(), any::<bool>()), 0..4)
}

/// Has pods claim the addresses of others.
pub fn dispute(cluster: &mut Cluster, disputes: &Disputes) {
    let claims = |(_, pod): &(usize, &Pod)| !pod.host_network && !pod.finished;
    let pods: Vec<usize> = cluster.pods.iter().enumerate().filter(claims).map(|(i, _)| i).collect();
    for (one, other, alike) in disputes.iter().filter(|_| !pods.is_empty()) {
        let pick = |n: &u8| pods[usize::from(*n) % pods.len()];
        let (of, other) = (pick(one), cluster.pods[pick(other)].clone());
        let pod = &mut cluster.pods[of];
        pod.addresses = other.addresses;
        if *alike {
            (pod.namespace, pod.labels, pod.ports) = (other.namespace, other.labels, other.ports);
        }
    }
}

/// Every pod, and every address that owns something, lies at the edge of a block, or is nobody's.
pub fn ends(world: &World) -> Vec<End> {
    let mut addresses = BTreeSet::from(OUTSIDE);
    addresses.extend(world.cluster.pods.iter().flat_map(|p| &p.addresses));
    addresses.extend(world.cluster.nodes.iter().flat_map(|n| &n.addresses));
    for block in peers(world).filter_map(|peer| peer.ip_block.as_ref()) {
        for cidr in block.except.iter().chain([&block.cidr]) {
            let Some((first, last)) = edges(cidr) else { continue };
            addresses.extend([first, last]);
            addresses.extend(previous_address(first));
            addresses.extend(next_address(last));
        }
    }
    let pods = (0..world.cluster.pods.len()).map(End::Pod);
    pods.chain(addresses.into_iter().map(End::Address)).collect()
}

/// Every port that a policy or a pod names, its neighbours, the ends of the range, and ICMP.
fn traffic(world: &World) -> Vec<Traffic> {
    let mut ports = BTreeSet::from([0, 1, u16::MAX]);
    let declared = world.cluster.pods.iter().flat_map(|pod| &pod.ports).map(|port| port.port);
    let numeric = rules(world).flat_map(|rule| rule.ports.iter().flatten()).flat_map(|port| {
        let first = match port.port {
            Some(IntOrString::Int(first)) => Some(first),
            _ => None,
        };
        [first, port.end_port].into_iter().flatten().filter_map(|n| u16::try_from(n).ok())
    });
    for port in declared.chain(numeric) {
        ports.extend([port.saturating_sub(1), port, port.saturating_add(1)]);
    }
    let numbered = ports.into_iter().flat_map(|n| Protocol::ALL.map(|p| Traffic::Port(p, n)));
    numbered.chain([Traffic::Other]).collect()
}

fn rules(world: &World) -> impl Iterator<Item = &Rule> {
    let specs = world.policies.iter().map(|policy| &policy.spec);
    specs.flat_map(|spec| spec.ingress.iter().chain(&spec.egress).flatten())
}

fn peers(world: &World) -> impl Iterator<Item = &Peer> {
    rules(world).flat_map(|rule| rule.peers.iter().flatten())
}

/// The first and the last address of a CIDR in one of its usual forms.
fn edges(cidr: &str) -> Option<(IpAddr, IpAddr)> {
    let (address, length) = cidr.split_once('/')?;
    let length: u32 = length.parse().ok()?;
    Some(match address.parse().ok()? {
        IpAddr::V4(address) => {
            let host = u32::MAX.checked_shr(length).unwrap_or(0);
            let address = u32::from(address);
            (Ipv4Addr::from(address & !host).into(), Ipv4Addr::from(address | host).into())
        }
        IpAddr::V6(address) => {
            let host = u128::MAX.checked_shr(length).unwrap_or(0);
            let address = u128::from(address);
            (Ipv6Addr::from(address & !host).into(), Ipv6Addr::from(address | host).into())
        }
    })
}

/// Which families something has addresses in: IPv4, IPv6.
type Families = (bool, bool);

fn families() -> impl Strategy<Value = Families> {
    prop_oneof![
        4 => Just((true, true)),
        2 => Just((true, false)),
        2 => Just((false, true)),
        1 => Just((false, false)),
    ]
}

fn addresses((v4, v6): Families, a: Ipv4Addr, b: Ipv6Addr) -> Vec<IpAddr> {
    v4.then_some(a.into()).into_iter().chain(v6.then_some(b.into())).collect()
}

fn node_addresses(number: u8, families: Families) -> Vec<IpAddr> {
    let v6 = Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, u16::from(number) + 1);
    addresses(families, Ipv4Addr::new(192, 168, 0, number + 1), v6)
}

fn node((number, &families): (u8, &Families)) -> Node {
    let addresses = node_addresses(number, families);
    Node { name: format!("node-{number}"), addresses, ..Node::default() }
}

/// A pod before it has its name and addresses.
#[derive(Debug, Clone)]
struct PodDraft {
    namespace: &'static str,
    labels: Labels,
    node: Option<u8>,
    families: Families,
    host_network: bool,
    finished: bool,
    /// A finished pod's address may belong to another by now.
    address_passed_on: bool,
    ports: Vec<ContainerPort>,
}

fn pod(names: &'static [&'static str], nodes: usize) -> impl Strategy<Value = PodDraft> {
    let labels = btree_map(select(POD_KEYS), select(VALUES), 0..=2).prop_map(owned);
    let node = option::weighted(0.8, 0..=nodes as u8);
    let flags = (rarely(8), rarely(8), any::<bool>());
    let ports = vec(container_port(), 0..=3);
    (select(names), labels, node, families(), flags, ports).prop_map(
        |(namespace, labels, node, families, flags, ports)| PodDraft {
            namespace,
            labels,
            node,
            families,
            host_network: flags.0,
            finished: flags.1,
            address_passed_on: flags.2,
            ports,
        },
    )
}

impl PodDraft {
    /// Gives the pod a name and addresses that fit the cluster, and puts it there.
    fn settle(self, cluster: &mut Cluster, nodes: &[Families]) {
        let number = cluster.pods.len() as u8;
        let subnet = self.node.unwrap_or(9);
        let v4 = Ipv4Addr::new(10, 0, subnet, number + 1);
        let v6 = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, subnet.into(), u16::from(number) + 1);
        let addresses = match (self.node, cluster.pods.last()) {
            _ if self.families == (false, false) => Vec::new(),
            (Some(node), _) if self.host_network => {
                let mut addresses = node_addresses(node, nodes[usize::from(node)]);
                // A pod may know fewer of its node's addresses than the node.
                addresses.truncate(if self.address_passed_on { 1 } else { 2 });
                addresses
            }
            (None, _) if self.host_network => Vec::new(),
            (_, Some(last)) if self.finished && self.address_passed_on && !last.host_network => {
                last.addresses.clone()
            }
            _ => addresses(self.families, v4, v6),
        };
        cluster.pods.push(Pod {
            namespace: self.namespace.to_owned(),
            name: format!("pod-{number}"),
            labels: self.labels,
            workload: None,
            node: self.node.map(|n| format!("node-{n}")),
            host_network: self.host_network,
            finished: self.finished,
            addresses,
            ports: self.ports,
            ports_unknown: false,
        });
    }
}

fn container_port() -> impl Strategy<Value = ContainerPort> {
    let name = option::weighted(0.8, select(PORT_NAMES));
    (name, select(NUMBERS), select(&Protocol::ALL[..])).prop_map(|(name, port, protocol)| {
        ContainerPort { name: name.map(str::to_owned), port, protocol }
    })
}

fn namespace_labels() -> impl Strategy<Value = Labels> {
    let labels = btree_map(select(NAMESPACE_KEYS), select(VALUES), 0..=2).prop_map(owned);
    // A manifest may state the label of its name, and may be wrong about it.
    let named = option::weighted(0.4, select(NAMESPACES));
    (labels, named).prop_map(|(mut labels, named)| {
        if let Some(named) = named {
            labels.insert("kubernetes.io/metadata.name".to_owned(), named.to_owned());
        }
        labels
    })
}

fn owned(labels: BTreeMap<&'static str, &'static str>) -> Labels {
    labels.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

/// True about once in so many times.
fn rarely(times: u32) -> impl Strategy<Value = bool> {
    prop_oneof![times - 1 => Just(false), 1 => Just(true)]
}

/// A valid policy without a name.
fn policy(names: &'static [&'static str]) -> impl Strategy<Value = NetworkPolicy> {
    let types = prop_oneof![
        3 => Just(None),
        1 => Just(Some(vec![])),
        2 => Just(Some(vec!["Ingress"])),
        2 => Just(Some(vec!["Egress"])),
        2 => Just(Some(vec!["Ingress", "Egress"])),
        1 => Just(Some(vec!["Egress", "Egress"])),
    ];
    let section = || option::weighted(0.7, vec(rule(), 0..=3));
    // One of these is no mode.
    let mode = option::weighted(0.3, select(&["audit", "enforce", "Audit"][..]));
    (select(names), pod_selector(), section(), section(), types, mode).prop_map(
        |(namespace, pod_selector, ingress, egress, types, mode)| NetworkPolicy {
            namespace: namespace.to_owned(),
            mode: mode.map(str::to_owned),
            spec: NetworkPolicySpec {
                pod_selector,
                ingress,
                egress,
                policy_types: types.map(|types| types.into_iter().map(str::to_owned).collect()),
            },
            ..NetworkPolicy::default()
        },
    )
}

fn rule() -> impl Strategy<Value = Rule> {
    let peers = prop_oneof![
        1 => Just(None),
        1 => Just(Some(vec![])),
        6 => vec(peer(), 1..=3).prop_map(Some),
    ];
    let ports = prop_oneof![
        2 => Just(None),
        1 => Just(Some(vec![])),
        6 => vec(port(), 1..=3).prop_map(Some),
    ];
    (peers, ports).prop_map(|(peers, ports)| Rule { peers, ports })
}

fn peer() -> impl Strategy<Value = Peer> {
    prop_oneof![
        3 => pod_selector().prop_map(|s| Peer { pod_selector: Some(s), ..Peer::default() }),
        2 => namespace_selector()
            .prop_map(|s| Peer { namespace_selector: Some(s), ..Peer::default() }),
        3 => (pod_selector(), namespace_selector()).prop_map(|(pods, namespaces)| Peer {
            pod_selector: Some(pods),
            namespace_selector: Some(namespaces),
            ip_block: None,
        }),
        4 => ip_block().prop_map(|b| Peer { ip_block: Some(b), ..Peer::default() }),
    ]
}

fn port() -> impl Strategy<Value = Port> {
    let protocol = option::of(select(&Protocol::ALL[..]).prop_map(|p| p.as_str().to_owned()));
    let number = || select(NUMBERS).prop_map(i32::from);
    let which = prop_oneof![
        3 => number().prop_map(|n| (Some(IntOrString::Int(n)), None)),
        2 => (number(), number())
            .prop_map(|(a, b)| (Some(IntOrString::Int(a.min(b))), Some(a.max(b)))),
        3 => select(PORT_NAMES).prop_map(|n| (Some(IntOrString::String(n.to_owned())), None)),
        1 => Just((None, None)),
    ];
    (protocol, which).prop_map(|(protocol, (port, end_port))| Port { protocol, port, end_port })
}

fn pod_selector() -> impl Strategy<Value = LabelSelector> {
    selector(POD_KEYS, VALUES)
}

fn namespace_selector() -> impl Strategy<Value = LabelSelector> {
    prop_oneof![
        selector(NAMESPACE_KEYS, VALUES),
        selector(&["kubernetes.io/metadata.name"], NAMESPACES),
    ]
}

fn selector(
    keys: &'static [&'static str],
    values: &'static [&'static str],
) -> impl Strategy<Value = LabelSelector> {
    let expression = (select(keys), select(&["In", "NotIn", "Exists", "DoesNotExist"][..]))
        .prop_flat_map(move |(key, operator)| {
            let count = if operator.ends_with("In") { 1..=2 } else { 0..=0 };
            vec(select(values), count).prop_map(move |values| LabelSelectorRequirement {
                key: key.to_owned(),
                operator: operator.to_owned(),
                values: values.into_iter().map(str::to_owned).collect(),
            })
        });
    let labels = btree_map(select(keys), select(values), 0..=1).prop_map(owned);
    let expressions = prop_oneof![2 => Just(vec![]), 1 => vec(expression, 1..=2)];
    (labels, expressions).prop_map(|(match_labels, match_expressions)| LabelSelector {
        match_labels,
        match_expressions,
    })
}

fn ip_block() -> impl Strategy<Value = IpBlock> {
    let v4 = select(ANCHORS_V4).prop_map(|a| u128::from(u32::from(Ipv4Addr::from(a))));
    let v6 = select(ANCHORS_V6).prop_map(|a| u128::from(Ipv6Addr::from(a)));
    let (v4, v6) = (v4.boxed(), v6.boxed());
    let v4_lengths = &[0, 1, 8, 16, 22, 24, 29, 30, 31, 32];
    let v6_lengths = &[0, 1, 16, 48, 64, 108, 112, 124, 126, 127, 128];
    prop_oneof![
        10 => block_of(32, v4.clone(), v4_lengths, |a, n| format!("{}/{n}", v4_address(a))),
        10 => block_of(128, v6, v6_lengths, |a, n| format!("{}/{n}", Ipv6Addr::from(a))),
        // Forms that the API server takes, too: leading zeros, and IPv4 written as IPv6.
        1 => block_of(32, v4.clone(), v4_lengths, |a, n| {
            let octets = v4_address(a).octets().map(|octet| format!("{octet:03}"));
            format!("{}/{n}", octets.join("."))
        }),
        1 => block_of(32, v4, v4_lengths, |a, n| format!("::ffff:{}/{}", v4_address(a), 96 + n)),
    ]
}

fn v4_address(bits: u128) -> Ipv4Addr {
    Ipv4Addr::from(bits as u32)
}

/// A block of a family with so many bits, around one of the anchors, with exceptions around
/// others where they lie inside.
fn block_of(
    width: u32,
    anchor: impl Strategy<Value = u128> + Clone + 'static,
    lengths: &'static [u32],
    write: fn(u128, u32) -> String,
) -> impl Strategy<Value = IpBlock> {
    let except = (anchor.clone(), 1..=width / 2, rarely(6));
    (anchor, select(lengths), rarely(6), vec(except, 0..=2)).prop_map(
        move |(anchor, length, host_bits, excepts)| {
            let host = |length: u32| u128::MAX.checked_shr(128 - width + length).unwrap_or(0);
            let cidr = |address: u128, length: u32, host_bits: bool| {
                write(if host_bits { address } else { address & !host(length) }, length)
            };
            let except = excepts.into_iter().filter(|_| length < width);
            let except = except.map(|(inner, longer, host_bits)| {
                let inside = anchor & !host(length) | inner & host(length);
                cidr(inside, (length + longer).min(width), host_bits)
            });
            IpBlock { except: except.collect(), cidr: cidr(anchor, length, host_bits) }
        },
    )
}
