//! The table that cuts flows, as requests. It is there as long as a flow is cut, so that packets of
//! known connections are looked up only then.
//!
//! ```nft
//! table inet portcullis-cut {
//!     set tcp4 {
//!         type ipv4_addr . ipv4_addr . inet_service . inet_service
//!     }
//!     chain forward {
//!         type filter hook forward priority filter - 1; policy accept;
//!         meta l4proto tcp ct state established,related ct original ip saddr . ct original ip daddr .
//!             ct original proto-src . ct original proto-dst @tcp4 goto cut
//!     }
//!     chain cut {
//!         meta l4proto tcp reject with tcp reset
//!         counter drop
//!     }
//! }
//! ```
//!
//! and so on for the other protocols with ports, for everything without, and for IPv6; and a chain
//! that has what is sent to nudge idle ends pass connection tracking.
//!
//! A flow is known by its original direction: that is the same for every packet of it, whichever
//! way it goes and whatever addresses are translated.

use portcullis_core::net::{Family, Protocol};
use rustc_hash::FxHashSet;

use crate::Error;
use crate::attributes::Attributes;
use crate::conntrack::Tuple;
use crate::encode::{
    EQUAL, FAMILY_V4, FAMILY_V6, HOOK_FORWARD, META_FAMILY, META_PROTOCOL, NETWORK_HEADER, Request,
    TRANSPORT_HEADER, compare, expression, known_connection, load_meta, load_payload,
};
use crate::netlink::NetlinkSocket;
use crate::table::{self, ADDRESS_V4, ADDRESS_V6, PORT, PROTOCOL, Table, Verdict, register};

/// The name of the table; its family is `inet`.
pub(crate) const CUT_TABLE: &str = "portcullis-cut";

const BASE: &str = "forward";
const CUT: &str = "cut";
const NUDGE: &str = "output";
const HOOK_OUTPUT: u32 = 3;
/// Before connection tracking.
const PRIORITY_RAW: i32 = -300;
/// Just before the rules that let known connections pass.
const PRIORITY: i32 = -1;

const CT_PROTOCOL: u32 = 10;
const CT_SOURCE_PORT: u32 = 11;
const CT_DESTINATION_PORT: u32 = 12;
const CT_SOURCE: [u32; 2] = [19, 21];
const CT_DESTINATION: [u32; 2] = [20, 22];

/// Flows of one family that are looked up by the same parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Class {
    family: Family,
    /// `None` for everything without ports.
    protocol: Option<Protocol>,
}

/// What a flow is cut by: its original direction, without what is no port.
pub(crate) fn key(original: Tuple) -> Tuple {
    match Class::of(&original).protocol {
        Some(_) => original,
        None => Tuple { source_port: 0, destination_port: 0, ..original },
    }
}

/// Removes the table, whether it is there or not.
pub(crate) fn remove() -> Vec<Request> {
    Table::removed(CUT_TABLE)
}

/// Makes these the flows that are cut, whatever was there. They are [`key`]s, each once.
pub(crate) fn put<'t>(flows: impl IntoIterator<Item = &'t Tuple> + Clone) -> Vec<Request> {
    let mut table = Table::anew(CUT_TABLE);
    table.base_chain(BASE, HOOK_FORWARD, PRIORITY);
    table.chain(CUT);
    for class in Class::all() {
        table.set(&class.set(), &class.key());
        class.rule(&mut table);
    }
    table.base_chain(NUDGE, HOOK_OUTPUT, PRIORITY_RAW);
    for family in Family::ALL {
        let class = Class { family, protocol: Some(Protocol::Tcp) };
        table.set(nudged(family), &class.key());
        nudged_rule(family, &mut table);
    }
    table.rule(CUT, |list| {
        load_meta(list, META_PROTOCOL, register(0));
        compare(list, EQUAL, &[Protocol::Tcp.number()]);
        expression(list, "reject", |reject| {
            const TCP_RESET: u32 = 1;
            reject.u32(1, TCP_RESET).bytes(2, &[0]);
        });
    });
    table.rule(CUT, |list| {
        expression(list, "counter", |_| {});
        table::verdict(list, Verdict::Drop);
    });
    Class::all().for_each(|class| table.add_elements(&class.set(), class.elements(flows.clone())));
    table.into_requests()
}

/// Has segments that are sent to nudge ends pass connection tracking, which knows them for what
/// they are not: from here on, or no longer.
pub(crate) fn nudging(from_here_on: bool, tuples: &[Tuple]) -> Vec<Request> {
    let mut table = Table::new(CUT_TABLE);
    for family in Family::ALL {
        let class = Class { family, protocol: Some(Protocol::Tcp) };
        match from_here_on {
            true => table.add_elements(nudged(family), class.elements(tuples)),
            false => table.delete_elements(nudged(family), class.elements(tuples)),
        }
    }
    table.into_requests()
}

fn nudged(family: Family) -> &'static str {
    if family == Family::V4 { "nudged4" } else { "nudged6" }
}

