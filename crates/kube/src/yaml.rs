//! YAML events to a tree.

use std::borrow::Cow;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Tag};

use crate::tree::{Broken, Builder, Node, Position, Sink, Value};

/// Parses one document whose first line is `origin.line`. `None` if there is nothing in it.
pub(crate) fn parse<'t>(
    text: &'t str,
    origin: Position,
    sink: Sink<'_, 't>,
) -> Result<Option<Node<'t>>, Broken> {
    let position = |mark: &Marker| Position {
        line: number(mark.line()).saturating_add(origin.line - 1),
        column: number(mark.col()).saturating_add(1),
    };
    let mut builder = Builder::new(text.len(), sink);
    let mut parser = Parser::new_from_str(text);
    while let Some(event) = parser.next_event() {
        let (event, span) =
            event.map_err(|e| Broken::syntax(position(e.marker()), e.info().to_owned()))?;
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
