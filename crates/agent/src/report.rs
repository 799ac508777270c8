//! Reports connections: what the rules tell of packets becomes a line in the log and a
//! [`Flow`] for whoever asks, on a thread of its own.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use portcullis_cni::flow::{Direction, Flow, Verdict};
use portcullis_core::incremental::Excerpt;
use portcullis_core::model::LogLevel;
use portcullis_dataplane::plan::Direction as Hook;
use portcullis_dataplane::state::Log;
use portcullis_dataplane::{Allowed, FlowLog, Headers, Logged, Outcome};
use tokio::sync::mpsc::Sender;
use tracing::{info, warn};

use crate::Metrics;
use crate::events::Refused;
use crate::flows::Flows;
use crate::observed::Concern;
use crate::record::{Explained, record};

/// A packet like one that came no longer ago is the same connection's: an end that gets no answer
/// asks again, after 32 seconds at the latest.
const SAME: Duration = Duration::from_secs(40);
/// So many connections are remembered twice.
const REMEMBERED: usize = 32 * 1024;
/// So many pairs of addresses are explained without compiling what concerns them again.
const EXPLAINED: usize = 256;
/// Between attempts to listen to a group that somebody else listens to.
const RETRY: Duration = Duration::from_secs(1);
/// How often what was counted is read.
const COUNT: Duration = Duration::from_secs(1);

/// What concerns two addresses, as whoever follows the cluster says; `None` when nobody does any
/// more.
pub(crate) type Ask = Box<dyn Fn(IpAddr, IpAddr) -> Option<Concern> + Send>;

/// Reports connections.
pub(crate) struct Reporter {
    pub(crate) node: String,
    /// Of pods whose namespace says nothing.
    pub(crate) level: LogLevel,
    pub(crate) log: Log,
    /// What the kernel tells; `None` if somebody else listens to that.
    pub(crate) told: Option<FlowLog>,
    pub(crate) allowed: Allowed,
    pub(crate) ask: Ask,
    /// The addresses of the pods whose allowed connections are reported, whenever they are others.
    pub(crate) wanted: Receiver<BTreeSet<IpAddr>>,
    /// Connections that were open and are cut.
    pub(crate) cut: Receiver<Vec<Headers>>,
    pub(crate) flows: Arc<Flows>,
    /// Where refused connections go for Events; `None` if there are to be none.
    pub(crate) events: Option<Sender<Refused>>,
    pub(crate) metrics: Arc<Mutex<Metrics>>,
}

impl Reporter {
    /// Reports until nobody can say any more what is wanted. Works in the network namespace of the
    /// calling thread.
    pub(crate) fn on_a_thread(mut self) -> io::Result<JoinHandle<()>> {
        thread::Builder::new().name("report".to_owned()).spawn(move || self.work())
    }

    fn work(&mut self) {
        let Some(mut log) = self.listen() else { return };
        let (mut recent, mut known) = (Recent::default(), Known::default());
        let mut next_count = Instant::now();
        loop {
            if !self.follow() {
                return;
            }
            let mut logged = log.receive().unwrap_or_else(|error| {
                warn!(%error, "cannot hear which connections were refused; trying again");
                thread::sleep(RETRY);
                Vec::new()
            });
            let time = SystemTime::now();
            let cut = self.cut.try_iter().flatten();
            logged.extend(cut.map(|headers| Logged { time, outcome: Outcome::Cut, headers }));
            for logged in logged {
                if !self.report(&logged, &mut recent, &mut known) {
                    return;
                }
            }
            if Instant::now() >= next_count {
                next_count = Instant::now() + COUNT;
                let allowed = self.allowed.counted();
                let mut metrics = self.metrics();
                (metrics.allowed, metrics.flows_lost) = (allowed, log.lost());
            }
        }
    }

    /// Listens as soon as nobody else does.
    fn listen(&mut self) -> Option<FlowLog> {
        let mut said = false;
        loop {
            if let Some(told) = self.told.take() {
                return Some(told);
            }
            match FlowLog::open(self.log.group) {
                Ok(log) => return Some(log),
                Err(error) if !said => {
                    warn!(
                        group = self.log.group,
                        %error,
                        "cannot hear which connections are refused: does another program listen to \
                         this group? Choose another with --log-group"
                    );
                    said = true;
                }
                Err(_) => {}
            }
            if !self.follow() {
                return None;
            }
            thread::sleep(RETRY);
        }
    }

    /// Whether somebody still says what is wanted. Takes that in.
    fn follow(&mut self) -> bool {
        let mut last = None;
        let goes_on = loop {
            match self.wanted.try_recv() {
                Ok(pods) => last = Some(pods),
                Err(TryRecvError::Empty) => break true,
                Err(TryRecvError::Disconnected) => break false,
            }
        };
        if let Some(pods) = last
            && let Err(error) = self.allowed.tell(&pods)
        {
            warn!(%error, "allowed connections are not reported");
        }
        goes_on
    }

