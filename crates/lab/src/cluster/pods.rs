//! The pods of a cluster: network namespaces that come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;
use portcullis_apiserver::{Exec, Process, Runtime};
use serde_json::{Value, json};

use crate::Error;
use crate::cluster::addresses::Range;
use crate::cluster::command::{Commands, Pod as PodNames};
use crate::cluster::network::Network;
use crate::cluster::nodes::{Node, Nodes};
use crate::cluster::{ports, services, text};
use crate::dns::{DnsServer, Zone};
use crate::lab::{Room, configure, require_files, set_all};
use crate::namespace::{Namespace, on_own_thread};
use crate::plan::Topology;
use crate::respond::{Names, Port, Responders};
use crate::wiring::{self, Place, Space};

/// Where questions for names are answered.
const DNS_PORT: u16 = 53;

/// The pods of a cluster, and what runs in them.
#[derive(Debug)]
pub(crate) struct Pods {
    pub(crate) nodes: Nodes,
    pub(crate) responders: Arc<Responders>,
    commands: Commands,
    network: Network,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The pods that are up, by uid.
    up: BTreeMap<String, Up>,
    /// For each node the ranges of its pods.
    ranges: Vec<Vec<Range>>,
    last_number: u32,
    /// The hosts outside, beyond the address of the outside itself.
    hosts: BTreeSet<IpAddr>,
    /// What the hosts outside answer on.
    host_ports: BTreeSet<Port>,
    /// The names of the cluster.
    zone: Zone,
}

#[derive(Debug, Clone)]
struct Up {
    node: usize,
    ports: BTreeSet<Port>,
    /// `None` with `hostNetwork`.
    own: Option<Own>,
    /// Of a pod that answers questions for names.
    dns: Option<Arc<DnsServer>>,
}

/// A network of its own.
#[derive(Debug, Clone)]
struct Own {
    space: Space,
    namespace: Arc<Namespace>,
}

