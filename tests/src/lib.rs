//! The independent oracle, random clusters, and the suites that run on every back end.
#![forbid(unsafe_code)]

pub mod generate;
pub mod manifests;
pub mod oracle;
pub mod scenario;
