//! Manifests in files to a compiled program: time and memory, by the size of the cluster.

use std::path::Path;
use std::process::Command;
use std::time::Instant;
use std::{env, fs};

use portcullis_core::Program;
use portcullis_kube::{Options, Source};
use portcullis_tests::generate::Counts;

use crate::Outcome;
use crate::figures::Runs;
use crate::folder::Folder;

/// The name of the bench's inner half, which is a process of its own for each run: its peak
/// memory is then that of the run.
pub(crate) const ONCE: &str = "compile-once";

const RUNS: usize = 7;

/// Namespaces, nodes, pods, policies.
const SIZES: [[usize; 4]; 4] = [
    [50, 10, 1_000, 500],
    [100, 50, 10_000, 2_000],
    [500, 200, 100_000, 10_000],
    [25_000, 200, 100_000, 75_000],
];

pub(crate) fn run() -> Outcome {
    println!("Median (least–greatest) of {RUNS} runs, each a new process.\n");
    println!("| namespaces / pods / policies | read, ms | compile, ms | both, ms | peak, MB |");
    println!("|---|---|---|---|---|");
    for [namespaces, nodes, pods, policies] in SIZES {
        let folder = Folder::of_cluster(Counts { namespaces, nodes, pods, policies })?;
        let mut columns: [Runs; 4] = Default::default();
        for _ in 0..RUNS {
            let measured = child(folder.path(), [namespaces, pods, policies])?;
            columns.iter_mut().zip(measured).for_each(|(runs, one)| runs.push(one));
        }
        let columns = columns.map(|runs| runs.to_string()).join(" | ");
        println!("| {namespaces} / {pods} / {policies} | {columns} |");
    }
    Ok(())
}

/// Milliseconds to read, to compile and both, and the peak in megabytes.
fn child(folder: &Path, expected: [usize; 3]) -> Outcome<[f64; 4]> {
    let output = Command::new(env::current_exe()?).arg(ONCE).arg(folder).output()?;
    let text = String::from_utf8(output.stdout)?;
    let mut numbers = text.split_whitespace();
    let found: Vec<usize> = numbers.by_ref().take(3).map(str::parse).collect::<Result<_, _>>()?;
    if found != expected {
        let errors = String::from_utf8_lossy(&output.stderr);
        return Err(format!("expected to read {expected:?}, found {found:?}: {errors}").into());
    }
    let measured: Vec<f64> = numbers.map(str::parse).collect::<Result<_, _>>()?;
    let [read, compile, peak] = measured[..] else {
        return Err(format!("expected three figures, found {text:?}").into());
    };
    Ok([read, compile, read + compile, peak])
}

/// Reads and compiles a folder, and prints what there was and what it took.
pub(crate) fn once(folder: &Path) -> Outcome {
    let started = Instant::now();
    let input = portcullis_kube::load(&[Source::Path(folder.to_owned())], &Options::default());
    let read = started.elapsed();
    if let Some(diagnostic) = input.diagnostics.first() {
        return Err(format!("{diagnostic:?}").into());
    }
    let started = Instant::now();
    let program = Program::compile(&input.cluster);
    let compile = started.elapsed();
    let peak = peak_kilobytes()?;
    drop(program);
    let cluster = &input.cluster;
    let counts = [cluster.namespaces.len(), cluster.pods.len(), cluster.policies.len()];
    let [namespaces, pods, policies] = counts;
    let [read, compile] = [read, compile].map(|d| d.as_secs_f64() * 1e3);
    println!("{namespaces} {pods} {policies} {read} {compile} {}", peak / 1024.0);
    Ok(())
}

/// The most memory that this process had in use so far (proc_pid_status(5)).
pub(crate) fn peak_kilobytes() -> Outcome<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    Ok(line.ok_or("no VmHWM in /proc/self/status")?.trim_end_matches("kB").trim().parse()?)
}
