//! By epoll(7).

#![allow(unsafe_code, reason = "epoll(7) and eventfd(2) are C calls")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::Thread;
use std::time::{Duration, Instant};

use super::{Event, Interest, milliseconds};

/// No socket's token.
const WAKE: u64 = u64::MAX;
/// Nor is this.
const WAKE_BESIDE: u64 = u64::MAX - 1;
/// Who waits within so many microseconds after an event holds the sockets.
const RECENT: u64 = 1000;
/// What is nearer is waited for to the microsecond.
const NEAR: Duration = Duration::from_millis(2);
/// How long who was woken in place of another waits before it looks whether that one is awake.
const GIVE_WAY: Duration = Duration::from_micros(50);

/// What waits for sockets. A token is the caller's name of a socket; the two largest are taken.
pub struct Poller {
    epoll: OwnedFd,
    wake: OwnedFd,
    stopped: AtomicBool,
    beside: Option<Beside>,
}

/// A second thread that may wait for the sockets, beside the one that always does. Of two that wait the kernel wakes
/// one: the one that came last. Where events are many the second one is who is told, whether it waits or is about to:
/// the first leaves the sockets alone until the second lets go of them.
struct Beside {
    wake: OwnedFd,
    /// It waits, or is about to.
    waits: AtomicBool,
    /// It was woken since its last wait.
    woken: AtomicBool,
    /// The sockets are the second thread's.
    holds: AtomicBool,
    /// The first thread, and whether it is to look all the same.
    first: OnceLock<Thread>,
    asked: AtomicBool,
    /// When there was an event, in microseconds since `made`.
    event: AtomicU64,
    made: Instant,
}

