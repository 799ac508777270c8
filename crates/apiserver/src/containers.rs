//! What runs in the pods: the commands of their containers, from start to end and again.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use crate::control::events::{self, Happened};
use crate::log::Log;
use crate::meta;
use crate::objects;
use crate::runtime::{Control, Input, Output, Process, Runtime};
use crate::store::{Key, State, Store};

/// A command that ended is started again at once, then after so long, then after twice as long.
const BACK_OFF: Duration = Duration::from_secs(10);
/// But never later than this.
const LONGEST: Duration = Duration::from_secs(300);
/// Output that something else still holds open when its command has ended is waited for so long.
pub(crate) const DRAIN: Duration = Duration::from_millis(500);

/// The containers of all pods that were brought up and are still known.
#[derive(Debug)]
pub(crate) struct Containers {
    pub(crate) runtime: Arc<dyn Runtime>,
    store: Arc<Store>,
    /// By uid.
    pods: Mutex<HashMap<String, Arc<Pod>>>,
}

#[derive(Debug)]
struct Pod {
    key: Key,
    object: Arc<Value>,
    init: Vec<Arc<Container>>,
    main: Vec<Arc<Container>>,
    /// Whether nothing is to be started any more. Held while something is started.
    over: Mutex<bool>,
    told: Condvar,
}

/// A container and what has become of its command.
#[derive(Debug)]
pub(crate) struct Container {
    name: String,
    run: Mutex<Run>,
    /// What its command reads; apart, because writing may block.
    stdin: Mutex<Option<Input>>,
}

#[derive(Debug)]
struct Run {
    /// `state` and `lastState` as they stand in the status.
    state: Value,
    last: Value,
    restarts: u32,
    log: Arc<Log>,
    previous: Option<Arc<Log>>,
    control: Option<Arc<dyn Control>>,
    /// Whether somebody has seen the output of this command.
    seen: bool,
    /// Whether it has ended and is not started again.
    done: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Container {
    fn new(of: &Value) -> Arc<Container> {
        let run = Run {
            state: waiting("PodInitializing", ""),
            last: json!({}),
            restarts: 0,
            log: Arc::new(Log::new()),
            previous: None,
            control: None,
            seen: false,
            done: false,
        };
        let name = meta::text(of, "/name").to_owned();
        Arc::new(Container { name, run: Mutex::new(run), stdin: Mutex::new(None) })
    }

    /// The output of its command, or of the run before it.
    pub(crate) fn log(&self, previous: bool) -> Option<Arc<Log>> {
        let run = lock(&self.run);
        if previous { run.previous.clone() } else { Some(run.log.clone()) }
    }

    /// Why it has not begun, if it has not.
    pub(crate) fn waits(&self) -> Option<String> {
        let run = lock(&self.run);
        let reason = meta::text(&run.state, "/waiting/reason");
        (!reason.is_empty() && run.previous.is_none()).then(|| reason.to_owned())
    }

    /// The output of its command, and where somebody who begins to look at it begins: the first one
    /// sees all of it, as one who started it would.
    pub(crate) fn attach(&self) -> (Arc<Log>, u64) {
        let mut run = lock(&self.run);
        let from = if run.seen { run.log.from(u64::MAX).1 } else { 0 };
        run.seen = true;
        (run.log.clone(), from)
    }

    /// Whether somebody has begun to look at the output of its command.
    pub(crate) fn was_seen(&self) -> bool {
        lock(&self.run).seen
    }

    /// Writes to its command. Whether there is somebody who reads.
    pub(crate) fn write(&self, bytes: &[u8]) -> bool {
        let mut stdin = lock(&self.stdin);
        let Some(Input(to)) = &mut *stdin else { return false };
        let written = to.write_all(bytes).and_then(|()| to.flush()).is_ok();
        if !written {
            *stdin = None;
        }
        written
    }

    /// Nothing more will be written to its command.
    pub(crate) fn close_stdin(&self) {
        *lock(&self.stdin) = None;
    }

    pub(crate) fn resize(&self, columns: u16, rows: u16) {
        let control = lock(&self.run).control.clone();
        if let Some(control) = control {
            control.resize(columns, rows);
        }
    }

    fn status(&self, of: &Value, uid: &str) -> Value {
        let run = lock(&self.run);
        let running = run.state.get("running").is_some();
        let begun = running || run.state.get("terminated").is_some();
        let mut status = json!({
            "name": self.name,
            "image": of["image"],
            "imageID": "",
            "ready": running,
            "started": running,
            "restartCount": run.restarts,
            "lastState": run.last,
            "state": run.state,
        });
        if begun {
            let id = format!("portcullis://{uid}/{}/{}", self.name, run.restarts);
            status["containerID"] = json!(id);
        }
        status
    }

    /// Its exit status, if it has ended for good.
    fn ended(&self) -> Option<i64> {
        let run = lock(&self.run);
        run.state.pointer("/terminated/exitCode").and_then(Value::as_i64).filter(|_| run.done)
    }

    fn kill(&self) {
        let run = lock(&self.run);
        let (control, log) = (run.control.clone(), run.log.clone());
        drop(run);
        match control {
            Some(control) => control.kill(),
            // Nobody else tells those who follow its log.
            None => log.end(),
        }
        // Whoever writes to it is told by the end of it, and lets go of this then.
        if let Ok(mut stdin) = self.stdin.try_lock() {
            *stdin = None;
        }
    }
}

fn waiting(reason: &str, message: &str) -> Value {
    let mut waiting = json!({"reason": reason});
    if !message.is_empty() {
        waiting["message"] = json!(message);
    }
    json!({"waiting": waiting})
}

impl Containers {
    pub(crate) fn new(runtime: Arc<dyn Runtime>, store: Arc<Store>) -> Containers {
        Containers { runtime, store, pods: Mutex::default() }
    }

