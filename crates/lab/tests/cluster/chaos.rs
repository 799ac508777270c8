//! Everything changes at random, agents are killed, and all the while pods try to reach each other.
//!
//! What is held against what came through is the sequence of states that the API server had meanwhile.
//! The two ends of a connection can be on two nodes, and these need not be at the same state at the
//! same time: so there must be a state in which the egress of the one end allows it, and one in which the
//! ingress of the other does; on one node, which goes from state to state in one step, both must be the
//! same state. Whose a remote address is, is told by the API server alone, and so it is taken as that
//! state has it; the pods of a node itself are known by the runtime, and so they are told by their uid.
//!
//! Over UDP, pods send single packets. Over TCP, they hold connections and open new ones, to pods and to a
//! Service whose endpoints change with labels (`streams.rs`). What is said on one can be under way for a
//! while, so some state from when it was said to when it was heard has to allow it; and what all states
//! allow has to go on.
//!
//! `PORTCULLIS_SEED` and `PORTCULLIS_STEPS` repeat a run, as far as the timing lets it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use portcullis_apiserver::{Key, Resource, Server};
use portcullis_core::Program;
use portcullis_core::model::{Cluster as Model, Direction};
use portcullis_core::net::{Family, Protocol, Traffic};
use portcullis_core::program::{End, Endpoint, Judgement, Path};
use portcullis_lab::{Cluster, Kind, Topology, connections};
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use crate::streams::{self, Sockets, Stream, spare};
use crate::{Known, cluster, pods};

/// Changes, each of one sort of objects; agents are killed while each is made.
const STEPS: u64 = 50;
/// Agents that are killed in each step.
const KILLS: usize = 2;
/// On these, pods knock all the time.
const PORTS: [u16; 2] = [7001, 7002];
/// Each pod knocks from these source ports, again and again: so it has connections that are open,
/// and one that comes to its address after it has the same ones.
const SOURCES: std::ops::Range<u16> = 20_000..20_006;
pub(crate) const MAGIC: [u8; 4] = *b"kn0c";

/// Random numbers: splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}

/// A state of the API server.
pub(crate) struct State {
    program: Program,
    /// The uids of its pods, by namespace and name.
    uids: BTreeMap<String, String>,
    /// As the program has them: namespace and name.
    names: Vec<String>,
    /// The endpoints of the Service.
    pub(crate) backends: BTreeSet<String>,
}

impl State {
    fn of(cluster: &Cluster) -> State {
        loop {
            let (known, revision) = pods(cluster.server());
            let (input, same) = cluster.state();
            if same == revision {
                return State::new(&input.cluster, &known);
            }
        }
    }

    fn new(model: &Model, known: &[Known]) -> State {
        let [namespace, app] = SERVICE;
        let is_behind = |pod: &&portcullis_core::model::Pod| {
            let selected =
                pod.namespace == namespace && pod.labels.get("app").is_some_and(|a| a == app);
            selected && !pod.addresses.is_empty()
        };
        let behind = model.pods.iter().filter(is_behind);
        State {
            backends: behind.map(|pod| format!("{}/{}", pod.namespace, pod.name)).collect(),
            program: Program::compile(model),
            uids: known.iter().map(|pod| (pod.name.clone(), pod.uid.clone())).collect(),
            names: model.pods.iter().map(|p| format!("{}/{}", p.namespace, p.name)).collect(),
        }
    }

    /// The pod as an end of a connection of this family, if it exists in this state.
    fn end(&self, pod: &Pod, family: Family) -> Option<Endpoint> {
        if self.uids.get(&pod.name)? != &pod.uid {
            return None;
        }
        let index = self.names.iter().position(|name| *name == pod.name)?;
        let ends = self.program.endpoints(End::Pod(index)).into_iter().flatten();
        let mut ends = ends.filter(|end| end.address.is_none_or(|a| Family::of(a) == family));
        ends.next()
    }

