//! The network of one guest, in user space: its frames on one side, connected descriptors on the other.
//!
//! The stack answers ARP, ping and DHCP for the gateway and ends the guest's TCP itself. It makes no socket: for each
//! new flow it asks a [`Broker`], which decides, connects, and answers with a connected descriptor or a [`Refusal`];
//! for a connection that comes to the guest it is given one with a [`Call`]. Bytes from the guest are written from its
//! memory to that descriptor; bytes for it wait in a ring that exists only while it holds some. Nothing here blocks,
//! and what a guest can make us keep is bounded in [`limits`].

#![cfg_attr(
    test,
    allow(
        clippy::cast_lossless,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        reason = "tests make small numbers and bytes of counters"
    )
)]

mod broker;
mod fragments;
mod frame;
mod icmp;
mod incoming;
pub mod limits;
mod link;
mod output;
mod ring;
mod segments;
mod stack;
mod tcp;
mod udp;
pub mod wire;

pub use broker::{
    Addresses, Answer, Broker, Call, Ended, INCOMING, Offloads, Protocol, Question, Refusal, Watch,
};
pub use frame::{Frame, Header, Output};
pub use stack::Stack;
