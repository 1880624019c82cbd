//! The control socket: commands in, each perhaps with a descriptor; events out.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

use supermachine_proto::frame::{self, Decoder};
use supermachine_proto::worker::{Command, Event, Source, Start};
use supermachine_support::{descriptors, lock};

use crate::confine;

/// A start, and the descriptors that came along.
pub(crate) type Started = (Box<Start>, Vec<OwnedFd>);

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

    /// The start, and the descriptors that came along. `None` when the API has closed its end, and for another command.
    pub(crate) fn start(&mut self) -> Result<Option<Started>, frame::Error> {
        match self.next()? {
            Some((Command::Start(start), first)) => {
                let (link, arriving) = match &start.source {
                    Source::Boot(boot) => (boot.configure.identity.network.is_some(), false),
                    Source::Restore(restore) => (restore.identity.network.is_some(), restore.arriving),
                };
                let said = usize::from(start.scratch.is_some())
                    + start.volume_files()
                    + usize::from(arriving)
                    + usize::from(link);
                let more = said.saturating_sub(1).min(self.fds.len());
                Ok(Some((start, first.into_iter().chain(self.fds.drain(..more).flatten()).collect())))
            }
            _ => Ok(None),
        }
    }

    /// The next command, with the descriptor that came along when it is one that takes one. `None` when the API has
    /// closed its end.
    pub(crate) fn next(&mut self) -> Result<Option<(Command, Option<OwnedFd>)>, frame::Error> {
        loop {
            if let Some(command) = self.decoder.next::<Command>()? {
                let fd = match command {
                    Command::Start(_) | Command::Connect { .. } | Command::Capture(_) => {
                        self.fds.pop_front().flatten()
                    }
                    _ => None,
                };
                return Ok(Some((command, fd)));
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