    /// Whether the node of one end lets a connection pass; `None` if the pod of that end does not exist.
    pub(crate) fn passes(
        &self,
        knock: &Knock,
        from: &Pod,
        to: &Pod,
        direction: Direction,
    ) -> Option<bool> {
        let family = Family::of(knock.to);
        let (subject, other, address) = match direction {
            Direction::Egress => (self.end(from, family)?, self.end(to, family), knock.to),
            Direction::Ingress => {
                (self.end(to, family)?, self.end(from, family), knock.from_address)
            }
        };
        let by_address = Some(self.program.endpoint(address));
        let by_uid = other.filter(|_| from.node == to.node);
        let traffic = Traffic::Port(knock.protocol, knock.port);
        let passes = [by_address, by_uid].into_iter().flatten().any(|remote| {
            let path = match direction {
                Direction::Egress => Path { source: subject, destination: remote },
                Direction::Ingress => Path { source: remote, destination: subject },
            };
            self.program.judge_end(&path, direction, traffic) != Judgement::Refused
        });
        Some(passes)
    }
}

/// A pod that knocks and is knocked at.
pub(crate) struct Pod {
    pub(crate) uid: String,
    pub(crate) name: String,
    node: String,
    pub(crate) addresses: Vec<IpAddr>,
    /// Of each family: one for each source port.
    sockets: [Vec<UdpSocket>; 2],
    /// What comes to it over UDP, whoever it is for.
    ears: Vec<Socket>,
    pub(crate) streams: Sockets,
    knocked: usize,
    pub(crate) alive: bool,
}

/// One packet, or something that was said on a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Knock {
    pub(crate) at: Instant,
    pub(crate) epoch: usize,
    pub(crate) from: usize,
    pub(crate) from_address: IpAddr,
    pub(crate) to: IpAddr,
    pub(crate) port: u16,
    pub(crate) protocol: Protocol,
    /// Whether `to` is the address of the Service.
    pub(crate) through_service: bool,
    /// The connection that it is said on.
    pub(crate) stream: Option<usize>,
}

/// What knocks and what hears, on threads of its own.
#[derive(Default)]
pub(crate) struct World {
    // Who takes several takes them in this order.
    pub(crate) pods: Mutex<Vec<Pod>>,
    pub(crate) knocks: Mutex<Vec<Knock>>,
    pub(crate) streams: Mutex<Vec<Stream>>,
    /// The addresses of the Service, one of each family.
    pub(crate) service: Mutex<Vec<IpAddr>>,
    /// How many connections were opened.
    pub(crate) opened: AtomicUsize,
    /// A knock, who heard it, and when.
    pub(crate) heard: Mutex<Vec<(usize, usize, usize)>>,
    pub(crate) epoch: AtomicUsize,
    pub(crate) over: AtomicBool,
}

impl World {
    /// Has new pods take part, and lets those go that are no more.
    fn follow(&self, cluster: &Cluster) {
        let (known, _) = pods(cluster.server());
        let mut all = self.pods.lock().unwrap();
        for pod in &known {
            match all.iter_mut().find(|p| p.uid == pod.uid) {
                Some(there) => {
                    there.addresses.clone_from(&pod.addresses);
                    if there.streams.few_are_left()
                        && let Some(spare) = cluster.in_pod(&pod.uid, spare)
                    {
                        there.streams.add(spare.unwrap().expect("sockets in a pod"));
                    }
                }
                None => {
                    let open = || io::Result::Ok((sockets()?, ears()?, Sockets::new()?));
                    let Some(opened) = cluster.in_pod(&pod.uid, open) else { continue };
                    let (sockets, ears, streams) = opened.unwrap().expect("sockets in a pod");
                    all.push(Pod {
                        uid: pod.uid.clone(),
                        name: pod.name.clone(),
                        node: pod.node.clone(),
                        addresses: pod.addresses.clone(),
                        sockets,
                        ears,
                        streams,
                        knocked: 0,
                        alive: true,
                    });
                }
            }
        }
        for pod in all.iter_mut().filter(|pod| pod.alive) {
            if !known.iter().any(|known| known.uid == pod.uid) {
                pod.alive = false;
                pod.sockets = [Vec::new(), Vec::new()];
                pod.ears.clear();
                pod.streams = Sockets::default();
            }
        }
    }

