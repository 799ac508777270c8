//! Real packets: how long `portcullis lab run` takes, from its start to its exit.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use portcullis_tests::generate::Counts;

use crate::Outcome;
use crate::figures::Runs;
use crate::folder::Folder;
use crate::machine;

const RUNS: usize = 5;

pub(crate) fn run() -> Outcome {
    println!("Seconds of the whole command, median (least–greatest) of {RUNS} runs.\n");
    println!("| `portcullis lab run` | seconds | its last line |");
    println!("|---|---|---|");
    let binary = machine::portcullis()?;
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/three-tier");
    row(&binary, "`-f examples/three-tier`", &example, &[])?;
    let counts = Counts { namespaces: 5, nodes: 1, pods: 100, policies: 50 };
    let folder = Folder::of_cluster(counts)?;
    let arguments = ["--ip-families=ipv4", "--port=8080", "--port=5432", "--port=53/udp"];
    let name = format!("100 pods / 50 policies, `{}`", arguments.join(" "));
    row(&binary, &name, folder.path(), &arguments)
}

fn row(binary: &PathBuf, name: &str, folder: &Path, arguments: &[&str]) -> Outcome {
    let mut seconds = Runs::default();
    let mut last = String::new();
    for _ in 0..RUNS {
        let started = Instant::now();
        let mut command = Command::new(binary);
        let output = command.args(["lab", "run", "-f"]).arg(folder).args(arguments).output()?;
        seconds.push(started.elapsed().as_secs_f64());
        let text = String::from_utf8(output.stdout)?;
        last = text.lines().last().unwrap_or_default().to_owned();
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            return Err(format!("{name}: {}: {last}\n{errors}", output.status).into());
        }
    }
    println!("| {name} | {seconds} | {last} |");
    Ok(())
}
