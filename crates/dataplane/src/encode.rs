//! A plan as messages of nf_tables, and its counters read from the kernel's answers.
//!
//! The numbers are those of `linux/netfilter/nf_tables.h`; an enumeration there is a `u16` here.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use netlink_packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NetlinkSerializable};
use portcullis_core::net::{Family, next_address};

use crate::attributes::{Attributes, Message, all, find};
use crate::plan::{
    BASE_CHAIN, ChainId, Element, Expression, Field, Key, Limit, Plan, Rule, Set, SetId, TABLE,
    Type, Verdict,
};
use crate::state::Log;

/// So much is told of a packet: its headers, also where there are options or extensions.
pub(crate) const SNAP_BYTES: u32 = 128;

/// A request and its flags.
pub type Request = (Message, u16);

pub(crate) const FAMILY_INET: u8 = 1;
pub(crate) const FAMILY_V4: u8 = 2;
pub(crate) const FAMILY_V6: u8 = 10;

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

pub(crate) const NEW_TABLE: u16 = SUBSYSTEM << 8;
pub(crate) const GET_TABLE: u16 = NEW_TABLE + 1;
pub(crate) const DELETE_TABLE: u16 = NEW_TABLE + 2;
pub(crate) const NEW_CHAIN: u16 = NEW_TABLE + 3;
pub(crate) const GET_CHAIN: u16 = NEW_TABLE + 4;
const DELETE_CHAIN: u16 = NEW_TABLE + 5;
pub(crate) const NEW_RULE: u16 = NEW_TABLE + 6;
pub(crate) const GET_RULE: u16 = NEW_TABLE + 7;
const DELETE_RULE: u16 = NEW_TABLE + 8;
pub(crate) const NEW_SET: u16 = NEW_TABLE + 9;
pub(crate) const GET_SET: u16 = NEW_TABLE + 10;
const DELETE_SET: u16 = NEW_TABLE + 11;
pub(crate) const NEW_ELEMENTS: u16 = NEW_TABLE + 12;
pub(crate) const GET_ELEMENTS: u16 = NEW_TABLE + 13;
pub(crate) const DELETE_ELEMENTS: u16 = NEW_TABLE + 14;
const NEW_GENERATION: u16 = NEW_TABLE + 15;
const GET_GENERATION: u16 = NEW_TABLE + 16;

/// In every kind of message of ours.
pub(crate) const TABLE_NAME: u16 = 1;
const TABLE_FLAGS: u16 = 2;
const TABLE_DORMANT: u32 = 1;
/// The kernel's own number for its state, which every transaction changes.
const GENERATION_ID: u16 = 1;
pub(crate) const LIST_ELEMENT: u16 = 1;

pub(crate) const CHAIN_NAME: u16 = 3;
pub(crate) const CHAIN_HOOK: u16 = 4;
pub(crate) const CHAIN_POLICY: u16 = 5;
pub(crate) const CHAIN_TYPE: u16 = 7;
pub(crate) const HOOK_NUMBER: u16 = 1;
pub(crate) const HOOK_PRIORITY: u16 = 2;
pub(crate) const HOOK_FORWARD: u32 = 2;
const PRIORITY_FILTER: u32 = 0;

pub(crate) const RULE_CHAIN: u16 = 2;
pub(crate) const RULE_EXPRESSIONS: u16 = 4;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;

pub(crate) const SET_NAME: u16 = 2;
pub(crate) const SET_FLAGS: u16 = 3;
pub(crate) const SET_KEY_TYPE: u16 = 4;
pub(crate) const SET_KEY_LENGTH: u16 = 5;
const SET_DATA_TYPE: u16 = 6;
const SET_DATA_LENGTH: u16 = 7;
const SET_DESCRIPTION: u16 = 9;
const SET_TIMEOUT: u16 = 11;
pub(crate) const SET_ID: u16 = 10;
pub(crate) const SET_USER_DATA: u16 = 13;
const SET_EXPRESSION: u16 = 17;
const SET_INTERVAL: u32 = 0x4;
const SET_MAP: u32 = 0x8;
const SET_WITH_TIMEOUT: u32 = 0x10;
const SET_FILLED_BY_RULES: u32 = 0x20;
const SET_CONCATENATION: u32 = 0x80;
const DESCRIPTION_SIZE: u16 = 1;
const DESCRIPTION_CONCATENATION: u16 = 2;
const FIELD_LENGTH: u16 = 1;
const DATA_TYPE_VERDICT: u32 = 0xffff_ff00;

pub(crate) const ELEMENTS_SET: u16 = 2;
pub(crate) const ELEMENTS_LIST: u16 = 3;
pub(crate) const ELEMENT_KEY: u16 = 1;
const ELEMENT_DATA: u16 = 2;
const ELEMENT_FLAGS: u16 = 3;
const ELEMENT_EXPRESSION: u16 = 7;
const ELEMENT_KEY_END: u16 = 10;
const ELEMENT_INTERVAL_END: u32 = 1;

