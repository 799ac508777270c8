//! Verdicts per second: of the engine alone, and of the command with all that it reads and writes.

use std::fs::File;
use std::hint::black_box;
use std::io::{BufWriter, Write};
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::time::Instant;

use portcullis_core::Program;
use portcullis_core::model::Cluster;
use portcullis_core::net::{Protocol, Traffic};
use portcullis_core::program::{End, Verdict};
use portcullis_tests::engine;
use portcullis_tests::generate::{self, Counts, Random};

use crate::Outcome;
use crate::figures::Runs;
use crate::folder::{Folder, SEED};
use crate::machine;

const RUNS: usize = 9;
const FLOWS: usize = 1_000_000;

const SIZES: [Counts; 2] = [
    Counts { namespaces: 50, nodes: 10, pods: 1_000, policies: 500 },
    Counts { namespaces: 500, nodes: 200, pods: 100_000, policies: 10_000 },
];

pub(crate) fn run() -> Outcome {
    println!("Median (least–greatest) of {RUNS} runs of {FLOWS} connections, one in millions");
    println!("per second. The last column is the seconds of the whole command.\n");
    println!("| pods / policies | `verdict` | `passes` | `portcullis eval` | seconds |");
    println!("|---|---|---|---|---|");
    let binary = machine::portcullis()?;
    for counts in SIZES {
        let cluster = engine::cluster(&generate::cluster(SEED, counts));
        let flows = flows(&cluster);
        let program = Program::compile(&cluster);
        let by_end = |flow: &Flow| {
            program.verdict(flow.source, flow.destination, flow.traffic) == Verdict::Allowed
        };
        let verdict = each(|| flows.iter().filter(|flow| by_end(black_box(flow))).count());

        let address = |end: End| match end {
            End::Address(address) => address,
            End::Pod(pod) => cluster.pods[pod].addresses[0],
        };
        let by_address: Vec<(IpAddr, IpAddr, Traffic)> =
            flows.iter().map(|f| (address(f.source), address(f.destination), f.traffic)).collect();
        let passes = each(|| {
            let passing = by_address.iter().filter(|flow| {
                let (source, destination, traffic) = *black_box(*flow);
                program.passes(source, destination, traffic)
            });
            passing.count()
        });

        let folder = Folder::of_cluster(counts)?;
        let lines = Folder::new("flows")?;
        let file = lines.path().join("flows.jsonl");
        write(&cluster, &flows, File::create(&file)?)?;
        let mut seconds = Runs::default();
        for _ in 0..RUNS {
            let started = Instant::now();
            let mut command = Command::new(&binary);
            command.arg("eval").arg("-f").arg(folder.path()).arg("--flows").arg(&file);
            let status = command.stdout(Stdio::null()).status()?;
            seconds.push(started.elapsed().as_secs_f64());
            if !status.success() {
                return Err(format!("portcullis eval: {status}").into());
            }
        }
        let Counts { pods, policies, .. } = counts;
        let whole = seconds.map(|s| FLOWS as f64 / s / 1e6);
        println!("| {pods} / {policies} | {verdict} | {passes} | {whole} | {seconds} |");
    }
    Ok(())
}

pub(crate) struct Flow {
    pub(crate) source: End,
    pub(crate) destination: End,
    pub(crate) traffic: Traffic,
}

/// Between any pods, one end in ten outside; half of them on a port that the destination has.
pub(crate) fn flows(cluster: &Cluster) -> Vec<Flow> {
    let mut random = Random::new(SEED);
    let end = |random: &mut Random| match random.below(10) {
        0 => End::Address(IpAddr::from([198, 51, 100, random.below(256) as u8])),
        _ => End::Pod(random.below(cluster.pods.len())),
    };
    let mut flow = || {
        let (source, destination) = (end(&mut random), end(&mut random));
        let declared = match destination {
            End::Pod(pod) if random.below(2) == 0 => cluster.pods[pod].ports.first(),
            _ => None,
        };
        let traffic = match declared {
            Some(port) => Traffic::Port(port.protocol, port.port),
            None => Traffic::Port(Protocol::Tcp, 1 + random.below(9_999) as u16),
        };
        Flow { source, destination, traffic }
    };
    (0..FLOWS).map(|_| flow()).collect()
}

/// Flows in the form that the command reads.
fn write(cluster: &Cluster, flows: &[Flow], file: File) -> Outcome {
    let mut out = BufWriter::new(file);
    let name = |end: End| match end {
        End::Address(address) => address.to_string(),
        End::Pod(pod) => format!("{}/{}", cluster.pods[pod].namespace, cluster.pods[pod].name),
    };
    for flow in flows {
        let (from, to) = (name(flow.source), name(flow.destination));
        let Traffic::Port(protocol, port) = flow.traffic else { continue };
        writeln!(out, r#"{{"from":"{from}","to":"{to}","port":{port},"protocol":"{protocol}"}}"#)?;
    }
    Ok(out.flush()?)
}

/// Millions of flows per second, of work that judges all of them and counts what is allowed.
fn each(mut work: impl FnMut() -> usize) -> Runs {
    let run = |_| {
        let started = Instant::now();
        black_box(work());
        FLOWS as f64 / started.elapsed().as_secs_f64() / 1e6
    };
    (0..RUNS).map(run).collect()
}
