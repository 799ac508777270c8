//! One document to what it holds: objects with their places and problems.

use portcullis_core::api::NetworkPolicy;
use portcullis_core::model::Policy;
use portcullis_core::validate;

use crate::annotations;
use crate::callers::{self, Call};
use crate::decode::{Cursor, Problem, Problems};
use crate::diagnostic::{Reason, Severity};
use crate::document::{self, Document, Visitor};
use crate::kind::{self, Class, Kind};
use crate::metadata::Metadata;
use crate::objects::{self, Object};
use crate::tree::{self, Entry, Node, Position, Value};

/// Where an object is, so that it can be parsed again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// The index of its file.
    pub(crate) file: usize,
    pub(crate) document: Document,
    /// Its index in the `items` of the document.
    pub(crate) item: Option<usize>,
    /// Where it begins.
    pub(crate) at: Position,
}

/// What was found at a place.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) place: Place,
    pub(crate) body: Body,
    pub(crate) problems: Vec<Problem>,
    /// `networkpolicy shop/web`, where it has problems, calls or annotations, and could be told.
    pub(crate) label: Option<String>,
    /// The calls that it asks for.
    pub(crate) calls: Vec<(Position, Call)>,
    /// The annotations of Portcullis' own, each with name and value.
    pub(crate) annotations: Vec<(Position, String, String)>,
}

impl Found {
    /// A kustomization need not say that it is one.
    pub(crate) fn pass_over_kustomization(&mut self) {
        let nameless = |problem: &Problem| problem.reason == Reason::NotAnObject;
        if matches!(self.body, Body::Nothing) && self.problems.iter().all(nameless) {
            self.body = Body::PassedOver("Kustomization".to_owned(), None);
            self.problems.clear();
        }
    }
}

#[derive(Debug)]
pub(crate) enum Body {
    /// A NetworkPolicy, whatever is wrong with it.
    Policy(Box<Written>),
    /// Any other object that is read, whatever is wrong with it.
    Object(Box<Object>),
    /// Another kind; with namespace and name, where it is none of Kubernetes' own.
    PassedOver(String, Option<(String, String)>),
    /// No object, as the problems say.
    Nothing,
}

/// A NetworkPolicy as it was written.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) raw: NetworkPolicy,
    /// What it means; closed where it cannot be read.
    pub(crate) closed: Policy,
    /// Whether nothing is wrong with it.
    pub(crate) valid: bool,
}

/// What messages call an object.
pub(crate) fn label(kind: Kind, namespace: &str, name: &str) -> String {
    let kind = kind.as_str().to_lowercase();
    match name {
        "" => format!("{kind} without a name"),
        name if namespace.is_empty() => format!("{kind} {name}"),
        name => format!("{kind} {namespace}/{name}"),
    }
}

/// The same for an object that is not read, as far as it says.
fn describe(root: &Node<'_>) -> Option<String> {
    let kind = root.get("kind")?.text()?.to_lowercase();
    let metadata = |key: &str| root.get("metadata")?.get(key)?.text();
    Some(match (metadata("namespace"), metadata("name")) {
        (_, None) => kind,
        (None, Some(name)) => format!("{kind} {name}"),
        (Some(namespace), Some(name)) => format!("{kind} {namespace}/{name}"),
    })
}

/// Namespace and name of an object of a kind that is counted with its group.
fn custom(root: &Node<'_>, kind: &str, namespace: &str) -> Option<(String, String)> {
    let metadata = |key: &str| root.get("metadata")?.get(key)?.text();
    let name = metadata("name").filter(|_| kind.contains('.'))?;
    Some((metadata("namespace").unwrap_or(namespace).to_owned(), name.to_owned()))
}

/// Reads a document of the text of a file. Objects that name no namespace get the one given.
pub(crate) fn read(text: &str, file: usize, document: &Document, namespace: &str) -> Vec<Found> {
    let mut reader = Reader {
        file,
        namespace,
        found: Vec::new(),
        items: Vec::new(),
        held: Vec::new(),
        next_item: 0,
    };
    match document::parse(text, document, &mut reader) {
        Ok(()) => reader.found,
        Err(broken) => {
            let mut problems = Problems::default();
            let template =
                broken.reason == Reason::Syntax && text[document.range.clone()].contains("{{");
            let message = match template {
                true => format!(
                    "{}: this is a template; render it first, with \
                     `helm template CHART | portcullis check -f -` for one",
                    broken.message
                ),
                false => broken.message,
            };
            problems.error(broken.at, String::new(), broken.reason, message);
            let place = Place { file, document: document.clone(), item: None, at: broken.at };
            reader.found.push(Found {
                place,
                body: Body::Nothing,
                problems: problems.0,
                label: None,
                calls: Vec::new(),
                annotations: Vec::new(),
            });
            reader.found
        }
    }
}

