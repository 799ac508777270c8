//! Enforcement by nf_tables, over netlink.

use std::collections::BTreeMap;
use std::time::Instant;

use netlink_packet_core::NetlinkSerializable;
use rustc_hash::FxHashMap;

use crate::encode::{self, Counted};
use crate::netlink::{NETLINK_NETFILTER, NetlinkSocket};
use crate::plan::{Expression, OriginsId, Plan, plan};
use crate::state::NodeState;
use crate::{Dataplane, Error, Hits, Report};

/// The kernel's nf_tables in the network namespace in which this was opened. It owns the table
/// `inet portcullis` and touches nothing else.
#[derive(Debug)]
pub struct Nftables {
    socket: NetlinkSocket,
    /// What was applied last.
    plan: Plan,
}

impl Nftables {
    /// Works in the network namespace of the calling thread. What is in the kernel stays until the
    /// first [`apply`](Dataplane::apply).
    pub fn open() -> Result<Nftables, Error> {
        Ok(Nftables { socket: NetlinkSocket::open(NETLINK_NETFILTER)?, plan: Plan::default() })
    }

    /// What was applied last; empty before the first time.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }
}

impl Dataplane for Nftables {
    fn apply(&mut self, state: &NodeState) -> Result<Report, Error> {
        let start = Instant::now();
        let plan = plan(state)?;
        let requests = encode::replace(&plan);
        let bytes = requests.iter().map(|(message, _)| 16 + message.buffer_len()).sum();
        self.socket.transaction(requests)?;
        let report = plan.report(bytes, start.elapsed());
        self.plan = plan;
        Ok(report)
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

        // The kernel lists the rules of a chain in their order.
        let mut chains: FxHashMap<&str, _> =
            self.plan.chains.iter().map(|chain| (&*chain.name, chain.rules.iter())).collect();
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
            for message in self.socket.dump(encode::get_elements(&set.name))? {
                for (key, counter) in encode::element_counters(&message) {
                    if let Some(origins) = elements.get(key) {
                        add(*origins, counter);
                    }
                }
            }
        }
        Ok(hits.into_values().collect())
    }

    fn remove(&mut self) -> Result<(), Error> {
        self.socket.transaction(encode::remove())?;
        self.plan = Plan::default();
        Ok(())
    }
}
