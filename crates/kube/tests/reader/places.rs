use portcullis_kube::{Input, ObjectRef};

use crate::read;

const TEXT: &str = "\
# shop
---
apiVersion: v1
kind: List
items:
- apiVersion: networking.k8s.io/v1
  kind: NetworkPolicy
  metadata: {name: a}
  spec: {}
- apiVersion: networking.k8s.io/v1
  kind: NetworkPolicy
  metadata:
    name: b
  spec:
    podSelector:
      matchLabels:
        app.kubernetes.io/name: web
    ingress:
    - ports: [{port: 80}]
    - from:
      - ipBlock: {cidr: 10.0.0.0/8}
      - podSelector: {}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - ports:
        - containerPort: 80
---
{\"apiVersion\": \"v1\", \"kind\": \"Namespace\", \"metadata\": {\"name\": \"shop\"}}
{\"apiVersion\": \"v1\", \"kind\": \"Node\",
 \"metadata\": {\"name\": \"n\"}}
";

/// Where it is, and what is written there.
fn at(input: &Input, object: ObjectRef<'_>, path: &str) -> String {
    let location = input.locate(object, path).unwrap();
    let line = input.line(&location).unwrap();
    let rest: String = line.chars().skip(location.column as usize - 1).collect();
    format!("{location} {rest}")
}

#[test]
fn every_field_of_an_object_can_be_found_again() {
    let input = read(TEXT);
    assert_eq!(crate::lines(&input), "");
    let policy = |path: &str| at(&input, ObjectRef::Policy(1), path);
    let paths = [
        "",
        "metadata.name",
        "spec.podSelector.matchLabels[app.kubernetes.io/name]",
        "spec.ingress",
        "spec.ingress[0].ports[0].port",
        "spec.ingress[1].from[0].ipBlock.cidr",
        "spec.ingress[1].from[1].podSelector",
        "spec.ingress[1].from[2].podSelector",
        "spec.ingress[0].ports[0].endPort",
        "spec.egress",
        "nonsense[",
    ];
    let found = paths.map(|path| format!("{path} => {}\n", policy(path))).concat();
    insta::assert_snapshot!(found, @"
     => m.yaml:10:3 apiVersion: networking.k8s.io/v1
    metadata.name => m.yaml:13:11 b
    spec.podSelector.matchLabels[app.kubernetes.io/name] => m.yaml:17:33 web
    spec.ingress => m.yaml:18:5 ingress:
    spec.ingress[0].ports[0].port => m.yaml:19:22 80}]
    spec.ingress[1].from[0].ipBlock.cidr => m.yaml:21:25 10.0.0.0/8}
    spec.ingress[1].from[1].podSelector => m.yaml:22:9 podSelector: {}
    spec.ingress[1].from[2].podSelector => m.yaml:20:7 from:
    spec.ingress[0].ports[0].endPort => m.yaml:19:15 {port: 80}]
    spec.egress => m.yaml:14:3 spec:
    nonsense[ => m.yaml:10:3 apiVersion: networking.k8s.io/v1
    ");
}

#[test]
fn a_pod_of_a_template_is_found_in_it() {
    let input = read(TEXT);
    let pod = |path: &str| at(&input, ObjectRef::Pod(1), path);
    let paths =
        ["", "metadata.name", "metadata.labels[app]", "spec.containers[0].ports[0].containerPort"];
    insta::assert_snapshot!(paths.map(|path| format!("{path} => {}\n", pod(path))).concat(), @"
     => m.yaml:24:1 apiVersion: apps/v1
    metadata.name => m.yaml:26:18 web}
    metadata.labels[app] => m.yaml:31:30 web}}
    spec.containers[0].ports[0].containerPort => m.yaml:35:26 80
    ");
}

#[test]
fn objects_of_json_are_found() {
    let input = read(TEXT);
    let places = [
        at(&input, ObjectRef::Namespace("shop"), "metadata.name"),
        at(&input, ObjectRef::Node(0), "metadata"),
    ];
    insta::assert_snapshot!(places.join("\n"), @r#"
    m.yaml:37:64 "shop"}}
    m.yaml:39:2 "metadata": {"name": "n"}}
    "#);
}

#[test]
fn an_object_that_is_not_there_is_nowhere() {
    let input = read(TEXT);
    assert_eq!(input.locate(ObjectRef::Policy(2), ""), None);
    assert_eq!(input.locate(ObjectRef::Pod(2), ""), None);
    assert_eq!(input.locate(ObjectRef::Service(0), ""), None);
    assert_eq!(input.locate(ObjectRef::Namespace("dev"), ""), None);
}
