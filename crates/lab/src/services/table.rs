//! From Services and EndpointSlices to what connections go on to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use portcullis_core::net::{Family, Protocol};

use super::{EndpointSlice, Service, ServicePort};

/// What a node does about Services.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// Endpoints to choose from, for each port of a Service and each family that has any.
    pub backends: Vec<Backends>,
    /// Where connections go on to, as an index into `backends`.
    pub fronts: BTreeMap<Front, usize>,
    /// What has no endpoint, and is refused at once.
    pub rejected: BTreeSet<Front>,
    /// What has endpoints, but none on this node, where it is for these alone: it is dropped, as
    /// kube-proxy does it.
    pub dropped: BTreeSet<Front>,
    /// The addresses of the node. Who connects to a node port here gets the node's address as the
    /// source, so that answers come back this way.
    pub node: BTreeSet<IpAddr>,
    /// Except to these node ports, which lead to endpoints of this node alone.
    pub local_ports: BTreeSet<(Protocol, u16)>,
}

/// The address, protocol and port that a client of a Service connects to.
pub type Front = (IpAddr, Protocol, u16);

/// The endpoints behind a port of a Service, of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backends {
    /// Unique: `shop/web/tcp/80/ipv4`, and with `/local` those of them that are on the node.
    pub name: String,
    /// The protocol.
    pub protocol: Protocol,
    /// Whether a client's address decides which one it gets. Otherwise chance does.
    pub sticky: bool,
    /// Their addresses and ports, ascending and all of one family; at least one.
    pub addresses: Vec<SocketAddr>,
}

/// What a node of this name and these addresses does about the Services. The order of the input does
/// not matter; should two Services claim one address and port, the first by name has it.
pub fn table(
    services: &[Service],
    slices: &[EndpointSlice],
    node: &str,
    addresses: &[IpAddr],
) -> Table {
    let mut table = Table { node: addresses.iter().copied().collect(), ..Table::default() };
    let mut services: Vec<&Service> = services.iter().collect();
    services.sort_by_key(|service| (&service.namespace, &service.name));
    let mut slices_of = BTreeMap::<_, Vec<&EndpointSlice>>::new();
    for slice in slices {
        slices_of.entry((&slice.namespace, &slice.service)).or_default().push(slice);
    }
    for service in services {
        let slices = slices_of.get(&(&service.namespace, &service.name));
        for port in &service.ports {
            for family in Family::ALL {
                table.add(service, port, family, slices.map_or(&[], Vec::as_slice), node);
            }
        }
    }
    table
}

impl Table {
    fn add(
        &mut self,
        service: &Service,
        port: &ServicePort,
        family: Family,
        slices: &[&EndpointSlice],
        node: &str,
    ) {
        // A Service of one family serves the other nowhere, not even at the nodes.
        if !service.cluster_ips.iter().any(|address| Family::of(*address) == family) {
            return;
        }
        let own = service.cluster_ips.iter().map(|address| (*address, port.port));
        let own: Vec<_> = own.collect();
        let node_port = port.node_port.iter();
        let at_node: Vec<_> =
            node_port.flat_map(|port| self.node.iter().map(|a| (*a, *port))).collect();
        if service.external_local {
            self.local_ports.extend(port.node_port.map(|number| (port.protocol, number)));
        }
        let all = ready(slices, port, family, None);
        let here = ready(slices, port, family, Some(node));
        // Where those of all nodes, and those of this one, are in `backends`.
        let mut places = [None; 2];
        for (fronts, local) in [(own, service.internal_local), (at_node, service.external_local)] {
            let fronts = fronts
                .into_iter()
                .filter(|(address, _)| Family::of(*address) == family)
                .map(|(address, number)| (address, port.protocol, number));
            let fronts: Vec<Front> = fronts.filter(|front| !self.has(front)).collect();
            let addresses = if local { &here } else { &all };
            if all.is_empty() {
                self.rejected.extend(fronts);
            } else if addresses.is_empty() {
                self.dropped.extend(fronts);
            } else if !fronts.is_empty() {
                let place = places[usize::from(local)]
                    .get_or_insert_with(|| self.backends(service, port, family, local, addresses));
                self.fronts.extend(fronts.into_iter().map(|front| (front, *place)));
            }
        }
    }

