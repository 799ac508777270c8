//! What a container runtime does about the network of a pod beside making it: it calls the CNI plugin,
//! and starts nothing in the pod before that has returned.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use portcullis_cni::{Environment, PLUGIN};
use serde_json::{Value, json};

use crate::cluster::files::{ATTACHMENTS, Files, SOCKET};
use crate::cluster::text;

/// A lab that comes up has the pods of its last time before the agents are there. It waits for them so
/// long, and then lets the plugin decide.
const COMING_UP: Duration = Duration::from_secs(10);

/// The plugin, called as a program would be, with the agents of this lab's nodes.
#[derive(Debug)]
pub(crate) struct Network {
    files: Arc<Files>,
    started: Instant,
}

impl Network {
    pub(crate) fn new(files: Arc<Files>) -> Network {
        Network { files, started: Instant::now() }
    }

    /// The pod has been given these addresses. Returns when the kernel of its node enforces its policies
    /// there, or, without an agent, when it is known to close them.
    pub(crate) fn add(&self, node: &str, pod: &Value, has: &[IpAddr]) -> Result<(), String> {
        let ready = || self.call("STATUS", node, pod, has).is_ok();
        while self.started.elapsed() < COMING_UP && !ready() {
            thread::sleep(Duration::from_millis(2));
        }
        self.call("ADD", node, pod, has)
    }

    /// The pod has them no longer.
    pub(crate) fn delete(&self, node: &str, pod: &Value, had: &[IpAddr]) -> Result<(), String> {
        self.call("DEL", node, pod, had)
    }

    /// Returns when the node enforces the policies of the pod at its addresses, also for connections
    /// that were open before.
    pub(crate) fn check(&self, node: &str, pod: &Value, has: &[IpAddr]) -> Result<(), String> {
        self.call("CHECK", node, pod, has)
    }

    fn call(&self, command: &str, node: &str, pod: &Value, has: &[IpAddr]) -> Result<(), String> {
        let folder = self.files.of(node);
        let configuration = configuration(&folder, has).to_string();
        portcullis_cni::run(&environment(command, pod), configuration.as_bytes())
            .map(drop)
            .map_err(|error| format!("plugin {PLUGIN} failed ({command}): {error}"))
    }
}

fn configuration(folder: &Path, addresses: &[IpAddr]) -> Value {
    let length = |address: &IpAddr| if address.is_ipv4() { 32 } else { 128 };
    let ip = |address: &IpAddr| json!({"address": format!("{address}/{}", length(address))});
    let ips: Vec<Value> = addresses.iter().map(ip).collect();
    json!({
        "cniVersion": "1.1.0",
        "name": "lab",
        "type": PLUGIN,
        "socket": folder.join(SOCKET),
        "attachments": folder.join(ATTACHMENTS),
        "prevResult": {"cniVersion": "1.1.0", "ips": ips},
    })
}

fn environment(command: &str, pod: &Value) -> Environment {
    let uid = text(pod, "/metadata/uid");
    let [namespace, name] = ["/metadata/namespace", "/metadata/name"].map(|path| text(pod, path));
    Environment {
        command: command.to_owned(),
        container: uid.to_owned(),
        netns: "of the lab".to_owned(),
        interface: "eth0".to_owned(),
        arguments: format!("K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_UID={uid}"),
    }
}