    /// Each pod in turn knocks at each other, from each of its source ports in turn.
    fn knock(&self) {
        let mut turn = 0;
        while !self.over.load(Relaxed) {
            thread::sleep(Duration::from_micros(150));
            let mut all = self.pods.lock().unwrap();
            let alive: Vec<usize> = (0..all.len()).filter(|i| all[*i].alive).collect();
            if alive.len() < 2 {
                continue;
            }
            turn += 1;
            let from = alive[turn % alive.len()];
            let count = all[from].knocked;
            all[from].knocked += 1;
            let family = count % 2;
            let port = PORTS[count / 2 % 2];
            let mut places: Vec<IpAddr> = alive
                .iter()
                .filter(|i| **i != from)
                .filter_map(|i| all[*i].addresses.get(family).copied())
                .collect();
            places.sort_unstable();
            let (Some(from_address), false) =
                (all[from].addresses.get(family).copied(), places.is_empty())
            else {
                continue;
            };
            let to = places[count / 4 % places.len()];
            let sockets = &all[from].sockets[family];
            let socket = &sockets[count / 4 / places.len() % sockets.len()];
            let mut knocks = self.knocks.lock().unwrap();
            let epoch = self.epoch.load(Relaxed);
            let mut text = MAGIC.to_vec();
            text.extend((knocks.len() as u32).to_be_bytes());
            knocks.push(Knock {
                at: Instant::now(),
                epoch,
                from,
                from_address,
                to,
                port,
                protocol: Protocol::Udp,
                through_service: false,
                stream: None,
            });
            // What the kernel does not send does not arrive either.
            let _ = socket.send_to(&text, (to, port));
        }
    }

    fn hear(&self) {
        let mut buffer = [0; 256];
        while !self.over.load(Relaxed) {
            let mut heard = Vec::new();
            let all = self.pods.lock().unwrap();
            for (by, pod) in all.iter().enumerate() {
                for ear in &pod.ears {
                    while let Ok(length) = (&mut &*ear).read(&mut buffer) {
                        let bytes = &buffer[..length];
                        let at = bytes.windows(4).position(|four| four == MAGIC);
                        let number = at.and_then(|at| bytes.get(at + 4..at + 8));
                        let Some(number) = number else { continue };
                        heard.push((u32::from_be_bytes(number.try_into().unwrap()) as usize, by));
                    }
                }
            }
            drop(all);
            let epoch = self.epoch.load(Relaxed);
            let heard = heard.into_iter().map(|(number, by)| (number, by, epoch));
            self.heard.lock().unwrap().extend(heard);
            thread::sleep(Duration::from_micros(500));
        }
    }
}

fn sockets() -> io::Result<[Vec<UdpSocket>; 2]> {
    let bind = |address: IpAddr| -> io::Result<Vec<UdpSocket>> {
        let socket = |port| {
            let socket = Socket::new(Domain::for_address((address, 0).into()), Type::DGRAM, None)?;
            if address.is_ipv6() {
                socket.set_only_v6(true)?;
            }
            socket.bind(&SocketAddr::new(address, port).into())?;
            socket.set_nonblocking(true)?;
            Ok(socket.into())
        };
        SOURCES.map(socket).collect()
    };
    Ok([bind(Ipv4Addr::UNSPECIFIED.into())?, bind(Ipv6Addr::UNSPECIFIED.into())?])
}

