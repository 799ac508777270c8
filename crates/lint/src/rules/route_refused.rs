//! Routes from outside that end at a policy.

use portcullis_core::model::Direction;
use portcullis_kube::{CalledBy, Severity};

use crate::calls::{calls, pods_called, refused};
use crate::context::Context;
use crate::rule::{Report, Rule};

pub(crate) const RULE: Rule = Rule {
    id: "route-refused",
    severity: Severity::Warning,
    what: "An Ingress or a route leads to pods that policies keep its controller from.",
    why: "Requests from outside reach the pods from the controller, and on the port of the pods. An \
          Ingress opens nothing by itself. With the pods of a known controller in the input, they are \
          what is tried; without them, it is only said where nobody at all is admitted on that port.",
    example: "
kind: Ingress
spec:
  defaultBackend:
    service: {name: web, port: {number: 80}} # port 8080 of pods that admit nobody on it
",
    fix: "Add an ingress rule for the pods of the controller on the port of the pods.",
    whole: true,
    check,
};

/// What the pods of controllers are called by their charts.
const CONTROLLERS: [&str; 12] = [
    "contour",
    "emissary-ingress",
    "envoy",
    "envoy-gateway",
    "haproxy-ingress",
    "ingress-nginx",
    "istio-ingressgateway",
    "kong",
    "kubernetes-ingress",
    "nginx-gateway-fabric",
    "nginx-ingress",
    "traefik",
];

fn check(context: &Context<'_>, report: &mut Report<'_>) {
    let controllers = pods_called(context, &CONTROLLERS);
    for called in calls(context, CalledBy::Router) {
        let pods = refused(context, &called, &controllers);
        let Some(first) = pods.first() else { continue };
        let (port, names) = (called.port, context.names(&pods));
        let message = match controllers.is_empty() {
            true => format!("leads nowhere: policies admit nobody to {names} on port {port}"),
            false => format!(
                "leads nowhere: policies refuse {} to {names} on port {port}",
                context.names(&controllers)
            ),
        };
        let help = format!("add an ingress rule for the controller with `port: {port}`");
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

    const INGRESS: &str = "apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web, namespace: shop}
spec:
  rules:
    - http:
        paths:
          - path: /
            pathType: Prefix
            backend: {service: {name: web, port: {name: http}}}
---
";
    const ROUTE: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: shop}
spec:
  rules:
    - backendRefs: [{name: web, port: 80}]
---
";

    fn shop(ingress: &str) -> String {
        let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}\n";
        policy(
            "web",
            &format!("  podSelector: {{}}\n  policyTypes: [Ingress]\n  ingress: {ingress}"),
        ) + &pod("shop", "web", "app: web", "{containerPort: 8080}")
            + service
    }

    #[test]
    fn a_route_to_pods_that_admit_nobody_is_found() {
        assert_eq!(found(&(INGRESS.to_owned() + &shop("[]"))), ["10:39 route-refused"]);
        assert_eq!(found(&(ROUTE.to_owned() + &shop("[]"))), ["6:28 route-refused"]);
    }

    #[test]
    fn the_controller_is_tried_where_it_is_known() {
        let controller = pod("edge", "c", "app.kubernetes.io/name: ingress-nginx", "");
        let own = INGRESS.to_owned() + &shop("[{from: [{podSelector: {}}]}]") + &controller;
        assert_eq!(found(&own), ["10:39 route-refused"]);
        let edge = "[{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: edge}}}], ports: [{port: 8080}]}]";
        assert!(found(&(INGRESS.to_owned() + &shop(edge) + &controller)).is_empty());
    }

    #[test]
    fn pods_that_somebody_is_admitted_to_or_that_are_open_are_silent() {
        assert!(found(&(INGRESS.to_owned() + &shop("[{from: [{podSelector: {}}]}]"))).is_empty());
        assert!(found(&(ROUTE.to_owned() + &shop("[{ports: [{port: 8080}]}]"))).is_empty());
    }
}
