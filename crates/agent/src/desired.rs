//! What a node must enforce, by what has been observed.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use portcullis_cni::protocol::Attachment;
use portcullis_core::incremental::NodeProgram;
use portcullis_core::model::{Cluster, Direction, Mode};
use portcullis_dataplane::state::NodeState;
use portcullis_kube::live::{Access, Event, Kind};

use crate::attached::Attached;
use crate::run::{Error, Logging};
use crate::{Observed, Unprogrammed};

/// A policy in one direction: what hits are told by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PolicyName {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) direction: Direction,
}

/// A rule of a policy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RulePlace {
    pub(crate) policy: PolicyName,
    /// Its index in the section of the direction.
    pub(crate) rule: u32,
}

/// What a node must enforce.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// What goes to the data plane.
    pub state: NodeState,
    /// How many policies select a pod of the node.
    pub policies: usize,
}

impl Desired {
    /// What the node must enforce in a cluster that is known whole.
    pub fn of(cluster: &Cluster, node: &str) -> Desired {
        let mut program = NodeProgram::new(node);
        for policy in &cluster.policies {
            program.policy(&policy.namespace, &policy.name, Some(policy.clone()));
        }
        for (name, labels) in &cluster.namespaces {
            let mode = cluster.modes.get(name).copied();
            program.namespace(name, Some(labels.clone()), mode);
        }
        for known in &cluster.nodes {
            program.node(&known.name, Some(&known.addresses));
        }
        for pod in &cluster.pods {
            program.pod(&pod.namespace, &pod.name, Some(pod));
        }
        Desired::from(&mut program)
    }
}

impl From<&mut NodeProgram> for Desired {
    fn from(program: &mut NodeProgram) -> Desired {
        let state = program.state().clone();
        Desired { state, policies: program.local_policies().len() }
    }
}

/// Closes these addresses, both ways, whoever had them.
pub(crate) fn close(state: &mut NodeState, addresses: impl Iterator<Item = IpAddr>) {
    // A number that no profile of policies gets: those are counted from 0.
    const CLOSED: u32 = u32::MAX;
    for address in addresses {
        let closed = state.profiles.entry(CLOSED).or_default();
        closed.ingress = Some(Arc::from([]));
        closed.egress = Some(Arc::from([]));
        state.endpoints.insert(address, CLOSED);
    }
}

/// Asks the API server once, and says what the node must enforce now, where the container runtime has
/// said this of its pods. Waits so long for an answer.
pub fn desired_once(
    access: &Access,
    node: &str,
    unprogrammed: &Unprogrammed,
    mode: Mode,
    logging: Logging,
    attachments: &[Attachment],
    patience: Duration,
) -> Result<Desired, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(Error::Runtime)?;
    let (tell, heard) = mpsc::channel();
    let watch = access.watch(move |event| {
        // Nobody listens when the answer is there.
        let _ = tell.send(event);
    });
    let answer = runtime.block_on(async {
        let mut watch = Box::pin(watch);
        let (mut observed, mut attached) = (Observed::new(node), Attached::new(node));
        for attachment in attachments {
            // No pod is known yet that this could make another.
            attached.attach(attachment);
        }
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
                let (event, more) = attached.hear(event);
                observed.hear(event);
                more.into_iter().for_each(|event| _ = observed.hear(event));
            }
            let ranges = unprogrammed.ranges(observed.pod_cidrs());
            if let Some(program) = observed.program() {
                return match program.node_is_known() {
                    true => {
                        let log = logging.of(&program.logged(logging.level));
                        let mut desired = Desired::from(program);
                        desired.state.ranges = ranges;
                        desired.state.log = log;
                        desired.state.audit = mode == Mode::Audit;
                        close(&mut desired.state, attached.strangers());
                        Ok(desired)
                    }
                    false => Err(Error::UnknownNode {
                        node: node.to_owned(),
                        known: program.nodes().map(str::to_owned).collect(),
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
