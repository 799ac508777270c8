//! Commands without `-f`: they answer from a live cluster. And `-k`, with a kustomize of our own.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::{fs, thread};

const PODS: &str = r#"{"kind":"PodList","items":[
  {"metadata":{"name":"web-5d-x","namespace":"shop","labels":{"app":"web","pod-template-hash":"5d"},
    "ownerReferences":[{"kind":"ReplicaSet","name":"web-5d","controller":true}]},
   "spec":{"nodeName":"n","containers":[]},"status":{"podIP":"10.0.0.1"}},
  {"metadata":{"name":"db-0","namespace":"shop","labels":{"app":"db"}},
   "spec":{"nodeName":"n","containers":[]},"status":{"podIP":"10.0.0.2"}}]}"#;

const POLICIES: &str = r#"{"kind":"NetworkPolicyList","items":[
  {"metadata":{"name":"db","namespace":"shop"},"spec":{
    "podSelector":{"matchLabels":{"app":"db"}},
    "ingress":[{"from":[{"podSelector":{"matchLabels":{"app":"web"}}}],
                "ports":[{"port":5432,"protocol":"TCP"}]}]}}]}"#;

const NAMESPACES: &str = r#"{"kind":"NamespaceList","items":[{"metadata":{"name":"shop"}}]}"#;

