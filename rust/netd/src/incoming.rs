//! Flows that come to the guest: from published ports, and from other machines of its segments.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use supermachine_proto::netd::{Ended, Event, INCOMING, Protocol, Refusal, Reply};

use crate::server::{Granted, Server};

/// How long the guest may take for an answer.
const ANSWER: Duration = Duration::from_secs(60);

/// Who has such a flow for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    /// The API, from a published port, under this number.
    Api(u64),
    /// Another machine over the link of this number, under a number of its own.
    Member { link: u64, call: u64 },
}

struct Arrival {
    caller: Caller,
    granted: Granted,
    deadline: Instant,
}

/// Those that the guest has not taken yet, and who had the others for it.
#[derive(Default)]
pub(crate) struct Incoming {
    arriving: HashMap<u64, Arrival>,
    taken: HashMap<u64, Caller>,
    next: u64,
}

impl Incoming {
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.arriving.values().map(|arrival| arrival.deadline).min()
    }

    /// Those that this link has brought.
    pub(crate) fn over(&self, link: u64) -> Vec<u64> {
        let has = |caller: &Caller| matches!(caller, Caller::Member { link: its, .. } if *its == link);
        let arriving =
            self.arriving.iter().filter(|(_, arrival)| has(&arrival.caller)).map(|(flow, _)| *flow);
        arriving.chain(self.taken.iter().filter(|(_, caller)| has(caller)).map(|(flow, _)| *flow)).collect()
    }

    pub(crate) fn of(&self, wanted: Caller) -> Option<u64> {
        let arriving = self.arriving.iter().find(|(_, arrival)| arrival.caller == wanted);
        let taken = || self.taken.iter().find(|(_, caller)| **caller == wanted).map(|(flow, _)| *flow);
        arriving.map(|(flow, _)| *flow).or_else(taken)
    }
}

impl Server {
    /// Has the worker tell the guest of a flow from `source` to its `port`; the guest's end is `socket`.
    pub(crate) fn deliver(
        &mut self,
        caller: Caller,
        protocol: Protocol,
        source: SocketAddr,
        port: u16,
        socket: OwnedFd,
    ) -> io::Result<()> {
        self.incoming.next += 1;
        let flow = INCOMING | self.incoming.next;
        let own = match source.ip() {
            IpAddr::V4(_) => IpAddr::V4(self.guest),
            IpAddr::V6(_) => IpAddr::V6(self.guest_v6.unwrap_or(Ipv6Addr::UNSPECIFIED)),
        };
        let names = self.segments.names_of(source.ip()).map(<[String]>::to_vec).unwrap_or_default();
        let granted = Granted::new(protocol, SocketAddr::new(own, port), source, names);
        let arrival = Arrival { caller, granted, deadline: Instant::now() + ANSWER };
        self.incoming.arriving.insert(flow, arrival);
        self.link.send(&Reply::Incoming { flow, protocol, source, port }, Some(socket))
    }

    /// The guest has taken it.
    pub(crate) fn accepted(&mut self, flow: u64) -> io::Result<()> {
        let Some(Arrival { caller, granted, .. }) = self.incoming.arriving.remove(&flow) else {
            return Ok(());
        };
        self.opened(&granted)?;
        self.granted.insert(flow, granted);
        self.incoming.taken.insert(flow, caller);
        match caller {
            Caller::Api(call) => self.control.send(&Event::Delivered { call, taken: true }, None),
            Caller::Member { link, call } => self.answer_member(link, call, Ok(())),
        }
    }

    /// Such a flow has ended, or the guest does not take it.
    pub(crate) fn incoming_ended(&mut self, flow: u64, how: Ended) -> io::Result<()> {
        if let Some(Arrival { caller, .. }) = self.incoming.arriving.remove(&flow) {
            let refusal = if how == Ended::Unreachable { Refusal::Unreachable } else { Refusal::Refused };
            return match caller {
                Caller::Api(call) => self.control.send(&Event::Delivered { call, taken: false }, None),
                Caller::Member { link, call } => self.answer_member(link, call, Err(refusal)),
            };
        }
        match self.incoming.taken.remove(&flow) {
            Some(Caller::Member { link, call }) => self.end_for_member(link, call, how == Ended::Reset),
            _ => Ok(()),
        }
    }

    /// Breaks it off.
    pub(crate) fn revoke_incoming(&mut self, flow: u64, how: Ended) -> io::Result<()> {
        self.incoming_ended(flow, how)?;
        self.granted_ended(flow)?;
        self.link.send(&Reply::Revoked { flow, why: Refusal::Unreachable }, None)
    }

    /// Gives up those that the guest does not answer.
    pub(crate) fn expire_incoming(&mut self, now: Instant) -> io::Result<()> {
        let late = self.incoming.arriving.iter().filter(|(_, arrival)| arrival.deadline <= now);
        for flow in late.map(|(flow, _)| *flow).collect::<Vec<_>>() {
            self.revoke_incoming(flow, Ended::Unreachable)?;
        }
        Ok(())
    }
}
