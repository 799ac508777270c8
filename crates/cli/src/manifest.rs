//! Policies as YAML, the way that people write them.

use portcullis_core::change::Change;
use portcullis_core::labels::{Operator, Selector};
use portcullis_core::model::{Direction, Peer, Policy, PortMatch, PortRule, Rule};

/// A rule as an item of its section, on as many lines as it has parts.
pub(crate) fn rule(rule: &Rule, direction: Direction) -> String {
    let list = |items: Vec<String>| format!("[{}]", items.join(", "));
    let peers = (!rule.peers.is_empty())
        .then(|| format!("{}: {}", direction.peers(), list(rule.peers.iter().map(peer).collect())));
    let ports = (!rule.ports.is_empty())
        .then(|| format!("ports: {}", list(rule.ports.iter().map(port).collect())));
    let parts: Vec<String> = [peers, ports].into_iter().flatten().collect();
    match parts.as_slice() {
        [] => "- {}\n".to_owned(),
        parts => format!("- {}\n", parts.join("\n  ")),
    }
}

/// A policy of its own, with the one rule that it needs.
pub(crate) fn policy(change: &Change, name: &str) -> String {
    let kind = match change.direction {
        Direction::Ingress => "Ingress",
        Direction::Egress => "Egress",
    };
    let section = change.direction.section();
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
         metadata: {{namespace: {}, name: {}}}\n\
         spec:\n  podSelector: {}\n  policyTypes: [{kind}]\n  {section}:\n{}",
        scalar(&change.namespace),
        scalar(name),
        selector(&change.subject),
        indented(&rule(&change.rule, change.direction), "  "),
    )
}

/// A name for a policy of its own that no policy of the namespace has.
pub(crate) fn free_name(policies: &[Policy], namespace: &str, wanted: &str) -> String {
    let taken = |name: &str| policies.iter().any(|p| p.namespace == namespace && p.name == name);
    let mut names = (1..).map(|n| match n {
        1 => wanted.to_owned(),
        n => format!("{wanted}-{n}"),
    });
    names.find(|name| !taken(name)).unwrap_or_default()
}

/// Each line after so much space.
pub(crate) fn indented(text: &str, space: &str) -> String {
    text.lines().map(|line| format!("{space}{line}\n")).collect()
}

fn peer(peer: &Peer) -> String {
    match peer {
        Peer::Pods { pods, namespaces } => {
            let namespaces =
                namespaces.as_ref().map(|s| format!("namespaceSelector: {}", selector(s)));
            let pods = pods.as_ref().map(|s| format!("podSelector: {}", selector(s)));
            let parts: Vec<String> = [namespaces, pods].into_iter().flatten().collect();
            format!("{{{}}}", parts.join(", "))
        }
        Peer::Block(block) => {
            let except: Vec<String> = block.except.iter().map(|e| scalar(&e.to_string())).collect();
            let except = match except.is_empty() {
                true => String::new(),
                false => format!(", except: [{}]", except.join(", ")),
            };
            format!("{{ipBlock: {{cidr: {}{except}}}}}", scalar(&block.cidr.to_string()))
        }
    }
}

fn port(rule: &PortRule) -> String {
    let protocol = rule.protocol;
    match &rule.port {
        PortMatch::All => format!("{{protocol: {protocol}}}"),
        PortMatch::Range(first, last) if first == last => {
            format!("{{protocol: {protocol}, port: {first}}}")
        }
        PortMatch::Range(first, last) => {
            format!("{{protocol: {protocol}, port: {first}, endPort: {last}}}")
        }
        PortMatch::Named(name) => format!("{{protocol: {protocol}, port: {}}}", scalar(name)),
    }
}

