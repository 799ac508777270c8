//! Files of tests: what may be written, and where each part of it stands.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use portcullis_core::labels::Labels;
use portcullis_core::model::Direction;
use portcullis_core::net::{Family, IpNet};
use portcullis_kube::{Content, Diagnostic, Field, Place, Reason, Value};

use super::ports::{PortItem, Ports};

/// A file of tests.
#[derive(Debug, Default)]
pub(super) struct File {
    /// What it is called in messages.
    pub(super) name: String,
    /// The manifests that it is about, as paths from the file; none if it leaves that open.
    pub(super) manifests: Vec<String>,
    /// Where pods that have no address yet get theirs.
    pub(super) pod_cidrs: Vec<IpNet>,
    pub(super) tests: Vec<Test>,
}

/// One assertion, and what it is called.
#[derive(Debug)]
pub(super) struct Test {
    pub(super) name: String,
    /// The assertion, at its keyword.
    pub(super) at: Place,
    pub(super) assertion: Assertion,
    /// The one family that it is about; `None` for both.
    pub(super) family: Option<Family>,
    pub(super) because: Option<Because>,
}

/// What is said to hold.
#[derive(Debug)]
pub(super) enum Assertion {
    /// Every connection from these to those is allowed.
    Allow { from: Ends, to: Ends, port: Ports },
    /// None is.
    Deny { from: Ends, to: Ends, port: Ports },
    /// These may open connections to those, and nobody else may.
    Reachable { to: Ends, port: Ports, only_from: Ends },
    /// These may open connections to those, and to nobody else.
    Reaches { from: Ends, port: Ports, only_to: Ends },
    /// Policies isolate each of these pods in each of these directions.
    Isolated { pods: Ends, directions: Vec<Direction> },
}

/// One side of connections.
#[derive(Debug)]
pub(super) enum Ends {
    /// Every pod, and every address outside.
    All,
    /// The same without these.
    AllBut(Vec<EndItem>),
    /// These.
    These(Vec<EndItem>),
}

/// Something that stands for pods or addresses.
#[derive(Debug)]
pub(super) struct EndItem {
    pub(super) at: Place,
    pub(super) what: What,
}

#[derive(Debug)]
pub(super) enum What {
    /// Addresses that no pod has: all of them, or those of some blocks but not of others.
    Outside { blocks: Vec<IpNet>, except: Vec<IpNet> },
    /// The addresses of a block, whoever has them.
    Block(IpNet),
    /// All pods of a namespace.
    Namespace(String),
    /// A name as `why` takes it.
    Name(String),
    /// Pods by labels.
    Selected(Selection),
}

/// Pods of which all that is said is true.
#[derive(Debug, Default)]
pub(super) struct Selection {
    pub(super) namespace: Option<String>,
    pub(super) namespace_labels: Labels,
    pub(super) labels: Labels,
    /// Whether it is no mistake that there is no such pod.
    pub(super) or_none: bool,
}

/// The policy that is to be the reason, and what of it.
#[derive(Debug)]
pub(super) struct Because {
    pub(super) at: Place,
    /// `[namespace/]name`.
    pub(super) policy: String,
    pub(super) direction: Option<Direction>,
    pub(super) rule: Option<u32>,
}

/// The fields of a file of tests.
pub(super) const FILE: &[&str] = &["manifests", "podCIDRs", "tests"];
/// The assertions, each with its fields and those of them that must be there.
pub(super) const ASSERTIONS: &[(&str, &[&str], &[&str])] = &[
    ("allow", &["from", "to", "port", "family", "because"], &["from", "to", "port"]),
    ("deny", &["from", "to", "port", "family", "because"], &["from", "to", "port"]),
    ("reachable", &["to", "port", "onlyFrom", "family"], &["to", "port", "onlyFrom"]),
    ("reaches", &["from", "port", "onlyTo", "family"], &["from", "port", "onlyTo"]),
    ("isolated", &["pods", "direction", "because"], &["pods", "direction"]),
];
/// The fields of a selection of pods.
pub(super) const SELECTION: &[&str] = &["namespace", "namespaceLabels", "labels", "orNone"];
/// The fields of addresses that no pod has; the first is the word for all of them too.
pub(super) const OUTSIDE: &[&str] = &["outside", "except"];
/// Everything but some.
pub(super) const ALL_BUT: &str = "allBut";

