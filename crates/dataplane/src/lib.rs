//! One node's share of a Program, enforced in the kernel.
//!
//! The seam is [`state`] and [`Dataplane`]: above it nothing knows nf_tables, below it nothing
//! knows Kubernetes. A desired state is laid out as a [`plan::Plan`], which is plain data; what
//! sends it to the kernel, renders it as text or interprets it has nothing left to decide.

mod allowed;
mod attributes;
mod bridge;
mod compare;
mod connections;
mod conntrack;
mod counts;
mod cut;
mod encode;
mod error;
mod fake;
mod flow_log;
mod handover;
mod judge;
mod layout;
pub mod netlink;
mod nftables;
mod nudge;
pub mod plan;
mod render;
mod seam;
mod share;
mod sources;
pub mod state;
mod table;
mod update;
mod witness;

/// How messages of nf_tables are written, for tables beside the one of the policies.
pub mod nf_tables {
    pub use crate::attributes::{Attributes, Message};
    pub use crate::encode::{Request, compare, expression, load_meta, load_payload, transaction};
}

pub use allowed::Allowed;
pub use bridge::Unseen;
pub use compare::Difference;
pub use connections::{Connections, Judged, Release};
pub use error::Error;
pub use fake::{Fake, Packet, Violation};
pub use flow_log::{FlowLog, Headers, Logged, Outcome};
pub use nftables::Nftables;
pub use seam::{Dataplane, Ended, Hits, Report, Tally};
pub use share::share;
pub use sources::Sources;

// The random states of the tests are written for both sides of the crate's border.
#[cfg(test)]
extern crate self as portcullis_dataplane;
#[cfg(test)]
#[path = "../tests/random/mod.rs"]
mod random;
