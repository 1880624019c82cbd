//! Decoded code, by physical address.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::interp::block::{BLOCK_MAX, Block};
use crate::interp::op::{Op, P};

/// Operations kept at most by all vCPUs of a machine; when its share is used up a vCPU decodes everything anew.
const CAPACITY: usize = 640 << 10;

/// Pages with decoded code at most, likewise: a guest that runs a little in each page must not take the host's memory.
const PAGES: usize = 4096;

/// Smaller shares than this part would not hold what a kernel and a program run all the time.
const MAX_SHARES: usize = 4;

/// Multiplies: page numbers need no more.
#[derive(Default)]
pub(crate) struct PageHasher(u64);

impl Hasher for PageHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.write_u64(u64::from(*b));
        }
    }
    fn write_u64(&mut self, v: u64) {
        self.0 = (self.0 ^ v).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(26);
    }
}

/// Instructions of a line.
const LINE: usize = 64;

/// For each instruction of a part of a page, one more than the index of the first operation of the block there; 0 for
/// none.
type Line = [u32; LINE];

/// A page's lines, as one more than their index; 0 for none. Each is there from its first block on: most pages run in a
/// few places only.
type Page = [u32; 1024 / LINE];

/// A page in the code cache.
#[derive(Clone, Copy)]
pub(crate) struct PageRef(u32);

impl PageRef {
    pub(crate) const NONE: Self = Self(u32::MAX);

    /// A number that no other page has while this one is there.
    pub(crate) fn identity(self) -> usize {
        self.0 as usize
    }
}

/// Values by index, some of which are free. They are in one piece, which grows in large steps.
struct Slab<T> {
    values: Vec<T>,
    free: Vec<u32>,
}

impl<T: Copy> Slab<T> {
    fn new(capacity: usize) -> Self {
        Self { values: Vec::with_capacity(capacity), free: Vec::new() }
    }

    fn add(&mut self, value: T) -> u32 {
        if let Some(index) = self.free.pop() {
            self.values[index as usize] = value;
            return index;
        }
        self.values.push(value);
        self.values.len() as u32 - 1
    }

    /// Those that are not free.
    fn len(&self) -> usize {
        self.values.len() - self.free.len()
    }

    fn clear(&mut self) {
        self.values.clear();
        self.free.clear();
    }
}

/// Lines and pages that there is room for at first: memory that is not written to costs nothing.
const ROOM: usize = 2048;

pub(crate) struct CodeCache {
    /// Never grows beyond its first capacity, so that pointers into it hold until `clear`.
    ops: Vec<Op>,
    capacity: usize,
    max_pages: usize,
    by_address: HashMap<u64, PageRef, BuildHasherDefault<PageHasher>>,
    pages: Slab<Page>,
    lines: Slab<Line>,
    /// By page, when it was last looked at, as `clock` told.
    looked: Vec<u32>,
    clock: u32,
    block: Block,
    /// The instruction that runs by itself.
    single: Block,
}

impl CodeCache {
    /// The share of one of `vcpus` vCPUs.
    pub(crate) fn new(vcpus: usize) -> Self {
        let shares = vcpus.clamp(1, MAX_SHARES);
        let (capacity, max_pages) = (CAPACITY / shares, PAGES / shares);
        let ops = Vec::with_capacity(capacity);
        Self {
            ops,
            capacity,
            max_pages,
            by_address: HashMap::default(),
            pages: Slab::new(ROOM),
            lines: Slab::new(ROOM),
            looked: Vec::new(),
            clock: 0,
            block: Block::default(),
            single: Block::default(),
        }
    }

    /// The page at physical address `pa`. The reference holds until the page is removed or all is cleared.
    pub(crate) fn page(&mut self, pa: u64) -> PageRef {
        let pages = &mut self.pages;
        *self.by_address.entry(pa >> 12).or_insert_with(|| PageRef(pages.add([0; 1024 / LINE])))
    }

    /// Guest code of this page is about to run.
    pub(crate) fn look_at(&mut self, page: PageRef) {
        let at = page.0 as usize;
        if at >= self.looked.len() {
            self.looked.resize(at + 1, 0);
        }
        self.looked[at] = self.clock;
    }

    /// From now on pages are looked at anew.
    pub(crate) fn tick(&mut self) {
        self.clock = self.clock.wrapping_add(1);
    }

    /// The block at this address in its page.
    pub(crate) fn get(&self, page: PageRef, address: u64) -> Option<P> {
        let instruction = (address >> 2) as usize & 1023;
        let line = self.pages.values[page.0 as usize][instruction / LINE];
        let line = self.lines.values.get(line.checked_sub(1)? as usize)?;
        let at = line[instruction % LINE];
        (at != 0).then(|| self.at(at as usize - 1))
    }

