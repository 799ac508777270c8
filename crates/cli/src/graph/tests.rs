//! Pictures of the examples, of the scenarios and of generated clusters: they say what the engine
//! says, and everything on them can be read.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use portcullis_core::net::Family;
use portcullis_core::program::{Judgement, Path};
use portcullis_kube::{Options, Source, load};
use portcullis_tests::generate::{Counts, cluster};
use portcullis_tests::manifests;

use super::layout::{BOLD, LABEL, Labelled, Layout, NAME, NOTE};
use super::picture::{End as PictureEnd, Flow as PictureFlow, Place};
use super::*;
use crate::graph::text::width;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(source: Source) -> Input {
    let input = load(&[source], &Options::default());
    assert!(!input.cluster.pods.is_empty());
    input
}

/// The examples, the scenarios, and clusters of some sizes.
fn inputs() -> Vec<(String, Input)> {
    let mut inputs = Vec::new();
    for folder in ["examples", "tests/scenarios"] {
        let entries = std::fs::read_dir(root().join(folder)).unwrap();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        for path in paths.into_iter().filter(|path| !path.ends_with("README.md")) {
            inputs.push((path.display().to_string(), read(Source::Path(path))));
        }
    }
    for (seed, namespaces, pods, policies, facts) in [
        (1, 2, 10, 6, true),
        (2, 3, 24, 12, true),
        (2, 3, 24, 12, false),
        (3, 5, 40, 30, true),
        (3, 5, 40, 30, false),
        (4, 12, 200, 300, true),
    ] {
        let counts = Counts { namespaces, nodes: 2, pods, policies };
        let mut world = cluster(seed, counts);
        if !facts {
            world.cluster.namespaces.clear();
            world.cluster.pods.iter_mut().step_by(3).for_each(|pod| pod.addresses.clear());
        }
        let text = manifests::yaml(&world);
        let name = format!("cluster {seed}");
        inputs.push((name.clone(), read(Source::Text { name, text })));
    }
    assert!(inputs.len() > 30, "inputs are missing");
    inputs
}

/// What `portcullis graph` draws with these arguments.
fn picture(input: &Input, arguments: &[&str]) -> Picture {
    #[derive(clap::Parser)]
    struct Arguments {
        #[command(flatten)]
        graph: Graph,
    }
    let arguments = ["graph"].iter().chain(arguments);
    let Graph { question, refused, output, .. } =
        <Arguments as clap::Parser>::try_parse_from(arguments).unwrap().graph;
    let program = Program::compile(&input.cluster);
    let names = Names::of(&input.cluster);
    let page = question.page(input, &program, &names).unwrap();
    let asked = Asked { input, program: &program, names: &names };
    asked.picture(&question, page, refused, output)
}

/// Whether a list of ports as people read it has a port: `80, 443/TCP, 53/UDP?`; surely, or at
/// least perhaps.
fn has(ports: &str, traffic: Traffic, surely: bool) -> bool {
    let mut waiting: Vec<&str> = Vec::new();
    for item in ports.split(", ") {
        let (item, sure) = item.strip_suffix('?').map_or((item, true), |item| (item, false));
        let Traffic::Port(protocol, port) = traffic else {
            if item == "everything" && (sure || !surely) {
                return true;
            }
            continue;
        };
        let (range, of) = item.rsplit_once('/').map_or((item, None), |(r, p)| (r, Some(p)));
        waiting.push(range);
        let all = item.strip_prefix("all ");
        let Some(of) = of.or(all).or((item == "everything").then_some("")) else { continue };
        let fits = |range: &str| match range.split_once('-') {
            Some((first, last)) => (first.parse().unwrap()..=last.parse().unwrap()).contains(&port),
            None => range.parse() == Ok(port),
        };
        let any = all.is_some() || of.is_empty();
        if surely && !sure {
            waiting.clear();
            continue;
        }
        if (of.is_empty() || of == protocol.as_str()) && (any || waiting.iter().any(|r| fits(r))) {
            return true;
        }
        waiting.clear();
    }
    false
}

