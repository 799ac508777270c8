//! Messages of the netfilter subsystem, with their attributes as bytes.
//!
//! Sets have many elements, and each is a handful of nested attributes: they are written straight
//! into one buffer, without a value for each attribute in between.

use std::convert::Infallible;

use netlink_packet_core::{
    NLA_F_NESTED, NLA_TYPE_MASK, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable,
};

/// The header of an attribute.
const HEADER_BYTES: usize = 4;
/// `struct nfgenmsg`.
pub(crate) const FAMILY_HEADER_BYTES: usize = 4;

/// A message to or from the netfilter subsystem.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    /// The message type, with the subsystem in the high byte.
    pub kind: u16,
    /// The protocol family, `NFPROTO_*`.
    pub family: u8,
    /// Names a subsystem where a batch begins or ends.
    pub resource: u16,
    /// What it says.
    pub attributes: Attributes,
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        FAMILY_HEADER_BYTES + self.attributes.0.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        let (header, rest) = buffer.split_at_mut(FAMILY_HEADER_BYTES);
        let [high, low] = self.resource.to_be_bytes();
        header.copy_from_slice(&[self.family, 0, high, low]);
        rest[..self.attributes.0.len()].copy_from_slice(&self.attributes.0);
    }
}

impl NetlinkDeserializable for Message {
    type Error = Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Message, Infallible> {
        let (family, resource) = match payload {
            [family, _, high, low, ..] => (*family, u16::from_be_bytes([*high, *low])),
            _ => (0, 0),
        };
        let attributes = payload.get(FAMILY_HEADER_BYTES..).unwrap_or_default().to_vec();
        let attributes = Attributes(attributes);
        Ok(Message { kind: header.message_type, family, resource, attributes })
    }
}

/// A sequence of attributes. Numbers are in network byte order, as nf_tables wants them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes(Vec<u8>);

impl Attributes {
    /// Some bytes.
    pub fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Attributes {
        self.value(kind, |buffer| buffer.extend_from_slice(value))
    }

    /// A number.
    pub fn u32(&mut self, kind: u16, value: u32) -> &mut Attributes {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// A text and the zero byte that ends it.
    pub fn text(&mut self, kind: u16, value: &str) -> &mut Attributes {
        self.value(kind, |buffer| {
            buffer.extend_from_slice(value.as_bytes());
            buffer.push(0);
        })
    }

    /// An attribute that was found elsewhere: its value, and whether it has attributes within.
    pub(crate) fn copy(&mut self, kind: u16, value: &[u8], nested: bool) -> &mut Attributes {
        self.bytes(if nested { kind | NLA_F_NESTED } else { kind }, value)
    }

    /// Attributes within an attribute.
    pub fn nest(&mut self, kind: u16, write: impl FnOnce(&mut Attributes)) -> &mut Attributes {
        self.value(kind | NLA_F_NESTED, |buffer| {
            let mut inner = Attributes(std::mem::take(buffer));
            write(&mut inner);
            *buffer = inner.0;
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Writes a header, the value and padding. The length in the header has 16 bits: only lists of
    /// elements could outgrow it, and who writes them splits them.
    fn value(&mut self, kind: u16, write: impl FnOnce(&mut Vec<u8>)) -> &mut Attributes {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; HEADER_BYTES]);
        write(&mut self.0);
        let length = self.0.len() - start;
        debug_assert!(length <= usize::from(u16::MAX), "an attribute of {length} bytes");
        self.0[start..start + 2].copy_from_slice(&(length as u16).to_ne_bytes());
        self.0[start + 2..start + 4].copy_from_slice(&kind.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(HEADER_BYTES), 0);
        self
    }
}

/// The value of the first attribute of the kind, the flags of kinds set aside. `None` if there is
/// none, or if what comes before it is malformed.
pub(crate) fn find(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    all(attributes, kind).next()
}

/// The values of all attributes of the kind, up to the first malformed attribute.
pub(crate) fn all(attributes: &[u8], kind: u16) -> impl Iterator<Item = &[u8]> {
    let kinds = flagged(attributes).map(|(found, value)| (found & NLA_TYPE_MASK, value));
    kinds.filter(move |(found, _)| *found == kind).map(|(_, value)| value)
}

/// All attributes up to the first malformed one: kinds with their flags, and values.
pub(crate) fn flagged(mut attributes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let [a, b, c, d, ..] = *attributes else { return None };
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = attributes.get(HEADER_BYTES..length)?;
        attributes = attributes.get(length.next_multiple_of(HEADER_BYTES)..).unwrap_or_default();
        Some((u16::from_ne_bytes([c, d]), value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_found_again() {
        let mut attributes = Attributes::default();
        attributes.text(1, "abc").nest(2, |inner| {
            inner.u32(7, 258).bytes(8, &[1, 2, 3]);
        });
        assert_eq!(
            attributes.as_bytes(),
            [
                8, 0, 1, 0, b'a', b'b', b'c', 0, // text
                20, 0, 2, 0x80, // nest
                8, 0, 7, 0, 0, 0, 1, 2, // number
                7, 0, 8, 0, 1, 2, 3, 0, // bytes
            ]
        );
        let inner = find(attributes.as_bytes(), 2).unwrap();
        assert_eq!(find(inner, 8), Some([1, 2, 3].as_slice()));
        assert_eq!(find(inner, 9), None);
    }

    #[test]
    fn malformed_attributes_are_not_found() {
        assert_eq!(find(&[200, 0, 1, 0, 0], 1), None);
        assert_eq!(find(&[4], 1), None);
    }
}