    fn at(&self, index: usize) -> P {
        // SAFETY: `index` is that of an operation in `ops`, which moves and goes only in `clear`, after which no
        // pointer from here is used again: the jump cache is emptied with it, and chains are in `ops` themselves.
        unsafe { P::new(self.ops.as_ptr().add(index)) }
    }

    /// Whether a block might not fit any more.
    pub(crate) fn is_full(&self) -> bool {
        self.ops.len() + 2 * BLOCK_MAX + 8 > self.capacity || self.pages.len() >= self.max_pages
    }

    /// Decodes the block at this address in its page, whose memory is at `host`.
    pub(crate) fn decode(&mut self, page: PageRef, address: u64, host: *const u8) -> P {
        let first = (address & 0xfff) as usize;
        self.block.decode(first, |off| {
            // SAFETY: `host` is a mapped page of guest memory and `off` an aligned offset in it.
            u32::from_le(unsafe { host.add(off).cast::<u32>().read_volatile() })
        });
        let index = self.ops.len();
        self.ops.extend_from_slice(&self.block.ops);
        let line = &mut self.pages.values[page.0 as usize][(first >> 2) / LINE];
        if *line == 0 {
            *line = self.lines.add([0; LINE]) + 1;
        }
        self.lines.values[*line as usize - 1][(first >> 2) % LINE] = index as u32 + 1;
        self.at(index)
    }

    /// Where decoded blocks begin, by physical addresses: page by page, those that were looked at last come first.
    pub(crate) fn places(&self) -> Vec<u64> {
        let age = |page: &PageRef| {
            self.looked.get(page.0 as usize).map_or(u32::MAX, |looked| self.clock.wrapping_sub(*looked))
        };
        let mut pages: Vec<_> = self.by_address.iter().collect();
        pages.sort_unstable_by_key(|(number, page)| (age(page), **number));
        let mut places = Vec::new();
        for (number, page) in pages {
            for (at, line) in self.pages.values[page.0 as usize].iter().enumerate() {
                let Some(line) = line.checked_sub(1) else { continue };
                let blocks =
                    self.lines.values[line as usize].iter().enumerate().filter(|(_, block)| **block != 0);
                places.extend(blocks.map(|(slot, _)| (number << 12) + 4 * (at * LINE + slot) as u64));
            }
        }
        places
    }

    /// Decodes blocks that nothing has run yet, and has their branches go where they will: who copies this memory on
    /// write then need not write to it for that. Of each the physical address and the memory of its page. Leaves room for
    /// as much again.
    pub(crate) fn decode_ahead(&mut self, places: impl Iterator<Item = (u64, *const u8)>) {
        let mut branches = Vec::new();
        self.block.notes_branches = true;
        for (pa, host) in places {
            if self.ops.len() >= self.capacity / 2 || self.pages.len() >= self.max_pages / 2 {
                break;
            }
            let page = self.page(pa);
            if self.get(page, pa).is_none() {
                let first = self.ops.len();
                self.decode(page, pa, host);
                branches.extend(self.block.branches.iter().map(|at| (page, first + at)));
            }
        }
        self.block.notes_branches = false;
        for (page, at) in branches {
            let branch = self.at(at);
            if let Some(to) = self.get(page, branch.target()) {
                branch.set_chain(to);
            }
        }
    }

    /// Decodes the one instruction at this address in its page, whose memory is at `host`; gives the operation, which
    /// holds until the next call, and the instruction. Nothing is kept.
    pub(crate) fn decode_one(&mut self, address: u64, host: *const u8) -> (P, u32) {
        let first = (address & 0xfff) as usize;
        // SAFETY: `host` is a mapped page of guest memory and `first` an aligned offset in it.
        let insn = u32::from_le(unsafe { host.add(first).cast::<u32>().read_volatile() });
        self.single.decode_up_to(1, first, |_| insn);
        // SAFETY: a block has at least one operation; this one is next written to in the next call.
        (unsafe { P::new(self.single.ops.as_ptr()) }, insn)
    }

    /// Forgets a page; the identity of what there was.
    pub(crate) fn remove(&mut self, pa: u64) -> Option<usize> {
        let page = self.by_address.remove(&(pa >> 12))?;
        let lines = self.pages.values[page.0 as usize].iter().filter_map(|line| line.checked_sub(1));
        self.lines.free.extend(lines);
        self.pages.free.push(page.0);
        Some(page.identity())
    }

    pub(crate) fn clear(&mut self) {
        self.ops.clear();
        self.by_address.clear();
        self.pages.clear();
        self.lines.clear();
        self.looked.clear();
    }
}
