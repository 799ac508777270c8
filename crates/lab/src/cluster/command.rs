//! Commands in pods: programs of this host, in the network of the pod, with its host name and with
//! `/etc/hosts` and `/etc/resolv.conf` of its own.
//!
//! A command is this program, started anew in the network namespace of the pod; what it has to do
//! before it becomes the program that was asked for, only a process of one thread can do to itself:
//! [`run`].

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, mpsc};
use std::thread;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{sethostname, setsid};
use portcullis_apiserver::{Control, Exec, Process};
use serde_json::Value;

use crate::cluster::services::DNS_ADDRESS;
use crate::cluster::text;
use crate::namespace::Namespace;
use crate::{dns, tools};

/// The first argument by which this program knows that it is to be a command of a pod.
pub(crate) const POD_COMMAND: &str = "lab-pod-command";

/// What a pod is called within itself.
#[derive(Debug, Clone)]
pub(crate) struct Pod {
    uid: String,
    hostname: String,
    pub(crate) addresses: Vec<IpAddr>,
    hosts: String,
    resolv_conf: String,
    variables: Vec<(String, String)>,
}

/// Programs that stand in where the host has none, by their names. `/tmp` is the pod's own.
const TOOLS: &str = "/tmp/.tools";
/// What GNU wget reads: it would try twenty times, where the wget that tutorials mean tries once.
const WGETRC: &str = "/tmp/.tools/wgetrc";

impl Pod {
    pub(crate) fn of(pod: &Value, addresses: Vec<IpAddr>) -> Pod {
        let namespace = text(pod, "/metadata/namespace");
        let name = match text(pod, "/spec/hostname") {
            "" => text(pod, "/metadata/name"),
            name => name,
        };
        // The most that a host name can have.
        let hostname = name.chars().take(63).collect::<String>().trim_end_matches('-').to_owned();
        let full = match text(pod, "/spec/subdomain") {
            "" => hostname.clone(),
            subdomain => {
                format!("{hostname}.{subdomain}.{namespace}.svc.cluster.local\t{hostname}")
            }
        };
        let mut hosts =
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
        for address in &addresses {
            hosts.push_str(&format!("{address}\t{full}\n"));
        }
        let aliases = pod.pointer("/spec/hostAliases").and_then(Value::as_array);
        for alias in aliases.into_iter().flatten() {
            let names = alias["hostnames"].as_array().into_iter().flatten();
            let names: Vec<&str> = names.filter_map(Value::as_str).collect();
            hosts.push_str(&format!("{}\t{}\n", text(alias, "/ip"), names.join("\t")));
        }
        let server = DNS_ADDRESS.parse().unwrap_or(Ipv4Addr::LOCALHOST.into());
        let container = pod.pointer("/spec/containers/0/env").and_then(Value::as_array);
        let variables = container.into_iter().flatten().filter_map(|variable| {
            Some((variable["name"].as_str()?.to_owned(), variable["value"].as_str()?.to_owned()))
        });
        Pod {
            uid: text(pod, "/metadata/uid").to_owned(),
            hosts,
            resolv_conf: dns::resolv_conf(namespace, server),
            variables: variables.collect(),
            hostname,
            addresses,
        }
    }
}

/// The commands that run in pods.
#[derive(Debug, Default)]
pub(crate) struct Commands {
    /// By the uid of their pod.
    running: Mutex<Vec<(String, Weak<Running>)>>,
}

/// A command that runs. The thread that started it lives as long as this, and the kernel ends the
/// command when that thread ends: also when this whole process is killed.
#[derive(Debug)]
struct Running {
    control: Arc<dyn Control>,
    _thread: mpsc::Sender<()>,
}

impl Control for Running {
    fn wait(&self) -> i32 {
        self.control.wait()
    }

    fn kill(&self) {
        self.control.kill();
    }

    fn resize(&self, columns: u16, rows: u16) {
        self.control.resize(columns, rows);
    }
}

