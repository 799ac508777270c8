//! An agent that knows a large cluster: from an event to the kernel's word, what is sent for it, and
//! memory.

use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use std::{env, fs};

use portcullis_agent::{Agent, Metrics, Unprogrammed};
use portcullis_core::model::{Cluster, Policy};
use portcullis_dataplane::Nftables;
use portcullis_kube::live::{Event, Kind, Known, Object};
use portcullis_tests::engine;
use portcullis_tests::generate::{self, Counts};

use crate::Outcome;
use crate::figures::{Digits, Runs};

/// The name of the bench's inner half, a process of its own: it moves into namespaces, and its
/// memory is measured.
pub(crate) const ONCE: &str = "agent-once";

/// The largest, which the goals are for, and two smaller ones.
pub(crate) const SIZES: [Counts; 3] = [
    Counts { namespaces: 50, nodes: 10, pods: 1_000, policies: 500 },
    Counts { namespaces: 100, nodes: 50, pods: 10_000, policies: 2_000 },
    Counts { namespaces: 500, nodes: 200, pods: 100_000, policies: 10_000 },
];
/// The most pods that the node has; the others are moved to its neighbour.
pub(crate) const LOCAL: usize = 250;
const EVENTS: usize = 200;
/// The longest that events of one sort are tried.
const LONGEST: Duration = Duration::from_secs(30);
pub(crate) const NODE: &str = "node-1";

pub(crate) fn run() -> Outcome {
    for (i, counts) in SIZES.iter().enumerate() {
        let output = Command::new(env::current_exe()?).arg(ONCE).arg(i.to_string()).output()?;
        let (text, errors) =
            (String::from_utf8(output.stdout)?, String::from_utf8_lossy(&output.stderr));
        if !output.status.success() {
            return Err(format!("{}: {errors}", output.status).into());
        }
        println!("{} pods, {} policies known: {text}", counts.pods, counts.policies);
    }
    Ok(())
}

/// What is kept of an agent between events.
struct Bench {
    agent: Agent<Nftables>,
    metrics: Arc<Mutex<Metrics>>,
    all: Times,
}

/// What events of some sort took.
#[derive(Default)]
struct Times {
    milliseconds: Runs,
    elements: Runs,
    bytes: Runs,
    /// How many were of no concern.
    idle: usize,
}

impl Times {
    fn add(&mut self, measured: Option<(f64, f64, f64)>) {
        match measured {
            Some((milliseconds, elements, bytes)) => {
                self.milliseconds.push(milliseconds);
                self.elements.push(elements);
                self.bytes.push(bytes);
            }
            None => self.idle += 1,
        }
    }

    fn print(&self, what: &str) {
        let Times { milliseconds: times, elements, bytes, idle } = self;
        let row = [times.median(), times.p99(), times.greatest()].map(Digits);
        println!(
            "| {what} | {} | {} | {} | {} | {elements} | {bytes} | {idle} |",
            times.len(),
            row[0],
            row[1],
            row[2],
        );
    }
}

impl Bench {
    fn hear(&mut self, object: Known) {
        let object = Object::from(object);
        self.agent.hear(Event::Applied(object), Instant::now());
    }

    /// Has an event enforced. `None` if it changes nothing for this node.
    fn enforce(&mut self, event: Event) -> Option<(f64, f64, f64)> {
        let before = self.enforced();
        self.agent.hear(event, Instant::now());
        self.agent.step();
        let after = self.enforced();
        // The next event comes when everything is done, as it mostly does.
        for _ in 0..4 {
            thread::sleep(Duration::from_millis(5));
            self.agent.step();
        }
        (after.0 > before.0).then(|| {
            let sent = ((after.2.0 - before.2.0) as f64, (after.2.1 - before.2.1) as f64);
            ((after.1 - before.1) * 1e3, sent.0, sent.1)
        })
    }

    /// How many states have been put in force, the seconds in all that this took from events on, and
    /// the elements and bytes that were sent.
    fn enforced(&self) -> (u64, f64, (u64, u64)) {
        let metrics = self.metrics.lock().unwrap_or_else(PoisonError::into_inner);
        (metrics.applies(), metrics.event_to_enforced_seconds(), metrics.sent())
    }

