//! What the policy process of a virtual machine's network says to the API and to the worker.
//!
//! Its standard input is a socket of the API's: the first message is [`Command::Start`], along with which comes the link,
//! one end of a socket pair whose other end is the worker's. Over the link the worker asks for flows, and each that is
//! granted comes back as a connected descriptor (SCM_RIGHTS). The process ends when the API's socket or the link does.
//!
//! Flows come to the guest as well: from published ports, by [`Command::Deliver`], and from other machines on a private
//! segment, whose policy processes talk to each other by [`Between`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::agent::Chunk;

/// The argument with which the process reads, before it gives up its access to files, whom the host trusts: where there
/// are secrets.
pub const ROOTS: &str = "--roots";

/// Bytes of a connection that the policy process looks at to see whom it is for; the worker shows it no more at once.
pub const FIRST: usize = 16 * 1024;

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
    Deliver {
        /// Chosen by the API; no other call has it.
        call: u64,
        /// TCP or UDP.
        protocol: Protocol,
        /// Who the guest sees.
        source: SocketAddr,
        /// Of the guest's.
        port: u16,
    },
    /// The machine is on a private segment, as this.
    Join(Member),
    /// So is another one; the link to its policy process comes along, whose end says that it is no more.
    Meet(Member),
    /// The machine is on that segment no more.
    Leave {
        /// As in [`Member::segment`].
        segment: u64,
    },
}

/// A machine on a private segment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The same for all that are on it.
    pub segment: u64,
    /// Of the machine on the segment: at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// By which guests of the segment find the addresses, in letters of either size.
    pub names: Vec<String>,
}

/// What policy processes of machines on a segment say to each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Between {
    /// A flow to the other machine, from this port; the descriptor comes along. Answered by [`Between::Taken`] or
    /// [`Between::Refused`].
    Open {
        /// Chosen by who opens it; no other of this link has it.
        call: u64,
        /// TCP, UDP or, with the identifier as `source`, ICMP.
        protocol: Protocol,
        /// Whether it is of IPv6.
        v6: bool,
        /// Of the machine that opens the flow.
        source: u16,
        /// Of the machine that it is for.
        port: u16,
    },
    /// Who has opened it has ended it.
    Hung {
        /// As in [`Between::Open`].
        call: u64,
        /// Whether it was broken off.
        reset: bool,
    },
    /// The other machine's guest has taken the flow.
    Taken {
        /// As in [`Between::Open`].
        call: u64,
    },
    /// There is no flow.
    Refused {
        /// As in [`Between::Open`].
        call: u64,
        /// Why not.
        refusal: Refusal,
    },
    /// Who has taken it has ended it.
    Closed {
        /// As in [`Between::Open`].
        call: u64,
        /// Whether it was broken off.
        reset: bool,
    },
}

/// What a policy process starts with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// [`crate::VERSION`].
    pub version: u32,
    /// What holds until [`Command::SetPolicy`].
    pub policy: Policy,
    /// Name servers in place of the host's.
    pub dns: Vec<SocketAddr>,
    /// The guest's own address.
    pub guest: Ipv4Addr,
    /// The same of IPv6, where it has one.
    pub guest_v6: Option<Ipv6Addr>,
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
    /// Each with a placeholder of its own.
    pub secrets: Vec<Secret>,
}

/// One secret, and where it may go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret {
    /// What the guest has in its place.
    pub placeholder: String,
    /// What is sent; 8 bytes to 8 KiB of printable ASCII.
    pub value: Hidden,
    /// Rules of the form `NAME[:PORTS]`: for whom it is. Port 443 where none is named.
    pub hosts: Vec<String>,
    /// Whether it may be in the query of a target, and in the body of a request, as well as in header fields.
    pub query: bool,
    /// Whether the placeholder is looked for in bodies of requests.
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
    /// Come before the preset.
    pub allow: Vec<String>,
    /// Come before those that allow.
    pub deny: Vec<String>,
}

/// What a guest reaches of its own, before any rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Preset {
    /// Nothing.
    Nothing,
    /// Addresses of the Internet: neither the host nor private networks.
    Public,
    /// Every address.
    All,
}

