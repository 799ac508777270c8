//! `nslookup`: asks the server of `/etc/resolv.conf`, with its search domains, and says what came.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use domain::base::iana::{Rcode, Rtype};
use domain::base::{Message, MessageBuilder, Name, RecordData};
use domain::rdata::AllRecordData;

use super::complain;
use super::connect::{resolve, seconds};
use super::options::Options;

const VALUED: [&str; 7] = ["type", "query", "querytype", "q", "timeout", "port", "retry"];
const USAGE: &str = "Usage: nslookup [-type=TYPE] [-timeout=SEC] NAME [SERVER]";
const PORT: u16 = 53;
const TIMEOUT: Duration = Duration::from_secs(5);
const TRIES: usize = 2;

pub(super) fn run(arguments: &[String]) -> u8 {
    match look_up(arguments) {
        Ok(()) => 0,
        Err(wrong) => {
            complain(wrong);
            1
        }
    }
}

/// What `/etc/resolv.conf` says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Settings {
    servers: Vec<IpAddr>,
    search: Vec<String>,
    ndots: usize,
}

impl Settings {
    fn read(text: &str) -> Settings {
        let mut settings = Settings { ndots: 1, ..Settings::default() };
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    settings.servers.extend(words.filter_map(|w| w.parse::<IpAddr>().ok()))
                }
                Some("search" | "domain") => settings.search = words.map(str::to_owned).collect(),
                Some("options") => {
                    let mut ndots = words.filter_map(|w| w.strip_prefix("ndots:")?.parse().ok());
                    settings.ndots = ndots.next_back().unwrap_or(settings.ndots);
                }
                _ => {}
            }
        }
        settings
    }

    /// The names that a name may stand for, in the order in which they are tried.
    fn names(&self, name: &str) -> Vec<String> {
        if let Some(whole) = name.strip_suffix('.') {
            return vec![whole.to_owned()];
        }
        let searched = self.search.iter().map(|domain| format!("{name}.{domain}"));
        let whole = std::iter::once(name.to_owned());
        if name.matches('.').count() >= self.ndots {
            whole.chain(searched).collect()
        } else {
            searched.chain(whole).collect()
        }
    }
}

fn look_up(arguments: &[String]) -> Result<(), String> {
    let options = Options::read(arguments, &["debug"], &VALUED)?;
    let (name, server) = match &*options.operands {
        [name] => (name, None),
        [name, server] => (name, Some(server)),
        _ => return Err(USAGE.to_owned()),
    };
    let timeout = options.value(&["timeout"]).map_or(Ok(TIMEOUT), seconds)?;
    let port = options.value(&["port"]).map_or(Ok(PORT), str::parse);
    let port = port.map_err(|e| format!("nslookup: bad port: {e}"))?;
    // A file that is not there says nothing.
    let settings = Settings::read(&fs::read_to_string("/etc/resolv.conf").unwrap_or_default());
    let server = match server {
        Some(server) => {
            let found = resolve(server, port, None).ok().and_then(|found| found.first().copied());
            found.ok_or_else(|| format!("nslookup: couldn't get address for '{server}'"))?
        }
        None => {
            let first =
                settings.servers.first().ok_or("nslookup: no nameserver in /etc/resolv.conf")?;
            SocketAddr::new(*first, port)
        }
    };
    let (names, types) = match name.parse::<IpAddr>() {
        Ok(address) => {
            let name = Name::<Vec<u8>>::reverse_from_addr(address);
            let name = name.map_err(|e| format!("nslookup: {e}"))?;
            (vec![name.to_string()], vec![Rtype::PTR])
        }
        Err(_) => (settings.names(name), vec![Rtype::A, Rtype::AAAA]),
    };
    let types = match options.value(&["type", "query", "querytype", "q"]) {
        Some(text) => {
            let wanted = text.to_ascii_uppercase().parse::<Rtype>();
            vec![wanted.map_err(|_| format!("nslookup: unknown query type: {text}"))?]
        }
        None => types,
    };
    println(&format!("Server:\t\t{}\nAddress:\t{server}\n", server.ip()));
    let mut refusal = Rcode::NXDOMAIN;
    for name in &names {
        let mut found = false;
        for rtype in &types {
            let (rcode, lines) = ask(server, name, *rtype, timeout)
                .map_err(|_| ";; connection timed out; no servers could be reached".to_owned())?;
            found |= rcode == Rcode::NOERROR;
            if rcode != Rcode::NOERROR {
                refusal = rcode;
            }
            lines.iter().for_each(|line| println(line));
        }
        if found {
            return Ok(());
        }
    }
    Err(format!("** server can't find {}: {refusal}", names.first().unwrap_or(name)))
}