/// An API server without pages; nodes are forbidden.
fn serve(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    while let Some(first) = lines.next().transpose()? {
        while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
        let path = first.split([' ', '?']).nth(1).unwrap_or_default();
        let (status, body) = match path.rsplit('/').next().unwrap_or_default() {
            "pods" => (200, PODS),
            "networkpolicies" => (200, POLICIES),
            "namespaces" => (200, NAMESPACES),
            "nodes" => (403, r#"{"kind":"Status","code":403,"message":"no","reason":"Forbidden"}"#),
            _ => (200, r#"{"kind":"List","items":[]}"#),
        };
        write!(stream, "HTTP/1.1 {status} S\r\nContent-Length: {}\r\n\r\n{body}", body.len())?;
    }
    Ok(())
}

fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// A kubeconfig for a server that runs as long as the test.
fn kubeconfig(name: &str) -> PathBuf {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            // The client may leave at any time.
            thread::spawn(move || serve(&mut stream).is_ok());
        }
    });
    let file = folder("kubeconfigs").join(name);
    let text = format!(
        "apiVersion: v1
kind: Config
current-context: here
clusters: [{{name: prod, cluster: {{server: \"http://{server}\"}}}}]
contexts: [{{name: here, context: {{cluster: prod, user: me, namespace: shop}}}}]
users: [{{name: me, user: {{token: abc}}}}]
"
    );
    fs::write(&file, text).unwrap();
    file
}

fn portcullis() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    command.env_remove("KUBECONFIG").env_remove("KUBERNETES_SERVICE_HOST");
    command.env("HOME", "/no/such/home").env("COLUMNS", "100");
    command
}

fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (text(&output.stdout), text(&output.stderr))
}

#[test]
fn without_files_the_cluster_of_the_kubeconfig_answers() {
    let config = kubeconfig("answers");
    // The context says the namespace, the ReplicaSet's name says the Deployment.
    let asked = ["why", "deployment/web", "db-0", "5432"];
    let output = portcullis().args(asked).env("KUBECONFIG", &config).output().unwrap();
    let (out, err) = texts(&output);
    assert_eq!(output.status.code(), Some(0), "{out}{err}");
    assert!(out.contains("allow"), "{out}");
    let rule = "(cluster/prod networkpolicies/shop/db spec.ingress[0])";
    assert!(out.contains(rule), "{out}");
    assert_eq!(
        err,
        "cluster/prod: note: may not list nodes in all namespaces: the addresses of nodes are \
         taken for addresses outside the cluster\n"
    );

    let asked = ["why", "deployment/web", "db-0", "80", "--kubeconfig"];
    let output = portcullis().args(asked).arg(&config).output().unwrap();
    let (out, err) = texts(&output);
    assert!(out.contains("refused") && !out.contains("line 0"), "{out}{err}");
}

#[test]
fn every_command_takes_a_live_cluster() {
    let config = kubeconfig("every");
    for arguments in [&["check"][..], &["reach"], &["reach", "-o", "json"]] {
        let mut command = portcullis();
        let output = command.args(arguments).arg("--kubeconfig").arg(&config).output().unwrap();
        let (out, err) = texts(&output);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {out}{err}");
    }
    // The manifests that a file of tests names are not what was asked about.
    let tests = folder("tests").join("tests.yaml");
    let text = "tests:\n- reachable: {to: db-0, port: 5432, onlyFrom: deployment/web}\n";
    for manifests in ["", "manifests: not-there\n"] {
        fs::write(&tests, format!("{manifests}{text}")).unwrap();
        let mut command = portcullis();
        let command = command.arg("test").arg(&tests).arg("--kubeconfig").arg(&config);
        let (out, err) = texts(&command.output().unwrap());
        assert!(out.contains("1 test, holds"), "{out}{err}");
    }
    let flows = folder("flows").join("flows.jsonl");
    fs::write(&flows, "{\"from\":\"web-5d-x\",\"to\":\"shop/db-0\",\"port\":5432}\n").unwrap();
    let mut command = portcullis();
    let command = command.args(["eval", "--flows"]).arg(&flows).arg("--kubeconfig").arg(&config);
    let (out, err) = texts(&command.output().unwrap());
    assert!(out.contains("\"verdict\":\"allow\""), "{out}{err}");
}

#[test]
fn what_manifests_would_change_in_a_live_cluster_is_told() {
    let config = kubeconfig("changes");
    let applied = |name: &str, ingress: &str| {
        let file = folder("applied").join(format!("{name}.yaml"));
        let text = format!(
            "apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: {name}}}
spec:
  podSelector: {{matchLabels: {{app: db}}}}
  policyTypes: [Ingress]
  ingress: {ingress}
"
        );
        fs::write(&file, text).unwrap();
        let arguments = ["diff", "--live", "--kubeconfig", config.to_str().unwrap(), "-f"];
        let output = portcullis().args(arguments).arg(&file).output().unwrap();
        (output.status.code(), texts(&output).0)
    };
    // The policy of this name is replaced: the namespace is that of the context.
    let (code, out) = applied("db", "[]");
    assert_eq!(code, Some(1), "{out}");
    assert!(out.contains("closes") && out.contains("5432/TCP"), "{out}");
    // One beside it adds nothing.
    assert_eq!(applied("nothing", "[]").0, Some(0));
    let (code, out) = applied("more", "[{ports: [{port: 1}]}]");
    assert!(code == Some(1) && out.contains("1/TCP"), "{out}");
}

#[test]
fn files_and_a_cluster_at_once_are_refused() {
    let output =
        portcullis().args(["check", "-f", "x.yaml", "--context", "prod"]).output().unwrap();
    let (_, err) = texts(&output);
    assert_eq!(output.status.code(), Some(2));
    assert!(err.contains("cannot be used with"), "{err}");
}

/// A folder with a program of this name.
fn program(name: &str, script: &str) -> PathBuf {
    let folder = folder(&format!("bin-{name}-{}", script.len()));
    let file = folder.join(name);
    // By a process of its own: a file that this one has written may still be open in a child of
    // another test, and then it cannot be run.
    let write = "printf '#!/bin/sh\n%s\n' \"$2\" > \"$1\"; chmod +x \"$1\"";
    let written = Command::new("sh").args(["-c", write, "sh"]).arg(file).arg(script).status();
    assert!(written.unwrap().success());
    folder
}

fn kustomized(path: &Path) -> (Option<i32>, String, String) {
    let output = portcullis().args(["check", "-k", "overlay"]).env("PATH", path).output().unwrap();
    let (out, err) = texts(&output);
    (output.status.code(), out, err)
}

#[test]
fn what_kustomize_makes_of_a_folder_is_read_by_the_name_of_the_folder() {
    let namespace = "echo 'apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, naem: x}'";
    for (name, verb) in [("kustomize", "build"), ("kubectl", "kustomize")] {
        let script = format!("[ \"$*\" = \"{verb} -- overlay\" ] && {namespace}");
        let (code, out, err) = kustomized(&program(name, &script));
        assert_eq!(code, Some(1), "{out}{err}");
        assert!(out.contains("overlay:3:24: error"), "{out}{err}");
    }
}

#[test]
fn a_kustomize_that_fails_is_heard() {
    let (code, out, err) = kustomized(&program("kustomize", "echo no base here >&2; exit 7"));
    assert_eq!(code, Some(2), "{out}");
    assert_eq!(err, "no base here\nerror: `kustomize build overlay` failed with exit status: 7\n");
}

#[test]
fn without_kustomize_and_kubectl_both_are_named() {
    let (code, _, err) = kustomized(Path::new("/no/such/folder"));
    assert_eq!(code, Some(2));
    assert!(err.contains("-k needs kustomize or kubectl, and neither is installed"), "{err}");
}
