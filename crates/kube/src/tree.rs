//! A document as a tree with positions. YAML and JSON both build it through [`Builder`], which
//! bounds depth and aliases and hands over the items of a List one by one.

use std::borrow::Cow;

use rustc_hash::{FxHashMap, FxHashSet};

use crate::diagnostic::Reason;
use crate::scalar::{self, Resolved};

/// Lists and maps within each other; Kubernetes objects need about 20.
const MAX_DEPTH: usize = 100;

/// Where something begins: line and column in characters, both from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    pub(crate) line: u32,
    pub(crate) column: u32,
}

impl Position {
    /// The first character of a text.
    pub(crate) const START: Position = Position { line: 1, column: 1 };
}

/// A value and where it begins.
#[derive(Debug, Clone)]
pub(crate) struct Node<'t> {
    pub(crate) at: Position,
    pub(crate) value: Value<'t>,
}

#[derive(Debug, Clone)]
pub(crate) enum Value<'t> {
    /// Unquoted: what it is, is decided when it is read. See [`scalar::resolve`].
    Plain(Cow<'t, str>),
    /// Quoted, or a block of text.
    Text(Cow<'t, str>),
    List(Vec<Node<'t>>),
    /// In the order written; what merge keys brought in comes last. A key can be there twice:
    /// see [`duplicates`].
    Map(Vec<Entry<'t>>),
    /// A value with a YAML tag that manifests have no use for.
    Tagged(String),
}

#[derive(Debug, Clone)]
pub(crate) struct Entry<'t> {
    pub(crate) key: Cow<'t, str>,
    pub(crate) at: Position,
    pub(crate) node: Node<'t>,
}

/// Why a document is not one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Broken {
    pub(crate) at: Position,
    pub(crate) reason: Reason,
    pub(crate) message: String,
}

impl Broken {
    pub(crate) fn syntax(at: Position, message: impl Into<String>) -> Broken {
        Broken { at, reason: Reason::Syntax, message: message.into() }
    }
}

impl<'t> Node<'t> {
    /// The value of a key of a map; `None` if it is absent, or if this is no map.
    pub(crate) fn get(&self, key: &str) -> Option<&Node<'t>> {
        self.entries().iter().find(|e| e.key == key).map(|e| &e.node)
    }

    /// The entries of a map; none if this is no map.
    pub(crate) fn entries(&self) -> &[Entry<'t>] {
        match &self.value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    /// The items of a list; none if this is no list.
    pub(crate) fn items(&self) -> &[Node<'t>] {
        match &self.value {
            Value::List(items) => items,
            _ => &[],
        }
    }

    /// The text, if Kubernetes would read a string here.
    pub(crate) fn text(&self) -> Option<&str> {
        match self.resolve() {
            Some(Resolved::String(text)) => Some(text),
            _ => None,
        }
    }

    /// What a scalar is; `None` for lists, maps and tagged values.
    pub(crate) fn resolve(&self) -> Option<Resolved<'_>> {
        match &self.value {
            Value::Plain(text) => Some(scalar::resolve(text)),
            Value::Text(text) => Some(Resolved::String(text)),
            Value::List(_) | Value::Map(_) | Value::Tagged(_) => None,
        }
    }

    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Plain(text) if scalar::resolve(text) == Resolved::Null)
    }

    /// Where a path such as `spec.ports[0].port` or `metadata.labels[app]` leads: the scalar
    /// itself, or the key of a list or map. Where the path leads nowhere, as far as it goes.
    pub(crate) fn find(&self, path: &str) -> Position {
        let mut node = self;
        let mut at = self.at;
        let mut rest = path;
        while !rest.is_empty() {
            let step;
            (step, rest) = match rest.strip_prefix('[') {
                Some(inner) => inner.split_once(']').unwrap_or((inner, "")),
                None => {
                    let name = rest.strip_prefix('.').unwrap_or(rest);
                    name.split_at(name.find(['.', '[']).unwrap_or(name.len()))
                }
            };
            match &node.value {
                Value::List(items) => {
                    let Some(item) = step.parse().ok().and_then(|i: usize| items.get(i)) else {
                        break;
                    };
                    (node, at) = (item, item.at);
                }
                Value::Map(entries) => {
                    let Some(entry) = entries.iter().find(|e| e.key == step) else { break };
                    (node, at) = (&entry.node, entry.position());
                }
                _ => break,
            }
        }
        at
    }

    /// What a copy of it weighs, for the alias budget, and how deep it is.
    fn weigh(&self) -> (usize, usize) {
        let (mut weight, mut depth) = (32, 0);
        let mut add = |node: &Node<'_>| {
            let (w, d) = node.weigh();
            weight += w;
            depth = depth.max(d + 1);
        };
        match &self.value {
            Value::List(items) => items.iter().for_each(add),
            Value::Map(entries) => {
                entries.iter().for_each(|e| add(&e.node));
                weight += entries.iter().map(|e| e.key.len()).sum::<usize>();
            }
            Value::Plain(text) | Value::Text(text) => weight += text.len(),
            Value::Tagged(tag) => weight += tag.len(),
        }
        (weight, depth)
    }
}

