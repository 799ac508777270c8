//! A text as documents, each parsed by itself: one that is broken does not hide the others.

use std::ops::Range;

use crate::diagnostic::Reason;
use crate::json;
use crate::tree::{Broken, Node, Position};
use crate::yaml;

/// The most bytes of broken JSON that are tried as YAML.
const WORTH_ANOTHER_TRY: usize = 1 << 20;

/// A part of a text that is parsed by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Document {
    /// The bytes of the text.
    pub(crate) range: Range<usize>,
    /// Where they begin.
    pub(crate) origin: Position,
    pub(crate) syntax: Syntax,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Syntax {
    /// JSON values, one after another, if it begins like JSON and is JSON; else YAML, of which
    /// JSON with comments and trailing commas is a part.
    Any,
    /// One JSON value.
    Json,
}

/// What came of a document: each object of it.
pub(crate) trait Visitor<'t> {
    /// An item of a top-level `items`, with the other top-level entries so far.
    fn item(&mut self, item: Node<'t>, list: &[crate::tree::Entry<'t>]);
    /// A whole document, less its `items`, and what to find it by.
    fn root(&mut self, root: Node<'t>, document: Document);
    /// The syntax turned out to be another one: forget this document.
    fn restart(&mut self);
}

/// The documents of a text: it is cut at each line that begins with `---` or `...`, which YAML
/// gives no other meaning anywhere.
pub(crate) fn split(text: &str) -> Vec<Document> {
    let mut documents = Vec::new();
    let (mut start, mut line, mut origin) = (0, 1, Position::START);
    let mut counted = 0;
    for at in boundaries(text) {
        let content = &text[start..at];
        let holds_document = has_content(content);
        line += line_breaks(&text[counted..at]);
        counted = at;
        let ends = text[at..].starts_with("...");
        if holds_document {
            documents.push(Document { range: start..at, origin, syntax: Syntax::Any });
        }
        // Directives belong to the document after them.
        if holds_document || ends || !has_directive(content) {
            start = if ends { at + 3 } else { at };
            let column = if ends { 4 } else { 1 };
            origin = Position { line, column };
        }
    }
    documents.push(Document { range: start..text.len(), origin, syntax: Syntax::Any });
    documents
}

/// The lines that begin with a document marker, as byte offsets.
fn boundaries(text: &str) -> impl Iterator<Item = usize> + '_ {
    let bytes = text.as_bytes();
    let marker = move |at: usize| {
        let marks = bytes[at..].starts_with(b"---") || bytes[at..].starts_with(b"...");
        marks && bytes.get(at + 3).is_none_or(|b| b.is_ascii_whitespace())
    };
    let breaks = bytes.iter().enumerate().filter(|(_, b)| matches!(b, b'\n' | b'\r'));
    std::iter::once(0).chain(breaks.map(|(i, _)| i + 1)).filter(move |at| marker(*at))
}

/// How many line breaks there are: LF, CRLF, or CR.
pub(crate) fn line_breaks(text: &str) -> u32 {
    let bytes = text.as_bytes();
    let mut n = bytes.iter().filter(|b| **b == b'\n').count();
    if bytes.contains(&b'\r') {
        n += bytes
            .iter()
            .zip(bytes[1..].iter().chain([&0]))
            .filter(|(a, b)| **a == b'\r' && **b != b'\n')
            .count();
    }
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Whether there is more than comments, the marker before a document, and directives before that.
fn has_content(text: &str) -> bool {
    if let Some(text) = text.strip_prefix("---") {
        let mut lines = text.split(['\n', '\r']).map(str::trim_start);
        return lines.any(|l| !l.is_empty() && !l.starts_with('#'));
    }
    text.split(['\n', '\r'])
        .map(str::trim_start)
        .any(|l| !l.is_empty() && !l.starts_with(['#', '%']))
}

fn has_directive(text: &str) -> bool {
    text.split(['\n', '\r']).any(|line| line.starts_with('%'))
}

/// Parses a document.
pub(crate) fn parse<'t>(
    text: &'t str,
    document: &Document,
    visitor: &mut dyn Visitor<'t>,
) -> Result<(), Broken> {
    let json = match document.syntax {
        Syntax::Any => looks_like_json(text, document),
        Syntax::Json => Some((document.range.start, document.origin)),
    };
    let Some(start) = json else { return parse_yaml(text, document, visitor) };
    let broken = match parse_json(text, start, document.range.end, visitor) {
        Err(broken) if broken.reason == Reason::Syntax => broken,
        done => return done,
    };
    // What was meant as YAML is small; a large text is JSON that broke.
    if document.syntax == Syntax::Json || document.range.len() > WORTH_ANOTHER_TRY {
        return Err(broken);
    }
    visitor.restart();
    parse_yaml(text, document, visitor).map_err(|_| broken)
}

/// Where JSON begins, if it does: at `{"` or `{}`, behind a marker line, white space and comments.
fn looks_like_json(text: &str, document: &Document) -> Option<(usize, Position)> {
    let body = &text[document.range.clone()];
    let mut at = 0;
    let mut origin = document.origin;
    if body.starts_with("---") {
        at += 3;
        origin.column += 3;
    }
    loop {
        let (space, position) = json::skip_space(&body[at..], origin);
        (at, origin) = (at + space, position);
        if !body[at..].starts_with('#') {
            break;
        }
        at += body[at..].find(['\n', '\r'])?;
    }
    let inner = body[at..].strip_prefix('{')?;
    let start = document.range.start + at;
    inner.trim_start().starts_with(['"', '}']).then_some((start, origin))
}

fn parse_json<'t>(
    text: &'t str,
    (mut start, mut origin): (usize, Position),
    end: usize,
    visitor: &mut dyn Visitor<'t>,
) -> Result<(), Broken> {
    loop {
        let (space, position) = json::skip_space(&text[start..end], origin);
        (start, origin) = (start + space, position);
        if start == end {
            return Ok(());
        }
        let (root, length, position) =
            json::parse(&text[start..end], origin, &mut |item, list| visitor.item(item, list))?;
        if let Some(root) = root {
            let range = start..start + length;
            visitor.root(root, Document { range, origin, syntax: Syntax::Json });
        }
        (start, origin) = (start + length, position);
    }
}

fn parse_yaml<'t>(
    text: &'t str,
    document: &Document,
    visitor: &mut dyn Visitor<'t>,
) -> Result<(), Broken> {
    let part = &text[document.range.clone()];
    let root = yaml::parse(part, document.origin, &mut |item, list| visitor.item(item, list))?;
    if let Some(root) = root {
        visitor.root(root, document.clone());
    }
    Ok(())
}
