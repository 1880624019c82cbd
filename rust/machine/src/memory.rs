//! Guest memory: private, and taken from the host only page by page as the guest touches it. A guest that boots starts
//! with anonymous memory; one that is restored with its snapshot's, copied on write.

#![allow(unsafe_code, reason = "guest memory is mapped from files and given back page by page")]

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use supermachine_devices::memory::Presence;
use supermachine_snapshot::Source;
use supermachine_support::{lock, page_size, to_usize};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use crate::Error;
use crate::address_map::AddressMap;
use crate::arrival::Arrival;
use crate::first_touch::FirstTouch;
use crate::pages::{self, PAGE, Touched};

/// Shorter runs of a diff's pages are read; longer ones are mapped.
const MAPPED: u64 = 16 * PAGE;

/// Mappings that given back memory of a restored machine may become. The kernel allows 65,530 for a process
/// (Documentation/admin-guide/sysctl/vm.rst, max_map_count); beyond this its pages go back, and are the file's once
/// more.
const MAX_RELEASED: usize = 8192;

/// Memory of a machine: its RAM, and the page of the VM generation id.
pub struct Memory {
    /// By guest physical addresses.
    pub ram: GuestMemoryMmap<()>,
    host: NonNull<u8>,
    len: u64,
    generation: Option<GuestRegionMmap<()>>,
    /// The full snapshot below the RAM, and the offset of the RAM in it.
    base: Option<(File, u64)>,
    /// What of a restored machine's RAM is anonymous memory now, and no longer a file's; bytes from the start of RAM.
    released: Mutex<Vec<Range<u64>>>,
    /// The address of its start.
    start: u64,
    /// What of a restored machine's RAM is still missing.
    arrival: Option<Arc<Arrival>>,
    /// What notes in which order a restored machine's pages are touched.
    noted: Option<Arc<FirstTouch>>,
}

// SAFETY: `host` points into `ram`, which may itself be shared; it is only handed out as an address to map.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

/// RAM in snapshot files: a full one, and those that each hold what changed since the one before.
pub struct Backing {
    /// The full one.
    pub base: File,
    /// Offset of the RAM in the base's file, page-aligned.
    pub offset: u64,
    /// In the order in which they were taken.
    pub diffs: Vec<Diff>,
    /// Of a base that is still being written.
    pub arrival: Option<Arc<Arrival>>,
    /// What notes the order of first touches.
    pub noted: Option<Arc<FirstTouch>>,
}

/// What one diff holds.
pub struct Diff {
    /// The snapshot's.
    pub file: File,
    /// Offset of the RAM in the file, page-aligned: a page is as far from it as it is from the start of RAM.
    pub offset: u64,
    /// Bytes from the start of RAM, page-aligned.
    pub extents: Vec<Range<u64>>,
}

impl Memory {
    /// Maps `bytes` of zeroed RAM.
    pub fn new(layout: &AddressMap, bytes: u64) -> Result<Self, Error> {
        Self::with(layout, bytes, map(bytes, layout.ram_base, None)?, None)
    }

    /// Maps `bytes` of RAM that are as the snapshot has them, and never written back.
    pub fn restored(layout: &AddressMap, bytes: u64, backing: Backing) -> Result<Self, Error> {
        let failed = |e: std::io::Error| Error::Memory { bytes, reason: e.to_string() };
        let file = backing.base.try_clone().map_err(failed)?;
        let ram = map(bytes, layout.ram_base, Some(FileOffset::new(backing.base, backing.offset)))?;
        let mut memory = Self::with(layout, bytes, ram, Some((file, backing.offset)))?;
        (memory.arrival, memory.noted) = (backing.arrival, backing.noted);
        for diff in &backing.diffs {
            memory.overlay(diff).map_err(failed)?;
        }
        Ok(memory)
    }

