//! What the rules tell of packets, over NFLOG.
//!
//! The numbers are those of `linux/netfilter/nfnetlink_log.h`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, SystemTime};

use crate::Error;
use crate::allowed::ALLOWED;
use crate::attributes::{Attributes, Message, find};
use crate::encode::SNAP_BYTES;
use crate::netlink::{NETLINK_NETFILTER, NetlinkSocket};
use crate::plan::{ChainId, Direction};
use crate::sources::{AUDITED_SOURCE, FALSE_SOURCE};

const SUBSYSTEM: u16 = 4;
const PACKET: u16 = SUBSYSTEM << 8;
const CONFIGURE: u16 = PACKET + 1;

const COMMAND: u16 = 1;
const BIND: u8 = 1;
const MODE: u16 = 2;
const COPY_PACKET: u8 = 2;
const FLUSH_AFTER: u16 = 4;
const FLAGS: u16 = 6;
const NUMBERED: u16 = 1;

const TIMESTAMP: u16 = 3;
const PAYLOAD: u16 = 9;
const PREFIX: u16 = 10;
const SEQUENCE: u16 = 12;

/// The kernel keeps packets so long to tell of several at once.
const GATHERED: Duration = Duration::from_millis(50);
/// How long [`FlowLog::receive`] waits.
const WAIT: Duration = Duration::from_millis(250);

/// Hears what the rules of one network namespace tell a group. One program can listen to a group.
#[derive(Debug)]
pub struct FlowLog {
    socket: NetlinkSocket,
    /// The number of the next packet, once one has come.
    next: Option<u32>,
    lost: u64,
}

/// What became of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It was refused in this direction.
    Refused(Direction),
    /// It would have been refused in this direction, and passed.
    Audited(Direction),
    /// It was dropped because its source is not its sender's.
    FalseSource,
    /// It would have been, and passed.
    AuditedSource,
    /// It passed.
    Allowed,
    /// It was open, and is [cut](crate::Connections::judge). No rule tells that.
    Cut,
}

/// A packet that rules told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Logged {
    /// When it came.
    pub time: SystemTime,
    /// What became of it.
    pub outcome: Outcome,
    /// Which packet it was.
    pub headers: Headers,
}

/// What identifies the connection of a packet, as it is at the hook: after Service DNAT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Headers {
    /// The source address.
    pub source: IpAddr,
    /// The destination address.
    pub destination: IpAddr,
    /// The number of the protocol above IP.
    pub protocol: u8,
    /// The source and the destination port, of a protocol that has ports. A fragment that is not
    /// the first has none.
    pub ports: Option<(u16, u16)>,
}

impl FlowLog {
    /// Listens to the group in the network namespace of the calling thread. The error is the
    /// kernel's, `EPERM` also if somebody else listens to it.
    pub fn open(group: u16) -> Result<FlowLog, Error> {
        let mut socket = NetlinkSocket::open(NETLINK_NETFILTER)?;
        let mut configure = |write: &dyn Fn(&mut Attributes)| {
            let mut attributes = Attributes::default();
            write(&mut attributes);
            let message = Message { kind: CONFIGURE, family: 0, resource: group, attributes };
            socket.request(message, 0).map(drop)
        };
        configure(&|attributes| _ = attributes.bytes(COMMAND, &[BIND]))?;
        configure(&|attributes| {
            let [a, b, c, d] = SNAP_BYTES.to_be_bytes();
            attributes.bytes(MODE, &[a, b, c, d, COPY_PACKET, 0]);
            // In hundredths of a second.
            attributes.u32(FLUSH_AFTER, (GATHERED.as_millis() / 10) as u32);
            attributes.bytes(FLAGS, &NUMBERED.to_be_bytes());
        })?;
        socket.set_patience(WAIT)?;
        Ok(FlowLog { socket, next: None, lost: 0 })
    }

    /// What has come, or comes within a moment; nothing if nothing comes.
    pub fn receive(&mut self) -> Result<Vec<Logged>, Error> {
        let messages = match self.socket.unasked::<Message>() {
            Ok(messages) => messages,
            Err(Error::Receive(error)) if error.kind() == io::ErrorKind::WouldBlock => Vec::new(),
            // The kernel had more to tell than fits into the socket. The numbers say how much.
            Err(Error::Receive(error)) if error.raw_os_error() == Some(ENOBUFS) => Vec::new(),
            Err(error) => return Err(error),
        };
        let packets = messages.iter().filter(|message| message.kind == PACKET);
        Ok(packets.filter_map(|message| self.read(message.attributes.as_bytes())).collect())
    }

    /// How many packets the kernel told of that never came here, or could not be read.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    fn read(&mut self, attributes: &[u8]) -> Option<Logged> {
        let number = find(attributes, SEQUENCE).and_then(|n| n.try_into().ok());
        if let Some(number) = number.map(u32::from_be_bytes) {
            let expected = self.next.unwrap_or(number);
            self.lost += u64::from(number.wrapping_sub(expected));
            self.next = Some(number.wrapping_add(1));
        }
        let logged = logged(attributes);
        self.lost += u64::from(logged.is_none());
        logged
    }
}

const ENOBUFS: i32 = nix::errno::Errno::ENOBUFS as i32;

