//! One TCP connection of the guest's, which ends here (RFC 9293): its bytes go to a socket of the host's and back.
//!
//! The link is the guest's memory, which loses and reorders nothing. So there is no congestion control, and a segment
//! that is not the next one is not kept but acknowledged anew, and sent again by its sender.

#![allow(unsafe_code, reason = "shutdown(2) is a C call")]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::frame::Frame;
use crate::limits;
use crate::ring::{self, Ring};
use crate::wire::{ACK, FIN, PSH, RST, SYN, Tcp as Segment};

/// The shift of our windows (RFC 7323).
const SCALE: u8 = 7;
#[expect(clippy::cast_possible_truncation, reason = "less than 4 GiB")]
const WINDOW: u32 = limits::RING as u32;
/// The window of our SYN: more cannot be told without a scale.
const SYN_WINDOW: u16 = 0xffff;
/// What a peer that names no segment size takes (RFC 9293, 3.7.1).
const DEFAULT_MSS: u16 = 536;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The broker has not answered yet.
    Asking,
    /// A SYN with ACK is on its way.
    Answered,
    /// A SYN of ours is on its way: the connection comes to the guest.
    Opening,
    Open,
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Lives,
    /// Both sides have ended it.
    Done,
    /// The guest is to be told that it is gone.
    Reset,
    /// The guest has said that it is gone.
    Aborted,
}

/// A segment to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Out {
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    /// Bytes of payload, and where they are in the ring.
    pub offset: usize,
    pub length: usize,
    /// With a SYN: our scale, if there is to be one.
    pub scale: Option<u8>,
}

/// A connection without a socket, on which the broker waits for the guest's first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judging {
    /// It has some to come.
    Waits,
    /// It has been given some, and has not said yet whether that is enough.
    Looks,
}

pub(crate) struct Connection {
    state: State,
    socket: Option<OwnedFd>,
    judging: Option<Judging>,
    /// Where the guest's sequence starts, what is expected next, and the end of the window that it was told of.
    irs: u32,
    rcv_nxt: u32,
    rcv_edge: u32,
    scaled: bool,
    guest_ended: bool,
    /// The socket has been told of the guest's end.
    shut: bool,
    to_host: Ring,
    /// What the guest has acknowledged, what is sent next, the most that was sent, and the end of the guest's window.
    snd_una: u32,
    snd_nxt: u32,
    snd_max: u32,
    snd_edge: u32,
    /// Sequence and acknowledgement of the segment that last changed the window (RFC 9293, 3.10.7.4).
    window_from: (u32, u32),
    guest_scale: u8,
    mss: u16,
    /// From `snd_una` on.
    to_guest: Ring,
    host_ended: bool,
    /// The sequence number after our FIN, once it was sent.
    fin: Option<u32>,
    must_ack: bool,
    duplicates: u8,
    probe: bool,
    pub deadline: Option<Instant>,
    attempts: u8,
    pub readable: bool,
    pub writable: bool,
}

/// Bytes of a segment or of a ring as sequence numbers count them.
pub(crate) fn amount(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("segments and rings have less than 4 GiB")
}

/// Whether `a` is before `b`, modulo 2³².
fn before(a: u32, b: u32) -> bool {
    a.wrapping_sub(b).cast_signed() < 0
}

impl Connection {
    /// For a guest's SYN.
    pub(crate) fn new(syn: &Segment, iss: u32, now: Instant) -> Self {
        Self {
            state: State::Asking,
            socket: None,
            judging: None,
            irs: syn.seq,
            rcv_nxt: syn.seq.wrapping_add(1),
            rcv_edge: syn.seq.wrapping_add(1),
            scaled: syn.scale.is_some(),
            guest_ended: false,
            shut: false,
            to_host: Ring::default(),
            snd_una: iss,
            snd_nxt: iss,
            snd_max: iss,
            snd_edge: iss.wrapping_add(1).wrapping_add(syn.window.into()),
            window_from: (syn.seq, iss),
            guest_scale: syn.scale.unwrap_or(0),
            mss: syn.mss.unwrap_or(DEFAULT_MSS).clamp(64, 65_000),
            to_guest: Ring::default(),
            host_ended: false,
            fin: None,
            must_ack: false,
            duplicates: 0,
            probe: false,
            deadline: Some(now + limits::ANSWER),
            attempts: 0,
            readable: false,
            writable: true,
        }
    }

