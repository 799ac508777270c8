//! `portcullis`: network policy for Kubernetes, understood, enforced and proven.
#![forbid(unsafe_code)]

mod agent;
mod agents;
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
mod in_force;
mod input;
mod install_cni;
mod kustomize;
mod lab;
mod manifest;
mod matrix;
mod observe;
mod output;
mod potential;
mod reach;
mod routes;
mod status;
mod style;
mod table;
mod trouble;
mod wait;
mod why;

use std::process::ExitCode;

fn main() -> ExitCode {
    // A lab starts the commands of its pods in this way, and the agents of its nodes.
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    if let Some(code) = portcullis_lab::started_by_a_lab(&arguments) {
        return code;
    }
    // In these pods, this binary is also `wget` and others, by the name it is called by.
    let arguments = std::env::args_os().map(|argument| argument.to_string_lossy().into_owned());
    if let Some(code) = portcullis_lab::tools::run(&arguments.collect::<Vec<_>>()) {
        return code.into();
    }
    let outcome = args::parse().and_then(args::Command::run);
    match outcome {
        Ok(code) => code,
        Err(trouble) => trouble.report(),
    }
}
