//! Connectivity of whole clusters: time and memory, by the size of the cluster.

use std::env;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use portcullis_core::Program;
use portcullis_core::fold::fold;
use portcullis_core::reach::{Allowed, Opens, Reach};
use portcullis_kube::{Options, Source};
use portcullis_tests::generate::Counts;

use crate::Outcome;
use crate::compile::peak_kilobytes;
use crate::figures::Runs;
use crate::folder::Folder;
use crate::machine;

/// The name of the bench's inner half, a process of its own for each run.
pub(crate) const ONCE: &str = "reach-once";

const RUNS: usize = 5;

/// Namespaces, nodes, pods, policies. With four pods in a namespace each is an application of its own.
const SIZES: [[usize; 4]; 4] = [
    [50, 10, 1_000, 500],
    [200, 10, 800, 810],
    [100, 50, 10_000, 2_000],
    [100, 50, 10_000, 10_000],
];

pub(crate) fn run() -> Outcome {
    println!("Median (least–greatest) of {RUNS} runs, each a new process. *Classes* is what every");
    println!("class of pods and addresses may open to every other; *folded* is that as few");
    println!("products. The last column is the whole command, with reading and printing.\n");
    println!(
        "| pods / policies | classes | classes, ms | and folded, ms | peak, MB | `reach`, ms |"
    );
    println!("|---|---|---|---|---|---|");
    let binary = machine::portcullis()?;
    for [namespaces, nodes, pods, policies] in SIZES {
        let folder = Folder::of_cluster(Counts { namespaces, nodes, pods, policies })?;
        let mut columns: [Runs; 4] = Default::default();
        let mut classes = String::new();
        for _ in 0..RUNS {
            let output = Command::new(env::current_exe()?).arg(ONCE).arg(folder.path()).output()?;
            let text = String::from_utf8(output.stdout)?;
            let mut words = text.split_whitespace();
            classes = words.next().ok_or("no figures")?.to_owned();
            for (runs, word) in columns.iter_mut().zip(words) {
                runs.push(word.parse()?);
            }
            let started = Instant::now();
            let command = Command::new(&binary)
                .args(["reach", "-f"])
                .arg(folder.path())
                .stdout(Stdio::null())
                .status()?;
            if !command.success() {
                return Err(format!("portcullis reach: {command}").into());
            }
            columns[3].push(started.elapsed().as_secs_f64() * 1e3);
        }
        let columns = columns.map(|runs| runs.to_string()).join(" | ");
        println!("| {pods} / {policies} | {classes} | {columns} |");
    }
    Ok(())
}

/// Reads and compiles a folder, works out its connectivity, and prints what that took.
pub(crate) fn once(folder: &Path) -> Outcome {
    let input = portcullis_kube::load(&[Source::Path(folder.to_owned())], &Options::default());
    if let Some(diagnostic) = input.diagnostics.first() {
        return Err(format!("{diagnostic:?}").into());
    }
    let program = Program::compile(&input.cluster);
    let started = Instant::now();
    let mut reach = Reach::of(&program);
    let units = reach.units(&input.cluster);
    let mut allowed = 0;
    for unit in &units {
        let row = reach.unit_row(&units, unit);
        allowed += row.iter().filter(|a| **a != Allowed::Alike(Opens::default())).count();
    }
    let classes = started.elapsed();
    let started = Instant::now();
    let products = fold(
        units
            .iter()
            .map(|unit| reach.unit_row(&units, unit))
            .map(|row| row.into_iter().map(Some).collect()),
    );
    let folded = started.elapsed();
    if products.is_empty() || allowed == 0 {
        return Err("nothing may reach anything".into());
    }
    let [classes, folded] = [classes, folded].map(|d| d.as_secs_f64() * 1e3);
    println!("{} {classes} {folded} {}", units.len(), peak_kilobytes()? / 1024.0);
    Ok(())
}
