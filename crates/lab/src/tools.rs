//! Small programs for commands in pods: `wget`, `curl`, `nc`, `nslookup`, `ping`, and the part of `agnhost`
//! that tests of networks use. They stand in where the host has none, with the options that
//! tutorials use and the messages and exit codes of BusyBox and curl.
//!
//! One binary is all of them, by the name it is called by. Names are resolved as the pod's
//! `/etc/resolv.conf` and `/etc/hosts` say.

mod agnhost;
mod connect;
mod curl;
mod http;
mod nc;
mod nslookup;
mod options;
mod ping;
mod server;
mod wget;

use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::unix::fs::symlink;
use std::path::Path;

/// The names to be called by. `agnhost` is called as `/agnhost`, the others are on the PATH.
pub const NAMES: [&str; 6] = ["agnhost", "curl", "nc", "nslookup", "ping", "wget"];

/// Makes a link of each name to the program, in a directory that exists.
pub fn link(directory: &Path, program: &Path) -> io::Result<()> {
    NAMES.iter().try_for_each(|name| symlink(program, directory.join(name)))
}

/// Does what the program of this name does with the arguments, and returns its exit code. `None` if
/// there is no such program. The first argument, which is the name or ends with it, is
/// `arguments[0]`, as a process gets them.
pub fn run(arguments: &[String]) -> Option<u8> {
    let (name, arguments) = arguments.split_first()?;
    let tool = match Path::new(name).file_name().and_then(OsStr::to_str)? {
        "agnhost" => agnhost::run,
        "curl" => curl::run,
        "nc" => nc::run,
        "nslookup" => nslookup::run,
        "ping" => ping::run,
        "wget" => wget::run,
        _ => return None,
    };
    Some(tool(arguments))
}

/// Says something on standard error. Where nobody can hear it, nothing is to be done.
fn complain(text: impl std::fmt::Display) {
    let _ = writeln!(io::stderr(), "{text}");
}
