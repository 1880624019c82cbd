//! A stream of messages that may carry descriptors, without waiting for the other side.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use supermachine_proto::frame::{self, Decoder};
use supermachine_support::descriptors;

/// Messages that wait for the other side. Who lets more of them wait does not read.
const MAX_WAITING: usize = 32 * 1024;

/// Messages, and descriptors along with them, over a socket that does not block.
pub struct Channel {
    stream: UnixStream,
    decoder: Decoder,
    fds: VecDeque<OwnedFd>,
    waiting: VecDeque<(Vec<u8>, Option<OwnedFd>)>,
    /// Bytes of the first one that are gone.
    written: usize,
}

impl Channel {
    /// The socket's mode becomes non-blocking.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let (decoder, fds, waiting) = (Decoder::default(), VecDeque::new(), VecDeque::new());
        Ok(Self { stream, decoder, fds, waiting, written: 0 })
    }

    /// Whether messages wait until the other side has read.
    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Reads what has come; `false` when the other side has ended it.
    pub fn receive(&mut self) -> io::Result<bool> {
        let mut bytes = [0_u8; 16 * 1024];
        loop {
            let received = match descriptors::receive(&self.stream, &mut bytes) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(error) => return Err(error),
            };
            self.fds.extend(received.descriptors);
            let received = received.bytes;
            if received == 0 {
                return Ok(false);
            }
            self.decoder.push(&bytes[..received]);
            if received < bytes.len() {
                return Ok(true);
            }
        }
    }

    /// The next message that has come whole.
    pub fn take<T: serde::de::DeserializeOwned>(&mut self) -> Result<Option<T>, frame::Error> {
        self.decoder.next()
    }

    /// The next descriptor that has come.
    pub fn take_fd(&mut self) -> Option<OwnedFd> {
        self.fds.pop_front()
    }

    /// Sends a message, at once or when there is room. An error when too many wait.
    pub fn send<T: serde::Serialize>(&mut self, message: &T, fd: Option<OwnedFd>) -> io::Result<()> {
        if self.waiting.len() >= MAX_WAITING {
            return Err(io::Error::other("the other side does not read"));
        }
        let mut bytes = Vec::new();
        frame::encode(message, &mut bytes).map_err(io::Error::other)?;
        self.waiting.push_back((bytes, fd));
        self.flush()
    }

    /// Sends what waits, as far as there is room.
    pub fn flush(&mut self) -> io::Result<()> {
        while let Some((bytes, fd)) = self.waiting.front() {
            // The descriptor goes with the first byte.
            let fds: Vec<BorrowedFd<'_>> = fd.iter().filter(|_| self.written == 0).map(AsFd::as_fd).collect();
            match descriptors::send(&self.stream, &bytes[self.written..], &fds) {
                Ok(n) => self.written += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
            if self.written == bytes.len() {
                self.waiting.pop_front();
                self.written = 0;
            }
        }
        Ok(())
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
