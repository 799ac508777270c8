//! A lab that is a cluster: an API server, nodes with the agent on each, and pods that come and go
//! as the API says.
//!
//! The nodes and the pods are network namespaces of this process. The API server is the embedded
//! one; the agents follow it over HTTPS, as they follow any other.

mod addresses;
mod agents;
mod command;
mod files;
mod follow;
mod network;
mod nodes;
mod pods;
mod ports;
mod services;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use portcullis_agent::Desired;
use portcullis_apiserver::{Resource, Server, Store};
use portcullis_core::model::Cluster as Model;
use portcullis_core::net::{IpRange, Protocol, Traffic};
use portcullis_dataplane::Nftables;
use portcullis_kube::live::Snapshot;
use portcullis_kube::{Input, Source, load};
use serde_json::Value;

use crate::Error;
use crate::cluster::agents::Agents;
use crate::cluster::files::Files;
use crate::cluster::follow::Follower;
use crate::cluster::network::Network;
use crate::cluster::nodes::Nodes;
use crate::cluster::pods::Pods;
use crate::lab::Lab;
use crate::namespace::on_own_thread;
use crate::plan::{Kind, Options};
use crate::probe::Fresh;
use crate::respond::Port;

/// What this program is if it was started by a lab: a command of a pod, or the agent of a node. To be
/// asked before anything else by whatever brings clusters up, with its arguments; `None` if it was
/// started by somebody else. Returns when that has ended.
pub fn started_by_a_lab(arguments: &[OsString]) -> Option<ExitCode> {
    let (first, rest) = arguments.split_first()?;
    match first.to_str()? {
        command::POD_COMMAND => Some(command::run(rest)),
        agents::AGENT => Some(agents::run(rest)),
        _ => None,
    }
}

/// A cluster that is up. When it is dropped, all of it is gone, but for the state that it was told
/// to keep; so it is if the process is killed.
#[derive(Debug)]
pub struct Cluster {
    // In the order in which they have to go.
    agents: Agents,
    follower: Follower,
    server: Server,
    _runtime: tokio::runtime::Runtime,
    pods: Arc<Pods>,
    options: Options,
    fresh: Fresh,
}

/// Where the API server listens in the network of the nodes.
const API_PORT: u16 = 6443;
/// How many changes are remembered for watches.
const HISTORY: usize = 20_000;
/// What hosts outside answer on in any case.
const OUTSIDE_PORTS: [Port; 2] = [(Protocol::Tcp, 80), (Protocol::Tcp, 443)];
/// How long the nodes may take to enforce what the API says.
const SETTLING: Duration = Duration::from_secs(10);

/// What decides about connections, and whose pods are whose.
const KINDS: [&str; 6] = ["NetworkPolicy", "Namespace", "Pod", "Node", "Service", "ReplicaSet"];

impl Cluster {
    /// Brings a cluster up, and returns when every node enforces. The listener is where people reach
    /// the API server, and may be of another network. With a directory, the state that is in it is
    /// gone on from, and kept there. Each agent has a socket in a folder: `NODE/agent.sock`.
    /// [`enter`](crate::enter) comes first.
    pub fn up(
        listener: TcpListener,
        options: &Options,
        sockets: &Path,
        state: Option<&Path>,
    ) -> Result<Cluster, Error> {
        let files = Arc::new(Files::in_folder(sockets)?);
        let nodes = Nodes::up(options.nodes, options.families, options.topology)?;
        let inside = SocketAddr::new(nodes.gateway(), API_PORT);
        let inner = on_own_thread(|| {
            nodes.outside_namespace.enter()?;
            TcpListener::bind(inside).map_err(|e| Error::socket("listen for the nodes", e))
        })?;
        let pods = Arc::new(Pods::new(nodes, Network::new(files.clone()))?);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(|e| Error::socket("start the API server", e))?;
        let settings = portcullis_apiserver::Options {
            listeners: vec![listener, inner],
            names: Vec::new(),
            endpoint: Some(inside),
            history: HISTORY,
            state: state.map(Path::to_owned),
        };
        let server = runtime.block_on(Server::start(settings, pods.clone()))?;
        for node in &pods.nodes.nodes {
            server.add_node(&portcullis_apiserver::Node {
                name: node.space.owner.clone(),
                addresses: node.space.addresses.clone(),
                pod_cidrs: node.pod_cidrs.iter().map(|net| net.to_string()).collect(),
            });
        }
        let kubeconfig = server.kubeconfig_at(&inside.to_string());
        let agents = Agents::start(&pods.nodes.nodes, &files, &kubeconfig, options)?;
        let follower = Follower::start(server.store(), &pods, options, runtime.handle())?;
        for object in services::dns().iter().chain([&agents::daemon_set()]) {
            server.apply(object)?;
        }
        agents.wait_until_ready()?;
        let (options, fresh) = (options.clone(), Fresh::default());
        Ok(Cluster { agents, follower, server, _runtime: runtime, pods, options, fresh })
    }

