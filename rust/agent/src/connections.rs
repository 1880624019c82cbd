//! Connections of a guest that was restored: their other ends belong to the guest that it was made from.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::sys;

/// include/uapi/linux/sock_diag.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// struct nlmsghdr, struct inet_diag_req_v2, struct inet_diag_msg (include/uapi/linux/inet_diag.h).
const HEADER: usize = 16;
const REQUEST: usize = 56;
const MESSAGE: usize = 72;
/// Where the ports, addresses, interface and cookie of a socket are in the last.
const ID_IN_MESSAGE: usize = 4;
const ID: usize = 48;
const ALL_STATES_BUT_LISTEN: u32 = !(1 << 10);

/// Ends every TCP connection that is not over the loopback, as if its other end had reset it, so that programs see that
/// at once. A kernel that cannot do so leaves them; they are reset when they send something.
pub fn end_all() -> io::Result<()> {
    let socket = diagnosis()?;
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut found = Vec::new();
        ask(&socket, SOCK_DIAG_BY_FAMILY, libc::NLM_F_DUMP, family as u8, &[0; ID])?;
        dump(&socket, &mut found)?;
        let mut batch = Vec::new();
        for id in found.iter().filter(|id| !is_inside(family, id)) {
            message(&mut batch, SOCK_DESTROY, 0, family as u8, id);
            if batch.len() > 16 * 1024 {
                send(&socket, &std::mem::take(&mut batch))?;
            }
        }
        if !batch.is_empty() {
            send(&socket, &batch)?;
        }
    }
    Ok(())
}

fn diagnosis() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: the call takes no pointers; the kernel has just made the descriptor for us.
    unsafe {
        let fd = sys::check(libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_SOCK_DIAG))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Appends a netlink message about a socket, or about all.
fn message(to: &mut Vec<u8>, kind: u16, flags: i32, family: u8, id: &[u8]) {
    to.extend(((HEADER + REQUEST) as u32).to_ne_bytes());
    to.extend(kind.to_ne_bytes());
    to.extend(((libc::NLM_F_REQUEST | flags) as u16).to_ne_bytes());
    to.extend([0; 8]);
    to.extend([family, libc::IPPROTO_TCP as u8, 0, 0]);
    to.extend(ALL_STATES_BUT_LISTEN.to_ne_bytes());
    to.extend(id);
}

fn ask(socket: &OwnedFd, kind: u16, flags: i32, family: u8, id: &[u8]) -> io::Result<()> {
    let mut bytes = Vec::new();
    message(&mut bytes, kind, flags, family, id);
    send(socket, &bytes)
}

fn send(socket: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: pointer and length are the slice's.
    let sent = unsafe { libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Reads the answers to a question about all sockets.
fn dump(socket: &OwnedFd, found: &mut Vec<[u8; ID]>) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        // SAFETY: pointer and length are the buffer's.
        let n = unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        let n = usize::try_from(n).map_err(|_| io::Error::last_os_error())?;
        let mut rest = &buffer[..n];
        while rest.len() >= HEADER {
            let length = u32::from_ne_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
            let kind = u16::from_ne_bytes([rest[4], rest[5]]);
            if length < HEADER || length > rest.len() || kind == libc::NLMSG_DONE as u16 {
                return Ok(());
            }
            if kind == libc::NLMSG_ERROR as u16 {
                return Err(io::ErrorKind::Unsupported.into());
            }
            let at = HEADER + ID_IN_MESSAGE;
            if length >= HEADER + MESSAGE
                && let Ok(id) = rest[at..at + ID].try_into()
            {
                found.push(id);
            }
            rest = &rest[length.next_multiple_of(4).min(rest.len())..];
        }
    }
}

/// Whether both ends are in the guest: one address, or loopback (127/8, ::1, and the former as one of IPv6).
fn is_inside(family: i32, id: &[u8; ID]) -> bool {
    let (own, other) = (&id[4..20], &id[20..36]);
    if own == other {
        return true;
    }
    if family == libc::AF_INET {
        return other[0] == 127;
    }
    let mapped = other[..12] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
    mapped && other[12] == 127 || (other[..15] == [0; 15] && other[15] == 1)
}
