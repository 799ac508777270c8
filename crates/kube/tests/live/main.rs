//! A live cluster: what its API server says becomes the same cluster as a file would.
#![allow(clippy::unwrap_used)]

mod access;
mod equal;
mod lists;
mod refusals;
mod server;
