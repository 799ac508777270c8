//! What is to be said about an input, and where.

use std::fmt;
use std::sync::Arc;

use portcullis_core::validate;

/// One finding about the input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// Where it is; `None` where nothing could be read, or where it is about the whole input.
    pub location: Option<Location>,
    /// Which object it is about: `networkpolicy shop/web`.
    pub object: Option<String>,
    /// The field, as the API server writes paths; empty where it is about a whole object or file.
    pub path: String,
    /// The kind of finding.
    pub reason: Reason,
    /// The whole finding in one line, field path included.
    pub message: String,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// The API server would reject it, or what was meant cannot be known.
    Error,
    /// Accepted, and probably not what was meant.
    Warning,
    /// Worth knowing.
    Note,
}

/// A place in an input.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    /// The path as given, `<stdin>`, or the name of the text. For an object of a live cluster
    /// `cluster/prod networkpolicies/shop/web`, followed by the field path where one is meant; the
    /// line is 0.
    pub file: Arc<str>,
    /// The line, from 1; 0 for a file as a whole.
    pub line: u32,
    /// The column in characters, from 1; 0 for a file as a whole.
    pub column: u32,
}

/// The kinds of findings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// A file or directory that is not there or cannot be read.
    Unreadable,
    /// More bytes than [`Options::max_bytes`](crate::Options::max_bytes).
    TooLarge,
    /// Not UTF-8, or with characters that no manifest may hold.
    NotText,
    /// A file, list or directory without objects.
    Empty,
    /// No object in the whole input.
    NoObjects,
    /// Neither YAML nor JSON.
    Syntax,
    /// Lists and maps within each other beyond the limit.
    TooDeep,
    /// Aliases that expand to far more than was written.
    TooManyAliases,
    /// A document that is not an object with `apiVersion` and `kind`.
    NotAnObject,
    /// A kind that is read here, in a version that is not.
    WrongVersion,
    /// A NetworkPolicy of another API group: passed over.
    OtherGroup,
    /// A field that the kind does not have.
    UnknownField,
    /// A key that is there twice.
    DuplicateField,
    /// A value of another type than the field has.
    WrongType,
    /// A null where the API takes a default value silently.
    Null,
    /// A value that the API server refuses, or accepts with a warning.
    Field(validate::Reason),
    /// The same object twice, with equal content.
    Repeated,
    /// The same object twice, with different content.
    Conflict,
    /// Two pods with one address.
    SharedAddress,
    /// A namespace whose labels are asked for and whose object is not in the input.
    UnknownNamespace,
    /// A Namespace that says another name in its name label.
    NamespaceName,
    /// A workload that stands for no pod.
    NoPods,
    /// Something in a file of tests that cannot be tested.
    Test,
    /// A kind that may not be listed in a live cluster.
    NotPermitted,
}

impl Reason {
    /// A short stable name: `unknown-field`.
    pub fn id(self) -> &'static str {
        match self {
            Reason::Unreadable => "unreadable",
            Reason::TooLarge => "too-large",
            Reason::NotText => "not-text",
            Reason::Empty => "empty",
            Reason::NoObjects => "no-objects",
            Reason::Syntax => "syntax",
            Reason::TooDeep => "too-deep",
            Reason::TooManyAliases => "too-many-aliases",
            Reason::NotAnObject => "not-an-object",
            Reason::WrongVersion => "wrong-version",
            Reason::OtherGroup => "other-group",
            Reason::UnknownField => "unknown-field",
            Reason::DuplicateField => "duplicate-field",
            Reason::WrongType => "wrong-type",
            Reason::Null => "null",
            Reason::Field(validate::Reason::Required) => "required",
            Reason::Field(validate::Reason::Invalid) => "invalid",
            Reason::Field(validate::Reason::NotSupported) => "not-supported",
            Reason::Field(validate::Reason::Forbidden) => "forbidden",
            Reason::Field(validate::Reason::TooLong) => "too-long",
            Reason::Repeated => "repeated",
            Reason::Conflict => "conflict",
            Reason::SharedAddress => "shared-address",
            Reason::UnknownNamespace => "unknown-namespace",
            Reason::NamespaceName => "namespace-name",
            Reason::NoPods => "no-pods",
            Reason::Test => "test",
            Reason::NotPermitted => "not-permitted",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Note => "note",
        })
    }
}

/// `file:line:column`, or `file` for a file as a whole.
impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.file),
            line => write!(f, "{}:{line}:{}", self.file, self.column),
        }
    }
}

/// One line: `shop.yaml:12:9: error: networkpolicy shop/web: unknown field "spec.ingres"`.
impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(location) = &self.location {
            write!(f, "{location}: ")?;
        }
        write!(f, "{}: ", self.severity)?;
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        f.write_str(&self.message)
    }
}
