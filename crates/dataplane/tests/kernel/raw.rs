//! Packets byte by byte, as no program would send them.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use portcullis_core::net::Family;
use socket2::{Domain, Protocol, Socket, Type};

use crate::network::Pod;

pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
/// The IPv6 header of a source route.
pub(crate) const ROUTING: u8 = 43;
pub(crate) const GRE: u8 = 47;
pub(crate) const ICMP_V6: u8 = 58;

pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const PUSH: u8 = 8;
pub(crate) const ACK: u8 = 16;
pub(crate) const URGENT: u8 = 32;

/// Who a packet says that it is from, and to whom it goes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ends {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
}

impl Ends {
    pub(crate) fn turned(self) -> Ends {
        Ends { source: self.destination, destination: self.source }
    }

    pub(crate) fn udp(self, ports: [u16; 2], data: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        ports.into_iter().for_each(|port| bytes.extend(port.to_be_bytes()));
        bytes.extend((8 + data.len() as u16).to_be_bytes());
        bytes.extend([0; 2]);
        bytes.extend(data);
        self.with_sum(UDP, bytes, 6)
    }

    pub(crate) fn tcp(self, ports: [u16; 2], flags: u8, data: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        ports.into_iter().for_each(|port| bytes.extend(port.to_be_bytes()));
        bytes.extend(0x1234_5678u32.to_be_bytes());
        bytes.extend(if flags & ACK == 0 { 0u32 } else { 0x8765_4321 }.to_be_bytes());
        bytes.extend([5 << 4, flags]);
        bytes.extend(1024u16.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(data);
        self.with_sum(TCP, bytes, 16)
    }

    /// ICMP or ICMPv6, by the family.
    pub(crate) fn icmp(self, kind: u8, code: u8, rest: [u8; 4], data: &[u8]) -> Vec<u8> {
        let mut bytes = vec![kind, code, 0, 0];
        bytes.extend(rest);
        bytes.extend(data);
        match self.source {
            IpAddr::V4(_) => {
                let sum = sum(&bytes);
                bytes[2..4].copy_from_slice(&sum);
                bytes
            }
            IpAddr::V6(_) => self.with_sum(ICMP_V6, bytes, 2),
        }
    }

    /// With the checksum over these bytes and the addresses.
    fn with_sum(self, protocol: u8, mut bytes: Vec<u8>, at: usize) -> Vec<u8> {
        let mut summed = Vec::new();
        [self.source, self.destination].iter().for_each(|a| octets(*a, &mut summed));
        summed.extend([0, protocol]);
        summed.extend((bytes.len() as u16).to_be_bytes());
        summed.extend(&bytes);
        let sum = sum(&summed);
        bytes[at..at + 2].copy_from_slice(&sum);
        bytes
    }

    /// The whole packet.
    pub(crate) fn packet(self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        match self.source {
            IpAddr::V4(_) => self.v4(protocol, &[], Fragment::WHOLE, payload),
            IpAddr::V6(_) => self.v6(protocol, payload),
        }
    }

    /// An IPv4 packet with options, which fill words.
    pub(crate) fn v4(
        self,
        protocol: u8,
        options: &[u8],
        fragment: Fragment,
        payload: &[u8],
    ) -> Vec<u8> {
        let header = 20 + options.len();
        let mut bytes = vec![0x40 | (header / 4) as u8, 0];
        bytes.extend(((header + payload.len()) as u16).to_be_bytes());
        bytes.extend(fragment.id.to_be_bytes());
        let more = if fragment.more { 0x2000 } else { 0 };
        bytes.extend((more | (fragment.offset / 8)).to_be_bytes());
        bytes.extend([64, protocol, 0, 0]);
        octets(self.source, &mut bytes);
        octets(self.destination, &mut bytes);
        bytes.extend(options);
        let sum = sum(&bytes);
        bytes[10..12].copy_from_slice(&sum);
        bytes.extend(payload);
        bytes
    }

    /// An IPv6 packet. Extension headers are part of the payload.
    pub(crate) fn v6(self, next: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x60, 0, 0, 0];
        bytes.extend((payload.len() as u16).to_be_bytes());
        bytes.extend([next, 64]);
        octets(self.source, &mut bytes);
        octets(self.destination, &mut bytes);
        bytes.extend(payload);
        bytes
    }

