//! What follows a state that is in force, beside the work on the next one: connections that were
//! open before are judged by it, and packets with a false source are told by its pods.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use portcullis_dataplane::state::NodeState;
use portcullis_dataplane::{Connections, Error, Judged, Sources};
use tracing::{info, warn};

use crate::Metrics;

/// How long all stays as it is without a new state. Flows end meanwhile, and routes change.
const TIDY: Duration = Duration::from_secs(10);
/// The wait after the kernel refused.
const RETRY: Duration = Duration::from_millis(100);

/// What is to be guarded.
#[derive(Debug)]
pub(crate) struct Guard {
    connections: Option<Connections>,
    sources: Option<Sources>,
}

/// Where states that are in force are told, and how far the guard is with them.
#[derive(Debug)]
pub(crate) struct Teller {
    tell: Sender<(u64, NodeState)>,
    /// The number of the last state.
    pub(crate) told: u64,
    /// The number of the last one by which all connections have been judged.
    judged: Arc<AtomicU64>,
}

impl Teller {
    /// The state is in force from now on.
    pub(crate) fn tell(&mut self, state: NodeState) {
        self.told += 1;
        // Nobody listens any more when the agent stops.
        let _ = self.tell.send((self.told, state));
    }

    /// Whether all connections have been judged by the state of this number, or a later one.
    pub(crate) fn is_judged(&self, number: u64) -> bool {
        self.judged.load(Ordering::Acquire) >= number
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
        Ok(Guard { connections, sources: (!allow_spoofing).then(Sources::open).transpose()? })
    }

    /// Follows each state that it is told, until nobody can tell it any more. Of states that come
    /// together it takes the last.
    pub(crate) fn on_a_thread(mut self, metrics: Arc<Mutex<Metrics>>) -> io::Result<Teller> {
        let (tell, told) = mpsc::channel();
        let judged = Arc::<AtomicU64>::default();
        let teller = Teller { tell, told: 0, judged: judged.clone() };
        let thread = thread::Builder::new().name("guard".to_owned());
        thread.spawn(move || self.work(&metrics, &told, &judged))?;
        Ok(teller)
    }

    fn work(
        &mut self,
        metrics: &Mutex<Metrics>,
        told: &Receiver<(u64, NodeState)>,
        done: &AtomicU64,
    ) {
        let Ok((mut number, mut state)) = told.recv() else { return };
        loop {
            if let Some(last) = told.try_iter().last() {
                (number, state) = last;
            }
            let mut wait = TIDY;
            if let Some(sources) = &mut self.sources
                && let Err(error) = sources.follow(&state)
            {
                warn!(%error, "packets with a false source may pass; trying again");
                wait = RETRY;
            }
            if let Some(sources) = &mut self.sources {
                let dropped = sources.dropped();
                metrics.lock().unwrap_or_else(PoisonError::into_inner).false_sources = dropped;
            }
            match self.connections.as_mut().map(|connections| connections.judge(&state)) {
                None => done.store(number, Ordering::Release),
                Some(Ok(judged)) => {
                    done.store(number, Ordering::Release);
                    say(&judged);
                    metrics.lock().unwrap_or_else(PoisonError::into_inner).judged(&judged);
                }
                Some(Err(error)) => {
                    warn!(%error, "connections that may be forbidden go on; trying again");
                    wait = RETRY;
                }
            }
            match told.recv_timeout(wait) {
                Ok(next) => (number, state) = next,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }
}

fn say(judged: &Judged) {
    let Judged { tracked, newly_cut, forgotten, elapsed, .. } = judged;
    if newly_cut + forgotten > 0 {
        let seconds = elapsed.as_secs_f64();
        info!(newly_cut, forgotten, tracked, seconds, "cut connections that are no longer allowed");
    }
}
