//! A worker that makes machines by copying itself. It has opened and mapped one snapshot, is confined, and has decoded
//! the code that the snapshot's guest has run; a copy has all of that before it begins, and shares the memory until it
//! writes to it.
//!
//! No guest runs here, and no second thread, so that a copy finds every lock open. A copy gives up the template's
//! descriptors and confines itself as a worker is confined before any thread of its machine starts: from then on it can
//! make no process. Its parent is the template's parent, who reaps it, and who may end the template before it.

#![allow(unsafe_code, reason = "a process is copied by a call that the standard library has not")]

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use supermachine_proto::worker::{Event, Start, Timings};

use crate::begun::Begun;
use crate::control::{Commands, Events, Forking};
use crate::ended::Ended;
use crate::owner::Owner;
use crate::start::{Came, Laid};

/// Makes copies until the owner is gone, and returns nothing then. In a copy it returns what that goes on with.
pub(crate) fn serve(
    start: &Start,
    mut commands: Commands,
    events: Events,
    owner: Owner,
) -> io::Result<Option<(Begun, Laid)>> {
    let laid = match Laid::for_clones(start) {
        Ok(laid) => laid,
        Err(Ended { reason, message }) => {
            events.send(&Event::Exited { reason, message, console_tail: String::new() });
            return Ok(None);
        }
    };
    events.send(&Event::Ready(Timings::default()));
    loop {
        let forking = commands.forking(|| owner.wait_for_words()).map_err(io::Error::other)?;
        let Some(forking) = forking else { return Ok(None) };
        match is_copy() {
            Ok(false) => {}
            Ok(true) => {
                // All that is the template's alone.
                drop((commands, events));
                return begin(forking, owner).map(|begun| Some((begun, laid)));
            }
            Err(error) => {
                // For who waits on the other end of its socket, which closes with this.
                let _ = writeln!(File::from(forking.log), "the process cannot be copied: {error}");
            }
        }
    }
}

/// Makes a copy of this process; whether this is it.
fn is_copy() -> io::Result<bool> {
    let flags = libc::CLONE_PARENT | libc::SIGCHLD;
    // SAFETY: without a stack, and without memory that is shared, this is fork(2) but for the parent. The process has
    // one thread, which is at no allocation and holds no lock; the call is given no pointers.
    match unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) } {
        -1 => Err(io::Error::last_os_error()),
        copy => Ok(copy == 0),
    }
}

/// In a copy: takes its own descriptors in place of the template's, and says that it is there.
fn begin(Forking { start, control, log, came }: Forking, owner: Owner) -> io::Result<Begun> {
    let started = Instant::now();
    put(&log, libc::STDERR_FILENO)?;
    put(&control, libc::STDIN_FILENO)?;
    drop(log);
    let control = UnixStream::from(control);
    let owner = owner.of_copy(&control)?;
    let events = Events::new(control.try_clone()?);
    events.send(&Event::Forked);
    let came = Came::with(&start, came);
    Ok(Begun { started, start, came, commands: Commands::new(control), events, owner })
}

/// Has a standard stream be this descriptor; by calls that a confined process has.
fn put(descriptor: &OwnedFd, at: RawFd) -> io::Result<()> {
    // SAFETY: nobody owns the standard streams but the process, which uses these by their numbers alone.
    drop(unsafe { OwnedFd::from_raw_fd(at) });
    let put = rustix::io::fcntl_dupfd_cloexec(descriptor.as_fd(), at)?.into_raw_fd();
    if put == at { Ok(()) } else { Err(io::Error::other("a standard stream is in use")) }
}
