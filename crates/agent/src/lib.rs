//! The agent: enforces the policies of a live cluster on one of its nodes.
//!
//! Events of the API server become an [`Observed`] cluster, that becomes a `Program`, and this
//! node's share of it goes to a data plane. [`Agent`] is all of that without threads and sockets;
//! [`run`] puts it on a thread of its own, with the watches and the HTTP endpoints beside it.
#![forbid(unsafe_code)]

mod agent;
mod desired;
mod guard;
mod http;
mod metrics;
mod observed;
mod run;
mod unprogrammed;

pub use agent::Agent;
pub use desired::{Desired, desired_once};
pub use metrics::Metrics;
pub use observed::Observed;
pub use run::{Error, Options, log, run, run_until};
pub use unprogrammed::Unprogrammed;
