//! A picture as one page: search, rules on hover, why on click, light and dark, no network.

use std::fmt::Write;

use crate::graph::layout::{Room, layout};
use crate::graph::picture::{Flow, Picture};
use crate::graph::svg::{DARK, LIGHT, SHAPES, colours, drawing};
use crate::graph::text::escaped;

/// The page. Of the two rooms the first is for wide screens, the second for narrow ones.
pub(crate) fn html(picture: &Picture, [wide, narrow]: [Room; 2]) -> String {
    let mut out = String::new();
    let dark = |theme: &str| format!("{}{}", page_in_the_dark(theme), colours(theme, &DARK));
    let _ = write!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; \
         style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; \
         form-action 'none'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{}</title>\n<style>\n{STYLE}{SHAPES}{}\
         @media (prefers-color-scheme: dark) {{\n{}}}\n{}</style>\n</head>\n<body>\n",
        picture.title,
        colours("", &LIGHT),
        dark("html:not([data-theme=light]) "),
        dark("html[data-theme=dark] ")
    );
    out.push_str(&HEADER.replace("TITLE", picture.title));
    out.push_str("<main>\n<div id=\"pictures\">\n");
    // A telephone has smaller dots, and is held nearer.
    for (class, room, smallest) in [("wide", wide, 0.75), ("narrow", narrow, 2.0 / 3.0)] {
        let layout = layout(picture, room);
        // What does not fit is scrolled to rather than made too small to read.
        let least = (layout.width * smallest).round();
        let attributes = format!(
            " class=\"{class}\" style=\"min-width:{least}px;max-width:{}px\"",
            layout.width
        );
        out.push_str(&drawing(picture, &layout, "", &attributes));
    }
    out.push_str("</div>\n<ol id=\"flows\" aria-label=\"Connections\">\n");
    for flow in &picture.flows {
        item(&mut out, picture, flow);
    }
    if picture.flows.is_empty() {
        out.push_str("<li>No line is drawn: see what is noted in the picture.</li>\n");
    }
    let _ = write!(
        out,
        "</ol>\n</main>\n<div id=\"tip\" role=\"tooltip\" hidden></div>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n"
    );
    out
}

fn item(out: &mut String, picture: &Picture, flow: &Flow) {
    let names = |ends: &[usize]| {
        let names: Vec<&str> = ends.iter().map(|e| picture.ends[*e].about.as_str()).collect();
        escaped(&names.join(", "))
    };
    let (from, to, told) = (names(&flow.from), names(&flow.to), &flow.told);
    let (kind, ports) = (told.kind.word(), escaped(&told.ports));
    let _ = writeln!(
        out,
        "<li><details><summary>{from} <b aria-label=\"to\">→</b> {to} <span class=\"{kind}\">\
         {}{ports}</span></summary>",
        told.kind.sign()
    );
    if !told.rules.is_empty() {
        out.push_str("<ul class=\"rules\">");
        for rule in &told.rules {
            let _ = write!(out, "<li>{}</li>", escaped(rule));
        }
        out.push_str("</ul>\n");
    }
    for why in [&told.why, &told.doubt].into_iter().filter(|why| !why.is_empty()) {
        let _ = writeln!(out, "<pre>{}</pre>", escaped(why));
    }
    out.push_str("</details></li>\n");
}

/// What is dark of the page itself, below a selector.
fn page_in_the_dark(theme: &str) -> String {
    let html = theme.trim_end();
    let mut out = format!(
        "{html} {{ color-scheme: dark }}\n\
         {theme}body {{ background: #0f1318; color: #e8edf3 }}\n\
         {theme}#tip {{ background: #e8edf3; color: #0f1318 }}\n"
    );
    for (kinds, colour) in [
        ("allowed", "#74b4ff"),
        ("refused", "#ff8a80"),
        ("closed", "#ff8a80"),
        ("opened", "#5fd38a"),
        ("shifted", "#e6b450"),
    ] {
        let _ = writeln!(out, "{theme}#flows .{kinds} {{ color: {colour} }}");
    }
    out
}

const HEADER: &str = include_str!("page/header.html");
const STYLE: &str = include_str!("page/style.css");
const SCRIPT: &str = include_str!("page/script.js");
