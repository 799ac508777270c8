use portcullis_core::api;

use crate::{policy, read, says};

#[test]
fn a_policy_is_read_with_every_field_it_has() {
    let input = read(
        r#"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: web
  namespace: shop
  labels: {team: "a"}
  annotations: {note: "hi"}
spec:
  podSelector:
    matchLabels: {app: web}
    matchExpressions:
    - {key: tier, operator: In, values: [front, back]}
    - {key: old, operator: DoesNotExist}
  policyTypes: [Ingress, Egress]
  ingress:
  - from:
    - podSelector: {}
      namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: shop}}
    - ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}
    ports:
    - {protocol: UDP, port: 8000, endPort: 8010}
    - port: http
  egress: []
"#,
    );
    assert_eq!(crate::lines(&input), "");
    let raw = &input.policies[0].raw;
    insta::assert_debug_snapshot!(raw.spec, @r#"
    NetworkPolicySpec {
        pod_selector: LabelSelector {
            match_labels: {
                "app": "web",
            },
            match_expressions: [
                LabelSelectorRequirement {
                    key: "tier",
                    operator: "In",
                    values: [
                        "front",
                        "back",
                    ],
                },
                LabelSelectorRequirement {
                    key: "old",
                    operator: "DoesNotExist",
                    values: [],
                },
            ],
        },
        ingress: Some(
            [
                Rule {
                    peers: Some(
                        [
                            Peer {
                                pod_selector: Some(
                                    LabelSelector {
                                        match_labels: {},
                                        match_expressions: [],
                                    },
                                ),
                                namespace_selector: Some(
                                    LabelSelector {
                                        match_labels: {
                                            "kubernetes.io/metadata.name": "shop",
                                        },
                                        match_expressions: [],
                                    },
                                ),
                                ip_block: None,
                            },
                            Peer {
                                pod_selector: None,
                                namespace_selector: None,
                                ip_block: Some(
                                    IpBlock {
                                        cidr: "10.0.0.0/8",
                                        except: [
                                            "10.1.0.0/16",
                                        ],
                                    },
                                ),
                            },
                        ],
                    ),
                    ports: Some(
                        [
                            Port {
                                protocol: Some(
                                    "UDP",
                                ),
                                port: Some(
                                    Int(
                                        8000,
                                    ),
                                ),
                                end_port: Some(
                                    8010,
                                ),
                            },
                            Port {
                                protocol: None,
                                port: Some(
                                    String(
                                        "http",
                                    ),
                                ),
                                end_port: None,
                            },
                        ],
                    ),
                },
            ],
        ),
        egress: Some(
            [],
        ),
        policy_types: Some(
            [
                "Ingress",
                "Egress",
            ],
        ),
    }
    "#);
    assert_eq!((raw.namespace.as_str(), raw.name.as_str()), ("shop", "web"));
    assert_eq!(raw.labels.get("team").unwrap(), "a");
    assert_eq!(input.policies[0].index(), Some(0));
    assert_eq!(input.cluster.policies[0].egress, Some(vec![]));
    assert_eq!(input.read["NetworkPolicy"], 1);
}

