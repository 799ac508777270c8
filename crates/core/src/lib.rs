//! The engine: what NetworkPolicies mean, as pure functions of plain data.
//!
//! Nothing here reads files, knows Kubernetes clients, or runs asynchronously; a test fails if a
//! dependency that could creeps in.
#![forbid(unsafe_code)]

pub mod api;
pub mod labels;
pub mod model;
pub mod net;
pub mod validate;