impl Pods {
    pub(crate) fn new(nodes: Nodes, network: Network) -> Result<Pods, Error> {
        let mut names = Names::default();
        for node in &nodes.nodes {
            let owner = &node.space.owner;
            names.extend(node.space.addresses.iter().map(|a| (*a, owner.clone())));
        }
        let responders = Responders::start(names, nodes.families)
            .map_err(|e| Error::socket("start the responders", e))?;
        let ranges =
            |node: &Node| node.pod_cidrs.iter().copied().map(Range::new).collect::<Vec<_>>();
        let state = State {
            up: BTreeMap::new(),
            ranges: nodes.nodes.iter().map(ranges).collect(),
            last_number: u32::try_from(nodes.nodes.len()).unwrap_or(u32::MAX),
            hosts: BTreeSet::new(),
            host_ports: BTreeSet::new(),
            zone: Zone::default(),
        };
        let (responders, commands) = (Arc::new(responders), Commands::default());
        let pods = Pods { nodes, responders, commands, network, state: state.into() };
        on_own_thread(|| {
            let spaces = pods.nodes.nodes.iter().map(|n| (&n.space, &n.namespace));
            let outside = (&pods.nodes.outside, &pods.nodes.outside_namespace);
            for (space, namespace) in spaces.chain([outside]) {
                pods.serve(space, namespace, &BTreeSet::new())?;
            }
            Ok::<(), Error>(())
        })?;
        Ok(pods)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a space answer on these ports. Moves the calling thread there.
    fn serve(
        &self,
        space: &Space,
        namespace: &Namespace,
        ports: &BTreeSet<Port>,
    ) -> Result<(), Error> {
        require_files(self.responders.missing(space.number, ports))?;
        namespace.enter()?;
        self.responders.serve(space.number, ports).map_err(|((protocol, port), error)| {
            Error::socket(&format!("listen on {port}/{protocol}"), error)
        })
    }

    /// Makes the network of a pod that has one of its own. Nothing is in it yet.
    fn bring_up(&self, pod: &Value, node: usize) -> Result<Own, Error> {
        let name = format!("{}/{}", text(pod, "/metadata/namespace"), text(pod, "/metadata/name"));
        let had = pod.pointer("/status/podIPs").and_then(Value::as_array).into_iter().flatten();
        let had: Vec<IpAddr> = had.filter_map(|ip| text(ip, "/ip").parse().ok()).collect();
        let mut state = self.state();
        let mut addresses = Vec::new();
        for range in &mut state.ranges[node] {
            let kept = had.iter().copied().find(|a| range.contains(*a) && range.take_this(*a));
            let address = kept.or_else(|| range.take());
            addresses.extend(address);
        }
        state.last_number = state.last_number.saturating_add(1);
        let number = state.last_number;
        let all = addresses.len() == state.ranges[node].len();
        drop(state);
        let space = Space { number, owner: name, place: Place::Pod, addresses };
        let made = match all {
            true => on_own_thread(|| self.make(&space, node)),
            false => Err(Error::NodeFull { node: self.nodes.nodes[node].space.owner.clone() }),
        };
        match made {
            Ok(namespace) => Ok(Own { space, namespace }),
            Err(error) => {
                self.unmake(&space, node);
                Err(error)
            }
        }
    }

    fn make(&self, space: &Space, node: usize) -> Result<Arc<Namespace>, Error> {
        let Nodes { families, topology, .. } = self.nodes;
        let node = &self.nodes.nodes[node];
        require_files(1)?;
        let namespace = Namespace::create(std::slice::from_ref(space), |space| {
            set_all(space, families, topology)
        })?;
        let namespace = namespace.into_iter().next().map(Arc::new);
        let namespace = namespace.ok_or_else(|| Error::NodeFull { node: space.owner.clone() })?;
        node.namespace.enter()?;
        let file = namespace.file().as_raw_fd();
        configure(&space.owner, wiring::downlink(&node.space, space, file, topology))?;
        namespace.enter()?;
        let mut requests = wiring::uplink(space, &node.space, topology);
        if topology == Topology::Bridged {
            requests.extend(node.pod_cidrs.iter().map(|net: &IpNet| wiring::on_link(*net)));
        }
        configure(&space.owner, requests)?;
        Ok(namespace)
    }

    /// Has a pod whose network is there do what it is for, as soon as its policies are in force.
    fn begin(
        &self,
        pod: &Value,
        node: usize,
        own: &Own,
        ports: &BTreeSet<Port>,
    ) -> Result<Option<Arc<DnsServer>>, String> {
        let Own { space, namespace } = own;
        self.network.add(&self.nodes.nodes[node].space.owner, pod, &space.addresses)?;
        self.responders.name(&space.addresses, Some(&space.owner));
        let served = on_own_thread(|| self.serve(space, namespace, ports));
        served.map_err(|error| error.to_string())?;
        services::is_dns(pod).then(|| self.start_dns(own)).transpose()
    }

    /// Takes away a pod's network, and lets others have its addresses.
    fn take_down(&self, pod: &Value, node: usize, own: &Own) {
        let Own { space, .. } = own;
        // The file by which an agent that is away would learn of it can only be in memory.
        let _ = self.network.delete(&self.nodes.nodes[node].space.owner, pod, &space.addresses);
        self.unmake(space, node);
    }

    /// Takes away what there is of a pod's network.
    fn unmake(&self, space: &Space, node: usize) {
        self.responders.close(space.number);
        self.responders.name(&space.addresses, None);
        let topology = self.nodes.topology;
        on_own_thread(|| {
            if self.nodes.nodes[node].namespace.enter().is_ok() {
                for request in wiring::remove(space, topology) {
                    // What is not there need not be removed.
                    let _ = configure(&space.owner, vec![request]);
                }
            }
        });
        let mut state = self.state();
        for range in &mut state.ranges[node] {
            space.addresses.iter().for_each(|address| range.give_back(*address));
        }
    }

    /// The ports that a node answers on: those of its `hostNetwork` pods.
    fn serve_node(&self, node: usize) -> Result<(), Error> {
        let state = self.state();
        let pods = state.up.values().filter(|up| up.own.is_none() && up.node == node);
        let ports = pods.flat_map(|up| up.ports.iter().copied()).collect();
        drop(state);
        let node = &self.nodes.nodes[node];
        on_own_thread(|| self.serve(&node.space, &node.namespace, &ports))
    }

    /// Has a pod answer questions for names.
    fn start_dns(&self, own: &Own) -> Result<Arc<DnsServer>, String> {
        let zone = self.state().zone.clone();
        let started = on_own_thread(|| {
            own.namespace.enter()?;
            DnsServer::start(zone, &own.space.owner)
        });
        started.map(Arc::new).map_err(|error| error.to_string())
    }

    /// Says what the names of the cluster are from now on.
    pub(crate) fn set_zone(&self, zone: Zone) {
        let mut state = self.state();
        for server in state.up.values().filter_map(|up| up.dns.as_ref()) {
            server.set(zone.clone());
        }
        state.zone = zone;
    }

    /// Has hosts outside at these addresses and no others, that answer on these ports.
    pub(crate) fn set_hosts(
        &self,
        hosts: BTreeSet<IpAddr>,
        ports: BTreeSet<Port>,
    ) -> Result<(), Error> {
        let mut state = self.state();
        let add: Vec<IpAddr> = hosts.difference(&state.hosts).copied().collect();
        let remove: Vec<IpAddr> = state.hosts.difference(&hosts).copied().collect();
        let served = state.host_ports == ports;
        if add.is_empty() && remove.is_empty() && served {
            return Ok(());
        }
        on_own_thread(|| {
            self.nodes.outside_namespace.enter()?;
            // It has some address itself, as the gateway of the nodes.
            let own = |address: &&IpAddr| !self.nodes.outside.addresses.contains(address);
            let requests = remove.iter().filter(own).map(|a| wiring::no_host(*a));
            let add = add.iter().filter(own).map(|a| wiring::host(*a));
            let requests = requests.chain(add).collect();
            configure(&self.nodes.outside.owner, requests)?;
            for host in hosts.difference(&state.hosts) {
                self.responders.name(&[*host], Some(&host.to_string()));
            }
            self.responders.name(&remove, None);
            self.serve(&self.nodes.outside, &self.nodes.outside_namespace, &ports)
        })?;
        (state.hosts, state.host_ports) = (hosts, ports);
        Ok(())
    }

    /// The namespaces of all that is up, with whom each belongs to: the outside, the nodes, and the
    /// pods, all by their addresses.
    pub(crate) fn rooms(&self) -> Vec<(Vec<IpAddr>, Room)> {
        let state = self.state();
        let room = |space: &Space, namespace: &Arc<Namespace>, standing: &BTreeSet<Port>| {
            let (number, namespace) = (space.number, namespace.clone());
            (space.addresses.clone(), Room { number, namespace, standing: standing.clone() })
        };
        let mut outside =
            room(&self.nodes.outside, &self.nodes.outside_namespace, &state.host_ports);
        outside.0.extend(&state.hosts);
        let nodes = self.nodes.nodes.iter().enumerate().map(|(i, node)| {
            let pods = state.up.values().filter(|up| up.own.is_none() && up.node == i);
            let ports = pods.flat_map(|up| up.ports.iter().copied()).collect();
            room(&node.space, &node.namespace, &ports)
        });
        let pods = state.up.values().filter_map(|up| {
            up.own.as_ref().map(|own| room(&own.space, &own.namespace, &up.ports))
        });
        std::iter::once(outside).chain(nodes).chain(pods).collect()
    }

    /// The namespace of a pod, by its uid; `None` if it is not up, or has none of its own.
    pub(crate) fn namespace(&self, uid: &str) -> Option<Arc<Namespace>> {
        let state = self.state();
        state.up.get(uid)?.own.as_ref().map(|own| own.namespace.clone())
    }

    /// Asks a node about one of its pods, if it has any. What is in force there then is so for all of
    /// them, also for their open connections.
    pub(crate) fn check(&self, node: usize) -> Result<(), String> {
        let state = self.state();
        let mut own = state.up.iter().filter(|(_, up)| up.node == node);
        let Some((uid, own)) = own.find_map(|(uid, up)| Some((uid.clone(), up.own.clone()?)))
        else {
            return Ok(());
        };
        drop(state);
        let (namespace, name) = own.space.owner.split_once('/').unwrap_or_default();
        let pod = json!({"metadata": {"namespace": namespace, "name": name, "uid": uid}});
        self.network.check(&self.nodes.nodes[node].space.owner, &pod, &own.space.addresses)
    }

    /// The namespace that a pod is in, and what it is called there.
    fn place(&self, pod: &Value) -> Result<(Arc<Namespace>, PodNames), String> {
        let uid = text(pod, "/metadata/uid");
        let state = self.state();
        let up = state.up.get(uid).ok_or("the pod is not up")?;
        let (namespace, addresses) = match &up.own {
            Some(own) => (own.namespace.clone(), own.space.addresses.clone()),
            None => {
                let node = &self.nodes.nodes[up.node];
                (node.namespace.clone(), node.space.addresses.clone())
            }
        };
        Ok((namespace, PodNames::of(pod, addresses)))
    }
}

impl Runtime for Pods {
    fn up(&self, pod: &Value) -> Result<Vec<IpAddr>, String> {
        let uid = text(pod, "/metadata/uid").to_owned();
        let name = text(pod, "/spec/nodeName");
        let node = self.nodes.find(name).ok_or_else(|| {
            format!(
                "there is no node {name:?} here: it has node-1 to node-{}",
                self.nodes.nodes.len()
            )
        })?;
        let mut ports = ports::of(pod);
        if services::is_dns(pod) {
            ports.retain(|(_, port)| *port != DNS_PORT);
        }
        let is_host = pod.pointer("/spec/hostNetwork") == Some(&Value::Bool(true));
        if is_host {
            self.state().up.insert(uid, Up { node, ports, own: None, dns: None });
            self.serve_node(node).map_err(|error| error.to_string())?;
            return Ok(self.nodes.nodes[node].space.addresses.clone());
        }
        let own = self.bring_up(pod, node).map_err(|error| error.to_string())?;
        let begun = self.begin(pod, node, &own, &ports);
        let dns = begun.inspect_err(|_| self.take_down(pod, node, &own))?;
        let addresses = own.space.addresses.clone();
        self.state().up.insert(uid, Up { node, ports, own: Some(own), dns });
        Ok(addresses)
    }

