//! The last connections that were reported.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use portcullis_cni::flow::{Filter, Flow};
use tokio::sync::Notify;

/// So many are kept.
const KEPT: usize = 4096;

/// The last connections that were reported; the oldest make room.
#[derive(Debug, Default)]
pub(crate) struct Flows {
    ring: Mutex<Ring>,
    more: Notify,
}

#[derive(Debug, Default)]
struct Ring {
    /// How many there have been in all.
    count: u64,
    kept: VecDeque<Arc<Flow>>,
}

/// Some of the connections.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) flows: Vec<Arc<Flow>>,
    /// How many were asked for and are no longer kept.
    pub(crate) missed: u64,
    /// The number of the one after them.
    pub(crate) next: u64,
}

impl Flows {
    pub(crate) fn add(&self, flow: Flow) {
        let mut ring = self.ring();
        if ring.kept.len() == KEPT {
            ring.kept.pop_front();
        }
        ring.kept.push_back(Arc::new(flow));
        ring.count += 1;
        drop(ring);
        self.more.notify_waiters();
    }

    /// The last of those that are kept and asked for, no more than `most`.
    pub(crate) fn last(&self, filter: &Filter, most: usize) -> Batch {
        let ring = self.ring();
        let wanted = ring.kept.iter().rev().filter(|flow| filter.wants(flow)).take(most);
        let mut flows: Vec<_> = wanted.cloned().collect();
        flows.reverse();
        Batch { flows, missed: 0, next: ring.count }
    }

    /// Those that are asked for, from this number on; waits until there are some.
    pub(crate) async fn from(&self, mut next: u64, filter: &Filter) -> Batch {
        loop {
            // Before it is looked: what comes in between is not slept through.
            let more = self.more.notified();
            let batch = {
                let ring = self.ring();
                let first = ring.count - ring.kept.len() as u64;
                let missed = first.saturating_sub(next);
                let skipped = next.saturating_sub(first) as usize;
                let new = ring.kept.iter().skip(skipped).filter(|flow| filter.wants(flow));
                Batch { flows: new.cloned().collect(), missed, next: ring.count }
            };
            if !batch.flows.is_empty() || batch.missed > 0 {
                return batch;
            }
            next = batch.next;
            more.await;
        }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
