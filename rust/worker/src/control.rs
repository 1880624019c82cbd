//! The control socket: commands in, each perhaps with a descriptor; events out.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

use rustix::io::retry_on_intr;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use supermachine_proto::frame::{self, Decoder};
use supermachine_proto::worker::{Command, Event, Source, Start};
use supermachine_support::lock;

/// Descriptors that one message may carry.
const MAX_FDS: usize = 8;

/// A start, and the descriptors that came along.
pub type Started = (Box<Start>, Vec<OwnedFd>);

/// Receives commands.
pub struct Commands {
    stream: UnixStream,
    decoder: Decoder,
    /// One for each command that takes one; `None` for one that this process had no room for.
    fds: VecDeque<Option<OwnedFd>>,
}

impl Commands {
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, decoder: Decoder::default(), fds: VecDeque::new() }
    }

    /// The start, and the descriptors that came along. `None` when the API has closed its end, and for another command.
    pub fn start(&mut self) -> Result<Option<Started>, frame::Error> {
        match self.next()? {
            Some((Command::Start(start), first)) => {
                let link = match &start.source {
                    Source::Boot(boot) => boot.configure.identity.network.is_some(),
                    Source::Restore(restore) => restore.identity.network.is_some(),
                };
                let said = usize::from(start.scratch.is_some()) + start.volume_files() + usize::from(link);
                let more = said.saturating_sub(1).min(self.fds.len());
                Ok(Some((start, first.into_iter().chain(self.fds.drain(..more).flatten()).collect())))
            }
            _ => Ok(None),
        }
    }

    /// The next command, with the descriptor that came along when it is one that takes one. `None` when the API has
    /// closed its end.
    pub fn next(&mut self) -> Result<Option<(Command, Option<OwnedFd>)>, frame::Error> {
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
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        #[cfg(target_os = "linux")]
        let flags = RecvFlags::CMSG_CLOEXEC;
        #[cfg(not(target_os = "linux"))]
        let flags = RecvFlags::empty();
        let received =
            retry_on_intr(|| recvmsg(&self.stream, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags))?;
        let mut came = 0;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds.map(|fd| {
                    came += 1;
                    Some(fd)
                }));
            }
        }
        // With its limit of open files reached a process gets the message alone (unix(7), SCM_RIGHTS); the next command
        // must not have the descriptor of this one.
        if came == 0 && received.flags.contains(ReturnFlags::CTRUNC) {
            self.fds.push_back(None);
        }
        let received = received.bytes;
        self.decoder.push(&bytes[..received]);
        Ok(received)
    }
}

/// Why a descriptor did not come along with its command.
pub fn out_of_files() -> String {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let limit = limit.map_or("unlimited".into(), |limit| limit.to_string());
    format!(
        "the virtual machine's worker has no room for another open file (its limit, RLIMIT_NOFILE, is {limit}); raise \
         it with `ulimit -n` before the start, or close connections"
    )
}

/// Sends events, from any thread.
pub struct Events(Mutex<UnixStream>);

impl Events {
    pub fn new(stream: UnixStream) -> Self {
        Self(Mutex::new(stream))
    }

    /// Sends one event. An API that is gone is noticed where commands are read.
    pub fn send(&self, event: &Event) {
        let mut bytes = Vec::new();
        if frame::encode(event, &mut bytes).is_ok() {
            let mut stream = lock(&self.0);
            let _ = stream.write_all(&bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{IoSlice, Read};
    use std::os::fd::AsFd;

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

    use super::*;

    /// Sends `bytes` with one descriptor.
    fn send_with_fd(stream: &UnixStream, bytes: &[u8], fd: &OwnedFd) {
        let fds = [fd.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&fds));
        let sent = sendmsg(stream, &[IoSlice::new(bytes)], &mut control, SendFlags::empty()).unwrap();
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
