//! Addresses that pass from one pod to the next while connections of the first may be open
//! (SEMANTICS 25).
//!
//! It takes a while to judge all connections, and the next pod need not wait for that: until then
//! nothing passes at its addresses but what was opened since they are its own. For each such pod there
//! is a table meanwhile.
//!
//! ```nft
//! table inet portcullis-handover-1 {
//!     set addresses4 {
//!         type ipv4_addr
//!         elements = { 10.244.1.4 }
//!     }
//!     set opened4 {
//!         type ipv4_addr . ipv4_addr . inet_proto . inet_service . inet_service
//!         size 65536
//!         flags dynamic
//!     }
//!     chain handed-over4 {
//!         ct state new add @opened4 { ct original ip saddr . ct original ip daddr . ct protocol .
//!             ct original proto-src . ct original proto-dst }
//!         ct original ip saddr . ct original ip daddr . ct protocol . ct original proto-src .
//!             ct original proto-dst @opened4 accept
//!         counter drop
//!     }
//!     chain forward {
//!         type filter hook forward priority filter - 1; policy accept;
//!         ct original ip saddr @addresses4 goto handed-over4
//!         ct reply ip saddr @addresses4 goto handed-over4
//!     }
//! }
//! ```
//!
//! and the same for IPv6. What is new is judged by the rules of policies behind it, as always. A flow is
//! known by how it was opened, as no other has that as long as this one is tracked. An address that
//! passes on once more has a table more: what passes has to pass all.

use std::collections::BTreeMap;
use std::net::IpAddr;

use portcullis_core::net::Family;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::Error;
use crate::attributes::Attributes;
use crate::conntrack::Tuple;
use crate::encode::{self, HOOK_FORWARD, Request, Room, expression, new_connection};
use crate::netlink::{NETLINK_NETFILTER, NetlinkSocket};
use crate::table::{
    self, ADDRESS_V4, ADDRESS_V6, CT_DESTINATION, CT_DESTINATION_PORT, CT_PROTOCOL, CT_SOURCE,
    CT_SOURCE_PORT, ORIGINAL, PORT, PROTOCOL, Part, REPLY, Table, Verdict, load_tracked,
};

/// How the names of the tables begin; a number follows.
const PREFIX: &str = "portcullis-handover-";
const BASE: &str = "forward";
/// Just before the rules that let known connections pass.
const PRIORITY: i32 = -1;
/// The most that there are at a time: each is a chain that every packet comes to.
const MOST: usize = 100;
/// The most flows that are opened at the addresses of a table; what is beyond does not pass.
const FLOWS: u32 = 1 << 16;

/// The addresses of one network namespace that have passed on.
#[derive(Debug)]
pub(crate) struct Handovers {
    socket: NetlinkSocket,
    /// By number, those whose connections have not been judged since.
    under_way: BTreeMap<u32, Vec<IpAddr>>,
    /// The last number.
    last: u32,
}

impl Handovers {
    /// Works in the network namespace of the calling thread, and goes on with what an earlier process
    /// began there.
    pub(crate) fn open() -> Result<Handovers, Error> {
        let mut socket = NetlinkSocket::open(NETLINK_NETFILTER)?;
        let tables = socket.dump(encode::get_tables())?;
        let number = |table| encode::table_name(table)?.strip_prefix(PREFIX)?.parse().ok();
        let mut under_way = BTreeMap::new();
        for number in tables.iter().filter_map(number) {
            let mut addresses = Vec::new();
            for side in &SIDES {
                let keys = Table::new(name(number)).keys(side.addresses, &mut socket)?;
                addresses.extend(keys.iter().filter_map(|key| side.address(key)));
            }
            under_way.insert(number, addresses);
        }
        let last = under_way.keys().next_back().copied().unwrap_or_default();
        Ok(Handovers { socket, under_way, last })
    }

    /// From now on nothing passes at these addresses that was opened there before. `false` if there are
    /// as many already as there may be, and nothing was done.
    ///
    /// After an error it may be so or not.
    pub(crate) fn begin(&mut self, addresses: &[IpAddr]) -> Result<bool, Error> {
        if self.under_way.len() >= MOST {
            return Ok(false);
        }
        self.last = self.last.wrapping_add(1);
        self.under_way.insert(self.last, addresses.to_vec());
        table::commit(&mut self.socket, put(self.last, addresses))?;
        Ok(true)
    }

    /// Those that have begun: the addresses, by number.
    pub(crate) fn under_way(&self) -> &BTreeMap<u32, Vec<IpAddr>> {
        &self.under_way
    }

