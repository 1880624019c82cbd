//! The process of a worker: one that this process has started, or that a template has made of itself as this process's
//! child.

#![cfg_attr(
    target_os = "linux",
    allow(unsafe_code, reason = "children that nobody started here are waited for by number")
)]

use std::io;
use std::process::{Child, ExitStatus};

/// A worker's process, until it has been reaped and after.
pub(crate) enum Process {
    /// Started here.
    Started(Child),
    /// A template is still to make it.
    #[cfg(target_os = "linux")]
    Awaited,
    /// The same, and it is to end at once.
    #[cfg(target_os = "linux")]
    Unwanted,
    /// Made by a template; its number is its own until it has been reaped here, of which nobody else can.
    #[cfg(target_os = "linux")]
    Copy { pid: libc::pid_t, status: Option<ExitStatus> },
}

impl Process {
    /// Its number, once it is there.
    pub(crate) fn pid(&self) -> Option<u32> {
        match self {
            Self::Started(child) => Some(child.id()),
            #[cfg(target_os = "linux")]
            Self::Awaited | Self::Unwanted => None,
            #[cfg(target_os = "linux")]
            Self::Copy { pid, .. } => u32::try_from(*pid).ok(),
        }
    }

    /// Has one that is still to come end as soon as it does; false of one that is there.
    pub(crate) fn give_up(&mut self) -> bool {
        #[cfg(target_os = "linux")]
        if self.is_awaited() {
            *self = Self::Unwanted;
            return true;
        }
        false
    }

    /// Ends it; no error when it has ended.
    pub(crate) fn kill(&mut self) -> io::Result<()> {
        match self {
            Self::Started(child) => child.kill(),
            #[cfg(target_os = "linux")]
            Self::Awaited | Self::Unwanted => {
                *self = Self::Unwanted;
                Ok(())
            }
            #[cfg(target_os = "linux")]
            Self::Copy { status: Some(_), .. } => Ok(()),
            #[cfg(target_os = "linux")]
            // SAFETY: the call takes numbers alone; this one is a child's that has not been reaped.
            Self::Copy { pid, status: None } => match unsafe { libc::kill(*pid, libc::SIGKILL) } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            },
        }
    }

    /// How it has ended, if it has; an error where there is none.
    pub(crate) fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        match self {
            Self::Started(child) => child.try_wait(),
            #[cfg(target_os = "linux")]
            _ => self.wait_for_copy(libc::WNOHANG),
        }
    }

    /// How it has ended, when it has; an error where there is none.
    pub(crate) fn wait(&mut self) -> io::Result<ExitStatus> {
        match self {
            Self::Started(child) => child.wait(),
            #[cfg(target_os = "linux")]
            _ => loop {
                if let Some(status) = self.wait_for_copy(0)? {
                    return Ok(status);
                }
            },
        }
    }
}

#[cfg(target_os = "linux")]
impl Process {
    /// Whether a template is still to make it.
    pub(crate) fn is_awaited(&self) -> bool {
        matches!(self, Self::Awaited | Self::Unwanted)
    }

    /// It is there, as the kernel says. An error for one that is not this process's child: such a one is not touched.
    pub(crate) fn came(&mut self, pid: libc::pid_t) -> io::Result<()> {
        let unwanted = matches!(self, Self::Unwanted);
        let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
        let (id, options) = (
            libc::id_t::try_from(pid).map_err(io::Error::other)?,
            libc::WEXITED | libc::WNOHANG | libc::WNOWAIT,
        );
        // SAFETY: the call writes to the structure that is given to it, of which all zeros is a value; nothing is
        // reaped.
        if unsafe { libc::waitid(libc::P_PID, id, info.as_mut_ptr(), options) } != 0 {
            return Err(io::Error::last_os_error());
        }
        *self = Self::Copy { pid, status: None };
        if unwanted { self.kill() } else { Ok(()) }
    }

    fn wait_for_copy(&mut self, options: i32) -> io::Result<Option<ExitStatus>> {
        use std::os::unix::process::ExitStatusExt;

        let Self::Copy { pid, status } = self else { return Err(io::ErrorKind::NotFound.into()) };
        if status.is_none() {
            let mut raw = 0;
            // SAFETY: the call writes to `raw`.
            match unsafe { libc::waitpid(*pid, &raw mut raw, options) } {
                0 => {}
                -1 => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
                _ => *status = Some(ExitStatus::from_raw(raw)),
            }
        }
        Ok(*status)
    }
}

#[cfg(all(test, target_os = "linux"))]
#[expect(clippy::zombie_processes, reason = "waited for by their numbers, which is what is tested")]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn a_child_that_nobody_started_here_is_killed_and_reaped_once() {
        let child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let mut copy = Process::Awaited;
        assert!(copy.is_awaited() && copy.pid().is_none() && copy.try_wait().is_err());
        copy.came(child.id().cast_signed()).unwrap();
        assert_eq!((copy.pid(), copy.try_wait().unwrap()), (Some(child.id()), None));
        assert!(!copy.give_up());
        copy.kill().unwrap();
        assert_eq!(copy.wait().unwrap().signal(), Some(libc::SIGKILL));
        // Its number is somebody else's by now.
        copy.kill().unwrap();
        assert_eq!(copy.wait().unwrap().signal(), Some(libc::SIGKILL));
    }

    #[test]
    fn one_that_is_not_wanted_any_more_ends_when_it_comes() {
        let child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let mut copy = Process::Awaited;
        assert!(copy.give_up());
        copy.came(child.id().cast_signed()).unwrap();
        assert_eq!(copy.wait().unwrap().signal(), Some(libc::SIGKILL));
    }

    #[test]
    fn a_process_of_somebody_elses_is_not_touched() {
        let mut copy = Process::Unwanted;
        assert!(copy.came(std::os::unix::process::parent_id().cast_signed()).is_err());
        assert!(copy.is_awaited());
    }
}
