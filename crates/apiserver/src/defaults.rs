//! What the API server writes into the fields that an author left out.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::meta;
use crate::resource::Resource;

/// Fills in an object that is about to be stored.
pub(crate) fn fill(resource: &Resource, object: &mut Value) {
    match resource.kind {
        "Namespace" => namespace(object),
        "Pod" => pod(object),
        "Service" => service(&mut object["spec"]),
        "Deployment" => deployment(&mut object["spec"]),
        "ReplicaSet" => replica_set(&mut object["spec"]),
        "StatefulSet" => stateful_set(&mut object["spec"]),
        "DaemonSet" => daemon_set(&mut object["spec"]),
        "NetworkPolicy" => network_policy(&mut object["spec"]),
        "Secret" => secret(object),
        "Endpoints" => {
            for subset in items(object, "subsets") {
                protocols(subset);
            }
        }
        "EndpointSlice" => protocols(object),
        _ => {}
    }
}

/// Sets a field that is not there.
fn set(object: &mut Value, field: &str, value: impl Into<Value>) {
    let Some(map) = object.as_object_mut() else { return };
    let old = map.entry(field).or_insert(Value::Null);
    if old.is_null() {
        *old = value.into();
    }
}

fn items<'a>(object: &'a mut Value, field: &str) -> &'a mut [Value] {
    object.get_mut(field).and_then(Value::as_array_mut).map(Vec::as_mut_slice).unwrap_or_default()
}

fn protocols(owner: &mut Value) {
    for port in items(owner, "ports") {
        set(port, "protocol", "TCP");
    }
}

fn namespace(object: &mut Value) {
    set(object, "spec", json!({}));
    set(&mut object["spec"], "finalizers", json!(["kubernetes"]));
    set(object, "status", json!({"phase": "Active"}));
    let name = meta::name(object).to_owned();
    set(&mut object["metadata"], "labels", json!({}));
    object["metadata"]["labels"]["kubernetes.io/metadata.name"] = json!(name);
}

fn pod(object: &mut Value) {
    let Some(spec) = object.get_mut("spec").filter(|spec| spec.is_object()) else { return };
    set(spec, "serviceAccountName", "default");
    let account = spec["serviceAccountName"].clone();
    set(spec, "serviceAccount", account);
    set(spec, "enableServiceLinks", true);
    set(spec, "preemptionPolicy", "PreemptLowerPriority");
    set(spec, "priority", 0);
    let tolerate = |key: &str| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300});
    set(
        spec,
        "tolerations",
        json!([
            tolerate("node.kubernetes.io/not-ready"),
            tolerate("node.kubernetes.io/unreachable")
        ]),
    );
    pod_spec(spec);
    let quality = quality(&object["spec"]);
    set(object, "status", json!({"phase": "Pending", "qosClass": quality}));
}

/// The QoS class: what a pod is promised.
fn quality(spec: &Value) -> &'static str {
    let containers = || meta::list(spec, "/containers").iter();
    let asks = |container: &Value, list: &str, of: &str| {
        container["resources"][list].get(of).cloned().filter(|amount| *amount != "0")
    };
    let resources = ["cpu", "memory"];
    let guaranteed = containers().all(|container| {
        resources.iter().all(|of| {
            let limit = asks(container, "limits", of);
            let request = asks(container, "requests", of);
            limit.is_some() && (request.is_none() || request == limit)
        })
    });
    let some = containers().any(|container| {
        let both = |of: &&str| {
            asks(container, "limits", of).or_else(|| asks(container, "requests", of)).is_some()
        };
        resources.iter().any(both)
    });
    match (guaranteed, some) {
        (true, true) => "Guaranteed",
        (_, true) => "Burstable",
        (_, false) => "BestEffort",
    }
}

fn pod_spec(spec: &mut Value) {
    set(spec, "restartPolicy", "Always");
    set(spec, "dnsPolicy", "ClusterFirst");
    set(spec, "schedulerName", "default-scheduler");
    set(spec, "terminationGracePeriodSeconds", 30);
    set(spec, "securityContext", json!({}));
    let on_host = spec["hostNetwork"] == true;
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for container in items(spec, list) {
            fill_container(container);
            for port in items(container, "ports").iter_mut().filter(|_| on_host) {
                let number = port["containerPort"].clone();
                set(port, "hostPort", number);
            }
        }
    }
    for volume in items(spec, "volumes") {
        if volume.as_object().is_some_and(|map| map.keys().all(|key| key == "name")) {
            set(volume, "emptyDir", json!({}));
        }
        for kind in ["secret", "configMap", "downwardAPI", "projected"] {
            if let Some(source) = volume.get_mut(kind) {
                set(source, "defaultMode", 420);
            }
        }
    }
}

