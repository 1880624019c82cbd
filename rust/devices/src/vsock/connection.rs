//! One connection: its socket, its credit in both directions, and what is left to be written.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use super::BUFFER;
use crate::poller::{Interest, Poller};

/// What names a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub host: u32,
    pub guest: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The guest has not yet answered the host's request.
    Requested,
    Established,
}

pub(super) struct Connection {
    pub stream: UnixStream,
    pub token: u64,
    pub state: State,
    /// The socket may have bytes, or its end.
    pub readable: bool,
    /// The host will send no more.
    pub host_ended: bool,
    /// The host's end is closed altogether.
    pub hung_up: bool,
    /// Shutdown flags of the guest's.
    pub guest_shutdown: u32,
    /// Bytes from the guest that the socket has taken, modulo 2³²; and that number as the guest last heard it.
    pub forwarded: u32,
    pub announced: u32,
    /// Bytes sent to the guest, modulo 2³².
    pub sent: u32,
    guest_buffer: u32,
    guest_forwarded: u32,
    waiting: Vec<u8>,
    written: usize,
}

impl Connection {
    /// Asks to be told of what its socket waits for.
    pub(super) fn watch(&self, poller: &Poller) {
        let read = !self.readable && !self.host_ended;
        let write = !self.is_drained();
        // Once a hang-up is known there is nothing more to hear of it.
        if !self.hung_up || read || write {
            poller.rearm(&self.stream, self.token, Interest { read, write });
        }
    }

    pub(super) fn new(stream: UnixStream, token: u64, state: State) -> Self {
        Self {
            stream,
            token,
            state,
            readable: false,
            host_ended: false,
            hung_up: false,
            guest_shutdown: 0,
            forwarded: 0,
            announced: 0,
            sent: 0,
            guest_buffer: 0,
            guest_forwarded: 0,
            waiting: Vec::new(),
            written: 0,
        }
    }

    /// The guest says how much room it has.
    pub(super) fn credit(&mut self, buffer: u32, forwarded: u32) {
        self.guest_buffer = buffer;
        self.guest_forwarded = forwarded;
    }

    /// Bytes that may be sent to the guest now.
    pub(super) fn guest_room(&self) -> u32 {
        self.guest_buffer.saturating_sub(self.sent.wrapping_sub(self.guest_forwarded))
    }

    pub(super) fn can_read(&self) -> bool {
        self.readable && self.state == State::Established && self.guest_room() > 0
    }

    /// Bytes from the guest that the socket has not taken.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len() - self.written
    }

    /// Whether everything from the guest is in the socket.
    pub(super) fn is_drained(&self) -> bool {
        self.written == self.waiting.len()
    }

    /// Takes `length` bytes from the guest; `false` when it had no credit for them.
    pub(super) fn take(&mut self, length: usize, data: &mut impl Read) -> io::Result<bool> {
        let waiting = self.waiting();
        if self.state != State::Established || waiting + length > BUFFER as usize {
            return Ok(false);
        }
        if self.written > 0 {
            self.waiting.drain(..self.written);
            self.written = 0;
        }
        self.waiting.resize(waiting + length, 0);
        data.read_exact(&mut self.waiting[waiting..])?;
        Ok(true)
    }

    /// Writes as much as the socket takes.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        while !self.is_drained() {
            match self.stream.write(&self.waiting[self.written..]) {
                Ok(n) => {
                    self.written += n;
                    let length = u32::try_from(n).expect("at most BUFFER wait");
                    self.forwarded = self.forwarded.wrapping_add(length);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.waiting.clear();
        self.written = 0;
        Ok(())
    }

    /// The guest will send no more.
    pub(super) fn end_writing(&self) {
        // A socket that is gone already has nothing left to end.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// The guest will receive no more: writing to the socket's other end fails from now on.
    pub(super) fn end_reading(&self) {
        let _ = self.stream.shutdown(Shutdown::Read);
    }
}
