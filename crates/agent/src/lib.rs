//! The agent: enforces the policies of a live cluster on one of its nodes.
//!
//! Events of the API server become an [`Observed`] cluster, that becomes a `Program`, and this
//! node's share of it goes to a data plane. [`Agent`] is all of that without threads and sockets;
//! [`run`] puts it on a thread of its own, with the watches, the HTTP endpoints and the Unix socket
//! beside it.
#![forbid(unsafe_code)]

mod accept;
mod agent;
mod api;
mod attached;
mod capability;
mod desired;
mod events;
mod flows;
mod guard;
mod http;
mod in_force;
mod metrics;
mod observed;
mod record;
mod report;
mod run;
mod socket;
mod unprogrammed;

pub use portcullis_core::model::Mode;

pub use agent::Agent;
pub use capability::{permit, take_net_admin};
pub use desired::{Desired, desired_once};
pub use metrics::Metrics;
pub use observed::Observed;
pub use run::{Error, Logging, Options, Socket, every, log, run, run_until};
pub use unprogrammed::Unprogrammed;
