//! A section for a direction that the policy is not about.

use portcullis_core::model::Direction;
use portcullis_kube::Severity;

use crate::context::Context;
use crate::rule::{Report, Rule};

pub(crate) const RULE: Rule = Rule {
    id: "rules-without-effect",
    severity: Severity::Warning,
    what: "A policy has a section for a direction that its `policyTypes` does not list.",
    why: "The section has no effect. Its rules allow nothing that was not open already, and an empty \
          one closes nothing: the direction stays open unless another policy closes it. The same is \
          true of an empty `egress` without `policyTypes`.",
    example: "
policyTypes: [Ingress]
egress: []
",
    fix: "Add the direction to `policyTypes`, or remove the section.",
    whole: false,
    check,
};

fn check(context: &Context<'_>, report: &mut Report<'_>) {
    for (i, policy, raw) in context.policies() {
        for direction in Direction::ALL {
            let (written, kind) = match direction {
                Direction::Ingress => (&raw.spec.ingress, "Ingress"),
                Direction::Egress => (&raw.spec.egress, "Egress"),
            };
            let listed = raw.spec.policy_types.as_ref().is_some_and(|types| !types.is_empty());
            let Some(rules) = written.as_ref().filter(|_| policy.rules(direction).is_none()) else {
                continue;
            };
            let message = match rules.is_empty() {
                true if !listed => {
                    "closes nothing: without `policyTypes` an empty `egress` means nothing"
                        .to_owned()
                }
                true => format!("closes nothing: `policyTypes` does not list {kind}"),
                false => format!("these rules have no effect: `policyTypes` does not list {kind}"),
            };
            let help = match listed {
                true => format!("add `{kind}` to `policyTypes`, or remove `{direction}`"),
                false => "write `policyTypes: [Ingress, Egress]`, or remove `egress`".to_owned(),
            };
            report.policy(i, format!("spec.{direction}"), message, help);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{found, policy};

    #[test]
    fn a_section_of_a_direction_that_is_not_listed_is_found() {
        let empty = "  podSelector: {}\n  policyTypes: [Ingress]\n  egress: []";
        let rules = "  podSelector: {}\n  policyTypes: [Egress]\n  ingress:\n    - from: [{podSelector: {}}]";
        assert_eq!(found(&policy("web", empty)), ["9:3 rules-without-effect"]);
        assert_eq!(found(&policy("web", rules)), ["9:3 rules-without-effect"]);
        let absent = "  podSelector: {}\n  ingress: []\n  egress: []";
        assert_eq!(found(&policy("web", absent)), ["9:3 rules-without-effect"]);
    }

    #[test]
    fn listed_directions_and_absent_policy_types_are_silent() {
        let both =
            "  podSelector: {}\n  policyTypes: [Ingress, Egress]\n  egress: []\n  ingress: []";
        let absent = "  podSelector: {}\n  ingress: []\n  egress: [{}]";
        assert!(found(&policy("web", both)).is_empty());
        assert!(found(&policy("web", absent)).is_empty());
    }
}
