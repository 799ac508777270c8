//! An agent that knows a large cluster: from an event to the kernel's word, and memory.

use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use std::{env, fs};

use portcullis_agent::{Agent, Metrics};
use portcullis_core::model::Cluster;
use portcullis_dataplane::Nftables;
use portcullis_kube::live::{Event, Kind, Known, Object};
use portcullis_tests::engine;
use portcullis_tests::generate::{self, Counts};

use crate::Outcome;
use crate::figures::Runs;

/// The name of the bench's inner half, a process of its own: it moves into namespaces, and its
/// memory is measured.
pub(crate) const ONCE: &str = "agent-once";

/// The largest, which the goals are for, and two smaller ones.
const SIZES: [Counts; 3] = [
    Counts { namespaces: 50, nodes: 10, pods: 1_000, policies: 500 },
    Counts { namespaces: 100, nodes: 50, pods: 10_000, policies: 2_000 },
    Counts { namespaces: 500, nodes: 200, pods: 100_000, policies: 10_000 },
];
/// The most pods that the node has; the others are moved to its neighbour.
const LOCAL: usize = 250;
const EVENTS: usize = 41;
/// The longest that events of one sort are tried.
const LONGEST: Duration = Duration::from_secs(60);
const NODE: &str = "node-1";

pub(crate) fn run() -> Outcome {
    println!(
        "Milliseconds from an event to the kernel's word, median (least–greatest) of at most \
         {EVENTS}.\n"
    );
    println!(
        "| pods / policies known | local pods | elements | a pod elsewhere changes its labels | \
         a local pod does | objects, MB | peak, MB |"
    );
    println!("|---|---|---|---|---|---|---|");
    for (i, counts) in SIZES.iter().enumerate() {
        let output = Command::new(env::current_exe()?).arg(ONCE).arg(i.to_string()).output()?;
        let (text, errors) =
            (String::from_utf8(output.stdout)?, String::from_utf8_lossy(&output.stderr));
        if !output.status.success() {
            return Err(format!("{}: {errors}", output.status).into());
        }
        print!("| {} / {} | {text}", counts.pods, counts.policies);
    }
    Ok(())
}

/// Measures one size and prints the rest of its row.
pub(crate) fn once(size: &str) -> Outcome {
    let counts = *SIZES.get(size.parse::<usize>()?).ok_or("no such size")?;
    portcullis_lab::enter()?;
    // Kept to the end: what it would free could be used again, and not be counted.
    let world = generate::cluster(1, counts);
    let mut cluster = engine::cluster(&world);
    let mut local = Vec::new();
    for (i, pod) in cluster.pods.iter_mut().enumerate() {
        if pod.node.as_deref() == Some(NODE) {
            match local.len() < LOCAL {
                true => local.push(i),
                false => pod.node = Some("node-2".to_owned()),
            }
        }
    }

    let before = memory("VmRSS:")?;
    let metrics = Arc::<Mutex<Metrics>>::default();
    let mut agent = Agent::new(NODE, Nftables::open()?, metrics.clone());
    for kind in Kind::ALL {
        agent.hear(Event::All(kind, objects(&cluster, kind)), Instant::now());
    }
    let held = memory("VmRSS:")? - before;
    agent.step();
    let state = &agent.in_force().ok_or("nothing was enforced")?.state;
    let locals = state.endpoints.len();
    let plan = portcullis_dataplane::plan::plan(state)?;
    let elements: usize = plan.sets.iter().map(|set| set.elements.len()).sum();

    let far: Vec<usize> = (0..cluster.pods.len()).filter(|i| !local.contains(i)).collect();
    let mut columns = Vec::new();
    for pods in [&far, &local] {
        let (mut runs, started) = (Runs::default(), Instant::now());
        for i in pods.iter().cycle().step_by(pods.len() / 37 + 1) {
            if runs.len() == EVENTS || started.elapsed() > LONGEST {
                break;
            }
            let pod = &mut cluster.pods[*i];
            let is_backend = pod.labels.get("tier").is_some_and(|tier| tier == "backend");
            let tier = if is_backend { "data" } else { "backend" };
            pod.labels.insert("tier".to_owned(), tier.to_owned());
            let object = Object { body: Known::Pod(pod.clone()), problems: Vec::new() };
            let before = enforced(&metrics);
            agent.hear(Event::Applied(object), Instant::now());
            agent.step();
            // An event that changes nothing for this node is not what is measured.
            let (applies, seconds) = enforced(&metrics);
            if applies > before.0 {
                runs.push((seconds - before.1) * 1e3);
            }
        }
        columns.push(runs.to_string());
    }
    let peak = memory("VmHWM:")? - before;
    drop(world);
    println!(
        "{} ({locals} addresses) | {elements} | {} | {held:.0} | {peak:.0} |",
        local.len(),
        columns.join(" | ")
    );
    Ok(())
}

/// How many states have been put in force, and the seconds in all that this took from events on.
fn enforced(metrics: &Mutex<Metrics>) -> (u64, f64) {
    let metrics = metrics.lock().unwrap_or_else(PoisonError::into_inner);
    (metrics.applies(), metrics.event_to_enforced_seconds())
}

fn objects(cluster: &Cluster, kind: Kind) -> Vec<Object> {
    let known: Vec<Known> = match kind {
        Kind::Policy => cluster.policies.iter().cloned().map(Known::Policy).collect(),
        Kind::Pod => cluster.pods.iter().cloned().map(Known::Pod).collect(),
        Kind::Node => cluster.nodes.iter().cloned().map(Known::Node).collect(),
        Kind::Namespace => {
            let namespaces = cluster.namespaces.iter();
            namespaces
                .map(|(name, labels)| Known::Namespace(name.clone(), labels.clone()))
                .collect()
        }
    };
    known.into_iter().map(|body| Object { body, problems: Vec::new() }).collect()
}

/// Megabytes of this process, by a line of its status (proc_pid_status(5)).
fn memory(line: &str) -> Outcome<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|l| l.strip_prefix(line)).ok_or("no such line")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1e3)
}