impl Entry<'_> {
    /// Where a message about it points: to a scalar itself, which stands beside its key, and to
    /// the key of anything larger, which begins on a later line.
    pub(crate) fn position(&self) -> Position {
        match &self.node.value {
            Value::List(_) | Value::Map(_) => self.at,
            _ if self.node.is_null() => self.at,
            _ => self.node.at,
        }
    }
}

/// Calls `report` for every key that its map already has, with its path and the first place.
pub(crate) fn duplicates(node: &Node<'_>, report: &mut dyn FnMut(String, &Entry<'_>, Position)) {
    walk(node, &mut Vec::new(), report);
}

/// A step from a list or map to what is in it.
enum Step<'p> {
    Key(&'p str),
    Index(usize),
}

fn walk<'p>(
    node: &'p Node<'_>,
    way: &mut Vec<Step<'p>>,
    report: &mut dyn FnMut(String, &Entry<'_>, Position),
) {
    let is_leaf = |node: &Node<'_>| !matches!(node.value, Value::List(_) | Value::Map(_));
    match &node.value {
        Value::List(items) => {
            for (i, item) in items.iter().enumerate().filter(|(_, item)| !is_leaf(item)) {
                way.push(Step::Index(i));
                walk(item, way, report);
                way.pop();
            }
        }
        Value::Map(entries) => {
            let mut seen = FxHashMap::default();
            for (i, entry) in entries.iter().enumerate() {
                way.push(Step::Key(&entry.key));
                let first = if entries.len() <= 16 {
                    entries[..i].iter().find(|e| e.key == entry.key).map(|e| e.at)
                } else {
                    seen.insert(&*entry.key, entry.at)
                };
                if let Some(first) = first {
                    report(written(way), entry, first);
                }
                if !is_leaf(&entry.node) {
                    walk(&entry.node, way, report);
                }
                way.pop();
            }
        }
        _ => {}
    }
}