#[test]
fn an_unknown_field_is_an_error_that_says_what_was_meant() {
    let text = "
  podselector: {}
  ingres:
  - from: []
  tiers: [a]
  ingress:
  - to: []
    podSelector: {}
    port: 80
  - from:
    - ipblock: {cidr: 10.0.0.0/8}
    - ipBlock: {cidrs: 10.0.0.0/8, except: []}
    - cidr: 10.0.0.0/8
    ports:
    - {protcol: TCP, targetPort: 80}
";
    insta::assert_snapshot!(policy(text), @r#"
    m.yaml:5:3: error: networkpolicy shop/web: unknown field "spec.podselector", did you mean "podSelector"?
    m.yaml:6:3: error: networkpolicy shop/web: unknown field "spec.ingres", did you mean "ingress"?
    m.yaml:8:3: error: networkpolicy shop/web: unknown field "spec.tiers"
    m.yaml:10:5: error: networkpolicy shop/web: unknown field "spec.ingress[0].to", did you mean "egress[].to"?
    m.yaml:11:5: error: networkpolicy shop/web: unknown field "spec.ingress[0].podSelector", did you mean "from[].podSelector"?
    m.yaml:12:5: error: networkpolicy shop/web: unknown field "spec.ingress[0].port", did you mean "ports"?
    m.yaml:14:7: error: networkpolicy shop/web: unknown field "spec.ingress[1].from[0].ipblock", did you mean "ipBlock"?
    m.yaml:15:7: error: networkpolicy shop/web: spec.ingress[1].from[1].ipBlock.cidr: Required value: a block needs a CIDR
    m.yaml:15:17: error: networkpolicy shop/web: unknown field "spec.ingress[1].from[1].ipBlock.cidrs", did you mean "cidr"?
    m.yaml:16:7: error: networkpolicy shop/web: unknown field "spec.ingress[1].from[2].cidr", did you mean "ipBlock.cidr"?
    m.yaml:18:8: error: networkpolicy shop/web: unknown field "spec.ingress[1].ports[0].protcol", did you mean "protocol"?
    m.yaml:18:22: error: networkpolicy shop/web: unknown field "spec.ingress[1].ports[0].targetPort"
    "#);
}

#[test]
fn lost_indentation_is_an_error_for_every_field_that_fell_out_of_the_spec() {
    let text = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
name: web
namespace: shop
spec:
podSelector:
matchLabels:
app: web
policyTypes:
- Ingress
";
    insta::assert_snapshot!(says(text), @r#"
    m.yaml:3:1: error: networkpolicy without a name: metadata.name: Required value: a name is required
    m.yaml:4:1: error: networkpolicy without a name: unknown field "name", did you mean "metadata.name"?
    m.yaml:5:1: error: networkpolicy without a name: unknown field "namespace", did you mean "metadata.namespace"?
    m.yaml:7:1: error: networkpolicy without a name: unknown field "podSelector", did you mean "spec.podSelector"?
    m.yaml:8:1: error: networkpolicy without a name: unknown field "matchLabels"
    m.yaml:9:1: error: networkpolicy without a name: unknown field "app"
    m.yaml:10:1: error: networkpolicy without a name: unknown field "policyTypes", did you mean "spec.policyTypes"?
    "#);
    assert_eq!(read(text).cluster.policies, []);
}

#[test]
fn a_duplicate_key_is_an_error_wherever_it_is() {
    let text = "
  podSelector: {matchLabels: {app: a, app: b}}
  podSelector: {}
  ingress:
  - from:
    - podSelector: {}
    from: []
";
    insta::assert_snapshot!(policy(text), @r#"
    m.yaml:5:39: error: networkpolicy shop/web: duplicate field "spec.podSelector.matchLabels.app": key "app" already set in map, on line 5
    m.yaml:6:3: error: networkpolicy shop/web: duplicate field "spec.podSelector": key "podSelector" already set in map, on line 5
    m.yaml:10:5: error: networkpolicy shop/web: duplicate field "spec.ingress[0].from": key "from" already set in map, on line 8
    "#);
}

#[test]
fn a_wrong_type_is_an_error_that_names_both() {
    let text = "
  podSelector: web
  policyTypes: Ingress
  ingress:
    from: []
  egress:
  - ports:
    - port: 99999999999
    - port: 80.5
    - port: true
    - endPort: \"80\"
    - protocol: 6
    - 80
    to:
    - ipBlock: {cidr: [10.0.0.0/8], except: 10.1.0.0/16}
";
    insta::assert_snapshot!(policy(text), @r#"
    m.yaml:5:16: error: networkpolicy shop/web: spec.podSelector: expected a map, found the string "web"
    m.yaml:6:16: error: networkpolicy shop/web: spec.policyTypes: expected a list, found the string "Ingress"
    m.yaml:7:3: error: networkpolicy shop/web: spec.ingress: expected a list, found a map
    m.yaml:11:13: error: networkpolicy shop/web: spec.egress[0].ports[0].port: expected an integer of 32 bits, found the number 99999999999
    m.yaml:12:13: error: networkpolicy shop/web: spec.egress[0].ports[1].port: expected an integer, found the number 80.5
    m.yaml:13:13: error: networkpolicy shop/web: spec.egress[0].ports[2].port: expected an integer or a string, found the boolean true
    m.yaml:14:16: error: networkpolicy shop/web: spec.egress[0].ports[3].endPort: expected an integer, found the string "80"
    m.yaml:15:17: error: networkpolicy shop/web: spec.egress[0].ports[4].protocol: expected a string, found the number 6: write it in quotes
    m.yaml:16:7: error: networkpolicy shop/web: spec.egress[0].ports[5]: expected a map, found the number 80
    m.yaml:18:17: error: networkpolicy shop/web: spec.egress[0].to[0].ipBlock.cidr: expected a string, found a list
    m.yaml:18:45: error: networkpolicy shop/web: spec.egress[0].to[0].ipBlock.except: expected a list, found the string "10.1.0.0/16"
    "#);
}

#[test]
fn unquoted_scalars_that_yaml_takes_for_something_else_must_be_quoted() {
    let text = "
  podSelector:
    matchLabels: {a: on, b: 1.10, c: yes, d: 010, e: 1e3, f: 0x1F, g: n, h: 2001-01-01, i: \"on\"}
    matchExpressions: [{key: v, operator: In, values: [1, true, x]}]
";
    insta::assert_snapshot!(policy(text), @"
    m.yaml:6:22: error: networkpolicy shop/web: spec.podSelector.matchLabels.a: expected a string, found the boolean on: write it in quotes
    m.yaml:6:29: error: networkpolicy shop/web: spec.podSelector.matchLabels.b: expected a string, found the number 1.10: write it in quotes
    m.yaml:6:38: error: networkpolicy shop/web: spec.podSelector.matchLabels.c: expected a string, found the boolean yes: write it in quotes
    m.yaml:6:46: error: networkpolicy shop/web: spec.podSelector.matchLabels.d: expected a string, found the number 010: write it in quotes
    m.yaml:6:54: error: networkpolicy shop/web: spec.podSelector.matchLabels.e: expected a string, found the number 1e3: write it in quotes
    m.yaml:6:62: error: networkpolicy shop/web: spec.podSelector.matchLabels.f: expected a string, found the number 0x1F: write it in quotes
    m.yaml:6:71: error: networkpolicy shop/web: spec.podSelector.matchLabels.g: expected a string, found the boolean n: write it in quotes
    m.yaml:7:56: error: networkpolicy shop/web: spec.podSelector.matchExpressions[0].values[0]: expected a string, found the number 1: write it in quotes
    m.yaml:7:59: error: networkpolicy shop/web: spec.podSelector.matchExpressions[0].values[1]: expected a string, found the boolean true: write it in quotes
    ");
}

#[test]
fn a_number_is_a_port_however_it_is_written() {
    let text = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec: {ingress: [{ports: [{port: 8_0}, {port: 0x50}, {port: 8e1}, {port: 80.0}, {port: 0120}]}]}
";
    let input = read(text);
    assert_eq!(crate::lines(&input), "");
    let rules = input.policies[0].raw.spec.ingress.as_ref().unwrap();
    let ports: Vec<_> = rules[0].ports.iter().flatten().map(|p| p.port.clone().unwrap()).collect();
    assert_eq!(ports, vec![api::IntOrString::Int(80); 5]);
}

#[test]
fn a_quoted_number_is_a_port_name_and_no_valid_one() {
    let text = "\n  ingress: [{ports: [{port: \"80\"}]}]\n";
    insta::assert_snapshot!(policy(text), @r#"m.yaml:5:29: error: networkpolicy shop/web: spec.ingress[0].ports[0].port: Invalid value: "80": a port name has at least one letter; write a number without quotes"#);
}

#[test]
fn what_the_api_server_refuses_is_refused_at_its_place_all_at_once() {
    let text = "
  policyTypes: [Both]
  ingress:
  - from:
    - podSelector: {}
      ipBlock: {cidr: 10.0.0.0/8}
    - {}
    - ipBlock:
        cidr: 10.0.0.0/8
        except:
        - 11.0.0.0/8
    ports:
    - port: 80
      endPort: 70
    - endPort: 70
";
    insta::assert_snapshot!(policy(text), @r#"
    m.yaml:5:17: error: networkpolicy shop/web: spec.policyTypes[0]: Unsupported value: "Both": supported values: "Ingress", "Egress"
    m.yaml:8:7: error: networkpolicy shop/web: spec.ingress[0].from[0]: Forbidden: ipBlock cannot stand beside a selector: make it a list item of its own
    m.yaml:10:7: error: networkpolicy shop/web: spec.ingress[0].from[1]: Required value: a peer needs podSelector, namespaceSelector or ipBlock
    m.yaml:14:11: error: networkpolicy shop/web: spec.ingress[0].from[2].ipBlock.except[0]: Invalid value: "11.0.0.0/8": must lie strictly inside `cidr` 10.0.0.0/8
    m.yaml:17:16: error: networkpolicy shop/web: spec.ingress[0].ports[0].endPort: Invalid value: 70: must not be below `port`, which is 80
    m.yaml:18:16: error: networkpolicy shop/web: spec.ingress[0].ports[1].endPort: Invalid value: 70: needs `port`: a range is from `port` to `endPort`
    "#);
}

#[test]
fn host_bits_are_a_warning_and_the_policy_counts() {
    let text = "\n  ingress: [{from: [{ipBlock: {cidr: 10.1.2.3/8}}]}]\n";
    insta::assert_snapshot!(policy(text), @r#"m.yaml:5:38: warning: networkpolicy shop/web: spec.ingress[0].from[0].ipBlock.cidr: Invalid value: "10.1.2.3/8": is taken as 10.0.0.0/8: write that"#);
}

#[test]
fn null_is_absent_and_a_null_item_is_an_empty_one_with_a_warning() {
    let text = "
  podSelector: ~
  policyTypes:
  egress:
  -
  ingress:
  - from:
    -
    ports: null
";
    insta::assert_snapshot!(policy(text), @"
    m.yaml:8:4: warning: networkpolicy shop/web: spec.egress[0]: null is taken as {}: write {} if that is meant
    m.yaml:11:6: warning: networkpolicy shop/web: spec.ingress[0].from[0]: null is taken as {}: write {} if that is meant
    m.yaml:11:6: error: networkpolicy shop/web: spec.ingress[0].from[0]: Required value: a peer needs podSelector, namespaceSelector or ipBlock
    ");
    let text = text.replace("  - from:\n    -\n    ports: null\n", "  - from:\n    ports: null\n");
    insta::assert_snapshot!(policy(&text), @"m.yaml:8:4: warning: networkpolicy shop/web: spec.egress[0]: null is taken as {}: write {} if that is meant");
}

#[test]
fn a_policy_of_a_removed_version_is_an_error_that_says_what_to_write() {
    let text = "{apiVersion: extensions/v1beta1, kind: NetworkPolicy, metadata: {name: a}}";
    insta::assert_snapshot!(says(text), @r#"m.yaml:1:14: error: networkpolicy a: no kind "NetworkPolicy" in version "extensions/v1beta1": write `apiVersion: networking.k8s.io/v1`"#);
    let text = "{apiVersion: v1, kind: NetworkPolicy, metadata: {name: a}}";
    insta::assert_snapshot!(says(text), @r#"m.yaml:1:14: error: networkpolicy a: no kind "NetworkPolicy" in version "v1": write `apiVersion: networking.k8s.io/v1`"#);
}

#[test]
fn a_policy_of_another_group_is_another_kind_and_is_passed_over_with_a_warning() {
    let input =
        read("{apiVersion: projectcalico.org/v3, kind: NetworkPolicy, metadata: {name: a}}");
    insta::assert_snapshot!(crate::lines(&input), @"m.yaml:1:42: warning: networkpolicy a: a NetworkPolicy of projectcalico.org is another kind than that of networking.k8s.io: passed over");
    assert_eq!(input.passed_over["NetworkPolicy.projectcalico.org"], 1);
}

#[test]
fn another_kind_of_policy_is_passed_over_with_a_warning() {
    let input = read(
        "{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy, metadata: {name: a, namespace: b}}\n---\n{apiVersion: policy.networking.k8s.io/v1alpha1, kind: AdminNetworkPolicy, metadata: {name: a}}",
    );
    insta::assert_snapshot!(crate::lines(&input), @"
    m.yaml:1:34: warning: ciliumnetworkpolicy b/a: CiliumNetworkPolicy decides about connections too, and is not read: answers are given without it
    m.yaml:3:55: warning: adminnetworkpolicy a: AdminNetworkPolicy decides about connections too, and is not read: answers are given without it
    ");
    assert_eq!(input.passed_over.len(), 2);
}

#[test]
fn a_misspelt_kind_is_an_error() {
    let kinds = ["Networkpolicy", "NetworkPolicies", "NetworkPolcy", "NetworkPolicy x", "Policy"];
    let documents = kinds.map(|k| format!("{{apiVersion: networking.k8s.io/v1, kind: {k}}}\n"));
    insta::assert_snapshot!(says(&documents.join("---\n")), @r#"
    m.yaml:1:42: error: networkpolicy: no kind "Networkpolicy" in version "networking.k8s.io/v1", did you mean "NetworkPolicy"?
    m.yaml:3:42: error: networkpolicies: no kind "NetworkPolicies" in version "networking.k8s.io/v1", did you mean "NetworkPolicy"?
    m.yaml:5:42: error: networkpolcy: no kind "NetworkPolcy" in version "networking.k8s.io/v1", did you mean "NetworkPolicy"?
    m.yaml:7:42: error: networkpolicy x: no kind "NetworkPolicy x" in version "networking.k8s.io/v1", did you mean "NetworkPolicy"?
    m.yaml:9:42: error: policy: no kind "Policy" in version "networking.k8s.io/v1"
    "#);
}

#[test]
fn a_kind_that_no_kind_can_be_called_is_an_error() {
    let text = "apiVersion: example.com/v1\nkind: NetworkPolicy\n more: text\n";
    insta::assert_snapshot!(says(text), @"m.yaml:3:6: error: mapping values are not allowed in this context");
    let text = "apiVersion: example.com/v1\nkind: NetworkPolicy\n more text\n";
    insta::assert_snapshot!(says(text), @r#"m.yaml:2:7: error: networkpolicy more text: no kind "NetworkPolicy more text" in version "example.com/v1""#);
}

#[test]
fn line_breaks_in_names_do_not_break_lines() {
    let text = "{apiVersion: v1, kind: Pod, metadata: {name: \"a\\nb\", \"x\\ny\": 1}}";
    insta::assert_snapshot!(says(text), @r#"
    m.yaml:1:46: error: pod default/a\nb: metadata.name: Invalid value: "a\nb": must be a DNS name: lower case letters, digits, '-' and '.', with a letter or digit at both ends of each part, such as 'example.com'
    m.yaml:1:54: error: pod default/a\nb: unknown field "metadata.x\ny"
    "#);
}

#[test]
fn labels_that_a_null_or_a_key_makes_are_those_of_the_api_server() {
    let input = read(
        "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec: {podSelector: {matchLabels: {on: a, 010: b, 'no': c}}}
",
    );
    let labels = &input.policies[0].raw.spec.pod_selector.match_labels;
    let labels: Vec<_> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    assert_eq!(labels.join(","), "8=b,no=c,true=a");
}

#[test]
fn semantics_22_a_rule_that_cannot_be_decoded_allows_nothing() {
    for rule in [
        "ingress: [{form: [{podSelector: {}}]}]",
        "ingress: [{from: 7}]",
        "ingress: [{ports: [{prot: 80}]}]",
        "ingress: [{ports: [80]}]",
        "ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0, except: 10.0.0.0/8}}]}]",
        "ingress: [{}]\n  podSelector: {matchLabel: {app: web}}",
        "ingress: [{}]\n  policyTypes: [Ingres]",
    ] {
        let text = format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: web}}\n\
             spec:\n  {rule}\n"
        );
        let input = read(&text);
        assert!(input.has_errors(), "{rule}");
        let closed = input.meanings().next().unwrap();
        assert_eq!(closed.ingress, Some(vec![portcullis_core::model::Rule::nothing()]), "{rule}");
    }
}
