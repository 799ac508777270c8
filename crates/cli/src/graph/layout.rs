//! Where everything is on a picture. Layered, after Sugiyama, Tagawa and Toda (1981): ends in
//! columns so that most lines go to the right, with the labels of the flows in columns between
//! them; each namespace has a band across the columns that is its own. What is in a column never
//! overlaps, labels and lines that pass through included. Equal pictures get equal layouts.

use std::collections::{BTreeMap, BTreeSet};

use crate::graph::picture::{Flow, Picture, Place};
use crate::graph::text::{shortened, width, wrapped};

/// Font sizes.
pub(crate) const NAME: f64 = 13.0;
pub(crate) const NOTE: f64 = 11.0;
pub(crate) const LABEL: f64 = 11.0;
/// What bold letters are wider by.
pub(crate) const BOLD: f64 = 1.08;

/// A picture with a place for everything. Units are pixels, from the top left corner.
#[derive(Debug, Default)]
pub(crate) struct Layout {
    pub(crate) width: f64,
    pub(crate) height: f64,
    /// By number of the box.
    pub(crate) boxes: Vec<Labelled>,
    /// By number of the end.
    pub(crate) ends: Vec<Labelled>,
    /// By number of the flow.
    pub(crate) flows: Vec<Drawn>,
    /// Baselines of the caption's lines.
    pub(crate) caption: Vec<(f64, String)>,
}

/// A rectangle and the lines of text in it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Labelled {
    pub(crate) x: f64,
    pub(crate) y: f64,
    pub(crate) width: f64,
    pub(crate) height: f64,
    pub(crate) text: Vec<String>,
}

impl Labelled {
    fn middle(&self) -> f64 {
        self.y + self.height / 2.0
    }
}

/// A flow: its label, and a line from or to each of its ends.
#[derive(Debug, Clone, Default)]
pub(crate) struct Drawn {
    pub(crate) label: Labelled,
    pub(crate) lines: Vec<Line>,
}

/// A line between an end and the label of a flow.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    /// From the end to the label. Each second piece, from the first on, is a curve.
    pub(crate) points: Vec<(f64, f64)>,
    /// Whether the end opens connections.
    pub(crate) opens: bool,
    /// Whether the end accepts them.
    pub(crate) accepts: bool,
}

/// Around everything.
const MARGIN: f64 = 16.0;
/// From the border of a box to what is in it.
const PADDING: f64 = 12.0;
/// Height of the title of a box.
const TITLE: f64 = 24.0;
/// Between two boxes.
const BETWEEN: f64 = 14.0;
/// How much room there is for a kind of picture.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    /// The width that is aimed at. A picture is wider only where its names and labels are.
    pub(crate) width: f64,
    widest_end: f64,
    widest_label: f64,
    /// Between a column and the next, where lines turn.
    turn: f64,
}

impl Room {
    /// Room for a page, or for a telephone.
    pub(crate) fn of(width: u32) -> Room {
        let width = f64::from(width);
        let narrow = width < 640.0;
        Room {
            width,
            widest_end: if narrow { 126.0 } else { 200.0 },
            widest_label: if narrow { 84.0 } else { 150.0 },
            turn: if narrow { 18.0 } else { 26.0 },
        }
    }
}

/// Gives everything a place.
pub(crate) fn layout(picture: &Picture, room: Room) -> Layout {
    let mut grid = Grid::of(picture, room);
    grid.settle();
    grid.layout(picture, room)
}

/// What takes room in a column.
#[derive(Debug, Clone)]
struct Item {
    column: usize,
    /// The band; `None` at the edges, which are no namespace's.
    band: Option<usize>,
    width: f64,
    height: f64,
    /// Above, and the same below.
    space: f64,
    /// Of its middle.
    y: f64,
    text: Vec<String>,
    neighbours: Vec<usize>,
}

