//! Where fields stand in their texts, for those who edit texts.

use std::ops::Range;
use std::sync::Arc;

use crate::input::Input;
use crate::object::{Place, reread};
use crate::tree::{Entry, Node, Position, Value};

/// A part of a file of the input.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    /// The file, as locations call it.
    pub file: Arc<str>,
    /// The bytes of its text.
    pub bytes: (usize, usize),
}

impl Input {
    /// Every text that was read, with the name that locations call it by.
    pub fn texts(&self) -> impl Iterator<Item = (&Arc<str>, &str)> {
        self.files.iter().map(|file| (&file.name, &*file.text))
    }

    /// Where the last key of a path of a policy is written, and the scalar that is its value, both
    /// without quotes. `None` where there is no such field, or where the text is not simply the
    /// key or the value: an alias, a merge, an escape, a block of text, an object of a live cluster.
    pub fn policy_span(&self, policy: usize, path: &[Step<'_>], part: Part) -> Option<Span> {
        let place: &Place = self.places.policies.get(policy)?;
        let file = self.files.get(place.file).filter(|file| !file.live)?;
        let root = reread(&file.text, place)?;
        let (last, way) = path.split_last()?;
        let mut node = &root;
        for step in way {
            node = step.of(node)?;
        }
        let (at, written): (Position, &str) = match (part, last) {
            (Part::Key, Step::Key(key)) => {
                let entry: &Entry<'_> = node.entries().iter().find(|e| e.key == *key)?;
                (entry.at, &entry.key)
            }
            (Part::Key, Step::Item(_)) => return None,
            (Part::Value, step) => match step.of(node)? {
                Node { at, value: Value::Plain(text) | Value::Text(text) } => (*at, text),
                _ => return None,
            },
        };
        let from = offset(&file.text, at)?;
        let quote = usize::from(file.text[from..].starts_with(['"', '\'']));
        let bytes: Range<usize> = from + quote..from + quote + written.len();
        (file.text.get(bytes.clone()) == Some(written))
            .then(|| Span { file: file.name.clone(), bytes: (bytes.start, bytes.end) })
    }
}

/// Which part of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Its key.
    Key,
    /// Its value.
    Value,
}

/// A step of a path, into a map or a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step<'s> {
    /// The value of a key.
    Key(&'s str),
    /// The item of this index.
    Item(usize),
}

impl Step<'_> {
    fn of<'n, 't>(&self, node: &'n Node<'t>) -> Option<&'n Node<'t>> {
        match self {
            Step::Key(key) => node.get(key),
            Step::Item(index) => node.items().get(*index),
        }
    }
}

/// The byte at a position.
fn offset(text: &str, at: Position) -> Option<usize> {
    let mut start = 0;
    for _ in 1..at.line {
        let end = start + text[start..].find(['\n', '\r'])?;
        start = end + if text[end..].starts_with("\r\n") { 2 } else { 1 };
    }
    let line = &text[start..];
    let column = usize::try_from(at.column.checked_sub(1)?).ok()?;
    let ends = line.char_indices().map(|(i, _)| i).chain([line.len()]);
    ends.into_iter().nth(column).map(|i| start + i)
}
