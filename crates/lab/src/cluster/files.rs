//! The files that the agents of a cluster and the lab share.

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use crate::Error;

/// The socket at which the agent of a node can be asked, in the folder of the node.
pub(crate) const SOCKET: &str = "agent.sock";
/// Who has which address of the node.
pub(crate) const ATTACHMENTS: &str = "attachments";
/// How the agent of the node reaches the API server.
pub(crate) const KUBECONFIG: &str = "kubeconfig";

/// A folder for each node, in one that this process has open: whoever inherits a node's folder as an open
/// file needs no path to it.
#[derive(Debug)]
pub(crate) struct Files(File);

impl Files {
    /// In this folder, which is made if it is not there.
    pub(crate) fn in_folder(folder: &Path) -> Result<Files, Error> {
        let opened = fs::create_dir_all(folder).and_then(|()| File::open(folder));
        opened.map(Files).map_err(|e| Error::socket("make a place for the files of agents", e))
    }

    /// The folder of a node, for this process.
    pub(crate) fn of(&self, node: &str) -> PathBuf {
        Path::new("/proc/self/fd").join(self.0.as_raw_fd().to_string()).join(node)
    }
}
