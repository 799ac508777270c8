//! A peer that no pod is.

use std::collections::BTreeSet;

use portcullis_core::model::Peer;
use portcullis_kube::Severity;

use crate::context::Context;
use crate::rule::{Report, Rule};

pub(crate) const RULE: Rule = Rule {
    id: "peer-selects-nothing",
    severity: Severity::Note,
    what: "A peer matches no pod of namespaces whose pods are in the input.",
    why: "The peer allows nobody, until such a pod comes. It is a warning where the very pods are in \
          another namespace: a `podSelector` by itself is about the policy's own. Otherwise it is a \
          note, because clients may be elsewhere or yet to come.",
    example: "
# in namespace shop; the Prometheus pods are in namespace monitoring
ingress:
  - from:
      - podSelector:
          matchLabels: {app: prometheus}
",
    fix: "Write the labels as the pods have them, and add a `namespaceSelector` in the same list item if \
          they are in another namespace.",
    whole: false,
    check,
};

fn check(context: &Context<'_>, report: &mut Report<'_>) {
    for rule in context.rules() {
        for (i, peer) in rule.rule.peers.iter().enumerate() {
            let Peer::Pods { pods: Some(pods), namespaces } = peer else { continue };
            if pods.is_empty() || !context.peers(rule.namespace, peer).is_empty() {
                continue;
            }
            let all = Peer::Pods { pods: None, namespaces: namespaces.clone() };
            let all = match namespaces {
                None => context.known_in(rule.namespace),
                Some(_) => context.peers(rule.namespace, &all),
            };
            if !all.iter().any(|pod| context.is_known(*pod)) {
                continue;
            }
            let path = format!("{}.podSelector", rule.peer_path(i));
            if namespaces.is_some() {
                let message = format!("no pod of those namespaces is {pods}");
                report.policy(rule.policy, path, message, "write the labels as the pods have them");
                continue;
            }
            let known = &context.cluster.pods[..context.known];
            let elsewhere: BTreeSet<&str> = known
                .iter()
                .filter(|pod| pods.matches(&pod.labels) && !pod.host_network)
                .map(|pod| pod.namespace.as_str())
                .collect();
            let message = format!("no pod of namespace {} is {pods}", rule.namespace);
            let Some(other) = elsewhere.first() else {
                report.policy(rule.policy, path, message, "write the labels as the pods have them");
                continue;
            };
            let message = format!("{message}; such pods are in namespace {other}");
            let help = format!(
                "add to the same list item: `namespaceSelector: {{matchLabels: \
                 {{kubernetes.io/metadata.name: {other}}}}}`"
            );
            // With a namespaceSelector beside it, that is what the extra dash is about.
            let beside = |p: &Peer| matches!(p, Peer::Pods { pods: None, namespaces: Some(_) });
            let finding = report.policy(rule.policy, path, message, help);
            if pods.match_expressions.is_empty() && !rule.rule.peers.iter().any(beside) {
                finding.severity = Severity::Warning;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{found, notes, pod, policy};

    const SPEC: &str = "  podSelector: {}
  ingress:
    - from:
        - podSelector: {matchLabels: {app: prometheus}}";

    #[test]
    fn pods_that_are_in_another_namespace_are_found() {
        let web = pod("shop", "web", "app: web", "");
        let elsewhere = pod("monitoring", "prometheus", "app: prometheus", "");
        assert_eq!(
            found(&(policy("web", SPEC) + &web + &elsewhere)),
            ["10:11 peer-selects-nothing"]
        );
    }

    #[test]
    fn pods_that_are_nowhere_get_a_note() {
        let yaml = policy("web", SPEC) + &pod("shop", "web", "app: web", "");
        assert!(found(&yaml).is_empty());
        assert_eq!(notes(&yaml), ["10:11 peer-selects-nothing"]);
    }

    #[test]
    fn pods_that_are_there_or_cannot_be_known_are_silent() {
        let there = policy("web", SPEC) + &pod("shop", "p", "app: prometheus", "");
        assert!(found(&there).is_empty() && notes(&there).is_empty());
        assert!(found(&policy("web", SPEC)).is_empty() && notes(&policy("web", SPEC)).is_empty());
    }
}
