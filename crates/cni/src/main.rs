//! The CNI plugin: variables and standard input in, standard output and exit code out.
#![forbid(unsafe_code)]

use std::env;
use std::io::{self, Read, Write};
use std::process::ExitCode;

use portcullis_cni::{Environment, Error, run};

fn main() -> ExitCode {
    let environment = Environment::from(|name| env::var(name).ok());
    let mut input = Vec::new();
    let read = io::stdin().lock().read_to_end(&mut input).map_err(|source| Error::Io {
        what: "cannot read the network configuration from standard input".to_owned(),
        source,
    });
    let (text, code) = match read.and_then(|_| run(&environment, &input)) {
        Ok(text) => (text, ExitCode::SUCCESS),
        Err(error) => (error.json(&version(&input)), ExitCode::FAILURE),
    };
    if text.is_empty() {
        return code;
    }
    match writeln!(io::stdout().lock(), "{text}") {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

/// The version that an error is told in: the one of the configuration, if it says one.
fn version(input: &[u8]) -> String {
    let read = serde_json::from_slice::<serde_json::Value>(input).ok();
    let version = read.and_then(|read| read.get("cniVersion")?.as_str().map(str::to_owned));
    version.unwrap_or_else(|| "1.1.0".to_owned())
}
