//! What the policy process of a virtual machine's network says to the API and to the worker.
//!
//! Its standard input is a socket of the API's: the first message is [`Command::Start`], along with which comes the link,
//! one end of a socket pair whose other end is the worker's. Over the link the worker asks for flows, and each that is
//! granted comes back as a connected descriptor (SCM_RIGHTS). The process ends when the API's socket or the link does.
//!
//! Flows come to the guest as well: from published ports, by [`Command::Deliver`], and from other machines on a private
//! segment, whose policy processes talk to each other by [`Between`].

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::agent::Chunk;

/// The argument with which the process reads, before it gives up its access to files, whom the host trusts: where there
/// are secrets.
pub const ROOTS: &str = "--roots";

/// API to the policy process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// The first message, with the link.
    Start(Box<Start>),
    /// Another policy from here on. Flows that it does not allow are ended.
    SetPolicy(Policy),
    /// Answered by [`Event::Synced`], after every event before it.
    Sync,
    /// Answered by [`Event::Flows`]s, the last of which is empty.
    Flows,
    /// Somebody connects to a published port, or sends it datagrams; the descriptor to speak with them comes along.
    /// Answered by [`Event::Delivered`] with the same number.
    Deliver { call: u64, protocol: Protocol, source: SocketAddr, port: u16 },
    /// The machine is on a private segment, as this.
    Join(Member),
    /// So is another one; the link to its policy process comes along, whose end says that it is no more.
    Meet(Member),
    /// The machine is on that segment no more.
    Leave { segment: u64 },
}

/// A machine on a private segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The same for all that are on it.
    pub segment: u64,
    pub address: IpAddr,
    pub names: Vec<String>,
}

/// What policy processes of machines on a segment say to each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Between {
    /// A flow to the other machine, from this port; the descriptor comes along. Answered by [`Between::Taken`] or
    /// [`Between::Refused`].
    Open {
        call: u64,
        protocol: Protocol,
        source: u16,
        port: u16,
    },
    /// Who has opened it has ended it.
    Hung {
        call: u64,
        reset: bool,
    },
    Taken {
        call: u64,
    },
    Refused {
        call: u64,
        refusal: Refusal,
    },
    /// Who has taken it has ended it.
    Closed {
        call: u64,
        reset: bool,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// [`crate::VERSION`].
    pub version: u32,
    pub policy: Policy,
    /// Name servers in place of the host's.
    pub dns: Vec<SocketAddr>,
    /// The guest's own address.
    pub guest: Ipv4Addr,
    /// Addresses of the guest's gateway, which is the host's loopback and a name server to it.
    pub gateway: Vec<IpAddr>,
    /// Whether the API is told of each flow's begin and end.
    pub audit: bool,
    /// What is put on the wire in place of what the guest has of it.
    pub secrets: Option<Secrets>,
}

/// Secrets of a guest that it never gets, and what TLS is opened with to put them on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secrets {
    /// The key of a certificate authority of one machine's own: PKCS #8, in DER.
    pub authority: Hidden,
    pub secrets: Vec<Secret>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret {
    /// What the guest has in its place.
    pub placeholder: String,
    pub value: Hidden,
    /// Rules of the form `NAME[:PORTS]`: for whom it is. Port 443 where none is named.
    pub hosts: Vec<String>,
    /// Whether it may be in the query of a target, and in the body of a request, as well as in header fields.
    pub query: bool,
    pub body: bool,
}

/// Bytes that no message shows.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hidden(#[serde(with = "serde_bytes")] pub Vec<u8>);

impl std::fmt::Debug for Hidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hidden")
    }
}

/// What the guest may reach. Rules are texts, as users write them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// What holds where no rule matches.
    pub preset: Preset,
    pub allow: Vec<String>,
    /// Come before those that allow.
    pub deny: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Preset {
    Nothing,
    Public,
    All,
}

/// The policy process to the API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    Denied(Denial),
    Synced,
    /// Some of the flows that are open.
    Flows(Vec<Flow>),
    /// A flow was granted, or has ended; only where that was asked for.
    Opened(Flow),
    Closed(Flow),
    /// Whether the guest takes what came to a published port.
    Delivered {
        call: u64,
        taken: bool,
    },
    /// The last message: it cannot serve.
    Failed {
        message: String,
    },
}

/// A flow that was granted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    pub protocol: Protocol,
    /// The guest's end.
    pub source: SocketAddr,
    pub destination: SocketAddr,
    /// The name that the address was found under last.
    pub name: Option<String>,
    /// Nanoseconds since 1970.
    pub since_ns: u64,
}

/// Something that the guest was not let do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Denial {
    /// The name that was looked up, or that the address was found under.
    pub name: Option<String>,
    pub address: Option<IpAddr>,
    /// 0 where there is none.
    pub port: u16,
    pub protocol: Protocol,
    /// The rule that says so, where it was one.
    pub rule: Option<String>,
    pub reason: String,
    /// A rule that would allow it; empty where none could.
    pub remedy: String,
    /// Nanoseconds since 1970.
    pub time_ns: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protocol {
    Tcp,
    Udp,
    Icmp,
    /// A question to a name server.
    Dns,
}

/// Worker to the policy process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Answered by [`Reply::Granted`] or [`Reply::Refused`].
    Open { flow: u64, protocol: Protocol, source: SocketAddr, destination: SocketAddr },
    /// A flow that was granted, or is [`Reply::Incoming`], has ended.
    Closed { flow: u64, how: Ended },
    /// The guest takes one that is [`Reply::Incoming`].
    Accepted { flow: u64 },
    /// The guest's next bytes of a flow that is [`Reply::Judged`]; `ended` when there will be no more. Answered by
    /// [`Reply::More`], [`Reply::Granted`] or [`Reply::Refused`], before which no further ones are sent.
    First { flow: u64, bytes: Chunk, ended: bool },
}

/// The policy process to the worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The connected descriptor comes along.
    Granted {
        flow: u64,
    },
    Refused {
        flow: u64,
        refusal: Refusal,
    },
    /// The policy no longer allows it, or its other end is gone.
    Revoked {
        flow: u64,
        why: Refusal,
    },
    /// The guest is to be told that it is connected: what it says first decides. Those bytes are not the worker's to
    /// send.
    Judged {
        flow: u64,
    },
    More {
        flow: u64,
    },
    /// Somebody wants a flow with the guest; the connected descriptor comes along. Its number has [`INCOMING`] set, and of
    /// ping the source's port is the identifier. Answered by [`Request::Accepted`] or [`Request::Closed`].
    Incoming {
        flow: u64,
        protocol: Protocol,
        source: SocketAddr,
        port: u16,
    },
}

/// Set in the numbers of flows that come to the guest.
pub const INCOMING: u64 = 1 << 63;

/// How a flow has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ended {
    /// Both sides have ended it, or it was idle.
    Over,
    Reset,
    /// The guest does not take it.
    Refused,
    /// The guest does not answer, or its worker has no room for it.
    Unreachable,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    Denied,
    /// Nobody listens there.
    Refused,
    Unreachable,
}
