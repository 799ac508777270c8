//! How answers are printed.

use std::io::Write;

use clap::ValueEnum;
use portcullis_core::labels::Labels;
use serde::{Serialize, Serializer};
use serde_json::Value;

use crate::trouble::Trouble;

/// The format of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people
    Table,
    /// For programs; the shape is stable
    Json,
}

/// Labels as a map.
#[derive(Debug, Clone)]
pub(crate) struct LabelsReport(pub(crate) Labels);

impl LabelsReport {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for LabelsReport {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter())
    }
}

/// Prints a value as indented JSON with a line end.
pub(crate) fn json<T: Serialize>(value: &T) -> Result<(), Trouble> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Trouble::output(e.into()))?;
    print(&format!("{text}\n"))
}

/// Prints a value as YAML: the shape is that of JSON.
pub(crate) fn yaml<T: Serialize>(value: &T) -> Result<(), Trouble> {
    let value = serde_json::to_value(value).map_err(|e| Trouble::output(e.into()))?;
    let mut text = String::new();
    block(&value, 0, &mut text);
    print(&text)
}

/// Writes a value in block style, from where the line is; ends the line.
fn block(value: &Value, indent: usize, text: &mut String) {
    let inside = |value: &Value| match value {
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        _ => false,
    };
    // What comes first stands where the line is.
    let margin = |i: usize| if i == 0 { String::new() } else { " ".repeat(indent) };
    match value {
        Value::Array(items) if !items.is_empty() => {
            for (i, item) in items.iter().enumerate() {
                text.push_str(&format!("{}- ", margin(i)));
                block(item, indent + 2, text);
            }
        }
        Value::Object(fields) if !fields.is_empty() => {
            for (i, (key, field)) in fields.iter().enumerate() {
                text.push_str(&format!("{}{}:", margin(i), scalar(key)));
                if inside(field) {
                    // Lists are not indented below their key.
                    let deeper = indent + if field.is_array() { 0 } else { 2 };
                    text.push_str(&format!("\n{}", " ".repeat(deeper)));
                    block(field, deeper, text);
                } else {
                    text.push(' ');
                    block(field, indent, text);
                }
            }
        }
        Value::String(plain) => text.push_str(&format!("{}\n", scalar(plain))),
        // Numbers, booleans, null, and what is empty are the same in both.
        other => text.push_str(&format!("{other}\n")),
    }
}

/// A text, quoted unless nothing can take it for anything else.
fn scalar(text: &str) -> String {
    const WORDS: [&str; 9] = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c))
        && !WORDS.iter().any(|word| text.eq_ignore_ascii_case(word));
    if plain { text.to_owned() } else { Value::from(text).to_string() }
}

/// Prints a text, with its colours if they belong there.
pub(crate) fn print(text: &str) -> Result<(), Trouble> {
    let mut out = anstream::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Trouble::output)
}

/// `1 error`, `2 errors`.
pub(crate) fn plural(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// How many columns the reader has.
pub(crate) fn terminal_width() -> usize {
    let columns = std::env::var("COLUMNS").ok().and_then(|c| c.parse().ok());
    let terminal = || terminal_size::terminal_size().map(|(width, _)| usize::from(width.0));
    columns.or_else(terminal).unwrap_or(100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn yaml_has_the_shape_of_json_and_quotes_what_could_be_something_else() {
        let value = serde_json::json!([
            {"a": {"k": {}, "no": null}, "b": [{"x": 1, "z": []}, ["on", "10.0.0.0/8"]]},
            "shop/*", "shop/web", true, "a: b # c", ""
        ]);
        let mut text = String::new();
        block(&value, 0, &mut text);
        let expected = "\
- a:
    k: {}
    \"no\": null
  b:
  - x: 1
    z: []
  - - \"on\"
    - \"10.0.0.0/8\"
- \"shop/*\"
- shop/web
- true
- \"a: b # c\"
- \"\"
";
        assert_eq!(text, expected);
    }
}
