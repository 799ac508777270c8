//! Objects that whoever runs the server puts there, as a client would.

use hyper::Method;
use serde_json::Value;

use crate::api::{self, Answer, Call};
use crate::resource::Resource;
use crate::serve::Server;
use crate::{Error, meta};

impl Server {
    /// Puts an object there, or brings what is there up to date, as `kubectl apply --server-side`
    /// does. Without a namespace it goes to `default`.
    pub fn apply(&self, object: &Value) -> Result<(), Error> {
        let (kind, name) = (meta::text(object, "/kind"), meta::name(object));
        let refused = |why: &str| Error::Refused {
            kind: kind.to_owned(),
            name: name.to_owned(),
            why: why.to_owned(),
        };
        let version = meta::text(object, "/apiVersion");
        let (group, number) = version.split_once('/').unwrap_or(("", version));
        let resource = Resource::of_kind(kind);
        let Some(resource) = resource.filter(|r| r.group == group && r.version == number) else {
            return Err(Error::NotServed { kind: kind.to_owned(), version: version.to_owned() });
        };
        let root = if group.is_empty() { "/api" } else { "/apis" };
        let namespace = match (resource.namespaced, meta::namespace(object)) {
            (false, _) => String::new(),
            (true, "") => "/namespaces/default".to_owned(),
            (true, namespace) => format!("/namespaces/{namespace}"),
        };
        let (body, address) = (object.to_string(), self.address().to_string());
        let call = Call {
            method: &Method::PATCH,
            path: &format!("{root}/{version}{namespace}/{}/{name}", resource.plural),
            query: "fieldManager=portcullis&force=true&fieldValidation=Strict",
            accept: "application/json",
            content_type: "application/apply-patch+yaml",
            agent: "portcullis",
            body: body.as_bytes(),
            address: &address,
        };
        match api::answer(self.store(), &call) {
            Answer::Json { code: 200..300, .. } => Ok(()),
            Answer::Json { body, .. } => Err(refused(meta::text(&body, "/message"))),
            Answer::Raw { .. } | Answer::Watch(_) => Err(refused("an answer of another kind")),
        }
    }
}
