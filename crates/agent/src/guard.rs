//! What follows a state that is in force, beside the work on the next one: connections that were
//! open before are judged by it, and packets with a false source are told by its pods.

use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Release};
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

/// Tells a guard on its thread which state is in force.
#[derive(Debug)]
pub(crate) struct Teller {
    tell: Sender<(u64, NodeState)>,
    /// How many states it was told.
    told: u64,
    /// Up to which of these it has followed.
    followed: Arc<AtomicU64>,
}

impl Teller {
    /// This state is in force from now on.
    pub(crate) fn tell(&mut self, state: NodeState) {
        self.told += 1;
        // Nobody listens any more when the agent stops.
        let _ = self.tell.send((self.told, state));
    }

    /// Whether the guard has followed what it was told last.
    pub(crate) fn is_settled(&self) -> bool {
        self.followed.load(Acquire) == self.told
    }
}

/// What is to be guarded.
#[derive(Debug)]
pub(crate) struct Guard {
    connections: Option<Connections>,
    sources: Option<Sources>,
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
        let followed = Arc::new(AtomicU64::new(0));
        let (thread, follow) = (thread::Builder::new().name("guard".to_owned()), followed.clone());
        thread.spawn(move || self.work(&metrics, &told, &follow))?;
        Ok(Teller { tell, told: 0, followed })
    }

    fn work(
        &mut self,
        metrics: &Mutex<Metrics>,
        told: &Receiver<(u64, NodeState)>,
        followed: &AtomicU64,
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
                None => {}
                Some(Ok(judged)) => {
                    say(&judged);
                    metrics.lock().unwrap_or_else(PoisonError::into_inner).judged(&judged);
                }
                Some(Err(error)) => {
                    warn!(%error, "connections that may be forbidden go on; trying again");
                    wait = RETRY;
                }
            }
            if wait == TIDY {
                followed.store(number, Release);
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
