//! Why a request was refused, as the `Status` objects that clients of the API know.

use serde_json::{Value, json};

use crate::resource::Resource;

/// A `Status` of failure.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Refusal {
    pub(crate) code: u16,
    reason: &'static str,
    message: String,
    details: Option<Value>,
}

/// One thing that is wrong in one field (`status.details.causes`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cause {
    pub(crate) field: String,
    /// `FieldValueRequired` and the like.
    pub(crate) reason: &'static str,
    /// Without the field: `Required value: …`.
    pub(crate) message: String,
}

impl Cause {
    pub(crate) fn required(field: &str, detail: &str) -> Cause {
        let end = if detail.is_empty() { String::new() } else { format!(": {detail}") };
        Cause {
            field: field.to_owned(),
            reason: "FieldValueRequired",
            message: format!("Required value{end}"),
        }
    }

    pub(crate) fn invalid(field: &str, value: &Value, detail: &str) -> Cause {
        let message = format!("Invalid value: {value}: {detail}");
        Cause { field: field.to_owned(), reason: "FieldValueInvalid", message }
    }

    pub(crate) fn forbidden(field: &str, detail: &str) -> Cause {
        let message = format!("Forbidden: {detail}");
        Cause { field: field.to_owned(), reason: "FieldValueForbidden", message }
    }

    fn sent(&self) -> Value {
        json!({"reason": self.reason, "message": self.message, "field": self.field})
    }

    pub(crate) fn unsupported(field: &str, value: &Value, supported: &[&str]) -> Cause {
        let supported: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
        let list = supported.join(", ");
        let message = format!("Unsupported value: {value}: supported values: {list}");
        Cause { field: field.to_owned(), reason: "FieldValueNotSupported", message }
    }
}

impl Refusal {
    fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Refusal {
        Refusal { code, reason, message: message.into(), details: None }
    }