    fn with(
        layout: &AddressMap,
        bytes: u64,
        ram: GuestRegionMmap<()>,
        base: Option<(File, u64)>,
    ) -> Result<Self, Error> {
        let host =
            NonNull::new(ram.as_ptr()).ok_or(Error::Memory { bytes, reason: "it is at address 0".into() })?;
        let ram = GuestMemoryMmap::from_regions(vec![ram])
            .map_err(|e| Error::Memory { bytes, reason: e.to_string() })?;
        let generation = layout.generation.map(|(gpa, bytes)| map(bytes, gpa, None)).transpose()?;
        let (released, start) = (Mutex::default(), layout.ram_base);
        Ok(Self { ram, host, len: bytes, generation, base, released, start, arrival: None, noted: None })
    }

    /// What waits for memory that is missing, and notes what is touched; nothing for a machine that needs neither.
    pub fn presence(&self) -> Option<Presence> {
        let (base, arrival, noted) = (self.start, self.arrival.clone(), self.noted.clone());
        if arrival.is_none() && noted.is_none() {
            return None;
        }
        Some(Arc::new(move |gpa, length| {
            let Some(start) = gpa.checked_sub(base) else { return true };
            let bytes = start..start.saturating_add(length);
            if let Some(noted) = &noted {
                noted.note(bytes.clone());
            }
            arrival.as_ref().is_none_or(|arrival| arrival.wait(bytes))
        }))
    }

    /// What has noted in which order pages were touched.
    pub fn noted(&self) -> Option<&FirstTouch> {
        self.noted.as_deref()
    }

    /// The RAM as devices see it.
    pub fn for_devices(&self) -> supermachine_devices::Memory {
        supermachine_devices::Memory::new(self.ram.clone(), self.presence())
    }

    /// Whether all of the RAM is there.
    pub fn is_complete(&self) -> bool {
        self.arrival.as_ref().is_none_or(|arrival| arrival.is_complete())
    }

    /// Lays a diff's pages over what is there.
    fn overlay(&self, diff: &Diff) -> std::io::Result<()> {
        for extent in &diff.extents {
            let inside = extent.start <= extent.end
                && extent.end <= self.len
                && (extent.start | extent.end).is_multiple_of(PAGE);
            let there = diff.file.length()? >= diff.offset + extent.end;
            if !inside || !there {
                return Err(std::io::ErrorKind::InvalidData.into());
            }
            let [head, mapped, tail] = parts(extent, page_size());
            // SAFETY: the parts lie inside the mapping that `self` owns, and nothing uses it before the machine is
            // made: no guest runs and no device exists. The file reaches as far as the extent does, by the check above.
            unsafe {
                let at = |offset: u64| self.host.as_ptr().add(to_usize(offset));
                for part in [head, tail] {
                    let bytes =
                        std::slice::from_raw_parts_mut(at(part.start), to_usize(part.end - part.start));
                    diff.file.read_exact_at(bytes, diff.offset + part.start)?;
                }
                if !mapped.is_empty() {
                    let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE | libc::MAP_FIXED;
                    let prot = libc::PROT_READ | libc::PROT_WRITE;
                    let (to, length) = (at(mapped.start).cast(), to_usize(mapped.end - mapped.start));
                    let (fd, offset) = (diff.file.as_raw_fd(), (diff.offset + mapped.start).cast_signed());
                    if libc::mmap(to, length, prot, flags, fd, offset) == libc::MAP_FAILED {
                        return Err(std::io::Error::last_os_error());
                    }
                }
            }
        }
        Ok(())
    }

    /// Host address and length of the RAM.
    pub fn host(&self) -> (NonNull<u8>, u64) {
        (self.host, self.len)
    }

