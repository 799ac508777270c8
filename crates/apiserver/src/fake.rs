//! A runtime without a network, for tests and trials.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpStream};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use crate::meta;
use crate::runtime::{Exec, Process, Runtime};

/// Pods that are nowhere: they have the addresses 10.244.N.2 and fd00:10:244:N::2 and on, where N is
/// the number at the end of the name of their node, and that is all. Commands run beside the server, and ports are those of
/// its loopback address.
#[derive(Debug, Default)]
pub struct FakeRuntime {
    /// Who has which address, by uid.
    given: Mutex<HashMap<String, (u8, u8)>>,
}

impl Runtime for FakeRuntime {
    fn up(&self, pod: &Value) -> Result<Vec<IpAddr>, String> {
        let node = meta::text(pod, "/spec/nodeName");
        let digits = node.trim_start_matches(|c: char| !c.is_ascii_digit());
        let number: u8 = digits.parse().unwrap_or_default();
        if pod.pointer("/spec/hostNetwork") == Some(&json!(true)) {
            return Ok(vec![[192, 0, 2, number].into()]);
        }
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = (2..=254).filter(|last| !given.values().any(|of| *of == (number, *last)));
        let last =
            free.next().ok_or_else(|| format!("10.244.{number}.0/24 has no address left"))?;
        given.insert(meta::uid(pod).to_owned(), (number, last));
        let v4 = Ipv4Addr::new(10, 244, number, last);
        let v6 = [0xfd00, 0x10, 0x244, number.into(), 0, 0, 0, last.into()];
        Ok(vec![v4.into(), Ipv6Addr::from(v6).into()])
    }

    fn down(&self, pod: &Value) {
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        given.remove(meta::uid(pod));
    }

    /// Containers that say what they run, run it.
    fn start(&self, pod: &Value, container: &str) -> Result<Option<Process>, String> {
        let containers = meta::list(pod, "/spec/containers");
        let Some(container) = containers.iter().find(|c| c["name"] == container) else {
            return Ok(None);
        };
        let lists = [meta::list(container, "/command"), meta::list(container, "/args")].concat();
        let command: Vec<String> =
            lists.iter().filter_map(|word| word.as_str().map(str::to_owned)).collect();
        if command.is_empty() {
            return Ok(None);
        }
        let (stdin, tty) = (container["stdin"] == true, container["tty"] == true);
        run(&Exec { command, stdin, tty }).map(Some)
    }

    fn exec(&self, _pod: &Value, _container: &str, exec: &Exec) -> Result<Process, String> {
        run(exec)
    }

    fn connect(&self, _pod: &Value, port: u16) -> Result<TcpStream, String> {
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).map_err(|error| error.to_string())
    }
}

fn run(exec: &Exec) -> Result<Process, String> {
    let (program, arguments) = exec.command.split_first().ok_or("there is no command")?;
    let started = if exec.tty {
        let mut command = Command::new("setsid");
        command.arg("--ctty").arg(program).args(arguments);
        Process::on_terminal(command)
    } else {
        let mut command = Command::new(program);
        command.args(arguments);
        Process::piped(command, exec.stdin)
    };
    started.map_err(|error| format!("cannot run {program:?}: {error}"))
}