fn ears() -> io::Result<Vec<Socket>> {
    let ear = |domain| {
        let socket = Socket::new(domain, Type::RAW, Some(socket2::Protocol::UDP))?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    [Domain::IPV4, Domain::IPV6].into_iter().map(ear).collect()
}

/// What happened, for whoever has to find out why.
struct Log {
    start: Instant,
    lines: Mutex<Vec<String>>,
}

impl Log {
    fn say(&self, text: String) {
        let line = format!("{:>8.3} s  {text}", self.start.elapsed().as_secs_f64());
        self.lines.lock().unwrap().push(line);
    }
}

pub(crate) fn test(topology: Topology) {
    let variable = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let seed = variable("PORTCULLIS_SEED").unwrap_or(now.as_micros() as u64);
    let steps = variable("PORTCULLIS_STEPS").unwrap_or(STEPS);
    eprintln!("{topology:?}: PORTCULLIS_SEED={seed} PORTCULLIS_STEPS={steps}");
    let log = Log { start: Instant::now(), lines: Mutex::default() };
    let world = Arc::new(World::default());
    let works = [World::knock, World::hear, World::speak, World::listen];
    let threads = works.map(|work| {
        let world = world.clone();
        thread::spawn(move || work(&world))
    });
    let outcome = run(topology, seed, steps, &world, &log);
    world.over.store(true, Relaxed);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    if let Err(why) = outcome {
        for line in log.lines.lock().unwrap().iter() {
            eprintln!("{line}");
        }
        panic!("{topology:?}, PORTCULLIS_SEED={seed} PORTCULLIS_STEPS={steps}: {why}");
    }
}

fn run(topology: Topology, seed: u64, steps: u64, world: &World, log: &Log) -> Result<(), String> {
    let mut cluster = cluster(topology);
    let mut random = Random(seed);
    let mut model = Objects::default();
    model.found(&mut random, cluster.server());
    *world.service.lock().unwrap() = service(cluster.server());
    let mut restarts = Vec::new();
    let mut states: Vec<Vec<State>> = vec![Vec::new()];
    let mut tried = 0;
    let mut got_through = [0; 3];
    let mut seen = 0;
    let mut passed = 0;
    for step in 0..steps {
        // Even epochs are those in which something changes.
        let mut meanwhile = vec![State::of(&cluster)];
        let stop = AtomicBool::new(false);
        let settled = thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Relaxed) {
                    world.follow(&cluster);
                    thread::sleep(Duration::from_millis(1));
                }
            });
            let seed = random.next();
            let cluster = &cluster;
            let killer = scope.spawn(move || kill(cluster, Random(seed), log));
            let say = |text: String| log.say(format!("step {step}: {text}"));
            model.change(&mut random, cluster, &say, || meanwhile.push(State::of(cluster)));
            let times = killer.join().unwrap();
            let settled = cluster.settle().map_err(|error| error.to_string());
            meanwhile.push(State::of(cluster));
            stop.store(true, Relaxed);
            settled.and_then(|input| Ok((input, times?)))
        });
        let (input, times) = settled.map_err(|why| format!("step {step}: {why}"))?;
        restarts.extend(times);
        world.follow(&cluster);
        log.say(format!("step {step}: settled"));
        states[step as usize * 2] = meanwhile;
        states.push(vec![State::of(&cluster)]);
        world.epoch.store(states.len() - 1, Relaxed);

        let network = cluster.lab(&input.cluster).map_err(|error| error.to_string())?;
        let (network, differences) = differences(network, &mut tried)?;
        cluster.put_back(network).map_err(|error| error.to_string())?;
        if let Some(first) = differences.first() {
            return Err(format!("step {step}: {} differences: {first}", differences.len()));
        }
        let through = world.settled(&states).map_err(|why| format!("step {step}: {why}"))?;
        got_through.iter_mut().zip(through).for_each(|(all, more)| *all += more);
        states.push(Vec::new());
        // Of what comes now the state before is the one that there is.
        states.last_mut().unwrap().push(State::of(&cluster));
        world.epoch.store(states.len() - 1, Relaxed);
        thread::sleep(Duration::from_millis(5));
        let (pods, knocks) = (world.pods.lock().unwrap(), world.knocks.lock().unwrap());
        let heard = world.heard.lock().unwrap();
        let mut leaks = Vec::new();
        for (number, by, epoch) in &heard[seen..] {
            let knock = &knocks[*number];
            passed += 1;
            // A packet is soon there, or never.
            let until = if knock.protocol == Protocol::Udp { knock.epoch } else { *epoch };
            let meanwhile: Vec<&State> = states[knock.epoch..=until].iter().flatten().collect();
            let leak = leak(knock, &pods[knock.from], &pods[*by], &meanwhile).err();
            let at = knock.at.saturating_duration_since(log.start).as_secs_f64();
            leaks.extend(leak.map(|why| format!("{at:.3} s: {why}")));
        }
        if let (Some(first), Some(last)) = (leaks.first(), leaks.last()) {
            return Err(format!("step {step}: {} packets: {first}\nthe last: {last}", leaks.len()));
        }
        seen = heard.len();
    }
    restarts.sort_unstable();
    let at = |percent: usize| restarts[(restarts.len() - 1) * percent / 100];
    let knocks = world.knocks.lock().unwrap().len();
    let [held, new, through_service] = got_through;
    eprintln!(
        "{topology:?}: {steps} steps, {tried} connections tried and as predicted, {knocks} packets \
         and words meanwhile of which {passed} passed; of {} TCP connections that were opened, those \
         that had to get through after a step did: {held} times one that was held, {new} times one that \
         was new, {through_service} times a pod to the Service; {} agents killed, from start to in \
         force p50 {:.0?}, p99 {:.0?}, at most {:.0?}",
        world.opened.load(Relaxed),
        restarts.len(),
        at(50),
        at(99),
        at(100),
    );
    // Otherwise it would show nothing.
    if knocks < 1000 || passed < knocks / 50 || passed > knocks * 49 / 50 {
        return Err(format!("{passed} of {knocks} packets show nothing"));
    }
    if steps >= STEPS && got_through.contains(&0) {
        return Err(format!("{got_through:?} connections show nothing"));
    }
    Ok(())
}

