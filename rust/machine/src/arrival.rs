//! Memory of a restored machine that is still on its way to the snapshot's file. Whoever needs a page that is missing
//! waits for it: a vCPU of the soft engine when its TLB does not know the page, a device in [`Devices`]' view of
//! memory.
//!
//! [`Devices`]: crate::assembly::Devices

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use supermachine_support::lock;

use crate::pages::PAGE;

/// How long a page may be waited for. Who fetches it has limits of its own, which are met first.
const PATIENCE: Duration = Duration::from_secs(180);
/// How long those that wait are held when the rest will not come: until then the machine is told to stop, so that no
/// guest goes on without what it waits for.
const LAST_WAIT: Duration = Duration::from_secs(5);

/// Asks for a page of RAM.
pub type Ask = Box<dyn Fn(u64) + Send + Sync>;

/// Which pages of RAM are missing, and who waits for them.
pub struct Arrival {
    /// A bit for each page of RAM, set while it is missing.
    missing: Box<[AtomicU64]>,
    /// A bit for each page that has been asked for: who fetches them hears of each once, and bounds what it hears by
    /// that.
    asked: Box<[AtomicU64]>,
    ask: Ask,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    left: u64,
    /// Why the rest will not come.
    lost: Option<String>,
    /// Whether those that wait may go on without it.
    released: bool,
}

impl Arrival {
    /// Of so many bytes of RAM, of which these pages are missing.
    pub fn new(memory_bytes: u64, missing: &[Range<u64>], ask: Ask) -> Self {
        let words = (memory_bytes / PAGE).div_ceil(64);
        let none = || (0..words).map(|_| AtomicU64::new(0)).collect();
        let new =
            Self { missing: none(), asked: none(), ask, state: Mutex::default(), changed: Condvar::new() };
        let mut left = 0;
        for page in missing.iter().cloned().flat_map(|run| new.within(run)) {
            let (word, bit) = place(page);
            left += u64::from(new.missing[word].fetch_or(bit, Ordering::Relaxed) & bit == 0);
        }
        lock(&new.state).left = left;
        new
    }

    fn within(&self, pages: Range<u64>) -> Range<u64> {
        pages.start..pages.end.min(self.missing.len() as u64 * 64)
    }

    fn is_missing(&self, page: u64) -> bool {
        let (word, bit) = place(page);
        // Acquire: what the file holds is seen by who sees that the page is there.
        self.missing.get(word).is_some_and(|word| word.load(Ordering::Acquire) & bit != 0)
    }

    /// Whether all of these pages are there.
    pub fn holds(&self, pages: Range<u64>) -> bool {
        !self.within(pages).any(|page| self.is_missing(page))
    }

    /// These pages are in the file now.
    pub fn came(&self, pages: Range<u64>) {
        let mut state = lock(&self.state);
        for page in self.within(pages) {
            let (word, bit) = place(page);
            state.left -= u64::from(self.missing[word].fetch_and(!bit, Ordering::Release) & bit != 0);
        }
        self.changed.notify_all();
    }

    /// All pages are there.
    pub fn all_came(&self) {
        self.came(0..u64::MAX);
    }

    /// The rest will not come. Those that wait do so until [`Arrival::release`].
    pub fn lose(&self, why: String) {
        lock(&self.state).lost.get_or_insert(why);
        self.changed.notify_all();
    }

    /// Lets those that wait go, who are told that they have waited in vain: the machine has been told to stop.
    pub fn release(&self) {
        lock(&self.state).released = true;
        self.changed.notify_all();
    }