    /// A container of a pod.
    pub(crate) fn get(&self, uid: &str, name: &str) -> Option<Arc<Container>> {
        let pod = lock(&self.pods).get(uid).cloned()?;
        pod.init.iter().chain(&pod.main).find(|container| container.name == name).cloned()
    }

    /// Starts what a pod says, whose network is up. With init containers that goes on after this.
    pub(crate) fn begin(&self, key: &Key, object: &Arc<Value>) {
        let all = |list| meta::list(object, list).iter().map(Container::new).collect();
        let pod = Arc::new(Pod {
            key: key.clone(),
            object: object.clone(),
            init: all("/spec/initContainers"),
            main: all("/spec/containers"),
            over: Mutex::new(false),
            told: Condvar::new(),
        });
        lock(&self.pods).insert(meta::uid(object).to_owned(), pod.clone());
        let run = Runner { runtime: self.runtime.clone(), store: self.store.clone(), pod };
        if run.pod.init.is_empty() {
            return run.start_main();
        }
        thread::spawn(move || {
            for container in &run.pod.init {
                let first = run.start(container);
                run.report();
                run.supervise(container, first, true);
                if container.ended() != Some(0) {
                    return;
                }
            }
            run.start_main();
            run.report();
        });
    }

    /// Ends what runs in a pod; nothing is started in it any more when this returns.
    pub(crate) fn end(&self, uid: &str) {
        let Some(pod) = lock(&self.pods).get(uid).cloned() else { return };
        *lock(&pod.over) = true;
        pod.told.notify_all();
        for container in pod.init.iter().chain(&pod.main) {
            container.kill();
        }
    }

    /// Forgets the pods that are not there any more.
    pub(crate) fn keep(&self, there: impl Fn(&str) -> bool) {
        lock(&self.pods).retain(|uid, _| there(uid));
    }

