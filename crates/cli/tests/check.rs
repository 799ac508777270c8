//! What `check` writes to files and reads from directories above.
#![allow(clippy::unwrap_used, reason = "clippy allows it in the tests, but not beside them")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A directory of its own for a test, gone with it.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Directory {
        let path = std::env::temp_dir().join(format!("portcullis-{}-{name}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Directory(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn check(directory: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    command.arg("check").args(arguments).current_dir(directory);
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

const POLICY: &str = "\u{FEFF}# Ours.\r
apiVersion: networking.k8s.io/v1\r
kind: NetworkPolicy\r
metadata: {name: web, namespace: shop}\r
spec:\r
  podSelector: {} # all\r
  ingress:\r
    - from:\r
        - ipBlock: {cidr: 192.0.2.9/24}\r
";

#[test]
fn fix_writes_what_diff_shows_and_nothing_is_left_to_fix() {
    let directory = Directory::new("fix");
    let file = directory.0.join("web.yaml");
    fs::write(&file, POLICY).unwrap();
    let (code, patch, _) = check(&directory.0, &["-f", "web.yaml", "--diff"]);
    assert_eq!(code, Some(1));
    assert!(patch.contains("+  policyTypes: [Ingress]\r\n"), "{patch}");
    assert_eq!(fs::read_to_string(&file).unwrap(), POLICY);
    assert_eq!(check(&directory.0, &["-f", "web.yaml", "--fix", "--dry-run"]).1, patch);

    let (code, _, told) = check(&directory.0, &["-f", "web.yaml", "--fix"]);
    assert_eq!((code, told.as_str()), (Some(0), "fixed 2 findings in web.yaml\n"));
    let expected = POLICY
        .replace("  ingress", "  policyTypes: [Ingress]\r\n  ingress")
        .replace("192.0.2.9", "192.0.2.0");
    assert_eq!(fs::read_to_string(&file).unwrap(), expected);
    let again = check(&directory.0, &["-f", "web.yaml", "--diff"]);
    assert_eq!(again, (Some(0), String::new(), String::new()));
}

#[test]
fn files_with_errors_and_standard_input_are_not_written() {
    let directory = Directory::new("errors");
    let file = directory.0.join("web.yaml");
    let broken = format!("{POLICY}  egres: []\r\n");
    fs::write(&file, &broken).unwrap();
    let (code, shown, _) = check(&directory.0, &["-f", "web.yaml", "--fix"]);
    assert_eq!(code, Some(1));
    assert!(shown.contains("unknown field \"spec.egres\""), "{shown}");
    assert_eq!(fs::read_to_string(&file).unwrap(), broken);
    let (code, shown, told) = check(&directory.0, &["-f", "web.yaml", "--diff"]);
    assert_eq!((code, shown.as_str()), (Some(1), ""));
    assert!(told.contains("left as they are"), "{told}");

    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    command.args(["check", "-f", "-", "--fix"]).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut running = command.spawn().unwrap();
    running.stdin.take().unwrap().write_all(POLICY.as_bytes()).unwrap();
    let output = running.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--diff"));
}

#[test]
fn the_configuration_is_that_of_the_repository_and_of_nothing_above_it() {
    let directory = Directory::new("config");
    let repository = directory.0.join("repository");
    let inside = repository.join("a/b");
    fs::create_dir_all(&inside).unwrap();
    let everybody = POLICY.replace("from:\r\n        - ipBlock: {cidr: 192.0.2.9/24}", "from: []");
    fs::write(inside.join("web.yaml"), everybody).unwrap();
    fs::write(directory.0.join(".portcullis.yaml"), "rules: {allows-everything: error}").unwrap();
    let empty = ["-f", "web.yaml", "-o", "github"];

    fs::create_dir(repository.join(".git")).unwrap();
    let outside = check(&inside, &empty);
    assert_eq!(outside.0, Some(0), "{outside:?}");
    assert!(outside.1.contains("::warning"), "{outside:?}");

    fs::write(repository.join(".portcullis.yaml"), "rules: {allows-everything: error}").unwrap();
    assert_eq!(check(&inside, &empty).0, Some(1));
    let ignored = "ignore: [{paths: [a], rules: [allows-everything]}]";
    fs::write(repository.join("a/.portcullis.yaml"), ignored.replace("[a]", "[b]")).unwrap();
    let nearest = check(&inside, &empty);
    assert!(nearest.0 == Some(0) && !nearest.1.contains("allows-everything"), "{nearest:?}");
    let (code, _, told) = check(&inside, &["-f", "web.yaml", "--config", "none.yaml"]);
    assert_eq!(code, Some(2));
    assert!(told.contains("cannot read none.yaml"), "{told}");
}
