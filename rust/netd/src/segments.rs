//! Private segments: other machines of the same program, which are reached by name and without any policy of addresses.
//!
//! To each of them there is a link, one end of a socket pair whose other end that machine's policy process has. A flow
//! to one is a socket pair of its own: one end is the guest's here, the other goes over the link, and comes to the
//! other guest as one from outside. No frame of a guest reaches another guest.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::time::{Duration, Instant};

use supermachine_proto::netd::{Between, Ended, Member, Protocol, Refusal, Reply};

use crate::channel::Channel;
use crate::incoming::Caller;
use crate::rules;
use crate::server::{Granted, Server};

/// How long the other guest may take for an answer; a little more than what its policy process gives it.
const ANSWER: Duration = Duration::from_secs(70);
/// Flows that one machine may have with this one at once.
const FLOWS: usize = 4096;
/// Links, and names of a machine.
const LINKS: usize = 1024;
const NAMES: usize = 128;

struct Link {
    id: u64,
    member: Member,
    channel: Channel,
    /// Flows that it has brought.
    incoming: usize,
}

/// A flow of the guest's to another machine.
struct Outgoing {
    link: u64,
    /// Until the other side has answered.
    waiting: Option<(OwnedFd, Instant)>,
}

#[derive(Default)]
pub(crate) struct Segments {
    /// What this machine is itself.
    own: Vec<Member>,
    links: Vec<Link>,
    next: u64,
    outgoing: HashMap<u64, Outgoing>,
}

fn known(mut member: Member) -> Member {
    member.names = member.names.iter().take(NAMES).filter_map(|name| rules::normal(name)).collect();
    member
}

impl Segments {
    /// The names of the machine with this address.
    pub(crate) fn names_of(&self, address: IpAddr) -> Option<&[String]> {
        let link = self.links.iter().find(|link| link.member.addresses.contains(&address))?;
        Some(&link.member.names)
    }

    /// Where a name leads on the segments; `None` for one that no machine has there.
    pub(crate) fn addresses(&self, name: &str) -> Option<Vec<IpAddr>> {
        let members = self.own.iter().chain(self.links.iter().map(|link| &link.member));
        let has = |member: &&Member| member.names.iter().any(|own| own == name);
        let mut found: Vec<IpAddr> =
            members.filter(has).flat_map(|member| member.addresses.clone()).collect();
        found.sort_unstable();
        found.dedup();
        (!found.is_empty()).then_some(found)
    }

    pub(crate) fn channels(&self) -> impl Iterator<Item = &Channel> {
        self.links.iter().map(|link| &link.channel)
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.outgoing.values().filter_map(|flow| Some(flow.waiting.as_ref()?.1)).min()
    }

    fn link(&mut self, id: u64) -> Option<&mut Link> {
        self.links.iter_mut().find(|link| link.id == id)
    }

    /// This machine is on a segment.
    pub(crate) fn join(&mut self, member: Member) {
        self.own.retain(|own| own.segment != member.segment);
        self.own.push(known(member));
    }

    /// There is another one on it.
    pub(crate) fn meet(&mut self, member: Member, link: OwnedFd) -> io::Result<()> {
        if self.links.len() < LINKS {
            self.next += 1;
            let channel = Channel::new(UnixStream::from(link))?;
            self.links.push(Link { id: self.next, member: known(member), channel, incoming: 0 });
        }
        Ok(())
    }
}

impl Server {
    /// Asks another machine for a flow.
    pub(crate) fn call_member(&mut self, flow: u64, granted: Granted) -> io::Result<()> {
        let (protocol, to) = (granted.protocol, granted.destination);
        let found = self.segments.links.iter_mut().find(|link| link.member.addresses.contains(&to.ip()));
        let (Some(link), Ok((ours, theirs))) = (found, pair(protocol)) else {
            return self.refuse(flow, Refusal::Unreachable);
        };
        // Of ping the guest's identifier is where a port is otherwise.
        let (source, port) = (granted.source.port(), to.port());
        let open = Between::Open { call: flow, protocol, v6: to.is_ipv6(), source, port };
        if link.channel.send(&open, Some(theirs)).is_err() {
            let id = link.id;
            self.cut(id)?;
            return self.refuse(flow, Refusal::Unreachable);
        }
        let waiting = Some((ours, Instant::now() + ANSWER));
        self.segments.outgoing.insert(flow, Outgoing { link: link.id, waiting });
        self.granted.insert(flow, granted);
        Ok(())
    }

    /// A flow of the guest's has ended; the other machine hears of it where it goes to one.
    pub(crate) fn outgoing_ended(&mut self, flow: u64, reset: bool) -> io::Result<()> {
        let Some(Outgoing { link, waiting }) = self.segments.outgoing.remove(&flow) else { return Ok(()) };
        self.say(link, &Between::Hung { call: flow, reset: reset || waiting.is_some() })
    }

    /// Whether the guest takes a flow that came over a link.
    pub(crate) fn answer_member(
        &mut self,
        link: u64,
        call: u64,
        taken: Result<(), Refusal>,
    ) -> io::Result<()> {
        let message = match taken {
            Ok(()) => Between::Taken { call },
            Err(refusal) => {
                self.count_down(link);
                Between::Refused { call, refusal }
            }
        };
        self.say(link, &message)
    }

    /// A flow that came over a link and was taken has ended.
    pub(crate) fn end_for_member(&mut self, link: u64, call: u64, reset: bool) -> io::Result<()> {
        self.count_down(link);
        self.say(link, &Between::Closed { call, reset })
    }

    fn count_down(&mut self, link: u64) {
        if let Some(link) = self.segments.link(link) {
            link.incoming = link.incoming.saturating_sub(1);
        }
    }

