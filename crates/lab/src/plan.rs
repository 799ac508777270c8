//! What a lab will consist of, as plain data: nothing here makes a system call.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use portcullis_core::model::{Cluster, IpBlock, Node, Peer, Pod};
use portcullis_core::net::{Family, next_address};

use crate::Error;
use crate::external::{self, is_usable, v4, v6};

/// What the user may choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// How many nodes there are at least. Nodes that the input speaks of are always there.
    pub nodes: u32,
    /// The address families in use. Addresses of the input in another family are left out.
    pub families: Families,
}

impl Default for Options {
    /// One node, both families.
    fn default() -> Options {
        Options { nodes: 1, families: Families::Both }
    }
}

/// Address families of a lab.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Families {
    /// IPv4 alone.
    V4,
    /// IPv6 alone.
    V6,
    /// Dual stack.
    Both,
}

impl Families {
    /// Whether this family is one of them.
    pub fn contains(self, family: Family) -> bool {
        match self {
            Families::V4 => family == Family::V4,
            Families::V6 => family == Family::V6,
            Families::Both => true,
        }
    }

    /// The families, IPv4 first.
    pub(crate) fn iter(self) -> impl Iterator<Item = Family> {
        Family::ALL.into_iter().filter(move |family| self.contains(*family))
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
    /// Everything that can send and answer: pods, then nodes, then external hosts.
    pub endpoints: Vec<Endpoint>,
    by_address: BTreeMap<IpAddr, usize>,
}

impl Plan {
    /// The endpoint that has the address, as an index into [`Plan::endpoints`]. For a
    /// `hostNetwork` pod that is its node.
    pub fn endpoint_at(&self, address: IpAddr) -> Option<usize> {
        self.by_address.get(&address).copied()
    }
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

/// Plans the lab for a cluster.
///
/// Nodes are those of the input, by object or by `spec.nodeName`, and `node-1`, `node-2`, … up to
/// [`Options::nodes`]. Pods without a node are dealt out in turn. Addresses of the input are kept;
/// pods without one get one per family from 10.244.<node>.0/24 and fd00:10:244:<node>::/64 (or the
/// node's `podCIDRs`), nodes from 172.18.0.0/16 and fd00:172:18::/64. For every `ipBlock` there are
/// external hosts at its first and last address and in each of its exceptions, and one per family
/// outside of all blocks.
///
/// Fails where the input gives an address to two owners, or one that no host can have.
pub fn plan(cluster: &Cluster, options: &Options) -> Result<Plan, Error> {
    let mut cluster = cluster.clone();
    name_nodes(&mut cluster, options.nodes);
    let node_of_pod = place_pods(&mut cluster);
    let mut addresses = Addresses::default();
    addresses.keep_given(&mut cluster, &node_of_pod, options.families)?;
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
    let of_services = cluster.services.iter().flat_map(|s| &s.cluster_ips);
    let taken = addresses.owners.keys().chain(of_services).copied().collect();
    for address in external::hosts(&blocks(&cluster), &taken, options.families) {
        endpoints.push(Endpoint {
            name: address.to_string(),
            kind: Kind::External,
            addresses: vec![address],
            node: None,
        });
    }
    let by_address = endpoints
        .iter()
        .enumerate()
        .flat_map(|(index, endpoint)| endpoint.addresses.iter().map(move |a| (*a, index)))
        .collect();
    Ok(Plan { cluster, families: options.families, endpoints, by_address })
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
    /// Addresses that nobody may be given: of Services, and those that a policy names singly,
    /// because it means somebody that is not in the input.
    reserved: BTreeSet<IpAddr>,
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
        self.reserved.extend(cluster.services.iter().flat_map(|s| &s.cluster_ips));
        let single = |net: &IpNet| net.prefix_len() == net.max_prefix_len();
        for block in blocks(cluster) {
            let nets = std::iter::once(block.cidr).chain(block.except);
            self.reserved.extend(nets.filter(single).map(|net| net.addr()));
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
            let mut range = Range::new(match family {
                Family::V4 => v4(Ipv4Addr::new(172, 18, 0, 0), 16),
                Family::V6 => v6(Ipv6Addr::new(0xfd00, 0x172, 0x18, 0, 0, 0, 0, 0), 64),
            });
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
            is_usable(*a) && !self.owners.contains_key(a) && !self.reserved.contains(a)
        };
        let address = range.find(free)?;
        self.owners.insert(address, owner.to_owned());
        Some(address)
    }
}

fn is_in(addresses: &[IpAddr]) -> impl Fn(&IpAddr) -> bool {
    move |address| addresses.contains(address)
}

/// The pod range with this number: 10.244.<number>.0/24, going on into 10.245.0.0, or
/// fd00:10:244:<number>::/64. `None` where the numbers end.
fn pod_range(family: Family, number: u32) -> Option<IpNet> {
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
