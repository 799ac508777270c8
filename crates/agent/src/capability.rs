//! The one capability that the agent needs.

use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, XattrFlags, fsetxattr, fstat, open};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use crate::Error;

/// The attribute of a file that gives whoever runs it capabilities, and the second form of its
/// value, `struct vfs_cap_data` of `linux/capability.h`.
const ATTRIBUTE: &str = "security.capability";
const REVISION_2: u32 = 0x0200_0000;

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

/// Gives the capability to whoever runs a program, by its file, without putting it in effect: as
/// `setcap cap_net_admin+p` does. A symbolic link is not followed: whoever can change it would choose
/// the program.
///
/// # Errors
/// The file is not there or no plain file, this process may not, or the file system keeps no such
/// attributes.
pub fn permit(program: &Path) -> Result<(), Error> {
    // Words in little-endian order: the revision; permitted and inheritable, the lower halves of the
    // sets and then the upper ones.
    let permitted = CapabilitySet::NET_ADMIN.bits().to_le_bytes();
    let mut value = [0; 20];
    value[..4].copy_from_slice(&REVISION_2.to_le_bytes());
    value[4..8].copy_from_slice(&permitted[..4]);
    value[12..16].copy_from_slice(&permitted[4..]);
    let give = || {
        // What is no plain file may make whoever opens it wait.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = open(program, flags, Mode::empty())?;
        match FileType::from_raw_mode(fstat(&file)?.st_mode) {
            FileType::RegularFile => fsetxattr(&file, ATTRIBUTE, &value, XattrFlags::empty()),
            FileType::Directory => Err(Errno::ISDIR),
            _ => Err(Errno::INVAL),
        }
    };
    give().map_err(|error| Error::Permit { program: program.to_owned(), source: error.into() })
}
