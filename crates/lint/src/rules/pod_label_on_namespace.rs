//! A label of pods, asked of a namespace.

use portcullis_core::labels::{Operator, Selector};
use portcullis_kube::Severity;

use crate::context::Context;
use crate::rule::{Report, Rule};

pub(crate) const RULE: Rule = Rule {
    id: "pod-label-on-namespace",
    severity: Severity::Warning,
    what: "A namespaceSelector asks for a label that pods have and namespaces do not.",
    why: "`namespaceSelector` is about the labels of Namespace objects. The label of a pod, such as \
          `k8s-app: kube-dns`, is found on no namespace, so the peer matches nobody: a DNS rule written \
          this way leaves the pods without name resolution.",
    example: "
egress:
  - to:
      - namespaceSelector:
          matchLabels: {k8s-app: kube-dns}
",
    fix: "Select the namespace by `kubernetes.io/metadata.name` and the pods by a `podSelector` in the \
          same list item.",
    whole: false,
    check,
};

/// Labels that are put on pods and never on namespaces.
const OF_PODS: &[&str] = &[
    "k8s-app",
    "pod-template-hash",
    "controller-revision-hash",
    "statefulset.kubernetes.io/pod-name",
    "batch.kubernetes.io/job-name",
];

fn check(context: &Context<'_>, report: &mut Report<'_>) {
    for (rule, i, selector) in context.namespace_selectors() {
        let Some((key, value)) = pod_label(context, selector) else { continue };
        let path = format!("{}.namespaceSelector.matchLabels[{key}]", rule.peer_path(i));
        let message =
            format!("`{key}` is a label of pods: no namespace has it, so this matches nobody");
        let namespace = if is_dns(key, value) { "kube-system" } else { "NAME" };
        let help = format!(
            "write `namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: {namespace}}}}}`, \
             and in the same list item `podSelector: {{matchLabels: {{{key}: {value}}}}}`"
        );
        report.policy(rule.policy, path, message, help);
    }
}

fn is_dns(key: &str, value: &str) -> bool {
    key == "k8s-app" && matches!(value, "kube-dns" | "coredns")
}

/// A label that the selector asks for and that can only be that of a pod.
pub(crate) fn pod_label<'s>(
    context: &Context<'_>,
    selector: &'s Selector,
) -> Option<(&'s str, &'s str)> {
    let exact = selector.match_labels.iter().map(|(k, v)| (k.as_str(), v.as_str()));
    let listed = selector.match_expressions.iter().filter_map(|r| match &r.operator {
        Operator::In(values) => values.first().map(|v| (r.key.as_str(), v.as_str())),
        Operator::NotIn(_) | Operator::Exists | Operator::DoesNotExist => None,
    });
    let namespaces = &context.cluster.namespaces;
    exact.chain(listed).find(|(key, value)| {
        let on_namespace = namespaces.values().any(|labels| labels.contains_key(key));
        let pods = &context.cluster.pods[..context.known];
        let on_pod = || pods.iter().any(|p| p.labels.get(key).is_some_and(|v| v == value));
        !on_namespace && (OF_PODS.contains(key) || !namespaces.is_empty() && on_pod())
    })
}

#[cfg(test)]
mod tests {
    use crate::testing::{found, namespace, pod, policy};

    fn with(label: &str) -> String {
        let spec = "  podSelector: {}
  ingress:
    - from:
        - namespaceSelector:
            matchLabels: {LABEL}";
        policy("web", &spec.replace("LABEL", label))
    }

    #[test]
    fn a_label_that_only_pods_have_is_found() {
        assert_eq!(found(&with("k8s-app: kube-dns")), ["11:36 pod-label-on-namespace"]);
        let cluster = pod("edge", "a", "role: proxy", "")
            + &namespace("edge", "")
            + &pod("shop", "w", "", "");
        assert_eq!(found(&(with("role: proxy") + &cluster)), ["11:33 pod-label-on-namespace"]);
    }

    #[test]
    fn a_label_that_a_namespace_has_or_may_have_is_silent() {
        assert!(found(&with("role: proxy")).is_empty());
        let pods = pod("edge", "a", "role: proxy", "") + &pod("shop", "w", "", "");
        assert!(found(&(with("role: proxy") + &pods)).is_empty());
        let labelled = namespace("edge", "role: proxy");
        assert!(found(&(with("role: proxy") + &pods + &labelled)).is_empty());
        assert!(found(&(with("k8s-app: dns") + &namespace("dns", "k8s-app: dns"))).is_empty());
    }

    #[test]
    fn known_mistake_dns_allowed_towards_a_namespace_label_that_is_a_pod_label() {
        let yaml = policy(
            "allow-dns-only",
            "  podSelector: {matchLabels: {app: backend}}
  policyTypes: [Egress]
  egress:
    - to:
        - namespaceSelector:
            matchLabels:
              k8s-app: kube-dns # CoreDNS
      ports:
        - protocol: UDP
          port: 53",
        );
        assert_eq!(found(&yaml), ["13:24 pod-label-on-namespace", "15:11 dns-over-udp-only"]);
    }
}
