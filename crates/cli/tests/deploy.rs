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

/// What a program prints. `None` if it is not installed; then it must not be required either.
fn printed(program: &str, arguments: &[&str]) -> Option<String> {
    let Ok(output) = Command::new(program).args(arguments).output() else {
        let variable = format!("PORTCULLIS_REQUIRE_{}", program.to_uppercase());
        let required = std::env::var(&variable).is_ok_and(|value| value == "1");
        assert!(!required, "{program} is not installed, and {variable} is 1");
        eprintln!("not tested: {program} is not installed");
        return None;
    };
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(text)
}

/// What `kubectl apply -k` would apply of a folder, in one way of writing.
fn kustomized(folder: &Path) -> Option<String> {
    printed("kubectl", &["kustomize", folder.to_str().unwrap()])
}

/// What `helm install` would apply, in the same way of writing.
fn templated(name: &str, values: &[&str]) -> Option<String> {
    let chart = deploy("helm/portcullis");
    let mut arguments = vec!["template", "portcullis", "--namespace", "kube-system"];
    arguments.push(chart.to_str().unwrap());
    arguments.extend(values.iter().flat_map(|value| ["--set", value]));
    let text = printed("helm", &arguments)?;
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("all.yaml"), text).unwrap();
    fs::write(folder.join("kustomization.yaml"), "resources: [all.yaml]\n").unwrap();
    kustomized(&folder)
}

fn check(path: &Path) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    let output = command.args(["check", "-f"]).arg(path).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{text}");
}

#[test]
fn the_manifests_are_valid() {
    check(&deploy("manifests"));
    let Some(text) = kustomized(&deploy("manifests-cni")) else { return };
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("manifests-cni.yaml");
    fs::write(&file, text).unwrap();
    check(&file);
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
        // What is there if it is asked for.
        let text = text.split("{{- if .Values.events }}").next().unwrap();
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

/// The parts of a DaemonSet in one way of writing that are about each of its containers.
fn containers(text: &str) -> Vec<&str> {
    let (_, text) = text.split_once("      containers:\n").unwrap();
    let (text, _) = text.split_once("      hostNetwork: true\n").unwrap();
    text.split("\n      - args:").collect()
}

#[test]
fn the_agent_is_not_root_and_has_one_capability() {
    for folder in ["manifests", "manifests-cni", "manifests-events"] {
        let Some(text) = kustomized(&deploy(folder)) else { return };
        let agent = containers(&text)[0];
        for wanted in [
            "            add:\n            - NET_ADMIN\n            drop:\n            - ALL\n",
            "readOnlyRootFilesystem: true\n",
            "runAsNonRoot: true\n",
            "runAsUser: 65532\n",
        ] {
            assert_eq!(agent.matches(wanted).count(), 1, "{wanted} in {agent}");
        }
        assert!(!text.contains("privileged"), "{text}");
        assert!(text.contains("priorityClassName: system-node-critical\n"), "{text}");
    }
}

#[test]
fn events_are_asked_for_and_may_be_created_and_nothing_else() {
    let (Some(without), Some(with)) =
        (kustomized(&deploy("manifests")), kustomized(&deploy("manifests-events")))
    else {
        return;
    };
    let more: Vec<_> = with.lines().filter(|line| !without.lines().any(|l| l == *line)).collect();
    let wanted = [
        "  name: portcullis-events",
        "  - events",
        "  - create",
        "  name: portcullis-events",
        "  name: portcullis-events",
        "        - --events",
    ];
    assert_eq!(more, wanted);
}

#[test]
fn what_writes_on_the_node_is_another_container_and_has_no_power_over_its_network() {
    let Some(text) = kustomized(&deploy("manifests-cni")) else { return };
    let [agent, installer] = containers(&text)[..] else { panic!("{text}") };
    assert!(!agent.contains("/host/"), "{agent}");
    for wanted in [
        "            add:\n            - CHOWN\n            drop:\n            - ALL\n",
        "readOnlyRootFilesystem: true\n",
        "allowPrivilegeEscalation: false\n",
    ] {
        assert_eq!(installer.matches(wanted).count(), 1, "{wanted} in {installer}");
    }
}

#[test]
fn the_chart_renders_to_what_the_manifests_are() {
    let pairs = [
        ("manifests", &[][..], "chart"),
        ("manifests-cni", &["cni.enabled=true"], "chart-cni"),
        ("manifests-events", &["events=true"], "chart-events"),
    ];
    for (folder, values, name) in pairs {
        let (Some(chart), Some(manifests)) = (templated(name, values), kustomized(&deploy(folder)))
        else {
            return;
        };
        assert_eq!(chart, manifests, "{folder}");
    }
}

#[test]
fn what_the_chart_can_do_besides_is_asked_for() {
    let values = ["metrics.podMonitor=true", "metrics.address=0.0.0.0", "metrics.port=9999"];
    let Some(text) = templated("chart-monitor", &values) else { return };
    assert!(text.contains("kind: PodMonitor\n"), "{text}");
    assert!(text.contains("--metrics-address=0.0.0.0:9999\n"), "{text}");
    assert_eq!(text.matches("host: 127.0.0.1\n").count(), 2, "{text}");
    assert!(!text.contains("kind: Service\n"), "{text}");
    let values = ["metrics.serviceMonitor=true", "metrics.port=9999"];
    let Some(text) = templated("chart-service-monitor", &values) else { return };
    let of_kind = |kind: &str| {
        let mut objects = text.split("---\n");
        objects.find(|object| object.contains(&format!("\nkind: {kind}\n"))).unwrap()
    };
    let (service, monitor) = (of_kind("Service"), of_kind("ServiceMonitor"));
    let agent = "app.kubernetes.io/name: portcullis\n";
    // Its own label, by which the monitor finds it, and that of the pods.
    assert_eq!(service.matches(agent).count(), 2, "{service}");
    assert!(service.contains("  clusterIP: None\n"), "{service}");
    assert!(service.contains("  - name: metrics\n    port: 9999\n    targetPort: metrics\n"));
    assert!(monitor.contains("  endpoints:\n  - port: metrics\n"), "{monitor}");
    assert!(
        monitor.contains(&format!("  selector:\n    matchLabels:\n      {agent}")),
        "{monitor}"
    );
    assert!(!text.contains("kind: PodMonitor\n"), "{text}");
    assert!(printed("helm", &["lint", deploy("helm/portcullis").to_str().unwrap()]).is_some());
}