fn selector(selector: &Selector) -> String {
    let labels: Vec<String> = selector
        .match_labels
        .iter()
        .map(|(k, v)| format!("{}: {}", scalar(k), scalar(v)))
        .collect();
    let labels = (!labels.is_empty()).then(|| format!("matchLabels: {{{}}}", labels.join(", ")));
    let requirements = selector.match_expressions.iter().map(|requirement| {
        let (operator, values) = match &requirement.operator {
            Operator::In(values) => ("In", Some(values)),
            Operator::NotIn(values) => ("NotIn", Some(values)),
            Operator::Exists => ("Exists", None),
            Operator::DoesNotExist => ("DoesNotExist", None),
        };
        let values = values.map_or(String::new(), |values| {
            let values: Vec<String> = values.iter().map(|value| scalar(value)).collect();
            format!(", values: [{}]", values.join(", "))
        });
        format!("{{key: {}, operator: {operator}{values}}}", scalar(&requirement.key))
    });
    let requirements: Vec<String> = requirements.collect();
    let requirements = (!requirements.is_empty())
        .then(|| format!("matchExpressions: [{}]", requirements.join(", ")));
    let parts: Vec<String> = [labels, requirements].into_iter().flatten().collect();
    format!("{{{}}}", parts.join(", "))
}

/// A string, quoted where YAML could take it for something else.
fn scalar(text: &str) -> String {
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c));
    let word = ["y", "n", "yes", "no", "on", "off", "true", "false", "null"];
    match plain && !word.contains(&text.to_lowercase().as_str()) {
        true => text.to_owned(),
        // Labels, names and CIDRs need no escapes.
        false => format!("{text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use portcullis_core::labels::{Labels, Requirement};
    use portcullis_core::model::IpBlock;
    use portcullis_core::net::Protocol;
    use portcullis_kube::{Options, Source, load};

    use super::*;

    #[test]
    fn what_is_written_is_read_back_the_same() {
        let labels = |pairs: &[(&str, &str)]| -> Labels {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
        };
        let expression = |key: &str, operator| Requirement { key: key.to_owned(), operator };
        let odd = Selector {
            match_labels: labels(&[("app", "yes"), ("example.com/tier", "1.10"), ("z", "")]),
            match_expressions: vec![
                expression("on", Operator::Exists),
                expression("0", Operator::NotIn(vec!["null".to_owned(), "a".to_owned()])),
                expression("b", Operator::DoesNotExist),
            ],
        };
        let block = |cidr: &str, except: &[&str]| {
            let except = except.iter().map(|e| e.parse().unwrap()).collect();
            Peer::Block(IpBlock { cidr: cidr.parse().unwrap(), except })
        };
        let rule = Rule {
            peers: vec![
                Peer::Pods { pods: Some(odd.clone()), namespaces: None },
                Peer::Pods { pods: Some(Selector::default()), namespaces: Some(odd.clone()) },
                block("10.0.0.0/8", &["10.1.0.0/16"]),
                block("2001:db8::7/128", &[]),
            ],
            ports: vec![
                PortRule { protocol: Protocol::Udp, port: PortMatch::Range(53, 53) },
                PortRule { protocol: Protocol::Tcp, port: PortMatch::Range(1, 9) },
                PortRule { protocol: Protocol::Sctp, port: PortMatch::Named("no".to_owned()) },
                PortRule { protocol: Protocol::Tcp, port: PortMatch::All },
            ],
        };
        for direction in Direction::ALL {
            for rule in [rule.clone(), Rule::default()] {
                let change = Change {
                    policy: None,
                    namespace: "1".to_owned(),
                    subject: odd.clone(),
                    direction,
                    rule,
                };
                let text = policy(&change, "null");
                let source = Source::Text { name: "policy".to_owned(), text: text.clone() };
                let read = load(&[source], &Options::default());
                assert!(!read.has_errors(), "{text}\n{:?}", read.diagnostics);
                let expected = Policy {
                    name: "null".to_owned(),
                    ..change.applied(&portcullis_core::model::Cluster::default())
                };
                assert_eq!(read.cluster.policies, [expected], "{text}");
            }
        }
    }
}
