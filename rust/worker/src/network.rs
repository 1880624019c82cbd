//! The guest's network: its card's cable is plugged into the stack, and the stack asks the policy process for flows.

#![allow(unsafe_code, reason = "frames lie in guest memory")]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use supermachine_devices::Broken;
use supermachine_devices::net::{self as device, Backend, Receiver, Segments};
use supermachine_devices::poller::{Event, Interest, Poller};
use supermachine_machine::assembly;
use supermachine_net::{
    Addresses, Broker, Call, Ended, Frame, Header, Offloads, Output, Protocol, Question, Refusal, Stack,
    Watch,
};
use supermachine_proto::agent::Network;
use supermachine_proto::frame::{self, Decoder};
use supermachine_proto::netd::{self, Reply, Request};
use supermachine_support::descriptors;
use vm_memory::VolatileSlice;

/// Of the router on the guest's link: locally administered.
const GATEWAY_MAC: [u8; 6] = [0x02, 0x53, 0x4d, 0x00, 0x00, 0x02];
/// The poller's name of the link; flows have other numbers.
const LINK: u64 = 0;
// Flows that come to the guest are numbered by the policy process, beside the stack's own.
const _: () = assert!(supermachine_net::INCOMING == netd::INCOMING);
/// Bytes of requests that wait for the policy process. It reads at once, or is not well.
const MAX_WAITING: usize = 4 << 20;

/// What the card's cable leads to.
pub(crate) struct Cable {
    stack: Stack<Link, Sockets>,
}

impl Cable {
    /// A stack for the guest's place, whose flows the policy process at the other end of `link` decides about.
    pub(crate) fn new(place: &Network, link: OwnedFd, poller: Arc<Poller>) -> io::Result<Self> {
        let stream = UnixStream::from(link);
        stream.set_nonblocking(true)?;
        poller.add(&stream, LINK)?;
        let addresses = Addresses {
            guest_mac: assembly::MAC,
            gateway_mac: GATEWAY_MAC,
            guest: place.address,
            gateway: place.gateway,
            v6: place.v6.as_ref().map(|v6| (v6.address, v6.gateway)),
        };
        let link = Link {
            stream: Some(stream),
            decoder: Decoder::default(),
            fds: VecDeque::new(),
            waiting: Vec::new(),
            poller: poller.clone(),
        };
        Ok(Self { stack: Stack::new(addresses, link, Sockets(poller)) })
    }

    /// Hears what the policy process answers.
    fn hear(&mut self, now: Instant) {
        self.stack.broker().flush();
        let answers = self.stack.broker().receive();
        for (reply, fd) in answers {
            match (reply, fd) {
                (Reply::Granted { flow }, Some(fd)) => self.stack.answer(flow, Ok(fd), now),
                (Reply::Granted { flow }, None) => self.stack.answer(flow, Err(Refusal::Unreachable), now),
                (Reply::Refused { flow, refusal: why }, _) => self.stack.answer(flow, Err(refusal(why)), now),
                (Reply::Revoked { flow, why }, _) => self.stack.revoke(flow, refusal(why), now),
                (Reply::Judged { flow }, _) => self.stack.judged(flow, now),
                (Reply::More { flow }, _) => self.stack.more_wanted(flow, now),
                (Reply::Incoming { flow, protocol, source, port }, fd) => {
                    let protocol = match protocol {
                        netd::Protocol::Udp => Protocol::Udp,
                        netd::Protocol::Icmp => Protocol::Icmp,
                        netd::Protocol::Tcp | netd::Protocol::Dns => Protocol::Tcp,
                    };
                    match fd {
                        Some(fd) => self.stack.call(&Call { flow, protocol, source, port }, fd, now),
                        None => self.stack.broker().closed(flow, Ended::Unreachable),
                    }
                }
            }
        }
        if self.stack.broker().stream.is_none() {
            self.stack.broker_is_gone();
        }
    }

