//! Where objects come from: files, directories, standard input, text, a live cluster.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::Options;
use crate::diagnostic::{Diagnostic, Location, Reason, Severity};
use crate::live::Snapshot;

/// Something to read manifests from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A file of any name, or a directory: its `*.yaml`, `*.yml` and `*.json`, sorted by name.
    Path(PathBuf),
    /// Standard input, to its end.
    Stdin,
    /// A text at hand.
    Text {
        /// What messages call it.
        name: String,
        /// The manifests.
        text: String,
    },
    /// What the API server of a cluster listed: see [`Access::read`](crate::live::Access::read).
    Live(Snapshot),
}

/// A text that was read, for as long as messages may point into it.
#[derive(Debug)]
pub(crate) struct TextFile {
    pub(crate) name: Arc<str>,
    pub(crate) text: Arc<str>,
    /// Whether it is one object of a live cluster. Such a text has no lines that anyone knows.
    pub(crate) live: bool,
}

/// Reads all sources. What cannot be read is reported.
pub(crate) fn read(
    sources: &[Source],
    options: &Options,
    diagnostics: &mut Vec<Diagnostic>,
) -> Vec<TextFile> {
    let mut reader = Reader { options, left: options.max_bytes, files: Vec::new(), diagnostics };
    for source in sources {
        match source {
            Source::Path(path) => reader.path(path),
            Source::Stdin => reader.stream("<stdin>", Ok(io::stdin().lock())),
            Source::Text { name, text } => reader.stream(name, Ok(text.as_bytes())),
            Source::Live(snapshot) => reader.live(snapshot),
        }
    }
    reader.files
}

struct Reader<'a> {
    options: &'a Options,
    /// Bytes that may still be read.
    left: u64,
    files: Vec<TextFile>,
    diagnostics: &'a mut Vec<Diagnostic>,
}

impl Reader<'_> {
    fn path(&mut self, path: &Path) {
        let name = path.display().to_string();
        match fs::metadata(path) {
            Err(error) => self.refuse(&name, Reason::Unreadable, error.to_string()),
            Ok(found) if found.is_dir() => {
                let (files, errors) = (self.files.len(), self.diagnostics.len());
                self.directory(path);
                if (files, errors) == (self.files.len(), self.diagnostics.len()) {
                    let message = "no *.yaml, *.yml or *.json in this directory";
                    let hint =
                        if self.options.recursive { "" } else { " itself; -R looks below it" };
                    self.refuse(&name, Reason::Empty, format!("{message}{hint}"));
                }
            }
            Ok(_) => self.stream(&name, File::open(path)),
        }
    }

    /// Symbolic links are followed to files and not to directories, so there are no cycles.
    fn directory(&mut self, path: &Path) {
        let entries = fs::read_dir(path).and_then(|entries| {
            let paths = entries.map(|e| Ok((e.as_ref().map_err(copy)?.path(), e?.file_type()?)));
            paths.collect::<io::Result<Vec<_>>>()
        });
        let mut entries = match entries {
            Ok(entries) => entries,
            Err(error) => {
                let name = path.display().to_string();
                return self.refuse(&name, Reason::Unreadable, error.to_string());
            }
        };
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        for (path, kind) in entries {
            let extension = path.extension().and_then(|e| e.to_str());
            if kind.is_dir() {
                if self.options.recursive {
                    self.directory(&path);
                }
            } else if matches!(extension, Some("yaml" | "yml" | "json")) {
                // A link to a directory, a pipe or a device is no manifest; a link to nowhere is
                // a mistake.
                if fs::metadata(&path).map_or(true, |found| found.is_file()) {
                    self.stream(&path.display().to_string(), File::open(&path));
                }
            }
        }
    }

    /// The limit is for what somebody else wrote, and not for how large a cluster is.
    fn live(&mut self, snapshot: &Snapshot) {
        self.diagnostics.extend(snapshot.notes.iter().cloned());
        self.files.extend(snapshot.objects.iter().map(|object| TextFile {
            name: object.name.clone(),
            text: object.text.clone(),
            live: true,
        }));
    }

    fn stream(&mut self, name: &str, source: io::Result<impl Read>) {
        let mut bytes = Vec::new();
        let read = source.and_then(|s| s.take(self.left.saturating_add(1)).read_to_end(&mut bytes));
        if let Err(error) = read {
            return self.refuse(name, Reason::Unreadable, error.to_string());
        }
        let length = bytes.len() as u64;
        if length > self.left {
            let limit = self.options.max_bytes;
            let message = format!("the input is larger than the limit of {limit} bytes");
            return self.refuse(name, Reason::TooLarge, message);
        }
        self.left -= length;
        match text(bytes) {
            Ok(text) => {
                self.files.push(TextFile { name: name.into(), text: text.into(), live: false })
            }
            Err((line, column, message)) => {
                self.refuse_at(
                    Location { file: name.into(), line, column },
                    Reason::NotText,
                    message,
                );
            }
        }
    }

    fn refuse(&mut self, name: &str, reason: Reason, message: String) {
        self.refuse_at(Location { file: name.into(), line: 0, column: 0 }, reason, message);
    }

    fn refuse_at(&mut self, location: Location, reason: Reason, message: String) {
        self.diagnostics.push(Diagnostic {
            severity: Severity::Error,
            location: Some(location),
            object: None,
            path: String::new(),
            reason,
            message,
        });
    }
}

fn copy(error: &io::Error) -> io::Error {
    error.kind().into()
}

/// The bytes as text without a byte order mark; or line, column and what is wrong.
fn text(bytes: Vec<u8>) -> Result<String, (u32, u32, String)> {
    if bytes.starts_with(&[0xFE, 0xFF]) || bytes.starts_with(&[0xFF, 0xFE]) {
        return Err((0, 0, "this is UTF-16: save it as UTF-8".to_owned()));
    }
    let mut text = String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let before = String::from_utf8_lossy(&error.as_bytes()[..good]);
        let (line, column) = end_of(&before);
        (line, column, format!("not UTF-8: the byte 0x{:02x}", error.as_bytes()[good]))
    })?;
    // YAML allows no other control characters, and its parser would take NUL for the end.
    let control = |b: u8| b < b' ' && !matches!(b, b'\t' | b'\n' | b'\r') || b == 0x7F;
    if let Some(at) = text.bytes().position(control) {
        let (line, column) = end_of(&text[..at]);
        let message = format!("a control character, the byte 0x{:02x}", text.as_bytes()[at]);
        return Err((line, column, message));
    }
    if text.starts_with('\u{FEFF}') {
        text.drain(..'\u{FEFF}'.len_utf8());
    }
    Ok(text)
}

fn end_of(text: &str) -> (u32, u32) {
    let last = text.rsplit(['\n', '\r']).next().unwrap_or_default();
    let column = u32::try_from(last.chars().count() + 1).unwrap_or(u32::MAX);
    (crate::document::line_breaks(text) + 1, column)
}
