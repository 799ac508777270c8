//! One node's share of a Program, enforced in the kernel.
//!
//! The seam is [`state`]: above it nothing knows nf_tables, below it nothing knows Kubernetes.

mod share;
pub mod state;
pub use share::share;
