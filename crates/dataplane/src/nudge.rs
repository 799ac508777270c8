//! Makes the idle ends of cut TCP connections speak, so that they are reset now and not when they
//! have something to say.
//!
//! An end that is sent a segment far outside its window answers with where it is (RFC 9293, 3.10.7.4).
//! That answer is a packet of a cut flow, and a reset is the answer to it.

use std::io;
use std::net::{IpAddr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

use crate::conntrack::Tuple;

const TCP: u8 = 6;
const HOPS: u8 = 64;
/// Most likely outside of any window; if not, the segment acknowledges nothing that was sent, and
/// is answered for that.
pub(crate) const SEQUENCE: u32 = 0x9e37_79b9;

/// Sends segments that say that they are from others. Needs the capability `NET_RAW`.
#[derive(Debug)]
pub(crate) struct Nudger {
    v4: Socket,
    v6: Option<Socket>,
}

impl Nudger {
    /// Works in the network namespace of the calling thread.
    pub(crate) fn open() -> io::Result<Nudger> {
        // The packets have their IP headers already.
        let raw = |domain| Socket::new(domain, Type::RAW, Some(Protocol::from(255)));
        Ok(Nudger { v4: raw(Domain::IPV4)?, v6: raw(Domain::IPV6).ok() })
    }

    /// Sends a segment to the destination, as from the source. One that cannot be sent is let be:
    /// that end is reset when it speaks.
    pub(crate) fn nudge(&self, tuple: &Tuple) {
        let socket = if tuple.source.is_ipv4() { Some(&self.v4) } else { self.v6.as_ref() };
        if let Some(socket) = socket {
            let to = SocketAddr::new(tuple.destination, 0);
            let _ = socket.send_to(&packet(tuple), &to.into());
        }
    }
}

/// A segment with nothing in it, with its IP header.
fn packet(tuple: &Tuple) -> Vec<u8> {
    let segment = segment(tuple);
    let length = segment.len() as u16;
    let mut packet = Vec::with_capacity(60);
    match (tuple.source, tuple.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            // The kernel fills in the length, the identification and the checksum.
            packet.extend([0x45, 0, 0, 0, 0, 0, 0, 0, HOPS, TCP, 0, 0]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
        }
        (source, destination) => {
            packet.extend([0x60, 0, 0, 0]);
            packet.extend(length.to_be_bytes());
            packet.extend([TCP, HOPS]);
            octets(source, &mut packet);
            octets(destination, &mut packet);
        }
    }
    packet.extend(segment);
    packet
}

fn segment(tuple: &Tuple) -> [u8; 20] {
    const FIVE_WORDS: u8 = 5 << 4;
    const ACK: u8 = 0x10;
    let mut segment = [0; 20];
    segment[0..2].copy_from_slice(&tuple.source_port.to_be_bytes());
    segment[2..4].copy_from_slice(&tuple.destination_port.to_be_bytes());
    segment[4..8].copy_from_slice(&SEQUENCE.to_be_bytes());
    segment[12..14].copy_from_slice(&[FIVE_WORDS, ACK]);
    let mut summed = Vec::with_capacity(60);
    octets(tuple.source, &mut summed);
    octets(tuple.destination, &mut summed);
    summed.extend([0, TCP, 0, segment.len() as u8]);
    summed.extend(segment);
    segment[16..18].copy_from_slice(&checksum(&summed).to_be_bytes());
    segment
}

fn octets(address: IpAddr, bytes: &mut Vec<u8>) {
    match address {
        IpAddr::V4(address) => bytes.extend(address.octets()),
        IpAddr::V6(address) => bytes.extend(address.octets()),
    }
}

/// The Internet checksum (RFC 1071) of whole words.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.as_chunks::<2>().0.iter().map(|word| u32::from(u16::from_be_bytes(*word)));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_of_a_segment_with_its_checksum_is_nought() {
        for (source, destination) in [("10.0.0.1", "10.9.8.7"), ("fd00::1", "2001:db8::ffff")] {
            let tuple = Tuple {
                source: source.parse().unwrap(),
                destination: destination.parse().unwrap(),
                protocol: TCP,
                source_port: 65_535,
                destination_port: 443,
            };
            let mut summed = Vec::new();
            octets(tuple.source, &mut summed);
            octets(tuple.destination, &mut summed);
            summed.extend([0, TCP, 0, 20]);
            summed.extend(segment(&tuple));
            assert_eq!(checksum(&summed), 0);
        }
    }
}
