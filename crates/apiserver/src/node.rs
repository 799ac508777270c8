//! Nodes: those that a cluster is given, and a network that is none.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use crate::control::PodNetwork;
use crate::discovery::MINOR;
use crate::resource::Resource;
use crate::serve::Server;
use crate::{meta, objects};

/// A node as it joins a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name, which is also its host name.
    pub name: String,
    /// Its address towards other nodes.
    pub address: IpAddr,
    /// Where its pods have their addresses: `10.244.1.0/24`.
    pub pod_cidr: String,
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
            "spec": {"podCIDR": node.pod_cidr, "podCIDRs": [node.pod_cidr]},
        });
        let capacity = json!({"cpu": "2", "memory": "4Gi", "pods": "250"});
        let status = json!({
            "addresses": [
                {"type": "InternalIP", "address": node.address},
                {"type": "Hostname", "address": node.name},
            ],
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
        });
    }
}

/// A network without packets: pods get the addresses 10.244.N.2 and on, where N is the number at the
/// end of the name of their node.
#[derive(Debug, Default)]
pub struct FakeNetwork {
    /// Who has which address, by uid.
    given: Mutex<HashMap<String, Ipv4Addr>>,
}

impl PodNetwork for FakeNetwork {
    fn up(&self, pod: &Value) -> Result<Vec<IpAddr>, String> {
        let node = meta::text(pod, "/spec/nodeName");
        let digits = node.trim_start_matches(|c: char| !c.is_ascii_digit());
        let number: u8 = digits.parse().unwrap_or_default();
        if pod.pointer("/spec/hostNetwork") == Some(&json!(true)) {
            return Ok(vec![[192, 0, 2, number].into()]);
        }
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        let free = (2..=254)
            .map(|last| Ipv4Addr::new(10, 244, number, last))
            .find(|address| given.values().all(|taken| taken != address));
        let address = free.ok_or_else(|| format!("10.244.{number}.0/24 has no address left"))?;
        given.insert(meta::uid(pod).to_owned(), address);
        Ok(vec![address.into()])
    }

    fn down(&self, pod: &Value) {
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        given.remove(meta::uid(pod));
    }
}
