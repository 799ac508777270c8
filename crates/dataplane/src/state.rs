//! What one node's kernel must enforce: the seam's language. It knows addresses, ports and
//! numbers, and nothing of Kubernetes or of nf_tables.

pub use portcullis_core::addresses::Addresses;
pub use portcullis_core::node::{Entry, Log, NodeState, PeerSet, Ports, Profile, Shared};