fn logged(attributes: &[u8]) -> Option<Logged> {
    let prefix = find(attributes, PREFIX)?;
    let prefix = std::str::from_utf8(prefix).ok()?.trim_end_matches('\0');
    let ends = Direction::BOTH.into_iter().flat_map(|direction| {
        [
            (ChainId::Refused(direction), Outcome::Refused(direction)),
            (ChainId::Audited(direction), Outcome::Audited(direction)),
        ]
    });
    let outcome = match prefix {
        ALLOWED => Outcome::Allowed,
        FALSE_SOURCE => Outcome::FalseSource,
        AUDITED_SOURCE => Outcome::AuditedSource,
        _ => ends.into_iter().find(|(chain, _)| chain.to_string() == prefix)?.1,
    };
    let headers = Headers::read(find(attributes, PAYLOAD)?)?;
    Some(Logged { time: time(attributes).unwrap_or_else(SystemTime::now), outcome, headers })
}

/// When the packet came, where the kernel says it.
fn time(attributes: &[u8]) -> Option<SystemTime> {
    let (seconds, micros) = find(attributes, TIMESTAMP)?.split_at_checked(8)?;
    let number = |bytes: &[u8]| Some(u64::from_be_bytes(bytes.try_into().ok()?));
    let since = Duration::from_secs(number(seconds)?) + Duration::from_micros(number(micros)?);
    SystemTime::UNIX_EPOCH.checked_add(since)
}

impl Headers {
    /// Reads the beginning of a packet, from its IP header on. `None` if that is cut short.
    pub fn read(packet: &[u8]) -> Option<Headers> {
        match packet.first()? >> 4 {
            4 => Headers::v4(packet),
            6 => Headers::v6(packet),
            _ => None,
        }
    }

    fn v4(packet: &[u8]) -> Option<Headers> {
        let address = |at: usize| {
            let bytes: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
            Some(IpAddr::from(Ipv4Addr::from(bytes)))
        };
        let length = usize::from(packet[0] & 0xf) * 4;
        let offset = u16::from_be_bytes(packet.get(6..8)?.try_into().ok()?) & 0x1fff;
        let protocol = *packet.get(9)?;
        let rest = packet.get(length..).filter(|_| offset == 0);
        let (source, destination) = (address(12)?, address(16)?);
        Some(Headers { source, destination, protocol, ports: ports(protocol, rest) })
    }

    fn v6(packet: &[u8]) -> Option<Headers> {
        let address = |at: usize| {
            let bytes: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
            Some(IpAddr::from(Ipv6Addr::from(bytes)))
        };
        let (source, destination) = (address(8)?, address(24)?);
        let (mut protocol, mut rest) = (*packet.get(6)?, packet.get(40..));
        // Hop-by-hop, routing, fragment, authentication and destination options (RFC 8200).
        while let (0 | 43 | 44 | 51 | 60, Some([next, size, b, c, ..])) = (protocol, rest) {
            let later = protocol == 44 && u16::from_be_bytes([*b, *c]) >> 3 != 0;
            let length = match protocol {
                44 => 8,
                51 => (usize::from(*size) + 2) * 4,
                _ => (usize::from(*size) + 1) * 8,
            };
            rest = rest.and_then(|rest| rest.get(length..)).filter(|_| !later);
            protocol = *next;
        }
        Some(Headers { source, destination, protocol, ports: ports(protocol, rest) })
    }
}

/// TCP, UDP, SCTP and others begin with the ports.
fn ports(protocol: u8, rest: Option<&[u8]>) -> Option<(u16, u16)> {
    const WITH_PORTS: [u8; 5] = [6, 17, 33, 132, 136];
    let [a, b, c, d, ..] = *rest.filter(|_| WITH_PORTS.contains(&protocol))? else { return None };
    Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn headers_are_read_past_options_and_extensions() {
        let mut v4 = vec![0x46, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        v4.extend([1; 4]);
        v4.extend([0x30, 0x39, 0, 53]);
        let read = Headers::read(&v4).unwrap();
        assert_eq!((read.protocol, read.ports), (17, Some((12345, 53))));
        assert_eq!(read.destination, IpAddr::from([10, 0, 0, 2]));
        v4[7] = 1;
        assert_eq!(Headers::read(&v4).unwrap().ports, None, "a later fragment");

        let mut v6 = vec![0x60, 0, 0, 0, 0, 0, 0, 64];
        v6.extend([0xfd; 16]);
        v6.extend([0xfe; 16]);
        v6.extend([44, 0, 0, 0, 0, 0, 0, 0]); // hop-by-hop
        v6.extend([6, 0, 0, 1, 0, 0, 0, 0]); // first fragment
        v6.extend([0, 7, 0, 80]);
        let read = Headers::read(&v6).unwrap();
        assert_eq!((read.protocol, read.ports), (6, Some((7, 80))));
        v6[51] = 8;
        let later = Headers::read(&v6).unwrap();
        assert_eq!((later.protocol, later.ports), (6, None));
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_or_not(bytes in proptest::collection::vec(any::<u8>(), 0..130)) {
            let _ = Headers::read(&bytes);
            let _ = logged(&bytes);
        }
    }
}
