//! `portcullis graph`: who can reach whom, as a picture.

mod dot;
mod html;
mod layout;
mod mermaid;
mod picture;
mod svg;
mod text;

use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::process::ExitCode;

use portcullis_core::Program;
use portcullis_core::fold::Product;
use portcullis_core::model::Direction;
use portcullis_core::net::{IpRange, Protocol, Traffic, next_address};
use portcullis_core::portset::PortSet;
use portcullis_core::program::{End, Verdict};
use portcullis_core::reach::{Opens, SetId, Unit};
use portcullis_kube::{Input, ObjectRef};

use crate::ends::{Flow, Names};
use crate::graph::layout::{Room, layout};
pub(crate) use crate::graph::picture::{Kind, Picture, Scope, Side, Table, Tell, Told};
use crate::groups::{By, Members};
use crate::output;
use crate::reach::{Cell, Page, Question, ports, rule};
use crate::trouble::Trouble;
use crate::why;

/// Who can reach whom, as a picture
#[derive(Debug, clap::Args)]
#[command(after_help = "X is namespace/pod, namespace/kind/name of a workload, a Service, an IP \
                        address, or namespace/* for all of a namespace.\n\n\
                        Examples:\n  \
                        portcullis graph -f examples/three-tier > three-tier.svg\n  \
                        portcullis graph -f examples/three-tier -o html --output-file reach.html\n  \
                        portcullis graph -f examples/three-tier --to shop/db -o mermaid")]
pub(crate) struct Graph {
    #[command(flatten)]
    question: Question,
    /// Also draw who may open nothing to whom
    #[arg(long)]
    refused: bool,
    /// The width of an SVG to aim at, in pixels
    #[arg(long, default_value_t = PAGE, value_name = "PIXELS",
          value_parser = clap::value_parser!(u32).range(200..=10_000))]
    width: u32,
    /// Output format
    #[arg(short, long, value_enum, default_value_t = Format::Svg)]
    output: Format,
    /// Write to this file instead of standard output
    #[arg(long, value_name = "FILE")]
    output_file: Option<PathBuf>,
}

/// How a picture is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// A picture for browsers and documents
    Svg,
    /// For Graphviz
    Dot,
    /// For Markdown
    Mermaid,
    /// A page to search and click in, which needs no network
    Html,
}

/// The width of a page, in pixels.
const PAGE: u32 = 1200;
/// The width of a telephone.
const TELEPHONE: u32 = 400;

impl Graph {
    pub(crate) fn run(self) -> Result<ExitCode, Trouble> {
        let input = self.question.input.read_sound()?;
        let program = Program::compile(&input.cluster);
        let names = Names::of(&input.cluster);
        let page = self.question.page(&input, &program, &names)?;
        let asked = Asked { input: &input, program: &program, names: &names };
        let picture = asked.picture(&self.question, page, self.refused, self.output);
        let text = write(&picture, self.output, self.width);
        if let Some(path) = &self.output_file {
            let what = format!("cannot write {}", path.display());
            std::fs::write(path, text).map_err(|source| Trouble::Io { what, source })?;
            return Ok(ExitCode::SUCCESS);
        }
        to_stdout(&text, self.output)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Prints a picture.
pub(crate) fn print(picture: &Picture, format: Format) -> Result<(), Trouble> {
    to_stdout(&write(picture, format, PAGE), format)
}

fn to_stdout(text: &str, format: Format) -> Result<(), Trouble> {
    let for_people = matches!(format, Format::Dot | Format::Mermaid);
    if !for_people && std::io::stdout().is_terminal() {
        return Err(Trouble::PictureOnTerminal);
    }
    output::print(text)
}

/// A picture as text.
fn write(picture: &Picture, format: Format, width: u32) -> String {
    match format {
        Format::Svg => svg::svg(picture, &layout(picture, Room::of(width))),
        Format::Dot => dot::dot(picture),
        Format::Mermaid => mermaid::mermaid(picture),
        Format::Html => html::html(picture, [PAGE, TELEPHONE].map(Room::of)),
    }
}

/// What a picture of a cluster is made of.
pub(crate) struct Asked<'a> {
    pub(crate) input: &'a Input,
    pub(crate) program: &'a Program,
    pub(crate) names: &'a Names<'a>,
}

impl Asked<'_> {
    /// Why a connection is allowed or refused.
    pub(crate) fn why(&self, flow: Flow) -> String {
        why::plain(self.input, self.program, self.names, flow)
    }

    /// The picture of what may be opened, as the page says that answers the question; with what
    /// is refused, if asked for.
    pub(crate) fn picture(
        &self,
        question: &Question,
        mut page: Page<'_>,
        refused: bool,
        format: Format,
    ) -> Picture {
        // What is asked for in particular is drawn, also where nothing is isolated.
        let limited = page.limited;
        let namespaces = question.by == By::Namespace;
        let scope =
            Scope { title: "Who can reach whom", namespaces, refused, only_ends_of_flows: limited };
        let side = |unit: &Unit, direction: Direction| {
            let open = |class| page.reach.isolation(class, direction).is_none();
            let mut classes = unit.classes.iter().flatten().peekable();
            let open = classes.peek().is_some() && classes.all(|class| open(*class));
            let Unit { pods, addresses, .. } = unit.clone();
            Side { members: Members { pods, addresses }, open: open && !limited }
        };
        let sources = page.sources.iter().map(|unit| side(unit, Direction::Egress)).collect();
        let destinations =
            page.destinations.iter().map(|unit| side(unit, Direction::Ingress)).collect();
        let table = Table::of(sources, destinations, page.cells());
        let mut tell = Allowances { asked: self, page, explained: format == Format::Html };
        let groups = std::mem::take(&mut tell.page.groups);
        table.draw(&groups, &mut tell, scope)
    }
}

/// What may be opened, in words.
struct Allowances<'a> {
    asked: &'a Asked<'a>,
    page: Page<'a>,
    explained: bool,
}

impl Tell<Cell> for Allowances<'_> {
    fn together(&mut self, values: &BTreeSet<Cell>) -> Vec<Cell> {
        let mut values = values.iter().copied();
        let Some(first) = values.next() else { return Vec::new() };
        let reach = &mut self.page.reach;
        let mut union = |a: SetId, b: SetId| {
            let both = reach.set(a).union(reach.set(b));
            reach.number(both)
        };
        let mut both = |a: Opens, b: Opens| Opens {
            surely: union(a.surely, b.surely),
            perhaps: union(a.perhaps, b.perhaps),
        };
        vec![values.fold(first, |[a, b], [c, d]| [both(a, c), both(b, d)])]
    }

    fn ports(&self, value: Cell) -> String {
        ports(&self.page.reach, value)
    }

    fn tell(&self, sources: &[usize], destinations: &[usize], value: Option<Cell>) -> Told {
        let Some(cell) = value else {
            let why = match self.explained {
                true => self.why(sources, destinations, Verdict::Refused, &PortSet::Everything),
                false => String::new(),
            };
            let (kind, ports) = (Kind::Refused, "refused".to_owned());
            let (rules, doubt) = (Vec::new(), String::new());
            return Told { kind, ports, doubtful: false, rules, why, doubt };
        };
        let (surely, more) = self.parts(cell);
        let why = |verdict: Verdict, set: &PortSet| match set.is_nothing() {
            true => String::new(),
            false => self.why(sources, destinations, verdict, set),
        };
        Told {
            kind: Kind::Allowed,
            ports: self.ports(cell),
            doubtful: surely.is_nothing(),
            rules: self.rules(sources, destinations, cell),
            why: if self.explained { why(Verdict::Allowed, &surely) } else { String::new() },
            doubt: why(Verdict::Undetermined, &more),
        }
    }
}

impl Allowances<'_> {
    fn rules(&self, sources: &[usize], destinations: &[usize], value: Cell) -> Vec<String> {
        let (sources, destinations) = (sources.to_vec(), destinations.to_vec());
        let origins = self.page.origins(&Product { sources, destinations, value });
        let input = self.asked.input;
        let shown = |origin: &portcullis_core::program::Origin| {
            let policy = ObjectRef::Policy(origin.policy as usize);
            let place = input.locate(policy, &origin.rule_path());
            let place = place.map_or(String::new(), |place| format!(" ({place})"));
            format!("{}{place}", rule(self.page.cluster, origin))
        };
        origins.iter().map(shown).collect()
    }

    /// What of a value is sure, and what is not; each on the first family that has any.
    fn parts(&self, value: Cell) -> (PortSet, PortSet) {
        let reach = &self.page.reach;
        let first = |[v4, v6]: [PortSet; 2]| if v4.is_nothing() { v6 } else { v4 };
        let surely = value.map(|opens| reach.set(opens.surely).clone());
        let more = value.map(|opens| reach.set(opens.perhaps).without(reach.set(opens.surely)));
        (first(surely), first(more))
    }

    /// Why the first connection that has this verdict has it, of those on some port of a set.
    fn why(
        &self,
        sources: &[usize],
        destinations: &[usize],
        expected: Verdict,
        set: &PortSet,
    ) -> String {
        let program = self.asked.program;
        let mut other = None;
        for source in sources.iter().flat_map(|i| some_ends(&self.page.sources[*i])) {
            for destination in
                destinations.iter().flat_map(|i| some_ends(&self.page.destinations[*i]))
            {
                if source == destination || program.paths(source, destination).next().is_none() {
                    continue;
                }
                let traffic = self.traffic(destination, set);
                let flow = Flow { source, destination, traffic };
                match program.verdict(source, destination, traffic) {
                    verdict if verdict == expected => return self.asked.why(flow),
                    Verdict::Mixed { .. } => other = other.or(Some(flow)),
                    Verdict::Allowed | Verdict::Refused | Verdict::Undetermined => {}
                }
            }
        }
        other.map_or(String::new(), |flow| self.asked.why(flow))
    }

    /// Some traffic of a set; of everything, what the destination has a port for.
    fn traffic(&self, destination: End, set: &PortSet) -> Traffic {
        if let PortSet::Ports(ports) = set
            && let Some(ports) = ports.first()
        {
            return Traffic::Port(ports.protocol, ports.first.max(1));
        }
        let declared = match destination {
            End::Pod(pod) => self.page.cluster.pods[pod].ports.first(),
            End::Address(_) => None,
        };
        let declared = declared.map(|port| Traffic::Port(port.protocol, port.port));
        declared.unwrap_or(Traffic::Port(Protocol::Tcp, 443))
    }
}

/// A few of those that a unit has, enough to find two that are not the same.
fn some_ends(unit: &Unit) -> Vec<End> {
    let address = some_address(&unit.addresses).map(End::Address);
    unit.pods.iter().take(2).map(|pod| End::Pod(*pod)).chain(address).collect()
}

/// One of the addresses: one that is there for examples (RFC 5737, RFC 3849), if they have one.
pub(crate) fn some_address(ranges: &[IpRange]) -> Option<IpAddr> {
    let examples = [
        IpAddr::V4(Ipv4Addr::new(203, 0, 113, 10)),
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10)),
    ];
    let is_there = |address: &IpAddr| ranges.iter().any(|range| range.contains(*address));
    let first = || {
        let first = ranges.first()?.first;
        let next = next_address(first).filter(|next| first.is_unspecified() && is_there(next));
        Some(next.unwrap_or(first))
    };
    examples.into_iter().find(is_there).or_else(first)
}

#[cfg(test)]
mod tests;