/// The traffic to try: each port that a picture names and one that none does.
fn traffics(picture: &Picture) -> Vec<Traffic> {
    let mut ports = BTreeSet::from([39_999]);
    for flow in &picture.flows {
        let numbers = flow.told.ports.split(|c: char| !c.is_ascii_digit());
        ports.extend(numbers.filter_map(|n| n.parse::<u16>().ok()).filter(|n| *n > 6));
    }
    let of = |port: u16| Protocol::ALL.map(|protocol| Traffic::Port(protocol, port));
    ports.into_iter().flat_map(of).chain([Traffic::Other]).collect()
}

/// A pod by its name, or an address of a CIDR.
fn end(input: &Input, member: &str) -> End {
    let is =
        |pod: &portcullis_core::model::Pod| format!("{}/{}", pod.namespace, pod.name) == member;
    match input.cluster.pods.iter().position(is) {
        Some(pod) => End::Pod(pod),
        None => {
            let address: IpAddr = member.split('/').next().unwrap().parse().unwrap();
            let next = next_address(address).unwrap();
            End::Address(if member.contains('/') { next } else { address })
        }
    }
}

/// What a list has of one family: `80/TCP? on IPv4`, `IPv4: 80/TCP?; IPv6: everything`.
fn on(ports: &str, family: Family) -> &str {
    if let Some((v4, v6)) = ports.strip_prefix("IPv4: ").and_then(|p| p.split_once("; IPv6: ")) {
        return if family == Family::V4 { v4 } else { v6 };
    }
    match ports.split_once(" on ") {
        None => ports,
        Some((ports, only)) if only == family.to_string() => ports,
        Some(_) => "",
    }
}

/// What the policies at both ends say, as [`crate::reach`] tells it.
fn judge(program: &Program, path: &Path, traffic: Traffic) -> Judgement {
    Direction::ALL.map(|at| program.judge_end(path, at, traffic)).into_iter().min().unwrap()
}

