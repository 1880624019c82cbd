//! The descriptors that this package makes for itself.
//!
//! None of them is 0, 1 or 2, whatever the process was started with: bytes for a closed standard stream must not end
//! up in a control socket. And a process that is forked from this one has no share in them: a share would keep a
//! worker alive whose owner was killed, a port bound, and an end of file from ever coming. exec(2) closes them.

#![allow(unsafe_code, reason = "descriptors come as numbers, and forks are watched")]

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::io::{self, PipeReader, PipeWriter};
use std::ops::Deref;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::{Mutex, MutexGuard, Once};

/// Descriptors that a forked child gives up, by number.
type Kept = BTreeSet<RawFd>;

/// Locked while one is made or closed, so that no fork falls in between.
static KEPT: Mutex<Kept> = Mutex::new(BTreeSet::new());

thread_local! {
    /// The lock, from before a fork to after it.
    static FORKING: RefCell<Option<MutexGuard<'static, Kept>>> = const { RefCell::new(None) };
    /// Whether this thread has the lock already; a fork of its own then is one that goes on to exec(2).
    static HOLDING: Cell<bool> = const { Cell::new(false) };
}

fn lock() -> MutexGuard<'static, Kept> {
    supermachine_support::lock(&KEPT)
}

/// A descriptor of this process alone.
#[derive(Debug)]
pub struct Unshared<T: AsRawFd>(Option<T>);

impl<T: AsRawFd> Unshared<T> {
    /// Makes one. `make` must not wait: a fork waits for it.
    pub fn new(make: impl FnOnce() -> io::Result<T>) -> io::Result<Self>
    where
        T: From<OwnedFd> + Into<OwnedFd>,
    {
        hold(|kept| Ok(Self::keep(kept, make()?)))
    }

    fn keep(kept: &mut Kept, made: T) -> Self
    where
        T: From<OwnedFd> + Into<OwnedFd>,
    {
        let made = above_standard(made);
        kept.insert(made.as_raw_fd());
        Self(Some(made))
    }

    /// The descriptor itself, for an owner that has the second of these for as long: children still give it up.
    pub(crate) fn watched(mut self) -> (T, Watched) {
        let inner = self.0.take();
        let Some(inner) = inner else { unreachable!("only this and drop take it, and both end the object") };
        let watched = Watched(inner.as_raw_fd());
        (inner, watched)
    }

    /// The descriptor itself, which children then share as they share any.
    pub fn release(mut self) -> T {
        let inner = self.0.take();
        let Some(inner) = inner else { unreachable!("only this and drop take it, and both end the object") };
        lock().remove(&inner.as_raw_fd());
        inner
    }
}

impl<T: AsRawFd> Deref for Unshared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        let Some(inner) = &self.0 else {
            unreachable!("only release and drop take it, and both end the object")
        };
        inner
    }
}

impl<T: AsRawFd> AsRawFd for Unshared<T> {
    fn as_raw_fd(&self) -> RawFd {
        (**self).as_raw_fd()
    }
}

impl<T: AsRawFd + AsFd> AsFd for Unshared<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        (**self).as_fd()
    }
}

impl<T: AsRawFd> Drop for Unshared<T> {
    fn drop(&mut self) {
        if let Some(inner) = self.0.take() {
            let mut kept = lock();
            kept.remove(&inner.as_raw_fd());
            // Within the lock: no fork sees it open and not listed.
            drop(inner);
        }
    }
}

/// Has forked children give up a descriptor that something else owns, which must live longer than this.
#[derive(Debug)]
pub(crate) struct Watched(RawFd);

impl Watched {
    pub(crate) fn new(owned: &impl AsRawFd) -> Self {
        let fd = owned.as_raw_fd();
        lock().insert(fd);
        Self(fd)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        lock().remove(&self.0);
    }
}

/// Two connected sockets.
pub(crate) fn pair() -> io::Result<(Unshared<UnixStream>, Unshared<UnixStream>)> {
    hold(|kept| {
        let (a, b) = UnixStream::pair()?;
        Ok((Unshared::keep(kept, a), Unshared::keep(kept, b)))
    })
}

/// Two connected sockets for datagrams.
pub(crate) fn datagram_pair() -> io::Result<(Unshared<UnixDatagram>, Unshared<UnixDatagram>)> {
    hold(|kept| {
        let (a, b) = UnixDatagram::pair()?;
        Ok((Unshared::keep(kept, a), Unshared::keep(kept, b)))
    })
}