    /// Writes into the status of a pod what has become of its containers.
    pub(crate) fn describe(&self, uid: &str, pod: &mut Value) {
        let known = lock(&self.pods).get(uid).cloned();
        if let Some(known) = known {
            known.describe(pod);
        }
    }
}

impl Drop for Containers {
    fn drop(&mut self) {
        let uids: Vec<String> = lock(&self.pods).keys().cloned().collect();
        for uid in uids {
            self.end(&uid);
        }
    }
}

impl Pod {
    fn describe(&self, object: &mut Value) {
        let (spec, uid) = (object["spec"].clone(), meta::uid(&self.object));
        let statuses = |of: &[Arc<Container>], list: &str| -> Value {
            let specs = meta::list(&spec, list);
            of.iter()
                .map(|container| {
                    let spec = specs.iter().find(|spec| spec["name"] == *container.name);
                    container.status(spec.unwrap_or(&Value::Null), uid)
                })
                .collect()
        };
        let initialized = self.init.iter().all(|container| container.ended() == Some(0));
        let failed = self.init.iter().any(|c| c.ended().is_some_and(|code| code != 0));
        let ends: Vec<Option<i64>> = self.main.iter().map(|c| c.ended()).collect();
        let phase = match () {
            () if failed => "Failed",
            () if !initialized => "Pending",
            () if ends.iter().all(|end| *end == Some(0)) => "Succeeded",
            () if ends.iter().all(Option::is_some) => "Failed",
            () => "Running",
        };
        let main = statuses(&self.main, "/containers");
        let unready: Vec<&str> = meta::list(&main, "")
            .iter()
            .filter(|status| status["ready"] != true)
            .map(|status| meta::text(status, "/name"))
            .collect();
        let (reason, message) = match (phase, unready.is_empty()) {
            ("Succeeded", _) => ("PodCompleted", String::new()),
            ("Failed", _) => ("PodFailed", String::new()),
            (_, true) => ("", String::new()),
            _ => {
                let names = unready.join(" ");
                ("ContainersNotReady", format!("containers with unready status: [{names}]"))
            }
        };
        let status = &mut object["status"];
        if !self.init.is_empty() {
            status["initContainerStatuses"] = statuses(&self.init, "/initContainers");
        }
        status["containerStatuses"] = main;
        status["phase"] = json!(phase);
        crate::control::set_condition(status, "Initialized", initialized, "", "");
        for condition in ["Ready", "ContainersReady"] {
            let ready = reason.is_empty();
            crate::control::set_condition(status, condition, ready, reason, &message);
        }
    }
}

/// Those who run the containers of a pod.
#[derive(Debug, Clone)]
struct Runner {
    runtime: Arc<dyn Runtime>,
    store: Arc<Store>,
    pod: Arc<Pod>,
}

impl Runner {
    fn start_main(&self) {
        for container in &self.pod.main {
            if let started @ (Started::Runs(_) | Started::Failed) = self.start(container) {
                let (run, container) = (self.clone(), container.clone());
                thread::spawn(move || run.supervise(&container, started, false));
            }
        }
    }

    /// Starts the command of a container, unless the pod is to go.
    fn start(&self, container: &Container) -> Started {
        let name = &container.name;
        let over = lock(&self.pod.over);
        if *over {
            return Started::Over;
        }
        let started = self.runtime.start(&self.pod.object, name);
        match &started {
            Ok(_) => self.tell(events::normal("Started", &format!("Started container {name}"))),
            Err(why) => self.tell(events::warning("Failed", &format!("Error: {why}"))),
        }
        let mut run = lock(&container.run);
        let running = json!({"running": {"startedAt": meta::now()}});
        match started {
            Err(why) => {
                run.state = waiting("RunContainerError", &why);
                Started::Failed
            }
            Ok(None) => {
                run.state = running;
                Started::Stays
            }
            Ok(Some(mut process)) => {
                run.state = running;
                run.control = Some(process.control.clone());
                *lock(&container.stdin) = process.stdin.take();
                Started::Runs(process)
            }
        }
    }