    /// The RAM's bytes.
    ///
    /// # Safety
    /// Nothing may write to it as long as the slice is used: all vCPUs are out of the guest, and every device is held.
    pub unsafe fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is `self.len` long and lives as long as `self`; that nobody writes is the caller's
        // promise.
        unsafe { std::slice::from_raw_parts(self.host.as_ptr(), to_usize(self.len)) }
    }

    /// The snapshot file below the RAM and the RAM's offset in it.
    pub fn base(&self) -> Option<(&File, u64)> {
        self.base.as_ref().map(|(file, offset)| (file, *offset))
    }

    /// Has the host give memory in huge pages where it can (Documentation/admin-guide/mm/transhuge.rst): a guest that
    /// boots on hardware leaves it once for each of them, and for each small page otherwise. A hint, as others here.
    #[cfg(target_os = "linux")]
    pub fn prefer_huge_pages(&self) {
        self.advise(&(0..self.len / PAGE), libc::MADV_HUGEPAGE);
    }

    /// Brings these pages in before the guest asks for them: a hint, whose failure costs time and nothing else.
    pub fn prefault(&self, pages: &Range<u64>, write: bool) {
        // What is missing would be the guest's own with the wrong bytes, if it were written to now.
        if self.arrival.as_ref().is_some_and(|arrival| !arrival.holds(pages.clone())) {
            return;
        }
        #[cfg(target_os = "linux")]
        if pages.start < pages.end && pages.end <= self.len / PAGE {
            let advice = if write { libc::MADV_POPULATE_WRITE } else { libc::MADV_POPULATE_READ };
            self.advise(pages, advice);
        }
        #[cfg(not(target_os = "linux"))]
        {
            let _ = write;
            self.read_ahead(pages);
        }
    }

    /// Has the host begin to read what of these pages is in the file.
    pub fn read_ahead_all(&self, runs: &[Touched]) {
        let pages = pages::joined(runs.iter().map(|run| run.pages.clone()), pages::READ_GAP);
        pages.iter().for_each(|pages| self.read_ahead(pages));
    }

    /// Has the host begin to read these pages of the file.
    fn read_ahead(&self, pages: &Range<u64>) {
        if pages.start < pages.end && pages.end <= self.len / PAGE {
            self.advise(pages, libc::MADV_WILLNEED);
        }
    }

    /// Gives memory that the guest does not use back to the host; what it holds afterwards is not said. A hint, as
    /// others here: what lies outside RAM or is not whole pages of the host's stays.
    pub fn release(&self, gpa: u64, length: u64) {
        use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
        let Some(start) = self.ram.iter().next().map(|region| region.start_addr().raw_value()) else {
            return;
        };
        let page = page_size();
        let Some((from, end)) =
            gpa.checked_sub(start).and_then(|from| Some((from, from.checked_add(length)?)))
        else {
            return;
        };
        let (from, to) = (from.next_multiple_of(page), end.min(self.len) / page * page);
        if from >= to {
            return;
        }
        // A private mapping of a file would show the file's old bytes, and store them in the next snapshot.
        if self.base.is_some() && self.make_anonymous(from..to) {
            return;
        }
        #[cfg(target_os = "linux")]
        self.advise(&(from / PAGE..to / PAGE), libc::MADV_DONTNEED);
        #[cfg(not(target_os = "linux"))]
        self.advise(&(from / PAGE..to / PAGE), libc::MADV_FREE);
    }

    /// Puts fresh anonymous memory in place of a file's; `false` when it is that already, or may not be.
    fn make_anonymous(&self, bytes: Range<u64>) -> bool {
        // Hypervisor.framework keeps what was mapped to the guest when it was.
        if !cfg!(target_os = "linux") {
            return false;
        }
        let mut released = lock(&self.released);
        let covered = released.iter().any(|run| run.start <= bytes.start && bytes.end <= run.end);
        if covered || released.len() >= MAX_RELEASED {
            return false;
        }
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the range lies inside the mapping that `self` owns, in whole pages. Its addresses stay mapped,
        // readable and writable all the time, so that whoever uses it finds memory; that its bytes change is what the
        // guest has asked for.
        let mapped = unsafe {
            let at = self.host.as_ptr().add(to_usize(bytes.start));
            libc::mmap(at.cast(), to_usize(bytes.end - bytes.start), prot, flags, -1, 0)
        };
        if mapped == libc::MAP_FAILED {
            return false;
        }
        *released = pages::joined(released.drain(..).chain([bytes]), 0);
        true
    }

    fn advise(&self, pages: &Range<u64>, advice: i32) {
        let page = page_size();
        let (start, end) = (pages.start * PAGE / page * page, (pages.end * PAGE).next_multiple_of(page));
        // SAFETY: the range lies inside the mapping, by the callers' checks, for that is whole pages of the host's; the
        // kinds of advice change what the memory holds for pages alone that the guest has given back.
        unsafe {
            let at = self.host.as_ptr().add(to_usize(start));
            libc::madvise(at.cast(), to_usize(end - start), advice);
        }
    }

    /// Host address of the VM generation id's page, where the guest has one.
    pub fn generation_host(&self) -> Option<NonNull<u8>> {
        NonNull::new(self.generation.as_ref()?.as_ptr())
    }

    /// Writes a new VM generation id.
    pub fn set_generation(&self, id: [u8; 16]) {
        use vm_memory::{Bytes, MemoryRegionAddress};
        if let Some(page) = &self.generation {
            page.write_slice(&id, MemoryRegionAddress(0)).expect("the id lies inside its page");
        }
    }
}

