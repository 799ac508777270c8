//! `portcullis diff`: which connections a change opens, closes, widens and narrows.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::ExitCode;

use portcullis_core::Program;
use portcullis_core::diff::{self, Cause, Kind, MayOpen, Sets, Side};
use portcullis_core::fold::fold;
use portcullis_core::model::{Cluster, Policy};
use portcullis_core::net::{Family, IpNet, Protocol, Traffic};
use portcullis_core::portset::PortSet;
use portcullis_core::program::{End, Verdict};
use portcullis_kube::live::Snapshot;
use portcullis_kube::{Options, Source};
use serde::Serialize;

use crate::doubts::{self, Doubts, by_family};
use crate::ends::{Flow, Names};
use crate::equivalence;
use crate::focus::{Focus, FocusArgs};
use crate::git::{self, Range};
use crate::graph::{self, Picture, Scope, Tell, Told};
use crate::groups::{By, EndReport, Groups, Members};
use crate::input::{LiveArgs, is_stdin, sound, source};
use crate::output::{json, plural, print, terminal_width};
use crate::reach::{AllowedReport, PerhapsReport, rule};
use crate::style::DIM;
use crate::table::Table;
use crate::trouble::Trouble;

/// Which connections does a change open and close?
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit codes: 0 no difference, 1 differences (or those of --fail-on), \
                        2 the command could not do its work.\n\n\
                        Examples:\n  \
                        portcullis diff old/ new/ -o md --fail-on widened\n  \
                        portcullis diff --git main...HEAD -R -f deploy/\n  \
                        portcullis diff --live -f policies.yaml\n  \
                        portcullis diff old/ new/ --equivalent")]
pub(crate) struct Diff {
    /// Manifests before: a file or a directory
    #[arg(required_unless_present_any = ["git", "live"])]
    old: Option<PathBuf>,
    /// Manifests after
    #[arg(required_unless_present_any = ["git", "live"])]
    new: Option<PathBuf>,
    /// Two git revisions: A..B, A...B (B and where it left A), or A (and the files as they are)
    #[arg(long, value_name = "A..B", conflicts_with_all = ["old", "new"])]
    git: Option<Range>,
    /// The cluster of the kubeconfig, as it is and with the manifests of -f applied to it
    #[arg(long, conflicts_with_all = ["old", "new", "git"])]
    live: bool,
    /// What to read of each revision, or to apply: a file or a directory; may be repeated
    #[arg(short = 'f', long, value_name = "PATH", default_value = ".",
        conflicts_with_all = ["old", "new"])]
    filename: Vec<PathBuf>,
    /// Read directories with everything below them
    #[arg(short = 'R', long)]
    recursive: bool,
    /// Only connections from or to pods of this namespace, which is also that of objects that give
    /// none
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,
    #[command(flatten)]
    focus: FocusArgs,
    /// Most pods that one workload is expanded to
    #[arg(long, default_value_t = 2, value_name = "N")]
    replicas: u32,
    /// Where pods without an address will get theirs from; may be repeated
    #[arg(long, value_name = "CIDR")]
    pod_cidr: Vec<IpNet>,
    /// Which differences make the exit code 1
    #[arg(long, value_enum, default_value_t = FailOn::Any)]
    fail_on: FailOn,
    /// Only whether anything differs: for these pods, and for any pods that could exist, whatever
    /// their namespace
    #[arg(long, conflicts_with = "selector")]
    equivalent: bool,
    #[command(flatten)]
    cluster: LiveArgs,
    /// Which pods go by one name
    #[arg(long, value_enum, default_value_t = By::Workload)]
    by: By,
    /// Output format
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum FailOn {
    /// Something is allowed that was not
    Widened,
    /// Something is refused that was allowed
    Narrowed,
    /// Either
    Any,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people
    Table,
    /// For programs; the shape is stable
    Json,
    /// A table for a pull request
    Md,
    /// A picture of what opens and what closes
    Svg,
    /// The same for Graphviz
    Dot,
    /// The same for Mermaid
    Mermaid,
    /// The same as a page to search and click in
    Html,
}

