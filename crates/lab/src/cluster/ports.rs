//! The ports that a pod answers on.

use std::collections::BTreeSet;

use portcullis_core::net::Protocol;
use serde_json::Value;

use crate::respond::Port;

/// What images listen on that manifests often do not declare, by the last part of their name.
const WELL_KNOWN: [(&str, u16); 16] = [
    ("nginx", 80),
    ("httpd", 80),
    ("apache", 80),
    ("caddy", 80),
    ("traefik", 80),
    ("whoami", 80),
    ("httpbin", 80),
    ("hello", 80),
    ("nginx-unprivileged", 8080),
    ("echoserver", 8080),
    ("http-echo", 5678),
    ("mysql", 3306),
    ("mariadb", 3306),
    ("postgres", 5432),
    ("redis", 6379),
    ("mongo", 27017),
];

/// The ports of a Pod object: those that its containers declare, and for a container that declares
/// none the one that everybody knows its image by.
pub(crate) fn of(pod: &Value) -> BTreeSet<Port> {
    let list = |path: &str| pod.pointer(path).and_then(Value::as_array).into_iter().flatten();
    let sidecars = list("/spec/initContainers").filter(|c| c["restartPolicy"] == "Always");
    let mut ports = BTreeSet::new();
    for container in list("/spec/containers").chain(sidecars) {
        let declared: Vec<&Value> =
            container["ports"].as_array().map(|ports| ports.iter().collect()).unwrap_or_default();
        if declared.is_empty() {
            let image = container["image"].as_str().unwrap_or_default();
            ports.extend(well_known(image).map(|port| (Protocol::Tcp, port)));
        }
        for port in declared {
            let protocol = match port["protocol"].as_str() {
                Some("UDP") => Protocol::Udp,
                Some("SCTP") => Protocol::Sctp,
                _ => Protocol::Tcp,
            };
            let number = port["containerPort"].as_u64().and_then(|n| u16::try_from(n).ok());
            ports.extend(number.filter(|n| *n > 0).map(|number| (protocol, number)));
        }
    }
    ports
}

/// `registry:5000/library/nginx:1.27@sha256:…` is known as `nginx`.
fn well_known(image: &str) -> Option<u16> {
    let last = image.rsplit('/').next()?;
    let name = last.split(['@', ':']).next()?;
    WELL_KNOWN.iter().find(|(known, _)| *known == name).map(|(_, port)| *port)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn declared_ports_count_and_else_those_of_a_well_known_image() {
        let ports = |containers: Value| of(&json!({"spec": {"containers": containers}}));
        assert_eq!(ports(json!([{"image": "nginx"}])), [(Protocol::Tcp, 80)].into());
        let full = json!([{"image": "here:5000/library/nginx:1.27@sha256:0123"}]);
        assert_eq!(ports(full), [(Protocol::Tcp, 80)].into());
        assert_eq!(ports(json!([{"image": "busybox"}, {"image": "my-nginx"}])), [].into());
        let declared = json!([{"image": "nginx", "ports": [
            {"containerPort": 8080}, {"containerPort": 53, "protocol": "UDP"}]}]);
        assert_eq!(ports(declared), [(Protocol::Tcp, 8080), (Protocol::Udp, 53)].into());
    }

    #[test]
    fn a_sidecar_listens_and_an_init_container_does_not() {
        let pod = json!({"spec": {"containers": [], "initContainers": [
            {"image": "a", "ports": [{"containerPort": 1}]},
            {"image": "b", "restartPolicy": "Always", "ports": [{"containerPort": 2}]}]}});
        assert_eq!(of(&pod), [(Protocol::Tcp, 2)].into());
    }
}
