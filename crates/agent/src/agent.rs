//! What the agent does, step by step. It runs on whatever thread calls it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use portcullis_cni::flow::{RuleHits, RuleName};
use portcullis_cni::protocol::{Answer, Attachment, Holding, Request};
use portcullis_core::model::Mode;
use portcullis_dataplane::state::NodeState;
use portcullis_dataplane::{Dataplane, Hits};
use portcullis_kube::live::Event;
use rustc_hash::FxHashMap;
use tokio::sync::oneshot;
use tracing::{error, info, warn};

use crate::attached::Attached;
use crate::desired::{PolicyName, RulePlace, close};
use crate::guard::{Guard, Teller};
use crate::in_force::Told;
use crate::observed::Concern;
use crate::run;
use crate::{Logging, Metrics, Observed, Unprogrammed};

/// How often what is in the kernel is looked at.
const LOOK: Duration = Duration::from_millis(250);
/// How often it is asked whether packets meet what is in the kernel at all.
const ASK: Duration = Duration::from_secs(2);
/// How soon what was put aside is looked after again.
const TIDY: Duration = Duration::from_millis(5);
/// How soon it is looked again whether open connections have been judged, for those who wait for it.
const GUARDING: Duration = Duration::from_millis(1);
/// The first and the longest wait after the data plane refused, and between repairs that do not
/// last.
const WAITS: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(10)];
/// How long somebody who adds a pod waits for the policies of it to be known and in force. The
/// plugin waits longer, so that it hears why not.
const ADDING: Duration = Duration::from_secs(5);
/// How long somebody who asks what the kernel holds waits for what was heard to be in it.
const HOLDING: Duration = Duration::from_secs(2);

/// Enforces on one node what it hears of the cluster.
///
/// What is in force stands until all of the cluster is known, and whenever nothing new is heard
/// (SEMANTICS 27).
#[derive(Debug)]
pub struct Agent<D> {
    node: String,
    unprogrammed: Unprogrammed,
    mode: Mode,
    /// Where each state is told that is in force.
    tell: Option<Teller>,
    reports: Option<Reports>,
    dataplane: D,
    attached: Attached,
    observed: Observed,
    /// When the first event came that may not be enforced yet.
    waiting_since: Option<Instant>,
    /// What is in force.
    in_force: Option<NodeState>,
    /// The version of the rules that are in force.
    version: Option<u64>,
    /// Whose the origins were of those that hits were counted of last, and since when the rules are
    /// others.
    origins: BTreeMap<u32, RulePlace>,
    others_since: Option<Timestamp>,
    /// Since when the hits of each rule are counted.
    counted_since: BTreeMap<RulePlace, Timestamp>,
    /// What has been counted, by origin.
    counted: FxHashMap<u32, u64>,
    next_attempt: Instant,
    next_look: Instant,
    next_ask: Instant,
    /// Failures one after the other.
    failures: u32,
    /// Why the data plane last refused, if it did.
    refusal: Option<String>,
    /// Repairs one after the other: each was in vain.
    repairs: u32,
    /// Who waits for a pod's policies to be in force.
    waiting: Vec<Waiting>,
    /// By address, the number of the state that has it no longer, until connections are judged by it.
    left: BTreeMap<IpAddr, u64>,
    /// The number of the state since which addresses that are no pod's are closed as they are.
    closed_since: u64,
    /// Who asks what the kernel holds.
    asking: Vec<Asking>,
    told: Told,
    /// Whether it is still told that the state before may be in force too.
    tells_both: bool,
    metrics: Arc<Mutex<Metrics>>,
}

/// What is reported of connections.
#[derive(Debug)]
pub(crate) struct Reports {
    pub(crate) logging: Logging,
    /// Where it is told which pods' allowed connections are reported.
    pub(crate) tell: Sender<BTreeSet<IpAddr>>,
}

/// Somebody who waits for a pod's policies to be in force.
#[derive(Debug)]
struct Waiting {
    attachment: Attachment,
    until: Instant,
    /// The number of the state that enforces the pod's policies, when there is one.
    state: Option<u64>,
    before: Before,
    answer: oneshot::Sender<Answer>,
}

/// How it is made sure that a pod does not go on with connections of the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    /// Nobody can have left any at its addresses.
    Vacant,
    /// Its addresses are handed over: it has opened none itself yet.
    HandedOver,
    /// The guard has judged all.
    Judged,
}

