//! Work that a thread without any of its own does in place of the thread that it belongs to, which need not be woken
//! then.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::lock;

/// Such work. What is asked of it comes in this order: [`SideWork::begin`], any number of waits, each with its work,
/// [`SideWork::end`], and [`SideWork::let_go`] some time after the last wait.
pub trait SideWork: Send + Sync {
    /// Whether the caller is who waits from now on; `false` where another does, or nobody can.
    fn begin(&self) -> bool;

    /// Waits for work, a [`SideWork::wake`] since [`SideWork::begin`], or this time; it may end up to a millisecond
    /// early where that is more than a millisecond away. Whether there is work; `None` when the caller has to wait in
    /// another way. From its first wait on work may be the caller's alone, also while it does not wait, until it lets
    /// go.
    fn wait(&self, until: Option<Instant>) -> Option<bool>;

    /// Does the work that a wait has found.
    fn work(&self);

    /// The thread that the work belongs to is to do it again. Nothing where it does already.
    fn let_go(&self);

    /// Ends a wait, from any thread.
    fn wake(&self);

    /// The caller waits no more.
    fn end(&self);
}

/// Where threads without work find some.
#[derive(Default)]
pub struct Slot(Mutex<Option<Arc<dyn SideWork>>>);

impl Slot {
    /// Who waits for what was here before goes on with that until its wait ends.
    pub fn set(&self, work: Option<Arc<dyn SideWork>>) {
        *lock(&self.0) = work;
    }

    /// What there is.
    pub fn get(&self) -> Option<Arc<dyn SideWork>> {
        lock(&self.0).clone()
    }
}
