//! A selector that breaks with the next release.

use portcullis_core::labels::Selector;
use portcullis_core::model::Peer;
use portcullis_kube::Severity;

use crate::context::Context;
use crate::rule::{Report, Rule};

pub(crate) const RULE: Rule = Rule {
    id: "version-label",
    severity: Severity::Warning,
    what: "A selector asks for a label that changes with every release.",
    why: "Labels such as `helm.sh/chart` and `app.kubernetes.io/version` have the version in their \
          value, and `pod-template-hash` changes with every rollout. After the next one the selector \
          matches nothing: the pods are no longer isolated, or no longer let in.",
    example: "
podSelector:
  matchLabels:
    app.kubernetes.io/name: grafana
    app.kubernetes.io/version: 10.2.2
",
    fix: "Leave that label out; `app.kubernetes.io/name` and `app.kubernetes.io/instance` stay.",
    whole: false,
    check,
};

const CHANGING: &[&str] = &[
    "helm.sh/chart",
    "chart",
    "app.kubernetes.io/version",
    "pod-template-hash",
    "controller-revision-hash",
    "pod-template-generation",
];

fn check(context: &Context<'_>, report: &mut Report<'_>) {
    let mut selectors: Vec<(usize, String, &Selector)> = Vec::new();
    for (i, policy, _) in context.policies() {
        selectors.push((i, "spec.podSelector".to_owned(), &policy.subject));
    }
    for rule in context.rules() {
        for (i, peer) in rule.rule.peers.iter().enumerate() {
            if let Peer::Pods { pods: Some(pods), .. } = peer {
                selectors.push((rule.policy, format!("{}.podSelector", rule.peer_path(i)), pods));
            }
        }
    }
    for (policy, path, selector) in selectors {
        for key in selector.match_labels.keys().filter(|key| CHANGING.contains(&key.as_str())) {
            let path = format!("{path}.matchLabels[{key}]");
            let message =
                format!("`{key}` changes with every release, and then this matches nothing");
            report.policy(policy, path, message, "leave this label out of the selector");
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{found, policy};

    #[test]
    fn labels_that_change_are_found_in_subjects_and_peers() {
        let spec = "  podSelector: {matchLabels: {app: a, helm.sh/chart: a-1.2.3}}
  ingress:
    - from: [{podSelector: {matchLabels: {pod-template-hash: abc}}}]";
        assert_eq!(found(&policy("web", spec)), ["7:54 version-label", "9:62 version-label"]);
    }

    #[test]
    fn labels_that_stay_are_silent() {
        let spec = "  podSelector: {matchLabels: {app: a, version: v1, app.kubernetes.io/name: a}}";
        assert!(found(&policy("web", spec)).is_empty());
    }
}
