//! Pods that Prometheus is told to scrape, and policies that keep it out.

use portcullis_core::model::Direction;
use portcullis_kube::{CalledBy, Severity};

use crate::calls::{calls, pods_called, refused};
use crate::context::Context;
use crate::rule::{Report, Rule};

pub(crate) const RULE: Rule = Rule {
    id: "scrape-refused",
    severity: Severity::Warning,
    what: "A monitor or an annotation asks Prometheus to scrape pods that policies keep it from.",
    why: "A ServiceMonitor, a PodMonitor and the annotation `prometheus.io/scrape` open nothing. Where \
          policies isolate the pods for ingress, a rule has to admit Prometheus on the port of the \
          metrics. With the Prometheus pods in the input, they are what is tried; without them, it is \
          only said where nobody at all is admitted on that port.",
    example: "
kind: ServiceMonitor
spec:
  selector: {matchLabels: {app: api}}
  endpoints:
    - port: metrics # 9090 on the pods; their policy admits port 8080 only
",
    fix: "Add an ingress rule for the Prometheus pods on that port.",
    whole: true,
    check,
};

fn check(context: &Context<'_>, report: &mut Report<'_>) {
    let scrapers = pods_called(context, &["prometheus"]);
    for called in calls(context, CalledBy::Prometheus) {
        let pods = refused(context, &called, &scrapers);
        if pods.is_empty() {
            continue;
        }
        let (port, names) = (called.port, context.names(&pods));
        let message = match scrapers.is_empty() {
            true => format!("cannot be scraped: policies admit nobody to {names} on port {port}"),
            false => format!(
                "cannot be scraped: policies refuse {} to {names} on port {port}",
                context.names(&scrapers)
            ),
        };
        let help = format!("add an ingress rule for the Prometheus pods with `port: {port}`");
        let (object, location) = (called.caller.object.clone(), called.caller.location.clone());
        let finding = report.object(object, Some(location), message, help);
        for policy in context.isolating(pods[0], Direction::Ingress).into_iter().flatten().take(3) {
            finding.see(context, *policy as usize, "spec.podSelector");
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{found, pod, policy};

    const SPEC: &str = "  podSelector: {matchLabels: {app: api}}
  ingress:
    - from: [{podSelector: {matchLabels: {app: web}}}]
      ports: [{port: 8080}]";
    const PORTS: &str = "{name: http, containerPort: 8080}, {name: metrics, containerPort: 9090}";
    const METRICS: &str = "
    - from: [{namespaceSelector: {}, podSelector: {matchLabels: {app: prometheus}}}]
      ports: [{port: metrics}]";

    fn service() -> String {
        "---\napiVersion: v1\nkind: Service\nmetadata: {name: api, namespace: shop, labels: {app: api}}\nspec: {selector: {app: api}, ports: [{name: m, port: 80, targetPort: metrics}]}\n".to_owned()
    }

    fn monitor(kind: &str, spec: &str) -> String {
        format!(
            "apiVersion: monitoring.coreos.com/v1\nkind: {kind}\nmetadata: {{name: api, namespace: shop}}\nspec:\n  selector: {{matchLabels: {{app: api}}}}\n{spec}\n---\n"
        )
    }

    fn shop(spec: &str) -> String {
        policy("api", spec)
            + &pod("shop", "api", "app: api", PORTS)
            + &pod("shop", "web", "app: web", "")
            + &service()
    }

    #[test]
    fn a_monitor_of_a_port_that_nobody_is_admitted_on_is_found() {
        let service = monitor("ServiceMonitor", "  endpoints:\n    - port: m\n    - port: other");
        assert_eq!(found(&(service + &shop(SPEC))), ["7:7 scrape-refused"]);
        let pods = monitor("PodMonitor", "  podMetricsEndpoints:\n    - {port: metrics}");
        assert_eq!(found(&(pods + &shop(SPEC))), ["7:7 scrape-refused"]);
    }

    #[test]
    fn an_annotation_of_a_pod_or_its_template_counts_as_well() {
        let annotated = shop(SPEC).replacen(
            "labels: {app: api}}",
            "labels: {app: api}, annotations: {prometheus.io/scrape: \"true\", prometheus.io/port: \"9090\"}}",
            1,
        );
        assert_eq!(found(&annotated), ["14:96 scrape-refused"]);
        assert!(found(&annotated.replace("\"9090\"", "\"8080\"")).is_empty());
    }

    #[test]
    fn prometheus_pods_of_the_input_are_what_is_tried() {
        let monitor = monitor("ServiceMonitor", "  endpoints:\n    - port: m");
        let prometheus = pod("monitoring", "p", "app: prometheus", "");
        let admitted = format!("{monitor}{}{prometheus}", shop(&format!("{SPEC}{METRICS}")));
        assert!(found(&admitted).is_empty(), "{:?}", found(&admitted));
        let other = format!("{monitor}{}{prometheus}", shop(&SPEC.replace("8080", "9090")));
        assert_eq!(found(&other), ["7:7 scrape-refused"]);
    }

    #[test]
    fn pods_that_are_open_and_monitors_of_others_are_silent() {
        let monitor = monitor("ServiceMonitor", "  endpoints:\n    - port: m");
        let open = monitor.clone() + &shop("  podSelector: {}\n  policyTypes: [Egress]");
        assert!(found(&open).is_empty());
        let others = monitor.replace("namespace: shop", "namespace: other") + &shop(SPEC);
        assert!(found(&others).is_empty());
        let somebody = monitor + &shop(&SPEC.replace("8080", "9090"));
        assert!(found(&somebody).is_empty());
    }
}
