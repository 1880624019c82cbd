//! One UDP or ping flow of the guest's: datagrams from one port to one address, over a connected socket.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use crate::frame::Frame;
use crate::limits;
use crate::ring;

pub(crate) struct Datagrams {
    socket: Option<OwnedFd>,
    /// Those that wait for the socket.
    waiting: VecDeque<Vec<u8>>,
    pub last_used: Instant,
    pub readable: bool,
    /// Headers of the datagram that made the flow, for the answer to a refusal.
    pub first: Vec<u8>,
}

impl Datagrams {
    pub(crate) fn new(first: Vec<u8>, now: Instant) -> Self {
        Self { socket: None, waiting: VecDeque::new(), last_used: now, readable: false, first }
    }

    pub(crate) fn socket(&self) -> Option<&OwnedFd> {
        self.socket.as_ref()
    }

    /// The broker has connected a socket; what waits is sent.
    pub(crate) fn granted(&mut self, socket: OwnedFd) -> io::Result<()> {
        self.readable = true;
        let sent = self.waiting.drain(..).try_for_each(|datagram| {
            let span = libc::iovec { iov_base: datagram.as_ptr().cast_mut().cast(), iov_len: datagram.len() };
            lossy(ring::send(socket.as_fd(), &[span]))
        });
        self.socket = Some(socket);
        sent
    }

    /// Sends a datagram of the guest's. An error is the socket's, which the guest is told of.
    pub(crate) fn send(&mut self, payload: Frame<'_>, now: Instant) -> io::Result<()> {
        self.last_used = now;
        match &self.socket {
            Some(socket) => lossy(ring::send(socket.as_fd(), &payload.spans())),
            None => {
                if self.waiting.len() < limits::WAITING_DATAGRAMS {
                    self.waiting.push_back(payload.to_vec());
                }
                Ok(())
            }
        }
    }

    /// The next datagram for the guest, in `buffer`; `None` when there is none. A hang-up of the other end of a socket
    /// pair is an error.
    pub(crate) fn receive(&mut self, buffer: &mut [u8], now: Instant) -> io::Result<Option<usize>> {
        let Some(socket) = &self.socket else { return Ok(None) };
        loop {
            match ring::receive(socket.as_fd(), buffer) {
                Ok(n) => {
                    self.last_used = now;
                    return Ok(Some(n));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readable = false;
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// A datagram that a full socket does not take is lost, as it would be in a full queue.
fn lossy(sent: io::Result<usize>) -> io::Result<()> {
    match sent {
        Err(error) if !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
            Err(error)
        }
        _ => Ok(()),
    }
}
