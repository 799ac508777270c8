//! The network configuration that a runtime writes to the plugin's standard input.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{ATTACHMENTS, Error, SOCKET};

/// The versions of the specification that can be spoken. Before 0.3.0 there were no chains.
pub(crate) const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// What becomes of a pod whose policies cannot be put in force before it starts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum WhenAgentIsDown {
    /// It does not start.
    Refuse,
    /// It starts if the kernel lets nothing to and from it until the agent is back.
    #[default]
    Closed,
    /// It starts, and the kernel does with its addresses what it does.
    Open,
}

/// What the plugin reads of its configuration. Everything else is passed over.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Configuration {
    #[serde(default)]
    pub(crate) cni_version: String,
    #[serde(default)]
    pub(crate) name: String,
    prev_result: Option<Map<String, Value>>,
    when_agent_is_down: Option<Value>,
    socket: Option<PathBuf>,
    attachments: Option<PathBuf>,
    #[serde(rename = "cni.dev/valid-attachments")]
    valid: Option<Vec<Valid>>,
}

/// What a runtime knows to be there still, when it asks to clean up.
#[derive(Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Valid {
    #[serde(rename = "containerID")]
    pub(crate) container: String,
    #[serde(rename = "ifname")]
    pub(crate) interface: String,
}

impl Configuration {
    pub(crate) fn read(text: &[u8]) -> Result<Configuration, Error> {
        let what = "the network configuration";
        let read: Configuration =
            serde_json::from_slice(text).map_err(|source| Error::Decode { what, source })?;
        if !VERSIONS.contains(&&*read.cni_version) {
            return Err(Error::Version(format!(
                "the configuration is of CNI version {:?}; supported are {}",
                read.cni_version,
                VERSIONS.join(", ")
            )));
        }
        if read.name.is_empty() {
            return Err(Error::Configuration("the configuration has no name".to_owned()));
        }
        read.when_agent_is_down()?;
        Ok(read)
    }

    pub(crate) fn when_agent_is_down(&self) -> Result<WhenAgentIsDown, Error> {
        match &self.when_agent_is_down {
            None => Ok(WhenAgentIsDown::default()),
            Some(Value::String(word)) if word == "refuse" => Ok(WhenAgentIsDown::Refuse),
            Some(Value::String(word)) if word == "closed" => Ok(WhenAgentIsDown::Closed),
            Some(Value::String(word)) if word == "open" => Ok(WhenAgentIsDown::Open),
            Some(other) => Err(Error::Field {
                key: "whenAgentIsDown",
                value: other.to_string(),
                known: "\"refuse\", \"closed\" or \"open\"",
            }),
        }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(|| SOCKET.into())
    }

    pub(crate) fn attachments(&self) -> PathBuf {
        self.attachments.clone().unwrap_or_else(|| ATTACHMENTS.into())
    }

    pub(crate) fn valid(&self) -> Result<&[Valid], Error> {
        // To take nothing said for nothing valid would forget every pod.
        self.valid.as_deref().ok_or_else(|| {
            let text = "the configuration has no cni.dev/valid-attachments: nothing was dropped";
            Error::Configuration(text.to_owned())
        })
    }

    /// Whether the version of the configuration has this command.
    pub(crate) fn has(&self, command: &str, since: &str) -> Result<(), Error> {
        let position = |version: &str| VERSIONS.iter().position(|known| *known == version);
        if position(&self.cni_version) >= position(since) {
            return Ok(());
        }
        Err(Error::Version(format!(
            "{command} came with CNI version {since}; the configuration is of {}",
            self.cni_version
        )))
    }

    /// The result of the plugin before, which is that of the whole chain so far.
    pub(crate) fn previous(&self) -> Result<Map<String, Value>, Error> {
        let Some(mut result) = self.prev_result.clone() else {
            return Err(Error::Configuration(
                "the configuration has no prevResult: this plugin gives no addresses, and has to \
                 come after one that does"
                    .to_owned(),
            ));
        };
        let version = || self.cni_version.clone().into();
        result.entry("cniVersion").or_insert_with(version);
        Ok(result)
    }

    /// The addresses that the pod was given: those of `prevResult` but what is said to be of an
    /// interface on the host's side.
    pub(crate) fn addresses(&self) -> Result<Vec<IpAddr>, Error> {
        let result = self.previous()?;
        let list = |key: &str| result.get(key).and_then(Value::as_array).into_iter().flatten();
        let interfaces: Vec<&Value> = list("interfaces").collect();
        let of_the_host = |ip: &Value| {
            let index = ip.get("interface").and_then(Value::as_u64)?;
            let interface = interfaces.get(usize::try_from(index).ok()?)?;
            let sandbox = interface.get("sandbox").and_then(Value::as_str);
            Some(sandbox.unwrap_or_default().is_empty())
        };
        let mut addresses = Vec::new();
        for ip in list("ips").filter(|ip| of_the_host(ip) != Some(true)) {
            let text = ip.get("address").and_then(Value::as_str).unwrap_or_default();
            let net: IpNet = text.parse().map_err(|_| {
                Error::Configuration(format!(
                    "prevResult.ips has the address {text:?}; expected one like 10.0.0.2/24"
                ))
            })?;
            addresses.push(net.addr());
        }
        if addresses.is_empty() {
            let text = "prevResult has no address of the pod";
            return Err(Error::Configuration(text.to_owned()));
        }
        Ok(addresses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_the_host_are_none_of_the_pod() {
        let text = br#"{"cniVersion": "1.0.0", "name": "n", "prevResult": {
            "interfaces": [{"name": "cni0"}, {"name": "eth0", "sandbox": "/run/netns/x"}],
            "ips": [{"address": "10.0.0.1/24", "interface": 0},
                    {"address": "10.0.0.9/24", "interface": 1, "gateway": "10.0.0.1"},
                    {"address": "fd00::9/64"}]}}"#;
        let addresses = Configuration::read(text).unwrap().addresses().unwrap();
        let wanted: [IpAddr; 2] = ["10.0.0.9".parse().unwrap(), "fd00::9".parse().unwrap()];
        assert_eq!(addresses, wanted);
    }
}
