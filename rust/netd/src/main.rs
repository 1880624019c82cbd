//! Started by the API beside a worker whose guest has a network. Its standard input is a socket of the API's.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use supermachine_netd::channel::Channel;
use supermachine_netd::host::Host;
use supermachine_netd::{confine, server::Server};
use supermachine_proto::VERSION;
use supermachine_proto::netd::{Command, Event, ROOTS, Start};

/// Descriptors that it may have.
const MAX_FILES: u64 = 64 * 1024;

#[cfg_attr(target_os = "linux", allow(unsafe_code, reason = "descriptors are closed by their numbers"))]
fn main() -> ExitCode {
    #[cfg(target_os = "linux")]
    // SAFETY: nothing has been opened.
    unsafe {
        supermachine_support::inherited::close();
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("supermachine-netd: {error}; it is started by supermachine, not by hand");
            ExitCode::FAILURE
        }
    }
}

fn run() -> io::Result<()> {
    let stream = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    stream.peer_addr()?;
    let host = Host::read(std::env::args_os().any(|argument| argument == ROOTS));
    raise_file_limit()?;
    confine::confine().map_err(io::Error::other)?;
    let last_word = stream.try_clone()?;
    let mut control = Channel::new(stream)?;
    let Some((start, link)) = begin(&mut control)? else { return Ok(()) };
    let served = Channel::new(link.into()).and_then(|link| Server::new(control, link, start, host)?.run());
    if let Err(error) = &served {
        let mut last_word = Channel::new(last_word)?;
        let _ = last_word.send(&Event::Failed { message: error.to_string() }, None);
    }
    served
}

/// As many descriptors as there may be: those on their way to the worker are here in between.
fn raise_file_limit() -> io::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    let current = Some(maximum.unwrap_or(MAX_FILES).min(MAX_FILES));
    Ok(setrlimit(Resource::Nofile, Rlimit { current, maximum })?)
}

/// Waits for the first message and the link; `None` when the API is gone before.
fn begin(control: &mut Channel) -> io::Result<Option<(Start, OwnedFd)>> {
    use rustix::event::{PollFd, PollFlags, poll};
    loop {
        let mut fds = [PollFd::new(control, PollFlags::IN)];
        rustix::io::retry_on_intr(|| poll(&mut fds, None))?;
        let open = control.receive()?;
        match control.take::<Command>().map_err(io::Error::other)? {
            Some(Command::Start(start)) if start.version == VERSION => {
                let link = control.take_fd().ok_or_else(|| io::Error::other("the link is missing"))?;
                return Ok(Some((*start, link)));
            }
            Some(Command::Start(start)) => {
                let message = format!("it speaks version {VERSION} and the API {}", start.version);
                return Err(io::Error::other(message));
            }
            Some(_) => return Err(io::Error::other("the first command is not a start")),
            None if !open => return Ok(None),
            None => {}
        }
    }
}
