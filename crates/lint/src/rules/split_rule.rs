//! `- ports:` with a dash of its own.

use portcullis_core::model::{Peer, Rule as PolicyRule};
use portcullis_kube::{ObjectRef, Severity};

use crate::context::{Context, RuleRef};
use crate::rule::{Report, Rule};

pub(crate) const RULE: Rule = Rule {
    id: "split-rule",
    severity: Severity::Warning,
    what: "A rule of peers without ports is followed by a rule of ports without peers.",
    why: "A dash begins a rule of its own. Peers without ports may use every port, and ports without \
          peers are open to everybody, also from outside the cluster. Nothing is said where a comment \
          stands above the second rule, because then it is probably meant. In the other order it is a \
          note.",
    example: "
ingress:
  - from:
      - podSelector:
          matchLabels: {app: web}
  - ports:
      - port: 8080
",
    fix: "Remove the dash before `ports`, so that one rule holds both; if two rules are meant, say so in \
          a comment above the second.",
    whole: false,
    check,
};

fn check(context: &Context<'_>, report: &mut Report<'_>) {
    let rules: Vec<_> = context.rules().collect();
    for pair in rules.windows(2) {
        let [first, second] = pair else { continue };
        let adjacent = (first.policy, first.direction, first.index + 1)
            == (second.policy, second.direction, second.index);
        let ports_last = only_peers(first) && only_ports(second);
        let ports_first = only_ports(first) && only_peers(second);
        if !adjacent || !ports_last && !ports_first {
            continue;
        }
        let at = context.input.locate(ObjectRef::Policy(second.policy), &second.path());
        let above = at.map_or(0, |at| at.line.saturating_sub(1));
        if context.comments(second.policy).iter().any(|(line, _)| *line == above) {
            continue;
        }
        let (section, peers) = (first.direction.section(), first.direction.peers());
        let (message, dash) = match ports_last {
            true => (
                format!(
                    "a rule of its own: these ports are open to everybody, and the peers of \
                     {section}[{}] may use every port",
                    first.index
                ),
                "ports",
            ),
            false => (
                format!(
                    "a rule of its own: these peers may use every port, and the ports of \
                     {section}[{}] are open to everybody",
                    first.index
                ),
                peers,
            ),
        };
        let help =
            format!("remove the dash before `{dash}`, so that `{peers}` and `ports` are one rule");
        let finding = report.policy(second.policy, second.path(), message, help);
        // Ports for all first, and then more for some, is also how it may be meant.
        if ports_first {
            finding.note();
        }
    }
}

fn only_peers(rule: &RuleRef<'_>) -> bool {
    names_some(rule.rule) && rule.rule.ports.is_empty()
}

fn only_ports(rule: &RuleRef<'_>) -> bool {
    rule.raw.peers.is_none() && !rule.rule.ports.is_empty()
}

/// Whether the peers are some in particular, and not a whole namespace.
fn names_some(rule: &PolicyRule) -> bool {
    rule.peers.iter().any(|peer| match peer {
        Peer::Pods { pods, namespaces } => {
            pods.as_ref().is_some_and(|s| !s.is_empty())
                || namespaces.as_ref().is_some_and(|s| !s.is_empty())
        }
        Peer::Block(_) => true,
    })
}

#[cfg(test)]
mod tests {
    use crate::testing::{found, notes, policy};

    const SPLIT: &str = "  podSelector: {}
  ingress:
    - from:
        - podSelector:
            matchLabels: {app: web}
    - ports:
        - port: 8080";

    #[test]
    fn ports_that_lost_their_peers_are_found() {
        assert_eq!(found(&policy("api", SPLIT)), ["12:7 split-rule"]);
    }

    #[test]
    fn peers_that_lost_their_ports_get_a_note() {
        let spec = "  podSelector: {}
  ingress:
    - ports:
        - port: 8080
    - from:
        - podSelector:
            matchLabels: {app: web}";
        assert!(found(&policy("api", spec)).is_empty());
        assert_eq!(notes(&policy("api", spec)), ["11:7 split-rule"]);
        assert!(notes(&policy("api", &spec.replace("    - from", "      from"))).is_empty());
    }

    #[test]
    fn one_rule_and_rules_that_are_meant_to_be_two_are_silent() {
        let one = SPLIT.replace("    - ports", "      ports");
        let commented = SPLIT.replace("    - ports", "    # Open to all.\n    - ports");
        let own_namespace = SPLIT.replace(":\n            matchLabels: {app: web}", ": {}");
        for spec in [one, commented, own_namespace] {
            assert!(found(&policy("api", &spec)).is_empty(), "{spec}");
        }
    }
}
