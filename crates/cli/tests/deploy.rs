//! What is in deploy/ installs the agent, with what it needs and nothing more.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use portcullis_kube::live::Kind;

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy").join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(deploy(path)).unwrap()
}

#[test]
fn the_manifests_are_valid() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    let output = command.args(["check", "-f"]).arg(deploy("manifests")).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{text}");
}

/// The rules of a ClusterRole that lets an agent list and watch what it watches.
fn needed() -> String {
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    for (group, resource) in Kind::ALL.map(Kind::group_and_resource) {
        match groups.iter_mut().find(|(known, _)| *known == group) {
            Some((_, resources)) => resources.push(resource),
            None => groups.push((group, vec![resource])),
        }
    }
    let rules = groups.iter().map(|(group, resources)| {
        format!(
            "  - apiGroups: [{group:?}]\n    resources: {resources:?}\n    verbs: [\"list\", \"watch\"]\n"
        )
    });
    rules.collect()
}

#[test]
fn the_agent_may_list_and_watch_four_kinds_and_nothing_else() {
    for file in ["manifests/rbac.yaml", "helm/portcullis/templates/rbac.yaml"] {
        let text = read(file);
        assert_eq!(
            text.matches("kind: ClusterRole\n").count(),
            2,
            "a role and its binding: {file}"
        );
        assert_eq!(text.matches("rules:\n").count(), 1, "{file}");
        assert!(!text.contains("kind: Role\n"), "{file}");
        let (_, rules) = text.split_once("rules:\n").unwrap();
        let (rules, _) = rules.split_once("---\n").unwrap();
        assert_eq!(rules, needed(), "{file}");
    }
}

#[test]
fn the_agent_has_two_capabilities() {
    for file in ["manifests/daemonset.yaml", "helm/portcullis/templates/daemonset.yaml"] {
        let text = read(file);
        for wanted in [
            "drop: [\"ALL\"]\n",
            "add: [\"NET_ADMIN\", \"NET_RAW\"]\n",
            "readOnlyRootFilesystem: true\n",
            "allowPrivilegeEscalation: false\n",
            "priorityClassName: system-node-critical\n",
            "hostNetwork: true\n",
        ] {
            assert_eq!(text.matches(wanted).count(), 1, "{wanted} in {file}");
        }
        assert!(!text.contains("privileged"), "{file}");
    }
}

/// Without `helm` it is skipped.
#[test]
fn the_chart_renders_to_what_the_manifests_are() {
    let Ok(output) = Command::new("helm")
        .args(["template", "portcullis", "--namespace", "kube-system"])
        .arg(deploy("helm/portcullis"))
        .output()
    else {
        eprintln!("not tested: helm is not installed");
        return;
    };
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains(&needed()), "{text}");
    assert!(text.contains("image: \"portcullis:0.1.0\""), "{text}");
}