fn written(way: &[Step<'_>]) -> String {
    let path = way.iter().fold(String::new(), |path, step| match step {
        Step::Key(key) => join(&path, key),
        Step::Index(i) => format!("{path}[{i}]"),
    });
    path.strip_prefix('.').map(str::to_owned).unwrap_or(path)
}

/// The path of a key below a path: `spec.ports`, or `labels[a/b]` for a key that is no field name.
pub(crate) fn join(path: &str, key: &str) -> String {
    if key.is_empty() || key.contains(['.', '/', '[', ']', ' ']) {
        format!("{path}[{key}]")
    } else {
        format!("{path}.{key}")
    }
}

/// Takes each item of the top-level list `items` as soon as it is complete, with the other
/// top-level entries so far. So a List of any length is never in memory as a whole.
pub(crate) type Sink<'s, 't> = &'s mut dyn FnMut(Node<'t>, &[Entry<'t>]);

/// Builds the tree of one document from the events of a parser.
pub(crate) struct Builder<'s, 't> {
    stack: Vec<Frame<'t>>,
    root: Option<Node<'t>>,
    anchors: FxHashMap<usize, Node<'t>>,
    /// How much may still be copied for anchors and aliases.
    budget: usize,
    sink: Sink<'s, 't>,
}

struct Frame<'t> {
    at: Position,
    anchor: usize,
    tag: Option<String>,
    contents: Contents<'t>,
}

enum Contents<'t> {
    List(Vec<Node<'t>>),
    Map { entries: Vec<Entry<'t>>, key: Option<Key<'t>>, merged: Vec<Node<'t>> },
}

struct Key<'t> {
    name: Cow<'t, str>,
    at: Position,
    merge: bool,
}

impl<'s, 't> Builder<'s, 't> {
    /// For a document of so many bytes.
    pub(crate) fn new(bytes: usize, sink: Sink<'s, 't>) -> Self {
        let budget = bytes.saturating_mul(40).saturating_add(64 * 1024);
        Builder { stack: Vec::new(), root: None, anchors: FxHashMap::default(), budget, sink }
    }

    /// The finished tree; `None` for an empty document.
    pub(crate) fn finish(self) -> Option<Node<'t>> {
        self.root
    }

    pub(crate) fn start_list(
        &mut self,
        at: Position,
        anchor: usize,
        tag: Option<String>,
    ) -> Result<(), Broken> {
        self.start(Frame { at, anchor, tag, contents: Contents::List(Vec::new()) })
    }

    pub(crate) fn start_map(
        &mut self,
        at: Position,
        anchor: usize,
        tag: Option<String>,
    ) -> Result<(), Broken> {
        let contents = Contents::Map { entries: Vec::new(), key: None, merged: Vec::new() };
        self.start(Frame { at, anchor, tag, contents })
    }

    fn start(&mut self, frame: Frame<'t>) -> Result<(), Broken> {
        let depth = self.stack.len();
        if depth >= MAX_DEPTH {
            return Err(too_deep(frame.at));
        }
        self.stack.push(frame);
        Ok(())
    }

    /// Ends the innermost list or map.
    pub(crate) fn end(&mut self) -> Result<(), Broken> {
        let Some(frame) = self.stack.pop() else { return Ok(()) };
        let value = match frame.contents {
            _ if frame.tag.is_some() => Value::Tagged(frame.tag.unwrap_or_default()),
            Contents::List(items) => Value::List(items),
            Contents::Map { mut entries, merged, .. } => {
                merge(&mut entries, merged)?;
                Value::Map(entries)
            }
        };
        self.node(Node { at: frame.at, value }, frame.anchor)
    }

    /// A scalar: a key where a map expects one.
    pub(crate) fn scalar(
        &mut self,
        at: Position,
        value: Value<'t>,
        anchor: usize,
    ) -> Result<(), Broken> {
        self.node(Node { at, value }, anchor)
    }

    /// Another copy of what the anchor named.
    pub(crate) fn alias(&mut self, at: Position, anchor: usize) -> Result<(), Broken> {
        let Some(node) = self.anchors.get(&anchor) else {
            return Err(Broken::syntax(at, "an alias stands inside what it refers to"));
        };
        let (weight, depth) = node.weigh();
        if self.stack.len() + depth > MAX_DEPTH {
            return Err(too_deep(at));
        }
        let node = node.clone();
        self.spend(at, weight)?;
        self.node(node, 0)
    }

    fn spend(&mut self, at: Position, weight: usize) -> Result<(), Broken> {
        self.budget = self.budget.checked_sub(weight).ok_or_else(|| Broken {
            at,
            reason: Reason::TooManyAliases,
            message: "aliases expand to far more than is written here: write it out".to_owned(),
        })?;
        Ok(())
    }

    fn node(&mut self, node: Node<'t>, anchor: usize) -> Result<(), Broken> {
        if anchor > 0 {
            self.spend(node.at, node.weigh().0)?;
            self.anchors.insert(anchor, node.clone());
        }
        if let [root, list] = &mut self.stack[..]
            && let Contents::Map { entries, key: Some(key), .. } = &root.contents
            && let Contents::List(_) = list.contents
            && key.name == "items"
        {
            (self.sink)(node, entries);
            return Ok(());
        }
        match self.stack.last_mut().map(|frame| &mut frame.contents) {
            None => self.root = Some(node),
            Some(Contents::List(items)) => items.push(node),
            Some(Contents::Map { entries, key, merged }) => match key.take() {
                None => *key = Some(Key::of(node)?),
                Some(Key { merge: true, .. }) => merged.push(node),
                Some(Key { name, at, .. }) => entries.push(Entry { key: name, at, node }),
            },
        }
        Ok(())
    }
}

impl<'t> Key<'t> {
    /// A key as Kubernetes reads it: JSON has string keys only, so `on:` becomes `"true"`.
    fn of(node: Node<'t>) -> Result<Key<'t>, Broken> {
        let at = node.at;
        let name = match node.value {
            Value::Text(text) => return Ok(Key { name: text, at, merge: false }),
            Value::Plain(text) => match scalar::resolve(&text) {
                Resolved::String(_) => {
                    let merge = text == "<<";
                    return Ok(Key { name: text, at, merge });
                }
                Resolved::Bool(value) => value.to_string(),
                Resolved::Int(value) => value.to_string(),
                Resolved::Float(value) => value.to_string(),
                Resolved::Null => return Err(Broken::syntax(at, "a key must not be null")),
            },
            _ => return Err(Broken::syntax(at, "a key must be a string")),
        };
        Ok(Key { name: Cow::Owned(name), at, merge: false })
    }
}

/// Adds the entries of the merged maps whose keys are not there yet.
fn merge<'t>(entries: &mut Vec<Entry<'t>>, merged: Vec<Node<'t>>) -> Result<(), Broken> {
    if merged.is_empty() {
        return Ok(());
    }
    let mut keys: FxHashSet<_> = entries.iter().map(|e| e.key.clone()).collect();
    let sources = merged.into_iter().flat_map(|node| match node.value {
        Value::List(items) => items,
        value => vec![Node { at: node.at, value }],
    });
    for source in sources {
        let Value::Map(found) = source.value else {
            return Err(Broken::syntax(source.at, "`<<` takes a map or a list of maps"));
        };
        entries.extend(found.into_iter().filter(|e| keys.insert(e.key.clone())));
    }
    Ok(())
}

/// The refusal of lists and maps within each other beyond the limit.
pub(crate) fn too_deep(at: Position) -> Broken {
    let message = format!("more than {MAX_DEPTH} lists and maps within each other");
    Broken { at, reason: Reason::TooDeep, message }
}