pub(crate) const DATA_VALUE: u16 = 1;
pub(crate) const DATA_VERDICT: u16 = 2;
pub(crate) const VERDICT_CODE: u16 = 1;
pub(crate) const VERDICT_CHAIN: u16 = 2;

const COUNTER_BYTES: u16 = 1;
const COUNTER_PACKETS: u16 = 2;

/// An attribute ends at 64 KiB. A list of elements ends well before, so that its message fits a
/// small send buffer too.
pub(crate) const ELEMENT_LIST_BYTES: usize = 16_000;

/// The register for verdicts.
pub(crate) const VERDICT_REGISTER: u32 = 0;
/// Keys of sets are gathered from this register on, in which 16 bytes fit.
pub(crate) const KEY_REGISTER: u32 = 1;
/// The 4-byte registers over the same memory begin here.
pub(crate) const SMALL_REGISTERS: u32 = 8;

pub(crate) const META_FAMILY: u32 = 15;
pub(crate) const META_PROTOCOL: u32 = 16;
pub(crate) const NETWORK_HEADER: u32 = 1;
pub(crate) const TRANSPORT_HEADER: u32 = 2;

const LOOKUP_FLAGS: u16 = 5;
const LOOKUP_INVERTED: u32 = 1;

const DYNAMIC_SET: u16 = 1;
const DYNAMIC_OPERATION: u16 = 3;
const DYNAMIC_ADD: u32 = 0;
const DYNAMIC_UPDATE: u32 = 1;
const DYNAMIC_KEY: u16 = 4;
const DYNAMIC_EXPRESSION: u16 = 7;

const LIMIT_OVER: u32 = 1;

pub(crate) const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;
const AT_MOST: u32 = 3;
const AT_LEAST: u32 = 5;

/// The names in the kernel of what a plan has. So that the old and the new can be there at the same
/// time, they end with a generation, except that of the base chain: `p0000002a-egress.1`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Names {
    pub(crate) sets: BTreeMap<SetId, u32>,
    pub(crate) chains: BTreeMap<ChainId, u32>,
}

impl Names {
    /// All of a plan in one generation.
    pub(crate) fn all(plan: &Plan, generation: u32) -> Names {
        Names {
            sets: plan.sets.keys().map(|id| (*id, generation)).collect(),
            chains: plan.chains.keys().map(|id| (*id, generation)).collect(),
        }
    }

    pub(crate) fn set(&self, id: SetId) -> String {
        format!("{id}.{}", self.sets.get(&id).copied().unwrap_or_default())
    }

    pub(crate) fn chain(&self, id: ChainId) -> String {
        match id {
            ChainId::Base => BASE_CHAIN.to_owned(),
            _ => format!("{id}.{}", self.chains.get(&id).copied().unwrap_or_default()),
        }
    }
}

/// What a lookup is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Find {
    /// The rule goes on if the set holds the key.
    Held,
    /// The rule goes on if it does not.
    Absent,
    /// The verdict of the key.
    Verdict,
}

/// Writes parts of a plan as requests.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Encoder<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) names: &'a Names,
}

/// The generation in the name of a set or chain; 0, which is none of ours, if there is none.
pub(crate) fn generation(name: &str) -> u32 {
    name.rsplit_once('.').and_then(|(_, generation)| generation.parse().ok()).unwrap_or(0)
}

