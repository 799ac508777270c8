//! A network namespace that lives as long as this process holds it open, and no longer.

use std::fs::File;
use std::io;
use std::panic;
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};

use crate::Error;

/// A network namespace. Nothing but this open file keeps it: no process, no mount, no name.
#[derive(Debug)]
pub(crate) struct Namespace(File);

impl Namespace {
    /// Makes so many new namespaces.
    pub(crate) fn create(count: usize) -> Result<Vec<Namespace>, Error> {
        on_own_thread(|| (0..count).map(|_| Namespace::create_here()).collect::<io::Result<_>>())
            .map_err(|source| Error::Namespace { step: "make", source })
    }

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
    thread::scope(|scope| scope.spawn(work).join())
        .unwrap_or_else(|payload| panic::resume_unwind(payload))
}
