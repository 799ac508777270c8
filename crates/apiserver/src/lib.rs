//! An embedded Kubernetes API server: enough of the API that unmodified kubectl does not notice,
//! for what is served, and that controllers and agents find what they watch.
//!
//! [`Server::start`] listens on the loopback address with TLS and a token. The state is a
//! [`Store`], in memory and if so wished on disk. Small controllers make the pods of workloads, give them nodes, and keep
//! endpoints; what a pod is, its network and what runs in it, is up to a [`Runtime`].
#![forbid(unsafe_code)]

mod api;
mod apply;
mod body;
mod containers;
mod control;
mod defaults;
mod discovery;
mod disk;
mod error;
mod fake;
mod forward;
mod identity;
mod log;
mod manifest;
mod meta;
mod node;
mod objects;
mod patch;
mod process;
mod protobuf;
mod refusal;
mod remote;
mod resource;
mod review;
mod runtime;
mod schema;
mod select;
mod serve;
mod services;
mod session;
mod spdy;
mod store;
mod table;
mod validate;
mod watching;

pub use error::Error;
pub use fake::FakeRuntime;
pub use node::Node;
pub use resource::{RESOURCES, Resource};
pub use runtime::{Control, Exec, Input, Output, Process, Runtime};
pub use serve::{Options, Server, kubeconfig_can_be_written};
pub use store::{Change, Compacted, Key, State, Store};
