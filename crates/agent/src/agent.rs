//! What the agent does, step by step. It runs on whatever thread calls it.

use std::collections::BTreeMap;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use portcullis_dataplane::state::NodeState;
use portcullis_dataplane::{Dataplane, Hits};
use portcullis_kube::live::Event;
use tracing::{error, info, warn};

use crate::desired::Desired;
use crate::{Metrics, Observed, Unprogrammed};

/// How often what is in the kernel is looked at.
const LOOK: Duration = Duration::from_millis(250);
/// The first and the longest wait after the data plane refused, and between repairs that do not
/// last.
const WAITS: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(10)];

/// Enforces on one node what it hears of the cluster.
///
/// What is in force stands until all of the cluster is known, and whenever nothing new is heard
/// (SEMANTICS 27).
#[derive(Debug)]
pub struct Agent<D> {
    node: String,
    unprogrammed: Unprogrammed,
    /// Where each state is told that is in force.
    tell: Option<Sender<NodeState>>,
    dataplane: D,
    observed: Observed,
    /// When the first event came that may not be enforced yet.
    waiting_since: Option<Instant>,
    /// What is in force.
    in_force: Option<Desired>,
    /// What has been counted of it, by origin.
    counted: Vec<u64>,
    next_attempt: Instant,
    next_look: Instant,
    /// Failures one after the other.
    failures: u32,
    /// Repairs one after the other: each was in vain.
    repairs: u32,
    metrics: Arc<Mutex<Metrics>>,
}

impl<D: Dataplane> Agent<D> {
    /// An agent for the node of this name, that knows nothing yet.
    pub fn new(node: &str, dataplane: D, metrics: Arc<Mutex<Metrics>>) -> Agent<D> {
        let now = Instant::now();
        Agent {
            node: node.to_owned(),
            unprogrammed: Unprogrammed::default(),
            tell: None,
            dataplane,
            observed: Observed::default(),
            waiting_since: None,
            in_force: None,
            counted: Vec::new(),
            next_attempt: now,
            next_look: now,
            failures: 0,
            repairs: 0,
            metrics,
        }
    }

    /// Says what becomes of addresses that nothing has been heard of; without it they are open.
    pub fn with_unprogrammed(self, unprogrammed: Unprogrammed) -> Agent<D> {
        Agent { unprogrammed, ..self }
    }

    /// Tells each state as soon as it is in force.
    pub(crate) fn with_teller(self, tell: Sender<NodeState>) -> Agent<D> {
        Agent { tell: Some(tell), ..self }
    }

    /// Takes in an event that came at this time. Nothing is enforced by that alone: events that
    /// come together are enforced together.
    pub fn hear(&mut self, event: Event, at: Instant) {
        match &event {
            Event::Failed(kind, why) => {
                warn!(%kind, why, "cannot hear the API server; what is in force stands");
                self.metrics().watch_failed(*kind);
            }
            Event::All(kind, objects) => {
                info!(%kind, objects = objects.len(), "listed");
                objects.iter().for_each(say_problems);
            }
            Event::Applied(object) => say_problems(object),
            Event::Deleted(..) => {}
        }
        if self.observed.hear(event) {
            self.waiting_since.get_or_insert(at);
        }
    }

    /// Enforces what is new, and looks from time to time whether what is in force is still there.
    /// Returns when it wants to be called again, if nothing is heard before.
    pub fn step(&mut self) -> Instant {
        if Instant::now() >= self.next_attempt && self.waiting_since.is_some() {
            self.enforce();
        }
        let now = Instant::now();
        if now >= self.next_attempt && now >= self.next_look {
            self.look();
        }
        self.metrics().alive = Some(Instant::now());
        self.next_attempt.max(self.next_look)
    }

    /// Brings the hits by policy up to date.
    pub fn count_hits(&mut self) {
        match self.dataplane.hits() {
            Ok(hits) => self.add(&hits),
            Err(error) => warn!(%error, "hits cannot be read"),
        }
    }

    /// What is in force, if anything has been put there.
    pub fn in_force(&self) -> Option<&Desired> {
        self.in_force.as_ref()
    }

    /// What has been heard.
    pub fn observed(&self) -> &Observed {
        &self.observed
    }

    /// What enforces.
    pub fn dataplane(&mut self) -> &mut D {
        &mut self.dataplane
    }