impl Encoder<'_> {
    /// Adds sets and chains that no packet sees yet.
    pub(crate) fn prepare(
        &self,
        sets: impl Iterator<Item = SetId>,
        chains: impl Iterator<Item = ChainId> + Clone,
    ) -> Vec<Request> {
        let chains = chains.filter(|id| *id != ChainId::Base);
        let mut requests = vec![table(NEW_TABLE)];
        requests.extend(chains.clone().map(|id| new_chain(&self.names.chain(id), false)));
        for id in sets {
            let Some(set) = self.plan.set(id) else { continue };
            requests.push(self.new_set(set, id));
            let name = self.names.set(id);
            self.change_elements(NEW_ELEMENTS, set, &name, set.elements(), &mut requests);
        }
        chains.for_each(|id| self.new_rules(id, &mut requests));
        requests
    }

    /// Exchanges the rules of chains. The kernel does that for all of them at once: a packet goes
    /// through the old ones to the end, or through the new ones.
    pub(crate) fn switch(&self, chains: impl Iterator<Item = ChainId>) -> Vec<Request> {
        let mut requests = Vec::new();
        for id in chains {
            let name = self.names.chain(id);
            if id == ChainId::Base {
                requests.push(new_chain(&name, true));
            }
            requests.push(flush_chain(&name));
            self.new_rules(id, &mut requests);
        }
        requests
    }

    /// Adds elements to a set and removes some, in place.
    pub(crate) fn change(
        &self,
        id: SetId,
        added: &[Element],
        removed: &[Element],
        requests: &mut Vec<Request>,
    ) {
        let Some(set) = self.plan.set(id) else { return };
        let name = self.names.set(id);
        self.change_elements(DELETE_ELEMENTS, set, &name, removed.iter().copied(), requests);
        self.change_elements(NEW_ELEMENTS, set, &name, added.iter().copied(), requests);
    }

    /// Adds elements to the set of a name that is this one or was made as this one is.
    pub(crate) fn add_to(
        &self,
        name: &str,
        id: SetId,
        added: impl Iterator<Item = Element>,
        requests: &mut Vec<Request>,
    ) {
        let Some(set) = self.plan.set(id) else { return };
        self.change_elements(NEW_ELEMENTS, set, name, added, requests);
    }

    /// All that is there when the plan is in force.
    pub(crate) fn all(&self) -> Vec<Request> {
        let mut requests =
            self.prepare(self.plan.sets.keys().copied(), self.plan.chains.keys().copied());
        requests.extend(self.switch([ChainId::Base].into_iter()));
        requests
    }

    fn new_set(&self, set: &Set, id: SetId) -> Request {
        let concatenation = set.key.len() > 1;
        let mut flags = 0;
        if set.interval {
            flags |= SET_INTERVAL;
        }
        if set.map {
            flags |= SET_MAP;
        }
        if set.interval && concatenation {
            flags |= SET_CONCATENATION;
        }
        let room = set.dynamic.then_some(Room::OF_HEARD);
        flags |= room.map_or(0, Room::flags);
        // A user's program reads the types of the parts from this, 6 bits each.
        let key_type = set.key.iter().fold(0, |types, part| types << 6 | type_number(*part));
        let length = |part: &Type| type_length(*part).next_multiple_of(4);

        let mut attributes = Attributes::default();
        attributes
            .text(TABLE_NAME, TABLE)
            .text(SET_NAME, &self.names.set(id))
            .u32(SET_FLAGS, flags);
        attributes.u32(SET_KEY_TYPE, key_type);
        attributes.u32(SET_KEY_LENGTH, set.key.iter().map(length).sum());
        if set.map {
            attributes.u32(SET_DATA_TYPE, DATA_TYPE_VERDICT).u32(SET_DATA_LENGTH, 0);
        }
        // Wanted, and looked at only where a name is not found.
        attributes.u32(SET_ID, 1);
        if set.interval && concatenation {
            attributes.nest(SET_DESCRIPTION, |description| {
                description.nest(DESCRIPTION_CONCATENATION, |fields| {
                    for part in &set.key {
                        fields.nest(LIST_ELEMENT, |field| {
                            field.u32(FIELD_LENGTH, type_length(*part));
                        });
                    }
                });
            });
        }
        room.iter().for_each(|room| room.write(&mut attributes));
        let order = if concatenation { ByteOrder::Mixed } else { ByteOrder::Network };
        attributes.bytes(SET_USER_DATA, &byte_order(order));
        if set.counted {
            attributes.nest(SET_EXPRESSION, |expression| {
                expression.text(EXPRESSION_NAME, "counter").nest(EXPRESSION_DATA, |_| {});
            });
        }
        (message(NEW_SET, attributes), NLM_F_CREATE)
    }

    /// Elements of a set that come or go, in as many messages as they need.
    fn change_elements(
        &self,
        kind: u16,
        set: &Set,
        name: &str,
        elements: impl Iterator<Item = Element>,
        requests: &mut Vec<Request>,
    ) {
        let mut rest = elements.peekable();
        let mut key = Vec::with_capacity(64);
        while rest.peek().is_some() {
            let mut attributes = Attributes::default();
            attributes.text(TABLE_NAME, TABLE).text(ELEMENTS_SET, name);
            attributes.nest(ELEMENTS_LIST, |list| {
                let start = list.len();
                while list.len() - start < ELEMENT_LIST_BYTES
                    && let Some(element) = rest.next()
                {
                    self.new_element(set, &element, &mut key, list);
                }
            });
            let flags = if kind == NEW_ELEMENTS { NLM_F_CREATE } else { 0 };
            requests.push((message(kind, attributes), flags));
        }
    }

    fn new_element(&self, set: &Set, element: &Element, key: &mut Vec<u8>, list: &mut Attributes) {
        list.nest(LIST_ELEMENT, |attributes| {
            key.clear();
            write_key(element.key, false, key);
            attributes.nest(ELEMENT_KEY, |data| {
                data.bytes(DATA_VALUE, key);
            });
            if set.interval && set.key.len() > 1 {
                key.clear();
                write_key(element.key, true, key);
                attributes.nest(ELEMENT_KEY_END, |data| {
                    data.bytes(DATA_VALUE, key);
                });
            }
            if let Some(verdict) = element.verdict {
                attributes.nest(ELEMENT_DATA, |data| self.write_verdict(verdict, data));
            }
        });
        // A range of single-part keys is two elements: its first key, and the first key after it.
        if let Key::Addresses(range) = element.key
            && let Some(after) = next_address(range.last)
        {
            list.nest(LIST_ELEMENT, |attributes| {
                attributes.u32(ELEMENT_FLAGS, ELEMENT_INTERVAL_END);
                attributes.nest(ELEMENT_KEY, |data| {
                    key.clear();
                    write_address(after, key);
                    data.bytes(DATA_VALUE, key);
                });
            });
        }
    }

    fn new_rules(&self, id: ChainId, requests: &mut Vec<Request>) {
        let name = self.names.chain(id);
        let rules = self.plan.chain(id).map_or(&[][..], |chain| &chain.rules);
        requests.extend(rules.iter().map(|rule| self.new_rule(&name, rule)));
    }

    fn new_rule(&self, chain: &str, rule: &Rule) -> Request {
        let mut attributes = Attributes::default();
        attributes.text(TABLE_NAME, TABLE).text(RULE_CHAIN, chain);
        attributes.nest(RULE_EXPRESSIONS, |list| {
            for part in &rule.0 {
                match part {
                    Expression::KnownConnection => known_connection(list),
                    Expression::NeighborDiscovery => neighbor_discovery(list),
                    Expression::Lookup(fields, set) => self.lookup(fields, *set, Find::Held, list),
                    Expression::Absent(fields, set) => {
                        self.lookup(fields, *set, Find::Absent, list);
                    }
                    Expression::Map(fields, set) => self.lookup(fields, *set, Find::Verdict, list),
                    Expression::Count(_) | Expression::Tally(_) => {
                        expression(list, "counter", |_| {});
                    }
                    Expression::Exceeds(field, set, limit) => {
                        gather(&[*field], list);
                        exceeds(list, &self.names.set(*set), *limit);
                    }
                    Expression::Tell(chain, log) => tell(list, *log, &chain.to_string()),
                    Expression::Verdict(verdict) => expression(list, "immediate", |immediate| {
                        immediate.u32(1, VERDICT_REGISTER);
                        immediate.nest(2, |data| self.write_verdict(*verdict, data));
                    }),
                }
            }
        });
        (message(NEW_RULE, attributes), NLM_F_CREATE | NLM_F_APPEND)
    }

    /// Looks the fields up.
    fn lookup(&self, fields: &[Field], id: SetId, find: Find, list: &mut Attributes) {
        gather(fields, list);
        expression(list, "lookup", |lookup| {
            lookup.text(1, &self.names.set(id)).u32(2, KEY_REGISTER);
            match find {
                Find::Held => {}
                Find::Absent => _ = lookup.u32(LOOKUP_FLAGS, LOOKUP_INVERTED),
                Find::Verdict => _ = lookup.u32(3, VERDICT_REGISTER),
            }
        });
    }

    fn write_verdict(&self, verdict: Verdict, data: &mut Attributes) {
        let (code, chain): (i32, Option<ChainId>) = match verdict {
            Verdict::Drop => (0, None),
            Verdict::Accept => (1, None),
            Verdict::Jump(chain) => (-3, Some(chain)),
            Verdict::Goto(chain) => (-4, Some(chain)),
            Verdict::Return => (-5, None),
        };
        data.nest(DATA_VERDICT, |attributes| {
            attributes.bytes(VERDICT_CODE, &code.to_be_bytes());
            if let Some(chain) = chain {
                attributes.text(VERDICT_CHAIN, &self.names.chain(chain));
            }
        });
    }
}

