//! Connections that were open before a state was in force, judged by it (SEMANTICS 24, 25).
//!
//! A flow that its client may no longer open is cut: who opened what goes into a set, and what the
//! kernel takes for a packet of such a flow, in whichever direction, is dropped, with a reset to
//! the sender if it is TCP. The kernel's own entry stays, because it alone knows who opened the
//! flow: without it the next packet of the server would be the first of a flow that the server
//! opens.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::conntrack::{self, Flow, Tuple};
use crate::cut;
use crate::handover::Handovers;
use crate::judge::{Judge, Opening};
use crate::netlink::{NETLINK_NETFILTER, NETLINK_ROUTE, NetlinkSocket};
use crate::nftables::wait_for_packets_under_way;
use crate::nudge::Nudger;
use crate::state::{NodeState, Shared};
use crate::table::{self, Changes, Table};
use crate::{Difference, Error, Headers};

/// The connections of one network namespace.
#[derive(Debug)]
pub struct Connections {
    netfilter: NetlinkSocket,
    route: NetlinkSocket,
    /// `None` if that is not permitted.
    nudger: Option<Nudger>,
    cut: Arc<Mutex<Cut>>,
    handovers: Arc<Mutex<Handovers>>,
    /// Who had which address when they were judged last.
    owners: Shared<BTreeMap<IpAddr, u64>>,
}

/// What is done at once and from any thread, also while connections are judged.
#[derive(Debug, Clone)]
pub struct Release {
    cut: Arc<Mutex<Cut>>,
    handovers: Arc<Mutex<Handovers>>,
}

/// What is cut.
#[derive(Debug)]
struct Cut {
    socket: NetlinkSocket,
    /// What is in the kernel's sets; `None` if that is not known.
    in_force: Option<FxHashSet<Opening>>,
    /// The last state that was put in force, if it is told.
    newest: Option<Arc<NodeState>>,
    changes: Changes,
}

/// What came of a judgement.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Judged {
    /// Flows that the kernel tracks.
    pub tracked: usize,
    /// Flows that are cut, those that were cut before included.
    pub cut: usize,
    /// Flows that are newly cut.
    pub newly_cut: usize,
    /// The first of them.
    pub were_open: Vec<Headers>,
    /// Flows that were forgotten, because their address is another pod's now.
    pub forgotten: usize,
    /// From the beginning to the kernel's word that they are cut.
    pub elapsed: Duration,
}

/// The most that a judgement tells of one by one.
const TOLD: usize = 100;

impl Connections {
    /// Works in the network namespace of the calling thread. What an earlier process cut stays cut
    /// until the first [`judge`](Connections::judge).
    pub fn open() -> Result<Connections, Error> {
        let cut = Cut {
            socket: NetlinkSocket::open(NETLINK_NETFILTER)?,
            in_force: None,
            newest: None,
            changes: Changes::default(),
        };
        Ok(Connections {
            netfilter: NetlinkSocket::open(NETLINK_NETFILTER)?,
            route: NetlinkSocket::open(NETLINK_ROUTE)?,
            nudger: Nudger::open().ok(),
            cut: Arc::new(Mutex::new(cut)),
            handovers: Arc::new(Mutex::new(Handovers::open()?)),
            owners: Shared::default(),
        })
    }

    /// Whether both ends of a cut TCP connection are reset at once. Without the capability
    /// `NET_RAW`, an end is reset when it speaks.
    pub fn resets_idle_ends(&self) -> bool {
        self.nudger.is_some()
    }

    /// Goes on from who had which address when connections were judged last, by an earlier process.
    pub fn remember(&mut self, owners: BTreeMap<IpAddr, u64>) {
        self.owners = owners.into();
    }

    /// For whoever puts states in force on another thread.
    pub fn release(&self) -> Release {
        Release { cut: self.cut.clone(), handovers: self.handovers.clone() }
    }

