//! The independent oracle, random clusters, and the suites that run on every back end.
#![forbid(unsafe_code)]

pub mod compile;
pub mod engine;
pub mod folder;
pub mod generate;
pub mod in_lab;
pub mod kubectl;
pub mod manifests;
pub mod nodes;
pub mod oracle;
pub mod process;
pub mod property;
pub mod scenario;
