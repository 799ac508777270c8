//! The matrix: what was predicted beside what was observed, for every pair and port.

use std::collections::{BTreeMap, BTreeSet};

use portcullis_core::net::{Family, Traffic};
use portcullis_lab::{Kind, Observation, Plan};

use crate::style::{ALLOWED, BOLD, DIM, ERROR, REFUSED};

/// Predicted, and observed; `None` where it neither passed nor was refused.
type Cell = (bool, Option<bool>);
/// A cell for each kind of traffic; `None` where the pair was not tried on it.
type Cells = Vec<Option<Cell>>;

struct Row {
    from: String,
    to: String,
    cells: Cells,
}

/// Most rows before those that are open on every port are left out.
const MANY_ROWS: usize = 24;
/// Most rows in any case; `-v` prints all.
const MOST_ROWS: usize = 200;

/// The matrix as text. Pods of one workload that fare alike share a row, and so do hosts outside.
/// `-v` has a row for every pair.
pub(crate) fn text(
    plan: &Plan,
    observations: &[Observation],
    verbose: bool,
    width: usize,
) -> String {
    let traffics: Vec<Traffic> =
        observations.iter().map(|o| o.probe.traffic).collect::<BTreeSet<_>>().into_iter().collect();
    let mut rows = rows(plan, observations, &traffics, verbose);
    let all = rows.len();
    let mut note = String::new();
    if rows.len() > MANY_ROWS && !verbose {
        rows.retain(|row| row.cells.iter().flatten().any(|cell| *cell != (true, Some(true))));
        note = format!("{} rows that are open on every port are left out", all - rows.len());
        if rows.len() > MOST_ROWS {
            note.push_str(&format!(", and {} others", rows.len() - MOST_ROWS));
            rows.truncate(MOST_ROWS);
        }
        note.push_str("; -v shows them\n");
    }
    let from = rows.iter().map(|r| r.from.chars().count()).max().unwrap_or(0).max(4);
    let to = rows.iter().map(|r| r.to.chars().count()).max().unwrap_or(0).max(2);
    let mut text = String::new();
    let mut first = 0;
    while first < traffics.len() {
        let mut used = from + to + 4;
        let fits = |t: &&Traffic| {
            used += 1 + space(**t);
            used <= width
        };
        let last = first + traffics[first..].iter().take_while(fits).count().max(1);
        let columns = &traffics[first..last];
        let (protocols, ports) = header(columns);
        let lead = " ".repeat(from + 4 + to);
        let (protocols, ports) = (format!("{lead}{protocols}"), ports.trim_end());
        text.push_str(&format!("{BOLD}{}{BOLD:#}\n", protocols.trim_end()));
        text.push_str(&format!("{BOLD}{:<from$}    {:<to$}{ports}{BOLD:#}\n", "FROM", "TO"));
        for row in &rows {
            text.push_str(&format!("{:<from$} -> {:<to$}", row.from, row.to));
            let mut pad = 0;
            for (traffic, cell) in columns.iter().zip(&row.cells[first..last]) {
                text.push_str(&format!("{} {}", " ".repeat(pad), show(*cell)));
                pad = space(*traffic) - 2;
            }
            text.push('\n');
        }
        text.push('\n');
        first = last;
    }
    if !note.is_empty() {
        text.push_str(&format!("{DIM}{note}{DIM:#}"));
    }
    let unclear = rows.iter().flat_map(|row| row.cells.iter().flatten()).any(|c| c.1.is_none());
    let neither = if unclear { format!(", {ERROR}?{ERROR:#} is neither") } else { String::new() };
    let legend = format!(
        "{ALLOWED}✓{ALLOWED:#} passes, {REFUSED}✗{REFUSED:#} is refused{neither}: \
         first as predicted, then as observed\n"
    );
    text + &legend
}

/// The columns that a kind of traffic takes.
fn space(traffic: Traffic) -> usize {
    match traffic {
        Traffic::Port(_, port) => port.to_string().len().max(4),
        Traffic::Other => traffic.to_string().len(),
    }
}

/// Two lines: each protocol above its first port, and the ports.
fn header(traffics: &[Traffic]) -> (String, String) {
    let (mut protocols, mut ports) = (String::new(), String::new());
    let mut before = None;
    for traffic in traffics {
        let (protocol, port) = match traffic {
            Traffic::Port(protocol, port) => (Some(*protocol), port.to_string()),
            Traffic::Other => (None, traffic.to_string()),
        };
        let shown = match protocol.filter(|_| protocol != before) {
            Some(protocol) => protocol.to_string(),
            None => String::new(),
        };
        before = protocol;
        let space = space(*traffic);
        protocols.push_str(&format!(" {shown:<space$}"));
        ports.push_str(&format!(" {port:<space$}"));
    }
    (protocols, ports)
}

fn show(cell: Option<Cell>) -> String {
    let mark = |passes| if passes { '✓' } else { '✗' };
    match cell {
        None => format!("{DIM}- {DIM:#}"),
        Some((predicted, Some(observed))) if predicted == observed => {
            let style = if predicted { ALLOWED } else { REFUSED };
            let mark = mark(predicted);
            format!("{style}{mark}{mark}{style:#}")
        }
        Some((predicted, observed)) => {
            let observed = observed.map_or('?', mark);
            format!("{ERROR}{}{observed}{ERROR:#}", mark(predicted))
        }
    }
}

