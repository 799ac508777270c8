//! A policy that lands wherever the command line happens to point.

use std::collections::BTreeSet;

use portcullis_kube::Severity;

use crate::context::Context;
use crate::rule::{Report, Rule};

pub(crate) const RULE: Rule = Rule {
    id: "namespace-missing",
    severity: Severity::Warning,
    what: "A policy names no namespace, and the pods that it selects are in another than the one assumed.",
    why: "Without `metadata.namespace` a policy is made wherever `kubectl` points to, and protects only \
          pods there. Nothing is said where the pods of the input show that the assumed namespace is \
          meant, or where nothing in the input names one.",
    example: "
metadata:
  name: database # the pods `app: database` are in namespace shop
spec:
  podSelector:
    matchLabels: {app: database}
",
    fix: "Add `metadata.namespace`, or check with `-n NAMESPACE`.",
    whole: false,
    check,
};

fn check(context: &Context<'_>, report: &mut Report<'_>) {
    for (i, policy, _) in context.policies() {
        if context.subjects(i).iter().any(|pod| context.is_known(*pod)) {
            continue;
        }
        let known = &context.cluster.pods[..context.known];
        let matching = known.iter().filter(|pod| policy.subject.matches(&pod.labels));
        let elsewhere: BTreeSet<&str> = matching.map(|pod| pod.namespace.as_str()).collect();
        let Some(other) = elsewhere.first() else { continue };
        let written = context.input.policy_text(i, &["metadata", "namespace"]);
        if written.is_some_and(|namespace| !namespace.is_empty()) {
            continue;
        }
        let message = format!(
            "names no namespace and is taken to be in {}; the pods that it would select are in {other}",
            policy.namespace
        );
        report.policy(i, "metadata", message, format!("add `namespace: {other}` to `metadata`"));
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{found, pod, policy};

    fn without_namespace() -> String {
        let spec = "  podSelector: {matchLabels: {app: web}}\n  policyTypes: [Ingress]";
        policy("web", spec).replace("  namespace: shop\n", "")
    }

    #[test]
    fn a_policy_whose_pods_are_in_another_namespace_is_found() {
        let yaml = without_namespace() + &pod("shop", "web", "app: web", "");
        assert_eq!(found(&yaml), ["3:1 namespace-missing"]);
    }

    #[test]
    fn a_policy_beside_its_pods_and_one_that_names_its_namespace_are_silent() {
        assert!(found(&(without_namespace() + &pod("default", "web", "app: web", ""))).is_empty());
        assert!(found(&without_namespace()).is_empty());
        let named = policy("web", "  podSelector: {matchLabels: {app: web}}");
        assert!(found(&(named + &pod("other", "web", "app: web", ""))).is_empty());
    }
}