    /// The API server.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// Waits until all pods run and every node enforces what the API says now, and returns that.
    pub fn settle(&self) -> Result<Input, Error> {
        let started = Instant::now();
        loop {
            let (input, revision) = self.state();
            let waits = match (self.pending(), self.follower.trouble()) {
                (Some(pod), _) => Some((pod, "it does not run yet".to_owned())),
                (None, Some(trouble)) => Some(("the lab".to_owned(), trouble)),
                (None, None) => self.difference(&input.cluster)?,
            };
            let same = self.server.store().read(|state| state.revision()) == revision;
            match waits {
                None if same => return Ok(input),
                Some((node, difference)) if started.elapsed() > SETTLING => {
                    let seconds = SETTLING.as_secs();
                    return Err(Error::Unsettled { node, seconds, difference });
                }
                _ => thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// The state as the API has it, and its revision.
    pub fn state(&self) -> (Input, u64) {
        let (snapshot, revision) = snapshot(self.server.store());
        (load(&[Source::Live(snapshot)], &portcullis_kube::Options::default()), revision)
    }

    /// A pod that has a node and does not run.
    fn pending(&self) -> Option<String> {
        let kind = Resource::of_kind("Pod")?;
        self.server.store().read(|state| {
            let mut pods = state.list(kind, None);
            let waits = pods.find(|(_, pod)| {
                let placed = !text(pod, "/spec/nodeName").is_empty();
                placed && matches!(text(pod, "/status/phase"), "" | "Pending")
            });
            waits.map(|(key, _)| format!("pod {}/{}", key.namespace, key.name))
        })
    }

    /// Where a node's kernel differs from what the state asks for, or lets connections go on that it
    /// does not allow: the node, and how.
    fn difference(&self, state: &Model) -> Result<Option<(String, String)>, Error> {
        for (number, node) in self.pods.nodes.nodes.iter().enumerate() {
            let name = &node.space.owner;
            let kernel = |source| Error::Kernel { node: name.clone(), source };
            let mut desired = Desired::of(state, name).state;
            desired.log = Some(agents::log(self.options.log_rate));
            desired.ranges = node.pod_cidrs.iter().copied().map(IpRange::from).collect();
            let mut dataplane = on_own_thread(|| {
                node.namespace.enter()?;
                Nftables::open().map_err(kernel)
            })?;
            let differences = dataplane.compare(&desired).map_err(kernel)?;
            if let Some(first) = differences.first() {
                return Ok(Some((name.clone(), first.to_string())));
            }
            if let Err(why) = self.pods.check(number) {
                return Ok(Some((name.clone(), why)));
            }
        }
        Ok(None)
    }

    /// Ends the agent of a node as a crash would (SIGKILL). Another one is started, as a cluster would
    /// see to it; returns when that was. `None` if there is no such node.
    pub fn kill_agent(&self, node: &str) -> Option<Instant> {
        self.agents.kill(node)
    }

    /// The process of the agent of a node. `None` if there is none at the moment.
    pub fn agent_process(&self, node: &str) -> Option<u32> {
        self.agents.process(node)
    }

    /// Whether the agent of a node is there and enforces what it has heard; if not, why.
    pub fn agent_is_ready(&self, node: &str) -> Result<(), String> {
        self.agents.readiness(node)
    }

    /// Calls the closure on a thread in the network of a pod, which is given by its uid. Sockets that it
    /// opens stay in that network. `None` if the pod is not up.
    pub fn in_pod<T: Send>(
        &self,
        uid: &str,
        work: impl FnOnce() -> T + Send,
    ) -> Option<Result<T, Error>> {
        let namespace = self.pods.namespace(uid)?;
        Some(on_own_thread(|| {
            namespace.enter()?;
            Ok(work())
        }))
    }

    /// What is up now, as a lab of which connections can be tried. To be given back with
    /// [`Cluster::put_back`].
    pub fn lab(&mut self, state: &Model) -> Result<Lab, Error> {
        let rooms = self.pods.rooms();
        let here: BTreeMap<IpAddr, usize> = rooms
            .iter()
            .enumerate()
            .flat_map(|(i, (addresses, _))| addresses.iter().map(move |address| (*address, i)))
            .collect();
        let mut state = state.clone();
        state.pods.retain(|pod| {
            let known = pod.addresses.iter().all(|address| here.contains_key(address));
            !pod.finished && (pod.host_network || known && !pod.addresses.is_empty())
        });
        let plan = follow::plan_of(&state, &self.options, &self.pods)?;
        follow::host(&plan, &self.pods)?;
        let room_of = plan.endpoints.iter().map(|endpoint| match endpoint.kind {
            // The outside is the first.
            Kind::External => 0,
            _ => endpoint.addresses.first().and_then(|a| here.get(a)).copied().unwrap_or_default(),
        });
        let room_of = room_of.collect();
        let rooms = rooms.into_iter().map(|(_, room)| room).collect();
        let fresh = std::mem::take(&mut self.fresh);
        Ok(Lab::of(plan, rooms, room_of, self.pods.responders.clone(), fresh))
    }

    /// Closes the ports that trials have opened.
    pub fn put_back(&mut self, mut lab: Lab) -> Result<(), Error> {
        let closed = lab.listen(&BTreeSet::new());
        self.fresh = lab.into_fresh();
        closed
    }
}

/// The objects that decide about connections, as JSON.
fn snapshot(store: &Store) -> (Snapshot, u64) {
    store.read(|state| {
        let kinds = KINDS.into_iter().filter_map(Resource::of_kind);
        let objects = kinds.flat_map(|kind| {
            state.list(kind, None).map(|(key, object)| {
                let name = match key.namespace.as_str() {
                    "" => key.name.clone(),
                    namespace => format!("{namespace}/{}", key.name),
                };
                (kind.plural, name, object.to_string())
            })
        });
        (Snapshot::of("lab", objects), state.revision())
    })
}

/// A text within an object; empty if there is none.
pub(crate) fn text<'a>(object: &'a Value, path: &str) -> &'a str {
    object.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

/// The ports among what is tried.
fn ports(traffics: &BTreeSet<Traffic>) -> BTreeSet<Port> {
    let port = |traffic: &Traffic| match traffic {
        Traffic::Port(protocol, port) => Some((*protocol, *port)),
        Traffic::Other => None,
    };
    traffics.iter().filter_map(port).collect()
}
