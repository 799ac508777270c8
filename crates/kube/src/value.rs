//! Files that are written like manifests and are none: values with their places.

use std::fmt;
use std::sync::Arc;

use crate::Options;
use crate::decode::{Problems, closest, found};
use crate::diagnostic::{Diagnostic, Location, Reason, Severity};
use crate::document::{self, Document, Visitor};
use crate::object::duplicates;
use crate::scalar::Resolved;
use crate::source::{self, Source};
use crate::tree::{self, Entry, Node, Position};

/// A value of a YAML or JSON file, by the rules that manifests are read by.
#[derive(Debug, Clone, PartialEq)]
pub struct Value {
    /// Where it is: a scalar itself, or the key of a list or map.
    pub place: Place,
    /// What it is.
    pub content: Content,
    words: String,
}

/// Where a value or a key is, for messages about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Where a message about it points.
    pub location: Location,
    /// The way to it from the root: `tests[0].port`. Empty at the root.
    pub path: String,
}

/// The types of values.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// Null, or nothing at all.
    Null,
    /// A boolean.
    Bool(bool),
    /// An integer; one that does not fit is the nearest that does.
    Integer(i128),
    /// A string.
    Text(String),
    /// A list.
    List(Vec<Value>),
    /// A map, in the order written.
    Map(Vec<Field>),
    /// A number that is no integer, or a value with a YAML tag.
    Other,
}

/// An entry of a map.
#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    /// The key.
    pub name: String,
    /// Where the key stands.
    pub place: Place,
    /// The value.
    pub value: Value,
}

impl Place {
    /// An error about what is here; the message gets the path.
    pub fn error(&self, reason: Reason, message: &str) -> Diagnostic {
        let message = match self.path.as_str() {
            "" => message.to_owned(),
            path => format!("{path}: {message}"),
        };
        let (location, path) = (Some(self.location.clone()), self.path.clone());
        Diagnostic { severity: Severity::Error, location, object: None, path, reason, message }
    }
}

impl Value {
    /// The error that something else was expected here.
    pub fn expected(&self, what: &str) -> Diagnostic {
        self.place.error(Reason::WrongType, &format!("expected {what}, found {self}"))
    }
}

impl Field {
    /// The error that there is no such field: which of the known ones may be meant, or else this.
    pub fn unknown(&self, known: &[&str], otherwise: &str) -> Diagnostic {
        let hint = match closest(&self.name, known) {
            Some(meant) => format!(", did you mean {meant:?}?"),
            None => otherwise.to_owned(),
        };
        self.place.error(Reason::UnknownField, &format!("unknown field{hint}"))
    }
}

/// In words: `the number 80`, `the string "x"`, `a list`.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words)
    }
}

/// Reads files that hold values and no objects: one value for each document that is not empty. What
/// cannot be read, a file with nothing in it, and every key that its map has already, are errors
/// among the diagnostics.
pub fn read_values(sources: &[Source], options: &Options) -> (Vec<Value>, Vec<Diagnostic>) {
    let (mut values, mut diagnostics) = (Vec::new(), Vec::new());
    for file in source::read(sources, options, &mut diagnostics) {
        let before = (values.len(), diagnostics.len());
        for document in document::split(&file.text) {
            let mut trees = Trees::default();
            let mut problems = Problems::default();
            if let Err(broken) = document::parse(&file.text, &document, &mut trees) {
                problems.error(broken.at, String::new(), broken.reason, broken.message);
            }
            for tree in trees.0.iter().filter(|tree| !tree.is_null()) {
                duplicates(tree, &mut problems);
                values.push(value(tree, tree.at, String::new(), &file.name));
            }
            diagnostics.extend(problems.0.into_iter().map(|problem| Diagnostic {
                severity: problem.severity,
                location: Some(location(&file.name, problem.at)),
                object: None,
                path: problem.path,
                reason: problem.reason,
                message: problem.message,
            }));
        }
        if before == (values.len(), diagnostics.len()) {
            let file = Location { file: Arc::clone(&file.name), line: 0, column: 0 };
            let place = Place { location: file, path: String::new() };
            diagnostics.push(place.error(Reason::Empty, "there is nothing in this file"));
        }
    }
    (values, diagnostics)
}

/// The trees of a document.
#[derive(Default)]
struct Trees<'t>(Vec<Node<'t>>);

impl<'t> Visitor<'t> for Trees<'t> {
    /// The items of a list of objects: the list itself is left in the root, empty.
    fn item(&mut self, _: Node<'t>, _: &[Entry<'t>]) {}

    fn root(&mut self, root: Node<'t>, _: Document) {
        self.0.push(root);
    }

    fn restart(&mut self) {
        self.0.clear();
    }
}

fn value(node: &Node<'_>, at: Position, path: String, file: &Arc<str>) -> Value {
    let content = match (&node.value, node.resolve()) {
        (tree::Value::List(items), _) => {
            let items = items.iter().enumerate();
            let item =
                |(i, node): (usize, &Node<'_>)| value(node, node.at, format!("{path}[{i}]"), file);
            Content::List(items.map(item).collect())
        }
        (tree::Value::Map(entries), _) => {
            let field = |entry: &Entry<'_>| {
                let below = tree::join(&path, &entry.key);
                let path = below.strip_prefix('.').map(str::to_owned).unwrap_or(below);
                Field {
                    name: entry.key.clone().into_owned(),
                    place: Place { location: location(file, entry.at), path: path.clone() },
                    value: value(&entry.node, entry.position(), path, file),
                }
            };
            Content::Map(entries.iter().map(field).collect())
        }
        (_, Some(Resolved::Null)) => Content::Null,
        (_, Some(Resolved::Bool(value))) => Content::Bool(value),
        (_, Some(Resolved::Int(value))) => Content::Integer(value),
        (_, Some(Resolved::String(text))) => Content::Text(text.to_owned()),
        (_, Some(Resolved::Float(_)) | None) => Content::Other,
    };
    let place = Place { location: location(file, at), path };
    Value { place, content, words: found(node) }
}

fn location(file: &Arc<str>, at: Position) -> Location {
    Location { file: Arc::clone(file), line: at.line, column: at.column }
}
