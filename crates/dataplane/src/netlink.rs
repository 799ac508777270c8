//! A synchronous netlink socket, for any netlink protocol and any message type of
//! `netlink-packet-core`.
//!
//! A socket belongs to the network namespace in which the calling thread was when it was opened,
//! for as long as it lives, wherever the thread goes later.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST,
    NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable, NlasIterator,
};
use netlink_sys::SocketAddr;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, getsockopt, setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

pub use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};

use crate::Error;

/// A netlink socket. Requests go out and are answered one call at a time.
#[derive(Debug)]
pub struct NetlinkSocket {
    socket: netlink_sys::Socket,
    /// So often it may send still; `None` for ever.
    sends: Option<Arc<AtomicUsize>>,
    /// The sequence number of the next request.
    sequence: u32,
    received: Vec<u8>,
}

/// The most that the kernel puts into one datagram of an answer is half of this.
const RECEIVE_BYTES: usize = 64 * 1024;
/// Wanted for both socket buffers. Without privilege the kernel caps it at `net.core.*mem_max`.
const BUFFER_BYTES: usize = 64 << 20;
/// What a group has been told is kept up to half of this; the kernel counts more than the messages.
const HEARD_BYTES: usize = 1 << 20;
/// So many acknowledgements fit into the smallest receive buffer in use.
const ACKS_AT_ONCE: usize = 64;
/// The kernel answers during the send; an answer that is so late will never come.
const PATIENCE_SECONDS: i64 = 10;
const DUMP_TRIES: u32 = 8;
/// The length of a message header, and of what a capped error repeats of the request.
const HEADER_BYTES: usize = 16;
/// `NLMSGERR_ATTR_MSG` of `linux/netlink.h`.
const ERROR_TEXT: u16 = 1;

impl NetlinkSocket {
    /// Opens a socket for [`NETLINK_ROUTE`], [`NETLINK_NETFILTER`] or another protocol, in the
    /// network namespace of the calling thread.
    pub fn open(protocol: isize) -> Result<NetlinkSocket, Error> {
        NetlinkSocket::try_open(protocol).map_err(|source| Error::Open { protocol, source })
    }