    /// For a socket whose other end connects to the guest.
    pub(crate) fn opening(iss: u32, socket: OwnedFd, now: Instant) -> Self {
        // Of the guest nothing is known yet; all of it comes with its SYN.
        let syn = Segment {
            source: 0,
            destination: 0,
            seq: 0,
            ack: 0,
            flags: SYN,
            window: 0,
            header: 0,
            mss: None,
            scale: Some(0),
        };
        let (socket, state) = (Some(socket), State::Opening);
        Self { state, socket, deadline: None, readable: true, ..Self::new(&syn, iss, now) }
    }

    pub(crate) fn socket(&self) -> Option<&OwnedFd> {
        self.socket.as_ref()
    }

    /// Whether the guest has not taken it yet.
    pub(crate) fn is_opening(&self) -> bool {
        self.state == State::Opening
    }

    /// Whether the segment belongs to an earlier connection with the same ends, which the guest still has.
    pub(crate) fn is_stray(&self, segment: &Segment) -> bool {
        self.is_opening() && segment.flags & (ACK | RST) == ACK && segment.ack != self.snd_max
    }

    /// Whether it was given up for want of an answer.
    pub(crate) fn is_unanswered(&self) -> bool {
        self.attempts >= limits::RETRANSMISSIONS
    }

    /// How often the last segment was sent again.
    pub(crate) fn attempts(&self) -> u8 {
        self.attempts
    }

    /// Whether the broker has not answered yet.
    pub(crate) fn is_asking(&self) -> bool {
        self.state == State::Asking || self.judging.is_some()
    }

    /// The broker wants to see what the guest says first.
    pub(crate) fn judged(&mut self) {
        if self.state == State::Asking {
            (self.state, self.deadline) = (State::Answered, None);
            (self.judging, self.writable) = (Some(Judging::Waits), false);
        }
    }

    /// The broker needs more than it has been given.
    pub(crate) fn more_wanted(&mut self) {
        if self.judging.is_some() {
            self.judging = Some(Judging::Waits);
        }
    }

    /// The next bytes for the broker, at most so many, and whether they are the last.
    pub(crate) fn first(&mut self, most: usize) -> Option<(Vec<u8>, bool)> {
        if self.judging != Some(Judging::Waits) || self.to_host.is_empty() && !self.guest_ended {
            return None;
        }
        self.judging = Some(Judging::Looks);
        let length = self.to_host.len().min(most);
        let bytes = self.to_host.slices(0, length).concat();
        self.to_host.consume(length);
        Some((bytes, self.guest_ended && self.to_host.is_empty()))
    }

    pub(crate) fn mss(&self) -> u16 {
        self.mss
    }

    /// Bytes of memory in its rings.
    pub(crate) fn kept(&self) -> usize {
        self.to_host.capacity() + self.to_guest.capacity()
    }

    pub(crate) fn payload(&self, out: &Out) -> [&[u8]; 2] {
        self.to_guest.slices(out.offset, out.length)
    }

    /// What the socket is to be watched for: bytes to read, room to write.
    pub(crate) fn interest(&self) -> (bool, bool) {
        let open = self.state != State::Asking;
        (open && !self.readable && !self.host_ended, open && !self.writable && !self.to_host.is_empty())
    }

    /// The broker has connected a socket.
    pub(crate) fn granted(&mut self, socket: OwnedFd) {
        self.socket = Some(socket);
        (self.readable, self.writable) = (true, true);
        if self.judging.take().is_none() {
            (self.state, self.deadline) = (State::Answered, None);
        }
    }

    /// The end of the window as it could be told now. A window never shrinks.
    fn free_edge(&self) -> u32 {
        let most = if self.scaled { WINDOW } else { WINDOW.min(0xffff) };
        let edge = self.rcv_nxt.wrapping_add(most.saturating_sub(amount(self.to_host.len())));
        if before(edge, self.rcv_edge) { self.rcv_edge } else { edge }
    }