    fn flush(&mut self, guest: &mut dyn Receiver, now: Instant) -> Result<(), Broken> {
        let mut output = Guest { guest, broken: None };
        self.stack.flush(&mut output, now);
        output.broken.map_or(Ok(()), Err)
    }
}

impl Backend for Cable {
    fn start(&mut self, offloads: device::Offloads) {
        self.stack.clear();
        self.stack.set_offloads(Offloads {
            checksum: offloads.checksum,
            segments_v4: offloads.tcp_v4,
            segments_v6: offloads.tcp_v6,
        });
    }

    fn transmit(
        &mut self,
        header: &device::Header,
        frame: &[VolatileSlice<'_>],
        _: &mut dyn Receiver,
    ) -> Result<(), Broken> {
        let guards: Vec<_> = frame.iter().map(|slice| (slice.ptr_guard(), slice.len())).collect();
        let spans: Vec<_> = guards
            .iter()
            .map(|(guard, len)| libc::iovec { iov_base: guard.as_ptr().cast_mut().cast(), iov_len: *len })
            .collect();
        // SAFETY: the slices are guest memory, which stays mapped for as long as they live, longer than this call.
        let frame = unsafe { Frame::new(&spans, 0) };
        self.stack.receive(frame, header.needs_checksum || header.checksum_valid, Instant::now());
        Ok(())
    }

    fn pump(&mut self, guest: &mut dyn Receiver) -> Result<(), Broken> {
        self.flush(guest, Instant::now())
    }

    fn ready(&mut self, event: Event, guest: &mut dyn Receiver) -> Result<(), Broken> {
        let now = Instant::now();
        if event.token == LINK {
            self.hear(now);
        } else {
            self.stack.event(event.token, event.readable, event.writable || event.hung_up, now);
        }
        self.flush(guest, now)
    }

    fn deadline(&self) -> Option<Instant> {
        self.stack.deadline()
    }

    fn expired(&mut self, guest: &mut dyn Receiver) -> Result<(), Broken> {
        let now = Instant::now();
        self.stack.tick(now);
        self.flush(guest, now)
    }
}

fn refusal(said: netd::Refusal) -> Refusal {
    match said {
        netd::Refusal::Denied => Refusal::Denied,
        netd::Refusal::Refused => Refusal::Refused,
        netd::Refusal::Unreachable => Refusal::Unreachable,
    }
}

/// The guest's receive queue as the stack sees it.
struct Guest<'a> {
    guest: &'a mut dyn Receiver,
    broken: Option<Broken>,
}

impl Guest<'_> {
    /// What the queue says; a breach of the rules is kept, and ends the batch.
    fn heard(&mut self, result: Result<bool, Broken>) -> bool {
        result.unwrap_or_else(|broken| {
            self.broken = Some(broken);
            false
        })
    }
}

impl Output for Guest<'_> {
    fn has_room(&mut self) -> bool {
        let room = self.guest.has_room();
        self.heard(room)
    }

    fn send(&mut self, header: &Header, pieces: &[&[u8]]) -> bool {
        let segments = match (header.segment, header.v6) {
            (0, _) => Segments::None,
            (_, false) => Segments::TcpV4,
            (_, true) => Segments::TcpV6,
        };
        let header = device::Header {
            needs_checksum: header.needs_checksum,
            checksum_valid: false,
            checksum_start: header.checksum_start,
            checksum_offset: header.checksum_offset,
            segments,
            header_bytes: header.header_bytes,
            segment_bytes: header.segment,
        };
        let sent = self.guest.send(&header, pieces);
        self.heard(sent)
    }
}

/// Flows' sockets, waited for by the device's thread.
struct Sockets(Arc<Poller>);

