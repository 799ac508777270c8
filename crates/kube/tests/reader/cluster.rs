use portcullis_kube::{Input, Options, Source, load};

use crate::{lines, read, says};

const WEB: &str = "\
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web, tier: front}}
    spec: {containers: [{name: c, ports: [{containerPort: 80}]}]}
";

/// The findings, then each pod with its workload and addresses.
fn pods(input: &Input) -> String {
    let pods = input.cluster.pods.iter().map(|p| {
        let workload = p.workload.as_ref().map(|w| format!(" of {} {}", w.kind, w.name));
        format!("{}/{}{}\n", p.namespace, p.name, workload.unwrap_or_default())
    });
    lines(input) + &pods.collect::<String>()
}

fn pod(name: &str, owner: &str, more: &str) -> String {
    let (kind, owner) = owner.split_once('/').unwrap();
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{app: web{more}}},\n  \
         ownerReferences: [{{apiVersion: v1, kind: {kind}, name: {owner}, uid: u, controller: true}}]}}\n"
    )
}

#[test]
fn a_workload_stands_for_its_pods() {
    let input = read(WEB);
    insta::assert_snapshot!(pods(&input), @"
    shop/web-0 of Deployment web
    shop/web-1 of Deployment web
    ");
    let pod = &input.cluster.pods[1];
    assert_eq!(pod.labels.get("tier").unwrap(), "front");
    assert_eq!(pod.ports[0].port, 80);
    let options = Options { replicas: 10, ..Options::default() };
    let source = Source::Text { name: "m.yaml".into(), text: WEB.into() };
    assert_eq!(load(&[source], &options).cluster.pods.len(), 3);
}

#[test]
fn each_kind_of_workload_has_its_own_number_of_pods() {
    let template = "template: {metadata: {labels: {a: b}}, spec: {}}";
    let selector = "selector: {matchLabels: {a: b}}";
    let text = format!(
        "
{{apiVersion: apps/v1, kind: StatefulSet, metadata: {{name: s}}, spec: {{replicas: 5, serviceName: s, {selector}, {template}}}}}
---
{{apiVersion: apps/v1, kind: ReplicaSet, metadata: {{name: r}}, spec: {{{selector}, {template}}}}}
---
{{apiVersion: apps/v1, kind: DaemonSet, metadata: {{name: d}}, spec: {{{selector}, {template}}}}}
---
{{apiVersion: batch/v1, kind: Job, metadata: {{name: j}}, spec: {{parallelism: 9, {template}}}}}
---
{{apiVersion: batch/v1, kind: CronJob, metadata: {{name: c}}, spec: {{schedule: '* * * * *', jobTemplate: {{spec: {{{template}}}}}}}}}
---
{{apiVersion: v1, kind: ReplicationController, metadata: {{name: rc}}, spec: {{selector: {{a: b}}, {template}}}}}
---
{{apiVersion: apps/v1, kind: Deployment, metadata: {{name: none}}, spec: {{replicas: 0, {selector}, {template}}}}}
---
{{apiVersion: batch/v1, kind: Job, metadata: {{name: done}}, spec: {{{template}}}, status: {{completionTime: now}}}}
"
    );
    insta::assert_snapshot!(pods(&read(&text)), @"
    m.yaml:14:82: note: deployment default/none: spec.replicas: is 0: it stands for no pods
    m.yaml:16:1: note: job default/done: is complete: it stands for no pods
    default/s-0 of StatefulSet s
    default/s-1 of StatefulSet s
    default/r-0 of ReplicaSet r
    default/d-0 of DaemonSet d
    default/j-0 of Job j
    default/c-0 of CronJob c
    default/rc-0 of ReplicationController rc
    ");
    let node = |n: u32| format!("---\n{{apiVersion: v1, kind: Node, metadata: {{name: n{n}}}}}\n");
    let daemons = |nodes: u32| {
        let input = read(&(text.clone() + &(0..nodes).map(node).collect::<String>()));
        input.cluster.pods.iter().filter(|p| p.name.starts_with("d-")).count()
    };
    assert_eq!([daemons(1), daemons(2), daemons(5)], [1, 2, 2]);
}

#[test]
fn a_workload_with_pods_in_the_input_stands_for_none() {
    let direct = WEB.to_owned() + &pod("web-x", "Deployment/web", "");
    insta::assert_snapshot!(pods(&read(&direct)), @"shop/web-x of Deployment web");
}

#[test]
fn the_outermost_owner_is_the_workload() {
    let set = "---
apiVersion: apps/v1
kind: ReplicaSet
metadata: {name: web-6d4c, namespace: shop,
  ownerReferences: [{apiVersion: apps/v1, kind: Deployment, name: web, uid: u, controller: true}]}
spec: {replicas: 2, selector: {matchLabels: {app: web}}, template: {metadata: {labels: {app: web}}}}
";
    let all = WEB.to_owned() + set;
    insta::assert_snapshot!(pods(&read(&all)), @"
    shop/web-0 of Deployment web
    shop/web-1 of Deployment web
    ");
    insta::assert_snapshot!(pods(&read(set)), @"
    shop/web-6d4c-0 of Deployment web
    shop/web-6d4c-1 of Deployment web
    ");
    let all = all + &pod("web-6d4c-x", "ReplicaSet/web-6d4c", "");
    insta::assert_snapshot!(pods(&read(&all)), @"shop/web-6d4c-x of Deployment web");
}

#[test]
fn a_replica_set_that_is_not_in_the_input_is_of_the_deployment_that_its_name_begins_with() {
    let hashed = pod("a", "ReplicaSet/web-6d4c", ", pod-template-hash: 6d4c");
    let other = pod("b", "ReplicaSet/web-6d4c", "");
    insta::assert_snapshot!(pods(&read(&(hashed + &other))), @"
    shop/a of Deployment web
    shop/b of ReplicaSet web-6d4c
    ");
}

#[test]
fn a_job_is_of_its_cron_job_and_a_static_pod_of_no_workload() {
    let job = "---
apiVersion: batch/v1
kind: Job
metadata: {name: backup-1, namespace: shop,
  ownerReferences: [{apiVersion: batch/v1, kind: CronJob, name: backup, uid: u, controller: true}]}
spec: {template: {spec: {}}}
";
    let text =
        job.to_owned() + &pod("backup-1-x", "Job/backup-1", "") + &pod("etcd", "Node/node-1", "");
    insta::assert_snapshot!(pods(&read(&text)), @"
    shop/backup-1-x of CronJob backup
    shop/etcd
    ");
}

#[test]
fn owners_in_a_circle_end_nowhere() {
    let set = |name: &str, owner: &str| {
        format!(
            "---
apiVersion: apps/v1
kind: ReplicaSet
metadata: {{name: {name}, ownerReferences: [{{kind: ReplicaSet, name: {owner}, controller: true}}]}}
spec: {{selector: {{matchLabels: {{a: b}}}}, template: {{metadata: {{labels: {{a: b}}}}}}}}
"
        )
    };
    let input = read(&(set("a", "b") + &set("b", "a") + &set("c", "c")));
    insta::assert_snapshot!(pods(&input), @"default/c-0 of ReplicaSet c");
}

#[test]
fn pods_of_a_template_take_no_name_that_is_taken() {
    let text = WEB.to_owned()
        + "---\n{apiVersion: v1, kind: Pod, metadata: {name: web-0, namespace: shop}}";
    insta::assert_snapshot!(pods(&read(&text)), @"
    shop/web-0
    shop/web-1 of Deployment web
    shop/web-2 of Deployment web
    ");
}

#[test]
fn a_template_that_its_selector_does_not_match_is_an_error() {
    insta::assert_snapshot!(says(&WEB.replace("matchLabels: {app: web}", "matchLabels: {app: wep}")), @r#"m.yaml:8:16: error: deployment shop/web: spec.template.metadata.labels: Invalid value: {"app": "web", "tier": "front"}: must match spec.selector, which is app=wep"#);
    insta::assert_snapshot!(says(&WEB.replace("selector: {matchLabels: {app: web}}", "paused: false")), @"m.yaml:4:1: error: deployment shop/web: spec.selector: Required value: a selector for the pods of the template");
    insta::assert_snapshot!(says(&WEB.replace("{matchLabels: {app: web}}", "{}")), @"m.yaml:6:3: error: deployment shop/web: spec.selector: Invalid value: {}: an empty selector would own every pod of the namespace");
    insta::assert_snapshot!(says(&WEB.replace("  template:", "  templates:")), @r#"
    m.yaml:4:1: error: deployment shop/web: spec.template: Required value
    m.yaml:7:3: error: deployment shop/web: unknown field "spec.templates", did you mean "template"?
    "#);
    insta::assert_snapshot!(says(&WEB.replace("replicas: 3", "replicas: -1")), @"m.yaml:5:13: error: deployment shop/web: spec.replicas: Invalid value: -1: must not be negative");
}

#[test]
fn the_same_object_twice_is_a_warning_and_a_different_one_an_error() {
    let pod = |label: &str| {
        format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: a, labels: {{app: {label}}}}}\n")
    };
    insta::assert_snapshot!(pods(&read(&[pod("x"), pod("x")].join("---\n"))), @"
    m.yaml:5:1: warning: pod default/a: is there already, the same, at m.yaml:1:1
    default/a
    ");
    insta::assert_snapshot!(pods(&read(&[pod("x"), pod("z")].join("---\n"))), @"
    m.yaml:5:1: error: pod default/a: is there already, and different, at m.yaml:1:1: only that one counts
    default/a
    ");
    let policy = |types: &str| {
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: a}}\nspec: {{policyTypes: [{types}]}}\n"
        )
    };
    insta::assert_snapshot!(says(&[policy("Ingress"), policy("Egress")].join("---\n")), @"m.yaml:6:1: error: networkpolicy default/a: is there already, and different, at m.yaml:1:1: only that one counts");
}

#[test]
fn two_pods_with_one_address_are_an_error_unless_it_is_that_of_the_node_or_one_is_finished() {
    let pod = |name: &str, spec: &str, phase: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\nstatus: {{phase: {phase}, podIP: 10.0.0.1}}\n"
        )
    };
    let all = [
        pod("a", "", "Running"),
        pod("b", "hostNetwork: true", "Running"),
        pod("c", "", "Succeeded"),
        pod("d", "", "Pending"),
    ];
    insta::assert_snapshot!(says(&all.join("---\n")), @"m.yaml:23:1: error: pod default/d: status.podIPs: 10.0.0.1 is the address of pod default/a too, at m.yaml:1:1");
}

#[test]
fn a_namespace_without_an_object_is_noted_if_a_policy_asks_for_its_labels() {
    let text = |label: &str| {
        format!(
            "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: a, namespace: shop}}
spec: {{ingress: [{{from: [{{namespaceSelector: {{matchLabels: {{{label}: dev}}}}}}]}}]}}
---
{{apiVersion: v1, kind: Pod, metadata: {{name: a, namespace: dev}}}}
---
{{apiVersion: v1, kind: Pod, metadata: {{name: b, namespace: dev}}}}
---
{{apiVersion: v1, kind: Pod, metadata: {{name: b, namespace: prod}}}}
---
{{apiVersion: v1, kind: Namespace, metadata: {{name: prod}}}}
"
        )
    };
    insta::assert_snapshot!(says(&text("env")), @"
    m.yaml:7:1: note: namespace dev is not in the input: only its label kubernetes.io/metadata.name is known
    m.yaml:2:1: note: namespace shop is not in the input: only its label kubernetes.io/metadata.name is known
    ");
    insta::assert_snapshot!(says(&text("kubernetes.io/metadata.name")), @"");
}

#[test]
fn objects_that_name_no_namespace_are_in_the_one_of_the_options() {
    let options = Options { namespace: "mine".into(), ..Options::default() };
    let text = "{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: ''}}";
    let input = load(&[Source::Text { name: "m".into(), text: text.into() }], &options);
    assert_eq!(pods(&input), "mine/a\n");
}
