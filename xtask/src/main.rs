//! Every developer command has one name here, and CI calls only these names.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::{env, fs};

const HELP: &str = "\
cargo xtask COMMAND

  lint     formatting, clippy and documentation, every warning an error
  test     all tests, with real packets (needs no root, no nft, no ip)
  soak     random clusters on the kernel until stopped: cargo xtask soak [MINUTES]
  bench    the figures of docs/performance.md: cargo xtask bench [NAME]
  fuzz     fuzz the manifest reader or the compiler: cargo xtask fuzz manifests|compile [SECONDS]
  image    the programs of the image, static, in target/image
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
        "image" => image(),
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

/// Builds what deploy/Dockerfile copies, and makes sure that it needs no library.
fn image() -> bool {
    let Some(target) = host() else {
        eprintln!("rustc -vV does not say which machine this is");
        return false;
    };
    let built = cargo(
        &[
            "build",
            "--release",
            "--target",
            &target,
            "--package=portcullis",
            "--package=portcullis-cni",
        ],
        &[],
        &[("RUSTFLAGS", "-C target-feature=+crt-static")],
    );
    built
        && ["portcullis", "portcullis-cni"].iter().all(|name| {
            match put_in_image(name, Path::new("target").join(&target).join("release")) {
                Ok(size) => {
                    println!("target/image/{name}: static, {} KiB", size / 1024);
                    true
                }
                Err(why) => {
                    eprintln!("{name}: {why}");
                    false
                }
            }
        })
}

/// The machine that this is, as rustc names it.
fn host() -> Option<String> {
    let output = Command::new("rustc").arg("-vV").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.lines().find_map(|line| line.strip_prefix("host: ")).map(str::to_owned)
}

fn put_in_image(name: &str, built: PathBuf) -> Result<u64, String> {
    let program = fs::read(built.join(name)).map_err(|error| error.to_string())?;
    if needs_a_loader(&program)? {
        return Err("not static: it asks for a loader of libraries".to_owned());
    }
    fs::create_dir_all("target/image").map_err(|error| error.to_string())?;
    fs::copy(built.join(name), Path::new("target/image").join(name))
        .map_err(|error| error.to_string())
}

/// Whether a 64-bit ELF file has a program header of the type PT_INTERP.
fn needs_a_loader(elf: &[u8]) -> Result<bool, String> {
    let number = |at: usize, length: usize| {
        let bytes = elf.get(at..at + length).filter(|_| elf.starts_with(b"\x7fELF\x02\x01"));
        let bytes = bytes.ok_or_else(|| "no 64-bit little-endian ELF file".to_owned())?;
        Ok(bytes.iter().rev().fold(0usize, |number, byte| number << 8 | usize::from(*byte)))
    };
    let (start, size, count) = (number(0x20, 8)?, number(0x36, 2)?, number(0x38, 2)?);
    let types: Result<Vec<usize>, String> =
        (0..count).map(|header| number(start + header * size, 4)).collect();
    Ok(types?.contains(&3))
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
