//! The table that cuts flows, as requests. It is there as long as a flow is cut, so that packets of
//! known connections are looked up only then.
//!
//! ```nft
//! table inet portcullis-cut {
//!     set tcp4 {
//!         type ipv4_addr . ipv4_addr . inet_service
//!     }
//!     chain forward {
//!         type filter hook forward priority filter - 1; policy accept;
//!         meta l4proto tcp ct state established,related ct original ip saddr . ct reply ip saddr .
//!             ct reply proto-src @tcp4 goto cut
//!     }
//!     chain cut {
//!         meta l4proto tcp reject with tcp reset
//!         counter drop
//!     }
//!     chain output {
//!         type filter hook output priority raw; policy accept;
//!         meta l4proto tcp tcp sequence 0x9e3779b9 tcp ackseq 0 notrack
//!     }
//! }
//! ```
//!
//! and so on for the other protocols with ports, for everything without, and for IPv6. The last rule
//! has what is sent to nudge idle ends pass connection tracking, which knows it for what it is not.
//!
//! Flows are known by who opened what: the source as it was before, and the server's address and port
//! as they are after translation. For the kernel that is the same for every packet of a flow,
//! whichever way it goes. The verdict depends on nothing else, so that flows of one client to one
//! port of a server are one element, however many they are.

use portcullis_core::net::{Family, Protocol};

use crate::encode::{
    EQUAL, HOOK_FORWARD, META_PROTOCOL, Request, TRANSPORT_HEADER, compare, expression,
    known_connection, load_meta, load_payload,
};
use crate::judge::Opening;
use crate::nudge;
use crate::table::{
    self, ADDRESS_V4, ADDRESS_V6, CT_PROTOCOL, CT_SOURCE, CT_SOURCE_PORT, ORIGINAL, PORT, PROTOCOL,
    REPLY, Table, Verdict, load_tracked, register,
};

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

/// Flows of one family that are looked up by the same parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Class {
    family: Family,
    /// `None` for everything without ports.
    protocol: Option<Protocol>,
}

/// What flows are cut by, without what is no port.
pub(crate) fn key(opening: Opening) -> Opening {
    if has_ports(opening.protocol) { opening } else { Opening { port: 0, ..opening } }
}

/// Whether rules tell ports of the protocol of this number.
pub(crate) fn has_ports(protocol: u8) -> bool {
    Protocol::ALL.iter().any(|known| known.number() == protocol)
}

/// Removes the table, whether it is there or not.
pub(crate) fn remove() -> Vec<Request> {
    Table::removed(CUT_TABLE)
}

/// Cuts the flows that were opened so, and no others, whatever was there. These are [`key`]s, each
/// once.
pub(crate) fn put<'t>(flows: impl IntoIterator<Item = &'t Opening> + Clone) -> Vec<Request> {
    let mut table = Table::anew(CUT_TABLE);
    table.base_chain(BASE, HOOK_FORWARD, PRIORITY);
    table.chain(CUT);
    for class in Class::all() {
        table.set(&class.set(), &class.key());
        class.rule(&mut table);
    }
    table.base_chain(NUDGE, HOOK_OUTPUT, PRIORITY_RAW);
    table.rule(NUDGE, |list| {
        const SEQUENCE_AT: u32 = 4;
        load_meta(list, META_PROTOCOL, register(0));
        compare(list, EQUAL, &[Protocol::Tcp.number()]);
        for (at, wanted) in [(SEQUENCE_AT, nudge::SEQUENCE), (SEQUENCE_AT + 4, 0)] {
            load_payload(list, TRANSPORT_HEADER, at, 4, register(0));
            compare(list, EQUAL, &wanted.to_be_bytes());
        }
        expression(list, "notrack", |_| {});
    });
    table.rule(CUT, |list| {
        load_meta(list, META_PROTOCOL, register(0));
        compare(list, EQUAL, &[Protocol::Tcp.number()]);
        expression(list, "reject", |reject| {
            const TCP_RESET: u32 = 1;
            reject.u32(1, TCP_RESET);
        });
    });
    table.rule(CUT, |list| {
        expression(list, "counter", |_| {});
        table::verdict(list, Verdict::Drop);
    });
    Class::all().for_each(|class| table.add_elements(&class.set(), class.elements(flows.clone())));
    table.into_requests()
}

/// Cuts more flows, and lets others go, in a table that is there.
pub(crate) fn change<'t>(
    more: impl IntoIterator<Item = &'t Opening> + Clone,
    less: impl IntoIterator<Item = &'t Opening> + Clone,
) -> Vec<Request> {
    let mut table = Table::new(CUT_TABLE);
    for class in Class::all() {
        table.add_elements(&class.set(), class.elements(more.clone()));
        table.delete_elements(&class.set(), class.elements(less.clone()));
    }
    table.into_requests()
}

impl Class {
    fn all() -> impl Iterator<Item = Class> {
        let protocols = Protocol::ALL.map(Some).into_iter().chain([None]);
        let families = |protocol| Family::ALL.into_iter().map(move |f| (f, protocol));
        protocols.flat_map(families).map(|(family, protocol)| Class { family, protocol })
    }

    fn of(flow: &Opening) -> Class {
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
            Some(_) => vec![address, address, PORT],
            None => vec![address, address, PROTOCOL],
        }
    }

    /// The elements for the flows that are of this class.
    fn elements<'t>(
        self,
        flows: impl IntoIterator<Item = &'t Opening>,
    ) -> impl Iterator<Item = Vec<u8>> {
        let of_class = flows.into_iter().filter(move |flow| Class::of(flow) == self);
        of_class.map(move |flow| self.element(flow))
    }

    fn element(self, flow: &Opening) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(36);
        table::address(flow.source, &mut bytes);
        table::address(flow.destination, &mut bytes);
        match self.protocol {
            Some(_) => bytes.extend(flow.port.to_be_bytes()),
            None => bytes.extend([flow.protocol, 0]),
        }
        bytes.extend([0; 2]);
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
            load_tracked(list, CT_SOURCE[index], Some(ORIGINAL), 0);
            load_tracked(list, CT_SOURCE[index], Some(REPLY), address);
            match self.protocol {
                Some(_) => load_tracked(list, CT_SOURCE_PORT, Some(REPLY), 2 * address),
                None => load_tracked(list, CT_PROTOCOL, None, 2 * address),
            }
            table::lookup(list, &self.set());
            table::verdict(list, Verdict::Goto(CUT));
        });
    }
}