    fn try_open(protocol: isize) -> io::Result<NetlinkSocket> {
        let mut socket = netlink_sys::Socket::new(protocol)?;
        socket.bind_auto()?;
        // A connected socket hears the kernel and no other process.
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_ext_ack(true)?;
        socket.set_cap_ack(true)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE_SECONDS))?;
        // The forced variants need CAP_NET_ADMIN in the first user namespace.
        if setsockopt(&socket, sockopt::SndBufForce, &BUFFER_BYTES).is_err() {
            setsockopt(&socket, sockopt::SndBuf, &BUFFER_BYTES)?;
        }
        if setsockopt(&socket, sockopt::RcvBufForce, &BUFFER_BYTES).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &BUFFER_BYTES)?;
        }
        Ok(NetlinkSocket {
            socket,
            sends: None,
            sequence: 1,
            received: Vec::with_capacity(RECEIVE_BYTES),
        })
    }

    /// Opens a socket that is for hearing what the kernel tells multicast groups of the protocol, and
    /// never waits.
    pub(crate) fn listener(protocol: isize) -> Result<NetlinkSocket, Error> {
        let socket = NetlinkSocket::open(protocol)?;
        let listening = socket.socket.set_non_blocking(true);
        listening.map_err(|source| Error::Open { protocol, source })?;
        // A group is told of everything, and nobody waits for who does not read.
        setsockopt(&socket.socket, sockopt::RcvBuf, &HEARD_BYTES)
            .map_err(|e| Error::Option(io::Error::from(e)))?;
        Ok(socket)
    }

    /// Hears what a group is told from now on.
    pub(crate) fn join(&mut self, group: u32) -> Result<(), Error> {
        self.socket.add_membership(group).map_err(Error::Option)
    }

    /// Hears no more of a group.
    pub(crate) fn leave(&mut self, group: u32) -> Result<(), Error> {
        self.socket.drop_membership(group).map_err(Error::Option)
    }

    /// What has been heard since the last call. An error if some of it was lost.
    pub(crate) fn heard<M>(&mut self) -> Result<Vec<M>, Error>
    where
        M: NetlinkDeserializable,
    {
        let mut heard = Vec::new();
        let mut lost = None;
        loop {
            match self.unasked::<M>() {
                Ok(messages) => heard.extend(messages),
                Err(Error::Receive(e)) if e.kind() == io::ErrorKind::WouldBlock => break,
                // Said once; what comes after it is there to be read.
                Err(error) if lost.is_none() => lost = Some(error),
                Err(error) => return Err(error),
            }
        }
        lost.map_or(Ok(heard), Err)
    }

    /// The most bytes that one send, and so one transaction, may have.
    pub fn send_limit(&self) -> Result<usize, Error> {
        let buffer = getsockopt(&self.socket, sockopt::SndBuf)
            .map_err(|e| Error::Option(io::Error::from(e)))?;
        Ok(buffer.saturating_sub(32))
    }

    /// Sets how many bytes one send may have; the kernel caps it, and has a least of some kB.
    pub fn set_send_limit(&mut self, bytes: usize) -> Result<(), Error> {
        // The kernel doubles what it is given.
        setsockopt(&self.socket, sockopt::SndBuf, &(bytes / 2))
            .map_err(|e| Error::Option(io::Error::from(e)))
    }

    /// How long an answer, or what comes unasked, is waited for.
    pub fn set_patience(&mut self, patience: Duration) -> Result<(), Error> {
        let micros = i64::try_from(patience.as_micros()).unwrap_or(i64::MAX);
        setsockopt(&self.socket, sockopt::ReceiveTimeout, &TimeVal::microseconds(micros))
            .map_err(|e| Error::Option(io::Error::from(e)))
    }

    /// Messages that the kernel sends of itself. The error is [`Error::Receive`] if none comes in
    /// time.
    pub fn unasked<M>(&mut self) -> Result<Vec<M>, Error>
    where
        M: NetlinkDeserializable,
    {
        let messages = self.receive::<M>()?.into_iter();
        Ok(messages
            .filter_map(|message| match message.payload {
                NetlinkPayload::InnerMessage(message) => Some(message),
                _ => None,
            })
            .collect())
    }

    /// From now on it sends so often, and then nothing more, as if its process had ended there.
    pub fn break_off_after(&mut self, sends: Arc<AtomicUsize>) {
        self.sends = Some(sends);
    }

    /// Sends one request, with `NLM_F_REQUEST` and `NLM_F_ACK` added to the flags, and returns the
    /// messages that come before its acknowledgement.
    pub fn request<M>(&mut self, message: M, flags: u16) -> Result<Vec<M>, Error>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        let first = self.send([(message, flags | NLM_F_ACK)])?;
        self.answers(first, 1, 1)
    }

    /// Sends one request with `NLM_F_DUMP` and returns all objects. A dump during which the
    /// kernel's state changed is made again.
    pub fn dump<M>(&mut self, message: M) -> Result<Vec<M>, Error>
    where
        M: NetlinkSerializable + NetlinkDeserializable + Clone,
    {
        for _ in 0..DUMP_TRIES {
            let first = self.send([(message.clone(), NLM_F_DUMP)])?;
            let mut objects = Vec::new();
            let mut interrupted = false;
            let mut done = false;
            while !done {
                for answer in self.receive::<M>()? {
                    if answer.header.sequence_number != first {
                        continue;
                    }
                    interrupted |= answer.header.flags & NLM_F_DUMP_INTR != 0;
                    match answer.payload {
                        NetlinkPayload::InnerMessage(object) => objects.push(object),
                        NetlinkPayload::Done(end) if end.code != 0 => {
                            return Err(refused(0, 1, end.code, None));
                        }
                        NetlinkPayload::Done(_) => done = true,
                        NetlinkPayload::Error(error) => {
                            let text = error_text(answer.header.flags, &error.header);
                            return Err(refused(0, 1, error.raw_code(), text));
                        }
                        _ => {}
                    }
                }
            }
            if !interrupted {
                return Ok(objects);
            }
        }
        Err(Error::Unsteady { tries: DUMP_TRIES })
    }

    /// Sends one request with `NLM_F_DUMP`, and shows each object as the kernel wrote it, without the
    /// message's header. For dumps that are large and always steady, such as that of tracked flows.
    pub(crate) fn dump_each<M>(
        &mut self,
        message: M,
        mut show: impl FnMut(&[u8]),
    ) -> Result<(), Error>
    where
        M: NetlinkSerializable,
    {
        let first = self.send([(message, NLM_F_DUMP)])?;
        let mut done = false;
        while !done {
            self.fill()?;
            for message in datagram(&self.received) {
                let message = message?;
                if message.sequence_number() != first {
                    continue;
                }
                let payload = message.payload();
                match message.message_type() {
                    NLMSG_DONE | NLMSG_ERROR => {
                        let code = payload.first_chunk().copied().map_or(0, i32::from_ne_bytes);
                        if code != 0 {
                            return Err(refused(0, 1, code, None));
                        }
                        done = true;
                    }
                    _ if message.flags() & NLM_F_DUMP_INTR != 0 => {
                        return Err(Error::Unsteady { tries: 1 });
                    }
                    _ => show(payload),
                }
            }
        }
        Ok(())
    }

    /// Sends requests that do not depend on one answer, in few sends, and waits until each is
    /// acknowledged. The error is the first refusal; some requests after it may have been done.
    pub fn batch<M>(&mut self, requests: Vec<(M, u16)>) -> Result<(), Error>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        let count = requests.len();
        let mut requests = requests.into_iter();
        let mut sent = 0;
        while sent < count {
            let piece = requests.by_ref().take(ACKS_AT_ONCE).map(|(m, f)| (m, f | NLM_F_ACK));
            let first = self.send(piece)?;
            let size = self.sequence.wrapping_sub(first) as usize;
            self.answers::<M>(first, size, size).map_err(|error| match error {
                Error::Refused { index, source, detail, .. } => {
                    Error::Refused { index: sent + index, count, source, detail }
                }
                other => other,
            })?;
            sent += size;
        }
        Ok(())
    }

    /// Sends all requests in one piece and waits for the acknowledgement of those that have
    /// `NLM_F_ACK` in their flags; the kernel reports refusals of the others too. This is how an
    /// nf_tables transaction goes out: it is one send, and thousands of acknowledgements would not
    /// fit into the receive buffer.
    pub fn transaction<M>(&mut self, requests: Vec<(M, u16)>) -> Result<(), Error>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        let count = requests.len();
        let acknowledged = requests.iter().filter(|(_, flags)| flags & NLM_F_ACK != 0).count();
        let first = self.send(requests)?;
        self.answers::<M>(first, count, acknowledged).map(drop)
    }

    /// Numbers and sends; returns the first number.
    fn send<M>(&mut self, requests: impl IntoIterator<Item = (M, u16)>) -> Result<u32, Error>
    where
        M: NetlinkSerializable,
    {
        let first = self.sequence;
        let mut bytes = Vec::new();
        for (message, flags) in requests {
            let mut header = NetlinkHeader::default();
            header.flags = flags | NLM_F_REQUEST;
            header.sequence_number = self.sequence;
            self.sequence = self.sequence.wrapping_add(1);
            let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
            message.finalize();
            let start = bytes.len();
            bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
            message.serialize(&mut bytes[start..]);
        }
        let one_less = |left: usize| left.checked_sub(1);
        if self.sends.as_ref().is_some_and(|s| s.fetch_update(Relaxed, Relaxed, one_less).is_err())
        {
            let source = io::ErrorKind::BrokenPipe.into();
            return Err(Error::Send { bytes: bytes.len(), source });
        }
        match self.socket.send(&bytes, 0) {
            Ok(_) => Ok(first),
            Err(e) if e.raw_os_error() == Some(Errno::EMSGSIZE as i32) => {
                Err(Error::TooLarge { bytes: bytes.len(), limit: self.send_limit()? })
            }
            Err(source) => Err(Error::Send { bytes: bytes.len(), source }),
        }
    }

    /// Reads until so many acknowledgements of the `count` requests from `first` on have come.
    fn answers<M>(&mut self, first: u32, count: usize, acks: usize) -> Result<Vec<M>, Error>
    where
        M: NetlinkDeserializable,
    {
        let mut objects = Vec::new();
        let mut acknowledged = 0;
        while acknowledged < acks {
            for answer in self.receive::<M>()? {
                let index = answer.header.sequence_number.wrapping_sub(first) as usize;
                if index >= count {
                    // Left over from a request that failed.
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::InnerMessage(object) => objects.push(object),
                    NetlinkPayload::Error(error) if error.raw_code() == 0 => acknowledged += 1,
                    NetlinkPayload::Error(error) => {
                        let text = error_text(answer.header.flags, &error.header);
                        return Err(refused(index, count, error.raw_code(), text));
                    }
                    _ => {}
                }
            }
        }
        Ok(objects)
    }

    /// One datagram of answers.
    fn receive<M>(&mut self) -> Result<Vec<NetlinkMessage<M>>, Error>
    where
        M: NetlinkDeserializable,
    {
        self.fill()?;
        let messages = datagram(&self.received).map(|message| {
            let message = message?.into_inner();
            NetlinkMessage::deserialize(message).map_err(|e| Error::Decode(e.to_string()))
        });
        messages.collect()
    }

    /// Waits for a datagram.
    fn fill(&mut self) -> Result<(), Error> {
        self.received.clear();
        let length = loop {
            match self.socket.recv(&mut self.received, MsgFlags::MSG_TRUNC.bits()) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => break other.map_err(Error::Receive)?,
            }
        };
        if length > self.received.len() {
            let held = self.received.len();
            return Err(Error::Decode(format!("{length} bytes came where {held} were expected")));
        }
        Ok(())
    }
}

