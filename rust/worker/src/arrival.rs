//! Memory of a snapshot that is still on its way: what the API says of it, and what it is asked.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use supermachine_machine::arrival::Arrival;
use supermachine_proto::arrival::{Arrived, Awaited};
use supermachine_proto::frame;

/// What is said of a socket that ends too early.
const GONE: &str = "the process that fetches it has ended";

/// Hears what is missing of so many bytes of RAM, and from then on, in a thread, what comes.
pub(crate) fn follow(socket: OwnedFd, memory_bytes: u64) -> io::Result<Arc<Arrival>> {
    let mut reader = UnixStream::from(socket);
    let writer = reader.try_clone()?;
    let mut missing = Vec::new();
    loop {
        match next(&mut reader)? {
            Arrived::Missing(runs) => missing.extend(runs.into_iter().map(pages)),
            Arrived::Begin => break,
            Arrived::Lost(why) => return Err(io::Error::other(why)),
            Arrived::Pages(_) | Arrived::All => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
    let ask = Box::new(move |page| {
        let mut bytes = Vec::new();
        // Who does not hear it has ended, which the reader sees.
        let _ = frame::encode(&Awaited { page }, &mut bytes);
        let _ = (&writer).write_all(&bytes);
    });
    let arrival = Arc::new(Arrival::new(memory_bytes, &missing, ask));
    let follower = arrival.clone();
    thread::Builder::new().name("arrival".into()).spawn(move || {
        loop {
            match next(&mut reader) {
                Ok(Arrived::Pages(runs)) => runs.into_iter().for_each(|run| follower.came(pages(run))),
                Ok(Arrived::All) => return follower.all_came(),
                Ok(Arrived::Lost(why)) => return follower.lose(why),
                Ok(Arrived::Missing(_) | Arrived::Begin) => return follower.lose("it was said twice".into()),
                Err(error) => return follower.lose(error.to_string()),
            }
        }
    })?;
    Ok(arrival)
}

fn next(reader: &mut UnixStream) -> io::Result<Arrived> {
    frame::read(reader).map_err(io::Error::other)?.ok_or_else(|| io::Error::other(GONE))
}

fn pages((start, count): (u64, u64)) -> std::ops::Range<u64> {
    start..start.saturating_add(count)
}
