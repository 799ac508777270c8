//! One node's share of a Program, enforced in the kernel.
//!
//! The seam is [`state`] and [`Dataplane`]: above it nothing knows nf_tables, below it nothing
//! knows Kubernetes. A desired state is laid out as a [`plan::Plan`], which is plain data; what
//! sends it to the kernel, renders it as text or interprets it has nothing left to decide.

mod attributes;
mod compare;
mod connections;
mod conntrack;
mod cut;
mod encode;
mod error;
mod fake;
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

#[cfg(test)]
extern crate self as portcullis_dataplane;

pub use compare::Difference;
pub use connections::{Connections, Judged};
pub use error::Error;
pub use fake::{Fake, Packet, Violation};
pub use nftables::Nftables;
pub use seam::{Dataplane, Hits, Report};
pub use share::share;
pub use sources::Sources;