/// A line: the end, what it passes through, the label.
struct Way {
    flow: usize,
    end: usize,
    items: Vec<usize>,
    opens: bool,
    accepts: bool,
}

struct Grid {
    /// The ends, then the labels of the flows, then where lines pass through columns.
    items: Vec<Item>,
    ways: Vec<Way>,
    /// By column, from above.
    columns: Vec<Vec<usize>>,
    /// By band: the box that it has, its top and its height without title and padding.
    bands: Vec<Band>,
}

#[derive(Debug, Clone, Default)]
struct Band {
    number: Option<usize>,
    top: f64,
    height: f64,
}

impl Grid {
    fn of(picture: &Picture, room: Room) -> Grid {
        let mut bands = bands(picture);
        let band_of = |place: Place| match place {
            Place::Box(n) => bands.iter().position(|band| *band == Some(n)),
            Place::Cluster => bands.iter().position(Option::is_none),
            Place::Callers | Place::Called => None,
        };
        let mut items: Vec<Item> = Vec::new();
        for end in &picture.ends {
            let most = room.widest_end - 20.0;
            let mut text = vec![shortened(&end.name, NAME, most)];
            if !end.note.is_empty() {
                text.extend(wrapped(&end.note, NOTE, most));
            }
            let note = text[1..].iter().map(|line| width(line, NOTE)).fold(0.0, f64::max);
            // A box around this end alone has room for its title.
            let title = match end.place {
                Place::Box(n) => (width(&picture.boxes[n], NAME) * BOLD - 20.0).min(most),
                _ => 0.0,
            };
            let widest = width(&text[0], NAME).max(note).max(title);
            items.push(Item {
                column: 0,
                band: band_of(end.place),
                width: (widest + 20.0).max(64.0).ceil(),
                height: 30.0 + 14.0 * (text.len() - 1) as f64,
                space: 7.0,
                y: 0.0,
                text,
                neighbours: Vec::new(),
            });
        }
        let ranks = ranks(picture, &items, room);
        let middle = ranks.iter().flatten().max().map_or(0, |r| r + 1);
        let last = 2 * middle + 2;
        for (i, end) in picture.ends.iter().enumerate() {
            items[i].column = match (end.place, ranks[i]) {
                (Place::Callers, _) => 0,
                (Place::Called, _) => last,
                (_, rank) => 2 * rank.unwrap_or(0) + 2,
            };
        }
        for flow in &picture.flows {
            let text = label(flow, room);
            let widest = text.iter().map(|line| width(line, LABEL)).fold(0.0, f64::max);
            items.push(Item {
                column: label_column(flow, &items, last),
                band: label_band(flow, &items, bands.len()),
                width: (widest + 14.0).ceil(),
                height: 6.0 + 14.0 * text.len() as f64,
                space: 5.0,
                y: 0.0,
                text,
                neighbours: Vec::new(),
            });
        }
        if bands.is_empty() {
            bands.push(None);
        }
        let bands = bands.into_iter().map(|number| Band { number, ..Band::default() }).collect();
        let mut grid = Grid { items, ways: Vec::new(), columns: Vec::new(), bands };
        for (i, flow) in picture.flows.iter().enumerate() {
            let ends: BTreeSet<usize> = flow.from.iter().chain(&flow.to).copied().collect();
            for end in ends {
                let (opens, accepts) = (flow.from.contains(&end), flow.to.contains(&end));
                let items = grid.way(end, picture.ends.len() + i);
                grid.ways.push(Way { flow: i, end, items, opens, accepts });
            }
        }
        grid.columns = vec![Vec::new(); last + 1];
        for (i, item) in grid.items.iter().enumerate() {
            grid.columns[item.column].push(i);
        }
        grid.measure();
        grid
    }

