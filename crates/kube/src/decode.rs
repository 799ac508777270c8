//! Strict decoding: a cursor that knows its path and says what is wrong where.

use std::fmt::Write as _;

use portcullis_core::api::{IntOrString, LabelSelector, LabelSelectorRequirement};
use portcullis_core::labels::Labels;
use portcullis_core::validate::{self, FieldError};

use crate::diagnostic::{Reason, Severity};
use crate::scalar::Resolved;
use crate::tree::{Entry, Node, Position, Value, join};

/// A finding within one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) severity: Severity,
    pub(crate) at: Position,
    pub(crate) path: String,
    pub(crate) reason: Reason,
    pub(crate) message: String,
}

/// Collects the findings of one object.
#[derive(Debug, Default)]
pub(crate) struct Problems(pub(crate) Vec<Problem>);

impl Problems {
    pub(crate) fn error(&mut self, at: Position, path: String, reason: Reason, message: String) {
        self.0.push(Problem { severity: Severity::Error, at, path, reason, message });
    }

    pub(crate) fn warn(&mut self, at: Position, path: String, reason: Reason, message: String) {
        self.0.push(Problem { severity: Severity::Warning, at, path, reason, message });
    }

    /// What is wrong with a field by the rules of the API server.
    pub(crate) fn field_error(&mut self, root: &Node<'_>, error: FieldError) {
        let at = root.find(&error.path);
        self.field_error_at(at, error);
    }

    /// The same, for a field at a known place.
    pub(crate) fn field_error_at(&mut self, at: Position, error: FieldError) {
        let message = error.to_string();
        self.error(at, error.path, Reason::Field(error.reason), message);
    }

    pub(crate) fn has_errors(&self) -> bool {
        self.0.iter().any(|p| p.severity == Severity::Error)
    }
}

/// A value of an object and the way to it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cursor<'p, 't> {
    pub(crate) node: &'p Node<'t>,
    /// Where a message about it points.
    pub(crate) at: Position,
    way: Option<(&'p Cursor<'p, 't>, Step<'p>)>,
}

#[derive(Debug, Clone, Copy)]
enum Step<'p> {
    Key(&'p str),
    Index(usize),
}

/// The names a map may have, and where to look for a name that it may not have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fields {
    pub(crate) names: &'static [&'static str],
    /// Maps around it whose fields are often written here by mistake, with their paths.
    pub(crate) nearby: &'static [(&'static str, &'static [&'static str])],
}

impl<'p, 't> Cursor<'p, 't> {
    pub(crate) fn root(node: &'p Node<'t>) -> Self {
        Cursor { node, at: node.at, way: None }
    }

    /// The path as the API server writes it: `spec.ingress[0].from`. Empty at the root.
    pub(crate) fn path(&self) -> String {
        match self.way {
            None => String::new(),
            Some((parent, Step::Index(i))) => format!("{}[{i}]", parent.path()),
            Some((parent, Step::Key(key))) => parent.below(key),
        }
    }

    fn below(&self, key: &str) -> String {
        let path = join(&self.path(), key);
        path.strip_prefix('.').map(str::to_owned).unwrap_or(path)
    }

    /// A field; `None` if it is absent or null, which is the same to the API.
    pub(crate) fn get(&'p self, name: &str) -> Option<Cursor<'p, 't>> {
        let entry = self.node.entries().iter().find(|e| e.key == name)?;
        (!entry.node.is_null()).then(|| self.child(entry))
    }

    fn child(&'p self, entry: &'p Entry<'t>) -> Cursor<'p, 't> {
        Cursor { node: &entry.node, at: entry.position(), way: Some((self, Step::Key(&entry.key))) }
    }

    /// Reports whatever is not one of these fields, and a value that is no map.
    pub(crate) fn fields(&self, known: Fields, out: &mut Problems) {
        if !self.is_map(out) {
            return;
        }
        for entry in self.node.entries() {
            if known.names.contains(&&*entry.key) {
                continue;
            }
            let path = self.below(&entry.key);
            let mut message = format!("unknown field {path:?}");
            if let Some(meant) = known.meant(&entry.key) {
                let _ = write!(message, ", did you mean {meant:?}?");
            }
            out.error(entry.at, path, Reason::UnknownField, message);
        }
    }

