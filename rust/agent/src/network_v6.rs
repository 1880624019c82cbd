//! The guest's place on its network by IPv6, told the kernel by rtnetlink(7): ioctls would have it wait for duplicates.

use std::io;
use std::net::Ipv6Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Mutex;

use supermachine_proto::agent::NetworkV6;

use crate::sys;

/// What the kernel has been told, across restores.
static PLACE: Mutex<Option<NetworkV6>> = Mutex::new(None);

/// struct nlmsghdr (include/uapi/linux/netlink.h).
const HEADER: usize = 16;

/// Takes this place, or none, on the interface of this number. `was_down` says that the interface has lost what it had. A guest that has turned IPv6 off
/// goes without.
pub(crate) fn assume(place: Option<&NetworkV6>, was_down: bool, index: impl FnOnce() -> io::Result<i32>) {
    let mut known = sys::lock(&PLACE);
    if was_down {
        *known = None;
    }
    if known.as_ref() == place {
        return;
    }
    let Ok(index) = index() else { return };
    if let Some(old) = known.take() {
        let _ = tell(&messages((libc::RTM_DELADDR, libc::RTM_DELROUTE), 0, index, &old));
    }
    if let Some(new) = place {
        let flags = libc::NLM_F_CREATE | libc::NLM_F_REPLACE;
        let added = tell(&messages((libc::RTM_NEWADDR, libc::RTM_NEWROUTE), flags, index, new));
        *known = added.is_ok().then(|| new.clone());
    }
}

/// About the address, and the route where the place has one.
fn messages(kinds: (u16, u16), flags: i32, index: i32, place: &NetworkV6) -> Vec<Vec<u8>> {
    let mut messages = vec![address(kinds.0, flags, index, place)];
    if place.outwards {
        messages.push(route(kinds.1, flags, index, place));
    }
    messages
}

/// Sends messages, and hears what came of each.
fn tell(messages: &[Vec<u8>]) -> io::Result<()> {
    let socket = sys::netlink_socket(libc::NETLINK_ROUTE)?;
    let bytes = messages.concat();
    // SAFETY: pointer and length are the vector's.
    let sent = unsafe { libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    messages.iter().try_for_each(|_| acknowledged(&socket))
}

/// The kernel has answered by the time that send(2) returns.
fn acknowledged(socket: &OwnedFd) -> io::Result<()> {
    let mut answer = [0_u8; 1024];
    // SAFETY: pointer and length are the buffer's.
    let n = unsafe {
        libc::recv(socket.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), libc::MSG_DONTWAIT)
    };
    let n = usize::try_from(n).map_err(|_| io::Error::last_os_error())?;
    let code = answer[..n].get(HEADER..HEADER + 4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
    match code.map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(error) => Err(io::Error::from_raw_os_error(-error)),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// struct ifaddrmsg and its attributes (include/uapi/linux/if_addr.h).
fn address(kind: u16, flags: i32, index: i32, place: &NetworkV6) -> Vec<u8> {
    const NODAD: u8 = 0x02;
    const _: () = assert!(NODAD as u32 == libc::IFA_F_NODAD);
    let scope = libc::RT_SCOPE_UNIVERSE;
    let mut body = vec![sys::byte(libc::AF_INET6), place.prefix, NODAD, scope];
    body.extend(index.to_ne_bytes());
    attribute(&mut body, libc::IFA_ADDRESS, &Ipv6Addr::octets(&place.address));
    message(kind, flags, &body)
}

/// struct rtmsg and its attributes (include/uapi/linux/rtnetlink.h): a default route.
fn route(kind: u16, flags: i32, index: i32, place: &NetworkV6) -> Vec<u8> {
    let (table, protocol) = (libc::RT_TABLE_MAIN, libc::RTPROT_BOOT);
    let (scope, unicast) = (libc::RT_SCOPE_UNIVERSE, libc::RTN_UNICAST);
    let mut body = vec![sys::byte(libc::AF_INET6), 0, 0, 0, table, protocol, scope, unicast, 0, 0, 0, 0];
    attribute(&mut body, libc::RTA_GATEWAY, &Ipv6Addr::octets(&place.gateway));
    attribute(&mut body, libc::RTA_OIF, &index.to_ne_bytes());
    message(kind, flags, &body)
}

fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).expect("addresses are short");
    body.extend(length.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
}

fn message(kind: u16, flags: i32, body: &[u8]) -> Vec<u8> {
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | flags;
    let mut bytes = sys::length(HEADER + body.len()).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(sys::short(flags).to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend(body);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_say_their_length_and_end_on_a_boundary() {
        for outwards in [false, true] {
            let place = NetworkV6::beside([10, 0, 2, 16].into(), outwards);
            let made = messages((20, 24), 0, 2, &place);
            assert_eq!(made.len(), 1 + usize::from(outwards));
            for message in made {
                assert_eq!(message.len() % 4, 0);
                assert_eq!(message[..4], sys::length(message.len()).to_ne_bytes());
            }
        }
    }
}
