//! Responders: who answers the probes, on every address of the lab.
//!
//! One thread serves them all, since a socket stays in the namespace in which it was made. Nothing
//! here ever waits for a peer, so there is nothing to be asynchronous about.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice, IoSliceMut, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::libc;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrLike, SockaddrStorage, recvmsg, sendmsg,
    setsockopt, sockopt,
};
use portcullis_core::net::{ByAddress, Family, Protocol};
use rustc_hash::FxHashMap;
use socket2::{Domain, SockFilter, Socket, Type};

use crate::families::Families;
use crate::sctp;

/// What an address calls itself.
pub(crate) type Names = ByAddress<String>;

/// A port that can be listened on.
pub(crate) type Port = (Protocol, u16);

/// The responders of a lab. They fall silent when it is dropped.
#[derive(Debug)]
pub(crate) struct Responders {
    shared: Arc<Shared>,
    families: Families,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    epoll: Epoll,
    stop: EventFd,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    names: Names,
    /// All that is open, by its token.
    responders: FxHashMap<u64, Responder>,
    /// The namespaces, by the number of the space.
    spaces: FxHashMap<u32, Open>,
    last_token: u64,
}

/// What is open in a namespace.
#[derive(Debug, Default)]
struct Open {
    /// The sockets of each port, and those of [`SCTP`].
    sockets: BTreeMap<Port, Vec<u64>>,
    sctp_ports: BTreeSet<u16>,
}

#[derive(Debug)]
enum Responder {
    Tcp(Socket),
    Connection(Connection),
    Udp(Socket),
    /// Of the space of this number.
    Sctp(Socket, u32),
}

/// A client of a TCP port.
#[derive(Debug)]
struct Connection {
    socket: Socket,
    /// What it has said; nothing any more once it has its answer.
    heard: Vec<u8>,
    answered: bool,
}

/// All SCTP ports are served by the same raw sockets, one per family.
const SCTP: Port = (Protocol::Sctp, 0);
/// The token of [`Shared::stop`].
const STOP: u64 = 0;
/// Connections that may wait to be accepted: as many as the kernel's own default allows.
const BACKLOG: i32 = 4096;
/// A probe's question and an SCTP INIT are far smaller.
const LARGEST: usize = 2048;
/// A question over TCP that is longer is answered before it is over.
const LONGEST_QUESTION: usize = 16 << 10;

impl Responders {
    /// `names` says who is at which address.
    pub(crate) fn start(names: Names, families: Families) -> io::Result<Responders> {
        let shared = Arc::new(Shared {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            stop: EventFd::new()?,
            state: Mutex::new(State { names, last_token: STOP, ..State::default() }),
        });
        shared.epoll.add(&shared.stop, EpollEvent::new(EpollFlags::EPOLLIN, STOP))?;
        let serving = Arc::clone(&shared);
        let thread =
            thread::Builder::new().name("responders".to_owned()).spawn(move || serving.serve())?;
        Ok(Responders { shared, families, thread: Some(thread) })
    }

    /// Says who is at these addresses from now on; `None` for nobody.
    pub(crate) fn name(&self, addresses: &[IpAddr], name: Option<&str>) {
        let mut state = self.shared.state();
        for address in addresses {
            match name {
                Some(name) => drop(state.names.insert(*address, name.to_owned())),
                None => drop(state.names.remove(address)),
            }
        }
    }

    /// How many sockets [`Responders::serve`] would have to open.
    pub(crate) fn missing(&self, space: u32, ports: &BTreeSet<Port>) -> usize {
        let state = self.shared.state();
        let open = state.spaces.get(&space);
        let sockets = |port: &Port| if *port == SCTP { self.families.iter().count() } else { 1 };
        wanted(ports)
            .filter(|port| open.is_none_or(|open| !open.sockets.contains_key(port)))
            .map(|port| sockets(&port))
            .sum()
    }

