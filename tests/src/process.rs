//! Programs that tests start, none of which can keep a test waiting for ever.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot run fails")]

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Read};
use std::process::{Child, Command};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

/// How long is waited at most, on however busy a machine.
pub const LIMIT: Duration = Duration::from_secs(120);

/// A command that is ended if it goes on longer than [`LIMIT`]: then its exit code is 124, and what it
/// has printed by then can be read.
pub fn limited(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("timeout");
    let seconds = LIMIT.as_secs().to_string();
    // In the foreground, because it may have a terminal.
    command.args(["--foreground", "--kill-after=5", &seconds]).arg(program);
    command
}

/// A process that ends with the test, also with one that fails.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The lines that a program prints, as they come.
pub struct Lines {
    come: Receiver<String>,
    read: Vec<String>,
}

impl Lines {
    /// Reads until the end, whether or not somebody asks for them: so the program never has to wait.
    pub fn of(output: impl Read + Send + 'static) -> Lines {
        let (tell, come) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let _ = tell.send(line);
            }
        });
        Lines { come, read: Vec::new() }
    }

    /// The next line that begins like this. Those before it are left out.
    ///
    /// # Panics
    /// There is none, or it does not come within [`LIMIT`].
    pub fn until(&mut self, begin: &str) -> &str {
        loop {
            let Ok(line) = self.come.recv_timeout(LIMIT) else {
                panic!(
                    "expected a line that begins with {begin:?}, found:\n{}",
                    self.read.join("\n")
                )
            };
            self.read.push(line);
            if self.read.last().unwrap().starts_with(begin) {
                return self.read.last().unwrap();
            }
        }
    }
}