impl Commands {
    /// Starts a command in the network namespace of a pod.
    pub(crate) fn run(
        &self,
        namespace: &Arc<Namespace>,
        pod: &Pod,
        exec: &Exec,
    ) -> Result<Process, String> {
        let mut command = Command::new("/proc/self/exe");
        command.arg0("portcullis").arg(POD_COMMAND);
        command.args([&pod.hostname, &pod.hosts, &pod.resolv_conf]);
        command.arg(if exec.tty { "tty" } else { "" }).args(&exec.command);
        command.env_clear().envs(variables(pod, exec.tty));
        let (namespace, exec) = (namespace.clone(), exec.clone());
        let (tell, told) = mpsc::channel();
        let (hold, held) = mpsc::channel::<()>();
        let start = move || {
            let started = namespace.enter().map_err(|error| error.to_string()).and_then(|()| {
                let started = match exec.tty {
                    true => Process::on_terminal(command),
                    false => Process::piped(command, exec.stdin),
                };
                started.map_err(|error| format!("cannot run {:?}: {error}", exec.command))
            });
            if tell.send(started).is_ok() {
                // Nothing is ever sent: this is the end of the command.
                let _ = held.recv();
            }
        };
        let thread = thread::Builder::new().name("pod command".to_owned()).spawn(start);
        thread.map_err(|error| format!("cannot start a thread: {error}"))?;
        let process = told.recv().map_err(|_| "the command could not be started".to_owned())??;
        let running = Arc::new(Running { control: process.control, _thread: hold });
        let mut all = self.all();
        all.retain(|(_, running)| running.strong_count() > 0);
        all.push((pod.uid.clone(), Arc::downgrade(&running)));
        Ok(Process { control: running, ..process })
    }

    /// Ends all commands of a pod.
    pub(crate) fn end(&self, uid: &str) {
        for (of, running) in self.all().iter() {
            if let Some(running) = running.upgrade().filter(|_| of == uid) {
                running.kill();
            }
        }
    }

