//! A first file of tests: all that is allowed and refused today, so that any change fails.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use portcullis_core::net::{Family, IpNet, IpRange};
use portcullis_core::reach::{Allowed, Unit};

use super::ports::Claim;
use super::world::{Counts, Open, World, everywhere};
use crate::ends::{Target, shown_pod};
use crate::groups::{cidrs, complement, cover};

const HEAD: &str = "\
# What the policies allow and refuse today. Any change of it fails one of these tests.
# Keep what is meant, cut the rest, and give what you keep a `name:` that says what it is for.
# Add `manifests:` with their path from this file, and -f is not needed.
tests:
";

/// The widest line that a list is kept on.
const WIDTH: usize = 100;

/// Pods that go by one name, or addresses; they fare alike.
struct Atom {
    unit: usize,
    pods: Vec<usize>,
    ranges: Vec<IpRange>,
    /// What a test calls it, if it is of pods.
    name: String,
}

/// What may be opened to one unit from each, and what depends on a fact that is missing: `None`
/// where there is nothing to say.
type Column = Vec<Option<[Claim; 2]>>;
/// The columns of a unit: one for both families, or one for each.
type Columns = Vec<(Option<Family>, Column)>;

/// Tests of everything that there is in a world; `None` where that is nothing.
pub(super) fn text(mut world: World<'_>) -> Option<String> {
    let units = world.units.clone();
    let atoms = atoms(&world, &units);
    let rows: Vec<Vec<Allowed>> =
        units.iter().map(|source| world.reach.unit_row(&units, source)).collect();
    let mut by_columns: Vec<(Columns, Vec<usize>)> = Vec::new();
    for (j, to) in units.iter().enumerate() {
        let columns = columns(&world, &units, &rows, j);
        let testable = |from: &Unit| world.example(from, to, None).is_some();
        let pods = |from: &&Unit| !from.pods.is_empty() || !to.pods.is_empty();
        if !units.iter().filter(pods).any(testable) {
            continue;
        }
        match by_columns.iter_mut().find(|(known, _)| *known == columns) {
            Some((_, of)) => of.push(j),
            None => by_columns.push((columns, vec![j])),
        }
    }
    let page = Page { world: &world, atoms: &atoms };
    let mut text = HEAD.to_owned();
    for (number, (columns, to)) in by_columns.iter().enumerate() {
        if number > 0 {
            text.push('\n');
        }
        page.section(columns, to, &mut text);
    }
    (!by_columns.is_empty()).then_some(text)
}

fn atoms(world: &World<'_>, units: &[Unit]) -> Vec<Atom> {
    let mut unit_of = BTreeMap::new();
    for (i, unit) in units.iter().enumerate() {
        unit_of.extend(unit.pods.iter().map(|pod| (*pod, i)));
    }
    let mut atoms = Vec::new();
    let mut done = BTreeSet::new();
    for (pod, unit) in &unit_of {
        if done.contains(pod) {
            continue;
        }
        let owner = &world.cluster.pods[*pod];
        let (namespace, kinds) = (&owner.namespace, owner.workload.as_ref());
        let pods_of = |name: &str| match world.names.find(name, namespace) {
            Ok(Target::Pod(pod)) => vec![pod],
            Ok(Target::Workload(pods)) => {
                pods.into_iter().filter(|pod| unit_of.contains_key(pod)).collect()
            }
            _ => Vec::new(),
        };
        let workload = kinds.and_then(|workload| {
            let kind = workload.kind.to_lowercase();
            let name = &workload.name;
            let forms = [format!("{namespace}/{name}"), format!("{namespace}/{kind}/{name}")];
            let found = forms.map(|form| (pods_of(&form), form)).into_iter();
            found.max_by_key(|(pods, form)| (pods.len(), usize::MAX - form.len()))
        });
        let alike = |pods: &[usize]| {
            pods.contains(pod) && pods.iter().all(|other| unit_of.get(other) == Some(unit))
        };
        let (pods, name) = match workload {
            Some((pods, name)) if alike(&pods) => (pods, name),
            _ => {
                let name = shown_pod(owner);
                let exact = pods_of(&name) == [*pod];
                let name = if exact { name } else { format!("{namespace}/pod/{}", owner.name) };
                (vec![*pod], name)
            }
        };
        done.extend(pods.iter().copied());
        atoms.push(Atom { unit: *unit, pods, ranges: Vec::new(), name });
    }
    for (i, unit) in units.iter().enumerate().filter(|(_, unit)| unit.pods.is_empty()) {
        let ranges = unit.addresses.clone();
        atoms.push(Atom { unit: i, pods: Vec::new(), ranges, name: String::new() });
    }
    atoms
}

