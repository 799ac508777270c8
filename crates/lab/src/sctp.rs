//! The first two packets of an SCTP association (RFC 9260), for kernels without SCTP sockets.
//!
//! That is all a probe needs, and it is enough for connection tracking, which checks checksums and
//! verification tags.

/// A packet with one chunk that matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) source_port: u16,
    pub(crate) destination_port: u16,
    /// The verification tag: the one that the receiver chose, 0 in an INIT.
    pub(crate) tag: u32,
    pub(crate) chunk: Chunk,
}

/// The first chunk of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Chunk {
    /// Opens an association; the sender wants to be called by this tag.
    Init { tag: u32 },
    /// Agrees, and gives a tag likewise.
    InitAck { tag: u32 },
    /// Refuses. `by_responder` if it says so in the lab's own words; a kernel with SCTP, which
    /// does not know of the responder, sends others beside the responder's answer.
    Abort { by_responder: bool },
}

/// The chunk type of an INIT.
pub(crate) const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const ABORT: u8 = 6;
/// `User-Initiated Abort`.
const CAUSE: u16 = 12;
const REASON: &[u8; 4] = b"shut";
/// A parameter that an INIT ACK has to have.
const STATE_COOKIE: u16 = 7;

impl Packet {
    /// The bytes, from the ports on, with the checksum right.
    pub(crate) fn to_bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(40);
        bytes.extend(self.source_port.to_be_bytes());
        bytes.extend(self.destination_port.to_be_bytes());
        bytes.extend(self.tag.to_be_bytes());
        bytes.extend([0; 4]);
        match self.chunk {
            Chunk::Init { tag } => open(&mut bytes, INIT, tag, &[]),
            Chunk::InitAck { tag } => open(&mut bytes, INIT_ACK, tag, &parameter(STATE_COOKIE)),
            Chunk::Abort { .. } => chunk(&mut bytes, ABORT, &parameter(CAUSE)),
        }
        let sum = crc32c::crc32c(&bytes);
        bytes[8..12].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Reads a packet from its ports on; `None` for what it is not, or is of no interest here.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Packet> {
        let chunk = match *bytes.get(12)? {
            INIT => Chunk::Init { tag: word(bytes, 16)? },
            INIT_ACK => Chunk::InitAck { tag: word(bytes, 16)? },
            ABORT => Chunk::Abort { by_responder: bytes.get(20..24) == Some(REASON) },
            _ => return None,
        };
        let ports = word(bytes, 0)?;
        Some(Packet {
            source_port: (ports >> 16) as u16,
            destination_port: ports as u16,
            tag: word(bytes, 4)?,
            chunk,
        })
    }

    /// What a responder says to this packet: agrees to or refuses an INIT, ignores all else.
    pub(crate) fn answer(self, listening: bool) -> Option<Packet> {
        let Chunk::Init { tag } = self.chunk else { return None };
        Some(Packet {
            source_port: self.destination_port,
            destination_port: self.source_port,
            tag,
            chunk: if listening {
                Chunk::InitAck { tag: !tag }
            } else {
                Chunk::Abort { by_responder: true }
            },
        })
    }
}

fn open(bytes: &mut Vec<u8>, kind: u8, tag: u32, parameters: &[u8]) {
    let mut body = tag.to_be_bytes().to_vec();
    // The window, the streams out and in, the first sequence number.
    body.extend(65536u32.to_be_bytes());
    body.extend([0, 1, 0, 1]);
    body.extend(tag.to_be_bytes());
    body.extend(parameters);
    chunk(bytes, kind, &body);
}

fn chunk(bytes: &mut Vec<u8>, kind: u8, body: &[u8]) {
    bytes.extend([kind, 0, 0, 4 + body.len() as u8]);
    bytes.extend(body);
}

fn parameter(kind: u16) -> Vec<u8> {
    let mut bytes = kind.to_be_bytes().to_vec();
    bytes.extend([0, 8]);
    bytes.extend(REASON);
    bytes
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INIT_PACKET: Packet = Packet {
        source_port: 40000,
        destination_port: 3868,
        tag: 0,
        chunk: Chunk::Init { tag: 0x0102_0304 },
    };

    #[test]
    fn an_init_is_laid_out_as_the_rfc_says() {
        let bytes = INIT_PACKET.to_bytes();
        let expected: [u8; 32] = [
            0x9c, 0x40, 0x0f, 0x1c, 0, 0, 0, 0, 0, 0, 0, 0, // ports, tag, checksum
            1, 0, 0, 20, 1, 2, 3, 4, 0, 1, 0, 0, 0, 1, 0, 1, 1, 2, 3, 4,
        ];
        assert_eq!((&bytes[..8], &bytes[12..]), (&expected[..8], &expected[12..]));
        let sum = u32::from_le_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]);
        assert_eq!(sum, crc32c::crc32c(&expected));
    }

    #[test]
    fn a_listening_responder_agrees_with_the_tag_it_was_given() {
        let answer = INIT_PACKET.answer(true).unwrap();
        assert_eq!(Packet::from_bytes(&answer.to_bytes()), Some(answer));
        assert_eq!((answer.source_port, answer.destination_port), (3868, 40000));
        assert_eq!(answer.tag, 0x0102_0304);
        assert!(matches!(answer.chunk, Chunk::InitAck { tag } if tag != 0));
    }

    #[test]
    fn a_refusal_by_a_responder_is_told_from_that_of_a_kernel() {
        let refusal = INIT_PACKET.answer(false).unwrap();
        assert_eq!(refusal.chunk, Chunk::Abort { by_responder: true });
        let bytes = refusal.to_bytes();
        assert_eq!(Packet::from_bytes(&bytes), Some(refusal));
        let bare = [&bytes[..12], &[ABORT, 1, 0, 4]].concat();
        let abort = Packet::from_bytes(&bare).unwrap();
        assert_eq!(abort.chunk, Chunk::Abort { by_responder: false });
    }

    #[test]
    fn only_an_init_is_answered() {
        let answer = INIT_PACKET.answer(true).unwrap();
        assert_eq!(answer.answer(true), None);
        assert_eq!(INIT_PACKET.answer(false).and_then(|p| p.answer(true)), None);
    }

    #[test]
    fn what_is_cut_short_is_no_packet() {
        let bytes = INIT_PACKET.to_bytes();
        for length in 0..20 {
            assert_eq!(Packet::from_bytes(&bytes[..length]), None);
        }
    }
}
