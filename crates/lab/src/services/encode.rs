//! The table of Services as messages of nf_tables. The numbers are those of
//! `linux/netfilter/nf_tables.h`.
//!
//! ```text
//! prerouting, output        address . protocol . port → goto the chain of the Service port
//!                           or drop, where it is for endpoints of this node and there are none
//! service-…                 one rule for each endpoint: by chance, or by the client's address, dnat
//! postrouting               masquerade what goes back to its own sender, or came to a node port that
//!                           is not for endpoints of this node
//! input, forward, output    reject new connections to what has no endpoint
//! ```
//!
//! Refusals come before the policies (priority -110 against 0), as kube-proxy has it.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE};
use portcullis_core::net::{Family, Protocol};
use portcullis_dataplane::nf_tables::{
    Attributes, Message, Request, compare, expression, load_meta, load_payload,
};

use super::{Backends, Front, TABLE, Table};

const FAMILY_INET: u8 = 1;

const NEW_TABLE: u16 = 10 << 8;
const DELETE_TABLE: u16 = NEW_TABLE + 2;
const NEW_CHAIN: u16 = NEW_TABLE + 3;
const NEW_RULE: u16 = NEW_TABLE + 6;
const NEW_SET: u16 = NEW_TABLE + 9;
const NEW_ELEMENTS: u16 = NEW_TABLE + 12;

/// In every kind of message.
const TABLE_NAME: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
const SET_KEY_TYPE: u16 = 4;
const SET_KEY_LENGTH: u16 = 5;
const SET_DATA_TYPE: u16 = 6;
const SET_DATA_LENGTH: u16 = 7;
const SET_ID: u16 = 10;
const SET_USER_DATA: u16 = 13;
const SET_MAP: u32 = 0x8;
const DATA_TYPE_VERDICT: u32 = 0xffff_ff00;
const ELEMENTS_SET: u16 = 2;
const ELEMENTS_LIST: u16 = 3;
const LIST_ELEMENT: u16 = 1;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_GOTO: i32 = -4;
const VERDICT_DROP: i32 = 0;
const VERDICT_ACCEPT: i32 = 1;

/// An attribute ends at 64 KiB, and an element of ours has at most 256 bytes.
const ELEMENTS_AT_ONCE: usize = 200;

const VERDICT_REGISTER: u32 = 0;
/// Registers of 16 bytes begin here, and those of 4 over the same memory at 8.
const FIRST: u32 = 1;

const META_FAMILY: u32 = 15;
const META_PROTOCOL: u32 = 16;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;
const CT_STATE: u32 = 0;
const CT_STATUS: u32 = 2;
const CT_PORT: u32 = 12;
const STATE_NEW: u32 = 1 << 3;
const STATUS_DNAT: u32 = 1 << 5;

/// The numbers of hooks.
const PREROUTING: u32 = 0;
const INPUT: u32 = 1;
const FORWARD: u32 = 2;
const OUTPUT: u32 = 3;
const POSTROUTING: u32 = 4;

/// A base chain: its name, type, hook and priority.
type BaseChain = (&'static str, &'static str, u32, i32);

const DNAT: [BaseChain; 2] =
    [("prerouting", "nat", PREROUTING, -100), ("output", "nat", OUTPUT, -100)];
const MASQUERADE: BaseChain = ("postrouting", "nat", POSTROUTING, 100);
const REJECT: [BaseChain; 3] = [
    ("reject-input", "filter", INPUT, -110),
    ("reject-forward", "filter", FORWARD, -110),
    ("reject-output", "filter", OUTPUT, -110),
];

/// What differs between the families.
struct Words {
    digit: char,
    /// `NFPROTO_*`.
    number: u8,
    address_type: u32,
    address_length: u32,
    source_at: u32,
    destination_at: u32,
    /// `NFT_CT_DST_IP` or `NFT_CT_DST_IP6`.
    ct_destination: u32,
    port_unreachable: u8,
}

const V4: Words = Words {
    digit: '4',
    number: 2,
    address_type: 7,
    address_length: 4,
    source_at: 12,
    destination_at: 16,
    ct_destination: 20,
    port_unreachable: 3,
};
const V6: Words = Words {
    digit: '6',
    number: 10,
    address_type: 8,
    address_length: 16,
    source_at: 8,
    destination_at: 24,
    ct_destination: 22,
    port_unreachable: 4,
};

