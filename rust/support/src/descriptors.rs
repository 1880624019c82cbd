//! Descriptors over a stream socket, beside its bytes (unix(7), SCM_RIGHTS).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Descriptors that one call sends or receives at most.
pub const MAX_DESCRIPTORS: usize = 9;

/// What has come.
#[derive(Debug)]
pub struct Received {
    /// Bytes; 0 when the other side has ended the stream.
    pub bytes: usize,
    /// Closed on exec; at most [`MAX_DESCRIPTORS`].
    pub descriptors: Vec<OwnedFd>,
    /// Whether descriptors came along that there was no room for: of this call, or in this process. With its limit of
    /// open files reached a process gets the bytes alone.
    pub lost: bool,
}

/// Receives bytes and descriptors, which are closed on exec. Does not wait where the socket does not (EAGAIN).
pub fn receive(socket: impl AsFd, bytes: &mut [u8]) -> io::Result<Received> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    #[cfg(target_os = "linux")]
    let flags = RecvFlags::CMSG_CLOEXEC;
    #[cfg(not(target_os = "linux"))]
    let flags = RecvFlags::empty();
    let received = retry_on_intr(|| recvmsg(&socket, &mut [IoSliceMut::new(bytes)], &mut control, flags))?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            descriptors.extend(fds);
        }
    }
    Ok(Received { bytes: received.bytes, descriptors, lost: received.flags.contains(ReturnFlags::CTRUNC) })
}

/// Sends what there is room for, with the descriptors at its first byte, and gives how many bytes are gone. A peer that
/// has ended the stream is an error (EPIPE) and no signal. Up to [`MAX_DESCRIPTORS`] go at once; EINVAL for more.
pub fn send(socket: impl AsFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    if descriptors.len() > MAX_DESCRIPTORS {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        // There is room for as many as are allowed.
        control.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    #[cfg(target_os = "linux")]
    let flags = SendFlags::NOSIGNAL;
    #[cfg(not(target_os = "linux"))]
    let flags = SendFlags::empty();
    Ok(retry_on_intr(|| sendmsg(&socket, &[IoSlice::new(bytes)], &mut control, flags))?)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "rustix writes behind a message's header by a reference to the header alone")]
    fn descriptors_come_with_the_bytes_and_too_many_are_refused() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let file = File::open("Cargo.toml").unwrap();
        assert_eq!(send(&ours, b"two", &[file.as_fd(), file.as_fd()]).unwrap(), 3);
        let mut bytes = [0; 16];
        let received = receive(&theirs, &mut bytes).unwrap();
        assert_eq!((received.bytes, received.descriptors.len(), received.lost), (3, 2, false));
        let mut text = String::new();
        File::from(received.descriptors.into_iter().next().unwrap()).read_to_string(&mut text).unwrap();
        assert!(text.contains("supermachine-support"));
        let many = [file.as_fd(); MAX_DESCRIPTORS + 1];
        assert_eq!(send(&ours, b"x", &many).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        drop(ours);
        assert_eq!(receive(&theirs, &mut bytes).unwrap().bytes, 0);
    }

    #[test]
    #[cfg_attr(miri, ignore = "no ioctl on a socket there, which makes it one that does not wait")]
    fn without_room_it_says_so_and_a_gone_peer_is_no_signal() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut bytes = [0; 16];
        assert_eq!(receive(&ours, &mut bytes).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        while send(&ours, &[0; 65536], &[]).is_ok() {}
        assert_eq!(send(&ours, b"x", &[]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(theirs);
        assert_eq!(send(&ours, b"x", &[]).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
