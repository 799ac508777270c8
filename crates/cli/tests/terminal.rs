//! What tutorials type on a terminal (`-it`), typed on one, with the real kubectl against a lab. The lab's
//! program is below /tmp, which pods have one of their own of.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};

use portcullis_apiserver::Process;
use portcullis_tests::folder::Folder;
use portcullis_tests::kubectl;
use portcullis_tests::process::limited;

#[test]
fn a_terminal_in_a_pod_is_what_tutorials_show() {
    let Some(kubectl) = kubectl::found("no terminal was tested") else { return };
    let home = Folder::new("terminal");
    let program = home.join("portcullis");
    fs::copy(env!("CARGO_BIN_EXE_portcullis"), &program).unwrap();
    let kubeconfig = home.join("kubeconfig");
    let mut command = Command::new(&program);
    command.args(["lab", "up", "--ip-families", "ipv4", "--write-kubeconfig"]).arg(&kubeconfig);
    command.env("PORTCULLIS_LAB", home.file_name().unwrap());
    let lab = kubectl::Lab::up(command);

    // What is typed by whoever sits there, the exit status, and what is to be seen.
    let on_terminal = |line: &str, typed: &str| {
        let mut command = limited("setsid");
        command.arg("--ctty").arg(&kubectl).args(line.split(' '));
        // kubectl keeps what it discovers under HOME.
        command.env("KUBECONFIG", &kubeconfig).env("HOME", &*home);
        let process = Process::on_terminal(command).unwrap();
        process.control.resize(120, 40);
        process.stdin.unwrap().0.write_all(typed.as_bytes()).unwrap();
        let mut seen = Vec::new();
        process.stdout.unwrap().0.read_to_end(&mut seen).unwrap();
        (process.control.wait(), String::from_utf8_lossy(&seen).into_owned())
    };
    for line in ["run web --image=nginx --expose --port=80", "wait --for=condition=Ready pod/web"] {
        let (code, seen) = on_terminal(line, "");
        assert_eq!(code, 0, "{seen}");
    }
    let wget = "wget -qO- -T 5 http://web\n";
    let refused = "wget -qO- -T 1 http://web || echo no-$((40 + 2))\n";
    let once = "run probe --image=busybox:1.28 --rm -it --restart=Never --";
    for (line, typed, wanted) in [
        (
            format!("{once} sh"),
            format!("{wget}exit\n"),
            &["default/web", "pod \"probe\" deleted"][..],
        ),
        (
            format!("{once} sh"),
            "nc -zv web 80 && echo is-$((40 + 2))\nexit\n".to_owned(),
            &["is-42"],
        ),
        (format!("{once} wget -qO- --timeout=5 http://web"), String::new(), &["default/web"]),
        (format!("{once} nc -zv web 80"), String::new(), &["pod \"probe\" deleted"]),
        (
            "run probe --rm -i -t --image=alpine -- sh".to_owned(),
            "hostname\nexit\n".to_owned(),
            &["probe", "Session ended", "pod \"probe\" deleted"],
        ),
        ("exec -it web -- wget -O- http://web:80".to_owned(), String::new(), &["default/web"]),
        (
            "exec --stdin --tty web -- sh".to_owned(),
            "echo on-$(hostname)\nexit\n".to_owned(),
            &["on-web"],
        ),
    ] {
        let (code, seen) = on_terminal(&line, &typed);
        assert_eq!(code, 0, "kubectl {line}: {seen}");
        for wanted in wanted {
            assert!(seen.contains(wanted), "kubectl {line}: no {wanted:?} in {seen}");
        }
    }
    // The same after a policy, and how a shell or a program that fails is told.
    let policy = home.join("deny.yaml");
    let deny = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: deny}\n\
                spec: {podSelector: {}}\n";
    fs::write(&policy, deny).unwrap();
    let (code, seen) = on_terminal(&format!("apply -f {}", policy.display()), "");
    assert_eq!(code, 0, "{seen}");
    let mut wait = limited(&program);
    wait.args(["wait", "policy/deny", "--kubeconfig"]).arg(&kubeconfig);
    assert!(wait.stdout(Stdio::null()).status().unwrap().success());
    let (code, seen) = on_terminal(&format!("{once} sh"), &format!("{refused}exit 3\n"));
    assert_eq!(code, 3, "{seen}");
    assert!(seen.contains("no-42") && !seen.contains("default/web"), "{seen}");
    let (code, seen) = on_terminal("exec -it web -- no-such-program", "");
    assert_eq!(code, 127, "{seen}");
    assert!(seen.contains("commands of pods are programs of this host"), "{seen}");
    drop(lab);
}