    /// Has a space answer on these ports and on no others. To be called in its namespace.
    ///
    /// A port that somebody else listens on there is left to them. The raw sockets for SCTP are
    /// always open: they say that a port is closed, too.
    pub(crate) fn serve(
        &self,
        space: u32,
        ports: &BTreeSet<Port>,
    ) -> Result<(), (Port, io::Error)> {
        let mut state = self.shared.state();
        let State { responders, spaces, last_token, .. } = &mut *state;
        let open = spaces.entry(space).or_default();
        let wanted: BTreeSet<Port> = wanted(ports).collect();
        open.sockets.retain(|port, tokens| {
            let stays = wanted.contains(port);
            if !stays {
                tokens.iter().for_each(|token| drop(responders.remove(token)));
            }
            stays
        });
        let sctp = ports.iter().filter(|(protocol, _)| *protocol == Protocol::Sctp);
        open.sctp_ports = sctp.map(|(_, port)| *port).collect();
        for port in wanted {
            if open.sockets.contains_key(&port) {
                continue;
            }
            let sockets = match sockets(port, self.families, space) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => continue,
                other => other.map_err(|error| (port, error))?,
            };
            for responder in sockets {
                *last_token += 1;
                let event = EpollEvent::new(EpollFlags::EPOLLIN, *last_token);
                let added = self.shared.epoll.add(responder.socket(), event);
                added.map_err(|error| (port, error.into()))?;
                responders.insert(*last_token, responder);
                open.sockets.entry(port).or_default().push(*last_token);
            }
        }
        Ok(())
    }

    /// Closes all that is open in a space.
    pub(crate) fn close(&self, space: u32) {
        let mut state = self.shared.state();
        let open = state.spaces.remove(&space).unwrap_or_default();
        for token in open.sockets.values().flatten() {
            state.responders.remove(token);
        }
    }
}

/// What needs sockets for these ports to be served.
fn wanted(ports: &BTreeSet<Port>) -> impl Iterator<Item = Port> {
    let with_sockets = ports.iter().copied().filter(|(protocol, _)| *protocol != Protocol::Sctp);
    with_sockets.chain([SCTP])
}

impl Drop for Responders {
    fn drop(&mut self) {
        // The thread has no other way to fail than a panic, which was reported when it happened.
        if self.shared.stop.write(1).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

fn sockets((protocol, port): Port, families: Families, space: u32) -> io::Result<Vec<Responder>> {
    // One socket serves both families, but a raw one.
    let family = if families.contains(Family::V6) { Family::V6 } else { Family::V4 };
    Ok(match protocol {
        Protocol::Tcp => {
            let socket = bound(Type::STREAM, family, families, port)?;
            socket.listen(BACKLOG)?;
            vec![Responder::Tcp(socket)]
        }
        Protocol::Udp => {
            let socket = bound(Type::DGRAM, family, families, port)?;
            tell_destination(&socket, family)?;
            vec![Responder::Udp(socket)]
        }
        Protocol::Sctp => {
            let raw = |family| {
                let kind = Type::RAW.nonblocking();
                let protocol = i32::from(Protocol::Sctp.number()).into();
                let socket = Socket::new(domain(family), kind, Some(protocol))?;
                socket.attach_filter(&only_init(family))?;
                tell_destination(&socket, family)?;
                Ok(Responder::Sctp(socket, space))
            };
            families.iter().map(raw).collect::<io::Result<_>>()?
        }
    })
}

fn bound(kind: Type, family: Family, families: Families, port: u16) -> io::Result<Socket> {
    let socket = Socket::new(domain(family), kind.nonblocking(), None)?;
    let any: IpAddr = match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => {
            socket.set_only_v6(!families.contains(Family::V4))?;
            Ipv6Addr::UNSPECIFIED.into()
        }
    };
    if kind == Type::STREAM {
        // A port that was open before may still have closed connections.
        socket.set_reuse_address(true)?;
    }
    socket.bind(&SocketAddr::new(any, port).into())?;
    Ok(socket)
}

/// A classic BPF program that passes SCTP packets with an INIT. Raw sockets get every packet of
/// their protocol, and answers to the probes of the same host would fill the queue.
fn only_init(family: Family) -> Vec<SockFilter> {
    let op = |code: u32, if_true, if_false, k| SockFilter::new(code as u16, if_true, if_false, k);
    let chunk_type = 12;
    let mut program = match family {
        // Past the IP header, of which the low half of the first byte is the length.
        Family::V4 => vec![
            op(libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH, 0, 0, 0),
            op(libc::BPF_LD | libc::BPF_B | libc::BPF_IND, 0, 0, chunk_type),
        ],
        Family::V6 => vec![op(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, chunk_type)],
    };
    program.extend([
        op(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, sctp::INIT.into()),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
        op(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
    ]);
    program
}

/// Has the kernel tell for each packet to which address it came.
fn tell_destination(socket: &Socket, family: Family) -> nix::Result<()> {
    match family {
        Family::V4 => setsockopt(socket, sockopt::Ipv4PacketInfo, &true),
        Family::V6 => setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true),
    }
}

pub(crate) fn domain(family: Family) -> Domain {
    match family {
        Family::V4 => Domain::IPV4,
        Family::V6 => Domain::IPV6,
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self) {
        let mut events = [EpollEvent::empty(); 256];
        let mut buffers = Buffers::new();
        loop {
            let count = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(count) => count,
                Err(Errno::EINTR) => continue,
                Err(_) => return,
            };
            let mut state = self.state();
            for event in &events[..count] {
                if event.data() == STOP {
                    return;
                }
                self.answer(&mut state, event.data(), &mut buffers);
            }
        }
    }

