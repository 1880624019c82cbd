//! Waits for sockets, one readiness at a time: each event is told once, until [`Poller::rearm`] asks again. A hang-up is
//! told without being asked for.

#[cfg(target_os = "linux")]
mod epoll;
#[cfg(any(not(target_os = "linux"), test))]
#[cfg_attr(
    target_os = "linux",
    allow(unreachable_pub, reason = "it is the poller of other systems, tested here")
)]
mod poll;

#[cfg(target_os = "linux")]
pub use epoll::Poller;
#[cfg(not(target_os = "linux"))]
pub use poll::Poller;

use std::time::Instant;

/// What has become possible with a socket.
#[derive(Debug, PartialEq, Eq)]
pub struct Event {
    /// By which the socket was added.
    pub token: u64,
    /// It has bytes, or its end.
    pub readable: bool,
    /// It takes bytes.
    pub writable: bool,
    /// Its other end is closed.
    pub hung_up: bool,
}

/// What to tell of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest {
    /// When it can be read from.
    pub read: bool,
    /// When it can be written to.
    pub write: bool,
}

/// A timeout for epoll_wait and poll, rounded up; without a deadline none.
fn milliseconds(deadline: Option<Instant>) -> i32 {
    let Some(deadline) = deadline else { return -1 };
    let left = deadline.saturating_duration_since(Instant::now());
    i32::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;
    use std::thread;

    use super::*;

    const NOTHING: Interest = Interest { read: false, write: false };
    const READ: Interest = Interest { read: true, write: false };
    const BOTH: Interest = Interest { read: true, write: true };

    fn event(readable: bool, writable: bool, hung_up: bool) -> Event {
        Event { token: 7, readable, writable, hung_up }
    }

    /// The same for every way to wait.
    macro_rules! tests {
        ($name:ident, $poller:ty) => {
            mod $name {
                use super::*;

                fn next(poller: &$poller) -> Event {
                    loop {
                        let mut events = poller.wait().unwrap();
                        assert!(events.len() < 2, "{events:?}");
                        if let Some(event) = events.pop() {
                            return event;
                        }
                    }
                }

                #[test]
                fn readiness_is_told_once_until_it_is_asked_for_again() {
                    let poller = <$poller>::new().unwrap();
                    let (ours, mut theirs) = UnixStream::pair().unwrap();
                    let (others, mut more) = UnixStream::pair().unwrap();
                    poller.add(&ours, 7).unwrap();
                    poller.add(&others, 8).unwrap();
                    theirs.write_all(b"x").unwrap();
                    assert_eq!(next(&poller), event(true, false, false));
                    // The byte is still there, and only the other socket's is news.
                    more.write_all(b"x").unwrap();
                    assert_eq!(next(&poller).token, 8);
                    poller.rearm(&ours, 7, READ);
                    assert_eq!(next(&poller), event(true, false, false));
                    poller.rearm(&ours, 7, BOTH);
                    assert_eq!(next(&poller), event(true, true, false));
                    (&ours).read_exact(&mut [0]).unwrap();
                    poller.rearm(&ours, 7, BOTH);
                    assert_eq!(next(&poller), event(false, true, false));
                }

                #[test]
                fn a_half_close_is_an_end_and_a_close_is_a_hang_up_that_nobody_asked_for() {
                    let poller = <$poller>::new().unwrap();
                    let (ours, theirs) = UnixStream::pair().unwrap();
                    poller.add(&ours, 7).unwrap();
                    theirs.shutdown(Shutdown::Write).unwrap();
                    assert_eq!(next(&poller), event(true, false, false));
                    assert_eq!((&ours).read(&mut [0]).unwrap(), 0);
                    (&ours).write_all(b"an answer").unwrap();
                    poller.rearm(&ours, 7, NOTHING);
                    drop(theirs);
                    let told = next(&poller);
                    assert!(told.hung_up && told.readable, "{told:?}");
                }

                #[test]
                fn a_wait_ends_at_its_deadline_and_when_it_is_woken() {
                    let poller = Arc::new(<$poller>::new().unwrap());
                    let soon = std::time::Instant::now() + std::time::Duration::from_millis(1);
                    assert_eq!(poller.wait_until(Some(soon)), Some(vec![]));
                    assert!(std::time::Instant::now() >= soon);
                    // A wake before the wait counts as well.
                    poller.wake();
                    assert_eq!(poller.wait(), Some(vec![]));
                }

                #[test]
                fn what_is_removed_is_silent_and_a_stop_ends_every_wait() {
                    let poller = Arc::new(<$poller>::new().unwrap());
                    let (ours, theirs) = UnixStream::pair().unwrap();
                    poller.add(&ours, 7).unwrap();
                    poller.remove(&ours);
                    poller.remove(&ours);
                    drop(theirs);
                    let waiting = thread::spawn({
                        let poller = poller.clone();
                        move || {
                            while let Some(events) = poller.wait() {
                                assert_eq!(events, []);
                            }
                        }
                    });
                    poller.stop();
                    waiting.join().unwrap();
                    assert!(poller.wait().is_none());
                }
            }
        };
    }

    #[cfg(target_os = "linux")]
    tests!(epoll, super::super::epoll::Poller);
    tests!(poll, super::super::poll::Poller);
}
