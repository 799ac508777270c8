//! An embedded Kubernetes API server: enough of the API that unmodified kubectl does not notice,
//! for what is served, and that controllers and agents find what they watch.
//!
//! [`Server::start`] listens on the loopback address with TLS and a token. The state is a
//! [`Store`] in memory. Small controllers make the pods of workloads, give them nodes, and keep
//! endpoints; where pods get addresses from is up to a [`PodNetwork`].
#![forbid(unsafe_code)]

mod api;
mod apply;
mod body;
mod control;
mod defaults;
mod discovery;
mod error;
mod meta;
mod node;
mod objects;
mod patch;
mod protobuf;
mod refusal;
mod resource;
mod schema;
mod select;
mod serve;
mod store;
mod table;
mod validate;
mod watching;

pub use control::PodNetwork;
pub use error::Error;
pub use node::{FakeNetwork, Node};
pub use resource::{RESOURCES, Resource};
pub use serve::{Options, Server};
pub use store::{Change, Compacted, Key, State, Store};
