//! How commands talk to a lab that another process keeps up: lines over an abstract unix socket,
//! which is no file and goes away with the process.

use std::fs::{self, DirBuilder};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::geteuid;

use crate::Error;

/// The lab's end: where requests and signals come in.
#[derive(Debug)]
pub struct Control {
    listener: UnixListener,
    signals: SignalFd,
}

/// What a lab that is up waits for.
#[derive(Debug)]
pub enum Event {
    /// Somebody connected, and is a process of the same user.
    Connection(Connection),
    /// SIGINT, SIGTERM or SIGHUP: end the lab.
    Stop,
}

/// A connection between a command and a lab, the same at both ends. What is said on it is the
/// business of those two.
#[derive(Debug)]
pub struct Connection(BufReader<UnixStream>);

/// A lab does not wait longer for a command that has fallen silent.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest line.
const LONGEST: u64 = 1 << 20;

impl Control {
    /// Takes the name, and takes the signals that end a process, from now on, as [`Event::Stop`].
    ///
    /// Has to be called before [`enter`](crate::enter), since such sockets belong to a network
    /// namespace, and before any thread is made, since threads take over who gets signals.
    pub fn bind(name: &str) -> Result<Control, Error> {
        let listener = address(name).and_then(|a| UnixListener::bind_addr(&a));
        let listener = listener.map_err(|source| match source.kind() {
            ErrorKind::AddrInUse => Error::NameTaken { name: name.to_owned() },
            _ => Error::socket("make the control socket", source),
        })?;
        let stop = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
        let signals = stop
            .thread_block()
            .and_then(|()| SignalFd::with_flags(&stop, SfdFlags::SFD_CLOEXEC))
            .map_err(|e| Error::socket("wait for signals", e))?;
        Ok(Control { listener, signals })
    }

    /// Connects to the running lab of this user that has the name.
    pub fn connect(name: &str) -> Result<Connection, Error> {
        let stream = address(name).and_then(|a| UnixStream::connect_addr(&a));
        let stream = stream.map_err(|source| match source.kind() {
            ErrorKind::ConnectionRefused => Error::NotRunning { name: name.to_owned() },
            _ => Error::socket("connect to the lab", source),
        })?;
        // Anybody may have taken an abstract name.
        let uid = peer(&stream)?;
        if uid != geteuid().as_raw() {
            return Err(Error::OtherUser { name: name.to_owned(), uid });
        }
        Ok(Connection(BufReader::new(stream)))
    }

    /// Waits for a connection or a signal. Connections of other users are closed unheard.
    pub fn next_event(&mut self) -> Result<Event, Error> {
        loop {
            let wanted = |fd| PollFd::new(fd, PollFlags::POLLIN);
            let mut waiting = [wanted(self.signals.as_fd()), wanted(self.listener.as_fd())];
            match poll(&mut waiting, PollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                other => other.map_err(|e| Error::socket("wait for requests", e))?,
            };
            if waiting[0].any() == Some(true) {
                return Ok(Event::Stop);
            }
            // What is wrong with one connection is no matter of the lab's.
            let Ok((stream, _)) = self.listener.accept() else { continue };
            let limited = stream
                .set_read_timeout(Some(PATIENCE))
                .and_then(|()| stream.set_write_timeout(Some(PATIENCE)));
            if limited.is_ok() && peer(&stream).is_ok_and(|uid| uid == geteuid().as_raw()) {
                return Ok(Event::Connection(Connection(BufReader::new(stream))));
            }
        }
    }
}

impl Connection {
    /// Sends one line; `line` has no line break.
    pub fn send(&mut self, line: &str) -> io::Result<()> {
        self.0.get_mut().write_all(format!("{line}\n").as_bytes())
    }

    /// The next line, without its end; `None` when the other end has closed.
    pub fn receive(&mut self) -> io::Result<Option<String>> {
        let mut line = String::new();
        (&mut self.0).take(LONGEST).read_line(&mut line)?;
        match line.pop() {
            None => Ok(None),
            Some('\n') => Ok(Some(line)),
            Some(_) => Err(ErrorKind::UnexpectedEof.into()),
        }
    }
}

fn address(name: &str) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("portcullis-lab/{}/{name}", geteuid()))
}

/// The folder for the sockets of the agents in this user's lab of the name. Nobody else may look
/// into it.
pub fn sockets(name: &str) -> PathBuf {
    let folder = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    folder.join(format!("portcullis-lab-{}-{name}", geteuid()))
}

/// Makes that folder anew. To be called before [`enter`](crate::enter), when the user is still known.
pub fn make_sockets(name: &str) -> Result<PathBuf, Error> {
    let folder = sockets(name);
    let make = || {
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // Fails if somebody else is quicker.
        DirBuilder::new().mode(0o700).create(&folder)
    };
    make().map_err(|e| Error::socket(&format!("make {} for the agents", folder.display()), e))?;
    Ok(folder)
}

/// The user at the other end, as seen from this user namespace.
fn peer(stream: &UnixStream) -> Result<u32, Error> {
    getsockopt(stream, sockopt::PeerCredentials)
        .map(|credentials| credentials.uid())
        .map_err(|e| Error::socket("ask who is connected", e))
}
