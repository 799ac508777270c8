//! What a picture shows, before anything has a place on it: ends in boxes, and flows between them.
//!
//! A flow is every one of its sources with every one of its destinations, on the same ports. So a
//! picture needs as few lines as the table of [`crate::reach`] needs rows, and says the same.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hash;

use indexmap::IndexSet;
use portcullis_core::fold::fold;

use crate::groups::{Groups, Members, cidrs};
use crate::output::plural;

/// A picture.
#[derive(Debug, Default)]
pub(crate) struct Picture {
    /// What it answers.
    pub(crate) title: &'static str,
    /// The namespaces that are drawn as boxes.
    pub(crate) boxes: Vec<String>,
    /// What connections are opened from and to, in the order of its boxes.
    pub(crate) ends: Vec<End>,
    /// What is allowed, refused or changed.
    pub(crate) flows: Vec<Flow>,
    /// How to read it, a sentence each.
    pub(crate) caption: Vec<String>,
}

impl Picture {
    /// A picture of rows, each of which says who may open what to whom: each name is an end.
    pub(crate) fn of_rows(
        title: &'static str,
        rows: impl IntoIterator<Item = [Vec<String>; 3]>,
    ) -> Picture {
        let mut names: IndexSet<String> = IndexSet::new();
        let mut flows = Vec::new();
        for [from, to, ports] in rows {
            let mut numbers = |side: Vec<String>| {
                let numbers = side.into_iter().map(|name| names.insert_full(name).0);
                numbers.collect::<BTreeSet<usize>>().into_iter().collect()
            };
            let (from, to) = (numbers(from), numbers(to));
            flows.push(Flow { from, to, told: Told::allowed(ports.join(", ")) });
        }
        let ends = names.into_iter().map(|about| {
            let (name, note) = about.split_once(" with ").unwrap_or((&about, ""));
            let note = if note.is_empty() { String::new() } else { format!("with {note}") };
            let (name, place) = (name.to_owned(), Place::Cluster);
            End { place, every: false, name, note, about, members: Vec::new() }
        });
        Picture { title, ends: ends.collect(), flows, ..Picture::default() }
    }
}

/// Pods or addresses that fare alike.
#[derive(Debug, Clone)]
pub(crate) struct End {
    pub(crate) place: Place,
    /// Whether it stands for other ends too: every pod of its box, or of the cluster.
    pub(crate) every: bool,
    /// What it is called in its box.
    pub(crate) name: String,
    /// How many pods it is, and whether it is open; may be empty.
    pub(crate) note: String,
    /// What it is called in full.
    pub(crate) about: String,
    /// Its pods and addresses, by name.
    pub(crate) members: Vec<String>,
}

impl End {
    /// Notes what those that it stands for may open to each other.
    fn within(&mut self, ports: impl Iterator<Item = String>) {
        let ports: Vec<String> = ports.collect();
        let ports = ports.join("; ");
        if ports.is_empty() {
            return;
        }
        let short = match ports.split(", ").count() {
            1 => ports.clone(),
            n if ports.contains('?') => format!("{}?", plural(n, "port")),
            n => plural(n, "port"),
        };
        let note = format!("{short} within");
        self.note = if self.note.is_empty() { note } else { format!("{}, {note}", self.note) };
        self.about = format!("{}; within: {ports}", self.about);
    }
}

/// Where an end belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// At the edge: addresses outside that open connections.
    Callers,
    /// In the box of a namespace.
    Box(usize),
    /// Among the boxes.
    Cluster,
    /// At the other edge: addresses outside that connections are opened to.
    Called,
}

/// Each of the sources may open this to each of the destinations.
#[derive(Debug, Clone)]
pub(crate) struct Flow {
    /// Numbers of ends, ascending.
    pub(crate) from: Vec<usize>,
    pub(crate) to: Vec<usize>,
    pub(crate) told: Told,
}

