//! Workloads that policies leave open, beside others that they do not.

use std::collections::{BTreeMap, BTreeSet};

use portcullis_core::model::Direction;
use portcullis_kube::Severity;

use crate::context::Context;
use crate::rule::{Report, Rule};

pub(crate) const RULE: Rule = Rule {
    id: "open-workload",
    severity: Severity::Note,
    what: "A workload is open, or open in one direction, in a namespace that has policies.",
    why: "A pod that no policy selects may call everybody and be called by everybody. One that policies \
          isolate for ingress alone may still call everybody. Nothing is said of a direction that no \
          policy of the namespace is about.",
    example: "
# namespace shop: policies for `app: api`, and none for
kind: Deployment
metadata: {name: worker, namespace: shop}
",
    fix: "Write a policy for it, or one that closes the namespace for all: `podSelector: {}`.",
    whole: true,
    check,
};

fn check(context: &Context<'_>, report: &mut Report<'_>) {
    let mut directions: BTreeMap<&str, BTreeSet<Direction>> = BTreeMap::new();
    for (_, policy, _) in context.policies() {
        let about = Direction::ALL.into_iter().filter(|d| policy.rules(*d).is_some());
        directions.entry(&policy.namespace).or_default().extend(about);
    }
    let mut seen = BTreeSet::new();
    for (i, pod) in context.cluster.pods[..context.known].iter().enumerate() {
        let Some(directions) = directions.get(pod.namespace.as_str()) else { continue };
        if pod.host_network || pod.finished || !seen.insert(context.name(i)) {
            continue;
        }
        let open: Vec<Direction> =
            directions.iter().copied().filter(|d| context.isolating(i, *d).is_none()).collect();
        let isolated = directions.len() > open.len();
        let message = match open.as_slice() {
            [] => continue,
            [Direction::Ingress] if isolated => {
                "is isolated for egress only: everybody may connect to it"
            }
            [Direction::Egress] if isolated => {
                "is isolated for ingress only: it may connect to everybody"
            }
            _ => "is selected by no policy of its namespace: it is open",
        };
        let help = "write a policy for it, or one for the whole namespace";
        report.pod(i, message, help);
    }
}

#[cfg(test)]
mod tests {
    use super::RULE;
    use crate::testing::{advice, places, pod, policy};

    fn with(types: &str) -> String {
        policy(
            "api",
            &format!("  podSelector: {{matchLabels: {{app: api}}}}\n  policyTypes: {types}"),
        ) + &pod("shop", "api", "app: api", "")
            + &pod("shop", "job", "app: job", "")
            + &pod("other", "web", "app: web", "")
    }

    #[test]
    fn a_workload_beside_those_that_policies_select_gets_a_note() {
        let found = advice(&RULE, &with("[Ingress]"));
        assert_eq!(places(&found), ["15:1"]);
        assert!(found[0].message.contains("no policy"));
    }

    #[test]
    fn a_workload_that_is_isolated_for_one_of_two_directions_gets_a_note() {
        let egress =
            policy("job", "  podSelector: {matchLabels: {app: job}}\n  policyTypes: [Egress]");
        let yaml = format!("{}---\n{egress}", with("[Ingress, Egress]"));
        let found = advice(&RULE, &yaml);
        assert_eq!(places(&found), ["15:1"]);
        assert!(found[0].message.contains("everybody may connect to it"));
    }

    #[test]
    fn a_namespace_that_is_closed_for_all_is_silent() {
        let all = policy("all", "  podSelector: {}\n  policyTypes: [Ingress]");
        let yaml = format!("{}---\n{all}", with("[Ingress]"));
        assert!(advice(&RULE, &yaml).is_empty());
    }
}