impl Watch for Sockets {
    fn watch(&mut self, socket: BorrowedFd<'_>, flow: u64, read: bool, write: bool, new: bool) {
        // A socket of ours that is open can be watched; a failure would show as silence, not as a wrong answer.
        if new {
            let _ = self.0.add(&socket, flow);
        }
        self.0.rearm(&socket, flow, Interest { read, write });
    }

    fn forget(&mut self, socket: BorrowedFd<'_>) {
        self.0.remove(&socket);
    }
}

/// The way to the policy process. Nothing here waits for it.
struct Link {
    /// Until it is gone.
    stream: Option<UnixStream>,
    decoder: Decoder,
    fds: VecDeque<OwnedFd>,
    waiting: Vec<u8>,
    poller: Arc<Poller>,
}

impl Link {
    fn send(&mut self, request: &Request) -> bool {
        if self.stream.is_none() || self.waiting.len() > MAX_WAITING {
            return false;
        }
        if frame::encode(request, &mut self.waiting).is_err() {
            return false;
        }
        self.flush();
        self.stream.is_some()
    }

    /// Sends what waits, as far as there is room.
    fn flush(&mut self) {
        while let (false, Some(stream)) = (self.waiting.is_empty(), &self.stream) {
            match rustix::io::write(stream, &self.waiting) {
                Ok(n) => drop(self.waiting.drain(..n)),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => {
                    self.poller.rearm(stream, LINK, Interest { read: true, write: true });
                    return;
                }
                Err(_) => self.end(),
            }
        }
    }

    fn end(&mut self) {
        if let Some(stream) = self.stream.take() {
            self.poller.remove(&stream);
        }
    }

    /// All answers that have come, each with its descriptor.
    fn receive(&mut self) -> Vec<(Reply, Option<OwnedFd>)> {
        let mut replies = Vec::new();
        let mut bytes = [0_u8; 16 * 1024];
        let mut open = true;
        while let (true, Some(stream)) = (open, &self.stream) {
            match descriptors::receive(stream, &mut bytes) {
                Ok(received) => {
                    self.fds.extend(received.descriptors);
                    open = received.bytes > 0;
                    self.decoder.push(&bytes[..received.bytes]);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => open = false,
            }
            loop {
                match self.decoder.next::<Reply>() {
                    Ok(Some(reply)) => {
                        let fd = match reply {
                            Reply::Granted { .. } | Reply::Incoming { .. } => self.fds.pop_front(),
                            _ => None,
                        };
                        replies.push((reply, fd));
                    }
                    Ok(None) => break,
                    Err(_) => {
                        open = false;
                        break;
                    }
                }
            }
        }
        if !open {
            self.end();
        }
        if let Some(stream) = &self.stream {
            let write = !self.waiting.is_empty();
            self.poller.rearm(stream, LINK, Interest { read: true, write });
        }
        replies
    }
}

impl Broker for Link {
    const FIRST: usize = netd::FIRST;

    fn ask(&mut self, question: &Question) -> bool {
        let protocol = match question.protocol {
            Protocol::Tcp => netd::Protocol::Tcp,
            Protocol::Udp => netd::Protocol::Udp,
            Protocol::Icmp => netd::Protocol::Icmp,
        };
        let Question { flow, source, destination, .. } = *question;
        self.send(&Request::Open { flow, protocol, source, destination })
    }

    fn first(&mut self, flow: u64, bytes: Vec<u8>, ended: bool) {
        // Where that cannot be sent the policy process gives the connection up in time.
        self.send(&Request::First { flow, bytes: bytes.into(), ended });
    }

    fn accepted(&mut self, flow: u64) {
        self.send(&Request::Accepted { flow });
    }

    fn closed(&mut self, flow: u64, how: Ended) {
        let how = match how {
            Ended::Over => netd::Ended::Over,
            Ended::Reset => netd::Ended::Reset,
            Ended::Refused => netd::Ended::Refused,
            Ended::Unreachable => netd::Ended::Unreachable,
        };
        self.send(&Request::Closed { flow, how });
    }
}
