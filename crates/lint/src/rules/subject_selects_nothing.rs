//! A policy without pods.

use portcullis_kube::Severity;

use crate::context::Context;
use crate::rule::{Report, Rule};

pub(crate) const RULE: Rule = Rule {
    id: "subject-selects-nothing",
    severity: Severity::Warning,
    what: "A policy selects no pod, in a namespace that has some.",
    why: "Such a policy isolates nothing: whatever it was to protect is as open as before. Nothing is \
          said of a namespace without pods in the input.",
    example: "
spec:
  podSelector:
    matchLabels: {app: databse} # the pods say `app: database`
",
    fix: "Write the labels as the pods have them.",
    whole: false,
    check,
};

fn check(context: &Context<'_>, report: &mut Report<'_>) {
    for (i, policy, _) in context.policies() {
        let there = context.known_in(&policy.namespace);
        if there.is_empty() || !context.subjects(i).is_empty() {
            continue;
        }
        // Pods on the host network are not selected whatever their labels: that has its own rule.
        let on_host = context.cluster.pods[..context.known].iter().any(|pod| {
            pod.namespace == policy.namespace
                && pod.host_network
                && policy.subject.matches(&pod.labels)
        });
        if on_host {
            continue;
        }
        let namespace = &policy.namespace;
        let message = format!("selects no pod of namespace {namespace}: it isolates nothing");
        let near = policy.subject.match_labels.keys().find_map(|key| {
            let values: std::collections::BTreeSet<&str> = there
                .iter()
                .filter_map(|pod| context.cluster.pods[*pod].labels.get(key))
                .map(String::as_str)
                .collect();
            let values: Vec<_> = values.into_iter().take(5).collect();
            (!values.is_empty()).then(|| format!("pods there have {key}: {}", values.join(", ")))
        });
        let help = near.unwrap_or_else(|| "no pod there has any of these label keys".to_owned());
        let finding = report.policy(i, "spec.podSelector", message, help);
        // An operator makes pods that are labelled with the name of what it makes them of.
        let made =
            |value: &String| context.input.custom.contains(&(namespace.clone(), value.clone()));
        if policy.subject.match_labels.values().any(made) {
            finding.note();
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{findings, found, notes, pod, policy};

    const SPEC: &str = "  podSelector: {matchLabels: {app: databse}}\n  policyTypes: [Ingress]";

    #[test]
    fn a_selector_that_no_pod_has_is_found_with_what_pods_have() {
        let yaml = policy("db", SPEC) + &pod("shop", "db", "app: database", "");
        assert_eq!(found(&yaml), ["7:3 subject-selects-nothing"]);
        assert_eq!(findings(&yaml)[0].help, "pods there have app: database");
    }

    #[test]
    fn pods_that_an_operator_makes_may_be_meant() {
        let yaml = policy("db", SPEC) + &pod("shop", "web", "app: web", "");
        let cluster = "---\napiVersion: example.com/v1\nkind: Database\nmetadata: {name: NAME, namespace: shop}\n";
        let named = yaml.clone() + &cluster.replace("NAME", "databse");
        assert!(found(&named).is_empty());
        assert_eq!(notes(&named), ["7:3 subject-selects-nothing"]);
        let other = yaml + &cluster.replace("NAME", "orders");
        assert_eq!(found(&other), ["7:3 subject-selects-nothing"]);
    }

    #[test]
    fn a_namespace_without_pods_and_one_with_the_right_pod_are_silent() {
        assert!(found(&policy("db", SPEC)).is_empty());
        assert!(found(&(policy("db", SPEC) + &pod("other", "db", "app: a", ""))).is_empty());
        assert!(found(&(policy("db", SPEC) + &pod("shop", "db", "app: databse", ""))).is_empty());
    }
}
