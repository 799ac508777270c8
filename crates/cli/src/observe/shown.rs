//! How connections are shown: in columns that grow with what comes, or as lines of JSON.

use portcullis_cni::flow::{Direction, Flow, Reason, Verdict};

use crate::output::Output;
use crate::style::{BOLD, DIM, DOUBT, REFUSED};
use crate::trouble::Trouble;

/// The columns before the last one, which has no width.
const HEADERS: [&str; 5] = ["TIME", "VERDICT", "FROM", "TO", "PORT"];
const GAP: usize = 3;

/// What has been shown.
pub(crate) struct Shown {
    output: Output,
    /// The widths of the columns.
    widths: [usize; HEADERS.len()],
    /// Whether the node is told, as there are several.
    nodes: bool,
    empty: bool,
}

impl Shown {
    pub(crate) fn new(output: Output, nodes: bool) -> Shown {
        Shown { output, widths: HEADERS.map(str::len), nodes, empty: true }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.empty
    }

    /// The lines for more connections.
    pub(crate) fn lines(&mut self, flows: &[Flow]) -> Result<String, Trouble> {
        let mut text = String::new();
        if self.output == Output::Json {
            for flow in flows {
                let line = serde_json::to_string(flow).map_err(|e| Trouble::output(e.into()))?;
                text.push_str(&format!("{line}\n"));
            }
            return Ok(text);
        }
        let rows: Vec<_> = flows.iter().map(|flow| (flow, cells(flow))).collect();
        for (_, cells) in &rows {
            for (width, cell) in self.widths.iter_mut().zip(cells) {
                *width = (*width).max(cell.chars().count());
            }
        }
        if self.empty && !rows.is_empty() {
            self.empty = false;
            let head = self.row(&HEADERS.map(str::to_owned), |_, cell| cell);
            text.push_str(&format!("{BOLD}{head}WHY{BOLD:#}\n"));
        }
        for (flow, cells) in rows {
            let row = self.row(&cells, |column, cell| match (column, flow.verdict) {
                (1, Verdict::Refused | Verdict::Cut) => format!("{REFUSED}{cell}{REFUSED:#}"),
                (1, Verdict::Audited) => format!("{DOUBT}{cell}{DOUBT:#}"),
                _ => cell,
            });
            let node =
                if self.nodes { format!("{DIM}{}:{DIM:#} ", flow.node) } else { String::new() };
            text.push_str(&format!("{row}{node}{}\n", why(flow)));
        }
        Ok(text)
    }

    fn row(&self, cells: &[String; 5], style: impl Fn(usize, String) -> String) -> String {
        let cells = cells.iter().zip(self.widths).enumerate();
        cells
            .map(|(column, (cell, width))| {
                let space = " ".repeat(width - cell.chars().count() + GAP);
                style(column, cell.clone()) + &space
            })
            .collect()
    }
}

fn cells(flow: &Flow) -> [String; 5] {
    let port = match flow.destination.port {
        Some(port) => format!("{port}/{}", flow.protocol),
        None => flow.protocol.clone(),
    };
    // `2026-01-01T12:00:00.123456789Z` without the date and with milliseconds.
    let time = flow.time.split_once('T').map_or(&*flow.time, |(_, time)| time);
    let time = time.trim_end_matches('Z');
    let (whole, part) = time.split_once('.').unwrap_or((time, ""));
    let time = format!("{whole}.{:0<3.3}", part);
    [time, flow.verdict.as_str().to_owned(), flow.source.name(), flow.destination.name(), port]
}

fn why(flow: &Flow) -> String {
    let subject = match flow.direction {
        Some(Direction::Egress) => flow.source.name(),
        _ => flow.destination.name(),
    };
    let direction = flow.direction.map_or("", |direction| match direction {
        Direction::Egress => "egress",
        Direction::Ingress => "ingress",
    });
    match flow.reason {
        None if flow.allowed_by.is_empty() => "no policy isolates a pod of the node".to_owned(),
        None => {
            let by = flow.allowed_by.iter().map(ToString::to_string);
            by.collect::<Vec<_>>().join(", ")
        }
        Some(Reason::Policy) => {
            let policies = flow.isolated_by.join(", ");
            match &flow.nearest {
                Some(nearest) => {
                    format!("{direction}, isolated by {policies}; nearest is {nearest}")
                }
                None => format!("{direction}, isolated by {policies}, which have no rule"),
            }
        }
        Some(Reason::UnknownPod) => format!("{direction}: {subject} is no pod that is known yet"),
        Some(Reason::FalseSource) => "the source is not an address of its sender".to_owned(),
        Some(Reason::Changed) if direction.is_empty() => "policies have changed since".to_owned(),
        Some(Reason::Changed) => format!("{direction}, by policies that have changed since"),
    }
}
