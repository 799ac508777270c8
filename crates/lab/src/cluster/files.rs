//! The files that the agents of a cluster and the lab share.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::Error;

/// The socket at which the agent of a node can be asked, in the folder of the node.
pub(crate) const SOCKET: &str = "agent.sock";
/// Who has which address of the node.
pub(crate) const ATTACHMENTS: &str = "attachments";
/// How the agent of the node reaches the API server.
pub(crate) const KUBECONFIG: &str = "kubeconfig";

/// A file system in memory that is mounted nowhere: whoever has this open file sees it, and it is gone
/// when nobody has. There is a folder for each node.
#[derive(Debug)]
pub(crate) struct Files(File);

impl Files {
    /// For a moment it is mounted at `/tmp`, of this lab alone: nothing else may look there meanwhile.
    pub(crate) fn new() -> Result<Files, Error> {
        let here = || -> std::io::Result<File> {
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            mount(Some("tmpfs"), "/tmp", Some("tmpfs"), flags, Some("mode=0700"))?;
            let root = File::open("/tmp");
            umount2("/tmp", MntFlags::MNT_DETACH)?;
            root
        };
        here().map(Files).map_err(|e| Error::socket("make a place for the files of agents", e))
    }

    /// The folder of a node, for this process.
    pub(crate) fn of(&self, node: &str) -> PathBuf {
        Path::new("/proc/self/fd").join(self.0.as_raw_fd().to_string()).join(node)
    }
}