    /// Reports a packet, unless it is of a connection that has been. False if nobody knows the
    /// cluster any more.
    fn report(&mut self, logged: &Logged, recent: &mut Recent, known: &mut Known) -> bool {
        if recent.has(logged) {
            self.metrics().flows_repeated += 1;
            return true;
        }
        let Headers { source, destination, .. } = logged.headers;
        let Some(Concern { excerpt, uids }) = (self.ask)(source, destination) else { return false };
        if !self.wants(logged.outcome, &excerpt) {
            self.metrics().flows_unwanted += 1;
            return true;
        }
        let flow = record(&self.node, logged, known.of(excerpt));
        say(&flow);
        if let (Some(events), Outcome::Refused(hook)) = (&self.events, logged.outcome) {
            // Where too many wait, this one gets no Event.
            let _ = events.try_send((flow.clone(), uids[hook as usize].clone()));
        }
        *self.metrics().flows.entry(flow.verdict).or_default() += 1;
        self.flows.add(flow);
        true
    }

    /// Whether the namespace of the pod that it was judged for wants it reported.
    fn wants(&self, outcome: Outcome, excerpt: &Excerpt) -> bool {
        let [source, destination] = excerpt.levels();
        let level = match outcome {
            // The rules tell only of those that are wanted.
            Outcome::Allowed => return true,
            Outcome::FalseSource
            | Outcome::AuditedSource
            | Outcome::Refused(Hook::Egress)
            | Outcome::Audited(Hook::Egress) => source,
            Outcome::Refused(Hook::Ingress) | Outcome::Audited(Hook::Ingress) => destination,
            // Which end it was judged for is found out later.
            Outcome::Cut => {
                let [source, destination] =
                    [source, destination].map(|level| level.unwrap_or(self.level));
                Some(source.max(destination))
            }
        };
        level.unwrap_or(self.level) > LogLevel::None
    }

    fn metrics(&self) -> MutexGuard<'_, Metrics> {
        self.metrics.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The connections that were reported not long ago.
#[derive(Debug)]
struct Recent {
    /// Those of the last [`SAME`], and those of the time before.
    new: HashSet<(Outcome, Headers)>,
    old: HashSet<(Outcome, Headers)>,
    since: Instant,
}

impl Default for Recent {
    fn default() -> Recent {
        Recent { new: HashSet::new(), old: HashSet::new(), since: Instant::now() }
    }
}

impl Recent {
    /// Whether a packet of the same connection came not long ago. This one has come now.
    fn has(&mut self, logged: &Logged) -> bool {
        if self.since.elapsed() >= SAME || self.new.len() >= REMEMBERED {
            self.old = std::mem::take(&mut self.new);
            self.since = Instant::now();
        }
        let connection = (logged.outcome, logged.headers);
        let known = self.old.contains(&connection);
        !self.new.insert(connection) || known
    }
}

/// What has been compiled for explanations, by source and destination.
#[derive(Debug, Default)]
struct Known(HashMap<(IpAddr, IpAddr), Explained>);

impl Known {
    fn of(&mut self, excerpt: Excerpt) -> &Explained {
        if self.0.len() >= EXPLAINED {
            self.0.clear();
        }
        let known = self.0.entry(excerpt.ends());
        known
            .and_modify(|known| {
                if known.excerpt != excerpt {
                    *known = Explained::new(excerpt.clone());
                }
            })
            .or_insert_with(|| Explained::new(excerpt))
    }
}

/// Writes the connection into the log.
fn say(flow: &Flow) {
    let Flow { source, destination, protocol, .. } = flow;
    let direction = flow.direction.map(|direction| match direction {
        Direction::Egress => "egress",
        Direction::Ingress => "ingress",
    });
    let port = destination.port;
    let [from, to] = [source, destination].map(|end| end.name());
    let (source, destination) = (source.address, destination.address);
    match flow.verdict {
        Verdict::Allowed => {
            info!(from, to, port, protocol, %source, %destination, "allowed");
        }
        Verdict::Refused | Verdict::Audited | Verdict::Cut => {
            let verdict = flow.verdict.as_str();
            let reason = flow.reason.map(|reason| reason.as_str());
            let isolated_by = flow.isolated_by.join(",");
            let nearest = flow.nearest.as_ref().map(ToString::to_string);
            info!(
                direction, from, to, port, protocol, %source, %destination, reason, isolated_by,
                nearest, "{verdict}"
            );
        }
    }
}
