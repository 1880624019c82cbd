//! Joins a connection to a TCP port on the guest's loopback.

use std::fs::File;
use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;

use supermachine_proto::agent::FileReply;
use supermachine_proto::frame;

/// Serves one connection until both sides have ended.
pub fn serve(mut connection: File, port: u16) -> Result<(), frame::Error> {
    let socket = match TcpStream::connect(("127.0.0.1", port)) {
        Ok(socket) => socket,
        Err(error) => {
            let errno = error.raw_os_error().unwrap_or(libc::EIO);
            return frame::write(&mut connection, &FileReply::Failed { errno });
        }
    };
    frame::write(&mut connection, &FileReply::Done)?;
    let (mut from_host, mut to_port) = (connection.try_clone()?, socket.try_clone()?);
    let up = std::thread::spawn(move || {
        let _ = io::copy(&mut from_host, &mut to_port);
        let _ = to_port.shutdown(Shutdown::Write);
    });
    let _ = io::copy(&mut &socket, &mut connection);
    // SAFETY: the call takes no pointers.
    unsafe { libc::shutdown(connection.as_raw_fd(), libc::SHUT_WR) };
    let _ = up.join();
    Ok(())
}
