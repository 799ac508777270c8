//! What follows a state that is in force, beside the work on the next one: connections that were
//! open before are judged by it, and packets with a false source are told by its pods.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use portcullis_dataplane::state::NodeState;
use portcullis_dataplane::{Connections, Difference, Error, Headers, Judged, Release, Sources};
use tracing::{info, warn};

use crate::Metrics;

/// How long all stays as it is if nothing is new. Flows end meanwhile.
const TIDY: Duration = Duration::from_secs(10);
/// How often it is looked whether somebody else changed anything.
const LOOK: Duration = Duration::from_millis(250);
/// The wait after the kernel refused.
const RETRY: Duration = Duration::from_millis(100);

/// What is to be guarded.
#[derive(Debug)]
pub(crate) struct Guard {
    connections: Option<Connections>,
    shared: Arc<Shared>,
    /// Where it is told which connections were open and are cut.
    cut: Option<Sender<Vec<Headers>>>,
}

/// What whoever puts states in force and the guard both have.
#[derive(Debug)]
struct Shared {
    /// The last state that is in force, and its number.
    last: Mutex<Option<(u64, Arc<NodeState>)>>,
    sources: Option<Mutex<Sources>>,
    /// The number of the last state by which all connections have been judged.
    judged: AtomicU64,
}

/// Where states that are in force are told, and how far the guard is with them.
#[derive(Debug)]
pub(crate) struct Teller {
    wake: Sender<()>,
    shared: Arc<Shared>,
    release: Option<Release>,
    /// The number of the last state.
    pub(crate) told: u64,
    /// The number of the one that the guard was woken for last.
    woken: u64,
}

impl Teller {
    /// The state is in force from now on. The guard begins when it is [woken](Teller::wake).
    pub(crate) fn tell(&mut self, state: &NodeState) {
        self.told += 1;
        let state = Arc::new(state.clone());
        *lock(&self.shared.last) = Some((self.told, state.clone()));
        if let Some(release) = &self.release
            && let Err(error) = release.allow(state)
        {
            warn!(%error, "connections that are allowed again stay cut for a moment");
        }
    }

    /// Has the guard begin with the last state, if it is new. To be called when nothing has to be
    /// [begun](Teller::begin) any more, which would have to wait for the guard.
    pub(crate) fn wake(&mut self) {
        if self.woken != self.told {
            self.woken = self.told;
            // Nobody listens any more when the agent stops.
            let _ = self.wake.send(());
        }
    }

    /// These addresses of the last state are of a pod that begins now: from here on nothing passes
    /// there that another pod has left open, which has to be seen to unless they are vacant, and it
    /// sends from its own addresses alone. `false` if that has to wait for the guard.
    pub(crate) fn begin(&mut self, addresses: &[IpAddr], vacant: bool) -> Result<bool, Error> {
        if let Some(release) = self.release.as_ref().filter(|_| !vacant) {
            if !release.hand_over(addresses)? {
                return Ok(false);
            }
            // The guard may be judging by this state, and did not know of that when it began.
            let mut last = lock(&self.shared.last);
            if let Some((number, _)) = last.as_mut() {
                self.told += 1;
                *number = self.told;
            }
        }
        self.admit(addresses).map(|()| true)
    }

    fn admit(&self, addresses: &[IpAddr]) -> Result<(), Error> {
        let Some(sources) = &self.shared.sources else { return Ok(()) };
        let mut sources = lock(sources);
        let last = lock(&self.shared.last).clone();
        last.map_or(Ok(()), |(_, state)| sources.admit(&state, addresses))
    }

    /// Whether all connections have been judged by the state of this number, or a later one.
    pub(crate) fn is_judged(&self, number: u64) -> bool {
        self.shared.judged.load(Ordering::Acquire) >= number
    }

    /// Whether they have been judged by the last one.
    pub(crate) fn is_settled(&self) -> bool {
        self.is_judged(self.told)
    }
}

impl Guard {
    /// Works in the network namespace of the calling thread.
    pub(crate) fn open(keep_established: bool, allow_spoofing: bool) -> Result<Guard, Error> {
        let connections = (!keep_established).then(Connections::open).transpose()?;
        if connections.as_ref().is_some_and(|connections| !connections.resets_idle_ends()) {
            warn!(
                "without the capability NET_RAW, ends of cut connections are reset when they speak"
            );
        }
        let sources = (!allow_spoofing).then(Sources::open).transpose()?.map(Mutex::new);
        let shared = Shared { last: Mutex::default(), sources, judged: AtomicU64::default() };
        Ok(Guard { connections, shared: Arc::new(shared), cut: None })
    }

