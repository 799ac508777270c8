//! Sessions with the real kubectl, as people type them: each `console` block of `kubectl/*.md` is
//! run, and what kubectl prints is compared.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use portcullis_apiserver::{FakeRuntime, Node, Options, Process, Server};
use portcullis_tests::folder::Folder;
use portcullis_tests::process::{LIMIT, limited};
use rustix::process::{Pid, Signal, kill_process};

/// A server, and a kubectl that knows it.
struct Cluster {
    kubectl: PathBuf,
    home: Folder,
    _server: Server,
    _runtime: tokio::runtime::Runtime,
}

impl Cluster {
    /// `None` where there is no kubectl.
    fn new(name: &str) -> Option<Cluster> {
        let kubectl = portcullis_tests::kubectl::found("no session with kubectl was tested")?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let fake = Arc::new(FakeRuntime::default());
        let server = runtime.block_on(Server::start(Options::default(), fake)).unwrap();
        for number in 1..=2 {
            server.add_node(&Node {
                name: format!("node-{number}"),
                addresses: vec![[192, 0, 2, number].into()],
                pod_cidrs: vec![format!("10.244.{number}.0/24")],
            });
        }
        // kubectl keeps what it discovers under HOME.
        let home = Folder::new(name);
        server.write_kubeconfig(&home.join("kubeconfig")).unwrap();
        Some(Cluster { kubectl, home, _server: server, _runtime: runtime })
    }

    fn kubeconfig(&self) -> String {
        self.home.join("kubeconfig").display().to_string()
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = limited(program);
        command.args(arguments).env("KUBECONFIG", self.kubeconfig()).env("HOME", &*self.home);
        command
    }

    /// Runs kubectl with this input: its status, its output, its errors.
    fn run(&self, arguments: &[&str], input: &[u8]) -> (i32, String, String) {
        let mut command = self.command(&self.kubectl.display().to_string(), arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        // It may have ended before it has read everything.
        let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    }

    /// The output of a kubectl that succeeds.
    fn ok(&self, line: &str) -> String {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (code, out, err) = self.run(&words, b"");
        assert_eq!(code, 0, "kubectl {line}: {out}{err}");
        out
    }

    /// Runs kubectl on a terminal, where somebody types this: its status, and what is to be seen.
    fn on_terminal(&self, arguments: &[&str], typed: &str) -> (i32, String) {
        let kubectl = self.kubectl.display().to_string();
        let arguments = [&["--ctty", &*kubectl][..], arguments].concat();
        let process = Process::on_terminal(self.command("setsid", &arguments)).unwrap();
        process.control.resize(100, 30);
        let mut stdin = process.stdin.unwrap().0;
        stdin.write_all(typed.as_bytes()).unwrap();
        let mut seen = Vec::new();
        process.stdout.unwrap().0.read_to_end(&mut seen).unwrap();
        (process.control.wait(), String::from_utf8_lossy(&seen).into_owned())
    }
}

/// Ends a command that was to go on. The program in front of it hands the signal on.
fn end(mut command: Child) {
    kill_process(Pid::from_child(&command), Signal::TERM).unwrap();
    command.wait().unwrap();
}

#[test]
fn kubectl_does_not_notice() {
    let Some(cluster) = Cluster::new("sessions") else { return };
    let cases = trycmd::TestCases::new();
    cases
        .register_bin("kubectl", cluster.kubectl.clone())
        .env("KUBECONFIG", cluster.kubeconfig())
        .env("HOME", cluster.home.to_string_lossy())
        .timeout(LIMIT)
        .case("tests/kubectl/*.md")
        .run();
    // Files are run when the cases go.
    drop(cases);
}

#[test]
fn what_an_editor_changes_is_applied() {
    let Some(cluster) = Cluster::new("edit") else { return };
    cluster.ok("create configmap settings --from-literal=mode=slow");
    let kubectl = cluster.kubectl.display().to_string();
    let edit = |script: &str| {
        let mut command = cluster.command(&kubectl, &["edit", "configmap", "settings"]);
        command.env("KUBE_EDITOR", format!("sed -i {script}")).output().unwrap()
    };
    let said = String::from_utf8(edit("s/slow/fast/").stdout).unwrap();
    assert_eq!(said, "configmap/settings edited\n");
    assert_eq!(cluster.ok("get configmap settings -o jsonpath={.data.mode}"), "fast");
    let said = String::from_utf8_lossy(&edit("s/none/none/").stderr).into_owned();
    assert!(said.contains("Edit cancelled, no changes made"), "{said}");
}

#[test]
fn a_node_that_is_drained_loses_its_pods_to_others() {
    let Some(cluster) = Cluster::new("drain") else { return };
    cluster.ok("create deployment web --image=nginx --replicas=2");
    cluster.ok("rollout status deployment/web");
    let nodes = || {
        cluster.ok("get pods -l app=web -o jsonpath={range.items[*]}{.spec.nodeName}{\"\\n\"}{end}")
    };
    // A pod that nobody makes anew.
    let alone = r#"{"spec":{"nodeName":"node-2"}}"#;
    cluster.ok(&format!("run alone --image=nginx --overrides={alone}"));
    let placed = nodes();
    assert!(placed.contains("node-1") && placed.contains("node-2"), "{placed}");
    let drain = ["drain", "node-2", "--ignore-daemonsets", "--timeout=60s"];
    let (code, _, err) = cluster.run(&drain, b"");
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("(use --force to override): default/alone"), "{err}");
    let (code, said, err) = cluster.run(&[&drain[..], &["--force"]].concat(), b"");
    assert_eq!(code, 0, "{said}{err}");
    assert!(said.contains("evicting pod default/alone\n"), "{said}");
    assert!(said.contains("pod/alone evicted\n"), "{said}");
    assert!(said.ends_with("node/node-2 drained\n"), "{said}");
    let (code, _, err) = cluster.run(&["get", "pod", "alone"], b"");
    assert_eq!(code, 1, "{err}");
    cluster.ok("rollout status deployment/web");
    assert_eq!(nodes(), "node-1\nnode-1\n");
    assert!(cluster.ok("get node node-2").contains("Ready,SchedulingDisabled"));
    assert_eq!(cluster.ok("cordon node-2"), "node/node-2 already cordoned\n");
    assert_eq!(cluster.ok("uncordon node-2"), "node/node-2 uncordoned\n");
    cluster.ok("scale deployment/web --replicas=4");
    cluster.ok("rollout status deployment/web");
    assert!(nodes().contains("node-2"));
}

