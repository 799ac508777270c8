//! Whether others have been in our table, by what the kernel tells everybody who listens.
//!
//! The kernel's number of its state says that somebody changed something, and no more: a node on
//! which another program keeps thousands of rules changes it all the time. With each transaction the
//! kernel tells what was changed, by the request of which socket, and at the end which number the state
//! has now (`nf_tables_gen_notify`). So only what was in our table has to be looked at.

use crate::Error;
use crate::attributes::Message;
use crate::encode;
use crate::netlink::{NETLINK_NETFILTER, NetlinkSocket};

/// `NFNLGRP_NFTABLES` of `linux/netfilter/nfnetlink.h`.
const GROUP: u32 = 7;

/// Listens.
#[derive(Debug)]
pub(crate) struct Witness {
    socket: NetlinkSocket,
    /// The number of the last transaction that was heard of.
    last: Option<u32>,
    /// Whether somebody else may have changed our table since that was last forgotten.
    suspects: bool,
}

impl Witness {
    /// Listens in the network namespace of the calling thread.
    pub(crate) fn open() -> Result<Witness, Error> {
        let socket = NetlinkSocket::listen(NETLINK_NETFILTER, GROUP)?;
        Ok(Witness { socket, last: None, suspects: false })
    }

    /// Takes in what has been told so far. What was asked for by the socket with our port is ours.
    pub(crate) fn listen(&mut self, ours: u32) {
        let Ok(heard) = self.socket.heard::<Message>() else {
            // More than the socket could hold.
            (self.last, self.suspects) = (None, true);
            return;
        };
        for (port, message) in heard {
            match encode::new_generation(&message) {
                Some(number) => self.last = Some(number),
                None => self.suspects |= port != ours && encode::is_in_our_table(&message),
            }
        }
    }

    /// Whether all is told up to this number of the kernel's state, and nobody else was in our table.
    pub(crate) fn clears(&self, now: u32) -> bool {
        !self.suspects && self.last == Some(now)
    }

    /// What was told so far has been looked after.
    pub(crate) fn forget(&mut self) {
        self.suspects = false;
    }
}
