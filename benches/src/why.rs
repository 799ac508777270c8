//! One explanation, after reading and compiling: with the nearest rule and the smallest change.

use std::hint::black_box;
use std::time::Instant;

use portcullis_core::Program;
use portcullis_core::explain::explain;
use portcullis_core::program::Verdict;
use portcullis_tests::engine;
use portcullis_tests::generate::{self, Counts};

use crate::Outcome;
use crate::eval::flows;
use crate::figures::Runs;
use crate::folder::SEED;

const QUESTIONS: usize = 2_000;

const SIZES: [Counts; 3] = [
    Counts { namespaces: 50, nodes: 10, pods: 1_000, policies: 500 },
    Counts { namespaces: 100, nodes: 50, pods: 10_000, policies: 10_000 },
    Counts { namespaces: 500, nodes: 200, pods: 100_000, policies: 10_000 },
];

pub(crate) fn run() -> Outcome {
    println!(
        "Median (least–greatest) of {QUESTIONS} random connections of each kind, each once.\n"
    );
    println!("| pods / policies | allowed, µs | refused, µs |");
    println!("|---|---|---|");
    for counts in SIZES {
        let cluster = engine::cluster(&generate::cluster(SEED, counts));
        let program = Program::compile(&cluster);
        let of = |wanted: Verdict| -> Runs {
            let flows = flows(&cluster);
            let all = flows
                .iter()
                .filter(|f| program.verdict(f.source, f.destination, f.traffic) == wanted);
            all.take(QUESTIONS)
                .map(|f| {
                    let started = Instant::now();
                    let (from, to, traffic) = (f.source, f.destination, f.traffic);
                    black_box(explain(&cluster, &program, from, to, traffic));
                    started.elapsed().as_secs_f64() * 1e6
                })
                .collect()
        };
        let (allowed, refused) = (of(Verdict::Allowed), of(Verdict::Refused));
        println!("| {} / {} | {allowed} | {refused} |", counts.pods, counts.policies);
    }
    Ok(())
}