/// Reads the documents of files of tests. What is wrong is among the diagnostics.
pub(super) fn read(values: &[Value], out: &mut Vec<Diagnostic>) -> Vec<File> {
    let mut files: Vec<File> = Vec::new();
    for value in values {
        let mut reader = Reader { out };
        let file = reader.file(value);
        match files.iter_mut().find(|f| f.name == file.name) {
            // Documents of one file are about one thing.
            Some(known) if file.manifests.is_empty() && file.pod_cidrs.is_empty() => {
                known.tests.extend(file.tests);
            }
            Some(_) => {
                let why = "only the first document of a file has manifests and podCIDRs";
                reader.wrong(value, why);
            }
            None => files.push(file),
        }
    }
    for file in &files {
        let mut known: BTreeMap<&str, u32> = BTreeMap::new();
        for test in &file.tests {
            let line = test.at.location.line;
            if let Some(first) = known.insert(&test.name, line) {
                let message = format!(
                    "{:?} is the name of the test on line {first} too: give this one another",
                    test.name
                );
                out.push(test.at.error(Reason::Test, &message));
            }
        }
    }
    files
}

struct Reader<'a> {
    out: &'a mut Vec<Diagnostic>,
}

impl Reader<'_> {
    fn file(&mut self, value: &Value) -> File {
        let mut file = File { name: value.place.location.file.to_string(), ..File::default() };
        if let Content::Map(fields) = &value.content
            && get(fields, "tests").is_none()
            && fields.iter().any(|field| ["apiVersion", "kind"].contains(&field.name.as_str()))
        {
            self.wrong(value, "this is a manifest, and no file of tests: pass it with -f");
            return file;
        }
        let Some(fields) = self.fields(value, FILE) else { return file };
        if let Some(manifests) = get(fields, "manifests") {
            let texts = self.one_or_more(manifests, Self::text);
            file.manifests = texts.into_iter().flatten().collect();
        }
        if let Some(blocks) = get(fields, "podCIDRs") {
            file.pod_cidrs = self.some(blocks, Self::block).unwrap_or_default();
        }
        match get(fields, "tests") {
            Some(Value { content: Content::List(items), .. }) if !items.is_empty() => {
                file.tests = items.iter().filter_map(|item| self.test(item)).collect();
            }
            Some(tests) if matches!(tests.content, Content::List(_)) => {
                self.wrong(tests, "an empty list tests nothing: write at least one test");
            }
            Some(tests) => self.expected(tests, "a list of tests"),
            None => self.wrong(value, "there are no tests here: write `tests:` and a list"),
        }
        file
    }

    fn test(&mut self, value: &Value) -> Option<Test> {
        let keywords: Vec<&str> = ASSERTIONS.iter().map(|(keyword, ..)| *keyword).collect();
        let known: Vec<&str> = ["name"].iter().chain(&keywords).copied().collect();
        let fields = match &value.content {
            Content::Map(fields) => fields,
            _ => {
                let what = format!("a test, which is one of {}", either(&keywords));
                self.expected(value, &what);
                return None;
            }
        };
        let before = self.out.len();
        let is_empty =
            |f: &&Field| keywords.contains(&f.name.as_str()) && f.value.content == Content::Null;
        if let Some(field) = fields.iter().find(is_empty) {
            let below: Vec<&str> = fields.iter().map(|f| f.name.as_str()).collect();
            let below: Vec<&str> = below.into_iter().filter(|f| !known.contains(f)).collect();
            let hint = match below.as_slice() {
                [] => "write what it is about".to_owned(),
                below => format!("indent {} by more than it", below.join(", ")),
            };
            self.out.push(field.place.error(Reason::Test, &format!("nothing is in it: {hint}")));
            return None;
        }
        for field in fields.iter().filter(|field| !known.contains(&field.name.as_str())) {
            self.unknown(field, &known, "a test");
        }
        let mut said = fields.iter().filter(|f| keywords.contains(&f.name.as_str()));
        let (Some(assertion), None) = (said.next(), said.next()) else {
            // An unknown field is what was meant to be the assertion.
            if self.out.len() == before {
                let what = either(&keywords);
                let found: Vec<&str> = fields.iter().map(|f| f.name.as_str()).collect();
                let message = format!("a test says one of {what}; this has {}", found.join(", "));
                self.wrong(value, &message);
            }
            return None;
        };
        let name = get(fields, "name").map(|name| self.text(name));
        let mut test = self.assertion(assertion)?;
        match name {
            None => {}
            Some(Some(name)) if !name.trim().is_empty() => test.name = name,
            Some(_) => {
                if let Some(name) = get(fields, "name").filter(|_| self.out.len() == before) {
                    self.wrong(name, "an empty name: write one, or leave it out");
                }
            }
        }
        (self.out.len() == before).then_some(test)
    }

    fn assertion(&mut self, field: &Field) -> Option<Test> {
        let keyword = field.name.as_str();
        let (_, known, needed) = ASSERTIONS.iter().find(|(name, ..)| *name == keyword)?;
        let fields = self.fields(&field.value, known)?;
        let missing: Vec<&str> =
            needed.iter().copied().filter(|name| get(fields, name).is_none()).collect();
        if !missing.is_empty() {
            let has = missing.join(" and ");
            let message = format!("{has} missing: `{keyword}` needs {}", needed.join(", "));
            self.wrong(&field.value, &message);
        }
        let mut ends = |name| get(fields, name).and_then(|value| self.ends(value));
        let (from, to) = (ends("from"), ends("to"));
        let (only_from, only_to, pods) = (ends("onlyFrom"), ends("onlyTo"), ends("pods"));
        let port = get(fields, "port").and_then(|value| self.ports(value));
        let directions = get(fields, "direction").and_then(|value| self.directions(value));
        let family = match get(fields, "family") {
            None => None,
            Some(value) => Some(self.family(value)?),
        };
        let because = match get(fields, "because") {
            None => None,
            Some(value) => Some(self.because(value, keyword)?),
        };
        let assertion = match keyword {
            "allow" => Assertion::Allow { from: from?, to: to?, port: port? },
            "deny" => Assertion::Deny { from: from?, to: to?, port: port? },
            "reachable" => Assertion::Reachable { to: to?, port: port?, only_from: only_from? },
            "reaches" => Assertion::Reaches { from: from?, port: port?, only_to: only_to? },
            _ => Assertion::Isolated { pods: pods?, directions: directions? },
        };
        let mut name = assertion.to_string();
        if let Some(family) = family {
            name.push_str(&format!(", on {family}"));
        }
        if let Some(because) = &because {
            name.push_str(&format!(", because of {because}"));
        }
        Some(Test { name, at: field.place.clone(), assertion, family, because })
    }

    fn ends(&mut self, value: &Value) -> Option<Ends> {
        if let Content::Text(text) = &value.content
            && text == "all"
        {
            return Some(Ends::All);
        }
        if let Some(but) = self.all_but(value) {
            return but.map(|value| self.some(value, Self::end).map(Ends::AllBut))?;
        }
        self.some(value, Self::end).map(Ends::These)
    }

    fn end(&mut self, value: &Value) -> Option<EndItem> {
        let what = match &value.content {
            Content::Text(text) => self.named(value, text)?,
            Content::Map(fields) if get(fields, OUTSIDE[0]).is_some() => self.outside(value)?,
            Content::Map(_) => What::Selected(self.selection(value)?),
            _ => {
                self.expected(value, "a name, an address, or labels of pods");
                return None;
            }
        };
        Some(EndItem { at: value.place.clone(), what })
    }

    fn named(&mut self, value: &Value, text: &str) -> Option<What> {
        if text == OUTSIDE[0] {
            return Some(What::Outside { blocks: Vec::new(), except: Vec::new() });
        }
        if text == "all" {
            self.wrong(value, "`all` stands alone, and not in a list");
            return None;
        }
        if let Some(namespace) = text.strip_suffix("/*") {
            return Some(What::Namespace(namespace.to_owned()));
        }
        if text.is_empty() {
            self.wrong(value, "an empty name: write namespace/name, an address, or `all`");
            return None;
        }
        let is_block = |(address, _): &(&str, &str)| address.parse::<IpAddr>().is_ok();
        match text.split_once('/').filter(is_block) {
            None => Some(What::Name(text.to_owned())),
            Some(_) => self.block(value).map(What::Block),
        }
    }

    fn outside(&mut self, value: &Value) -> Option<What> {
        let fields = self.fields(value, OUTSIDE)?;
        let mut blocks = |name| match get(fields, name) {
            Some(blocks) => self.some(blocks, Self::block),
            None => Some(Vec::new()),
        };
        Some(What::Outside { blocks: blocks(OUTSIDE[0])?, except: blocks(OUTSIDE[1])? })
    }

    fn block(&mut self, value: &Value) -> Option<IpNet> {
        let text = self.text(value)?;
        let address = text.parse::<IpAddr>().map(IpNet::from);
        let net = address.or_else(|_| text.parse::<IpNet>());
        if net.is_err() {
            self.expected(value, "an address or a CIDR, as 10.0.0.0/8");
        }
        net.ok().map(|net| net.trunc())
    }

    fn selection(&mut self, value: &Value) -> Option<Selection> {
        let fields = self.fields(value, SELECTION)?;
        let mut selection = Selection::default();
        if let Some(namespace) = get(fields, "namespace") {
            selection.namespace = Some(self.text(namespace)?);
        }
        for (name, labels) in [
            ("labels", &mut selection.labels),
            ("namespaceLabels", &mut selection.namespace_labels),
        ] {
            if let Some(value) = get(fields, name) {
                *labels = self.labels(value)?;
            }
        }
        match get(fields, "orNone").map(|value| (value, &value.content)) {
            None => {}
            Some((_, Content::Bool(or_none))) => selection.or_none = *or_none,
            Some((value, _)) => {
                self.expected(value, "true or false");
                return None;
            }
        }
        let says = ["namespace", "namespaceLabels", "labels"];
        if !says.iter().any(|name| get(fields, name).is_some()) {
            self.wrong(value, "says nothing of pods: write labels, namespace or namespaceLabels");
            return None;
        }
        Some(selection)
    }

    fn labels(&mut self, value: &Value) -> Option<Labels> {
        let Content::Map(fields) = &value.content else {
            self.expected(value, "a map of labels");
            return None;
        };
        if fields.is_empty() {
            self.wrong(value, "no labels: write some, or leave the field out");
            return None;
        }
        fields.iter().map(|f| Some((f.name.clone(), self.text(&f.value)?))).collect()
    }

    fn ports(&mut self, value: &Value) -> Option<Ports> {
        let what = "a port: 80, 53/udp, 8000-8100, a port name, icmp, all, or {allBut: …}";
        if let Content::Text(text) = &value.content
            && text == "all"
        {
            return Some(Ports { items: Vec::new(), all_but: true });
        }
        let item = |reader: &mut Self, value: &Value| {
            let text = match &value.content {
                Content::Integer(number) => number.to_string(),
                Content::Text(text) if text == "all" => {
                    reader.wrong(value, "`all` stands alone, and not in a list");
                    return None;
                }
                Content::Text(text) => text.clone(),
                _ => {
                    reader.expected(value, what);
                    return None;
                }
            };
            let read = text.parse::<PortItem>();
            read.map_err(|why| reader.wrong(value, &why)).ok()
        };
        if let Some(but) = self.all_but(value) {
            return but
                .map(|value| self.some(value, item))?
                .map(|items| Ports { items, all_but: true });
        }
        if matches!(value.content, Content::Map(_)) {
            self.expected(value, what);
            return None;
        }
        Some(Ports { items: self.some(value, item)?, all_but: false })
    }

    fn directions(&mut self, value: &Value) -> Option<Vec<Direction>> {
        let directions = match self.text(value)?.as_str() {
            "ingress" => vec![Direction::Ingress],
            "egress" => vec![Direction::Egress],
            "both" => Direction::ALL.to_vec(),
            _ => {
                self.expected(value, "ingress, egress or both");
                return None;
            }
        };
        Some(directions)
    }

    fn family(&mut self, value: &Value) -> Option<Family> {
        let text = self.text(value)?;
        let family = Family::ALL.into_iter().find(|family| family.to_string() == text);
        if family.is_none() {
            self.expected(value, "IPv4 or IPv6");
        }
        family
    }

    /// `[namespace/]policy`, then a direction, then the number of a rule of it in brackets.
    fn because(&mut self, value: &Value, keyword: &str) -> Option<Because> {
        let text = self.text(value)?;
        let form = "a policy, as `shop/db`, `shop/db ingress`, or `shop/db ingress[0]`";
        let (policy, rest) = text.split_once(' ').unwrap_or((&text, ""));
        let (section, rule) = match rest.split_once('[') {
            Some((section, rule)) => {
                let number = rule.strip_suffix(']').and_then(|n| n.parse::<u32>().ok());
                if number.is_none() {
                    self.expected(value, form);
                    return None;
                }
                (section, number)
            }
            None => (rest, None),
        };
        let direction = Direction::ALL.into_iter().find(|d| d.section() == section);
        if policy.is_empty() || direction.is_none() && !section.is_empty() || text.ends_with(' ') {
            self.expected(value, form);
            return None;
        }
        if rule.is_some() && keyword != "allow" {
            let why = "a rule only allows: what refuses and isolates is a policy as a whole, \
                       as `shop/db` or `shop/db ingress`";
            self.wrong(value, why);
            return None;
        }
        if direction.is_some() && keyword == "isolated" {
            self.wrong(value, "the direction is in `direction`: write the policy alone");
            return None;
        }
        Some(Because { at: value.place.clone(), policy: policy.to_owned(), direction, rule })
    }

    /// The value of `allBut`, if that is what this is; `Some(None)` where it is that and wrong.
    fn all_but<'v>(&mut self, value: &'v Value) -> Option<Option<&'v Value>> {
        let Content::Map(fields) = &value.content else { return None };
        let but = fields.iter().find(|field| field.name == ALL_BUT)?;
        if let Some(other) = fields.iter().find(|field| field.name != ALL_BUT) {
            let message = format!("{:?} cannot stand beside {ALL_BUT}", other.name);
            self.out.push(other.place.error(Reason::UnknownField, &message));
            return Some(None);
        }
        Some(Some(&but.value))
    }

    /// A value, or a list of some.
    fn some<T>(
        &mut self,
        value: &Value,
        read: impl FnMut(&mut Self, &Value) -> Option<T>,
    ) -> Option<Vec<T>> {
        if let Content::List(items) = &value.content
            && items.is_empty()
        {
            self.wrong(value, "an empty list stands for nothing: write one at least");
            return None;
        }
        self.one_or_more(value, read).into_iter().collect()
    }

    fn one_or_more<T>(
        &mut self,
        value: &Value,
        mut read: impl FnMut(&mut Self, &Value) -> T,
    ) -> Vec<T> {
        match &value.content {
            Content::List(items) => items.iter().map(|item| read(self, item)).collect(),
            _ => vec![read(self, value)],
        }
    }

    fn text(&mut self, value: &Value) -> Option<String> {
        if let Content::Text(text) = &value.content {
            return Some(text.clone());
        }
        let quotes = matches!(value.content, Content::Bool(_) | Content::Integer(_));
        let what = if quotes { "a string, in quotes" } else { "a string" };
        self.expected(value, what);
        None
    }

    /// The entries of a map that may have these fields only.
    fn fields<'v>(&mut self, value: &'v Value, known: &[&str]) -> Option<&'v [Field]> {
        let Content::Map(fields) = &value.content else {
            self.expected(value, &format!("a map with {}", known.join(", ")));
            return None;
        };
        for field in fields.iter().filter(|field| !known.contains(&field.name.as_str())) {
            self.unknown(field, known, "it");
        }
        Some(fields)
    }

    fn unknown(&mut self, field: &Field, known: &[&str], what: &str) {
        // What the longer names of two assertions would be.
        let known_as = match field.name.as_str() {
            "reachableOnlyFrom" | "reachableFrom" => {
                Some("reachable: {to: …, port: …, onlyFrom: …}")
            }
            "reachesOnly" | "reachableTo" => Some("reaches: {from: …, port: …, onlyTo: …}"),
            _ => None,
        };
        let otherwise = match known_as {
            Some(known_as) => format!(", write `{known_as}`"),
            None => format!(": {what} may have {}", known.join(", ")),
        };
        self.out.push(field.unknown(known, &otherwise));
    }

    fn expected(&mut self, value: &Value, what: &str) {
        self.out.push(value.expected(what));
    }

    fn wrong(&mut self, value: &Value, message: &str) {
        self.out.push(value.place.error(Reason::Test, message));
    }
}

