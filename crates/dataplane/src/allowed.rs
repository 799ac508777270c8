//! Tells of connections of some pods that the policies allow.
//!
//! What comes to a hook after the rules of policies was allowed by them. So the table of policies is
//! the same whether this is asked for or not.
//!
//! ```nft
//! table inet portcullis-log {
//!     set pods4 {
//!         type ipv4_addr
//!         elements = { 10.244.1.4, 10.244.1.5 }
//!     }
//!     set pods6 {
//!         type ipv6_addr
//!     }
//!     chain forward {
//!         type filter hook forward priority filter + 1; policy accept;
//!         ct state new goto new
//!     }
//!     chain new {
//!         ip saddr @pods4 goto allowed
//!         ip daddr @pods4 goto allowed
//!         ip6 saddr @pods6 goto allowed
//!         ip6 daddr @pods6 goto allowed
//!     }
//!     chain allowed {
//!         limit rate 100/second burst 100 packets log prefix "allowed" group 86 snaplen 128 counter
//!         counter accept
//!     }
//! }
//! ```

use std::collections::BTreeSet;
use std::net::IpAddr;

use portcullis_core::net::Family;

use crate::encode::{
    EQUAL, FAMILY_V4, FAMILY_V6, HOOK_FORWARD, META_FAMILY, NETWORK_HEADER, Request, compare,
    load_meta, load_payload, new_connection,
};
use crate::netlink::{NETLINK_NETFILTER, NetlinkSocket};
use crate::state::Log;
use crate::table::{self, ADDRESS_V4, ADDRESS_V6, Table, Verdict, register};
use crate::{Error, Tally};

/// The name of the table; its family is `inet`.
const LOG_TABLE: &str = "portcullis-log";

const BASE: &str = "forward";
const NEW: &str = "new";
/// The chain, and what the log says of a packet that comes there.
pub(crate) const ALLOWED: &str = "allowed";
/// Just after the rules of policies.
const PRIORITY: i32 = 1;

/// The log of what is allowed in one network namespace.
#[derive(Debug)]
pub struct Allowed {
    socket: NetlinkSocket,
    log: Log,
    /// What was put in force last.
    in_force: Option<BTreeSet<IpAddr>>,
    /// What was counted by what is no longer in force.
    counted: Tally,
}

impl Allowed {
    /// Works in the network namespace of the calling thread, and removes what an earlier process
    /// put there. The error is the kernel's, also if it cannot tell of packets at all.
    pub fn open(log: Log) -> Result<Allowed, Error> {
        let mut socket = NetlinkSocket::open(NETLINK_NETFILTER)?;
        let mut table = Table::new(LOG_TABLE);
        table.add();
        table.chain(ALLOWED);
        table.ends(ALLOWED, Some((log, ALLOWED)), Verdict::Accept);
        table.delete();
        table::commit(&mut socket, table.into_requests())?;
        Ok(Allowed { socket, log, in_force: None, counted: Tally::default() })
    }

    /// Tells from now on of the connections of these pods; of nothing if there are none.
    pub fn tell(&mut self, pods: &BTreeSet<IpAddr>) -> Result<(), Error> {
        if pods.is_empty() {
            return match self.in_force {
                Some(_) => self.remove(),
                None => Ok(()),
            };
        }
        if self.in_force.as_ref() != Some(pods) {
            self.counted = self.counted();
            self.in_force = None;
            table::commit(&mut self.socket, requests(self.log, pods))?;
            self.in_force = Some(pods.clone());
        }
        Ok(())
    }

    /// What came to it in all since this was opened.
    pub fn counted(&mut self) -> Tally {
        let mut counted = self.counted;
        if self.in_force.is_some()
            && let Some(now) = Table::new(LOG_TABLE).ended(ALLOWED, &mut self.socket)
        {
            counted += now;
        }
        counted
    }

    /// Tells of nothing any more.
    fn remove(&mut self) -> Result<(), Error> {
        self.counted = self.counted();
        self.in_force = None;
        table::commit(&mut self.socket, Table::removed(LOG_TABLE))
    }

    /// Removes what a process left behind, whether there is anything or not.
    pub fn cleanup() -> Result<(), Error> {
        let mut socket = NetlinkSocket::open(NETLINK_NETFILTER)?;
        table::commit(&mut socket, Table::removed(LOG_TABLE))
    }
}

/// Puts the table there, whatever was there.
fn requests(log: Log, pods: &BTreeSet<IpAddr>) -> Vec<Request> {
    let mut table = Table::anew(LOG_TABLE);
    table.base_chain(BASE, HOOK_FORWARD, PRIORITY);
    table.chain(NEW);
    table.chain(ALLOWED);
    table.rule(BASE, |list| {
        new_connection(list);
        table::verdict(list, Verdict::Goto(NEW));
    });
    let families = [
        (Family::V4, "pods4", ADDRESS_V4, FAMILY_V4, [12, 16]),
        (Family::V6, "pods6", ADDRESS_V6, FAMILY_V6, [8, 24]),
    ];
    for (family, set, part, number, ends) in families {
        table.set(set, &[part]);
        table.add_addresses(set, pods.iter().filter(|pod| Family::of(**pod) == family));
        for at in ends {
            table.rule(NEW, |list| {
                load_meta(list, META_FAMILY, register(0));
                compare(list, EQUAL, &[number]);
                load_payload(list, NETWORK_HEADER, at, part.1, register(0));
                table::lookup(list, set);
                table::verdict(list, Verdict::Goto(ALLOWED));
            });
        }
    }
    table.ends(ALLOWED, Some((log, ALLOWED)), Verdict::Accept);
    table.into_requests()
}
