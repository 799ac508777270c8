//! What `agnhost serve-hostname` and `agnhost netexec` serve: each port on threads of its own.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;
use std::{fs, process, thread};

use super::connect::{resolve, tcp, words};
use super::http::{Patience, Request, Url, ask};

/// What a page says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    code: u16,
    text: String,
}

/// A request, as far as the pages look at it.
#[derive(Debug)]
pub(super) struct Asked {
    path: String,
    query: Vec<(String, String)>,
    peer: SocketAddr,
}

const PATIENCE: Duration = Duration::from_secs(30);
/// Of the head of a request.
const LONGEST_HEAD: u64 = 64 * 1024;
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

impl Answer {
    pub(super) fn ok(text: String) -> Answer {
        Answer { code: 200, text }
    }
}

/// The name of this machine or pod.
pub(super) fn hostname() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim_end().to_owned()
}

/// Says the hostname to whoever connects.
pub(super) fn line(port: u16) -> io::Result<()> {
    accept(port, |mut stream, _| stream.write_all(hostname().as_bytes()))
}

/// Answers datagrams: with the hostname or, if they are commands, with what they ask for.
pub(super) fn datagrams(port: u16, commands: bool) -> io::Result<()> {
    let socket = UdpSocket::bind(&everywhere(port)[..])?;
    thread::spawn(move || {
        let mut bytes = [0; 4096];
        loop {
            // What concerns one asker is no reason to stop.
            let Ok((length, peer)) = socket.recv_from(&mut bytes) else { continue };
            let text = String::from_utf8_lossy(&bytes[..length]).trim().to_owned();
            let answer = match text.split_once(' ').map_or((text.as_str(), ""), |split| split) {
                _ if !commands => hostname(),
                ("hostname" | "hostName", _) => hostname(),
                ("echo", rest) => rest.to_owned(),
                ("clientip", _) => plain(peer).to_string(),
                _ => continue,
            };
            let _ = socket.send_to(answer.as_bytes(), peer);
        }
    });
    Ok(())
}

/// Serves pages.
pub(super) fn http(
    port: u16,
    page: impl Fn(&Asked) -> Answer + Send + Sync + 'static,
) -> io::Result<()> {
    accept(port, move |stream, peer| {
        let mut reader = BufReader::new(stream.try_clone()?).take(LONGEST_HEAD);
        let mut first = String::new();
        reader.read_line(&mut first)?;
        let mut header = String::new();
        while reader.read_line(&mut header)? > 2 {
            header.clear();
        }
        let mut words = first.split_whitespace();
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or("/"));
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let asked = Asked { path: path.to_owned(), query: pairs(query), peer: plain(peer) };
        let answer = page(&asked);
        let mut stream = stream;
        write!(
            stream,
            "HTTP/1.1 {} {}\r\nContent-Type: text/plain; charset=utf-8\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n",
            answer.code,
            reason(answer.code),
            answer.text.len(),
        )?;
        if method != "HEAD" {
            stream.write_all(answer.text.as_bytes())?;
        }
        stream.flush()
    })
}

/// The pages of `netexec`.
pub(super) fn netexec(asked: &Asked) -> Answer {
    let value = |name: &str| {
        let found = asked.query.iter().find(|(key, _)| key == name);
        found.map_or("", |(_, value)| value.as_str())
    };
    match asked.path.as_str() {
        "/hostname" | "/hostName" => Answer::ok(hostname()),
        "/clientip" => Answer::ok(asked.peer.to_string()),
        "/healthz" => Answer::ok(String::new()),
        "/echo" => {
            let code = if value("code").is_empty() { Ok(200) } else { value("code").parse() };
            match code {
                Ok(code) => Answer { code, text: value("msg").to_owned() },
                Err(_) => Answer::ok(format!(
                    "argument 'code' must be an integer or empty, got \"{}\"\n",
                    value("code")
                )),
            }
        }
        "/dial" => {
            dial(value("host"), value("port"), value("request"), value("protocol"), value("tries"))
        }
        "/exit" | "/shutdown" => process::exit(value("code").parse().unwrap_or(0)),
        "/" => Answer::ok(format!("NOW: {:?}", std::time::SystemTime::now())),
        _ => Answer { code: 404, text: "404 page not found\n".to_owned() },
    }
}

/// Asks somebody else, and tells what came of it as JSON.
fn dial(host: &str, port: &str, request: &str, protocol: &str, tries: &str) -> Answer {
    let bad = |text: &str| Answer { code: 400, text: format!("{text}\n") };
    let (Ok(port), Ok(tries)) =
        (port.parse(), if tries.is_empty() { Ok(1) } else { tries.parse::<u16>() })
    else {
        return bad("host, port or tries parameter is invalid");
    };
    if request.is_empty() {
        return bad("request parameter not specified");
    }
    let once: fn(&str, u16, &str) -> io::Result<String> =
        match protocol.to_ascii_lowercase().as_str() {
            "" | "http" => dial_http,
            "udp" => dial_udp,
            _ => return bad(&format!("unsupported protocol. {protocol}")),
        };
    let (mut responses, mut errors) = (Vec::new(), Vec::new());
    for _ in 0..tries {
        match once(host, port, request) {
            Ok(response) => responses.push(quoted(&response)),
            Err(error) => errors.push(quoted(&words(&error))),
        }
    }
    let list = |name: &str, texts: &[String]| {
        (!texts.is_empty()).then(|| format!("\"{name}\":[{}]", texts.join(",")))
    };
    let lists: Vec<String> =
        [list("errors", &errors), list("responses", &responses)].into_iter().flatten().collect();
    Answer::ok(format!("{{{}}}", lists.join(",")))
}