fn println(text: &str) {
    // Where nobody can read it, nothing is to be done.
    let _ = io::Write::write_all(&mut io::stdout(), format!("{text}\n").as_bytes());
}

/// The code of the answer, and its records in words.
fn ask(
    server: SocketAddr,
    name: &str,
    rtype: Rtype,
    timeout: Duration,
) -> io::Result<(Rcode, Vec<String>)> {
    let question = Name::vec_from_str(name).map_err(io::Error::other)?;
    let mut builder = MessageBuilder::new_vec();
    // Who sends for us is told apart by its socket; that is enough here.
    builder.header_mut().set_id(std::process::id() as u16);
    builder.header_mut().set_rd(true);
    let mut builder = builder.question();
    builder.push((&question, rtype)).map_err(io::Error::other)?;
    let asked = builder.into_message();

    let any: IpAddr = if server.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(server)?;
    let mut bytes = [0; 4096];
    for _ in 0..TRIES {
        socket.send(asked.as_slice())?;
        let until = Instant::now() + timeout;
        while let left = until.saturating_duration_since(Instant::now())
            && !left.is_zero()
        {
            socket.set_read_timeout(Some(left))?;
            let length = match socket.recv(&mut bytes) {
                Ok(length) => length,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(e),
            };
            let Ok(answer) = Message::from_octets(&bytes[..length]) else { continue };
            if answer.is_answer(&asked) {
                let records = answer.answer().map_err(io::Error::other)?;
                let records = records.limit_to::<AllRecordData<_, _>>().flatten();
                let lines = records.map(|record| line(&record.owner().to_string(), record.data()));
                return Ok((answer.header().rcode(), lines.collect()));
            }
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

fn line<O: AsRef<[u8]>, N: std::fmt::Display>(owner: &str, data: &AllRecordData<O, N>) -> String {
    match data {
        AllRecordData::A(a) => format!("Name:\t{owner}\nAddress: {}\n", a.addr()),
        AllRecordData::Aaaa(a) => format!("Name:\t{owner}\nAddress: {}\n", a.addr()),
        AllRecordData::Cname(other) => format!("{owner}\tcanonical name = {}", other.cname()),
        AllRecordData::Ptr(other) => format!("{owner}\tname = {}", other.ptrdname()),
        AllRecordData::Srv(srv) => format!(
            "{owner}\tservice = {} {} {} {}",
            srv.priority(),
            srv.weight(),
            srv.port(),
            srv.target()
        ),
        other => format!("{owner}\t{:?}", other.rtype()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_tried_in_the_order_of_resolv_conf() {
        let server = "10.96.0.10".parse().unwrap();
        let settings = Settings::read(&crate::dns::resolv_conf("shop", server));
        assert_eq!(settings.servers, [server]);
        assert_eq!(
            settings.names("web"),
            ["web.shop.svc.cluster.local", "web.svc.cluster.local", "web.cluster.local", "web"]
        );
        assert_eq!(settings.names("web.shop.svc.cluster.local."), ["web.shop.svc.cluster.local"]);
        assert_eq!(settings.names("a.b.c.d.e.f")[0], "a.b.c.d.e.f");
    }
}
