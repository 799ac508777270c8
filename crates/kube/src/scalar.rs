//! What an unquoted YAML scalar is to Kubernetes: its YAML library resolves by YAML 1.1, with the
//! exceptions below, before anything is decoded.

/// A scalar by its type.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Resolved<'s> {
    Null,
    Bool(bool),
    /// An integer; one that does not fit is the nearest that does, which no field can hold.
    Int(i128),
    /// A finite number, or what `.nan` and `.inf` stand for.
    Float(f64),
    String(&'s str),
}

/// Resolves an unquoted scalar, of YAML or JSON. There are no base 60 numbers, and dates are
/// strings.
pub(crate) fn resolve(text: &str) -> Resolved<'_> {
    match text.as_bytes().first() {
        None => Resolved::Null,
        Some(b'+' | b'-' | b'.' | b'0'..=b'9') => number(text).unwrap_or(Resolved::String(text)),
        Some(b'~' | b'y' | b'Y' | b'n' | b'N' | b't' | b'T' | b'f' | b'F' | b'o' | b'O') => {
            word(text)
        }
        Some(_) => Resolved::String(text),
    }
}

fn word(text: &str) -> Resolved<'_> {
    match text {
        "~" | "null" | "Null" | "NULL" => Resolved::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            Resolved::Bool(true)
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            Resolved::Bool(false)
        }
        _ => Resolved::String(text),
    }
}

fn number(text: &str) -> Option<Resolved<'_>> {
    match text {
        ".nan" | ".NaN" | ".NAN" => return Some(Resolved::Float(f64::NAN)),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => {
            return Some(Resolved::Float(f64::INFINITY));
        }
        "-.inf" | "-.Inf" | "-.INF" => return Some(Resolved::Float(f64::NEG_INFINITY)),
        _ => {}
    }
    // Underscores may stand anywhere in a number, except in one that begins with a point.
    let plain = if text.starts_with('.') || !text.contains('_') {
        text.to_owned()
    } else {
        text.replace('_', "")
    };
    integer(&plain).map(Resolved::Int).or_else(|| float(&plain).map(Resolved::Float))
}

/// Go's rules for literals: 0x, 0o, 0b, and a plain leading zero for octal.
fn integer(text: &str) -> Option<i128> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let (radix, digits) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &digits[2..]),
        [b'0', b'o' | b'O', ..] => (8, &digits[2..]),
        [b'0', b'b' | b'B', ..] => (2, &digits[2..]),
        [b'0', _, ..] => (8, &digits[1..]),
        _ => (10, digits),
    };
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return None;
    }
    let value = i128::from_str_radix(digits, radix).unwrap_or(i128::MAX);
    Some(if negative { -value } else { value })
}

/// `[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?`, and within range.
fn float(text: &str) -> Option<f64> {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if !unsigned.starts_with(|c: char| c == '.' || c.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|value: &f64| value.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalars_are_what_kubernetes_takes_them_for() {
        for text in ["y", "Yes", "on", "ON", "true", "TRUE"] {
            assert_eq!(resolve(text), Resolved::Bool(true), "{text}");
        }
        for text in ["n", "No", "off", "False"] {
            assert_eq!(resolve(text), Resolved::Bool(false), "{text}");
        }
        for text in ["", "~", "null", "NULL"] {
            assert_eq!(resolve(text), Resolved::Null, "{text}");
        }
        let integers = [
            ("80", 80),
            ("010", 8),
            ("0x1F", 31),
            ("0o17", 15),
            ("0b101", 5),
            ("1_000", 1000),
            ("-7", -7),
            ("+7", 7),
            ("-0b11", -3),
            ("99999999999999999999999999999999999999999", i128::MAX),
        ];
        for (text, value) in integers {
            assert_eq!(resolve(text), Resolved::Int(value), "{text}");
        }
        let floats = [("1e3", 1000.0), ("1.10", 1.1), (".5", 0.5), ("08", 8.0), ("6.", 6.0)];
        for (text, value) in floats {
            assert_eq!(resolve(text), Resolved::Float(value), "{text}");
        }
        for text in [
            "yEs",
            "nil",
            "NaN",
            "inf",
            "-inf",
            "1.2.3",
            "12:30:45",
            "2001-01-01",
            "10.0.0.0/8",
            "-",
            "+",
            ".",
            "0x",
            "1e999",
            "._5",
            "tRUE",
            "é",
            "1e",
            "<<",
        ] {
            assert_eq!(resolve(text), Resolved::String(text), "{text}");
        }
    }
}
