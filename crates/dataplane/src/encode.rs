//! A plan as messages of nf_tables, and its counters read from the kernel's answers.
//!
//! The numbers are those of `linux/netfilter/nf_tables.h`; an enumeration there is a `u16` here.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE};
use portcullis_core::net::{Family, next_address};

use crate::attributes::{Attributes, Message, all, find};
use crate::plan::{
    ChainId, Element, Expression, Field, Key, Plan, Rule, Set, SetId, TABLE, Type, Verdict,
};

/// A request and its flags.
pub(crate) type Request = (Message, u16);

const FAMILY_INET: u8 = 1;
const FAMILY_V4: u8 = 2;
const FAMILY_V6: u8 = 10;

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

const NEW_TABLE: u16 = SUBSYSTEM << 8;
const DELETE_TABLE: u16 = NEW_TABLE + 2;
const NEW_CHAIN: u16 = NEW_TABLE + 3;
const NEW_RULE: u16 = NEW_TABLE + 6;
const GET_RULE: u16 = NEW_TABLE + 7;
const NEW_SET: u16 = NEW_TABLE + 9;
const NEW_ELEMENTS: u16 = NEW_TABLE + 12;
const GET_ELEMENTS: u16 = NEW_TABLE + 13;

/// In every kind of message of ours.
const TABLE_NAME: u16 = 1;
const LIST_ELEMENT: u16 = 1;

const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const HOOK_FORWARD: u32 = 2;
const PRIORITY_FILTER: u32 = 0;

const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;

const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
const SET_KEY_TYPE: u16 = 4;
const SET_KEY_LENGTH: u16 = 5;
const SET_DATA_TYPE: u16 = 6;
const SET_DATA_LENGTH: u16 = 7;
const SET_DESCRIPTION: u16 = 9;
const SET_ID: u16 = 10;
const SET_USER_DATA: u16 = 13;
const SET_EXPRESSION: u16 = 17;
const SET_INTERVAL: u32 = 0x4;
const SET_MAP: u32 = 0x8;
const SET_CONCATENATION: u32 = 0x80;
const DESCRIPTION_CONCATENATION: u16 = 2;
const FIELD_LENGTH: u16 = 1;
const DATA_TYPE_VERDICT: u32 = 0xffff_ff00;

const ELEMENTS_SET: u16 = 2;
const ELEMENTS_LIST: u16 = 3;
const ELEMENTS_SET_ID: u16 = 4;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_DATA: u16 = 2;
const ELEMENT_FLAGS: u16 = 3;
const ELEMENT_EXPRESSION: u16 = 7;
const ELEMENT_KEY_END: u16 = 10;
const ELEMENT_INTERVAL_END: u32 = 1;

const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;

const COUNTER_BYTES: u16 = 1;
const COUNTER_PACKETS: u16 = 2;

/// An attribute ends at 64 KiB; a list of elements ends well before.
const ELEMENT_LIST_BYTES: usize = 60_000;

/// The register for verdicts.
const VERDICT_REGISTER: u32 = 0;
/// Keys of sets are gathered from this register on, in which 16 bytes fit.
const KEY_REGISTER: u32 = 1;
/// The 4-byte registers over the same memory begin here.
const SMALL_REGISTERS: u32 = 8;

/// One transaction that puts the plan in the place of the whole table.
pub(crate) fn replace(plan: &Plan) -> Vec<Request> {
    let mut requests = vec![begin(), table(NEW_TABLE), table(DELETE_TABLE), table(NEW_TABLE)];
    requests.extend(plan.sets.iter().zip(0..).map(|(set, id)| new_set(set, SetId(id))));
    for (index, chain) in plan.chains.iter().enumerate() {
        requests.push(new_chain(&chain.name, index == 0));
    }
    for (set, id) in plan.sets.iter().zip(0..) {
        new_elements(plan, set, SetId(id), &mut requests);
    }
    for chain in &plan.chains {
        let rules = chain.rules.iter().map(|rule| new_rule(plan, &chain.name, rule));
        requests.extend(rules);
    }
    finish(requests)
}

/// One transaction after which the table is gone, whether it was there or not.
pub(crate) fn remove() -> Vec<Request> {
    finish(vec![begin(), table(NEW_TABLE), table(DELETE_TABLE)])
}