    /// From an end to a label, with an item in each column between.
    fn way(&mut self, end: usize, label: usize) -> Vec<usize> {
        let (from, to) = (self.items[end].column, self.items[label].column);
        let between: Vec<usize> =
            if from < to { (from + 1..to).collect() } else { (to + 1..from).rev().collect() };
        let mut way = vec![end];
        for column in between {
            let band = self.items[label].band;
            let (width, height, space) = (0.0, 2.0, 4.0);
            let (text, neighbours) = (Vec::new(), Vec::new());
            self.items.push(Item { column, band, width, height, space, y: 0.0, text, neighbours });
            way.push(self.items.len() - 1);
        }
        way.push(label);
        for pair in way.windows(2) {
            self.items[pair[0]].neighbours.push(pair[1]);
            self.items[pair[1]].neighbours.push(pair[0]);
        }
        way
    }

    /// How high the bands are, and where.
    fn measure(&mut self) {
        let mut used: BTreeMap<(Option<usize>, usize), f64> = BTreeMap::new();
        for item in &self.items {
            *used.entry((item.band, item.column)).or_default() += item.height + 2.0 * item.space;
        }
        let highest = |band: Option<usize>| {
            used.iter().filter(|((b, _), _)| *b == band).map(|(_, h)| *h).fold(0.0, f64::max)
        };
        let mut top = 0.0;
        for (i, band) in self.bands.iter_mut().enumerate() {
            band.height = highest(Some(i));
            let (above, below) = band.around();
            band.top = top + above;
            top = band.top + band.height + below + BETWEEN;
        }
        let all = (top - BETWEEN).max(0.0);
        let edges = highest(None);
        if let Some(last) = self.bands.last_mut().filter(|_| edges > all) {
            last.height += edges - all;
        }
    }

    fn height(&self) -> f64 {
        self.bands.last().map_or(0.0, |last| last.top + last.height + last.around().1)
    }

    /// Finds the order of the items in their columns, and their places.
    fn settle(&mut self) {
        for column in 0..self.columns.len() {
            self.put(column, &|_, item| item.y);
        }
        let mut best = (f64::INFINITY, Vec::new());
        for round in 0..24 {
            let rightwards = round % 2 == 0;
            let all: Vec<usize> = match rightwards {
                true => (0..self.columns.len()).collect(),
                false => (0..self.columns.len()).rev().collect(),
            };
            for column in all {
                self.put(column, &|items: &[Item], item: &Item| {
                    let before = |n: &&usize| (items[**n].column < item.column) == rightwards;
                    let some: Vec<usize> = item.neighbours.iter().filter(before).copied().collect();
                    level(
                        items,
                        item,
                        if some.is_empty() || round > 15 { &item.neighbours } else { &some },
                    )
                    .unwrap_or(item.y)
                });
            }
            let bad = self.badness();
            if bad < best.0 {
                best = (bad, self.items.iter().map(|item| item.y).collect());
            }
        }
        for (item, y) in self.items.iter_mut().zip(best.1) {
            item.y = y;
        }
        let items = &self.items;
        for column in &mut self.columns {
            column.sort_by(|a, b| items[*a].y.total_cmp(&items[*b].y));
        }
    }

    /// Puts the items of a column as near to where they want to be as they can, within their bands
    /// and without touching.
    fn put(&mut self, column: usize, wish: &dyn Fn(&[Item], &Item) -> f64) {
        let items = &self.items;
        let mut wishes: Vec<(Option<usize>, f64, usize)> = self.columns[column]
            .iter()
            .map(|i| (items[*i].band, wish(items, &items[*i]), *i))
            .collect();
        wishes.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
        for group in wishes.chunk_by(|a, b| a.0 == b.0) {
            let (top, height) = match group[0].0 {
                Some(band) => (self.bands[band].top, self.bands[band].height),
                None => (0.0, self.height()),
            };
            let sizes: Vec<f64> = group
                .iter()
                .map(|(_, _, i)| self.items[*i].height + 2.0 * self.items[*i].space)
                .collect();
            let wanted: Vec<f64> =
                group.iter().zip(&sizes).map(|((_, y, _), size)| y - size / 2.0).collect();
            for (place, ((_, _, i), size)) in
                spread(&wanted, &sizes, top, top + height).into_iter().zip(group.iter().zip(&sizes))
            {
                self.items[*i].y = place + size / 2.0;
            }
        }
        self.columns[column] = wishes.into_iter().map(|(_, _, i)| i).collect();
    }

