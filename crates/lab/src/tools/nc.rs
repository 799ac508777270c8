//! `nc`, with the messages and exit codes of BusyBox.

use std::io::{self, Read, Write};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket,
};
use std::thread;
use std::time::{Duration, Instant};

use super::complain;
use super::connect::{Deadline, Failure, resolve, seconds, tcp, why, words};
use super::options::Options;

const FLAGS: [&str; 9] = ["z", "v", "u", "l", "n", "k", "N", "4", "6"];
const VALUED: [&str; 6] = ["w", "p", "q", "i", "s", "W"];
const USAGE: &str =
    "Usage: nc [-zvunN46] [-w SEC] HOST PORT\n       nc -l [-ukv] [-w SEC] [-p] PORT";
/// How long a UDP port that says nothing has to say that it is closed.
const UDP_WAIT: Duration = Duration::from_secs(1);
const LARGEST: usize = 65536;

pub(super) fn run(arguments: &[String]) -> u8 {
    let done = Options::read(arguments, &FLAGS, &VALUED)
        .map_err(|wrong| format!("{wrong}\n{USAGE}"))
        .and_then(|options| if options.has(&["l"]) { listen(&options) } else { connect(&options) });
    match done {
        Ok(()) => 0,
        Err(wrong) => {
            complain(format!("nc: {wrong}"));
            1
        }
    }
}

fn connect(options: &Options) -> Result<(), String> {
    let [host, ports] = &*options.operands else { return Err(USAGE.to_owned()) };
    let timeout = options.value(&["w"]).map(seconds).transpose()?;
    let (first, last) = match ports.split_once('-') {
        Some((first, last)) if options.has(&["z"]) => (port(first)?, port(last)?),
        _ => (port(ports)?, port(ports)?),
    };
    let mut failed = None;
    for number in first..=last {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let connected = connect_to(host, number, options, deadline, timeout);
        if let Err(failure) = connected {
            failed = Some(describe(host, &failure));
            if first != last {
                complain(format!("nc: {}", describe(host, &failure)));
            }
        }
    }
    match failed {
        // Of several ports, one that is open will do.
        Some(_) if first != last => Err("not all of the ports are open".to_owned()),
        Some(failed) => Err(failed),
        None => Ok(()),
    }
}

fn port(text: &str) -> Result<u16, String> {
    text.parse().map_err(|_| format!("bad port '{text}'"))
}

fn connect_to(
    host: &str,
    port: u16,
    options: &Options,
    deadline: Deadline,
    timeout: Option<Duration>,
) -> Result<(), Failure> {
    let mut addresses = resolve(host, port, deadline)?;
    addresses
        .retain(|a| !(options.has(&["4"]) && a.is_ipv6() || options.has(&["6"]) && a.is_ipv4()));
    let open = |at: &SocketAddr| {
        if options.has(&["v"]) {
            complain(format!("{host} ({at}) open"));
        }
    };
    if options.has(&["u"]) {
        let at = *addresses.first().ok_or(Failure::TimedOut(None))?;
        let error = |e| why(at, e);
        let socket = UdpSocket::bind((any(at.ip()), 0)).map_err(error)?;
        socket.connect(at).map_err(error)?;
        if options.has(&["z"]) {
            // Nobody has to answer, but a closed port says that it is.
            socket.send(&[0]).map_err(error)?;
            socket.set_read_timeout(Some(timeout.unwrap_or(UDP_WAIT))).map_err(error)?;
            match socket.recv(&mut [0; 1]) {
                Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => return Err(error(e)),
                _ => open(&at),
            }
            return Ok(());
        }
        open(&at);
        let sending = socket.try_clone().map_err(error)?;
        thread::spawn(move || copy(&mut io::stdin(), |bytes| sending.send(bytes).map(drop)));
        socket.set_read_timeout(timeout).map_err(error)?;
        return hear(|bytes| socket.recv(bytes), true).map_err(error);
    }
    let stream = tcp(&addresses, deadline)?;
    let at = stream
        .peer_addr()
        .map_err(|e| why(SocketAddr::new(any(Ipv4Addr::UNSPECIFIED.into()), port), e))?;
    open(&at);
    if options.has(&["z"]) {
        return Ok(());
    }
    converse(&stream, timeout).map_err(|e| why(at, e))
}