/// Somebody who asks what the kernel holds.
#[derive(Debug)]
struct Asking {
    /// The only policy that is asked for.
    only: Option<(String, String)>,
    /// What the kernel held as soon as all that was heard was in it, and the number of that state. It is
    /// told when connections have been judged by it; while states follow each other the last never is.
    found: Option<(u64, Holding)>,
    until: Instant,
    answer: oneshot::Sender<Answer>,
}

impl<D: Dataplane> Agent<D> {
    /// An agent for the node of this name, that knows nothing yet.
    pub fn new(node: &str, dataplane: D, metrics: Arc<Mutex<Metrics>>) -> Agent<D> {
        let now = Instant::now();
        Agent {
            node: node.to_owned(),
            unprogrammed: Unprogrammed::default(),
            mode: Mode::default(),
            tell: None,
            reports: None,
            dataplane,
            attached: Attached::new(node),
            observed: Observed::new(node),
            waiting_since: None,
            in_force: None,
            version: None,
            origins: BTreeMap::new(),
            others_since: None,
            counted_since: BTreeMap::new(),
            counted: FxHashMap::default(),
            next_attempt: now,
            next_look: now,
            next_ask: now,
            failures: 0,
            refusal: None,
            repairs: 0,
            waiting: Vec::new(),
            left: BTreeMap::new(),
            closed_since: 0,
            asking: Vec::new(),
            told: Told::default(),
            tells_both: false,
            metrics,
        }
    }

    /// Says what becomes of addresses that nothing has been heard of; without it they are open.
    pub fn with_unprogrammed(self, unprogrammed: Unprogrammed) -> Agent<D> {
        Agent { unprogrammed, ..self }
    }

    /// Says whether anything is refused at all; without it, what policies refuse is.
    pub fn with_mode(self, mode: Mode) -> Agent<D> {
        Agent { mode, ..self }
    }

    /// Guards open connections and the sources of packets too, on a thread of its own. Works in the
    /// network namespace of the calling thread.
    pub fn with_guard(self) -> Result<Agent<D>, run::Error> {
        let guard = Guard::open(false, false).map_err(run::Error::Guard)?;
        let teller = guard.on_a_thread(self.metrics.clone()).map_err(run::Error::Runtime)?;
        Ok(self.with_teller(teller))
    }

    /// Tells each state as soon as it is in force.
    pub(crate) fn with_teller(self, tell: Teller) -> Agent<D> {
        Agent { tell: Some(tell), ..self }
    }

    /// Has the rules tell of connections.
    pub(crate) fn with_reports(self, reports: Option<Reports>) -> Agent<D> {
        Agent { reports, ..self }
    }

    /// Tells from now on, beside this socket, what is in force.
    pub fn tell_beside(&mut self, socket: PathBuf) {
        self.told = Told::beside(socket);
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
        let (event, more) = self.attached.hear(event);
        self.observe(event, at);
        more.into_iter().for_each(|event| self.observe(event, at));
    }

    /// Takes in a request that came at this time. It is answered at once, or by a later
    /// [`step`](Agent::step).
    pub fn asked(&mut self, request: Request, at: Instant, answer: oneshot::Sender<Answer>) {
        let done = match request {
            Request::Add(attachment) => {
                let before = match self.mode {
                    // In audit nothing is refused, and who is asked for again may have begun.
                    Mode::Audit => Before::Judged,
                    _ if self.attached.has(&attachment) => Before::Judged,
                    _ if self.are_vacant(&attachment.addresses) => Before::Vacant,
                    _ => Before::HandedOver,
                };
                self.attached(&attachment, at);
                self.wait(attachment, before, at, answer);
                return;
            }
            Request::Check(attachment) if self.attached.has(&attachment) => {
                self.wait(attachment, Before::Judged, at, answer);
                return;
            }
            Request::Check(Attachment { namespace, pod, addresses, .. }) => {
                let why = format!("{addresses:?} are not the addresses of {namespace}/{pod}");
                Answer::Failed { why }
            }
            Request::Delete { container, interface } => {
                for event in self.attached.detach(&container, &interface) {
                    self.observe(event, at);
                }
                Answer::Done
            }
            Request::Status => self.status(),
            Request::Hits => {
                self.count_hits();
                Answer::Hits { rules: self.rule_hits() }
            }
            // Connections are not known here.
            Request::Observe { .. } => Answer::Failed { why: "not here".to_owned() },
            Request::Policies { namespace, name } => {
                let until = at + HOLDING;
                self.asking.push(Asking { only: namespace.zip(name), found: None, until, answer });
                return;
            }
        };
        // Whoever asked may have gone.
        let _ = answer.send(done);
    }

