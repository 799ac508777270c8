//! Responders: who answers the probes, on every address of the lab.
//!
//! One thread serves them all, since a socket stays in the namespace in which it was made. Nothing
//! here ever waits for a peer, so there is nothing to be asynchronous about.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
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

/// The responders of a lab. They fall silent when it is dropped.
#[derive(Debug)]
pub(crate) struct Responders {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// The sockets of each port, and those of [`SCTP`].
    open: BTreeMap<(Protocol, u16), Vec<u64>>,
    next_token: u64,
}

#[derive(Debug)]
struct Shared {
    epoll: Epoll,
    stop: EventFd,
    names: Arc<Names>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    responders: FxHashMap<u64, Responder>,
    sctp_ports: BTreeSet<u16>,
}

#[derive(Debug)]
enum Responder {
    Tcp(Socket),
    Udp(Socket),
    Sctp(Socket),
}

/// All SCTP ports are served by the same raw sockets, one per family.
const SCTP: (Protocol, u16) = (Protocol::Sctp, 0);
/// The token of [`Shared::stop`].
const STOP: u64 = 0;
/// Connections that may wait to be accepted: as many as the kernel's own default allows.
const BACKLOG: i32 = 4096;
/// A probe's question and an SCTP INIT are far smaller.
const LARGEST: usize = 2048;

impl Responders {
    pub(crate) fn start(names: Arc<Names>) -> io::Result<Responders> {
        let shared = Arc::new(Shared {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            stop: EventFd::new()?,
            names,
            state: Mutex::default(),
        });
        shared.epoll.add(&shared.stop, EpollEvent::new(EpollFlags::EPOLLIN, STOP))?;
        let serving = Arc::clone(&shared);
        let thread =
            thread::Builder::new().name("responders".to_owned()).spawn(move || serving.serve())?;
        Ok(Responders { shared, thread: Some(thread), open: BTreeMap::new(), next_token: STOP + 1 })
    }

    /// Closes what is open and not among these ports.
    pub(crate) fn close_others(&mut self, ports: &BTreeSet<(Protocol, u16)>) {
        let mut state = self.shared.state();
        self.open.retain(|port, tokens| {
            let stays = *port == SCTP || ports.contains(port);
            if !stays {
                tokens.iter().for_each(|token| drop(state.responders.remove(token)));
            }
            stays
        });
    }

    /// What needs sockets yet; how many per namespace tells [`sockets_for`]. The raw sockets for
    /// SCTP are needed always: they say that a port is closed, too.
    pub(crate) fn missing(&self, ports: &BTreeSet<(Protocol, u16)>) -> BTreeSet<(Protocol, u16)> {
        let with_sockets = ports.iter().copied().filter(|(p, _)| *p != Protocol::Sctp);
        with_sockets.chain([SCTP]).filter(|key| !self.open.contains_key(key)).collect()
    }

    /// Opens the sockets of one of [`Responders::missing`] in the namespace of the calling thread.
    pub(crate) fn open(&mut self, key: (Protocol, u16), families: Families) -> io::Result<()> {
        for responder in sockets(key, families)? {
            let token = self.next_token;
            self.next_token += 1;
            let mut state = self.shared.state();
            let event = EpollEvent::new(EpollFlags::EPOLLIN, token);
            self.shared.epoll.add(responder.socket(), event)?;
            state.responders.insert(token, responder);
            self.open.entry(key).or_default().push(token);
        }
        Ok(())
    }

    /// Answers on these SCTP ports from now on.
    pub(crate) fn set_sctp(&self, ports: &BTreeSet<(Protocol, u16)>) {
        let sctp = ports.iter().filter(|(p, _)| *p == Protocol::Sctp).map(|(_, port)| *port);
        self.shared.state().sctp_ports = sctp.collect();
    }
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

/// How many sockets in each namespace the key needs.
pub(crate) fn sockets_for(key: (Protocol, u16), families: Families) -> usize {
    if key == SCTP { families.iter().count() } else { 1 }
}

fn sockets((protocol, port): (Protocol, u16), families: Families) -> io::Result<Vec<Responder>> {
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
                Ok(Responder::Sctp(socket))
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
            let state = self.state();
            for event in &events[..count] {
                if event.data() == STOP {
                    return;
                }
                // It may have been closed since.
                if let Some(responder) = state.responders.get(&event.data()) {
                    self.answer(responder, &state.sctp_ports, &mut buffers);
                }
            }
        }
    }

    /// Answers all that wait at a socket. What fails concerns one peer only, who then hears
    /// nothing, which is what the probe will say.
    fn answer(&self, responder: &Responder, sctp_ports: &BTreeSet<u16>, buffers: &mut Buffers) {
        match responder {
            Responder::Tcp(listener) => {
                while let Ok((connection, _)) = listener.accept() {
                    let local = connection.local_addr().ok().and_then(|a| a.as_socket());
                    if let Some(local) = local {
                        let _ = connection.send(self.line(local.ip().to_canonical()).as_bytes());
                    }
                }
            }
            Responder::Udp(socket) => {
                while let Ok(datagram) = buffers.receive(socket) {
                    let _ = datagram.reply(socket, self.line(datagram.to).as_bytes());
                }
            }
            Responder::Sctp(socket) => {
                while let Ok(datagram) = buffers.receive(socket) {
                    let bytes = without_ip_header(&buffers.bytes[..datagram.length], datagram.to);
                    let answer = sctp::Packet::from_bytes(bytes)
                        .and_then(|p| p.answer(sctp_ports.contains(&p.destination_port)));
                    if let Some(answer) = answer {
                        let _ = datagram.reply(socket, &answer.to_bytes());
                    }
                }
            }
        }
    }

    fn line(&self, address: IpAddr) -> String {
        let name = self.names.get(&address).map_or("", String::as_str);
        format!("{name}\n")
    }
}

impl Responder {
    fn socket(&self) -> &Socket {
        match self {
            Responder::Tcp(socket) | Responder::Udp(socket) | Responder::Sctp(socket) => socket,
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
