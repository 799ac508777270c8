//! Egress closed, and name resolution with it.

use std::collections::BTreeMap;

use portcullis_core::model::Peer;
use portcullis_core::net::Protocol;
use portcullis_kube::Severity;

use crate::context::{Context, RuleRef};
use crate::dns::{dns_ports, lists_dns, resolutions};
use crate::rule::{Report, Rule};
use crate::rules::pod_label;

pub(crate) const RULE: Rule = Rule {
    id: "dns-missing",
    severity: Severity::Warning,
    what: "Pods may call others by egress rules, and may not ask DNS where those are.",
    why: "As soon as a policy isolates a pod for egress, name resolution is refused like everything \
          else. All policies that select the pod are looked at together. Nothing is said about pods \
          that may call nobody; pods that may only call addresses get a note.",
    example: "
policyTypes: [Egress]
egress:
  - to:
      - podSelector:
          matchLabels: {app: database}
    ports:
      - port: 5432
",
    fix: "Allow UDP and TCP port 53 to the pods `k8s-app: kube-dns` of the namespace kube-system, in \
          this policy or in one for the whole namespace.",
    whole: true,
    check,
};

const HELP: &str = "allow DNS: `to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: \
                    kube-system}}, podSelector: {matchLabels: {k8s-app: kube-dns}}}]`, `ports: [{protocol: \
                    UDP, port: 53}, {protocol: TCP, port: 53}]`";

fn check(context: &Context<'_>, report: &mut Report<'_>) {
    // By the rule that needs it: the pods, and what is known of their DNS rules.
    let mut found: BTreeMap<(usize, usize), Closed<'_>> = BTreeMap::new();
    for resolution in resolutions(context) {
        let mistaken = |rule: &RuleRef<'_>| {
            rule.rule.peers.iter().any(|peer| match peer {
                Peer::Pods { namespaces: Some(n), .. } => pod_label(context, n).is_some(),
                _ => false,
            })
        };
        if resolution.udp || resolution.rules.iter().any(mistaken) {
            continue;
        }
        let need = |wanted| resolution.rules.iter().find(|rule| need(rule) == Some(wanted));
        let names = need(Need::Names).map(|rule| (rule, Need::Names));
        let needs = names.or_else(|| need(Need::Addresses).map(|rule| (rule, Need::Addresses)));
        let asks = |rule: &&RuleRef<'_>| {
            Protocol::ALL.iter().any(|protocol| lists_dns(rule.rule, *protocol).is_some())
        };
        let tried = resolution.rules.iter().find(asks).copied();
        let Some((rule, need)) = needs.or(tried.as_ref().map(|rule| (rule, Need::Names))) else {
            continue;
        };
        let entry = found.entry((rule.policy, rule.index)).or_insert((Vec::new(), tried, need));
        entry.0.extend(&resolution.pods);
    }
    for ((policy, index), (pods, tried, need)) in found {
        let names = context.names(&pods);
        let ports: Vec<u16> = context
            .dns
            .first()
            .map(|dns| dns_ports(context, *dns, Protocol::Udp))
            .unwrap_or_default();
        let rule = tried.filter(|rule| lists_dns(rule.rule, Protocol::Udp).is_some());
        if let (Some(rule), [port]) = (rule, ports.as_slice())
            && !rule.covers(Protocol::Udp, *port)
        {
            let at = lists_dns(rule.rule, Protocol::Udp).unwrap_or_default();
            let message =
                format!("DNS is refused: the DNS pods listen on {port}, not on 53 ({names})");
            let help =
                format!("write `port: {port}`: rules see a packet after the Service is resolved");
            report.policy(rule.policy, rule.port_path(at), message, help);
            continue;
        }
        if let Some(rule) = tried
            && let Some(at) = lists_dns(rule.rule, Protocol::Tcp)
            && lists_dns(rule.rule, Protocol::Udp).is_none()
        {
            let message =
                format!("DNS is allowed over TCP only, and is asked over UDP first ({names})");
            let help = "add `{protocol: UDP, port: 53}`: a port without `protocol` is TCP";
            report.policy(rule.policy, rule.port_path(at), message, help);
            continue;
        }
        let message = format!("egress is closed to DNS: {names} cannot resolve names");
        let finding = report.policy(policy, format!("spec.egress[{index}]"), message, HELP);
        if need == Need::Addresses {
            finding.message += ", and may only call addresses";
            finding.note();
        }
    }
}

/// The pods that lack DNS by one rule, the rule that tries to allow it, and what they need it for.
type Closed<'a> = (Vec<usize>, Option<RuleRef<'a>>, Need);

/// What a rule lets pods call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    /// What is known by name: pods, or the whole internet.
    Names,
    /// Some addresses.
    Addresses,
}