    /// Cuts every flow of a local pod that the state does not allow, and lets go those that it
    /// allows again. The state must be in force already: what begins from now on is for its rules.
    ///
    /// After an error, call it again: some flows may be cut already.
    pub fn judge(&mut self, state: &NodeState) -> Result<Judged, Error> {
        let start = Instant::now();
        lock(&self.cut).let_go(state)?;
        let handed_over = lock(&self.handovers).under_way().clone();
        let passed_on: FxHashSet<IpAddr> = handed_over.values().flatten().copied().collect();
        // A packet that the rules before let pass may be on its way to be tracked.
        wait_for_packets_under_way();
        let own = self.own_addresses()?;

        let owners = &self.owners;
        let is_another_s = |tuple: &Tuple| {
            let before = owners.get(&tuple.source);
            let another = before.is_some() && before != state.owners.get(&tuple.source);
            another || passed_on.contains(&tuple.source)
        };
        let mut verdicts = Verdicts { judge: Judge::new(state), own, known: FxHashMap::default() };
        let (mut tracked, mut strange) = (0, Vec::new());
        let (mut refused, mut announced) = (Vec::new(), Vec::new());
        conntrack::each(&mut self.netfilter, |flow, told| {
            tracked += 1;
            if [&flow.original, &flow.reply].into_iter().any(is_another_s) {
                strange.push((*flow, told.forgetting()));
            } else if let Some(get) = told.get_announcer() {
                announced.push((*flow, get));
            } else if !verdicts.allow(flow) {
                refused.push(*flow);
            }
        })?;
        // A flow that another one announced is that one's affair.
        for (flow, get) in announced {
            let announcer = conntrack::announcer(&mut self.netfilter, get)?;
            if !verdicts.allow(&announcer.unwrap_or(flow)) {
                refused.push(flow);
            }
        }
        // What the owner of now has opened is not among that.
        if !strange.is_empty() {
            let opened = lock(&self.handovers).opened()?;
            strange.retain(|(flow, _)| {
                let is_left = |end: &&Tuple| {
                    let since = opened.get(&end.source);
                    is_another_s(end) && !since.is_some_and(|flows| flows.contains(&flow.original))
                };
                let left = [&flow.original, &flow.reply].iter().any(is_left);
                if !left && !verdicts.allow(flow) {
                    refused.push(*flow);
                }
                left
            });
        }
        let forgotten = strange.len();
        conntrack::forget(&mut self.netfilter, strange.into_iter().map(|(_, request)| request))?;
        self.owners = state.owners.clone();

        let newly = lock(&self.cut).put(&refused)?;
        lock(&self.handovers).end(&handed_over)?;
        let elapsed = start.elapsed();
        let mut newly_cut = refused.iter().filter(|flow| newly.contains(&cut::key(opening(flow))));
        if let Some(nudger) = &self.nudger {
            let open = newly_cut.clone().filter(|flow| flow.is_open_tcp);
            open.flat_map(Flow::received).for_each(|tuple| nudger.nudge(&tuple));
        }
        let were_open = newly_cut.by_ref().take(TOLD).map(headers).collect::<Vec<_>>();
        let newly_cut = were_open.len() + newly_cut.count();
        Ok(Judged { tracked, cut: refused.len(), newly_cut, were_open, forgotten, elapsed })
    }

    /// How what is cut differs from what was judged last to be, because somebody else changed it. It
    /// costs next to nothing as long as nobody changes anything in nf_tables.
    pub fn differences(&mut self) -> Result<Vec<Difference>, Error> {
        lock(&self.cut).differences()
    }