/// What may be opened to a unit: for both families at once if they do not differ.
fn columns(world: &World<'_>, units: &[Unit], rows: &[Vec<Allowed>], to: usize) -> Columns {
    let cells: Vec<Vec<Open>> = (0..units.len())
        .map(|from| {
            let asked = !units[from].pods.is_empty() || !units[to].pods.is_empty();
            match rows[from][to] {
                Allowed::Alike(_) | Allowed::ByFamily(_) if asked => {
                    world.open(&units[from], &units[to], rows[from][to], None)
                }
                _ => Vec::new(),
            }
        })
        .collect();
    let cell = |from: usize, family: Option<Family>| {
        let shared = |family: Family| {
            let classes = [&units[from], &units[to]].map(|unit| unit.classes[family as usize]);
            classes[0].is_some() && classes[1].is_some()
        };
        if family.is_some_and(|family| !shared(family)) {
            return None;
        }
        let mut open = cells[from].iter();
        let open = open.find(|open| open.family.is_none() || open.family == family)?;
        Some([open.open.clone(), open.unknown.clone()])
    };
    let column = |family| (0..units.len()).map(|from| cell(from, family)).collect();
    let differ = |cells: &Vec<Open>| cells.iter().any(|open| open.family.is_some());
    match cells.iter().any(differ) {
        true => Family::ALL.into_iter().map(|f| (Some(f), column(Some(f)))).collect(),
        false => vec![(None, column(None))],
    }
}

struct Page<'a> {
    world: &'a World<'a>,
    atoms: &'a [Atom],
}