/// Whether some state allows what came through.
fn leak(knock: &Knock, from: &Pod, to: &Pod, states: &[&State]) -> Result<(), String> {
    let mut knock = *knock;
    if knock.through_service {
        if from.uid == to.uid {
            // It always reaches itself.
            return Ok(());
        }
        // Rules see the endpoint that was chosen.
        let own = to.addresses.iter().find(|a| a.is_ipv6() == knock.to.is_ipv6());
        knock.to = *own.ok_or("a Service of another family")?;
    }
    let of = |state: &State, direction| state.passes(&knock, from, to, direction);
    let allows = |state: &State, direction| of(state, direction) == Some(true);
    let allowed = if from.node == to.node {
        let both =
            |state: &State| allows(state, Direction::Egress) && allows(state, Direction::Ingress);
        states.iter().any(|state| both(state))
    } else {
        Direction::ALL.iter().all(|d| states.iter().any(|state| allows(state, *d)))
    };
    if allowed {
        return Ok(());
    }
    let verdicts: Vec<_> = states
        .iter()
        .map(|state| [Direction::Egress, Direction::Ingress].map(|direction| of(state, direction)))
        .collect();
    Err(format!(
        "{} on {} ({}) reached {} on {} ({}) at {}/{} in epoch {}, which no state allows; egress \
         and ingress in each: {verdicts:?}",
        from.name,
        from.node,
        knock.from_address,
        to.name,
        to.node,
        knock.to,
        knock.port,
        knock.protocol,
        knock.epoch
    ))
}