/// The tree of the object at a place, for messages that point into it.
pub(crate) fn reread<'t>(text: &'t str, place: &Place) -> Option<Node<'t>> {
    struct Reread<'t> {
        wanted: Option<usize>,
        next: usize,
        tree: Option<Node<'t>>,
    }
    impl<'t> Visitor<'t> for Reread<'t> {
        fn item(&mut self, item: Node<'t>, _: &[Entry<'t>]) {
            if self.wanted == Some(self.next) {
                self.tree = Some(item);
            }
            self.next += 1;
        }
        fn root(&mut self, root: Node<'t>, _: Document) {
            if self.wanted.is_none() {
                self.tree = Some(root);
            }
        }
        fn restart(&mut self) {
            self.next = 0;
            self.tree = None;
        }
    }
    let mut reread = Reread { wanted: place.item, next: 0, tree: None };
    document::parse(text, &place.document, &mut reread).ok()?;
    reread.tree
}

struct Reader<'a, 't> {
    file: usize,
    namespace: &'a str,
    found: Vec<Found>,
    /// Items of the current document, each with its index: objects if it turns out to be a list.
    items: Vec<(usize, Position, Contents)>,
    /// Items that name no kind and came before that of their list.
    held: Vec<(usize, Node<'t>)>,
    next_item: usize,
}

struct Contents {
    body: Body,
    problems: Vec<Problem>,
    label: Option<String>,
    calls: Vec<(Position, Call)>,
    annotations: Vec<(Position, String, String)>,
}

impl<'t> Visitor<'t> for Reader<'_, 't> {
    fn item(&mut self, item: Node<'t>, list: &[Entry<'t>]) {
        let index = self.next_item;
        self.next_item += 1;
        if item.get("kind").is_none() && !list.iter().any(|e| e.key == "kind") {
            self.held.push((index, item));
        } else {
            self.items.push((index, item.at, self.object(&item, list)));
        }
    }

    fn root(&mut self, root: Node<'t>, document: Document) {
        let mut items = std::mem::take(&mut self.items);
        let held = std::mem::take(&mut self.held);
        self.next_item = 0;
        if root.is_null() {
            return;
        }
        let mut problems = Problems::default();
        let contents = match kind::classify(&root, &[], &mut problems) {
            Some(Class::List) => {
                if !held.is_empty() {
                    for (index, item) in held {
                        items.push((index, item.at, self.object(&item, root.entries())));
                    }
                    items.sort_by_key(|(index, ..)| *index);
                }
                duplicates(&root, &mut problems);
                check_list(&root, items.is_empty(), &mut problems);
                let label = describe(&root);
                let (body, problems) = (Body::Nothing, problems.0);
                let (calls, annotations) = (Vec::new(), Vec::new());
                Contents { body, problems, label, calls, annotations }
            }
            _ => {
                items.clear();
                self.object(&root, &[])
            }
        };
        let place = Place { file: self.file, document, item: None, at: root.at };
        if !matches!(contents.body, Body::Nothing) || !contents.problems.is_empty() {
            self.found.push(contents.at(place.clone()));
        }
        self.found.extend(items.into_iter().map(|(index, at, contents)| {
            contents.at(Place { item: Some(index), at, ..place.clone() })
        }));
    }

    fn restart(&mut self) {
        self.found.clear();
        self.items.clear();
        self.held.clear();
        self.next_item = 0;
    }
}

impl Contents {
    /// People read from top to bottom, whatever the order of decoding.
    fn at(mut self, place: Place) -> Found {
        self.problems.sort_by_key(|problem| problem.at);
        let Contents { body, problems, label, calls, annotations } = self;
        Found { place, body, problems, label, calls, annotations }
    }
}

