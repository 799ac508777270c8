//! What stands in the kernel without the agent, told to whoever starts pods meanwhile.

use std::path::PathBuf;

use portcullis_cni::InForce;
use portcullis_dataplane::state::NodeState;
use tracing::warn;

/// The file that tells it. Without a place for it nothing is told.
#[derive(Debug, Default)]
pub(crate) struct Told {
    socket: Option<PathBuf>,
    /// What the file says.
    last: InForce,
}

impl Told {
    /// Goes on with what an earlier agent has told: it is still in force.
    pub(crate) fn beside(socket: PathBuf) -> Told {
        let last = InForce::read(&socket).unwrap_or_default();
        Told { socket: Some(socket), last }
    }

    /// To be called before this state is put in force: from now on either may be. An address is
    /// closed only if both close it.
    pub(crate) fn before(&mut self, state: &NodeState) {
        if self.socket.is_none() {
            return;
        }
        let mut both = of(state);
        both.closed.retain(|range| self.last.closed.contains(range));
        both.audit &= self.last.audit;
        both.owners.clone_from(&self.last.owners);
        both.programmed.extend(&self.last.programmed);
        both.programmed.sort_unstable();
        both.programmed.dedup();
        self.tell(both);
    }

    /// To be called when this state is in force, also for connections that were open before.
    pub(crate) fn after(&mut self, state: &NodeState) {
        if self.socket.is_some() {
            self.tell(of(state));
        }
    }

    fn tell(&mut self, new: InForce) {
        let Some(socket) = self.socket.as_ref().filter(|_| new != self.last) else { return };
        if let Err(error) = new.write(socket) {
            let file = InForce::path(socket);
            warn!(file = %file.display(), %error, "cannot write what is in force");
            // What it says would not be true. If there is no file, nobody relies on it.
            let _ = InForce::remove(socket);
            self.last = InForce::default();
            return;
        }
        self.last = new;
    }
}

fn of(state: &NodeState) -> InForce {
    let closed = state.ranges.iter().filter(|_| !state.audit);
    InForce {
        closed: closed.map(|range| (range.first, range.last)).collect(),
        programmed: state.endpoints.keys().copied().collect(),
        audit: state.audit,
        owners: (*state.owners).clone(),
    }
}
