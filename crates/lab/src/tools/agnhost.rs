//! `/agnhost`, as far as tests of networks use it: `connect`, `serve-hostname`, `netexec` and
//! `pause`, with the flags, messages and exit codes of the Kubernetes test image of that name.

use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use socket2::{Socket, Type};

use super::connect::{Failure, resolve, tcp, words};
use super::options::Options;
use super::{complain, server};
use crate::respond::{domain, without_ip_header};
use crate::sctp;
use portcullis_core::net::{Family, Protocol};

const USAGE: &str = "Usage: agnhost connect HOST:PORT [--timeout=DURATION] [--protocol=tcp|udp|sctp]\n       \
     agnhost serve-hostname [--tcp] [--udp] [--http=false] [--port=9376]\n       \
     agnhost netexec [--http-port=8080] [--udp-port=8081]\n       \
     agnhost pause";

pub(super) fn run(arguments: &[String]) -> u8 {
    let Some((command, arguments)) = arguments.split_first() else {
        complain(USAGE);
        return 1;
    };
    let done = match command.as_str() {
        "connect" => connect(arguments),
        "serve-hostname" => serve_hostname(arguments),
        "netexec" => netexec(arguments),
        "pause" => pause(),
        other => Err(format!("Error: unknown command \"{other}\" for \"app\"\n{USAGE}")),
    };
    match done {
        Ok(()) => 0,
        Err(wrong) => {
            complain(wrong);
            1
        }
    }
}

/// The error is what has to be said, with the prefix that tests look for.
fn connect(arguments: &[String]) -> Result<(), String> {
    let unknown = |wrong: String| format!("UNKNOWN: {wrong}");
    let options = Options::read(arguments, &[], &["timeout", "protocol", "udp-data", "sctp-data"])
        .map_err(unknown)?;
    let [to] = &*options.operands else { return Err(unknown(USAGE.to_owned())) };
    let (host, port) = host_and_port(to).map_err(unknown)?;
    let timeout =
        options.value(&["timeout"]).map_or(Ok(Duration::ZERO), duration).map_err(unknown)?;
    // No time at all stands for no limit.
    let timeout = Some(timeout).filter(|timeout| !timeout.is_zero());
    let addresses = match resolve(&host, port, None) {
        Ok(addresses) => addresses,
        Err(Failure::Name(error)) => return Err(format!("DNS: {}", words(&error))),
        Err(_) => return Err("DNS: no answer".to_owned()),
    };
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    let result = match options.value(&["protocol"]).unwrap_or("tcp") {
        "" | "tcp" => tcp(&addresses, deadline).map(drop),
        "udp" => {
            let data = options.value(&["udp-data"]).unwrap_or("hostname");
            udp(addresses[0], timeout, data).map_err(|e| super::connect::why(addresses[0], e))
        }
        "sctp" => sctp(addresses[0], deadline).map_err(|e| super::connect::why(addresses[0], e)),
        other => return Err(format!("Unsupported protocol\n{other}")),
    };
    result.map_err(|failure| match failure {
        Failure::TimedOut(_) => "TIMEOUT".to_owned(),
        Failure::Refused(_) => "REFUSED".to_owned(),
        Failure::Other(at, error) => format!("OTHER: {at}: {}", words(&error)),
        Failure::Name(error) => format!("DNS: {}", words(&error)),
    })
}

/// Sends a line and waits for any answer.
fn udp(to: SocketAddr, timeout: Option<Duration>, data: &str) -> io::Result<()> {
    let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(timeout)?;
    socket.send(format!("{data}\n").as_bytes())?;
    match socket.recv(&mut [0; 1024])? {
        0 => Err(io::Error::other("No data received from the server")),
        _ => Ok(()),
    }
}

