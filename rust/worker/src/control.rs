//! The control socket: commands in, each perhaps with a descriptor; events out.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

use supermachine_proto::frame::{self, Decoder};
use supermachine_proto::worker::{Command, Event};

/// Descriptors that one message may carry.
const MAX_FDS: usize = 4;

/// Receives commands.
pub struct Commands {
    stream: UnixStream,
    decoder: Decoder,
    fds: VecDeque<OwnedFd>,
}

impl Commands {
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, decoder: Decoder::default(), fds: VecDeque::new() }
    }

    /// The next command, with the descriptor that came along when it is one that takes one. `None` when the API has
    /// closed its end.
    pub fn next(&mut self) -> Result<Option<(Command, Option<OwnedFd>)>, frame::Error> {
        loop {
            if let Some(command) = self.decoder.next::<Command>()? {
                let fd = match command {
                    Command::Connect { .. } | Command::Capture(_) => self.fds.pop_front(),
                    _ => None,
                };
                return Ok(Some((command, fd)));
            }
            if self.receive()? == 0 {
                return match self.decoder.pending() {
                    0 => Ok(None),
                    _ => Err(frame::Error::Truncated),
                };
            }
        }
    }

    fn receive(&mut self) -> io::Result<usize> {
        // u64s, so that the control message's header is aligned.
        let mut control = [0_u64; (64 + MAX_FDS * size_of::<i32>()).div_ceil(8)];
        let mut bytes = [0_u8; 16 * 1024];
        let mut iov = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        // SAFETY: all zeros is a valid msghdr: null pointers and zero lengths.
        let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
        message.msg_iov = &mut iov;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control) as _;
        #[cfg(target_os = "linux")]
        let flags = libc::MSG_CMSG_CLOEXEC;
        #[cfg(not(target_os = "linux"))]
        let flags = 0;
        let received = loop {
            // SAFETY: `message` describes `bytes` and `control`, which outlive the call.
            let received = unsafe { libc::recvmsg(self.stream.as_raw_fd(), &mut message, flags) };
            if received >= 0 {
                break received as usize;
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        };
        // SAFETY: recvmsg has filled `message` in; the CMSG walk stays inside msg_controllen, and each SCM_RIGHTS
        // message holds descriptors that are now ours and nobody else's.
        unsafe {
            let mut header = libc::CMSG_FIRSTHDR(&message);
            while !header.is_null() {
                if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                    let data = libc::CMSG_DATA(header).cast::<i32>();
                    let length = (*header).cmsg_len as usize - (data as usize - header as usize);
                    for n in 0..length / size_of::<i32>() {
                        self.fds.push_back(OwnedFd::from_raw_fd(data.add(n).read_unaligned()));
                    }
                }
                header = libc::CMSG_NXTHDR(&message, header);
            }
        }
        self.decoder.push(&bytes[..received]);
        Ok(received)
    }
}

/// Sends events, from any thread.
pub struct Events(Mutex<UnixStream>);

impl Events {
    pub fn new(stream: UnixStream) -> Self {
        Self(Mutex::new(stream))
    }

    /// Sends one event. An API that is gone is noticed where commands are read.
    pub fn send(&self, event: &Event) {
        let mut bytes = Vec::new();
        if frame::encode(event, &mut bytes).is_ok() {
            let mut stream = self.0.lock().unwrap_or_else(|e| e.into_inner());
            let _ = stream.write_all(&bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    /// Sends `bytes` with one descriptor.
    fn send_with_fd(stream: &UnixStream, bytes: &[u8], fd: &OwnedFd) {
        let mut control = [0_u64; 8];
        let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        // SAFETY: all zeros is a valid msghdr; it then describes `bytes` and `control`, which outlive sendmsg.
        unsafe {
            let mut message: libc::msghdr = MaybeUninit::zeroed().assume_init();
            message.msg_iov = &mut iov;
            message.msg_iovlen = 1;
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = libc::CMSG_SPACE(4) as _;
            let header = libc::CMSG_FIRSTHDR(&message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(4) as _;
            libc::CMSG_DATA(header).cast::<i32>().write_unaligned(fd.as_raw_fd());
            assert_eq!(libc::sendmsg(stream.as_raw_fd(), &message, 0), bytes.len() as isize);
        }
    }

    #[test]
    fn descriptors_go_to_the_commands_they_came_with() {
        let (api, worker) = UnixStream::pair().unwrap();
        let mut commands = Commands::new(worker);
        let mut ours = Vec::new();
        for port in [7, 8] {
            let (mine, theirs) = UnixStream::pair().unwrap();
            let mut bytes = Vec::new();
            frame::encode(&Command::Stats, &mut bytes).unwrap();
            frame::encode(&Command::Connect { port }, &mut bytes).unwrap();
            send_with_fd(&api, &bytes, &theirs.into());
            ours.push(mine);
        }
        for (port, mine) in [7, 8].into_iter().zip(&mut ours) {
            let (command, fd) = commands.next().unwrap().unwrap();
            assert_eq!(command, Command::Stats);
            assert!(fd.is_none());
            let (command, fd) = commands.next().unwrap().unwrap();
            assert_eq!(command, Command::Connect { port });
            UnixStream::from(fd.unwrap()).write_all(&[port as u8]).unwrap();
            let mut got = [0];
            mine.read_exact(&mut got).unwrap();
            assert_eq!(got, [port as u8]);
        }
        drop(api);
        assert!(commands.next().unwrap().is_none());
    }
}
