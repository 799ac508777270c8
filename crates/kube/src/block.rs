//! The YAML that manifests are made of, read directly: block maps and lists, scalars and flow
//! collections on one line, ASCII. Nothing else is decided here: at anything unusual, and at any
//! mistake, the YAML parser reads the document from its beginning. Several times faster than that
//! parser, which matters for the state of a whole cluster; the tests hold the two together.

use std::borrow::Cow;

use crate::tree::{Builder, Node, Position, Sink, Value};

/// Flow collections within each other on one line.
const MAX_FLOW: usize = 8;

/// Parses one document that begins at `origin`: its tree, or `Some(None)` if there is nothing in
/// it. `None` if it takes the YAML parser to tell.
pub(crate) fn parse<'t>(
    text: &'t str,
    origin: Position,
    sink: Sink<'_, 't>,
) -> Option<Option<Node<'t>>> {
    if origin.column != 1 {
        return None;
    }
    let builder = Builder::new(text.len(), sink);
    let mut block = Block { builder, open: Vec::new(), pending: None, line: origin.line };
    let mut lines = text.split('\n');
    if text.starts_with("---") {
        let marker = lines.next()?;
        if !is_blank(&marker.as_bytes()[3..]) {
            return None;
        }
        block.line += 1;
    }
    for line in lines {
        block.line(line)?;
        block.line += 1;
    }
    block.finish()
}

struct Block<'s, 't> {
    builder: Builder<'s, 't>,
    /// The block collections that are open, each with its column, from 0.
    open: Vec<(usize, Kind)>,
    /// Where the value is missing of the last key or dash, if it is.
    pending: Option<Position>,
    line: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Map,
    List,
}

