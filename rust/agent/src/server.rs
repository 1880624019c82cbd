//! Takes requests: each connection is served by a thread.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use supermachine_proto::agent::{AttachReply, ExecError, ExecOutput, FileReply, HOST_CID, Request};
use supermachine_proto::frame;

use crate::{attach, drain, exec, files, forward, sys, threads, watch};

/// Enough for the deepest of the handlers, whose buffers are on the heap.
const STACK: usize = 192 << 10;
/// How long a host that cannot be served may take to say what it wants, and so to hear why not.
const WORDS: Duration = Duration::from_millis(500);
/// Between two attempts to take a connection that there is nothing for.
const RETRY: Duration = Duration::from_millis(10);

/// Serves connections to `listener` for as long as the guest lives.
pub(crate) fn start(listener: OwnedFd) -> io::Result<()> {
    // A process takes seven descriptors of the agent's, and there may be hundreds.
    sys::raise_file_limit()?;
    drain::start()?;
    std::thread::Builder::new().name("requests".into()).stack_size(STACK).spawn(move || {
        let mut spare = sys::spare();
        loop {
            match sys::accept_vsock(&listener) {
                // Nobody in the guest has any business here.
                Ok((_, peer)) if peer != HOST_CID => {}
                Ok((connection, _)) => take(connection),
                // The connection waits until there is a descriptor for it, which this one is.
                Err(error) if lacks_descriptors(&error) && spare.take().is_some() => {
                    // One may come much later, when there are others again.
                    let next = sys::accept_vsock(&listener);
                    spare = sys::spare();
                    match next {
                        Ok((connection, HOST_CID)) if spare.is_some() => take(connection),
                        Ok((connection, HOST_CID)) => refuse(connection, &error),
                        _ => {}
                    }
                }
                // Others must end first.
                Err(_) => {
                    std::thread::sleep(RETRY);
                    spare = spare.or_else(sys::spare);
                }
            }
        }
    })?;
    Ok(())
}

fn lacks_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// Has a thread serve a connection; where none can be made, the host is told.
fn take(connection: File) {
    let Some(connection) = threads::give(connection) else { return };
    // What a thread that does not begin was to have is lost otherwise, and a second descriptor may not be had.
    let place = Arc::new(Mutex::new(Some(connection)));
    let taken = place.clone();
    let builder = std::thread::Builder::new().stack_size(STACK);
    let began = builder.spawn(move || {
        let connection = sys::lock(&taken).take();
        if let Some(connection) = connection {
            threads::run(connection, serve);
        }
    });
    let left = || sys::lock(&place).take();
    if let Err(error) = began
        && let Some(connection) = left()
    {
        refuse(connection, &error);
    }
}

/// Serves one connection to its end. One that breaks the protocol, or breaks off, ends.
fn serve(mut connection: File) {
    match frame::read(&mut connection) {
        Ok(Some(Request::Exec(request))) => exec::serve(connection, &request),
        Ok(Some(Request::Files)) => drop(files::serve(connection)),
        Ok(Some(Request::Forward { port })) => drop(forward::serve(connection, port)),
        Ok(Some(Request::Attach(wanted))) => drop(frame::write(&mut connection, &attach::attach(&wanted))),
        Ok(Some(Request::Grow { device, bytes })) => {
            drop(frame::write(&mut connection, &attach::grow(&device, bytes)));
        }
        Ok(Some(Request::Watch)) => drop(watch::serve(connection)),
        Ok(None) | Err(_) => {}
    }
}

/// Answers a request with what the guest has no more of, if it comes soon.
fn refuse(connection: File, error: &io::Error) {
    let words = sys::set_read_timeout(&connection, WORDS).map_err(frame::Error::Io);
    drop(words.and_then(|()| refuse_request(connection, error)));
}

fn refuse_request(mut connection: File, error: &io::Error) -> Result<(), frame::Error> {
    match frame::read(&mut connection)? {
        Some(Request::Exec(_)) => {
            let message = format!("the guest's agent cannot serve it: {}", shortage(error));
            frame::write(&mut connection, &ExecOutput::Failed { kind: ExecError::Other, message })
        }
        Some(Request::Files | Request::Forward { .. }) => {
            let errno = error.raw_os_error().unwrap_or(libc::EAGAIN);
            frame::write(&mut connection, &FileReply::Failed { errno })
        }
        Some(Request::Attach(_) | Request::Grow { .. } | Request::Watch) => {
            let message = format!("the guest's agent cannot serve it: {}", shortage(error));
            frame::write(&mut connection, &AttachReply::Failed { message })
        }
        None => Ok(()),
    }
}

/// What is short, and how there comes to be more of it.
pub(crate) fn shortage(error: &io::Error) -> String {
    let what = match error.raw_os_error() {
        Some(libc::EMFILE) => {
            "the agent in the guest has no descriptors left (its RLIMIT_NOFILE); end processes or connections"
        }
        Some(libc::ENFILE) => "the guest has no open files left (its fs.file-max); end processes in it",
        Some(libc::EAGAIN) => {
            "the guest has no processes left (its kernel.pid_max or a pids limit); end some"
        }
        Some(libc::ENOMEM) => "the guest has no memory left; give it more with memory=",
        _ => return error.to_string(),
    };
    format!("{what}: {error}")
}
