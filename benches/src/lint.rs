//! The lint: all rules on a cluster, by the number of its policies.

use std::time::Instant;

use portcullis_kube::{Options, Source};
use portcullis_tests::generate::Counts;

use crate::Outcome;
use crate::figures::Runs;
use crate::folder::Folder;

const RUNS: usize = 5;

/// Namespaces, nodes, pods, policies.
const SIZES: [[usize; 4]; 2] = [[50, 10, 1_000, 500], [100, 50, 10_000, 2_000]];

pub(crate) fn run() -> Outcome {
    println!(
        "Median (least–greatest) of {RUNS} runs, in milliseconds, after reading. *Lint* is every"
    );
    println!(
        "rule of `portcullis check`, the redundancy of every rule of every policy among them.\n"
    );
    println!("| pods / policies | lint, ms | findings |");
    println!("|---|---|---|");
    for [namespaces, nodes, pods, policies] in SIZES {
        let folder = Folder::of_cluster(Counts { namespaces, nodes, pods, policies })?;
        let source = Source::Path(folder.path().to_owned());
        let input = portcullis_kube::load(&[source], &Options::default());
        let mut findings = 0;
        let run = |_| {
            let started = Instant::now();
            findings = portcullis_lint::lint(&input).len();
            started.elapsed().as_secs_f64() * 1e3
        };
        let runs: Runs = (0..RUNS).map(run).collect();
        println!("| {pods} / {policies} | {runs} | {findings} |");
    }
    Ok(())
}