/// The answer to a request for what somebody may have removed meanwhile: that is then nothing.
pub(crate) fn absent_is_fine<M>(found: Result<Vec<M>, Error>) -> Result<Vec<M>, Error> {
    match found {
        Err(error) if error.errno() == Some(Errno::ENOENT as i32) => Ok(Vec::new()),
        other => other,
    }
}

/// The messages of a datagram, up to the first malformed one.
fn datagram(mut rest: &[u8]) -> impl Iterator<Item = Result<NetlinkBuffer<&[u8]>, Error>> {
    std::iter::from_fn(move || {
        if rest.len() < HEADER_BYTES {
            return None;
        }
        let message = match NetlinkBuffer::new_checked(rest) {
            Ok(message) => message,
            Err(error) => {
                rest = &[];
                return Some(Err(Error::Decode(error.to_string())));
            }
        };
        let length = message.length() as usize;
        let this = NetlinkBuffer::new(&rest[..length]);
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Ok(this))
    })
}

fn refused(index: usize, count: usize, code: i32, detail: Option<String>) -> Error {
    Error::Refused { index, count, source: io::Error::from_raw_os_error(code.abs()), detail }
}

/// The text in the attributes after the repeated request.
fn error_text(flags: u16, repeated: &[u8]) -> Option<String> {
    if flags & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    let start = if flags & NLM_F_CAPPED != 0 {
        HEADER_BYTES
    } else {
        let length = NetlinkBuffer::new_checked(repeated).ok()?.length() as usize;
        length.next_multiple_of(4)
    };
    let text = NlasIterator::new(repeated.get(start..)?)
        .filter_map(Result::ok)
        .find(|attribute| attribute.kind() == ERROR_TEXT)?;
    let text = String::from_utf8_lossy(text.value());
    Some(text.trim_end_matches('\0').to_owned())
}