impl Page<'_> {
    fn section(&self, columns: &Columns, to: &[usize], text: &mut String) {
        let to: Vec<&Atom> = self.atoms.iter().filter(|atom| to.contains(&atom.unit)).collect();
        let targets = self.list(&to);
        let plain = targets.join(", ").replace(['{', '}', '[', ']', '"'], "").replace(": ", " ");
        text.push_str(&format!("# To {}\n", plain.replace("allBut", "but")));
        for (family, column) in columns {
            if column.iter().all(Option::is_none) {
                continue;
            }
            for (claim, answers) in blocks(column) {
                let port = port(&claim);
                // What holds whatever policies say is nothing to test.
                let decided = |from: &Atom, to: &Atom| {
                    let [from, to] = [from, to].map(|atom| self.unit(atom));
                    self.world.example(&from, &to, *family).is_some()
                };
                let those = |answer: Answer| {
                    let meant = self.atoms.iter().filter(|from| {
                        answers[from.unit] == Some(answer) && to.iter().any(|to| decided(from, to))
                    });
                    meant.collect::<Vec<&Atom>>()
                };
                let (may, may_not) = (those(Answer::Allowed), those(Answer::Refused));
                let unknown = those(Answer::Undetermined);
                let of = |sources: &[&Atom]| -> Vec<&Atom> {
                    let some = |to: &&Atom| sources.iter().any(|from| decided(from, to));
                    to.iter().copied().filter(some).collect()
                };
                if !unknown.is_empty() {
                    let (who, port) =
                        (self.list(&unknown).join(", "), port.replace("allBut", "but"));
                    text.push_str(&format!("# Not known from the input: {who} on {port}\n"));
                }
                let mut write = |keyword, from: Option<&str>, to: &[&Atom], only: Option<&str>| {
                    if to.is_empty() {
                        return;
                    }
                    let mut fields = Vec::new();
                    fields.extend(from.map(|from| ("from", from.to_owned())));
                    fields.extend([("to", flow(&self.list(to))), ("port", port.clone())]);
                    fields.extend(only.map(|only| ("onlyFrom", only.to_owned())));
                    fields.extend(family.map(|family| ("family", family.to_string())));
                    test(keyword, &fields, text);
                };
                // The shorter of the two ways to say it.
                let these = |these: &[&Atom], others: [&[&Atom]; 2]| {
                    let others = others.concat();
                    if others.is_empty() {
                        return ["all".to_owned(), "all".to_owned()];
                    }
                    let (these, others) = (flow(&self.list(these)), flow(&self.list(&others)));
                    [these, format!("{{allBut: {others}}}")]
                };
                let shorter = |[a, b]: &[String; 2]| if b.len() < a.len() { b } else { a }.clone();
                let allowed = these(&may, [&may_not, &unknown]);
                let refused = these(&may_not, [&may, &unknown]);
                // Of many ports, `reachable` asks for one.
                let exact = !claim.is_open_ended() && unknown.is_empty() && !may_not.is_empty();
                if !may.is_empty() && exact {
                    let reached = of(&may);
                    write("reachable", None, &reached, Some(&shorter(&allowed)));
                    let mut alone = of(&may_not);
                    alone.retain(|to| !reached.iter().any(|other| std::ptr::eq(*other, *to)));
                    write("deny", Some("all"), &alone, None);
                    continue;
                }
                if !may.is_empty() {
                    write("allow", Some(&shorter(&allowed)), &of(&may), None);
                }
                if !may_not.is_empty() {
                    // A node that is named can reach its own pods, whatever policies say.
                    let nodes = may_not.iter().chain(&to).any(|atom| self.has_node(atom));
                    let from = if nodes { refused[1].clone() } else { shorter(&refused) };
                    write("deny", Some(&from), &of(&may_not), None);
                }
            }
        }
    }

    fn has_node(&self, atom: &Atom) -> bool {
        let cluster = self.world.cluster;
        let mut nodes = cluster.nodes.iter().flat_map(|node| &node.addresses);
        atom.pods.iter().any(|pod| cluster.pods[*pod].host_network)
            || nodes.any(|address| atom.ranges.iter().any(|range| range.contains(*address)))
    }

    /// An atom as units are written.
    fn unit(&self, atom: &Atom) -> Unit {
        let classes = self.world.units[atom.unit].classes;
        Unit { pods: atom.pods.clone(), addresses: atom.ranges.clone(), classes }
    }

    /// The items that stand for these, in as few as can be.
    fn list(&self, atoms: &[&Atom]) -> Vec<String> {
        let mut items = Vec::new();
        let is_in = |atom: &Atom| atoms.iter().any(|other| std::ptr::eq(*other, atom));
        let namespace = |atom: &Atom| {
            atom.pods.first().map(|pod| self.world.cluster.pods[*pod].namespace.as_str())
        };
        let mut whole = BTreeSet::new();
        for atom in atoms.iter().filter(|atom| !atom.pods.is_empty()) {
            let all: Vec<&Atom> =
                self.atoms.iter().filter(|other| namespace(other) == namespace(atom)).collect();
            if all.len() > 1 && all.iter().all(|other| is_in(other)) {
                if let Some(name) = namespace(atom).filter(|name| whole.insert(*name)) {
                    items.push(format!("{name}/*"));
                }
            } else {
                items.push(atom.name.clone());
            }
        }
        items.sort();
        let ranges: Vec<IpRange> = atoms.iter().flat_map(|atom| &atom.ranges).copied().collect();
        items.extend(self.outside(ranges));
        items
    }

    /// What addresses that no pod has are called.
    fn outside(&self, mut ranges: Vec<IpRange>) -> Option<String> {
        if ranges.is_empty() {
            return None;
        }
        ranges.sort_unstable();
        let families: Vec<Family> = Family::ALL
            .into_iter()
            .filter(|f| {
                self.atoms.iter().any(|a| a.ranges.iter().any(|r| Family::of(r.first) == *f))
            })
            .collect();
        let (mut blocks, mut except, mut is_all) = (Vec::new(), Vec::new(), true);
        for family in families {
            let here = |range: &&IpRange| Family::of(range.first) == family;
            let ours: Vec<IpRange> = ranges.iter().filter(here).copied().collect();
            let Some(around) = cover(&ours) else {
                is_all = false;
                continue;
            };
            is_all &= complement(&ours, everywhere(family)).is_empty();
            let (listed, holes) = (cidrs(&ours), cidrs(&complement(&ours, around.into())));
            match holes.len() + 1 < listed.len() {
                true => {
                    blocks.push(around.to_string());
                    except.extend(holes);
                }
                false => blocks.extend(listed),
            }
        }
        let net = |text: &str| {
            let address = || text.parse::<IpAddr>().ok().map(IpNet::from);
            text.parse::<IpNet>().ok().or_else(address)
        };
        // A block by itself has the pods in it, too.
        let nobodys = |net| self.world.block(net, Counts::Perhaps).pods.is_empty();
        Some(match (blocks.as_slice(), except.as_slice()) {
            _ if is_all => "outside".to_owned(),
            ([one], []) if net(one).is_some_and(nobodys) => scalar(one),
            (blocks, []) => format!("{{outside: {}}}", flow(blocks)),
            (blocks, except) => {
                format!("{{outside: {}, except: {}}}", flow(blocks), flow(except))
            }
        })
    }
}

