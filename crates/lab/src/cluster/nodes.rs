//! The nodes of a cluster and the outside: what is there before any pod.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use ipnet::IpNet;
use portcullis_core::net::next_address;

use crate::Error;
use crate::families::Families;
use crate::lab::{configure, set_all, wait_for_links};
use crate::namespace::{Namespace, on_own_thread};
use crate::plan::{Topology, node_range, pod_range};
use crate::wiring::{self, Place, Space};

/// A node: a network namespace between the outside and its pods.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) space: Space,
    pub(crate) namespace: Arc<Namespace>,
    /// Where its pods have their addresses, one of a family.
    pub(crate) pod_cidrs: Vec<IpNet>,
}

/// The namespaces that a cluster has from its beginning to its end.
#[derive(Debug)]
pub(crate) struct Nodes {
    pub(crate) families: Families,
    pub(crate) topology: Topology,
    pub(crate) outside: Space,
    pub(crate) outside_namespace: Arc<Namespace>,
    pub(crate) nodes: Vec<Node>,
}

impl Nodes {
    /// `node-1`, `node-2` and so on, joined by the outside.
    pub(crate) fn up(count: u32, families: Families, topology: Topology) -> Result<Nodes, Error> {
        let addresses =
            |n: u32| families.iter().filter_map(|f| address(node_range(f), n)).collect::<Vec<_>>();
        let outside = Space {
            number: 0,
            owner: "the outside".to_owned(),
            place: Place::Outside,
            addresses: addresses(1),
        };
        let space = |number: u32| Space {
            number,
            owner: format!("node-{number}"),
            place: Place::Node,
            addresses: addresses(number + 1),
        };
        let spaces: Vec<Space> =
            std::iter::once(outside.clone()).chain((1..=count).map(space)).collect();
        let mut namespaces =
            Namespace::create(&spaces, |space| set_all(space, families, topology))?.into_iter();
        let outside_namespace = namespaces.next().map(Arc::new);
        let outside_namespace = outside_namespace.ok_or(Error::NoSuchNode { node: 0, nodes: 0 })?;
        let nodes = spaces.into_iter().skip(1).zip(namespaces);
        let nodes = nodes.map(|(space, namespace)| Node {
            pod_cidrs: families.iter().filter_map(|f| pod_range(f, space.number)).collect(),
            space,
            namespace: Arc::new(namespace),
        });
        let nodes =
            Nodes { families, topology, outside, outside_namespace, nodes: nodes.collect() };
        on_own_thread(|| nodes.wire())?;
        Ok(nodes)
    }

    fn wire(&self) -> Result<(), Error> {
        self.outside_namespace.enter()?;
        let mut requests = wiring::outside(&self.outside);
        for node in &self.nodes {
            let file = node.namespace.file().as_raw_fd();
            requests.extend(wiring::downlink(&self.outside, &node.space, file, self.topology));
            requests.extend(node.pod_cidrs.iter().map(|net| wiring::beyond(&node.space, *net)));
        }
        configure(&self.outside.owner, requests)?;
        for node in &self.nodes {
            node.namespace.enter()?;
            let mut requests = wiring::uplink(&node.space, &self.outside, Topology::Routed);
            requests.extend(wiring::node(self.topology, &node.space));
            requests.extend(node.pod_cidrs.iter().map(|net| wiring::nobody(*net)));
            configure(&node.space.owner, requests)?;
        }
        for (owner, namespace) in self.all() {
            namespace.enter()?;
            wait_for_links(owner)?;
        }
        Ok(())
    }

    fn all(&self) -> impl Iterator<Item = (&str, &Namespace)> {
        let outside = (self.outside.owner.as_str(), &*self.outside_namespace);
        let nodes = self.nodes.iter().map(|node| (node.space.owner.as_str(), &*node.namespace));
        std::iter::once(outside).chain(nodes)
    }

    /// The address of the outside in the network of the nodes: where the API server is reached.
    pub(crate) fn gateway(&self) -> IpAddr {
        self.outside.addresses.first().copied().unwrap_or(Ipv4Addr::LOCALHOST.into())
    }

    /// The node of this name, as an index.
    pub(crate) fn find(&self, name: &str) -> Option<usize> {
        self.nodes.iter().position(|node| node.space.owner == name)
    }
}

/// The nth address of a network.
fn address(net: IpNet, n: u32) -> Option<IpAddr> {
    (0..n).try_fold(net.network(), |address, _| next_address(address))
}