    /// Stays with a container until it has ended for good, or the pod is to go.
    fn supervise(&self, container: &Container, first: Started, is_init: bool) {
        let mut started = first;
        let mut delay = Duration::ZERO;
        loop {
            let code = match started {
                Started::Over => return,
                // An init container without a command has done what it had to.
                Started::Stays if is_init => 0,
                Started::Stays => return,
                Started::Failed => {
                    self.report();
                    delay = delay.max(BACK_OFF);
                    1
                }
                Started::Runs(process) => {
                    let log = lock(&container.run).log.clone();
                    let code = follow(process, &log);
                    container.close_stdin();
                    self.has_ended(container, code);
                    code
                }
            };
            let again = match meta::text(&self.pod.object, "/spec/restartPolicy") {
                "Never" => false,
                "OnFailure" => code != 0,
                _ => code != 0 || !is_init,
            };
            if !again {
                let mut run = lock(&container.run);
                run.done = true;
                if run.state.get("terminated").is_none() {
                    run.state = terminated(code, &meta::now(), "");
                }
                drop(run);
                return self.report();
            }
            if !delay.is_zero() {
                self.back_off(container, delay);
            }
            if self.is_over_after(delay) {
                return;
            }
            delay = (delay * 2).clamp(BACK_OFF, LONGEST);
            {
                let mut run = lock(&container.run);
                run.restarts += 1;
                run.seen = false;
                let ended = std::mem::replace(&mut run.log, Arc::new(Log::new()));
                run.previous = Some(ended);
                if run.state.get("terminated").is_some() {
                    run.last = run.state.take();
                }
            }
            started = self.start(container);
            self.report();
        }
    }

    fn tell(&self, what: Happened<'_>) {
        self.store.write(|state| events::record(state, "kubelet", &self.pod.object, what));
    }

    fn has_ended(&self, container: &Container, code: i32) {
        let mut run = lock(&container.run);
        run.control = None;
        let since = meta::text(&run.state, "/running/startedAt").to_owned();
        run.state = terminated(code, &since, if code == 0 { "Completed" } else { "Error" });
        drop(run);
    }

    /// Says that a container is started again later.
    fn back_off(&self, container: &Container, delay: Duration) {
        let mut run = lock(&container.run);
        if run.state.get("terminated").is_some() {
            run.last = run.state.take();
            let message = format!("back-off {}s restarting failed container", delay.as_secs());
            run.state = waiting("CrashLoopBackOff", &message);
        }
        drop(run);
        self.report();
        let message = format!("Back-off restarting failed container {}", container.name);
        self.tell(events::warning("BackOff", &message));
    }

    /// Waits; whether the pod is to go.
    fn is_over_after(&self, delay: Duration) -> bool {
        let over = lock(&self.pod.over);
        let waited = self.pod.told.wait_timeout_while(over, delay, |over| !*over);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn report(&self) {
        let Pod { key, object, .. } = &*self.pod;
        self.store.write(|state: &mut State| {
            let same = |now: &Arc<Value>| meta::uid(now) == meta::uid(object);
            // What is finished stays as it is.
            if state.get(key).is_some_and(|now| same(now) && !is_finished(now)) {
                objects::amend(state, key, |now| self.pod.describe(now));
            }
        });
    }
}

/// Whether all that a pod had to do is done.
pub(crate) fn is_finished(pod: &Value) -> bool {
    matches!(meta::text(pod, "/status/phase"), "Succeeded" | "Failed")
}

/// What came of starting a container.
enum Started {
    Runs(Process),
    /// It has no command that could end.
    Stays,
    Failed,
    /// The pod is to go.
    Over,
}

fn terminated(code: i32, since: &str, reason: &str) -> Value {
    let mut terminated = json!({
        "exitCode": code,
        "startedAt": since,
        "finishedAt": meta::now(),
    });
    if !reason.is_empty() {
        terminated["reason"] = json!(reason);
    }
    json!({"terminated": terminated})
}

/// Writes what a command writes into a log until it has ended: its exit status.
fn follow(process: Process, log: &Arc<Log>) -> i32 {
    let pump = |output: Option<Output>, is_error: bool| -> Option<Receiver<()>> {
        let (mut output, log) = (output?, log.clone());
        let (ended, end) = channel();
        thread::spawn(move || {
            let mut buffer = [0; 16 << 10];
            while let Ok(size @ 1..) = output.0.read(&mut buffer) {
                log.write(Bytes::copy_from_slice(&buffer[..size]), is_error);
            }
            // Nobody may be left who cares.
            let _ = ended.send(());
        });
        Some(end)
    };
    let pumps = [pump(process.stdout, false), pump(process.stderr, true)];
    let code = process.control.wait();
    for end in pumps.into_iter().flatten() {
        let _ = end.recv_timeout(DRAIN);
    }
    log.end();
    code
}