    /// How far lines go up and down, and how often they cross.
    fn badness(&self) -> f64 {
        let mut bad = 0.0;
        let mut pieces: Vec<Vec<(f64, f64)>> = vec![Vec::new(); self.columns.len()];
        for way in &self.ways {
            for pair in way.items.windows(2) {
                let (a, b) = (&self.items[pair[0]], &self.items[pair[1]]);
                let (left, right) = if a.column < b.column { (a, b) } else { (b, a) };
                bad += (left.y - right.y).abs();
                pieces[left.column].push((left.y, right.y));
            }
        }
        for pieces in &pieces {
            for (i, a) in pieces.iter().enumerate() {
                for b in &pieces[..i] {
                    bad += if (a.0 - b.0) * (a.1 - b.1) < 0.0 { 30.0 } else { 0.0 };
                }
            }
        }
        bad
    }

    fn layout(&self, picture: &Picture, room: Room) -> Layout {
        let columns = self.spans(room);
        let (ends, flows) = (picture.ends.len(), picture.flows.len());
        let right = columns.last().map_or(0.0, |c| c.1) + PADDING + MARGIN;
        let place = |i: usize| {
            let item = &self.items[i];
            let (left, to) = columns[item.column];
            // Ends of a column are equally wide, labels as wide as they have to be.
            let width = if i < ends { to - left } else { item.width };
            let x = (left + (to - left - width) / 2.0).round();
            let y = (MARGIN + item.y - item.height / 2.0).round();
            Labelled { x, y, width, height: item.height, text: item.text.clone() }
        };
        let mut layout = Layout {
            width: right.ceil(),
            height: self.height() + 2.0 * MARGIN,
            boxes: vec![Labelled::default(); picture.boxes.len()],
            ends: (0..ends).map(place).collect(),
            flows: (ends..ends + flows).map(|i| Drawn { label: place(i), lines: vec![] }).collect(),
            caption: Vec::new(),
        };
        self.draw_boxes(picture, &columns, &mut layout);
        self.draw_lines(&columns, &mut layout);
        let widest = (layout.width - 2.0 * MARGIN).max(room.width.min(560.0) - 2.0 * MARGIN);
        layout.height += if picture.caption.is_empty() { 0.0 } else { 8.0 };
        for sentence in &picture.caption {
            for line in wrapped(sentence, NOTE, widest) {
                layout.width = layout.width.max((width(&line, NOTE) + 2.0 * MARGIN).ceil());
                layout.caption.push((layout.height, line));
                layout.height += 15.0;
            }
        }
        layout.height = layout.height.ceil();
        layout
    }

    /// Where each column begins and ends.
    fn spans(&self, room: Room) -> Vec<(f64, f64)> {
        let mut x: f64 = MARGIN;
        let mut spans = Vec::new();
        let (mut first, mut after_edge) = (true, false);
        for column in &self.columns {
            let width = column.iter().map(|i| self.items[*i].width).fold(0.0, f64::max);
            // A column that nothing has a width in is only passed through.
            if width > 0.0 {
                // Around the columns at the edges there are no boxes.
                let edge = column.iter().any(|i| self.items[*i].band.is_none());
                x += match (first, edge || after_edge) {
                    (true, true) => 0.0,
                    (true, false) => PADDING,
                    (false, true) => room.turn + PADDING,
                    (false, false) => room.turn,
                };
                (first, after_edge) = (false, edge);
            }
            spans.push((x, x + width));
            x += width;
        }
        spans
    }

