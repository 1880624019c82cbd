//! Threads that serve connections. One that is done waits for another: to make a thread and to end it takes a guest longer
//! than all else that the agent does for a small process, and a guest that is restored has them waiting.

use std::cell::Cell;
use std::collections::VecDeque;
use std::fs::File;
use std::sync::{Condvar, Mutex, MutexGuard};

use crate::sys;

/// Threads that may wait.
const MOST: usize = 4;

struct Idle {
    /// Threads that wait and have nothing coming.
    threads: usize,
    /// What those will serve that are counted off.
    connections: VecDeque<File>,
}

static IDLE: Mutex<Idle> = Mutex::new(Idle { threads: 0, connections: VecDeque::new() });
static GIVEN: Condvar = Condvar::new();

thread_local! {
    /// Whether this thread has become one that can serve nobody else.
    static SPENT: Cell<bool> = const { Cell::new(false) };
}

fn idle() -> MutexGuard<'static, Idle> {
    sys::lock(&IDLE)
}

/// Gives the connection to a thread that waits; back where none does.
pub(crate) fn give(connection: File) -> Option<File> {
    let mut idle = idle();
    if idle.threads == 0 {
        return Some(connection);
    }
    idle.threads -= 1;
    idle.connections.push_back(connection);
    GIVEN.notify_one();
    None
}

/// Has this thread serve a connection, and then what it is given; returns when it should end.
pub(crate) fn run(mut connection: File, serve: fn(File)) {
    loop {
        serve(connection);
        let mut idle = idle();
        if SPENT.get() || idle.threads >= MOST {
            return;
        }
        idle.threads += 1;
        connection = loop {
            match idle.connections.pop_front() {
                Some(next) => break next,
                None => idle = GIVEN.wait(idle).unwrap_or_else(|e| e.into_inner()),
            }
        };
    }
}

/// This thread ends with what it serves.
pub(crate) fn spend() {
    SPENT.set(true);
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// Answers a byte with the thread's number, and is spent by "s".
    fn serve(connection: File) {
        let mut byte = [0];
        (&connection).read_exact(&mut byte).unwrap();
        if byte == *b"s" {
            spend();
        }
        // SAFETY: the call takes nothing.
        let id = unsafe { libc::gettid() };
        (&connection).write_all(&id.to_ne_bytes()).unwrap();
    }

    /// Which thread serves a connection that says `word`, once it is done with it.
    fn ask(word: &[u8]) -> i32 {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        if let Some(connection) = give(File::from(OwnedFd::from(theirs))) {
            std::thread::spawn(move || run(connection, serve));
        }
        ours.write_all(word).unwrap();
        let mut id = [0; 4];
        ours.read_exact(&mut id).unwrap();
        // Its end is closed when it is done.
        assert_eq!(ours.read(&mut [0]).unwrap(), 0);
        i32::from_ne_bytes(id)
    }

    #[test]
    fn a_thread_serves_again_until_it_is_spent() {
        let waiting = |threads| {
            while idle().threads != threads {
                std::thread::yield_now();
            }
        };
        let first = ask(b"a");
        waiting(1);
        assert_eq!(ask(b"a"), first);
        waiting(1);
        assert_eq!(ask(b"s"), first);
        assert_ne!(ask(b"a"), first);
        waiting(1);
    }
}
