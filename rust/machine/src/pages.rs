//! Which pages of guest RAM the host has given, as the kernel's page tables tell (Documentation/admin-guide/mm/
//! pagemap.rst): those that a guest has touched, and those that it has written to since its memory was mapped.

#![allow(unsafe_code, reason = "an ioctl of /proc/self/pagemap")]

use std::ops::Range;

/// Bytes of a page as snapshots and working sets count them.
pub const PAGE: u64 = 4096;

/// What is known of one run of pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Touched {
    /// Pages from the start of RAM.
    pub pages: Range<u64>,
    /// Whether they are the guest's own now, and no longer the file's or the zero page.
    pub written: bool,
}

/// Tells which pages of this process are there. Opened before the process confines itself.
#[derive(Debug)]
pub struct PageMap {
    #[cfg(target_os = "linux")]
    file: std::fs::File,
}

impl PageMap {
    /// `None` where the host does not tell.
    #[cfg(target_os = "linux")]
    pub fn open() -> Option<Self> {
        // Larger host pages are counted differently; without this knowledge all of RAM is looked at.
        (supermachine_support::page_size() == PAGE)
            .then(|| std::fs::File::open("/proc/self/pagemap").ok())
            .flatten()
            .map(|file| Self { file })
    }

    /// `None` where the host does not tell.
    #[cfg(not(target_os = "linux"))]
    pub fn open() -> Option<Self> {
        None
    }

    /// The touched pages among `pages` many from host address `start` on, in ascending order.
    #[cfg(target_os = "linux")]
    pub fn touched(&self, start: u64, pages: u64) -> std::io::Result<Vec<Touched>> {
        use std::os::unix::fs::FileExt;

        const ENTRIES: usize = 8192;
        const PRESENT: u64 = 1 << 63;
        const SWAPPED: u64 = 1 << 62;
        /// A page of a file, or shared anonymous memory.
        const FILE: u64 = 1 << 61;

        let mut runs: Vec<Touched> = Vec::new();
        let mut buffer = vec![0_u8; ENTRIES * 8];
        let mut at = 0;
        while at < pages {
            let count = supermachine_support::to_usize((pages - at).min(ENTRIES as u64));
            self.file.read_exact_at(&mut buffer[..count * 8], (start / PAGE + at) * 8)?;
            for (n, entry) in buffer[..count * 8].chunks_exact(8).enumerate() {
                let entry = u64::from_le_bytes(entry.try_into().expect("eight bytes"));
                if entry & (PRESENT | SWAPPED) == 0 {
                    continue;
                }
                let (page, written) = (at + n as u64, entry & FILE == 0);
                match runs.last_mut() {
                    Some(last) if last.pages.end == page && last.written == written => last.pages.end += 1,
                    _ => runs.push(Touched { pages: page..page + 1, written }),
                }
            }
            at += count as u64;
        }
        Ok(runs)
    }

    /// Never called: there is no [`PageMap`] here.
    #[cfg(not(target_os = "linux"))]
    pub fn touched(&self, _start: u64, _pages: u64) -> std::io::Result<Vec<Touched>> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
}

/// Pages between two that are read which are read as well: that takes less time than asking for each of them alone, and
/// no memory of the machine's own.
pub(crate) const READ_GAP: u64 = 16;

/// Sorted, disjoint runs of what either list holds.
pub fn union(
    one: impl Iterator<Item = Range<u64>>,
    other: impl Iterator<Item = Range<u64>>,
) -> Vec<Range<u64>> {
    joined(one.chain(other), 0)
}

/// Sorted, disjoint runs of what is in `ranges`, with gaps of up to `gap` between them filled.
pub fn joined(ranges: impl Iterator<Item = Range<u64>>, gap: u64) -> Vec<Range<u64>> {
    let mut all: Vec<_> = ranges.filter(|range| !range.is_empty()).collect();
    all.sort_by_key(|range| range.start);
    let mut runs: Vec<Range<u64>> = Vec::with_capacity(all.len());
    for range in all {
        match runs.last_mut() {
            Some(last) if range.start <= last.end.saturating_add(gap) => last.end = last.end.max(range.end),
            _ => runs.push(range),
        }
    }
    runs
}

/// What to bring in for these runs, and whether to write to it, in the order in which that takes the least time.
/// Reading a page maps its neighbours too, each of which would then be mapped a second time to be written: those that
/// are written come first. Of those that are only read, gaps of up to `gap` are filled. Neighbours are brought in at
/// once, for a call takes longer than a page.
pub fn prefaults(runs: &[Touched], gap: u64) -> Vec<(Range<u64>, bool)> {
    let of = |written, gap| {
        let runs = runs.iter().filter(move |run| run.written == written);
        joined(runs.map(|run| run.pages.clone()), gap).into_iter().map(move |pages| (pages, written))
    };
    of(true, 0).chain(of(false, gap)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unions_are_sorted_and_joined() {
        let one = [5..7, 0..2].into_iter();
        let other = [2..3, 6..9, 20..20].into_iter();
        assert_eq!(union(one, other), [0..3, 5..9]);
    }

    #[test]
    fn small_gaps_are_filled_and_larger_ones_are_not() {
        assert_eq!(joined([9..12, 0..2, 4..5, 7..7].into_iter(), 2), [0..5, 9..12]);
        assert_eq!(
            joined([0..u64::MAX, 3..4].into_iter(), 2),
            std::iter::once(0..u64::MAX).collect::<Vec<_>>()
        );
    }

    #[test]
    fn what_is_written_is_brought_in_first_and_page_by_page() {
        let run = |pages, written| Touched { pages, written };
        let runs = [
            run(0..1, false),
            run(8..9, true),
            run(1..2, true),
            run(3..4, true),
            run(4..6, false),
            run(40..41, false),
            run(7..8, true),
        ];
        let found = [(1..2, true), (3..4, true), (7..9, true), (0..6, false), (40..41, false)];
        assert_eq!(prefaults(&runs, 4), found);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn pages_of_a_private_mapping_are_told_apart() {
        use std::io::Write;
        use vm_memory::mmap::MmapRegionBuilder;

        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![7; 64 * PAGE as usize]).unwrap();
        let region = MmapRegionBuilder::<()>::new(64 * PAGE as usize)
            .with_file_offset(vm_memory::FileOffset::new(file, 0))
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_NORESERVE)
            .build()
            .unwrap();
        let map = PageMap::open().expect("this test runs where the kernel tells");
        let start = region.as_ptr() as u64;
        assert_eq!(map.touched(start, 64).unwrap(), []);
        // SAFETY: both bytes lie in the mapping, which nothing else uses.
        unsafe {
            region.as_ptr().add(40 * PAGE as usize).write_volatile(1);
            region.as_ptr().add(3 * PAGE as usize).read_volatile();
        }
        let touched = map.touched(start, 64).unwrap();
        // The kernel may bring in neighbours of a page that is read.
        assert!(touched.iter().any(|run| run.pages.contains(&3) && !run.written), "{touched:?}");
        let written: Vec<_> = touched.iter().filter(|run| run.written).collect();
        assert_eq!(written, [&Touched { pages: 40..41, written: true }]);
    }
}
