//! Connections that were open before a state was in force, judged by it (SEMANTICS 24, 25).
//!
//! A flow that its client may no longer open is cut: its original direction goes into a set, and
//! what the kernel takes for a packet of it, in whichever direction, is dropped, with a reset to
//! the sender if it is TCP. The kernel's own entry stays, because it alone knows who opened the
//! flow: without it the next packet of the server would be the first of a flow that the server
//! opens.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::Error;
use crate::conntrack::{self, Flow, Tuple};
use crate::cut;
use crate::encode;
use crate::judge::{Judge, Opening};
use crate::netlink::{NETLINK_NETFILTER, NETLINK_ROUTE, NetlinkSocket};
use crate::nftables::wait_for_packets_under_way;
use crate::nudge::Nudger;
use crate::state::NodeState;

/// The connections of one network namespace.
#[derive(Debug)]
pub struct Connections {
    netfilter: NetlinkSocket,
    route: NetlinkSocket,
    /// `None` if that is not permitted.
    nudger: Option<Nudger>,
    /// What is in the kernel's set; `None` if that is not known.
    cut: Option<FxHashSet<Tuple>>,
    /// Who had which address when they were judged last.
    owners: BTreeMap<IpAddr, u64>,
}

/// What came of a judgement.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Judged {
    /// Flows that the kernel tracks.
    pub tracked: usize,
    /// Flows that are cut, those that were cut before included.
    pub cut: usize,
    /// Flows that are newly cut.
    pub newly_cut: usize,
    /// Flows that were forgotten, because their address is another pod's now.
    pub forgotten: usize,
    /// From the beginning to the kernel's word that they are cut.
    pub elapsed: Duration,
}

impl Connections {
    /// Works in the network namespace of the calling thread. What an earlier process cut stays cut
    /// until the first [`judge`](Connections::judge).
    pub fn open() -> Result<Connections, Error> {
        Ok(Connections {
            netfilter: NetlinkSocket::open(NETLINK_NETFILTER)?,
            route: NetlinkSocket::open(NETLINK_ROUTE)?,
            nudger: Nudger::open().ok(),
            cut: None,
            owners: BTreeMap::new(),
        })
    }

    /// Whether both ends of a cut TCP connection are reset at once. Without the capability
    /// `NET_RAW`, an end is reset when it speaks.
    pub fn resets_idle_ends(&self) -> bool {
        self.nudger.is_some()
    }

    /// Cuts every flow of a local pod that the state does not allow, and lets go those that it
    /// allows again. The state must be in force already: what begins from now on is for its rules.
    ///
    /// After an error, call it again: some flows may be cut already.
    pub fn judge(&mut self, state: &NodeState) -> Result<Judged, Error> {
        let start = Instant::now();
        // A packet that the rules before let pass may be on its way to be tracked.
        wait_for_packets_under_way();
        let own = self.own_addresses()?;
        let mut flows = conntrack::flows(&mut self.netfilter)?;
        let tracked = flows.len();

        let changed = |address: &IpAddr| {
            let (before, now) = (self.owners.get(address), state.owners.get(address));
            before.is_some() && before != now
        };
        let is_another_s = |flow: &Flow| {
            [&flow.original, &flow.reply].into_iter().any(|tuple| changed(&tuple.source))
        };
        let (strange, rest): (Vec<_>, Vec<_>) = flows.drain(..).partition(is_another_s);
        conntrack::forget(&mut self.netfilter, &strange)?;
        self.owners.clone_from(&state.owners);

        let refused = refused(state, &own, &rest);
        let before = self.cut.clone().unwrap_or_default();
        let newly: FxHashSet<Tuple> = refused.difference(&before).copied().collect();
        let cut = self.put(refused)?;
        let elapsed = start.elapsed();
        let open = rest.iter().filter(|f| f.is_open_tcp && newly.contains(&f.original));
        self.nudge(&open.flat_map(Flow::received).collect::<Vec<_>>())?;
        Ok(Judged { tracked, cut, newly_cut: newly.len(), forgotten: strange.len(), elapsed })
    }

    /// Makes the receivers of these speak.
    fn nudge(&mut self, received: &[Tuple]) -> Result<(), Error> {
        let Some(nudger) = self.nudger.as_ref().filter(|_| !received.is_empty()) else {
            return Ok(());
        };
        let mut distinct = received.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        self.netfilter.transaction(encode::transaction(cut::nudging(true, &distinct)))?;
        distinct.iter().for_each(|tuple| nudger.nudge(tuple));
        self.netfilter.transaction(encode::transaction(cut::nudging(false, &distinct)))
    }

    /// Lets everything go that was cut.
    pub fn remove(&mut self) -> Result<(), Error> {
        self.cut = None;
        self.netfilter.transaction(encode::transaction(cut::remove()))?;
        self.cut = Some(FxHashSet::default());
        Ok(())
    }

    /// Makes these the flows that are cut, and returns how many they are.
    fn put(&mut self, wanted: FxHashSet<Tuple>) -> Result<usize, Error> {
        let before = self.cut.take();
        let requests = match before.filter(|before| self.is_in_force(before)) {
            Some(before) if before == wanted => Vec::new(),
            Some(before) if !before.is_empty() && !wanted.is_empty() => {
                cut::change(wanted.difference(&before), before.difference(&wanted))
            }
            _ if wanted.is_empty() => cut::remove(),
            _ => cut::put(&wanted),
        };
        if !requests.is_empty() {
            self.netfilter.transaction(encode::transaction(requests))?;
        }
        let count = wanted.len();
        self.cut = Some(wanted);
        Ok(count)
    }

    /// Whether nobody else changed what is cut.
    fn is_in_force(&mut self, cut: &FxHashSet<Tuple>) -> bool {
        // Whatever is wrong, it is put there anew.
        cut.is_empty() || cut::is_in_force(&mut self.netfilter, cut).unwrap_or(false)
    }

    /// The addresses of this machine. What has one of them at an end is not forwarded, and no rule
    /// of ours sees it (SEMANTICS 7).
    fn own_addresses(&mut self) -> Result<FxHashSet<IpAddr>, Error> {
        let all = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let mut own = FxHashSet::default();
        for answer in self.route.dump(all)? {
            let RouteNetlinkMessage::NewAddress(message) = answer else { continue };
            own.extend(message.attributes.iter().filter_map(|attribute| match attribute {
                AddressAttribute::Local(address) | AddressAttribute::Address(address) => {
                    Some(*address)
                }
                _ => None,
            }));
        }
        Ok(own)
    }
}

/// The keys of the flows that the state does not allow.
fn refused(state: &NodeState, own: &FxHashSet<IpAddr>, flows: &[Flow]) -> FxHashSet<Tuple> {
    let mut judge = Judge::new(state);
    let by_original: FxHashMap<Tuple, &Flow> =
        flows.iter().map(|flow| (flow.original, flow)).collect();
    let mut allows = |flow: &Flow| {
        // A flow that another one announced is that one's affair.
        let announcing = flow.master.and_then(|master| by_original.get(&master)).copied();
        let Flow { original, reply, .. } = announcing.unwrap_or(flow);
        // Rules see the source before it is translated, and the destination after.
        let opening = Opening {
            source: original.source,
            destination: reply.source,
            protocol: original.protocol,
            port: reply.source_port,
        };
        let passes_by = own.contains(&opening.source) || own.contains(&opening.destination);
        passes_by || judge.allows(&opening)
    };
    flows.iter().filter(|flow| !allows(flow)).map(|flow| cut::key(flow.original)).collect()
}
