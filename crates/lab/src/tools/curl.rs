//! `curl`, with its messages and exit codes.

use std::fs::File;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use super::complain;
use super::connect::{Failure, resolve, seconds, tcp};
use super::http::{Patience, Request, Response, Url, ask};
use super::options::Options;

const FLAGS: [&str; 22] = [
    "s",
    "S",
    "I",
    "i",
    "f",
    "L",
    "k",
    "v",
    "g",
    "N",
    "4",
    "6",
    "silent",
    "show-error",
    "head",
    "include",
    "fail",
    "location",
    "insecure",
    "verbose",
    "ipv4",
    "ipv6",
];
const VALUED: [&str; 15] = [
    "m",
    "o",
    "w",
    "X",
    "d",
    "H",
    "A",
    "max-time",
    "connect-timeout",
    "output",
    "write-out",
    "request",
    "data",
    "header",
    "noproxy",
];
const MOST_REDIRECTS: usize = 50;

/// A code of curl's, and its words.
type Wrong = (u8, String);

pub(super) fn run(arguments: &[String]) -> u8 {
    let options = match Options::read(arguments, &FLAGS, &VALUED) {
        Ok(options) if !options.operands.is_empty() => options,
        Ok(_) => {
            complain("curl: (2) no URL specified");
            return 2;
        }
        Err(wrong) => {
            complain(format!("curl: {wrong}"));
            return 2;
        }
    };
    let quiet = options.has(&["s", "silent"]) && !options.has(&["S", "show-error"]);
    let mut code = 0;
    for url in &options.operands {
        let mut seen = Seen::default();
        let started = Instant::now();
        let transferred = transfer(url, &options, started, &mut seen);
        let written = options.value(&["w", "write-out"]).map(|format| seen.write(format, started));
        let _ = io::stdout().write_all(written.unwrap_or_default().as_bytes());
        if let Err((number, words)) = transferred {
            if !quiet {
                complain(format!("curl: ({number}) {words}"));
            }
            code = number;
        }
    }
    code
}

/// What `-w` can tell.
#[derive(Debug, Default)]
struct Seen {
    code: u16,
    bytes: u64,
    remote: String,
}

impl Seen {
    fn write(&self, format: &str, started: Instant) -> String {
        let code = format!("{:03}", self.code);
        format
            .replace("%{http_code}", &code)
            .replace("%{response_code}", &code)
            .replace("%{size_download}", &self.bytes.to_string())
            .replace("%{remote_ip}", &self.remote)
            .replace("%{time_total}", &format!("{:.6}", started.elapsed().as_secs_f64()))
            .replace("\\n", "\n")
            .replace("\\t", "\t")
    }
}