/// A pipe.
pub(crate) fn pipe() -> io::Result<(Unshared<PipeReader>, Unshared<PipeWriter>)> {
    hold(|kept| {
        let (reader, writer) = io::pipe()?;
        Ok((Unshared::keep(kept, reader), Unshared::keep(kept, writer)))
    })
}

/// Two connected sockets, the second of which `hand_over` gives to another program; no fork falls in between.
pub(crate) fn pair_for<T>(
    hand_over: impl FnOnce(UnixStream) -> io::Result<T>,
) -> io::Result<(Unshared<UnixStream>, T)> {
    hold(|kept| {
        let (ours, theirs) = UnixStream::pair()?;
        let ours = Unshared::keep(kept, ours);
        match hand_over(above_standard(theirs)) {
            Ok(made) => Ok((ours, made)),
            Err(error) => {
                // Its own end would wait for the lock that is held here.
                kept.remove(&ours.as_raw_fd());
                let mut ours = ours;
                drop(ours.0.take());
                Err(error)
            }
        }
    })
}

fn hold<T>(work: impl FnOnce(&mut Kept) -> io::Result<T>) -> io::Result<T> {
    let mut kept = lock();
    HOLDING.set(true);
    let result = work(&mut kept);
    HOLDING.set(false);
    result
}

/// The same descriptor under a number above 2; where it had one of those, /dev/null takes its place. Failing to find
/// another number leaves it as it is.
fn above_standard<T: From<OwnedFd> + Into<OwnedFd> + AsRawFd>(made: T) -> T {
    if made.as_raw_fd() > libc::STDERR_FILENO {
        return made;
    }
    let low: OwnedFd = made.into();
    match crate::sys::duplicate(low.as_raw_fd()) {
        Ok(high) => {
            drop(low);
            // Failing leaves the number free, and the next descriptor is moved as this one was.
            let _ = reserve_standard();
            high.into()
        }
        Err(_) => low.into(),
    }
}

/// Opens /dev/null where 0, 1 or 2 is closed, so that nothing else gets the number. Programs that this process executes
/// still find it closed.
pub(crate) fn reserve_standard() -> io::Result<()> {
    // SAFETY: fcntl with F_GETFD has no effect and checks the descriptor.
    let closed = |fd| unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0;
    if !(libc::STDIN_FILENO..=libc::STDERR_FILENO).any(closed) {
        return Ok(());
    }
    loop {
        // SAFETY: the path is a C string, and open has no other effect than to make a descriptor.
        let fd = unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // open(2) gives the lowest number that is free.
        if fd > libc::STDERR_FILENO {
            // SAFETY: open just made it and nothing else has it.
            unsafe { libc::close(fd) };
            return Ok(());
        }
    }
}

/// Has forked children give up what is [`Unshared`], from now on.
pub(crate) fn watch_forks() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the handlers are functions that live as long as the process (an extension module is never unloaded),
        // and in a child they make no calls but open, dup2, fcntl and close, which are async-signal-safe. Failing
        // (ENOMEM) leaves children with a share, as they had without this.
        unsafe { libc::pthread_atfork(Some(before_fork), Some(after_in_parent), Some(after_in_child)) };
    });
}

extern "C" fn before_fork() {
    if !HOLDING.get() {
        FORKING.set(Some(lock()));
    }
}

extern "C" fn after_in_parent() {
    if !HOLDING.get() {
        FORKING.set(None);
    }
}

extern "C" fn after_in_child() {
    if HOLDING.get() {
        return; // goes on to exec(2), which closes them
    }
    // The objects stay, and close their number in the end; only what is behind it changes.
    FORKING.with_borrow_mut(|kept| {
        if let Some(kept) = kept.as_deref() {
            give_up(kept);
        }
    });
    FORKING.set(None);
}

fn give_up(kept: &Kept) {
    let Some(&first) = kept.first() else { return };
    // SAFETY: open takes a C string. The numbers in `kept` are this module's own, and nothing uses them in a child.
    unsafe {
        let mut null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
        if null < 0 {
            // No number was free: one is now.
            libc::close(first);
            null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC);
        }
        for &fd in kept {
            if fd != null {
                libc::dup2(null, fd);
                libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
            }
        }
        if !kept.contains(&null) {
            libc::close(null);
        }
    }
}

/// The process that an object works in; in one that was forked from it, the object does nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner(u32);

impl Owner {
    /// This process.
    pub(crate) fn this() -> Self {
        Self(std::process::id())
    }

    pub(crate) fn is_here(self) -> bool {
        self == Self::this()
    }

    /// Its process id.
    pub(crate) fn pid(self) -> u32 {
        self.0
    }
}
