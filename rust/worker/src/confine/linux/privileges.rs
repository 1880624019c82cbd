//! Capabilities, core dumps and limits.

use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set, remove_capability_from_bounding_set,
    set_capabilities, set_no_new_privs,
};

use crate::confine::{Error, OPEN_FILES};

/// Descriptors that a worker may have: one for each flow of the network's and each connection of vsock's, and some for
/// files.
const MAX_FILES: u64 = 24 * 1024;

/// Takes every capability from the calling thread, keeps guest memory out of core dumps and out of the reach of other
/// processes of the user's (ptrace(2), "Ptrace access mode checking"), and sets limits that nothing raises again: their
/// calls are not among those that the filter allows.
///
/// The number of processes has no limit here, for it would count all of the user's; the filter makes none.
pub(super) fn drop() -> Result<(), Error> {
    let failed = |what: &'static str| move |error: Errno| Error::Privileges { what, error: error.into() };
    set_no_new_privs(true).map_err(failed("no new privileges"))?;
    for bit in 0..u64::BITS {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << bit)) {
            // Not a capability of this kernel's, or not permitted: without privileges there are none to be had.
            Ok(()) | Err(Errno::INVAL | Errno::PERM) => {}
            Err(error) => return Err(failed("the capability bounding set")(error)),
        }
    }
    match clear_ambient_capability_set() {
        Ok(()) | Err(Errno::INVAL) => {}
        Err(error) => return Err(failed("ambient capabilities")(error)),
    }
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
        .map_err(failed("capabilities"))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(failed("core dumps"))?;
    limit(Resource::Core, 0).map_err(failed("the size of core dumps"))?;
    let files = limit(Resource::Nofile, MAX_FILES).map_err(failed("the number of open files"))?;
    let _ = OPEN_FILES.set(files);
    Ok(())
}

/// Sets both limits to `most`, or to what the process was given where that is less; which it is.
fn limit(resource: Resource, most: u64) -> Result<u64, Errno> {
    let most = getrlimit(resource).maximum.map_or(most, |given| given.min(most));
    setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })?;
    Ok(most)
}
