//! Requests about a small table of ours that is not made from a plan.

use std::borrow::Cow;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE};

use crate::attributes::Attributes;
use crate::compare::{self, Listing};
use crate::encode::{
    self, ByteOrder, CHAIN_HOOK, CHAIN_NAME, CHAIN_POLICY, CHAIN_TYPE, DATA_VALUE, DATA_VERDICT,
    DELETE_ELEMENTS, DELETE_TABLE, ELEMENT_KEY, ELEMENT_LIST_BYTES, ELEMENTS_LIST, ELEMENTS_SET,
    GET_CHAIN, GET_ELEMENTS, GET_RULE, GET_SET, GET_TABLE, HOOK_NUMBER, HOOK_PRIORITY,
    KEY_REGISTER, LIST_ELEMENT, NEW_CHAIN, NEW_ELEMENTS, NEW_RULE, NEW_SET, NEW_TABLE, RULE_CHAIN,
    RULE_EXPRESSIONS, Request, Room, SET_FLAGS, SET_ID, SET_KEY_LENGTH, SET_KEY_TYPE, SET_NAME,
    SET_USER_DATA, SMALL_REGISTERS, TABLE_NAME, VERDICT_CHAIN, VERDICT_CODE, VERDICT_REGISTER,
    byte_order, counter_of, expression, message, tell,
};
use crate::netlink::{NetlinkSocket, absent_is_fine};
use crate::plan::Limit;
use crate::state::Log;
use crate::{Difference, Error, Tally, witness};

/// The type of a part of a key: its number in `nft`, and its bytes.
pub(crate) type Part = (u32, u32);

pub(crate) const ADDRESS_V4: Part = (7, 4);
pub(crate) const ADDRESS_V6: Part = (8, 16);
pub(crate) const PROTOCOL: Part = (12, 1);
pub(crate) const PORT: Part = (13, 2);
/// The number of a link, in the machine's own byte order.
pub(crate) const LINK: Part = (20, 4);

/// What connection tracking has of a flow; of both families where that makes a difference.
pub(crate) const CT_PROTOCOL: u32 = 10;
pub(crate) const CT_SOURCE_PORT: u32 = 11;
pub(crate) const CT_DESTINATION_PORT: u32 = 12;
pub(crate) const CT_SOURCE: [u32; 2] = [19, 21];
pub(crate) const CT_DESTINATION: [u32; 2] = [20, 22];
/// Its directions.
pub(crate) const ORIGINAL: u8 = 0;
pub(crate) const REPLY: u8 = 1;

/// What follows for a packet.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Verdict {
    /// It passes this table.
    Accept,
    /// It is dropped.
    Drop,
    /// It goes to this chain and does not come back.
    Goto(&'static str),
}

/// Requests about one table of the family `inet`, in order.
#[derive(Debug)]
pub(crate) struct Table {
    name: Cow<'static, str>,
    requests: Vec<Request>,
    sets: u32,
}

impl Table {
    pub(crate) fn new(name: impl Into<Cow<'static, str>>) -> Table {
        Table { name: name.into(), requests: Vec::new(), sets: 0 }
    }

    /// A table that is put in the place of whatever is there under its name.
    pub(crate) fn anew(name: impl Into<Cow<'static, str>>) -> Table {
        let mut table = Table::new(name);
        table.add();
        table.delete();
        table.add();
        table
    }

    /// Removes a table, whether it is there or not.
    pub(crate) fn removed(name: impl Into<Cow<'static, str>>) -> Vec<Request> {
        let mut table = Table::new(name);
        table.add();
        table.delete();
        table.into_requests()
    }

    pub(crate) fn into_requests(self) -> Vec<Request> {
        self.requests
    }

    /// How what is in the kernel differs from what these requests put there. They are of one table that
    /// was [put there anew](Table::anew).
    pub(crate) fn differences(
        requests: &[Request],
        socket: &mut NetlinkSocket,
    ) -> Result<Vec<Difference>, Error> {
        let mut found = Listing::default();
        let mut get =
            |kind, attributes| absent_is_fine(socket.request(message(kind, attributes), 0));
        for (request, _) in requests {
            let named = |kind| {
                let mut attributes = Attributes::default();
                for kind in [TABLE_NAME, kind] {
                    attributes.text(kind, encode::text(request, kind).unwrap_or_default());
                }
                attributes
            };
            match request.kind {
                NEW_TABLE => found.tables = get(GET_TABLE, named(TABLE_NAME))?,
                NEW_CHAIN => found.chains.extend(get(GET_CHAIN, named(CHAIN_NAME))?),
                NEW_SET => found.sets.extend(get(GET_SET, named(SET_NAME))?),
                _ => {}
            }
        }
        let Some(name) = requests.first().and_then(|(request, _)| encode::table_name(request))
        else {
            return Ok(Vec::new());
        };
        let mut attributes = Attributes::default();
        attributes.text(TABLE_NAME, name);
        found.rules = absent_is_fine(socket.dump(message(GET_RULE, attributes)))?;
        for set in found.sets.iter().filter_map(|set| encode::text(set, SET_NAME)) {
            let mut attributes = Attributes::default();
            attributes.text(TABLE_NAME, name).text(ELEMENTS_SET, set);
            let elements = absent_is_fine(socket.dump(message(GET_ELEMENTS, attributes)))?;
            found.elements.insert(set.to_owned(), elements);
        }
        Ok(compare::differences(requests, &found))
    }