    /// A link that takes nothing more is cut when it is heard next.
    fn say(&mut self, link: u64, message: &Between) -> io::Result<()> {
        let sent = self.segments.link(link).map(|link| link.channel.send(message, None));
        if sent.is_some_and(|sent| sent.is_err()) { self.cut(link) } else { Ok(()) }
    }

    /// Hears other machines, those of `ready`; gives up those that do not answer.
    pub(crate) fn hear_members(&mut self, ready: &[bool], now: Instant) -> io::Result<()> {
        let links: Vec<u64> = self.segments.links.iter().map(|link| link.id).collect();
        for (id, _) in links.into_iter().zip(ready).filter(|(_, ready)| **ready) {
            if !self.hear_member(id)? {
                self.cut(id)?;
            }
        }
        let late = |flow: &Outgoing| flow.waiting.as_ref().is_some_and(|(_, deadline)| *deadline <= now);
        let late = self.segments.outgoing.iter().filter(|(_, flow)| late(flow)).map(|(flow, _)| *flow);
        for flow in late.collect::<Vec<_>>() {
            self.outgoing_ended(flow, true)?;
            self.refuse(flow, Refusal::Unreachable)?;
        }
        for id in self.segments.links.iter().map(|link| link.id).collect::<Vec<_>>() {
            let flushed = self.segments.link(id).map(|link| link.channel.flush());
            if flushed.is_some_and(|flushed| flushed.is_err()) {
                self.cut(id)?;
            }
        }
        Ok(())
    }

    /// Whether the link is as it should be.
    fn hear_member(&mut self, id: u64) -> io::Result<bool> {
        let open = match self.segments.link(id) {
            Some(link) => link.channel.receive().unwrap_or(false),
            None => return Ok(true),
        };
        while let Some(link) = self.segments.link(id) {
            match link.channel.take::<Between>() {
                Ok(Some(Between::Open { call, protocol, v6, source, port })) => {
                    let (fd, full) = (link.channel.take_fd(), link.incoming >= FLOWS);
                    link.incoming += 1;
                    let caller = Caller::Member { link: id, call };
                    let own = link.member.addresses.iter().find(|own| own.is_ipv6() == v6);
                    match (fd, own.map(|own| SocketAddr::new(*own, source))) {
                        (Some(fd), Some(source)) if !full => {
                            self.deliver(caller, protocol, source, port, fd)?;
                        }
                        _ => self.answer_member(id, call, Err(Refusal::Unreachable))?,
                    }
                }
                Ok(Some(Between::Hung { call, reset })) => {
                    let flow = self.incoming.of(Caller::Member { link: id, call });
                    if let (Some(flow), true) = (flow, reset) {
                        self.revoke_incoming(flow, Ended::Reset)?;
                    }
                }
                Ok(Some(Between::Taken { call })) => {
                    if let Some((socket, _)) = self.outgoing(id, call).and_then(|flow| flow.waiting.take()) {
                        self.hand_over(call, socket, None)?;
                    }
                }
                Ok(Some(Between::Refused { call, refusal })) => {
                    if self.outgoing(id, call).is_some_and(|flow| flow.waiting.is_some()) {
                        self.segments.outgoing.remove(&call);
                        self.refuse(call, refusal)?;
                    }
                }
                Ok(Some(Between::Closed { call, reset })) => {
                    if reset && self.outgoing(id, call).is_some() {
                        self.segments.outgoing.remove(&call);
                        self.granted_ended(call)?;
                        self.link.send(&Reply::Revoked { flow: call, why: Refusal::Refused }, None)?;
                    }
                }
                Ok(None) => return Ok(open),
                Err(_) => return Ok(false),
            }
        }
        Ok(true)
    }

    /// The guest's flow of this number, if it goes over this link.
    fn outgoing(&mut self, link: u64, flow: u64) -> Option<&mut Outgoing> {
        self.segments.outgoing.get_mut(&flow).filter(|flow| flow.link == link)
    }

    /// The guest is on this segment no more.
    pub(crate) fn leave(&mut self, segment: u64) -> io::Result<()> {
        self.segments.own.retain(|own| own.segment != segment);
        let links = self.segments.links.iter().filter(|link| link.member.segment == segment);
        for id in links.map(|link| link.id).collect::<Vec<_>>() {
            self.cut(id)?;
        }
        Ok(())
    }

    /// Ends a link and the flows over it.
    fn cut(&mut self, id: u64) -> io::Result<()> {
        self.segments.links.retain(|link| link.id != id);
        for flow in self.incoming.over(id) {
            self.revoke_incoming(flow, Ended::Reset)?;
        }
        let over = self.segments.outgoing.iter().filter(|(_, flow)| flow.link == id).map(|(flow, _)| *flow);
        for flow in over.collect::<Vec<_>>() {
            let waited = self.segments.outgoing.remove(&flow).is_some_and(|flow| flow.waiting.is_some());
            if waited {
                self.refuse(flow, Refusal::Unreachable)?;
            } else {
                self.granted_ended(flow)?;
                self.link.send(&Reply::Revoked { flow, why: Refusal::Unreachable }, None)?;
            }
        }
        Ok(())
    }
}

/// Both ends of a flow.
fn pair(protocol: Protocol) -> io::Result<(OwnedFd, OwnedFd)> {
    if protocol == Protocol::Tcp {
        let (a, b) = UnixStream::pair()?;
        a.set_nonblocking(true)?;
        b.set_nonblocking(true)?;
        return Ok((a.into(), b.into()));
    }
    let (a, b) = UnixDatagram::pair()?;
    a.set_nonblocking(true)?;
    b.set_nonblocking(true)?;
    Ok((a.into(), b.into()))
}