/// The first packets of an association, as raw packets: many kernels have no SCTP sockets.
fn sctp(to: SocketAddr, deadline: Option<Instant>) -> io::Result<()> {
    const AGAIN: Duration = Duration::from_secs(1);
    let family = Family::of(to.ip());
    let kind = Some(i32::from(Protocol::Sctp.number()).into());
    let socket = Socket::new(domain(family), Type::RAW, kind)?;
    socket.connect(&SocketAddr::new(to.ip(), 0).into())?;
    // Two processes of one pod are told apart by their numbers.
    let unique = std::process::id();
    let source_port = 32768 + (unique % 28000) as u16;
    let tag = unique.max(1);
    let init = sctp::Packet {
        source_port,
        destination_port: to.port(),
        tag: 0,
        chunk: sctp::Chunk::Init { tag },
    };
    let mut sent: Option<Instant> = None;
    loop {
        let now = Instant::now();
        if deadline.is_some_and(|deadline| deadline <= now) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        if sent.is_none_or(|sent| sent + AGAIN <= now) {
            socket.send(&init.to_bytes())?;
            sent = Some(now);
        }
        let next = sent.map_or(now, |sent| sent + AGAIN);
        let next = deadline.map_or(next, |deadline| deadline.min(next));
        let wait = next.saturating_duration_since(now).max(Duration::from_millis(1));
        socket.set_read_timeout(Some(wait))?;
        let mut bytes = [0; 2048];
        let mut reading = &socket;
        let length = match reading.read(&mut bytes) {
            Ok(length) => length,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
            // Of some other packet: a raw socket hears of all of them.
            Err(e)
                if [Errno::ENOPROTOOPT, Errno::EPROTO]
                    .iter()
                    .any(|n| e.raw_os_error() == Some(*n as i32)) =>
            {
                continue;
            }
            Err(e) => return Err(e),
        };
        let packet = sctp::Packet::from_bytes(without_ip_header(&bytes[..length], to.ip()));
        let ours = packet.filter(|packet| {
            packet.source_port == to.port()
                && packet.destination_port == source_port
                && packet.tag == tag
        });
        match ours.map(|packet| packet.chunk) {
            Some(sctp::Chunk::InitAck { .. }) => return Ok(()),
            Some(sctp::Chunk::Abort { by_responder: true }) => {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            // A kernel that does not know of the responder sends others of its own.
            _ => {}
        }
    }
}

fn serve_hostname(arguments: &[String]) -> Result<(), String> {
    let options = Options::read(arguments, &["tcp", "udp", "http", "close"], &["port"])?;
    let on = |name: &[&str], default| match options.value(name) {
        None => default,
        Some(value) => !["false", "0", "f"].contains(&value),
    };
    let (tcp, udp, http) = (on(&["tcp"], false), on(&["udp"], false), on(&["http"], true));
    if http && (tcp || udp) {
        return Err("Can't server TCP/UDP mode and HTTP mode at the same time".to_owned());
    }
    let port = number(&options, "port")?.unwrap_or(9376);
    let serve = |e: io::Error| format!("cannot serve on port {port}: {}", words(&e));
    if tcp {
        server::line(port).map_err(serve)?;
    }
    if udp {
        server::datagrams(port, false).map_err(serve)?;
    }
    if http {
        server::http(port, |_| server::Answer::ok(server::hostname())).map_err(serve)?;
    }
    complain(format!("Serving on port {port}."));
    pause()
}

fn netexec(arguments: &[String]) -> Result<(), String> {
    let options = Options::read(
        arguments,
        &[],
        &["http-port", "udp-port", "sctp-port", "udp-listen-addresses"],
    )?;
    let udp_port = if options.value(&["udp-port"]) == Some("-1") {
        None
    } else {
        Some(number(&options, "udp-port")?.unwrap_or(8081))
    };
    if options.value(&["sctp-port"]).is_some_and(|port| port != "-1") {
        return Err(
            "an SCTP port is served by the pod itself: declare it as a containerPort".to_owned()
        );
    }
    let http_port = number(&options, "http-port")?.unwrap_or(8080);
    if let Some(port) = udp_port {
        let serve = |e: io::Error| format!("cannot serve on UDP port {port}: {}", words(&e));
        server::datagrams(port, true).map_err(serve)?;
    }
    let serve = |e: io::Error| format!("cannot serve on port {http_port}: {}", words(&e));
    server::http(http_port, server::netexec).map_err(serve)?;
    complain(format!("Started HTTP server on port {http_port}"));
    pause()
}

/// Until it is ended.
fn pause() -> Result<(), String> {
    loop {
        thread::park();
    }
}

fn number(options: &Options, name: &str) -> Result<Option<u16>, String> {
    let wrong = |text: &str| format!("invalid argument \"{text}\" for \"--{name}\" flag");
    options.value(&[name]).map(|text| text.parse().map_err(|_| wrong(text))).transpose()
}

/// `host:port`, `10.0.0.1:80`, `[fd00::1]:80`.
fn host_and_port(text: &str) -> Result<(String, u16), String> {
    let (host, port) =
        text.rsplit_once(':').ok_or_else(|| format!("address {text}: missing port in address"))?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    if bare.is_none() && host.contains(':') {
        return Err(format!("address {text}: too many colons in address"));
    }
    let port = port.parse().map_err(|_| format!("address {port}: invalid port"))?;
    Ok((bare.unwrap_or(host).to_owned(), port))
}

/// A duration as Go writes it: `300ms`, `1s`, `1m30s`, `0`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("time: invalid duration \"{text}\"");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut total = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let amount: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        total += amount
            * match &rest[..unit] {
                "ns" => 1e-9,
                "us" | "µs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return Err(wrong()),
            };
        rest = &rest[unit..];
    }
    if text.is_empty() {
        return Err(wrong());
    }
    Duration::try_from_secs_f64(total).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_go() {
        let read = |text| duration(text).map(|d| d.as_millis());
        assert_eq!(read("300ms"), Ok(300));
        assert_eq!(read("1s"), Ok(1000));
        assert_eq!(read("1m30s"), Ok(90_000));
        assert_eq!(read("1.5h"), Ok(5_400_000));
        assert_eq!(read("0"), Ok(0));
        for text in ["", "3", "s", "3 s", "-1s", "1x"] {
            assert_eq!(read(text), Err(format!("time: invalid duration \"{text}\"")));
        }
    }

    #[test]
    fn an_address_has_a_port() {
        assert_eq!(host_and_port("web:80"), Ok(("web".to_owned(), 80)));
        assert_eq!(host_and_port("[fd00::1]:80"), Ok(("fd00::1".to_owned(), 80)));
        for text in ["web", "fd00::1:80", "web:http", "web:70000"] {
            assert!(host_and_port(text).is_err(), "{text}");
        }
    }
}
