//! A picture as one page: search, rules on hover, why on click, light and dark, no network.

use std::fmt::Write;

use crate::graph::layout::{Room, layout};
use crate::graph::picture::{Flow, Picture};
use crate::graph::svg::{DARK, LIGHT, SHAPES, colours, drawing};
use crate::graph::text::escaped;

/// The page. Of the two rooms the first is for wide screens, the second for narrow ones.
pub(crate) fn html(picture: &Picture, [wide, narrow]: [Room; 2]) -> String {
    let mut out = String::new();
    let dark = format!("{STYLE_DARK}{}", colours("html:not([data-theme=light]) ", &DARK));
    let chosen = colours("html[data-theme=dark] ", &DARK);
    let _ = write!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; \
         style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; \
         form-action 'none'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>Who can reach whom</title>\n<style>\n{STYLE}{SHAPES}{}\
         @media (prefers-color-scheme: dark) {{\n{dark}}}\n{chosen}</style>\n</head>\n<body>\n",
        colours("", &LIGHT)
    );
    out.push_str(HEADER);
    out.push_str("<main>\n<div id=\"pictures\">\n");
    for (class, room) in [("wide", wide), ("narrow", narrow)] {
        let layout = layout(picture, room);
        // What does not fit is scrolled to rather than made too small to read.
        let least = (layout.width * 0.8).round();
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
    let _ = write!(
        out,
        "<li><details><summary>{from} <b aria-label=\"to\">→</b> {to} <span class=\"{kind}\">\
         {}{ports}</span></summary>\n",
        told.kind.sign()
    );
    if !told.rules.is_empty() {
        out.push_str("<ul class=\"rules\">");
        for rule in &told.rules {
            let _ = write!(out, "<li>{}</li>", escaped(rule));
        }
        out.push_str("</ul>\n");
    }
    if !told.why.is_empty() {
        let _ = writeln!(out, "<pre>{}</pre>", escaped(&told.why));
    }
    out.push_str("</details></li>\n");
}

const HEADER: &str = include_str!("page/header.html");
const STYLE: &str = include_str!("page/style.css");
/// What the dark rules of the page itself are.
const STYLE_DARK: &str = include_str!("page/dark.css");
const SCRIPT: &str = include_str!("page/script.js");