#[test]
fn every_line_is_allowed_and_everything_allowed_has_a_line() {
    let mut tried = [0; 3];
    for (name, input) in inputs() {
        let picture = picture(&input, &[]);
        let folded = picture
            .ends
            .iter()
            .any(|end| end.members.len() > 1 && end.place == Place::Cluster && !end.every);
        if folded {
            continue;
        }
        let program = Program::compile(&input.cluster);
        let traffics = traffics(&picture);
        for Told { doubtful, ports, .. } in picture.flows.iter().map(|flow| &flow.told) {
            let on = Family::ALL.map(|family| on(ports, family));
            let sure = traffics.iter().any(|t| on.iter().any(|ports| has(ports, *t, true)));
            assert_ne!(*doubtful, sure, "{name}: {ports}");
        }
        let notes =
            |end: &PictureEnd, word: &str| end.note.ends_with(word) || end.note.ends_with("open");
        let of_ends = picture.ends.iter().enumerate().filter(|(_, end)| !end.every);
        for (i, from) in of_ends.clone().filter(|(_, end)| end.place != Place::Called) {
            for (j, to) in of_ends.clone().filter(|(_, end)| end.place != Place::Callers) {
                let covers = |ends: &[usize], number: usize, end: &PictureEnd| {
                    ends.iter().any(|e| {
                        let all = &picture.ends[*e];
                        *e == number
                            || all.every && end.members.iter().all(|m| all.members.contains(m))
                    })
                };
                let flows: Vec<&PictureFlow> = picture
                    .flows
                    .iter()
                    .filter(|flow| covers(&flow.from, i, from) && covers(&flow.to, j, to))
                    .collect();
                let noted = notes(from, "open out") && notes(to, "open in");
                // The ends of an end fare alike: two of each are enough.
                for a in from.members.iter().take(2).map(|m| end(&input, m)) {
                    for b in to.members.iter().rev().take(2).map(|m| end(&input, m)) {
                        let of_a_pod = |e: &End| matches!(e, End::Address(a) if program.endpoint(*a).pod.is_some());
                        let outside = [a, b].iter().all(|e| matches!(e, End::Address(_)))
                            || [a, b].iter().any(of_a_pod);
                        let exempt =
                            program.paths(a, b).any(|path| program.exempt(&path).is_some());
                        if outside || exempt || program.paths(a, b).next().is_none() {
                            continue;
                        }
                        for traffic in &traffics {
                            let drawn = Family::ALL.map(|family| {
                                let has = |surely: bool| {
                                    let has =
                                        |ports: &str| has(on(ports, family), *traffic, surely);
                                    noted || flows.iter().any(|flow| has(&flow.told.ports))
                                };
                                match [true, false].map(has) {
                                    [true, _] => Judgement::Allowed,
                                    [false, true] => Judgement::Undetermined,
                                    [false, false] => Judgement::Refused,
                                }
                            });
                            for path in program.paths(a, b) {
                                let drawn = match (path.family(), drawn) {
                                    (Some(family), drawn) => drawn[family as usize],
                                    // It has no address yet, and so may have either.
                                    (None, [v4, v6]) if v4 == v6 => v4,
                                    (None, _) => Judgement::Undetermined,
                                };
                                let judgement = judge(&program, &path, *traffic);
                                assert_eq!(
                                    drawn, judgement,
                                    "{name}: {} -> {} on {traffic}",
                                    from.about, to.about
                                );
                                tried[judgement as usize] += 1;
                            }
                        }
                    }
                }
            }
        }
    }
    assert!(tried.iter().sum::<usize>() > 10_000, "only {tried:?} connections were tried");
    assert!(tried.iter().all(|count| *count > 100), "only {tried:?} connections were tried");
}

#[test]
fn a_folded_picture_has_a_line_exactly_where_some_pod_may_reach_some_pod() {
    let (_, input) = inputs().pop().unwrap();
    let picture = picture(&input, &[]);
    assert!(picture.caption[0].contains("each namespace is drawn as one"), "{:?}", picture.caption);
    let program = Program::compile(&input.cluster);
    let pods = |namespace: &str| {
        let all = input.cluster.pods.iter().enumerate();
        let ours = all.filter(|(_, pod)| pod.namespace == namespace && !pod.finished);
        ours.map(|(i, _)| End::Pod(i)).collect::<Vec<End>>()
    };
    let of_ends = || {
        picture.ends.iter().enumerate().filter(|(_, end)| end.place == Place::Cluster && !end.every)
    };
    let mut drawn_lines = 0;
    for (i, from) in of_ends() {
        for (j, to) in of_ends().filter(|(j, _)| *j != i) {
            let every = |ends: &[usize], number: usize| {
                ends.iter().any(|e| *e == number || picture.ends[*e].every)
            };
            let lines = picture.flows.iter().filter(|f| every(&f.from, i) && every(&f.to, j));
            let line = lines.clone().count() > 0;
            let open = |end: &PictureEnd, out: bool| {
                let opposite = if out { "open in" } else { "open out" };
                end.note.contains("open") && !end.note.contains(opposite)
            };
            let noted = open(from, true) && open(to, false);
            let drawn = match lines.clone().all(|flow| flow.told.doubtful) {
                _ if noted => Judgement::Allowed,
                true if line => Judgement::Undetermined,
                true => Judgement::Refused,
                false => Judgement::Allowed,
            };
            let pairs = pods(&from.name)
                .into_iter()
                .flat_map(|a| pods(&to.name).into_iter().map(move |b| (a, b)));
            let ports = [53, 80, 443, 3868, 5432, 8000, 8080, 8081, 9000, 9090, 9100, 9187];
            let traffics = ports
                .into_iter()
                .flat_map(|port| Protocol::ALL.map(|protocol| Traffic::Port(protocol, port)));
            let judgements = pairs.flat_map(|(a, b)| {
                let paths = program.paths(a, b).collect::<Vec<Path>>();
                let program = &program;
                traffics.clone().flat_map(move |traffic| {
                    let judge = |path: &Path| judge(program, path, traffic);
                    paths.iter().map(judge).collect::<Vec<Judgement>>()
                })
            });
            let judgement = judgements.max().unwrap_or(Judgement::Refused);
            assert_eq!(drawn, judgement, "{} -> {}", from.name, to.name);
            drawn_lines += usize::from(line);
        }
    }
    assert!(drawn_lines > 5);
}