    fn all(&self) -> MutexGuard<'_, Vec<(String, Weak<Running>)>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The environment of a command.
fn variables(pod: &Pod, tty: bool) -> Vec<(String, String)> {
    let path = std::env::var("PATH").unwrap_or_else(|_| "/usr/bin:/bin:/usr/sbin:/sbin".to_owned());
    let path = format!("{path}:{TOOLS}");
    let fixed = [
        // The host's own come first.
        ("PATH", path.as_str()),
        ("HOME", "/tmp"),
        ("WGETRC", WGETRC),
        ("HOSTNAME", pod.hostname.as_str()),
        ("KUBERNETES_SERVICE_HOST", "10.96.0.1"),
        ("KUBERNETES_SERVICE_PORT", "443"),
    ];
    let mut all: Vec<(String, String)> =
        fixed.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    if tty {
        all.push(("TERM".to_owned(), "xterm".to_owned()));
    }
    all.extend(pod.variables.iter().cloned());
    all
}

/// Becomes a command of a pod, as the arguments after [`POD_COMMAND`] say. Returns only if that
/// fails, and has then said why on standard error.
pub(crate) fn run(arguments: &[OsString]) -> ExitCode {
    let [hostname, hosts, resolv_conf, tty, program, rest @ ..] = arguments else {
        eprintln!("{POD_COMMAND} is how a lab starts the commands of its pods, and not for people");
        return ExitCode::from(126);
    };
    if let Err((step, error)) = settle_in(hostname, hosts, resolv_conf, tty == "tty") {
        eprintln!("cannot run a command in the pod: {step}: {error}");
        return ExitCode::from(126);
    }
    let mut error = Command::new(program).args(rest).exec();
    let name = program.to_str().unwrap_or_default();
    // `/agnhost` is where the image that everybody tests networks with has it.
    let stands_in = name == "/agnhost" || tools::NAMES.contains(&name);
    if error.kind() == io::ErrorKind::NotFound && stands_in {
        error = Command::new("/proc/self/exe").arg0(name).args(rest).exec();
    }
    let program = program.to_string_lossy();
    let (code, why) = match error.kind() {
        io::ErrorKind::NotFound if !program.contains('/') => {
            (127, "executable file not found in $PATH".to_owned())
        }
        io::ErrorKind::NotFound => (127, "no such file or directory".to_owned()),
        _ => (126, error.to_string()),
    };
    eprintln!("exec: {program:?}: {why} (commands of pods are programs of this host)");
    ExitCode::from(code)
}

type Step<T> = Result<T, (String, io::Error)>;

fn step<T>(what: &str, result: Result<T, impl Into<io::Error>>) -> Step<T> {
    result.map_err(|error| (what.to_owned(), error.into()))
}

/// Gives this process, which is in the network namespace of the pod already, the rest of what makes
/// it one of the pod's.
fn settle_in(hostname: &OsStr, hosts: &OsStr, resolv_conf: &OsStr, tty: bool) -> Step<()> {
    // The lab keeps signals from its own threads.
    step("signals", SigSet::empty().thread_set_mask())?;
    step("the end of the lab", set_pdeathsig(Signal::SIGKILL))?;
    if tty {
        step("a session", setsid())?;
        step("the terminal", rustix::process::ioctl_tiocsctty(io::stdin()))?;
    }
    step("namespaces", unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS))?;
    step("the host name", sethostname(hostname))?;
    let none = None::<&str>;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    step("mounts", mount(none, "/", none, private, none))?;
    // Where it is may be below /tmp, which is about to be hidden; and it may be gone since.
    let program = std::env::current_exe().and_then(File::open).ok();
    // The files are in a file system that nobody sees but where they are bound to.
    step("/tmp", temporary())?;
    for (path, text) in [("/etc/hosts", hosts), ("/etc/resolv.conf", resolv_conf)] {
        let file = Path::new("/tmp/file").with_extension(path.replace('/', "-"));
        step(path, fs::write(&file, text.as_encoded_bytes()))?;
        // The host may have a link there.
        let path = step(path, fs::canonicalize(path))?;
        let bound = mount(Some(&file), &path, none, MsFlags::MS_BIND, none);
        step(&path.display().to_string(), bound)?;
    }
    step("/tmp", umount2("/tmp", MntFlags::MNT_DETACH))?;
    step("the host's files", make_read_only())?;
    step("/tmp", temporary())?;
    step(TOOLS, fs::create_dir(TOOLS).and_then(|()| fs::write(WGETRC, "tries = 1\n")))?;
    if let Some(program) = program {
        step("this program", provide_tools(&program))?;
    }
    step("/tmp", std::env::set_current_dir("/tmp"))
}

/// Puts this program where commands find it under the names of those that it stands in for.
fn provide_tools(program: &File) -> io::Result<()> {
    let place = Path::new(TOOLS).join("portcullis");
    File::create(&place)?;
    let open = format!("/proc/self/fd/{}", program.as_raw_fd());
    mount(Some(&*open), &place, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    tools::link(Path::new(TOOLS), &place)
}

/// Mounts an empty file system at `/tmp`.
fn temporary() -> nix::Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), "/tmp", Some("tmpfs"), flags, Some("mode=1777"))
}

/// What a command of a pod writes or removes is no file of the host.
fn make_read_only() -> io::Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    for line in mounts.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let [_, _, _, _, path, options, ..] = fields.as_slice() else { continue };
        // The kernel's own file systems hold no files.
        if ["/proc", "/sys", "/dev"].iter().any(|own| Path::new(path).starts_with(own)) {
            continue;
        }
        let mut flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        for option in options.split(',') {
            // What is so stays so: otherwise the kernel refuses.
            flags |= match option {
                "nosuid" => MsFlags::MS_NOSUID,
                "nodev" => MsFlags::MS_NODEV,
                "noexec" => MsFlags::MS_NOEXEC,
                "noatime" => MsFlags::MS_NOATIME,
                "nodiratime" => MsFlags::MS_NODIRATIME,
                "relatime" => MsFlags::MS_RELATIME,
                _ => MsFlags::empty(),
            };
        }
        let none = None::<&str>;
        let path = path.replace("\\040", " ");
        match mount(none, path.as_str(), none, flags, none) {
            // Something else is mounted over it: nobody can get there.
            Err(_) if path != "/" => {}
            other => other?,
        }
    }
    Ok(())
}
