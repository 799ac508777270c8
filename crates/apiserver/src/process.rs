//! Programs of this host as commands of pods.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::runtime::{Control, Input, Output, Process};

impl Process {
    /// Starts a program with pipes for its input (or none), its output and its errors.
    pub fn piped(mut command: Command, stdin: bool) -> io::Result<Process> {
        command.stdin(if stdin { Stdio::piped() } else { Stdio::null() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn()?;
        let output = |from: Option<Box<dyn Read + Send>>| from.map(Output);
        let stdin = child.stdin.take().map(|stdin| Input(Box::new(stdin)));
        let stdout = output(child.stdout.take().map(|out| Box::new(out) as _));
        let stderr = output(child.stderr.take().map(|out| Box::new(out) as _));
        let control = Arc::new(Running::new(child, None)?);
        Ok(Process { stdin, stdout, stderr, control })
    }

    /// Starts a program on a new terminal. The program has to make its standard input the terminal
    /// that controls it (`setsid --ctty` does): it begins a session of its own then.
    pub fn on_terminal(mut command: Command) -> io::Result<Process> {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&ours)?;
        unlockpt(&ours)?;
        let path = ptsname(&ours, Vec::new())?;
        let theirs = rustix::fs::open(
            path,
            rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )?;
        let again = || theirs.try_clone().map(Stdio::from);
        command.stdin(again()?).stdout(again()?).stderr(again()?);
        let child = command.spawn()?;
        // While the command keeps a copy, the terminal has no end.
        drop((command, theirs));
        let stdin = Input(Box::new(File::from(ours.try_clone()?)));
        let stdout = Output(Box::new(Terminal(File::from(ours.try_clone()?))));
        let control = Arc::new(Running::new(child, Some(ours))?);
        Ok(Process { stdin: Some(stdin), stdout: Some(stdout), stderr: None, control })
    }
}

/// Our end of a terminal. When nobody has the other end, reading fails: that is its end.
struct Terminal(File);

impl Read for Terminal {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buffer) {
            Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => Ok(0),
            other => other,
        }
    }
}

#[derive(Debug)]
struct Running {
    pid: Pid,
    /// `None` once it has ended, when its number may be another one's.
    child: Mutex<Option<Child>>,
    terminal: Option<OwnedFd>,
}

impl Running {
    fn new(child: Child, terminal: Option<OwnedFd>) -> io::Result<Running> {
        let pid = Pid::from_child(&child);
        Ok(Running { pid, child: Mutex::new(Some(child)), terminal })
    }
}

impl Control for Running {
    fn wait(&self) -> i32 {
        // It keeps its number until it is asked for its status, which is done under the lock.
        let ended = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        while matches!(waitid(WaitId::Pid(self.pid), ended), Err(Errno::INTR)) {}
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(status) = child.take().and_then(|mut child| child.wait().ok()) else { return 255 };
        status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(255)
    }

    fn kill(&self) {
        let child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        if child.is_some() {
            // Its group is its own, on a terminal by the session that it began. If it has not yet
            // begun it, it is alone.
            let _ = kill_process_group(self.pid, Signal::KILL);
            let _ = rustix::process::kill_process(self.pid, Signal::KILL);
        }
    }

    fn resize(&self, columns: u16, rows: u16) {
        if let Some(terminal) = &self.terminal {
            let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
            let _ = tcsetwinsize(terminal, size);
        }
    }
}
