//! What the agent does, step by step. It runs on whatever thread calls it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use portcullis_dataplane::state::NodeState;
use portcullis_dataplane::{Dataplane, Hits};
use portcullis_kube::live::Event;
use rustc_hash::FxHashMap;
use tracing::{error, info, warn};

use crate::desired::PolicyName;
use crate::{Metrics, Observed};

/// How often what is in the kernel is looked at.
const LOOK: Duration = Duration::from_millis(250);
/// How often it is asked whether packets meet what is in the kernel at all.
const ASK: Duration = Duration::from_secs(2);
/// How soon what was put aside is looked after again.
const TIDY: Duration = Duration::from_millis(5);
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
    dataplane: D,
    observed: Observed,
    /// When the first event came that may not be enforced yet.
    waiting_since: Option<Instant>,
    /// What is in force.
    in_force: Option<NodeState>,
    /// The version of the rules that are in force, and whose their origins are.
    version: Option<u64>,
    origins: BTreeMap<u32, PolicyName>,
    /// What has been counted, by origin.
    counted: FxHashMap<u32, u64>,
    next_attempt: Instant,
    next_look: Instant,
    next_ask: Instant,
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
            dataplane,
            observed: Observed::new(node),
            waiting_since: None,
            in_force: None,
            version: None,
            origins: BTreeMap::new(),
            counted: FxHashMap::default(),
            next_attempt: now,
            next_look: now,
            next_ask: now,
            failures: 0,
            repairs: 0,
            metrics,
        }
    }

    /// Takes in an event that came at this time. Nothing is enforced by that alone: events that
    /// come together are enforced together.
    pub fn hear(&mut self, event: Event, at: Instant) {
        match &event {
            Event::Failed(kind, why) => {
                warn!(%kind, why, "cannot hear the API server; what is in force stands");
                self.metrics().watch_failed(*kind);
            }
            Event::Listed(kind) => info!(%kind, objects = self.observed.listed(*kind), "listed"),
            Event::Applied(object) => say_problems(object),
            Event::Listing(_) | Event::Deleted(..) => {}
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
        let more = self.dataplane.tidy(false);
        if now >= self.next_attempt && now >= self.next_look {
            self.look();
        }
        if now >= self.next_ask && self.in_force.is_some() {
            self.ask();
        }
        let now = Instant::now();
        self.metrics().alive = Some(now);
        let next = self.next_attempt.max(self.next_look);
        if more { next.min(now + TIDY) } else { next }
    }

    /// Leaves nothing behind but what is in force.
    pub fn stop(&mut self) {
        self.dataplane.tidy(true);
    }

    /// Brings the hits by policy up to date.
    pub fn count_hits(&mut self) {
        match self.dataplane.hits() {
            Ok(hits) => self.add(&hits),
            Err(error) => warn!(%error, "hits cannot be read"),
        }
    }

    /// What is in force, if anything has been put there.
    pub fn in_force(&self) -> Option<&NodeState> {
        self.in_force.as_ref()
    }

    /// What enforces.
    pub fn dataplane(&mut self) -> &mut D {
        &mut self.dataplane
    }

    fn enforce(&mut self) {
        let unreadable = self.observed.unreadable().count();
        let Some(program) = self.observed.program() else { return };
        let Some(since) = self.waiting_since.take() else { return };
        let state = program.state().clone();
        let (version, is_known) = (program.version(), program.node_is_known());
        let counts = [program.policy_count(), program.pod_count(), program.class_count()];
        if self.in_force.as_ref() != Some(&state) {
            let Some(at) = self.put(&state) else {
                self.waiting_since = Some(since);
                return;
            };
            self.metrics().enforced(at.saturating_duration_since(since));
        }
        if !is_known {
            warn!(node = self.node, "the cluster has no node of this name: nothing is enforced");
        }
        if self.version != Some(version) {
            // What was counted so far is the old ones'.
            self.count_hits();
            self.learn_origins();
            self.version = Some(version);
        }
        {
            let mut metrics = self.metrics();
            metrics.node_is_known = is_known;
            [metrics.policies, metrics.pods, metrics.identities] = counts;
            metrics.unreadable_policies = unreadable;
            metrics.endpoints = state.endpoints.len();
        }
        self.in_force = Some(state);
    }

    /// Learns whose the origins of the rules are.
    fn learn_origins(&mut self) {
        let Some(program) = self.observed.program() else { return };
        let names = program.origins().iter().map(|(number, origin)| {
            let (namespace, name) = (origin.namespace.to_string(), origin.name.to_string());
            (*number, PolicyName { namespace, name, direction: origin.direction })
        });
        let (names, policies) = (names.collect::<BTreeMap<_, _>>(), program.local_policies());
        self.counted.retain(|origin, _| names.contains_key(origin));
        self.metrics().programmed(policies, names.values());
        self.origins = names;
    }

    /// Puts the state in force, and says since when it is. If that fails, it is to be tried again
    /// later.
    fn put(&mut self, state: &NodeState) -> Option<Instant> {
        let start = Instant::now();
        match self.dataplane.apply(state) {
            Ok(report) => {
                self.failures = 0;
                self.next_ask = Instant::now();
                self.metrics().applied(&report);
                info!(
                    endpoints = state.endpoints.len(),
                    elements = report.elements,
                    bytes = report.bytes,
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

    /// Asks whether packets between the pods of this node meet what is in force.
    fn ask(&mut self) {
        self.next_ask = Instant::now() + ASK;
        let unseen = match self.dataplane.unseen() {
            Ok(unseen) => unseen.first().map(ToString::to_string),
            Err(error) => Some(format!("cannot tell whether packets meet the rules: {error}")),
        };
        let known = self.metrics().unseen.clone();
        if let Some(unseen) = unseen.as_ref().filter(|unseen| known.as_ref() != Some(unseen)) {
            error!("{unseen}");
        }
        self.metrics().unseen = unseen;
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

    /// Adds what is new of hits.
    fn add(&mut self, hits: &[Hits]) {
        let mut new = BTreeMap::new();
        for hits in hits {
            let Some(policy) = self.origins.get(&hits.origin) else { continue };
            let counted = self.counted.entry(hits.origin).or_default();
            let more = hits.packets.saturating_sub(*counted);
            *counted = hits.packets;
            if more > 0 {
                *new.entry(policy.clone()).or_default() += more;
            }
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