    fn about(mut self, resource: &Resource, name: &str) -> Refusal {
        self.details = Some(details(resource, resource.plural, name));
        self
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Refusal {
        Refusal::new(400, "BadRequest", message)
    }

    pub(crate) fn unauthorized() -> Refusal {
        Refusal::new(401, "Unauthorized", "Unauthorized")
    }

    /// An address that is not served: what people see of that begins as with any other server, and says
    /// what is not there.
    pub(crate) fn no_such_path(path: &[&str]) -> Refusal {
        let mut message = "the server could not find the requested resource".to_owned();
        let rest = match path {
            ["api", "v1", "namespaces", _, "serviceaccounts", _, "token"] => Some(
                "this one makes no tokens; its own, in the kubeconfig, may do everything"
                    .to_owned(),
            ),
            ["apis", group, version, "namespaces", _, plural, ..]
            | ["apis", group, version, plural, ..] => {
                Some(format!("this one has no {plural} of {group}/{version}"))
            }
            _ => None,
        };
        if let Some(rest) = rest {
            message += &format!(" ({rest})");
        }
        let mut refusal = Refusal::new(404, "NotFound", message);
        refusal.details = Some(json!({}));
        refusal
    }

    pub(crate) fn not_found(resource: &Resource, name: &str) -> Refusal {
        Refusal::new(404, "NotFound", format!("{resource} {name:?} not found"))
            .about(resource, name)
    }

    pub(crate) fn method_not_allowed() -> Refusal {
        let message = "the server does not allow this method on the requested resource";
        let mut refusal = Refusal::new(405, "MethodNotAllowed", message);
        refusal.details = Some(json!({}));
        refusal
    }

    pub(crate) fn already_exists(resource: &Resource, name: &str) -> Refusal {
        Refusal::new(409, "AlreadyExists", format!("{resource} {name:?} already exists"))
            .about(resource, name)
    }

    pub(crate) fn conflict(resource: &Resource, name: &str, why: &str) -> Refusal {
        let message = format!("Operation cannot be fulfilled on {resource} {name:?}: {why}");
        Refusal::new(409, "Conflict", message).about(resource, name)
    }

    /// Fields that other managers own (server-side apply): who, quoted, and which, by manager.
    pub(crate) fn apply_conflict(owned: &[(String, String)]) -> Refusal {
        let line = |(manager, field): &(String, String)| {
            json!({
                "reason": "FieldManagerConflict",
                "message": format!("conflict with {manager}"),
                "field": field,
            })
        };
        let causes: Vec<Value> = owned.iter().map(line).collect();
        let message = match owned {
            [(manager, field)] => {
                format!("Apply failed with 1 conflict: conflict with {manager}: {field}")
            }
            owned => {
                let mut message = format!("Apply failed with {} conflicts: ", owned.len());
                let mut lines = Vec::new();
                for (i, (manager, field)) in owned.iter().enumerate() {
                    if i == 0 || owned[i - 1].0 != *manager {
                        lines.push(format!("conflicts with {manager}:"));
                    }
                    lines.push(format!("- {field}"));
                }
                message.push_str(&lines.join("\n"));
                message
            }
        };
        let mut refusal = Refusal::new(409, "Conflict", message);
        refusal.details = Some(json!({"causes": causes}));
        refusal
    }

    pub(crate) fn gone(message: impl Into<String>) -> Refusal {
        Refusal::new(410, "Expired", message)
    }

    pub(crate) fn too_large(limit: usize) -> Refusal {
        let message = format!("Request entity too large: limit is {limit}");
        Refusal::new(413, "RequestEntityTooLarge", message)
    }

    pub(crate) fn unsupported_media_type(message: impl Into<String>) -> Refusal {
        Refusal::new(415, "UnsupportedMediaType", message)
    }

    pub(crate) fn not_acceptable(message: impl Into<String>) -> Refusal {
        Refusal::new(406, "NotAcceptable", message)
    }

    /// Nothing that the client could have done better.
    pub(crate) fn internal(why: &str) -> Refusal {
        Refusal::new(500, "InternalError", format!("Internal error occurred: {why}"))
    }

    pub(crate) fn unprocessable(message: impl Into<String>) -> Refusal {
        Refusal::new(422, "Invalid", message)
    }

    pub(crate) fn forbidden(resource: &Resource, name: &str, why: &str) -> Refusal {
        Refusal::new(403, "Forbidden", format!("{resource} {name:?} is forbidden: {why}"))
            .about(resource, name)
    }

    /// A patch that makes an object that strict decoding refuses.
    pub(crate) fn invalid_patch(patch: &[u8], why: &str) -> Refusal {
        let cause = Cause::invalid("patch", &json!(String::from_utf8_lossy(patch)), why);
        let message = format!(" \"\" is invalid: {}: {}", cause.field, cause.message);
        let mut refusal = Refusal::unprocessable(message);
        refusal.details = Some(json!({"causes": [cause.sent()]}));
        refusal
    }

    /// A namespace on its way out takes no new objects.
    pub(crate) fn terminating(resource: &Resource, name: &str, namespace: &str) -> Refusal {
        let why = format!(
            "unable to create new content in namespace {namespace} because it is being terminated"
        );
        let mut refusal = Refusal::forbidden(resource, name, &why);
        if let Some(details) = &mut refusal.details {
            details["causes"] = json!([{
                "reason": "NamespaceTerminating",
                "message": format!("namespace {namespace} is being terminated"),
                "field": "metadata.namespace",
            }]);
        }
        refusal
    }

    /// 422: the fields of an object say what cannot be.
    pub(crate) fn invalid(resource: &Resource, name: &str, causes: &[Cause]) -> Refusal {
        let kind = match resource.group {
            "" => resource.kind.to_owned(),
            group => format!("{}.{group}", resource.kind),
        };
        let lines: Vec<String> =
            causes.iter().map(|c| format!("{}: {}", c.field, c.message)).collect();
        let all = match &lines[..] {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let mut refusal =
            Refusal::new(422, "Invalid", format!("{kind} {name:?} is invalid: {all}"));
        let mut details = details(resource, resource.kind, name);
        details["causes"] = causes.iter().map(Cause::sent).collect();
        refusal.details = Some(details);
        refusal
    }

    /// The object that is sent.
    pub(crate) fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        });
        if let Some(details) = &self.details {
            status["details"] = details.clone();
        }
        status
    }
}

fn details(resource: &Resource, kind: &str, name: &str) -> Value {
    let mut details = json!({"name": name, "kind": kind});
    if !resource.group.is_empty() {
        details["group"] = json!(resource.group);
    }
    details
}
