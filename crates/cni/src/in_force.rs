//! What stands in the kernel without the agent, as a file beside the agent's socket.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// What the kernel does with the addresses of the node while no agent is there. The agent writes it,
/// and never says less of an address than what may be in force: before a change both what was and
/// what will be programmed are in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InForce {
    /// Ranges in which an address that is not programmed is closed: the first and the last address
    /// of each.
    pub closed: Vec<(IpAddr, IpAddr)>,
    /// The addresses that may be programmed, with policies of whatever pod had them.
    pub programmed: Vec<IpAddr>,
    /// Whether nothing at all is refused: then nothing is closed, and pods start all the same.
    #[serde(default)]
    pub audit: bool,
    /// Who had which address when open connections were judged last, as numbers that say nothing but
    /// who is another: the next agent goes on from that.
    #[serde(default)]
    pub owners: BTreeMap<IpAddr, u64>,
}

impl InForce {
    /// The file that goes with this socket.
    pub fn path(socket: &Path) -> PathBuf {
        socket.with_file_name("in-force.json")
    }

    /// Reads what goes with this socket.
    ///
    /// # Errors
    /// There is none: since the machine started, no agent has put anything in force.
    pub fn read(socket: &Path) -> io::Result<InForce> {
        Ok(serde_json::from_slice(&fs::read(InForce::path(socket))?)?)
    }

    /// Writes it, in one piece.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn write(&self, socket: &Path) -> io::Result<()> {
        let path = InForce::path(socket);
        let new = path.with_extension("new");
        fs::write(&new, serde_json::to_vec(self)?)?;
        fs::rename(new, path)
    }

    /// Nothing is in force any more. It is fine if nothing was.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn remove(socket: &Path) -> io::Result<()> {
        match fs::remove_file(InForce::path(socket)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Whether the kernel lets nothing to and from this address as long as no agent says otherwise.
    pub fn is_closed(&self, address: IpAddr) -> bool {
        let within = |(first, last): &(IpAddr, IpAddr)| {
            first.is_ipv4() == address.is_ipv4() && (*first..=*last).contains(&address)
        };
        self.closed.iter().any(within) && !self.programmed.contains(&address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_closed_only_in_a_range_and_only_if_nobody_had_it() {
        let address = |text: &str| -> IpAddr { text.parse().unwrap() };
        let in_force = InForce {
            closed: vec![(address("10.0.1.0"), address("10.0.1.255"))],
            programmed: vec![address("10.0.1.2")],
            ..InForce::default()
        };
        assert!(in_force.is_closed(address("10.0.1.3")));
        assert!(!in_force.is_closed(address("10.0.1.2")), "that of another pod, perhaps");
        assert!(!in_force.is_closed(address("10.0.2.3")));
        assert!(!in_force.is_closed(address("fd00::1")));
        assert!(!InForce::default().is_closed(address("10.0.1.3")));
    }
}
