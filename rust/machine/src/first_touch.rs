//! The order in which a guest first touches its pages, as far as the engine and the devices see it.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use supermachine_support::lock;

use crate::pages::{PAGE, Touched};

/// Pages that are noted at most; later ones are none that a clone needs first.
const MOST: usize = 16 << 10;

/// Notes pages, each once.
pub struct FirstTouch {
    /// A bit for each page of RAM.
    seen: Box<[AtomicU64]>,
    order: Mutex<Vec<u64>>,
    most: usize,
}

impl FirstTouch {
    /// Has seen no page of this much RAM.
    pub fn new(memory_bytes: u64) -> Self {
        Self::with(memory_bytes, MOST)
    }

    /// The same, for who asks which pages were touched and not in which order.
    pub fn unordered(memory_bytes: u64) -> Self {
        Self::with(memory_bytes, 0)
    }

    fn with(memory_bytes: u64, most: usize) -> Self {
        let words = (memory_bytes / PAGE).div_ceil(64);
        Self { seen: (0..words).map(|_| AtomicU64::new(0)).collect(), order: Mutex::default(), most }
    }

    /// These bytes of RAM are touched.
    pub fn note(&self, bytes: Range<u64>) {
        for page in bytes.start / PAGE..bytes.end.div_ceil(PAGE).min(self.seen.len() as u64 * 64) {
            let (word, bit) = ((page / 64) as usize, 1 << (page % 64));
            if self.seen[word].load(Ordering::Relaxed) & bit == 0
                && self.seen[word].fetch_or(bit, Ordering::Relaxed) & bit == 0
                && self.most > 0
            {
                let mut order = lock(&self.order);
                if order.len() < self.most {
                    order.push(page);
                }
            }
        }
    }

    /// All that was noted, ascending; any of them may have been written to.
    pub fn touched(&self) -> Vec<Touched> {
        let words = self.seen.iter().zip(0_u64..);
        let pages = words.flat_map(|(word, at)| {
            let bits = word.load(Ordering::Relaxed);
            (0..64).filter(move |bit| bits >> bit & 1 == 1).map(move |bit| 64 * at + bit)
        });
        let mut runs: Vec<Touched> = Vec::new();
        for page in pages {
            match runs.last_mut() {
                Some(last) if last.pages.end == page => last.pages.end += 1,
                _ => runs.push(Touched { pages: page..page + 1, written: true }),
            }
        }
        runs
    }

    /// Those of `touched`, which is ascending, that were noted, in their order.
    pub fn order(&self, touched: &[Touched]) -> Vec<Touched> {
        let mut runs: Vec<Touched> = Vec::new();
        for page in lock(&self.order).iter().copied() {
            let at = touched.partition_point(|run| run.pages.end <= page);
            let Some(run) = touched.get(at).filter(|run| run.pages.contains(&page)) else { continue };
            match runs.last_mut() {
                Some(last) if last.pages.end == page && last.written == run.written => last.pages.end += 1,
                _ => runs.push(Touched { pages: page..page + 1, written: run.written }),
            }
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_in_the_order_of_their_first_touch() {
        let noted = FirstTouch::new(128 * PAGE);
        for bytes in
            [70 * PAGE..72 * PAGE, 3 * PAGE + 1..3 * PAGE + 2, 71 * PAGE..73 * PAGE, 1 << 40..1 << 41]
        {
            noted.note(bytes);
        }
        let run = |pages: Range<u64>, written| Touched { pages, written };
        let touched = [run(0..10, true), run(70..72, false), run(72..99, true)];
        let order = noted.order(&touched);
        assert_eq!(order, [run(70..72, false), run(3..4, true), run(72..73, true)]);
        assert_eq!(noted.touched(), [run(3..4, true), run(70..73, true)]);
        let unordered = FirstTouch::unordered(128 * PAGE);
        unordered.note(63 * PAGE..65 * PAGE);
        assert_eq!(unordered.touched(), [run(63..65, true)]);
        assert_eq!(unordered.order(&touched), []);
    }
}
