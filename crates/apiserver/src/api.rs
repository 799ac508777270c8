//! From a request to its answer. No I/O: bytes in, an [`Answer`] out.

use std::collections::HashMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hyper::Method;
use serde_json::{Value, json};

use crate::apply;
use crate::objects::{self, Deletion, Done, Part, Propagation};
use crate::refusal::Refusal;
use crate::resource::Resource;
use crate::select::{self, Select};
use crate::store::{Compacted, Key, State, Store};
use crate::table::{self, Include};
use crate::watching::Watching;
use crate::{body, discovery, meta, patch, protobuf, review, schema};

/// A request, as far as it matters.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    pub(crate) method: &'a Method,
    pub(crate) path: &'a str,
    pub(crate) query: &'a str,
    pub(crate) accept: &'a str,
    pub(crate) content_type: &'a str,
    pub(crate) agent: &'a str,
    pub(crate) body: &'a [u8],
    /// `127.0.0.1:6443`, where the server is.
    pub(crate) address: &'a str,
}

/// What is sent back.
#[derive(Debug)]
pub(crate) enum Answer {
    Json { code: u16, content_type: &'static str, body: Value, warnings: Vec<String> },
    Raw { content_type: &'static str, body: &'static [u8] },
    Watch(Box<Watching>),
}

const JSON: &str = "application/json";
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
const OPENAPI_V2: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

impl Answer {
    fn ok(body: Value) -> Answer {
        Answer::Json { code: 200, content_type: JSON, body, warnings: Vec::new() }
    }

    pub(crate) fn refused(refusal: &Refusal) -> Answer {
        let (code, body) = (refusal.code, refusal.status());
        Answer::Json { code, content_type: JSON, body, warnings: Vec::new() }
    }
}

/// Answers a request.
pub(crate) fn answer(store: &Store, call: &Call<'_>) -> Answer {
    try_answer(store, call).unwrap_or_else(|refusal| Answer::refused(&refusal))
}

fn try_answer(store: &Store, call: &Call<'_>) -> Result<Answer, Refusal> {
    let path: Vec<String> =
        call.path.split('/').filter(|s| !s.is_empty()).map(|s| decode(s, false)).collect();
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    if let Some(answer) = about_the_server(&path, call) {
        return match *call.method {
            Method::GET => Ok(answer),
            _ => Err(Refusal::method_not_allowed()),
        };
    }
    let target = Target::read(&path).ok_or_else(|| Refusal::no_such_path(&path))?;
    let query = pairs(call.query).into_iter().collect();
    let view = View::read(call.accept, &query)?;
    let request = Request { call, target, query, view };
    request.answer(store)
}

/// Addresses that are not about objects.
fn about_the_server(path: &[&str], call: &Call<'_>) -> Option<Answer> {
    let aggregated = call.accept.split(',').any(|part| {
        let words: Vec<&str> = part.split(';').map(str::trim).collect();
        ["g=apidiscovery.k8s.io", "v=v2", "as=APIGroupDiscoveryList"]
            .iter()
            .all(|word| words.contains(word))
    });
    let all = |core| Answer::Json {
        code: 200,
        content_type: AGGREGATED,
        body: discovery::aggregated(core),
        warnings: Vec::new(),
    };
    Some(match path {
        ["healthz" | "livez" | "readyz", ..] => {
            Answer::Raw { content_type: "text/plain; charset=utf-8", body: b"ok" }
        }
        ["version"] => Answer::ok(discovery::version()),
        ["api"] if aggregated => all(true),
        ["apis"] if aggregated => all(false),
        ["api"] => Answer::ok(discovery::core_versions(call.address)),
        ["apis"] => Answer::ok(discovery::group_list()),
        ["apis", group] => Answer::ok(discovery::group(group)?),
        ["api", "v1"] => Answer::ok(discovery::resources("")?),
        ["apis", group, "v1"] => Answer::ok(discovery::resources(group)?),
        ["openapi", "v2"] => Answer::Raw { content_type: OPENAPI_V2, body: discovery::OPENAPI_V2 },
        ["openapi", "v3"] => Answer::ok(discovery::openapi_index()),
        ["openapi", "v3", "api", "v1"] => Answer::ok(discovery::openapi("")?),
        ["openapi", "v3", "apis", group, "v1"] => Answer::ok(discovery::openapi(group)?),
        _ => return None,
    })
}

/// What an address is about.
#[derive(Debug)]
struct Target {
    resource: &'static Resource,
    /// `None` for all namespaces, and for what has none.
    namespace: Option<String>,
    name: Option<String>,
    /// `status`, `scale`, `binding`, `eviction`.
    part: Option<String>,
}

impl Target {
    fn read(path: &[&str]) -> Option<Target> {
        let (group, path) = match path {
            ["api", "v1", path @ ..] => ("", path),
            ["apis", group, "v1", path @ ..] => (*group, path),
            _ => return None,
        };
        let (namespace, path) = match path {
            ["namespaces", _, "status" | "finalize"] => (None, path),
            ["namespaces", namespace, path @ ..] if !path.is_empty() => (Some(*namespace), path),
            path => (None, path),
        };
        let resource = Resource::find(group, path.first()?)?;
        if namespace.is_some() && !resource.namespaced {
            return None;
        }
        let part = path.get(2).copied();
        let known = match part {
            None => true,
            Some("status") => resource.status,
            Some("scale") => resource.scale,
            Some("binding" | "eviction") => resource.kind == "Pod",
            Some(_) => false,
        };
        // An object in a namespace has no address without it.
        let reachable = path.len() == 1 || namespace.is_some() == resource.namespaced;
        (known && reachable && path.len() <= 3).then(|| Target {
            resource,
            namespace: namespace.map(str::to_owned),
            name: path.get(1).map(|name| (*name).to_owned()),
            part: part.map(str::to_owned),
        })
    }
}

/// How the client wants to see objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum View {
    Whole,
    Table(Include),
    Metadata,
}