impl Reader<'_, '_> {
    fn object(&self, root: &Node<'_>, list: &[Entry<'_>]) -> Contents {
        let mut problems = Problems::default();
        duplicates(root, &mut problems);
        let (body, label) = match kind::classify(root, list, &mut problems) {
            None => (Body::Nothing, describe(root)),
            Some(Class::PassOver(kind)) => {
                let label = if problems.0.is_empty() { None } else { describe(root) };
                (Body::PassedOver(kind.clone(), custom(root, &kind, self.namespace)), label)
            }
            Some(Class::List) => {
                let message = "a list within a list: make it a document of its own".to_owned();
                problems.error(root.at, String::new(), Reason::NotAnObject, message);
                (Body::Nothing, describe(root))
            }
            Some(Class::Read(Kind::NetworkPolicy)) => {
                let policy = policy(root, self.namespace, &mut problems);
                let Written { raw, .. } = &policy;
                let label = label(Kind::NetworkPolicy, &raw.namespace, &raw.name);
                (Body::Policy(Box::new(policy)), Some(label))
            }
            Some(Class::Read(kind)) => {
                let cursor = Cursor::root(root);
                let (metadata, object) =
                    objects::decode(kind, &cursor, self.namespace, &mut problems);
                let Metadata { namespace, name, .. } = &metadata;
                let label = (!problems.0.is_empty()).then(|| label(kind, namespace, name));
                (Body::Object(Box::new(object)), label)
            }
        };
        let calls = match &body {
            Body::Object(object) => match &**object {
                Object::Route(kind, route) => callers::of_route(*kind, root, &route.namespace),
                _ => callers::of(root, self.namespace),
            },
            Body::PassedOver(..) => callers::of(root, self.namespace),
            Body::Policy(_) | Body::Nothing => Vec::new(),
        };
        let annotations = match body {
            Body::Nothing => Vec::new(),
            _ => annotations::of(root),
        };
        let named = !calls.is_empty() || !annotations.is_empty();
        let label = label.or_else(|| if named { describe(root) } else { None });
        Contents { body, problems: problems.0, label, calls, annotations }
    }
}

/// Decodes and validates. It is not valid if anything is wrong, also what `out` has already.
fn policy(root: &Node<'_>, namespace: &str, out: &mut Problems) -> Written {
    let raw = crate::policy::decode(&Cursor::root(root), namespace, out);
    let errors = out.0.iter().filter(|p| p.severity == Severity::Error);
    let decoding: Vec<String> = errors.map(|p| p.path.clone()).collect();
    let reading = validate::read_decoded(&raw, &decoding);
    // Where a field could not be decoded, whatever its absence would break is no news.
    let follows = |path: &str| decoding.iter().any(|d| is_within(d, path) || is_within(path, d));
    let rejected = !reading.errors.is_empty();
    for error in reading.errors {
        if !follows(&error.path) {
            out.field_error(root, error);
        }
    }
    for warning in reading.warnings {
        let (at, message) = (root.find(&warning.path), warning.to_string());
        out.warn(at, warning.path, Reason::Field(warning.reason), message);
    }
    let valid = !out.has_errors() && !rejected;
    Written { raw, closed: reading.policy, valid }
}

/// Whether a path is another one or below it.
fn is_within(path: &str, outer: &str) -> bool {
    path.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// Reports every key that its map has already.
pub(crate) fn duplicates(root: &Node<'_>, out: &mut Problems) {
    tree::duplicates(root, &mut |path, entry, first| {
        let message = format!(
            "duplicate field {path:?}: key {:?} already set in map, on line {}",
            entry.key, first.line
        );
        out.error(entry.at, path, Reason::DuplicateField, message);
    });
}

fn check_list(root: &Node<'_>, empty: bool, out: &mut Problems) {
    let path = "items".to_owned();
    match root.get("items") {
        Some(node) if !node.is_null() && !matches!(node.value, Value::List(_)) => {
            let message = format!("items: expected a list, found {}", crate::decode::found(node));
            out.error(root.find("items"), path, Reason::WrongType, message);
        }
        _ if empty => out.0.push(Problem {
            severity: Severity::Note,
            at: root.at,
            path,
            reason: Reason::Empty,
            message: "the list has no items".to_owned(),
        }),
        _ => {}
    }
}