    /// A segment of the guest's with its payload. `spare` is memory that may still be kept.
    pub(crate) fn receive(
        &mut self,
        segment: &Segment,
        payload: Frame<'_>,
        spare: usize,
        now: Instant,
    ) -> Fate {
        if self.state == State::Opening {
            return self.taken(segment);
        }
        if segment.flags & RST != 0 {
            // Only the exact one counts (RFC 5961, 3.2).
            if segment.seq == self.rcv_nxt || self.state == State::Asking {
                return Fate::Aborted;
            }
            self.must_ack = true;
            return Fate::Lives;
        }
        if self.state == State::Asking {
            // Its SYN again.
            return Fate::Lives;
        }
        if segment.flags & SYN != 0 {
            if segment.seq == self.irs && self.state == State::Answered {
                self.snd_nxt = self.snd_una;
            } else {
                self.must_ack = true;
            }
            return Fate::Lives;
        }
        if segment.flags & ACK == 0 {
            return Fate::Lives;
        }
        if before(self.snd_max, segment.ack) {
            if self.state == State::Answered {
                return Fate::Reset;
            }
            self.must_ack = true;
            return Fate::Lives;
        }
        self.acknowledged(segment, payload.len(), now);
        if self.state == State::Answered {
            return Fate::Lives;
        }
        self.take(segment, payload, spare)
    }

    /// The guest's answer to our SYN (RFC 9293, 3.10.7.3).
    fn taken(&mut self, segment: &Segment) -> Fate {
        let answers = segment.flags & ACK != 0 && segment.ack == self.snd_max;
        if segment.flags & RST != 0 {
            return if answers { Fate::Aborted } else { Fate::Lives };
        }
        if !answers || segment.flags & SYN == 0 {
            return Fate::Lives;
        }
        (self.irs, self.rcv_nxt) = (segment.seq, segment.seq.wrapping_add(1));
        // What our SYN has told, which has no scale.
        self.rcv_edge = self.rcv_nxt.wrapping_add(SYN_WINDOW.into());
        (self.scaled, self.guest_scale) = (segment.scale.is_some(), segment.scale.unwrap_or(0));
        self.mss = segment.mss.unwrap_or(DEFAULT_MSS).clamp(64, 65_000);
        (self.snd_una, self.snd_nxt) = (segment.ack, segment.ack);
        self.snd_edge = segment.ack.wrapping_add(segment.window.into());
        self.window_from = (segment.seq, segment.ack);
        (self.state, self.attempts, self.deadline, self.must_ack) = (State::Open, 0, None, true);
        Fate::Lives
    }

    /// Takes over the guest's acknowledgement and window.
    fn acknowledged(&mut self, segment: &Segment, payload: usize, now: Instant) {
        let window = u32::from(segment.window) << self.guest_scale;
        let edge = segment.ack.wrapping_add(window);
        let newer = before(self.window_from.0, segment.seq)
            || self.window_from.0 == segment.seq && !before(segment.ack, self.window_from.1);
        let moved = edge != self.snd_edge;
        if newer && !before(segment.ack, self.snd_una) {
            (self.snd_edge, self.window_from) = (edge, (segment.seq, segment.ack));
        }
        if before(self.snd_una, segment.ack) {
            let mut bytes = segment.ack.wrapping_sub(self.snd_una) as usize;
            if self.state == State::Answered {
                // The SYN takes a number as well.
                (self.state, bytes) = (State::Open, bytes - 1);
            }
            // And so does our FIN, which is after all bytes.
            self.to_guest.consume(bytes);
            self.snd_una = segment.ack;
            if before(self.snd_nxt, self.snd_una) {
                self.snd_nxt = self.snd_una;
            }
            (self.attempts, self.duplicates) = (0, 0);
            self.deadline = (self.snd_una != self.snd_max).then(|| now + limits::RETRANSMISSION);
        } else if segment.ack == self.snd_una && payload == 0 && !moved && self.snd_una != self.snd_max {
            self.duplicates = self.duplicates.saturating_add(1);
            if self.duplicates == 3 {
                self.snd_nxt = self.snd_una;
            }
        }
    }