    /// The keys of the elements of a set, each followed by what else is said of it. None if there is no
    /// such set.
    pub(crate) fn keys(
        &self,
        set: &str,
        socket: &mut NetlinkSocket,
    ) -> Result<Vec<Vec<u8>>, Error> {
        let mut attributes = Attributes::default();
        attributes.text(TABLE_NAME, &self.name).text(ELEMENTS_SET, set);
        let found = absent_is_fine(socket.dump(message(GET_ELEMENTS, attributes)))?;
        Ok(found.iter().flat_map(encode::elements).collect())
    }

    /// What came to a chain that [`ends`](Table::ends) packets, if it is there.
    pub(crate) fn ended(&self, chain: &str, socket: &mut NetlinkSocket) -> Option<Tally> {
        let mut attributes = Attributes::default();
        attributes.text(TABLE_NAME, &self.name).text(RULE_CHAIN, chain);
        let rules = socket.dump(message(GET_RULE, attributes)).ok()?;
        if rules.is_empty() {
            return None;
        }
        let mut tally = Tally::default();
        for (rule, counted) in rules.iter().filter_map(|rule| Some((rule, counter_of(rule)?))) {
            let of = if encode::tells(rule) { &mut tally.told } else { &mut tally.packets };
            *of += counted.packets;
        }
        Some(tally)
    }

    /// Makes the table, if it is not there.
    pub(crate) fn add(&mut self) {
        self.push(NEW_TABLE, NLM_F_CREATE, |_| {});
    }

    /// Removes the table with all that is in it.
    pub(crate) fn delete(&mut self) {
        self.push(DELETE_TABLE, 0, |_| {});
    }

    /// A chain that nothing but rules leads to.
    pub(crate) fn chain(&mut self, chain: &str) {
        self.push(NEW_CHAIN, NLM_F_CREATE, |attributes| {
            attributes.text(CHAIN_NAME, chain);
        });
    }

    /// A chain of type `filter` at a hook, with policy accept.
    pub(crate) fn base_chain(&mut self, chain: &str, hook: u32, priority: i32) {
        self.push(NEW_CHAIN, NLM_F_CREATE, |attributes| {
            attributes.text(CHAIN_NAME, chain);
            attributes.nest(CHAIN_HOOK, |place| {
                place.u32(HOOK_NUMBER, hook).u32(HOOK_PRIORITY, priority.cast_unsigned());
            });
            attributes.u32(CHAIN_POLICY, 1).text(CHAIN_TYPE, "filter");
        });
    }

    /// A hash set.
    pub(crate) fn set(&mut self, set: &str, key: &[Part]) {
        self.new_set(set, key, None);
    }

    /// A set that the kernel fills as rules say, with [`encode::add`] or
    /// [`ends_beyond`](Table::ends_beyond).
    pub(crate) fn dynamic_set(&mut self, set: &str, key: &[Part], room: Room) {
        self.new_set(set, key, Some(room));
    }

    fn new_set(&mut self, set: &str, key: &[Part], room: Option<Room>) {
        self.sets += 1;
        let number = self.sets;
        self.push(NEW_SET, NLM_F_CREATE, |attributes| {
            // A user's program reads the types of the parts from this, 6 bits each.
            let types = key.iter().fold(0, |types, (number, _)| types << 6 | number);
            let length = key.iter().map(|(_, length)| length.next_multiple_of(4)).sum();
            attributes.text(SET_NAME, set).u32(SET_FLAGS, room.map_or(0, Room::flags));
            attributes.u32(SET_KEY_TYPE, types).u32(SET_KEY_LENGTH, length).u32(SET_ID, number);
            let order = match key {
                [LINK] => ByteOrder::Machine,
                [_] => ByteOrder::Network,
                _ => ByteOrder::Mixed,
            };
            room.iter().for_each(|room| room.write(attributes));
            attributes.bytes(SET_USER_DATA, &byte_order(order));
        });
    }

