//! DNS without its second half.

use std::collections::BTreeMap;

use portcullis_core::net::Protocol;
use portcullis_kube::Severity;

use crate::context::Context;
use crate::dns::{lists_dns, resolutions};
use crate::rule::{Report, Rule};

pub(crate) const RULE: Rule = Rule {
    id: "dns-over-udp-only",
    severity: Severity::Warning,
    what: "DNS is allowed over UDP and not over TCP.",
    why: "An answer that is too long for UDP is asked for again over TCP. With UDP alone, most names \
          resolve and some do not, on some days. All policies that select the pods are looked at \
          together.",
    example: "
egress:
  - ports:
      - {protocol: UDP, port: 53}
",
    fix: "Add `{protocol: TCP, port: 53}` to the same ports.",
    whole: true,
    check,
};

fn check(context: &Context<'_>, report: &mut Report<'_>) {
    let mut found: BTreeMap<(usize, String), Vec<usize>> = BTreeMap::new();
    for resolution in resolutions(context).into_iter().filter(|r| !r.tcp) {
        for rule in &resolution.rules {
            if let Some(port) = lists_dns(rule.rule, Protocol::Udp) {
                let pods = found.entry((rule.policy, rule.port_path(port))).or_default();
                pods.extend(&resolution.pods);
            }
        }
    }
    for ((policy, path), pods) in found {
        let names = context.names(&pods);
        let message =
            format!("DNS over UDP only: {names} cannot get answers that are too long for it");
        report.policy(policy, path, message, "add `{protocol: TCP, port: 53}` beside it");
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{found, policy};

    const DNS: &str = "  podSelector: {}
  policyTypes: [Egress]
  egress:
    - to:
        - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}
          podSelector: {matchLabels: {k8s-app: kube-dns}}
      ports:
        - {port: 53, protocol: UDP}";

    #[test]
    fn known_mistake_dns_allowed_over_udp_only() {
        assert_eq!(found(&policy("allow-dns", DNS)), ["14:11 dns-over-udp-only"]);
    }

    #[test]
    fn tcp_in_this_or_another_policy_is_enough() {
        let both = format!("{DNS}\n        - port: 53");
        assert!(found(&policy("allow-dns", &both)).is_empty());
        let tcp = DNS.replace("UDP", "TCP");
        let yaml = format!("{}---\n{}", policy("udp", DNS), policy("tcp", &tcp));
        assert!(found(&yaml).is_empty());
        let every_port = format!("{DNS}\n    - to: [{{namespaceSelector: {{}}}}]");
        assert!(found(&policy("allow-dns", &every_port)).is_empty());
    }

    #[test]
    fn udp_ports_that_are_not_dns_are_silent() {
        assert!(
            found(&policy("ntp", &DNS.replace("53", "123")))
                .iter()
                .all(|f| !f.contains("udp-only"))
        );
    }
}
