//! The way into the lab's own world: after [`enter`], nothing this process does to links, routes,
//! rules or settings can reach the network of the machine.

use std::fs;
use std::io;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{getegid, geteuid};

use crate::Error;

/// Moves the process into user, network and mount namespaces of its own, in which it is root, and
/// raises its limit of open files as far as it may.
///
/// Has to be called while the process has one thread: threads that exist already would stay
/// outside. Needs no privilege where the system lets users make namespaces, and as root works
/// also where it does not.
pub fn enter() -> Result<(), Error> {
    let threads = fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    if threads > 1 {
        return Err(Error::Threads { threads });
    }
    let (uid, gid) = (geteuid(), getegid());
    let own = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS;
    match unshare(own | CloneFlags::CLONE_NEWUSER) {
        Ok(()) => {
            // Without this the kernel takes no gid_map from an unprivileged user.
            write("/proc/self/setgroups", "deny")?;
            write("/proc/self/uid_map", &format!("0 {uid} 1"))?;
            write("/proc/self/gid_map", &format!("0 {gid} 1"))?;
        }
        Err(_) if uid.is_root() => unshare(own).map_err(|e| forbidden("unshare", e.into()))?,
        Err(e) => return Err(forbidden("unshare", e.into())),
    }
    // Every pod and every socket is an open file; where this fails, the limit stays what it is.
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _: Result<(), Errno> = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    Ok(())
}

fn write(path: &'static str, text: &str) -> Result<(), Error> {
    fs::write(path, text).map_err(|e| forbidden(path, e))
}

fn forbidden(step: &'static str, source: io::Error) -> Error {
    Error::Forbidden { step, source }
}