/// Kills agents at random moments, and says how long each took from its start until what it had heard
/// was in force.
fn kill(cluster: &Cluster, mut random: Random, log: &Log) -> Result<Vec<Duration>, String> {
    let mut times = Vec::new();
    for _ in 0..KILLS {
        thread::sleep(Duration::from_millis(random.next() % 120));
        let node = format!("node-{}", random.below(3) + 1);
        log.say(format!("the agent of {node} is killed"));
        let started = cluster.kill_agent(&node).ok_or("no agent was started")?;
        while let Err(why) = cluster.agent_is_ready(&node) {
            if started.elapsed() > Duration::from_secs(30) {
                return Err(format!("the agent of {node} is not ready: {why}"));
            }
            thread::sleep(Duration::from_millis(1));
        }
        times.push(started.elapsed());
    }
    Ok(times)
}

type Lab = portcullis_lab::Lab;

/// Tries connections between all pods, and tells those that come out other than predicted.
fn differences(mut network: Lab, tried: &mut usize) -> Result<(Lab, Vec<String>), String> {
    let plan = network.plan().clone();
    let program = Program::compile(&plan.cluster);
    let ports = PORTS.map(|port| Traffic::Port(Protocol::Udp, port));
    let more = [Traffic::Port(Protocol::Tcp, 80), Traffic::Other];
    let traffics: BTreeSet<Traffic> = ports.into_iter().chain(more).collect();
    let mut all = connections(&plan, &traffics);
    let is_pod = |endpoint: usize| plan.endpoints[endpoint].kind == Kind::Pod;
    all.retain(|(probe, destination)| is_pod(probe.source) && is_pod(*destination));
    *tried += all.len();
    let observed = network.observe(&program, all, &mut |_, _, _| ());
    let observed = observed.map_err(|error| error.to_string())?;
    let differences = observed.iter().filter(|observation| !observation.as_predicted(&plan));
    let tell = differences.map(|o| {
        format!(
            "{} ({}) to {} ({}) on {:?}: predicted {}, {:?}, and {:?} where nothing is refused",
            plan.endpoints[o.probe.source].name,
            o.probe.from,
            plan.endpoints[o.destination].name,
            o.probe.to,
            o.probe.traffic,
            o.predicted,
            o.under,
            o.before
        )
    });
    let tell = tell.collect();
    Ok((network, tell))
}

const NAMESPACES: [&str; 2] = ["red", "blue"];
const APPS: [&str; 3] = ["web", "api", "db"];
const TEAMS: [&str; 2] = ["a", "b"];
const POLICIES: [&str; 4] = ["one", "two", "three", "four"];
/// The namespace of the Service, and the application behind it.
const SERVICE: [&str; 2] = ["red", "web"];

/// What there is, by namespace and name: of pods the object as it was made.
#[derive(Default)]
struct Objects {
    pods: BTreeMap<(String, String), Value>,
    policies: BTreeSet<(String, String)>,
    count: usize,
}

fn namespace(name: &str, team: &str) -> Value {
    let metadata = json!({"name": name, "labels": {"team": team}});
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
}

/// Makes the Service, and returns its addresses, IPv4 first.
fn service(server: &Server) -> Vec<IpAddr> {
    let [namespace, app] = SERVICE;
    let object = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": app, "namespace": namespace},
        "spec": {
            "selector": {"app": app},
            "ipFamilyPolicy": "RequireDualStack",
            "ports": [{"port": streams::PORT}],
        },
    });
    server.apply(&object).unwrap();
    let key = Key::new(Resource::of_kind("Service").unwrap(), namespace, app);
    let made = server.store().read(|state| state.get(&key).cloned()).unwrap();
    let addresses = made["spec"]["clusterIPs"].as_array().unwrap().iter();
    let mut addresses: Vec<IpAddr> =
        addresses.map(|address| address.as_str().unwrap().parse().unwrap()).collect();
    addresses.sort_unstable();
    addresses
}

