//! The chained CNI plugin `portcullis-cni`, and what others share with it: the lines that go over
//! the agent's socket ([`protocol`], [`flow`]), who has which address ([`Attachments`]), what stands without
//! the agent ([`InForce`]), and how the plugin gets into a node's network configuration
//! ([`conflist`]).
//!
//! Synchronous and small: a container runtime starts the plugin for every pod. docs/cni.md says what
//! it does and when.
#![forbid(unsafe_code)]

mod attachments;
mod configuration;
pub mod conflist;
mod error;
pub mod flow;
mod in_force;
mod plugin;
pub mod protocol;

pub use attachments::Attachments;
pub use error::Error;
pub use in_force::InForce;
pub use plugin::{Environment, PLUGIN, run};

/// Where the agent listens, unless somebody says otherwise.
pub const SOCKET: &str = "/run/portcullis/agent.sock";
/// Where the plugin keeps who has which address, unless somebody says otherwise. It must not outlive
/// the machine's start, as addresses do not.
pub const ATTACHMENTS: &str = "/run/portcullis-cni";
