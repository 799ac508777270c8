//! What follows from the state of the API beside pods and policies: Services, names, and hosts
//! outside.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use portcullis_apiserver::{Resource, Store};
use portcullis_core::model::Cluster as Model;
use portcullis_kube::{Source, load};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::cluster::pods::Pods;
use crate::cluster::{OUTSIDE_PORTS, ports, services, snapshot};
use crate::dns::Zone;
use crate::namespace::on_own_thread;
use crate::plan::{Kind, Options, Plan, plan};
use crate::services::{EndpointSlice, Service, ServiceTable, table};
use crate::{Error, traffics};

/// Follows the state of the API until it is dropped.
#[derive(Debug)]
pub(crate) struct Follower {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    trouble: Arc<Mutex<Option<String>>>,
}

impl Follower {
    pub(crate) fn start(
        store: &Arc<Store>,
        pods: &Arc<Pods>,
        options: &Options,
        runtime: &Handle,
    ) -> Result<Follower, Error> {
        let (stop, mut stopped) = oneshot::channel::<()>();
        let mut tables = tables(pods)?;
        let trouble = Arc::new(Mutex::new(None));
        let (store, pods, options) = (store.clone(), pods.clone(), options.clone());
        let (runtime, tell) = (runtime.clone(), trouble.clone());
        let work = move || {
            let mut changes = store.subscribe();
            let mut seen = Seen::default();
            loop {
                changes.borrow_and_update();
                let done = follow(&store, &pods, &options, &mut tables, &mut seen);
                let done = done.err().map(|error| error.to_string());
                *tell.lock().unwrap_or_else(PoisonError::into_inner) = done;
                let goes_on = runtime.block_on(async {
                    tokio::select! {
                        changed = changes.changed() => changed.is_ok(),
                        _ = &mut stopped => false,
                    }
                });
                if !goes_on {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("follow".to_owned()).spawn(work);
        let thread = thread.map_err(|e| Error::socket("follow the API server", e))?;
        Ok(Follower { stop: Some(stop), thread: Some(thread), trouble })
    }

    /// Why what the state asks for is not there, if so.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        drop(self.stop.take());
        // If it panicked, that was reported when it happened.
        _ = self.thread.take().map(JoinHandle::join);
    }
}

/// What has been done already.
#[derive(Debug, Default)]
struct Seen {
    /// The revisions of all policies.
    policies: Option<Vec<String>>,
    services: Option<(Vec<Service>, Vec<EndpointSlice>)>,
}

/// The tables of Services of all nodes.
fn tables(pods: &Pods) -> Result<Vec<ServiceTable>, Error> {
    let open = |node: &super::nodes::Node| {
        on_own_thread(|| {
            node.namespace.enter()?;
            let node = node.space.owner.clone();
            ServiceTable::open().map_err(|source| Error::Kernel { node, source })
        })
    };
    pods.nodes.nodes.iter().map(open).collect()
}

fn follow(
    store: &Store,
    pods: &Pods,
    options: &Options,
    tables: &mut [ServiceTable],
    seen: &mut Seen,
) -> Result<(), Error> {
    let services = services::read(store);
    if seen.services.as_ref() != Some(&services) {
        for (node, kernel) in pods.nodes.nodes.iter().zip(tables) {
            let node = &node.space;
            let table = table(&services.0, &services.1, &node.owner, &node.addresses);
            let node = || node.owner.clone();
            let applied = kernel.apply(&table);
            applied.map_err(|source| Error::Kernel { node: node(), source })?;
        }
        pods.set_zone(Zone::new(&services.0, &services.1));
        seen.services = Some(services);
    }
    let policies = Resource::of_kind("NetworkPolicy").map(|kind| {
        store.read(|state| {
            let all = state.list(kind, None);
            all.map(|(_, policy)| policy["metadata"]["resourceVersion"].to_string()).collect()
        })
    });
    if policies != seen.policies {
        let input = load(&[Source::Live(snapshot(store).0)], &portcullis_kube::Options::default());
        let mut state = input.cluster;
        // Pods that have no address yet would be given one.
        state.pods.retain(|pod| !pod.addresses.is_empty());
        host(&plan_of(&state, options, pods)?, pods)?;
        seen.policies = policies;
    }
    Ok(())
}

/// What there is to try in a state.
pub(crate) fn plan_of(state: &Model, options: &Options, pods: &Pods) -> Result<Plan, Error> {
    let mut plan = plan(state, &Options { nodes: 1, ..options.clone() })?;
    // On a bridge, such an address is looked for on the link; and no cluster has hosts there.
    let nodes = &pods.nodes.nodes;
    let is_pods =
        |address: &IpAddr| nodes.iter().flat_map(|n| &n.pod_cidrs).any(|net| net.contains(address));
    plan.keep(|e| e.kind != Kind::External || !e.addresses.iter().any(is_pods));
    Ok(plan)
}

/// Has the hosts outside that a plan asks for.
pub(crate) fn host(plan: &Plan, pods: &Pods) -> Result<(), Error> {
    let outside = plan.endpoints.iter().filter(|endpoint| endpoint.kind == Kind::External);
    let hosts = outside.flat_map(|endpoint| endpoint.addresses.iter().copied()).collect();
    let spoken_of = ports(&traffics(&plan.cluster));
    let ports: BTreeSet<_> = spoken_of.into_iter().chain(OUTSIDE_PORTS).collect();
    pods.set_hosts(hosts, ports)
}
