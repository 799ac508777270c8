//! The agents of a cluster, each reached by a port-forward to its pod.

use std::fmt;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::{Api, ListParams};
use portcullis_core::labels::Selector;
use tokio::net::UnixStream as AsyncUnixStream;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::access::{Access, CONNECT};
use super::error::{Asked, Error};
use super::list::{Failure, PAGE, Resource};
use super::watch::{Item, Kind, Object};

/// By this label the pods of agents are known, as deploy/ has them.
pub const AGENT_LABEL: &str = "app.kubernetes.io/name=portcullis";

/// The pod of an agent.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct AgentPod {
    /// The node that it runs on.
    pub node: String,
    /// `metadata.namespace`
    pub namespace: String,
    /// `metadata.name`
    pub name: String,
    /// `status.phase`
    pub phase: String,
}

/// A connection to the API server, over which agents are reached. Everything ends with it.
pub struct Agents {
    runtime: Handle,
    _end: oneshot::Sender<()>,
    client: Client,
    asked: Asked,
    namespace: String,
}

impl fmt::Debug for Agents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Agents").field("asked", &self.asked).finish_non_exhaustive()
    }
}

/// A connection to an agent.
#[derive(Debug)]
pub struct Forwarded {
    /// What the agent reads and writes.
    pub stream: UnixStream,
    /// Why it ended, if that is known.
    why: Arc<Mutex<Option<String>>>,
}

impl Forwarded {
    /// Why the connection ended, if somebody on the way has said so.
    pub fn why(&self) -> Option<String> {
        self.why.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Access {
    /// Connects to the API server, to reach agents over it.
    pub fn agents(&self) -> Result<Agents, Error> {
        let (runtime, end) = background().map_err(Error::Runtime)?;
        let (client, asked, namespace) = runtime.block_on(async {
            let (_, mut config) = self.config().await?;
            config.connect_timeout = Some(CONNECT.min(self.timeout));
            let asked = self.asked(&config);
            let namespace = config.default_namespace.clone();
            let client = Client::try_from(config).map_err(|e| asked.error(e))?;
            Ok::<_, Error>((client, asked, namespace))
        })?;
        Ok(Agents { runtime, _end: end, client, asked, namespace })
    }
}

impl Agents {
    /// The namespace of the context.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The pods of agents in all namespaces, by node.
    pub fn pods(&self) -> Result<Vec<AgentPod>, Error> {
        let pods = Api::<Pod>::all(self.client.clone());
        let wanted = ListParams::default().labels(AGENT_LABEL);
        let listed = self.within(Kind::Pod.resource(), pods.list(&wanted))?;
        // Anybody may give a pod this label; only who may run one on the network of a node can be
        // an agent.
        let is_on_a_node = |pod: &Pod| pod.spec.as_ref().and_then(|s| s.host_network) == Some(true);
        let mut pods: Vec<AgentPod> = listed
            .items
            .into_iter()
            .filter(is_on_a_node)
            .map(|pod| AgentPod {
                node: pod.spec.and_then(|spec| spec.node_name).unwrap_or_default(),
                namespace: pod.metadata.namespace.unwrap_or_default(),
                name: pod.metadata.name.unwrap_or_default(),
                phase: pod.status.and_then(|status| status.phase).unwrap_or_default(),
            })
            .collect();
        pods.sort_unstable();
        Ok(pods)
    }

    /// Connects to a port of an agent's pod, from within it.
    pub fn connect(&self, pod: &AgentPod, port: u16) -> Result<Forwarded, Error> {
        let api = Api::<Pod>::namespaced(self.client.clone(), &pod.namespace);
        let mut forward = self.within(Kind::Pod.resource(), api.portforward(&pod.name, &[port]))?;
        let (ours, theirs) = UnixStream::pair().map_err(Error::Runtime)?;
        theirs.set_nonblocking(true).map_err(Error::Runtime)?;
        let why = Arc::new(Mutex::new(None));
        let said = why.clone();
        self.runtime.spawn(async move {
            let (Some(mut remote), Some(error), Ok(mut local)) = (
                forward.take_stream(port),
                forward.take_error(port),
                AsyncUnixStream::from_std(theirs),
            ) else {
                return;
            };
            let copied = tokio::io::copy_bidirectional(&mut remote, &mut local);
            tokio::select! {
                biased;
                Some(error) = error => {
                    *said.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                }
                // The end of a connection is told by its streams.
                _ = copied => {}
            }
        });
        Ok(Forwarded { stream: ours, why })
    }

    /// One object as it is now, if there is one. The namespace is empty where the kind has none.
    pub fn get(&self, kind: Kind, namespace: &str, name: &str) -> Result<Option<Object>, Error> {
        let api = self.objects(kind, Some(namespace).filter(|namespace| !namespace.is_empty()));
        let found = self.within(kind.resource(), api.get_opt(name))?;
        Ok(found.map(|item| Object::read(kind, item.object)))
    }

    /// All objects of a kind as they are now, of a namespace or of all.
    pub fn list(&self, kind: Kind, namespace: Option<&str>) -> Result<Vec<Object>, Error> {
        self.select(kind, namespace, &Selector::default())
    }

    /// The same of those with certain labels.
    pub fn select(
        &self,
        kind: Kind,
        namespace: Option<&str>,
        labels: &Selector,
    ) -> Result<Vec<Object>, Error> {
        let api = self.objects(kind, namespace);
        let mut params = ListParams::default().limit(PAGE);
        if !labels.is_empty() {
            params = params.labels(&labels.to_string());
        }
        let mut objects = Vec::new();
        loop {
            let page = self.within(kind.resource(), api.list(&params))?;
            let read = |item: Item| Object::read(kind, item.object);
            objects.extend(page.items.into_iter().map(read));
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(objects),
            }
        }
    }

    fn objects(&self, kind: Kind, namespace: Option<&str>) -> Api<Item> {
        let (client, resource) = (self.client.clone(), kind.resource().api());
        match namespace {
            Some(namespace) => Api::namespaced_with(client, namespace, &resource),
            None => Api::all_with(client, &resource),
        }
    }

    /// What comes of a request, within the time that one may take.
    fn within<T>(
        &self,
        resource: Resource,
        request: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, Error> {
        let timed = self.runtime.block_on(async {
            tokio::time::timeout(self.asked.timeout, request).await.map_err(|_| Failure::TimedOut)
        });
        let failed = |failure| self.asked.listing(&resource, failure);
        timed.and_then(|answer| answer.map_err(Failure::Client)).map_err(failed)
    }
}

/// A runtime on a thread of its own, that ends when the other thing is dropped.
fn background() -> io::Result<(Handle, oneshot::Sender<()>)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    let (end, ended) = oneshot::channel::<()>();
    let thread = thread::Builder::new().name("api server".to_owned());
    thread.spawn(move || {
        // Also dropped means the end.
        let _ = runtime.block_on(ended);
        runtime.shutdown_background();
    })?;
    Ok((handle, end))
}