/// Gathers the fields in neighbouring registers. Ends the rule if the packet is of another family.
fn gather(fields: &[Field], list: &mut Attributes) {
    let family = fields.iter().find_map(|field| match field.kind() {
        Type::Address(Family::V4) => Some(FAMILY_V4),
        Type::Address(Family::V6) => Some(FAMILY_V6),
        _ => None,
    });
    if let Some(family) = family {
        load_meta(list, META_FAMILY, KEY_REGISTER);
        compare(list, EQUAL, &[family]);
    }
    let mut offset = 0;
    for field in fields {
        // The kernel calls a register by the larger name where both fit.
        let register = match offset % 16 {
            0 => KEY_REGISTER + offset / 16,
            _ => SMALL_REGISTERS + offset / 4,
        };
        let length = type_length(field.kind());
        let mut load = |header, at| load_payload(list, header, at, length, register);
        match field {
            Field::Source(Family::V4) => load(NETWORK_HEADER, 12),
            Field::Destination(Family::V4) => load(NETWORK_HEADER, 16),
            Field::Source(Family::V6) => load(NETWORK_HEADER, 8),
            Field::Destination(Family::V6) => load(NETWORK_HEADER, 24),
            Field::Port => load(TRANSPORT_HEADER, 2),
            Field::Protocol => load_meta(list, META_PROTOCOL, register),
        }
        offset += length.next_multiple_of(4);
    }
}

/// Removes the table, whether it is there or not.
pub(crate) fn remove() -> Vec<Request> {
    vec![table(NEW_TABLE), table(DELETE_TABLE)]
}

