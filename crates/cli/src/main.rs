//! `portcullis`: network policy for Kubernetes, understood, enforced and proven.
#![forbid(unsafe_code)]

mod agent;
mod args;
mod assert;
mod check;
mod diff;
mod doubts;
mod ends;
mod equivalence;
mod eval;
mod focus;
mod git;
mod graph;
mod groups;
mod input;
mod kustomize;
mod lab;
mod manifest;
mod matrix;
mod output;
mod potential;
mod reach;
mod routes;
mod style;
mod table;
mod trouble;
mod why;

use std::process::ExitCode;

fn main() -> ExitCode {
    let outcome = args::parse().and_then(args::Command::run);
    match outcome {
        Ok(code) => code,
        Err(trouble) => trouble.report(),
    }
}