fn inside(inner: &Labelled, outer: &Labelled) -> bool {
    inner.x >= outer.x
        && inner.y >= outer.y
        && inner.x + inner.width <= outer.x + outer.width
        && inner.y + inner.height <= outer.y + outer.height
}

fn apart(a: &Labelled, b: &Labelled) -> bool {
    a.x + a.width <= b.x || b.x + b.width <= a.x || a.y + a.height <= b.y || b.y + b.height <= a.y
}

fn assert_readable(name: &str, picture: &Picture, layout: &Layout) {
    let canvas = Labelled { width: layout.width, height: layout.height, ..Labelled::default() };
    let boxes: Vec<&Labelled> = layout.boxes.iter().filter(|b| b.width > 0.0).collect();
    let labels: Vec<&Labelled> =
        layout.ends.iter().chain(layout.flows.iter().map(|f| &f.label)).collect();
    for all in [&boxes, &labels] {
        for (i, a) in all.iter().enumerate() {
            assert!(inside(a, &canvas), "{name}: {a:?} leaves the canvas");
            for b in &all[..i] {
                assert!(apart(a, b), "{name}: {a:?} overlaps {b:?}");
            }
        }
    }
    let of_ends = layout.ends.iter().map(|label| (label, [NAME, NOTE]));
    let of_flows = layout.flows.iter().map(|flow| (&flow.label, [LABEL, LABEL]));
    let of_boxes = boxes.iter().map(|label| (*label, [NAME * BOLD; 2]));
    for (label, [first, others]) in of_ends.chain(of_flows).chain(of_boxes) {
        assert!(!label.text.is_empty());
        for (i, line) in label.text.iter().enumerate() {
            let wide = width(line, if i == 0 { first } else { others });
            assert!(wide <= label.width - 8.0, "{name}: {line:?} leaves {label:?}");
        }
        assert!(14.0 * label.text.len() as f64 <= label.height, "{name}: {label:?} is too low");
    }
    for (end, label) in picture.ends.iter().zip(&layout.ends) {
        for (number, outline) in layout.boxes.iter().enumerate().filter(|(_, b)| b.width > 0.0) {
            let mine = end.place == Place::Box(number);
            assert!(
                if mine { inside(label, outline) } else { apart(label, outline) },
                "{name}: {end:?}"
            );
        }
    }
    for line in layout.flows.iter().flat_map(|flow| &flow.lines) {
        for pair in line.points.windows(2).skip(1).step_by(2) {
            let (left, right) = (pair[0].0.min(pair[1].0), pair[0].0.max(pair[1].0));
            let level =
                Labelled { x: left, y: pair[0].1, width: right - left, ..Labelled::default() };
            for end in &layout.ends {
                assert!(apart(&level, end), "{name}: a line crosses {end:?}");
            }
        }
        assert!(
            line.points
                .iter()
                .all(|(x, y)| *x >= 0.0 && *y >= 0.0 && *x <= layout.width && *y <= layout.height)
        );
    }
    for (y, line) in &layout.caption {
        assert!(*y <= layout.height && width(line, NOTE) <= layout.width - 32.0, "{name}: {line}");
    }
}