    fn enforce(&mut self) {
        let Some(cluster) = self.observed.cluster() else { return };
        let Some(since) = self.waiting_since.take() else { return };
        let is_known = cluster.nodes.iter().any(|node| node.name == self.node);
        let known = [cluster.policies.len(), cluster.pods.len()];
        let unreadable = self.observed.unreadable().count();
        let mut desired = Desired::of(cluster, &self.node);
        desired.state.ranges = self.unprogrammed.ranges(&cluster.nodes, &self.node);
        let is_open = is_known && desired.state.ranges.is_empty();
        if is_open
            && matches!(self.unprogrammed, Unprogrammed::Closed(_))
            && self.in_force.is_none()
        {
            warn!(
                node = self.node,
                "the node has no podCIDR: an address is open until its pod is known; name its \
                 ranges with --pod-cidr"
            );
        }
        if let Some(in_force) = self.in_force.as_ref().filter(|f| f.state == desired.state) {
            if in_force.origins != desired.origins {
                // The same state, of policies of other names: what was counted is the old ones'.
                self.count_hits();
            }
        } else if let Some(at) = self.put(&desired) {
            self.metrics().enforced(at.saturating_duration_since(since));
        } else {
            self.waiting_since = Some(since);
            return;
        }
        if !is_known {
            warn!(node = self.node, "the cluster has no node of this name: nothing is enforced");
        }
        {
            let mut metrics = self.metrics();
            metrics.node_is_known = is_known;
            [metrics.policies, metrics.pods] = known;
            metrics.unreadable_policies = unreadable;
            metrics.programmed(&desired);
        }
        self.in_force = Some(desired);
    }

    /// Puts the state in force, and says since when it is. If that fails, it is to be tried again
    /// later.
    fn put(&mut self, desired: &Desired) -> Option<Instant> {
        let start = Instant::now();
        match self.dataplane.apply(&desired.state) {
            Ok(report) => {
                let last = self.dataplane.take_final_hits();
                self.add(&last);
                self.counted = vec![0; desired.origins.len()];
                self.failures = 0;
                self.next_look = Instant::now() + LOOK;
                if let Some(tell) = &self.tell {
                    // Nobody listens any more when the agent stops.
                    let _ = tell.send(desired.state.clone());
                }
                self.metrics().applied(report.elapsed);
                info!(
                    endpoints = desired.state.endpoints.len(),
                    policies = desired.policies,
                    elements = report.elements,
                    seconds = report.elapsed.as_secs_f64(),
                    "enforced"
                );
                Some(start + report.elapsed)
            }
            Err(error) => {
                let wait = wait(self.failures);
                self.failures = self.failures.saturating_add(1);
                self.next_attempt = Instant::now() + wait;
                self.metrics().apply_errors += 1;
                error!(%error, retry_seconds = wait.as_secs_f64(), "cannot enforce; what is in force stands");
                None
            }
        }
    }

    /// Looks whether what is in force is as it was put there, and puts it there again if not.
    fn look(&mut self) {
        self.next_look = Instant::now() + LOOK;
        let differences = match self.dataplane.differences() {
            Ok(differences) => differences,
            Err(error) => {
                warn!(%error, "cannot look at what is in force");
                return;
            }
        };
        if differences.is_empty() {
            self.repairs = 0;
            return;
        }
        let Some(in_force) = self.in_force.clone() else { return };
        for difference in differences.iter().take(10) {
            warn!(%difference, "somebody else changed what is in force; putting it back");
        }
        // Others may insist. To answer at once each time would keep the node busy.
        self.next_attempt = Instant::now() + wait(self.repairs).saturating_sub(WAITS[0]);
        self.repairs = self.repairs.saturating_add(1);
        if self.put(&in_force).is_some() {
            self.metrics().drift_repairs += 1;
        }
    }

    /// Adds what is new of hits that are of what is in force.
    fn add(&mut self, hits: &[Hits]) {
        let Some(in_force) = &self.in_force else { return };
        let mut new = BTreeMap::new();
        for hits in hits {
            let index = hits.origin as usize;
            let (Some(origin), Some(counted)) =
                (in_force.origins.get(index), self.counted.get_mut(index))
            else {
                continue;
            };
            *new.entry(origin.clone()).or_default() += hits.packets.saturating_sub(*counted);
            *counted = hits.packets;
        }
        self.metrics().hit(new);
    }

    fn metrics(&self) -> MutexGuard<'_, Metrics> {
        self.metrics.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn say_problems(object: &portcullis_kube::live::Object) {
    let kind = object.body.kind();
    let (namespace, name) = object.body.name();
    for problem in &object.problems {
        warn!(%kind, namespace, name, problem, "cannot be understood; what cannot be read is closed");
    }
}

fn wait(failures: u32) -> Duration {
    WAITS[0].saturating_mul(1 << failures.min(16)).min(WAITS[1])
}
