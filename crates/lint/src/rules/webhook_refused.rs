//! Webhooks that the API server cannot call.

use portcullis_core::model::Direction;
use portcullis_kube::{CalledBy, Severity};

use crate::calls::{Admitted, admitted, calls};
use crate::context::Context;
use crate::rule::{Report, Rule};

pub(crate) const RULE: Rule = Rule {
    id: "webhook-refused",
    severity: Severity::Warning,
    what: "The API server asks a webhook, and policies admit no address to its pods.",
    why: "The API server is on the host network of the control plane, or outside the cluster: no pod \
          selector matches it, only an `ipBlock` or a rule without peers does. Where it is refused, \
          objects cannot be created or are not checked, depending on `failurePolicy`.",
    example: "
kind: ValidatingWebhookConfiguration
webhooks:
  - clientConfig:
      service: {name: webhook, namespace: shop} # its policy admits pods only
",
    fix: "Add an ingress rule for the port of the webhook without `from`, or with an `ipBlock` of the \
          control plane.",
    whole: true,
    check,
};

fn check(context: &Context<'_>, report: &mut Report<'_>) {
    for called in calls(context, CalledBy::ApiServer) {
        let port = called.port;
        let refused = |pod: &&usize| admitted(context, **pod, port) != Admitted::Addresses;
        let pods: Vec<usize> = called.pods.iter().filter(refused).copied().collect();
        let Some(first) = pods.first() else { continue };
        let whom = match admitted(context, *first, port) {
            Admitted::PodsOnly => "only pods",
            _ => "nobody",
        };
        let message = format!(
            "the API server cannot call this webhook: policies admit {whom} to {} on port {port}",
            context.names(&pods)
        );
        let help = format!(
            "add an ingress rule with `port: {port}` and no `from`, or an `ipBlock` of the control plane"
        );
        let (object, location) = (called.caller.object.clone(), called.caller.location.clone());
        let finding = report.object(object, Some(location), message, help);
        for policy in context.isolating(*first, Direction::Ingress).into_iter().flatten().take(3) {
            finding.see(context, *policy as usize, "spec.podSelector");
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{found, pod, policy};

    fn with(spec: &str) -> String {
        let hook = "apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: shop}
webhooks:
  - name: check.shop.example
    clientConfig:
      service: {name: hook, namespace: shop}
---
apiVersion: v1
kind: Service
metadata: {name: hook, namespace: shop}
spec: {selector: {app: hook}, ports: [{port: 443, targetPort: 9443}]}
---
";
        hook.to_owned()
            + &policy("hook", spec)
            + &pod("shop", "hook", "app: hook", "{containerPort: 9443}")
    }

    #[test]
    fn a_webhook_that_only_pods_or_nobody_may_call_is_found() {
        let closed = "  podSelector: {}\n  policyTypes: [Ingress]";
        let pods = "  podSelector: {}\n  ingress:\n    - from: [{namespaceSelector: {}}]";
        assert_eq!(found(&with(closed)), ["7:23 webhook-refused"]);
        assert_eq!(found(&with(pods)), ["7:23 webhook-refused"]);
    }

    #[test]
    fn a_rule_of_addresses_or_without_peers_on_its_port_is_enough() {
        let open = "  podSelector: {}\n  ingress:\n    - ports: [{port: 9443}]";
        let block = "  podSelector: {}\n  ingress:\n    - from: [{ipBlock: {cidr: 10.0.0.0/24}}]";
        assert!(found(&with(open)).is_empty());
        assert!(found(&with(block)).is_empty());
        assert_eq!(found(&with(&open.replace("9443", "443"))).len(), 2, "the Service's port");
    }
}
