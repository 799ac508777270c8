//! Every developer command has one name here, and CI calls only these names.
#![forbid(unsafe_code)]

use std::env;
use std::process::{Command, ExitCode};

const HELP: &str = "\
cargo xtask COMMAND

  lint     formatting, clippy and documentation, every warning an error
  test     all tests, with real packets (needs no root, no nft, no ip)
  soak     random clusters on the kernel until stopped: cargo xtask soak [MINUTES]
  bench    the figures of docs/performance.md: cargo xtask bench [NAME]
  fuzz     fuzz the manifest reader or the compiler: cargo xtask fuzz manifests|compile [SECONDS]
  bless    accept what the commands print now as what they should print
";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let (name, rest) = match arguments.split_first() {
        Some((name, rest)) => (name.as_str(), rest),
        None => ("help", [].as_slice()),
    };
    let done = match name {
        "lint" => lint(),
        "test" => cargo(&["test", "--workspace", "--quiet"], rest, &[]),
        "soak" => soak(rest),
        "bench" => cargo(&["run", "--release", "--package", "portcullis-bench", "--"], rest, &[]),
        "fuzz" => fuzz(rest),
        "bless" => cargo(&["test", "--workspace", "--quiet"], rest, &[("TRYCMD", "overwrite")]),
        "help" | "-h" | "--help" => {
            print!("{HELP}");
            true
        }
        other => {
            eprint!("unknown command {other:?}\n\n{HELP}");
            false
        }
    };
    if done { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn lint() -> bool {
    cargo(&["fmt", "--all", "--check"], &[], &[])
        && cargo(
            &["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"],
            &[],
            &[],
        )
        && cargo(
            &["doc", "--workspace", "--no-deps", "--quiet"],
            &[],
            &[("RUSTDOCFLAGS", "-D warnings")],
        )
}

fn soak(rest: &[String]) -> bool {
    let minutes = rest.first().map_or("60", String::as_str);
    cargo(
        &[
            "test",
            "--release",
            "--package=portcullis-tests",
            "--test=kernel",
            "--",
            "--ignored",
            "soak",
            "--nocapture",
        ],
        &[],
        &[("PORTCULLIS_SOAK_MINUTES", minutes)],
    )
}

fn fuzz(rest: &[String]) -> bool {
    let Some(target) = rest.first() else {
        eprint!("which target?\n\n{HELP}");
        return false;
    };
    let seconds = format!("-max_total_time={}", rest.get(1).map_or("60", String::as_str));
    run("cargo", &["+nightly", "fuzz", "run", target, "--", &seconds], &[], &[])
}

fn cargo(arguments: &[&str], rest: &[String], variables: &[(&str, &str)]) -> bool {
    let cargo = env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    run(&cargo, arguments, rest, variables)
}

/// Runs a program in this folder, and says what it was if it fails.
fn run(program: &str, arguments: &[&str], rest: &[String], variables: &[(&str, &str)]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).args(rest).envs(variables.iter().copied());
    match command.status() {
        Ok(status) if status.success() => true,
        Ok(status) => {
            eprintln!("{program} {}: {status}", arguments.join(" "));
            false
        }
        Err(error) => {
            eprintln!("cannot run {program}: {error}");
            false
        }
    }
}