    /// A fragment of either family.
    pub(crate) fn fragment(self, protocol: u8, fragment: Fragment, payload: &[u8]) -> Vec<u8> {
        if self.source.is_ipv4() {
            return self.v4(protocol, &[], fragment, payload);
        }
        let mut bytes = vec![protocol, 0];
        bytes.extend((fragment.offset | u16::from(fragment.more)).to_be_bytes());
        bytes.extend([0; 2]);
        bytes.extend(fragment.id.to_be_bytes());
        bytes.extend(payload);
        const FRAGMENT: u8 = 44;
        self.v6(FRAGMENT, &bytes)
    }
}

/// Which part of a packet a fragment is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fragment {
    pub(crate) id: u16,
    /// In bytes; a multiple of 8.
    pub(crate) offset: u16,
    pub(crate) more: bool,
}

impl Fragment {
    pub(crate) const WHOLE: Fragment = Fragment { id: 0, offset: 0, more: false };
}

fn octets(address: IpAddr, bytes: &mut Vec<u8>) {
    match address {
        IpAddr::V4(address) => bytes.extend(address.octets()),
        IpAddr::V6(address) => bytes.extend(address.octets()),
    }
}

/// The Internet checksum (RFC 1071).
fn sum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.chunks(2).map(|word| match word {
        [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
        rest => u32::from(rest[0]) << 8,
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

/// An IPv6 packet with another hop limit.
pub(crate) fn with_hop_limit(mut packet: Vec<u8>, limit: u8) -> Vec<u8> {
    packet[7] = limit;
    packet
}

/// Sends whole packets, headers included.
pub(crate) struct Sender([Socket; 2]);

impl Sender {
    pub(crate) fn new(pod: &Pod) -> Sender {
        const AS_IT_IS: i32 = 255;
        Sender(pod.inside(|| {
            [Domain::IPV4, Domain::IPV6]
                .map(|d| Socket::new(d, Type::RAW, Some(Protocol::from(AS_IT_IS))).unwrap())
        }))
    }

    /// What goes to groups goes out where this address of the pod is.
    pub(crate) fn send_to_groups_from(&self, address: Ipv4Addr) {
        self.0[0].set_multicast_if_v4(&address).unwrap();
    }

    pub(crate) fn send(&self, to: IpAddr, packet: &[u8]) {
        let socket = &self.0[usize::from(to.is_ipv6())];
        socket.send_to(packet, &SocketAddr::new(to, 0).into()).unwrap();
    }
}

/// Hears every packet of a protocol that comes to the pod's addresses, also one that is wrong.
pub(crate) struct Ear(Socket);

impl Ear {
    /// Hears whatever comes over the pod's link, pieces of packets too, and to whomever it is sent.
    pub(crate) fn on_the_link(pod: &Pod) -> Ear {
        const ALL: u16 = 3;
        Ear(pod.inside(|| {
            let protocol = Protocol::from(i32::from(ALL.to_be()));
            let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(protocol)).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            socket
        }))
    }

    pub(crate) fn new(pod: &Pod, family: Family, protocol: u8) -> Ear {
        let domain = if family == Family::V4 { Domain::IPV4 } else { Domain::IPV6 };
        Ear(pod.inside(move || {
            let protocol = Protocol::from(i32::from(protocol));
            let socket = Socket::new(domain, Type::RAW, Some(protocol)).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
            socket
        }))
    }

    /// Whether a packet comes that has these bytes in it. One that is expected is waited for, as long as
    /// a busy machine may need; any other for a time in which it would come on an idle one.
    pub(crate) fn hears(&self, marker: &[u8], expected: bool) -> bool {
        let wait = if expected { Duration::from_secs(30) } else { Duration::from_millis(150) };
        let end = Instant::now() + wait;
        let mut buffer = [0; 4096];
        while Instant::now() < end {
            let Ok(length) = (&self.0).read(&mut buffer) else { continue };
            if buffer[..length].windows(marker.len()).any(|window| window == marker) {
                return true;
            }
        }
        false
    }
}