/// What is so of a unit on some traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Allowed,
    Refused,
    Undetermined,
}

/// The traffic of a column in parts of which the same is so for each unit.
fn blocks(column: &Column) -> Vec<(Claim, Vec<Option<Answer>>)> {
    let mut parts = vec![Claim::all()];
    let distinct: BTreeSet<&Claim> = column.iter().flatten().flatten().collect();
    for claim in distinct {
        let split = |part: &Claim| [part.and(claim), part.without(claim)];
        parts = parts.iter().flat_map(split).filter(|part| !part.is_nothing()).collect();
    }
    let mut blocks: Vec<(Claim, Vec<Option<Answer>>)> = Vec::new();
    for part in parts {
        let covers = |claim: &Claim| part.without(claim).is_nothing();
        let answer = |[open, unknown]: &[Claim; 2]| match (covers(open), covers(unknown)) {
            (true, _) => Answer::Allowed,
            (_, true) => Answer::Undetermined,
            (false, false) => Answer::Refused,
        };
        let answers: Vec<_> = column.iter().map(|cell| cell.as_ref().map(answer)).collect();
        match blocks.iter_mut().find(|(_, known)| *known == answers) {
            Some((claim, _)) => *claim = claim.or(&part),
            None => blocks.push((part, answers)),
        }
    }
    blocks
}

fn port(claim: &Claim) -> String {
    let others = claim.complement().items();
    match (others.is_empty(), claim.is_open_ended()) {
        (true, _) => "all".to_owned(),
        (_, true) => format!("{{allBut: {}}}", flow(&others)),
        (_, false) => flow(&claim.items()),
    }
}

/// One item, or a list of several.
fn flow(items: &[String]) -> String {
    match items {
        [one] => scalar(one),
        several => {
            let items: Vec<String> = several.iter().map(|item| scalar(item)).collect();
            format!("[{}]", items.join(", "))
        }
    }
}

