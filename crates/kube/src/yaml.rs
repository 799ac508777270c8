//! YAML events to a tree.

use std::borrow::Cow;
use std::cell::Cell;
use std::rc::Rc;

use saphyr_parser::{Event, Input, Marker, Parser, ScalarStyle, Tag};

use crate::diagnostic::Reason;
use crate::tree::{Broken, Builder, Node, Position, Sink, Value, too_deep};

/// The parser holds back its events until a flow collection is complete, at forty times the memory
/// of the text: so one of more characters than this is refused, and a scalar too.
const LONGEST: usize = 4 << 20;

/// Parses one document whose first line is `origin.line`. `None` if there is nothing in it.
pub(crate) fn parse<'t>(
    text: &'t str,
    origin: Position,
    sink: Sink<'_, 't>,
) -> Result<Option<Node<'t>>, Broken> {
    let builder = Builder::new(text.len(), sink);
    if text.len() <= LONGEST {
        return drive(Parser::new_from_str(text), origin, builder, || ());
    }
    let left = Rc::new(Cell::new(LONGEST));
    let read = Rc::clone(&left);
    let characters = text.chars().take_while(move |_| {
        read.set(read.get().saturating_sub(1));
        read.get() > 0
    });
    let parsed = drive(Parser::new_from_iter(characters), origin, builder, || left.set(LONGEST));
    if left.get() > 0 {
        return parsed;
    }
    let at = parsed.map_or_else(|broken| broken.at, |_| origin);
    let message = format!(
        "more than {LONGEST} characters in one value: write large lists and maps in block style or as JSON"
    );
    Err(Broken { at, reason: Reason::TooLarge, message })
}

/// Builds the tree from the parser's events, calling `each` for each.
fn drive<'t>(
    mut parser: Parser<'t, impl Input>,
    origin: Position,
    mut builder: Builder<'_, 't>,
    each: impl Fn(),
) -> Result<Option<Node<'t>>, Broken> {
    let position = |mark: &Marker| Position {
        line: number(mark.line()).saturating_add(origin.line - 1),
        column: number(mark.col()).saturating_add(1),
    };
    while let Some(event) = parser.next_event() {
        each();
        let (event, span) = event.map_err(|e| broken(position(e.marker()), e.info()))?;
        let at = position(&span.start);
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                builder.scalar(at, scalar(text, style, tag.as_deref()), anchor)?;
            }
            Event::MappingStart(anchor, tag) => {
                builder.start_map(at, anchor, unusual(tag.as_deref(), "map"))?;
            }
            Event::SequenceStart(anchor, tag) => {
                builder.start_list(at, anchor, unusual(tag.as_deref(), "seq"))?;
            }
            Event::MappingEnd | Event::SequenceEnd => builder.end()?,
            Event::Alias(anchor) => builder.alias(at, anchor)?,
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd => {}
        }
    }
    Ok(builder.finish())
}

/// The parser gives up by itself at 255 flow collections within each other.
fn broken(at: Position, info: &str) -> Broken {
    match info {
        "recursion limit exceeded" => too_deep(at),
        info => Broken::syntax(at, info),
    }
}

fn number(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// A scalar with the tag's type, if it has a tag. The number tags change nothing: a plain number
/// is one without them.
fn scalar<'t>(text: Cow<'t, str>, style: ScalarStyle, tag: Option<&Tag>) -> Value<'t> {
    let plain = style == ScalarStyle::Plain;
    match tag {
        None if plain => Value::Plain(text),
        None => Value::Text(text),
        Some(tag) if tag.handle.is_empty() && tag.suffix == "!" => Value::Text(text),
        Some(tag) if tag.is_yaml_core_schema() => match tag.suffix.as_str() {
            "str" => Value::Text(text),
            "int" | "float" | "bool" | "null" if plain => Value::Plain(text),
            _ => Value::Tagged(written(tag)),
        },
        Some(tag) => Value::Tagged(written(tag)),
    }
}

fn unusual(tag: Option<&Tag>, usual: &str) -> Option<String> {
    tag.filter(|t| !(t.is_yaml_core_schema() && t.suffix == usual)).map(written)
}

fn written(tag: &Tag) -> String {
    if tag.is_yaml_core_schema() {
        format!("!!{}", tag.suffix)
    } else {
        format!("{}{}", tag.handle, tag.suffix)
    }
}
