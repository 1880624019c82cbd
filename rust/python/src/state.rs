//! What is known of one VM: kept by its monitor, read by whoever waits for it.

use std::io;
use std::io::{PipeReader, PipeWriter};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use supermachine_support::lock;

use supermachine_proto::worker::{Captured, PageRange, StaleReason, Stats, Timings};

use crate::descriptors::{self, Owner, Unshared};

/// How long the VM may take to say why it ended once a connection has.
const EXIT_GRACE: Duration = Duration::from_millis(300);

/// What is stale of one VM, at most; a worker tells of as many.
pub(crate) const MAX_STALE: usize = 1024;

/// How a VM ended.
#[derive(Clone, Debug)]
pub struct Exit {
    /// One of the names that the monitor gives, "killed" or "crashed" for the worker process itself, or
    /// "other-process".
    pub reason: &'static str,
    pub message: String,
    pub console_tail: String,
}

#[derive(Default)]
pub struct State {
    pub ready: Option<Timings>,
    pub exit: Option<Exit>,
    pub stats: Option<Stats>,
    pub captured: Option<Result<Captured, String>>,
    /// Whether a capture is under way, be it that nobody waits for its answer any more.
    pub capturing: bool,
    pub working_set: Option<Vec<PageRange>>,
    pub(crate) code: Option<Vec<u64>>,
    pub(crate) volume_grown: Option<Result<(), String>>,
    /// What the guest had open in shares when it was captured and has not any more, at most [`MAX_STALE`]: the number
    /// of its share, its path there, and why.
    pub stale: Vec<(u32, PathBuf, StaleReason)>,
    /// What the worker lacked to serve a command, for the error of the connection that came to nothing.
    pub shortage: Option<String>,
    /// Whether `Worker.kill` asked for the end.
    pub killed: bool,
    /// Closed when the VM ends.
    bell: Option<Unshared<PipeWriter>>,
}

/// What the monitor thread and every client of one VM share.
pub struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Reads as ended once the VM has: one for all who poll, however many connections there are.
    ended: Unshared<PipeReader>,
    owner: Owner,
}

impl Shared {
    pub fn new() -> io::Result<Self> {
        let (ended, bell) = descriptors::pipe()?;
        let state = State { bell: Some(bell), ..State::default() };
        Ok(Self { state: Mutex::new(state), changed: Condvar::new(), ended, owner: Owner::this() })
    }

    /// In a process that was forked from the VM's own: what is to be said there. Its locks are not to be waited for, as
    /// their holders were not forked.
    pub fn elsewhere(&self) -> Option<Exit> {
        (!self.owner.is_here()).then(|| Exit {
            reason: "other-process",
            message: format!(
                "the virtual machine belongs to the process {}, from which this one was forked",
                self.owner.pid()
            ),
            console_tail: String::new(),
        })
    }

    /// Reads as ended once the VM has; nothing is ever read from it.
    pub fn ended(&self) -> &Unshared<PipeReader> {
        &self.ended
    }

    /// The same for whoever keeps it.
    pub fn ended_fd(&self) -> io::Result<OwnedFd> {
        Ok(self.ended.try_clone()?.into())
    }

    /// Notes how the VM ended, if that is not known yet, and tells everybody.
    pub fn end(&self, exit: impl FnOnce(&State) -> Exit) {
        self.update(|state| {
            if state.exit.is_none() {
                state.exit = Some(exit(state));
            }
            state.bell = None;
        });
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    pub fn update(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// How the VM ended, if it has.
    pub fn exit(&self) -> Option<Exit> {
        self.elsewhere().or_else(|| self.lock().exit.clone())
    }

    /// What the worker has said that it lacked, once.
    pub fn shortage(&self) -> Option<String> {
        self.lock().shortage.take()
    }

    /// Why the VM has ended, after one of its connections has; `None` when it goes on.
    pub fn reason_of_exit(&self) -> Option<Exit> {
        self.wait_exit(EXIT_GRACE)
    }

    /// Waits for the end of the VM.
    pub fn wait_exit(&self, timeout: Duration) -> Option<Exit> {
        self.elsewhere().or_else(|| self.wait(timeout, |s| s.exit.clone()))
    }

    pub fn wait<T>(&self, timeout: Duration, mut ready: impl FnMut(&mut State) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + timeout;
        let mut state = self.lock();
        loop {
            if let Some(value) = ready(&mut state) {
                return Some(value);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
