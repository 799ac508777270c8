//! How much room a text takes, and how it is written so that nothing in it is taken for markup.

use portcullis_lint::render;

/// The widths of the printable ASCII characters, from space on, in thousandths of the font size:
/// those of Helvetica, which Arial and Liberation Sans share.
const WIDTHS: [u16; 95] = [
    278, 278, 355, 556, 556, 889, 667, 191, 333, 333, 389, 584, 278, 333, 278, 278, 556, 556, 556,
    556, 556, 556, 556, 556, 556, 556, 278, 278, 584, 584, 584, 556, 1015, 667, 667, 722, 722, 667,
    611, 778, 722, 278, 500, 667, 556, 833, 722, 778, 667, 778, 722, 667, 611, 722, 667, 944, 667,
    667, 611, 278, 278, 278, 469, 556, 333, 556, 556, 500, 556, 556, 278, 556, 556, 222, 222, 500,
    222, 833, 556, 556, 556, 556, 333, 500, 278, 556, 500, 722, 500, 500, 500, 334, 260, 334, 584,
];

/// How wide a text is at a font size, in the same unit.
pub(crate) fn width(text: &str, size: f64) -> f64 {
    let of = |c: char| {
        let printable = (c as usize).checked_sub(' ' as usize);
        printable.and_then(|i| WIDTHS.get(i)).copied().unwrap_or(1000)
    };
    text.chars().map(|c| f64::from(of(c))).sum::<f64>() * size / 1000.0
}

/// A text, or its beginning and its end with `…` between, so that it is at most so wide. Names
/// differ at their ends as often as at their beginnings.
pub(crate) fn shortened(text: &str, size: f64, most: f64) -> String {
    if width(text, size) <= most {
        return text.to_owned();
    }
    let chars: Vec<char> = text.chars().collect();
    let with = |kept: usize| {
        let (head, tail) = (kept.div_ceil(2), kept / 2);
        let head: String = chars[..head].iter().collect();
        let tail: String = chars[chars.len() - tail..].iter().collect();
        format!("{head}…{tail}")
    };
    let fits = |kept: &usize| width(&with(*kept), size) <= most;
    with((0..chars.len()).rev().find(fits).unwrap_or(0))
}

/// Words, in as few lines as have room for them.
pub(crate) fn wrapped(text: &str, size: f64, most: f64) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if width(&format!("{line} {word}"), size) <= most => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(shortened(word, size, most)),
        }
    }
    lines
}

/// A text as XML and HTML have it, in elements and in quoted attributes of either kind.
pub(crate) fn escaped(text: &str) -> String {
    render::xml_escaped(text).replace('\'', "&#39;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_wide_keeps_its_beginning_and_its_end() {
        assert_eq!(shortened("web", 12.0, 60.0), "web");
        let short = shortened("orders-of-the-northern-region-blue", 12.0, 90.0);
        assert_eq!(short, "orders-…n-blue");
        assert!(width(&short, 12.0) <= 90.0);
        assert_eq!(shortened("web", 12.0, 0.0), "…");
    }

    #[test]
    fn lines_are_filled_and_none_is_too_wide() {
        let lines = wrapped("what has no line is refused", 12.0, 80.0);
        assert_eq!(lines, ["what has no", "line is refused"]);
    }

    #[test]
    fn markup_is_text() {
        assert_eq!(escaped("<b a=\"1\">&'\u{1}"), "&lt;b a=&quot;1&quot;&gt;&amp;&#39;\u{fffd}");
    }
}
