//! A picture for Graphviz.

use std::fmt::Write;

use crate::graph::picture::{End, Kind, Picture, Place};
use crate::graph::svg::about;

/// The picture in the DOT language. A flow of several ends meets at its label.
pub(crate) fn dot(picture: &Picture) -> String {
    let mut out = "digraph portcullis {\n  rankdir=LR;\n  node [shape=box];\n".to_owned();
    let node = |out: &mut String, indent: &str, i: usize, end: &End| {
        let shape = match end.place {
            Place::Callers | Place::Called => ", style=rounded",
            Place::Box(_) | Place::Cluster => "",
        };
        let text = if end.note.is_empty() {
            quoted(&end.name)
        } else {
            quoted(&format!("{}\n{}", end.name, end.note))
        };
        let _ =
            writeln!(out, "{indent}n{i} [label={text}, tooltip={}{shape}];", quoted(&end.about));
    };
    for (b, name) in picture.boxes.iter().enumerate() {
        let _ = writeln!(out, "  subgraph cluster_{b} {{\n    label={};", quoted(name));
        for (i, end) in picture.ends.iter().enumerate().filter(|(_, e)| e.place == Place::Box(b)) {
            node(&mut out, "    ", i, end);
        }
        out.push_str("  }\n");
    }
    for (i, end) in picture.ends.iter().enumerate() {
        if !matches!(end.place, Place::Box(_)) {
            node(&mut out, "  ", i, end);
        }
    }
    for (f, flow) in picture.flows.iter().enumerate() {
        let colour = match flow.told.kind {
            Kind::Allowed => "",
            Kind::Refused | Kind::Closed => ", color=\"#b3261e\"",
            Kind::Opened => ", color=\"#14713a\", penwidth=3",
            Kind::Shifted => ", color=\"#845300\"",
        };
        // Graphviz knows no dashes with dots. What has shifted has another sign and colour.
        let dashes = match flow.told.kind {
            _ if flow.told.doubtful => ", style=dotted",
            Kind::Allowed | Kind::Opened => "",
            Kind::Refused | Kind::Closed => ", style=dashed",
            Kind::Shifted => ", style=dotted",
        };
        let style = format!("{colour}{dashes}");
        let ports = format!("{}{}", flow.told.kind.sign(), flow.told.ports);
        let label = format!("label={}, tooltip={}", quoted(&ports), quoted(&about(picture, flow)));
        if let ([from], [to]) = (flow.from.as_slice(), flow.to.as_slice()) {
            let _ = writeln!(out, "  n{from} -> n{to} [{label}{style}];");
            continue;
        }
        let _ = writeln!(out, "  f{f} [{label}, shape=plaintext];");
        for from in &flow.from {
            let _ = writeln!(out, "  n{from} -> f{f} [dir=none{style}];");
        }
        for to in &flow.to {
            let style = style.strip_prefix(", ").unwrap_or_default();
            let _ = writeln!(out, "  f{f} -> n{to} [{style}];");
        }
    }
    out + "}\n"
}

/// A quoted string of the language, in which a backslash escapes.
fn quoted(text: &str) -> String {
    let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("\"{text}\"")
}