fn rows(
    plan: &Plan,
    observations: &[Observation],
    traffics: &[Traffic],
    verbose: bool,
) -> Vec<Row> {
    let column: BTreeMap<Traffic, usize> =
        traffics.iter().enumerate().map(|(i, t)| (*t, i)).collect();
    let mut pairs: BTreeMap<(usize, usize), BTreeMap<Family, Cells>> = BTreeMap::new();
    for o in observations {
        let families = pairs.entry((o.probe.source, o.destination)).or_default();
        let cells = families.entry(o.family()).or_insert_with(|| vec![None; traffics.len()]);
        cells[column[&o.probe.traffic]] = Some((o.predicted, o.passed(plan)));
    }
    let groups = Groups::of(plan, verbose);
    // By the groups of both ends, then by what happened: the pairs that it happened to.
    type Fates = Vec<((Option<Family>, Cells), Vec<(usize, usize)>)>;
    let mut fates: BTreeMap<(usize, usize), Fates> = BTreeMap::new();
    for (pair, families) in pairs {
        let fates = fates.entry((groups.of[pair.0], groups.of[pair.1])).or_default();
        let mut by_family: Vec<_> = families.into_iter().map(|(f, c)| (Some(f), c)).collect();
        if by_family.iter().all(|(_, cells)| *cells == by_family[0].1) {
            by_family.truncate(1);
            by_family[0].0 = None;
        }
        for fate in by_family {
            match fates.iter_mut().find(|(known, _)| *known == fate) {
                Some((_, pairs)) => pairs.push(pair),
                None => fates.push((fate, vec![pair])),
            }
        }
    }
    let mut rows = Vec::new();
    for ((family, cells), pairs) in fates.into_values().flatten() {
        let suffix = family.map_or(String::new(), |f| format!(" ({f})"));
        for (sources, destinations) in blocks(&pairs) {
            let to = format!("{}{suffix}", groups.label(plan, &destinations));
            rows.push(Row { from: groups.label(plan, &sources), to, cells: cells.clone() });
        }
    }
    rows
}

/// The pairs as products of sources and destinations: one if they are one, else one per source.
/// Nobody is paired with itself.
fn blocks(pairs: &[(usize, usize)]) -> Vec<(Vec<usize>, Vec<usize>)> {
    let mut by_source: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (source, destination) in pairs {
        by_source.entry(*source).or_default().push(*destination);
    }
    let sources: Vec<usize> = by_source.keys().copied().collect();
    let all: BTreeSet<usize> = by_source.values().flatten().copied().collect();
    let whole = |(source, to): (&usize, &Vec<usize>)| {
        to.len() == all.len() - usize::from(all.contains(source))
    };
    if by_source.iter().all(whole) {
        return vec![(sources, all.into_iter().collect())];
    }
    by_source.into_iter().map(|(source, to)| (vec![source], to)).collect()
}

/// Endpoints that may share a row: the pods of one workload, and the hosts outside.
struct Groups {
    /// For each endpoint its group.
    of: Vec<usize>,
    /// What a whole group is called, and how many endpoints it has.
    names: Vec<(String, usize)>,
}

/// Most characters of a label that lists names.
const LABEL: usize = 32;

impl Groups {
    fn of(plan: &Plan, each_alone: bool) -> Groups {
        let mut workloads = BTreeMap::new();
        for pod in &plan.cluster.pods {
            if let Some(workload) = &pod.workload {
                let name = format!("{}/{}", pod.namespace, pod.name);
                workloads.insert(name, format!("{}/{}", pod.namespace, workload.name));
            }
        }
        let mut groups = Groups { of: Vec::new(), names: Vec::new() };
        let mut known = BTreeMap::new();
        for endpoint in &plan.endpoints {
            let next = groups.names.len();
            let name = match endpoint.kind {
                _ if each_alone => &endpoint.name,
                Kind::External => "outside",
                Kind::Pod => workloads.get(&endpoint.name).unwrap_or(&endpoint.name),
                Kind::Node => &endpoint.name,
            };
            // A pod may be called like a workload, but not like one of another kind of endpoint.
            let group = *known.entry((endpoint.kind, name.to_owned())).or_insert(next);
            if group == next {
                groups.names.push((name.to_owned(), 0));
            }
            groups.names[group].1 += 1;
            groups.of.push(group);
        }
        groups
    }

    /// What endpoints of one group are called together.
    fn label(&self, plan: &Plan, endpoints: &[usize]) -> String {
        let name = |i: &usize| plan.endpoints[*i].name.as_str();
        let [first, rest @ ..] = endpoints else { return String::new() };
        if rest.is_empty() {
            return name(first).to_owned();
        }
        let (group, size) = &self.names[self.of[*first]];
        if endpoints.len() == *size {
            let what = if plan.endpoints[*first].kind == Kind::External { "hosts" } else { "pods" };
            return format!("{group} ({size} {what})");
        }
        let mut label = name(first).to_owned();
        for (i, endpoint) in rest.iter().enumerate() {
            let name = name(endpoint);
            if label.len() + name.len() + 2 > LABEL {
                return format!("{label} +{}", rest.len() - i);
            }
            label.push_str(", ");
            label.push_str(name);
        }
        label
    }
}
