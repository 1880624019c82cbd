//! Takes from the process what a VM does not need, before guest code runs: no path of the file system can be opened
//! any more, no connection made and no program started. It lasts for the life of the process and all its threads.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "macos")]
mod macos;

#[cfg(target_os = "linux")]
use linux as system;
#[cfg(target_os = "macos")]
use macos as system;

use std::os::fd::BorrowedFd;
use std::sync::OnceLock;

use supermachine_machine::Engine;

/// What the system has to confine a process with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Walls {
    /// Version of Landlock; 0 for none. Elsewhere than on Linux, where another thing does the same, 1.
    pub landlock: u32,
    /// Whether system calls are filtered.
    pub seccomp: bool,
}

impl Walls {
    /// Of this system.
    pub(crate) fn of_this_system() -> Self {
        system::walls()
    }

    /// What is missing, as a sentence with the way out; `None` when nothing is.
    pub(crate) fn missing(self) -> Option<&'static str> {
        match (self.landlock, self.seccomp) {
            (1.., true) => None,
            (0, true) => Some(
                "this kernel has no Landlock, so the files' permissions are all that keeps a taken-over worker from \
                 them; boot Linux 5.13 or newer with landlock in lsm=",
            ),
            (1.., false) => Some(
                "this kernel filters no system calls; it needs CONFIG_SECCOMP_FILTER, or the container allows none",
            ),
            (0, false) => Some(
                "this kernel has neither Landlock nor filters of system calls, so nothing but its user's permissions \
                 holds a taken-over worker; boot Linux 5.13 or newer with landlock in lsm= and CONFIG_SECCOMP_FILTER",
            ),
        }
    }
}

/// A part of the file system that a confined process still reaches: a directory with all beneath it, or a file.
#[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "guests have no shares there yet"))]
pub(crate) struct Beneath<'a> {
    pub top: BorrowedFd<'a>,
    pub directory: bool,
    /// Nothing of it can be changed, whatever the process tries.
    pub read_only: bool,
}

/// Confines this process; of the file system it reaches `shares` alone. Every other file that it will use is open by
/// now, and no other thread runs yet.
pub(crate) fn confine(engine: Engine, shares: &[Beneath<'_>]) -> Result<(), Error> {
    system::confine(engine, shares)
}

/// Confines a process that makes machines by copying itself ([`crate::template`]) and has one thread: as for the soft
/// engine without shares, but that it may be copied, have memory made executable, and confine itself further. An error
/// where calls cannot be filtered: its copies could then not be kept from copying themselves.
#[cfg(target_os = "linux")]
pub(crate) fn confine_template() -> Result<(), Error> {
    system::confine_template()
}

/// Takes from a template's copy, which has one thread still, what a worker of the soft engine has not.
#[cfg(target_os = "linux")]
pub(crate) fn confine_clone() -> Result<(), Error> {
    system::confine_clone()
}

/// How many files the process may have open; `None` for any number. A confined process cannot ask for it.
pub(crate) fn open_files() -> Option<u64> {
    match OPEN_FILES.get() {
        Some(limit) => Some(*limit),
        None => rustix::process::getrlimit(rustix::process::Resource::Nofile).current,
    }
}

/// Of a confined process.
static OPEN_FILES: OnceLock<u64> = OnceLock::new();

/// Why the process could not be confined.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[cfg(target_os = "linux")]
    #[error("the Landlock rules cannot be applied: {0}")]
    Landlock(String),
    #[cfg(target_os = "linux")]
    #[error("the seccomp filter cannot be applied: {0}")]
    Seccomp(String),
    #[cfg(target_os = "linux")]
    #[error("no page below all others can be made, which shares need: {0}; lower vm.mmap_min_addr to 65536")]
    Sealed(std::io::Error),
    #[cfg(target_os = "linux")]
    #[error("the worker cannot give up {what}: {error}")]
    Privileges { what: &'static str, error: std::io::Error },
    #[cfg(target_os = "macos")]
    #[error("the sandbox profile cannot be applied: {0}")]
    Sandbox(String),
}
