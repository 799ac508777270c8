//! A cluster of fake nodes: every node enforces its share, and a packet passes the nodes that it
//! would pass.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use portcullis_core::model::Cluster;
use portcullis_core::net::{Family, Traffic};
use portcullis_dataplane::{Dataplane, Error, Fake, Packet, share};

use crate::engine;
use crate::generate::Flow;
use crate::oracle::{End, World};

/// The nodes that run the pods of a world.
pub struct Nodes {
    cluster: Cluster,
    fakes: BTreeMap<String, Fake>,
}

impl Nodes {
    /// Programs every node that a pod says it runs on. Pods without a node are on one together.
    pub fn program(world: &World) -> Result<Nodes, Error> {
        let mut cluster = engine::cluster(world);
        for pod in cluster.pods.iter_mut().filter(|pod| !pod.host_network) {
            pod.node.get_or_insert_with(|| "nowhere".to_owned());
        }
        let mut fakes = BTreeMap::new();
        for name in cluster.pods.iter().filter_map(|pod| pod.node.as_ref()) {
            let mut fake = Fake::new();
            fake.apply(&share(&cluster, name).0)?;
            fakes.insert(name.clone(), fake);
        }
        Ok(Nodes { cluster, fakes })
    }

    /// Whether the first packet of a flow arrives, for each family that both ends have. `None` if
    /// an end has no address and so there is no packet.
    pub fn allowed(&mut self, flow: &Flow) -> Option<BTreeMap<Family, bool>> {
        let (sources, destinations) =
            (self.addresses(flow.source)?, self.addresses(flow.destination)?);
        let mut answers = BTreeMap::new();
        for source in sources {
            for &destination in &destinations {
                if Family::of(source) == Family::of(destination) {
                    let arrives = self.arrives(source, destination, flow.traffic);
                    answers.insert(Family::of(source), arrives);
                }
            }
        }
        Some(answers)
    }

    fn addresses(&self, end: End) -> Option<Vec<IpAddr>> {
        match end {
            End::Address(address) => Some(vec![address]),
            End::Pod(index) => {
                let pod = &self.cluster.pods[index];
                (!pod.finished && !pod.addresses.is_empty()).then(|| pod.addresses.clone())
            }
        }
    }

    /// A packet is forwarded by the nodes of both ends. One from a pod to itself never leaves it,
    /// and a node does not forward what it sends or receives itself.
    fn arrives(&mut self, source: IpAddr, destination: IpAddr, traffic: Traffic) -> bool {
        if source == destination {
            return true;
        }
        let (protocol, port) = match (traffic, source) {
            (Traffic::Port(protocol, port), _) => (protocol.number(), Some(port)),
            (Traffic::Other, IpAddr::V4(_)) => (1, None),
            (Traffic::Other, IpAddr::V6(_)) => (58, None),
        };
        let packet = Packet { source, destination, protocol, port, bytes: 60 };
        let Cluster { pods, nodes, .. } = &self.cluster;
        let of_pods = |host_network: bool, address: IpAddr| {
            let pods = pods.iter().filter(move |pod| {
                pod.host_network == host_network
                    && !pod.finished
                    && pod.addresses.contains(&address)
            });
            pods.filter_map(|pod| pod.node.as_ref())
        };
        let ends = [source, destination];
        let forwarding: BTreeSet<_> = ends.into_iter().flat_map(|a| of_pods(false, a)).collect();
        let own: BTreeSet<_> = ends
            .into_iter()
            .flat_map(|a| {
                let nodes = nodes.iter().filter(move |node| node.addresses.contains(&a));
                nodes.map(|node| &node.name).chain(of_pods(true, a))
            })
            .collect();
        forwarding
            .difference(&own)
            .all(|&name| self.fakes.get_mut(name).is_none_or(|fake| fake.passes(&packet)))
    }
}
