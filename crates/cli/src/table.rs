//! Tables whose cells are lists: columns that fit the reader, and Markdown.

use crate::style::BOLD;

/// Rows of cells; each cell is a list that may take several lines.
pub(crate) struct Table {
    pub(crate) headers: &'static [&'static str],
    pub(crate) rows: Vec<Vec<Vec<String>>>,
}

/// Between columns.
const GAP: usize = 3;

impl Table {
    /// Cuts lists that are longer than this, and says how much is left out.
    pub(crate) fn shorten(&mut self, most: usize) {
        for cell in self.rows.iter_mut().flatten().filter(|cell| cell.len() > most) {
            let more = cell.len() + 1 - most;
            cell.truncate(most - 1);
            cell.push(format!("… and {more} more"));
        }
    }

    /// Columns. Lists go on below where the width asks for it; a word is never cut.
    pub(crate) fn text(&self, width: usize) -> String {
        let widths = self.widths(width);
        let mut text = String::new();
        let headers: Vec<Vec<String>> =
            self.headers.iter().map(|header| vec![(*header).to_owned()]).collect();
        text.push_str(&format!("{BOLD}{}{BOLD:#}\n", line(&headers, 0, &widths)));
        for row in &self.rows {
            let cells: Vec<Vec<String>> =
                row.iter().zip(&widths).map(|(cell, width)| wrapped(cell, *width)).collect();
            for i in 0..cells.iter().map(Vec::len).max().unwrap_or(0) {
                text.push_str(&line(&cells, i, &widths));
                text.push('\n');
            }
        }
        text
    }

    fn widths(&self, width: usize) -> Vec<usize> {
        let columns = 0..self.headers.len();
        let natural = |c: usize| {
            let cells = self.rows.iter().map(|row| chars(&row[c].join(", ")));
            cells.max().unwrap_or(0).max(chars(self.headers[c]))
        };
        // No word is cut, so none of them goes below its longest.
        let least = |c: usize| {
            let items = self.rows.iter().flat_map(|row| &row[c]);
            let words = items.flat_map(|item| item.split(' ')).map(|word| chars(word) + 1);
            words.max().unwrap_or(0).max(chars(self.headers[c]))
        };
        let mut widths: Vec<usize> = columns.clone().map(natural).collect();
        let least: Vec<usize> = columns.map(least).collect();
        let gaps = GAP * widths.len().saturating_sub(1);
        while widths.iter().sum::<usize>() + gaps > width {
            let wide = widths.iter_mut().zip(&least).filter(|(width, least)| **width > **least);
            let Some((widest, _)) = wide.max() else { break };
            *widest -= 1;
        }
        widths
    }

    /// Comma-separated values, with the headers in lower case.
    pub(crate) fn csv(&self) -> String {
        let line = |fields: Vec<String>| format!("{}\n", fields.join(","));
        let mut text = line(self.headers.iter().map(|header| header.to_lowercase()).collect());
        for cells in &self.rows {
            text.push_str(&line(cells.iter().map(|cell| csv_field(&cell.join(", "))).collect()));
        }
        text
    }

    pub(crate) fn markdown(&self) -> String {
        let row = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
        let headers = self.headers.iter().map(|header| (*header).to_owned()).collect();
        let mut text = row(headers);
        text.push_str(&row(vec!["---".to_owned(); self.headers.len()]));
        for cells in &self.rows {
            let escape =
                |cell: &Vec<String>| cell.join(", ").replace('*', "\\*").replace('|', "\\|");
            text.push_str(&row(cells.iter().map(escape).collect()));
        }
        text
    }
}

/// A field of comma-separated values, quoted where it must be.
pub(crate) fn csv_field(text: &str) -> String {
    match text.contains([',', '"', '\n']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}

fn chars(text: &str) -> usize {
    text.chars().count()
}

/// The list in lines of a width: between items, and within one that is longer than a line.
fn wrapped(items: &[String], width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut add = |part: &str, fresh: bool| match lines.last_mut() {
        Some(line) if !fresh && chars(line) + 1 + chars(part) <= width => {
            line.push(' ');
            line.push_str(part);
        }
        _ => lines.push(part.to_owned()),
    };
    for (i, item) in items.iter().enumerate() {
        let item = if i + 1 < items.len() { format!("{item},") } else { item.clone() };
        if chars(&item) <= width {
            add(&item, false);
        } else {
            item.split(' ').enumerate().for_each(|(n, word)| add(word, n == 0));
        }
    }
    lines
}

fn line(cells: &[Vec<String>], number: usize, widths: &[usize]) -> String {
    let mut text = String::new();
    for (cell, width) in cells.iter().zip(widths) {
        let part = cell.get(number).map_or("", String::as_str);
        text.push_str(&format!("{part:<width$}{:GAP$}", ""));
    }
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_go_on_below_where_the_line_is_full() {
        let cell = |items: &[&str]| items.iter().map(|i| (*i).to_owned()).collect::<Vec<_>>();
        let mut table = Table {
            headers: &["FROM", "PORTS"],
            rows: vec![vec![cell(&["shop/web", "shop/api", "shop/db"]), cell(&["80/TCP"])]],
        };
        let lines = |table: &Table| {
            let text = anstream::adapter::strip_str(&table.text(28)).to_string();
            text.lines().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(
            lines(&table),
            ["FROM                 PORTS", "shop/web, shop/api,  80/TCP", "shop/db"]
                .map(|l| l.replace("FROM                 P", "FROM                  P"))
                .map(|l| l.replace("api,  80", "api,   80"))
        );
        table.shorten(2);
        assert_eq!(lines(&table)[1], "shop/web,             80/TCP");
        assert_eq!(lines(&table)[2], "… and 2 more");
    }
}
