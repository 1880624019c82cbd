//! What the guest's users share: none of them but root may take it from all.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use supermachine_support::lock;

/// So many places, of which one user of the guest's may have half. Root may have all: it can end whom it likes.
#[derive(Clone)]
pub(crate) struct Places(Arc<Mutex<Counts>>);

struct Counts {
    free: usize,
    of_one: usize,
    taken: HashMap<u32, usize>,
}

/// One of them, taken until it is dropped.
pub(crate) struct Place {
    of: Places,
    user: u32,
}

impl Places {
    pub(crate) fn new(most: usize) -> Self {
        Self(Arc::new(Mutex::new(Counts { free: most, of_one: most / 2, taken: HashMap::new() })))
    }

    /// `None` where all are taken, or this user has its half.
    pub(crate) fn take(&self, user: u32) -> Option<Place> {
        let mut counts = lock(&self.0);
        let (free, of_one) = (counts.free, counts.of_one);
        let taken = counts.taken.entry(user).or_default();
        if free == 0 || user != 0 && *taken >= of_one {
            return None;
        }
        *taken += 1;
        counts.free -= 1;
        Some(Place { of: self.clone(), user })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = lock(&self.of.0);
        counts.free += 1;
        if let Some(taken) = counts.taken.get_mut(&self.user) {
            *taken -= 1;
            // Users are what a guest says they are: as many are remembered as have something.
            if *taken == 0 {
                counts.taken.remove(&self.user);
            }
        }
    }
}