impl View {
    fn read(accept: &str, query: &HashMap<String, String>) -> Result<View, Refusal> {
        if accept.trim().is_empty() {
            return Ok(View::Whole);
        }
        for part in accept.split(',') {
            let mut words = part.split(';').map(str::trim);
            if !matches!(words.next(), Some("application/json" | "application/*" | "*/*")) {
                continue;
            }
            let shape = words.find_map(|word| word.strip_prefix("as="));
            match shape {
                None => return Ok(View::Whole),
                Some("Table") => {
                    let include = match query.get("includeObject").map(String::as_str) {
                        Some("None") => Include::None,
                        Some("Object") => Include::Object,
                        _ => Include::Metadata,
                    };
                    return Ok(View::Table(include));
                }
                Some("PartialObjectMetadata" | "PartialObjectMetadataList") => {
                    return Ok(View::Metadata);
                }
                Some(_) => {}
            }
        }
        let message = "only the following media types are accepted: application/json";
        Err(Refusal::not_acceptable(message))
    }

    /// One object as it is sent.
    pub(crate) fn of(self, resource: &Resource, object: &Value, headers: bool) -> Value {
        match self {
            View::Whole => object.clone(),
            View::Metadata => table::partial(object),
            View::Table(include) => {
                let metadata =
                    json!({"resourceVersion": object.pointer("/metadata/resourceVersion")});
                table::table(resource, std::iter::once(object), metadata, include, headers)
            }
        }
    }
}

/// `a=b&c=d`, decoded.
pub(crate) fn pairs(query: &str) -> Vec<(String, String)> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key, true), decode(value, true))
        })
        .collect()
}