    /// Answers all that wait at a socket. What fails concerns one peer only, who then hears
    /// nothing, which is what the probe will say.
    fn answer(&self, state: &mut State, token: u64, buffers: &mut Buffers) {
        let State { names, responders, spaces, last_token } = state;
        let line = |address: IpAddr| {
            let name = names.get(&address).map_or("", String::as_str);
            format!("{name}\n")
        };
        let mut accepted = Vec::new();
        match responders.get_mut(&token) {
            // It has been closed since.
            None => {}
            Some(Responder::Tcp(listener)) => {
                while let Ok((connection, _)) = listener.accept() {
                    accepted.push(connection);
                }
            }
            Some(Responder::Connection(connection)) => {
                let goes_on = connection.go_on(&mut buffers.bytes, line);
                if !goes_on {
                    responders.remove(&token);
                }
            }
            Some(Responder::Udp(socket)) => {
                while let Ok(datagram) = buffers.receive(socket) {
                    let _ = datagram.reply(socket, line(datagram.to).as_bytes());
                }
            }
            Some(Responder::Sctp(socket, space)) => {
                let open = spaces.get(space);
                let is_open = |port| open.is_some_and(|open| open.sctp_ports.contains(&port));
                while let Ok(datagram) = buffers.receive(socket) {
                    let bytes = without_ip_header(&buffers.bytes[..datagram.length], datagram.to);
                    let answer = sctp::Packet::from_bytes(bytes)
                        .and_then(|p| p.answer(is_open(p.destination_port)));
                    if let Some(answer) = answer {
                        let _ = datagram.reply(socket, &answer.to_bytes());
                    }
                }
            }
        }
        for socket in accepted {
            let mut connection = Connection { socket, heard: Vec::new(), answered: false };
            // What it has to say may be there already.
            if connection.socket.set_nonblocking(true).is_err()
                || !connection.go_on(&mut buffers.bytes, line)
            {
                continue;
            }
            *last_token += 1;
            let event = EpollEvent::new(EpollFlags::EPOLLIN, *last_token);
            if self.epoll.add(&connection.socket, event).is_ok() {
                responders.insert(*last_token, Responder::Connection(connection));
            }
        }
    }
}

impl Connection {
    /// Reads what has come, and answers once the question is complete. Then it waits for the client
    /// to close: to close first, with something unread, would take the answer back. False when it
    /// is over.
    fn go_on(&mut self, buffer: &mut [u8], line: impl Fn(IpAddr) -> String) -> bool {
        loop {
            let length = match (&self.socket).read(buffer) {
                Ok(0) => return false,
                Ok(length) => length,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return e.kind() == io::ErrorKind::WouldBlock,
            };
            if self.answered {
                continue;
            }
            self.heard.extend_from_slice(&buffer[..length]);
            let local = self.socket.local_addr().ok().and_then(|a| a.as_socket());
            let Some(local) = local else { return false };
            if let Some(reply) = reply(&self.heard, || line(local.ip().to_canonical())) {
                self.answered = true;
                self.heard = Vec::new();
                let sent = self.socket.send(&reply);
                if sent.is_err() || self.socket.shutdown(Shutdown::Write).is_err() {
                    return false;
                }
            }
        }
    }
}

/// The answer to a question over TCP, which is a line or an HTTP request; `None` while it is not
/// complete.
fn reply(heard: &[u8], line: impl Fn() -> String) -> Option<Vec<u8>> {
    let ends = |end: &[u8]| heard.windows(end.len()).any(|part| part == end);
    let too_long = heard.len() > LONGEST_QUESTION;
    let first = heard.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let is_http = first.windows(6).any(|part| part == b" HTTP/");
    let complete = if is_http { ends(b"\r\n\r\n") || ends(b"\n\n") } else { ends(b"\n") };
    if !complete && !too_long {
        return None;
    }
    let line = line();
    if !is_http {
        return Some(line.into_bytes());
    }
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        line.len()
    );
    let body = if heard.starts_with(b"HEAD ") { "" } else { &line };
    Some([head.as_bytes(), body.as_bytes()].concat())
}