impl<'t> Block<'_, 't> {
    fn line(&mut self, line: &'t str) -> Option<()> {
        let bytes = line.as_bytes();
        if !bytes.iter().all(|b| (b' '..=b'~').contains(b)) {
            return None;
        }
        let mut column = spaces(bytes);
        if is_blank(&bytes[column..]) {
            return Some(());
        }
        // Dashes, each with what stands behind it on the line.
        while bytes[column] == b'-' && matches!(bytes.get(column + 1), None | Some(b' ')) {
            self.place(column, Kind::List)?;
            self.pending = Some(self.position(column + 1));
            column += 1 + spaces(&bytes[column + 1..]);
            if is_blank(&bytes[column..]) {
                return Some(());
            }
        }
        let Some((key, end)) = key(line, column) else {
            // A scalar stands in a list only; on a line of its own it is unusual.
            self.pending.filter(|p| p.line == self.line)?;
            return self.value(line, column);
        };
        self.place(column, Kind::Map)?;
        self.builder.scalar(self.position(column), key, 0).ok()?;
        self.pending = Some(self.position(end - 1));
        let column = end + spaces(&bytes[end..]);
        if is_blank(&bytes[column..]) {
            return Some(());
        }
        self.value(line, column)
    }

    /// Opens the collection of this column if it is a value, else goes back to it.
    fn place(&mut self, column: usize, kind: Kind) -> Option<()> {
        if let Some(missing) = self.pending {
            let nested = match self.open.last() {
                None => true,
                Some((outer, Kind::List)) => column > *outer,
                // The list below a key may stand in the key's own column.
                Some((outer, Kind::Map)) => {
                    column > *outer || (column == *outer && kind == Kind::List)
                }
            };
            if nested {
                return self.open(column, kind);
            }
            self.null(missing)?;
        } else if self.open.is_empty() {
            return self.open(column, kind);
        }
        while let Some(top) = self.open.last() {
            if *top == (column, kind) {
                return Some(());
            }
            let is_list_of_key = *top == (column, Kind::List);
            if top.0 < column || (top.0 == column && !is_list_of_key) {
                return None;
            }
            self.open.pop();
            self.builder.end().ok()?;
        }
        None
    }

    fn open(&mut self, column: usize, kind: Kind) -> Option<()> {
        self.pending = None;
        self.open.push((column, kind));
        let at = self.position(column);
        match kind {
            Kind::Map => self.builder.start_map(at, 0, None),
            Kind::List => self.builder.start_list(at, 0, None),
        }
        .ok()
    }

    fn null(&mut self, at: Position) -> Option<()> {
        self.pending = None;
        self.builder.scalar(at, Value::Plain(Cow::Borrowed("")), 0).ok()
    }

    /// The value on the rest of a line.
    fn value(&mut self, line: &'t str, column: usize) -> Option<()> {
        self.pending = None;
        let end = match line.as_bytes()[column] {
            b'{' | b'[' => self.flow(line, column, 0)?,
            b'"' | b'\'' => self.quoted(line, column)?,
            _ => {
                let rest = &line[column..];
                let text = rest.find(" #").map_or(rest, |comment| &rest[..comment]);
                let text = text.trim_end_matches(' ');
                let begins = is_plain_start(text.as_bytes());
                if !begins || text.contains(": ") || text.ends_with(':') {
                    return None;
                }
                let at = self.position(column);
                return self.builder.scalar(at, Value::Plain(Cow::Borrowed(text)), 0).ok();
            }
        };
        let rest = &line.as_bytes()[end..];
        // A comment needs a space before it.
        (is_blank(rest) && rest.first() != Some(&b'#')).then_some(())
    }

    /// A string in quotes, without escapes: where it ends.
    fn quoted(&mut self, line: &'t str, column: usize) -> Option<usize> {
        let (text, end) = quoted(line, column)?;
        self.builder.scalar(self.position(column), Value::Text(Cow::Borrowed(text)), 0).ok()?;
        Some(end)
    }

    /// A flow collection with the plainest of scalars: where it ends.
    fn flow(&mut self, line: &'t str, column: usize, depth: usize) -> Option<usize> {
        let bytes = line.as_bytes();
        let at = self.position(column);
        let (is_map, close) = match *bytes.get(column)? {
            b'{' => (true, b'}'),
            b'[' => (false, b']'),
            b'"' | b'\'' => return self.quoted(line, column),
            _ => {
                let inside = |b: &u8| b.is_ascii_alphanumeric() || b"_./-".contains(b);
                let length = bytes[column..].iter().take_while(|b| inside(b)).count();
                let text = &line[column..column + length];
                if !text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_') {
                    return None;
                }
                self.builder.scalar(at, Value::Plain(Cow::Borrowed(text)), 0).ok()?;
                return Some(column + length);
            }
        };
        if depth == MAX_FLOW {
            return None;
        }
        if is_map {
            self.builder.start_map(at, 0, None).ok()?;
        } else {
            self.builder.start_list(at, 0, None).ok()?;
        }
        let mut column = column + 1 + spaces(&bytes[column + 1..]);
        while *bytes.get(column)? != close {
            if is_map {
                let (key, end) = key(line, column)?;
                self.builder.scalar(self.position(column), key, 0).ok()?;
                column = end + spaces(&bytes[end..]);
            }
            column = self.flow(line, column, depth + 1)?;
            column += spaces(&bytes[column..]);
            match *bytes.get(column)? {
                b',' => column += 1 + spaces(&bytes[column + 1..]),
                b if b == close => {}
                _ => return None,
            }
        }
        self.builder.end().ok()?;
        Some(column + 1)
    }

    fn finish(mut self) -> Option<Option<Node<'t>>> {
        if let Some(missing) = self.pending {
            self.null(missing)?;
        }
        for _ in 0..self.open.len() {
            self.builder.end().ok()?;
        }
        Some(self.builder.finish())
    }

    fn position(&self, column: usize) -> Position {
        let column = u32::try_from(column + 1).unwrap_or(u32::MAX);
        Position { line: self.line, column }
    }
}

fn spaces(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|b| **b == b' ').count()
}

/// Whether there is nothing but spaces and a comment.
fn is_blank(bytes: &[u8]) -> bool {
    matches!(bytes.get(spaces(bytes)), None | Some(b'#'))
}

/// Whether a plain scalar may begin like this.
fn is_plain_start(bytes: &[u8]) -> bool {
    match bytes {
        [b'-', next, ..] if next.is_ascii_alphanumeric() => true,
        [b'-', b'-', next, ..] => next.is_ascii_alphanumeric(),
        [first, ..] => first.is_ascii_alphanumeric() || b"_./+=~<$()^;\\".contains(first),
        [] => false,
    }
}

/// The key that begins at this column, and where its colon ends.
fn key(line: &str, column: usize) -> Option<(Value<'_>, usize)> {
    /// A longer one cannot be a key without a question mark; far shorter ones suffice here.
    const LONGEST: usize = 200;
    let bytes = line.as_bytes();
    let ends = |end: usize| {
        bytes.get(end) == Some(&b':') && matches!(bytes.get(end + 1), None | Some(b' '))
    };
    if matches!(bytes[column], b'"' | b'\'') {
        let (text, end) = quoted(line, column)?;
        let good = ends(end) && end - column < LONGEST;
        return good.then_some((Value::Text(Cow::Borrowed(text)), end + 1));
    }
    let inside = |b: &u8| b.is_ascii_alphanumeric() || b"_./-".contains(b);
    let length = bytes[column..].iter().take_while(|b| inside(b)).count();
    let begins = bytes[column].is_ascii_alphanumeric() || bytes[column] == b'_';
    let end = column + length;
    let good = begins && ends(end) && length < LONGEST;
    good.then_some((Value::Plain(Cow::Borrowed(&line[column..end])), end + 1))
}