    /// Puts addresses into a set.
    pub(crate) fn add_addresses<'a>(
        &mut self,
        set: &str,
        addresses: impl Iterator<Item = &'a IpAddr>,
    ) {
        self.add_elements(
            set,
            addresses.map(|one| {
                let mut bytes = Vec::new();
                address(*one, &mut bytes);
                bytes
            }),
        );
    }

    /// Puts elements into a set, in as many messages as they need.
    pub(crate) fn add_elements(&mut self, set: &str, keys: impl IntoIterator<Item = Vec<u8>>) {
        self.elements(NEW_ELEMENTS, NLM_F_CREATE, set, keys);
    }

    /// Takes elements out of a set. One that is not there is an error.
    pub(crate) fn delete_elements(&mut self, set: &str, keys: impl IntoIterator<Item = Vec<u8>>) {
        self.elements(DELETE_ELEMENTS, 0, set, keys);
    }

    /// A rule before these, in which packets end beyond a limit for each of what `load` puts into the
    /// first register. They are counted and get the verdict.
    pub(crate) fn ends_beyond(
        &mut self,
        chain: &str,
        load: impl FnOnce(&mut Attributes),
        set: &str,
        limit: Limit,
        last: Verdict,
    ) {
        self.rule(chain, |list| {
            load(list);
            encode::exceeds(list, set, limit);
            expression(list, "counter", |_| {});
            verdict(list, last);
        });
    }

    /// The rules of a chain in which packets end: they are told of, if that is wanted, counted,
    /// and get the verdict.
    pub(crate) fn ends(&mut self, chain: &str, log: Option<(Log, &str)>, last: Verdict) {
        if let Some((log, prefix)) = log {
            self.rule(chain, |list| tell(list, log, prefix));
        }
        self.rule(chain, |list| {
            expression(list, "counter", |_| {});
            verdict(list, last);
        });
    }

    /// A rule at the end of a chain.
    pub(crate) fn rule(&mut self, chain: &str, write: impl FnOnce(&mut Attributes)) {
        self.push(NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, |attributes| {
            attributes.text(RULE_CHAIN, chain).nest(RULE_EXPRESSIONS, write);
        });
    }

    fn elements(
        &mut self,
        kind: u16,
        flags: u16,
        set: &str,
        keys: impl IntoIterator<Item = Vec<u8>>,
    ) {
        let mut keys = keys.into_iter().peekable();
        while keys.peek().is_some() {
            self.push(kind, flags, |attributes| {
                attributes.text(ELEMENTS_SET, set).nest(ELEMENTS_LIST, |list| {
                    let start = list.len();
                    while list.len() - start < ELEMENT_LIST_BYTES
                        && let Some(key) = keys.next()
                    {
                        list.nest(LIST_ELEMENT, |element| {
                            element.nest(ELEMENT_KEY, |data| {
                                data.bytes(DATA_VALUE, &key);
                            });
                        });
                    }
                });
            });
        }
    }

    fn push(&mut self, kind: u16, flags: u16, write: impl FnOnce(&mut Attributes)) {
        let mut attributes = Attributes::default();
        attributes.text(TABLE_NAME, &self.name);
        write(&mut attributes);
        self.requests.push((message(kind, attributes), flags));
    }
}

/// One transaction.
pub(crate) fn commit(socket: &mut NetlinkSocket, requests: Vec<Request>) -> Result<(), Error> {
    let _turn = witness::turn();
    socket.transaction(encode::transaction(requests))
}

/// Tells whether anybody has changed anything in nf_tables since it was asked last.
#[derive(Debug, Default)]
pub(crate) struct Changes(Option<u32>);

impl Changes {
    pub(crate) fn any(&mut self, socket: &mut NetlinkSocket) -> Result<bool, Error> {
        let answers = socket.request(encode::get_generation(), 0)?;
        let now = answers.iter().find_map(encode::kernel_generation);
        Ok(now.is_none() || std::mem::replace(&mut self.0, now) != now)
    }
}

/// The register for a part of a key that begins after so many bytes. The kernel calls a register
/// by the larger name where both fit.
pub(crate) fn register(offset: u32) -> u32 {
    match offset % 16 {
        0 => KEY_REGISTER + offset / 16,
        _ => SMALL_REGISTERS + offset / 4,
    }
}

/// Goes on if the set has the key that begins in the first register.
pub(crate) fn lookup(list: &mut Attributes, set: &str) {
    expression(list, "lookup", |lookup| {
        lookup.text(1, set).u32(2, KEY_REGISTER);
    });
}

/// Loads what connection tracking has of a flow, or of a direction of it, to a place in the key.
pub(crate) fn load_tracked(list: &mut Attributes, key: u32, direction: Option<u8>, offset: u32) {
    expression(list, "ct", |ct| {
        ct.u32(1, register(offset)).u32(2, key);
        direction.into_iter().for_each(|direction| _ = ct.bytes(3, &[direction]));
    });
}

/// Ends the rule.
pub(crate) fn verdict(list: &mut Attributes, verdict: Verdict) {
    let (code, chain): (i32, _) = match verdict {
        Verdict::Accept => (1, None),
        Verdict::Drop => (0, None),
        Verdict::Goto(chain) => (-4, Some(chain)),
    };
    expression(list, "immediate", |immediate| {
        immediate.u32(1, VERDICT_REGISTER).nest(2, |data| {
            data.nest(DATA_VERDICT, |attributes| {
                attributes.bytes(VERDICT_CODE, &code.to_be_bytes());
                if let Some(chain) = chain {
                    attributes.text(VERDICT_CHAIN, chain);
                }
            });
        });
    });
}

/// The bytes of an address in a key.
pub(crate) fn address(address: IpAddr, bytes: &mut Vec<u8>) {
    match address {
        IpAddr::V4(address) => bytes.extend_from_slice(&address.octets()),
        IpAddr::V6(address) => bytes.extend_from_slice(&address.octets()),
    }
}
