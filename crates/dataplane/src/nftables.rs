//! Enforcement by nf_tables, over netlink.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use portcullis_core::net::Family;
use rustc_hash::{FxHashMap, FxHashSet};
use rustix::thread::{MembarrierCommand, membarrier};

use crate::bridge;
use crate::compare::{self, Listing};
use crate::counts::Counts;
use crate::encode::{self, Counted, Encoder, Names, Request};
use crate::netlink::{NETLINK_NETFILTER, NETLINK_ROUTE, NetlinkSocket, absent_is_fine};
use crate::plan::{BASE_CHAIN, Chain, ChainId, Element, Key, Plan, Planner, Set, SetId, plan};
use crate::state::NodeState;
use crate::update::Update;
use crate::witness::{self, Witness};
use crate::{Dataplane, Difference, Ended, Error, Hits, Report, Unseen};

/// The kernel's nf_tables in the network namespace in which this was opened. It owns the table
/// `inet portcullis` and touches nothing else.
#[derive(Debug)]
pub struct Nftables {
    socket: NetlinkSocket,
    planner: Planner,
    /// What was applied last.
    installed: Option<Installed>,
    /// Whether what is in the kernel may be something else.
    disturbed: bool,
    /// The last generation of names.
    generation: u32,
    /// The kernel's number for the state in which all was last seen to be as applied.
    seen: Option<u32>,
    /// Tells whether what others change is of concern; `None` where it is not known in which namespace
    /// to listen.
    witness: Option<Witness>,
    /// How often all of the table was read back.
    listings: u64,
    /// Asked for routes; `None` where it is not known in which namespace that would be.
    routes: Option<NetlinkSocket>,
    /// The addresses of the endpoints of what was applied last.
    endpoints: Vec<IpAddr>,
    /// What is to be removed, the oldest first.
    aside: VecDeque<Aside>,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Installed {
    plan: Plan,
    names: Names,
}

/// What the rules no longer lead to.
#[derive(Debug)]
struct Aside {
    /// Ends when no packet is in it any more.
    left: JoinHandle<()>,
    /// By name; `None` if what is in it is not ours to know.
    sets: Vec<(String, Option<Arc<Set>>)>,
    chains: Vec<(String, Option<Arc<Chain>>)>,
}

/// So many elements are asked for at once.
const ASKED: usize = 256;
/// An element that is asked for costs as much as so many that are listed.
const LISTED: usize = 8;
/// The rules of more chains are read with those of all others.
const CHAINS: usize = 32;

impl Nftables {
    /// Works in the network namespace of the calling thread. What is in the kernel stays until the
    /// first [`apply`](Dataplane::apply).
    pub fn open() -> Result<Nftables, Error> {
        let (routes, witness) = (NetlinkSocket::open(NETLINK_ROUTE)?, Witness::open()?);
        let (routes, witness) = (Some(routes), Some(witness));
        Ok(Nftables { routes, witness, ..Nftables::over(NetlinkSocket::open(NETLINK_NETFILTER)?) })
    }

    /// Works over a socket of [`NETLINK_NETFILTER`], in its namespace.
    pub fn over(socket: NetlinkSocket) -> Nftables {
        Nftables {
            socket,
            planner: Planner::default(),
            installed: None,
            disturbed: false,
            generation: 0,
            seen: None,
            witness: None,
            listings: 0,
            routes: None,
            endpoints: Vec::new(),
            aside: VecDeque::new(),
            counts: Counts::default(),
        }
    }

