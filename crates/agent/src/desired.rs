//! What a node must enforce, by what has been observed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use portcullis_core::Program;
use portcullis_core::model::{Cluster, Direction};
use portcullis_dataplane::share;
use portcullis_dataplane::state::{NodeState, Profile};
use portcullis_kube::live::{Access, Event, Kind};

use crate::Observed;
use crate::run::Error;

/// A policy in one direction: what hits are told by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PolicyName {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) direction: Direction,
}

/// What a node must enforce.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// What goes to the data plane.
    pub state: NodeState,
    /// How many policies select a pod of the node.
    pub policies: usize,
    /// How many classes of addresses the policies of the cluster tell apart.
    pub identities: usize,
    /// Whose the origins of the state are.
    pub(crate) origins: Vec<PolicyName>,
}

impl Desired {
    /// What the node must enforce in this cluster. A node that no pod runs on has nothing to
    /// enforce.
    pub fn of(cluster: &Cluster, node: &str) -> Desired {
        let program = Program::compile(cluster);
        let (state, origins) = share(cluster, &program, node);
        let origins = origins.iter().map(|origin| {
            let policy = &cluster.policies[origin.policy as usize];
            let (namespace, name) = (policy.namespace.clone(), policy.name.clone());
            PolicyName { namespace, name, direction: origin.direction }
        });
        let mut subjects: BTreeMap<&str, BTreeSet<_>> = BTreeMap::new();
        for (i, pod) in cluster.pods.iter().enumerate() {
            if pod.node.as_deref() == Some(node) && program.profile(i).is_some() {
                subjects.entry(&pod.namespace).or_default().insert(&pod.labels);
            }
        }
        let selects = cluster.policies.iter().filter(|policy| {
            let mut local = subjects.get(&*policy.namespace).into_iter().flatten();
            local.any(|labels| policy.subject.matches(labels))
        });
        Desired {
            state,
            policies: selects.count(),
            identities: program.identity_count(),
            origins: origins.collect(),
        }
    }
}

impl Desired {
    /// Closes these addresses, both ways, whoever had them.
    pub(crate) fn close(&mut self, addresses: impl Iterator<Item = IpAddr>) {
        let mut addresses = addresses.peekable();
        if addresses.peek().is_none() {
            return;
        }
        let closed = self.state.profiles.len() as u32;
        self.state.profiles.push(Profile { ingress: Some(Vec::new()), egress: Some(Vec::new()) });
        self.state.endpoints.extend(addresses.map(|address| (address, closed)));
    }
}

/// Asks the API server once, and says what the node must enforce now. Waits so long for an answer.
pub fn desired_once(access: &Access, node: &str, patience: Duration) -> Result<Desired, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(Error::Runtime)?;
    let (tell, heard) = mpsc::channel();
    let watch = access.watch(move |event| {
        // Nobody listens when the answer is there.
        let _ = tell.send(event);
    });
    let answer = runtime.block_on(async {
        let mut watch = Box::pin(watch);
        let mut observed = Observed::default();
        let (mut failure, start) = (None, Instant::now());
        loop {
            if let Ok(ended) = tokio::time::timeout(Duration::from_millis(20), &mut watch).await {
                match ended {
                    Ok(never) => match never {},
                    Err(error) => return Err(Error::Live(error)),
                }
            }
            for event in heard.try_iter() {
                if let Event::Failed(kind, why) = &event {
                    failure = Some((*kind, why.clone()));
                }
                observed.hear(event);
            }
            if let Some(cluster) = observed.cluster() {
                return match cluster.nodes.iter().any(|known| known.name == node) {
                    true => Ok(Desired::of(cluster, node)),
                    false => Err(Error::UnknownNode {
                        node: node.to_owned(),
                        known: cluster.nodes.iter().map(|known| known.name.clone()).collect(),
                    }),
                };
            }
            if start.elapsed() > patience {
                let (kind, why) = failure.unwrap_or((Kind::Policy, "no answer".to_owned()));
                return Err(Error::Unheard { kind, why });
            }
        }
    });
    runtime.shutdown_background();
    answer
}
