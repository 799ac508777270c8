//! The figures of docs/performance.md, as Markdown: `cargo xtask bench [NAME]`.
#![forbid(unsafe_code)]

mod add;
mod agent;
mod compile;
mod connections;
mod cut;
mod eval;
mod figures;
mod flood;
mod folder;
mod lab;
mod lint;
mod machine;
mod matrix;
mod reach;
mod why;

use std::env;
use std::error::Error;
use std::process::{Command, ExitCode};

/// What went wrong is only ever shown.
type Outcome<T = ()> = Result<T, Box<dyn Error>>;

/// A name, and what measures and prints.
type Bench = (&'static str, fn() -> Outcome);

/// In the order in which they run. The last one moves this process into the namespaces of a lab.
const BENCHES: [Bench; 12] = [
    ("compile", compile::run),
    ("eval", eval::run),
    ("why", why::run),
    ("reach", reach::run),
    ("agent", agent::run),
    ("add", add::run),
    ("lint", lint::run),
    ("lab", lab::run),
    ("cut", cut::run),
    ("flood", flood::run),
    ("matrix", matrix::run),
    ("connections", connections::run),
];

fn main() -> ExitCode {
    let own: Vec<_> = env::args_os().skip(1).collect();
    if let Some(code) = portcullis_lab::started_by_a_lab(&own) {
        return code;
    }
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match arguments.as_slice() {
        [] => all(&BENCHES),
        [compile::ONCE, folder] => compile::once(folder.as_ref()),
        [cut::ONCE] => cut::once(),
        [flood::ONCE] => flood::once(),
        [add::ONCE] => add::once(),
        [matrix::ONCE] => matrix::once(),
        [agent::ONCE, size] => agent::once(size),
        [reach::ONCE, folder] => reach::once(folder.as_ref()),
        [name] => match BENCHES.iter().find(|(known, _)| known == name) {
            Some(bench) => all(&[*bench]),
            None => usage(),
        },
        _ => usage(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn all(benches: &[Bench]) -> Outcome {
    machine::print()?;
    for (name, run) in benches {
        println!("\n## {name}\n");
        run()?;
    }
    Ok(())
}

/// Has the argument's part of a bench measured in a process of its own: labs need one without threads
/// that has not entered one.
fn in_its_own_process(argument: &str) -> Outcome {
    let status = Command::new(env::current_exe()?).arg(argument).status()?;
    if status.success() { Ok(()) } else { Err("measuring failed".into()) }
}

fn usage() -> Outcome {
    let names = BENCHES.map(|(name, _)| name).join(", ");
    Err(format!("expected the name of one bench, or none for all; there are {names}").into())
}
