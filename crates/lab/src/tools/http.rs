//! As much of HTTP/1.1 as a download needs: one request on one connection.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Where to, from `http://host:port/path`; the scheme may be missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Url {
    pub(super) scheme: String,
    /// Without the brackets of an IPv6 address.
    pub(super) host: String,
    pub(super) port: u16,
    /// From the slash on.
    pub(super) path: String,
}

impl Url {
    /// The error says what is wrong.
    pub(super) fn read(text: &str) -> Result<Url, String> {
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        let (authority, path) = match rest.find(['/', '?']) {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let bad = || format!("bad address '{authority}'");
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or_else(bad)?;
                (host, port.strip_prefix(':'))
            }
            None => match authority.rsplit_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        let port = port.filter(|port| !port.is_empty()).map_or(Ok(80), str::parse);
        if host.is_empty() {
            return Err(bad());
        }
        Ok(Url {
            scheme: scheme.to_ascii_lowercase(),
            host: host.to_owned(),
            port: port.map_err(|_| bad())?,
            path: if path.starts_with('/') { path.to_owned() } else { format!("/{path}") },
        })
    }

    /// The same place as a server's `Location` says.
    pub(super) fn follow(&self, location: &str) -> Result<Url, String> {
        if location.starts_with('/') {
            return Ok(Url { path: location.to_owned(), ..self.clone() });
        }
        Url::read(location)
    }

    /// Host and port as a `Host` header has them.
    pub(super) fn authority(&self) -> String {
        let host =
            if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.port == 80 { host } else { format!("{host}:{}", self.port) }
    }
}

/// What is asked.
#[derive(Debug, Clone, Default)]
pub(super) struct Request {
    pub(super) method: String,
    pub(super) agent: &'static str,
    /// Further headers, whole lines.
    pub(super) headers: Vec<String>,
    pub(super) body: Option<String>,
}

/// How long a read may take.
#[derive(Debug, Clone, Copy)]
pub(super) enum Patience {
    /// Each of them.
    Idle(Duration),
    /// All of them together.
    Until(Instant),
    /// For ever.
    Endless,
}

/// The beginning of an answer; the body can be read from it.
pub(super) struct Response {
    /// `HTTP/1.1 200 OK`.
    pub(super) status: String,
    pub(super) code: u16,
    /// The lines after the status, up to the empty one.
    pub(super) headers: Vec<String>,
    body: Body,
    stream: BufReader<Timed>,
}

/// How it is known where the body ends.
#[derive(Debug, Clone, Copy)]
enum Body {
    /// After so many bytes.
    Length(u64),
    /// After the last chunk; so many bytes of the one that is being read are left.
    Chunks(u64),
    /// With the connection.
    Close,
}

struct Timed(TcpStream, Patience);

impl Read for Timed {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let limit = match self.1 {
            Patience::Idle(time) => Some(time),
            Patience::Until(then) => {
                let left = then.saturating_duration_since(Instant::now());
                Some(left)
                    .filter(|left| !left.is_zero())
                    .ok_or(io::ErrorKind::TimedOut)
                    .map(Some)?
            }
            Patience::Endless => None,
        };
        self.0.set_read_timeout(limit)?;
        match self.0.read(bytes) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Err(io::ErrorKind::TimedOut.into()),
            other => other,
        }
    }
}

/// A header of a server that does not end would fill the memory.
const LONGEST_LINE: u64 = 64 * 1024;
const MOST_HEADERS: usize = 256;

/// Sends the request and reads the answer up to its body. An error of the kind `UnexpectedEof` is no
/// answer at all, `InvalidData` one that is not HTTP.
pub(super) fn ask(
    stream: TcpStream,
    url: &Url,
    request: &Request,
    patience: Patience,
) -> io::Result<Response> {
    let mut text =
        format!("{} {} HTTP/1.1\r\nHost: {}\r\n", request.method, url.path, url.authority());
    text += &format!("User-Agent: {}\r\nAccept: */*\r\nConnection: close\r\n", request.agent);
    request.headers.iter().for_each(|header| text += &format!("{header}\r\n"));
    if let Some(body) = &request.body {
        text += &format!("Content-Length: {}\r\n", body.len());
    }
    text += "\r\n";
    text += request.body.as_deref().unwrap_or_default();
    let mut sending = &stream;
    sending.write_all(text.as_bytes())?;

    let mut stream = BufReader::new(Timed(stream, patience));
    let status = line(&mut stream)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    let invalid = || io::Error::new(io::ErrorKind::InvalidData, status.clone());
    let code = status.strip_prefix("HTTP/").and_then(|rest| rest.split(' ').nth(1));
    let code = code.and_then(|code| code.parse().ok()).ok_or_else(invalid)?;
    let mut headers = Vec::new();
    while let Some(header) = line(&mut stream)?.filter(|header| !header.is_empty()) {
        headers.push(header);
        if headers.len() > MOST_HEADERS {
            return Err(invalid());
        }
    }
    let mut response = Response { status, code, headers, body: Body::Close, stream };
    let chunked = response.header("transfer-encoding").is_some_and(|v| v.ends_with("chunked"));
    let length = response.header("content-length").and_then(|length| length.parse().ok());
    response.body = match (request.method == "HEAD", chunked, length) {
        (true, ..) => Body::Length(0),
        (_, true, _) => Body::Chunks(0),
        (_, _, Some(length)) => Body::Length(length),
        _ if code == 204 || code == 304 => Body::Length(0),
        _ => Body::Close,
    };
    Ok(response)
}

