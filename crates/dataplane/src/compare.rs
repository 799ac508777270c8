//! What was put into the kernel, held against what the kernel says is there.
//!
//! Both sides are messages of nf_tables: those that would put it there, and those of a dump. The
//! kernel repeats what it was told, and adds handles, counters and defaults of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use netlink_packet_core::NLA_F_NESTED;
use rustc_hash::FxHashSet;

use crate::attributes::{Message, find, flagged};
use crate::encode::{self, CHAIN_NAME, RULE_CHAIN, Request, SET_NAME};

/// Something that is not in the kernel as it was put there. Names are without their generation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Difference {
    /// The whole table is gone.
    NoTable,
    /// The table is there and switched off.
    Dormant,
    /// A chain or set is gone: `chain p0-ingress`.
    Missing(String),
    /// A chain or set that was not put there.
    Foreign(String),
    /// A chain whose rules, hook or policy are others.
    Changed(String),
    /// A set whose elements are others.
    Elements {
        /// Its name.
        set: String,
        /// How many elements are gone.
        missing: usize,
        /// How many elements were not put there.
        foreign: usize,
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Difference::NoTable => f.write_str("the table is missing"),
            Difference::Dormant => f.write_str("the table is dormant"),
            Difference::Missing(what) => write!(f, "{what} is missing"),
            Difference::Foreign(what) => write!(f, "{what} does not belong there"),
            Difference::Changed(what) => write!(f, "{what} is not as it should be"),
            Difference::Elements { set, missing, foreign } => {
                write!(
                    f,
                    "set {set}: {missing} elements are missing, {foreign} do not belong there"
                )
            }
        }
    }
}

/// What the kernel says of our table.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    pub(crate) tables: Vec<Message>,
    pub(crate) chains: Vec<Message>,
    pub(crate) rules: Vec<Message>,
    pub(crate) sets: Vec<Message>,
    /// By the name of the set.
    pub(crate) elements: BTreeMap<String, Vec<Message>>,
}

/// Everything that differs from what the requests put there, which are all about one table.
pub(crate) fn differences(wanted: &[Request], found: &Listing) -> Vec<Difference> {
    let name = wanted.first().and_then(|(message, _)| encode::table_name(message));
    let is_in_table = |message: &Message| {
        message.family == encode::FAMILY_INET && encode::table_name(message) == name
    };
    let Some(table) = found.tables.iter().find(|table| is_in_table(table)) else {
        return vec![Difference::NoTable];
    };
    let mut differences = Vec::new();
    if encode::is_dormant(table) {
        differences.push(Difference::Dormant);
    }
    let wanted = || wanted.iter().map(|(message, _)| message);

    let chains = by_name(found.chains.iter(), named(name, CHAIN_NAME));
    let mut unknown: BTreeSet<&str> = chains.keys().copied().collect();
    let rules = all_by_name(found.rules.iter(), named(name, RULE_CHAIN));
    let wanted_rules =
        all_by_name(wanted().filter(|m| encode::is_rule(m)), named(name, RULE_CHAIN));
    let wanted_chains = by_name(wanted().filter(|m| encode::is_chain(m)), named(name, CHAIN_NAME));
    for (name, chain) in wanted_chains {
        unknown.remove(name);
        let what = || format!("chain {}", without_generation(name));
        let Some(there) = chains.get(name) else {
            differences.push(Difference::Missing(what()));
            continue;
        };
        let none = Vec::new();
        let (want, have) = (wanted_rules.get(name), rules.get(name));
        let (want, have) = (want.unwrap_or(&none), have.unwrap_or(&none));
        let same = want.len() == have.len() && want.iter().zip(have).all(|(w, h)| same_rule(w, h));
        if !same || !holds(chain.attributes.as_bytes(), there.attributes.as_bytes()) {
            differences.push(Difference::Changed(what()));
        }
    }
    differences.extend(unknown.iter().map(|name| Difference::Foreign(format!("chain {name}"))));

    let sets = by_name(found.sets.iter(), named(name, SET_NAME));
    let mut unknown: BTreeSet<&str> = sets.keys().copied().collect();
    let elements = all_by_name(wanted().filter(|m| encode::is_elements(m)), named(name, SET_NAME));
    let wanted_sets = by_name(wanted().filter(|m| encode::is_set(m)), named(name, SET_NAME));
    for (name, set) in wanted_sets {
        unknown.remove(name);
        if encode::is_dynamic(set) && sets.contains_key(name) {
            continue;
        }
        let (Some(_), Some(there)) = (sets.get(name), found.elements.get(name)) else {
            differences.push(Difference::Missing(format!("set {}", without_generation(name))));
            continue;
        };
        let wanted = elements.get(name).into_iter().flatten().copied();
        let wanted: FxHashSet<_> = wanted.flat_map(encode::elements).collect();
        let there: FxHashSet<_> = there.iter().flat_map(encode::elements).collect();
        let missing = wanted.difference(&there).count();
        let foreign = there.len() + missing - wanted.len();
        if missing + foreign > 0 {
            let set = without_generation(name).to_owned();
            differences.push(Difference::Elements { set, missing, foreign });
        }
    }
    differences.extend(unknown.iter().map(|name| Difference::Foreign(format!("set {name}"))));
    differences
}

pub(crate) fn without_generation(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(name, _)| name)
}

/// What messages about a table have for a name.
fn named(table: Option<&str>, kind: u16) -> impl Fn(&Message) -> Option<&str> {
    move |message| encode::text(message, kind).filter(|_| encode::table_name(message) == table)
}

/// Messages by a name of ours that they have; the last of a name.
fn by_name<'m>(
    messages: impl Iterator<Item = &'m Message>,
    name: impl Fn(&Message) -> Option<&str>,
) -> BTreeMap<&'m str, &'m Message> {
    messages.filter_map(|message| Some((name(message)?, message))).collect()
}

fn all_by_name<'m>(
    messages: impl Iterator<Item = &'m Message>,
    name: impl Fn(&Message) -> Option<&str>,
) -> BTreeMap<&'m str, Vec<&'m Message>> {
    let mut all: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for message in messages {
        if let Some(name) = name(message) {
            all.entry(name).or_default().push(message);
        }
    }
    all
}

fn same_rule(wanted: &Message, found: &Message) -> bool {
    let (wanted, found) = (encode::expressions(wanted), encode::expressions(found));
    wanted.len() == found.len()
        && wanted.iter().zip(&found).all(|(wanted, found)| {
            let (name, wanted) = encode::expression_parts(wanted);
            let (same, found) = encode::expression_parts(found);
            name == same && holds(wanted, found)
        })
}

/// Whether every attribute of the first is among those of the second.
fn holds(wanted: &[u8], found: &[u8]) -> bool {
    flagged(wanted).all(|(kind, value)| {
        let Some(there) = find(found, kind & !NLA_F_NESTED) else {
            return value.is_empty();
        };
        if kind & NLA_F_NESTED == 0 { value == there } else { holds(value, there) }
    })
}
