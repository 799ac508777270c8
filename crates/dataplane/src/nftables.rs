//! Enforcement by nf_tables, over netlink.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use rustc_hash::{FxHashMap, FxHashSet};
use rustix::thread::{MembarrierCommand, membarrier};

use crate::compare::{self, Listing};
use crate::encode::{self, Counted, Encoder, Request};
use crate::netlink::{NETLINK_NETFILTER, NetlinkSocket};
use crate::plan::{BASE_CHAIN, Expression, OriginsId, Plan, plan};
use crate::state::NodeState;
use crate::{Dataplane, Difference, Error, Hits, Report};

/// The kernel's nf_tables in the network namespace in which this was opened. It owns the table
/// `inet portcullis` and touches nothing else.
#[derive(Debug)]
pub struct Nftables {
    socket: NetlinkSocket,
    /// What was applied last.
    plan: Plan,
    /// The generation of its names.
    generation: u32,
    /// The kernel's number for the state in which all was last seen to be as applied.
    seen: Option<u32>,
    final_hits: Vec<Hits>,
}

impl Nftables {
    /// Works in the network namespace of the calling thread. What is in the kernel stays until the
    /// first [`apply`](Dataplane::apply).
    pub fn open() -> Result<Nftables, Error> {
        Ok(Nftables::over(NetlinkSocket::open(NETLINK_NETFILTER)?))
    }

    /// Works over a socket of [`NETLINK_NETFILTER`], in its namespace.
    pub fn over(socket: NetlinkSocket) -> Nftables {
        Nftables {
            socket,
            plan: Plan::default(),
            generation: 0,
            seen: None,
            final_hits: Vec::new(),
        }
    }

    /// What was applied last; empty before the first time.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// How what is in the kernel differs from what an apply of the state would put there.
    pub fn compare(&mut self, state: &NodeState) -> Result<Vec<Difference>, Error> {
        let plan = plan(state)?;
        let found = self.listing()?;
        let names = found.chains.iter().filter_map(encode::chain_name);
        let in_use = encode::looked_up(&found.rules).or_else(|| {
            let mut ours = names.filter(|name| encode::generation(name) > 0);
            ours.next()
        });
        let generation = in_use.map_or(1, encode::generation);
        Ok(compare::differences(&wanted(&plan, generation), &found))
    }