impl Beside {
    fn now(&self) -> u64 {
        u64::try_from(self.made.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn unpark_first(&self) {
        if let Some(first) = self.first.get() {
            first.unpark();
        }
    }
}

impl Poller {
    /// Watches nothing yet; an error when the process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        // SAFETY: the call takes no pointers.
        let epoll = owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: as above.
        let wake = owned(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
        let poller = Self { epoll, wake, stopped: AtomicBool::new(false), beside: None };
        poller.control(libc::EPOLL_CTL_ADD, poller.wake.as_raw_fd(), libc::EPOLLIN, WAKE)?;
        Ok(poller)
    }

    /// The same for two threads, of which the second waits by [`Poller::wait_beside`].
    pub fn for_two() -> io::Result<Self> {
        let mut poller = Self::new()?;
        // SAFETY: the call takes no pointers.
        let wake = owned(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
        // Each write to it is told once, to one of the two, and nobody reads.
        poller.control(libc::EPOLL_CTL_ADD, wake.as_raw_fd(), libc::EPOLLIN | libc::EPOLLET, WAKE_BESIDE)?;
        let [waits, woken, holds, asked] = [(); 4].map(|()| AtomicBool::new(false));
        let (first, event, made) = (OnceLock::new(), AtomicU64::new(0), Instant::now());
        poller.beside = Some(Beside { wake, waits, woken, holds, first, asked, event, made });
        Ok(poller)
    }

    /// Watches a new socket for bytes to read.
    pub fn add(&self, socket: &impl AsFd, token: u64) -> io::Result<()> {
        self.control(
            libc::EPOLL_CTL_ADD,
            socket.as_fd().as_raw_fd(),
            libc::EPOLLIN | libc::EPOLLONESHOT,
            token,
        )
    }

    /// Watches a socket no more.
    pub fn remove(&self, socket: &impl AsFd) {
        // It fails only for a socket that is not watched, which is what is wanted.
        let _ = self.control(libc::EPOLL_CTL_DEL, socket.as_fd().as_raw_fd(), 0, 0);
    }

    /// Asks once more to be told of a watched socket.
    pub fn rearm(&self, socket: &impl AsFd, token: u64, interest: Interest) {
        let read = if interest.read { libc::EPOLLIN } else { 0 };
        let write = if interest.write { libc::EPOLLOUT } else { 0 };
        // A socket of ours that is open can be watched; a failure would show as silence, not as a wrong answer.
        let _ = self.control(
            libc::EPOLL_CTL_MOD,
            socket.as_fd().as_raw_fd(),
            read | write | libc::EPOLLONESHOT,
            token,
        );
    }

    /// Waits for events; `None` when it is time to stop.
    pub fn wait(&self) -> Option<Vec<Event>> {
        self.wait_until(None)
    }

    /// As [`Poller::wait`]; no events when the deadline comes first, or [`Poller::wake`].
    pub fn wait_until(&self, deadline: Option<Instant>) -> Option<Vec<Event>> {
        let mut timeout = milliseconds(deadline);
        if let Some(beside) = &self.beside {
            beside.first.get_or_init(std::thread::current);
            while beside.holds.load(Ordering::SeqCst) && !beside.asked.load(Ordering::SeqCst) {
                match deadline.map(|at| at.saturating_duration_since(Instant::now())) {
                    Some(Duration::ZERO) => return Some(Vec::new()),
                    Some(left) => std::thread::park_timeout(left),
                    None => std::thread::park(),
                }
            }
            if beside.asked.swap(false, Ordering::SeqCst) {
                timeout = 0;
            }
        }
        let told = self.look(timeout)?;
        if told.wake {
            if self.stopped.load(Ordering::SeqCst) {
                return None;
            }
            // SAFETY: the eight bytes are those of the array.
            unsafe { libc::read(self.wake.as_raw_fd(), [0_u8; 8].as_mut_ptr().cast(), 8) };
        }
        if let (true, Some(beside)) = (told.wake_beside, &self.beside) {
            // It was for the other one. Who asks again before that one has heard would get it again.
            while beside.waits.load(Ordering::SeqCst) && beside.woken.load(Ordering::SeqCst) {
                let (fd, events) = (beside.wake.as_raw_fd(), libc::EPOLLIN | libc::EPOLLET);
                let _ = self.control(libc::EPOLL_CTL_MOD, fd, events, WAKE_BESIDE);
                std::thread::sleep(GIVE_WAY);
            }
        }
        Some(told.events)
    }

    /// Whether the caller is the second thread from now on. [`Poller::wake_beside`] ends each wait of its, until
    /// [`Poller::end_beside`].
    pub fn begin_beside(&self) -> bool {
        self.beside.as_ref().is_some_and(|beside| !beside.waits.swap(true, Ordering::SeqCst))
    }

    /// As [`Poller::wait_until`], for the second thread; up to a millisecond less where the deadline is far away.
    /// `None` when the first one is to be woken: the caller must not wait here then.
    pub fn wait_beside(&self, deadline: Option<Instant>) -> Option<Vec<Event>> {
        if let Some(beside) = &self.beside
            && beside.now().saturating_sub(beside.event.load(Ordering::Relaxed)) < RECENT
        {
            beside.holds.store(true, Ordering::SeqCst);
        }
        let told = match deadline.map(|at| at.saturating_duration_since(Instant::now())) {
            // epoll_wait(2) counts milliseconds.
            Some(left) if left < NEAR => {
                self.wait_precisely(left);
                self.look(0)?
            }
            Some(left) => self.look(i32::try_from(left.as_millis()).unwrap_or(i32::MAX))?,
            None => self.look(-1)?,
        };
        if let Some(beside) = &self.beside {
            beside.woken.store(false, Ordering::SeqCst);
        }
        if told.wake && told.events.is_empty() {
            // That is left for the first one.
            self.let_go();
            return None;
        }
        Some(told.events)
    }

    /// The second thread will not wait for events soon: the first one is to.
    pub fn let_go(&self) {
        if let Some(beside) = &self.beside
            && beside.holds.swap(false, Ordering::SeqCst)
        {
            beside.unpark_first();
        }
    }

    /// Ends the second thread's wait, or its next one.
    pub fn wake_beside(&self) {
        if let Some(beside) = &self.beside {
            beside.woken.store(true, Ordering::SeqCst);
            // SAFETY: the eight bytes are those of the array.
            unsafe { libc::write(beside.wake.as_raw_fd(), 1_u64.to_ne_bytes().as_ptr().cast(), 8) };
        }
    }

    /// There is no second thread any more.
    pub fn end_beside(&self) {
        if let Some(beside) = &self.beside {
            beside.waits.store(false, Ordering::SeqCst);
        }
    }

    /// Waits until epoll_wait(2) would tell something, or so long.
    fn wait_precisely(&self, left: Duration) {
        let mut fd = libc::pollfd { fd: self.epoll.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let left = libc::timespec { tv_sec: 0, tv_nsec: left.subsec_nanos().into() };
        // SAFETY: both are there for the call; without a set of signals none changes.
        unsafe { libc::ppoll(&mut fd, 1, &left, std::ptr::null()) };
    }

    /// What epoll_wait(2) tells within so many milliseconds; `None` when there is nothing that can wait.
    pub(super) fn look(&self, timeout: i32) -> Option<Told> {
        const NONE: libc::epoll_event = libc::epoll_event { events: 0, u64: 0 };
        const ROOM: u8 = 64;
        let mut events = [NONE; ROOM as usize];
        let mut told = Told::default();
        let (epoll, room) = (self.epoll.as_raw_fd(), i32::from(ROOM));
        // SAFETY: `events` has room for as many events as the call is told.
        let n = unsafe { libc::epoll_wait(epoll, events.as_mut_ptr(), room, timeout) };
        let n = match usize::try_from(n) {
            Ok(n) => n,
            Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => 0,
            Err(_) => return None,
        };
        told.events.reserve(n);
        for event in &events[..n] {
            let (bits, token) = (event.events.cast_signed(), event.u64);
            match token {
                WAKE => told.wake = true,
                WAKE_BESIDE => told.wake_beside = true,
                _ => {
                    let hung_up = bits & (libc::EPOLLHUP | libc::EPOLLERR) != 0;
                    told.events.push(Event {
                        token,
                        readable: bits & libc::EPOLLIN != 0 || hung_up,
                        writable: bits & libc::EPOLLOUT != 0,
                        hung_up,
                    });
                }
            }
        }
        if let (false, Some(beside)) = (told.events.is_empty(), &self.beside) {
            beside.event.store(beside.now(), Ordering::Relaxed);
        }
        Some(told)
    }

    /// Makes every [`Poller::wait`] from now on return `None`.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// Ends a wait, or the next one.
    pub fn wake(&self) {
        // SAFETY: the eight bytes are those of the array.
        unsafe { libc::write(self.wake.as_raw_fd(), 1_u64.to_ne_bytes().as_ptr().cast(), 8) };
        if let Some(beside) = &self.beside {
            // After the write: who is asked looks at once, and not again.
            beside.asked.store(true, Ordering::SeqCst);
            if beside.holds.load(Ordering::SeqCst) {
                beside.unpark_first();
            }
        }
    }

    #[cfg(test)]
    pub(super) fn made_recent(&self) {
        let beside = self.beside.as_ref().expect("for two");
        beside.event.store(beside.now() + 1_000_000, Ordering::Relaxed);
    }

    fn control(&self, op: i32, fd: i32, events: i32, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events: events.cast_unsigned(), u64: token };
        // SAFETY: `event` outlives the call, which copies it.
        match unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), op, fd, &mut event) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// What [`Poller::look`] was told.
#[derive(Default)]
pub(super) struct Told {
    events: Vec<Event>,
    pub(super) wake: bool,
    wake_beside: bool,
}

fn owned(fd: i32) -> io::Result<OwnedFd> {
    match fd {
        0.. => {
            // SAFETY: the kernel has just made this descriptor for us.
            Ok(unsafe { OwnedFd::from_raw_fd(fd) })
        }
        _ => Err(io::Error::last_os_error()),
    }
}
