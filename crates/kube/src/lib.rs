//! Kubernetes objects to the model, with source positions.
//!
//! [`load`] reads manifests as the API server would, strictly: unknown fields, duplicate keys and
//! wrong types are errors, each with file, line, column and field path. A NetworkPolicy is either
//! in the cluster that comes back, or an error says why it is not.
#![forbid(unsafe_code)]

mod annotations;
mod assemble;
mod block;
mod callers;
mod decode;
mod diagnostic;
mod document;
#[rustfmt::skip]
mod fields;
mod input;
mod json;
mod kind;
pub mod live;
mod load;
mod manifest;
mod metadata;
mod object;
mod objects;
mod policy;
mod routes;
mod rules;
mod scalar;
mod source;
mod span;
mod tree;
mod value;
mod yaml;

pub use annotations::{Annotation, PREFIX};
pub use callers::{Call, CallPort, CallTarget, CalledBy, Caller};
pub use decode::closest;
pub use diagnostic::{Diagnostic, Location, Reason, Severity};
pub use input::{Input, Meaning, ObjectRef, ReadPolicy};
pub use load::{Options, load};
pub use source::Source;
pub use span::{Part, Span, Step};
pub use value::{Content, Field, Place, Value, read_values};