impl Responder {
    fn socket(&self) -> &Socket {
        match self {
            Responder::Tcp(socket) | Responder::Udp(socket) | Responder::Sctp(socket, _) => socket,
            Responder::Connection(connection) => &connection.socket,
        }
    }
}

/// Raw IPv4 sockets give packets with their IP header, raw IPv6 sockets without.
pub(crate) fn without_ip_header(bytes: &[u8], address: IpAddr) -> &[u8] {
    match (address, bytes.first()) {
        (IpAddr::V4(_), Some(first)) => {
            bytes.get(usize::from(first & 0xf) * 4..).unwrap_or_default()
        }
        _ => bytes,
    }
}

/// Space to receive into.
struct Buffers {
    bytes: Vec<u8>,
    control: Vec<u8>,
}

/// Where a datagram came from and went to.
struct Datagram {
    length: usize,
    from: SockaddrStorage,
    to: IpAddr,
}

impl Buffers {
    fn new() -> Buffers {
        Buffers {
            bytes: vec![0; LARGEST],
            control: nix::cmsg_space!(libc::in_pktinfo, libc::in6_pktinfo),
        }
    }

    fn receive(&mut self, socket: &Socket) -> nix::Result<Datagram> {
        let mut bytes = [IoSliceMut::new(&mut self.bytes)];
        let message = recvmsg::<SockaddrStorage>(
            socket.as_raw_fd(),
            &mut bytes,
            Some(&mut self.control),
            MsgFlags::empty(),
        )?;
        let to = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                Some(Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes()).into())
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                Some(IpAddr::from(info.ipi6_addr.s6_addr).to_canonical())
            }
            _ => None,
        });
        match (message.address, to) {
            (Some(from), Some(to)) => Ok(Datagram { length: message.bytes, from, to }),
            _ => Err(Errno::EBADMSG),
        }
    }
}

impl Datagram {
    /// Answers from the address that was asked.
    fn reply(&self, socket: &Socket, bytes: &[u8]) -> nix::Result<usize> {
        let bytes = [IoSlice::new(bytes)];
        let send = |control| {
            let flags = MsgFlags::empty();
            sendmsg(socket.as_raw_fd(), &bytes, &[control], flags, Some(&self.from))
        };
        match (self.to, self.from.family()) {
            (IpAddr::V4(to), Some(nix::sys::socket::AddressFamily::Inet)) => {
                let address = |octets| libc::in_addr { s_addr: u32::from_ne_bytes(octets) };
                send(ControlMessage::Ipv4PacketInfo(&libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: address(to.octets()),
                    ipi_addr: address([0; 4]),
                }))
            }
            (to, _) => {
                let to = match to {
                    IpAddr::V4(to) => to.to_ipv6_mapped(),
                    IpAddr::V6(to) => to,
                };
                send(ControlMessage::Ipv6PacketInfo(&libc::in6_pktinfo {
                    ipi6_addr: libc::in6_addr { s6_addr: to.octets() },
                    ipi6_ifindex: 0,
                }))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(heard: &str) -> Option<String> {
        let reply = reply(heard.as_bytes(), || "shop/web\n".to_owned());
        reply.map(|reply| String::from_utf8(reply).unwrap())
    }

    #[test]
    fn a_line_is_answered_by_the_name() {
        assert_eq!(answer(""), None);
        assert_eq!(answer("who is"), None);
        assert_eq!(answer("who is there?\n").as_deref(), Some("shop/web\n"));
        assert_eq!(answer(&"x".repeat(LONGEST_QUESTION + 1)).as_deref(), Some("shop/web\n"));
    }

    #[test]
    fn an_http_request_is_answered_when_its_head_is_complete() {
        assert_eq!(answer("GET / HTTP/1.1\r\nHost: web\r\n"), None);
        let get = answer("GET / HTTP/1.1\r\nHost: web\r\n\r\n").unwrap();
        assert!(get.starts_with("HTTP/1.1 200 OK\r\n"), "{get}");
        assert!(get.contains("\r\nContent-Length: 9\r\n"), "{get}");
        assert!(get.ends_with("\r\n\r\nshop/web\n"), "{get}");
        let head = answer("HEAD / HTTP/1.0\r\n\r\n").unwrap();
        assert!(head.ends_with("\r\n\r\n"), "{head}");
    }
}
