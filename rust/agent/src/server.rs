//! Takes requests: each connection is served on a thread of its own.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use supermachine_proto::agent::Request;
use supermachine_proto::frame;

use crate::{exec, files, forward, sys};

/// Enough for the deepest of the handlers, whose buffers are on the heap.
const STACK: usize = 192 << 10;

/// Serves connections to `listener` for as long as the guest lives.
pub fn start(listener: OwnedFd) -> io::Result<()> {
    std::thread::Builder::new().name("requests".into()).stack_size(STACK).spawn(move || {
        loop {
            match sys::accept(&listener) {
                Ok(connection) => {
                    let builder = std::thread::Builder::new().stack_size(STACK);
                    // Without a thread the connection closes, which is what the host sees.
                    let _ = builder.spawn(move || serve(connection));
                }
                // Out of descriptors or memory: others must end first.
                Err(_) => std::thread::sleep(std::time::Duration::from_millis(10)),
            }
        }
    })?;
    Ok(())
}

/// Serves one connection to its end. One that breaks the protocol, or breaks off, ends.
fn serve(mut connection: File) {
    match frame::read(&mut connection) {
        Ok(Some(Request::Exec(request))) => exec::serve(connection, &request),
        Ok(Some(Request::Files)) => drop(files::serve(connection)),
        Ok(Some(Request::Forward { port })) => drop(forward::serve(connection, port)),
        Ok(None) | Err(_) => {}
    }
}