/// Removes sets and chains that nothing else refers to. The order is the kernel's: rules hold
/// sets, and the elements of maps hold chains.
pub(crate) fn remove_objects(sets: &[String], chains: &[String]) -> Vec<Request> {
    let delete = |kind, name_kind, name: &String| {
        let mut attributes = Attributes::default();
        attributes.text(TABLE_NAME, TABLE).text(name_kind, name);
        (message(kind, attributes), 0)
    };
    let flushes = chains.iter().map(|chain| flush_chain(chain));
    let sets = sets.iter().map(|set| delete(DELETE_SET, SET_NAME, set));
    let chains = chains.iter().map(|chain| delete(DELETE_CHAIN, CHAIN_NAME, chain));
    flushes.chain(sets).chain(chains).collect()
}

/// Makes the requests one transaction. It asks for an acknowledgement of the last only, which
/// comes when all is done. (Kernels before 6.10 acknowledge neither end of a batch.)
pub fn transaction(mut requests: Vec<Request>) -> Vec<Request> {
    if let Some((_, flags)) = requests.last_mut() {
        *flags |= NLM_F_ACK;
    }
    let border = |kind| (Message { kind, resource: SUBSYSTEM, ..Message::default() }, 0);
    requests.insert(0, border(BATCH_BEGIN));
    requests.push(border(BATCH_END));
    requests
}

/// The bytes of the requests in a send, with the borders of a transaction.
pub(crate) fn bytes<'a>(requests: impl IntoIterator<Item = &'a Request>) -> usize {
    const HEADER: usize = 16;
    let borders = 2 * (HEADER + Message::default().buffer_len());
    let sizes = requests.into_iter().map(|(message, _)| HEADER + message.buffer_len());
    borders + sizes.sum::<usize>()
}

/// Asks for the number that every transaction of anybody changes.
pub(crate) fn get_generation() -> Message {
    message(GET_GENERATION, Attributes::default())
}

/// The answer to [`get_generation`].
pub(crate) fn kernel_generation(message: &Message) -> Option<u32> {
    let id = find(message.attributes.as_bytes(), GENERATION_ID)?;
    Some(u32::from_be_bytes(id.try_into().ok()?))
}

/// Whether a message tells of the end of a transaction.
pub(crate) fn is_new_generation(message: &Message) -> bool {
    message.kind == NEW_GENERATION
}

/// Whether a message is about our table or something in it. The name of the table is the first
/// attribute of all of them.
pub(crate) fn is_in_our_table(message: &Message) -> bool {
    message.family == FAMILY_INET && name_in_table(message, TABLE_NAME).is_some()
}

/// Asks for all tables.
pub(crate) fn get_tables() -> Message {
    message(GET_TABLE, Attributes::default())
}

/// Whether a table is switched off.
pub(crate) fn is_dormant(message: &Message) -> bool {
    let flags = find(message.attributes.as_bytes(), TABLE_FLAGS);
    let flags = flags.and_then(|flags| flags.try_into().ok()).map_or(0, u32::from_be_bytes);
    flags & TABLE_DORMANT != 0
}

/// Asks for the chains of all tables.
pub(crate) fn get_chains() -> Message {
    message(GET_CHAIN, Attributes::default())
}

/// Asks for the sets of all tables.
pub(crate) fn get_sets() -> Message {
    message(GET_SET, Attributes::default())
}

/// The name of a chain that the kernel listed; `None` if it is not in our table.
pub(crate) fn chain_name(message: &Message) -> Option<&str> {
    name_in_table(message, CHAIN_NAME)
}

/// The name of a set that the kernel listed; `None` if it is not in our table.
pub(crate) fn set_name(message: &Message) -> Option<&str> {
    name_in_table(message, SET_NAME)
}

pub(crate) fn is_chain(message: &Message) -> bool {
    message.kind == NEW_CHAIN
}

pub(crate) fn is_rule(message: &Message) -> bool {
    message.kind == NEW_RULE
}

pub(crate) fn is_set(message: &Message) -> bool {
    message.kind == NEW_SET
}

pub(crate) fn is_elements(message: &Message) -> bool {
    message.kind == NEW_ELEMENTS
}

/// The expressions of a rule, in order.
pub(crate) fn expressions(message: &Message) -> Vec<&[u8]> {
    let list = find(message.attributes.as_bytes(), RULE_EXPRESSIONS).unwrap_or_default();
    all(list, LIST_ELEMENT).collect()
}

/// The name of an expression, with its zero byte, and its attributes.
pub(crate) fn expression_parts(expression: &[u8]) -> (&[u8], &[u8]) {
    let part = |kind| find(expression, kind).unwrap_or_default();
    (part(EXPRESSION_NAME), part(EXPRESSION_DATA))
}