    /// Takes in that the runtime has given a pod its addresses at some time before this one.
    pub fn attached(&mut self, attachment: &Attachment, at: Instant) {
        for event in self.attached.attach(attachment) {
            self.observe(event, at);
        }
        // A stranger changes nothing that is observed, and yet it is to be closed.
        self.waiting_since.get_or_insert(at);
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
        self.tell_in_force();
        let now = Instant::now();
        self.answer(now);
        if let Some(tell) = &mut self.tell {
            tell.wake();
        }
        self.metrics().alive = Some(now);
        let next = self.next_attempt.max(self.next_look);
        let next = if more || self.tells_both { next.min(now + TIDY) } else { next };
        let guards =
            self.waiting.iter().any(|waiting| waiting.state.is_some_and(|n| !self.is_judged(n)))
                || self.asking.iter().any(|asking| asking.found.is_some());
        let next = if guards { next.min(now + GUARDING) } else { next };
        let waiting = self.waiting.iter().map(|waiting| waiting.until);
        waiting.chain(self.asking.iter().map(|asking| asking.until)).fold(next, Instant::min)
    }

    /// Leaves nothing behind but what is in force.
    pub fn stop(&mut self) {
        self.dataplane.tidy(true);
    }

    /// Brings the hits by policy up to date.
    pub fn count_hits(&mut self) {
        // While something else is on its way to the kernel, it holds what it held last time.
        if let Ok(holding) = self.holding(None) {
            self.metrics().held = holding.policies;
        }
        let hits = self.dataplane.hits().unwrap_or_else(|error| {
            warn!(%error, "hits cannot be read");
            Vec::new()
        });
        self.add(&hits);
        if let Some(since) = self.others_since.take() {
            // What was counted so far is the old ones' too.
            self.learn_origins(since);
            self.add(&hits);
        }
        match self.dataplane.ended() {
            Ok(ended) => self.metrics().ended = ended,
            Err(error) => warn!(%error, "what was refused cannot be counted"),
        }
    }

    /// What concerns connections between two addresses.
    pub(crate) fn excerpt(&self, source: IpAddr, destination: IpAddr) -> Concern {
        self.observed.excerpt(source, destination)
    }

    /// What is in force, if anything has been put there.
    pub fn in_force(&self) -> Option<&NodeState> {
        self.in_force.as_ref()
    }

    /// What enforces.
    pub fn dataplane(&mut self) -> &mut D {
        &mut self.dataplane
    }

    fn observe(&mut self, event: Event, at: Instant) {
        if self.observed.hear(event) {
            self.waiting_since.get_or_insert(at);
        }
    }

    fn wait(
        &mut self,
        attachment: Attachment,
        before: Before,
        at: Instant,
        answer: oneshot::Sender<Answer>,
    ) {
        let until = at + ADDING;
        self.waiting.push(Waiting { attachment, until, state: None, before, answer });
    }

    /// Whether nothing passes to and from these addresses, and whatever passed before has been judged:
    /// then nobody has left connections open there.
    fn are_vacant(&self, addresses: &[IpAddr]) -> bool {
        let (Some(in_force), Some(tell)) = (&self.in_force, &self.tell) else { return false };
        addresses.iter().all(|address| {
            let closed = !in_force.audit
                && !in_force.endpoints.contains_key(address)
                && in_force.ranges.iter().any(|range| range.contains(*address));
            let since = self.left.get(address).copied().unwrap_or(self.closed_since);
            closed && tell.is_judged(since)
        })
    }

    /// Answers those whose pods are enforced, and those who have waited long enough.
    fn answer(&mut self, now: Instant) {
        let all = std::mem::take(&mut self.waiting);
        for mut waiting in all {
            let mut standing = self.standing(&waiting.attachment);
            if standing == Answer::Enforced {
                let number = *waiting.state.get_or_insert(self.told());
                if !self.begin(&mut waiting) && !self.is_judged(number) {
                    // What the pod that had the address before has left open is not this one's.
                    let why = "open connections have not been judged yet".to_owned();
                    standing = Answer::Failed { why };
                }
            }
            let waited = now >= waiting.until;
            // In audit nothing is refused, also no pod.
            if waited && self.mode == Mode::Audit {
                standing = Answer::Enforced;
            }
            if standing == Answer::Enforced || waited {
                // Whoever asked may have gone.
                let _ = waiting.answer.send(standing);
            } else {
                self.waiting.push(waiting);
            }
        }
        for mut asking in std::mem::take(&mut self.asking) {
            let found = match asking.found.take() {
                Some(found) => Ok(found),
                None => self.holding(asking.only.as_ref()).map(|holding| (self.told(), holding)),
            };
            let done = matches!(found, Ok((number, _)) if self.is_judged(number));
            if !done && now < asking.until {
                self.asking.push(Asking { found: found.ok(), ..asking });
                continue;
            }
            let answer = match found {
                Ok((_, holding)) => Answer::Policies(Holding { settled: done, ..holding }),
                Err(why) => Answer::Failed { why },
            };
            let _ = asking.answer.send(answer);
        }
    }

