//! `portcullis reach`: who can reach whom, on what.

use std::collections::{BTreeMap, BTreeSet};
use std::iter;
use std::process::ExitCode;

use portcullis_core::Program;
use portcullis_core::fold::{Product, fold};
use portcullis_core::model::{Cluster, Direction};
use portcullis_core::net::{Family, IpRange, Traffic};
use portcullis_core::portset::PortSet;
use portcullis_core::program::{End, Origin, Ports};
use portcullis_core::reach::{self, Allowed, Opens, SetId, Unit};
use portcullis_kube::Input;
use serde::Serialize;

use crate::doubts::{Doubts, by_family, shown};
use crate::ends::{Names, NotAnEnd, PortName, Target};
use crate::focus::{Focus, FocusArgs, NAMESPACE};
use crate::graph::{self, Asked};
use crate::groups::{By, EndReport, Groups, Members};
use crate::input::InputArgs;
use crate::output::{json, print, terminal_width, yaml};
use crate::potential::{self, Exposed, Subjects};
use crate::routes::{self, Found};
use crate::table::{Table, csv_field};
use crate::trouble::Trouble;

/// Who can reach whom, on what?
#[derive(Debug, clap::Args)]
#[command(after_help = "X is namespace/pod, namespace/kind/name of a workload, a Service, an IP \
                        address, or namespace/* for all of a namespace.\n\n\
                        Examples:\n  \
                        portcullis reach -f examples/three-tier\n  \
                        portcullis reach -f examples/three-tier --to shop/db -o wide\n  \
                        portcullis reach -f examples/three-tier --from 192.168.5.10 --port 80")]
pub(crate) struct Reach {
    #[command(flatten)]
    question: Question,
    /// Instead, what pods that do not exist yet may open, and what may be opened to them
    #[arg(long)]
    potential: bool,
    /// Instead, whether policies let Ingresses and routes of the Gateway API reach their pods
    #[arg(long, conflicts_with_all = ["potential", "from", "port"])]
    routes: bool,
    /// Output format
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

/// Which connections are asked about, and how their ends are named.
#[derive(Debug, clap::Args)]
#[command(mut_arg("namespace", |arg| arg.help(NAMESPACE)))]
pub(crate) struct Question {
    #[command(flatten)]
    pub(crate) input: InputArgs,
    /// Only connections that X opens; may be repeated
    #[arg(long, value_name = "X")]
    from: Vec<String>,
    /// Only connections to X; may be repeated
    #[arg(long, value_name = "X")]
    to: Vec<String>,
    /// Only what this port may be reached on: 80, 53/udp, or icmp
    #[arg(long, value_name = "PORT")]
    port: Option<PortName>,
    #[command(flatten)]
    focus: FocusArgs,
    /// Which pods go by one name
    #[arg(long, value_enum, default_value_t = By::Workload)]
    pub(crate) by: By,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people: those that fare alike in one row
    Table,
    /// The same with the rules that allow, and nothing shortened
    Wide,
    /// For programs: every pair; the shape is stable
    Json,
    /// The same as YAML
    Yaml,
    /// Every pair, for spreadsheets
    Csv,
    /// The table as Markdown
    Md,
    /// The picture of `portcullis graph`
    Svg,
    /// The same for Graphviz
    Dot,
    /// The same for Mermaid
    Mermaid,
    /// The same as a page to search and click in
    Html,
}

impl Format {
    /// How the picture is written, of the formats that are one.
    pub(crate) fn picture(self) -> graph::Format {
        match self {
            Format::Dot => graph::Format::Dot,
            Format::Mermaid => graph::Format::Mermaid,
            Format::Html => graph::Format::Html,
            _ => graph::Format::Svg,
        }
    }

    /// A table of what is allowed, in the formats that are one.
    pub(crate) fn written(self, mut table: Table) -> String {
        match self {
            Format::Csv => table.csv(),
            _ if table.rows.is_empty() => "nothing is allowed\n".to_owned(),
            Format::Md => table.markdown(),
            Format::Wide => table.text(usize::MAX),
            _ => {
                table.shorten(MOST_ITEMS);
                table.text(terminal_width())
            }
        }
    }
}

/// What a pair may do, by family; both the same unless the families differ.
pub(crate) type Cell = [Opens; 2];

impl Reach {
    pub(crate) fn run(self) -> Result<ExitCode, Trouble> {
        let input = self.question.input.read_sound()?;
        let program = Program::compile(&input.cluster);
        let names = Names::of(&input.cluster);
        let mut page = self.question.page(&input, &program, &names)?;
        if self.potential {
            return potential::page(&self.exposed(&mut page), self.output);
        }
        if self.routes {
            return routes::page(&page.routes(&names), self.output);
        }
        match self.output {
            Format::Json => json(&page.pairs())?,
            Format::Yaml => yaml(&page.pairs())?,
            Format::Csv => print(&page.csv())?,
            Format::Table | Format::Wide | Format::Md => {
                let products = page.products();
                let table = page.table(&products, self.output == Format::Wide);
                let footnote = page.doubts(&products).footnote(&page.groups);
                print(&self.output.written(table))?;
                print(&footnote)?;
                // Who asks for something else has no use for it.
                let Question { from, to, port, .. } = &self.question;
                let asked = [(from, &page.sources), (to, &page.destinations)];
                if self.output != Format::Md
                    && asked
                        .into_iter()
                        .any(|(names, units)| !names.is_empty() && page.is_node(units))
                {
                    print("and a pod and the node that it runs on always reach each other\n")?;
                }
                if self.output != Format::Md && from.is_empty() && port.is_none() {
                    print(&routes::footnote(&page.routes(&names)))?;
                }
            }
            Format::Svg | Format::Dot | Format::Mermaid | Format::Html => {
                let format = self.output.picture();
                let asked = Asked { input: &input, program: &program, names: &names };
                let picture = asked.picture(&self.question, page, false, format);
                graph::print(&picture, format)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    /// What pods that could exist may open to those asked for, and these to them.
    fn exposed(&self, page: &mut Page<'_>) -> Vec<Exposed> {
        let (from, to) = (!self.question.from.is_empty(), !self.question.to.is_empty());
        let sides = [
            (Direction::Ingress, &page.destinations, to || !from),
            (Direction::Egress, &page.sources, from || !to),
        ];
        let mut exposed = Vec::new();
        for (direction, units, _) in sides.into_iter().filter(|side| side.2) {
            let within = |unit: &&Unit| page.is_within(unit);
            let units: Vec<Unit> = units.iter().filter(within).cloned().collect();
            let (cluster, traffic) = (page.cluster, page.traffic);
            let subjects = Subjects { cluster, units: &units, direction, traffic };
            exposed.extend(potential::exposed(&subjects, &mut page.reach, &page.groups));
        }
        exposed
    }
}

impl Question {
    /// Everything that answers it. The program and the names are of this input.
    pub(crate) fn page<'a>(
        &self,
        input: &'a Input,
        program: &'a Program,
        names: &Names<'_>,
    ) -> Result<Page<'a>, Trouble> {
        let cluster = &input.cluster;
        if cluster.pods.is_empty() {
            return Err(Trouble::NoPods(""));
        }
        let from = self.selected(&self.from, input, program, names)?;
        let to = self.selected(&self.to, input, program, names)?;
        let traffic = self.port.as_ref().map(PortName::traffic).transpose()?;
        let focus = self.focus.focus(self.input.namespace.as_ref(), &[cluster])?;
        let mut reach = reach::Reach::of(program);
        let units = reach.units(cluster);
        let groups = groups(cluster, &units, self.by);
        let units = apart(units, cluster, &focus);
        Ok(Page {
            cluster,
            program,
            groups,
            sources: restricted(&units, from.as_ref()),
            destinations: restricted(&units, to.as_ref()),
            reach,
            traffic,
            limited: self.port.is_some()
                || !self.from.is_empty()
                || !self.to.is_empty()
                || !focus.is_all(),
            focus,
        })
    }

    /// What names stand for; `None` where there are none, and so no limit.
    fn selected(
        &self,
        texts: &[String],
        input: &Input,
        program: &Program,
        names: &Names<'_>,
    ) -> Result<Option<Members>, Trouble> {
        let cluster = &input.cluster;
        let mut parts = Vec::new();
        for text in texts {
            let mut part = Members::default();
            if let Some(namespace) = text.strip_suffix("/*") {
                let pods = cluster.pods.iter().enumerate();
                part.pods =
                    pods.filter(|(_, p)| p.namespace == namespace).map(|(i, _)| i).collect();
                if part.pods.is_empty() {
                    let why = format!(
                        "{text:?} is nobody: the input has no pod in namespace {namespace:?}"
                    );
                    return Err(NotAnEnd::new(why).into());
                }
                parts.push(part);
                continue;
            }
            match names.find(text, &input.namespace)? {
                Target::Pod(pod) => part.pods.push(pod),
                Target::Workload(pods) => part.pods.extend(pods),
                Target::Service(service) => {
                    part.pods.extend(names.pods_of(&cluster.services[service]));
                }
                Target::Address(address) => match program.endpoint(address).pod {
                    Some(pod) => part.pods.push(pod),
                    None => part.addresses.push(IpRange { first: address, last: address }),
                },
            }
            parts.push(part);
        }
        let mut all = Members::of(parts.iter().map(Members::lists));
        all.pods.dedup();
        all.addresses.dedup();
        Ok((!texts.is_empty()).then_some(all))
    }
}

/// With the pods that are asked about in units of their own.
fn apart(units: Vec<Unit>, cluster: &Cluster, focus: &Focus) -> Vec<Unit> {
    if focus.is_all() {
        return units;
    }
    let mut apart = Vec::new();
    for unit in units {
        let (inside, others): (Vec<usize>, Vec<usize>) =
            unit.pods.iter().partition(|p| focus.includes(&cluster.pods[**p]));
        let parts = [inside, others].into_iter().filter(|pods| !pods.is_empty());
        apart.extend(parts.map(|pods| Unit { pods, ..unit.clone() }));
        apart.extend((!unit.addresses.is_empty()).then_some(unit));
    }
    apart
}

/// Most items of a list in the table.
pub(crate) const MOST_ITEMS: usize = 12;

/// What the pods of units, and the addresses, are called.
pub(crate) fn groups(cluster: &Cluster, units: &[Unit], by: By) -> Groups {
    let mut pods = BTreeMap::new();
    for (class, unit) in units.iter().enumerate() {
        pods.extend(unit.pods.iter().map(|p| (*p, class)));
    }
    let pods = pods.into_iter().map(|(p, class)| (p, &cluster.pods[p], class));
    let outside = |family: &Family| {
        units.iter().any(|u| u.addresses.iter().any(|r| Family::of(r.first) == *family))
    };
    Groups::of(pods, Family::ALL.into_iter().filter(outside).collect(), by)
}

fn restricted(units: &[Unit], to: Option<&Members>) -> Vec<Unit> {
    let Some(to) = to else { return units.to_vec() };
    let mut left = Vec::new();
    for unit in units {
        let pods = unit.pods.iter().copied().filter(|p| to.pods.binary_search(p).is_ok());
        let inside = |range: &&IpRange| unit.addresses.iter().any(|r| r.contains(range.first));
        let addresses = to.addresses.iter().filter(inside).copied().collect();
        let unit = Unit { pods: pods.collect(), addresses, classes: unit.classes };
        if !unit.pods.is_empty() || !unit.addresses.is_empty() {
            left.push(unit);
        }
    }
    left
}

/// A row of the table: those may open this to these.
pub(crate) struct Row {
    pub(crate) from: Vec<String>,
    pub(crate) to: Vec<String>,
    pub(crate) ports: Vec<String>,
    pub(crate) rules: Vec<String>,
}

/// What may be opened by whom.
pub(crate) struct Page<'a> {
    pub(crate) cluster: &'a Cluster,
    program: &'a Program,
    pub(crate) groups: Groups,
    /// Those who open connections.
    pub(crate) sources: Vec<Unit>,
    /// Those who accept them.
    pub(crate) destinations: Vec<Unit>,
    pub(crate) reach: reach::Reach<'a>,
    traffic: Option<Traffic>,
    focus: Focus,
    /// Whether some connections are left out.
    pub(crate) limited: bool,
}

impl Page<'_> {
    /// Whether a unit is asked about.
    fn is_within(&self, unit: &Unit) -> bool {
        let first = unit.pods.first();
        self.focus.is_all() || first.is_some_and(|p| self.focus.includes(&self.cluster.pods[*p]))
    }

    /// Whether these are pods on the host network, and so nodes.
    fn is_node(&self, units: &[Unit]) -> bool {
        let mut pods = units.iter().flat_map(|unit| &unit.pods).peekable();
        pods.peek().is_some() && pods.all(|pod| self.cluster.pods[*pod].host_network)
    }

    /// Whether policies let in what routes lead to the destinations.
    fn routes(&self, names: &Names<'_>) -> Vec<Found> {
        let within = |unit: &&Unit| self.is_within(unit);
        let asked = self.destinations.iter().filter(within).flat_map(|unit| unit.pods.clone());
        let asked: BTreeSet<usize> = asked.collect();
        let asked = |pod: usize| asked.contains(&pod);
        routes::found(self.cluster, self.program, names, &self.groups, &asked)
    }

    /// What a source may open to each destination: exactly, and only what was asked for.
    fn allowed(&mut self, source: &Unit) -> Vec<Allowed> {
        let mut row = self.reach.unit_row(&self.destinations, source);
        if !self.is_within(source) {
            for (cell, to) in row.iter_mut().zip(&self.destinations) {
                if !self.is_within(to) {
                    *cell = Allowed::Alike(Opens::default());
                }
            }
        }
        if let Some(traffic) = self.traffic {
            let asked = match traffic {
                Traffic::Other => SetId::EVERYTHING,
                Traffic::Port(protocol, port) => {
                    let ports = Ports { protocol, first: port, last: port };
                    self.reach.number(PortSet::of([Some(ports)]))
                }
            };
            let only = |set: SetId| match self.reach.set(set).contains(traffic) {
                true => asked,
                false => SetId::NOTHING,
            };
            let only =
                |opens: Opens| Opens { surely: only(opens.surely), perhaps: only(opens.perhaps) };
            for cell in &mut row {
                *cell = match *cell {
                    Allowed::Alike(set) => Allowed::Alike(only(set)),
                    Allowed::NoFamily(set) => Allowed::NoFamily(only(set)),
                    Allowed::ByFamily(sets) => match sets.map(only) {
                        [a, b] if a == b => Allowed::Alike(a),
                        sets => Allowed::ByFamily(sets),
                    },
                };
            }
        }
        row
    }

    fn products(&mut self) -> Vec<Product<Cell>> {
        fold(self.cells())
    }

    /// What each source may open to each destination.
    pub(crate) fn cells(&mut self) -> impl Iterator<Item = Vec<Cell>> {
        let cell = |allowed: Allowed| match allowed {
            Allowed::Alike(opens) | Allowed::NoFamily(opens) => [opens; 2],
            Allowed::ByFamily(opens) => opens,
        };
        let sources = self.sources.clone();
        sources.into_iter().map(move |s| self.allowed(&s).into_iter().map(cell).collect())
    }

    fn rows(&self, products: &[Product<Cell>], rules: bool) -> Vec<Row> {
        let mut rows = Vec::new();
        for product in products {
            let (sources, destinations) = (&self.sources, &self.destinations);
            let members =
                |units: &[Unit], of: &[usize]| Members::of(of.iter().map(|i| lists(&units[*i])));
            let mut from = members(sources, &product.sources);
            let mut to = members(destinations, &product.destinations);
            // Between addresses outside nothing is asked.
            if from.pods.is_empty() {
                to.addresses.clear();
            }
            if to.pods.is_empty() {
                from.addresses.clear();
            }
            let to_itself = from.is_one_pod() && from == to;
            if to_itself || from == Members::default() || to == Members::default() {
                continue;
            }
            let ports = vec![ports(&self.reach, product.value)];
            let rules = if rules { self.rules(product) } else { Vec::new() };
            let groups = &self.groups;
            let (from, to) =
                (groups.describe_beside(&from, &to), groups.describe_beside(&to, &from));
            rows.push(Row { from, to, ports, rules });
        }
        rows.sort_by(|a, b| (&a.to, &a.from, &a.ports).cmp(&(&b.to, &b.from, &b.ports)));
        rows
    }

    fn table(&self, products: &[Product<Cell>], wide: bool) -> Table {
        let rows = self.rows(products, wide);
        let cells = |row: Row| {
            let mut cells = vec![row.from, row.to, row.ports];
            cells.extend(wide.then_some(row.rules));
            cells
        };
        let headers: &[&str] = match wide {
            true => &["FROM", "TO", "PORTS", "RULES"],
            false => &["FROM", "TO", "PORTS"],
        };
        Table { headers, rows: rows.into_iter().map(cells).collect() }
    }

    /// What keeps the doubtful parts of products from being known.
    fn doubts(&self, products: &[Product<Cell>]) -> Doubts {
        let mut doubts = Doubts::default();
        for product in products {
            let more = product.value.map(|Opens { surely, perhaps }| {
                self.reach.set(perhaps).without(self.reach.set(surely))
            });
            let Some(more) = more.iter().find(|more| !more.is_nothing()) else { continue };
            // The facts are about one end or about the other.
            let (sources, destinations) = (&product.sources, &product.destinations);
            let each = sources.iter().map(|source| (*source, destinations[0]));
            let other = destinations.iter().map(|destination| (sources[0], *destination));
            for (source, destination) in each.chain(other) {
                let ends = (&self.sources[source], &self.destinations[destination]);
                self.doubt(&mut doubts, ends.0, ends.1, more);
            }
        }
        doubts
    }

    /// The same for one pair: pods of one unit lack the same facts.
    fn doubt(&self, doubts: &mut Doubts, source: &Unit, destination: &Unit, more: &PortSet) {
        let first = |unit: &Unit, not: Option<usize>| {
            let other = unit.pods.iter().copied().find(|pod| Some(*pod) != not);
            let address = unit.addresses.first().map(|range| End::Address(range.first));
            other.map(End::Pod).or(address)
        };
        let of = (self.cluster, self.program);
        let mut add = |source: Option<End>, destination: Option<End>| {
            if let (Some(source), Some(destination)) = (source, destination) {
                doubts.add(of, [source, destination], more, |pod| pod);
            }
        };
        for pod in &source.pods {
            add(Some(End::Pod(*pod)), first(destination, Some(*pod)));
        }
        for pod in &destination.pods {
            add(first(source, Some(*pod)), Some(End::Pod(*pod)));
        }
    }

    /// The rules that allow what a product has, at both ends.
    fn rules(&self, product: &Product<Cell>) -> Vec<String> {
        let origins = self.origins(product);
        let mut rules: Vec<String> =
            origins.iter().map(|o: &Origin| rule(self.cluster, o)).collect();
        rules.dedup();
        if rules.is_empty() { vec!["-".to_owned()] } else { rules }
    }

    /// The same as data.
    pub(crate) fn origins(&self, product: &Product<Cell>) -> BTreeSet<Origin> {
        let mut origins = BTreeSet::new();
        let mut seen = BTreeSet::new();
        for source in &product.sources {
            for destination in &product.destinations {
                let (source, destination) =
                    (&self.sources[*source], &self.destinations[*destination]);
                let sets = product.value.map(|opens| opens.perhaps);
                if seen.insert((source.classes, destination.classes)) {
                    origins.extend(origins_of(&self.reach, source, destination, sets));
                }
            }
        }
        origins
    }

    /// Every pair of names, apart where the pods of a name do not fare alike.
    fn pairs(&mut self) -> Vec<Pair> {
        let (sources, destinations) = (self.sources.clone(), self.destinations.clone());
        let mut pairs = Vec::new();
        for source in &sources {
            let row = self.allowed(source);
            for (destination, allowed) in destinations.iter().zip(row) {
                let ways = match allowed {
                    Allowed::Alike(opens) => vec![(opens, None)],
                    Allowed::ByFamily([v4, v6]) => {
                        vec![(v4, Some(Family::V4)), (v6, Some(Family::V6))]
                    }
                    Allowed::NoFamily(_) => continue,
                };
                for (opens, family) in ways {
                    if opens != Opens::default() {
                        self.pair(source, destination, opens, family, &mut pairs);
                    }
                }
            }
        }
        let key = |pair: &Pair| (pair.from.clone(), pair.to.clone(), pair.family.clone());
        pairs.sort_by_cached_key(key);
        pairs
    }

    fn pair(
        &self,
        source: &Unit,
        destination: &Unit,
        opens: Opens,
        family: Option<Family>,
        pairs: &mut Vec<Pair>,
    ) {
        if source.pods.is_empty() && destination.pods.is_empty() {
            return;
        }
        let mut sets = [SetId::NOTHING; 2];
        match family {
            Some(family) => sets[family as usize] = opens.perhaps,
            None => sets = [opens.perhaps; 2],
        }
        let origins = origins_of(&self.reach, source, destination, sets);
        let rules: Vec<RuleReport> = origins
            .iter()
            .map(|origin| RuleReport {
                policy: policy(self.cluster, origin.policy),
                rule: origin.rule_path(),
            })
            .collect();
        let (surely, perhaps) = (self.reach.set(opens.surely), self.reach.set(opens.perhaps));
        let more = perhaps.without(surely);
        let mut doubts = Doubts::default();
        if surely != perhaps {
            self.doubt(&mut doubts, source, destination, &more);
        }
        let perhaps = (surely != perhaps).then(|| PerhapsReport {
            allowed: AllowedReport::of(&more),
            depends_on: doubts.sentences(&self.groups),
        });
        for from in self.groups.ends(&Members::of(iter::once(lists(source)))) {
            for to in self.groups.ends(&Members::of(iter::once(lists(destination)))) {
                if from.pods.len() == 1 && from == to {
                    continue;
                }
                pairs.push(Pair {
                    from: from.clone(),
                    to,
                    family: family.map(|f| f.to_string()),
                    allowed: AllowedReport::of(surely),
                    rules: rules.clone(),
                    perhaps: perhaps.clone(),
                    text: [surely, &more].map(|set| match set.is_nothing() {
                        true => String::new(),
                        false => set.to_string(),
                    }),
                });
            }
        }
    }

    fn csv(&mut self) -> String {
        let mut text =
            "from,from_pods_or_addresses,to,to_pods_or_addresses,ports,family,perhaps\n".to_owned();
        for pair in self.pairs() {
            let list = |end: &EndReport| [end.pods.as_slice(), &end.addresses].concat().join(" ");
            let family = pair.family.as_deref().unwrap_or("");
            let (from, to) = (&pair.from, &pair.to);
            let [surely, perhaps] = &pair.text;
            let fields =
                [&from.name, &list(from), &to.name, &list(to), surely, family, perhaps.as_str()];
            let fields: Vec<String> = fields.into_iter().map(|f: &str| csv_field(f)).collect();
            text.push_str(&format!("{}\n", fields.join(",")));
        }
        text
    }
}

/// What a unit consists of.
pub(crate) fn lists(unit: &Unit) -> (&Vec<usize>, &Vec<IpRange>) {
    (&unit.pods, &unit.addresses)
}

/// What a cell says.
pub(crate) fn ports(reach: &reach::Reach<'_>, opens: Cell) -> String {
    let show = |opens: Opens| shown(reach.set(opens.surely), reach.set(opens.perhaps));
    if opens[0] == opens[1] {
        return show(opens[0]);
    }
    by_family(opens.map(|opens| (opens != Opens::default()).then(|| show(opens))))
}

/// The rules that allow some of what may be opened (by family) from one unit to another.
fn origins_of(
    reach: &reach::Reach<'_>,
    source: &Unit,
    destination: &Unit,
    sets: [SetId; 2],
) -> BTreeSet<Origin> {
    let mut origins = BTreeSet::new();
    for (family, set) in Family::ALL.into_iter().zip(sets) {
        let at = family as usize;
        let (Some(from), Some(to)) = (source.classes[at], destination.classes[at]) else {
            continue;
        };
        let egress = reach.entries(from, Direction::Egress, to, family);
        let ingress = reach.entries(to, Direction::Ingress, from, family);
        for entry in egress.into_iter().chain(ingress) {
            let allowed = PortSet::of([entry.ports]).intersection(reach.set(set));
            if !allowed.is_nothing() {
                origins.insert(Origin { peer: None, port: None, ..entry.origin });
            }
        }
    }
    origins
}

fn policy(cluster: &Cluster, index: u32) -> String {
    let policy = &cluster.policies[index as usize];
    format!("{}/{}", policy.namespace, policy.name)
}

/// `shop/db ingress[0]`.
pub(crate) fn rule(cluster: &Cluster, origin: &Origin) -> String {
    let Origin { direction, rule, .. } = origin;
    format!("{} {direction}[{rule}]", policy(cluster, origin.policy))
}

#[derive(Serialize)]
struct Pair {
    from: EndReport,
    to: EndReport,
    /// The one family on which this may be opened; absent where it is every family they share.
    #[serde(skip_serializing_if = "Option::is_none")]
    family: Option<String>,
    #[serde(flatten)]
    allowed: AllowedReport,
    /// The rules that allow it; empty where no policy isolates either end.
    rules: Vec<RuleReport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    perhaps: Option<PerhapsReport>,
    /// What is sure, and what is not.
    #[serde(skip)]
    text: [String; 2],
}

/// What may be opened.
#[derive(Serialize, Clone)]
pub(crate) struct AllowedReport {
    /// Every port and protocol, ICMP included.
    everything: bool,
    ports: Vec<PortReport>,
}

impl AllowedReport {
    pub(crate) fn of(set: &PortSet) -> AllowedReport {
        match set {
            PortSet::Everything => AllowedReport { everything: true, ports: Vec::new() },
            PortSet::Ports(ports) => {
                AllowedReport { everything: false, ports: ports.iter().map(port_report).collect() }
            }
        }
    }
}

/// What may be opened besides, if facts that are missing turn out so.
#[derive(Serialize, Clone)]
pub(crate) struct PerhapsReport {
    #[serde(flatten)]
    pub(crate) allowed: AllowedReport,
    /// The facts.
    #[serde(rename = "dependsOn")]
    pub(crate) depends_on: Vec<String>,
}

#[derive(Serialize, Clone)]
struct PortReport {
    protocol: &'static str,
    port: u16,
    #[serde(rename = "endPort", skip_serializing_if = "Option::is_none")]
    end_port: Option<u16>,
}

fn port_report(ports: &Ports) -> PortReport {
    PortReport {
        protocol: ports.protocol.as_str(),
        port: ports.first,
        end_port: (ports.last != ports.first).then_some(ports.last),
    }
}

#[derive(Serialize, Clone)]
struct RuleReport {
    policy: String,
    rule: String,
}