    /// At each address that has passed on, what was opened since the last time.
    pub(crate) fn opened(&mut self) -> Result<FxHashMap<IpAddr, FxHashSet<Tuple>>, Error> {
        let mut opened = FxHashMap::default();
        for (number, addresses) in &self.under_way {
            let mut flows = FxHashSet::default();
            for side in &SIDES {
                let keys = Table::new(name(*number)).keys(side.opened, &mut self.socket)?;
                flows.extend(keys.iter().filter_map(|key| side.flow(key)));
            }
            opened.extend(addresses.iter().map(|address| (*address, flows.clone())));
        }
        Ok(opened)
    }

    /// Everything that was opened before these began has been judged.
    pub(crate) fn end(&mut self, ended: &BTreeMap<u32, Vec<IpAddr>>) -> Result<(), Error> {
        let requests = ended.keys().flat_map(|number| Table::removed(name(*number)));
        let requests: Vec<Request> = requests.collect();
        if !requests.is_empty() {
            table::commit(&mut self.socket, requests)?;
            self.under_way.retain(|number, _| !ended.contains_key(number));
        }
        Ok(())
    }
}

fn name(number: u32) -> String {
    format!("{PREFIX}{number}")
}

/// What there is of a table for a family.
struct Side {
    family: Family,
    addresses: &'static str,
    opened: &'static str,
    chain: &'static str,
    address: Part,
}

const SIDES: [Side; 2] = [
    Side {
        family: Family::V4,
        addresses: "addresses4",
        opened: "opened4",
        chain: "handed-over4",
        address: ADDRESS_V4,
    },
    Side {
        family: Family::V6,
        addresses: "addresses6",
        opened: "opened6",
        chain: "handed-over6",
        address: ADDRESS_V6,
    },
];

fn put(number: u32, addresses: &[IpAddr]) -> Vec<Request> {
    let mut table = Table::anew(name(number));
    table.base_chain(BASE, HOOK_FORWARD, PRIORITY);
    for side in &SIDES {
        let of_family = addresses.iter().filter(|a| Family::of(**a) == side.family);
        table.set(side.addresses, &[side.address]);
        table.add_addresses(side.addresses, of_family);
        table.dynamic_set(side.opened, &side.key(), Room { size: FLOWS, timeout: None });
        table.chain(side.chain);
        table.rule(side.chain, |list| {
            new_connection(list);
            side.load(list);
            encode::add(list, side.opened);
        });
        table.rule(side.chain, |list| {
            side.load(list);
            table::lookup(list, side.opened);
            table::verdict(list, Verdict::Accept);
        });
        table.rule(side.chain, |list| {
            expression(list, "counter", |_| {});
            table::verdict(list, Verdict::Drop);
        });
        for direction in [ORIGINAL, REPLY] {
            table.rule(BASE, |list| {
                load_tracked(list, CT_SOURCE[side.index()], Some(direction), 0);
                table::lookup(list, side.addresses);
                table::verdict(list, Verdict::Goto(side.chain));
            });
        }
    }
    table.into_requests()
}

impl Side {
    fn index(&self) -> usize {
        usize::from(self.family == Family::V6)
    }

    fn key(&self) -> [Part; 5] {
        [self.address, self.address, PROTOCOL, PORT, PORT]
    }

    /// Loads how the flow of a packet was opened.
    fn load(&self, list: &mut Attributes) {
        let (length, index) = (self.address.1, self.index());
        load_tracked(list, CT_SOURCE[index], Some(ORIGINAL), 0);
        load_tracked(list, CT_DESTINATION[index], Some(ORIGINAL), length);
        load_tracked(list, CT_PROTOCOL, None, 2 * length);
        load_tracked(list, CT_SOURCE_PORT, Some(ORIGINAL), 2 * length + 4);
        load_tracked(list, CT_DESTINATION_PORT, Some(ORIGINAL), 2 * length + 8);
    }

    /// The address that a key begins with.
    fn address(&self, key: &[u8]) -> Option<IpAddr> {
        let bytes = key.get(..self.address.1 as usize)?;
        match self.family {
            Family::V4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
            Family::V6 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        }
    }

    /// The reverse of [`Side::load`].
    fn flow(&self, key: &[u8]) -> Option<Tuple> {
        let rest = key.get(self.address.1 as usize..)?;
        let [protocol, _, _, _, a, b, _, _, c, d, ..] = *rest.get(self.address.1 as usize..)?
        else {
            return None;
        };
        Some(Tuple {
            source: self.address(key)?,
            destination: self.address(rest)?,
            protocol,
            source_port: u16::from_be_bytes([a, b]),
            destination_port: u16::from_be_bytes([c, d]),
        })
    }
}
