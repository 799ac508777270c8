//! Pods that no policy can isolate.

use std::collections::BTreeSet;

use portcullis_kube::Severity;

use crate::context::Context;
use crate::rule::{Report, Rule};

pub(crate) const RULE: Rule = Rule {
    id: "host-network-subject",
    severity: Severity::Warning,
    what: "A policy selects pods on the host network, which no policy isolates.",
    why: "A `hostNetwork` pod has the address of its node and no network of its own, so policies do not \
          apply to it. It is a warning where the policy selects no other pod, and so has no effect, \
          and a note where a selector of some labels has such pods among others.",
    example: "
# the pods `app: exporter` have `hostNetwork: true`
podSelector:
  matchLabels: {app: exporter}
",
    fix: "Take the pods off the host network, or protect the node by other means.",
    whole: false,
    check,
};

fn check(context: &Context<'_>, report: &mut Report<'_>) {
    for (i, policy, _) in context.policies() {
        let known = context.cluster.pods[..context.known].iter().enumerate();
        let on_host: Vec<usize> = known
            .filter(|(_, pod)| {
                pod.host_network
                    && !pod.finished
                    && pod.namespace == policy.namespace
                    && policy.subject.matches(&pod.labels)
            })
            .map(|(pod, _)| pod)
            .collect();
        let others: BTreeSet<usize> = context.subjects(i).into_iter().collect();
        // The whole namespace is selected without regard to what is in it.
        if on_host.is_empty() || policy.subject.is_empty() {
            continue;
        }
        let names = context.names(&on_host);
        let message = format!("does not isolate {names}: on the host network no policy does");
        let help = "take the pods off the host network, or protect the node by other means";
        let finding = report.policy(i, "spec.podSelector", message, help);
        if !others.is_empty() {
            finding.note();
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{found, notes, pod, policy};

    const SPEC: &str = "  podSelector: {matchLabels: {app: exporter}}\n  policyTypes: [Ingress]";

    fn on_host() -> String {
        pod("shop", "exporter", "app: exporter", "")
            .replace("spec: {", "spec: {hostNetwork: true, ")
    }

    #[test]
    fn a_policy_of_host_network_pods_alone_is_found() {
        let other = pod("shop", "web", "app: web", "");
        assert_eq!(
            found(&(policy("exporter", SPEC) + &on_host() + &other)),
            ["7:3 host-network-subject"]
        );
    }

    #[test]
    fn other_pods_beside_it_make_it_a_note_and_a_whole_namespace_is_silent() {
        let other = pod("shop", "other", "app: exporter", "");
        let yaml = policy("exporter", SPEC) + &on_host() + &other;
        assert!(found(&yaml).is_empty());
        assert_eq!(notes(&yaml), ["7:3 host-network-subject"]);
        let all =
            policy("closed", "  podSelector: {}\n  policyTypes: [Ingress]") + &on_host() + &other;
        assert!(found(&all).is_empty() && notes(&all).is_empty());
    }
}
