//! A picture as SVG: no program, font or script is needed to look at it. It is light or dark as
//! whoever looks at it prefers.

use std::fmt::Write;

use crate::graph::layout::{BOLD, LABEL, Labelled, Layout, Line, NAME, NOTE};
use crate::graph::picture::{End, Flow, Kind, Picture, Place};
use crate::graph::text::{escaped, width};

/// The picture as a document of its own.
pub(crate) fn svg(picture: &Picture, layout: &Layout) -> String {
    let style = format!(
        "<style>\n{SHAPES}{}@media (prefers-color-scheme: dark) {{\n{}}}\n</style>\n",
        colours("", &LIGHT),
        colours("", &DARK)
    );
    drawing(picture, layout, &style, "")
}

/// The picture as an element, with what is to be at its beginning, and attributes.
pub(crate) fn drawing(picture: &Picture, layout: &Layout, first: &str, attributes: &str) -> String {
    let Layout { width, height, .. } = layout;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"Helvetica, Arial, 'Liberation Sans', \
         sans-serif\" role=\"img\" aria-label=\"{}\"{attributes}>\n{first}\
         <rect class=\"canvas\" width=\"{width}\" height=\"{height}\" rx=\"6\"/>\n",
        picture.title
    );
    for label in layout.boxes.iter().filter(|label| label.width > 0.0) {
        out.push_str("<g class=\"box\">");
        rect(&mut out, label, 8.0, 0.0);
        let name = &label.text[0];
        text(&mut out, (label.x + 12.0, label.y + 17.0), "start", NAME, BOLD, "title", name);
        out.push_str("</g>\n");
    }
    for (i, (flow, drawn)) in picture.flows.iter().zip(&layout.flows).enumerate() {
        let _ = writeln!(
            out,
            "<g class=\"flow {}{}\" data-flow=\"{i}\"><title>{}</title>",
            flow.told.kind.word(),
            if flow.told.doubtful { " doubtful" } else { "" },
            escaped(&about(picture, flow))
        );
        for line in &drawn.lines {
            draw_line(&mut out, line, flow.told.kind);
        }
        rect(&mut out, &drawn.label, 5.0, 0.0);
        lines(&mut out, &drawn.label, LABEL, "label");
        out.push_str("</g>\n");
    }
    for (i, (end, label)) in picture.ends.iter().zip(&layout.ends).enumerate() {
        let outside = matches!(end.place, Place::Callers | Place::Called);
        let class = if outside { "end outside" } else { "end" };
        let about = escaped(&consists(end));
        let _ = write!(out, "<g class=\"{class}\" data-end=\"{i}\"><title>{about}</title>");
        let corner = if outside { label.height / 2.0 } else { 4.0 };
        if end.every {
            rect(&mut out, label, corner, 3.0);
        }
        rect(&mut out, label, corner, 0.0);
        lines(&mut out, label, NAME, "name");
        out.push_str("</g>\n");
    }
    for (y, line) in &layout.caption {
        text(&mut out, (16.0, *y), "start", NOTE, 1.0, "note", line);
        out.push('\n');
    }
    out.push_str("</svg>\n");
    out
}

/// A flow in words: who, to whom, on what, by which rules, and what it depends on.
pub(crate) fn about(picture: &Picture, flow: &Flow) -> String {
    let names = |ends: &[usize]| {
        ends.iter().map(|end| picture.ends[*end].about.as_str()).collect::<Vec<_>>().join(", ")
    };
    let verb = match flow.told.kind {
        Kind::Allowed if flow.told.doubtful => "may perhaps open",
        Kind::Opened if flow.told.doubtful => "may perhaps now open",
        Kind::Closed if flow.told.doubtful => "may perhaps no longer open",
        Kind::Allowed => "may open",
        Kind::Refused => "may open nothing",
        Kind::Opened => "may now open",
        Kind::Closed => "may no longer open",
        Kind::Shifted => "may open something else",
    };
    let ports = match flow.told.kind {
        Kind::Refused => String::new(),
        _ => format!(": {}", flow.told.ports),
    };
    let mut text = format!("{} → {}\n{verb}{ports}", names(&flow.from), names(&flow.to));
    for rule in &flow.told.rules {
        let _ = write!(text, "\n{rule}");
    }
    if !flow.told.doubt.is_empty() {
        let _ = write!(text, "\n\n{}", flow.told.doubt.trim_end());
    }
    text
}

/// An end in words: its name in full, what is noted, and what it consists of.
fn consists(end: &End) -> String {
    let mut lines = vec![end.about.as_str()];
    lines.extend((!end.note.is_empty()).then_some(end.note.as_str()));
    lines.extend(
        end.members.iter().filter(|m| **m != end.about).take(MOST_MEMBERS).map(String::as_str),
    );
    let rest = end.members.len().saturating_sub(MOST_MEMBERS);
    let rest = format!("and {rest} more");
    lines.extend((end.members.len() > MOST_MEMBERS).then_some(rest.as_str()));
    lines.join("\n")
}

/// Most members that are listed.
const MOST_MEMBERS: usize = 12;

/// What does not depend on light and dark.
pub(crate) const SHAPES: &str = "\
.flow path { fill: none; stroke-width: 1.4 }
.flow .head { stroke: none }
.flow rect { stroke-width: 1 }
.refused path, .closed path { stroke-dasharray: 5 4 }
.opened path { stroke-width: 3 }
.shifted path { stroke-dasharray: 2 3; stroke-width: 2 }
.refused rect, .closed rect { stroke-dasharray: 4 3 }
.opened rect { stroke-width: 2 }
.doubtful path { stroke-dasharray: 9 3 2 3 }
.doubtful rect { stroke-dasharray: 6 2 2 2 }
.title { font-weight: bold }
";