    /// Everything in our table. A set that somebody deletes meanwhile is not in it.
    fn listing(&mut self) -> Result<Listing, Error> {
        let absent = |error: &Error| error.errno() == Some(Errno::ENOENT as i32);
        let mut listing = Listing {
            tables: self.socket.dump(encode::get_tables())?,
            chains: self.socket.dump(encode::get_chains())?,
            sets: self.socket.dump(encode::get_sets())?,
            ..Listing::default()
        };
        match self.socket.dump(encode::get_rules()) {
            Ok(rules) => listing.rules = rules,
            Err(error) if absent(&error) => {}
            Err(error) => return Err(error),
        }
        for set in listing.sets.iter().filter_map(encode::set_name) {
            match self.socket.dump(encode::get_elements(set)) {
                Ok(elements) => _ = listing.elements.insert(set.to_owned(), elements),
                Err(error) if absent(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(listing)
    }

    /// The kernel's number for its state.
    fn kernel_generation(&mut self) -> Result<Option<u32>, Error> {
        let answers = self.socket.request(encode::get_generation(), 0)?;
        Ok(answers.iter().find_map(encode::kernel_generation))
    }

    /// A generation that no set or chain in the table is of.
    fn free_generation(&mut self) -> Result<u32, Error> {
        let (sets, chains) = self.names()?;
        let used = sets.iter().chain(&chains).map(|name| encode::generation(name));
        let used: FxHashSet<u32> = used.collect();
        let mut generation = 1;
        while used.contains(&generation) {
            generation += 1;
        }
        Ok(generation)
    }

    /// Puts everything beside what is enforced, and then leads packets there in one transaction.
    fn put(&mut self, prepare: Vec<Request>, switch: Vec<Request>) -> Result<(), Error> {
        self.in_pieces(prepare)?;
        self.socket.transaction(encode::transaction(switch))
    }

    /// Sends requests in as few transactions as they fit into.
    fn in_pieces(&mut self, requests: Vec<Request>) -> Result<(), Error> {
        let limit = self.socket.send_limit()?;
        let mut piece = Vec::new();
        let mut size = encode::bytes([]);
        for request in requests {
            let more = encode::bytes([&request]) - encode::bytes([]);
            if size + more > limit && !piece.is_empty() {
                self.socket.transaction(encode::transaction(std::mem::take(&mut piece)))?;
                size = encode::bytes([]);
            }
            size += more;
            piece.push(request);
        }
        if piece.is_empty() {
            return Ok(());
        }
        self.socket.transaction(encode::transaction(piece))
    }

    /// Removes what the base chain does not lead to, when no packet is in it any more.
    ///
    /// Never in the transaction that switches: an element ends with the transaction that deletes
    /// it even for a packet that began in the old base chain, which would then find nothing there
    /// and pass.
    fn remove_generations(&mut self, old: impl Fn(u32) -> bool) -> Result<(), Error> {
        let (mut sets, mut chains) = self.names()?;
        sets.retain(|name| old(encode::generation(name)));
        chains.retain(|name| old(encode::generation(name)));
        if sets.is_empty() && chains.is_empty() {
            return Ok(());
        }
        self.in_pieces(encode::remove_objects(&sets, &chains))
    }

    /// The sets in our table, and the chains other than the base chain.
    fn names(&mut self) -> Result<(Vec<String>, Vec<String>), Error> {
        let sets = self.socket.dump(encode::get_sets())?;
        let chains = self.socket.dump(encode::get_chains())?;
        let sets = sets.iter().filter_map(encode::set_name);
        let chains =
            chains.iter().filter_map(encode::chain_name).filter(|name| *name != BASE_CHAIN);
        Ok((sets.map(str::to_owned).collect(), chains.map(str::to_owned).collect()))
    }
}

impl Dataplane for Nftables {
    fn apply(&mut self, state: &NodeState) -> Result<Report, Error> {
        let start = Instant::now();
        let plan = plan(state)?;
        let generation = self.free_generation()?;
        let encoder = Encoder { plan: &plan, generation };
        let (prepare, switch) = (encoder.prepare(), encoder.switch());
        let bytes = encode::bytes(prepare.iter().chain(&switch));
        let done = self.put(prepare, switch);
        let elapsed = start.elapsed();
        self.seen = None;
        if done.is_ok() {
            wait_for_packets_under_way();
            self.final_hits = self.hits().unwrap_or_default();
        }
        // What a failed removal leaves behind harms nobody, and the next one takes it along.
        let _ = self.remove_generations(|other| (other == generation) == done.is_err());
        done?;
        self.generation = generation;
        self.plan = plan;
        Ok(self.plan.report(bytes, elapsed))
    }

    fn hits(&mut self) -> Result<Vec<Hits>, Error> {
        let mut hits = BTreeMap::<u32, Hits>::new();
        let mut add = |origins: OriginsId, counted: Counted| {
            if counted.packets == 0 {
                return;
            }
            for origin in self.plan.origins(origins) {
                let hits = hits.entry(*origin).or_default();
                hits.origin = *origin;
                hits.packets += counted.packets;
                hits.bytes += counted.bytes;
            }
        };
        if self.plan.chains.is_empty() {
            return Ok(Vec::new());
        }

        let encoder = Encoder { plan: &self.plan, generation: self.generation };
        // The kernel lists the rules of a chain in their order. Those of the base chain do not
        // count.
        let chains = self.plan.chains.iter();
        let mut chains: FxHashMap<String, _> =
            chains.map(|chain| (encoder.name(&chain.name), chain.rules.iter())).collect();
        for message in self.socket.dump(encode::get_rules())? {
            let Some((chain, counter)) = encode::rule_counter(&message) else { continue };
            let rule = chains.get_mut(chain).and_then(Iterator::next);
            if let (Some(rule), Some(counter)) = (rule, counter) {
                let origins = rule.0.iter().filter_map(|part| match part {
                    Expression::Count(origins) => Some(*origins),
                    _ => None,
                });
                origins.for_each(|origins| add(origins, counter));
            }
        }

        for set in self.plan.sets.iter().filter(|set| set.counted) {
            let elements: FxHashMap<Vec<u8>, OriginsId> = set
                .elements
                .iter()
                .map(|element| (encode::element_key(element.key), element.origins))
                .collect();
            for message in self.socket.dump(encode::get_elements(&encoder.name(&set.name)))? {
                for (key, counter) in encode::element_counters(&message) {
                    if let Some(origins) = elements.get(key) {
                        add(*origins, counter);
                    }
                }
            }
        }
        Ok(hits.into_values().collect())
    }

    fn take_final_hits(&mut self) -> Vec<Hits> {
        std::mem::take(&mut self.final_hits)
    }

    fn differences(&mut self) -> Result<Vec<Difference>, Error> {
        if self.generation == 0 {
            return Ok(Vec::new());
        }
        let now = self.kernel_generation()?;
        if now.is_some() && now == self.seen {
            return Ok(Vec::new());
        }
        let found = self.listing()?;
        let differences = compare::differences(&wanted(&self.plan, self.generation), &found);
        // What changed since is of another number, and will be seen the next time.
        self.seen = now.filter(|_| differences.is_empty());
        Ok(differences)
    }

    fn remove(&mut self) -> Result<(), Error> {
        self.generation = 0;
        self.socket.transaction(encode::transaction(encode::remove()))?;
        self.plan = Plan::default();
        Ok(())
    }
}

/// The requests that put a plan there, of which the kernel then says the same.
fn wanted(plan: &Plan, generation: u32) -> Vec<Request> {
    let encoder = Encoder { plan, generation };
    encoder.prepare().into_iter().chain(encoder.switch()).collect()
}

/// Returns when every packet that is in the rules now has left them: the kernel takes packets
/// through in read-side critical sections of RCU, and this is a system call that waits for those.
/// It takes some 10 ms. A kernel that refuses it (one with `nohz_full`) is given far more time than
/// a packet takes.
pub(crate) fn wait_for_packets_under_way() {
    if membarrier(MembarrierCommand::Global).is_err() {
        thread::sleep(Duration::from_millis(100));
    }
}