/// The string that begins at this column, and where its quotes end.
fn quoted(line: &str, column: usize) -> Option<(&str, usize)> {
    let quote = line.as_bytes()[column];
    let inner = &line[column + 1..];
    let length = inner.find(char::from(quote))?;
    let text = &inner[..length];
    let end = column + length + 2;
    let escapes = if quote == b'"' { text.contains('\\') } else { line[end..].starts_with('\'') };
    (!escapes).then_some((text, end))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tree::Entry;
    use crate::yaml;

    /// A tree with its positions, but for nulls and lists, which have no first character of their
    /// own: the parsers differ there.
    fn show(node: &Node<'_>) -> String {
        let Position { line, column } = node.at;
        match &node.value {
            _ if node.is_null() => "null".to_owned(),
            Value::List(items) => format!("{:?}", items.iter().map(show).collect::<Vec<_>>()),
            Value::Map(entries) => {
                let entry = |e: &Entry<'_>| (e.key.to_string(), e.at, show(&e.node));
                format!("{line}:{column} {:?}", entries.iter().map(entry).collect::<Vec<_>>())
            }
            value => format!("{line}:{column} {value:?}"),
        }
    }

    /// What both parsers read.
    fn both(text: &str) -> (Option<String>, Result<String, String>) {
        let shown = |root: Option<Node<'_>>| root.map_or("null".to_owned(), |root| show(&root));
        let own = parse(text, Position::START, &mut |_, _| {}).map(shown);
        let yaml = yaml::parse(text, Position::START, &mut |_, _| {});
        (own, yaml.map(shown).map_err(|broken| format!("{broken:?}")))
    }

    /// A document a line at a time, near enough to YAML to be read often.
    fn document() -> impl Strategy<Value = String> {
        let scalar = prop_oneof![
            4 => "[a-c0-9]{1,2}",
            1 => "[a-c0-9~<.:#'\"{}\\[\\],&*!|>%@`?= -]{1,4}",
            1 => "\"[a-c: #']{0,3}\"",
            1 => "'[a-c: #\"]{0,3}'",
            1 => "[{]([a-c]: [a-c0-9],? ?){0,2}[}]",
            1 => "\\[([a-c\"'{}:],? ?){0,3}\\]",
            1 => Just("[a, {b: [c, 'd'], \"e\": f}]".to_owned()),
        ];
        let dashes =
            prop_oneof![3 => Just(""), 2 => Just("- "), 1 => Just("-  "), 1 => Just("- - ")];
        let key = prop_oneof![
            2 => Just(String::new()),
            6 => "[a-c][a-c0-9./-]{0,2}: ?",
            1 => "\"[a-c]\": ",
            1 => "[a-c]:{1,2}",
        ];
        let value = prop_oneof![2 => Just(String::new()), 3 => scalar];
        let comment = prop_oneof![6 => Just(""), 1 => Just(" # x"), 1 => Just("# x")];
        let line = (0..5usize, dashes, key, value, comment);
        let line = line.prop_map(|(n, d, k, v, c)| format!("{}{d}{k}{v}{c}\n", " ".repeat(n)));
        let start = prop_oneof![3 => Just(""), 1 => Just("---\n"), 1 => Just("--- # x\n")];
        (start, prop::collection::vec(line, 0..7))
            .prop_map(|(s, lines)| s.to_owned() + &lines.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 20_000, ..ProptestConfig::default() })]

        #[test]
        fn what_is_read_here_is_what_the_yaml_parser_reads(text in document()) {
            if let (Some(own), yaml) = both(&text) {
                prop_assert_eq!(Ok(own), yaml, "{}", text);
            }
        }
    }

    #[test]
    fn an_ordinary_manifest_is_read_here() {
        let text = "\
---
# a comment
apiVersion: v1
kind: Pod
metadata:
  name: web-1 # another
  labels: {app: web, 'tier': \"front\"}
  annotations: {}

spec:
  nodeName: ~
  containers:
  - name: main
    command: [sh, -c, 'sleep 1']
    args:
      - --flag=a,b
      -
      - a b: c
    ports:
    - containerPort: 80
  -   name: side
      env: []
status:
";
        let (own, yaml) = both(&text.replace("- a b: c", "- a b c").replace(" -c,", " c,"));
        assert_eq!(Ok(own.unwrap()), yaml);
        assert_eq!(both(text).0, None);
    }
}
