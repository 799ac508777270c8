//! Flows that the kernel tracks, as ctnetlink tells of them.
//!
//! The numbers are those of `linux/netfilter/nfnetlink_conntrack.h`.

use std::net::IpAddr;

use netlink_packet_core::NLA_TYPE_MASK;

use crate::Error;
use crate::attributes::{Attributes, FAMILY_HEADER_BYTES, Message, find, flagged};
use crate::netlink::{NetlinkSocket, absent_is_fine};

const SUBSYSTEM: u16 = 1;
const NEW: u16 = SUBSYSTEM << 8;
const GET: u16 = NEW + 1;
const DELETE: u16 = NEW + 2;

const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const PROTOCOL_STATE: u16 = 4;
const ID: u16 = 12;
const MASTER: u16 = 14;
const ZONE: u16 = 18;

const TUPLE_ADDRESSES: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;

const SOURCE_V4: u16 = 1;
const DESTINATION_V4: u16 = 2;
const SOURCE_V6: u16 = 3;
const DESTINATION_V6: u16 = 4;

const PROTOCOL: u16 = 1;
const SOURCE_PORT: u16 = 2;
const DESTINATION_PORT: u16 = 3;
const ECHO_V4_ID: u16 = 4;
const ECHO_V4_TYPE: u16 = 5;
const ECHO_V4_CODE: u16 = 6;
const ECHO_V6_ID: u16 = 7;
const ECHO_V6_TYPE: u16 = 8;
const ECHO_V6_CODE: u16 = 9;

const TCP_STATE_OF: u16 = 1;
const TCP_STATE: u16 = 1;
const TCP_SYN_RECEIVED: u8 = 2;
const TCP_LAST_ACK: u8 = 6;

/// One direction of a flow, as its packets are before or after address translation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Tuple {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// The protocol number above IP.
    pub(crate) protocol: u8,
    /// The source port, the identifier of an ICMP echo, or 0.
    pub(crate) source_port: u16,
    /// The destination port, or type and code of ICMP, or 0.
    pub(crate) destination_port: u16,
}

/// A flow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flow {
    /// As the client sends: to the address of a Service, if it calls one.
    pub(crate) original: Tuple,
    /// As the server answers: from its own address, to what it takes for the client's.
    pub(crate) reply: Tuple,
    /// Whether both ends of a TCP connection may think that it is open.
    pub(crate) is_open_tcp: bool,
}

/// A flow as the kernel tells of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Told<'m> {
    family: u8,
    attributes: &'m [u8],
    /// Has the direction of the flow that announced this one, as FTP does its data.
    is_announced: bool,
}

/// Shows all flows of both families.
pub(crate) fn each(
    socket: &mut NetlinkSocket,
    mut show: impl FnMut(&Flow, &Told<'_>),
) -> Result<(), Error> {
    let all = Message { kind: GET, ..Message::default() };
    socket.dump_each(all, |payload| {
        if let Some((flow, told)) = read(payload) {
            show(&flow, &told);
        }
    })
}

/// Does what requests ask for, one by one. A flow that has ended meanwhile is no error.
pub(crate) fn forget(
    socket: &mut NetlinkSocket,
    requests: impl IntoIterator<Item = Message>,
) -> Result<(), Error> {
    requests
        .into_iter()
        .try_for_each(|request| absent_is_fine(socket.request(request, 0)).map(drop))
}

/// The flow that announced another, if it is still there.
pub(crate) fn announcer(
    socket: &mut NetlinkSocket,
    request: Message,
) -> Result<Option<Flow>, Error> {
    let found = absent_is_fine(socket.request(request, 0))?;
    Ok(found.iter().find_map(|message| {
        let (flow, _) = read_attributes(message.family, message.attributes.as_bytes())?;
        Some(flow)
    }))
}

impl Told<'_> {
    /// Asks to forget it: with its number, so that a new flow between the same ends is safe.
    pub(crate) fn forgetting(&self) -> Message {
        self.request(DELETE, &[(ORIGINAL, ORIGINAL), (ID, ID), (ZONE, ZONE)])
    }

    /// Asks for the flow that announced it, if one did.
    pub(crate) fn get_announcer(&self) -> Option<Message> {
        self.is_announced.then(|| self.request(GET, &[(MASTER, ORIGINAL), (ZONE, ZONE)]))
    }

    /// A request with what the first kinds are here, as the second.
    fn request(&self, kind: u16, parts: &[(u16, u16)]) -> Message {
        let mut attributes = Attributes::default();
        for (here, there) in parts {
            if let Some(value) = find(self.attributes, *here) {
                attributes.copy(*there, value, *there == ORIGINAL);
            }
        }
        Message { kind, family: self.family, attributes, ..Message::default() }
    }
}