fn pod(namespace: &str, name: &str, app: &str, node: usize, named: u16) -> Value {
    let ports = json!([
        {"containerPort": named, "protocol": "UDP", "name": "knock"},
        {"containerPort": 80, "name": "http"},
    ]);
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": app}},
        "spec": {
            "nodeName": format!("node-{node}"),
            "containers": [{"name": "c", "image": "none", "ports": ports}],
        },
    })
}

fn policy(random: &mut Random, namespace: &str, name: &str) -> Value {
    let app = |random: &mut Random| json!({"matchLabels": {"app": random.one(&APPS)}});
    let team = |random: &mut Random| json!({"matchLabels": {"team": random.one(&TEAMS)}});
    let peer = |random: &mut Random| match random.below(6) {
        0 => json!({"podSelector": app(random)}),
        1 => json!({"namespaceSelector": team(random)}),
        2 => json!({"namespaceSelector": team(random), "podSelector": app(random)}),
        3 => json!({"podSelector": {}}),
        4 => {
            let cidrs = ["10.244.0.0/16", "10.244.1.0/24", "10.244.2.0/29", "fd00:10:244::/48"];
            json!({"ipBlock": {"cidr": random.one(&cidrs)}})
        }
        _ => {
            let block = json!({"cidr": "0.0.0.0/0", "except": ["10.244.3.0/24"]});
            json!({"ipBlock": block})
        }
    };
    let port = |random: &mut Random| match random.below(7) {
        0 => json!({"port": 7001, "protocol": "UDP"}),
        1 => json!({"port": 7002, "protocol": "UDP"}),
        2 => json!({"port": 7001, "endPort": 7002, "protocol": "UDP"}),
        3 => json!({"port": "knock", "protocol": "UDP"}),
        4 => json!({"port": streams::PORT}),
        5 => json!({"port": streams::PORT - 1, "endPort": streams::PORT + 1}),
        _ => json!({"port": 80}),
    };
    let rules = |random: &mut Random, peers: &str| -> Value {
        let rule = |random: &mut Random| {
            let mut rule = json!({});
            if random.below(5) > 0 {
                rule[peers] = (0..=random.below(2)).map(|_| peer(random)).collect();
            }
            if random.below(3) > 0 {
                rule["ports"] = (0..=random.below(2)).map(|_| port(random)).collect();
            }
            rule
        };
        (0..random.below(3)).map(|_| rule(random)).collect()
    };
    let subject = if random.below(2) == 0 { json!({}) } else { app(random) };
    let mut spec = json!({"podSelector": subject});
    let types: &[&str] =
        random.one::<&[&str]>(&[&["Ingress"][..], &["Egress"], &["Ingress", "Egress"]]);
    spec["policyTypes"] = json!(types);
    if types.contains(&"Ingress") {
        spec["ingress"] = rules(random, "from");
    }
    if types.contains(&"Egress") {
        spec["egress"] = rules(random, "to");
    }
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    })
}

impl Objects {
    /// Two namespaces, and nine pods on three nodes.
    fn found(&mut self, random: &mut Random, server: &Server) {
        for name in NAMESPACES {
            server.apply(&namespace(name, random.one::<&str>(&TEAMS))).unwrap();
        }
        for i in 0..9 {
            let (of, name) = (NAMESPACES[i % 2], format!("p{i}"));
            let object = pod(of, &name, random.one::<&str>(&APPS), i % 3 + 1, *random.one(&PORTS));
            server.apply(&object).unwrap();
            self.pods.insert((of.to_owned(), name), object);
        }
    }

