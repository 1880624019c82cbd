//! Connections of a guest that was restored: their other ends belong to the guest that it was made from.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

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
/// States as a question's mask (include/net/tcp_states.h): TCP_LISTEN, and TCP_ESTABLISHED to TCP_CLOSING without it. For
/// the state beyond, bound and not connected, the kernel would lock each bucket of the table of ports.
const LISTENING: u32 = 1 << 10;
const CONNECTED: u32 = 0xffe & !LISTENING;
/// Where the kernel counts sockets (net/ipv4/proc.c, net/ipv6/proc.c), and the line of those of TCP.
const COUNTS: [(i32, &str, &str); 2] = [
    (libc::AF_INET, "/proc/net/sockstat", "TCP: inuse "),
    (libc::AF_INET6, "/proc/net/sockstat6", "TCP6: inuse "),
];
/// The same, open: to find them takes a restored guest longer than to read them.
static FILES: OnceLock<[Option<File>; 2]> = OnceLock::new();
const MAX_COUNTS: usize = 4096;

/// Opens what the connections are counted by.
pub(crate) fn prepare() {
    let _ = FILES.set(COUNTS.map(|(_, path, _)| File::open(path).ok()));
}

/// Whether there was no socket of TCP when the guest's processes stood still. There comes none until they go on: who
/// would listen for one, or make it, is one of them, and what the agent makes itself is over the loopback.
static NONE: AtomicBool = AtomicBool::new(false);

/// Looks whether there is any socket that a clone would have to end, with the guest's processes standing still.
pub(crate) fn count() {
    let counts = COUNTS.iter().zip(FILES.get().unwrap_or(&[None, None]));
    let none = counts.map(|((_, _, line), file)| counted(file.as_ref(), line)).all(|count| count == Some(0));
    NONE.store(none, Ordering::Relaxed);
}

/// How many sockets the kernel counts in such a file.
fn counted(file: Option<&File>, line: &str) -> Option<usize> {
    let mut text = [0; MAX_COUNTS];
    // The kernel writes such a file whole where there is room for it.
    let length = file.and_then(|file| file.read_at(&mut text, 0).ok()).unwrap_or(0);
    number(&text[..length], line)
}

/// Ends every TCP connection that is not over the loopback, as if its other end had reset it, so that programs see that
/// at once. A kernel that cannot do so leaves them; they are reset when they send something.
///
/// To look for them the kernel goes through its whole table of connections, 16,384 buckets for 2 GiB: more instructions
/// than all the rest of a restore. So it is not asked where its counts say that there is none, or listeners only.
pub(crate) fn end_all() -> io::Result<()> {
    if NONE.load(Ordering::Relaxed) {
        return Ok(());
    }
    let mut diagnosis = None;
    for ((family, _, line), file) in COUNTS.iter().zip(FILES.get().unwrap_or(&[None, None])) {
        let (family, count) = (*family, counted(file.as_ref(), line));
        if count == Some(0) {
            continue;
        }
        let socket = match &mut diagnosis {
            Some(socket) => socket,
            none => none.insert(sys::netlink_socket(libc::NETLINK_SOCK_DIAG)?),
        };
        if let Some(count) = count
            && all(socket, family, LISTENING)?.len() >= count
        {
            continue;
        }
        let mut batch = Vec::new();
        for id in all(socket, family, CONNECTED)?.iter().filter(|id| !is_inside(family, id)) {
            message(&mut batch, SOCK_DESTROY, 0, family, CONNECTED, id);
            if batch.len() > 16 * 1024 {
                send(socket, &std::mem::take(&mut batch))?;
            }
        }
        if !batch.is_empty() {
            send(socket, &batch)?;
        }
    }
    Ok(())
}

/// The number behind these words.
fn number(text: &[u8], words: &str) -> Option<usize> {
    let line = std::str::from_utf8(text).ok()?.lines().find_map(|line| line.strip_prefix(words))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Every socket of this family in one of these states.
fn all(socket: &OwnedFd, family: i32, states: u32) -> io::Result<Vec<[u8; ID]>> {
    let (mut question, mut found) = (Vec::new(), Vec::new());
    message(&mut question, SOCK_DIAG_BY_FAMILY, libc::NLM_F_DUMP, family, states, &[0; ID]);
    send(socket, &question)?;
    dump(socket, &mut found)?;
    Ok(found)
}

/// Appends a netlink message about a socket, or about all in these states.
fn message(to: &mut Vec<u8>, kind: u16, flags: i32, family: i32, states: u32, id: &[u8]) {
    to.extend(sys::length(HEADER + REQUEST).to_ne_bytes());
    to.extend(kind.to_ne_bytes());
    to.extend(sys::short(libc::NLM_F_REQUEST | flags).to_ne_bytes());
    to.extend([0; 8]);
    to.extend([sys::byte(family), sys::byte(libc::IPPROTO_TCP), 0, 0]);
    to.extend(states.to_ne_bytes());
    to.extend(id);
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
            if length < HEADER || length > rest.len() || i32::from(kind) == libc::NLMSG_DONE {
                return Ok(());
            }
            if i32::from(kind) == libc::NLMSG_ERROR {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_counts_are_found_by_their_words() {
        let text = b"sockets: used 12\nTCP: inuse 3 orphan 0 tw 1 alloc 5 mem 0\nUDP: inuse 1 mem 0\n";
        assert_eq!(number(text, "TCP: inuse "), Some(3));
        assert_eq!(number(b"TCP6: inuse 0\n", "TCP6: inuse "), Some(0));
        assert_eq!(number(text, "TCP6: inuse "), None);
        assert_eq!(number(b"TCP: inuse much\n", "TCP: inuse "), None);
        assert_eq!(number(&[0xff; 9], "TCP: inuse "), None);
    }
}
