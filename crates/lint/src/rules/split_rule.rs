//! `- ports:` with a dash of its own.

use portcullis_core::model::{Peer, Rule as PolicyRule};
use portcullis_kube::{ObjectRef, Severity};

use crate::context::Context;
use crate::rule::{Report, Rule};

pub(crate) const RULE: Rule = Rule {
    id: "split-rule",
    severity: Severity::Warning,
    what: "A rule of peers without ports is followed by a rule of ports without peers.",
    why: "A dash begins a rule of its own. Peers without ports may use every port, and ports without \
          peers are open to everybody, also from outside the cluster. Nothing is said where a comment \
          stands above the second rule, because then it is probably meant.",
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
        if !adjacent || !names_some(first.rule) || !first.rule.ports.is_empty() {
            continue;
        }
        if second.raw.peers.is_some() || second.rule.ports.is_empty() {
            continue;
        }
        let at = context.input.locate(ObjectRef::Policy(second.policy), &second.path());
        let above = at.map_or(0, |at| at.line.saturating_sub(1));
        if context.comments(second.policy).iter().any(|(line, _)| *line == above) {
            continue;
        }
        let (section, peers) = (first.direction.section(), first.direction.peers());
        let message = format!(
            "a rule of its own: these ports are open to everybody, and the peers of {section}[{}] may \
             use every port",
            first.index
        );
        let help =
            format!("remove the dash before `ports`, so that `{peers}` and `ports` are one rule");
        report.policy(second.policy, second.path(), message, help);
    }
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
    use crate::testing::{found, policy};

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
    fn one_rule_and_rules_that_are_meant_to_be_two_are_silent() {
        let one = SPLIT.replace("    - ports", "      ports");
        let commented = SPLIT.replace("    - ports", "    # Open to all.\n    - ports");
        let own_namespace = SPLIT.replace(":\n            matchLabels: {app: web}", ": {}");
        for spec in [one, commented, own_namespace] {
            assert!(found(&policy("api", &spec)).is_empty(), "{spec}");
        }
    }
}