    /// Whether the pod can begin without waiting for the guard.
    fn begin(&mut self, waiting: &mut Waiting) -> bool {
        let vacant = waiting.before == Before::Vacant;
        let Some(tell) = self.tell.as_mut().filter(|_| waiting.before != Before::Judged) else {
            return false;
        };
        let begun = tell.begin(&waiting.attachment.addresses, vacant).unwrap_or_else(|error| {
            warn!(%error, "a new pod has to wait until open connections have been judged");
            false
        });
        if !begun {
            waiting.before = Before::Judged;
        }
        begun
    }

    /// What the kernel holds, of all policies or of one; or why that is not what has been heard. Whether
    /// connections have been judged by it is not looked at.
    fn holding(&self, only: Option<&(String, String)>) -> Result<Holding, String> {
        if let Some(why) = &self.refusal {
            return Err(why.clone());
        }
        if self.waiting_since.is_some() || self.in_force.is_none() {
            return Err("the agent has not heard all of the cluster yet".to_owned());
        }
        // What was heard last is in force.
        let policies = self.observed.held(only, self.mode);
        Ok(Holding { node: self.node.clone(), settled: false, policies })
    }

    /// What is in force at the addresses of an attachment.
    fn standing(&self, attachment: &Attachment) -> Answer {
        let Attachment { namespace, pod, addresses, .. } = attachment;
        let failed = |why: &str| Answer::Failed { why: why.to_owned() };
        if let Some(why) = &self.refusal {
            return failed(why);
        }
        let in_force = match &self.in_force {
            Some(in_force) if self.waiting_since.is_none() => in_force,
            _ => return failed("the agent has not heard all of the cluster yet"),
        };
        if !self.attached.knows(attachment) {
            let why = format!("the API server has not told of the pod {namespace}/{pod}");
            return Answer::Closed { why };
        }
        match addresses.iter().find(|address| !in_force.endpoints.contains_key(address)) {
            None => Answer::Enforced,
            Some(address) => failed(&format!(
                "{address} is not enforced for {namespace}/{pod}: the pod has ended, or another \
                 object has the address"
            )),
        }
    }

    /// Tells what is in force, when nothing of the state before is any more: a connection that was open
    /// goes on until it has been judged, also at an address that nobody has now.
    fn tell_in_force(&mut self) {
        let settled = self.tell.as_ref().is_none_or(Teller::is_settled);
        if let Some(state) = self.in_force.as_ref().filter(|_| self.tells_both && settled) {
            self.told.after(state);
            self.tells_both = false;
        }
    }

    /// The number of the last state that is in force.
    fn told(&self) -> u64 {
        self.tell.as_ref().map_or(0, |tell| tell.told)
    }

    /// Whether no connection goes on that the state of this number does not allow.
    fn is_judged(&self, number: u64) -> bool {
        self.tell.as_ref().is_none_or(|tell| tell.is_judged(number))
    }

    /// Whether pods can be added.
    fn status(&self) -> Answer {
        match (&self.refusal, self.metrics().readiness()) {
            (Some(why), _) => Answer::Failed { why: why.clone() },
            (None, Ok(())) => Answer::Ready,
            (None, Err(why)) => Answer::Unready { why: why.to_owned() },
        }
    }