fn get<'v>(fields: &'v [Field], name: &str) -> Option<&'v Value> {
    fields.iter().find(|field| field.name == name).map(|field| &field.value)
}

fn either(names: &[&str]) -> String {
    match names {
        [rest @ .., last] if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => names.concat(),
    }
}

/// The sentence that an assertion is.
impl fmt::Display for Assertion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Assertion::Allow { from, to, port } => {
                let (from, to) = (from.words("everybody"), to.words("everybody"));
                write!(f, "{from} may reach {to} on {}", port.words("every"))
            }
            Assertion::Deny { from: Ends::All, to, port } => {
                write!(f, "nobody may reach {} on {}", to.words("anybody"), port.words("any"))
            }
            Assertion::Deny { from, to, port } => {
                let (from, to) = (from.words("everybody"), to.words("anybody"));
                write!(f, "{from} may not reach {to} on {}", port.words("any"))
            }
            Assertion::Reachable { to, port, only_from } => {
                let (to, from) = (to.words("everybody"), only_from.words("everybody"));
                write!(f, "{to} is reachable on {} only from {from}", port.words("every"))
            }
            Assertion::Reaches { from, port, only_to } => {
                let (from, to) = (from.words("everybody"), only_to.words("everybody"));
                write!(f, "{from} reaches on {} only {to}", port.words("every"))
            }
            Assertion::Isolated { pods, directions } => {
                let directions: Vec<&str> = directions.iter().map(|d| d.section()).collect();
                let pods = pods.words("every pod");
                write!(f, "policies isolate {pods} for {}", directions.join(" and "))
            }
        }
    }
}

