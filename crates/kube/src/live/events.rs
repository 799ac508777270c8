//! Events: what whoever describes a pod is shown.

use kube::api::{Api, ApiResource, DynamicObject, PostParams};
use kube::{Client, Config};
use serde_json::json;

use super::Access;
use super::access::CONNECT;
use super::error::Error;

/// Writes Events. The only thing here that writes.
#[derive(Clone)]
pub struct Events {
    client: Client,
    /// Who says it.
    node: String,
}

/// Something that happened to a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodEvent {
    /// `metadata.namespace` of the pod.
    pub namespace: String,
    /// `metadata.name` of the pod.
    pub pod: String,
    /// `metadata.uid` of the pod; empty if it is not known.
    pub uid: String,
    /// When, in RFC 3339.
    pub time: String,
    /// What, in one word.
    pub reason: &'static str,
    /// What, in full.
    pub message: String,
}

/// The longest message that the API takes, in bytes.
const LONGEST: usize = 1024;

impl Access {
    /// Events that are said by the agent of this node.
    ///
    /// # Errors
    /// Where nothing says how the cluster is reached.
    pub async fn events(&self, node: &str) -> Result<Events, Error> {
        let (_, mut config): (_, Config) = self.config().await?;
        config.connect_timeout = Some(CONNECT.min(self.timeout));
        config.read_timeout = Some(self.timeout);
        let asked = self.asked(&config);
        let client = Client::try_from(config).map_err(|e| asked.error(e))?;
        Ok(Events { client, node: node.to_owned() })
    }
}

impl Events {
    /// Writes an Event. The error is in the words of the API server, or why it cannot be reached.
    pub async fn write(&self, event: &PodEvent) -> Result<(), String> {
        let PodEvent { namespace, pod, uid, time, reason, message } = event;
        let message = &message[..message.floor_char_boundary(LONGEST)];
        let kind = ApiResource {
            group: String::new(),
            version: "v1".to_owned(),
            api_version: "v1".to_owned(),
            kind: "Event".to_owned(),
            plural: "events".to_owned(),
        };
        let mut object = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": format!("{pod}.portcullis."), "namespace": namespace},
            "involvedObject": {
                "apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": pod,
            },
            "type": "Warning",
            "reason": reason,
            "message": message,
            "source": {"component": "portcullis", "host": self.node},
            "reportingComponent": "portcullis",
            "reportingInstance": self.node,
            "firstTimestamp": time,
            "lastTimestamp": time,
            "count": 1,
        });
        if !uid.is_empty() {
            object["involvedObject"]["uid"] = json!(uid);
        }
        let object: DynamicObject = serde_json::from_value(object).map_err(|e| e.to_string())?;
        let api = Api::<DynamicObject>::namespaced_with(self.client.clone(), namespace, &kind);
        let written = api.create(&PostParams::default(), &object).await;
        written.map(drop).map_err(|error| error.to_string())
    }
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").field("node", &self.node).finish_non_exhaustive()
    }
}
