//! What the stack is told and asks: addresses, features, flows that the guest wants, sockets to wait for.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{BorrowedFd, OwnedFd};

use crate::wire::Mac;

/// Who is who on the guest's link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Of the guest's card.
    pub guest_mac: Mac,
    /// Of the stack's own, which answers for the gateway.
    pub gateway_mac: Mac,
    /// The one address of IPv4 that the guest may send from.
    pub guest: Ipv4Addr,
    /// Answered for ARP and ping; flows to it are asked for like others.
    pub gateway: Ipv4Addr,
    /// The same of IPv6, where the guest has it.
    pub v6: Option<(Ipv6Addr, Ipv6Addr)>,
}

/// What the guest's driver has accepted: frames for it may leave their checksum to it, and stand for many segments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Frames may leave their checksum to the driver.
    pub checksum: bool,
    /// Frames may stand for several segments of TCP over IPv4.
    pub segments_v4: bool,
    /// The same over IPv6.
    pub segments_v6: bool,
}

/// What a flow carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// A stream.
    Tcp,
    /// Datagrams between two ports.
    Udp,
    /// Echo requests.
    Icmp,
}

/// A new flow that the guest wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// Chosen by the stack, without [`INCOMING`]; no other flow of this stack has had it.
    pub flow: u64,
    /// What it carries.
    pub protocol: Protocol,
    /// The guest's end; of ping the port is the identifier.
    pub source: SocketAddr,
    /// Where the guest wants it to go.
    pub destination: SocketAddr,
}

/// Why there is no flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The policy does not allow it.
    Denied,
    /// Nobody listens there.
    Refused,
    /// There is no way there, or no answer from there.
    Unreachable,
}

/// A flow that the broker has for the guest: somebody connects to one of its ports, or pings it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Chosen by the broker, with [`INCOMING`] set.
    pub flow: u64,
    /// What it carries.
    pub protocol: Protocol,
    /// Who the guest sees. Of ping the port is the identifier.
    pub source: SocketAddr,
    /// Of the guest's; 0 for ping.
    pub port: u16,
}

/// Set in the numbers of flows that the broker begins.
pub const INCOMING: u64 = 1 << 63;

/// How a flow has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Both sides have ended it, or it was idle.
    Over,
    /// The guest, or the stack, has broken it off.
    Reset,
    /// Of a [`Call`]: the guest does not take it.
    Refused,
    /// Of a [`Call`]: the guest does not answer, or there is no room for more flows.
    Unreachable,
}

/// What the broker says to a [`Question`].
pub type Answer = Result<OwnedFd, Refusal>;

/// Who decides about flows and makes their sockets.
pub trait Broker {
    /// Bytes of a connection that it is shown at once, by [`Broker::first`].
    const FIRST: usize;

    /// Asks for a flow; [`Stack::answer`] tells what came of it. `false` when there is nobody to ask.
    fn ask(&mut self, question: &Question) -> bool;

    /// What the guest says first on a connection that [`Stack::judged`] is about; `ended` when it says no more.
    ///
    /// [`Stack::judged`]: crate::Stack::judged
    fn first(&mut self, flow: u64, bytes: Vec<u8>, ended: bool);

    /// The guest has taken a [`Call`].
    fn accepted(&mut self, flow: u64);

    /// A flow that was asked for, or a [`Call`], has ended.
    fn closed(&mut self, flow: u64, how: Ended);
}

/// Has somebody wait for sockets: each event is told once, by [`Stack::event`], until it is asked for again.
pub trait Watch {
    /// Watches a flow's socket for what is asked for; `new` for one that was not watched before.
    fn watch(&mut self, socket: BorrowedFd<'_>, flow: u64, read: bool, write: bool, new: bool);
    /// The socket is about to be closed.
    fn forget(&mut self, socket: BorrowedFd<'_>);
}