/// What is said of a flow.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    pub(crate) kind: Kind,
    /// On what.
    pub(crate) ports: String,
    /// Whether nothing of it is sure: all depends on facts that are missing.
    pub(crate) doubtful: bool,
    /// The rules that allow it, with their places; or what caused a change.
    pub(crate) rules: Vec<String>,
    /// Why one connection of it is allowed or refused, if that was asked for.
    pub(crate) why: String,
    /// What one connection of it depends on, if some are not sure.
    pub(crate) doubt: String,
}

impl Told {
    /// That this is allowed, whatever the reason.
    fn allowed(ports: String) -> Told {
        let (rules, why, doubt) = (Vec::new(), String::new(), String::new());
        Told { kind: Kind::Allowed, ports, doubtful: false, rules, why, doubt }
    }
}

/// What a flow is. Each is told apart by shape, and by colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// It is allowed.
    Allowed,
    /// Nothing is allowed.
    Refused,
    /// More is allowed than was.
    Opened,
    /// Less is allowed than was.
    Closed,
    /// Something else is allowed than was.
    Shifted,
}

impl Kind {
    /// Its name in markup.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Kind::Allowed => "allowed",
            Kind::Refused => "refused",
            Kind::Opened => "opened",
            Kind::Closed => "closed",
            Kind::Shifted => "shifted",
        }
    }

    /// What is written before the ports, so that no colour is needed.
    pub(crate) fn sign(self) -> &'static str {
        match self {
            Kind::Allowed => "",
            Kind::Refused | Kind::Closed => "× ",
            Kind::Opened => "+ ",
            Kind::Shifted => "± ",
        }
    }
}

/// One side of a table: pods or addresses of one row or column.
pub(crate) struct Side {
    pub(crate) members: Members,
    /// That no policy isolates them here. Whatever is open may open everything to whatever is:
    /// this is noted at the ends instead of drawn.
    pub(crate) open: bool,
}

/// What a picture is drawn of. A value that is the default is nothing.
pub(crate) struct Table<V> {
    sources: Vec<Side>,
    destinations: Vec<Side>,
    /// By source, the number of its row.
    rows: Vec<usize>,
    /// The rows that there are, with a value for each destination.
    distinct: Vec<Vec<V>>,
}

/// How the values of a table are put in words.
pub(crate) trait Tell<V> {
    /// What one or several values of a pair of ends come to.
    fn together(&mut self, values: &BTreeSet<V>) -> Vec<V>;
    /// What a value allows.
    fn ports(&self, value: V) -> String;
    /// What there is to say of a value between these numbers of sources and of destinations;
    /// `None` where they may open nothing.
    fn tell(&self, sources: &[usize], destinations: &[usize], value: Option<V>) -> Told;
}

/// What is in a picture.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scope {
    /// What the picture answers.
    pub(crate) title: &'static str,
    /// Namespaces as ends, in any case. They are too if there would be more than [`MOST_ENDS`].
    pub(crate) namespaces: bool,
    /// Also what may not be opened.
    pub(crate) refused: bool,
    /// Ends without a flow are left out.
    pub(crate) only_ends_of_flows: bool,
}

/// Most ends before those of a namespace become one.
pub(crate) const MOST_ENDS: usize = 40;

impl<V: Copy + Ord + Hash + Default> Table<V> {
    /// A table with a row for each of the sources.
    pub(crate) fn of(
        sources: Vec<Side>,
        destinations: Vec<Side>,
        rows: impl IntoIterator<Item = Vec<V>>,
    ) -> Table<V> {
        let mut distinct: IndexSet<Vec<V>> = IndexSet::new();
        let rows = rows.into_iter().map(|row| distinct.insert_full(row).0).collect();
        Table { sources, destinations, rows, distinct: distinct.into_iter().collect() }
    }

