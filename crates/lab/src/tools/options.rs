//! Options as people write them: `-qO-`, `-w 2`, `-w2`, `--timeout=2`, `--timeout 2`, `-timeout=2`.

/// What was written.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    given: Vec<(String, String)>,
    /// What is no option.
    pub(super) operands: Vec<String>,
}

impl Options {
    /// Takes the names of options without and with a value. A name of one letter is written after
    /// one dash, and can be written together with others. The error is the option that is not
    /// known, or lacks its value.
    pub(super) fn read(
        arguments: &[String],
        flags: &[&str],
        valued: &[&str],
    ) -> Result<Options, String> {
        let mut options = Options::default();
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let mut value_of_next = |name: &str| {
                arguments
                    .next()
                    .cloned()
                    .ok_or_else(|| format!("option requires an argument: {name}"))
            };
            if argument == "--" {
                options.operands.extend(arguments.cloned());
                break;
            }
            let Some(text) = argument.strip_prefix('-').filter(|text| !text.is_empty()) else {
                options.operands.push(argument.clone());
                continue;
            };
            let long = text.strip_prefix('-').unwrap_or(text);
            let (name, value) = match long.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (long, None),
            };
            // Some write long names after one dash.
            let is_long = text != long || name.len() > 1;
            if is_long && valued.contains(&name) {
                let value = value.map_or_else(|| value_of_next(name), Ok)?;
                options.given.push((name.to_owned(), value));
                continue;
            }
            if is_long && flags.contains(&name) {
                options.given.push((name.to_owned(), value.unwrap_or_default()));
                continue;
            }
            if text == long {
                options.letters(text, flags, valued, &mut value_of_next)?;
                continue;
            }
            return Err(format!("unrecognized option: {name}"));
        }
        Ok(options)
    }

    fn letters(
        &mut self,
        text: &str,
        flags: &[&str],
        valued: &[&str],
        value_of_next: &mut impl FnMut(&str) -> Result<String, String>,
    ) -> Result<(), String> {
        for (at, letter) in text.char_indices() {
            let name = letter.to_string();
            let rest = &text[at + letter.len_utf8()..];
            if flags.contains(&name.as_str()) {
                self.given.push((name, String::new()));
            } else if valued.contains(&name.as_str()) {
                let value = if rest.is_empty() { value_of_next(&name)? } else { rest.to_owned() };
                self.given.push((name, value));
                break;
            } else {
                return Err(format!("unrecognized option: {name}"));
            }
        }
        Ok(())
    }

    /// Whether one of the names was given.
    pub(super) fn has(&self, names: &[&str]) -> bool {
        self.given.iter().any(|(given, _)| names.contains(&given.as_str()))
    }

    /// The values that were given under these names, in order.
    pub(super) fn values<'a>(&'a self, names: &'a [&str]) -> impl Iterator<Item = &'a str> {
        let fits = |(given, _): &&(String, String)| names.contains(&given.as_str());
        self.given.iter().filter(fits).map(|(_, value)| value.as_str())
    }

    /// The last value that was given under one of the names.
    pub(super) fn value<'a>(&'a self, names: &'a [&str]) -> Option<&'a str> {
        self.values(names).last()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Options, String> {
        let arguments: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        Options::read(&arguments, &["q", "z", "v", "spider"], &["O", "w", "T", "timeout"])
    }

    #[test]
    fn a_value_may_be_written_in_any_of_the_ways() {
        for text in ["-w 2", "-w2", "-zvw 2", "-vw2", "host -w 2"] {
            assert_eq!(read(text).unwrap().value(&["w"]), Some("2"), "{text}");
        }
        for text in ["--timeout=2", "--timeout 2", "-timeout=2", "-T 2"] {
            assert_eq!(read(text).unwrap().value(&["T", "timeout"]), Some("2"), "{text}");
        }
        let both = read("-qO- --spider web").unwrap();
        assert_eq!(
            (both.value(&["O"]), both.has(&["q"]), both.has(&["spider"])),
            (Some("-"), true, true)
        );
        assert_eq!(both.operands, ["web"]);
    }

    #[test]
    fn operands_are_what_is_left() {
        assert_eq!(read("-z host 80").unwrap().operands, ["host", "80"]);
        assert_eq!(read("-z - -- -v").unwrap().operands, ["-", "-v"]);
    }

    #[test]
    fn what_is_not_known_is_said() {
        assert_eq!(read("-x").unwrap_err(), "unrecognized option: x");
        assert_eq!(read("--speed").unwrap_err(), "unrecognized option: speed");
        assert_eq!(read("-w").unwrap_err(), "option requires an argument: w");
        assert_eq!(read("--timeout").unwrap_err(), "option requires an argument: timeout");
    }
}