/// Percent-decoding; what is not encoded properly stays as it is.
fn decode(text: &str, plus_is_space: bool) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        let decoded = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (first, decoded) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &after[2..];
                continue;
            }
            (b'+', _) if plus_is_space => bytes.push(b' '),
            _ => bytes.push(first),
        }
        rest = after;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What to do with fields that do not exist (`fieldValidation`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Strictness {
    Ignore,
    Warn,
    Strict,
}

#[derive(Debug)]
struct Request<'a> {
    call: &'a Call<'a>,
    target: Target,
    query: HashMap<String, String>,
    view: View,
}

impl Request<'_> {
    fn asks(&self, key: &str) -> &str {
        self.query.get(key).map(String::as_str).unwrap_or_default()
    }

    fn answer(&self, store: &Store) -> Result<Answer, Refusal> {
        let (name, part) = (&self.target.name, self.target.part.as_deref());
        let some_namespace = self.target.namespace.is_some() || !self.target.resource.namespaced;
        if !self.target.resource.stored {
            return match (self.call.method, name) {
                (&Method::POST, None) => self.review(),
                _ => Err(Refusal::method_not_allowed()),
            };
        }
        // What is only ever written there.
        let written = matches!(part, Some("binding" | "eviction"));
        match (self.call.method, name, part) {
            (&Method::GET, None, _) if matches!(self.asks("watch"), "true" | "1") => {
                self.watch(store)
            }
            (&Method::GET, None, _) => store.read(|state| self.list(state)),
            (&Method::POST, None, _) if some_namespace => store.write(|state| self.create(state)),
            (&Method::DELETE, None, _) if some_namespace => {
                store.write(|state| self.delete_all(state))
            }
            (&Method::POST, Some(name), Some("binding")) => {
                store.write(|state| self.bind(state, name))
            }
            (&Method::POST, Some(name), Some("eviction")) => {
                store.write(|state| self.evict(state, name))
            }
            (&Method::GET, Some(name), _) if !written => store.read(|state| self.get(state, name)),
            (&Method::PUT, Some(name), _) if !written => {
                store.write(|state| self.replace(state, name))
            }
            (&Method::PATCH, Some(name), _) if !written => {
                store.write(|state| self.patch(state, name))
            }
            (&Method::DELETE, Some(name), None) => store.write(|state| self.delete(state, name)),
            _ => Err(Refusal::method_not_allowed()),
        }
    }

    fn review(&self) -> Result<Answer, Refusal> {
        let resource = self.target.resource;
        let (mut question, warnings) = self.body(resource.kind, &resource.api_version())?;
        question["kind"] = json!(resource.kind);
        question["apiVersion"] = json!(resource.api_version());
        let body = review::answer(resource.kind, question);
        Ok(Answer::Json { code: 201, content_type: JSON, body, warnings })
    }

    fn key(&self, name: &str) -> Key {
        let namespace = self.target.namespace.as_deref().unwrap_or_default();
        Key::new(self.target.resource, namespace, name)
    }

    fn present(&self, code: u16, done: &Done) -> Answer {
        let body = match self.target.part.as_deref() {
            Some("scale") => scale(&done.object),
            _ => self.view.of(self.target.resource, &done.object, true),
        };
        Answer::Json { code, content_type: JSON, body, warnings: done.warnings.clone() }
    }

    fn get(&self, state: &State, name: &str) -> Result<Answer, Refusal> {
        let object = state.get(&self.key(name)).cloned();
        let object = object.ok_or_else(|| Refusal::not_found(self.target.resource, name))?;
        Ok(self.present(200, &Done { object, warnings: Vec::new() }))
    }

    fn select(&self) -> Result<Select, Refusal> {
        let (labels, fields) = (self.asks("labelSelector"), self.asks("fieldSelector"));
        Select::read(self.target.resource, labels, fields)
    }

    fn list(&self, state: &State) -> Result<Answer, Refusal> {
        let resource = self.target.resource;
        let select = self.select()?;
        let limit: usize = self.asks("limit").parse().unwrap_or_default();
        let token = Continue::read(self.asks("continue"))?;
        let exact = self.asks("resourceVersionMatch") == "Exact";
        let revision = match &token {
            Some(token) => token.revision,
            None if exact => number(self.asks("resourceVersion"), "resourceVersion")?,
            None => state.revision(),
        };
        let all = state.list_at(revision, resource, self.target.namespace.as_deref());
        let all = all.map_err(|Compacted| {
            Refusal::gone(match token {
                Some(_) => "The provided continue parameter is too old to display a consistent \
                            list result. You can start a new list without the continue parameter"
                    .to_owned(),
                None => format!("The resourceVersion for the provided list is too old: {revision}"),
            })
        })?;
        let rest = all.into_iter().filter(|(key, object)| {
            let after = token.as_ref().is_none_or(|token| token.after < place(key));
            after && select.matches(object)
        });
        let mut found: Vec<(Key, Arc<Value>)> = rest.collect();
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        if limit > 0 && found.len() > limit {
            if self.asks("labelSelector").is_empty() && self.asks("fieldSelector").is_empty() {
                metadata["remainingItemCount"] = json!(found.len() - limit);
            }
            found.truncate(limit);
            let after = found.last().map(|(key, _)| place(key)).unwrap_or_default();
            metadata["continue"] = json!(Continue { revision, after }.text());
        }
        let objects = || found.iter().map(|(_, object)| &**object);
        Ok(Answer::ok(match self.view {
            View::Table(include) => table::table(resource, objects(), metadata, include, true),
            View::Metadata => json!({
                "kind": "PartialObjectMetadataList",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": metadata,
                "items": objects().map(table::partial).collect::<Vec<_>>(),
            }),
            View::Whole => list_of(resource, metadata, objects()),
        }))
    }

    fn watch(&self, store: &Store) -> Result<Answer, Refusal> {
        let initial = self.asks("sendInitialEvents") == "true";
        let from = match self.asks("resourceVersion") {
            "" | "0" => None,
            _ if initial => None,
            revision => Some(number(revision, "resourceVersion")?),
        };
        let bookmarks = matches!(self.asks("allowWatchBookmarks"), "true" | "1");
        let timeout = match self.asks("timeoutSeconds") {
            "" => None,
            seconds => Some(number(seconds, "timeoutSeconds")?),
        };
        Ok(Answer::Watch(Box::new(Watching {
            resource: self.target.resource,
            namespace: self.target.namespace.clone(),
            select: self.select()?,
            view: self.view,
            from,
            initial_end: initial && bookmarks,
            bookmarks,
            timeout,
            changes: store.subscribe(),
        })))
    }

    fn dry_run(&self) -> Result<bool, Refusal> {
        match self.asks("dryRun") {
            "" => Ok(false),
            "All" => Ok(true),
            other => Err(Refusal::bad_request(format!(
                "dryRun: Unsupported value: {other:?}: supported values: \"All\""
            ))),
        }
    }

    fn manager(&self) -> String {
        let agent = self.call.agent.split(['/', ' ']).next().unwrap_or_default();
        [self.asks("fieldManager"), agent, "unknown"]
            .into_iter()
            .find(|name| !name.is_empty())
            .unwrap_or_default()
            .to_owned()
    }

    fn strictness(&self) -> Result<Strictness, Refusal> {
        match self.asks("fieldValidation") {
            "Strict" => Ok(Strictness::Strict),
            "" | "Warn" => Ok(Strictness::Warn),
            "Ignore" => Ok(Strictness::Ignore),
            other => Err(Refusal::bad_request(format!(
                "fieldValidation: Unsupported value: {other:?}: supported values: \"Ignore\", \
                 \"Strict\", \"Warn\""
            ))),
        }
    }

    /// The object of the request, decoded as a type, and warnings about it.
    fn body(&self, kind: &'static str, version: &str) -> Result<(Value, Vec<String>), Refusal> {
        let media = self.call.content_type.split(';').next().unwrap_or_default().trim();
        if !matches!(media, "application/json" | "" | "*/*" | protobuf::MEDIA_TYPE) {
            return Err(Refusal::unsupported_media_type(
                "the body of the request was in an unknown format - accepted media types \
                 include: application/json",
            ));
        }
        let (value, duplicates) = match media {
            protobuf::MEDIA_TYPE => (
                protobuf::read(kind, self.call.body).map_err(|why| {
                    Refusal::unsupported_media_type(format!("{why}; send application/json"))
                })?,
                Vec::new(),
            ),
            _ => read_json(self.call.body)?,
        };
        let (has_kind, has_version) =
            (meta::text(&value, "/kind"), meta::text(&value, "/apiVersion"));
        if (!has_kind.is_empty() && has_kind != kind)
            || (!has_version.is_empty() && !version.is_empty() && has_version != version)
        {
            return Err(Refusal::bad_request(format!(
                "{has_kind} in version {has_version:?} cannot be handled as a {kind}: the \
                 expected kind is {kind} in version {version:?}"
            )));
        }
        self.typed(kind, value, duplicates)
    }

    /// Checks a value against a type, as strictly as the request says.
    fn typed(
        &self,
        kind: &'static str,
        mut value: Value,
        mut strict: Vec<String>,
    ) -> Result<(Value, Vec<String>), Refusal> {
        let version = self.target.resource.version;
        let refuse = |why: &str| {
            let message =
                format!("{kind} in version {version:?} cannot be handled as a {kind}: {why}");
            Err(Refusal::bad_request(message))
        };
        let strictness = self.strictness()?;
        let decoded = schema::decode(kind, &mut value);
        if let Some(wrong) = decoded.wrong {
            return refuse(&wrong);
        }
        strict.extend(decoded.unknown);
        match strictness {
            Strictness::Strict if !strict.is_empty() && *self.call.method == Method::PATCH => {
                let why = format!("strict decoding error: {}", strict.join(", "));
                Err(Refusal::invalid_patch(self.call.body, &why))
            }
            Strictness::Strict if !strict.is_empty() => {
                refuse(&format!("strict decoding error: {}", strict.join(", ")))
            }
            Strictness::Warn => Ok((value, strict)),
            Strictness::Strict | Strictness::Ignore => Ok((value, Vec::new())),
        }
    }

    fn check_place(&self, object: &Value, name: Option<&str>) -> Result<(), Refusal> {
        let wanted = self.target.namespace.as_deref().unwrap_or_default();
        let namespace = meta::namespace(object);
        if self.target.resource.namespaced && !namespace.is_empty() && namespace != wanted {
            return Err(Refusal::bad_request(
                "the namespace of the provided object does not match the namespace sent on the \
                 request",
            ));
        }
        let given = meta::name(object);
        match name {
            Some(name) if !given.is_empty() && given != name => Err(Refusal::bad_request(format!(
                "the name of the object ({given}) does not match the name on the URL ({name})"
            ))),
            _ => Ok(()),
        }
    }

    fn create(&self, state: &mut State) -> Result<Answer, Refusal> {
        let resource = self.target.resource;
        let (mut object, mut warnings) = self.body(resource.kind, &resource.api_version())?;
        self.check_place(&object, None)?;
        let namespace = self.target.namespace.as_deref().unwrap_or_default();
        apply::track(resource, &Value::Null, &mut object, &self.manager(), "");
        let mut done = objects::create(state, resource, namespace, object, self.dry_run()?)?;
        warnings.append(&mut done.warnings);
        Ok(self.present(201, &Done { warnings, ..done }))
    }

    fn replace(&self, state: &mut State, name: &str) -> Result<Answer, Refusal> {
        let resource = self.target.resource;
        if self.target.part.as_deref() == Some("scale") {
            let (scale, warnings) = self.body("Scale", "autoscaling/v1")?;
            return self.rescale(state, name, &scale, warnings);
        }
        let (object, warnings) = self.body(resource.kind, &resource.api_version())?;
        self.check_place(&object, Some(name))?;
        self.store(state, name, object, warnings)
    }

    /// Replaces what is there, the way it was asked for.
    fn store(
        &self,
        state: &mut State,
        name: &str,
        mut object: Value,
        mut warnings: Vec<String>,
    ) -> Result<Answer, Refusal> {
        let resource = self.target.resource;
        let part = match self.target.part.as_deref() {
            Some("status") => Part::Status,
            _ => Part::Whole,
        };
        let key = self.key(name);
        if let Some(old) = state.get(&key) {
            let sub = if part == Part::Status { "status" } else { "" };
            apply::track(resource, old, &mut object, &self.manager(), sub);
        }
        let mut done = objects::update(state, &key, resource, part, object, self.dry_run()?)?;
        warnings.append(&mut done.warnings);
        Ok(self.present(200, &Done { warnings, ..done }))
    }

    fn rescale(
        &self,
        state: &mut State,
        name: &str,
        scale: &Value,
        warnings: Vec<String>,
    ) -> Result<Answer, Refusal> {
        let key = self.key(name);
        let Some(old) = state.get(&key) else {
            return Err(Refusal::not_found(self.target.resource, name));
        };
        let mut object = (**old).clone();
        object["spec"]["replicas"] = json!(meta::integer(scale, "/spec/replicas"));
        let wanted = meta::text(scale, "/metadata/resourceVersion");
        object["metadata"]["resourceVersion"] = json!(wanted);
        self.store(state, name, object, warnings)
    }

    fn patch(&self, state: &mut State, name: &str) -> Result<Answer, Refusal> {
        let resource = self.target.resource;
        let media = self.call.content_type.split(';').next().unwrap_or_default().trim();
        let is_scale = self.target.part.as_deref() == Some("scale");
        if media == "application/apply-patch+yaml" {
            return self.apply(state, name);
        }
        let (patch, duplicates) = read_json(self.call.body)?;
        let Some(old) = state.get(&self.key(name)) else {
            return Err(Refusal::not_found(resource, name));
        };
        let mut object = if is_scale { scale(old) } else { (**old).clone() };
        // Whether this is a conflict is for the patch to say.
        let kind = if is_scale { "Scale" } else { resource.kind };
        let before = meta::revision(&object);
        match media {
            "application/json-patch+json" => {
                patch::json(&mut object, &patch).map_err(Refusal::unprocessable)?;
            }
            "application/merge-patch+json" => patch::merge(&mut object, patch),
            "application/strategic-merge-patch+json" => {
                patch::strategic(kind, &mut object, patch).map_err(Refusal::bad_request)?;
            }
            _ => {
                return Err(Refusal::unsupported_media_type(
                    "the body of the request was in an unknown format - accepted media types \
                     include: application/json-patch+json, application/merge-patch+json, \
                     application/strategic-merge-patch+json, application/apply-patch+yaml",
                ));
            }
        }
        if !object.is_object() {
            return Err(Refusal::bad_request("the patch leaves no object"));
        }
        let (mut object, warnings) = self.typed(kind, object, duplicates)?;
        if meta::revision(&object) == before
            && let Some(metadata) = object["metadata"].as_object_mut()
        {
            metadata.shift_remove("resourceVersion");
        }
        if is_scale {
            return self.rescale(state, name, &object, warnings);
        }
        self.check_place(&object, Some(name))?;
        self.store(state, name, object, warnings)
    }

    /// Server-side apply.
    fn apply(&self, state: &mut State, name: &str) -> Result<Answer, Refusal> {
        let resource = self.target.resource;
        if self.target.part.is_some() {
            let message = "server-side apply is served for whole objects, not for parts of them";
            return Err(Refusal::unsupported_media_type(message));
        }
        if self.asks("fieldManager").is_empty() {
            let message = "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required \
                           value: is required for apply patch";
            return Err(Refusal::bad_request(message));
        }
        let (patch, duplicates) = read_json(self.call.body).map_err(|_| {
            let message =
                "server-side apply takes a body in JSON here, which is what kubectl sends";
            Refusal::unsupported_media_type(message)
        })?;
        let (patch, warnings) = self.typed(resource.kind, patch, duplicates)?;
        self.check_place(&patch, Some(name))?;
        let key = self.key(name);
        let old = state.get(&key).cloned();
        let force = self.asks("force") == "true";
        let live = old.as_deref().unwrap_or(&Value::Null);
        let object = apply::apply(resource, live, patch, &self.manager(), force)
            .map_err(|owned| Refusal::apply_conflict(&owned))?;
        let dry_run = self.dry_run()?;
        let (code, mut done) = match old {
            Some(_) => {
                let part = Part::Whole;
                (200, objects::update(state, &key, resource, part, object, dry_run)?)
            }
            None => (201, objects::create(state, resource, &key.namespace, object, dry_run)?),
        };
        done.warnings.extend(warnings);
        Ok(self.present(code, &done))
    }

    fn deletion(&self) -> Result<Deletion, Refusal> {
        match self.call.body {
            [] => self.deletion_as(&Value::Null),
            _ => self.deletion_as(&self.body("DeleteOptions", "")?.0),
        }
    }

    /// A deletion with these DeleteOptions.
    fn deletion_as(&self, options: &Value) -> Result<Deletion, Refusal> {
        let text = |pointer: &str, query: &str| match meta::text(options, pointer) {
            "" => self.asks(query).to_owned(),
            text => text.to_owned(),
        };
        let grace = match options.get("gracePeriodSeconds").and_then(Value::as_i64) {
            None if !self.asks("gracePeriodSeconds").is_empty() => {
                Some(number(self.asks("gracePeriodSeconds"), "gracePeriodSeconds")? as i64)
            }
            grace => grace,
        };
        let propagation = match &*text("/propagationPolicy", "propagationPolicy") {
            "" | "Background" => Propagation::Background,
            "Foreground" => Propagation::Foreground,
            "Orphan" => Propagation::Orphan,
            other => {
                let message = format!(
                    "propagationPolicy: Unsupported value: {other:?}: supported values: \
                     \"Background\", \"Foreground\", \"Orphan\""
                );
                return Err(Refusal::bad_request(message));
            }
        };
        let given =
            |pointer| Some(meta::text(options, pointer).to_owned()).filter(|t| !t.is_empty());
        let dry_run = self.dry_run()? || meta::list(options, "/dryRun").iter().any(|v| v == "All");
        Ok(Deletion {
            grace,
            propagation,
            uid: given("/preconditions/uid"),
            revision: given("/preconditions/resourceVersion"),
            dry_run,
        })
    }

    fn delete(&self, state: &mut State, name: &str) -> Result<Answer, Refusal> {
        let resource = self.target.resource;
        let how = self.deletion()?;
        let (object, gone) = objects::delete(state, &self.key(name), resource, &how)?;
        if !gone || resource.kind == "Pod" {
            return Ok(self.present(200, &Done { object, warnings: Vec::new() }));
        }
        let mut details = json!({"name": name, "kind": resource.plural, "uid": meta::uid(&object)});
        if !resource.group.is_empty() {
            details["group"] = json!(resource.group);
        }
        Ok(Answer::ok(success(details)))
    }

    fn delete_all(&self, state: &mut State) -> Result<Answer, Refusal> {
        let resource = self.target.resource;
        let (select, how) = (self.select()?, self.deletion()?);
        let found = state.list(resource, self.target.namespace.as_deref());
        let found = found.filter(|(_, object)| select.matches(object));
        let keys: Vec<Key> = found.map(|(key, _)| key.clone()).collect();
        let mut deleted = Vec::new();
        for key in keys {
            deleted.push(objects::delete(state, &key, resource, &how)?.0);
        }
        let metadata = json!({"resourceVersion": state.revision().to_string()});
        Ok(Answer::ok(list_of(resource, metadata, deleted.iter().map(|object| &**object))))
    }

    /// Deletes a pod with its grace: there are no disruption budgets that could forbid it.
    fn evict(&self, state: &mut State, name: &str) -> Result<Answer, Refusal> {
        let (eviction, warnings) = self.body("Eviction", "policy/v1")?;
        self.check_place(&eviction, Some(name))?;
        let how = self.deletion_as(&eviction["deleteOptions"])?;
        objects::delete(state, &self.key(name), self.target.resource, &how)?;
        let body = success(json!({}));
        Ok(Answer::Json { code: 201, content_type: JSON, body, warnings })
    }

    fn bind(&self, state: &mut State, name: &str) -> Result<Answer, Refusal> {
        let (binding, _) = self.body("Binding", "v1")?;
        let node = meta::text(&binding, "/target/name").to_owned();
        let (key, resource) = (self.key(name), self.target.resource);
        let Some(pod) = state.get(&key) else {
            return Err(Refusal::not_found(resource, name));
        };
        let assigned = meta::text(pod, "/spec/nodeName");
        if !assigned.is_empty() {
            let why = format!("pod {name} is already assigned to node {assigned:?}");
            return Err(Refusal::conflict(resource, name, &why));
        }
        objects::amend(state, &key, |pod| pod["spec"]["nodeName"] = json!(node));
        let body = success(json!({"name": name, "kind": resource.plural}));
        Ok(Answer::Json { code: 201, content_type: JSON, body, warnings: Vec::new() })
    }
}

