//! The verdict on a flow by a node's state alone: what the rules made of the state would say to its
//! first packet.

use std::net::IpAddr;

use portcullis_core::model::Direction;
use portcullis_core::net::Protocol;
use rustc_hash::FxHashMap;

use crate::state::{NodeState, Ports};

/// Who opens a flow to whom, after the address of a Service has become that of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Opening {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// The protocol number above IP.
    pub(crate) protocol: u8,
    /// The destination port; means nothing for protocols without ports.
    pub(crate) port: u16,
}

/// Judges many openings by one state. What has been looked up once is remembered.
#[derive(Debug)]
pub(crate) struct Judge<'s> {
    state: &'s NodeState,
    /// By profile.
    rules: FxHashMap<(u32, Direction), Rules>,
    /// Whether a peer set has an address.
    has: FxHashMap<(u32, IpAddr), bool>,
}

/// The entries of a profile in one direction, as the peers that they allow; `None` is every
/// address.
#[derive(Debug, Default)]
struct Rules {
    every_port: Vec<Option<u32>>,
    one_port: FxHashMap<(u8, u16), Vec<Option<u32>>>,
    ranges: Vec<(Ports, Option<u32>)>,
}

impl<'s> Judge<'s> {
    pub(crate) fn new(state: &'s NodeState) -> Judge<'s> {
        Judge { state, rules: FxHashMap::default(), has: FxHashMap::default() }
    }

    /// Whether it passes both ends, as far as they are this node's: they allow it, or only audit it.
    pub(crate) fn allows(&mut self, opening: &Opening) -> bool {
        let Opening { source, destination, .. } = *opening;
        if self.state.audit {
            return true;
        }
        if source == destination && self.state.endpoints.contains_key(&source) {
            return true;
        }
        let ends =
            [(Direction::Egress, source, destination), (Direction::Ingress, destination, source)];
        ends.into_iter().all(|(direction, local, remote)| {
            match self.state.endpoints.get(&local) {
                Some(profile) => self.end_allows(*profile, direction, remote, opening),
                // Closed until it is known whose it is.
                None => !self.state.ranges.iter().any(|range| range.contains(local)),
            }
        })
    }

    fn end_allows(
        &mut self,
        profile: u32,
        direction: Direction,
        remote: IpAddr,
        opening: &Opening,
    ) -> bool {
        let Some(known) = self.state.profiles.get(&profile) else { return false };
        let Some(entries) = known.entries(direction).filter(|_| !known.is_audited(direction))
        else {
            return true;
        };
        let rules = self.rules.entry((profile, direction)).or_insert_with(|| {
            let mut rules = Rules::default();
            for entry in entries.iter() {
                match entry.ports {
                    None => rules.every_port.push(entry.peers),
                    Some(ports) if ports.first == ports.last => {
                        let key = (ports.protocol.number(), ports.first);
                        rules.one_port.entry(key).or_default().push(entry.peers);
                    }
                    Some(ports) => rules.ranges.push((ports, entry.peers)),
                }
            }
            rules
        });
        let has_ports = Protocol::ALL.iter().any(|known| known.number() == opening.protocol);
        let one_port = rules.one_port.get(&(opening.protocol, opening.port)).filter(|_| has_ports);
        let ranges = rules.ranges.iter().filter(|(ports, _)| {
            ports.protocol.number() == opening.protocol
                && (ports.first..=ports.last).contains(&opening.port)
        });
        let mut peers = rules
            .every_port
            .iter()
            .chain(one_port.into_iter().flatten())
            .chain(ranges.map(|(_, peers)| peers));
        let (state, has) = (self.state, &mut self.has);
        peers.any(|peers| {
            let Some(peers) = *peers else { return true };
            *has.entry((peers, remote))
                .or_insert_with(|| state.peers.get(&peers).is_some_and(|set| set.contains(remote)))
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::{ProptestConfig, prop_assert_eq, proptest};

    use super::{Judge, Opening};
    use crate::{Dataplane, Fake, random};

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

        #[test]
        fn the_judge_says_what_the_rules_say(
            state in random::state(),
            packets in vec(random::packet(), 60),
        ) {
            let mut fake = Fake::new();
            fake.apply(&state).unwrap();
            let mut judge = Judge::new(&state);
            for packet in packets {
                let opening = Opening {
                    source: packet.source,
                    destination: packet.destination,
                    protocol: packet.protocol,
                    port: packet.port.unwrap_or(0),
                };
                prop_assert_eq!(judge.allows(&opening), fake.passes(&packet), "{:?}", packet);
            }
        }
    }
}
