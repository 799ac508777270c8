//! The agent as its image runs it: not root, and with one capability that its file gives. Only root
//! can give a file a capability; for others this is skipped, unless PORTCULLIS_REQUIRE_ROOT is 1.
//! The network is one that the test makes.
#![allow(clippy::unwrap_used)]

#[path = "../../agent/tests/live/server.rs"]
#[allow(dead_code)]
mod server;

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkFlags, LinkMessage};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::geteuid;
use portcullis_cni::protocol::{Answer, Request, ask};
use portcullis_dataplane::netlink::{NETLINK_ROUTE, NetlinkSocket};
use portcullis_dataplane::{Dataplane, Nftables};
use serde_json::json;
use server::Server;

const USER: u32 = 65532;
/// `CAP_NET_ADMIN`, as /proc shows it.
const NET_ADMIN: &str = "0000000000001000";

fn program(name: &str) -> bool {
    Command::new(name).arg("--help").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

/// Whether this machine lets us try.
fn possible() -> bool {
    let possible = geteuid().is_root() && program("getcap") && program("setpriv");
    let required = std::env::var("PORTCULLIS_REQUIRE_ROOT").is_ok_and(|value| value == "1");
    assert!(possible || !required, "root, getcap or setpriv is missing");
    if !possible {
        eprintln!("not tested: that needs root, getcap and setpriv");
    }
    possible
}

/// The program as it is in the image, in a folder that everybody can look into.
fn image(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    fs::set_permissions(&folder, Permissions::from_mode(0o755)).unwrap();
    let file = folder.join("portcullis");
    fs::copy(env!("CARGO_BIN_EXE_portcullis"), &file).unwrap();
    let permit = Command::new(&file).args(["agent", "permit"]).arg(&file).status().unwrap();
    assert!(permit.success());
    let getcap = Command::new("getcap").arg(&file).output().unwrap();
    let given = String::from_utf8(getcap.stdout).unwrap();
    assert_eq!(given.trim(), format!("{} cap_net_admin=p", file.display()));
    folder
}

/// As a container runtime starts it: the user, and what can be had at most.
fn start(folder: &Path, more: &[&str], bound: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=65532", "--regid=65532", "--clear-groups", "--inh-caps=-all"])
        .arg(format!("--bounding-set=-all{bound}"))
        .args(more)
        .arg(folder.join("portcullis"))
        .args(arguments)
        .env_clear()
        .stdin(Stdio::null());
    command
}

fn refused(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn the_agent_enforces_without_being_root() {
    if !possible() {
        return;
    }
    // A network of its own, for this thread and what it starts.
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    let mut loopback = LinkMessage::default();
    loopback.header.index = 1;
    loopback.header.flags = LinkFlags::Up;
    loopback.header.change_mask = LinkFlags::Up;
    let up = RouteNetlinkMessage::SetLink(loopback);
    NetlinkSocket::open(NETLINK_ROUTE).unwrap().request(up, 0).unwrap();
    let folder = image("agent-image");
    let server = Server::start(30);
    let kubeconfig = folder.join("kubeconfig");
    fs::copy(server.kubeconfig(), &kubeconfig).unwrap();
    fs::set_permissions(&kubeconfig, Permissions::from_mode(0o644)).unwrap();
    server.put("namespaces", json!({"metadata": {"name": "shop"}}));
    server.put("nodes", json!({"metadata": {"name": "n"}}));
    let metadata = json!({"name": "web", "namespace": "shop"});
    let status = json!({"podIPs": [{"ip": "10.0.0.1"}]});
    let spec = json!({"nodeName": "n", "containers": [{"name": "c"}]});
    server.put("pods", json!({"metadata": metadata, "spec": spec, "status": status}));
    server.put("networkpolicies", json!({"metadata": metadata, "spec": {"podSelector": {}}}));
    let run = folder.join("run");
    fs::create_dir(&run).unwrap();
    chown(&run, Some(USER), Some(USER)).unwrap();
    let socket = run.join("agent.sock");
    let arguments = [
        "agent",
        "--node=n",
        "--kubeconfig",
        kubeconfig.to_str().unwrap(),
        "--metrics-address=127.0.0.1:9464",
        "--socket",
        socket.to_str().unwrap(),
        "--attachments",
        run.to_str().unwrap(),
    ];

    let agent = start(&folder, &[], ",+net_admin", &arguments).spawn().unwrap();
    let agent = Running(agent);
    let begin = Instant::now();
    loop {
        let answer = ask(&socket, &Request::Status, Duration::from_secs(5));
        if answer.as_ref().ok() == Some(&Answer::Ready) {
            break;
        }
        assert!(begin.elapsed() < Duration::from_secs(30), "never ready: {answer:?}");
        thread::sleep(Duration::from_millis(20));
    }
    let status = fs::read_to_string(format!("/proc/{}/status", agent.0.id())).unwrap();
    let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim();
    assert_eq!(line("Uid:").split_whitespace().next(), Some("65532"), "{status}");
    for set in ["CapEff:", "CapPrm:", "CapBnd:"] {
        assert_eq!(line(set), NET_ADMIN, "{status}");
    }
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    drop(agent);
    let mut kernel = Nftables::open().unwrap();
    kernel.remove().unwrap();

    // What stands in the way of the capability.
    // Some runtimes take what it has of it before it starts, and then what a file gives is lost.
    let no_new_privileges = ["setpriv", "--no-new-privs"];
    let no_new = refused(start(&folder, &no_new_privileges, ",+net_admin", &arguments));
    assert!(no_new.contains("allowPrivilegeEscalation"), "{no_new}");
    let without = refused(start(&folder, &[], "", &arguments));
    assert!(without.contains("lacks the capability NET_ADMIN"), "{without}");
    // And whoever may not give it is told so.
    let file = folder.join("portcullis");
    let permit = refused(start(&folder, &[], "", &["agent", "permit", file.to_str().unwrap()]));
    assert!(permit.contains("that takes root"), "{permit}");
    // Neither what a link leads to nor a folder is a program to give it to.
    let plain = folder.join("plain");
    fs::write(&plain, "").unwrap();
    let link = folder.join("link");
    std::os::unix::fs::symlink(&plain, &link).unwrap();
    for other in [&link, &folder] {
        let output = Command::new(&file).args(["agent", "permit"]).arg(other).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{other:?}: {said}");
        assert!(said.contains("that takes root, and a plain file"), "{said}");
    }
    let getcap = Command::new("getcap").args([&plain, &folder]).output().unwrap();
    assert!(getcap.stdout.is_empty(), "{getcap:?}");
    // For anything else the file needs no capability.
    let version = start(&folder, &[], "", &["--version"]).output().unwrap();
    assert!(version.status.success(), "{version:?}");
    fs::remove_dir_all(folder).unwrap();
}