#[test]
fn a_watch_shows_what_changes() {
    let Some(cluster) = Cluster::new("watch") else { return };
    cluster.ok("create configmap first");
    let kubectl = cluster.kubectl.display().to_string();
    let watch =
        ["get", "configmaps", "-w", "--no-headers", "-o", "custom-columns=N:.metadata.name"];
    let mut watch = cluster.command(&kubectl, &watch);
    let mut watch = watch.stdout(Stdio::piped()).spawn().unwrap();
    let mut shown = BufReader::new(watch.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert_eq!(shown.next().unwrap().trim(), "first");
    cluster.ok("create configmap second");
    assert_eq!(shown.next().unwrap().trim(), "second");
    cluster.ok("label configmap first a=b");
    assert_eq!(shown.next().unwrap().trim(), "first");
    end(watch);
}

#[test]
fn commands_in_pods_have_input_output_and_an_exit_status() {
    let Some(cluster) = Cluster::new("exec") else { return };
    cluster.ok("run web --image=nginx");
    cluster.ok("wait --for=condition=Ready pod/web");
    let script = "echo out; echo err >&2; exit 3";
    let (code, out, err) = cluster.run(&["exec", "web", "--", "sh", "-c", script], b"");
    assert_eq!((code, &*out), (3, "out\n"), "{err}");
    assert!(err.starts_with("err\n"), "{err}");
    assert!(err.contains("exit code 3"), "{err}");
    // What goes in comes out, all of it.
    let input: Vec<u8> = (0..1 << 20).map(|i: u32| b'a' + (i % 26) as u8).collect();
    let (code, out, err) = cluster.run(&["exec", "-i", "web", "--", "cat"], &input);
    assert_eq!(code, 0, "{err}");
    assert!(out.as_bytes() == input, "{} of {} bytes came back", out.len(), input.len());
    let (code, _, err) = cluster.run(&["exec", "web", "-c", "x", "--", "true"], b"");
    assert_eq!(code, 1);
    assert!(err.contains("container x is not valid for pod web"), "{err}");
    let (code, _, err) = cluster.run(&["exec", "web", "--", "no-such-program"], b"");
    assert_eq!(code, 1);
    assert!(err.contains("no-such-program"), "{err}");
}

#[test]
fn a_shell_on_a_terminal_is_one() {
    let Some(cluster) = Cluster::new("tty") else { return };
    cluster.ok("run web --image=nginx");
    cluster.ok("wait --for=condition=Ready pod/web");
    let (code, seen) = cluster.on_terminal(
        &["exec", "-it", "web", "--", "sh"],
        "test -t 0 && echo is-$((40 + 2)) && stty size\nexit 5\n",
    );
    assert_eq!(code, 5, "{seen}");
    assert!(seen.contains("is-42"), "{seen}");
    assert!(seen.contains("30 100"), "{seen}");
    let (code, seen) = cluster.on_terminal(
        &["run", "tmp", "-it", "--rm", "--restart=Never", "--image=busybox", "--", "sh"],
        "echo is-$((40 + 2))\nexit\n",
    );
    assert_eq!(code, 0, "{seen}");
    assert!(seen.contains("is-42"), "{seen}");
    assert!(seen.contains("pod \"tmp\" deleted"), "{seen}");
    assert_eq!(cluster.ok("get pods -o name"), "pod/web\n");
}

#[test]
fn a_port_is_forwarded_for_as_many_connections_as_come() {
    let Some(cluster) = Cluster::new("forward") else { return };
    cluster.ok("run web --image=nginx");
    cluster.ok("wait --for=condition=Ready pod/web");
    // The pods of the fake are on the loopback address.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut all = Vec::new();
                stream.read_to_end(&mut all).unwrap();
                all.reverse();
                stream.write_all(&all).unwrap();
            });
        }
    });
    let kubectl = cluster.kubectl.display().to_string();
    let mut forward = cluster.command(&kubectl, &["port-forward", "pod/web", &format!(":{port}")]);
    let mut forward = forward.stdout(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(forward.stdout.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    let address = line.strip_prefix("Forwarding from ").and_then(|l| l.split(' ').next()).unwrap();
    let data: Vec<u8> = (0..1 << 20).map(|i: u32| (i % 251) as u8).collect();
    let ask = |data: &[u8]| {
        let mut stream = TcpStream::connect(address).unwrap();
        let (mut to, data) = (stream.try_clone().unwrap(), data.to_vec());
        let writer = std::thread::spawn(move || {
            to.write_all(&data).unwrap();
            to.shutdown(Shutdown::Write).unwrap();
        });
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        writer.join().unwrap();
        answer
    };
    for data in [&b"abc"[..], b"x", &data] {
        let answer = ask(data);
        assert!(answer.iter().eq(data.iter().rev()), "{} of {}", answer.len(), data.len());
    }
    end(forward);
}

#[test]
fn a_pod_that_runs_once_says_how_it_ended() {
    let Some(cluster) = Cluster::new("once") else { return };
    let once = ["run", "once", "-i", "--rm", "--restart=Never", "--image=busybox", "--"];
    for (script, status) in [("echo hello", 0), ("echo hello; exit 7", 7)] {
        let (code, out, err) = cluster.run(&[&once[..], &["sh", "-c", script]].concat(), b"");
        assert_eq!(code, status, "{out}{err}");
        assert!(out.starts_with("hello\n"), "{out}{err}");
    }
    cluster.run(&["run", "fails", "--restart=Never", "--image=x", "--", "sh", "-c", "exit 9"], b"");
    cluster.ok("wait --for=jsonpath={.status.phase}=Failed pod/fails");
    let path = "jsonpath={.status.containerStatuses[0].state.terminated.exitCode}";
    assert_eq!(cluster.ok(&format!("get pod fails -o {path}")), "9");
    let shown = cluster.ok("get pod fails --no-headers");
    assert_eq!(
        shown.split_whitespace().take(4).collect::<Vec<_>>(),
        ["fails", "0/1", "Error", "0"]
    );
}

#[test]
fn logs_are_kept_and_followed_and_those_of_the_run_before_too() {
    let Some(cluster) = Cluster::new("logs") else { return };
    let script = "for i in 1 2 3; do echo line $i; done; read x; echo got $x";
    let run = ["run", "talks", "-i", "--attach=false", "--restart=Never", "--image=x", "--"];
    cluster.run(&[&run[..], &["sh", "-c", script]].concat(), b"");
    cluster.ok("wait --for=condition=Ready pod/talks");
    let begin = Instant::now();
    while cluster.ok("logs talks") != "line 1\nline 2\nline 3\n" {
        assert!(begin.elapsed() < LIMIT, "{}", cluster.ok("logs talks"));
    }
    assert_eq!(cluster.ok("logs talks --tail=1"), "line 3\n");
    let stamped = cluster.ok("logs talks --timestamps --tail=1");
    let (time, text) = stamped.split_once(' ').unwrap();
    assert_eq!((time.len(), text), ("2026-01-02T03:04:05.123456789Z".len(), "line 3\n"));
    let kubectl = cluster.kubectl.display().to_string();
    let mut follow = cluster.command(&kubectl, &["logs", "-f", "talks"]);
    let mut follow = follow.stdout(Stdio::piped()).spawn().unwrap();
    let mut out = follow.stdout.take().unwrap();
    let mut seen = vec![0; "line 1\nline 2\nline 3\n".len()];
    out.read_exact(&mut seen).unwrap();
    let (code, _, err) = cluster.run(&["attach", "-i", "talks"], b"this\n");
    assert_eq!(code, 0, "{err}");
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert!(follow.wait().unwrap().success());
    assert_eq!(rest, "got this\n");
    let again = ["run", "again", "--image=x", "--", "sh", "-c", "echo run $$; exit 1"];
    cluster.run(&again, b"");
    cluster.ok("wait --for=jsonpath={.status.containerStatuses[0].restartCount}=1 pod/again");
    let (now, before) = (cluster.ok("logs again"), cluster.ok("logs again --previous"));
    assert!(
        now.starts_with("run ") && before.starts_with("run ") && now != before,
        "{now}{before}"
    );
}