/// What becomes of a pair, and why.
type Change = (Sets, Sets, Vec<Cause>);

impl Diff {
    pub(crate) fn run(self) -> Result<ExitCode, Trouble> {
        let snapshot = self.live.then(|| self.cluster.snapshot()).transpose()?;
        let of_context = snapshot.as_ref().map(|snapshot| snapshot.namespace.clone());
        let defaults = Options::default();
        let options = Options {
            namespace: self.namespace.clone().or(of_context).unwrap_or(defaults.namespace),
            recursive: self.recursive,
            replicas: self.replicas,
            pod_cidrs: self.pod_cidr.clone(),
            ..Options::default()
        };
        let [old, new] = match snapshot {
            Some(snapshot) => self.applied(snapshot, &options)?,
            None => self.states()?,
        };
        let inputs = [
            sound(portcullis_kube::load(&old, &options))?,
            sound(portcullis_kube::load(&new, &options))?,
        ];
        let clusters = inputs.each_ref().map(|input| &input.cluster);
        if !self.equivalent && clusters.iter().all(|cluster| cluster.pods.is_empty()) {
            let instead = ", or ask with --equivalent about any pods that could exist";
            return Err(Trouble::NoPods(instead));
        }
        let programs = clusters.map(Program::compile);
        let mut diff = diff::Diff::of(clusters, programs.each_ref());
        let groups = groups(clusters, &diff, self.by);
        let focus = match self.equivalent {
            true => Focus::default(),
            false => self.focus.focus(self.namespace.as_ref(), &clusters)?,
        };
        let asked = apart(&mut diff, clusters, &focus);
        let (table, by_number) = numbered(&mut diff, &asked);
        let changes = changes(&diff, &table, &by_number);
        if self.equivalent {
            return equivalence::answer(clusters, &changes, self.output);
        }
        if let (true, Some(policies)) = (changes.is_empty(), unlike(clusters)) {
            anstream::eprintln!(
                "{DIM}note{DIM:#}: no difference for these pods, and yet not the same policies \
                 ({policies}): --equivalent tells whether other pods would notice"
            );
        }
        let page = Page::of(clusters, programs.each_ref(), &diff, groups);
        match self.output {
            Format::Svg | Format::Dot | Format::Mermaid | Format::Html => {
                let format = match self.output {
                    Format::Dot => graph::Format::Dot,
                    Format::Mermaid => graph::Format::Mermaid,
                    Format::Html => graph::Format::Html,
                    _ => graph::Format::Svg,
                };
                let names = clusters.map(Names::of);
                let states = [0, 1].map(|side| graph::Asked {
                    input: &inputs[side],
                    program: &programs[side],
                    names: &names[side],
                });
                let tell = Changes {
                    page: &page,
                    by_number,
                    states,
                    explained: format == graph::Format::Html,
                };
                graph::print(&tell.picture(table, self.by == By::Namespace), format)?;
            }
            Format::Json => {
                json(&changes.iter().map(|change| page.report(change)).collect::<Vec<_>>())?;
            }
            Format::Md | Format::Table if changes.is_empty() => print("no difference\n")?,
            Format::Md => print(&page.table(&changes).markdown())?,
            Format::Table => {
                let text = page.table(&changes).text(terminal_width());
                let count = plural(changes.len(), "difference");
                let footnote = page.footnote(&changes);
                print(&format!("{text}{count}\n{footnote}"))?;
            }
        }
        let counts = |row: &Row| match self.fail_on {
            FailOn::Any => true,
            FailOn::Widened => row.kind().gains(),
            FailOn::Narrowed => row.kind().loses(),
        };
        Ok(if changes.iter().any(counts) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    /// A cluster, and the same with manifests applied.
    fn applied(&self, snapshot: Snapshot, options: &Options) -> Result<[Vec<Source>; 2], Trouble> {
        if self.filename.iter().any(|path| is_stdin(path)) {
            return Err(Trouble::StdinTwice);
        }
        let manifests: Vec<Source> = self.filename.iter().cloned().map(source).collect();
        let beneath = snapshot.clone().beneath(&portcullis_kube::load(&manifests, options));
        let new = std::iter::once(Source::Live(beneath)).chain(manifests).collect();
        Ok([vec![Source::Live(snapshot)], new])
    }

    /// Where the two states come from.
    fn states(&self) -> Result<[Vec<Source>; 2], Trouble> {
        let Some(range) = &self.git else {
            let paths = [&self.old, &self.new].map(|path| path.iter().cloned());
            if paths.clone().iter_mut().flatten().filter(|path| is_stdin(path)).count() > 1 {
                return Err(Trouble::StdinTwice);
            }
            return Ok(paths.map(|path| path.map(source).collect()));
        };
        let (old, new) = range.revisions()?;
        let read = |revision: &str| git::sources(revision, &self.filename, self.recursive);
        let new = match new {
            Some(revision) => read(&revision)?,
            None => self.filename.iter().cloned().map(source).collect(),
        };
        Ok([read(&old)?, new])
    }
}

/// The policies that are not the same in both states, or in one of them only; `None` without any.
fn unlike(clusters: [&Cluster; 2]) -> Option<String> {
    let by_name = clusters.map(|cluster| {
        let name = |policy: &Policy| format!("{}/{}", policy.namespace, policy.name);
        cluster.policies.iter().map(|p| (name(p), p)).collect::<BTreeMap<_, _>>()
    });
    let [old, new] = &by_name;
    let names: BTreeSet<&String> = by_name.iter().flat_map(BTreeMap::keys).collect();
    let unlike = names.into_iter().filter(|name| old.get(*name) != new.get(*name));
    let names: Vec<String> = doubts::shortened(unlike.cloned().collect());
    (!names.is_empty()).then(|| names.join(", "))
}

fn groups(clusters: [&Cluster; 2], diff: &diff::Diff<'_>, by: By) -> Groups {
    let mut classes = vec![0; diff.pods.len()];
    for (class, joint) in diff.joints.iter().enumerate() {
        joint.pods.iter().for_each(|pod| classes[*pod] = class);
    }
    let pods = diff.pods.iter().enumerate().filter_map(|(number, [old, new])| {
        let old = old.map(|i| &clusters[0].pods[i]);
        let pod = new.map(|i| &clusters[1].pods[i]).or(old)?;
        Some((number, pod, classes[number]))
    });
    let outside = |family: &Family| {
        let mut ranges = diff.joints.iter().flat_map(|joint| &joint.addresses);
        ranges.any(|range| Family::of(range.first) == *family)
    };
    Groups::of(pods, Family::ALL.into_iter().filter(outside).collect(), by)
}

/// Pairs that share a change.
pub(crate) struct Row {
    from: Members,
    to: Members,
    change: Change,
}

impl Row {
    fn kind(&self) -> Kind {
        Kind::between(&self.change.0, &self.change.1)
    }
}

/// Puts the pods that are asked about into joints of their own, and tells which these are.
fn apart(diff: &mut diff::Diff<'_>, clusters: [&Cluster; 2], focus: &Focus) -> Vec<bool> {
    if focus.is_all() {
        return vec![true; diff.joints.len()];
    }
    let is_asked = |pod: &usize| {
        let states = clusters.iter().zip(diff.pods[*pod]);
        let mut pods = states.filter_map(|(cluster, pod)| Some(&cluster.pods[pod?]));
        pods.any(|pod| focus.includes(pod))
    };
    let (mut joints, mut asked) = (Vec::new(), Vec::new());
    for joint in &diff.joints {
        let (inside, others): (Vec<usize>, Vec<usize>) =
            joint.pods.iter().partition(|p| is_asked(p));
        for (is_inside, pods) in [(true, inside), (false, others)] {
            if !pods.is_empty() || !is_inside && joint.pods.is_empty() {
                let mut part = joint.clone();
                part.pods = pods;
                joints.push(part);
                asked.push(is_inside);
            }
        }
    }
    diff.joints = joints;
    asked
}

/// The change of every pair of joints of which one is asked about by its number, and what the
/// numbers mean; 0 is none.
fn numbered(diff: &mut diff::Diff<'_>, asked: &[bool]) -> (Vec<Vec<u32>>, BTreeMap<u32, Change>) {
    let mut numbers: BTreeMap<Change, u32> = BTreeMap::new();
    let mut table = Vec::with_capacity(diff.joints.len());
    for source in 0..diff.joints.len() {
        let row = diff.row(source).into_iter().enumerate().map(|(destination, values)| {
            let [old, new] = [0, 1].map(|side| diff.sets(Side::ALL[side], values[side]));
            if old == new || !asked[source] && !asked[destination] {
                return 0;
            }
            let causes = diff.causes(source, destination, values);
            let next = numbers.len() as u32 + 1;
            *numbers.entry((old, new, causes)).or_insert(next)
        });
        table.push(row.collect());
    }
    (table, numbers.into_iter().map(|(change, number)| (number, change)).collect())
}

fn changes(
    diff: &diff::Diff<'_>,
    table: &[Vec<u32>],
    by_number: &BTreeMap<u32, Change>,
) -> Vec<Row> {
    let members = |joints: &[usize]| {
        let part = |joint: &usize| {
            let diff::Joint { pods, addresses, .. } = &diff.joints[*joint];
            (pods, addresses)
        };
        let mut all = Members::of(joints.iter().map(part));
        all.pods.dedup();
        all
    };
    let mut rows = Vec::new();
    for product in fold(table.iter().cloned()) {
        let (from, to) = (members(&product.sources), members(&product.destinations));
        // A pod's traffic to itself passes always.
        if from.is_one_pod() && from == to {
            continue;
        }
        rows.push(Row { from, to, change: by_number[&product.value].clone() });
    }
    rows
}

struct Page<'a> {
    clusters: [&'a Cluster; 2],
    programs: [&'a Program; 2],
    diff: &'a diff::Diff<'a>,
    /// By index in the cluster of a state: the number of a pod in the diff.
    numbers: [BTreeMap<usize, usize>; 2],
    groups: Groups,
}

impl<'a> Page<'a> {
    fn of(
        clusters: [&'a Cluster; 2],
        programs: [&'a Program; 2],
        diff: &'a diff::Diff<'a>,
        groups: Groups,
    ) -> Page<'a> {
        let mut numbers = [BTreeMap::new(), BTreeMap::new()];
        for (number, pods) in diff.pods.iter().enumerate() {
            for (numbers, pod) in numbers.iter_mut().zip(pods) {
                numbers.extend(pod.map(|pod| (pod, number)));
            }
        }
        Page { clusters, programs, diff, numbers, groups }
    }

    /// Adds what keeps it from being known whether the ends of a row may open this in a state.
    fn doubt(&self, doubts: &mut Doubts, row: &Row, side: Side, more: &PortSet) {
        let side = side as usize;
        let ends = |members: &Members| {
            let pods = members.pods.iter().filter_map(|pod| self.diff.pods[*pod][side]);
            let addresses = members.addresses.iter().map(|range| End::Address(range.first));
            pods.map(End::Pod).chain(addresses).collect::<Vec<_>>()
        };
        let (from, to) = (ends(&row.from), ends(&row.to));
        let first = |ends: &[End], not: &End| ends.iter().find(|end| *end != not).copied();
        let each = from.iter().filter_map(|end| Some([*end, first(&to, end)?]));
        let other = to.iter().filter_map(|end| Some([first(&from, end)?, *end]));
        for ends in each.chain(other) {
            let of = (self.clusters[side], self.programs[side]);
            doubts.add(of, ends, more, |pod| self.numbers[side][&pod]);
        }
    }

    /// What keeps the doubtful parts of changes from being known, in either state.
    fn footnote(&self, rows: &[Row]) -> String {
        let mut doubts = Doubts::default();
        for row in rows {
            for (side, sets) in Side::ALL.into_iter().zip([&row.change.0, &row.change.1]) {
                let more = sets.iter().map(MayOpen::doubtful).find(|more| !more.is_nothing());
                if let Some(more) = more {
                    self.doubt(&mut doubts, row, side, &more);
                }
            }
        }
        doubts.footnote(&self.groups)
    }

    fn table(&self, rows: &[Row]) -> Table {
        let mut cells: Vec<Vec<Vec<String>>> = rows
            .iter()
            .map(|row| {
                let (old, new, causes) = &row.change;
                let kind = row.kind();
                let ports = ports(old, new);
                let causes = causes.iter().map(|cause| self.cause(cause)).collect();
                let from = self.groups.describe_beside(&row.from, &row.to);
                let to = self.groups.describe_beside(&row.to, &row.from);
                vec![vec![word(kind).to_owned()], from, to, vec![ports], causes]
            })
            .collect();
        cells.sort();
        Table { headers: &["CHANGE", "FROM", "TO", "PORTS", "CAUSE"], rows: cells }
    }

    fn cause(&self, cause: &Cause) -> String {
        let policy = |side: Side, index: u32| self.policy(side, index);
        match cause {
            Cause::Rule(side, origin) => {
                let rule = rule(self.clusters[*side as usize], origin);
                match side {
                    Side::New => format!("allowed by {rule}"),
                    Side::Old => format!("was allowed by {rule}"),
                }
            }
            Cause::Isolates(Side::New, index, direction) => {
                format!("{direction} isolated by {}", policy(Side::New, *index))
            }
            Cause::Isolates(Side::Old, index, direction) => {
                format!("{direction} no longer isolated by {}", policy(Side::Old, *index))
            }
            Cause::Exists(Side::New) => "an end is new".to_owned(),
            Cause::Exists(Side::Old) => "an end is gone".to_owned(),
        }
    }

    fn policy(&self, side: Side, index: u32) -> String {
        let policy = &self.clusters[side as usize].policies[index as usize];
        format!("{}/{}", policy.namespace, policy.name)
    }

    fn report(&self, row: &Row) -> Report {
        let (old, new, causes) = &row.change;
        Report {
            change: word(row.kind()),
            from: self.groups.ends(&row.from),
            to: self.groups.ends(&row.to),
            old: self.ports_report(row, Side::Old, old),
            new: self.ports_report(row, Side::New, new),
            causes: causes.iter().map(|cause| self.cause_report(cause)).collect(),
        }
    }

    fn ports_report(&self, row: &Row, side: Side, sets: &Sets) -> Ports {
        let [v4, v6] = sets.each_ref().map(|open| {
            let more = open.doubtful();
            let perhaps = (!more.is_nothing()).then(|| {
                let mut doubts = Doubts::default();
                self.doubt(&mut doubts, row, side, &more);
                let depends_on = doubts.sentences(&self.groups);
                PerhapsReport { allowed: AllowedReport::of(&more), depends_on }
            });
            FamilyReport { allowed: AllowedReport::of(&open.surely), perhaps }
        });
        Ports { v4, v6 }
    }

    fn cause_report(&self, cause: &Cause) -> CauseReport {
        let state = |side: &Side| match side {
            Side::Old => "old",
            Side::New => "new",
        };
        let (kind, side, policy, place) = match cause {
            Cause::Rule(side, origin) => {
                ("allows", side, Some(origin.policy), Some(origin.rule_path()))
            }
            Cause::Isolates(side, policy, direction) => {
                ("isolates", side, Some(*policy), Some(direction.to_string()))
            }
            Cause::Exists(side) => ("exists", side, None, None),
        };
        let policy = policy.map(|index| self.policy(*side, index));
        CauseReport { kind, state: state(side), policy, place }
    }
}

/// The changes in words, by their numbers.
struct Changes<'a> {
    page: &'a Page<'a>,
    by_number: BTreeMap<u32, Change>,
    states: [graph::Asked<'a>; 2],
    /// Whether each change is to be explained by one connection.
    explained: bool,
}

impl Changes<'_> {
    fn picture(mut self, table: Vec<Vec<u32>>, namespaces: bool) -> Picture {
        let side = |joint: &diff::Joint| graph::Side {
            members: Members { pods: joint.pods.clone(), addresses: joint.addresses.clone() },
            open: false,
        };
        let sides = || self.page.diff.joints.iter().map(side).collect();
        let table = graph::Table::of(sides(), sides(), table);
        let title = "What opens and what closes";
        let scope = Scope { title, namespaces, refused: false, only_ends_of_flows: true };
        table.draw(&self.page.groups, &mut self, scope)
    }

    /// Why the first connection that shows it has another verdict now than it had; of those
    /// that are known in both states, or of the others.
    fn why(
        &self,
        sources: &[usize],
        destinations: &[usize],
        (old, new): (&Sets, &Sets),
        known: bool,
    ) -> String {
        let states = &self.states;
        let ends = |joint: usize| {
            let joint = &self.page.diff.joints[joint];
            let pods = joint
                .pods
                .iter()
                .take(2)
                .map(|pod| self.page.diff.pods[*pod].map(|p| p.map(End::Pod)));
            let address = graph::some_address(&joint.addresses).map(|a| [Some(End::Address(a)); 2]);
            pods.chain(address).collect::<Vec<[Option<End>; 2]>>()
        };
        let traffics = traffics(old, new);
        for source in sources.iter().flat_map(|joint| ends(*joint)) {
            for destination in destinations.iter().flat_map(|joint| ends(*joint)) {
                for traffic in &traffics {
                    let flows = [0, 1].map(|side| {
                        let (source, destination) = (source[side]?, destination[side]?);
                        Some(Flow { source, destination, traffic: *traffic })
                    });
                    let verdicts = [0, 1].map(|side| {
                        let Flow { source, destination, traffic } = flows[side]?;
                        Some(states[side].program.verdict(source, destination, traffic))
                    });
                    let is_known = !verdicts.contains(&Some(Verdict::Undetermined));
                    if verdicts[0] == verdicts[1] || source == destination || is_known != known {
                        continue;
                    }
                    let told = |side: usize| match flows[side] {
                        Some(flow) => states[side].why(flow),
                        None => "an end is not there\n".to_owned(),
                    };
                    return format!("Before: {}\nNow: {}", told(0), told(1));
                }
            }
        }
        String::new()
    }
}

impl Tell<u32> for Changes<'_> {
    fn together(&mut self, values: &BTreeSet<u32>) -> Vec<u32> {
        values.iter().copied().collect()
    }

    fn ports(&self, value: u32) -> String {
        let (old, new, _) = &self.by_number[&value];
        ports(old, new)
    }

    fn tell(&self, sources: &[usize], destinations: &[usize], value: Option<u32>) -> Told {
        let value = value.unwrap_or_default();
        let (old, new, causes) = &self.by_number[&value];
        let kind = match Kind::between(old, new) {
            Kind::Opened | Kind::Widened => graph::Kind::Opened,
            Kind::Closed | Kind::Narrowed => graph::Kind::Closed,
            Kind::Shifted => graph::Kind::Shifted,
        };
        let rules = causes.iter().map(|cause| self.page.cause(cause)).collect();
        let why = |known: bool| self.why(sources, destinations, (old, new), known);
        let sure = is_sure(old, new);
        let more = |sets: &Sets| sets.each_ref().map(MayOpen::doubtful);
        Told {
            kind,
            ports: ports(old, new),
            doubtful: !sure,
            rules,
            why: if self.explained && sure { why(true) } else { String::new() },
            doubt: if more(old) != more(new) { why(false) } else { String::new() },
        }
    }
}

/// Whether something changes however the missing facts turn out.
fn is_sure(old: &Sets, new: &Sets) -> bool {
    old.iter()
        .zip(new)
        .any(|(old, new)| !old.perhaps.covers(&new.surely) || !new.perhaps.covers(&old.surely))
}

/// Traffic at the bounds of what is allowed before and after: some of it is allowed in one only.
fn traffics(old: &Sets, new: &Sets) -> Vec<Traffic> {
    let mut traffics = Vec::new();
    for set in old.iter().chain(new).flat_map(|open| [&open.surely, &open.perhaps]) {
        match set {
            PortSet::Everything => {
                traffics.extend([Traffic::Port(Protocol::Tcp, 443), Traffic::Other]);
            }
            PortSet::Ports(ports) => {
                for p in ports {
                    let bounds = [p.first.max(1), p.last, p.last.saturating_add(1)];
                    traffics.extend(bounds.map(|port| Traffic::Port(p.protocol, port)));
                }
            }
        }
    }
    traffics
}

/// What is allowed before and after, or what is on the one side if there is nothing on the other.
fn ports(old: &Sets, new: &Sets) -> String {
    let kind = Kind::between(old, new);
    let change = |family: usize| {
        let [old, new] = [old, new].map(|sets| {
            let MayOpen { surely, perhaps } = &sets[family];
            doubts::shown(surely, perhaps)
        });
        match kind {
            Kind::Opened => new,
            Kind::Closed => old,
            _ => format!("{old} -> {new}"),
        }
    };
    let alike = |sets: &Sets| sets[0] == sets[1];
    if alike(old) && alike(new) {
        return change(0);
    }
    by_family([0, 1].map(|family| (old[family] != new[family]).then(|| change(family))))
}

fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Opened => "opens",
        Kind::Closed => "closes",
        Kind::Widened => "widens",
        Kind::Narrowed => "narrows",
        Kind::Shifted => "shifts",
    }
}