    fn draw_boxes(&self, picture: &Picture, columns: &[(f64, f64)], layout: &mut Layout) {
        for (i, band) in self.bands.iter().enumerate() {
            let Some(number) = band.number else { continue };
            let mine = |place: Place| place == Place::Box(number);
            let mut left = f64::INFINITY;
            let mut right: f64 = 0.0;
            for (end, item) in picture.ends.iter().zip(&self.items) {
                if mine(end.place) {
                    left = left.min(columns[item.column].0);
                    right = right.max(columns[item.column].1);
                }
            }
            for (flow, drawn) in picture.flows.iter().zip(&layout.flows) {
                let inside = flow.from.iter().chain(&flow.to);
                if inside.copied().all(|end| mine(picture.ends[end].place)) {
                    left = left.min(drawn.label.x);
                    right = right.max(drawn.label.x + drawn.label.width);
                }
            }
            let title = &picture.boxes[number];
            let (above, below) = band.around();
            let most = right - left + 2.0 * PADDING;
            layout.boxes[number] = Labelled {
                x: (left - PADDING).round(),
                y: (MARGIN + self.bands[i].top - above).round(),
                width: most.round(),
                height: (band.height + above + below).round(),
                text: vec![shortened(title, NAME * BOLD, most - 2.0 * PADDING)],
            };
        }
    }

    fn draw_lines(&self, columns: &[(f64, f64)], layout: &mut Layout) {
        // Lines that meet an end at one side are spread over it, in the order in which they come.
        let mut at_side: BTreeMap<(usize, bool), Vec<usize>> = BTreeMap::new();
        for (i, way) in self.ways.iter().enumerate() {
            let next = &self.items[way.items[1]];
            at_side.entry((way.end, next.column > self.items[way.end].column)).or_default().push(i);
        }
        let mut starts = vec![0.0; self.ways.len()];
        for ((end, _), mut ways) in at_side {
            ways.sort_by(|a, b| {
                let y = |w: &usize| self.items[self.ways[*w].items[1]].y;
                y(a).total_cmp(&y(b))
            });
            let rect = &layout.ends[end];
            let step = (11.0_f64).min((rect.height - 10.0) / ways.len() as f64);
            for (i, way) in ways.iter().enumerate() {
                let from_middle = i as f64 - (ways.len() - 1) as f64 / 2.0;
                starts[*way] = rect.middle() + from_middle * step;
            }
        }
        for (way, start) in self.ways.iter().zip(starts) {
            let (end, label) = (&layout.ends[way.end], &layout.flows[way.flow].label);
            let rightwards = self.items[way.items[1]].column > self.items[way.end].column;
            let sides =
                |x: f64, width: f64| if rightwards { (x, x + width) } else { (x + width, x) };
            let mut points = vec![(sides(end.x, end.width).1, start)];
            for item in &way.items[1..way.items.len() - 1] {
                let (left, right) = columns[self.items[*item].column];
                if left == right {
                    continue;
                }
                let (near, far) = sides(left, right - left);
                let y = MARGIN + self.items[*item].y;
                points.extend([(near, y), (far, y)]);
            }
            let (left, right) = columns[self.items[way.items[way.items.len() - 1]].column];
            points.push((sides(left, right - left).0, label.middle()));
            points.push((sides(label.x, label.width).0, label.middle()));
            let points = points.into_iter().map(|(x, y)| (round(x), round(y))).collect();
            let Way { opens, accepts, .. } = *way;
            layout.flows[way.flow].lines.push(Line { points, opens, accepts });
        }
    }
}

impl Band {
    /// What is above its items, and below.
    fn around(&self) -> (f64, f64) {
        if self.number.is_some() { (TITLE, PADDING - 4.0) } else { (0.0, 0.0) }
    }
}

/// To half a pixel.
fn round(value: f64) -> f64 {
    (value * 2.0).round() / 2.0
}

