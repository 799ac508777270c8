//! Names to addresses, and addresses to connections, in limited time.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// Why there is no connection.
#[derive(Debug)]
pub(super) enum Failure {
    /// The name has no address; the resolver's words.
    Name(io::Error),
    /// Nothing answered in time; with the address, if it was known.
    TimedOut(Option<SocketAddr>),
    /// The last address that was tried refused.
    Refused(SocketAddr),
    /// Something else came of the last address that was tried.
    Other(SocketAddr, io::Error),
}

/// When something has to be done; `None` for whenever the kernel gives up.
pub(super) type Deadline = Option<Instant>;

/// The time until then, or nothing if it is over.
pub(super) fn left(deadline: Deadline) -> Result<Option<Duration>, Failure> {
    let Some(deadline) = deadline else { return Ok(None) };
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(Failure::TimedOut(None)) } else { Ok(Some(left)) }
}

/// A deadline so many seconds from now, as it is written in an option: `2`, `0.5`. The error is for
/// people.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("invalid number '{text}'"))?;
    Duration::try_from_secs_f64(seconds).map_err(|_| format!("invalid number '{text}'"))
}

/// The addresses of a host. The resolver has its own idea of time, and is left behind if it takes
/// too long.
pub(super) fn resolve(
    host: &str,
    port: u16,
    deadline: Deadline,
) -> Result<Vec<SocketAddr>, Failure> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let (done, result) = mpsc::channel();
    let name = host.to_owned();
    thread::spawn(move || {
        let found = (name.as_str(), port).to_socket_addrs().map(Iterator::collect::<Vec<_>>);
        // Nobody waits any more if it was too late.
        let _ = done.send(found);
    });
    let found = match left(deadline)? {
        Some(left) => result.recv_timeout(left).map_err(|_| Failure::TimedOut(None))?,
        None => result.recv().unwrap_or_else(|e| Err(io::Error::other(e))),
    };
    match found {
        Ok(addresses) if addresses.is_empty() => Err(Failure::Name(io::ErrorKind::NotFound.into())),
        Ok(addresses) => Ok(addresses),
        Err(e) => Err(Failure::Name(e)),
    }
}

/// A TCP connection to the first of the addresses that gives one.
pub(super) fn tcp(addresses: &[SocketAddr], deadline: Deadline) -> Result<TcpStream, Failure> {
    let mut failure = Failure::TimedOut(None);
    for address in addresses {
        let connected = match left(deadline) {
            Ok(Some(left)) => TcpStream::connect_timeout(address, left),
            Ok(None) => TcpStream::connect(address),
            Err(_) => return Err(Failure::TimedOut(Some(*address))),
        };
        failure = match connected {
            Ok(stream) => return Ok(stream),
            Err(e) => why(*address, e),
        };
    }
    Err(failure)
}

/// What an error of a socket means.
pub(super) fn why(address: SocketAddr, error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Failure::TimedOut(Some(address)),
        io::ErrorKind::ConnectionRefused => Failure::Refused(address),
        _ => Failure::Other(address, error),
    }
}

/// What the kernel says about an error, without its number.
pub(super) fn words(error: &io::Error) -> String {
    let text = error.to_string();
    text.split_once(" (os error").map_or(text.clone(), |(words, _)| words.to_owned())
}
