//! Probes: one socket each, so that the kernel sorts the answers.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::SockaddrStorage;
use portcullis_core::net::{Family, Protocol, Traffic};
use rustc_hash::FxHashMap;
use socket2::{Socket, Type};

use crate::lab::{Room, file_limit};
use crate::respond::{Names, domain, without_ip_header};
use crate::{Error, sctp};

/// One connection to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// Who opens it, as an index into the endpoints of the plan.
    pub source: usize,
    /// From which of its addresses.
    pub from: IpAddr,
    /// To which address.
    pub to: IpAddr,
    /// On what: a port, or an ICMP echo.
    pub traffic: Traffic,
    /// Whether an answer is expected. Silence is then taken at once where none is, and tried again
    /// where one is, or where it is not known.
    pub expect: Option<bool>,
}

/// What came of a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered, by the endpoint of this name. TCP and UDP responders say their name, so
    /// that it is whoever really got the packet; SCTP and ICMP answers tell their address.
    Answered(String),
    /// The packet arrived at a host where nothing listens, and was refused: TCP RST, ICMP port
    /// unreachable, SCTP ABORT.
    Refused,
    /// Nothing came back, however often it was tried.
    Silent,
    /// The kernel said at once, or by an ICMP error, that it cannot be done: the error number.
    Error(i32),
}

/// What a responder is asked over TCP and UDP.
pub(crate) const QUESTION: &[u8] = b"who is there?\n";
/// How long silence lasts at least before it is believed, in each of the tries.
const PATIENCE: [Duration; 3] =
    [Duration::from_millis(150), Duration::from_millis(400), Duration::from_millis(1200)];
/// If answers take longer than usual, silence does too: so many times the slowest answer.
const SLOWEST_TIMES: u32 = 4;
/// But never longer than this.
const LONGEST_PATIENCE: Duration = Duration::from_secs(2);
/// The most probes in flight in a first try; later tries have a quarter, to go easy on a machine
/// that lost packets.
const IN_FLIGHT: usize = 8000;
/// Answers are read after so many sends, before their queues run over.
const SENDS_AT_ONCE: usize = 64;
/// Open files left for others.
const SPARE_FILES: usize = 128;
/// Source ports in use.
const SOURCE_PORTS: std::ops::RangeInclusive<u16> = 16384..=65535;

/// What tells a probe from every other one of its lab.
#[derive(Debug, Default)]
pub(crate) struct Fresh {
    /// For each address the source port that it uses next. Every probe has a fresh one: connection
    /// tracking in the nodes must take none for the continuation of an earlier one.
    ports: BTreeMap<IpAddr, u16>,
    /// The last SCTP verification tag. A port is not enough there: until it is bound, a raw socket
    /// gets what comes to any address of its host, each of which uses the same ports.
    tag: u32,
}

/// Sends all probes and collects what comes of them. The calling thread is moved from one of the
/// namespaces to another; `room_of` says which is whose. `settled` is told how many more probes
/// have their outcome.
pub(crate) fn run(
    probes: &[Probe],
    names: &Names,
    fresh: &mut Fresh,
    rooms: &[Room],
    room_of: &[usize],
    mut settled: impl FnMut(usize),
) -> Result<Vec<Outcome>, Error> {
    let epoll =
        Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(|e| Error::socket("poll", e))?;
    let mut prober = Prober {
        probes,
        names,
        fresh,
        epoll,
        flights: FxHashMap::default(),
        outcomes: vec![None; probes.len()],
        slowest: Duration::ZERO,
        latest: Instant::now(),
    };
    let mut pending: Vec<usize> = (0..probes.len()).collect();
    // One namespace after the other, and else in the order given.
    pending.sort_by_key(|index| room_of.get(probes[*index].source));
    let mut known = 0;
    for (attempt, patience) in PATIENCE.into_iter().enumerate() {
        let in_flight = room_for_probes() / if attempt == 0 { 1 } else { 4 };
        for chunk in pending.chunks(in_flight.max(1)) {
            prober.launch(chunk, rooms, room_of)?;
            prober.listen(patience)?;
            let open = prober.flights.len();
            prober.flights.clear();
            if attempt == 0 {
                settled(chunk.len() - open);
                known += chunk.len() - open;
            }
        }
        pending.retain(|index| {
            prober.outcomes[*index].is_none() && probes[*index].expect != Some(false)
        });
        if pending.is_empty() {
            break;
        }
    }
    settled(probes.len() - known);
    Ok(prober.outcomes.into_iter().map(|o| o.unwrap_or(Outcome::Silent)).collect())
}

/// How many probes may be in flight: an answered one has two sockets, one at each end.
fn room_for_probes() -> usize {
    let open = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    let limit = file_limit();
    (limit.saturating_sub(open + SPARE_FILES) / 2).min(IN_FLIGHT)
}

