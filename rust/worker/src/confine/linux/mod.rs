//! Landlock, seccomp, no privileges, limits of its own. What a kernel has not is left out, and said by [`walls`].

#![allow(unsafe_code, reason = "confinement is made by calls of the kernel")]

mod privileges;
mod seccomp;
#[cfg(test)]
mod tests;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, Scope,
};
use supermachine_fs::Sealed;
use supermachine_machine::Engine;

use super::{Beneath, Error, Walls};

/// The newest rules known here; an older kernel takes those that it knows.
const LANDLOCK: ABI = ABI::V10;
/// `landlock_create_ruleset` with it returns the kernel's version of Landlock (include/uapi/linux/landlock.h).
const LANDLOCK_CREATE_RULESET_VERSION: u32 = 1;

/// Confines this process, which has one thread.
pub(super) fn confine(engine: Engine, shares: &[Beneath<'_>]) -> Result<(), Error> {
    privileges::drop()?;
    landlock(shares)?;
    if has_seccomp() { seccomp::apply(engine, filtered(shares)?) } else { Ok(()) }
}

/// Confines a template, which has one thread.
pub(super) fn confine_template() -> Result<(), Error> {
    privileges::drop()?;
    landlock(&[])?;
    seccomp::apply_to_template()
}

/// Confines its copy further, which has one thread.
pub(super) fn confine_clone() -> Result<(), Error> {
    seccomp::apply_to_clone()
}

/// What a filter has to know of shares.
fn filtered(shares: &[Beneath<'_>]) -> Result<Option<seccomp::Shares>, Error> {
    if shares.is_empty() {
        return Ok(None);
    }
    let sealed = Sealed::get().map_err(|e| Error::Sealed(e.into()))?;
    Ok(Some(seccomp::Shares { sealed, writable: shares.iter().any(|share| !share.read_only) }))
}

/// What may be done beneath a share. Programs are not started from it, and no devices made.
fn access(share: &Beneath<'_>) -> BitFlags<AccessFs> {
    let mut access = BitFlags::from(AccessFs::ReadFile);
    if share.directory {
        access |= AccessFs::ReadDir;
    }
    if !share.read_only {
        access |= AccessFs::WriteFile | AccessFs::Truncate;
    }
    if share.directory && !share.read_only {
        access |= AccessFs::RemoveDir | AccessFs::RemoveFile | AccessFs::MakeDir | AccessFs::MakeReg;
        access |= AccessFs::MakeSock | AccessFs::MakeFifo | AccessFs::MakeSym | AccessFs::Refer;
    }
    access
}

/// But for a rule each share, every access that is handled is refused.
fn landlock(shares: &[Beneath<'_>]) -> Result<(), Error> {
    let rules = shares.iter().map(|share| Ok::<_, RulesetError>(PathBeneath::new(share.top, access(share))));
    Ruleset::default()
        .handle_access(AccessFs::from_all(LANDLOCK))
        .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(LANDLOCK)))
        .and_then(|ruleset| ruleset.scope(Scope::from_all(LANDLOCK)))
        .and_then(|ruleset| ruleset.create())
        .and_then(|ruleset| ruleset.add_rules(rules))
        .and_then(|ruleset| ruleset.restrict_self())
        .map(drop)
        .map_err(|e| Error::Landlock(e.to_string()))
}

/// What this kernel has.
pub(super) fn walls() -> Walls {
    Walls { landlock: landlock_version(), seccomp: has_seccomp() }
}

/// The kernel's version of Landlock; 0 for none.
fn landlock_version() -> u32 {
    // SAFETY: with this flag the call takes no attributes, and only returns a number.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<libc::c_void>(),
            0_usize,
            LANDLOCK_CREATE_RULESET_VERSION,
        )
    };
    u32::try_from(version).unwrap_or(0)
}

/// Whether filters can be set: an action that every kernel with filters has is asked for (seccomp(2)).
fn has_seccomp() -> bool {
    let action = libc::SECCOMP_RET_ERRNO;
    // SAFETY: the call reads the four bytes of `action`.
    let found =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) };
    // A kernel before 4.14 does not know the question, and one without filters does not know the call.
    found == 0 || std::io::Error::last_os_error().raw_os_error() == Some(libc::EINVAL)
}
