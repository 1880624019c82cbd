//! The header of every virtio-vsock packet (virtio 1.2, 5.10.6).

#![allow(unsafe_code, reason = "a packet's header is plain bytes")]

use vm_memory::{ByteValued, Le16, Le32, Le64};

pub(super) const OP_REQUEST: u16 = 1;
pub(super) const OP_RESPONSE: u16 = 2;
pub(super) const OP_RST: u16 = 3;
pub(super) const OP_SHUTDOWN: u16 = 4;
pub(super) const OP_RW: u16 = 5;
pub(super) const OP_CREDIT_UPDATE: u16 = 6;
pub(super) const OP_CREDIT_REQUEST: u16 = 7;

/// The only socket type here.
pub(super) const TYPE_STREAM: u16 = 1;

/// Flags of [`OP_SHUTDOWN`]: the sender will not receive, will not send any more.
pub(super) const SHUTDOWN_RECEIVE: u32 = 1;
pub(super) const SHUTDOWN_SEND: u32 = 2;
pub(super) const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// The event that all connections are gone.
pub(super) const EVENT_TRANSPORT_RESET: u32 = 0;

#[derive(Clone, Copy, Debug, Default)]
#[repr(C, packed)]
pub(super) struct Header {
    pub src_cid: Le64,
    pub dst_cid: Le64,
    pub src_port: Le32,
    pub dst_port: Le32,
    pub len: Le32,
    pub kind: Le16,
    pub op: Le16,
    pub flags: Le32,
    pub buf_alloc: Le32,
    pub fwd_cnt: Le32,
}

// SAFETY: packed, so without padding, and every bit pattern of its integers is valid.
unsafe impl ByteValued for Header {}

pub(super) const HEADER_BYTES: usize = size_of::<Header>();