/// `meta l4proto tcp ip saddr . ip daddr . tcp sport . tcp dport @nudged4 notrack`
fn nudged_rule(family: Family, table: &mut Table) {
    let (number, source, length) = match family {
        Family::V4 => (FAMILY_V4, 12, 4),
        Family::V6 => (FAMILY_V6, 8, 16),
    };
    table.rule(NUDGE, |list| {
        load_meta(list, META_FAMILY, register(0));
        compare(list, EQUAL, &[number]);
        load_meta(list, META_PROTOCOL, register(0));
        compare(list, EQUAL, &[Protocol::Tcp.number()]);
        let mut load = |header, at, length, offset| {
            load_payload(list, header, at, length, register(offset));
        };
        load(NETWORK_HEADER, source, length, 0);
        load(NETWORK_HEADER, source + length, length, length);
        load(TRANSPORT_HEADER, 0, 2, 2 * length);
        load(TRANSPORT_HEADER, 2, 2, 2 * length + 4);
        table::lookup(list, nudged(family));
        expression(list, "notrack", |_| {});
    });
}

/// Cuts more flows, and lets others go, in a table that is there.
pub(crate) fn change<'t>(
    more: impl IntoIterator<Item = &'t Tuple> + Clone,
    less: impl IntoIterator<Item = &'t Tuple> + Clone,
) -> Vec<Request> {
    let mut table = Table::new(CUT_TABLE);
    for class in Class::all() {
        table.add_elements(&class.set(), class.elements(more.clone()));
        table.delete_elements(&class.set(), class.elements(less.clone()));
    }
    table.into_requests()
}

/// Whether these flows are cut and no others, as far as the kernel tells: somebody else may have
/// changed the table. The error is the kernel's, also where there is no table.
pub(crate) fn is_in_force(
    socket: &mut NetlinkSocket,
    flows: &FxHashSet<Tuple>,
) -> Result<bool, Error> {
    let table = Table::new(CUT_TABLE);
    // One for each class, two for what is cut, and two for what is sent to nudge.
    let mut same = socket.dump(table.get_rules())?.len() == Class::all().count() + 4;
    for class in Class::all() {
        let wanted: FxHashSet<Vec<u8>> = class.elements(flows).collect();
        let mut found = 0;
        for message in socket.dump(table.get_elements(&class.set()))? {
            for key in table::keys(&message) {
                found += 1;
                same &= wanted.contains(key);
            }
        }
        same &= found == wanted.len();
    }
    Ok(same)
}

impl Class {
    fn all() -> impl Iterator<Item = Class> {
        let protocols = Protocol::ALL.map(Some).into_iter().chain([None]);
        let families = |protocol| Family::ALL.into_iter().map(move |f| (f, protocol));
        protocols.flat_map(families).map(|(family, protocol)| Class { family, protocol })
    }

    fn of(flow: &Tuple) -> Class {
        let known = Protocol::ALL.into_iter().find(|known| known.number() == flow.protocol);
        Class { family: Family::of(flow.source), protocol: known }
    }

    fn set(self) -> String {
        let protocol = self.protocol.map_or("OTHER", Protocol::as_str).to_ascii_lowercase();
        format!("{protocol}{}", if self.family == Family::V4 { 4 } else { 6 })
    }

    fn key(self) -> Vec<table::Part> {
        let address = if self.family == Family::V4 { ADDRESS_V4 } else { ADDRESS_V6 };
        match self.protocol {
            Some(_) => vec![address, address, PORT, PORT],
            None => vec![address, address, PROTOCOL],
        }
    }

    /// The elements for the flows that are of this class.
    fn elements<'t>(
        self,
        flows: impl IntoIterator<Item = &'t Tuple>,
    ) -> impl Iterator<Item = Vec<u8>> {
        let of_class = flows.into_iter().filter(move |flow| Class::of(flow) == self);
        of_class.map(move |flow| self.element(flow))
    }

    fn element(self, flow: &Tuple) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(44);
        table::address(flow.source, &mut bytes);
        table::address(flow.destination, &mut bytes);
        match self.protocol {
            Some(_) => {
                for port in [flow.source_port, flow.destination_port] {
                    bytes.extend(port.to_be_bytes());
                    bytes.extend([0; 2]);
                }
            }
            None => bytes.extend([flow.protocol, 0, 0, 0]),
        }
        bytes
    }

    fn rule(self, table: &mut Table) {
        let index = usize::from(self.family == Family::V6);
        let address = self.key()[0].1;
        table.rule(BASE, |list| {
            if let Some(protocol) = self.protocol {
                load_meta(list, META_PROTOCOL, register(0));
                compare(list, EQUAL, &[protocol.number()]);
            }
            known_connection(list);
            load_original(list, CT_SOURCE[index], 0);
            load_original(list, CT_DESTINATION[index], address);
            match self.protocol {
                Some(_) => {
                    load_original(list, CT_SOURCE_PORT, 2 * address);
                    load_original(list, CT_DESTINATION_PORT, 2 * address + 4);
                }
                None => load_original(list, CT_PROTOCOL, 2 * address),
            }
            table::lookup(list, &self.set());
            table::verdict(list, Verdict::Goto(CUT));
        });
    }
}

/// Loads what connection tracking has of the original direction to a place in the key.
fn load_original(list: &mut Attributes, key: u32, offset: u32) {
    const ORIGINAL: [u8; 1] = [0];
    expression(list, "ct", |ct| {
        ct.u32(1, register(offset)).u32(2, key).bytes(3, &ORIGINAL);
    });
}
