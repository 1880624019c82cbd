//! One side of a connection that is opened: a socket and its TLS.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::PollFlags;
use rustls::Connection;

/// Bytes that are read ahead.
const AHEAD: usize = 64 * 1024;

/// How a side has ended.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    /// With TLS's own notice: nothing is missing.
    Said,
    /// Without.
    Cut,
    /// What it says is not TLS, or its certificate is not accepted.
    Wrong(rustls::Error),
}

/// One side of a connection that is opened: TLS over a socket that does not block.
pub struct Peer {
    socket: OwnedFd,
    tls: Connection,
    /// What it has said and nobody has taken.
    pub input: Vec<u8>,
    /// Once nothing more comes from it.
    pub end: Option<End>,
    /// Nothing can be sent any more.
    deaf: bool,
}

struct Socket<'a>(BorrowedFd<'a>);

impl Read for Socket<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        rustix::io::retry_on_intr(|| rustix::io::read(self.0, &mut *bytes)).map_err(Into::into)
    }
}

impl Write for Socket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        rustix::io::retry_on_intr(|| rustix::io::write(self.0, bytes)).map_err(Into::into)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Peer {
    /// `socket` does not block. `said` are bytes that have been read from it.
    pub fn new(socket: OwnedFd, tls: impl Into<Connection>, mut said: &[u8]) -> Self {
        let mut tls = tls.into();
        // What is written waits for room at the socket, before more is read from the other side.
        tls.set_buffer_limit(None);
        let mut peer = Self { socket, tls, input: Vec::new(), end: None, deaf: false };
        while !said.is_empty() && peer.end.is_none() {
            match peer.tls.read_tls(&mut said) {
                Ok(1..) => peer.process(),
                _ => peer.end = Some(End::Cut),
            }
        }
        peer
    }

    /// To be waited for.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether TLS is not set up yet.
    pub fn is_greeting(&self) -> bool {
        self.tls.is_handshaking()
    }

    /// Whether all that was sent is on its way.
    pub fn is_flushed(&self) -> bool {
        self.deaf || !self.tls.wants_write()
    }

    /// What to wait for; empty for nothing.
    pub fn wants(&self) -> PollFlags {
        let mut wanted = PollFlags::empty();
        if self.end.is_none() && self.input.len() < AHEAD {
            wanted |= PollFlags::IN;
        }
        if !self.is_flushed() {
            wanted |= PollFlags::OUT;
        }
        wanted
    }

    fn process(&mut self) {
        match self.tls.process_new_packets() {
            Ok(state) => {
                let (from, more) = (self.input.len(), state.plaintext_bytes_to_read());
                self.input.resize(from + more, 0);
                if self.tls.reader().read_exact(&mut self.input[from..]).is_err() {
                    self.input.truncate(from);
                    self.end = Some(End::Cut);
                }
                if state.peer_has_closed() {
                    self.end = Some(End::Said);
                }
            }
            Err(error) => self.end = Some(End::Wrong(error)),
        }
    }

    /// Reads what has come; whether there was any.
    pub fn receive(&mut self) -> bool {
        let mut some = false;
        while self.end.is_none() && self.input.len() < AHEAD {
            match self.tls.read_tls(&mut Socket(self.socket.as_fd())) {
                Ok(0) => self.end = Some(End::Cut),
                Ok(_) => {
                    some = true;
                    self.process();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.end = Some(End::Cut);
                    self.deaf = true;
                }
            }
        }
        some
    }

    /// Whether nothing can be sent any more: the socket takes nothing, whatever the other end has said before.
    pub fn is_deaf(&self) -> bool {
        self.deaf
    }

    /// Puts the bytes into TLS; nothing when the other side is gone.
    pub fn send(&mut self, bytes: &[u8]) {
        if self.deaf {
            return;
        }
        // Into memory, without a limit.
        let _ = self.tls.writer().write_all(bytes);
    }

    /// Says that nothing more comes.
    pub fn finish(&mut self) {
        self.tls.send_close_notify();
    }

    /// Hands on what was sent, as far as there is room; whether there was any.
    pub fn flush(&mut self) -> bool {
        let mut some = false;
        while !self.is_flushed() {
            match self.tls.write_tls(&mut Socket(self.socket.as_fd())) {
                Ok(1..) => some = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                _ => self.deaf = true,
            }
        }
        some
    }
}
