//! `ping`, with the messages and exit codes of BusyBox; the time to live of an answer is not told.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;
use portcullis_core::net::Family;
use socket2::{Socket, Type};

use super::complain;
use super::connect::{resolve, seconds, words};
use super::options::Options;
use crate::respond::domain;

const USAGE: &str = "Usage: ping [-c COUNT] [-i SEC] [-W SEC] [-w SEC] [-s SIZE] [-q46] HOST";
const DATA_BYTES: usize = 56;
const HEADER_BYTES: usize = 8;
const MOST_DATA_BYTES: usize = 65000;
/// How long an answer may take to a request after which none follows.
const LAST_WAIT: Duration = Duration::from_secs(10);

pub(super) fn run(arguments: &[String]) -> u8 {
    match ping(arguments) {
        Ok(answered) => u8::from(!answered),
        Err(wrong) => {
            complain(format!("ping: {wrong}"));
            1
        }
    }
}

/// Whether anything was answered.
fn ping(arguments: &[String]) -> Result<bool, String> {
    let options = Options::read(arguments, &["q", "4", "6", "n"], &["c", "i", "W", "w", "s"])?;
    let [host] = &*options.operands else { return Err(USAGE.to_owned()) };
    let bad = |text: &str| format!("invalid number '{text}'");
    let count: Option<u16> =
        options.value(&["c"]).map(|text| text.parse().map_err(|_| bad(text))).transpose()?;
    let size =
        options.value(&["s"]).map_or(Ok(DATA_BYTES), |text| text.parse().map_err(|_| bad(text)))?;
    let interval = options.value(&["i"]).map_or(Ok(Duration::from_secs(1)), seconds)?;
    let last_wait = options.value(&["W"]).map_or(Ok(LAST_WAIT), seconds)?;
    let end = options.value(&["w"]).map(seconds).transpose()?.map(|time| Instant::now() + time);
    let found = resolve(host, 0, None).map_err(|_| format!("bad address '{host}'"))?;
    let fits = |a: &&SocketAddr| {
        !(options.has(&["4"]) && a.is_ipv6() || options.has(&["6"]) && a.is_ipv4())
    };
    let to = found.iter().find(fits).ok_or_else(|| format!("bad address '{host}'"))?.ip();

    let quiet = options.has(&["q"]);
    say(&format!("PING {host} ({to}): {size} data bytes"));
    let in_words = |e: io::Error| words(&e);
    let socket = open(to).map_err(in_words)?;
    let mut times: Vec<Duration> = Vec::new();
    let mut sent: u16 = 0;
    while count.is_none_or(|count| sent < count) && end.is_none_or(|end| Instant::now() < end) {
        let start = Instant::now();
        let sequence = sent;
        socket.send(&request(to, sequence, size.min(MOST_DATA_BYTES))).map_err(in_words)?;
        sent = sent.wrapping_add(1);
        let is_last = count == Some(sent);
        let until = start + if is_last { last_wait } else { interval };
        let until = end.map_or(until, |end| end.min(until));
        if let Some(bytes) = answer(&socket, sequence, until).map_err(in_words)? {
            let time = start.elapsed();
            times.push(time);
            if !quiet {
                let time = milliseconds(time);
                say(&format!("{bytes} bytes from {to}: seq={sequence} time={time} ms"));
            }
            if !is_last {
                thread::sleep(until.saturating_duration_since(Instant::now()));
            }
        }
    }
    let received = times.len();
    let lost = 100 - received * 100 / usize::from(sent.max(1));
    say(&format!(
        "\n--- {host} ping statistics ---\n\
         {sent} packets transmitted, {received} packets received, {lost}% packet loss"
    ));
    if let (Some(least), Some(most)) = (times.iter().min(), times.iter().max()) {
        let average = times.iter().sum::<Duration>() / received as u32;
        let [least, average, most] = [*least, average, *most].map(milliseconds);
        say(&format!("round-trip min/avg/max = {least}/{average}/{most} ms"));
    }
    Ok(received > 0)
}

/// A socket for which the kernel fills in identifier and checksum, and sorts the answers.
fn open(to: IpAddr) -> io::Result<Socket> {
    let protocol = match to {
        IpAddr::V4(_) => libc::IPPROTO_ICMP,
        IpAddr::V6(_) => libc::IPPROTO_ICMPV6,
    };
    let socket = Socket::new(domain(Family::of(to)), Type::DGRAM, Some(protocol.into()))?;
    socket.connect(&SocketAddr::new(to, 0).into())?;
    Ok(socket)
}

fn request(to: IpAddr, sequence: u16, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_BYTES + size];
    bytes[0] = if to.is_ipv4() { 8 } else { 128 };
    bytes[6..8].copy_from_slice(&sequence.to_be_bytes());
    bytes
}

/// The bytes of the answer, if it comes in time. An error that came instead is none, as silence is.
fn answer(socket: &Socket, sequence: u16, until: Instant) -> io::Result<Option<usize>> {
    let mut bytes = vec![0; HEADER_BYTES + MOST_DATA_BYTES];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        socket.set_read_timeout(Some(left))?;
        let mut reading = socket;
        match reading.read(&mut bytes) {
            Ok(length) if bytes[6..8] == sequence.to_be_bytes() => return Ok(Some(length)),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(_) => thread::sleep(until.saturating_duration_since(Instant::now())),
        }
    }
}

fn milliseconds(time: Duration) -> String {
    format!("{:.3}", time.as_secs_f64() * 1000.0)
}

fn say(text: &str) {
    // Where nobody can read it, nothing is to be done.
    let _ = writeln!(io::stdout(), "{text}");
}
