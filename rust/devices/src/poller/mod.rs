//! Waits for sockets, one readiness at a time: each event is told once, until [`Poller::rearm`] asks again. A hang-up
//! is told without being asked for.

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

    /// Who has to do with the second thread, which only epoll(7) can have.
    #[cfg(target_os = "linux")]
    mod beside {
        use std::sync::mpsc;
        use std::time::{Duration, Instant};

        use super::*;

        /// Long enough for a thread to be asleep.
        const ASLEEP: Duration = Duration::from_millis(50);
        const PATIENCE: Duration = Duration::from_secs(20);

        /// A thread that waits as the first one does, and tells of each event; until the poller is stopped.
        fn first(poller: &Arc<Poller>) -> (mpsc::Receiver<Event>, thread::JoinHandle<()>) {
            let (tell, told) = mpsc::channel();
            let poller = poller.clone();
            let thread = thread::spawn(move || {
                while let Some(events) = poller.wait() {
                    events.into_iter().for_each(|event| tell.send(event).unwrap());
                }
            });
            (told, thread)
        }

        fn second(poller: &Arc<Poller>) -> mpsc::Receiver<Option<Vec<Event>>> {
            let (tell, told) = mpsc::channel();
            let poller = poller.clone();
            assert!(poller.begin_beside());
            thread::spawn(move || {
                let events = poller.wait_beside(None);
                poller.end_beside();
                tell.send(events)
            });
            told
        }

        #[test]
        fn of_two_threads_the_one_that_came_last_is_told() {
            let poller = Arc::new(Poller::for_two().unwrap());
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            poller.add(&ours, 7).unwrap();
            let (told_first, thread) = first(&poller);
            thread::sleep(ASLEEP);
            let told = second(&poller);
            assert!(!poller.begin_beside(), "one at a time");
            thread::sleep(ASLEEP);
            theirs.write_all(b"x").unwrap();
            assert_eq!(told.recv_timeout(PATIENCE).unwrap(), Some(vec![event(true, false, false)]));
            // Alone again, the first one hears of all.
            poller.rearm(&ours, 7, READ);
            assert_eq!(told_first.recv_timeout(PATIENCE).unwrap(), event(true, false, false));
            assert!(told_first.try_recv().is_err());
            poller.stop();
            thread.join().unwrap();
        }

        #[test]
        fn who_waits_soon_after_an_event_has_the_sockets_until_it_lets_go() {
            let poller = Arc::new(Poller::for_two().unwrap());
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            poller.add(&ours, 7).unwrap();
            theirs.write_all(b"x").unwrap();
            let (told, thread) = first(&poller);
            assert_eq!(told.recv_timeout(PATIENCE).unwrap(), event(true, false, false));
            poller.made_recent();
            assert!(poller.begin_beside());
            assert_eq!(poller.wait_beside(Some(Instant::now())), Some(vec![]));
            poller.end_beside();
            // The first one may be in its wait, and has to come out of it once.
            poller.wake();
            thread::sleep(ASLEEP);
            poller.rearm(&ours, 7, READ);
            // Nobody waits now, and it is there when the second one asks again;
            assert!(told.recv_timeout(ASLEEP).is_err());
            assert_eq!(
                second(&poller).recv_timeout(PATIENCE).unwrap(),
                Some(vec![event(true, false, false)])
            );
            // what is for the first one alone comes to it all the same;
            poller.wake();
            thread::sleep(ASLEEP);
            assert!(!poller.look(0).unwrap().wake, "it was not read");
            poller.rearm(&ours, 7, READ);
            assert!(told.recv_timeout(ASLEEP).is_err());
            // and all, when the second one has let go.
            poller.let_go();
            assert_eq!(told.recv_timeout(PATIENCE).unwrap(), event(true, false, false));
            poller.stop();
            thread.join().unwrap();
        }

        #[test]
        fn the_second_thread_is_woken_wherever_it_stands_in_line() {
            let poller = Arc::new(Poller::for_two().unwrap());
            // Before it waits,
            assert!(poller.begin_beside());
            poller.wake_beside();
            assert_eq!(poller.wait_beside(None), Some(vec![]));
            poller.end_beside();
            for _ in 0..20 {
                let poller = Arc::new(Poller::for_two().unwrap());
                // behind the first one, which the kernel wakes in its place,
                let told = second(&poller);
                thread::sleep(Duration::from_millis(5));
                let (_told_first, thread) = first(&poller);
                thread::sleep(Duration::from_millis(5));
                poller.wake_beside();
                assert_eq!(told.recv_timeout(PATIENCE).unwrap(), Some(vec![]));
                // and before it.
                let told = second(&poller);
                poller.wake_beside();
                assert_eq!(told.recv_timeout(PATIENCE).unwrap(), Some(vec![]));
                poller.wake_beside();
                poller.stop();
                thread.join().unwrap();
            }
        }

        #[test]
        fn what_is_for_the_first_thread_reaches_it_and_sends_the_second_away() {
            let poller = Arc::new(Poller::for_two().unwrap());
            let (told_first, thread) = first(&poller);
            thread::sleep(ASLEEP);
            let told = second(&poller);
            thread::sleep(ASLEEP);
            poller.stop();
            thread.join().unwrap();
            assert_eq!(told.recv_timeout(PATIENCE).unwrap(), None);
            assert!(told_first.try_recv().is_err());
        }

        #[test]
        fn a_stop_reaches_a_first_thread_that_leaves_the_sockets_alone() {
            for round in 0..200 {
                let poller = Arc::new(Poller::for_two().unwrap());
                poller.made_recent();
                assert!(poller.begin_beside());
                assert_eq!(poller.wait_beside(Some(Instant::now())), Some(vec![]));
                poller.end_beside();
                let (told, thread) = first(&poller);
                if round % 2 == 0 {
                    thread::sleep(Duration::from_millis(2));
                }
                poller.stop();
                // The other end goes with the thread.
                assert_eq!(told.recv_timeout(PATIENCE), Err(mpsc::RecvTimeoutError::Disconnected));
                thread.join().unwrap();
            }
        }

        #[test]
        fn a_wait_of_the_second_thread_ends_in_the_last_millisecond_and_a_short_one_in_time() {
            let poller = Poller::for_two().unwrap();
            assert!(poller.begin_beside());
            let at = Instant::now() + Duration::from_micros(20_900);
            assert_eq!(poller.wait_beside(Some(at)), Some(vec![]));
            assert!(Instant::now() + Duration::from_millis(1) >= at);
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            poller.add(&ours, 7).unwrap();
            let at = Instant::now() + Duration::from_micros(1_500);
            assert_eq!(poller.wait_beside(Some(at)), Some(vec![]));
            assert!(Instant::now() >= at);
            theirs.write_all(b"x").unwrap();
            let at = Instant::now() + Duration::from_micros(1_500);
            assert_eq!(poller.wait_beside(Some(at)), Some(vec![event(true, false, false)]));
        }

        #[test]
        fn a_poller_for_one_has_no_second_thread() {
            assert!(!Poller::new().unwrap().begin_beside());
        }
    }
}
