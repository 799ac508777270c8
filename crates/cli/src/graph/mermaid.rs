//! A picture for Mermaid, which GitHub, GitLab and many editors draw in Markdown.

use std::fmt::Write;

use crate::graph::picture::{End, Kind, Picture, Place};

/// The picture as a flowchart. A flow of several ends meets at its label.
pub(crate) fn mermaid(picture: &Picture) -> String {
    let mut out = "flowchart LR\n".to_owned();
    let node = |out: &mut String, indent: &str, i: usize, end: &End| {
        let note = if end.note.is_empty() {
            String::new()
        } else {
            format!("<br/>{}", escaped(&end.note))
        };
        let text = format!("\"{}{note}\"", escaped(&end.name));
        let _ = match end.place {
            Place::Callers | Place::Called => writeln!(out, "{indent}n{i}([{text}])"),
            Place::Box(_) | Place::Cluster => writeln!(out, "{indent}n{i}[{text}]"),
        };
    };
    for (b, name) in picture.boxes.iter().enumerate() {
        let _ = writeln!(out, "  subgraph b{b}[\"{}\"]", escaped(name));
        for (i, end) in picture.ends.iter().enumerate().filter(|(_, e)| e.place == Place::Box(b)) {
            node(&mut out, "    ", i, end);
        }
        out.push_str("  end\n");
    }
    for (i, end) in picture.ends.iter().enumerate() {
        if !matches!(end.place, Place::Box(_)) {
            node(&mut out, "  ", i, end);
        }
    }
    // Mermaid counts the lines, and colours and dashes are given by these numbers.
    let mut lines = 0;
    let mut styles = String::new();
    for (f, flow) in picture.flows.iter().enumerate() {
        let count = match (flow.from.len(), flow.to.len()) {
            (1, 1) => 1,
            (from, to) => from + to,
        };
        let colour = match flow.told.kind {
            Kind::Allowed => None,
            Kind::Refused | Kind::Closed => Some("stroke:#b3261e"),
            Kind::Opened => Some("stroke:#14713a"),
            Kind::Shifted => Some("stroke:#845300"),
        };
        let dashes = flow.told.doubtful.then_some("stroke-dasharray:9 3 2 3");
        let style: Vec<&str> = colour.into_iter().chain(dashes).collect();
        if !style.is_empty() {
            let numbers: Vec<String> = (lines..lines + count).map(|n| n.to_string()).collect();
            let _ = writeln!(styles, "  linkStyle {} {}", numbers.join(","), style.join(","));
        }
        lines += count;
        let (line, arrow) = match flow.told.kind {
            Kind::Allowed => ("---", "-->"),
            Kind::Opened => ("===", "==>"),
            Kind::Refused | Kind::Closed | Kind::Shifted => ("-.-", "-.->"),
        };
        let ports = escaped(&format!("{}{}", flow.told.kind.sign(), flow.told.ports));
        if let ([from], [to]) = (flow.from.as_slice(), flow.to.as_slice()) {
            let _ = writeln!(out, "  n{from} {arrow}|\"{ports}\"| n{to}");
            continue;
        }
        let _ = writeln!(out, "  f{f}{{{{\"{ports}\"}}}}");
        for from in &flow.from {
            let _ = writeln!(out, "  n{from} {line} f{f}");
        }
        for to in &flow.to {
            let _ = writeln!(out, "  f{f} {arrow} n{to}");
        }
    }
    out + &styles
}

/// A text in quotes: what Mermaid or HTML would take for markup as entities in Mermaid's way.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '"' | '#' | '&' | '<' | ';' | '`' | '\\' => {
                let _ = write!(out, "#{};", c as u32);
            }
            c if c.is_control() => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}
