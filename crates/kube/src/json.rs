//! JSON to a tree: RFC 8259, nothing more. Positions are counted in characters along the way,
//! since one line can be the whole file.

use std::borrow::Cow;

use crate::tree::{Broken, Builder, Node, Position, Sink, Value};

/// Parses the value at the beginning of `text`, which stands at `origin`. Returns the tree, and
/// where in `text` and at which position the value ends.
pub(crate) fn parse<'t>(
    text: &'t str,
    origin: Position,
    sink: Sink<'_, 't>,
) -> Result<(Option<Node<'t>>, usize, Position), Broken> {
    let mut json = Json { text, at: 0, position: origin };
    let mut builder = Builder::new(text.len(), sink);
    json.value(&mut builder)?;
    Ok((builder.finish(), json.at, json.position))
}

/// Steps over white space: where it ends.
pub(crate) fn skip_space(text: &str, origin: Position) -> (usize, Position) {
    let mut json = Json { text, at: 0, position: origin };
    json.space();
    (json.at, json.position)
}

struct Json<'t> {
    text: &'t str,
    /// Bytes read.
    at: usize,
    /// The position of the next character.
    position: Position,
}

impl<'t> Json<'t> {
    /// Recursion is bounded: the builder refuses deep nesting.
    fn value(&mut self, builder: &mut Builder<'_, 't>) -> Result<(), Broken> {
        self.space();
        let at = self.position;
        match self.peek() {
            Some(b'{') => {
                builder.start_map(at, 0, None)?;
                self.list(b'}', "a key or '}'", |json| {
                    let at = json.position;
                    if json.peek() != Some(b'"') {
                        return Err(json.expected("a key in double quotes"));
                    }
                    let key = json.string()?;
                    builder.scalar(at, Value::Text(key), 0)?;
                    json.space();
                    if !json.take(b':') {
                        return Err(json.expected("':' after the key"));
                    }
                    json.value(builder)
                })?;
                builder.end()
            }
            Some(b'[') => {
                builder.start_list(at, 0, None)?;
                self.list(b']', "a value or ']'", |json| json.value(builder))?;
                builder.end()
            }
            Some(b'"') => {
                let text = self.string()?;
                builder.scalar(at, Value::Text(text), 0)
            }
            Some(b'-' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z') => {
                let text = self.word()?;
                builder.scalar(at, Value::Plain(Cow::Borrowed(text)), 0)
            }
            _ => Err(self.expected("a value")),
        }
    }

    /// The members of an object or list, with what encloses them.
    fn list(
        &mut self,
        close: u8,
        expected: &str,
        mut member: impl FnMut(&mut Self) -> Result<(), Broken>,
    ) -> Result<(), Broken> {
        self.advance(1);
        self.space();
        if self.take(close) {
            return Ok(());
        }
        loop {
            self.space();
            if self.peek().is_none() || self.peek() == Some(close) {
                return Err(self.expected(expected));
            }
            member(self)?;
            self.space();
            if self.take(close) {
                return Ok(());
            }
            if !self.take(b',') {
                return Err(self.expected(&format!("',' or '{}'", char::from(close))));
            }
        }
    }