/// Replaces the table, whatever is there.
pub(super) fn requests(table: &Table) -> Vec<Request> {
    let mut out: Vec<Request> = [NEW_TABLE, DELETE_TABLE, NEW_TABLE].map(table_request).into();
    out.extend(DNAT.iter().chain([&MASQUERADE]).chain(&REJECT).map(base_chain));
    out.extend(table.backends.iter().map(|backends| chain(&chain_name(backends), |_| {})));
    for (words, ids) in [(&V4, 1..), (&V6, 5..)] {
        sets(table, words, ids, &mut out);
    }
    for (protocol, id) in Protocol::ALL.into_iter().zip(9..) {
        let ports = table.local_ports.iter().filter(|(of, _)| *of == protocol);
        let ports = ports.map(|(_, port)| (port.to_be_bytes().into(), Leads::Nowhere));
        // A key of one part is as long as it is.
        set(&local_ports(protocol), &[(PORT.0, 2)], ports.collect(), id, &mut out);
    }
    for backends in &table.backends {
        let choices = (0..backends.addresses.len())
            .map(|index| rule(&chain_name(backends), |list| choose(backends, index, list)));
        out.extend(choices);
    }
    for words in [&V4, &V6] {
        for (name, ..) in DNAT {
            out.push(rule(name, |list| {
                load_front(words, list);
                lookup("services", words, true, list);
            }));
        }
        for (name, ..) in REJECT {
            out.push(rule(name, |list| {
                connection(CT_STATE, STATE_NEW, list);
                load_front(words, list);
                lookup("rejected", words, false, list);
                expression(list, "reject", |reject| {
                    reject.u32(1, 0).bytes(2, &[words.port_unreachable]);
                });
            }));
        }
        out.push(rule(MASQUERADE.0, |list| {
            only(words, list);
            load_payload(list, NETWORK_HEADER, words.source_at, words.address_length, FIRST);
            let second = register(words.address_length);
            load_payload(list, NETWORK_HEADER, words.destination_at, words.address_length, second);
            lookup("hairpin", words, false, list);
            expression(list, "masq", |_| {});
        }));
    }
    for protocol in Protocol::ALL {
        out.push(rule(MASQUERADE.0, |list| {
            connection(CT_STATUS, STATUS_DNAT, list);
            load_meta(list, META_PROTOCOL, FIRST);
            compare(list, EQUAL, &[protocol.number()]);
            load_original(CT_PORT, list);
            expression(list, "lookup", |lookup| {
                lookup.text(1, &local_ports(protocol)).u32(2, FIRST);
            });
            expression(list, "immediate", |immediate| {
                immediate.u32(1, VERDICT_REGISTER).nest(2, |data| {
                    data.nest(DATA_VERDICT, |verdict| {
                        verdict.bytes(1, &VERDICT_ACCEPT.to_be_bytes());
                    });
                });
            });
        }));
    }
    for words in [&V4, &V6] {
        out.push(rule(MASQUERADE.0, |list| {
            connection(CT_STATUS, STATUS_DNAT, list);
            load_original(words.ct_destination, list);
            lookup("node", words, false, list);
            expression(list, "masq", |_| {});
        }));
    }
    out
}

/// The set of node ports that are for the endpoints of this node.
fn local_ports(protocol: Protocol) -> String {
    format!("local-{}", protocol.as_str().to_ascii_lowercase())
}

fn chain_name(backends: &Backends) -> String {
    format!("service-{}", backends.name)
}

/// A key, and in a map where it leads to.
type Element = (Vec<u8>, Leads);

enum Leads {
    Nowhere,
    Drop,
    Chain(String),
}

/// The type of a part of a key, as `nft` numbers them, and its length in whole registers.
type Part = (u32, u32);

const PROTOCOL: Part = (12, 4);
const PORT: Part = (13, 4);

/// A set or map: its name without the family, its key and its elements.
type NewSet<'a> = (&'a str, &'a [Part], Vec<Element>);

