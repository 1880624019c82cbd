//! Joins a connection to a TCP port on the guest's loopback, of either version of IP.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::mpsc;

use supermachine_proto::agent::FileReply;
use supermachine_proto::frame;

/// Of the thread that carries what the host sends.
const STACK: usize = 64 << 10;

/// Serves one connection until both sides have ended.
pub(crate) fn serve(mut connection: File, port: u16) -> Result<(), frame::Error> {
    let joined = connect(port).and_then(|socket| {
        let (mut from_host, mut to_port) = (connection.try_clone()?, socket.try_clone()?);
        let (begin, begun) = mpsc::channel::<()>();
        let up = std::thread::Builder::new().stack_size(STACK).spawn(move || {
            if begun.recv().is_ok() {
                let _ = io::copy(&mut from_host, &mut to_port);
                let _ = to_port.shutdown(Shutdown::Write);
            }
        })?;
        Ok((socket, begin, up))
    });
    let (socket, begin, up) = match joined {
        Ok(joined) => joined,
        Err(error) => {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            return frame::write(&mut connection, &FileReply::Failed { errno });
        }
    };
    frame::write(&mut connection, &FileReply::Done)?;
    let _ = begin.send(());
    let _ = io::copy(&mut &socket, &mut connection);
    // SAFETY: the call takes no pointers.
    unsafe { libc::shutdown(connection.as_raw_fd(), libc::SHUT_WR) };
    let _ = up.join();
    Ok(())
}

/// A service that listens on `::1` alone, as programs do that are told "localhost", is there as well.
fn connect(port: u16) -> io::Result<TcpStream> {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).or_else(|refused| {
        // What is said of the first is said when neither answers: there may be no IPv6 at all.
        TcpStream::connect((Ipv6Addr::LOCALHOST, port)).map_err(|_| refused)
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_service_on_either_loopback_is_found() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            // A host without IPv6 has nothing to test there.
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let port = listener.local_addr().unwrap().port();
            let joined = connect(port).unwrap();
            assert_eq!(joined.peer_addr().unwrap(), listener.local_addr().unwrap());
        }
    }

    #[test]
    fn nobody_there_is_a_refusal() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        assert_eq!(connect(port).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}