/// An extent as what is read, what is mapped in whole pages of this size, and what is read again. Too little is not
/// mapped.
fn parts(extent: &Range<u64>, page: u64) -> [Range<u64>; 3] {
    let Range { start, end } = *extent;
    let (from, to) = (start.next_multiple_of(page), end / page * page);
    match to.checked_sub(from) {
        Some(MAPPED..) => [start..from, from..to, to..end],
        _ => [start..end, end..end, end..end],
    }
}

fn map(bytes: u64, gpa: u64, file: Option<FileOffset>) -> Result<GuestRegionMmap<()>, Error> {
    let failed = |reason: String| Error::Memory { bytes, reason };
    let size = usize::try_from(bytes).map_err(|e| failed(e.to_string()))?;
    let private = libc::MAP_PRIVATE | libc::MAP_NORESERVE;
    let builder = MmapRegionBuilder::new(size).with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE);
    let builder = match file {
        Some(file) => builder.with_mmap_flags(private).with_file_offset(file),
        None => builder.with_mmap_flags(private | libc::MAP_ANONYMOUS),
    };
    let region = builder.build().map_err(|e| failed(e.to_string()))?;
    GuestRegionMmap::new(region, GuestAddress(gpa))
        .ok_or_else(|| failed("it ends beyond the address space".into()))
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;
    use crate::arm64::layout::{MAP, RAM_BASE};

    fn file(pages: &[(u64, u8)], total: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(total * PAGE).unwrap();
        for (page, byte) in pages {
            file.write_all_at(&[*byte; PAGE as usize], page * PAGE).unwrap();
        }
        file
    }

    #[test]
    fn diffs_lie_over_their_base_and_files_stay_as_they_are() {
        let pages = 64_u64;
        // The RAM starts at the second page of each file.
        let base = file(&[(1, 1), (2, 2), (41, 3)], pages + 1);
        let diff = file(&(20..44).map(|page| (page + 1, 9)).chain([(2, 8)]).collect::<Vec<_>>(), pages + 1);
        let kept = base.try_clone().unwrap();
        let extents = vec![PAGE..2 * PAGE, 20 * PAGE..44 * PAGE];
        let diffs = vec![Diff { file: diff, offset: PAGE, extents }];
        let memory = Memory::restored(
            &MAP,
            pages * PAGE,
            Backing { base, offset: PAGE, diffs, arrival: None, noted: None },
        )
        .unwrap();
        let byte = |page: u64| -> u8 { memory.ram.read_obj(GuestAddress(RAM_BASE + page * PAGE)).unwrap() };
        assert_eq!([0, 1, 2, 19, 20, 43, 44].map(byte), [1, 8, 0, 0, 9, 9, 0]);
        memory.ram.write_obj(77_u8, GuestAddress(RAM_BASE)).unwrap();
        let mut there = [0];
        kept.read_exact_at(&mut there, PAGE).unwrap();
        assert_eq!(there, [1]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn memory_that_is_given_back_is_gone_and_zero_whatever_was_below_it() {
        let map = crate::pages::PageMap::open().unwrap();
        let there = |memory: &Memory| -> u64 {
            let runs = map.touched(memory.host.as_ptr() as u64, 64).unwrap();
            runs.iter().map(|run| run.pages.end - run.pages.start).sum()
        };
        let all: Vec<_> = (0..64).map(|page| (page, 7)).collect();
        let backing =
            Backing { base: file(&all, 64), offset: 0, diffs: Vec::new(), arrival: None, noted: None };
        for memory in
            [Memory::new(&MAP, 64 * PAGE).unwrap(), Memory::restored(&MAP, 64 * PAGE, backing).unwrap()]
        {
            for _ in 0..2 {
                memory.ram.write_slice(&[9; 64 * PAGE as usize], GuestAddress(RAM_BASE)).unwrap();
                assert_eq!(there(&memory), 64);
                memory.release(RAM_BASE + 16 * PAGE + 1, 33 * PAGE);
                assert_eq!(there(&memory), 64 - 32);
                let byte =
                    |page: u64| -> u8 { memory.ram.read_obj(GuestAddress(RAM_BASE + page * PAGE)).unwrap() };
                assert_eq!([16, 17, 48, 49].map(byte), [9, 0, 0, 9]);
            }
            // Nothing of this is memory.
            memory.release(0, PAGE);
            memory.release(RAM_BASE + 64 * PAGE, PAGE);
            memory.release(u64::MAX, u64::MAX);
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn huge_pages_are_asked_for() {
        // The kernel's record of what was asked for (Documentation/filesystems/proc.rst, smaps), by the mapping's
        // address.
        let asked = |memory: &Memory| {
            let all = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let flags = all.split_once(&format!("{:x}-", memory.host.as_ptr() as u64)).unwrap().1;
            flags.lines().find(|line| line.starts_with("VmFlags:")).unwrap().contains(" hg")
        };
        let memory = Memory::new(&MAP, 64 << 20).unwrap();
        assert!(!asked(&memory));
        memory.prefer_huge_pages();
        assert!(asked(&memory));
    }

    #[test]
    fn whole_pages_of_the_host_are_mapped_and_the_rest_is_read() {
        let large = 16 << 10;
        assert_eq!(parts(&(0..MAPPED), PAGE), [0..0, 0..MAPPED, MAPPED..MAPPED]);
        assert_eq!(parts(&(PAGE..MAPPED), PAGE), [PAGE..MAPPED, MAPPED..MAPPED, MAPPED..MAPPED]);
        let (start, end) = (3 * PAGE, 2 * MAPPED + 5 * PAGE);
        assert_eq!(
            parts(&(start..end), large),
            [start..large, large..2 * MAPPED + large, 2 * MAPPED + large..end]
        );
        assert_eq!(parts(&(PAGE..2 * PAGE), large), [PAGE..2 * PAGE, 2 * PAGE..2 * PAGE, 2 * PAGE..2 * PAGE]);
    }

    #[test]
    fn a_diff_that_reaches_beyond_its_file_is_refused() {
        let base = file(&[], 64);
        let diff = Diff { file: file(&[], 10), offset: 0, extents: std::iter::once(0..64 * PAGE).collect() };
        let backing = Backing { base, offset: 0, diffs: vec![diff], arrival: None, noted: None };
        assert!(Memory::restored(&MAP, 64 * PAGE, backing).is_err());
    }
}
