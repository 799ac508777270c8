//! TCP by default, where the pods speak UDP.

use std::collections::BTreeSet;

use portcullis_core::net::Protocol;
use portcullis_kube::Severity;

use crate::context::{Context, NumberedPort};
use crate::rule::{Report, Rule};

pub(crate) const RULE: Rule = Rule {
    id: "wrong-protocol",
    severity: Severity::Warning,
    what: "A rule allows a port on one protocol, and the pods have it on another only.",
    why: "A port without `protocol` is TCP. If the containers declare it for UDP or SCTP, the rule \
          allows a port that nobody listens on, and not the one that was meant.",
    example: "
# containers: {containerPort: 514, protocol: UDP}
ports:
  - port: 514
",
    fix: "Write the `protocol` that the containers declare.",
    whole: false,
    check,
};

fn check(context: &Context<'_>, report: &mut Report<'_>) {
    for NumberedPort { rule, index, protocol, port, targets } in context.numbered_ports() {
        let declared = targets.iter().flat_map(|pod| &context.cluster.pods[*pod].ports);
        let protocols: BTreeSet<Protocol> =
            declared.filter(|c| c.port == port).map(|c| c.protocol).collect();
        let Some(other) = protocols.first() else { continue };
        if protocols.contains(&protocol) || protocols.iter().any(|p| rule.covers(*p, port)) {
            continue;
        }
        let by_default = match rule.raw.ports.iter().flatten().nth(index) {
            Some(raw) if raw.protocol.is_none() => ", which is the default",
            _ => "",
        };
        let names = context.names(&targets);
        let message =
            format!("allows {port} over {protocol}{by_default}; {names} has it over {other}");
        let help = format!("write `protocol: {other}`");
        report.policy(rule.policy, rule.port_path(index), message, help);
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{found, pod, policy};

    fn with(rule: &str, container: &str) -> String {
        let spec = format!("  podSelector: {{}}\n  ingress:\n    - ports: [{rule}]");
        policy("logs", &spec) + &pod("shop", "logs", "app: logs", container)
    }

    #[test]
    fn a_port_on_the_wrong_protocol_is_found() {
        let udp = "{containerPort: 514, protocol: UDP}";
        assert_eq!(found(&with("{port: 514}", udp)), ["9:15 wrong-protocol"]);
        assert_eq!(found(&with("{port: 514, protocol: SCTP}", udp)), ["9:15 wrong-protocol"]);
    }

    #[test]
    fn the_right_protocol_both_and_unknown_ports_are_silent() {
        let udp = "{containerPort: 514, protocol: UDP}";
        assert!(found(&with("{port: 514, protocol: UDP}", udp)).is_empty());
        assert!(found(&with("{port: 514}, {port: 514, protocol: UDP}", udp)).is_empty());
        assert!(found(&with("{port: 9000}", udp)).is_empty());
        assert!(found(&with("{port: 514}", "{containerPort: 514}")).is_empty());
    }
}