    /// How what is in the kernel differs from what an apply of the state would put there.
    pub fn compare(&mut self, state: &NodeState) -> Result<Vec<Difference>, Error> {
        let plan = plan(state)?;
        let found = self.listing()?;
        // Of several generations, the last is the one in force.
        let mut last: FxHashMap<&str, u32> = FxHashMap::default();
        let sets = found.sets.iter().filter_map(encode::set_name);
        for name in sets.chain(found.chains.iter().filter_map(encode::chain_name)) {
            let (base, generation) = (compare::without_generation(name), encode::generation(name));
            let known = last.entry(base).or_default();
            *known = generation.max(*known);
        }
        let mut names = Names::all(&plan, 1);
        let in_force = |id: &dyn ToString| last.get(&*id.to_string()).copied().unwrap_or(1);
        names.sets.iter_mut().for_each(|(id, generation)| *generation = in_force(id));
        names.chains.iter_mut().for_each(|(id, generation)| *generation = in_force(id));
        let mut differences =
            compare::differences(&Encoder { plan: &plan, names: &names }.all(), &found);
        // Whoever enforces leaves these behind for a moment.
        let is_left =
            |name: &str| Family::ALL.iter().any(|family| is_of(name, SetId::Changed(*family)));
        differences.retain(|difference| match difference {
            Difference::Foreign(what) => !what.strip_prefix("set ").is_some_and(is_left),
            _ => true,
        });
        Ok(differences)
    }

    /// How often all of the table was read back, to see what somebody else may have changed in it.
    pub fn listings(&self) -> u64 {
        self.listings
    }

