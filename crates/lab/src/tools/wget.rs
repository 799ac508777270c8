//! `wget`, with the messages and exit codes of BusyBox.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use super::complain;
use super::connect::{Failure, resolve, seconds, tcp, words};
use super::http::{Patience, Request, Url, ask};
use super::options::Options;

const FLAGS: [&str; 8] =
    ["q", "S", "c", "spider", "quiet", "server-response", "no-check-certificate", "continue"];
const VALUED: [&str; 11] = [
    "O",
    "T",
    "t",
    "U",
    "P",
    "timeout",
    "tries",
    "output-document",
    "header",
    "post-data",
    "user-agent",
];
const USAGE: &str =
    "Usage: wget [-qS] [--spider] [-O FILE] [-T SEC] [--header STR] [--post-data STR] URL...";
/// What BusyBox waits where nothing is said.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(900);
const MOST_REDIRECTS: usize = 5;

pub(super) fn run(arguments: &[String]) -> u8 {
    let options = match Options::read(arguments, &FLAGS, &VALUED) {
        Ok(options) if !options.operands.is_empty() => options,
        Ok(_) => {
            complain(USAGE);
            return 1;
        }
        Err(wrong) => {
            complain(format!("wget: {wrong}\n{USAGE}"));
            return 1;
        }
    };
    for url in &options.operands {
        if let Err(wrong) = download(url, &options) {
            complain(format!("wget: {wrong}"));
            return 1;
        }
    }
    0
}

fn download(url: &str, options: &Options) -> Result<(), String> {
    let timeout = options.value(&["T", "timeout"]).map_or(Ok(DEFAULT_TIMEOUT), seconds)?;
    let quiet = options.has(&["q", "quiet"]);
    let tell = |text: String| {
        if !quiet {
            complain(text)
        }
    };
    let spider = options.has(&["spider"]);
    let body = options.value(&["post-data"]).map(str::to_owned);
    let request = Request {
        method: if body.is_some() {
            "POST"
        } else if spider {
            "HEAD"
        } else {
            "GET"
        }
        .to_owned(),
        agent: "Wget",
        headers: options.values(&["header"]).map(str::to_owned).collect(),
        body,
    };
    let mut url = Url::read(url)?;
    for _ in 0..=MOST_REDIRECTS {
        if url.scheme != "http" {
            return Err(format!("only http is known here, not {}://", url.scheme));
        }
        let deadline = Some(Instant::now() + timeout);
        let addresses = resolve(&url.host, url.port, deadline).map_err(|e| failed(&url, &e))?;
        tell(format!("Connecting to {} ({})", url.authority(), addresses[0]));
        let stream = tcp(&addresses, deadline).map_err(|e| failed(&url, &e))?;
        let mut response =
            ask(stream, &url, &request, Patience::Idle(timeout)).map_err(|e| broken(&e))?;
        if options.has(&["S", "server-response"]) {
            complain(format!("  {}", response.status));
            response.headers.iter().for_each(|header| complain(format!("  {header}")));
        }
        match (response.code, response.header("location")) {
            (301 | 302 | 303 | 307 | 308, Some(location)) => {
                url = url.follow(location)?;
                continue;
            }
            (200..=299, _) => {}
            _ => return Err(format!("server returned error: {}", response.status)),
        }
        if spider {
            tell("remote file exists".to_owned());
            return Ok(());
        }
        return save(&url, options, &mut response, tell);
    }
    Err("too many redirections".to_owned())
}

fn save(
    url: &Url,
    options: &Options,
    response: &mut impl Read,
    tell: impl Fn(String),
) -> Result<(), String> {
    let last = url.path.split('?').next().and_then(|path| path.rsplit('/').next());
    let default = last.filter(|name| !name.is_empty()).unwrap_or("index.html");
    let asked = options.value(&["O", "output-document"]);
    let name = asked.unwrap_or(default);
    if name == "-" {
        tell("writing to stdout".to_owned());
        copy(response, &mut io::stdout().lock())?;
        tell("written to stdout".to_owned());
        return Ok(());
    }
    let opened = match asked {
        Some(name) => File::create(name),
        None => OpenOptions::new().write(true).create_new(true).open(name),
    };
    let mut file = opened.map_err(|e| format!("can't open '{name}': {}", words(&e)))?;
    tell(format!("saving to '{name}'"));
    copy(response, &mut file)?;
    tell(format!("'{name}' saved"));
    Ok(())
}

fn copy(from: &mut impl Read, to: &mut impl Write) -> Result<(), String> {
    io::copy(from, to).and_then(|_| to.flush()).map_err(|e| broken(&e))
}

fn failed(url: &Url, failure: &Failure) -> String {
    match failure {
        Failure::Name(_) => format!("bad address '{}'", url.host),
        Failure::TimedOut(_) => "download timed out".to_owned(),
        Failure::Refused(at) => {
            format!("can't connect to remote host ({}): Connection refused", at.ip())
        }
        Failure::Other(at, error) => {
            format!("can't connect to remote host ({}): {}", at.ip(), words(error))
        }
    }
}

fn broken(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::TimedOut => "download timed out".to_owned(),
        io::ErrorKind::UnexpectedEof => "error getting response".to_owned(),
        io::ErrorKind::InvalidData => format!("not an HTTP response: {error}"),
        _ => words(error),
    }
}