fn transfer(url: &str, options: &Options, started: Instant, seen: &mut Seen) -> Result<(), Wrong> {
    let time = |names| {
        let time: Option<Duration> =
            options.value(names).map(seconds).transpose().map_err(|e| (2, e))?;
        Ok(time.map(|time| started + time))
    };
    let end = time(&["m", "max-time"])?;
    let connect_end = [end, time(&["connect-timeout"])?].into_iter().flatten().min();
    let head = options.has(&["I", "head"]);
    let body: Vec<&str> = options.values(&["d", "data"]).collect();
    let body = Some(body.join("&")).filter(|body| !body.is_empty());
    let method = options.value(&["X", "request"]).map(str::to_owned).unwrap_or_else(|| {
        if head {
            "HEAD"
        } else if body.is_some() {
            "POST"
        } else {
            "GET"
        }
        .to_owned()
    });
    let mut headers: Vec<String> = options.values(&["H", "header"]).map(str::to_owned).collect();
    if body.is_some() {
        headers.push("Content-Type: application/x-www-form-urlencoded".to_owned());
    }
    let request = Request { method, agent: "curl", headers, body };
    let mut url = Url::read(url).map_err(|e| (3, format!("URL rejected: {e}")))?;
    for _ in 0..=MOST_REDIRECTS {
        if url.scheme != "http" {
            return Err((1, format!("Protocol \"{}\" not supported", url.scheme)));
        }
        let failed = |failure: &Failure| failed(&url, failure, started);
        let addresses = resolve(&url.host, url.port, connect_end).map_err(|e| failed(&e))?;
        let addresses: Vec<_> = addresses
            .into_iter()
            .filter(|a| !(options.has(&["4", "ipv4"]) && a.is_ipv6()))
            .filter(|a| !(options.has(&["6", "ipv6"]) && a.is_ipv4()))
            .collect();
        if addresses.is_empty() {
            return Err((6, format!("Could not resolve host: {}", url.host)));
        }
        let stream = tcp(&addresses, connect_end).map_err(|e| failed(&e))?;
        seen.remote = stream.peer_addr().map(|a| a.ip().to_string()).unwrap_or_default();
        let patience = end.map_or(Patience::Endless, Patience::Until);
        let broken = |error: io::Error, bytes| broken(&error, started, bytes);
        let mut response = ask(stream, &url, &request, patience).map_err(|e| broken(e, 0))?;
        seen.code = response.code;
        if options.has(&["L", "location"])
            && (300..400).contains(&response.code)
            && let Some(location) = response.header("location")
        {
            url = url.follow(location).map_err(|e| (3, format!("URL rejected: {e}")))?;
            continue;
        }
        if options.has(&["f", "fail"]) && response.code >= 400 {
            return Err((22, format!("The requested URL returned error: {}", response.code)));
        }
        let show_headers = head || options.has(&["i", "include"]);
        let mut out: Box<dyn Write> = match options.value(&["o", "output"]) {
            None | Some("-") => Box::new(io::stdout().lock()),
            Some(name) => {
                let file = File::create(name);
                Box::new(file.map_err(|e| (23, format!("cannot write to {name}: {e}")))?)
            }
        };
        return show(&mut response, show_headers, &mut out, seen)
            .map_err(|e| broken(e, seen.bytes));
    }
    Err((47, format!("Maximum ({MOST_REDIRECTS}) redirects followed")))
}

fn show(
    response: &mut Response,
    headers: bool,
    out: &mut dyn Write,
    seen: &mut Seen,
) -> io::Result<()> {
    if headers {
        write!(out, "{}\r\n", response.status)?;
        response.headers.iter().try_for_each(|header| write!(out, "{header}\r\n"))?;
        write!(out, "\r\n")?;
    }
    seen.bytes = io::copy(response, out)?;
    out.flush()
}

fn failed(url: &Url, failure: &Failure, started: Instant) -> Wrong {
    let milliseconds = started.elapsed().as_millis();
    match failure {
        Failure::Name(_) => (6, format!("Could not resolve host: {}", url.host)),
        Failure::TimedOut(None) => {
            (28, format!("Resolving timed out after {milliseconds} milliseconds"))
        }
        Failure::TimedOut(Some(_)) => {
            (28, format!("Connection timed out after {milliseconds} milliseconds"))
        }
        Failure::Refused(_) | Failure::Other(..) => {
            let Url { host, port, .. } = url;
            (
                7,
                format!(
                    "Failed to connect to {host} port {port} after {milliseconds} ms: Couldn't connect to server"
                ),
            )
        }
    }
}

fn broken(error: &io::Error, started: Instant, bytes: u64) -> Wrong {
    match error.kind() {
        io::ErrorKind::TimedOut => {
            let milliseconds = started.elapsed().as_millis();
            (
                28,
                format!(
                    "Operation timed out after {milliseconds} milliseconds with {bytes} bytes received"
                ),
            )
        }
        io::ErrorKind::UnexpectedEof if bytes == 0 => (52, "Empty reply from server".to_owned()),
        io::ErrorKind::InvalidData => (1, "Received HTTP/0.9 when not allowed".to_owned()),
        _ => (56, format!("Recv failure: {error}")),
    }
}