struct Prober<'a> {
    probes: &'a [Probe],
    names: &'a Names,
    fresh: &'a mut Fresh,
    epoll: Epoll,
    /// The probes that are under way, by their index.
    flights: FxHashMap<usize, Flight>,
    outcomes: Vec<Option<Outcome>>,
    /// How long the slowest answer so far took.
    slowest: Duration,
    /// When something was last sent or heard.
    latest: Instant,
}

struct Flight {
    socket: Socket,
    port: u16,
    /// The verification tag of an answer over SCTP.
    tag: u32,
    sent: Instant,
    /// Whether the question has been put; over TCP that comes once it is connected.
    asked: bool,
}

impl Prober<'_> {
    /// Sends the probes, which are sorted by their namespace.
    fn launch(&mut self, chunk: &[usize], rooms: &[Room], room_of: &[usize]) -> Result<(), Error> {
        let mut here = None;
        for (count, &index) in chunk.iter().enumerate() {
            let probe = &self.probes[index];
            let Some(room) = room_of.get(probe.source).and_then(|room| rooms.get(*room)) else {
                self.outcomes[index] = Some(Outcome::Error(Errno::ENODEV as i32));
                continue;
            };
            if here != Some(probe.source) {
                room.namespace.enter()?;
                here = Some(probe.source);
            }
            let next_port = self.fresh.ports.entry(probe.from).or_insert(*SOURCE_PORTS.start());
            // In an INIT only 0 is not allowed.
            self.fresh.tag = self.fresh.tag.wrapping_add(1).max(1);
            let tag = self.fresh.tag;
            let sent = Instant::now();
            match send(probe, next_port, tag) {
                Ok((socket, port)) => {
                    let asked = !matches!(probe.traffic, Traffic::Port(Protocol::Tcp, _));
                    let wait = if asked { EpollFlags::EPOLLIN } else { EpollFlags::EPOLLOUT };
                    let event = EpollEvent::new(wait, index as u64);
                    self.epoll.add(&socket, event).map_err(|e| Error::socket("poll", e))?;
                    self.flights.insert(index, Flight { socket, port, tag, sent, asked });
                }
                Err(e) => self.outcomes[index] = Some(outcome_of(&e)),
            }
            self.latest = sent;
            if count % SENDS_AT_ONCE == SENDS_AT_ONCE - 1 {
                self.hear(Duration::ZERO)?;
            }
        }
        Ok(())
    }

    /// Waits until all are answered, or silence has lasted.
    fn listen(&mut self, patience: Duration) -> Result<(), Error> {
        while !self.flights.is_empty() {
            let patience = patience.max(self.slowest * SLOWEST_TIMES).min(LONGEST_PATIENCE);
            let left = patience.saturating_sub(self.latest.elapsed());
            if left.is_zero() {
                break;
            }
            self.hear(left)?;
        }
        Ok(())
    }

    /// Reads the answers that have come, or come within the time.
    fn hear(&mut self, wait: Duration) -> Result<(), Error> {
        let wait = wait.as_micros().div_ceil(1000);
        let timeout = EpollTimeout::try_from(wait).unwrap_or(EpollTimeout::MAX);
        let mut events = [EpollEvent::empty(); 512];
        let count = match self.epoll.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(e) => return Err(Error::socket("poll", e)),
        };
        for event in &events[..count] {
            let index = event.data() as usize;
            let Some(flight) = self.flights.get_mut(&index) else { continue };
            if !flight.asked && event.events() == EpollFlags::EPOLLOUT {
                flight.asked = true;
                let mut event = EpollEvent::new(EpollFlags::EPOLLIN, event.data());
                let changed = self.epoll.modify(&flight.socket, &mut event);
                changed.map_err(|e| Error::socket("poll", e))?;
                // If it cannot be sent, reading says why.
                let _ = flight.socket.send(QUESTION);
            }
            if let Some(outcome) = hear(&self.probes[index], flight, self.names) {
                self.latest = Instant::now();
                self.slowest = self.slowest.max(self.latest - flight.sent);
                self.outcomes[index] = Some(outcome);
                // Its socket closes with it.
                self.flights.remove(&index);
            }
        }
        Ok(())
    }
}

