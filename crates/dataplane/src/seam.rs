//! What every data plane does.

use std::ops::AddAssign;
use std::time::Duration;

use crate::state::NodeState;
use crate::{Difference, Error, Unseen};

/// One node's enforcement. The desired state goes in whole; how it is reached is not the caller's
/// business.
pub trait Dataplane {
    /// Makes the state the one that is enforced, in place of whatever was enforced before. A packet
    /// on its way through while one follows the other never passes if both refuse it. After an
    /// error all is as it was.
    fn apply(&mut self, state: &NodeState) -> Result<Report, Error>;

    /// Removes what applies have put aside, as far as no packet is in it any more; `wait` waits
    /// until that is so. Tells whether something is left, for which it has to be called again.
    /// What was put aside harms nobody, and no apply waits for it.
    fn tidy(&mut self, wait: bool) -> bool;

    /// What was allowed in all, by origin, origins without hits left out. It never becomes less,
    /// whatever is applied.
    ///
    /// A new connection counts once in each direction in which its pod is isolated, for the rule
    /// that let it pass. It counts for several origins where the looked-up key stands for all of
    /// them. Where entries of different form allow it (exact ports, every port, port ranges), only
    /// those of the form that is looked up first count. What passes while rules follow each other
    /// may be left out.
    fn hits(&mut self) -> Result<Vec<Hits>, Error>;

    /// What no rule allowed in all: packets of new connections, each time that they are sent. It never
    /// becomes less, whatever is applied.
    fn ended(&mut self) -> Result<Ended, Error>;

    /// How what is in force differs from what was applied last, because somebody else changed it.
    /// Nothing before the first [`apply`](Dataplane::apply). To be asked often: it costs next to
    /// nothing as long as nobody changes anything.
    fn differences(&mut self) -> Result<Vec<Difference>, Error>;

    /// Where packets of the node's endpoints pass without meeting the rules. To be asked on a thread
    /// that is in the node's network namespace.
    fn unseen(&mut self) -> Result<Vec<Unseen>, Error> {
        Ok(Vec::new())
    }

    /// Ends all enforcement. Nothing to remove is fine.
    fn remove(&mut self) -> Result<(), Error>;
}

/// What an [`apply`](Dataplane::apply) put in place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Chains, the base chain included.
    pub chains: usize,
    /// Rules in all chains.
    pub rules: usize,
    /// Sets and maps.
    pub sets: usize,
    /// Elements that were added or removed.
    pub elements: usize,
    /// Bytes sent to the kernel.
    pub bytes: usize,
    /// Time from the state to the kernel's word that it is enforced. What was enforced before is
    /// removed after that.
    pub elapsed: Duration,
}

/// What no rule allowed, by direction in the order of
/// [`Direction::BOTH`](crate::plan::Direction::BOTH).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ended {
    /// What was refused.
    pub refused: [Tally; 2],
    /// What would have been, and passed.
    pub audited: [Tally; 2],
}

/// What came to the end of rules.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Packets.
    pub packets: u64,
    /// Those that were told to the group of [`NodeState::log`].
    pub told: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, more: Tally) {
        self.packets += more.packets;
        self.told += more.told;
    }
}

/// What one origin let pass: the first packets of connections, for later ones are not looked up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hits {
    /// The origin, as in the applied state.
    pub origin: u32,
    /// Packets.
    pub packets: u64,
    /// Bytes, with IP headers.
    pub bytes: u64,
}