    /// Takes the payload that is next, and the end that may come with it.
    fn take(&mut self, segment: &Segment, payload: Frame<'_>, spare: usize) -> Fate {
        let fin = segment.flags & FIN != 0;
        if payload.is_empty() && !fin {
            // A keep-alive, or a look at our window (RFC 9293, 3.8.4), lies before what is expected.
            self.must_ack |= segment.seq != self.rcv_nxt;
            return Fate::Lives;
        }
        self.must_ack = true;
        let old = self.rcv_nxt.wrapping_sub(segment.seq) as usize;
        if before(self.rcv_nxt, segment.seq) || old > payload.len() || self.guest_ended {
            return Fate::Lives;
        }
        let room = self.rcv_edge.wrapping_sub(self.rcv_nxt) as usize;
        let new = payload.part(old, room);
        let taken = match self.write(new, spare) {
            Ok(taken) => taken,
            Err(_) => return Fate::Reset,
        };
        self.rcv_nxt = self.rcv_nxt.wrapping_add(amount(taken));
        if fin && old + taken == payload.len() {
            self.guest_ended = true;
            self.rcv_nxt = self.rcv_nxt.wrapping_add(1);
        }
        self.pass_end();
        Fate::Lives
    }

    /// Writes bytes of the guest's to the socket, and keeps what that does not take; how many bytes were taken.
    fn write(&mut self, bytes: Frame<'_>, spare: usize) -> io::Result<usize> {
        let mut taken = 0;
        while let (true, true, true, Some(socket)) =
            (self.to_host.is_empty(), self.writable, taken < bytes.len(), &self.socket)
        {
            match ring::send(socket.as_fd(), &bytes.part(taken, usize::MAX).spans()) {
                Ok(n) => taken += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(error) => return Err(error),
            }
        }
        let rest = bytes.part(taken, usize::MAX);
        if rest.is_empty() || rest.len() > spare || !self.to_host.reserve(rest.len()) {
            return Ok(taken);
        }
        self.to_host.append(rest.len(), |at, piece| {
            rest.part(at, piece.len()).copy_to(piece);
        });
        Ok(taken + rest.len())
    }

    /// Tells the socket that the guest will send no more, once everything is written.
    fn pass_end(&mut self) {
        if let (true, true, false, Some(socket)) =
            (self.guest_ended, self.to_host.is_empty(), self.shut, &self.socket)
        {
            self.shut = true;
            // SAFETY: the call takes no pointers. A socket that is gone already has nothing left to end.
            unsafe { libc::shutdown(std::os::fd::AsRawFd::as_raw_fd(socket), libc::SHUT_WR) };
        }
    }

