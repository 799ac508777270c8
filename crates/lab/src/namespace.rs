//! A network namespace that lives as long as this process holds it open, and no longer.

use std::fs::File;
use std::io;
use std::panic;
use std::thread::{self, ScopedJoinHandle};

use nix::sched::{CloneFlags, setns, unshare};

use crate::Error;

/// A network namespace. Nothing but this open file keeps it: no process, no mount, no name.
#[derive(Debug)]
pub(crate) struct Namespace(File);

impl Namespace {
    /// Makes a namespace for each of the owners, and calls the closure inside.
    pub(crate) fn create<T: Sync>(
        owners: &[T],
        prepare: impl Fn(&T) -> Result<(), Error> + Sync,
    ) -> Result<Vec<Namespace>, Error> {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let make = |owners: &[T]| {
            let make_one = |owner| {
                let namespace = Namespace::create_here()
                    .map_err(|source| Error::Namespace { step: "make", source })?;
                prepare(owner)?;
                Ok(namespace)
            };
            owners.iter().map(make_one).collect::<Result<Vec<_>, Error>>()
        };
        let share = owners.len().div_ceil(threads).max(1);
        let made: Vec<Vec<Namespace>> = thread::scope(|scope| {
            let make = &make;
            let running: Vec<_> =
                owners.chunks(share).map(|owners| scope.spawn(move || make(owners))).collect();
            running.into_iter().map(finished).collect::<Result<_, Error>>()
        })?;
        Ok(made.into_iter().flatten().collect())
    }

    /// Leaves the calling thread in the new namespace.
    fn create_here() -> io::Result<Namespace> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        Ok(Namespace(File::open("/proc/thread-self/ns/net")?))
    }

    /// Moves the calling thread into the namespace. Only for threads of [`on_own_thread`].
    pub(crate) fn enter(&self) -> Result<(), Error> {
        setns(&self.0, CloneFlags::CLONE_NEWNET)
            .map_err(|e| Error::Namespace { step: "enter", source: e.into() })
    }

    /// The open file, by which links are moved into the namespace.
    pub(crate) fn file(&self) -> &File {
        &self.0
    }
}

/// Calls the closure on a thread that ends with it, so that no thread of the caller is ever in
/// another namespace than it was. Panics go on to the caller.
pub(crate) fn on_own_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| finished(scope.spawn(work)))
}

fn finished<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|payload| panic::resume_unwind(payload))
}