    fn down(&self, pod: &Value) {
        let uid = text(pod, "/metadata/uid");
        self.commands.end(uid);
        let Some(up) = self.state().up.remove(uid) else { return };
        match up.own {
            Some(own) => self.take_down(pod, up.node, &own),
            // A port that stays open longer than its pod harms nobody.
            None => _ = self.serve_node(up.node),
        }
    }

    /// The command of a pod is what its image has, and there are no images here. So it is run only
    /// where somebody is to talk to it (`kubectl run -i`): then it is one of this host's programs.
    fn start(&self, pod: &Value, container: &str) -> Result<Option<Process>, String> {
        let containers = pod.pointer("/spec/containers").and_then(Value::as_array);
        let container = containers.into_iter().flatten().find(|c| c["name"] == container);
        let Some(container) = container.filter(|c| c["stdin"] == true) else { return Ok(None) };
        let words = [&container["command"], &container["args"]].map(Value::as_array);
        let words = words.into_iter().flatten().flatten().filter_map(Value::as_str);
        let mut command: Vec<String> = words.map(str::to_owned).collect();
        if command.is_empty() {
            command = vec!["sh".to_owned()];
        }
        let exec = Exec { command, stdin: true, tty: container["tty"] == true };
        let (namespace, names) = self.place(pod)?;
        self.commands.run(&namespace, &names, &exec).map(Some)
    }

    fn exec(&self, pod: &Value, _container: &str, exec: &Exec) -> Result<Process, String> {
        let (namespace, names) = self.place(pod)?;
        self.commands.run(&namespace, &names, exec)
    }

    fn connect(&self, pod: &Value, port: u16) -> Result<TcpStream, String> {
        let (namespace, names) = self.place(pod)?;
        let address = names.addresses.first().copied().ok_or("the pod has no address")?;
        on_own_thread(|| {
            namespace.enter().map_err(|error| error.to_string())?;
            // From within a pod its loopback is reached as well.
            let loopback = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
            let opened = TcpStream::connect(loopback)
                .or_else(|_| TcpStream::connect(SocketAddr::new(address, port)));
            opened.map_err(|error| error.to_string())
        })
    }
}