    /// Moves what the socket takes and gives. `spare` is memory that may still be kept.
    pub(crate) fn pump(&mut self, spare: usize) -> Fate {
        let Some(socket) = &self.socket else { return Fate::Lives };
        if self.writable && !self.to_host.is_empty() {
            match self.to_host.write_to(socket.as_fd()) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Fate::Reset,
            }
            // The guest may be waiting for room.
            let opened = self.free_edge().wrapping_sub(self.rcv_edge);
            self.must_ack |= opened >= WINDOW / 4;
        }
        let open = self.state == State::Open;
        while let (true, true, false, Some(socket)) = (open, self.readable, self.host_ended, &self.socket) {
            let step = if spare > 0 { self.to_guest.len().clamp(4096, limits::RING / 4) } else { 4096 };
            if (spare == 0 && !self.to_guest.is_empty()) || !self.to_guest.reserve(step) {
                break;
            }
            let room = self.to_guest.room();
            match self.to_guest.read_from(socket.as_fd()) {
                Ok(0) => self.host_ended = true,
                // It is empty, or will tell of what it has.
                Ok(n) if n < room => self.readable = false,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Fate::Reset,
            }
        }
        if self.to_guest.is_empty() {
            // Memory that was taken to read into and has stayed empty goes back.
            self.to_guest.consume(0);
        }
        self.pass_end();
        Fate::Lives
    }

    /// Whether both sides have ended it and know it.
    pub(crate) fn is_done(&self) -> bool {
        self.shut && self.fin_acknowledged() && !self.must_ack
    }

    fn fin_acknowledged(&self) -> bool {
        self.fin == Some(self.snd_una)
    }

    /// The next segment for the guest, of at most `most` bytes of payload. [`Connection::sent`] says that it is sent.
    pub(crate) fn next(&self, most: usize) -> Option<Out> {
        let out = |seq, flags, offset, length| {
            let edge = self.free_edge();
            let window = edge.wrapping_sub(self.rcv_nxt);
            let window = if self.scaled && flags & SYN == 0 { window >> SCALE } else { window };
            Some(Out {
                seq,
                ack: self.rcv_nxt,
                flags: flags | ACK,
                window: window.min(0xffff) as u16,
                offset,
                length,
                scale: (flags & SYN != 0 && self.scaled).then_some(SCALE),
            })
        };
        match self.state {
            State::Asking => return None,
            State::Answered if self.snd_nxt == self.snd_una => return out(self.snd_una, SYN, 0, 0),
            State::Opening if self.snd_nxt == self.snd_una => {
                let (seq, flags, window, scale) = (self.snd_una, SYN, SYN_WINDOW, Some(SCALE));
                return Some(Out { seq, ack: 0, flags, window, offset: 0, length: 0, scale });
            }
            State::Answered | State::Opening => return None,
            State::Open => {}
        }
        if self.probe {
            return out(self.snd_una.wrapping_sub(1), 0, 0, 0);
        }
        let flying = self.snd_nxt.wrapping_sub(self.snd_una) as usize;
        let waiting = self.to_guest.len().saturating_sub(flying);
        let edge = self.snd_edge.wrapping_sub(self.snd_nxt).cast_signed();
        let length = waiting.min(usize::try_from(edge).unwrap_or(0)).min(most);
        // A small segment waits while others fly (RFC 9293, 3.8.6.2.1).
        let silly = length < waiting && length < usize::from(self.mss) && flying > 0;
        // Our FIN has its number when it is sent, and is sent again when the guest has not acknowledged it.
        let last = self.host_ended && !self.fin_acknowledged() && flying + length == self.to_guest.len();
        if length > 0 && !silly {
            let push = if length == waiting { PSH } else { 0 };
            return out(self.snd_nxt, push | if last { FIN } else { 0 }, flying, length);
        }
        if last && waiting == 0 {
            return out(self.snd_nxt, FIN, 0, 0);
        }
        if self.must_ack { out(self.snd_nxt, 0, 0, 0) } else { None }
    }

    /// That segment is on its way.
    pub(crate) fn sent(&mut self, out: &Out, now: Instant) {
        self.must_ack = false;
        let told = u32::from(out.window) << if self.scaled && out.flags & SYN == 0 { SCALE } else { 0 };
        let edge = out.ack.wrapping_add(told);
        if before(self.rcv_edge, edge) {
            self.rcv_edge = edge;
        }
        if std::mem::take(&mut self.probe) {
            return;
        }
        let numbers = amount(out.length) + u32::from(out.flags & SYN != 0) + u32::from(out.flags & FIN != 0);
        self.snd_nxt = out.seq.wrapping_add(numbers);
        if out.flags & FIN != 0 {
            self.fin = Some(self.snd_nxt);
        }
        if before(self.snd_max, self.snd_nxt) {
            self.snd_max = self.snd_nxt;
        }
        if numbers > 0 && self.deadline.is_none() {
            self.deadline = Some(now + self.wait());
        }
    }

    fn wait(&self) -> Duration {
        (limits::RETRANSMISSION * (1 << self.attempts.min(5))).min(limits::MAX_WAIT)
    }

    /// The deadline has passed.
    pub(crate) fn expired(&mut self, now: Instant) -> Fate {
        self.deadline = None;
        if self.state == State::Asking || self.attempts >= limits::RETRANSMISSIONS {
            return Fate::Reset;
        }
        self.attempts += 1;
        if self.snd_una != self.snd_max {
            self.snd_nxt = self.snd_una;
            self.deadline = Some(now + self.wait());
        } else if self.is_blocked() {
            self.probe = true;
            self.deadline = Some(now + self.wait());
        }
        Fate::Lives
    }

    /// Whether there are bytes that the guest's window has no room for, and nothing flies that would bring news of it.
    fn is_blocked(&self) -> bool {
        self.state == State::Open && !self.to_guest.is_empty() && self.snd_una == self.snd_max
    }

    /// Sees to it that a closed window is looked at again.
    pub(crate) fn watch_window(&mut self, now: Instant) {
        if self.deadline.is_none() && self.is_blocked() {
            self.deadline = Some(now + self.wait());
        }
    }

    /// The reset that the guest is sent.
    pub(crate) fn reset(&self) -> (u32, u32) {
        (self.snd_nxt, self.rcv_nxt)
    }

    /// Has the socket's other end see a reset too, and not an orderly end.
    pub(crate) fn abort(&self) {
        // One that the guest has not taken may be somebody else's to serve.
        if let (Some(socket), false) = (&self.socket, self.is_opening()) {
            ring::linger_never(socket.as_fd());
        }
    }
}