/// Makes the socket of a probe in the namespace of the calling thread, and sends its first packet.
/// Returns the source port, which for ICMP is the identifier.
fn send(probe: &Probe, next_port: &mut u16, tag: u32) -> io::Result<(Socket, u16)> {
    let family = Family::of(probe.to);
    let (kind, protocol, destination_port) = match probe.traffic {
        Traffic::Port(Protocol::Tcp, port) => (Type::STREAM, 0, port),
        Traffic::Port(Protocol::Udp, port) => (Type::DGRAM, 0, port),
        Traffic::Port(Protocol::Sctp, port) => (Type::RAW, Protocol::Sctp.number().into(), port),
        Traffic::Other if family == Family::V4 => (Type::DGRAM, libc::IPPROTO_ICMP, 0),
        Traffic::Other => (Type::DGRAM, libc::IPPROTO_ICMPV6, 0),
    };
    let raw = kind == Type::RAW;
    let socket = Socket::new(domain(family), kind.nonblocking(), Some(protocol.into()))?;
    let port = loop {
        let port = *next_port;
        *next_port = if port == *SOURCE_PORTS.end() { *SOURCE_PORTS.start() } else { port + 1 };
        // Between two equal ports of one host TCP would connect the socket with itself.
        if port == destination_port {
            continue;
        }
        match socket.bind(&SocketAddr::new(probe.from, if raw { 0 } else { port }).into()) {
            // A responder listens there.
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => {}
            other => break other.map(|()| port)?,
        }
    };
    if kind == Type::STREAM {
        // Closing then is a RST: no state stays behind at either end.
        socket.set_linger(Some(Duration::ZERO))?;
    }
    let to = SocketAddr::new(probe.to, if raw { 0 } else { destination_port });
    match socket.connect(&to.into()) {
        Err(e) if e.raw_os_error() != Some(Errno::EINPROGRESS as i32) => return Err(e),
        _ => {}
    }
    match probe.traffic {
        Traffic::Port(Protocol::Tcp, _) => {}
        Traffic::Port(Protocol::Udp, _) => _ = socket.send(QUESTION)?,
        Traffic::Port(Protocol::Sctp, _) => {
            socket.send(&sctp_init(port, destination_port, tag))?;
        }
        // The kernel fills in the identifier and the checksum.
        Traffic::Other => _ = socket.send(&[echo_request(family), 0, 0, 0, 0, 0, 0, 1])?,
    }
    Ok((socket, port))
}

fn sctp_init(source_port: u16, destination_port: u16, tag: u32) -> Vec<u8> {
    let chunk = sctp::Chunk::Init { tag };
    sctp::Packet { source_port, destination_port, tag: 0, chunk }.to_bytes()
}

fn echo_request(family: Family) -> u8 {
    match family {
        Family::V4 => 8,
        Family::V6 => 128,
    }
}

/// What the socket has to say; `None` if nothing yet that is for this probe.
fn hear(probe: &Probe, flight: &Flight, names: &Names) -> Option<Outcome> {
    let mut buffer = [0; 1024];
    let is_sctp = matches!(probe.traffic, Traffic::Port(Protocol::Sctp, _));
    let name = |address: IpAddr| names.get(&address).cloned().unwrap_or(address.to_string());
    loop {
        let (bytes, sender) = match receive(&flight.socket, &mut buffer) {
            Ok((length, sender)) => (&buffer[..length], sender.unwrap_or(probe.to)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return None,
            // No raw socket of the destination had room for some packet. Raw sockets get such an
            // error whatever its ports, so it may be about another probe, and says nothing here.
            Err(e) if is_sctp && unheard(&e) => continue,
            Err(e) => return Some(outcome_of(&e)),
        };
        match probe.traffic {
            Traffic::Port(Protocol::Tcp | Protocol::Udp, _) => {
                return Some(Outcome::Answered(String::from_utf8_lossy(bytes).trim().to_owned()));
            }
            // A ping socket takes the replies of anybody, although it is connected.
            Traffic::Other => return Some(Outcome::Answered(name(sender))),
            Traffic::Port(Protocol::Sctp, port) => {
                let packet = sctp::Packet::from_bytes(without_ip_header(bytes, probe.to));
                let ours = packet.filter(|p| {
                    p.source_port == port
                        && p.destination_port == flight.port
                        && p.tag == flight.tag
                });
                match ours.map(|p| p.chunk) {
                    Some(sctp::Chunk::Abort { by_responder: true }) => {
                        return Some(Outcome::Refused);
                    }
                    // An ABORT of the destination's kernel came beside the answer: it arrived.
                    Some(_) => return Some(Outcome::Answered(name(probe.to))),
                    None => {}
                }
            }
        }
    }
}

/// Reads a packet, and whose it is; TCP does not say.
fn receive(socket: &Socket, buffer: &mut [u8]) -> io::Result<(usize, Option<IpAddr>)> {
    let (length, sender) =
        nix::sys::socket::recvfrom::<SockaddrStorage>(socket.as_raw_fd(), buffer)?;
    let v4 = |sender: &SockaddrStorage| Some(sender.as_sockaddr_in()?.ip().into());
    let v6 = |sender: &SockaddrStorage| Some(sender.as_sockaddr_in6()?.ip().into());
    Ok((length, sender.and_then(|sender| v4(&sender).or_else(|| v6(&sender)))))
}

/// ICMP protocol unreachable, in IPv4 and in IPv6.
fn unheard(error: &io::Error) -> bool {
    [Errno::ENOPROTOOPT, Errno::EPROTO].map(|e| Some(e as i32)).contains(&error.raw_os_error())
}

fn outcome_of(error: &io::Error) -> Outcome {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ECONNREFUSED | Errno::ECONNRESET) => Outcome::Refused,
        other => Outcome::Error(other.map_or(0, |e| e as i32)),
    }
}
