//! An init system as a command. systemd, for one, does nothing unless it is process 1, so such a command becomes
//! process 1 of namespaces of its own, with the mounts that it expects of a container manager (systemd's
//! docs/CONTAINER_INTERFACE.md); what is started while it runs joins them, as with `docker exec`. The commands are
//! those for which podman does so (podman-run(1), `--systemd=true`).

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use crate::reaper::Exit;
use crate::{freeze, sys, threads};

/// Commands that are init systems.
const PROGRAMS: [&[u8]; 7] = [
    b"systemd",
    b"/init",
    b"/sbin/init",
    b"/usr/sbin/init",
    b"/usr/local/sbin/init",
    b"/lib/systemd/systemd",
    b"/usr/lib/systemd/systemd",
];
/// Says to an init that it need not care for hardware, clock and consoles.
pub(crate) const ENVIRONMENT: (&str, &str) = ("container", "supermachine");

/// The init that runs, if any, by its pidfd, and how it ended.
static RUNNING: Mutex<Option<(Arc<OwnedFd>, Arc<Exit>)>> = Mutex::new(None);

fn running() -> MutexGuard<'static, Option<(Arc<OwnedFd>, Arc<Exit>)>> {
    sys::lock(&RUNNING)
}

/// How a process stands to init systems.
pub(crate) enum Place {
    /// An ordinary one in a guest without.
    Plain,
    /// It becomes one. The descriptor is `cgroup.procs` of its own control group.
    First(OwnedFd),
    /// It joins the one that runs.
    Beside(Arc<OwnedFd>),
}

impl Place {
    /// Where the program `name` belongs.
    pub(crate) fn of(name: &[u8]) -> io::Result<Self> {
        let init = running().as_ref().filter(|(_, exit)| exit.status().is_none()).map(|(fd, _)| fd.clone());
        match init {
            Some(fd) => Ok(Self::Beside(fd)),
            None if PROGRAMS.contains(&name) => {
                for directory in ["/run", "/tmp"] {
                    let _ = fs::create_dir_all(directory);
                }
                Ok(Self::First(freeze::own_group("init")?.into()))
            }
            None => Ok(Self::Plain),
        }
    }

    /// What clone(2) makes anew for it.
    pub(crate) fn clone_flags(&self) -> libc::c_int {
        if matches!(self, Self::First(_)) { libc::CLONE_NEWPID | libc::CLONE_NEWNS } else { 0 }
    }

    /// In the thread that makes the process, before it does: a process id is given in the namespace that the thread
    /// has for its children. The thread is of no use for others afterwards.
    pub(crate) fn prepare_thread(&self) -> io::Result<()> {
        let Self::Beside(init) = self else { return Ok(()) };
        threads::spend();
        // SAFETY: the call takes no pointers.
        sys::check(unsafe { libc::setns(init.as_raw_fd(), libc::CLONE_NEWPID) }).map(drop)
    }

    /// Remembers an init that has been started.
    pub(crate) fn started(&self, pid: i32, exit: &Arc<Exit>) -> io::Result<()> {
        if let Self::First(_) = self {
            *running() = Some((Arc::new(sys::pidfd(pid)?), exit.clone()));
        }
        Ok(())
    }

    /// In the new process: takes its place. System calls only, with strings that are constants; 0 or the errno.
    pub(crate) fn take(&self) -> i32 {
        // SAFETY: `__errno_location` is the calling thread's own.
        let errno = || unsafe { *libc::__errno_location() };
        match self {
            Self::Plain => 0,
            Self::Beside(init) => {
                // SAFETY: the call takes no pointers.
                let joined =
                    unsafe { libc::setns(init.as_raw_fd(), libc::CLONE_NEWNS | libc::CLONE_NEWCGROUP) };
                if joined < 0 { errno() } else { 0 }
            }
            Self::First(group) => {
                // SAFETY: the descriptor is open, the byte is a constant; unshare takes no pointers.
                let moved = unsafe {
                    libc::write(group.as_raw_fd(), b"0".as_ptr().cast(), 1) == 1
                        && libc::unshare(libc::CLONE_NEWCGROUP) == 0
                };
                if !moved {
                    return errno();
                }
                // Mounts of its own from here on: none of them is seen outside.
                let mounts: [(&std::ffi::CStr, &std::ffi::CStr, libc::c_ulong, &std::ffi::CStr); 5] = [
                    (c"", c"/", libc::MS_REC | libc::MS_SLAVE, c""),
                    (c"proc", c"/proc", libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC, c""),
                    (c"cgroup2", c"/sys/fs/cgroup", libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC, c""),
                    (c"tmpfs", c"/run", libc::MS_NOSUID | libc::MS_NODEV, c"mode=0755"),
                    (c"tmpfs", c"/tmp", libc::MS_NOSUID | libc::MS_NODEV, c"mode=1777"),
                ];
                for (kind, target, flags, options) in mounts {
                    // SAFETY: all strings end with a NUL and are constants.
                    let done = unsafe {
                        // No file system is mounted twice on one place, and of cgroup2 there is one.
                        if kind == c"cgroup2" {
                            libc::umount2(target.as_ptr(), libc::MNT_DETACH);
                        }
                        libc::mount(
                            kind.as_ptr(),
                            target.as_ptr(),
                            kind.as_ptr(),
                            flags,
                            options.as_ptr().cast(),
                        )
                    };
                    if done < 0 {
                        return errno();
                    }
                }
                0
            }
        }
    }
}

/// Has the init that runs, if any, end what it has started, and waits for it until `deadline`. To SIGTERM systemd would
/// start itself anew; SIGRTMIN+3 halts it (systemd(1)), and an init that does not know it is ended by SIGTERM later.
pub(crate) fn halt(deadline: Instant) {
    let Some((init, exit)) = running().clone() else { return };
    // SAFETY: the descriptor is open; no information goes with the signal.
    unsafe {
        let (init, signal) = (init.as_raw_fd(), libc::SIGRTMIN() + 3);
        libc::syscall(libc::SYS_pidfd_send_signal, init, signal, ptr::null::<libc::siginfo_t>(), 0)
    };
    let mut fds = [libc::pollfd { fd: exit.event.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
    while exit.status().is_none() && Instant::now() < deadline {
        if sys::poll(&mut fds, Some(deadline.saturating_duration_since(Instant::now()))).is_err() {
            return;
        }
    }
}
