//! No egress rules, in a policy that is not about egress.

use portcullis_core::model::Direction;
use portcullis_kube::{ObjectRef, Severity};

use crate::context::Context;
use crate::rule::{Report, Rule};

pub(crate) const RULE: Rule = Rule {
    id: "egress-stays-open",
    severity: Severity::Warning,
    what: "A comment says that egress is closed, and nothing closes it.",
    why: "A policy whose `policyTypes` has only Ingress says nothing about egress: without egress rules \
          its pods may still call everybody. Only `Egress` in `policyTypes` closes that direction. A \
          policy called deny-all that lists only Ingress gets a note.",
    example: "
spec:
  podSelector:
    matchLabels: {app: database}
  policyTypes:
    - Ingress
  # No egress = no external access
",
    fix: "Add `Egress` to `policyTypes`; without egress rules it closes egress.",
    whole: true,
    check,
};

fn check(context: &Context<'_>, report: &mut Report<'_>) {
    for (i, policy, _) in context.policies() {
        if policy.egress.is_some() {
            continue;
        }
        let subjects = context.subjects(i);
        let closed = |pod: &usize| context.isolating(*pod, Direction::Egress).is_some();
        if !subjects.is_empty() && subjects.iter().all(closed) {
            continue;
        }
        let help = "add `Egress` to `policyTypes`";
        let comment = context.comments(i).into_iter().find(|(_, text)| says_closed(text));
        if let Some((line, text)) = comment {
            let message = format!(
                "egress stays open: `policyTypes` has only Ingress, whatever the comment says: {text:?}"
            );
            let finding = report.policy(i, "spec.policyTypes", message, help);
            let place = context.input.locate(ObjectRef::Policy(i), "");
            finding.location = place.map(|at| portcullis_kube::Location {
                line,
                column: column(context, i, line),
                ..at
            });
        } else if matches!(policy.name.as_str(), "deny-all" | "default-deny" | "default-deny-all") {
            let message = "egress stays open: `policyTypes` has only Ingress";
            report.policy(i, "spec.policyTypes", message, help).note();
        }
    }
}

/// Where the comment on a line begins.
fn column(context: &Context<'_>, policy: usize, line: u32) -> u32 {
    let document = context.input.policy_document(policy);
    let text = document.and_then(|(first, text)| text.lines().nth((line - first) as usize));
    text.and_then(|text| text.split('#').next())
        .map_or(1, |before| before.chars().count() as u32 + 1)
}

fn says_closed(comment: &str) -> bool {
    let comment = comment.to_lowercase();
    let closed = [
        "no egress",
        "deny egress",
        "denies egress",
        "block egress",
        "blocks egress",
        "egress is blocked",
        "egress is denied",
        "no external access",
        "no outbound",
        "no outgoing",
    ];
    let open = ["no egress restriction", "no egress polic", "open", "allowed", "unrestricted"];
    closed.iter().any(|c| comment.contains(c)) && !open.iter().any(|o| comment.contains(o))
}

#[cfg(test)]
mod tests {
    use crate::testing::{found, notes, policy};

    const DATABASE: &str = "  podSelector:
    matchLabels:
      app: database
  policyTypes:
  - Ingress
  ingress:
  - from:
    - podSelector:
        matchLabels:
          app: backend
  # No egress = no external access";

    #[test]
    fn known_mistake_no_egress_rules_where_only_ingress_is_listed() {
        assert_eq!(found(&policy("database-policy", DATABASE)), ["17:3 egress-stays-open"]);
    }

    #[test]
    fn egress_that_is_closed_here_or_by_another_policy_is_silent() {
        let listed = DATABASE.replace("  - Ingress", "  - Ingress\n  - Egress");
        assert!(found(&policy("database", &listed)).is_empty());
        let other = policy("closed", "  podSelector: {}\n  policyTypes: [Egress]");
        assert!(found(&format!("{}---\n{other}", policy("database", DATABASE))).is_empty());
    }

    #[test]
    fn comments_about_open_egress_are_silent_and_deny_all_gets_a_note() {
        let open = DATABASE
            .replace("No egress = no external access", "No egress rules: egress stays open");
        assert!(found(&policy("database", &open)).is_empty());
        let deny = policy("deny-all", "  podSelector: {}\n  policyTypes: [Ingress]");
        assert!(found(&deny).is_empty());
        assert_eq!(notes(&deny), ["8:3 egress-stays-open"]);
    }
}