    /// Tells which connections are cut, so many of a judgement as are told one by one.
    pub(crate) fn telling(self, cut: Option<Sender<Vec<Headers>>>) -> Guard {
        Guard { cut, ..self }
    }

    /// Goes on from who had which address when an earlier agent judged connections last.
    pub(crate) fn remembering(mut self, owners: BTreeMap<IpAddr, u64>) -> Guard {
        if let Some(connections) = &mut self.connections {
            connections.remember(owners);
        }
        self
    }

    /// Follows each state that it is told, until nobody can tell it any more. Of states that come
    /// together it takes the last.
    pub(crate) fn on_a_thread(mut self, metrics: Arc<Mutex<Metrics>>) -> io::Result<Teller> {
        let (wake, woken) = mpsc::channel();
        let release = self.connections.as_ref().map(Connections::release);
        let teller = Teller { wake, shared: self.shared.clone(), release, told: 0, woken: 0 };
        let thread = thread::Builder::new().name("guard".to_owned());
        thread.spawn(move || self.work(&metrics, &woken))?;
        Ok(teller)
    }

    fn work(&mut self, metrics: &Mutex<Metrics>, woken: &Receiver<()>) {
        let (mut done, mut next) = (0, Instant::now() + TIDY);
        loop {
            let last = lock(&self.shared.last).clone();
            if let Some((number, state)) = last {
                let due = number != done || Instant::now() >= next;
                let [sources, connections] = if due { [true; 2] } else { self.look(metrics) };
                let mut fine = true;
                if sources {
                    fine &= self.follow(metrics);
                }
                if connections {
                    fine &= self.judge(number, &state, metrics);
                }
                if due || !fine {
                    (done, next) = (number, Instant::now() + if fine { TIDY } else { RETRY });
                }
            }
            let wait = LOOK.min(next.saturating_duration_since(Instant::now()));
            match woken.recv_timeout(wait) {
                Ok(()) => woken.try_iter().for_each(drop),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Whether the sources have to be followed, and connections judged, although nothing is new: somebody
    /// else changed what is in force, or a route.
    fn look(&mut self, metrics: &Mutex<Metrics>) -> [bool; 2] {
        let mut moved = false;
        let sources = self.shared.sources.as_ref().map(|sources| {
            let mut sources = lock(sources);
            moved = sources.have_moved();
            sources.differences()
        });
        let connections = self.connections.as_mut().map(Connections::differences);
        let [sources, connections] = [sources, connections].map(|found| match found {
            None => false,
            Some(Ok(differences)) => says(&differences, metrics),
            Some(Err(error)) => {
                warn!(%error, "cannot look at what is in force");
                false
            }
        });
        [sources || moved, connections]
    }

    /// Whether it could be done.
    fn follow(&self, metrics: &Mutex<Metrics>) -> bool {
        let Some(sources) = &self.shared.sources else { return true };
        let mut sources = lock(sources);
        // Only now: while it was waited for, a pod of a later state may have been admitted.
        let Some((_, state)) = lock(&self.shared.last).clone() else { return true };
        let followed = sources.follow(&state);
        if let Err(error) = &followed {
            warn!(%error, "packets with a false source may pass; trying again");
        }
        lock(metrics).false_sources = sources.dropped();
        followed.is_ok()
    }

    /// Whether it could be done.
    fn judge(&mut self, number: u64, state: &NodeState, metrics: &Mutex<Metrics>) -> bool {
        match self.connections.as_mut().map(|connections| connections.judge(state)) {
            None => {}
            Some(Ok(judged)) => {
                say(&judged);
                lock(metrics).judged(&judged);
                if let Some(tell) = self.cut.as_ref().filter(|_| !judged.were_open.is_empty()) {
                    // Nobody listens any more when the agent stops.
                    let _ = tell.send(judged.were_open);
                }
            }
            Some(Err(error)) => {
                warn!(%error, "connections that may be forbidden go on; trying again");
                return false;
            }
        }
        self.shared.judged.store(number, Ordering::Release);
        true
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says what somebody else changed, if anything.
fn says(differences: &[Difference], metrics: &Mutex<Metrics>) -> bool {
    for difference in differences.iter().take(10) {
        warn!(%difference, "somebody else changed what is in force; putting it back");
    }
    let any = !differences.is_empty();
    lock(metrics).drift_repairs += u64::from(any);
    any
}

fn say(judged: &Judged) {
    let Judged { tracked, newly_cut, forgotten, elapsed, .. } = judged;
    if newly_cut + forgotten > 0 {
        let seconds = elapsed.as_secs_f64();
        info!(newly_cut, forgotten, tracked, seconds, "cut connections that are no longer allowed");
    }
}