fn dial_http(host: &str, port: u16, request: &str) -> io::Result<String> {
    let deadline = std::time::Instant::now() + DIAL_TIMEOUT;
    let failed = |_| io::Error::other(format!("cannot connect to {host} port {port}"));
    let addresses = resolve(host, port, Some(deadline)).map_err(failed)?;
    let stream = tcp(&addresses, Some(deadline)).map_err(failed)?;
    let path = format!("/{}", request.trim_start_matches('/'));
    let url = Url { scheme: "http".to_owned(), host: host.to_owned(), port, path };
    let request = Request { method: "GET".to_owned(), agent: "agnhost", ..Request::default() };
    let mut response = ask(stream, &url, &request, Patience::Until(deadline))?;
    let mut text = String::new();
    response.read_to_string(&mut text)?;
    Ok(text)
}

fn dial_udp(host: &str, port: u16, request: &str) -> io::Result<String> {
    let addresses = resolve(host, port, None).map_err(|_| io::Error::other("no such host"))?;
    let any: IpAddr = if addresses[0].is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(addresses[0])?;
    socket.set_read_timeout(Some(DIAL_TIMEOUT))?;
    socket.send(request.as_bytes())?;
    let mut bytes = [0; 2048];
    let length = socket.recv(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes[..length]).into_owned())
}

/// A text in JSON.
fn quoted(text: &str) -> String {
    let escaped = text.chars().map(|c| match c {
        '"' => "\\\"".to_owned(),
        '\\' => "\\\\".to_owned(),
        c if u32::from(c) < 0x20 => format!("\\u{:04x}", u32::from(c)),
        c => c.to_string(),
    });
    format!("\"{}\"", escaped.collect::<String>())
}

/// The pairs of a query, decoded.
fn pairs(query: &str) -> Vec<(String, String)> {
    let decode = |text: &str| {
        let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
        while let Some((first, after)) = rest.split_first() {
            let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
            match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
                Some(byte) if *first == b'%' => {
                    bytes.push(byte);
                    rest = &after[2..];
                }
                _ => {
                    bytes.push(if *first == b'+' { b' ' } else { *first });
                    rest = after;
                }
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(k, v)| (decode(k), decode(v)))
        .collect()
}

fn reason(code: u16) -> &'static str {
    match code {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        _ => "Status",
    }
}

/// An IPv4 address as such, although an IPv6 socket got it.
fn plain(peer: SocketAddr) -> SocketAddr {
    SocketAddr::new(peer.ip().to_canonical(), peer.port())
}

/// The IPv6 address hears both families, where there are both.
fn everywhere(port: u16) -> [SocketAddr; 2] {
    let v6: IpAddr = Ipv6Addr::UNSPECIFIED.into();
    [v6, Ipv4Addr::UNSPECIFIED.into()].map(|ip| SocketAddr::new(ip, port))
}

/// Serves each connection on a thread.
fn accept(
    port: u16,
    serve: impl Fn(TcpStream, SocketAddr) -> io::Result<()> + Send + Sync + 'static,
) -> io::Result<()> {
    let listener = TcpListener::bind(&everywhere(port)[..])?;
    let serve = Arc::new(serve);
    thread::spawn(move || {
        loop {
            let Ok((stream, peer)) = listener.accept() else { continue };
            let serve = Arc::clone(&serve);
            thread::spawn(move || {
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                serve(stream, peer)
            });
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(target: &str) -> Answer {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let peer = plain("[::ffff:10.244.1.5]:40000".parse().unwrap());
        netexec(&Asked { path: path.to_owned(), query: pairs(query), peer })
    }

    #[test]
    fn netexec_says_what_it_is_asked_for() {
        assert_eq!(page("/clientip"), Answer::ok("10.244.1.5:40000".to_owned()));
        assert_eq!(page("/echo?msg=a%20b+c%"), Answer::ok("a b c%".to_owned()));
        assert_eq!(page("/echo?code=503&msg=no"), Answer { code: 503, text: "no".to_owned() });
        assert_eq!(page("/hostName"), Answer::ok(hostname()));
        assert_eq!(page("/nothing").code, 404);
        assert_eq!(page("/dial?host=web&port=80").code, 400);
        assert_eq!(page("/dial?host=web&port=x&request=hostname").code, 400);
    }

    #[test]
    fn a_text_in_json_is_quoted() {
        assert_eq!(quoted("a\"b\\c\n"), r#""a\"b\\c\u000a""#);
    }
}
