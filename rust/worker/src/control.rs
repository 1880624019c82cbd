//! The control socket: commands in, each perhaps with a descriptor; events out.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

use supermachine_proto::frame::{self, Decoder};
use supermachine_proto::worker::{Bake, Command, Event, Source, Start};
use supermachine_support::{descriptors, lock};

use crate::confine;

/// What a process is started for.
#[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "templates are there on Linux alone"))]
pub(crate) enum Opening {
    /// A machine; the descriptors that came along.
    Start(Box<Start>, Vec<OwnedFd>),
    /// Copies of itself.
    Template(Box<Start>),
    /// Code that is decoded into a file.
    Bake(Bake, OwnedFd),
}

/// A machine that a template is to make.
#[cfg(target_os = "linux")]
pub(crate) struct Forking {
    pub start: Box<Start>,
    /// The machine's own control socket.
    pub control: OwnedFd,
    /// What it says what goes wrong to.
    pub log: OwnedFd,
    /// What comes along with a start.
    pub came: Vec<OwnedFd>,
}

/// Receives commands.
pub(crate) struct Commands {
    stream: UnixStream,
    decoder: Decoder,
    /// One for each command that takes one; `None` for one that this process had no room for.
    fds: VecDeque<Option<OwnedFd>>,
}

impl Commands {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self { stream, decoder: Decoder::default(), fds: VecDeque::new() }
    }

    /// What the process is started for. `None` when the API has closed its end, and for another command.
    pub(crate) fn opening(&mut self) -> Result<Option<Opening>, frame::Error> {
        match self.next()? {
            Some((Command::Start(start), first)) => {
                let more = self.take(said(&start).saturating_sub(1));
                Ok(Some(Opening::Start(start, first.into_iter().chain(more).collect())))
            }
            Some((Command::Template(start), None)) => Ok(Some(Opening::Template(start))),
            Some((Command::Bake(bake), Some(file))) => Ok(Some(Opening::Bake(bake, file))),
            _ => Ok(None),
        }
    }

    /// The next machine that a template is to make; before it waits for bytes, `wait` does, which says whether any will
    /// come. `None` when none will, and for another command.
    #[cfg(target_os = "linux")]
    pub(crate) fn forking(
        &mut self,
        mut wait: impl FnMut() -> bool,
    ) -> Result<Option<Forking>, frame::Error> {
        loop {
            let Some((Command::Fork(start), control)) = self.next_after(&mut wait)? else { return Ok(None) };
            let log = self.fds.pop_front().flatten();
            let came = self.take(said(&start));
            if let (Some(control), Some(log)) = (control, log) {
                return Ok(Some(Forking { start, control, log, came }));
            }
            // There was no room for its descriptors: who waits for the machine sees its socket closed.
        }
    }

    fn take(&mut self, count: usize) -> Vec<OwnedFd> {
        let count = count.min(self.fds.len());
        self.fds.drain(..count).flatten().collect()
    }

    /// The next command, with the descriptor that came along when it is one that takes one. `None` when the API has
    /// closed its end.
    pub(crate) fn next(&mut self) -> Result<Option<(Command, Option<OwnedFd>)>, frame::Error> {
        self.next_after(|| true)
    }

    fn next_after(
        &mut self,
        mut wait: impl FnMut() -> bool,
    ) -> Result<Option<(Command, Option<OwnedFd>)>, frame::Error> {
        loop {
            if let Some(command) = self.decoder.next::<Command>()? {
                let fd = match &command {
                    // What came is the next command's.
                    Command::Start(start) if said(start) == 0 => None,
                    Command::Start(_)
                    | Command::Connect { .. }
                    | Command::Capture(_)
                    | Command::Fork(_)
                    | Command::Bake(_) => self.fds.pop_front().flatten(),
                    _ => None,
                };
                return Ok(Some((command, fd)));
            }
            if !wait() {
                return Ok(None);
            }
            if self.receive()? == 0 {
                return match self.decoder.pending() {
                    0 => Ok(None),
                    _ => Err(frame::Error::Truncated),
                };
            }
        }
    }

    fn receive(&mut self) -> io::Result<usize> {
        let mut bytes = [0_u8; 16 * 1024];
        let received = descriptors::receive(&self.stream, &mut bytes)?;
        let came = received.descriptors.len();
        self.fds.extend(received.descriptors.into_iter().map(Some));
        // With its limit of open files reached a process gets the message alone (unix(7), SCM_RIGHTS); the next command
        // must not have the descriptor of this one.
        if came == 0 && received.lost {
            self.fds.push_back(None);
        }
        let received = received.bytes;
        self.decoder.push(&bytes[..received]);
        Ok(received)
    }
}

/// How many descriptors come along with a start.
fn said(start: &Start) -> usize {
    let (link, arriving) = match &start.source {
        Source::Boot(boot) => (boot.configure.identity.network.is_some(), false),
        Source::Restore(restore) => (restore.identity.network.is_some(), restore.arriving),
    };
    usize::from(start.scratch.is_some()) + start.volume_files() + usize::from(arriving) + usize::from(link)
}

/// Why a descriptor did not come along with its command.
pub(crate) fn out_of_files() -> String {
    let limit = confine::open_files().map_or("unlimited".into(), |limit| limit.to_string());
    format!(
        "the virtual machine's worker has no room for another open file (os error {}): its limit, RLIMIT_NOFILE, is \
         {limit}; raise it with `ulimit -n` before the start, or close connections",
        libc::EMFILE
    )
}

/// Sends events, from any thread.
pub(crate) struct Events(Mutex<UnixStream>);

impl Events {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self(Mutex::new(stream))
    }

    /// Sends one event. An API that is gone is noticed where commands are read.
    pub(crate) fn send(&self, event: &Event) {
        let mut bytes = Vec::new();
        if frame::encode(event, &mut bytes).is_ok() {
            let mut stream = lock(&self.0);
            let _ = stream.write_all(&bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsFd;

    use super::*;

    /// Sends `bytes` with one descriptor.
    fn send_with_fd(stream: &UnixStream, bytes: &[u8], fd: &OwnedFd) {
        let sent = descriptors::send(stream, bytes, &[fd.as_fd()]).unwrap();
        assert_eq!(sent, bytes.len());
    }

    #[test]
    fn descriptors_go_to_the_commands_they_came_with() {
        let (api, worker) = UnixStream::pair().unwrap();
        let mut commands = Commands::new(worker);
        let mut ours = Vec::new();
        for port in [7, 8] {
            let (mine, theirs) = UnixStream::pair().unwrap();
            let mut bytes = Vec::new();
            frame::encode(&Command::Stats, &mut bytes).unwrap();
            frame::encode(&Command::Connect { port }, &mut bytes).unwrap();
            send_with_fd(&api, &bytes, &theirs.into());
            ours.push(mine);
        }
        for (port, mine) in [7, 8].into_iter().zip(&mut ours) {
            let (command, fd) = commands.next().unwrap().unwrap();
            assert_eq!(command, Command::Stats);
            assert!(fd.is_none());
            let (command, fd) = commands.next().unwrap().unwrap();
            assert_eq!(command, Command::Connect { port });
            UnixStream::from(fd.unwrap()).write_all(&[port as u8]).unwrap();
            let mut got = [0];
            mine.read_exact(&mut got).unwrap();
            assert_eq!(got, [port as u8]);
        }
        drop(api);
        assert!(commands.next().unwrap().is_none());
    }
}
