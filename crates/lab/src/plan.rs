//! What a lab will consist of, as plain data: nothing here makes a system call.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use portcullis_core::model::{Cluster, IpBlock, Node, Peer, Pod};
use portcullis_core::net::{Family, next_address};

use crate::Error;
use crate::external::{self, is_usable, v4, v6};
use crate::families::Families;

/// What the user may choose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// How many nodes there are at least. Nodes that the input speaks of are always there.
    pub nodes: u32,
    /// The address families in use. Addresses of the input in another family are left out.
    pub families: Families,
    /// Hosts outside the cluster that there are in any case.
    pub hosts: Vec<IpAddr>,
    /// How the pods of a node are joined.
    pub topology: Topology,
    /// Whether the agents of a cluster write Events on pods of which connections were refused.
    pub events: bool,
    /// The most packets a second that the kernel tells each agent of a cluster, for each verdict and
    /// direction.
    pub log_rate: u32,
}

/// How the pods of a node are joined to each other and to the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Topology {
    /// Each by a link of its own, with a route to each address; as Calico and the ptp plugin do it.
    #[default]
    Routed,
    /// As ports of one bridge, as Flannel does it.
    Bridged,
}

impl Default for Options {
    /// One node, both families, the hosts outside that the policies ask for, routes to each pod, no
    /// Events, and a log in which nearly everything is: a lab is there to be looked at.
    fn default() -> Options {
        Options {
            nodes: 1,
            families: Families::Both,
            hosts: Vec::new(),
            topology: Topology::Routed,
            events: false,
            log_rate: 1000,
        }
    }
}

/// A lab as it will be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The input as the lab will have it, for the engine to compile: every pod on a node, every
    /// pod and node with its addresses. Finished pods are as they were: the lab leaves them out.
    pub cluster: Cluster,
    /// The address families in use.
    pub families: Families,
    /// How the pods of a node are joined.
    pub topology: Topology,
    /// Everything that can send and answer: pods, then nodes, then external hosts.
    pub endpoints: Vec<Endpoint>,
    /// Addresses of `ipBlock`s that should have a host, so that all that policies say can be tried,
    /// and have none because there are too many. [`Options::hosts`] can name them.
    pub left_out: Vec<IpAddr>,
    by_address: BTreeMap<IpAddr, usize>,
}

impl Plan {
    /// The endpoint that has the address, as an index into [`Plan::endpoints`]. For a
    /// `hostNetwork` pod that is its node.
    pub fn endpoint_at(&self, address: IpAddr) -> Option<usize> {
        self.by_address.get(&address).copied()
    }

    /// Drops all other endpoints.
    pub(crate) fn keep(&mut self, which: impl Fn(&Endpoint) -> bool) {
        self.endpoints.retain(which);
        self.by_address = by_address(&self.endpoints);
    }
}

fn by_address(endpoints: &[Endpoint]) -> BTreeMap<IpAddr, usize> {
    let numbered = endpoints.iter().enumerate();
    numbered.flat_map(|(i, e)| e.addresses.iter().map(move |address| (*address, i))).collect()
}

/// Something with addresses of its own. A `hostNetwork` pod is none: it is its node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// `namespace/pod`, the name of the node, or the address of the external host.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Its addresses; an external host has one.
    pub addresses: Vec<IpAddr>,
    /// The node that it is or runs on, as an index into the cluster's nodes; `None` outside.
    pub node: Option<usize>,
}

/// What an endpoint is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A pod with a network of its own.
    Pod,
    /// A node, and the `hostNetwork` pods on it.
    Node,
    /// A host outside the cluster.
    External,
}

/// The most nodes that can be asked for.
const MOST_NODES: u32 = 1000;