    /// The picture of the table.
    pub(crate) fn draw(&self, groups: &Groups, tell: &mut impl Tell<V>, scope: Scope) -> Picture {
        let columns = self.columns();
        let mut drafts = self.drafts(groups, &columns, scope.namespaces);
        let fine = drafts.iter().filter(|d| !d.pods.is_empty()).count();
        let folded = scope.namespaces || fine > MOST_ENDS;
        if folded && !scope.namespaces {
            drafts = self.drafts(groups, &columns, true);
        }
        let drawing = Drawing { table: self, columns: &columns, groups, folded, drafts };
        drawing.picture(tell, scope, fine)
    }

    /// By destination: a number that those with equal columns share.
    fn columns(&self) -> Vec<usize> {
        let column = |at| self.distinct.iter().map(|row| row[at]).collect::<Vec<V>>();
        let mut numbers = BTreeMap::new();
        let all = 0..self.destinations.len();
        all.map(|at| {
            let next = numbers.len();
            *numbers.entry(column(at)).or_insert(next)
        })
        .collect()
    }

    fn drafts(&self, groups: &Groups, columns: &[usize], namespaces: bool) -> Vec<Draft> {
        let mut pods: BTreeMap<usize, [Vec<usize>; 2]> = BTreeMap::new();
        let mut drafts: BTreeMap<Key, Draft> = BTreeMap::new();
        let sides = [&self.sources, &self.destinations];
        for (direction, side) in sides.into_iter().enumerate() {
            for (i, Side { members, open }) in side.iter().enumerate() {
                for pod in &members.pods {
                    pods.entry(*pod).or_default()[direction].push(i);
                }
                if !members.addresses.is_empty() {
                    let alike = if direction == 0 { self.rows[i] } else { columns[i] };
                    let alike = if namespaces { 0 } else { alike };
                    let draft = drafts.entry(Key::Outside(direction, alike)).or_default();
                    draft.place = Some(if direction == 0 { Place::Callers } else { Place::Called });
                    draft.addresses.extend(&members.addresses);
                    draft.at[direction].push(i);
                    draft.open[direction].insert(*open);
                }
            }
        }
        for (pod, at) in pods {
            let (group, namespace) = groups.place(pod);
            let key = match namespaces {
                true => Key::Namespace(namespace),
                false => {
                    let key = |i: &usize| (self.rows[*i], self.sources[*i].open);
                    let row = at[0].iter().map(key).collect();
                    let key = |i: &usize| (columns[*i], self.destinations[*i].open);
                    Key::Group(group, row, at[1].iter().map(key).collect())
                }
            };
            let draft = drafts.entry(key).or_default();
            let place = if namespaces { Place::Cluster } else { Place::Box(namespace) };
            draft.place = match draft.place {
                Some(other) if other != place => Some(Place::Cluster),
                _ => Some(place),
            };
            draft.pods.push(pod);
            for (direction, at) in at.into_iter().enumerate() {
                let open = at.iter().map(|i| sides[direction][*i].open);
                draft.open[direction].extend(open);
                draft.at[direction].extend(at);
            }
        }
        let mut drafts: Vec<Draft> = drafts.into_values().collect();
        for draft in &mut drafts {
            draft.addresses.sort_unstable();
            draft.at.iter_mut().for_each(|at| {
                at.sort_unstable();
                at.dedup();
            });
        }
        drafts
    }
}

/// What goes into one end.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Outside(usize, usize),
    Namespace(usize),
    Group(usize, BTreeSet<(usize, bool)>, BTreeSet<(usize, bool)>),
}

/// An end to be.
#[derive(Debug, Default)]
struct Draft {
    place: Option<Place>,
    pods: Vec<usize>,
    addresses: Vec<portcullis_core::net::IpRange>,
    /// Numbers of sources, and of destinations.
    at: [Vec<usize>; 2],
    /// Whether its parts are open as sources, and as destinations.
    open: [BTreeSet<bool>; 2],
}

impl Draft {
    fn is_outside(&self) -> bool {
        self.pods.is_empty()
    }
}

