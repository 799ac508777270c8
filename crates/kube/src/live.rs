//! A live cluster as input: what its API server lists, read by the decoder of manifests.
//!
//! Nothing is written. To read a cluster once is to list, page by page; what comes back is a
//! [`Snapshot`], which is plain data and a [`Source`](crate::Source) like any other. To follow it
//! is to [watch](Access::watch).

mod access;
mod error;
mod list;
mod watch;

use std::sync::Arc;

pub use access::Access;
pub use error::Error;
pub use watch::{Event, Kind, Known, Object};

use crate::diagnostic::Diagnostic;

/// The objects of a cluster that decide about connections, in the order of their kinds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The name of the cluster, as its kubeconfig has it.
    pub cluster: String,
    /// The namespace that the context says; names without one are in it.
    pub namespace: String,
    /// What could not be listed and is not needed for a right answer.
    pub(crate) notes: Vec<Diagnostic>,
    pub(crate) objects: Vec<LiveObject>,
}

/// An object as JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LiveObject {
    /// `cluster/prod networkpolicies/shop/web`: what stands in the place of a file name.
    pub(crate) name: Arc<str>,
    pub(crate) text: Arc<str>,
}