    fn string(&mut self) -> Result<Cow<'t, str>, Broken> {
        let start = self.position;
        self.advance(1);
        let mut owned: Option<String> = None;
        loop {
            let rest = &self.text[self.at..];
            let plain = rest.bytes().position(|b| b == b'"' || b == b'\\' || b < b' ');
            let Some(length) = plain else {
                return Err(Broken::syntax(start, "a string that does not end"));
            };
            let part = &rest[..length];
            self.at += length;
            let characters = part.bytes().filter(|b| b & 0xC0 != 0x80).count();
            self.position.column = self.position.column.saturating_add(count(characters));
            match rest.as_bytes()[length] {
                b'"' => {
                    self.advance(1);
                    return Ok(match owned {
                        None => Cow::Borrowed(part),
                        Some(text) => Cow::Owned(text + part),
                    });
                }
                b'\\' => {
                    let text = owned.get_or_insert_default();
                    text.push_str(part);
                    let escaped = self.escape()?;
                    text.push(escaped);
                }
                _ => {
                    return Err(
                        self.expected("a string without line breaks and control characters")
                    );
                }
            }
        }
    }

    /// An escape. Half of a surrogate pair becomes U+FFFD, as the API server has it.
    fn escape(&mut self) -> Result<char, Broken> {
        let Some(letter) = self.text.as_bytes().get(self.at + 1) else {
            return Err(self.expected("an escape"));
        };
        let character = match letter {
            b'"' | b'\\' | b'/' => char::from(*letter),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let first = self.hex()?;
                self.advance(6);
                if (0xD800..0xDC00).contains(&first)
                    && self.text[self.at..].starts_with("\\u")
                    && let Ok(second @ 0xDC00..0xE000) = self.hex()
                {
                    self.advance(6);
                    let pair = 0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00);
                    return Ok(char::from_u32(pair).unwrap_or(char::REPLACEMENT_CHARACTER));
                }
                return Ok(char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER));
            }
            _ => return Err(self.expected("one of the escapes of JSON")),
        };
        self.advance(2);
        Ok(character)
    }

    /// The four digits of the `\u` that is next.
    fn hex(&self) -> Result<u32, Broken> {
        let digits = self.text.get(self.at + 2..self.at + 6);
        digits
            .filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()))
            .and_then(|d| u32::from_str_radix(d, 16).ok())
            .ok_or_else(|| self.expected("four hexadecimal digits after \\u"))
    }

    /// A number, `true`, `false` or `null`.
    fn word(&mut self) -> Result<&'t str, Broken> {
        let rest = &self.text[self.at..];
        let inside = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'+' | b'.');
        let length = rest.bytes().position(|b| !inside(b)).unwrap_or(rest.len());
        let word = &rest[..length];
        if !matches!(word, "true" | "false" | "null") && !is_number(word) {
            return Err(self.expected("a value"));
        }
        self.advance(length);
        Ok(word)
    }

    fn space(&mut self) {
        while let Some(b @ (b' ' | b'\t' | b'\r' | b'\n')) = self.peek() {
            self.at += 1;
            if b == b'\n' || (b == b'\r' && self.peek() != Some(b'\n')) {
                self.position.line = self.position.line.saturating_add(1);
                self.position.column = 1;
            } else {
                self.position.column = self.position.column.saturating_add(1);
            }
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        if found {
            self.advance(1);
        }
        found
    }

    /// Over ASCII that is no line break.
    fn advance(&mut self, bytes: usize) {
        self.at += bytes;
        self.position.column = self.position.column.saturating_add(count(bytes));
    }

    fn expected(&self, what: &str) -> Broken {
        let found = match self.text[self.at..].chars().next() {
            Some(c) => format!("{c:?}"),
            None => "the end".to_owned(),
        };
        Broken::syntax(self.position, format!("not JSON: expected {what}, found {found}"))
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn is_number(word: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let unsigned = word.strip_prefix('-').unwrap_or(word);
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (unsigned, None),
    };
    let (whole, fraction) = match mantissa.split_once('.') {
        Some((whole, fraction)) => (whole, Some(fraction)),
        None => (mantissa, None),
    };
    digits(whole)
        && (whole == "0" || !whole.starts_with('0'))
        && fraction.is_none_or(digits)
        && exponent.is_none_or(|e| digits(e.strip_prefix(['-', '+']).unwrap_or(e)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::yaml;

    fn json() -> impl Strategy<Value = String> {
        let scalar = prop_oneof![
            Just("null".to_owned()),
            Just("true".to_owned()),
            "-?(0|[1-9][0-9]{0,3})([.][0-9]{1,2})?",
            "\"([a-zé :#,{}\\[\\]-]|\\\\[\"\\\\nt/]|\\\\u00[2-7][0-9a-f]){0,6}\"",
        ];
        let space = "[ \n]{0,2}";
        scalar.prop_recursive(4, 24, 4, move |inner| {
            let key = "\"[a-zé ]{0,3}\"";
            let member = (key, space, space, inner.clone());
            let member = member.prop_map(|(k, s, t, v)| format!("{s}{k}: {t}{v}"));
            let list = |member: BoxedStrategy<String>| {
                prop::collection::vec((member, space), 0..4).prop_map(|members| {
                    let members = members.into_iter().map(|(m, s)| format!("{m}{s}"));
                    members.collect::<Vec<_>>().join(", ")
                })
            };
            prop_oneof![
                list(member.boxed()).prop_map(|m| format!("{{{m}}}")),
                list(inner.boxed()).prop_map(|m| format!("[{m}]")),
            ]
        })
    }

    proptest! {
        #[test]
        fn json_is_the_same_tree_by_either_parser(text in json()) {
            let by_json = parse(&text, Position::START, &mut |_, _| {}).unwrap().0.unwrap();
            let by_yaml = yaml::parse(&text, Position::START, &mut |_, _| {}).unwrap().unwrap();
            prop_assert_eq!(format!("{by_json:?}"), format!("{by_yaml:?}"), "{}", text);
        }

        #[test]
        fn json_ends_where_the_value_ends(text in json()) {
            let more = format!("{text} 1");
            let (_, end, _) = parse(&more, Position::START, &mut |_, _| {}).unwrap();
            prop_assert_eq!(end, text.len());
        }
    }
}
