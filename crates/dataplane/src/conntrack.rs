//! Flows that the kernel tracks, as ctnetlink tells of them.
//!
//! The numbers are those of `linux/netfilter/nfnetlink_conntrack.h`.

use std::net::IpAddr;

use crate::Error;
use crate::attributes::{Attributes, Message, find};
use crate::netlink::NetlinkSocket;

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

const SOURCES: [u16; 2] = [1, 3];
const DESTINATIONS: [u16; 2] = [2, 4];

const PROTOCOL: u16 = 1;
const SOURCE_PORT: u16 = 2;
const DESTINATION_PORT: u16 = 3;
/// The identifier, type and code of ICMP, and those of ICMPv6.
const ECHO: [[u16; 3]; 2] = [[4, 5, 6], [7, 8, 9]];

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
#[derive(Debug, Clone)]
pub(crate) struct Flow {
    /// As the client sends: to the address of a Service, if it calls one.
    pub(crate) original: Tuple,
    /// As the server answers: from its own address, to what it takes for the client's.
    pub(crate) reply: Tuple,
    /// The original direction of the flow that announced this one, as FTP does its data.
    pub(crate) master: Option<Tuple>,
    /// Whether both ends of a TCP connection may think that it is open.
    pub(crate) is_open_tcp: bool,
    message: Message,
}

/// All flows of both families.
pub(crate) fn flows(socket: &mut NetlinkSocket) -> Result<Vec<Flow>, Error> {
    let all = Message { kind: GET, ..Message::default() };
    Ok(socket.dump(all)?.into_iter().filter_map(Flow::read).collect())
}

/// Forgets flows. One that has ended meanwhile is no error.
pub(crate) fn forget<'f>(
    socket: &mut NetlinkSocket,
    flows: impl IntoIterator<Item = &'f Flow>,
) -> Result<(), Error> {
    for flow in flows {
        let all = flow.message.attributes.as_bytes();
        let mut attributes = Attributes::default();
        // With its number, so that a new flow between the same ends is safe.
        for kind in [ORIGINAL, ID, ZONE] {
            if let Some(value) = find(all, kind) {
                attributes.copy(kind, value, kind == ORIGINAL);
            }
        }
        let request = Message { kind: DELETE, attributes, ..flow.message };
        match socket.request(request, 0) {
            Err(error) if error.errno() == Some(nix::errno::Errno::ENOENT as i32) => {}
            other => drop(other?),
        }
    }
    Ok(())
}

impl Flow {
    fn read(message: Message) -> Option<Flow> {
        let attributes = message.attributes.as_bytes();
        let tuple = |kind| Tuple::read(find(attributes, kind)?);
        let (original, reply, master) = (tuple(ORIGINAL)?, tuple(REPLY)?, tuple(MASTER));
        let state = find(attributes, PROTOCOL_STATE).and_then(|state| find(state, TCP_STATE_OF));
        let state = state.and_then(|state| find(state, TCP_STATE)?.first().copied());
        let is_open_tcp = state.is_some_and(|s| (TCP_SYN_RECEIVED..=TCP_LAST_ACK).contains(&s));
        Some(Flow { original, reply, master, is_open_tcp, message })
    }
}

impl Tuple {
    fn read(attributes: &[u8]) -> Option<Tuple> {
        let addresses = find(attributes, TUPLE_ADDRESSES)?;
        let protocol = find(attributes, TUPLE_PROTOCOL)?;
        let byte = |kind| find(protocol, kind)?.first().copied();
        let number = |kind| {
            let bytes = find(protocol, kind)?.try_into().ok()?;
            Some(u16::from_be_bytes(bytes))
        };
        let echo = ECHO.into_iter().find_map(|[id, kind, code]| {
            Some((number(id)?, u16::from_be_bytes([byte(kind)?, byte(code)?])))
        });
        let (source_port, destination_port) = match (number(SOURCE_PORT), echo) {
            (Some(source), _) => (source, number(DESTINATION_PORT)?),
            (None, Some(echo)) => echo,
            (None, None) => (0, 0),
        };
        Some(Tuple {
            source: SOURCES.into_iter().find_map(|kind| address(find(addresses, kind)?))?,
            destination: DESTINATIONS
                .into_iter()
                .find_map(|kind| address(find(addresses, kind)?))?,
            protocol: byte(PROTOCOL)?,
            source_port,
            destination_port,
        })
    }
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
