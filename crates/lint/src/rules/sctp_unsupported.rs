//! SCTP, where the network plugin does not know it.

use portcullis_core::net::Protocol;
use portcullis_kube::Severity;

use crate::cni::{Sctp, plugins};
use crate::context::Context;
use crate::rule::{Report, Rule};

pub(crate) const RULE: Rule = Rule {
    id: "sctp-unsupported",
    severity: Severity::Warning,
    what: "A rule is about SCTP, and the network plugin of the input does not know SCTP.",
    why: "Plugins that enforce policies need not support every protocol. Where SCTP is not supported, a \
          rule for it may have no effect, or be refused. For plugins where SCTP has to be switched on \
          it is a note.",
    example: "
# the input has the DaemonSet weave-net
ports:
  - {protocol: SCTP, port: 3868}
",
    fix: "Use a plugin that supports SCTP, or switch its support on.",
    whole: false,
    check,
};

fn check(context: &Context<'_>, report: &mut Report<'_>) {
    let mut enforcing = plugins(context).into_iter().filter(|(_, plugin)| plugin.enforces);
    let (Some((_, plugin)), None) = (enforcing.next(), enforcing.next()) else { return };
    let (message, help) = match plugin.sctp {
        Sctp::Yes => return,
        Sctp::No => (
            format!("{} does not support SCTP", plugin.name),
            "use TCP or UDP, or another plugin".to_owned(),
        ),
        Sctp::IfSet(setting) => (
            format!("{} supports SCTP only where it is switched on", plugin.name),
            format!("check that `{setting}` is set"),
        ),
    };
    for rule in context.rules() {
        let port = rule.rule.ports.iter().position(|port| port.protocol == Protocol::Sctp);
        let Some(port) = port else { continue };
        let finding = report.policy(rule.policy, rule.port_path(port), &message, &help);
        if plugin.sctp != Sctp::No {
            finding.note();
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{daemon_set, found, notes, policy};

    #[test]
    fn sctp_is_found_where_the_plugin_lacks_it() {
        let spec = "  podSelector: {}\n  ingress:\n    - ports: [{port: 3868, protocol: SCTP}]";
        let diameter = policy("diameter", spec);
        assert_eq!(
            found(&(diameter.clone() + &daemon_set("weave-net"))),
            ["9:15 sctp-unsupported"]
        );
        let cilium = diameter.clone() + &daemon_set("cilium");
        assert!(found(&cilium).is_empty());
        assert_eq!(notes(&cilium), ["9:15 sctp-unsupported"]);
        assert!(notes(&(diameter.clone() + &daemon_set("calico-node"))).is_empty());
        assert!(found(&diameter).is_empty() && notes(&diameter).is_empty());
        let tcp = diameter.replace("SCTP", "TCP") + &daemon_set("weave-net");
        assert!(found(&tcp).is_empty());
    }
}