/// Where an item is level with its neighbours. Lines that only pass through keep straight.
fn level(items: &[Item], item: &Item, neighbours: &[usize]) -> Option<f64> {
    let passes = |item: &Item| item.width == 0.0;
    let (mut sum, mut weights) = (0.0, 0.0);
    for neighbour in neighbours.iter().map(|i| &items[*i]) {
        let weight = match (passes(item), passes(neighbour)) {
            (true, true) => 8.0,
            (false, false) => 1.0,
            _ => 2.0,
        };
        sum += weight * neighbour.y;
        weights += weight;
    }
    (weights > 0.0).then(|| sum / weights)
}

/// Where things of these sizes begin so that none overlap, in their order, between two bounds,
/// with the least sum of squares from where they wish to begin.
fn spread(wishes: &[f64], sizes: &[f64], first: f64, last: f64) -> Vec<f64> {
    // Blocks of things that touch: what they wish for on average, how many, and their size.
    let mut blocks: Vec<(f64, usize, f64)> = Vec::new();
    for (wish, size) in wishes.iter().zip(sizes) {
        let mut block = (*wish, 1, *size);
        while let Some(before) = blocks.last().copied().filter(|b| b.0 + b.2 > block.0) {
            blocks.pop();
            let (n, m) = (before.1 as f64, block.1 as f64);
            let wish = (before.0 * n + (block.0 - before.2) * m) / (n + m);
            block = (wish, before.1 + block.1, before.2 + block.2);
        }
        blocks.push(block);
    }
    // Into the bounds: from below, then from above.
    let mut limit = last;
    for block in blocks.iter_mut().rev() {
        block.0 = block.0.min(limit - block.2);
        limit = block.0;
    }
    let mut limit = first;
    for block in &mut blocks {
        block.0 = block.0.max(limit);
        limit = block.0 + block.2;
    }
    let mut places = Vec::with_capacity(wishes.len());
    let mut sizes = sizes.iter();
    for (start, count, _) in blocks {
        let mut next = start;
        for size in sizes.by_ref().take(count) {
            places.push(next);
            next += size;
        }
    }
    places
}

/// The bands from above, by the number of their box: so that those with flows between them are
/// near to each other.
fn bands(picture: &Picture) -> Vec<Option<usize>> {
    let of = |end: usize| match picture.ends[end].place {
        Place::Box(n) => Some(Some(n)),
        Place::Cluster => Some(None),
        Place::Callers | Place::Called => None,
    };
    let there: BTreeSet<Option<usize>> = (0..picture.ends.len()).filter_map(of).collect();
    let mut order: Vec<Option<usize>> = there.into_iter().collect();
    let flows: Vec<BTreeSet<Option<usize>>> = picture
        .flows
        .iter()
        .map(|flow| flow.from.iter().chain(&flow.to).filter_map(|end| of(*end)).collect())
        .filter(|bands: &BTreeSet<_>| bands.len() > 1)
        .collect();
    let length = |order: &[Option<usize>]| {
        let place = |band: &Option<usize>| order.iter().position(|b| b == band).unwrap_or(0);
        let spans = flows.iter().map(|bands| {
            let places = bands.iter().map(place);
            places.clone().max().unwrap_or(0) - places.min().unwrap_or(0)
        });
        spans.sum::<usize>()
    };
    let mut best = length(&order);
    for _ in 0..order.len().min(12) {
        let before = best;
        for i in 0..order.len() {
            for j in i + 1..order.len() {
                order.swap(i, j);
                match length(&order) {
                    shorter if shorter < best => best = shorter,
                    _ => order.swap(i, j),
                }
            }
        }
        if best == before {
            break;
        }
    }
    order
}