/// Reads a message without its netlink header. `None` for what is no flow.
fn read(payload: &[u8]) -> Option<(Flow, Told<'_>)> {
    let (header, attributes) = payload.split_at_checked(FAMILY_HEADER_BYTES)?;
    read_attributes(header[0], attributes)
}

fn read_attributes(family: u8, attributes: &[u8]) -> Option<(Flow, Told<'_>)> {
    let (mut original, mut reply) = (None, None);
    let mut told = Told { family, attributes, is_announced: false };
    let mut is_open_tcp = false;
    for (kind, value) in flagged(attributes) {
        match kind & NLA_TYPE_MASK {
            ORIGINAL => original = Tuple::read(value),
            REPLY => reply = Tuple::read(value),
            MASTER => told.is_announced = true,
            PROTOCOL_STATE => {
                let state = find(value, TCP_STATE_OF).and_then(|tcp| find(tcp, TCP_STATE));
                let state = state.and_then(|state| state.first());
                is_open_tcp = state.is_some_and(|s| (TCP_SYN_RECEIVED..=TCP_LAST_ACK).contains(s));
            }
            _ => {}
        }
    }
    Some((Flow { original: original?, reply: reply?, is_open_tcp }, told))
}

impl Tuple {
    fn read(attributes: &[u8]) -> Option<Tuple> {
        let (mut source, mut destination) = (None, None);
        let (mut protocol, mut ports, mut echo) = (None, [None; 2], [None; 3]);
        for (kind, value) in flagged(attributes) {
            match kind & NLA_TYPE_MASK {
                TUPLE_ADDRESSES => {
                    for (kind, value) in flagged(value) {
                        match kind & NLA_TYPE_MASK {
                            SOURCE_V4 | SOURCE_V6 => source = address(value),
                            DESTINATION_V4 | DESTINATION_V6 => destination = address(value),
                            _ => {}
                        }
                    }
                }
                TUPLE_PROTOCOL => {
                    for (kind, value) in flagged(value) {
                        match kind & NLA_TYPE_MASK {
                            PROTOCOL => protocol = value.first().copied(),
                            SOURCE_PORT => ports[0] = number(value),
                            DESTINATION_PORT => ports[1] = number(value),
                            ECHO_V4_ID | ECHO_V6_ID => echo[0] = number(value),
                            ECHO_V4_TYPE | ECHO_V6_TYPE => {
                                echo[1] = value.first().copied().map(u16::from)
                            }
                            ECHO_V4_CODE | ECHO_V6_CODE => {
                                echo[2] = value.first().copied().map(u16::from)
                            }
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        let (source_port, destination_port) = match (ports, echo) {
            ([Some(source), Some(destination)], _) => (source, destination),
            (_, [Some(id), Some(kind), Some(code)]) => (id, kind << 8 | code),
            _ => (0, 0),
        };
        let (source, destination) = (source?, destination?);
        Some(Tuple { source, destination, protocol: protocol?, source_port, destination_port })
    }
}

fn number(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.try_into().ok()?))
}

impl Flow {
    /// What the client gets from the server, and what the server gets from the client, each as the
    /// receiver sees it.
    pub(crate) fn received(&self) -> [Tuple; 2] {
        [self.original.turned(), self.reply.turned()]
    }
}

impl Tuple {
    /// The other direction.
    fn turned(self) -> Tuple {
        Tuple {
            source: self.destination,
            destination: self.source,
            protocol: self.protocol,
            source_port: self.destination_port,
            destination_port: self.source_port,
        }
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}
