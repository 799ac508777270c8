//! What the figures were measured on.

use std::path::PathBuf;
use std::process::Command;
use std::{env, fs, thread};

use crate::Outcome;

pub(crate) fn print() -> Outcome {
    let cpu = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("unknown CPU", |(_, model)| model);
    let cores = thread::available_parallelism()?;
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let load = fs::read_to_string("/proc/loadavg")?;
    let load: Vec<&str> = load.split(' ').take(3).collect();
    println!("- machine: {model}, {cores} cores, Linux {}", kernel.trim());
    println!("- load before: {}", load.join(" "));
    println!("- compiler: {}", says("rustc", &["--version"]));
    println!("- commit: {}", says("git", &["describe", "--always", "--dirty", "--exclude=*"]));
    Ok(())
}

fn says(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map_or_else(|e| e.to_string(), |o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
}

/// The release binary, built as users build it.
pub(crate) fn portcullis() -> Outcome<PathBuf> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let build = ["build", "--release", "--quiet", "--package", "portcullis"];
    let built = Command::new(cargo).args(build).status()?;
    if !built.success() {
        return Err(format!("cannot build portcullis: {built}").into());
    }
    // Cargo puts all binaries of a profile into one folder.
    Ok(env::current_exe()?.with_file_name("portcullis"))
}
