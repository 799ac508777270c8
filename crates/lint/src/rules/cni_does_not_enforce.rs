//! Policies in a cluster that does not look at them.

use portcullis_kube::Severity;

use crate::cni::plugins;
use crate::context::Context;
use crate::rule::{Report, Rule};

pub(crate) const RULE: Rule = Rule {
    id: "cni-does-not-enforce",
    severity: Severity::Warning,
    what: "The input deploys a network plugin that enforces no policies, and nothing else that does.",
    why: "The API server takes NetworkPolicies whether or not anything enforces them. With a plugin \
          such as Flannel alone, every policy is accepted and every connection is open.",
    example: "
kind: DaemonSet
metadata: {name: kube-flannel-ds, namespace: kube-flannel}
",
    fix: "Run something beside it that enforces policies, or another plugin.",
    whole: false,
    check,
};

fn check(context: &Context<'_>, report: &mut Report<'_>) {
    let plugins = plugins(context);
    if context.cluster.policies.is_empty() || plugins.iter().any(|(_, plugin)| plugin.enforces) {
        return;
    }
    for (pod, plugin) in plugins {
        let message = match context.cluster.policies.len() {
            1 => {
                format!("{} enforces no policies: the one of the input has no effect", plugin.name)
            }
            n => {
                format!("{} enforces no policies: the {n} of the input have no effect", plugin.name)
            }
        };
        let help = "run something beside it that enforces policies";
        report.pod(pod, message, help);
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{daemon_set, found, policy};

    #[test]
    fn a_plugin_that_enforces_nothing_is_found_where_there_are_policies() {
        let web = policy(
            "web",
            "  podSelector: {}\n  policyTypes: [Ingress]\n  ingress: [{from: [{podSelector: {}}]}]",
        );
        let flannel = daemon_set("kube-flannel-ds");
        assert_eq!(found(&format!("{web}{flannel}")), ["11:1 cni-does-not-enforce"]);
        assert!(found(&flannel).is_empty());
        let both = format!("{web}{flannel}{}", daemon_set("kube-network-policies"));
        assert!(found(&both).is_empty());
        assert!(found(&format!("{web}{}", daemon_set("canal"))).is_empty());
    }
}
