//! A namespace with policies, and nothing for pods that come later.

use std::collections::BTreeMap;

use portcullis_core::model::Direction;
use portcullis_kube::Severity;

use crate::context::Context;
use crate::rule::{Report, Rule};

pub(crate) const RULE: Rule = Rule {
    id: "default-deny-missing",
    severity: Severity::Note,
    what: "A namespace has policies, and none that isolates every pod.",
    why: "Policies isolate what they select. A pod that comes later, with labels that nobody thought of, \
          is open to everybody. A policy for all pods without any rule closes that gap; what others \
          allow stays allowed. Nothing is said of one policy by itself.",
    example: "
# the only policy of namespace shop
spec:
  podSelector:
    matchLabels: {app: api}
",
    fix: "Add a policy with `podSelector: {}`, the `policyTypes` that are meant, and no rules.",
    whole: true,
    check,
};

fn check(context: &Context<'_>, report: &mut Report<'_>) {
    let mut namespaces: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (i, policy, _) in context.policies() {
        namespaces.entry(&policy.namespace).or_default().push(i);
    }
    for (namespace, policies) in namespaces {
        let policy = |i: &usize| &context.cluster.policies[*i];
        let closes = |i: &usize| policy(i).subject.is_empty();
        let alone = policies.len() == 1 && context.known_in(namespace).is_empty();
        if policies.iter().any(closes) || alone {
            continue;
        }
        let about =
            |direction: Direction| policies.iter().any(|i| policy(i).rules(direction).is_some());
        let types: Vec<&str> = [(Direction::Ingress, "Ingress"), (Direction::Egress, "Egress")]
            .into_iter()
            .filter(|(direction, _)| about(*direction))
            .map(|(_, name)| name)
            .collect();
        let message = format!(
            "no policy of namespace {namespace} isolates all its pods: one that none selects is open"
        );
        let help = format!(
            "add a policy with `podSelector: {{}}`, `policyTypes: [{}]` and no rules",
            types.join(", ")
        );
        report.policy(policies[0], "spec.podSelector", message, help);
    }
}

#[cfg(test)]
mod tests {
    use super::RULE;
    use crate::testing::{advice, places, policy};

    const API: &str = "  podSelector: {matchLabels: {app: api}}\n  policyTypes: [Ingress]";

    #[test]
    fn a_namespace_without_a_policy_for_all_pods_gets_one_note() {
        let two =
            format!("{}---\n{}", policy("api", API), policy("web", &API.replace("api", "web")));
        assert_eq!(places(&advice(&RULE, &two)), ["7:3"]);
    }

    #[test]
    fn a_namespace_with_a_policy_for_all_pods_and_one_policy_by_itself_are_silent() {
        let all = policy("all", "  podSelector: {}\n  policyTypes: [Ingress]");
        assert!(advice(&RULE, &policy("api", API)).is_empty());
        let yaml = format!("{}---\n{all}", policy("api", API));
        assert!(advice(&RULE, &yaml).is_empty());
    }
}
