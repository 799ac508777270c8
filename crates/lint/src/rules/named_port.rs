//! A port name that no pod has.

use std::collections::BTreeSet;

use portcullis_core::model::{Direction, Peer, PortMatch};
use portcullis_kube::Severity;

use crate::context::Context;
use crate::rule::{Report, Rule};

pub(crate) const RULE: Rule = Rule {
    id: "named-port",
    severity: Severity::Warning,
    what: "A rule names a port that no pod it speaks of has, or not on that protocol.",
    why: "A port name is looked up in the containers of the destination pod, together with the \
          protocol. Where no pod has it, the rule allows nothing. A name never matches an address that \
          is no pod, so beside an `ipBlock`, or in an egress rule for everything, it is hardly what was \
          meant. A name that pods give different numbers is a note.",
    example: "
ports:
  - port: metrics # the containers call it http-metrics
",
    fix: "Write the name that the containers have, with its protocol, or the number.",
    whole: false,
    check,
};

fn check(context: &Context<'_>, report: &mut Report<'_>) {
    for rule in context.rules() {
        let targets = context.targets(&rule);
        let known: Vec<usize> = targets.into_iter().filter(|p| context.is_known(*p)).collect();
        for (i, port) in rule.rule.ports.iter().enumerate() {
            let PortMatch::Named(name) = &port.port else { continue };
            let path = format!("{}.port", rule.port_path(i));
            let outside = rule.rule.peers.is_empty()
                || rule.rule.peers.iter().any(|p| matches!(p, Peer::Block(_)));
            if rule.direction == Direction::Egress && outside {
                let message = format!("a port name means nothing for addresses outside: `{name}`");
                report.policy(rule.policy, path, message, "write the number of the port");
                continue;
            }
            let ports = || known.iter().flat_map(|pod| &context.cluster.pods[*pod].ports);
            let of_name =
                |p: &&portcullis_core::model::ContainerPort| p.name.as_ref() == Some(name);
            let resolved: BTreeSet<u16> = ports()
                .filter(|p| of_name(p) && p.protocol == port.protocol)
                .map(|p| p.port)
                .collect();
            if resolved.len() > 1 {
                let numbers: Vec<_> = resolved.iter().map(u16::to_string).collect();
                let message = format!("`{name}` is {} on these pods", numbers.join(" and "));
                let help = "if only one is meant, write its number, or select its pods";
                report.policy(rule.policy, path, message, help).note();
                continue;
            }
            if known.is_empty() || !resolved.is_empty() {
                continue;
            }
            let pods = context.names(&known);
            if let Some(other) = ports().find(of_name) {
                let message = format!(
                    "`{name}` is a port of {}, not of {}, on {pods}",
                    other.protocol, port.protocol
                );
                let help = format!("write `protocol: {}`", other.protocol);
                report.policy(rule.policy, path, message, help);
                continue;
            }
            let message = format!("no port of {pods} is called `{name}`");
            let names: BTreeSet<&str> = ports().filter_map(|p| p.name.as_deref()).collect();
            let help = match names.is_empty() {
                true => "name the port of the container, or write its number".to_owned(),
                false => {
                    let names: Vec<_> = names.into_iter().collect();
                    format!("the ports there are called {}", names.join(", "))
                }
            };
            report.policy(rule.policy, path, message, help);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{findings, found, notes, pod, policy};

    const SPEC: &str = "  podSelector: {matchLabels: {app: api}}
  ingress:
    - ports: [{port: metrics}]";

    fn with(port: &str) -> String {
        policy("api", SPEC) + &pod("shop", "api", "app: api", port)
    }

    #[test]
    fn a_name_that_no_pod_has_is_found_with_those_that_are() {
        let yaml = with("{name: http, containerPort: 80}");
        assert_eq!(found(&yaml), ["9:22 named-port"]);
        assert_eq!(findings(&yaml)[0].help, "the ports there are called http");
    }

    #[test]
    fn a_name_on_another_protocol_is_found() {
        let yaml = with("{name: metrics, containerPort: 80, protocol: UDP}");
        assert_eq!(findings(&yaml)[0].help, "write `protocol: UDP`");
    }

    #[test]
    fn a_name_beside_an_ip_block_is_found() {
        let spec = "  podSelector: {}
  policyTypes: [Egress]
  egress:
    - to: [{ipBlock: {cidr: 10.0.0.0/8}}]
      ports: [{port: https}]";
        assert_eq!(found(&policy("web", spec)), ["11:22 named-port"]);
    }

    #[test]
    fn a_name_in_an_egress_rule_for_everything_is_found() {
        let spec = "  podSelector: {}
  policyTypes: [Egress]
  egress: [{ports: [{port: https}, {port: dns, protocol: UDP}, {port: dns-tcp}]}]";
        assert_eq!(found(&policy("web", spec)).len(), 3);
    }

    #[test]
    fn a_name_with_several_numbers_gets_a_note() {
        let yaml = with("{name: metrics, containerPort: 80}")
            + &pod("shop", "b", "app: api", "{name: metrics, containerPort: 81}");
        assert!(found(&yaml).is_empty());
        assert_eq!(notes(&yaml), ["9:22 named-port"]);
        assert!(findings(&yaml)[0].message.contains("80 and 81"));
    }

    #[test]
    fn a_name_that_a_pod_has_or_that_cannot_be_known_is_silent() {
        assert!(found(&with("{name: metrics, containerPort: 80}")).is_empty());
        assert!(found(&policy("api", SPEC)).is_empty());
    }
}