/// The column of each end among those that pods are in, from 0; `None` for addresses outside.
fn ranks(picture: &Picture, items: &[Item], room: Room) -> Vec<Option<usize>> {
    let inside = |end: usize| matches!(picture.ends[end].place, Place::Box(_) | Place::Cluster);
    let count = picture.ends.len();
    let most = most_columns(picture, items, room);
    // Bands are apart from each other anyway: with too many steps those within one count.
    let mut ranks = steps(picture, &|from, to| inside(from) && inside(to));
    if ranks.iter().any(|rank| *rank >= most) {
        ranks = steps(picture, &|from, to| {
            let together = items[from].band == items[to].band || picture.ends[from].every;
            inside(from) && inside(to) && together
        });
    }
    let deepest = ranks.iter().copied().max().unwrap_or(0);
    if deepest >= most {
        ranks.iter_mut().for_each(|rank| *rank = *rank * most / (deepest + 1));
    }
    let columns = ranks.iter().max().map_or(1, |rank| rank + 1);
    // Ends without a flow go where their band has room.
    let idle = |end: usize| {
        inside(end) && picture.flows.iter().all(|f| !f.from.contains(&end) && !f.to.contains(&end))
    };
    let mut filled: BTreeMap<(Option<usize>, usize), usize> = BTreeMap::new();
    for end in (0..count).filter(|end| inside(*end) && !idle(*end)) {
        *filled.entry((items[end].band, ranks[end])).or_default() += 1;
    }
    let mut of_band: BTreeMap<Option<usize>, usize> = BTreeMap::new();
    for item in items.iter().filter(|item| item.band.is_some()) {
        *of_band.entry(item.band).or_default() += 1;
    }
    for end in (0..count).filter(|end| idle(*end)) {
        let band = items[end].band;
        let wanted = of_band[&band].div_ceil(3).clamp(columns, most.max(columns));
        let emptiest = (0..wanted).min_by_key(|c| filled.get(&(band, *c)).copied().unwrap_or(0));
        ranks[end] = emptiest.unwrap_or(0);
        *filled.entry((band, ranks[end])).or_default() += 1;
    }
    (0..count).map(|end| inside(end).then_some(ranks[end])).collect()
}

/// How many steps of flows lead to each end, of those between the pairs that count.
fn steps(picture: &Picture, counts: &dyn Fn(usize, usize) -> bool) -> Vec<usize> {
    let count = picture.ends.len();
    let mut pairs: BTreeSet<(usize, usize)> = BTreeSet::new();
    // Who calls along with the outside is not to the left of all that takes calls from anywhere.
    let outside = |end: &usize| picture.ends[*end].place == Place::Callers;
    for flow in picture.flows.iter().filter(|flow| !flow.from.iter().any(outside)) {
        for from in &flow.from {
            let to = flow.to.iter().filter(|to| *to != from && counts(*from, **to));
            pairs.extend(to.map(|to| (*from, *to)));
        }
    }
    // What goes both ways says nothing of left and right.
    let one_way: BTreeSet<(usize, usize)> =
        pairs.iter().filter(|(a, b)| !pairs.contains(&(*b, *a))).copied().collect();
    let order = order(count, &one_way);
    let mut ranks = vec![0; count];
    for end in &order {
        for (_, to) in one_way.range((*end, 0)..(*end + 1, 0)) {
            if position(&order, *to) > position(&order, *end) {
                ranks[*to] = ranks[*to].max(ranks[*end] + 1);
            }
        }
    }
    // Who only opens connections is near to where they go.
    for end in order.iter().rev() {
        let opened_to = one_way.range((*end, 0)..(*end + 1, 0)).map(|(_, to)| ranks[*to]);
        let nearest = opened_to.filter(|rank| *rank > ranks[*end]).min();
        if let Some(nearest) = nearest.filter(|_| one_way.iter().all(|(_, to)| to != end)) {
            ranks[*end] = nearest - 1;
        }
    }
    ranks
}

fn position(order: &[usize], end: usize) -> usize {
    order.iter().position(|e| *e == end).unwrap_or(0)
}

