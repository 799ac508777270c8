//! The engine: what NetworkPolicies mean, as pure functions of plain data.
//!
//! Nothing here reads files, knows Kubernetes clients, or runs asynchronously; a test fails if a
//! dependency that could creeps in.
#![forbid(unsafe_code)]

pub mod addresses;
pub mod api;
pub mod change;
mod compile;
pub mod diff;
pub mod equivalent;
pub mod explain;
pub mod fold;
pub mod incremental;
mod index;
pub mod labels;
pub mod model;
pub mod net;
pub mod node;
pub mod portset;
mod possible;
pub mod potential;
pub mod program;
pub mod reach;
mod selector_text;
mod space;
pub mod validate;

pub use program::Program;
pub use selector_text::NoSelector;