    /// Lets everything go that was cut.
    pub fn remove(&mut self) -> Result<(), Error> {
        let mut cut = lock(&self.cut);
        cut.in_force = None;
        table::commit(&mut cut.socket, cut::remove())?;
        cut.in_force = Some(FxHashSet::default());
        let mut handovers = lock(&self.handovers);
        let all = handovers.under_way().clone();
        handovers.end(&all)
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

impl Release {
    /// The state is in force from now on: what it allows is not cut any more, also not by a judgement
    /// by an earlier state that is under way.
    ///
    /// After an error something may be cut until the next judgement that need not be.
    pub fn allow(&self, state: Arc<NodeState>) -> Result<(), Error> {
        let mut cut = lock(&self.cut);
        cut.newest = Some(state.clone());
        cut.let_go(&state)
    }

    /// A pod that begins now has these addresses: nothing of what was opened there before passes from
    /// now on. To be called when a state is in force that says so. It lasts until
    /// [`judge`](Connections::judge) is called by that state, or a later one, and is done. `false` if that
    /// is under way for so many pods already that this one has to wait.
    ///
    /// After an error it may be so or not.
    pub fn hand_over(&self, addresses: &[IpAddr]) -> Result<bool, Error> {
        lock(&self.handovers).begin(addresses)
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cut {
    /// Has these flows cut and no others, but those that the newest state allows. Returns by what
    /// they are newly cut.
    fn put(&mut self, refused: &[Flow]) -> Result<FxHashSet<Opening>, Error> {
        let mut newest = self.newest.as_deref().map(Judge::new);
        let mut wanted: FxHashSet<Opening> =
            refused.iter().map(|flow| cut::key(opening(flow))).collect();
        wanted.retain(|opening| newest.as_mut().is_none_or(|judge| !judge.allows(opening)));
        let before = self.in_force.clone().unwrap_or_default();
        let newly = wanted.difference(&before).copied().collect();
        self.make(wanted)?;
        Ok(newly)
    }

    /// Lets go what the state allows.
    fn let_go(&mut self, state: &NodeState) -> Result<(), Error> {
        let Some(in_force) = self.in_force.as_ref().filter(|cut| !cut.is_empty()) else {
            return Ok(());
        };
        let mut judge = Judge::new(state);
        let still = in_force.iter().filter(|opening| !judge.allows(opening)).copied().collect();
        self.make(still)
    }

    fn make(&mut self, wanted: FxHashSet<Opening>) -> Result<(), Error> {
        let requests = match self.in_force.take() {
            Some(before) if before == wanted => Vec::new(),
            Some(before) if !before.is_empty() && !wanted.is_empty() => {
                cut::change(wanted.difference(&before), before.difference(&wanted))
            }
            _ if wanted.is_empty() => cut::remove(),
            _ => cut::put(&wanted),
        };
        if !requests.is_empty() {
            table::commit(&mut self.socket, requests)?;
        }
        self.in_force = Some(wanted);
        Ok(())
    }

    fn differences(&mut self) -> Result<Vec<Difference>, Error> {
        let Some(in_force) = self.in_force.as_ref().filter(|cut| !cut.is_empty()) else {
            return Ok(Vec::new());
        };
        if !self.changes.any(&mut self.socket)? {
            return Ok(Vec::new());
        }
        let differences = Table::differences(&cut::put(in_force), &mut self.socket)?;
        if !differences.is_empty() {
            // Whatever is there, the next judgement puts it there anew.
            self.in_force = None;
        }
        Ok(differences)
    }
}

/// The verdicts on flows by a state. What has been judged once is remembered.
struct Verdicts<'s> {
    judge: Judge<'s>,
    own: FxHashSet<IpAddr>,
    known: FxHashMap<Opening, bool>,
}

impl Verdicts<'_> {
    fn allow(&mut self, flow: &Flow) -> bool {
        let opening = cut::key(opening(flow));
        *self.known.entry(opening).or_insert_with(|| {
            let passes_by =
                self.own.contains(&opening.source) || self.own.contains(&opening.destination);
            passes_by || self.judge.allows(&opening)
        })
    }
}

/// Rules see the source before it is translated, and the destination after.
fn opening(flow: &Flow) -> Opening {
    let Flow { original, reply, .. } = flow;
    Opening {
        source: original.source,
        destination: reply.source,
        protocol: original.protocol,
        port: reply.source_port,
    }
}

fn headers(flow: &Flow) -> Headers {
    let Opening { source, destination, protocol, port } = opening(flow);
    let ports = cut::has_ports(protocol).then_some((flow.original.source_port, port));
    Headers { source, destination, protocol, ports }
}
