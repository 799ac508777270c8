//! A cluster of network namespaces: real packets without root.
//!
//! [`plan`] says what a lab will consist of, as plain data. [`enter`] moves the process into
//! namespaces of its own, [`Lab::up`] builds the plan there, [`Lab::probe`] sends real packets
//! through it. All of it consists of open files and threads of one process, so nothing is left
//! when that process ends, whichever way.
//!
//! The lab knows nothing of policies: what is allowed between its endpoints is the business of
//! whoever puts rules into its nodes ([`Lab::in_node`]).
#![forbid(unsafe_code)]

mod enter;
mod error;
mod external;
mod lab;
mod namespace;
mod plan;
mod probe;
mod respond;
mod sctp;
mod wiring;

pub use enter::enter;
pub use error::Error;
pub use lab::Lab;
pub use plan::{Endpoint, Families, Kind, Options, Plan, plan};
pub use probe::{Outcome, Probe};
