//! Output of processes that the host no longer waits for: read and dropped, so that a service which was left running is
//! not killed by its next line (SIGPIPE), nor waits for a reader that is not there.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use crate::sys;

/// Pipes at most. One beyond is closed, which is what its writers would meet without all this.
const MAX_PIPES: usize = 16 << 10;
const STACK: usize = 64 << 10;
/// Between two attempts to wait where the kernel has no memory for it.
const RETRY: Duration = Duration::from_millis(50);

/// Pipes that the thread has yet to take.
static ADDED: Mutex<Vec<File>> = Mutex::new(Vec::new());
/// Tells the thread of them.
static BELL: OnceLock<OwnedFd> = OnceLock::new();

fn added() -> MutexGuard<'static, Vec<File>> {
    sys::lock(&ADDED)
}

/// Starts the thread that reads.
pub(crate) fn start() -> io::Result<()> {
    let bell = sys::event()?;
    let heard = bell.try_clone()?;
    let _ = BELL.set(bell);
    std::thread::Builder::new().name("drain".into()).stack_size(STACK).spawn(move || run(&heard))?;
    Ok(())
}

/// Reads these to their ends, which never blocks: they are pipes that return at once.
pub(crate) fn add(pipes: impl IntoIterator<Item = File>) {
    let mut pipes = pipes.into_iter().peekable();
    if pipes.peek().is_none() {
        return;
    }
    added().extend(pipes);
    if let Some(bell) = BELL.get() {
        // SAFETY: the eight bytes are those of the array.
        unsafe { libc::write(bell.as_raw_fd(), 1_u64.to_ne_bytes().as_ptr().cast(), 8) };
    }
}

fn run(bell: &OwnedFd) {
    let mut pipes: Vec<File> = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    let wanted = |fd: i32| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    loop {
        pipes.append(&mut added());
        pipes.truncate(MAX_PIPES);
        let watched = pipes.iter().map(AsRawFd::as_raw_fd);
        let mut fds: Vec<_> = [bell.as_raw_fd()].into_iter().chain(watched).map(wanted).collect();
        if sys::poll(&mut fds, None).is_err() {
            std::thread::sleep(RETRY);
            continue;
        }
        if fds[0].revents != 0 {
            // SAFETY: the buffer has more than the eight bytes that the call writes.
            unsafe { libc::read(bell.as_raw_fd(), buffer.as_mut_ptr().cast(), 8) };
        }
        let mut ready = fds[1..].iter().map(|fd| fd.revents != 0);
        pipes.retain_mut(|pipe| !ready.next().unwrap_or(false) || is_open(pipe, &mut buffer));
    }
}

/// Reads what there is; `false` at the end.
fn is_open(pipe: &mut File, buffer: &mut [u8]) -> bool {
    match pipe.read(buffer) {
        Ok(n) => n > 0,
        Err(error) => matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_writer_without_a_reader_goes_on() {
        start().unwrap();
        let (reader, writer) = sys::pipe().unwrap();
        let reader = File::from(reader);
        sys::set_nonblocking(&reader).unwrap();
        add([reader]);
        let mut writer = File::from(writer);
        // Many times what a pipe holds: each write would wait, or fail, without somebody who reads.
        for _ in 0..64 {
            writer.write_all(&[0; 64 << 10]).unwrap();
        }
    }
}