    /// Waits until all pages are there, or will never be: why.
    pub fn outcome(&self) -> Result<(), String> {
        let mut state = lock(&self.state);
        loop {
            match &state.lost {
                Some(why) => return Err(why.clone()),
                None if state.left == 0 => return Ok(()),
                None => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// Whether all pages are there.
    pub fn is_complete(&self) -> bool {
        lock(&self.state).left == 0
    }

    /// Waits until these bytes of RAM are there; `false` when they will not be.
    pub fn wait(&self, bytes: Range<u64>) -> bool {
        let pages = bytes.start / PAGE..bytes.end.div_ceil(PAGE);
        self.within(pages).all(|page| !self.is_missing(page) || self.wait_for(page))
    }

    fn wait_for(&self, page: u64) -> bool {
        let (word, bit) = place(page);
        if self.asked[word].fetch_or(bit, Ordering::Relaxed) & bit == 0 {
            (self.ask)(page);
        }
        let mut end = Instant::now() + PATIENCE;
        let mut state = lock(&self.state);
        let mut told = false;
        while self.is_missing(page) {
            if state.released {
                return false;
            }
            if state.lost.is_some() && !told {
                (end, told) = (Instant::now() + LAST_WAIT, true);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() && told {
                return false;
            }
            if left.is_zero() {
                let why = format!("page {page} of its memory did not come within {} s", PATIENCE.as_secs());
                state.lost.get_or_insert(why);
                self.changed.notify_all();
                continue;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

fn place(page: u64) -> (usize, u64) {
    (usize::try_from(page / 64).unwrap_or(usize::MAX), 1 << (page % 64))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc;

    use super::*;

    fn arrival(missing: &[Range<u64>]) -> (Arc<Arrival>, mpsc::Receiver<u64>) {
        let (sender, asked) = mpsc::channel();
        let ask = Box::new(move |page| sender.send(page).unwrap());
        (Arc::new(Arrival::new(256 * PAGE, missing, ask)), asked)
    }

    #[test]
    fn what_is_there_is_not_waited_for_and_what_is_missing_is_until_it_comes() {
        let (arrival, asked) = arrival(&[3..5, 200..300]);
        assert!(
            arrival.wait(0..3 * PAGE) && arrival.wait(5 * PAGE..200 * PAGE) && arrival.wait(1 << 40..1 << 41)
        );
        assert!(asked.try_recv().is_err() && !arrival.is_complete());
        assert!(arrival.holds(5..200) && !arrival.holds(4..6));
        let waits = {
            let arrival = arrival.clone();
            std::thread::spawn(move || arrival.wait(5 * PAGE - 1..5 * PAGE + 1))
        };
        assert_eq!(asked.recv().unwrap(), 4);
        arrival.came(3..4);
        assert!(!waits.is_finished());
        arrival.came(4..5);
        assert!(waits.join().unwrap());
        arrival.all_came();
        assert!(arrival.is_complete() && arrival.wait(0..256 * PAGE) && arrival.outcome().is_ok());
    }

    #[test]
    fn a_page_that_several_wait_for_is_asked_for_once() {
        let (arrival, asked) = arrival(&[3..4, 4..5]);
        let waits: Vec<_> = (0..4)
            .map(|_| {
                let arrival = arrival.clone();
                std::thread::spawn(move || arrival.wait(3 * PAGE..4 * PAGE))
            })
            .collect();
        assert_eq!(asked.recv().unwrap(), 3);
        arrival.came(3..4);
        assert!(waits.into_iter().all(|wait| wait.join().unwrap()));
        assert!(asked.try_recv().is_err());
    }

    #[test]
    fn who_waits_in_vain_goes_on_when_the_machine_was_told_to_stop() {
        let (arrival, asked) = arrival(&[0..1, 9..10]);
        let waits = {
            let arrival = arrival.clone();
            std::thread::spawn(move || arrival.wait(0..1))
        };
        assert_eq!(asked.recv().unwrap(), 0);
        arrival.lose("it is gone".into());
        assert_eq!(arrival.outcome(), Err("it is gone".into()));
        assert!(!waits.is_finished());
        arrival.release();
        assert!(!waits.join().unwrap() && !arrival.wait(0..1));
    }
}