/// Whether rules fill the set of a message, and not we.
pub(crate) fn is_dynamic(set: &Message) -> bool {
    let flags = find(set.attributes.as_bytes(), SET_FLAGS).and_then(|flags| flags.try_into().ok());
    flags.map_or(0, u32::from_be_bytes) & SET_FILLED_BY_RULES != 0
}

/// Each element in a message as bytes that are equal if the elements are, whatever they count.
pub(crate) fn elements(message: &Message) -> Vec<Vec<u8>> {
    let list = find(message.attributes.as_bytes(), ELEMENTS_LIST).unwrap_or_default();
    fn value(element: &[u8], kind: u16) -> Option<&[u8]> {
        find(find(element, kind)?, DATA_VALUE)
    }
    let whole = |element: &[u8]| {
        let flags = find(element, ELEMENT_FLAGS).unwrap_or(&[0; 4]);
        let verdict = find(element, ELEMENT_DATA).and_then(|data| find(data, DATA_VERDICT));
        let verdict = |kind| verdict.and_then(|verdict| find(verdict, kind));
        let parts = [
            value(element, ELEMENT_KEY),
            Some(flags),
            value(element, ELEMENT_KEY_END),
            verdict(VERDICT_CODE),
            verdict(VERDICT_CHAIN),
        ];
        parts.into_iter().flatten().flatten().copied().collect()
    };
    all(list, LIST_ELEMENT).map(whole).collect()
}

fn name_in_table(message: &Message, kind: u16) -> Option<&str> {
    text(message, kind).filter(|_| table_name(message) == Some(TABLE))
}

/// The table of a message. It is the first attribute of all of them.
pub(crate) fn table_name(message: &Message) -> Option<&str> {
    text(message, TABLE_NAME)
}

/// A text in a message.
pub(crate) fn text(message: &Message, kind: u16) -> Option<&str> {
    let text = std::str::from_utf8(find(message.attributes.as_bytes(), kind)?).ok()?;
    Some(text.trim_end_matches('\0'))
}

/// Asks for all rules of the table, or those of one chain.
pub(crate) fn get_rules(chain: Option<&str>) -> Message {
    let mut attributes = Attributes::default();
    attributes.text(TABLE_NAME, TABLE);
    if let Some(chain) = chain {
        attributes.text(RULE_CHAIN, chain);
    }
    message(GET_RULE, attributes)
}

/// Asks for the elements of a set with these keys, all of which must be there.
pub(crate) fn get_some_elements(set: &str, keys: &[Key]) -> Message {
    let mut attributes = Attributes::default();
    attributes.text(TABLE_NAME, TABLE).text(ELEMENTS_SET, set);
    attributes.nest(ELEMENTS_LIST, |list| {
        for key in keys {
            list.nest(LIST_ELEMENT, |element| {
                element.nest(ELEMENT_KEY, |data| {
                    data.bytes(DATA_VALUE, &element_key(*key));
                });
            });
        }
    });
    message(GET_ELEMENTS, attributes)
}

/// Asks for all elements of a set.
pub(crate) fn get_elements(set: &str) -> Message {
    let mut attributes = Attributes::default();
    attributes.text(TABLE_NAME, TABLE).text(ELEMENTS_SET, set);
    message(GET_ELEMENTS, attributes)
}

/// Packets and bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
}

/// The chain of a rule of our table that the kernel listed, and the rule's counter if it counts.
pub(crate) fn rule_counter(message: &Message) -> Option<(&str, Option<Counted>)> {
    Some((name_in_table(message, RULE_CHAIN)?, counter_of(message)))
}

/// Whether a rule that the kernel listed tells of packets.
pub(crate) fn tells(message: &Message) -> bool {
    expressions(message).iter().any(|expression| expression_parts(expression).0 == b"log\0")
}

/// The counter of a rule that the kernel listed. `None` if the rule does not count.
pub(crate) fn counter_of(message: &Message) -> Option<Counted> {
    all(find(message.attributes.as_bytes(), RULE_EXPRESSIONS)?, LIST_ELEMENT).find_map(counter)
}

/// The keys and counters of the elements in a message of the kernel. A key is as in
/// [`element_key`].
pub(crate) fn element_counters(message: &Message) -> Vec<(&[u8], Counted)> {
    let elements = find(message.attributes.as_bytes(), ELEMENTS_LIST).unwrap_or_default();
    let counted = all(elements, LIST_ELEMENT).filter_map(|element| {
        let key = find(find(element, ELEMENT_KEY)?, DATA_VALUE)?;
        Some((key, counter(find(element, ELEMENT_EXPRESSION)?)?))
    });
    counted.collect()
}

fn counter(expression: &[u8]) -> Option<Counted> {
    if find(expression, EXPRESSION_NAME)? != b"counter\0" {
        return None;
    }
    let data = find(expression, EXPRESSION_DATA)?;
    let number = |kind| Some(u64::from_be_bytes(find(data, kind)?.try_into().ok()?));
    Some(Counted { packets: number(COUNTER_PACKETS)?, bytes: number(COUNTER_BYTES)? })
}

