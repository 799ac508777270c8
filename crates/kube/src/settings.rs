//! YAML that is no manifest, such as a file of settings: as plain data that knows its places.

use crate::decode;
use crate::document;
use crate::tree::{self, Node, Position, Value};

/// A value and where it begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The line, from 1.
    pub line: u32,
    /// The column in characters, from 1.
    pub column: u32,
    /// What is there.
    pub value: SettingValue,
}

/// What a [`Setting`] can be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SettingValue {
    /// A string, a number or the like, as written: settings say themselves what they take.
    Text(String),
    /// A list.
    List(Vec<Setting>),
    /// A map, in the order written, no key twice.
    Map(Vec<SettingEntry>),
    /// Null, or no value at all.
    Nothing,
}

/// A key of a map, where it stands, and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingEntry {
    /// The key.
    pub key: String,
    /// Its line, from 1.
    pub line: u32,
    /// Its column in characters, from 1.
    pub column: u32,
    /// The value.
    pub value: Setting,
}

/// What is wrong with settings, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrongSetting {
    /// The line, from 1.
    pub line: u32,
    /// The column in characters, from 1.
    pub column: u32,
    /// What was expected and what was found.
    pub message: String,
}

impl Setting {
    /// Reads a text of one YAML document. An empty one is [`SettingValue::Nothing`].
    ///
    /// # Errors
    /// All that is no YAML, keys that are there twice, values with tags, more than one document.
    pub fn parse(text: &str) -> Result<Setting, Vec<WrongSetting>> {
        let documents = document::split(text);
        if let Some(second) = documents.iter().filter(|d| !d.range.is_empty()).nth(1) {
            return Err(vec![wrong(second.origin, "a second document: settings are one")]);
        }
        let parsed = crate::yaml::parse(text, Position::START, &mut |_, _| {});
        let root = parsed.map_err(|broken| vec![wrong(broken.at, &broken.message)])?;
        let Some(root) = root else {
            return Ok(Setting { line: 1, column: 1, value: SettingValue::Nothing });
        };
        let mut problems = Vec::new();
        tree::duplicates(&root, &mut |path, entry, first| {
            let message = format!("{path}: is there already, on line {}", first.line);
            problems.push(wrong(entry.at, &message));
        });
        let setting = setting(&root, &mut problems);
        if problems.is_empty() { Ok(setting) } else { Err(problems) }
    }

    /// That something else was expected here.
    pub fn expected(&self, what: &str) -> WrongSetting {
        let found = match &self.value {
            SettingValue::Text(text) => format!("{text:?}"),
            SettingValue::List(_) => "a list".to_owned(),
            SettingValue::Map(_) => "a map".to_owned(),
            SettingValue::Nothing => "nothing".to_owned(),
        };
        let message = format!("expected {what}, found {found}");
        WrongSetting { line: self.line, column: self.column, message }
    }
}

impl SettingEntry {
    /// That there is no such key, and which of these may have been meant.
    pub fn unknown(&self, known: &[&str]) -> WrongSetting {
        let meant = decode::closest(&self.key, known);
        let hint = meant.map_or_else(
            || match known {
                [a, b, c, _, ..] => format!("there are {a}, {b}, {c}, …"),
                few => format!("there are {}", few.join(", ")),
            },
            |meant| format!("did you mean {meant:?}?"),
        );
        let message = format!("unknown key {:?}: {hint}", self.key);
        WrongSetting { line: self.line, column: self.column, message }
    }
}

fn wrong(at: Position, message: &str) -> WrongSetting {
    WrongSetting { line: at.line, column: at.column, message: message.to_owned() }
}

fn setting(node: &Node<'_>, problems: &mut Vec<WrongSetting>) -> Setting {
    let value = match &node.value {
        _ if node.is_null() => SettingValue::Nothing,
        Value::Plain(text) | Value::Text(text) => SettingValue::Text(text.clone().into_owned()),
        Value::List(items) => {
            SettingValue::List(items.iter().map(|item| setting(item, problems)).collect())
        }
        Value::Map(entries) => {
            let mut entry = |e: &tree::Entry<'_>| SettingEntry {
                key: e.key.clone().into_owned(),
                line: e.at.line,
                column: e.at.column,
                value: setting(&e.node, problems),
            };
            SettingValue::Map(entries.iter().map(&mut entry).collect())
        }
        Value::Tagged(tag) => {
            problems.push(wrong(node.at, &format!("settings have no use for the tag {tag}")));
            SettingValue::Nothing
        }
    };
    Setting { line: node.at.line, column: node.at.column, value }
}
