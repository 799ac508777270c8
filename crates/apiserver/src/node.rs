//! Nodes as they join a cluster.

use std::net::IpAddr;

use serde_json::{Value, json};

use crate::discovery::MINOR;
use crate::resource::Resource;
use crate::serve::Server;
use crate::{meta, objects};

/// A node as it joins a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name, which is also its host name.
    pub name: String,
    /// Its addresses towards other nodes, one of a family.
    pub addresses: Vec<IpAddr>,
    /// Where its pods have their addresses, one of a family: `10.244.1.0/24`.
    pub pod_cidrs: Vec<String>,
}

impl Server {
    /// Adds a node that is ready. One of that name stays as it is.
    pub fn add_node(&self, node: &Node) {
        let Some(resource) = Resource::of_kind("Node") else { return };
        let labels = json!({
            "kubernetes.io/arch": "amd64",
            "kubernetes.io/hostname": node.name,
            "kubernetes.io/os": "linux",
        });
        let object = json!({
            "metadata": {"name": node.name, "labels": labels},
            "spec": {"podCIDR": node.pod_cidrs.first(), "podCIDRs": node.pod_cidrs},
        });
        let capacity = json!({"cpu": "2", "memory": "4Gi", "pods": "250"});
        let internal = node.addresses.iter();
        let mut addresses: Vec<Value> =
            internal.map(|ip| json!({"type": "InternalIP", "address": ip})).collect();
        addresses.push(json!({"type": "Hostname", "address": node.name}));
        let status = json!({
            "addresses": addresses,
            "capacity": capacity,
            "allocatable": capacity,
            "conditions": [{
                "type": "Ready",
                "status": "True",
                "reason": "KubeletReady",
                "message": "the node is ready",
                "lastHeartbeatTime": meta::now(),
                "lastTransitionTime": meta::now(),
            }],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 0}},
            "nodeInfo": {
                "architecture": "amd64",
                "bootID": "",
                "containerRuntimeVersion": "portcullis://0.1",
                "kernelVersion": "",
                "kubeProxyVersion": format!("v1.{MINOR}.0"),
                "kubeletVersion": format!("v1.{MINOR}.0"),
                "machineID": "",
                "operatingSystem": "linux",
                "osImage": "Portcullis",
                "systemUUID": "",
            },
        });
        self.store().write(|state| {
            if let Ok(done) = objects::create(state, resource, "", object, false) {
                let key = crate::Key::new(resource, "", meta::name(&done.object));
                objects::amend(state, &key, |node| node["status"] = status);
            }
            if let Some(leases) = Resource::of_kind("Lease") {
                let lease = json!({
                    "metadata": {"name": node.name},
                    "spec": {
                        "holderIdentity": node.name,
                        "leaseDurationSeconds": 40,
                        "renewTime": meta::now(),
                    },
                });
                // One that is there says the same.
                let _ = objects::create(state, leases, "kube-node-lease", lease, false);
            }
        });
    }
}
