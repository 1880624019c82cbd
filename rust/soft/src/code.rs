//! Decoded code, by physical address.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use crate::baked::{self, Baked, Unread};
use crate::interp::block::{BLOCK_MAX, Block};
use crate::interp::op::{Op, P};

/// Operations kept at most by all vCPUs of a machine; when its share is used up a vCPU decodes everything anew.
const CAPACITY: usize = 640 << 10;

/// Pages with decoded code at most, likewise: a guest that runs a little in each page must not take the host's memory.
const PAGES: usize = 4096;

/// Operations of one block at most, with some to spare.
const BLOCK_ROOM: usize = 2 * BLOCK_MAX + 8;

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

impl Slab<Line> {
    /// Notes that the block at an offset in this page begins with the operation of this index.
    fn begin(&mut self, page: &mut Page, offset: usize, index: u32) {
        let line = &mut page[(offset >> 2) / LINE];
        if *line == 0 {
            *line = self.add([0; LINE]) + 1;
        }
        self.values[*line as usize - 1][(offset >> 2) % LINE] = index + 1;
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
    /// What has been decoded by another process.
    baked: Option<Unread>,
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
            baked: None,
        }
    }

    /// Takes what has been decoded by another process, before anything has been here.
    pub(crate) fn set_baked(&mut self, baked: Arc<Baked>) {
        self.baked = Some(Unread::new(baked));
    }

    /// All that has been decoded by another process is here from now on.
    pub(crate) fn lay_all(&mut self) {
        for number in self.baked.as_ref().map(Unread::pages).unwrap_or_default() {
            if self.ops.len() >= self.capacity / 2 || self.pages.len() >= self.max_pages / 2 {
                break;
            }
            self.page(number << 12);
        }
    }

    /// The page at physical address `pa`. The reference holds until the page is removed or all is cleared.
    pub(crate) fn page(&mut self, pa: u64) -> PageRef {
        if let Some(page) = self.by_address.get(&(pa >> 12)) {
            return *page;
        }
        let page = PageRef(self.pages.add([0; 1024 / LINE]));
        self.by_address.insert(pa >> 12, page);
        if let Some(baked) = &mut self.baked {
            // Room for the next block is left.
            let capacity = self.capacity.saturating_sub(BLOCK_ROOM);
            match baked.lay(pa >> 12, &mut self.ops, capacity) {
                Some(begins) => {
                    for (offset, index) in begins {
                        self.lines.begin(&mut self.pages.values[page.0 as usize], (*offset).into(), *index);
                    }
                }
                None => self.baked = None,
            }
        }
        page
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
        self.ops.len() + BLOCK_ROOM > self.capacity || self.pages.len() >= self.max_pages
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
        self.lines.begin(&mut self.pages.values[page.0 as usize], first, index as u32);
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
    /// write then need not write to it for that. Of each the physical address and the memory of its page. Leaves room
    /// for as much again. Tells which operations are such branches, in their order.
    pub(crate) fn decode_ahead(&mut self, places: impl Iterator<Item = (u64, *const u8)>) -> Vec<usize> {
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
        for (page, at) in &branches {
            let branch = self.at(*at);
            if let Some(to) = self.get(*page, branch.target()) {
                branch.set_chain(to);
            }
        }
        branches.into_iter().map(|(_, at)| at).collect()
    }

    /// What `decode_ahead` makes of blocks of which those of a page come together, for other processes.
    pub(crate) fn bake(
        &mut self,
        places: impl Iterator<Item = (u64, *const u8)>,
        key: &baked::Key,
    ) -> Vec<u8> {
        let branches: BTreeSet<_> = self.decode_ahead(places).into_iter().collect();
        let blocks = |page: &PageRef| {
            let lines = self.pages.values[page.0 as usize].iter().filter_map(|line| line.checked_sub(1));
            let slots = lines.flat_map(|line| self.lines.values[line as usize]);
            slots
                .filter_map(|index| index.checked_sub(1))
                .map(|index| index as usize)
                .collect::<BTreeSet<_>>()
        };
        let pages = self.by_address.iter().map(|(number, page)| (blocks(page), *number));
        // In the order of their operations, each of which has those up to the first of the next.
        let mut pages: Vec<_> =
            pages.filter_map(|(begins, number)| Some((*begins.first()?, begins, number))).collect();
        pages.sort_unstable_by_key(|(first, ..)| *first);
        let ends: Vec<_> = pages.iter().skip(1).map(|(first, ..)| *first).chain([self.ops.len()]).collect();
        let within = |of: &BTreeSet<usize>, first, end| {
            of.range(first..end).map(|at| at - first).collect::<BTreeSet<_>>()
        };
        let parts = pages.iter().zip(ends).map(|((first, begins, number), end)| baked::Page {
            number: *number,
            ops: &self.ops[*first..end],
            begins: within(begins, *first, end),
            branches: within(&branches, *first, end),
        });
        baked::write(parts, key)
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
        if let Some(baked) = &mut self.baked {
            baked.forget(pa >> 12);
        }
        let page = self.by_address.remove(&(pa >> 12))?;
        let lines = self.pages.values[page.0 as usize].iter().filter_map(|line| line.checked_sub(1));
        self.lines.free.extend(lines);
        self.pages.free.push(page.0);
        Some(page.identity())
    }

    pub(crate) fn clear(&mut self) {
        self.baked = None;
        self.ops.clear();
        self.by_address.clear();
        self.pages.clear();
        self.lines.clear();
        self.looked.clear();
    }
}
