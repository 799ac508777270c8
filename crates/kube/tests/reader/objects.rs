use crate::{lines, read, says};

#[test]
fn a_pod_is_read_with_what_policies_ask_of_it() {
    let input = read(
        "
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: shop, labels: {app: web}}
spec:
  nodeName: node-1
  hostNetwork: true
  initContainers:
  - {name: once, ports: [{containerPort: 1}]}
  - {name: sidecar, restartPolicy: Always, ports: [{containerPort: 53, protocol: UDP, name: dns}]}
  containers:
  - {name: main, image: x, ports: [{containerPort: 80, name: http, hostPort: 8080}, {containerPort: 81}]}
status:
  phase: Failed
  podIP: 10.0.0.1
  podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}, {ip: ''}]
  whatever: {from: a cluster}
",
    );
    assert_eq!(lines(&input), "");
    insta::assert_debug_snapshot!(input.cluster.pods[0], @r#"
    Pod {
        namespace: "shop",
        name: "a",
        labels: {
            "app": "web",
        },
        workload: None,
        node: Some(
            "node-1",
        ),
        host_network: true,
        finished: true,
        addresses: [
            10.0.0.1,
            fd00::1,
        ],
        ports: [
            ContainerPort {
                name: Some(
                    "http",
                ),
                port: 80,
                protocol: Tcp,
            },
            ContainerPort {
                name: None,
                port: 81,
                protocol: Tcp,
            },
            ContainerPort {
                name: Some(
                    "dns",
                ),
                port: 53,
                protocol: Udp,
            },
        ],
        ports_unknown: false,
    }
    "#);
}