fn fill_container(container: &mut Value) {
    let image = meta::text(container, "/image");
    let tag = image.rsplit('/').next().and_then(|last| last.split_once(':')).map(|(_, tag)| tag);
    let latest = !image.contains('@') && matches!(tag, None | Some("latest"));
    set(container, "imagePullPolicy", if latest { "Always" } else { "IfNotPresent" });
    set(container, "resources", json!({}));
    set(container, "terminationMessagePath", "/dev/termination-log");
    set(container, "terminationMessagePolicy", "File");
    protocols(container);
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(probe) {
            set(probe, "timeoutSeconds", 1);
            set(probe, "periodSeconds", 10);
            set(probe, "successThreshold", 1);
            set(probe, "failureThreshold", 3);
            if let Some(get) = probe.get_mut("httpGet") {
                set(get, "path", "/");
                set(get, "scheme", "HTTP");
            }
        }
    }
    for variable in items(container, "env") {
        if let Some(field) = variable.pointer_mut("/valueFrom/fieldRef") {
            set(field, "apiVersion", "v1");
        }
    }
}

fn template(spec: &mut Value) {
    if let Some(pod) = spec.pointer_mut("/template/spec") {
        pod_spec(pod);
    }
}

fn deployment(spec: &mut Value) {
    if !spec.is_object() {
        return;
    }
    set(spec, "replicas", 1);
    set(spec, "revisionHistoryLimit", 10);
    set(spec, "progressDeadlineSeconds", 600);
    set(spec, "strategy", json!({}));
    let strategy = &mut spec["strategy"];
    set(strategy, "type", "RollingUpdate");
    if strategy["type"] == "RollingUpdate" {
        set(strategy, "rollingUpdate", json!({}));
        set(&mut strategy["rollingUpdate"], "maxSurge", "25%");
        set(&mut strategy["rollingUpdate"], "maxUnavailable", "25%");
    }
    template(spec);
}

fn replica_set(spec: &mut Value) {
    set(spec, "replicas", 1);
    template(spec);
}

fn stateful_set(spec: &mut Value) {
    if !spec.is_object() {
        return;
    }
    set(spec, "replicas", 1);
    set(spec, "revisionHistoryLimit", 10);
    set(spec, "podManagementPolicy", "OrderedReady");
    set(spec, "updateStrategy", json!({}));
    set(&mut spec["updateStrategy"], "type", "RollingUpdate");
    if spec["updateStrategy"]["type"] == "RollingUpdate" {
        set(&mut spec["updateStrategy"], "rollingUpdate", json!({"partition": 0}));
    }
    let retention = json!({"whenDeleted": "Retain", "whenScaled": "Retain"});
    set(spec, "persistentVolumeClaimRetentionPolicy", retention);
    template(spec);
}

fn daemon_set(spec: &mut Value) {
    if !spec.is_object() {
        return;
    }
    set(spec, "revisionHistoryLimit", 10);
    set(spec, "updateStrategy", json!({}));
    set(&mut spec["updateStrategy"], "type", "RollingUpdate");
    if spec["updateStrategy"]["type"] == "RollingUpdate" {
        let rolling = json!({"maxSurge": 0, "maxUnavailable": 1});
        set(&mut spec["updateStrategy"], "rollingUpdate", rolling);
    }
    template(spec);
}

fn service(spec: &mut Value) {
    if !spec.is_object() {
        return;
    }
    set(spec, "type", "ClusterIP");
    set(spec, "sessionAffinity", "None");
    if spec["sessionAffinity"] == "ClientIP" {
        set(spec, "sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": 10800}}));
    }
    protocols(spec);
    let kind = spec["type"].clone();
    for port in items(spec, "ports") {
        let number = port["port"].clone();
        set(port, "targetPort", number);
    }
    if kind == "NodePort" || kind == "LoadBalancer" {
        set(spec, "externalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        set(spec, "allocateLoadBalancerNodePorts", true);
    }
    if kind != "ExternalName" {
        set(spec, "internalTrafficPolicy", "Cluster");
    }
}

fn network_policy(spec: &mut Value) {
    if spec.is_null() {
        *spec = json!({});
    }
    set(spec, "podSelector", json!({}));
    if spec.get("policyTypes").is_none() {
        let egress = !meta::list(spec, "/egress").is_empty();
        let types = if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
        set(spec, "policyTypes", types);
    }
    for direction in ["ingress", "egress"] {
        for rule in items(spec, direction) {
            protocols(rule);
        }
    }
}

/// `stringData` is written into `data`.
fn secret(object: &mut Value) {
    set(object, "type", "Opaque");
    let plain: Vec<_> = meta::strings(object.get("stringData"));
    if let Some(map) = object.as_object_mut() {
        map.shift_remove("stringData");
    }
    for (key, value) in plain {
        set(object, "data", json!({}));
        object["data"][&key] = json!(STANDARD.encode(value));
    }
}