/// The sets and maps of a family, with their elements.
fn sets(table: &Table, words: &Words, ids: std::ops::RangeFrom<u32>, out: &mut Vec<Request>) {
    let ours = |address: &IpAddr| (Family::of(*address) == Family::V4) == (words.number == 2);
    let fronts = table.fronts.iter().filter(|((address, ..), _)| ours(address));
    let services = fronts
        .filter_map(|(front, index)| Some((*front, chain_name(table.backends.get(*index)?))))
        .map(|(front, chain)| (front_key(front), Leads::Chain(chain)));
    let dropped = table.dropped.iter().filter(|(address, ..)| ours(address));
    let services = services.chain(dropped.map(|front| (front_key(*front), Leads::Drop)));
    let rejected = table.rejected.iter().filter(|(address, ..)| ours(address));
    let node = table.node.iter().filter(|address| ours(address));
    let backends = table.backends.iter().flat_map(|backends| &backends.addresses);
    let backends: BTreeSet<IpAddr> = backends.map(SocketAddr::ip).filter(ours).collect();

    let address = (words.address_type, words.address_length);
    let front = [address, PROTOCOL, PORT];
    let plain = |key| (key, Leads::Nowhere);
    let rejected = rejected.map(|front| plain(front_key(*front)));
    let node = node.map(|address| plain(octets(*address)));
    let hairpin = backends.iter().map(|address| plain(octets(*address).repeat(2)));
    let sets: [NewSet; 4] = [
        ("services", &front, services.collect()),
        ("rejected", &front, rejected.collect()),
        ("node", &[address], node.collect()),
        ("hairpin", &[address; 2], hairpin.collect()),
    ];
    for ((name, key, elements), id) in sets.into_iter().zip(ids) {
        set(&format!("{name}{}", words.digit), key, elements, id, out);
    }
}

/// A set or map with its elements.
fn set(name: &str, key: &[Part], elements: Vec<Element>, id: u32, out: &mut Vec<Request>) {
    let map = name.starts_with("services");
    let mut set = ours_named(SET_NAME, name);
    set.u32(SET_FLAGS, if map { SET_MAP } else { 0 });
    set.u32(SET_KEY_TYPE, key.iter().fold(0, |types, (number, _)| types << 6 | number));
    set.u32(SET_KEY_LENGTH, key.iter().map(|(_, length)| length).sum());
    if map {
        set.u32(SET_DATA_TYPE, DATA_TYPE_VERDICT).u32(SET_DATA_LENGTH, 0);
    }
    set.u32(SET_ID, id);
    // What `nft` notes for itself: the byte order of the key, none for several parts.
    let order: u32 = if key.len() == 1 { 2 } else { 0 };
    set.bytes(SET_USER_DATA, &[&[0, 4], &order.to_ne_bytes()[..]].concat());
    out.push((message(NEW_SET, set), NLM_F_CREATE));

    for elements in elements.chunks(ELEMENTS_AT_ONCE) {
        let mut attributes = ours_named(ELEMENTS_SET, name);
        attributes.nest(ELEMENTS_LIST, |list| {
            elements.iter().for_each(|(key, leads)| element(key, leads, list));
        });
        out.push((message(NEW_ELEMENTS, attributes), NLM_F_CREATE));
    }
}

fn element(key: &[u8], leads: &Leads, list: &mut Attributes) {
    list.nest(LIST_ELEMENT, |element| {
        element.nest(ELEMENT_KEY, |data| {
            data.bytes(DATA_VALUE, key);
        });
        let (code, chain) = match leads {
            Leads::Nowhere => return,
            Leads::Drop => (VERDICT_DROP, None),
            Leads::Chain(chain) => (VERDICT_GOTO, Some(chain)),
        };
        element.nest(ELEMENT_DATA, |data| {
            data.nest(DATA_VERDICT, |verdict| {
                verdict.bytes(1, &code.to_be_bytes());
                if let Some(chain) = chain {
                    verdict.text(2, chain);
                }
            });
        });
    });
}

/// Each part of a key fills registers of 4 bytes.
fn front_key((address, protocol, port): Front) -> Vec<u8> {
    let [high, low] = port.to_be_bytes();
    [&octets(address)[..], &[protocol.number(), 0, 0, 0, high, low, 0, 0]].concat()
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().into(),
        IpAddr::V6(address) => address.octets().into(),
    }
}

/// The rule that sends a share of the connections that come to it to one of the endpoints: the
/// first takes one of n, the second one of the n - 1 that are left, and the last all.
fn choose(backends: &Backends, index: usize, list: &mut Attributes) {
    let (all, to) = (backends.addresses.len() as u32, backends.addresses[index]);
    let (index, words) = (index as u32, if to.is_ipv4() { &V4 } else { &V6 });
    load_meta(list, META_PROTOCOL, FIRST);
    compare(list, EQUAL, &[backends.protocol.number()]);
    if index + 1 < all && backends.sticky {
        only(words, list);
        // Not over the register that the result goes to.
        load_payload(list, NETWORK_HEADER, words.source_at, words.address_length, FIRST + 1);
        expression(list, "hash", |hash| {
            hash.u32(1, FIRST + 1).u32(2, FIRST).u32(3, words.address_length);
            // The seed is the same everywhere, and so is the choice.
            hash.u32(4, all).u32(5, 1).u32(7, 0);
        });
        compare(list, EQUAL, &index.to_ne_bytes());
    } else if index + 1 < all {
        expression(list, "numgen", |numgen| {
            numgen.u32(1, FIRST).u32(2, all - index).u32(3, 1);
        });
        compare(list, EQUAL, &0u32.to_ne_bytes());
    }
    for (register, value) in
        [(FIRST, octets(to.ip())), (FIRST + 1, to.port().to_be_bytes().to_vec())]
    {
        expression(list, "immediate", |immediate| {
            immediate.u32(1, register).nest(2, |data| {
                data.bytes(DATA_VALUE, &value);
            });
        });
    }
    expression(list, "nat", |nat| {
        nat.u32(1, 1).u32(2, words.number.into()).u32(3, FIRST).u32(5, FIRST + 1);
    });
}