fn need(rule: &RuleRef<'_>) -> Option<Need> {
    let dns = Protocol::ALL.iter().any(|p| lists_dns(rule.rule, *p).is_some());
    if dns && !rule.rule.ports.is_empty() {
        return None;
    }
    let by_name = |peer: &Peer| match peer {
        Peer::Pods { .. } => true,
        Peer::Block(block) => block.cidr.prefix_len() == 0,
    };
    let peers = &rule.rule.peers;
    Some(if peers.is_empty() || peers.iter().any(by_name) { Need::Names } else { Need::Addresses })
}

#[cfg(test)]
mod tests {
    use crate::testing::{findings, found, notes, pod, policy};

    const TO_DATABASE: &str = "  podSelector: {}
  policyTypes: [Egress]
  egress:
    - to:
        - podSelector: {matchLabels: {app: database}}
      ports:
        - port: 5432";
    const DNS: &str = "
    - to:
        - namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}
          podSelector: {matchLabels: {k8s-app: kube-dns}}
      ports:
        - {port: 53, protocol: UDP}
        - {port: 53, protocol: TCP}";

    #[test]
    fn known_mistake_egress_restricted_without_a_dns_rule() {
        assert_eq!(found(&policy("backend", TO_DATABASE)), ["10:7 dns-missing"]);
        let internet = TO_DATABASE
            .replace("podSelector: {matchLabels: {app: database}}", "ipBlock: {cidr: 0.0.0.0/0}");
        assert_eq!(found(&policy("backend", &internet)), ["10:7 dns-missing"]);
        let backup = TO_DATABASE.replace(
            "podSelector: {matchLabels: {app: database}}",
            "ipBlock: {cidr: 192.168.5.10/32}",
        );
        assert!(found(&policy("db-policy", &backup)).is_empty());
        assert_eq!(notes(&policy("db-policy", &backup)), ["10:7 dns-missing"]);
    }

    #[test]
    fn a_dns_rule_in_this_or_another_policy_is_enough() {
        assert!(found(&policy("backend", &format!("{TO_DATABASE}{DNS}"))).is_empty());
        let other =
            policy("dns", &format!("  podSelector: {{}}\n  policyTypes: [Egress]\n  egress:{DNS}"));
        assert!(found(&format!("{}---\n{other}", policy("backend", TO_DATABASE))).is_empty());
        let one_pod = other.replace(
            "podSelector: {}\n  policyTypes",
            "podSelector: {matchLabels: {app: lion}}\n  policyTypes",
        );
        let pods = pod("shop", "lion", "app: lion", "") + &pod("shop", "bear", "app: bear", "");
        let yaml = format!("{}---\n{one_pod}{pods}", policy("backend", TO_DATABASE));
        let found = findings(&yaml);
        let missing: Vec<_> = found.iter().filter(|f| f.rule == "dns-missing").collect();
        assert_eq!(missing.len(), 1);
        assert!(missing[0].message.contains("shop/bear cannot"), "{}", missing[0].message);
    }

    #[test]
    fn pods_that_may_call_nobody_or_may_use_another_resolver_are_silent() {
        assert!(found(&policy("closed", "  podSelector: {}\n  policyTypes: [Egress]")).is_empty());
        let local = "\n    - to: [{ipBlock: {cidr: 169.254.20.10/32}}]\n      ports: [{port: 53, protocol: UDP}, {port: 53}]";
        assert!(found(&policy("backend", &format!("{TO_DATABASE}{local}"))).is_empty());
        let anybody = "\n    - ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]";
        let apart = format!("{TO_DATABASE}{anybody}");
        assert!(found(&policy("backend", &apart)).is_empty());
    }

    #[test]
    fn dns_pods_that_listen_elsewhere_are_known_by_their_ports() {
        let dns = pod(
            "kube-system",
            "dns",
            "k8s-app: kube-dns",
            "{name: dns, containerPort: 5353, protocol: UDP}, {name: dns-tcp, containerPort: 5353}",
        );
        let yaml = policy("backend", &format!("{TO_DATABASE}{DNS}")) + &dns;
        let first = findings(&yaml).into_iter().find(|f| f.rule == "dns-missing").unwrap();
        assert_eq!(first.path, "spec.egress[1].ports[0]");
        assert!(first.message.contains("listen on 5353"), "{}", first.message);
        let right = yaml.replace("port: 53,", "port: 5353,");
        assert!(!findings(&right).iter().any(|f| f.rule == "dns-missing"));
    }

    #[test]
    fn a_pod_called_default_is_no_dns_pod() {
        let own = TO_DATABASE
            .replace("{matchLabels: {app: database}}\n      ports:\n        - port: 5432", "{}");
        let pods = pod("shop", "web", "app: web", "") + &pod("shop", "other", "app: default", "");
        assert_eq!(found(&(policy("own", &own) + &pods)), ["10:7 dns-missing"]);
    }

    #[test]
    fn dns_over_tcp_alone_is_no_dns() {
        let tcp = DNS.replace("        - {port: 53, protocol: UDP}\n", "");
        let yaml = policy("backend", &format!("{TO_DATABASE}{tcp}"));
        assert_eq!(found(&yaml), ["18:11 dns-missing"]);
    }
}