/// Plans the lab for a cluster.
///
/// Nodes are those of the input, by object or by `spec.nodeName`, and `node-1`, `node-2`, … up to
/// [`Options::nodes`]. Pods without a node are dealt out in turn. Addresses of the input are kept;
/// pods without one get one per family from 10.244.N.0/24 and fd00:10:244:N::/64 for the Nth node (or the
/// node's `podCIDRs`), nodes from 172.18.0.0/16 and fd00:172:18::/64. For every `ipBlock` there are
/// external hosts at its first and last address and in each of its exceptions, and one per family
/// outside of all blocks; where that is too much, [`Plan::left_out`] says what is missing.
///
/// Fails where the input gives an address to two owners, or one that no host can have, and where a
/// host of [`Options::hosts`] cannot be.
pub fn plan(cluster: &Cluster, options: &Options) -> Result<Plan, Error> {
    if options.nodes > MOST_NODES {
        return Err(Error::TooManyNodes { nodes: options.nodes, most: MOST_NODES });
    }
    let mut cluster = cluster.clone();
    name_nodes(&mut cluster, options.nodes);
    let node_of_pod = place_pods(&mut cluster);
    let mut addresses = Addresses::default();
    addresses.keep_given(&mut cluster, &node_of_pod, options.families)?;
    addresses.keep_for_hosts(options)?;
    addresses.give_missing(&mut cluster, &node_of_pod, options.families)?;

    let mut endpoints = Vec::new();
    for (pod, node) in cluster.pods.iter().zip(&node_of_pod) {
        if has_own_network(pod) {
            endpoints.push(Endpoint {
                name: pod_name(pod),
                kind: Kind::Pod,
                addresses: pod.addresses.clone(),
                node: *node,
            });
        }
    }
    for (index, node) in cluster.nodes.iter().enumerate() {
        endpoints.push(Endpoint {
            name: node.name.clone(),
            kind: Kind::Node,
            addresses: node.addresses.clone(),
            node: Some(index),
        });
    }
    let taken = addresses.owners.keys().chain(&addresses.services).copied().collect();
    let mut wanted = external::hosts(&blocks(&cluster), &taken, options.families);
    wanted.retain(|address| !options.hosts.contains(address));
    let left_out = wanted.split_off(wanted.len().min(external::MOST));
    let asked: BTreeSet<IpAddr> = options.hosts.iter().copied().collect();
    for address in wanted.into_iter().chain(asked) {
        endpoints.push(Endpoint {
            name: address.to_string(),
            kind: Kind::External,
            addresses: vec![address],
            node: None,
        });
    }
    let by_address = by_address(&endpoints);
    let Options { families, topology, .. } = *options;
    Ok(Plan { cluster, families, topology, endpoints, left_out, by_address })
}

fn pod_name(pod: &Pod) -> String {
    format!("{}/{}", pod.namespace, pod.name)
}

fn has_own_network(pod: &Pod) -> bool {
    !pod.finished && !pod.host_network
}

fn blocks(cluster: &Cluster) -> BTreeSet<IpBlock> {
    let rules = cluster.policies.iter().flat_map(|p| p.ingress.iter().chain(&p.egress)).flatten();
    rules
        .flat_map(|rule| &rule.peers)
        .filter_map(|peer| match peer {
            Peer::Block(block) => Some(block.clone()),
            Peer::Pods { .. } => None,
        })
        .collect()
}

/// Adds the nodes that only pods speak of, then numbered ones until there are enough.
fn name_nodes(cluster: &mut Cluster, at_least: u32) {
    let mut known: BTreeSet<String> = cluster.nodes.iter().map(|n| n.name.clone()).collect();
    let mentioned = cluster.pods.iter().filter(|p| !p.finished).filter_map(|p| p.node.clone());
    let numbered = (1u32..).map(|n| format!("node-{n}"));
    let at_least = at_least.max(1) as usize;
    for (name, needed) in mentioned.map(|n| (n, true)).chain(numbered.map(|n| (n, false))) {
        if !needed && cluster.nodes.len() >= at_least {
            break;
        }
        if known.insert(name.clone()) {
            cluster.nodes.push(Node { name, ..Node::default() });
        }
    }
}