    /// Measures events of one sort, and prints a row.
    fn measure(&mut self, what: &str, events: impl Iterator<Item = Event>) {
        let (mut times, started) = (Times::default(), Instant::now());
        for event in events {
            if times.milliseconds.len() == EVENTS || started.elapsed() > LONGEST {
                break;
            }
            let measured = self.enforce(event);
            times.add(measured);
            self.all.add(measured);
        }
        times.print(what);
    }
}

fn applied(body: Known) -> Event {
    Event::Applied(Object::from(body))
}

/// The pods that stay on the node; those beyond [`LOCAL`] are moved to another.
pub(crate) fn local_pods(cluster: &mut Cluster) -> Vec<usize> {
    let mut local = Vec::new();
    for (i, pod) in cluster.pods.iter_mut().enumerate() {
        if pod.node.as_deref() == Some(NODE) {
            match local.len() < LOCAL {
                true => local.push(i),
                false => pod.node = Some("node-2".to_owned()),
            }
        }
    }
    local
}

/// Measures one size and prints its table.
pub(crate) fn once(size: &str) -> Outcome {
    let counts = *SIZES.get(size.parse::<usize>()?).ok_or("no such size")?;
    portcullis_lab::enter()?;
    // Kept to the end: what it would free could be used again, and not be counted.
    let world = generate::cluster(1, counts);
    let mut cluster = engine::cluster(&world);
    let local = local_pods(&mut cluster);

    let before = memory("VmRSS:")?;
    let metrics = Arc::<Mutex<Metrics>>::default();
    // The first 250 addresses of each family on the node.
    let ranges = ["10.1.0.0/24".parse()?, "fd00:0:0:1::/120".parse()?];
    let agent = Agent::new(NODE, Nftables::open()?, metrics.clone())
        .with_unprogrammed(Unprogrammed::Closed(ranges.into()));
    let mut bench = Bench { agent, metrics, all: Times::default() };
    let start = Instant::now();
    for kind in Kind::ALL {
        bench.agent.hear(Event::Listing(kind), Instant::now());
        all(&cluster, kind, |object| bench.hear(object));
        bench.agent.hear(Event::Listed(kind), Instant::now());
    }
    let (known, held) = (start.elapsed(), memory("VmRSS:")? - before);
    bench.agent.step();
    let first = start.elapsed();
    bench.agent.stop();
    let with_state = memory("VmRSS:")? - before;
    let state = bench.agent.in_force().ok_or("nothing was enforced")?;
    let locals = state.endpoints.len();
    let plan = portcullis_dataplane::plan::plan(state)?;
    let elements: usize = plan.sets.values().map(|set| set.len()).sum();
    println!(
        "{} local pods with {locals} addresses, {elements} elements; all known after {:.2} s, in \
         force after {:.2} s\n",
        local.len(),
        known.as_secs_f64(),
        first.as_secs_f64()
    );
    println!(
        "| event | events | median, ms | p99, ms | greatest, ms | elements sent | bytes sent | \
         of no concern |"
    );
    println!("|---|---|---|---|---|---|---|---|");

    let far: Vec<usize> = (0..cluster.pods.len()).filter(|i| !local.contains(i)).collect();
    for (what, pods) in [("a pod elsewhere changes its labels", &far), ("a local pod does", &local)]
    {
        // Those of namespaces that have local pods concern the node, and few others do.
        let spaces: Vec<&str> = local.iter().map(|i| &*cluster.pods[*i].namespace).collect();
        let concern = |i: &&usize| spaces.contains(&&*cluster.pods[**i].namespace);
        let some: Vec<usize> = pods.iter().filter(concern).copied().collect();
        let mut events = Vec::new();
        for i in some.iter().cycle().step_by(some.len() / 37 + 1).take(4 * EVENTS) {
            let pod = &mut cluster.pods[*i];
            let is_backend = pod.labels.get("tier").is_some_and(|tier| tier == "backend");
            let tier = if is_backend { "data" } else { "backend" };
            pod.labels.insert("tier".to_owned(), tier.to_owned());
            events.push(applied(Known::Pod(pod.clone())));
        }
        bench.measure(what, events.into_iter());
    }
    for (what, pods) in [("a pod elsewhere goes and comes", &far), ("a local pod does", &local)] {
        let some = pods.iter().step_by(pods.len() / 97 + 1).cycle().take(2 * EVENTS);
        let events = some.flat_map(|i| {
            let pod = &cluster.pods[*i];
            let gone = Event::Deleted(Kind::Pod, pod.namespace.clone(), pod.name.clone());
            [gone, applied(Known::Pod(pod.clone()))]
        });
        let events: Vec<Event> = events.collect();
        bench.measure(what, events.into_iter());
    }

    let selects_local = |policy: &Policy| {
        let mut pods = local.iter().map(|i| &cluster.pods[*i]);
        pods.any(|pod| pod.namespace == policy.namespace && policy.subject.matches(&pod.labels))
    };
    let (here, elsewhere): (Vec<&Policy>, Vec<&Policy>) =
        cluster.policies.iter().partition(|policy| selects_local(policy));
    let deleted = |policy: &Policy| {
        Event::Deleted(Kind::Policy, policy.namespace.clone(), policy.name.clone())
    };
    let whole = |policy: &&Policy| applied(Known::Policy((*policy).clone()));
    // The same without its last rule.
    let changed = |policy: &&Policy| {
        let mut policy = (*policy).clone();
        for rules in [&mut policy.ingress, &mut policy.egress].into_iter().flatten() {
            rules.pop();
        }
        applied(Known::Policy(policy))
    };
    for (whose, policies) in [("of local pods", here), ("of pods elsewhere", elsewhere)] {
        let some: Vec<&Policy> =
            policies.iter().step_by(policies.len() / EVENTS + 1).copied().collect();
        // Each step leaves the cluster as the next one takes it.
        let rows: [(&str, Vec<Event>); 4] = [
            ("changed", some.iter().map(changed).collect()),
            ("changed back", some.iter().map(whole).collect()),
            ("deleted", some.iter().map(|policy| deleted(policy)).collect()),
            ("added", some.iter().map(whole).collect()),
        ];
        for (what, events) in rows {
            bench.measure(&format!("a policy {whose} is {what}"), events.into_iter());
        }
    }
    let mut events = Vec::new();
    for round in 0..4 {
        for (name, labels) in cluster.namespaces.iter().step_by(counts.namespaces / 50 + 1) {
            let mut labels = labels.clone();
            if round % 2 == 0 {
                let is_prod = labels.get("env").is_some_and(|env| env == "prod");
                let env = if is_prod { "dev" } else { "prod" };
                labels.insert("env".to_owned(), env.to_owned());
            }
            events.push(applied(Known::Namespace(name.clone(), labels, None)));
        }
    }
    bench.measure("a namespace changes its labels", events.into_iter());
    bench.all.print("all of these");

    let peak = memory("VmHWM:")? - before;
    drop(world);
    println!(
        "\nMemory: {held:.0} MB when all is known ({:.0} bytes for a pod), {with_state:.0} MB with \
         what is in force, {peak:.0} MB at most.\n",
        held * 1e6 / counts.pods as f64,
    );
    Ok(())
}

pub(crate) fn all(cluster: &Cluster, kind: Kind, hear: impl FnMut(Known)) {
    match kind {
        Kind::Policy => cluster.policies.iter().cloned().map(Known::Policy).for_each(hear),
        Kind::Pod => cluster.pods.iter().cloned().map(Known::Pod).for_each(hear),
        Kind::Node => cluster.nodes.iter().cloned().map(Known::Node).for_each(hear),
        Kind::Namespace => {
            let namespaces = cluster.namespaces.iter();
            namespaces
                .map(|(name, labels)| Known::Namespace(name.clone(), labels.clone(), None))
                .for_each(hear);
        }
    }
}

/// Megabytes of this process, by a line of its status (proc_pid_status(5)).
fn memory(line: &str) -> Outcome<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|l| l.strip_prefix(line)).ok_or("no such line")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1e3)
}