/// Asks for all rules of the table.
pub(crate) fn get_rules() -> Message {
    let mut attributes = Attributes::default();
    attributes.text(TABLE_NAME, TABLE);
    message(GET_RULE, attributes)
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

/// The chain and the counter of a rule that the kernel listed. `None` if the rule does not count.
pub(crate) fn rule_counter(message: &Message) -> Option<(&str, Option<Counted>)> {
    let attributes = message.attributes.as_bytes();
    let chain = std::str::from_utf8(find(attributes, RULE_CHAIN)?).ok()?.trim_end_matches('\0');
    let mut expressions = all(find(attributes, RULE_EXPRESSIONS)?, LIST_ELEMENT);
    Some((chain, expressions.find_map(counter)))
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
    let service = |bytes: &mut Vec<u8>, protocol: u8, port: u16| {
        let [high, low] = port.to_be_bytes();
        bytes.extend_from_slice(&[protocol, 0, 0, 0, high, low, 0, 0]);
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
            service(bytes, protocol, port);
        }
        Key::Ports(ports) => {
            let port = if end { ports.last } else { ports.first };
            service(bytes, ports.protocol.number(), port);
        }
    }
}

fn write_address(address: IpAddr, bytes: &mut Vec<u8>) {
    match address {
        IpAddr::V4(address) => bytes.extend_from_slice(&address.octets()),
        IpAddr::V6(address) => bytes.extend_from_slice(&address.octets()),
    }
}

fn message(kind: u16, attributes: Attributes) -> Message {
    Message { kind, family: FAMILY_INET, resource: 0, attributes }
}

fn begin() -> Request {
    (Message { kind: BATCH_BEGIN, resource: SUBSYSTEM, ..Message::default() }, 0)
}

/// Asks for an acknowledgement of the last request only: it comes when the whole batch is done.
/// (Kernels before 6.10 acknowledge neither end of a batch.)
fn finish(mut requests: Vec<Request>) -> Vec<Request> {
    if let Some((_, flags)) = requests.last_mut() {
        *flags |= NLM_F_ACK;
    }
    requests.push((Message { kind: BATCH_END, resource: SUBSYSTEM, ..Message::default() }, 0));
    requests
}

