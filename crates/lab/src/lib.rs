//! A cluster of network namespaces: real packets without root.
//!
//! [`plan`] says what a lab will consist of, as plain data. [`enter`] moves the process into
//! namespaces of its own, [`Lab::up`] builds the plan there, [`Lab::probe`] sends real packets
//! through it. All of it consists of open files and threads of one process, so nothing is left
//! when that process ends, whichever way.
//!
//! None of that knows policies. [`Lab::trial`] does: it has every connection predicted by the
//! engine, enforced by the kernel, and tried.
//!
//! A [`Cluster`] is a lab with an API server, an agent on each node, and pods that come and go. Its
//! agents, and the commands of its pods, are processes that the kernel ends with this one.
#![forbid(unsafe_code)]

mod cluster;
mod control;
pub mod dns;
mod enter;
mod error;
mod external;
mod families;
mod lab;
mod namespace;
mod plan;
mod probe;
mod respond;
mod sctp;
pub mod services;
pub mod tools;
mod trial;
mod wiring;

pub use cluster::{Cluster, started_by_a_lab};
pub use portcullis_apiserver::{Error as ServerError, kubeconfig_can_be_written};

pub use control::{Connection, Control, Event, make_sockets, sockets};
pub use enter::enter;
pub use error::Error;
pub use families::Families;
pub use lab::Lab;
pub use plan::{Endpoint, Kind, Options, Plan, Topology, plan};
pub use probe::{Outcome, Probe};
pub use trial::{Enforcement, Observation, Progress, Step, Trial, connections, traffics};