#[test]
fn nothing_overlaps_and_no_text_is_cut_off() {
    for (name, input) in inputs() {
        for arguments in
            [&[][..], &["--refused"], &["--by", "pod"], &["--by", "namespace"], &["--by", "class"]]
        {
            let picture = picture(&input, arguments);
            for width in [400, PAGE] {
                let name = format!("{name} {arguments:?} at {width}");
                assert_readable(&name, &picture, &layout(&picture, Room::of(width)));
            }
        }
    }
}

#[test]
fn equal_questions_get_equal_pictures_of_which_the_svg_is_well_formed() {
    for ((name, input), (_, again)) in inputs().into_iter().zip(inputs()) {
        for format in [Format::Svg, Format::Dot, Format::Mermaid, Format::Html] {
            let text = write(&picture(&input, &["--refused"]), format, PAGE);
            assert_eq!(text, write(&picture(&again, &["--refused"]), format, PAGE), "{name}");
            if format == Format::Svg {
                roxmltree::Document::parse(&text).unwrap();
            }
        }
    }
}

#[test]
fn names_that_look_like_markup_are_text_in_every_format() {
    let evil = "</title></script><script>alert(\"1\")</script>&\\\"];x[\"`#quot;";
    let end = |place: Place| PictureEnd {
        place,
        every: false,
        name: evil.to_owned(),
        note: evil.to_owned(),
        about: evil.to_owned(),
        members: vec![evil.to_owned(), "b".to_owned()],
    };
    let told = Told {
        kind: Kind::Allowed,
        ports: evil.to_owned(),
        rules: vec![evil.to_owned()],
        why: evil.to_owned(),
        doubtful: true,
        doubt: evil.to_owned(),
    };
    let picture = Picture {
        title: "Who can reach whom",
        boxes: vec![evil.to_owned()],
        ends: vec![end(Place::Callers), end(Place::Box(0)), end(Place::Called)],
        flows: vec![PictureFlow { from: vec![0], to: vec![1, 2], told }],
        caption: vec![evil.to_owned()],
    };
    let svg = write(&picture, Format::Svg, PAGE);
    let document = roxmltree::Document::parse(&svg).unwrap();
    let titles = document.descendants().filter(|node| node.has_tag_name("title"));
    assert!(
        titles.clone().count() == 4 && titles.clone().all(|t| t.text().unwrap().contains(evil))
    );
    let html = write(&picture, Format::Html, PAGE);
    assert_eq!(html.matches("<script").count(), 1, "the page's own");
    assert_eq!(html.matches("alert(\"1\")").count(), 0);
    let dot = write(&picture, Format::Dot, PAGE);
    // Outside of quotes, in which a backslash escapes, nothing of the name is left.
    let (mut quoted, mut bare, mut chars) = (false, String::new(), dot.chars());
    while let Some(c) = chars.next() {
        match c {
            '\\' if quoted => drop(chars.next()),
            '"' => quoted = !quoted,
            c if !quoted => bare.push(c),
            _ => {}
        }
    }
    assert!(!quoted && !bare.contains("script") && !bare.contains('`'), "{bare}");
    let mermaid = write(&picture, Format::Mermaid, PAGE);
    assert!(!mermaid.contains("<script") && !mermaid.contains('`'), "{mermaid}");
    assert!(mermaid.lines().all(|line| line.matches('"').count() % 2 == 0), "{mermaid}");
    assert!(!mermaid.contains("\"];x"), "{mermaid}");
}