/// A scalar of YAML as it can stand in a flow collection. What is one already is left alone.
fn scalar(text: &str) -> String {
    let quotes = text.starts_with(':')
        || text.ends_with(':')
        || text.contains(['*', '\''])
        || text == "::/0"
        || text.starts_with('[');
    if quotes && !text.starts_with('{') { format!("\"{text}\"") } else { text.to_owned() }
}

/// A test on one line, or with a field on each.
fn test(keyword: &str, fields: &[(&str, String)], text: &mut String) {
    let short: Vec<String> =
        fields.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    let short = format!("- {keyword}: {{{}}}\n", short.join(", "));
    if short.chars().count() <= WIDTH {
        text.push_str(&short);
        return;
    }
    text.push_str(&format!("- {keyword}:\n"));
    for (name, value) in fields {
        wrapped(&format!("    {name}:"), value, text);
    }
}

/// A field on a line, or with what is in it below where that is too long.
fn wrapped(name: &str, value: &str, text: &mut String) {
    let line = format!("{name} {value}\n");
    let indent = name.len() - name.trim_start_matches([' ', '-']).len();
    let inside = |open: &str, close: &str| value.strip_prefix(open)?.strip_suffix(close);
    if line.chars().count() <= WIDTH {
        text.push_str(&line);
    } else if let Some(items) = inside("[", "]") {
        text.push_str(&format!("{name}\n"));
        for item in split(items) {
            let fields = item.strip_prefix('{').and_then(|item| item.strip_suffix('}'));
            match fields.filter(|_| indent + item.chars().count() + 2 > WIDTH) {
                Some(fields) => below(&format!("{:indent$}- ", ""), fields, text),
                None => text.push_str(&format!("{:indent$}- {item}\n", "")),
            }
        }
    } else if let Some(fields) = inside("{", "}") {
        text.push_str(&format!("{name}\n"));
        below(&format!("{:1$}", "", indent + 2), fields, text);
    } else {
        text.push_str(&line);
    }
}

/// The fields of a flow mapping on lines of their own, the first after a lead.
fn below(lead: &str, fields: &str, text: &mut String) {
    for (i, field) in split(fields).into_iter().enumerate() {
        let lead = if i == 0 { lead } else { &" ".repeat(lead.len()) };
        match field.split_once(": ") {
            Some((key, value)) => wrapped(&format!("{lead}{key}:"), value, text),
            None => text.push_str(&format!("{lead}{field}\n")),
        }
    }
}

