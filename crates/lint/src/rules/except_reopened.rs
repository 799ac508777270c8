//! An exception that another block takes back.

use portcullis_core::model::Peer;
use portcullis_kube::Severity;

use crate::context::Context;
use crate::rule::{Report, Rule};

pub(crate) const RULE: Rule = Rule {
    id: "except-reopened",
    severity: Severity::Warning,
    what: "Addresses that an `except` takes out are allowed by another `ipBlock` of the same policy.",
    why: "`except` makes its own block smaller and denies nothing. What another peer or rule allows on \
          the same ports stays allowed, so the exception has no effect.",
    example: "
ingress:
  - from:
      - ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}
      - ipBlock: {cidr: 10.0.0.0/9}
",
    fix: "Give the other block the same exception, or remove this one.",
    whole: false,
    check,
};

fn check(context: &Context<'_>, report: &mut Report<'_>) {
    let rules: Vec<_> = context.rules().collect();
    for rule in &rules {
        let blocks = rule.rule.peers.iter().enumerate().filter_map(|(i, peer)| match peer {
            Peer::Block(block) => Some((i, block)),
            Peer::Pods { .. } => None,
        });
        for (i, block) in blocks {
            for (e, hole) in block.except.iter().enumerate() {
                let others = rules.iter().filter(|other| {
                    (other.policy, other.direction) == (rule.policy, rule.direction)
                        && (other.rule.ports.is_empty() || other.rule.ports == rule.rule.ports)
                });
                let reopening = others.flat_map(|other| {
                    other.rule.peers.iter().enumerate().map(move |(j, peer)| (other, j, peer))
                });
                // An overlap with an exception of its own may be on purpose: only a whole one counts.
                let covers = |peer: &Peer| match peer {
                    Peer::Block(other) => {
                        let excepted =
                            |x: &portcullis_core::net::IpNet| x.contains(hole) || hole.contains(x);
                        other.cidr.contains(hole) && !other.except.iter().any(excepted)
                    }
                    Peer::Pods { .. } => false,
                };
                let Some((other, j, _)) = reopening.into_iter().find(|(.., peer)| covers(peer))
                else {
                    continue;
                };
                let path = format!("{}.ipBlock.except[{e}]", rule.peer_path(i));
                let again = other.peer_path(j);
                let message = format!("{hole} is excepted here and allowed again by {again}");
                let help = format!("add `except: [{hole}]` there, or remove it here");
                report.policy(rule.policy, path, message, help).see(context, rule.policy, &again);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{found, policy};

    fn with(other: &str) -> String {
        let spec = format!(
            "  podSelector: {{}}\n  ingress:\n    - from:\n        - ipBlock: {{cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}\n        - ipBlock: {other}"
        );
        policy("web", &spec)
    }

    #[test]
    fn an_exception_that_another_block_allows_is_found() {
        assert_eq!(found(&with("{cidr: 10.0.0.0/9}")), ["10:48 except-reopened"]);
    }

    #[test]
    fn blocks_apart_smaller_or_with_the_same_exception_are_silent() {
        for other in [
            "{cidr: 192.168.0.0/16}",
            "{cidr: 10.1.2.3/32}",
            "{cidr: 10.0.0.0/9, except: [10.1.0.0/16]}",
            "{cidr: 'fd00::/8'}",
        ] {
            assert!(found(&with(other)).is_empty(), "{other}");
        }
    }
}