/// Loads destination, protocol and port of a packet of the family, as [`front_key`] has them.
fn load_front(words: &Words, list: &mut Attributes) {
    only(words, list);
    let length = words.address_length;
    load_payload(list, NETWORK_HEADER, words.destination_at, length, FIRST);
    load_meta(list, META_PROTOCOL, register(length));
    load_payload(list, TRANSPORT_HEADER, 2, 2, register(length + 4));
}

/// Where in the registers the byte at an offset is. The kernel calls a register by the larger
/// name where both fit.
fn register(offset: u32) -> u32 {
    if offset.is_multiple_of(16) { FIRST + offset / 16 } else { 8 + offset / 4 }
}

/// Loads something of the connection as its first packet came.
fn load_original(key: u32, list: &mut Attributes) {
    expression(list, "ct", |ct| {
        ct.u32(1, FIRST).u32(2, key).bytes(3, &[0]);
    });
}

/// Ends the rule for packets of the other family.
fn only(words: &Words, list: &mut Attributes) {
    load_meta(list, META_FAMILY, FIRST);
    compare(list, EQUAL, &[words.number]);
}

/// Ends the rule unless the connection has one of these bits in what is asked for.
fn connection(key: u32, bits: u32, list: &mut Attributes) {
    expression(list, "ct", |ct| {
        ct.u32(1, FIRST).u32(2, key);
    });
    expression(list, "bitwise", |bitwise| {
        bitwise.u32(1, FIRST).u32(2, FIRST).u32(3, 4);
        for (kind, value) in [(4, bits), (5, 0)] {
            bitwise.nest(kind, |data| {
                data.bytes(DATA_VALUE, &value.to_ne_bytes());
            });
        }
    });
    compare(list, NOT_EQUAL, &[0; 4]);
}

fn lookup(set: &str, words: &Words, map: bool, list: &mut Attributes) {
    expression(list, "lookup", |lookup| {
        lookup.text(1, &format!("{set}{}", words.digit)).u32(2, FIRST);
        if map {
            lookup.u32(3, VERDICT_REGISTER);
        }
    });
}

fn rule(chain: &str, write: impl FnOnce(&mut Attributes)) -> Request {
    let mut attributes = ours_named(RULE_CHAIN, chain);
    attributes.nest(RULE_EXPRESSIONS, write);
    (message(NEW_RULE, attributes), NLM_F_CREATE | NLM_F_APPEND)
}

fn base_chain((name, kind, hook, priority): &BaseChain) -> Request {
    chain(name, |attributes| {
        attributes.nest(CHAIN_HOOK, |place| {
            place.u32(1, *hook).bytes(2, &priority.to_be_bytes());
        });
        attributes.u32(CHAIN_POLICY, 1).text(CHAIN_TYPE, kind);
    })
}

fn chain(name: &str, write: impl FnOnce(&mut Attributes)) -> Request {
    let mut attributes = ours_named(CHAIN_NAME, name);
    write(&mut attributes);
    (message(NEW_CHAIN, attributes), NLM_F_CREATE)
}

fn table_request(kind: u16) -> Request {
    let mut attributes = Attributes::default();
    attributes.text(TABLE_NAME, TABLE);
    (message(kind, attributes), if kind == NEW_TABLE { NLM_F_CREATE } else { 0 })
}

/// Begins a message about something in our table that has a name.
fn ours_named(kind: u16, name: &str) -> Attributes {
    let mut attributes = Attributes::default();
    attributes.text(TABLE_NAME, TABLE).text(kind, name);
    attributes
}

fn message(kind: u16, attributes: Attributes) -> Message {
    Message { kind, family: FAMILY_INET, resource: 0, attributes }
}
