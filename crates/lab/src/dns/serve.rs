//! The server: sockets, and a thread that waits at them.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use socket2::{Domain, Socket, Type};

use super::answer::{Transport, answer};
use super::zone::Zone;
use crate::Error;
use crate::probe::QUESTION;

/// A DNS server. It falls silent when it is dropped.
#[derive(Debug)]
pub struct DnsServer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    zone: Mutex<Arc<Zone>>,
    /// Who it says it is to the probes of the lab.
    name: String,
    stop: EventFd,
    /// Connections that are open, each with a thread.
    connections: AtomicUsize,
}

const PORT: u16 = 53;
const MOST_CONNECTIONS: usize = 64;
/// A connection on which nothing is asked does not stay longer.
const PATIENCE: Duration = Duration::from_secs(10);
const BACKLOG: i32 = 128;

impl DnsServer {
    /// Answers on port 53, UDP and TCP, of every address in the network namespace of the calling
    /// thread. The probes of the lab hear the name, as from any responder.
    pub fn start(zone: Zone, name: &str) -> Result<DnsServer, Error> {
        let failed = |source| Error::socket("answer DNS questions on port 53", source);
        let (udp, tcp) = bind().map_err(failed)?;
        let shared = Arc::new(Shared {
            zone: Mutex::new(Arc::new(zone)),
            name: format!("{name}\n"),
            stop: EventFd::new().map_err(|e| failed(e.into()))?,
            connections: AtomicUsize::new(0),
        });
        let serving = Arc::clone(&shared);
        let thread = thread::Builder::new().name("dns".to_owned());
        let thread = thread.spawn(move || serve(&serving, &udp, &tcp)).map_err(failed)?;
        Ok(DnsServer { shared, thread: Some(thread) })
    }

    /// Answers from these names from now on.
    pub fn set(&self, zone: Zone) {
        *self.shared.zone.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(zone);
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        if self.shared.stop.write(1).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn zone(&self) -> Arc<Zone> {
        Arc::clone(&self.zone.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// One socket serves both families, where there are both.
fn bind() -> io::Result<(UdpSocket, TcpListener)> {
    let v6 = bind_at(Domain::IPV6, SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), PORT));
    v6.or_else(|_| bind_at(Domain::IPV4, SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), PORT)))
}

fn bind_at(domain: Domain, at: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let open = |kind: Type| {
        let socket = Socket::new(domain, kind, None)?;
        if domain == Domain::IPV6 {
            socket.set_only_v6(false)?;
        }
        socket.set_reuse_address(kind == Type::STREAM)?;
        socket.bind(&at.into())?;
        io::Result::Ok(socket)
    };
    let (udp, tcp) = (open(Type::DGRAM)?, open(Type::STREAM)?);
    tcp.listen(BACKLOG)?;
    udp.set_nonblocking(true)?;
    tcp.set_nonblocking(true)?;
    Ok((udp.into(), tcp.into()))
}

/// Waits until it is told to stop. What fails concerns one asker only, who then hears nothing.
fn serve(shared: &Arc<Shared>, udp: &UdpSocket, tcp: &TcpListener) {
    let mut question = [0; 4096];
    loop {
        let wanted = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut waiting = [wanted(shared.stop.as_fd()), wanted(udp.as_fd()), wanted(tcp.as_fd())];
        match poll(&mut waiting, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            Err(_) => return,
            Ok(_) => {}
        }
        if waiting[0].any() == Some(true) {
            return;
        }
        while let Ok((length, asker)) = udp.recv_from(&mut question) {
            if question[..length] == *QUESTION {
                let _ = udp.send_to(shared.name.as_bytes(), asker);
            } else if let Some(answer) = answer(&shared.zone(), &question[..length], Transport::Udp)
            {
                let _ = udp.send_to(&answer, asker);
            }
        }
        while let Ok((connection, _)) = tcp.accept() {
            if shared.connections.fetch_add(1, Ordering::Relaxed) >= MOST_CONNECTIONS {
                shared.connections.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            let shared = Arc::clone(shared);
            thread::spawn(move || {
                let _ = converse(&shared, connection);
                shared.connections.fetch_sub(1, Ordering::Relaxed);
            });
        }
    }
}

/// Answers the questions of a connection, each of which has its length before it.
fn converse(shared: &Shared, mut connection: TcpStream) -> io::Result<()> {
    connection.set_nonblocking(false)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_write_timeout(Some(PATIENCE))?;
    loop {
        let mut length = [0; 2];
        connection.read_exact(&mut length)?;
        // No question for names is so long.
        if QUESTION.starts_with(&length) {
            return connection.write_all(shared.name.as_bytes());
        }
        let mut question = vec![0; u16::from_be_bytes(length).into()];
        connection.read_exact(&mut question)?;
        let Some(answer) = answer(&shared.zone(), &question, Transport::Tcp) else { return Ok(()) };
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        connection.write_all(&[&length.to_be_bytes(), &answer[..]].concat())?;
    }
}
