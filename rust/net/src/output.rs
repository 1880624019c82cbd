//! Frames for the guest: the stack's own answers first, then each flow in its turn.

use std::os::fd::AsFd;
use std::time::Instant;

use crate::broker::{Broker, Refusal, Watch};
use crate::frame::{Header, Output};
use crate::limits;
use crate::segments::segment;
use crate::stack::{Kind, Stack};
use crate::tcp::Fate;

impl<B: Broker, W: Watch> Stack<B, W> {
    /// Sends the guest what there is for it, as far as it has room.
    pub fn flush(&mut self, output: &mut impl Output, now: Instant) {
        if !self.send_answers(output) {
            return;
        }
        // Each flow has its turn, of at most one frame.
        while let Some(id) = self.ready.pop_front() {
            let Some(flow) = self.flows.get_mut(&id) else { continue };
            let more = match &flow.kind {
                Kind::Tcp(_) => self.flush_segment(id, output, now),
                Kind::Datagrams(_) => self.flush_datagram(id, output, now),
            };
            match more {
                Turn::Full => {
                    self.ready.push_front(id);
                    return;
                }
                Turn::More => self.ready.push_back(id),
                Turn::Over => self.rest(id, now),
            }
        }
    }

    fn send_answers(&mut self, output: &mut impl Output) -> bool {
        while let Some(answer) = self.answers.front() {
            if !output.send(&Header::default(), &[answer]) {
                return false;
            }
            self.answers.pop_front();
        }
        true
    }

    /// Whether something waits for the guest's buffers.
    pub fn has_output(&self) -> bool {
        !self.answers.is_empty() || !self.ready.is_empty()
    }

    /// A flow has sent all that it has: from here on its socket, its timer or the guest wakes it.
    fn rest(&mut self, id: u64, now: Instant) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        flow.queued = false;
        let (socket, (read, write)) = match &mut flow.kind {
            Kind::Tcp(connection) => {
                if connection.is_done() {
                    return self.remove(id);
                }
                connection.watch_window(now);
                (connection.socket(), connection.interest())
            }
            Kind::Datagrams(datagrams) => (datagrams.socket(), (!datagrams.readable, false)),
        };
        if let Some(socket) = socket
            && (read || write)
            && flow.armed != Some((read, write))
        {
            let new = flow.armed.replace((read, write)).is_none();
            self.watch.watch(socket.as_fd(), id, read, write, new);
        }
        self.set_timer(id, now);
    }

    fn flush_segment(&mut self, id: u64, output: &mut impl Output, now: Instant) -> Turn {
        let (addresses, offloads) = (self.addresses, self.offloads);
        let packet_id = self.take_id();
        let spare = limits::RINGS.saturating_sub(self.kept);
        let Some(flow) = self.flows.get_mut(&id) else { return Turn::Over };
        let Kind::Tcp(connection) = &mut flow.kind else { return Turn::Over };
        let v6 = flow.key.guest.is_ipv6();
        let headers = if v6 { 60 } else { 40 };
        let mss = connection.mss().min(1500 - headers);
        let many = if v6 { offloads.segments_v6 } else { offloads.segments_v4 } && offloads.checksum;
        let most = if many { 0xffff - 100 } else { usize::from(mss) };
        let Some(out) = connection.next(most) else { return Turn::Over };
        let payload = connection.payload(&out);
        let (writer, header) = segment(&addresses, &flow.key, &out, payload, offloads, mss, packet_id);
        if !output.send(&header, &[writer.bytes(), payload[0], payload[1]]) {
            return Turn::Full;
        }
        connection.sent(&out, now);
        if connection.readable {
            let before = connection.kept();
            let fate = connection.pump(spare);
            self.kept = self.kept - before + connection.kept();
            if fate != Fate::Lives {
                self.settle(id, fate, now);
                return Turn::Over;
            }
        }
        Turn::More
    }

    fn flush_datagram(&mut self, id: u64, output: &mut impl Output, now: Instant) -> Turn {
        if !output.has_room() {
            return Turn::Full;
        }
        let Some(flow) = self.flows.get_mut(&id) else { return Turn::Over };
        let key = flow.key;
        let Kind::Datagrams(datagrams) = &mut flow.kind else { return Turn::Over };
        match datagrams.receive(&mut self.buffer, now) {
            Ok(Some(n)) => {
                let buffer = std::mem::take(&mut self.buffer);
                self.send_datagram(&key, &buffer[..n]);
                self.buffer = buffer;
                if self.answers.is_empty() {
                    // Nothing for the guest, so no want of room ends a flood of them: the socket tells when it has
                    // more.
                    self.wait_for_more(id);
                    return Turn::Over;
                }
                if self.send_answers(output) { Turn::More } else { Turn::Full }
            }
            Ok(None) => Turn::Over,
            Err(_) => {
                // The other end refuses; the guest's next datagram asks anew.
                self.refuse(id, Refusal::Refused);
                Turn::Over
            }
        }
    }

    /// What the socket has is looked at when it is told of anew.
    fn wait_for_more(&mut self, id: u64) {
        if let Some(flow) = self.flows.get_mut(&id)
            && let Kind::Datagrams(datagrams) = &mut flow.kind
        {
            datagrams.readable = false;
        }
    }
}

/// What a flow's turn came to.
enum Turn {
    /// The guest has no room.
    Full,
    More,
    Over,
}