fn listen(options: &Options) -> Result<(), String> {
    let number = options.value(&["p"]).or(options.operands.last().map(String::as_str));
    let number = port(number.ok_or(USAGE)?)?;
    let timeout = options.value(&["w"]).map(seconds).transpose()?;
    let in_words = |e: io::Error| words(&e);
    let at = |ip: IpAddr| SocketAddr::new(ip, number);
    let (v4, v6) = (at(Ipv4Addr::UNSPECIFIED.into()), at(Ipv6Addr::UNSPECIFIED.into()));
    // The IPv6 one hears both families.
    let addresses = if options.has(&["4"]) { vec![v4] } else { vec![v6, v4] };
    let tell = |text: String| {
        if options.has(&["v"]) {
            complain(text)
        }
    };
    if options.has(&["u"]) {
        let socket = UdpSocket::bind(&*addresses).map_err(in_words)?;
        tell(format!("listening on {} ...", socket.local_addr().map_err(in_words)?));
        let mut first = vec![0; LARGEST];
        let (length, peer) = socket.recv_from(&mut first).map_err(in_words)?;
        socket.connect(peer).map_err(in_words)?;
        print(&first[..length]).map_err(in_words)?;
        let sending = socket.try_clone().map_err(in_words)?;
        thread::spawn(move || copy(&mut io::stdin(), |bytes| sending.send(bytes).map(drop)));
        socket.set_read_timeout(timeout).map_err(in_words)?;
        return hear(|bytes| socket.recv(bytes), true).map_err(in_words);
    }
    let listener = TcpListener::bind(&*addresses).map_err(in_words)?;
    tell(format!("listening on {} ...", listener.local_addr().map_err(in_words)?));
    loop {
        let (stream, peer) = listener.accept().map_err(in_words)?;
        tell(format!("connect to {} from {peer}", listener.local_addr().map_err(in_words)?));
        converse(&stream, timeout).map_err(in_words)?;
        if !options.has(&["k"]) {
            return Ok(());
        }
    }
}

/// Sends what is read, until its end, and writes what comes, until its end or until nothing has come
/// for so long.
fn converse(stream: &TcpStream, timeout: Option<Duration>) -> io::Result<()> {
    let sending = stream.try_clone()?;
    thread::spawn(move || {
        let mut out = &sending;
        copy(&mut io::stdin(), |bytes| out.write_all(bytes));
        let _ = sending.shutdown(Shutdown::Write);
    });
    stream.set_read_timeout(timeout)?;
    let mut stream = stream;
    hear(|bytes| stream.read(bytes), false)
}

/// Writes what comes. An empty datagram is no end.
fn hear(
    mut receive: impl FnMut(&mut [u8]) -> io::Result<usize>,
    datagrams: bool,
) -> io::Result<()> {
    let mut bytes = vec![0; LARGEST];
    loop {
        match receive(&mut bytes) {
            Ok(0) if !datagrams => return Ok(()),
            Ok(length) => print(&bytes[..length])?,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(e) => return Err(e),
        }
    }
}

fn copy(from: &mut impl Read, mut send: impl FnMut(&[u8]) -> io::Result<()>) {
    let mut bytes = vec![0; 16384];
    while let Ok(length @ 1..) = from.read(&mut bytes) {
        if send(&bytes[..length]).is_err() {
            break;
        }
    }
}

fn print(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

fn any(family_of: IpAddr) -> IpAddr {
    match family_of {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn describe(host: &str, failure: &Failure) -> String {
    match failure {
        Failure::Name(_) => format!("bad address '{host}'"),
        Failure::TimedOut(None) => format!("{host}: Operation timed out"),
        Failure::TimedOut(Some(at)) => format!("{host} ({at}): Operation timed out"),
        Failure::Refused(at) => format!("{host} ({at}): Connection refused"),
        Failure::Other(at, error) => format!("{host} ({at}): {}", words(error)),
    }
}