/// Puts every pod that runs on a node, and returns which; `None` for finished pods.
fn place_pods(cluster: &mut Cluster) -> Vec<Option<usize>> {
    let nodes = &cluster.nodes;
    let by_name: BTreeMap<&str, usize> =
        nodes.iter().enumerate().map(|(index, node)| (node.name.as_str(), index)).collect();
    let mut turn = (0..nodes.len()).cycle();
    let mut place = |pod: &mut Pod| {
        let named = pod.node.as_deref().and_then(|name| by_name.get(name).copied());
        let owner_of_address = || {
            let owns = |node: &Node| pod.addresses.iter().any(|a| node.addresses.contains(a));
            pod.host_network.then(|| nodes.iter().position(owns)).flatten()
        };
        let index = named.or_else(owner_of_address).or_else(|| turn.next())?;
        pod.node = Some(nodes[index].name.clone());
        Some(index)
    };
    cluster.pods.iter_mut().map(|pod| if pod.finished { None } else { place(pod) }).collect()
}

/// Which addresses are in use, and where to look for the next free one.
#[derive(Default)]
struct Addresses {
    /// Who has an address, by name.
    owners: BTreeMap<IpAddr, String>,
    /// The addresses of Services, which are nobody's.
    services: BTreeSet<IpAddr>,
    /// The addresses that a policy names singly: it means somebody, and no pod without an address.
    named: BTreeSet<IpAddr>,
    /// Pod ranges that no node has yet, by their number.
    next_range: u32,
}

impl Addresses {
    /// Enters the addresses of the input, less those of families that are not in use.
    fn keep_given(
        &mut self,
        cluster: &mut Cluster,
        node_of_pod: &[Option<usize>],
        families: Families,
    ) -> Result<(), Error> {
        let in_use = |address: &IpAddr| families.contains(Family::of(*address));
        // A node's object may be missing, while pods that share its network tell its addresses.
        for (pod, node) in cluster.pods.iter().zip(node_of_pod) {
            if let Some(node) = node.filter(|_| pod.host_network) {
                let node = &mut cluster.nodes[node];
                if node.addresses.is_empty() || !pod.addresses.iter().any(is_in(&node.addresses)) {
                    node.addresses.extend(&pod.addresses);
                }
            }
        }
        for node in &mut cluster.nodes {
            node.addresses.retain(in_use);
            self.claim(&mut node.addresses, &format!("node {}", node.name))?;
        }
        for pod in cluster.pods.iter_mut().filter(|pod| has_own_network(pod)) {
            pod.addresses.retain(in_use);
            let owner = format!("pod {}", pod_name(pod));
            self.claim(&mut pod.addresses, &owner)?;
        }
        self.services.extend(cluster.services.iter().flat_map(|s| &s.cluster_ips));
        let single = |net: &IpNet| net.prefix_len() == net.max_prefix_len();
        for block in blocks(cluster) {
            let nets = std::iter::once(block.cidr).chain(block.except);
            self.named.extend(nets.filter(single).map(|net| net.addr()));
        }
        Ok(())
    }

    /// Keeps the addresses of the hosts that were asked for from everybody else.
    fn keep_for_hosts(&mut self, options: &Options) -> Result<(), Error> {
        for &address in &options.hosts {
            let family = Family::of(address);
            let service = || self.services.contains(&address).then(|| "a Service".to_owned());
            if !options.families.contains(family) {
                return Err(Error::HostOfOtherFamily { address, family });
            }
            if !is_usable(address) {
                let owner = "a host outside".to_owned();
                return Err(Error::UnusableAddress { address, owner });
            }
            if let Some(owner) = self.owners.get(&address).cloned().or_else(service) {
                return Err(Error::HostTaken { address, owner });
            }
            self.named.insert(address);
        }
        Ok(())
    }

    /// Enters addresses as those of the owner; drops repetitions.
    fn claim(&mut self, addresses: &mut Vec<IpAddr>, owner: &str) -> Result<(), Error> {
        let mut seen = BTreeSet::new();
        addresses.retain(|address| seen.insert(*address));
        for address in seen {
            if !is_usable(address) {
                return Err(Error::UnusableAddress { address, owner: owner.to_owned() });
            }
            if let Some(first) = self.owners.insert(address, owner.to_owned()) {
                return Err(Error::DuplicateAddress { address, first, second: owner.to_owned() });
            }
        }
        Ok(())
    }