    /// Makes a change, and says so. `passed` is called after each state that the API server goes
    /// through.
    fn change(
        &mut self,
        random: &mut Random,
        cluster: &Cluster,
        say: &dyn Fn(String),
        mut passed: impl FnMut(),
    ) {
        let server = cluster.server();
        match random.below(10) {
            0..=3 => {
                // The kinds are watched one by one, so what comes together is of one kind.
                for _ in 0..=random.below(3) {
                    self.change_policy(random, server, say);
                    passed();
                }
            }
            4 | 5 => {
                let key = self.any(random);
                let object = self.pods.get_mut(&key).unwrap();
                object["metadata"]["labels"]["app"] = json!(random.one(&APPS));
                say(format!("{key:?} is labelled {}", object["metadata"]["labels"]));
                server.apply(object).unwrap();
            }
            6 => {
                let (of, team) = (random.one(&NAMESPACES), random.one(&TEAMS));
                say(format!("{of} is of team {team}"));
                server.apply(&namespace(of, team)).unwrap();
            }
            7 | 8 => {
                let key = self.any(random);
                let object = self.pods.get_mut(&key).unwrap();
                object["spec"]["nodeName"] = json!(format!("node-{}", random.below(3) + 1));
                say(format!("{key:?} goes to {}", object["spec"]["nodeName"]));
                remove(cluster, &key);
                passed();
                server.apply(object).unwrap();
            }
            _ => self.take_over(random, cluster, say, &mut passed),
        }
        passed();
    }

    fn any(&self, random: &mut Random) -> (String, String) {
        self.pods.keys().nth(random.below(self.pods.len())).unwrap().clone()
    }

    fn change_policy(&mut self, random: &mut Random, server: &Server, say: &dyn Fn(String)) {
        let key = (random.one(&NAMESPACES).to_string(), random.one(&POLICIES).to_string());
        if random.below(3) == 0 && self.policies.remove(&key) {
            say(format!("no policy {key:?}"));
            server.delete("networking.k8s.io/v1", "NetworkPolicy", &key.0, &key.1).unwrap();
        } else {
            let object = policy(random, &key.0, &key.1);
            say(format!("policy {key:?}: {}", object["spec"]));
            server.apply(&object).unwrap();
            self.policies.insert(key);
        }
    }

    /// A pod goes, and another one gets its addresses at once.
    fn take_over(
        &mut self,
        random: &mut Random,
        cluster: &Cluster,
        say: &dyn Fn(String),
        passed: &mut impl FnMut(),
    ) {
        let key = self.any(random);
        let mut object = self.pods.remove(&key).unwrap();
        let kind = Resource::of_kind("Pod").unwrap();
        let store = cluster.server().store();
        let old = store.read(|state| state.get(&Key::new(kind, &key.0, &key.1)).cloned()).unwrap();
        remove(cluster, &key);
        passed();
        self.count += 1;
        let new = (random.one(&NAMESPACES).to_string(), format!("n{}", self.count));
        let metadata = json!({
            "name": new.1, "namespace": new.0, "uid": format!("taken-over-{}", self.count),
            "creationTimestamp": old["metadata"]["creationTimestamp"],
            "labels": {"app": random.one(&APPS)},
        });
        say(format!("{new:?} {} takes over from {key:?}", metadata["labels"]));
        object["metadata"]["name"] = metadata["name"].clone();
        object["metadata"]["namespace"] = metadata["namespace"].clone();
        object["metadata"]["labels"] = metadata["labels"].clone();
        // As a server has it that was started anew: a pod that has addresses and is not up keeps them
        // if it can.
        let mut taker = Value::clone(&old);
        taker["metadata"] = metadata;
        let status = &old["status"];
        taker["status"] = json!({
            "phase": "Pending", "podIP": status["podIP"], "podIPs": status["podIPs"],
        });
        store.write(|state| state.put(Key::new(kind, &new.0, &new.1), taker));
        self.pods.insert(new, object);
    }
}

/// Deletes a pod, and waits until it is gone.
fn remove(cluster: &Cluster, key: &(String, String)) {
    let server = cluster.server();
    server.delete("v1", "Pod", &key.0, &key.1).unwrap();
    let name = format!("{}/{}", key.0, key.1);
    let start = Instant::now();
    while pods(server).0.iter().any(|pod| pod.name == name) {
        assert!(start.elapsed() < Duration::from_secs(30), "{name} does not go");
        thread::sleep(Duration::from_millis(1));
    }
}