fn read_json(text: &[u8]) -> Result<(Value, Vec<String>), Refusal> {
    let (value, duplicates) = body::read(text).map_err(|error| {
        Refusal::bad_request(format!("couldn't get version/kind; json parse error: {error}"))
    })?;
    match value {
        Value::Object(_) | Value::Array(_) => Ok((value, duplicates)),
        _ => Err(Refusal::bad_request("the body of the request is not an object")),
    }
}

fn number(text: &str, what: &str) -> Result<u64, Refusal> {
    text.parse().map_err(|_| {
        Refusal::bad_request(format!("{what}: Invalid value: {text:?}: must be a number"))
    })
}

fn success(details: Value) -> Value {
    json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "details": details,
    })
}

fn list_of<'a>(
    resource: &Resource,
    metadata: Value,
    objects: impl Iterator<Item = &'a Value>,
) -> Value {
    json!({
        "kind": format!("{}List", resource.kind),
        "apiVersion": resource.api_version(),
        "metadata": metadata,
        "items": objects.collect::<Vec<_>>(),
    })
}

/// The `Scale` of a workload.
fn scale(object: &Value) -> Value {
    let mut metadata = json!({});
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object["metadata"].get(field) {
            metadata[field] = value.clone();
        }
    }
    json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": metadata,
        "spec": {"replicas": meta::integer(object, "/spec/replicas")},
        "status": {
            "replicas": meta::integer(object, "/status/replicas"),
            "selector": select::display(object.pointer("/spec/selector")),
        },
    })
}

/// Where an object is in the order of lists.
fn place(key: &Key) -> (String, String) {
    (key.namespace.clone(), key.name.clone())
}

/// Where the next page of a list begins.
#[derive(Debug)]
struct Continue {
    revision: u64,
    /// The last object of the page before.
    after: (String, String),
}

impl Continue {
    fn read(token: &str) -> Result<Option<Continue>, Refusal> {
        if token.is_empty() {
            return Ok(None);
        }
        let read = || {
            let text = String::from_utf8(URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
            let (revision, after) = text.split_once(' ')?;
            let (namespace, name) = after.split_once('/')?;
            let after = (namespace.to_owned(), name.to_owned());
            Some(Continue { revision: revision.parse().ok()?, after })
        };
        read().map(Some).ok_or_else(|| Refusal::bad_request("continue key is not valid"))
    }

    fn text(&self) -> String {
        let (namespace, name) = &self.after;
        URL_SAFE_NO_PAD.encode(format!("{} {namespace}/{name}", self.revision))
    }
}
