//! Whether others have been in our table, by what the kernel tells everybody who listens.
//!
//! The kernel's number of its state says that somebody changed something, and no more: a node on
//! which another program keeps thousands of rules changes it all the time. At each transaction the
//! kernel also tells what was changed, and at the end that the state has a new number
//! (`nf_tables_gen_notify`). So only what was in our table has to be looked at.
//!
//! Where anybody listens, the kernel writes a message for every element and keeps them all to the
//! end of the transaction, each in a buffer of kilobytes. So nobody listens during our own. Those of
//! our other tables [wait](turn) meanwhile, so that all of them are heard: one that was not is a reason to
//! read all of the table.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::Error;
use crate::attributes::Message;
use crate::encode;
use crate::netlink::{NETLINK_NETFILTER, NetlinkSocket};

/// `NFNLGRP_NFTABLES` of `linux/netfilter/nfnetlink.h`.
const GROUP: u32 = 7;

/// Had by whoever of this process makes a transaction, does not listen, or counts what was heard. The
/// kernel lets transactions wait for each other anyway.
pub(crate) fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Listens.
#[derive(Debug)]
pub(crate) struct Witness {
    socket: NetlinkSocket,
    /// How many transactions of others were heard of since the last answer.
    others: u32,
    /// Whether one of them was in our table, or could have been.
    suspects: bool,
}

impl Witness {
    /// Listens in the network namespace of the calling thread.
    pub(crate) fn open() -> Result<Witness, Error> {
        let socket = NetlinkSocket::listener(NETLINK_NETFILTER)?;
        let mut witness = Witness { socket, others: 0, suspects: false };
        witness.on()?;
        Ok(witness)
    }

    /// Hears nothing until [`on`](Witness::on).
    pub(crate) fn off(&mut self) {
        // Then it hears, which is no harm.
        let _ = self.socket.leave(GROUP);
    }

    /// Hears again. What others did meanwhile shows in the kernel's number.
    pub(crate) fn on(&mut self) -> Result<(), Error> {
        self.socket.join(GROUP)
    }

    /// How many transactions others made since the last call, as far as it was heard: `None` if one of
    /// them may have been in our table.
    pub(crate) fn elsewhere(&mut self) -> Option<u32> {
        match self.socket.heard::<Message>() {
            Ok(heard) => heard.iter().for_each(|message| {
                self.others += u32::from(encode::is_new_generation(message));
                self.suspects |= encode::is_in_our_table(message);
            }),
            // More than the socket could hold.
            Err(_) => self.suspects = true,
        }
        let others = std::mem::take(&mut self.others);
        (!std::mem::take(&mut self.suspects)).then_some(others)
    }
}