#[test]
fn mistakes_in_a_pod_are_errors() {
    let text = "\
apiVersion: v1
kind: Pod
metadata: {name: A_b, labels: {app: 'a b'}, annotations: {debug: true}}
spec:
  hostNetwork: 'true'
  ports: []
  containers:
  - name: main
    port: 80
    ports:
    - {name: http, port: 80}
    - {containerPort: 0}
    - {containerPort: 80, protocol: tcp}
    - {containerPort: '80'}
";
    insta::assert_snapshot!(says(text), @r#"
    m.yaml:3:18: error: pod default/A_b: metadata.name: Invalid value: "A_b": must be a DNS name: lower case letters, digits, '-' and '.', with a letter or digit at both ends of each part, such as 'example.com'
    m.yaml:3:23: error: pod default/A_b: metadata.labels: Invalid value: "a b": must be empty or of letters, digits, '-', '_' and '.', with a letter or digit at both ends, such as 'my.name'
    m.yaml:3:66: error: pod default/A_b: metadata.annotations.debug: expected a string, found the boolean true: write it in quotes
    m.yaml:5:16: error: pod default/A_b: spec.hostNetwork: expected true or false, found the string "true"
    m.yaml:6:3: error: pod default/A_b: unknown field "spec.ports", did you mean "containers[].ports"?
    m.yaml:9:5: error: pod default/A_b: unknown field "spec.containers[0].port", did you mean "ports"?
    m.yaml:11:7: error: pod default/A_b: spec.containers[0].ports[0].containerPort: Required value
    m.yaml:11:20: error: pod default/A_b: unknown field "spec.containers[0].ports[0].port"
    m.yaml:12:23: error: pod default/A_b: spec.containers[0].ports[1].containerPort: Invalid value: 0: must be between 1 and 65535
    m.yaml:13:37: error: pod default/A_b: spec.containers[0].ports[2].protocol: Unsupported value: "tcp": supported values: "SCTP", "TCP", "UDP"
    m.yaml:14:23: error: pod default/A_b: spec.containers[0].ports[3].containerPort: expected an integer, found the string "80"
    "#);
}

#[test]
fn namespaces_nodes_and_services_are_read() {
    let input = read(
        "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {env: prod}}
---
apiVersion: v1
kind: Node
metadata: {name: node-1}
spec: {podCIDR: 10.0.1.0/24, podCIDRs: [10.0.1.0/24, 'fd00:1::/64']}
status: {addresses: [{type: InternalIP, address: 192.168.0.1}, {type: Hostname, address: node-1}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1, 'fd00:2::1']
  ports:
  - {name: http, port: 80, targetPort: http, nodePort: 30080}
  - {port: 53, protocol: UDP}
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec: {clusterIP: None, selector: {}}
---
apiVersion: v1
kind: Service
metadata: {name: outside}
spec: {type: ExternalName, externalName: example.com, selector: {app: web}}
",
    );
    assert_eq!(lines(&input), "");
    let cluster = &input.cluster;
    insta::assert_debug_snapshot!((&cluster.namespaces, &cluster.nodes, &cluster.services), @r#"
    (
        {
            "shop": {
                "env": "prod",
                "kubernetes.io/metadata.name": "shop",
            },
        },
        [
            Node {
                name: "node-1",
                addresses: [
                    192.168.0.1,
                ],
                pod_cidrs: [
                    10.0.1.0/24,
                    fd00:1::/64,
                ],
            },
        ],
        [
            Service {
                namespace: "default",
                name: "web",
                labels: {},
                selector: Some(
                    {
                        "app": "web",
                    },
                ),
                cluster_ips: [
                    10.96.0.1,
                    fd00:2::1,
                ],
                headless: false,
                ports: [
                    ServicePort {
                        name: Some(
                            "http",
                        ),
                        protocol: Tcp,
                        port: 80,
                        target: Name(
                            "http",
                        ),
                    },
                    ServicePort {
                        name: None,
                        protocol: Udp,
                        port: 53,
                        target: Number(
                            53,
                        ),
                    },
                ],
            },
            Service {
                namespace: "default",
                name: "headless",
                labels: {},
                selector: None,
                cluster_ips: [],
                headless: true,
                ports: [],
            },
            Service {
                namespace: "default",
                name: "outside",
                labels: {},
                selector: None,
                cluster_ips: [],
                headless: false,
                ports: [],
            },
        ],
    )
    "#);
}

#[test]
fn mistakes_in_namespaces_nodes_and_services_are_errors() {
    let text = "\
{apiVersion: v1, kind: Namespace, metadata: {name: a.b}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: shop, label: {a: b}}}
---
{apiVersion: v1, kind: Node, metadata: {name: n}, spec: {podCIDR: 10.0.0.0}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selectors: {app: web}
  ports: [{port: 70000}, {targetPort: 80}, {port: 80, protocol: HTTP}, {port: 80, targetPort: 0}]
";
    insta::assert_snapshot!(says(text), @r#"
    m.yaml:1:52: error: namespace a.b: metadata.name: Invalid value: "a.b": must be of lower case letters, digits and '-', with a letter or digit at both ends, and no more than 63 characters
    m.yaml:3:58: error: namespace shop: unknown field "metadata.label", did you mean "labels"?
    m.yaml:5:47: error: node without a name: metadata.name: expected a string, found the boolean n: write it in quotes
    m.yaml:5:47: error: node without a name: metadata.name: Required value: a name is required
    m.yaml:5:67: error: node without a name: spec.podCIDR: Invalid value: "10.0.0.0": must be a CIDR
    m.yaml:11:3: error: service default/web: unknown field "spec.selectors", did you mean "selector"?
    m.yaml:12:18: error: service default/web: spec.ports[0].port: Invalid value: 70000: must be between 1 and 65535
    m.yaml:12:26: error: service default/web: spec.ports[1].port: Required value
    m.yaml:12:65: error: service default/web: spec.ports[2].protocol: Unsupported value: "HTTP": supported values: "SCTP", "TCP", "UDP"
    m.yaml:12:95: error: service default/web: spec.ports[3].targetPort: Invalid value: 0: must be between 1 and 65535
    "#);
}

#[test]
fn a_wrong_name_label_of_a_namespace_is_a_warning_and_has_no_effect() {
    let text = "\
apiVersion: v1
kind: Namespace
metadata:
  name: shop
  labels:
    kubernetes.io/metadata.name: other
";
    let input = read(text);
    insta::assert_snapshot!(lines(&input), @r#"m.yaml:6:34: warning: namespace shop: metadata.labels[kubernetes.io/metadata.name]: is always the name of the namespace: "other" has no effect"#);
    let label = input.cluster.namespaces["shop"].get("kubernetes.io/metadata.name");
    assert_eq!(label.unwrap(), "shop");
}