    fn is_map(&self, out: &mut Problems) -> bool {
        let good = matches!(self.node.value, Value::Map(_));
        if !good {
            self.expected("a map", out);
        }
        good
    }

    /// The items of a list.
    fn items(&'p self, out: &mut Problems) -> Vec<Cursor<'p, 't>> {
        if !matches!(self.node.value, Value::List(_)) {
            self.expected("a list", out);
        }
        let items = self.node.items().iter().enumerate();
        items
            .map(|(i, node)| Cursor { node, at: node.at, way: Some((self, Step::Index(i))) })
            .collect()
    }

    /// Decodes each item of a list.
    pub(crate) fn list<T>(
        &self,
        out: &mut Problems,
        decode: impl Fn(&Cursor<'_, 't>, &mut Problems) -> T,
    ) -> Vec<T> {
        self.items(out).iter().map(|item| decode(item, out)).collect()
    }

    /// Decodes each item of a list of objects. A null item is an empty object to the API server,
    /// which makes a null rule one that allows everything.
    pub(crate) fn objects<T: Default>(
        &self,
        out: &mut Problems,
        decode: impl Fn(&Cursor<'_, 't>, &mut Problems) -> T,
    ) -> Vec<T> {
        self.list(out, |item, out| match item.is_null_item("{}", out) {
            true => T::default(),
            false => decode(item, out),
        })
    }

    /// Whether this is a null item, which is then reported.
    pub(crate) fn is_null_item(&self, taken_as: &str, out: &mut Problems) -> bool {
        let null = self.node.is_null();
        if null {
            let path = self.path();
            let message =
                format!("{path}: null is taken as {taken_as}: write {taken_as} if that is meant");
            out.warn(self.at, path, Reason::Null, message);
        }
        null
    }

    pub(crate) fn string(&self, out: &mut Problems) -> String {
        match self.node.text() {
            Some(text) => text.to_owned(),
            None => {
                self.expected("a string", out);
                String::new()
            }
        }
    }

    pub(crate) fn strings(&self, out: &mut Problems) -> Vec<String> {
        self.list(out, |item, out| match item.is_null_item("\"\"", out) {
            true => String::new(),
            false => item.string(out),
        })
    }

    pub(crate) fn bool(&self, out: &mut Problems) -> bool {
        match self.node.resolve() {
            Some(Resolved::Bool(value)) => value,
            _ => {
                self.expected("true or false", out);
                false
            }
        }
    }

    /// A 32-bit integer; `None` if it is not one. `80.0` and `8e1` are the integer 80, as they are
    /// on their way to the API server.
    pub(crate) fn int(&self, out: &mut Problems) -> Option<i32> {
        let value = match self.node.resolve() {
            Some(Resolved::Int(value)) => value,
            #[expect(clippy::cast_possible_truncation, reason = "saturates, and is then refused")]
            Some(Resolved::Float(value)) if value.fract() == 0.0 => value as i128,
            _ => {
                self.expected("an integer", out);
                return None;
            }
        };
        let value = i32::try_from(value).ok();
        if value.is_none() {
            self.expected("an integer of 32 bits", out);
        }
        value
    }

    pub(crate) fn int_or_string(&self, out: &mut Problems) -> Option<IntOrString> {
        match self.node.resolve() {
            Some(Resolved::String(text)) => Some(IntOrString::String(text.to_owned())),
            Some(Resolved::Int(_) | Resolved::Float(_)) => self.int(out).map(IntOrString::Int),
            _ => {
                self.expected("an integer or a string", out);
                None
            }
        }
    }

    /// A map of strings. A null value is the empty string to the API server.
    pub(crate) fn labels(&'p self, out: &mut Problems) -> Labels {
        if !self.is_map(out) {
            return Labels::new();
        }
        let mut pair = |entry| {
            let value = self.child(entry);
            let text = match value.is_null_item("\"\"", out) {
                true => String::new(),
                false => value.string(out),
            };
            (entry.key.clone().into_owned(), text)
        };
        let pairs: Vec<_> = self.node.entries().iter().map(&mut pair).collect();
        // Of a key that is there twice, which is an error, the first value counts.
        pairs.into_iter().rev().collect()
    }