struct Drawing<'a, V> {
    table: &'a Table<V>,
    columns: &'a [usize],
    groups: &'a Groups,
    folded: bool,
    drafts: Vec<Draft>,
}

impl<V: Copy + Ord + Hash + Default> Drawing<'_, V> {
    fn picture(self, tell: &mut impl Tell<V>, scope: Scope, fine: usize) -> Picture {
        let mut ends: Vec<End> = self.drafts.iter().map(|draft| self.end(draft)).collect();
        let mut flows = self.flows(tell, scope, &mut ends);
        let mut used: BTreeSet<usize> =
            flows.iter().flat_map(|f| f.from.iter().chain(&f.to)).copied().collect();
        if !scope.only_ends_of_flows {
            // The outside that is reached by what is open, or reaches it, is part of the picture.
            let open = |direction: usize| {
                self.drafts.iter().any(|d| !d.is_outside() && d.open[direction].contains(&true))
            };
            let shown = |end: &End| match end.place {
                Place::Callers => open(1),
                Place::Called => open(0),
                Place::Box(_) | Place::Cluster => true,
            };
            used.extend((0..ends.len()).filter(|i| shown(&ends[*i])));
        }
        let mut order: Vec<usize> = used.into_iter().collect();
        let namespace = |end: &End| match end.place {
            Place::Box(namespace) => self.groups.namespace(namespace),
            _ => "",
        };
        order.sort_by(|a, b| {
            let key = |i: usize| {
                let end = &ends[i];
                let outside = [Place::Callers, Place::Called].iter().position(|p| *p == end.place);
                (outside, namespace(end), !end.every, &end.about, i)
            };
            key(*a).cmp(&key(*b))
        });
        let number: BTreeMap<usize, usize> =
            order.iter().enumerate().map(|(new, old)| (*old, new)).collect();
        for flow in &mut flows {
            for side in [&mut flow.from, &mut flow.to] {
                side.iter_mut().for_each(|end| *end = number[end]);
                side.sort_unstable();
            }
        }
        flows.sort_by(|a, b| {
            (&a.from, &a.to, a.told.kind, &a.told.ports).cmp(&(
                &b.from,
                &b.to,
                b.told.kind,
                &b.told.ports,
            ))
        });
        let mut ends: Vec<End> = order.into_iter().map(|old| ends[old].clone()).collect();
        let boxes = boxes(&mut ends, self.groups);
        let caption = self.caption(&ends, &flows, scope, fine);
        Picture { title: scope.title, boxes, ends, flows, caption }
    }

    fn flows(&self, tell: &mut impl Tell<V>, scope: Scope, ends: &mut Vec<End>) -> Vec<Flow> {
        let facing = |direction: usize| {
            let there = |d: &usize| !self.drafts[*d].at[direction].is_empty();
            (0..self.drafts.len()).filter(there).collect::<Vec<usize>>()
        };
        let (all_sources, all_destinations) = (facing(0), facing(1));
        // Sets of values by number; 0 is none.
        let mut sets: IndexSet<Vec<V>> = IndexSet::from([Vec::new()]);
        let rows = all_sources.iter().map(|from| {
            let mut cell = |to: &usize| match self.cell(*from, *to) {
                None => NOTED,
                Some(values) => {
                    let values = tell.together(&values);
                    if self.folded && from == to && !scope.only_ends_of_flows {
                        ends[*from].within(values.iter().map(|v| tell.ports(*v)));
                        return NOTED;
                    }
                    sets.insert_full(values).0
                }
            };
            all_destinations.iter().map(&mut cell).collect::<Vec<usize>>()
        });
        let rows: Vec<Vec<usize>> = rows.collect();
        let drawn = |value: &usize| if *value == NOTED { 0 } else { *value };
        let mut products = fold(rows.iter().map(|row| row.iter().map(drawn).collect()));
        if scope.refused {
            let asked = |value: &usize| usize::from(*value == 0) * REFUSED;
            products.extend(fold(rows.iter().map(|row| row.iter().map(asked).collect())));
        }
        let mut flows = Vec::new();
        let mut every = BTreeMap::new();
        for product in products {
            let of = |numbers: &[usize], all: &[usize]| numbers.iter().map(|n| all[*n]).collect();
            let mut from: Vec<usize> = of(&product.sources, &all_sources);
            let mut to: Vec<usize> = of(&product.destinations, &all_destinations);
            self.leave_out_what_says_nothing(&mut from, &mut to);
            if from.is_empty() || to.is_empty() {
                continue;
            }
            let at = |side: &[usize], direction: usize| {
                let all = side.iter().flat_map(|d| &self.drafts[*d].at[direction]);
                all.copied().collect::<Vec<usize>>()
            };
            let (sources, destinations) = (at(&from, 0), at(&to, 1));
            let same = from == to;
            let more = |row: usize, column: usize| {
                let noted = rows[row][column] == NOTED;
                noted || all_sources[row] == all_destinations[column]
            };
            // They may do so as well, and more.
            let also_from = (0..rows.len())
                .filter(|row| product.destinations.iter().all(|column| more(*row, *column)));
            let also_from: Vec<usize> = also_from.map(|row| all_sources[row]).collect();
            let also_to = (0..all_destinations.len())
                .filter(|column| product.sources.iter().all(|row| more(*row, *column)));
            let also_to: Vec<usize> = also_to.map(|column| all_destinations[column]).collect();
            let noted =
                if product.value == REFUSED { [vec![], vec![]] } else { [also_from, also_to] };
            for (side, also) in [&mut from, &mut to].into_iter().zip(&noted) {
                self.bundle(side, also, same, &mut every, ends);
            }
            let values: Vec<Option<V>> = match product.value {
                REFUSED => vec![None],
                value => sets[value].iter().map(|v| Some(*v)).collect(),
            };
            for value in values {
                let told = tell.tell(&sources, &destinations, value);
                flows.push(Flow { from: from.clone(), to: to.clone(), told });
            }
        }
        flows
    }

    /// The values between two ends; `None` where all there is to say is noted at the ends.
    fn cell(&self, from: usize, to: usize) -> Option<BTreeSet<V>> {
        let (source, destination) = (&self.drafts[from], &self.drafts[to]);
        if source.is_outside() && destination.is_outside() {
            return None;
        }
        let mut values = BTreeSet::new();
        let mut seen = BTreeSet::new();
        for i in &source.at[0] {
            for j in &destination.at[1] {
                let (a, b) = (&self.table.sources[*i], &self.table.destinations[*j]);
                // A pod's traffic to itself makes no flow of a namespace with itself.
                let itself = a.members.is_one_pod() && a.members == b.members;
                if self.folded && itself {
                    continue;
                }
                if a.open && b.open {
                    return None;
                }
                if seen.insert((self.table.rows[*i], self.columns[*j])) {
                    values.insert(self.table.distinct[self.table.rows[*i]][*j]);
                }
            }
        }
        values.remove(&V::default());
        Some(values)
    }

    /// A pod's traffic to itself passes always, and between addresses outside nothing is asked.
    fn leave_out_what_says_nothing(&self, from: &mut Vec<usize>, to: &mut Vec<usize>) {
        let outside = |side: &[usize]| side.iter().all(|d| self.drafts[*d].is_outside());
        if outside(from) {
            to.retain(|d| !self.drafts[*d].is_outside());
        }
        if outside(to) {
            from.retain(|d| !self.drafts[*d].is_outside());
        }
        let one_pod = |side: &[usize]| match side {
            [only] => (self.drafts[*only].pods.len() == 1).then_some(*only),
            _ => None,
        };
        let (one_source, one_destination) = (one_pod(from), one_pod(to));
        from.retain(|d| Some(*d) != one_destination);
        to.retain(|d| Some(*d) != one_source);
    }

    /// Ends that are all pods of a namespace, or of the cluster, become one; `also` are others of
    /// which the same holds. Two are not worth it unless these are also the other side.
    fn bundle(
        &self,
        side: &mut Vec<usize>,
        also: &[usize],
        same: bool,
        every: &mut BTreeMap<Place, usize>,
        ends: &mut Vec<End>,
    ) {
        let worth = |ends: usize| ends > 2 || same && ends > 1;
        // How many pods these are, with the others of their namespace.
        let pods = |drafts: &[usize], namespace: Option<usize>| {
            let others = also.iter().filter(|d| !drafts.contains(d));
            let here = |d: &usize| match (namespace, self.drafts[*d].place) {
                (None, _) => true,
                (Some(namespace), place) => place == Some(Place::Box(namespace)),
            };
            let all = drafts.iter().chain(others.filter(|d| here(d)));
            all.map(|d| self.drafts[*d].pods.len()).sum::<usize>()
        };
        let mut number = |place: Place, pods: usize, about: String| {
            let all = self.groups.pods().filter(|pod| match place {
                Place::Box(namespace) => self.groups.place(*pod).1 == namespace,
                _ => true,
            });
            *every.entry(place).or_insert_with(|| {
                let (name, note) = ("every pod".to_owned(), plural(pods, "pod"));
                let members = all.map(|pod| self.groups.pod(pod).to_owned()).collect();
                ends.push(End { place, every: true, name, note, about, members });
                ends.len() - 1
            })
        };
        let inside: Vec<usize> =
            side.iter().copied().filter(|d| !self.drafts[*d].is_outside()).collect();
        let all = self.groups.pods_in(None);
        if pods(&inside, None) == all && worth(inside.len()) {
            side.retain(|d| !inside.contains(d));
            side.push(number(Place::Cluster, all, "every pod".to_owned()));
            return;
        }
        let mut by_place: BTreeMap<Place, Vec<usize>> = BTreeMap::new();
        for draft in inside {
            let place = self.drafts[draft].place.unwrap_or(Place::Cluster);
            by_place.entry(place).or_default().push(draft);
        }
        for (place, drafts) in by_place {
            let Place::Box(namespace) = place else { continue };
            let all = self.groups.pods_in(Some(namespace));
            if pods(&drafts, Some(namespace)) == all && worth(drafts.len()) {
                side.retain(|d| !drafts.contains(d));
                let about = format!("{}/*", self.groups.namespace(namespace));
                side.push(number(place, all, about));
            }
        }
    }

    fn end(&self, draft: &Draft) -> End {
        let place = draft.place.unwrap_or(Place::Cluster);
        let (name, about) = if draft.is_outside() {
            self.outside(draft)
        } else if self.folded {
            let (_, namespace) = self.groups.place(draft.pods[0]);
            let name = self.groups.namespace(namespace).to_owned();
            (name.clone(), format!("{name}/*"))
        } else {
            let full = self.groups.part(&draft.pods);
            let prefix = match place {
                Place::Box(namespace) => format!("{}/", self.groups.namespace(namespace)),
                _ => String::new(),
            };
            let name = full.strip_prefix(&prefix).unwrap_or(&full).to_owned();
            (name, full)
        };
        let pods = match draft.pods.len() {
            0 | 1 => None,
            n => Some(plural(n, "pod")),
        };
        let note: Vec<String> = pods.into_iter().chain(openness(draft)).collect();
        let pods = draft.pods.iter().map(|pod| self.groups.pod(*pod).to_owned());
        let members = pods.chain(cidrs(&draft.addresses)).collect();
        End { place, every: false, name, note: note.join(", "), about, members }
    }

    /// The part of the outside that has the most addresses is best said by what is not in it.
    fn outside(&self, draft: &Draft) -> (String, String) {
        let addresses = draft.addresses.clone();
        let items = self.groups.describe(&Members { pods: Vec::new(), addresses });
        let about = items.join(", ");
        let parts = self.drafts.iter().filter(|d| d.place == draft.place);
        let rest = parts.max_by_key(|d| d.addresses.iter().map(size).max());
        let is_rest = rest.is_some_and(|rest| std::ptr::eq(rest, draft));
        let several = self.drafts.iter().filter(|d| d.place == draft.place).count() > 1;
        let short = |item: &String| match item.split_once(" except ") {
            Some((all, parts)) => {
                format!("{all} less {}", plural(parts.split(" and ").count(), "part"))
            }
            None => item.clone(),
        };
        let name = match items.as_slice() {
            _ if is_rest && several => "any other address".to_owned(),
            [first, _, ..] => {
                let first = first.replacen(" except ", " (part) ", 1);
                let first = first.split_once(") ").map_or(first.clone(), |(f, _)| format!("{f})"));
                format!("{first} and {} more", items.len() - 1)
            }
            items => items.iter().map(short).collect(),
        };
        (name, about)
    }

    fn caption(&self, ends: &[End], flows: &[Flow], scope: Scope, fine: usize) -> Vec<String> {
        let mut caption = Vec::new();
        if self.folded {
            let why = match scope.namespaces {
                true => String::new(),
                false => format!("{fine} ends are too many for one picture: "),
            };
            caption.push(format!(
                "{why}each namespace is drawn as one, and a line says that some pod of the one may \
                 open this, or some of this, to some pod of the other."
            ));
        }
        if ends.iter().any(|end| end.note.contains("open")) {
            caption.push(
                "Open: no policy isolates it. Whatever is open or open out may open everything to \
                 whatever is open or open in."
                    .to_owned(),
            );
        }
        let mut texts = ends.iter().map(|e| &e.note).chain(flows.iter().map(|f| &f.told.ports));
        if texts.any(|text| text.contains('?')) {
            caption.push(
                "? depends on what the input does not tell, and so does all of a line of dashes \
                 and dots."
                    .to_owned(),
            );
        }
        let changes = flows.iter().any(|f| !matches!(f.told.kind, Kind::Allowed | Kind::Refused));
        if changes {
            caption.push(
                "+ and thick: more is allowed than was. × and dashed: less. ± and dotted: \
                 something else."
                    .to_owned(),
            );
        } else if scope.refused {
            caption.push("× and dashed: nothing is allowed.".to_owned());
        } else if !scope.only_ends_of_flows {
            caption.push("What has no line is refused.".to_owned());
        }
        caption
    }
}

