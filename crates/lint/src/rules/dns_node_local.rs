//! A DNS cache on the node, which no pod selector matches.

use std::net::{IpAddr, Ipv4Addr};

use portcullis_core::labels::{Operator, Selector};
use portcullis_core::model::{Direction, Peer, Pod};
use portcullis_core::net::Protocol;
use portcullis_kube::Severity;

use crate::context::Context;
use crate::dns::lists_dns;
use crate::rule::{Report, Rule};

pub(crate) const RULE: Rule = Rule {
    id: "dns-node-local",
    severity: Severity::Warning,
    what: "DNS is allowed to pods, and is asked of a cache on the node, which is on the host network.",
    why: "The node-local DNS cache answers at an address of the node, by default 169.254.20.10. Its pods \
          are on the host network, so no pod selector matches them: a rule that selects them by their \
          labels allows nothing. Where the input has the cache and a rule allows DNS to other pods only, \
          it is a note: many network plugins let a pod call its own node anyway.",
    example: "
egress:
  - to:
      - namespaceSelector: {}
        podSelector:
          matchLabels: {k8s-app: node-local-dns}
    ports:
      - {protocol: UDP, port: 53}
",
    fix: "Add `- ipBlock: {cidr: 169.254.20.10/32}` to the same peers.",
    whole: true,
    check,
};

/// The address that the cache has unless it is told another.
const CACHE: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 20, 10));
const NAMES: [&str; 3] = ["node-local-dns", "nodelocaldns", "node-local-dns-cache"];

fn check(context: &Context<'_>, report: &mut Report<'_>) {
    let known = &context.cluster.pods[..context.known];
    let deployed = known.iter().any(|pod| pod.host_network && is_cache(pod));
    let to_cache = |peer: &Peer| match peer {
        // Whoever allows some link-local address means such a cache.
        Peer::Block(block) => match block.cidr.addr() {
            IpAddr::V4(address) => block.contains(CACHE) || address.is_link_local(),
            IpAddr::V6(_) => false,
        },
        Peer::Pods { .. } => false,
    };
    // A policy for all pods may allow the cache where others allow the rest.
    let mut allowed: Vec<usize> = Vec::new();
    for rule in context.rules().filter(|rule| rule.direction == Direction::Egress) {
        let dns = rule.rule.ports.is_empty() || rule.covers(Protocol::Udp, 53);
        if dns && (rule.rule.peers.is_empty() || rule.rule.peers.iter().any(to_cache)) {
            allowed.push(rule.policy);
        }
    }
    for rule in context.rules().filter(|rule| rule.direction == Direction::Egress) {
        if lists_dns(rule.rule, Protocol::Udp).is_none()
            || isolated_with(context, rule.policy, &allowed)
        {
            continue;
        }
        let named = rule.rule.peers.iter().position(|peer| match peer {
            Peer::Pods { pods: Some(pods), .. } => asks_for_cache(pods),
            _ => false,
        });
        let help = format!("add `- ipBlock: {{cidr: {CACHE}/32}}` to the same `to`");
        if let Some(peer) = named {
            let message =
                "the node-local DNS cache is on the host network: no pod selector matches it";
            report.policy(rule.policy, rule.peer_path(peer), message, help);
        } else if deployed {
            let message =
                "DNS to pods only; the node-local DNS cache of the input is on the host network";
            report.policy(rule.policy, rule.path(), message, help).note();
        }
    }
}

/// Whether every pod of a policy is also isolated by one of these.
fn isolated_with(context: &Context<'_>, policy: usize, allowed: &[usize]) -> bool {
    let subjects = context.subjects(policy);
    let allows = |pod: &usize| {
        let isolating = context.isolating(*pod, Direction::Egress).unwrap_or_default();
        isolating.iter().any(|p| allowed.contains(&(*p as usize)))
    };
    allowed.contains(&policy) || !subjects.is_empty() && subjects.iter().all(allows)
}

fn is_cache(pod: &Pod) -> bool {
    let labelled = ["k8s-app", "app.kubernetes.io/name", "app"]
        .iter()
        .any(|key| pod.labels.get(key).is_some_and(|name| NAMES.contains(&name.as_str())));
    labelled || pod.workload.as_ref().is_some_and(|w| NAMES.contains(&w.name.as_str()))
}

fn asks_for_cache(selector: &Selector) -> bool {
    let exact = selector.match_labels.values().any(|value| NAMES.contains(&value.as_str()));
    exact
        || selector.match_expressions.iter().any(|r| match &r.operator {
            // Beside other pods it does no harm.
            Operator::In(values) => values.iter().all(|v| NAMES.contains(&v.as_str())),
            _ => false,
        })
}

#[cfg(test)]
mod tests {
    use crate::testing::{daemon_set, found, notes, policy};

    const DNS: &str = "  podSelector: {}
  policyTypes: [Egress]
  egress:
    - to:
        - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}
          podSelector: {matchLabels: {k8s-app: kube-dns}}
      ports: [{port: 53, protocol: UDP}, {port: 53}]";

    fn cache() -> String {
        daemon_set("node-local-dns")
            .replace("spec: {containers", "spec: {hostNetwork: true, containers")
    }

    #[test]
    fn a_selector_for_the_cache_is_found_with_and_without_it() {
        let yaml = policy("dns", &DNS.replace("kube-dns", "node-local-dns"));
        assert_eq!(found(&yaml), ["11:11 dns-node-local"]);
        assert_eq!(found(&(yaml + &cache())), ["11:11 dns-node-local"]);
    }

    #[test]
    fn dns_to_pods_only_gets_a_note_where_the_input_has_the_cache() {
        let yaml = policy("dns", DNS);
        assert!(found(&yaml).is_empty() && notes(&yaml).is_empty());
        assert!(found(&(yaml.clone() + &cache())).is_empty());
        assert_eq!(notes(&(yaml + &cache())), ["10:7 dns-node-local"]);
    }

    #[test]
    fn an_address_of_the_cache_in_this_or_another_policy_is_enough() {
        let block = "        - ipBlock: {cidr: 169.254.20.10/32}\n      ports";
        let both = policy("dns", &DNS.replace("      ports", block)) + &cache();
        assert!(notes(&both).is_empty());
        let other = policy(
            "cache",
            &format!(
                "  podSelector: {{}}\n  policyTypes: [Egress]\n  egress:\n    - to:\n{block}: [{{port: 53, protocol: UDP}}, {{port: 53}}]"
            ),
        );
        assert!(notes(&format!("{}---\n{other}{}", policy("dns", DNS), cache())).is_empty());
    }
}
