//! One node's share of a Program, enforced in the kernel.
//!
//! The seam is [`state`]: above it nothing knows nf_tables, below it nothing knows Kubernetes.

mod error;
pub mod netlink;
pub mod state;

pub use error::Error;
