//! The property tests: whatever comes in, nothing panics and no policy is lost.

use proptest::prelude::*;

use crate::never_lost::check;

const SEED: &str = "\
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
  ingress:
  - from:
    - podSelector: &any
        matchExpressions:
        - key: tier
          operator: In
          values:
          - front
    - namespaceSelector: *any
    - ipBlock:
        cidr: 10.0.0.0/8
    ports:
    - protocol: TCP
      port: 80
      endPort: 90
---
apiVersion: v1
kind: Pod
metadata:
  name: web-1
  namespace: shop
  labels:
    app: web
spec:
  containers:
  - name: main
    ports:
    - containerPort: 80
status:
  podIP: 10.0.0.1
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
spec:
  replicas: 2
  selector:
    matchLabels:
      app: web
  template:
    metadata:
      labels:
        app: web
    spec:
      containers:
      - name: main
---
apiVersion: v1
kind: List
items:
- apiVersion: networking.k8s.io/v1
  kind: NetworkPolicy
  metadata:
    name: listed
  spec:
    podSelector:
- apiVersion: v1
  kind: Namespace
  metadata:
    name: shop
---
{\"apiVersion\": \"networking.k8s.io/v1\", \"kind\": \"NetworkPolicy\",
 \"metadata\": {\"name\": \"json\"}, \"spec\": {\"podSelector\": {}}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: last
spec:
  egress:
  - to:
";

/// One change to a text, at a place in it between 0 and 1.
#[derive(Debug, Clone)]
enum Change {
    Insert(f64, String),
    Delete(f64, usize),
    DeleteLine(f64),
    RepeatLine(f64),
    MoveLine(f64, f64),
    Indent(f64, usize),
    Outdent(f64),
    CutOff(f64),
}

fn change() -> impl Strategy<Value = Change> {
    let at = || 0.0..1.0f64;
    let piece = prop_oneof![
        "[ -~]",
        "[-:?#&*!|>,\n\t ]{1,3}",
        Just("\n---\n".to_owned()),
        Just("\n...\n".to_owned()),
        Just("<<: *any\n".to_owned()),
        Just("&any ".to_owned()),
        Just("\r".to_owned()),
        Just("é\u{2028}\u{85}".to_owned()),
        Just("kind: NetworkPolicy\n".to_owned()),
        Just("items:\n- ".to_owned()),
    ];
    prop_oneof![
        (at(), piece).prop_map(|(at, piece)| Change::Insert(at, piece)),
        (at(), 1..20usize).prop_map(|(at, n)| Change::Delete(at, n)),
        at().prop_map(Change::DeleteLine),
        at().prop_map(Change::RepeatLine),
        (at(), at()).prop_map(|(from, to)| Change::MoveLine(from, to)),
        (at(), 1..5usize).prop_map(|(at, n)| Change::Indent(at, n)),
        at().prop_map(Change::Outdent),
        at().prop_map(Change::CutOff),
    ]
}

fn apply(text: String, change: &Change) -> String {
    let characters: Vec<char> = text.chars().collect();
    let lines: Vec<&str> = text.split('\n').collect();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let index = |at: f64, length: usize| (at * length as f64) as usize;
    let line = |at: f64| index(at, lines.len());
    let mut new: Vec<String> = lines.iter().map(|l| (*l).to_owned()).collect();
    match change {
        Change::Insert(at, piece) => {
            let i = index(*at, characters.len());
            let (before, after) = characters.split_at(i);
            return before.iter().collect::<String>() + piece + &after.iter().collect::<String>();
        }
        Change::Delete(at, n) => {
            let i = index(*at, characters.len());
            let end = (i + n).min(characters.len());
            return characters[..i].iter().chain(&characters[end..]).collect();
        }
        Change::CutOff(at) => {
            return characters[..index(*at, characters.len())].iter().collect();
        }
        Change::DeleteLine(at) => drop(new.remove(line(*at))),
        Change::RepeatLine(at) => new.insert(line(*at), lines[line(*at)].to_owned()),
        Change::MoveLine(from, to) => {
            let moved = new.remove(line(*from));
            new.insert(line(*to).min(new.len()), moved);
        }
        Change::Indent(at, n) => new[line(*at)].insert_str(0, &" ".repeat(*n)),
        Change::Outdent(at) => new[line(*at)] = lines[line(*at)].trim_start().to_owned(),
    }
    new.join("\n")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn a_mangled_manifest_loses_no_policy(
        changes in prop::collection::vec(change(), 1..8),
        from in 0..4usize,
    ) {
        let start = SEED.split("---\n").skip(from).collect::<Vec<_>>().join("---\n");
        check(&changes.iter().fold(start, apply));
    }

    #[test]
    fn random_text_never_panics(text in "([-:?#&*!|>'\"%@`{}\\[\\],\n\r\t ~<a-c0-9.é\u{85}]|---\n|kind: NetworkPolicy\n){0,60}") {
        check(&text);
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        check(&String::from_utf8_lossy(&bytes));
    }
}

#[test]
fn the_seed_itself_is_read() {
    check(SEED);
    assert!(!crate::read(SEED).has_errors());
    assert_eq!(crate::read(SEED).cluster.policies.len(), 4);
}