/// The policy process to the API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The guest was not let do something.
    Denied(Denial),
    /// Answers [`Command::Sync`].
    Synced,
    /// Some of the flows that are open.
    Flows(Vec<Flow>),
    /// A flow was granted, or has ended; only where that was asked for.
    Opened(Flow),
    /// It has ended; as it was in [`Event::Opened`].
    Closed(Flow),
    /// Whether the guest takes what came to a published port.
    Delivered {
        /// As in [`Command::Deliver`].
        call: u64,
        /// False when the guest refuses it or does not answer.
        taken: bool,
    },
    /// The last message: it cannot serve.
    Failed {
        /// What went wrong, with the way out.
        message: String,
    },
}

/// A flow that was granted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// As the guest has asked for it.
    pub protocol: Protocol,
    /// The guest's end.
    pub source: SocketAddr,
    /// Where it goes, before the name that the host connects to is known.
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
    /// `None` for a name that was not looked up at all.
    pub address: Option<IpAddr>,
    /// 0 where there is none.
    pub port: u16,
    /// [`Protocol::Dns`] for a name.
    pub protocol: Protocol,
    /// The rule that says so, where it was one.
    pub rule: Option<String>,
    /// A sentence for people.
    pub reason: String,
    /// A rule that would allow it; empty where none could.
    pub remedy: String,
    /// Nanoseconds since 1970.
    pub time_ns: u64,
}

/// What a flow carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protocol {
    /// A stream.
    Tcp,
    /// Datagrams.
    Udp,
    /// Echo requests and their answers.
    Icmp,
    /// A question to a name server.
    Dns,
}

/// Worker to the policy process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Answered by [`Reply::Granted`] or [`Reply::Refused`].
    Open {
        /// Chosen by the worker, without [`INCOMING`].
        flow: u64,
        /// What it carries.
        protocol: Protocol,
        /// The guest's end.
        source: SocketAddr,
        /// Where the guest wants it to go.
        destination: SocketAddr,
    },
    /// A flow that was granted, or is [`Reply::Incoming`], has ended.
    Closed {
        /// Its number.
        flow: u64,
        /// What came first.
        how: Ended,
    },
    /// The guest takes one that is [`Reply::Incoming`].
    Accepted {
        /// Its number, with [`INCOMING`].
        flow: u64,
    },
    /// The guest's next bytes of a flow that is [`Reply::Judged`]; `ended` when there will be no more. Answered by
    /// [`Reply::More`], [`Reply::Granted`] or [`Reply::Refused`], before which no further ones are sent.
    First {
        /// Its number.
        flow: u64,
        /// At most [`FIRST`].
        bytes: Chunk,
        /// Whether the guest has ended its side.
        ended: bool,
    },
}

/// The policy process to the worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// The connected descriptor comes along.
    Granted {
        /// As in [`Request::Open`].
        flow: u64,
    },
    /// There is no flow.
    Refused {
        /// As in [`Request::Open`].
        flow: u64,
        /// What the guest is told by a reset or an ICMP message.
        refusal: Refusal,
    },
    /// The policy no longer allows it, or its other end is gone.
    Revoked {
        /// As in [`Request::Open`].
        flow: u64,
        /// What the guest is told.
        why: Refusal,
    },
    /// The guest is to be told that it is connected: what it says first decides. Those bytes are not the worker's to
    /// send.
    Judged {
        /// As in [`Request::Open`].
        flow: u64,
    },
    /// What the guest has said does not tell whom it is for: the next bytes, please.
    More {
        /// As in [`Request::First`].
        flow: u64,
    },
    /// Somebody wants a flow with the guest; the connected descriptor comes along. Its number has [`INCOMING`] set, and of
    /// ping the source's port is the identifier. Answered by [`Request::Accepted`] or [`Request::Closed`].
    Incoming {
        /// Chosen by the policy process.
        flow: u64,
        /// What it carries.
        protocol: Protocol,
        /// Who the guest sees.
        source: SocketAddr,
        /// Of the guest's; 0 for ping.
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
    /// One side has broken it off.
    Reset,
    /// The guest does not take it.
    Refused,
    /// The guest does not answer, or its worker has no room for it.
    Unreachable,
}

/// Why there is no flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// The policy does not allow it.
    Denied,
    /// Nobody listens there.
    Refused,
    /// There is no way there, or no answer from there.
    Unreachable,
}
