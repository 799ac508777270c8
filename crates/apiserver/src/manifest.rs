//! Objects that whoever runs the server puts there, as a client would.

use hyper::Method;
use serde_json::{Value, json};

use crate::api::{self, Answer, Call};
use crate::resource::Resource;
use crate::serve::Server;
use crate::{Error, meta};

impl Server {
    /// Puts an object there, or brings what is there up to date, as `kubectl apply --server-side`
    /// does. Without a namespace it goes to `default`.
    pub fn apply(&self, object: &Value) -> Result<(), Error> {
        let (kind, version) = (meta::text(object, "/kind"), meta::text(object, "/apiVersion"));
        let path = path_of(version, kind, meta::namespace(object), meta::name(object))?;
        let query = "fieldManager=portcullis&force=true&fieldValidation=Strict";
        self.call(&Method::PATCH, &path, query, object)
    }

    /// Deletes an object as `kubectl delete --wait=false` does. Without a namespace it is looked for in
    /// `default`.
    pub fn delete(
        &self,
        version: &str,
        kind: &str,
        namespace: &str,
        name: &str,
    ) -> Result<(), Error> {
        let path = path_of(version, kind, namespace, name)?;
        let object = json!({"kind": kind, "metadata": {"name": name}});
        self.call(&Method::DELETE, &path, "propagationPolicy=Background", &object)
    }

    fn call(&self, method: &Method, path: &str, query: &str, object: &Value) -> Result<(), Error> {
        let refused = |why: &str| Error::Refused {
            kind: meta::text(object, "/kind").to_owned(),
            name: meta::name(object).to_owned(),
            why: why.to_owned(),
        };
        let applies = method == Method::PATCH;
        let body = if applies { object.to_string() } else { String::new() };
        let address = self.address().to_string();
        let call = Call {
            method,
            path,
            query,
            accept: "application/json",
            content_type: if applies { "application/apply-patch+yaml" } else { "application/json" },
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

/// The path of an object in the API.
fn path_of(version: &str, kind: &str, namespace: &str, name: &str) -> Result<String, Error> {
    let (group, number) = version.split_once('/').unwrap_or(("", version));
    let resource = Resource::of_kind(kind);
    let Some(resource) = resource.filter(|r| r.group == group && r.version == number) else {
        return Err(Error::NotServed { kind: kind.to_owned(), version: version.to_owned() });
    };
    let root = if group.is_empty() { "/api" } else { "/apis" };
    let namespace = match (resource.namespaced, namespace) {
        (false, _) => String::new(),
        (true, "") => "/namespaces/default".to_owned(),
        (true, namespace) => format!("/namespaces/{namespace}"),
    };
    Ok(format!("{root}/{version}{namespace}/{}/{name}", resource.plural))
}