/// How many columns of pods there is room for.
fn most_columns(picture: &Picture, items: &[Item], room: Room) -> usize {
    let widest = |edge: bool| {
        let some = items.iter().filter(|item| item.band.is_none() == edge);
        some.map(|item| item.width).fold(0.0, f64::max)
    };
    let labels = picture.flows.iter().flat_map(|flow| label(flow, room));
    let label = labels.map(|line| width(&line, LABEL) + 14.0).fold(0.0, f64::max);
    let edges = [Place::Callers, Place::Called]
        .iter()
        .filter(|place| picture.ends.iter().any(|end| end.place == **place))
        .count() as f64;
    let left = room.width - 2.0 * (MARGIN + PADDING) - edges * (widest(true) + room.turn);
    let each = widest(false) + label + 2.0 * room.turn;
    ((left / each) as usize).clamp(1, 6)
}

/// An order of all in which few pairs go back, after Eades, Lin and Smyth (1993).
fn order(count: usize, pairs: &BTreeSet<(usize, usize)>) -> Vec<usize> {
    let mut left: BTreeSet<usize> = (0..count).collect();
    let (mut head, mut tail) = (Vec::new(), Vec::new());
    let mut out = vec![0_i64; count];
    let mut into = vec![0_i64; count];
    for (from, to) in pairs {
        out[*from] += 1;
        into[*to] += 1;
    }
    while !left.is_empty() {
        let sink = left.iter().copied().find(|end| out[*end] == 0);
        let source = left.iter().copied().find(|end| into[*end] == 0);
        let most = left.iter().copied().max_by_key(|end| (out[*end] - into[*end], -(*end as i64)));
        let Some(next) = sink.or(source).or(most) else { break };
        left.remove(&next);
        if sink.is_some() {
            tail.push(next)
        } else {
            head.push(next)
        }
        for (from, to) in pairs {
            if *from == next {
                into[*to] -= 1;
            }
            if *to == next {
                out[*from] -= 1;
            }
        }
    }
    head.extend(tail.into_iter().rev());
    head
}

/// The column between ends that a flow's label is nearest to all of them in: to the right of those
/// who open, to the left of those who accept, where it can be.
fn label_column(flow: &Flow, items: &[Item], last: usize) -> usize {
    let cost = |column: usize| {
        let away = |end: &usize| column.abs_diff(items[*end].column) / 2;
        let from = flow.from.iter().map(|e| 4 * away(e) + usize::from(items[*e].column > column));
        let to = flow.to.iter().map(|e| 4 * away(e) + usize::from(items[*e].column < column));
        from.chain(to).sum::<usize>()
    };
    (1..last).step_by(2).min_by_key(|column| cost(*column)).unwrap_or(1)
}

/// The band that most of the ends of a flow are in.
fn label_band(flow: &Flow, items: &[Item], bands: usize) -> Option<usize> {
    let mut counts = vec![0; bands.max(1)];
    for end in flow.from.iter().chain(&flow.to) {
        if let Some(band) = items[*end].band {
            counts[band] += 1;
        }
    }
    // Of equals, that of the one who accepts.
    for end in &flow.to {
        if let (Some(band), [_]) = (items[*end].band, flow.to.as_slice()) {
            counts[band] += flow.from.len();
        }
    }
    (0..counts.len()).max_by_key(|band| (counts[*band], counts.len() - band))
}

/// The lines of a flow's label. Ports that have no room in three are counted.
fn label(flow: &Flow, room: Room) -> Vec<String> {
    let text = format!("{}{}", flow.told.kind.sign(), flow.told.ports);
    let lines = wrapped(&text, LABEL, room.widest_label);
    if lines.len() <= 3 {
        return lines;
    }
    let rest = lines[2..].join(" ");
    let doubt = if rest.contains('?') { "?" } else { "" };
    let rest = format!("and {} more{doubt}", rest.split(", ").count());
    vec![lines[0].clone(), lines[1].clone(), rest]
}