#[derive(Serialize)]
struct Report {
    change: &'static str,
    from: Vec<EndReport>,
    to: Vec<EndReport>,
    old: Ports,
    new: Ports,
    causes: Vec<CauseReport>,
}

/// What a state allows, by family.
#[derive(Serialize)]
struct Ports {
    #[serde(rename = "IPv4")]
    v4: FamilyReport,
    #[serde(rename = "IPv6")]
    v6: FamilyReport,
}

#[derive(Serialize)]
struct FamilyReport {
    #[serde(flatten)]
    allowed: AllowedReport,
    #[serde(skip_serializing_if = "Option::is_none")]
    perhaps: Option<PerhapsReport>,
}

#[derive(Serialize)]
struct CauseReport {
    kind: &'static str,
    /// The state that the policy is of.
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<String>,
    /// The rule that allows, or the direction that is isolated.
    #[serde(skip_serializing_if = "Option::is_none")]
    place: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_sure_where_it_is_one_however_missing_facts_turn_out() {
        let ports = |port: Option<u16>| {
            let ports = port.map(|p| portcullis_core::program::Ports {
                protocol: Protocol::Tcp,
                first: p,
                last: p,
            });
            PortSet::of(ports.map(Some))
        };
        let sets = |surely: Option<u16>, perhaps: Option<u16>| {
            let open =
                MayOpen { surely: ports(surely), perhaps: ports(perhaps).union(&ports(surely)) };
            [open.clone(), open]
        };
        let (nothing, perhaps, surely) =
            (sets(None, None), sets(None, Some(80)), sets(Some(80), None));
        assert!(is_sure(&nothing, &surely) && is_sure(&surely, &nothing));
        for (old, new) in [(&nothing, &perhaps), (&perhaps, &surely)] {
            assert!(!is_sure(old, new) && !is_sure(new, old));
            assert!(super::ports(old, new).contains("80/TCP?"));
        }
        // Of two ports, one for sure.
        assert!(is_sure(&perhaps, &sets(Some(443), Some(80))));
    }
}
