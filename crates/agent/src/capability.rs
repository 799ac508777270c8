//! The one capability that the agent needs.

use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use crate::Error;

/// Makes sure that the calling thread, and those that it will start, may change the rules of this
/// network. A program file can give the capability without its being in effect; then it is put in
/// effect here. So the same file runs, for other commands, where the capability is not to be had.
///
/// # Errors
/// The process does not have it.
pub fn take_net_admin() -> Result<(), Error> {
    let net_admin = CapabilitySet::NET_ADMIN;
    let mut sets = capabilities(None).map_err(|error| Error::Runtime(error.into()))?;
    if sets.effective.contains(net_admin) {
        return Ok(());
    }
    if !sets.permitted.contains(net_admin) {
        return Err(Error::NoCapability);
    }
    sets.effective |= net_admin;
    set_capabilities(None, sets).map_err(|error| Error::Runtime(error.into()))
}