/// A cell that is told by the notes of its ends.
const NOTED: usize = usize::MAX;
/// A product of pairs that may open nothing.
const REFUSED: usize = usize::MAX - 1;

fn openness(draft: &Draft) -> Option<String> {
    let [out, into] = draft.open.each_ref().map(|open| open.contains(&true));
    let word = match (out, into) {
        (false, false) => return None,
        (true, true) => "open",
        (true, false) => "open out",
        (false, true) => "open in",
    };
    let partly = draft.open.iter().any(|open| open.len() > 1);
    Some(if partly { format!("partly {word}") } else { word.to_owned() })
}

/// How many addresses, to the power of two below.
fn size(range: &portcullis_core::net::IpRange) -> u32 {
    let nets = range.cidrs();
    nets.iter().map(|net| u32::from(net.max_prefix_len() - net.prefix_len())).max().unwrap_or(0)
}

/// The namespaces that have ends, in order; the ends have their numbers then.
fn boxes(ends: &mut [End], groups: &Groups) -> Vec<String> {
    let mut names: Vec<(String, usize)> = Vec::new();
    for end in ends.iter() {
        if let Place::Box(namespace) = end.place {
            names.push((groups.namespace(namespace).to_owned(), namespace));
        }
    }
    names.sort();
    names.dedup();
    for end in ends {
        if let Place::Box(namespace) = end.place {
            let place = names.iter().position(|(_, n)| *n == namespace);
            end.place = place.map_or(Place::Cluster, Place::Box);
        }
    }
    names.into_iter().map(|(name, _)| name).collect()
}