    pub(crate) fn selector(&'p self, out: &mut Problems) -> LabelSelector {
        const SELECTOR: Fields =
            Fields { names: &["matchLabels", "matchExpressions"], nearby: &[] };
        const REQUIREMENT: Fields = Fields { names: &["key", "operator", "values"], nearby: &[] };
        self.fields(SELECTOR, out);
        let match_labels = self.get("matchLabels").map(|c| c.labels(out)).unwrap_or_default();
        let requirement = |item: &Cursor<'_, '_>, out: &mut Problems| {
            item.fields(REQUIREMENT, out);
            LabelSelectorRequirement {
                key: item.get("key").map(|c| c.string(out)).unwrap_or_default(),
                operator: item.get("operator").map(|c| c.string(out)).unwrap_or_default(),
                values: item.get("values").map(|c| c.strings(out)).unwrap_or_default(),
            }
        };
        let match_expressions = self.get("matchExpressions");
        let match_expressions =
            match_expressions.map(|c| c.objects(out, requirement)).unwrap_or_default();
        LabelSelector { match_labels, match_expressions }
    }

    /// Reports a value that is malformed or out of range.
    pub(crate) fn invalid(&self, value: &str, detail: &str, out: &mut Problems) {
        self.wrong(validate::Reason::Invalid, Some(value.to_owned()), detail, out);
    }

    /// Reports a value that the API server would refuse.
    pub(crate) fn wrong(
        &self,
        reason: validate::Reason,
        value: Option<String>,
        detail: &str,
        out: &mut Problems,
    ) {
        let error = FieldError { path: self.path(), reason, value, detail: detail.to_owned() };
        out.field_error_at(self.at, error);
    }

    /// Reports that something else was expected here.
    pub(crate) fn expected(&self, what: &str, out: &mut Problems) {
        let path = self.path();
        let mut message = format!("expected {what}, found {}", found(self.node));
        if !path.is_empty() {
            message = format!("{path}: {message}");
        }
        let is_scalar = matches!(self.node.value, Value::Plain(_));
        if what == "a string" && is_scalar {
            message += ": write it in quotes";
        }
        out.error(self.at, path, Reason::WrongType, message);
    }
}

/// A value in words: `the number 80`, `the string "x"`, `a list`.
pub(crate) fn found(node: &Node<'_>) -> String {
    const LONGEST: usize = 40;
    let short = |text: &str| match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    };
    match &node.value {
        Value::List(_) => "a list".to_owned(),
        Value::Map(_) => "a map".to_owned(),
        Value::Tagged(tag) => format!("a value with the tag {tag}"),
        Value::Text(text) => format!("the string {:?}", short(text)),
        Value::Plain(text) => match node.resolve() {
            Some(Resolved::Bool(_)) => format!("the boolean {text}"),
            Some(Resolved::Int(_) | Resolved::Float(_)) => format!("the number {}", short(text)),
            Some(Resolved::String(text)) => format!("the string {:?}", short(text)),
            Some(Resolved::Null) | None => "null".to_owned(),
        },
    }
}

impl Fields {
    /// What was most likely meant by a name that is not a field here.
    fn meant(&self, name: &str) -> Option<String> {
        if let Some(known) = closest(name, self.names) {
            return Some(known.to_owned());
        }
        let exact = |(path, names): &&(&str, &'static [&'static str])| {
            names.contains(&name).then(|| format!("{path}.{name}"))
        };
        self.nearby.iter().find_map(|n| exact(&n)).or_else(|| {
            self.nearby.iter().find_map(|(path, names)| {
                closest(name, names).map(|known| format!("{path}.{known}"))
            })
        })
    }
}

/// The known name that differs in case only, or else by the fewest letters.
pub fn closest<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    if name.len() > 40 {
        return None;
    }
    let allowed = if name.len() < 5 { 1 } else { 2 };
    let by_distance = known.iter().map(|k| {
        let distance = match k.eq_ignore_ascii_case(name) {
            true => 0,
            // Two letters that changed places are one slip.
            false if letters(k) == letters(name) => 1,
            false => distance(name, k),
        };
        (distance, *k)
    });
    by_distance.filter(|(d, _)| *d <= allowed).min_by_key(|(d, _)| *d).map(|(_, k)| k)
}

fn letters(text: &str) -> Vec<u8> {
    let mut letters = text.as_bytes().to_vec();
    letters.sort_unstable();
    letters
}

/// Levenshtein's distance in bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row.last().copied().unwrap_or_default()
}