/// The key as the kernel has it: each part at a multiple of 4 bytes, numbers in network byte
/// order. Of a range, the beginning.
pub(crate) fn element_key(key: Key) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(32);
    write_key(key, false, &mut bytes);
    bytes
}

fn write_key(key: Key, end: bool, bytes: &mut Vec<u8>) {
    // A part of a key fills whole registers.
    let protocol_part = |protocol: u8| [protocol, 0, 0, 0];
    let port_part = |port: u16| {
        let [high, low] = port.to_be_bytes();
        [high, low, 0, 0]
    };
    match key {
        Key::Pair(source, destination) => {
            write_address(source, bytes);
            write_address(destination, bytes);
        }
        Key::Address(address) => write_address(address, bytes),
        Key::Addresses(range) => write_address(if end { range.last } else { range.first }, bytes),
        Key::Service(address, protocol, port) => {
            write_address(address, bytes);
            bytes.extend(protocol_part(protocol));
            bytes.extend(port_part(port));
        }
        Key::Ports(ports) => {
            bytes.extend(port_part(if end { ports.last } else { ports.first }));
            bytes.extend(protocol_part(ports.protocol.number()));
        }
    }
}

fn write_address(address: IpAddr, bytes: &mut Vec<u8>) {
    match address {
        IpAddr::V4(address) => bytes.extend_from_slice(&address.octets()),
        IpAddr::V6(address) => bytes.extend_from_slice(&address.octets()),
    }
}

pub(crate) fn message(kind: u16, attributes: Attributes) -> Message {
    Message { kind, family: FAMILY_INET, resource: 0, attributes }
}

fn flush_chain(name: &str) -> Request {
    let mut attributes = Attributes::default();
    attributes.text(TABLE_NAME, TABLE).text(RULE_CHAIN, name);
    (message(DELETE_RULE, attributes), 0)
}

fn table(kind: u16) -> Request {
    let mut attributes = Attributes::default();
    attributes.text(TABLE_NAME, TABLE);
    if kind == NEW_TABLE {
        // Wakes it, should somebody have made it dormant.
        attributes.u32(TABLE_FLAGS, 0);
        return (message(kind, attributes), NLM_F_CREATE);
    }
    (message(kind, attributes), 0)
}

fn new_chain(name: &str, base: bool) -> Request {
    let mut attributes = Attributes::default();
    attributes.text(TABLE_NAME, TABLE).text(CHAIN_NAME, name);
    if base {
        attributes.nest(CHAIN_HOOK, |hook| {
            hook.u32(HOOK_NUMBER, HOOK_FORWARD).u32(HOOK_PRIORITY, PRIORITY_FILTER);
        });
        attributes.u32(CHAIN_POLICY, 1).text(CHAIN_TYPE, "filter");
    }
    (message(NEW_CHAIN, attributes), NLM_F_CREATE)
}

/// The byte order of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ByteOrder {
    /// Of several parts.
    Mixed = 0,
    Machine = 1,
    Network = 2,
}

/// What `nft` notes at a set for itself: the byte order of the key (type 0, 4 bytes).
pub(crate) fn byte_order(order: ByteOrder) -> [u8; 6] {
    let [a, b, c, d] = (order as u32).to_ne_bytes();
    [0, 4, a, b, c, d]
}

fn type_number(part: Type) -> u32 {
    match part {
        Type::Address(Family::V4) => 7,
        Type::Address(Family::V6) => 8,
        Type::Protocol => 12,
        Type::Port => 13,
    }
}

fn type_length(part: Type) -> u32 {
    match part {
        Type::Address(Family::V4) => 4,
        Type::Address(Family::V6) => 16,
        Type::Protocol => 1,
        Type::Port => 2,
    }
}

/// Adds an expression to those of a rule: its name, and its attributes.
pub fn expression(list: &mut Attributes, name: &str, write: impl FnOnce(&mut Attributes)) {
    list.nest(LIST_ELEMENT, |attributes| {
        attributes.text(EXPRESSION_NAME, name).nest(EXPRESSION_DATA, write);
    });
}

/// `ct state established,related`.
pub(crate) fn known_connection(list: &mut Attributes) {
    const ESTABLISHED: u32 = 1 << 1;
    const RELATED: u32 = 1 << 2;
    connection_state(list, ESTABLISHED | RELATED);
}

/// `ct state new`.
pub(crate) fn new_connection(list: &mut Attributes) {
    connection_state(list, 1 << 3);
}

/// The state's bit is among these.
fn connection_state(list: &mut Attributes, bits: u32) {
    let state = bits.to_ne_bytes();
    expression(list, "ct", |ct| {
        ct.u32(1, KEY_REGISTER).u32(2, 0);
    });
    expression(list, "bitwise", |bitwise| {
        bitwise.u32(1, KEY_REGISTER).u32(2, KEY_REGISTER).u32(3, 4);
        bitwise.nest(4, |mask| {
            mask.bytes(DATA_VALUE, &state);
        });
        bitwise.nest(5, |xor| {
            xor.bytes(DATA_VALUE, &[0; 4]);
        });
    });
    compare(list, NOT_EQUAL, &[0; 4]);
}