/// The colours of a picture: canvas, boxes and their borders, ends and their borders, text, notes,
/// and what is allowed, refused or closed, opened, shifted.
pub(crate) struct Palette([&'static str; 11]);

pub(crate) const LIGHT: Palette = Palette([
    "#ffffff", "#f3f5f8", "#c3cad3", "#ffffff", "#6b7480", "#1b1f24", "#525b66", "#1d5fae",
    "#b3261e", "#14713a", "#845300",
]);

pub(crate) const DARK: Palette = Palette([
    "#0f1318", "#181e26", "#3a4450", "#222a34", "#8a96a5", "#e8edf3", "#a4afbc", "#74b4ff",
    "#ff8a80", "#5fd38a", "#e6b450",
]);

/// The rules for the colours, below a selector.
pub(crate) fn colours(below: &str, palette: &Palette) -> String {
    let Palette([canvas, inside, border, end, edge, text, note, allowed, refused, opened, shifted]) =
        palette;
    let mut out = String::new();
    for (selector, declarations) in [
        (".canvas", format!("fill: {canvas}")),
        (".box rect", format!("fill: {inside}; stroke: {border}")),
        (".end rect", format!("fill: {end}; stroke: {edge}")),
        (".outside rect", format!("fill: {canvas}; stroke: {edge}")),
        (".name, .title", format!("fill: {text}")),
        (".note", format!("fill: {note}")),
        (".flow rect", format!("fill: {canvas}")),
    ] {
        let selector: Vec<String> = selector.split(", ").map(|s| format!("{below}{s}")).collect();
        let _ = writeln!(out, "{} {{ {declarations} }}", selector.join(", "));
    }
    for (kind, colour) in [
        (Kind::Allowed, allowed),
        (Kind::Refused, refused),
        (Kind::Closed, refused),
        (Kind::Opened, opened),
        (Kind::Shifted, shifted),
    ] {
        let kind = kind.word();
        let _ = writeln!(
            out,
            "{below}.{kind} path, {below}.{kind} rect {{ stroke: {colour} }} \
             {below}.{kind} .head, {below}.{kind} .label {{ fill: {colour} }}"
        );
    }
    out
}

fn rect(out: &mut String, label: &Labelled, corner: f64, behind: f64) {
    let Labelled { x, y, width, height, .. } = label;
    let (x, y) = (x + behind, y - behind);
    let _ = write!(
        out,
        "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" rx=\"{corner}\"/>"
    );
}

/// The lines of a label: the first of a size, those of an end after it as notes.
fn lines(out: &mut String, label: &Labelled, size: f64, class: &str) {
    let x = label.x + label.width / 2.0;
    let below = 14.0 * (label.text.len() - 1) as f64;
    let mut y = label.y + label.height / 2.0 - below / 2.0 + 4.0;
    for (i, line) in label.text.iter().enumerate() {
        let note = i > 0 && class == "name";
        let (size, class) = if note { (NOTE, "note") } else { (size, class) };
        text(out, (x, y), "middle", size, 1.0, class, line);
        y += 14.0;
    }
}

/// A line of text that is as wide as it was measured, whatever the font.
fn text(
    out: &mut String,
    (x, y): (f64, f64),
    anchor: &str,
    size: f64,
    wider: f64,
    class: &str,
    line: &str,
) {
    let length = (width(line, size) * wider * 10.0).round() / 10.0;
    let anchor =
        if anchor == "start" { String::new() } else { format!(" text-anchor=\"{anchor}\"") };
    let line = escaped(line);
    let _ = write!(
        out,
        "<text class=\"{class}\" x=\"{x}\" y=\"{y}\" font-size=\"{size}\"{anchor} \
         textLength=\"{length}\" lengthAdjust=\"spacingAndGlyphs\">{line}</text>"
    );
}

/// How long the head of an arrow is.
const HEAD: f64 = 8.0;

fn draw_line(out: &mut String, line: &Line, kind: Kind) {
    let mut points = line.points.clone();
    let last = points.len() - 1;
    let rightwards = points[last].0 > points[0].0;
    let away = if rightwards { HEAD } else { -HEAD };
    let mut heads = Vec::new();
    if line.accepts {
        heads.push((points[0], away));
        points[0].0 += away - away.signum();
    }
    if line.accepts && line.opens {
        heads.push((points[last], -away));
        points[last].0 -= away - away.signum();
    }
    let mut path = format!("M{} {}", points[0].0, points[0].1);
    for (i, pair) in points.windows(2).enumerate() {
        let ((x, y), (to, down)) = (pair[0], pair[1]);
        let _ = if i % 2 == 1 || y == down {
            write!(path, "L{to} {down}")
        } else {
            let half = (x + to) / 2.0;
            write!(path, "C{half} {y} {half} {down} {to} {down}")
        };
    }
    let _ = write!(out, "<path d=\"{path}\"/>");
    let half = if kind == Kind::Opened { 6.0 } else { 4.0 };
    for ((x, y), away) in heads {
        let _ =
            write!(out, "<path class=\"head\" d=\"M{x} {y}l{away} {} v{}z\"/>", -half, 2.0 * half);
    }
    out.push('\n');
}