#[test]
fn what_fares_alike_meets_in_one_label_and_what_is_open_is_noted() {
    let text = "
        kind: Pod
        apiVersion: v1
        metadata: {name: web, namespace: shop, labels: {app: web}}
        ---
        kind: Pod
        apiVersion: v1
        metadata: {name: api, namespace: shop, labels: {app: api}}
        ---
        kind: Pod
        apiVersion: v1
        metadata: {name: db, namespace: shop, labels: {app: db}}
        ---
        kind: NetworkPolicy
        apiVersion: networking.k8s.io/v1
        metadata: {name: db, namespace: shop}
        spec:
          podSelector: {matchLabels: {app: db}}
          policyTypes: [Ingress, Egress]
          ingress: [{from: [{podSelector: {}}], ports: [{port: 5432}]}]
        ";
    let text = text.replace("\n        ", "\n");
    let input = read(Source::Text { name: "shop".to_owned(), text });
    let mermaid = write(&picture(&input, &[]), Format::Mermaid, PAGE);
    let expected = "\
flowchart LR
  subgraph b0[\"shop\"]
    n0[\"api<br/>open\"]
    n1[\"db\"]
    n2[\"web<br/>open\"]
  end
  n3([\"outside<br/>open out\"])
  n4([\"outside<br/>open in\"])
  f0{{\"5432/TCP\"}}
  n0 --- f0
  n2 --- f0
  f0 --> n1
";
    assert_eq!(mermaid, expected);
    // Asked for in particular, what is open is drawn as well.
    let mermaid = write(&picture(&input, &["--to", "shop/web"]), Format::Mermaid, PAGE);
    assert!(mermaid.contains("everything"), "{mermaid}");
    assert!(!mermaid.contains("open"), "{mermaid}");
}

#[test]
fn what_may_pass_but_need_not_has_a_question_mark_a_pattern_and_a_reason() {
    let text = "
        kind: Pod
        apiVersion: v1
        metadata: {name: web, namespace: shop, labels: {app: web}}
        ---
        kind: Pod
        apiVersion: v1
        metadata: {name: db, namespace: shop, labels: {app: db}}
        ---
        kind: NetworkPolicy
        apiVersion: networking.k8s.io/v1
        metadata: {name: db, namespace: shop}
        spec:
          podSelector: {matchLabels: {app: db}}
          policyTypes: [Ingress, Egress]
          ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}}], ports: [{port: 5432}]}]
        ";
    let text = text.replace("\n        ", "\n");
    let input = read(Source::Text { name: "shop".to_owned(), text });
    let arguments = ["--from", "shop/web", "--to", "shop/db"];
    let picture = picture(&input, &arguments);
    let expected = "\
flowchart LR
  subgraph b0[\"shop\"]
    n0[\"db\"]
    n1[\"web\"]
  end
  n1 -->|\"5432/TCP? on IPv4\"| n0
  linkStyle 0 stroke-dasharray:9 3 2 3
";
    assert_eq!(write(&picture, Format::Mermaid, PAGE), expected);
    let told = &picture.flows[0].told;
    assert!(told.doubtful && told.doubt.contains("depends on the address of shop/web"), "{told:?}");
    assert!(picture.caption[0].starts_with("? depends on what the input does not tell"));
    let svg = write(&picture, Format::Svg, PAGE);
    assert!(svg.contains("class=\"flow allowed doubtful\""), "{svg}");
    assert!(write(&picture, Format::Dot, PAGE).contains("style=dotted"));
}

#[test]
fn the_picture_in_the_documentation_is_what_is_drawn() {
    let example = root().join("examples/three-tier");
    let mut input = read(Source::Path(example));
    input.cluster.pod_cidrs = vec!["10.244.0.0/16".parse().unwrap()];
    let svg = write(&picture(&input, &[]), Format::Svg, PAGE);
    // Where the rules are is told from where the command is run.
    let svg = svg.replace(&format!("{}/", root().display()), "");
    let path = root().join("docs/three-tier.svg");
    if std::env::var_os("PICTURES").is_some_and(|v| v == "overwrite") {
        std::fs::write(&path, &svg).unwrap();
    }
    assert_eq!(svg, std::fs::read_to_string(path).unwrap(), "PICTURES=overwrite writes it anew");
}
