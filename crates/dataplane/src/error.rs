//! What can go wrong between the desired state and the kernel.

use std::io;

use crate::fake::Violation;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The state names something by a number that stands for nothing in it.
    #[error("{place} names {what} {number}, which is not there")]
    Dangling {
        /// What the number is of.
        what: &'static str,
        /// The number.
        number: u32,
        /// Where in the state.
        place: String,
    },
    /// A range in the state ends before it begins, or mixes address families.
    #[error("{place} has the range {range}, which is not from low to high in one family")]
    UpsideDown {
        /// The range.
        range: String,
        /// Where in the state.
        place: String,
    },
    /// The plan is not one that the kernel would accept. Only [`Fake`](crate::Fake) says so.
    #[error("the plan breaks the kernel's rules: {0}")]
    Contract(#[from] Violation),
    /// No netlink socket could be made.
    #[error("cannot open a netlink socket for protocol {protocol}: {source}")]
    Open {
        /// The number of the netlink protocol, `NETLINK_*`.
        protocol: isize,
        /// What the kernel answered.
        source: io::Error,
    },
    /// A buffer of the socket could not be read or set, or a group not joined.
    #[error("cannot read or set an option of a netlink socket: {0}")]
    Option(#[source] io::Error),
    /// The kernel took none of what was sent.
    #[error("cannot send {bytes} bytes over netlink: {source}")]
    Send {
        /// The size of what was to be sent.
        bytes: usize,
        /// What the kernel answered.
        source: io::Error,
    },
    /// One send holds more than the socket's send buffer may.
    #[error(
        "{bytes} bytes do not fit into one netlink send of at most {limit}: raise net.core.wmem_max"
    )]
    TooLarge {
        /// The size of what was to be sent.
        bytes: usize,
        /// The most that the socket takes.
        limit: usize,
    },
    /// Reading the answer failed, or none came.
    #[error("cannot read the answer over netlink: {0}")]
    Receive(#[source] io::Error),
    /// The answer is not what the protocol says.
    #[error("cannot understand the answer over netlink: {0}")]
    Decode(String),
    /// The kernel kept changing while it was read.
    #[error("the kernel's state changed during each of {tries} reads; try again later")]
    Unsteady {
        /// How often it was read.
        tries: u32,
    },
    /// The kernel refused a request.
    #[error("the kernel refused request {index} of {count}: {source}{}", detail.as_deref().map(|d| format!(" ({d})")).unwrap_or_default())]
    Refused {
        /// Which of the requests that were sent together, from 0.
        index: usize,
        /// How many were sent together.
        count: usize,
        /// The kernel's error number.
        source: io::Error,
        /// The kernel's own words (its extended acknowledgement), if it gave any.
        detail: Option<String>,
    },
}

impl Error {
    /// The kernel's error number, if the kernel refused a request: `EEXIST`, `ENOENT`, ….
    pub fn errno(&self) -> Option<i32> {
        match self {
            Error::Refused { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}
