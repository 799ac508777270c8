//! Empty lists that read like "nobody" and mean "everybody".

use portcullis_core::model::Direction;
use portcullis_kube::Severity;

use crate::context::Context;
use crate::rule::{Report, Rule};

pub(crate) const RULE: Rule = Rule {
    id: "allows-everything",
    severity: Severity::Warning,
    what: "`from: []`, `to: []`, `ports: []` or `- {}`: an empty list in a rule means everything.",
    why: "An empty `ingress` allows nothing, but a rule in it with empty `from` allows everybody, also \
          from outside the cluster. Under a name that speaks of denying or isolating, that is hardly \
          what was meant. A bare `- {}` under another name is a note: it isolates nothing, and \
          sometimes that is the point.",
    example: "
metadata:
  name: deny-all-egress
spec:
  podSelector: {}
  policyTypes: [Egress]
  egress:
    - to: []
      ports:
        - {protocol: UDP, port: 53}
",
    fix: "Name the peers; or leave the rule out to allow nobody; or leave the field out, which says \
          openly that everybody is meant.",
    whole: false,
    check,
};

fn check(context: &Context<'_>, report: &mut Report<'_>) {
    for rule in context.rules() {
        let name = &context.cluster.policies[rule.policy].name;
        let peers = rule.direction.peers();
        let on = if rule.rule.ports.is_empty() { "" } else { " on these ports" };
        let everybody = match rule.direction {
            Direction::Ingress => format!("everybody{on}, also from outside the cluster"),
            Direction::Egress => format!("everything{on}, also outside the cluster"),
        };
        let empty_peers = rule.raw.peers.as_ref().is_some_and(Vec::is_empty);
        let empty_ports = rule.raw.ports.as_ref().is_some_and(Vec::is_empty);
        if empty_peers {
            let path = format!("{}.{peers}", rule.path());
            let message = format!("an empty `{peers}` allows {everybody}");
            let help = format!(
                "name the peers, remove the rule to allow none, or remove `{peers}` to say that all \
                 are meant"
            );
            report.policy(rule.policy, path, message, help);
        } else if rule.rule.peers.is_empty() && (rule.rule.ports.is_empty() || denies(name)) {
            let mut message = format!("a rule without `{peers}` allows {everybody}");
            if denies(name) {
                message += &format!(", in a policy called {name}");
            }
            let help = format!("remove the rule to allow nothing, or name the peers in `{peers}`");
            let finding = report.policy(rule.policy, rule.path(), message, help);
            if !denies(name) {
                finding.note();
            }
        }
        if empty_ports {
            let path = format!("{}.ports", rule.path());
            let help = "list the ports, or remove `ports` to say that all are meant";
            report.policy(
                rule.policy,
                path,
                "an empty `ports` allows every port and protocol",
                help,
            );
        }
    }
}

/// Whether a name promises to close something.
fn denies(name: &str) -> bool {
    let closing = ["deny", "isolate", "isolation", "block", "lockdown", "restrict"];
    let says = |word: &str| closing.iter().any(|c| word.starts_with(c));
    name.split(['-', '.']).any(says) && !name.split(['-', '.']).any(|word| word == "allow")
}

#[cfg(test)]
mod tests {
    use crate::testing::{found, notes, policy};

    #[test]
    fn empty_lists_are_found() {
        let spec = "  podSelector: {}
  ingress:
    - from: []
    - from:
        - podSelector: {}
      ports: []";
        assert_eq!(
            found(&policy("web", spec)),
            ["9:7 allows-everything", "12:7 allows-everything"]
        );
    }

    #[test]
    fn an_open_rule_is_found_under_a_name_that_denies() {
        let open = "  podSelector: {}\n  ingress:\n    - {}";
        assert_eq!(found(&policy("deny-all", open)), ["9:7 allows-everything"]);
        assert!(found(&policy("public", open)).is_empty());
        assert!(found(&policy("allow-all-after-deny", open)).is_empty());
    }

    #[test]
    fn ports_without_peers_and_sections_without_rules_are_silent() {
        let public = policy("web", "  podSelector: {}\n  ingress:\n    - ports: [{port: 80}]");
        let closed = policy("deny-web", "  podSelector: {}\n  ingress: []");
        assert!(found(&public).is_empty() && notes(&public).is_empty());
        assert!(found(&closed).is_empty() && notes(&closed).is_empty());
    }

    #[test]
    fn known_mistake_a_policy_named_deny_all_egress_with_an_empty_to() {
        let spec = "  podSelector: {}
  policyTypes:
  - Egress
  egress:
  - to: []
    ports:
    - protocol: UDP
      port: 53  # Allow DNS";
        assert_eq!(
            found(&policy("deny-all-egress", spec)),
            ["11:5 allows-everything", "13:7 dns-over-udp-only"]
        );
    }

    #[test]
    fn known_mistake_an_egress_rule_that_isolates_nothing() {
        let spec = "  podSelector: {}
  policyTypes: [Egress, Ingress]
  egress:
    # No egress restrictions
    - {}";
        assert_eq!(notes(&policy("grafana", spec)), ["11:7 allows-everything"]);
    }
}
