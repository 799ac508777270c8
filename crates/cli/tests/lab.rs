//! A lab that stays up: it answers, it ends when it is told to, and nothing is left of it.
#![allow(clippy::unwrap_used)]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};

use portcullis_tests::folder::Folder;
use portcullis_tests::process::{Lines, Running, limited};

const PROGRAM: &str = env!("CARGO_BIN_EXE_portcullis");

fn portcullis(arguments: &[&str]) -> Command {
    in_repository(Command::new(PROGRAM), arguments)
}

fn in_repository(mut command: Command, arguments: &[&str]) -> Command {
    command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    command.args(arguments).stdin(Stdio::null()).env("COLUMNS", "100");
    command
}

fn run(arguments: &[&str]) -> (i32, String) {
    let mut command = in_repository(limited(PROGRAM), arguments);
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = String::from_utf8(stdout).unwrap() + &String::from_utf8(stderr).unwrap();
    (status.code().unwrap(), text)
}

/// Starts a lab and waits until it is up.
fn up(name: &str) -> Running {
    up_with(&["-f", "examples/three-tier", "--name", name])
}

fn up_with(arguments: &[&str]) -> Running {
    let mut command = portcullis(&[&["lab", "up"], arguments].concat());
    let mut lab = Running(command.stdout(Stdio::piped()).spawn().unwrap());
    Lines::of(lab.0.stdout.take().unwrap()).until("The lab is up");
    lab
}

#[test]
fn a_lab_that_is_up_answers_until_it_is_taken_down() {
    let name = "test-answers";
    let mut lab = up(name);
    let probe =
        |ends: [&str; 3]| run(&[&["lab", "probe", "--name", name], ends.as_slice()].concat());

    let (code, text) = probe(["shop/api", "shop/db", "3306"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("(IPv4): predicted passes, observed passes"), "{text}");
    assert!(text.contains("(IPv6): predicted passes, observed passes"), "{text}");
    let (code, text) = probe(["shop/web", "shop/db", "mysql"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("predicted refused, observed refused"), "{text}");
    let (code, text) = probe(["shop/db", "192.168.5.10", "4444/udp"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("4444/UDP (IPv4): predicted refused, observed refused"), "{text}");
    let (code, text) = probe(["shop/db", "198.51.100.9", "80"]);
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("nobody at this address"), "{text}");
    let (code, text) = run(&["lab", "probe", "--name", name, "-o", "json"]);
    assert_eq!(code, 0);
    let all: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(all.as_array().unwrap().iter().all(|c| c["predicted"] == c["observed"]), "{text}");

    let (code, text) = run(&["lab", "up", "-f", "examples/three-tier", "--name", name]);
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("is running already"), "{text}");

    assert_eq!(run(&["lab", "down", "--name", name]).0, 0);
    assert!(lab.0.wait().unwrap().success());
    let (code, text) = run(&["lab", "down", "--name", name]);
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("no lab named test-answers is running"), "{text}");
}

#[test]
fn a_lab_that_is_killed_leaves_its_name_free() {
    let name = "test-killed";
    let mut lab = up(name);
    lab.0.kill().unwrap();
    lab.0.wait().unwrap();
    assert_eq!(run(&["lab", "probe", "--name", name]).0, 2);
    let mut again = up(name);
    assert_eq!(run(&["lab", "down", "--name", name]).0, 0);
    assert!(again.0.wait().unwrap().success());
}

