//! Hits by origin, of counters that come and go.

use std::collections::BTreeMap;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::attributes::Message;
use crate::encode::{self, Counted};
use crate::plan::{Chain, ChainId, Expression, Set};
use crate::{Ended, Hits, Tally};

/// What was counted of things that are no longer there, and where counters began to count for what
/// they count for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counts {
    /// By origin.
    pub(crate) past: BTreeMap<u32, Hits>,
    pub(crate) ended: Ended,
    /// By set and key.
    pub(crate) begun: FxHashMap<String, FxHashMap<Vec<u8>, Counted>>,
}

impl Ended {
    /// Changes what has come to a chain in which packets end.
    pub(crate) fn of(&mut self, chain: ChainId, change: impl FnOnce(&mut Tally)) {
        match chain {
            ChainId::Refused(direction) => change(&mut self.refused[direction as usize]),
            ChainId::Audited(direction) => change(&mut self.audited[direction as usize]),
            ChainId::Base | ChainId::Profile(..) | ChainId::Ports(..) => {}
        }
    }
}

impl Counts {
    fn add(&mut self, origins: &[u32], counted: Counted) {
        if counted.packets == 0 {
            return;
        }
        for origin in origins {
            let hits = self.past.entry(*origin).or_default();
            hits.origin = *origin;
            hits.packets += counted.packets;
            hits.bytes += counted.bytes;
        }
    }

    /// Adds what elements of a set have counted since they count for what they count for.
    pub(crate) fn add_elements<'a>(
        &mut self,
        name: &str,
        set: &Set,
        counters: impl Iterator<Item = (&'a [u8], Counted)>,
    ) {
        let mut counters = counters.filter(|(_, counter)| counter.packets > 0).peekable();
        if counters.peek().is_none() {
            return;
        }
        let origins: FxHashMap<Vec<u8>, _> =
            set.elements().map(|e| (encode::element_key(e.key), e.origins)).collect();
        for (key, counter) in counters {
            let begun = self.begun.get(name).and_then(|begun| begun.get(key)).copied();
            let begun = begun.unwrap_or_default();
            let since = Counted {
                packets: counter.packets.saturating_sub(begun.packets),
                bytes: counter.bytes.saturating_sub(begun.bytes),
            };
            if let Some(id) = origins.get(key) {
                self.add(set.origins(*id), since);
            }
        }
    }

    /// Adds what rules of these chains have counted. The kernel lists the rules of a chain in their
    /// order.
    pub(crate) fn add_rules(
        &mut self,
        messages: &[Message],
        chains: impl Iterator<Item = (String, Arc<Chain>)>,
    ) {
        let chains: FxHashMap<String, Arc<Chain>> = chains.collect();
        let mut at: FxHashMap<&str, usize> = FxHashMap::default();
        for message in messages {
            let Some((name, counter)) = encode::rule_counter(message) else { continue };
            let Some(chain) = chains.get(name) else { continue };
            let index = at.entry(name).or_default();
            let rule = chain.rules.get(*index);
            *index += 1;
            let (Some(rule), Some(counter)) = (rule, counter) else { continue };
            for part in &rule.0 {
                match part {
                    Expression::Count(origins) => self.add(origins, counter),
                    Expression::Tell(chain, _) => {
                        self.ended.of(*chain, |tally| tally.told += counter.packets);
                    }
                    Expression::Tally(chain) => {
                        self.ended.of(*chain, |tally| tally.packets += counter.packets);
                    }
                    _ => {}
                }
            }
        }
    }
}