    /// Gives every node an address of each family, and every pod without any one of each.
    fn give_missing(
        &mut self,
        cluster: &mut Cluster,
        node_of_pod: &[Option<usize>],
        families: Families,
    ) -> Result<(), Error> {
        for family in families.iter() {
            let mut range = Range::new(node_range(family));
            // The first address is the gateway's, by custom.
            range.skip_one();
            for node in &mut cluster.nodes {
                if !node.addresses.iter().any(|a| Family::of(*a) == family) {
                    let address = self.next_in(&mut range, &node.name).ok_or_else(|| {
                        Error::NoAddressLeft { family, owner: format!("node {}", node.name) }
                    })?;
                    node.addresses.push(address);
                }
            }
        }
        let nodes = &cluster.nodes;
        let without: Vec<bool> = cluster
            .pods
            .iter()
            .map(|pod| has_own_network(pod) && pod.addresses.is_empty())
            .collect();
        for family in families.iter() {
            let mut ranges: Vec<Range> = (1u32..)
                .zip(nodes)
                .map(|(number, node)| {
                    let own = node.pod_cidrs.iter().find(|net| Family::of(net.addr()) == family);
                    own.copied().or_else(|| pod_range(family, number)).map(Range::new)
                })
                .map(Option::unwrap_or_default)
                .collect();
            self.next_range = u32::try_from(nodes.len()).map_or(u32::MAX, |n| n + 1);
            for ((pod, node), _) in
                cluster.pods.iter_mut().zip(node_of_pod).zip(&without).filter(|(_, w)| **w)
            {
                let Some(node) = *node else { continue };
                let name = pod_name(pod);
                let address = self.next_for_pod(&mut ranges[node], family, &name)?;
                pod.addresses.push(address);
            }
        }
        for (pod, node) in cluster.pods.iter_mut().zip(node_of_pod) {
            if let Some(node) = node.filter(|_| pod.host_network) {
                pod.addresses.clone_from(&nodes[node].addresses);
            }
        }
        Ok(())
    }

    /// The next free address of a node's range; a full range is exchanged for a fresh one.
    fn next_for_pod(
        &mut self,
        range: &mut Range,
        family: Family,
        pod: &str,
    ) -> Result<IpAddr, Error> {
        loop {
            if let Some(address) = self.next_in(range, pod) {
                return Ok(address);
            }
            let fresh = pod_range(family, self.next_range);
            self.next_range = self.next_range.saturating_add(1);
            *range = fresh
                .map(Range::new)
                .ok_or_else(|| Error::NoAddressLeft { family, owner: format!("pod {pod}") })?;
        }
    }

    /// The next address of the range that is free; it then is the owner's.
    fn next_in(&mut self, range: &mut Range, owner: &str) -> Option<IpAddr> {
        let free = |a: &IpAddr| {
            let taken = self.owners.contains_key(a) || self.services.contains(a);
            is_usable(*a) && !taken && !self.named.contains(a)
        };
        let address = range.find(free)?;
        self.owners.insert(address, owner.to_owned());
        Some(address)
    }
}

fn is_in(addresses: &[IpAddr]) -> impl Fn(&IpAddr) -> bool {
    move |address| addresses.contains(address)
}

/// Where nodes have their addresses.
pub(crate) fn node_range(family: Family) -> IpNet {
    match family {
        Family::V4 => v4(Ipv4Addr::new(172, 18, 0, 0), 16),
        Family::V6 => v6(Ipv6Addr::new(0xfd00, 0x172, 0x18, 0, 0, 0, 0, 0), 64),
    }
}

/// The pod range with this number: 10.244.N.0/24, going on into 10.245.0.0, or
/// fd00:10:244:N::/64. `None` where the numbers end.
pub(crate) fn pod_range(family: Family, number: u32) -> Option<IpNet> {
    match family {
        Family::V4 => {
            let first = u32::from(Ipv4Addr::new(10, 244, 0, 0));
            let network = Ipv4Addr::from(first.checked_add(number.checked_mul(256)?)?);
            (network.octets()[0] == 10).then(|| v4(network, 24))
        }
        Family::V6 => {
            let number = u16::try_from(number).ok()?;
            Some(v6(Ipv6Addr::new(0xfd00, 0x10, 0x244, number, 0, 0, 0, 0), 64))
        }
    }
}