/// The items of a flow sequence or mapping, whatever is in them.
fn split(items: &str) -> Vec<&str> {
    let (mut depth, mut start, mut found) = (0_usize, 0, Vec::new());
    for (at, character) in items.char_indices() {
        match character {
            '[' | '{' => depth += 1,
            ']' | '}' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                found.push(items[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    found.push(items[start..].trim());
    found
}

#[cfg(test)]
mod tests {
    use portcullis_core::Program;
    use portcullis_core::diff::{Diff, Side};
    use portcullis_core::model::Cluster;
    use portcullis_core::program::{Fact, Judgement};
    use portcullis_kube::{Input, Options, Source, read_values};
    use portcullis_tests::engine::{cluster, end};
    use portcullis_tests::generate::{Size, flows, world};
    use portcullis_tests::property::holds;
    use proptest::prelude::{Strategy, any};
    use proptest::test_runner::TestCaseError;

    use super::super::file;
    use super::*;

    /// What is wrong in a cluster by the tests of a file; an error where one cannot be run.
    fn problems(cluster: &Cluster, text: &str) -> Result<Vec<String>, String> {
        let mut input = Input::default();
        input.cluster = cluster.clone();
        input.namespace = "default".to_owned();
        let source = Source::Text { name: "tests.yaml".to_owned(), text: text.to_owned() };
        let (values, mut diagnostics) = read_values(&[source], &Options::default());
        let files = file::read(&values, &mut diagnostics);
        if let Some(diagnostic) = diagnostics.first() {
            return Err(diagnostic.to_string());
        }
        let program = Program::compile(cluster);
        let mut world = World::of(&input, cluster, &program);
        let mut problems = Vec::new();
        for test in files.iter().flat_map(|file| &file.tests) {
            let judged = world.judge(test).map_err(|diagnostic| diagnostic.to_string())?;
            // Saying why must not fail either.
            judged
                .iter()
                .filter_map(|p| p.flow)
                .for_each(|flow| assert!(!world.why(flow).is_empty()));
            problems.extend(judged.into_iter().map(|problem| problem.message));
        }
        Ok(problems)
    }

    fn init(cluster: &Cluster) -> Option<String> {
        let mut input = Input::default();
        input.cluster = cluster.clone();
        input.namespace = "default".to_owned();
        let program = Program::compile(cluster);
        text(World::of(&input, cluster, &program))
    }

    /// Whether a connection that is tried, and of which one state is sure, fares otherwise in the
    /// other.
    fn differ(sure: &Cluster, other: &Cluster, world: &portcullis_tests::oracle::World) -> bool {
        let programs = [sure, other].map(Program::compile);
        flows(world, 20_000).iter().any(|flow| {
            let (source, destination) = (end(flow.source), end(flow.destination));
            let paths = programs[0].paths(source, destination);
            paths.zip(programs[1].paths(source, destination)).any(|(path, other)| {
                let facts = programs[0].missing(&path, flow.traffic);
                // A node that may be a pod's own is nothing that is tested among many.
                let sure = facts.iter().all(|fact| matches!(fact, Fact::Node(_)));
                let passes = |i: usize, path| programs[i].path_passes(path, flow.traffic);
                let (before, after) = (passes(0, &path), passes(1, &other));
                sure && before != after
                    && programs[0].judge(&path, flow.traffic) != Judgement::Undetermined
            })
        })
    }

    /// Whether two states are the same, also in what no connection shows: a pod and itself.
    fn equal(a: &Cluster, b: &Cluster) -> bool {
        let programs = [a, b].map(Program::compile);
        let mut diff = Diff::of([a, b], [&programs[0], &programs[1]]);
        (0..diff.joints.len()).all(|source| {
            let row = diff.row(source);
            row.iter().all(|[a, b]| diff.sets(Side::Old, *a) == diff.sets(Side::New, *b))
        })
    }

    #[test]
    fn a_first_file_holds_at_once_and_fails_when_a_connection_opens_or_closes() {
        let small = Size { namespaces: 2, nodes: 2, pods: 5, policies: 4 };
        let worlds = (world(small), any::<proptest::sample::Index>());
        let opened_or_closed = std::cell::Cell::new(0);
        holds(
            worlds.prop_filter("no policy", |(w, _)| !w.policies.is_empty()),
            |(world, which)| {
                let before = cluster(&world);
                let Some(text) = init(&before) else { return Ok(()) };
                let fail = |why: String| TestCaseError::fail(format!("{why}\n{text}\n{before:#?}"));
                match problems(&before, &text) {
                    Ok(problems) if problems.is_empty() => {}
                    other => return Err(fail(format!("at once: {other:?}"))),
                }
                assert_eq!(init(&before).as_ref(), Some(&text));
                let mut after = before.clone();
                after.policies.remove(which.index(after.policies.len()));
                // Both ways: what a removal opens, an addition closes.
                for (from, to) in [(&before, &after), (&after, &before)] {
                    let differs = differ(from, to, &world);
                    opened_or_closed.set(opened_or_closed.get() + usize::from(differs));
                    let Some(text) = init(from) else { continue };
                    match problems(to, &text) {
                        Ok(problems) if problems.is_empty() && !differs => {}
                        Ok(problems) if !problems.is_empty() && !equal(from, to) => {}
                        other => return Err(fail(format!("differs {differs}: {other:?}\n{text}"))),
                    }
                }
                Ok(())
            },
        );
        assert!(opened_or_closed.get() > 20, "only {} changes", opened_or_closed.get());
    }
}
