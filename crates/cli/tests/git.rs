//! `diff --git`: two revisions of a repository that the test makes.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A repository in a folder of its own, which goes when this is dropped.
struct Repository(PathBuf);

impl Repository {
    /// With one commit for each of these policies, in `deploy/policy.yaml` beside `deploy/app.yaml`.
    fn with(name: &str, policies: &[&str]) -> Repository {
        let path = std::env::temp_dir().join(format!("portcullis-{name}-{}", std::process::id()));
        fs::create_dir_all(path.join("deploy")).unwrap();
        let repository = Repository(path);
        repository.git(&["init", "--quiet", "--initial-branch", "main"]);
        fs::write(repository.0.join("deploy/app.yaml"), APP).unwrap();
        for policy in policies {
            fs::write(repository.0.join("deploy/policy.yaml"), policy).unwrap();
            repository.git(&["add", "--all"]);
            repository.git(&["commit", "--quiet", "--message", "a state"]);
        }
        repository
    }

    fn git(&self, arguments: &[&str]) {
        let who = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.com"];
        let mut command = Command::new("git");
        // Whatever the machine's configuration is.
        command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_SYSTEM", "/dev/null");
        let status = command.args(who).args(arguments).current_dir(&self.0).status().unwrap();
        assert!(status.success(), "git {arguments:?}");
    }

    /// What `portcullis diff` says in a folder of the repository: exit code, stdout and stderr.
    fn diff(&self, folder: &str, arguments: &[&str]) -> (i32, String, String) {
        portcullis_diff(&self.0.join(folder), arguments)
    }
}

impl Drop for Repository {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn portcullis_diff(folder: &Path, arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    let command = command.arg("diff").args(arguments).current_dir(folder).env("COLUMNS", "100");
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

const APP: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
";
const OPEN: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec: {podSelector: {}, ingress: [{}]}
";
const CLOSED: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec: {podSelector: {}, policyTypes: [Ingress]}
";

#[test]
fn revisions_are_compared_with_each_other_and_with_the_files_as_they_are() {
    let repository = Repository::with("revisions", &[OPEN, CLOSED]);
    let (code, table, errors) = repository.diff(".", &["--git", "HEAD~1..HEAD", "-f", "deploy"]);
    assert_eq!((code, errors.as_str()), (1, ""));
    assert!(table.contains("closes") && table.contains("was allowed by shop/web ingress[0]"));

    let below = ["--git", "HEAD~1..HEAD", "-f", "policy.yaml", "-f", "app.yaml"];
    assert_eq!(repository.diff("deploy", &below), (1, table.clone(), String::new()));
    let whole = ["--git", "HEAD~1..HEAD", "-R"];
    assert_eq!(repository.diff(".", &whole), (1, table.clone(), String::new()));

    let now = ["--git", "HEAD", "-f", "deploy"];
    assert_eq!(repository.diff(".", &now).0, 0);
    fs::write(repository.0.join("deploy/policy.yaml"), OPEN).unwrap();
    let (code, table, _) = repository.diff(".", &now);
    assert!(code == 1 && table.contains("opens"), "{table}");
}

#[test]
fn three_dots_compare_with_where_a_branch_left() {
    let repository = Repository::with("branches", &[OPEN]);
    repository.git(&["checkout", "--quiet", "-b", "topic"]);
    fs::write(repository.0.join("deploy/note.txt"), "no manifest").unwrap();
    repository.git(&["add", "--all"]);
    repository.git(&["commit", "--quiet", "--message", "a note"]);
    repository.git(&["checkout", "--quiet", "main"]);
    fs::write(repository.0.join("deploy/policy.yaml"), CLOSED).unwrap();
    repository.git(&["commit", "--quiet", "--all", "--message", "closed"]);
    assert_eq!(repository.diff(".", &["--git", "main..topic", "-R"]).0, 1);
    assert_eq!(repository.diff(".", &["--git", "main...topic", "-R"]).0, 0);
}

#[test]
fn what_cannot_be_read_is_said_with_the_revision() {
    let repository = Repository::with("wrong", &["kind: NetworkPolicy\n", OPEN]);
    let error = |arguments: &[&str]| {
        let (code, _, errors) = repository.diff(".", arguments);
        assert_eq!(code, 2, "{arguments:?}");
        errors
    };
    let unknown = error(&["--git", "main..nowhere", "-R"]);
    assert_eq!(unknown, "error: \"nowhere\" is no revision of this repository\n");
    let missing = error(&["--git", "main", "-f", "other"]);
    assert!(missing.starts_with("error: main:other: not there"), "{missing}");
    let broken = error(&["--git", "main~1..main", "-f", "deploy"]);
    assert!(broken.starts_with("main~1:deploy/policy.yaml:1:1: error:"), "{broken}");

    let (code, _, outside) = portcullis_diff(&std::env::temp_dir(), &["--git", "main"]);
    assert!(code == 2 && outside.contains("in no git repository"), "{outside}");
}
