use crate::read;

#[test]
fn monitors_webhooks_and_annotations_say_who_calls_whom() {
    let input = read(
        "
apiVersion: monitoring.coreos.com/v1
kind: ServiceMonitor
metadata: {name: web, namespace: monitoring}
spec:
  selector: {matchLabels: {app: web}}
  namespaceSelector: {matchNames: [shop]}
  endpoints:
  - {port: metrics}
  - {targetPort: 9100}
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: {name: inject}
webhooks:
- {name: a.example, clientConfig: {service: {name: hook, namespace: shop, port: 8443}}}
- {name: b.example, clientConfig: {url: 'https://hook.example'}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: api, namespace: shop}
spec:
  selector: {matchLabels: {app: api}}
  template:
    metadata:
      labels: {app: api}
      annotations: {prometheus.io/scrape: 'true', prometheus.io/port: '9090'}
    spec: {containers: [{name: api, image: api}]}
",
    );
    let calls = input.callers.iter().map(|caller| {
        let call = &caller.call;
        let namespaces = call.namespaces.as_deref().unwrap_or_default().join(",");
        format!(
            "{} {}: {:?} calls {namespaces} {:?} {:?}",
            caller.location.line, caller.object, call.by, call.target, call.port
        )
    });
    insta::assert_snapshot!(calls.collect::<Vec<_>>().join("\n"), @r#"
    9 servicemonitor monitoring/web: Prometheus calls shop Services(Selector { match_labels: {"app": "web"}, match_expressions: [] }) Some(ServiceName("metrics"))
    10 servicemonitor monitoring/web: Prometheus calls shop Services(Selector { match_labels: {"app": "web"}, match_expressions: [] }) Some(Pod(9100))
    16 mutatingwebhookconfiguration inject: ApiServer calls shop Service("hook") Some(Service(8443))
    27 deployment shop/api: Prometheus calls shop Object("Deployment", "api") Some(Pod(9090))
    "#);
}

#[test]
fn what_is_not_understood_calls_nobody() {
    let input = read(
        "
apiVersion: monitoring.coreos.com/v1
kind: PodMonitor
metadata: {name: web}
spec:
  selector: {matchLabels: [app]}
  podMetricsEndpoints: [{port: metrics}]
---
apiVersion: v1
kind: Pod
metadata: {name: web, annotations: {prometheus.io/scrape: 'false'}}
spec: {containers: [{name: web, image: web}]}
",
    );
    assert!(input.callers.is_empty() && !input.has_errors());
}