    /// Whether a Service has it already.
    fn has(&self, front: &Front) -> bool {
        self.fronts.contains_key(front)
            || self.rejected.contains(front)
            || self.dropped.contains(front)
    }

    /// Adds endpoints to choose from, and tells where they are.
    fn backends(
        &mut self,
        service: &Service,
        port: &ServicePort,
        family: Family,
        local: bool,
        addresses: &BTreeSet<SocketAddr>,
    ) -> usize {
        let protocol = port.protocol.as_str().to_ascii_lowercase();
        let family = family.to_string().to_ascii_lowercase();
        let Service { namespace, name, .. } = service;
        let which = if local { "/local" } else { "" };
        self.backends.push(Backends {
            name: format!("{namespace}/{name}/{protocol}/{}/{family}{which}", port.port),
            protocol: port.protocol,
            sticky: service.sticky,
            addresses: addresses.iter().copied().collect(),
        });
        self.backends.len() - 1
    }
}

/// Where the ready endpoints of a family serve a port: those of a node, or of all.
fn ready(
    slices: &[&EndpointSlice],
    port: &ServicePort,
    family: Family,
    node: Option<&str>,
) -> BTreeSet<SocketAddr> {
    let mut found = BTreeSet::new();
    for slice in slices {
        let ports = slice.ports.iter();
        for served in ports.filter(|p| p.name == port.name && p.protocol == port.protocol) {
            let ready = slice.endpoints.iter().filter(|endpoint| endpoint.ready);
            let there = ready.filter(|e| node.is_none() || e.node.as_deref() == node);
            let addresses = there.flat_map(|endpoint| &endpoint.addresses);
            let of_family = addresses.filter(|address| Family::of(**address) == family);
            found.extend(of_family.map(|address| SocketAddr::new(*address, served.port)));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::services::{Endpoint, EndpointPort};

    fn web() -> Service {
        Service {
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
            cluster_ips: vec!["10.96.0.7".parse().unwrap(), "fd00:10:96::7".parse().unwrap()],
            ports: vec![ServicePort {
                name: "http".to_owned(),
                protocol: Protocol::Tcp,
                port: 80,
                node_port: Some(30080),
            }],
            ..Service::default()
        }
    }

    /// A slice of `shop/web` with the ready endpoints that are given.
    fn slice(addresses: &[&str]) -> EndpointSlice {
        let endpoint = |address: &&str| Endpoint {
            addresses: vec![address.parse().unwrap()],
            node: Some(if address.starts_with("10.244.1.") { "one" } else { "two" }.to_owned()),
            ready: true,
            hostname: None,
        };
        EndpointSlice {
            namespace: "shop".to_owned(),
            service: "web".to_owned(),
            ports: vec![EndpointPort {
                name: "http".to_owned(),
                protocol: Protocol::Tcp,
                port: 8080,
            }],
            endpoints: addresses.iter().map(endpoint).collect(),
        }
    }

    fn node() -> Vec<IpAddr> {
        vec!["172.18.0.2".parse().unwrap(), "fd00:172:18::2".parse().unwrap()]
    }

    #[test]
    fn each_family_goes_to_its_own_endpoints_and_is_refused_without_any() {
        let slices = [slice(&["10.244.2.9", "10.244.1.2"]), slice(&["10.244.1.2"])];
        let table = table(&[web()], &slices, "one", &node());
        let [backends] = &*table.backends else { panic!("{table:?}") };
        assert_eq!(backends.name, "shop/web/tcp/80/ipv4");
        let expected: Vec<SocketAddr> =
            ["10.244.1.2:8080", "10.244.2.9:8080"].map(|a| a.parse().unwrap()).into();
        assert_eq!(backends.addresses, expected, "each once");
        let front = |address: &str, port| (address.parse().unwrap(), Protocol::Tcp, port);
        let fronts = [(front("10.96.0.7", 80), 0), (front("172.18.0.2", 30080), 0)];
        assert_eq!(table.fronts, fronts.into());
        let rejected = [front("fd00:10:96::7", 80), front("fd00:172:18::2", 30080)];
        assert_eq!(table.rejected, rejected.into());
    }

    #[test]
    fn endpoints_that_are_not_ready_or_serve_another_port_are_none() {
        let mut not_ready = slice(&["10.244.1.2"]);
        not_ready.endpoints[0].ready = false;
        let mut other_name = slice(&["10.244.1.2"]);
        other_name.ports[0].name = "metrics".to_owned();
        let mut other_protocol = slice(&["10.244.1.2"]);
        other_protocol.ports[0].protocol = Protocol::Udp;
        let mut other_service = slice(&["10.244.1.2"]);
        other_service.service = "db".to_owned();
        let slices = [not_ready, other_name, other_protocol, other_service];
        let table = table(&[web()], &slices, "one", &node());
        assert_eq!((table.backends.len(), table.rejected.len()), (0, 4));
    }

    #[test]
    fn a_headless_service_has_nothing_to_do() {
        let headless = Service { cluster_ips: Vec::new(), ..web() };
        let table = table(&[headless], &[slice(&["10.244.1.2"])], "one", &node());
        assert_eq!(table, Table { node: node().into_iter().collect(), ..Table::default() });
    }

    #[test]
    fn the_first_by_name_has_an_address_that_two_claim() {
        let api = Service { name: "api".to_owned(), ..web() };
        let mut slices = [slice(&["10.244.1.2"]), slice(&["10.244.1.3"])];
        slices[1].service = "api".to_owned();
        let table_of = |services: &[Service]| table(services, &slices, "one", &node());
        let table = table_of(&[web(), api.clone()]);
        assert_eq!(table, table_of(&[api, web()]));
        assert!(table.backends.iter().all(|b| b.name.starts_with("shop/api/")), "{table:?}");
    }

    #[test]
    fn what_is_for_the_endpoints_of_a_node_is_dropped_where_there_are_none() {
        let web = Service { internal_local: true, ..web() };
        let slices = [slice(&["10.244.1.2", "10.244.2.9", "fd00:10:244:2::9"])];
        let front = |address: &str, port| (address.parse().unwrap(), Protocol::Tcp, port);
        let own = ["10.96.0.7", "fd00:10:96::7"].map(|address| front(address, 80));
        let at_node = ["172.18.0.2", "fd00:172:18::2"].map(|address| front(address, 30080));
        let leads = |table: &Table, front: &Front| {
            let backends = table.fronts.get(front).map(|index| &table.backends[*index]);
            backends.map(|b| (b.name.clone(), b.addresses.len()))
        };
        let told = |name: &str, count| Some((name.to_owned(), count));

        let internal = table(std::slice::from_ref(&web), &slices, "one", &node());
        assert_eq!(leads(&internal, &own[0]), told("shop/web/tcp/80/ipv4/local", 1));
        assert_eq!(internal.dropped, [own[1]].into(), "its IPv6 endpoint is elsewhere");
        assert_eq!(leads(&internal, &at_node[0]), told("shop/web/tcp/80/ipv4", 2));
        assert_eq!(leads(&internal, &at_node[1]), told("shop/web/tcp/80/ipv6", 1));
        assert_eq!((internal.rejected.len(), internal.local_ports.len()), (0, 0));

        let external = Service { internal_local: false, external_local: true, ..web };
        let external = table(&[external], &slices, "one", &node());
        assert_eq!(leads(&external, &own[0]), told("shop/web/tcp/80/ipv4", 2));
        assert_eq!(leads(&external, &at_node[0]), told("shop/web/tcp/80/ipv4/local", 1));
        assert_eq!(external.dropped, [at_node[1]].into());
        assert_eq!(external.local_ports, [(Protocol::Tcp, 30080)].into());
    }
}