    /// Everything in our table. A set that somebody deletes meanwhile is not in it.
    fn listing(&mut self) -> Result<Listing, Error> {
        self.listings += 1;
        let mut listing = Listing {
            tables: self.socket.dump(encode::get_tables())?,
            chains: self.socket.dump(encode::get_chains())?,
            sets: self.socket.dump(encode::get_sets())?,
            ..Listing::default()
        };
        listing.rules = absent_is_fine(self.socket.dump(encode::get_rules(None)))?;
        let ours = listing.sets.iter().filter(|set| !encode::is_dynamic(set));
        for set in ours.filter_map(encode::set_name) {
            match self.socket.dump(encode::get_elements(set)) {
                Ok(elements) => _ = listing.elements.insert(set.to_owned(), elements),
                Err(error) if error.errno() == Some(Errno::ENOENT as i32) => {}
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

    /// One transaction. As long as nobody else makes any, the kernel's number is known after it.
    fn transaction(&mut self, requests: Vec<Request>) -> Result<(), Error> {
        let _turn = witness::turn();
        self.witness.iter_mut().for_each(Witness::off);
        let done = self.socket.transaction(encode::transaction(requests));
        if let Some(witness) = &mut self.witness {
            // What it misses shows in the kernel's number.
            let _ = witness.on();
        }
        done?;
        // 0 is never used.
        self.seen = self.seen.map(|seen| seen.wrapping_add(1).max(1));
        Ok(())
    }

    /// Sends requests in as few transactions as they fit into.
    fn in_pieces(&mut self, requests: Vec<Request>) -> Result<(), Error> {
        let limit = self.socket.send_limit()?;
        let mut piece = Vec::new();
        let mut size = encode::bytes([]);
        for request in requests {
            let more = encode::bytes([&request]) - encode::bytes([]);
            if size + more > limit && !piece.is_empty() {
                self.transaction(std::mem::take(&mut piece))?;
                size = encode::bytes([]);
            }
            size += more;
            piece.push(request);
        }
        if piece.is_empty() {
            return Ok(());
        }
        self.transaction(piece)
    }

    /// Puts a plan there whole, in place of whatever is there.
    fn install(&mut self, plan: Plan, start: Instant) -> Result<Report, Error> {
        self.disturbed = true;
        self.seen = self.kernel_generation()?;
        let (sets, chains) = self.names()?;
        let found = sets.iter().chain(&chains).map(|name| encode::generation(name));
        // Somebody else's name may end with the largest number.
        let last = found.filter(|generation| *generation < u32::MAX / 2).max().unwrap_or_default();
        self.generation = self.generation.max(last) + 1;
        let names = Names::all(&plan, self.generation);
        let encoder = Encoder { plan: &plan, names: &names };
        let prepare = encoder.prepare(plan.sets.keys().copied(), plan.chains.keys().copied());
        let switch = encoder.switch([ChainId::Base].into_iter());
        let bytes = encode::bytes(prepare.iter().chain(&switch));
        let done = self.in_pieces(prepare).and_then(|()| self.transaction(switch));
        let elapsed = start.elapsed();
        if let Err(error) = done {
            self.seen = None;
            let sets = names.sets.keys().map(|id| names.set(*id)).collect::<Vec<_>>();
            let chains = names.chains.keys().filter(|id| **id != ChainId::Base);
            let chains = chains.map(|id| names.chain(*id)).collect::<Vec<_>>();
            self.abandon(&sets, &chains);
            return Err(error);
        }
        let old = self.installed.take().unwrap_or_default();
        let known: FxHashMap<String, Arc<Set>> =
            old.plan.sets.iter().map(|(id, set)| (old.names.set(*id), set.clone())).collect();
        let known_chains: FxHashMap<String, Arc<Chain>> = old
            .plan
            .chains
            .iter()
            .map(|(id, chain)| (old.names.chain(*id), chain.clone()))
            .collect();
        // What was put aside before is among what was found.
        self.aside.clear();
        let with_set = |name: String| {
            let set = known.get(&name).cloned();
            (name, set)
        };
        let with_chain = |name: String| {
            let chain = known_chains.get(&name).cloned();
            (name, chain)
        };
        self.put_aside(
            sets.into_iter().map(with_set).collect(),
            chains.into_iter().map(with_chain).collect(),
        );
        let elements = plan.sets.values().map(|set| set.len()).sum();
        let report = plan.report(elements, bytes, elapsed);
        self.installed = Some(Installed { plan, names });
        self.disturbed = false;
        Ok(report)
    }

    /// Leads from what is installed to a plan.
    fn update(
        &mut self,
        installed: Installed,
        plan: &Plan,
        start: Instant,
    ) -> Result<Report, Error> {
        let limit = self.socket.send_limit()?;
        // A packet can be so late that there have been other states since.
        let older = self.aside.iter().flat_map(|aside| &aside.sets);
        let older: Vec<&str> = older.map(|(name, _)| &**name).collect();
        let mut step = Step::new(&installed, &older, plan, self.generation + 1, true);
        if encode::bytes(&step.switch) > limit {
            step = Step::new(&installed, &older, plan, self.generation + 1, false);
        }
        let Step { update, names, mut prepare, mut switch } = step;
        let elements = update.elements(plan);
        let bytes = match prepare.is_empty() && switch.is_empty() {
            true => 0,
            false => encode::bytes(prepare.iter().chain(&switch)),
        };
        if bytes <= limit && update.at_once(plan) {
            prepare.append(&mut switch);
        }
        if !update.new_sets.is_empty() || !update.new_chains.is_empty() {
            self.generation += 1;
        }
        let done = self.count_before(&installed, &update).and_then(|counts| {
            self.in_pieces(prepare)?;
            if !switch.is_empty() {
                self.transaction(switch)?;
            }
            Ok(counts)
        });
        let elapsed = start.elapsed();
        match done {
            Ok(counts) => self.counts = counts,
            Err(error) => {
                self.seen = None;
                let sets: Vec<_> = update.new_sets.iter().map(|id| names.set(*id)).collect();
                let chains: Vec<_> = update.new_chains.iter().map(|id| names.chain(*id)).collect();
                self.abandon(&sets, &chains);
                self.installed = Some(installed);
                return Err(error);
            }
        }
        let set = |id: &SetId| (installed.names.set(*id), installed.plan.sets.get(id).cloned());
        let chain =
            |id: &ChainId| (installed.names.chain(*id), installed.plan.chains.get(id).cloned());
        self.put_aside(
            update.old_sets.iter().map(set).collect(),
            update.old_chains.iter().map(chain).collect(),
        );
        self.installed = Some(Installed { plan: plan.clone(), names });
        Ok(plan.report(elements, bytes, elapsed))
    }

    /// What will have been counted once an update is done, of what it ends or makes count for
    /// others.
    fn count_before(&mut self, installed: &Installed, update: &Update) -> Result<Counts, Error> {
        // An update that is refused ends nothing.
        let mut counts = self.counts.clone();
        self.count_into(&mut counts, installed, update)?;
        Ok(counts)
    }

    fn count_into(
        &mut self,
        counts: &mut Counts,
        installed: &Installed,
        update: &Update,
    ) -> Result<(), Error> {
        let removed = update.in_place.iter().map(|(id, delta)| {
            (id, delta.removed.iter().map(|element| element.key).collect::<Vec<_>>(), false)
        });
        let anew = update.count_anew.iter().map(|(id, keys)| (id, keys.clone(), true));
        for (id, keys, stays) in removed.chain(anew) {
            let Some(set) = installed.plan.set(*id).filter(|set| set.counted) else { continue };
            let name = installed.names.set(*id);
            let keys = keys.into_iter().map(|key| (encode::element_key(key), key));
            let mut missing: FxHashMap<Vec<u8>, Key> = keys.collect();
            let mut found: Vec<(Vec<u8>, Counted)> = Vec::new();
            if missing.len() * LISTED > set.len()
                && let Ok(answers) = self.socket.dump(encode::get_elements(&name))
            {
                for (key, counter) in answers.iter().flat_map(encode::element_counters) {
                    found.extend(missing.remove_entry(key).map(|(key, _)| (key, counter)));
                }
            }
            // A list can lack some, where the kernel makes room in the set meanwhile.
            for keys in missing.into_values().collect::<Vec<_>>().chunks(ASKED) {
                let answers = self.socket.request(encode::get_some_elements(&name, keys), 0)?;
                let all = answers.iter().flat_map(encode::element_counters);
                found.extend(all.map(|(key, counter)| (key.to_vec(), counter)));
            }
            counts.add_elements(&name, set, found.iter().map(|(key, counter)| (&**key, *counter)));
            if stays {
                counts.begun.entry(name).or_default().extend(found);
            } else if let Some(begun) = counts.begun.get_mut(&name) {
                found.iter().for_each(|(key, _)| _ = begun.remove(key));
            }
        }
        let changed = update.changed_chains.iter();
        let chains = changed.filter_map(|id| {
            Some((installed.names.chain(*id), installed.plan.chains.get(id)?.clone()))
        });
        self.count_rules(counts, chains)
    }

    /// Adds what the rules of these chains say now.
    fn count_rules(
        &mut self,
        counts: &mut Counts,
        chains: impl Iterator<Item = (String, Arc<Chain>)>,
    ) -> Result<(), Error> {
        let chains: Vec<_> = chains.filter(|(_, chain)| chain.counts()).collect();
        let mut messages = Vec::new();
        match chains.len() > CHAINS {
            true => messages = self.socket.dump(encode::get_rules(None))?,
            false => {
                for (name, _) in &chains {
                    messages.extend(self.socket.dump(encode::get_rules(Some(name)))?);
                }
            }
        }
        counts.add_rules(&messages, chains.into_iter());
        Ok(())
    }

    /// Has things removed when no packet is in them any more.
    ///
    /// Never in the transaction that takes the rules away from them: an element ends with the
    /// transaction that deletes it even for a packet in the old rules, which would then find
    /// nothing in its map, and pass.
    fn put_aside(
        &mut self,
        sets: Vec<(String, Option<Arc<Set>>)>,
        chains: Vec<(String, Option<Arc<Chain>>)>,
    ) {
        if !sets.is_empty() || !chains.is_empty() {
            let left = thread::spawn(wait_for_packets_under_way);
            self.aside.push_back(Aside { left, sets, chains });
        }
    }

    /// Removes what no packet has come to. What that leaves behind harms nobody, and the next
    /// install takes it along.
    fn abandon(&mut self, sets: &[String], chains: &[String]) {
        let (found_sets, found_chains) = self.names().unwrap_or_default();
        let found: FxHashSet<String> = found_sets.into_iter().chain(found_chains).collect();
        let there = |names: &[String]| -> Vec<String> {
            names.iter().filter(|name| found.contains(*name)).cloned().collect()
        };
        let _ = self.in_pieces(encode::remove_objects(&there(sets), &there(chains)));
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

    /// Adds what the counters of these sets and chains say now.
    fn count(
        &mut self,
        counts: &mut Counts,
        sets: &[(String, Arc<Set>)],
        chains: &[(String, Arc<Chain>)],
    ) -> Result<(), Error> {
        self.count_rules(counts, chains.iter().cloned())?;
        for (name, set) in sets.iter().filter(|(_, set)| set.counted) {
            for message in self.socket.dump(encode::get_elements(name))? {
                counts.add_elements(name, set, encode::element_counters(&message).into_iter());
            }
        }
        Ok(())
    }
}

/// Whether it is the name of a set, in any generation.
fn is_of(name: &str, id: SetId) -> bool {
    compare::without_generation(name) == id.to_string()
}

/// What an update sends.
struct Step {
    update: Update,
    names: Names,
    prepare: Vec<Request>,
    switch: Vec<Request>,
}

impl Step {
    /// `older` are the sets that rules from before what is installed look into.
    fn new(
        installed: &Installed,
        older: &[&str],
        plan: &Plan,
        generation: u32,
        in_place: bool,
    ) -> Step {
        let update = Update::between(&installed.plan, plan, in_place);
        let mut names = installed.names.clone();
        update.old_sets.iter().for_each(|id| _ = names.sets.remove(id));
        update.old_chains.iter().for_each(|id| _ = names.chains.remove(id));
        names.sets.extend(update.new_sets.iter().map(|id| (*id, generation)));
        names.chains.extend(update.new_chains.iter().map(|id| (*id, generation)));
        let encoder = Encoder { plan, names: &names };
        let prepare = match update.new_sets.is_empty() && update.new_chains.is_empty() {
            true => Vec::new(),
            false => {
                encoder.prepare(update.new_sets.iter().copied(), update.new_chains.iter().copied())
            }
        };
        let mut switch = Vec::new();
        for (id, delta) in &update.in_place {
            encoder.change(*id, &delta.added, &delta.removed, &mut switch);
        }
        let before = Encoder { plan: &installed.plan, names: &installed.names };
        for family in Family::ALL {
            let id = SetId::Changed(family);
            let changed = update.changed.iter().filter(|address| Family::of(**address) == family);
            let changed = changed.map(|address| Element::plain(Key::Address(*address)));
            let own = before.names.set(id);
            let asked = older.iter().copied().filter(|name| is_of(name, id)).chain([&*own]);
            asked.for_each(|name| before.add_to(name, id, changed.clone(), &mut switch));
        }
        switch.extend(encoder.switch(update.changed_chains.iter().copied()));
        Step { update, names, prepare, switch }
    }
}

impl Dataplane for Nftables {
    fn apply(&mut self, state: &NodeState) -> Result<Report, Error> {
        let start = Instant::now();
        let plan = self.planner.plan(state)?;
        self.endpoints = state.endpoints.keys().copied().collect();
        if !self.disturbed
            && let Some(installed) = self.installed.take()
            && let Ok(report) = self.update(installed, &plan, start)
        {
            return Ok(report);
        }
        // An update is refused where somebody else has been.
        self.install(plan, start)
    }

    fn tidy(&mut self, wait: bool) -> bool {
        while let Some(aside) = self.aside.pop_front_if(|aside| wait || aside.left.is_finished()) {
            let Aside { left, sets, chains } = aside;
            // It does not panic.
            let _ = left.join();
            let known = sets.iter().filter_map(|(name, set)| Some((name.clone(), set.clone()?)));
            let known_sets: Vec<_> = known.collect();
            let known = chains.iter().filter_map(|(name, c)| Some((name.clone(), c.clone()?)));
            let known_chains: Vec<_> = known.collect();
            let mut counts = std::mem::take(&mut self.counts);
            let _ = self.count(&mut counts, &known_sets, &known_chains);
            self.counts = counts;
            let sets: Vec<_> = sets.into_iter().map(|(name, _)| name).collect();
            let chains: Vec<_> = chains.into_iter().map(|(name, _)| name).collect();
            sets.iter().for_each(|name| _ = self.counts.begun.remove(name));
            // What a failed removal leaves behind harms nobody, and the next install takes it
            // along.
            let _ = self.in_pieces(encode::remove_objects(&sets, &chains));
        }
        !self.aside.is_empty()
    }

    fn hits(&mut self) -> Result<Vec<Hits>, Error> {
        let Some(installed) = &self.installed else {
            return Ok(self.counts.past.values().copied().collect());
        };
        let (plan, names) = (&installed.plan, &installed.names);
        let sets = plan.sets.iter().map(|(id, set)| (names.set(*id), set.clone()));
        let mut sets: Vec<_> = sets.collect();
        let chains = plan.chains.iter().map(|(id, chain)| (names.chain(*id), chain.clone()));
        let mut chains: Vec<_> = chains.collect();
        for aside in &self.aside {
            sets.extend(aside.sets.iter().filter_map(|(n, set)| Some((n.clone(), set.clone()?))));
            chains.extend(aside.chains.iter().filter_map(|(n, c)| Some((n.clone(), c.clone()?))));
        }
        let mut counts = Counts {
            past: self.counts.past.clone(),
            begun: std::mem::take(&mut self.counts.begun),
            ..Counts::default()
        };
        let counted = self.count(&mut counts, &sets, &chains);
        self.counts.begun = counts.begun;
        counted?;
        Ok(counts.past.into_values().collect())
    }

    fn ended(&mut self) -> Result<Ended, Error> {
        let mut counts = Counts { ended: self.counts.ended, ..Counts::default() };
        let installed = self.installed.iter().flat_map(|Installed { plan, names }| {
            plan.chains.iter().map(move |(id, chain)| (*id, names.chain(*id), chain.clone()))
        });
        let last =
            installed.filter(|(id, ..)| matches!(id, ChainId::Refused(_) | ChainId::Audited(_)));
        let last = last.map(|(_, name, chain)| (name, chain));
        // It is told by the name which of those put aside these are.
        let aside =
            self.aside.iter().flat_map(|aside| &aside.chains).filter_map(|(name, chain)| {
                (name.starts_with("refused-") || name.starts_with("audited-"))
                    .then_some((name.clone(), chain.clone()?))
            });
        for chain in last.chain(aside).collect::<Vec<_>>() {
            let rules = self.socket.dump(encode::get_rules(Some(&chain.0)))?;
            counts.add_rules(&rules, [chain].into_iter());
        }
        Ok(counts.ended)
    }

    fn differences(&mut self) -> Result<Vec<Difference>, Error> {
        if self.installed.is_none() {
            return Ok(Vec::new());
        }
        // First what is told, then how far that has to go: what comes between is seen the next time, and is
        // nothing of ours.
        let turn = witness::turn();
        let others = self.witness.as_mut().and_then(Witness::elsewhere);
        let now = self.kernel_generation()?;
        drop(turn);
        let unchanged = self.seen.zip(now).is_some_and(|(seen, now)| {
            let since = now.wrapping_sub(seen);
            since == 0 || Some(since) == others
        });
        if unchanged {
            self.seen = now;
            return Ok(Vec::new());
        }
        let mut found = self.listing()?;
        let aside = self.aside.iter();
        let aside: FxHashSet<&str> = aside
            .flat_map(|aside| {
                let sets = aside.sets.iter().map(|(name, _)| &**name);
                sets.chain(aside.chains.iter().map(|(name, _)| &**name))
            })
            .collect();
        let kept = |name: Option<&str>| name.is_none_or(|name| !aside.contains(name));
        found.sets.retain(|set| kept(encode::set_name(set)));
        found.chains.retain(|chain| kept(encode::chain_name(chain)));
        let Some(Installed { plan, names }) = &self.installed else { return Ok(Vec::new()) };
        let differences = compare::differences(&Encoder { plan, names }.all(), &found);
        // What changed since is of another number, and will be seen the next time.
        self.seen = now.filter(|_| differences.is_empty());
        self.disturbed |= !differences.is_empty();
        Ok(differences)
    }

    fn unseen(&mut self) -> Result<Vec<Unseen>, Error> {
        let endpoints = self.endpoints.iter().copied();
        self.routes.as_mut().map_or(Ok(Vec::new()), |routes| bridge::unseen(routes, endpoints))
    }

    fn remove(&mut self) -> Result<(), Error> {
        self.installed = None;
        self.aside.clear();
        self.transaction(encode::remove())
    }
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