/// The host addresses of a network, lowest first. An empty one by default.
#[derive(Default)]
struct Range {
    next: Option<IpAddr>,
    net: Option<IpNet>,
}

impl Range {
    fn new(net: IpNet) -> Range {
        Range { next: next_address(net.network()), net: Some(net) }
    }

    fn skip_one(&mut self) {
        self.next = self.next.and_then(next_address);
    }
}

impl Iterator for Range {
    type Item = IpAddr;

    fn next(&mut self) -> Option<IpAddr> {
        let net = self.net?;
        let address = self.next.filter(|a| net.contains(a) && *a != net.broadcast())?;
        self.next = next_address(address);
        Some(address)
    }
}

#[cfg(test)]
mod tests {
    use portcullis_core::model::{Policy, Rule, Service};

    use super::*;

    /// One object per line: `node NAME`, `pod NAMESPACE/NAME`, `service`, `block CIDR`. After it
    /// `@node`, addresses, `hostNetwork`, `finished`; of a block its exceptions; of a service its
    /// cluster IPs; of a node also podCIDRs.
    fn cluster(text: &str) -> Cluster {
        let mut cluster = Cluster::default();
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let addresses: Vec<IpAddr> = words.iter().filter_map(|w| w.parse().ok()).collect();
            let nets: Vec<IpNet> = words.iter().filter_map(|w| w.parse().ok()).collect();
            match words[..] {
                [] => {}
                ["node", name, ..] => {
                    cluster.nodes.push(Node { name: name.into(), addresses, pod_cidrs: nets })
                }
                ["pod", name, ..] => {
                    let (namespace, name) = name.split_once('/').unwrap();
                    cluster.pods.push(Pod {
                        namespace: namespace.into(),
                        name: name.into(),
                        node: words.iter().find_map(|w| Some(w.strip_prefix('@')?.to_owned())),
                        host_network: words.contains(&"hostNetwork"),
                        finished: words.contains(&"finished"),
                        addresses,
                        ..Pod::default()
                    });
                }
                ["service", ..] => {
                    cluster.services.push(Service { cluster_ips: addresses, ..Service::default() })
                }
                ["block", ..] => {
                    let block = IpBlock { cidr: nets[0], except: nets[1..].to_vec() };
                    let rule = Rule { peers: vec![Peer::Block(block)], ports: Vec::new() };
                    cluster.policies.push(Policy { egress: Some(vec![rule]), ..Policy::default() });
                }
                _ => panic!("{line}"),
            }
        }
        cluster
    }

    fn options(nodes: u32, families: Families) -> Options {
        Options { nodes, families, ..Options::default() }
    }

    /// Compares the endpoints, without "the rest of the world".
    fn check(text: &str, options: Options, expected: &str) {
        let plan = plan(&cluster(text), &options).unwrap();
        let found: Vec<String> = plan
            .endpoints
            .iter()
            .filter(|e| !["203.0.113.1", "2001:db8::1"].contains(&&*e.name))
            .map(|e| {
                let node = e.node.map_or("outside", |n| &plan.cluster.nodes[n].name);
                let addresses: Vec<_> = e.addresses.iter().map(IpAddr::to_string).collect();
                format!("{:?} {} on {node}: {}", e.kind, e.name, addresses.join(" "))
            })
            .collect();
        let expected: Vec<&str> =
            expected.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
        assert_eq!(found, expected);
    }

    fn error(text: &str) -> String {
        plan(&cluster(text), &Options::default()).unwrap_err().to_string()
    }

    #[test]
    fn pods_without_a_node_are_dealt_out_in_turn() {
        check(
            "pod a/x
             pod a/y @node-1
             pod a/z
             pod b/x",
            options(2, Families::Both),
            "Pod a/x on node-1: 10.244.1.1 fd00:10:244:1::1
             Pod a/y on node-1: 10.244.1.2 fd00:10:244:1::2
             Pod a/z on node-2: 10.244.2.1 fd00:10:244:2::1
             Pod b/x on node-1: 10.244.1.3 fd00:10:244:1::3
             Node node-1 on node-1: 172.18.0.2 fd00:172:18::2
             Node node-2 on node-2: 172.18.0.3 fd00:172:18::3",
        );
    }

    #[test]
    fn nodes_of_the_input_are_there_by_object_and_by_name_and_filled_up_to_the_number_wanted() {
        check(
            "node alpha 10.9.0.1
             pod a/x @beta
             pod a/y @alpha",
            options(3, Families::V4),
            "Pod a/x on beta: 10.244.2.1
             Pod a/y on alpha: 10.244.1.1
             Node alpha on alpha: 10.9.0.1
             Node beta on beta: 172.18.0.2
             Node node-1 on node-1: 172.18.0.3",
        );
    }

    #[test]
    fn addresses_of_the_input_are_kept_and_given_to_nobody_else() {
        check(
            "node n 172.18.0.9 10.244.5.0/24
             pod a/new
             pod a/old 10.244.5.1 fd00::1
             pod a/newer
             service 10.244.5.3
             pod a/single 10.244.5.2
             node m 172.18.0.2",
            options(1, Families::V4),
            "Pod a/new on n: 10.244.5.4
             Pod a/old on m: 10.244.5.1
             Pod a/newer on n: 10.244.5.5
             Pod a/single on m: 10.244.5.2
             Node n on n: 172.18.0.9
             Node m on m: 172.18.0.2",
        );
    }

    #[test]
    fn an_address_that_a_policy_names_singly_is_an_external_host_unless_the_input_has_it() {
        check(
            "pod a/x
             pod a/y 10.7.7.7
             block 10.244.1.1/32
             block 10.7.7.7/32
             block 172.18.0.2/32",
            options(1, Families::V4),
            "Pod a/x on node-1: 10.244.1.2
             Pod a/y on node-1: 10.7.7.7
             Node node-1 on node-1: 172.18.0.3
             External 10.244.1.1 on outside: 10.244.1.1
             External 172.18.0.2 on outside: 172.18.0.2",
        );
    }

    #[test]
    fn host_network_pods_are_their_node_and_tell_its_addresses() {
        let text = "pod kube/proxy @a 10.9.0.1 hostNetwork
                    pod kube/agent @a 10.9.0.1 hostNetwork
                    pod kube/proxy-b @b hostNetwork
                    pod kube/astray 10.9.0.1 hostNetwork";
        check(
            text,
            options(1, Families::V4),
            "Node a on a: 10.9.0.1
             Node b on b: 172.18.0.2",
        );
        let plan = plan(&cluster(text), &options(1, Families::V4)).unwrap();
        let pods: Vec<_> =
            plan.cluster.pods.iter().map(|p| plan.endpoint_at(p.addresses[0]).unwrap()).collect();
        assert_eq!(pods, [0, 0, 1, 0]);
    }

    #[test]
    fn finished_pods_are_left_out_and_their_addresses_may_be_others() {
        check(
            "pod a/job finished 10.244.1.1 @gone
             pod a/x 10.244.1.1",
            options(1, Families::V4),
            "Pod a/x on node-1: 10.244.1.1
             Node node-1 on node-1: 172.18.0.2",
        );
    }

    #[test]
    fn a_node_whose_range_is_full_gets_another() {
        let text: String = (0..600).map(|n| format!("pod a/p{n}\n")).collect();
        let plan = plan(&cluster(&text), &options(2, Families::Both)).unwrap();
        let addresses: BTreeSet<IpAddr> =
            plan.cluster.pods.iter().flat_map(|p| p.addresses.clone()).collect();
        assert_eq!(addresses.len(), 1200);
        let last = &plan.cluster.pods[599].addresses;
        let expected: [IpAddr; 2] =
            ["10.244.4.46".parse().unwrap(), "fd00:10:244:2::12c".parse().unwrap()];
        assert_eq!(last[..], expected);
    }

    #[test]
    fn the_cluster_that_is_returned_says_what_the_lab_will_have() {
        let plan = plan(&cluster("pod a/x\npod a/y"), &options(2, Families::Both)).unwrap();
        for endpoint in plan.endpoints.iter().filter(|e| e.kind == Kind::Pod) {
            let pod = plan.cluster.pods.iter().find(|p| pod_name(p) == endpoint.name).unwrap();
            let node = &plan.cluster.nodes[endpoint.node.unwrap()];
            assert_eq!(pod.addresses, endpoint.addresses);
            assert_eq!(pod.node.as_ref(), Some(&node.name));
        }
    }

    #[test]
    fn an_address_with_two_owners_is_an_error_that_names_both() {
        assert_eq!(
            error("pod a/x 10.0.0.1\npod b/y 10.0.0.1"),
            "10.0.0.1 belongs to pod a/x and to pod b/y: an address can have one owner"
        );
        assert_eq!(
            error("node n 10.0.0.1\npod b/y 10.0.0.1"),
            "10.0.0.1 belongs to node n and to pod b/y: an address can have one owner"
        );
    }

    #[test]
    fn what_is_too_much_for_a_lab_is_left_out_and_told() {
        let many: String =
            (0..150).map(|n| format!("block 10.{n}.0.0/16 10.{n}.9.0/24\n")).collect();
        let options = Options { hosts: vec!["10.149.9.1".parse().unwrap()], ..Options::default() };
        let plan = plan(&cluster(&many), &options).unwrap();
        // Two outside of all blocks; each block has one inside, one in its exception, one at its end.
        assert_eq!(plan.left_out.len(), 2 + 150 * 3 - external::MOST - options.hosts.len());
        for n in 0..150 {
            for host in ["0.1", "9.1", "255.254"] {
                let address: IpAddr = format!("10.{n}.{host}").parse().unwrap();
                let there = plan.endpoint_at(address).is_some();
                assert_ne!(there, plan.left_out.contains(&address), "{address}");
            }
        }
        assert!(plan.endpoint_at(options.hosts[0]).is_some());
    }

    #[test]
    fn a_host_that_is_asked_for_is_there_once_and_nobody_else_gets_its_address() {
        let hosts = ["10.244.1.1", "10.7.0.1", "10.7.0.1"].map(|a| a.parse().unwrap()).to_vec();
        check(
            "pod a/x
             block 10.7.0.0/24",
            Options { hosts, ..options(1, Families::V4) },
            "Pod a/x on node-1: 10.244.1.2
             Node node-1 on node-1: 172.18.0.2
             External 10.7.0.254 on outside: 10.7.0.254
             External 10.7.0.1 on outside: 10.7.0.1
             External 10.244.1.1 on outside: 10.244.1.1",
        );
    }

    #[test]
    fn a_host_that_cannot_be_is_an_error_that_says_why() {
        let text = "node n 172.18.0.9\npod a/x 10.0.0.1\nservice 10.96.0.1";
        let refused = |address: &str| {
            let hosts = vec![address.parse().unwrap()];
            let options = Options { hosts, ..options(1, Families::V4) };
            plan(&cluster(text), &options).unwrap_err().to_string()
        };
        let taken = |address, owner| {
            format!("there can be no host outside at {address}: the address belongs to {owner}")
        };
        assert_eq!(refused("10.0.0.1"), taken("10.0.0.1", "pod a/x"));
        assert_eq!(refused("172.18.0.9"), taken("172.18.0.9", "node n"));
        assert_eq!(refused("10.96.0.1"), taken("10.96.0.1", "a Service"));
        assert_eq!(
            refused("127.0.0.1"),
            "a host outside cannot have the address 127.0.0.1: it is not a unicast address of a host"
        );
        assert_eq!(
            refused("2001:db8::9"),
            "there can be no host outside at 2001:db8::9: the lab has no IPv6"
        );
    }

    #[test]
    fn more_nodes_than_a_lab_can_have_are_an_error() {
        let refused = plan(&Cluster::default(), &options(u32::MAX, Families::Both)).unwrap_err();
        assert_eq!(refused.to_string(), "a lab has at most 1000 nodes, but 4294967295 are wanted");
    }

    #[test]
    fn an_address_that_no_host_can_have_is_an_error() {
        for address in ["127.0.0.1", "0.0.0.0", "169.254.1.1", "224.0.0.1", "::1", "fe80::2"] {
            assert_eq!(
                error(&format!("pod a/x {address}")),
                format!(
                    "pod a/x cannot have the address {address}: \
                     it is not a unicast address of a host"
                )
            );
        }
    }
}