    fn enforce(&mut self) {
        let unreadable = self.observed.unreadable().count();
        let ranges = self.unprogrammed.ranges(self.observed.pod_cidrs());
        let Some(program) = self.observed.program() else { return };
        let Some(since) = self.waiting_since.take() else { return };
        let mut state = program.state().clone();
        state.ranges = ranges;
        state.audit = self.mode == Mode::Audit;
        // Until the API server says which policies select them.
        close(&mut state, self.attached.strangers());
        let mut allowed = BTreeSet::new();
        if let Some(Reports { logging, .. }) = &self.reports {
            let logged = program.logged(logging.level);
            state.log = logging.of(&logged);
            allowed = logged.allowed;
        }
        let (version, is_known) = (program.version(), program.node_is_known());
        let counts = [program.policy_count(), program.pod_count(), program.class_count()];
        if self.in_force.as_ref() != Some(&state) {
            let Some(at) = self.put(&state) else {
                self.waiting_since = Some(since);
                return;
            };
            self.metrics().enforced(at.saturating_duration_since(since));
        }
        // Also where what was refused is no longer wanted.
        (self.refusal, self.failures) = (None, 0);
        if let Some(reports) = &self.reports {
            // Nobody listens any more when the agent stops.
            let _ = reports.tell.send(allowed);
        }
        let is_open =
            matches!(self.unprogrammed, Unprogrammed::Closed(_)) && state.ranges.is_empty();
        if is_open && is_known && self.in_force.is_none() {
            warn!(
                node = self.node,
                "the node has no podCIDR: an address is open until its pod is known; name its \
                 ranges with --pod-cidr"
            );
        }
        if !is_known {
            warn!(node = self.node, "the cluster has no node of this name: nothing is enforced");
        }
        if self.version != Some(version) {
            // Whose the hits are is asked when they are counted.
            self.others_since = Some(Timestamp::now());
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

    /// Learns whose the origins of the rules are, which are so since then.
    fn learn_origins(&mut self, others_since: Timestamp) {
        let Some(program) = self.observed.program() else { return };
        let rules = program.origins().iter().map(|(number, origin)| {
            let (namespace, name) = (origin.namespace.to_string(), origin.name.to_string());
            let policy = PolicyName { namespace, name, direction: origin.direction };
            (*number, RulePlace { policy, rule: origin.rule })
        });
        let (rules, policies) = (rules.collect::<BTreeMap<_, _>>(), program.local_policies().len());
        self.counted.retain(|origin, _| rules.contains_key(origin));
        let since =
            |rule: &RulePlace| self.counted_since.get(rule).copied().unwrap_or(others_since);
        self.counted_since = rules.values().map(|rule| (rule.clone(), since(rule))).collect();
        self.metrics().programmed(policies, rules.values());
        self.origins = rules;
    }

    /// Puts the state in force, and says since when it is. If that fails, it is to be tried again
    /// later.
    fn put(&mut self, state: &NodeState) -> Option<Instant> {
        let start = Instant::now();
        self.told.before(state);
        match self.dataplane.apply(state) {
            Ok(report) => {
                self.tells_both = true;
                self.refusal = None;
                self.failures = 0;
                self.next_ask = Instant::now();
                self.metrics().applied(&report);
                if let Some(tell) = &mut self.tell {
                    tell.tell(state);
                    let same_rest =
                        |old: &NodeState| (&old.ranges, old.audit) == (&state.ranges, state.audit);
                    if !self.in_force.as_ref().is_some_and(same_rest) {
                        self.closed_since = tell.told;
                    }
                    self.left.retain(|_, number| !tell.is_judged(*number));
                    let before = self.in_force.iter().flat_map(|old| old.endpoints.keys());
                    let left = before.filter(|address| !state.endpoints.contains_key(address));
                    self.left.extend(left.map(|address| (*address, tell.told)));
                }
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
                self.refusal = Some(error.to_string());
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
            let Some(rule) = self.origins.get(&hits.origin) else { continue };
            let counted = self.counted.entry(hits.origin).or_default();
            let more = hits.packets.saturating_sub(*counted);
            *counted = hits.packets;
            if more > 0 {
                *new.entry(rule.clone()).or_default() += more;
            }
        }
        self.metrics().hit(new);
    }

    /// The hits of every rule, in the order of their names.
    fn rule_hits(&self) -> Vec<RuleHits> {
        let metrics = self.metrics();
        let rules = self.counted_since.iter().map(|(place, since)| {
            let RulePlace { policy: PolicyName { namespace, name, direction }, rule } = place;
            let policy = format!("{namespace}/{name}");
            let rule = RuleName { policy, rule: format!("spec.{direction}[{rule}]") };
            let hits = metrics.rule_hits.get(place).copied().unwrap_or_default();
            RuleHits { rule, hits, since: format!("{since:.0}") }
        });
        rules.collect()
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
