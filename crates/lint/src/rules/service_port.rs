//! The port of the Service, where rules see that of the pod.

use portcullis_core::model::{Direction, Service, TargetPort};
use portcullis_kube::Severity;

use crate::calls::selects;
use crate::context::{Context, NumberedPort};
use crate::rule::{Report, Rule};

pub(crate) const RULE: Rule = Rule {
    id: "service-port",
    severity: Severity::Warning,
    what: "A rule names the port of a Service, and its pods listen on another.",
    why: "A policy sees a packet after the Service has been resolved, with the address and the port of \
          the pod. The port that clients call never comes by, so the rule allows nothing.",
    example: "
# Service api: port 80, targetPort 5000
ingress:
  - from:
      - podSelector:
          matchLabels: {app: web}
    ports:
      - port: 80
",
    fix: "Write the container port, or its name.",
    whole: false,
    check,
};

fn check(context: &Context<'_>, report: &mut Report<'_>) {
    for NumberedPort { rule, index, protocol, port, targets } in context.numbered_ports() {
        let pods = || targets.iter().map(|pod| &context.cluster.pods[*pod]);
        let mut declared = pods().flat_map(|pod| &pod.ports);
        if declared.any(|c| (c.port, c.protocol) == (port, protocol)) {
            continue;
        }
        let behind = |service: &&Service| pods().any(|pod| selects(service, pod));
        let resolved = context.cluster.services.iter().filter(behind).find_map(|service| {
            let at = service.ports.iter().find(|p| (p.port, p.protocol) == (port, protocol))?;
            let number = match &at.target {
                TargetPort::Number(number) => *number,
                TargetPort::Name(name) => {
                    let mut ports = pods().flat_map(|pod| &pod.ports);
                    ports.find(|c| c.protocol == protocol && c.name.as_ref() == Some(name))?.port
                }
            };
            (number != port).then_some((service, number))
        });
        let Some((service, number)) = resolved else { continue };
        if rule.covers(protocol, number) {
            continue;
        }
        let name = format!("{}/{}", service.namespace, service.name);
        let side = match rule.direction {
            Direction::Ingress => "these pods listen",
            Direction::Egress => "its pods listen",
        };
        let message = format!("{port} is the port of Service {name}; {side} on {number}");
        let help =
            format!("write `port: {number}`: rules see a packet after the Service is resolved");
        report.policy(rule.policy, format!("{}.port", rule.port_path(index)), message, help);
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{found, pod, policy};

    const SPEC: &str = "  podSelector: {matchLabels: {app: api}}
  ingress:
    - ports: [{port: 80}]";

    fn with(service_port: &str) -> String {
        let service = format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: api, namespace: shop}}\nspec: {{selector: {{app: api}}, ports: [{service_port}]}}\n"
        );
        policy("api", SPEC)
            + &pod("shop", "api", "app: api", "{name: http, containerPort: 5000}")
            + &service
    }

    #[test]
    fn the_port_of_the_service_is_found() {
        assert_eq!(found(&with("{port: 80, targetPort: 5000}")), ["9:22 service-port"]);
        assert_eq!(found(&with("{port: 80, targetPort: http}")), ["9:22 service-port"]);
    }

    #[test]
    fn ports_that_are_the_same_or_both_there_or_declared_are_silent() {
        assert!(found(&with("{port: 80}")).is_empty());
        assert!(found(&with("{port: 8080, targetPort: 5000}")).is_empty());
        let both = with("{port: 80, targetPort: 5000}")
            .replace("[{port: 80}]", "[{port: 80}, {port: 5000}]");
        assert!(found(&both).is_empty());
        let declared = with("{port: 80, targetPort: 5000}").replace(
            "{name: http, containerPort: 5000}",
            "{containerPort: 5000}, {containerPort: 80}",
        );
        assert!(found(&declared).is_empty());
    }
}
