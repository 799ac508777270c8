//! A policy about egress that closes ingress by the way.

use portcullis_core::model::Direction;
use portcullis_kube::Severity;

use crate::context::Context;
use crate::rule::{Report, Rule};

pub(crate) const RULE: Rule = Rule {
    id: "ingress-isolated-too",
    severity: Severity::Warning,
    what: "A policy with egress rules alone and without `policyTypes` isolates for ingress too.",
    why: "Without `policyTypes` a policy is always about ingress, and about egress if it has egress \
          rules. A policy that only speaks of egress then refuses every connection to its pods. \
          Nothing is said where another policy isolates the pods for ingress anyway.",
    example: "
spec:
  podSelector:
    matchLabels: {app: web}
  egress:
    - to:
        - podSelector: {}
",
    fix: "Say which directions are meant: `policyTypes: [Egress]`.",
    whole: true,
    check,
};

fn check(context: &Context<'_>, report: &mut Report<'_>) {
    for (i, _, raw) in context.policies() {
        let spec = &raw.spec;
        let types = spec.policy_types.as_deref().unwrap_or_default();
        let egress = spec.egress.as_deref().unwrap_or_default();
        if !types.is_empty() || egress.is_empty() || spec.ingress.is_some() {
            continue;
        }
        let subjects = context.subjects(i);
        let by_others = |pod: &usize| {
            let policies = context.isolating(*pod, Direction::Ingress).unwrap_or_default();
            policies.iter().any(|p| *p as usize != i)
        };
        if !subjects.is_empty() && subjects.iter().all(by_others) {
            continue;
        }
        let message = format!(
            "without `policyTypes` this isolates for ingress too: nobody can connect to {}",
            context.names(&subjects)
        );
        let help = "add `policyTypes: [Egress]`; if ingress is to be closed, `policyTypes: [Ingress, Egress]`";
        report.policy(i, "spec.egress", message, help);
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{found, policy};

    const EGRESS: &str = "  podSelector: {}\n  egress:\n    - to: [{podSelector: {}}]\n    - ports: [{port: 53, protocol: UDP}, {port: 53}]";

    #[test]
    fn egress_without_policy_types_is_found() {
        assert_eq!(found(&policy("web", EGRESS)), ["8:3 ingress-isolated-too"]);
    }

    #[test]
    fn a_policy_that_says_what_it_is_about_is_silent() {
        let said = format!("{EGRESS}\n  policyTypes: [Egress]");
        let ingress = format!("{EGRESS}\n  ingress: []");
        assert!(found(&policy("web", &said)).is_empty());
        assert!(found(&policy("web", &ingress)).is_empty());
    }

    #[test]
    fn pods_that_are_isolated_for_ingress_anyway_are_silent() {
        let closed = policy("closed", "  podSelector: {}\n  policyTypes: [Ingress]");
        assert!(found(&format!("{}---\n{closed}", policy("web", EGRESS))).is_empty());
    }
}