impl Ends {
    /// In words, with one for all.
    fn words(&self, all: &str) -> String {
        let list = |items: &[EndItem]| {
            items.iter().map(|item| item.what.to_string()).collect::<Vec<_>>().join(", ")
        };
        match self {
            Ends::All => all.to_owned(),
            Ends::AllBut(items) => format!("{all} but {}", list(items)),
            Ends::These(items) => list(items),
        }
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            What::Outside { blocks, except } => {
                let list = |nets: &[IpNet]| nets.iter().map(shown).collect::<Vec<_>>().join(", ");
                f.write_str("outside")?;
                if !blocks.is_empty() {
                    write!(f, " in {}", list(blocks))?;
                }
                if !except.is_empty() {
                    write!(f, " except {}", list(except))?;
                }
                Ok(())
            }
            What::Block(net) => f.write_str(&shown(net)),
            What::Namespace(name) => write!(f, "{name}/*"),
            What::Name(name) => f.write_str(name),
            What::Selected(selection) => write!(f, "{selection}"),
        }
    }
}

/// A single address without its length.
fn shown(net: &IpNet) -> String {
    match net.prefix_len() == net.max_prefix_len() {
        true => net.addr().to_string(),
        false => net.to_string(),
    }
}

impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |labels: &Labels| {
            labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",")
        };
        f.write_str("pods")?;
        if !self.labels.is_empty() {
            write!(f, " {}", list(&self.labels))?;
        }
        if let Some(namespace) = &self.namespace {
            write!(f, " of namespace {namespace}")?;
        }
        if !self.namespace_labels.is_empty() {
            write!(f, " of namespaces {}", list(&self.namespace_labels))?;
        }
        Ok(())
    }
}

impl fmt::Display for Because {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.policy)?;
        if let Some(direction) = self.direction {
            write!(f, " {direction}")?;
        }
        self.rule.map_or(Ok(()), |rule| write!(f, "[{rule}]"))
    }
}