#[test]
fn a_kubeconfig_leads_to_the_same_state_again() {
    let name = "test-state";
    let folder = Folder::new("state");
    let state = folder.join("state");
    let [file, before] = ["kubeconfig", "before"].map(|name| folder.join(name));
    let [path, before] = [&file, &before].map(|path| path.to_str().unwrap());
    let arguments =
        ["--name", name, "--state", state.to_str().unwrap(), "--write-kubeconfig", path];
    let status = ["status", "--kubeconfig", before];
    for round in 0..2 {
        let mut lab = up_with(&arguments);
        if round == 0 {
            fs::copy(&file, before).unwrap();
        }
        let (code, text) = run(&status);
        assert_eq!(code, 0, "{text}");
        assert_eq!(run(&["lab", "down", "--name", name]).0, 0);
        assert!(lab.0.wait().unwrap().success());
        assert!(!file.exists(), "it leads nowhere now");
        assert_eq!(run(&status).0, 2, "nor does the other");
    }
    let credentials = state.join("credentials");
    assert_eq!(fs::metadata(&credentials).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(&state).unwrap().permissions().mode() & 0o777, 0o700);
    // What others may have read is no secret.
    fs::set_permissions(&credentials, Permissions::from_mode(0o640)).unwrap();
    let (code, text) = run(&[&["lab", "up"], &arguments[..]].concat());
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("(mode 0600), found mode 0640, so others may know"), "{text}");
    fs::set_permissions(&credentials, Permissions::from_mode(0o600)).unwrap();
    // Nothing is made up in the place of what cannot be read.
    fs::write(&credentials, "nonsense\n").unwrap();
    let (code, text) = run(&[&["lab", "up"], &arguments[..]].concat());
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("credentials: expected a token, and a key in PEM below it"), "{text}");
}

#[test]
fn a_kubeconfig_that_cannot_be_written_is_told_before_anything_is_up() {
    let state = std::env::temp_dir().join(format!("portcullis-no-state-{}", std::process::id()));
    let there = ["lab", "up", "--name", "test-unwritable", "--state", state.to_str().unwrap()];
    for (file, why) in [("/nowhere/kubeconfig", "No such file"), ("docs", "is a directory")] {
        let (code, text) = run(&[&there[..], &["--write-kubeconfig", file]].concat());
        assert_eq!(code, 2, "{text}");
        assert!(text.starts_with("error: cannot write the kubeconfig /"), "{text}");
        assert!(text.contains(why), "{text}");
    }
    assert!(!state.exists(), "no state was made");
}

#[test]
fn addresses_that_are_left_out_are_told_and_can_be_asked_for() {
    let file = std::env::temp_dir().join(format!("portcullis-lab-{}.yaml", std::process::id()));
    let mut manifest = "\
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop}
spec: {containers: [{name: db, image: db}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec:
  podSelector: {}
  ingress:
  - from:
"
    .to_owned();
    for n in 0..150 {
        manifest += &format!("    - ipBlock: {{cidr: 10.{n}.0.0/16, except: [10.{n}.9.0/24]}}\n");
    }
    fs::write(&file, manifest).unwrap();
    let lab = ["lab", "run", "-f", file.to_str().unwrap(), "--ip-families", "ipv4", "-p", "80"];
    let (code, text) = run(&lab);
    assert_eq!(code, 0, "{text}");
    let note = "note: 323 addresses of ipBlocks are left out: 10.127.0.1, 10.128.0.1, 10.129.0.1 \
                and 320 more; --host tries one\n";
    assert!(text.contains(note), "{text}");
    let (code, text) = run(&[&lab[..], &["--host", "10.7.9.9", "-o", "json"]].concat());
    assert_eq!(code, 0, "{text}");
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["leftOut"].as_array().unwrap().len(), 323);
    let connections = report["connections"].as_array().unwrap();
    let asked: Vec<_> = connections.iter().filter(|c| c["from"] == "10.7.9.9").collect();
    assert_eq!(asked.len(), 1, "{text}");
    assert_eq!((&asked[0]["observed"], &asked[0]["outcome"]), (&"deny".into(), &"silent".into()));
    let (code, text) = run(&[&lab[..], &["--host", "127.0.0.1"]].concat());
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("a host outside cannot have the address 127.0.0.1"), "{text}");
    fs::remove_file(&file).unwrap();
}

#[test]
fn the_binary_is_a_program_of_pods_by_the_name_it_is_called_by() {
    let output = portcullis(&["-z", "127.0.0.1"]).arg0("/usr/bin/nc").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stderr.starts_with(b"nc: Usage: nc "), "{output:?}");
}