/// `limit rate R/second burst R packets log prefix P group G snaplen 128 counter`.
pub(crate) fn tell(list: &mut Attributes, log: Log, prefix: &str) {
    list.nest(LIST_ELEMENT, |limit| write_limit(limit, Limit::of_all(log), 0));
    expression(list, "log", |attributes| {
        attributes.bytes(1, &log.group.to_be_bytes()).text(2, prefix).u32(3, SNAP_BYTES);
    });
    expression(list, "counter", |_| {});
}

/// What a set that rules fill has room for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    /// The most elements.
    pub(crate) size: u32,
    /// How long an element stays that no packet meets; without it, for as long as the set does.
    pub(crate) timeout: Option<Duration>,
}

impl Room {
    /// Of a set that remembers who was heard.
    pub(crate) const OF_HEARD: Room = Room { size: Set::HEARD, timeout: Some(Set::QUIET) };

    /// Those of the set.
    pub(crate) fn flags(self) -> u32 {
        SET_FILLED_BY_RULES | self.timeout.map_or(0, |_| SET_WITH_TIMEOUT)
    }

    pub(crate) fn write(self, set: &mut Attributes) {
        set.nest(SET_DESCRIPTION, |description| {
            description.u32(DESCRIPTION_SIZE, self.size);
        });
        if let Some(timeout) = self.timeout {
            set.bytes(SET_TIMEOUT, &(timeout.as_millis() as u64).to_be_bytes());
        }
    }
}

/// Goes on if more packets than the limit have come with what is in the first register.
pub(crate) fn exceeds(list: &mut Attributes, set: &str, limit: Limit) {
    fill(list, set, DYNAMIC_UPDATE, |dynset| {
        dynset.nest(DYNAMIC_EXPRESSION, |each| write_limit(each, limit, LIMIT_OVER));
    });
}

/// Adds the key that begins in the first register. If the set is full, the rule ends here without a
/// verdict.
pub(crate) fn add(list: &mut Attributes, set: &str) {
    fill(list, set, DYNAMIC_ADD, |_| {});
}

fn fill(list: &mut Attributes, set: &str, operation: u32, more: impl FnOnce(&mut Attributes)) {
    expression(list, "dynset", |dynset| {
        dynset.text(DYNAMIC_SET, set);
        dynset.u32(DYNAMIC_OPERATION, operation).u32(DYNAMIC_KEY, KEY_REGISTER);
        more(dynset);
    });
}

/// `limit rate R/second burst B packets`; with the flag, `limit rate over …`.
fn write_limit(attributes: &mut Attributes, Limit { rate, burst }: Limit, flags: u32) {
    attributes.text(EXPRESSION_NAME, "limit").nest(EXPRESSION_DATA, |limit| {
        limit.bytes(1, &u64::from(rate).to_be_bytes()).bytes(2, &1_u64.to_be_bytes());
        limit.u32(3, burst).u32(4, 0).u32(5, flags);
    });
}

/// `ip6 hoplimit 255 icmpv6 type 133-137`.
fn neighbor_discovery(list: &mut Attributes) {
    const ICMP_V6: u8 = 58;
    load_meta(list, META_FAMILY, KEY_REGISTER);
    compare(list, EQUAL, &[FAMILY_V6]);
    load_payload(list, NETWORK_HEADER, 7, 1, KEY_REGISTER);
    compare(list, EQUAL, &[255]);
    load_meta(list, META_PROTOCOL, KEY_REGISTER);
    compare(list, EQUAL, &[ICMP_V6]);
    load_payload(list, TRANSPORT_HEADER, 0, 1, KEY_REGISTER);
    compare(list, AT_LEAST, &[133]);
    compare(list, AT_MOST, &[137]);
}

/// Loads what the kernel knows of a packet, by its `NFT_META_*` number, into a register.
pub fn load_meta(list: &mut Attributes, key: u32, register: u32) {
    expression(list, "meta", |meta| {
        meta.u32(1, register).u32(2, key);
    });
}

/// Loads bytes of a packet into a register: from a header (`NFT_PAYLOAD_*_HEADER`), at an offset.
pub fn load_payload(list: &mut Attributes, header: u32, at: u32, length: u32, register: u32) {
    expression(list, "payload", |payload| {
        payload.u32(1, register).u32(2, header).u32(3, at).u32(4, length);
    });
}

/// Ends the rule unless register 1 compares so (`NFT_CMP_*`) with the value.
pub fn compare(list: &mut Attributes, operation: u32, value: &[u8]) {
    expression(list, "cmp", |cmp| {
        cmp.u32(1, KEY_REGISTER).u32(2, operation).nest(3, |data| {
            data.bytes(DATA_VALUE, value);
        });
    });
}