fn table(kind: u16) -> Request {
    let mut attributes = Attributes::default();
    attributes.text(TABLE_NAME, TABLE);
    (message(kind, attributes), if kind == NEW_TABLE { NLM_F_CREATE } else { 0 })
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

fn new_set(set: &Set, id: SetId) -> Request {
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
    // A user's program reads the types of the parts from this, 6 bits each.
    let key_type = set.key.iter().fold(0, |types, part| types << 6 | type_number(*part));
    let length = |part: &Type| type_length(*part).next_multiple_of(4);

    let mut attributes = Attributes::default();
    attributes.text(TABLE_NAME, TABLE).text(SET_NAME, &set.name).u32(SET_FLAGS, flags);
    attributes.u32(SET_KEY_TYPE, key_type);
    attributes.u32(SET_KEY_LENGTH, set.key.iter().map(length).sum());
    if set.map {
        attributes.u32(SET_DATA_TYPE, DATA_TYPE_VERDICT).u32(SET_DATA_LENGTH, 0);
    }
    attributes.u32(SET_ID, set_number(id));
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
    attributes.bytes(SET_USER_DATA, &byte_order(concatenation));
    if set.counted {
        attributes.nest(SET_EXPRESSION, |expression| {
            expression.text(EXPRESSION_NAME, "counter").nest(EXPRESSION_DATA, |_| {});
        });
    }
    (message(NEW_SET, attributes), NLM_F_CREATE)
}

/// What `nft` notes at a set for itself: the byte order of the key (type 0, 4 bytes), big-endian
/// for one part, none for several.
fn byte_order(concatenation: bool) -> [u8; 6] {
    let [a, b, c, d] = if concatenation { 0u32 } else { 2 }.to_ne_bytes();
    [0, 4, a, b, c, d]
}

/// 0 is taken to mean no number.
fn set_number(id: SetId) -> u32 {
    id.0 + 1
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

/// The elements of a set, in as many messages as they need.
fn new_elements(plan: &Plan, set: &Set, id: SetId, requests: &mut Vec<Request>) {
    let mut rest = set.elements.iter().peekable();
    let mut key = Vec::with_capacity(64);
    while rest.peek().is_some() {
        let mut attributes = Attributes::default();
        attributes.text(TABLE_NAME, TABLE).text(ELEMENTS_SET, &set.name);
        attributes.u32(ELEMENTS_SET_ID, set_number(id));
        attributes.nest(ELEMENTS_LIST, |list| {
            let start = list.len();
            while list.len() - start < ELEMENT_LIST_BYTES
                && let Some(element) = rest.next()
            {
                new_element(plan, set, element, &mut key, list);
            }
        });
        requests.push((message(NEW_ELEMENTS, attributes), NLM_F_CREATE));
    }
}

fn new_element(
    plan: &Plan,
    set: &Set,
    element: &Element,
    key: &mut Vec<u8>,
    list: &mut Attributes,
) {
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
            attributes.nest(ELEMENT_DATA, |data| write_verdict(plan, verdict, data));
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

fn new_rule(plan: &Plan, chain: &str, rule: &Rule) -> Request {
    let mut attributes = Attributes::default();
    attributes.text(TABLE_NAME, TABLE).text(RULE_CHAIN, chain);
    attributes.nest(RULE_EXPRESSIONS, |list| {
        for part in &rule.0 {
            match part {
                Expression::KnownConnection => known_connection(list),
                Expression::Lookup(fields, set) => lookup(plan, fields, *set, false, list),
                Expression::Map(fields, set) => lookup(plan, fields, *set, true, list),
                Expression::Count(_) => expression(list, "counter", |_| {}),
                Expression::Verdict(verdict) => expression(list, "immediate", |immediate| {
                    immediate.u32(1, VERDICT_REGISTER);
                    immediate.nest(2, |data| write_verdict(plan, *verdict, data));
                }),
            }
        }
    });
    (message(NEW_RULE, attributes), NLM_F_CREATE | NLM_F_APPEND)
}

fn expression(list: &mut Attributes, name: &str, write: impl FnOnce(&mut Attributes)) {
    list.nest(LIST_ELEMENT, |attributes| {
        attributes.text(EXPRESSION_NAME, name).nest(EXPRESSION_DATA, write);
    });
}

/// `ct state established,related`: the state's bit is among these two.
fn known_connection(list: &mut Attributes) {
    const ESTABLISHED: u32 = 1 << 1;
    const RELATED: u32 = 1 << 2;
    let state = (ESTABLISHED | RELATED).to_ne_bytes();
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
    expression(list, "cmp", |cmp| {
        cmp.u32(1, KEY_REGISTER).u32(2, 1).nest(3, |data| {
            data.bytes(DATA_VALUE, &[0; 4]);
        });
    });
}

/// Gathers the fields in neighbouring registers and looks them up.
fn lookup(plan: &Plan, fields: &[Field], id: SetId, map: bool, list: &mut Attributes) {
    const META_FAMILY: u32 = 15;
    const META_PROTOCOL: u32 = 16;
    const NETWORK_HEADER: u32 = 1;
    const TRANSPORT_HEADER: u32 = 2;

    let family = fields.iter().find_map(|field| match field.kind() {
        Type::Address(Family::V4) => Some(FAMILY_V4),
        Type::Address(Family::V6) => Some(FAMILY_V6),
        _ => None,
    });
    if let Some(family) = family {
        expression(list, "meta", |meta| {
            meta.u32(1, KEY_REGISTER).u32(2, META_FAMILY);
        });
        expression(list, "cmp", |cmp| {
            cmp.u32(1, KEY_REGISTER).u32(2, 0).nest(3, |data| {
                data.bytes(DATA_VALUE, &[family]);
            });
        });
    }
    let mut offset = 0;
    for field in fields {
        let register = if offset == 0 { KEY_REGISTER } else { SMALL_REGISTERS + offset / 4 };
        let length = type_length(field.kind());
        let mut load = |header: u32, at: u32| {
            expression(list, "payload", |payload| {
                payload.u32(1, register).u32(2, header).u32(3, at).u32(4, length);
            });
        };
        match field {
            Field::Source(Family::V4) => load(NETWORK_HEADER, 12),
            Field::Destination(Family::V4) => load(NETWORK_HEADER, 16),
            Field::Source(Family::V6) => load(NETWORK_HEADER, 8),
            Field::Destination(Family::V6) => load(NETWORK_HEADER, 24),
            Field::Port => load(TRANSPORT_HEADER, 2),
            Field::Protocol => expression(list, "meta", |meta| {
                meta.u32(1, register).u32(2, META_PROTOCOL);
            }),
        }
        offset += length.next_multiple_of(4);
    }
    expression(list, "lookup", |lookup| {
        lookup.text(1, plan.set(id).map_or("", |set| &set.name)).u32(2, KEY_REGISTER);
        if map {
            lookup.u32(3, VERDICT_REGISTER);
        }
        lookup.u32(4, set_number(id));
    });
}

fn write_verdict(plan: &Plan, verdict: Verdict, data: &mut Attributes) {
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
            attributes.text(VERDICT_CHAIN, plan.chain(chain).map_or("", |chain| &chain.name));
        }
    });
}