/// A line without its end; `None` where the connection has ended.
fn line(stream: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut bytes = Vec::new();
    stream.take(LONGEST_LINE).read_until(b'\n', &mut bytes)?;
    if bytes.is_empty() {
        return Ok(None);
    }
    Ok(Some(String::from_utf8_lossy(&bytes).trim_end_matches(['\r', '\n']).to_owned()))
}

impl Response {
    /// The value of a header, by its name in small letters.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find_map(|header| {
            let (found, value) = header.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

impl Read for Response {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let ended = |count| match count {
            0 => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
            _ => Ok(count),
        };
        match self.body {
            Body::Close => self.stream.read(bytes),
            Body::Length(0) => Ok(0),
            Body::Length(left) => {
                let count = ended((&mut self.stream).take(left).read(bytes)?)?;
                self.body = Body::Length(left - count as u64);
                Ok(count)
            }
            Body::Chunks(0) => {
                let size = line(&mut self.stream)?.ok_or(io::ErrorKind::UnexpectedEof)?;
                let size = size.split(';').next().unwrap_or_default().trim();
                let size = u64::from_str_radix(size, 16);
                let size = size.map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
                self.body = if size == 0 { Body::Length(0) } else { Body::Chunks(size) };
                self.read(bytes)
            }
            Body::Chunks(left) => {
                let count = ended((&mut self.stream).take(left).read(bytes)?)?;
                self.body = Body::Chunks(left - count as u64);
                if left == count as u64 {
                    // The end of the line after a chunk.
                    line(&mut self.stream)?;
                }
                Ok(count)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    #[test]
    fn a_url_is_read_as_people_write_it() {
        let read = |text: &str| {
            let url = Url::read(text).unwrap();
            (url.scheme, url.host, url.port, url.path)
        };
        let is = |scheme: &str, host: &str, port, path: &str| {
            (scheme.to_owned(), host.to_owned(), port, path.to_owned())
        };
        assert_eq!(read("web"), is("http", "web", 80, "/"));
        assert_eq!(read("http://web.shop:8080"), is("http", "web.shop", 8080, "/"));
        assert_eq!(read("web:80/a/b?c"), is("http", "web", 80, "/a/b?c"));
        assert_eq!(read("web?c"), is("http", "web", 80, "/?c"));
        assert_eq!(read("HTTPS://[fd00::1]:443/x"), is("https", "fd00::1", 443, "/x"));
        for text in ["", "http://", "web:x", "[fd00::1", ":80"] {
            assert!(Url::read(text).is_err(), "{text}");
        }
        assert_eq!(Url::read("[fd00::1]:81").unwrap().authority(), "[fd00::1]:81");
        assert_eq!(Url::read("web").unwrap().authority(), "web");
    }

    /// What is read from a server that says this.
    fn get(said: &'static str) -> io::Result<(u16, String)> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = BufReader::new(stream.try_clone().unwrap());
            while line(&mut asked).unwrap().is_some_and(|line| !line.is_empty()) {}
            stream.write_all(said.as_bytes()).unwrap();
        });
        let url = Url::read("http://web/").unwrap();
        let request = Request { method: "GET".to_owned(), ..Request::default() };
        let patience = Patience::Idle(Duration::from_secs(10));
        let stream = TcpStream::connect(address).unwrap();
        let response = ask(stream, &url, &request, patience);
        server.join().unwrap();
        let mut response = response?;
        let mut body = String::new();
        response.read_to_string(&mut body)?;
        Ok((response.code, body))
    }

    #[test]
    fn a_body_ends_where_its_headers_say() {
        let ok = "HTTP/1.1 200 OK\r\n";
        let body = |rest: &str| get(String::leak(format!("{ok}{rest}"))).unwrap();
        assert_eq!(body("Content-Length: 3\r\n\r\nabcdef"), (200, "abc".to_owned()));
        assert_eq!(body("\r\nabcdef"), (200, "abcdef".to_owned()));
        let chunks = "transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2;x\r\nde\r\n0\r\n\r\n";
        assert_eq!(body(chunks), (200, "abcde".to_owned()));
    }

    #[test]
    fn what_is_cut_short_or_is_not_http_is_an_error() {
        let kind = |said| get(said).unwrap_err().kind();
        assert_eq!(
            kind("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"),
            io::ErrorKind::UnexpectedEof
        );
        assert_eq!(
            kind("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nz\r\n"),
            io::ErrorKind::InvalidData
        );
        assert_eq!(kind(""), io::ErrorKind::UnexpectedEof);
        assert_eq!(kind("shop/web\n"), io::ErrorKind::InvalidData);
    }
}
