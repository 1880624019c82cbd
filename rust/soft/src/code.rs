//! Decoded code, by physical address.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::decode::{BLOCK_MAX, Block};
use crate::op::{Op, P};

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

/// A page's lines, each there from its first block on: most pages run in a few places only.
type Page = [Option<Box<Line>>; 1024 / LINE];

/// A page in the code cache.
#[derive(Clone, Copy)]
pub(crate) struct PageRef(*mut Page);

impl PageRef {
    pub const NONE: Self = Self(std::ptr::null_mut());

    /// A number that no other page has while this one is there.
    pub fn identity(self) -> usize {
        self.0 as usize
    }
}

/// Owns the page that references point at.
struct OwnedPage(PageRef);

impl OwnedPage {
    fn new() -> Self {
        Self(PageRef(Box::into_raw(Box::default())))
    }
}

impl Drop for OwnedPage {
    fn drop(&mut self) {
        // SAFETY: the pointer is a box's, made in `new` and freed only here.
        drop(unsafe { Box::from_raw(self.0.0) });
    }
}

pub(crate) struct CodeCache {
    /// Never grows beyond its first capacity, so that pointers into it hold until `clear`.
    ops: Vec<Op>,
    capacity: usize,
    max_pages: usize,
    pages: HashMap<u64, OwnedPage, BuildHasherDefault<PageHasher>>,
    block: Block,
    /// The instruction that runs by itself.
    single: Block,
}

impl CodeCache {
    /// The share of one of `vcpus` vCPUs.
    pub fn new(vcpus: usize) -> Self {
        let shares = vcpus.clamp(1, MAX_SHARES);
        let (capacity, max_pages) = (CAPACITY / shares, PAGES / shares);
        let ops = Vec::with_capacity(capacity);
        Self {
            ops,
            capacity,
            max_pages,
            pages: HashMap::default(),
            block: Block::default(),
            single: Block::default(),
        }
    }

    /// The page at physical address `pa`. The reference holds until the page is removed or all is cleared.
    pub fn page(&mut self, pa: u64) -> PageRef {
        self.pages.entry(pa >> 12).or_insert_with(OwnedPage::new).0
    }

    /// The block at this address in its page.
    pub fn get(&self, page: PageRef, address: u64) -> Option<P> {
        // SAFETY: by the contract of `page` it is in `pages` still, and nothing writes to it meanwhile.
        let page = unsafe { &*page.0 };
        let instruction = (address >> 2) as usize & 1023;
        let at = page[instruction / LINE].as_ref()?[instruction % LINE];
        (at != 0).then(|| self.at(at as usize - 1))
    }

    fn at(&self, index: usize) -> P {
        // SAFETY: `index` is that of an operation in `ops`, which moves and goes only in `clear`, after which no
        // pointer from here is used again: the jump cache is emptied with it, and chains are in `ops` themselves.
        unsafe { P::new(self.ops.as_ptr().add(index)) }
    }

    /// Whether a block might not fit any more.
    pub fn is_full(&self) -> bool {
        self.ops.len() + 2 * BLOCK_MAX + 8 > self.capacity || self.pages.len() >= self.max_pages
    }

    /// Decodes the block at this address in its page, whose memory is at `host`.
    pub fn decode(&mut self, page: PageRef, address: u64, host: *const u8) -> P {
        let first = (address & 0xfff) as usize;
        self.block.decode(first, |off| {
            // SAFETY: `host` is a mapped page of guest memory and `off` an aligned offset in it.
            u32::from_le(unsafe { host.add(off).cast::<u32>().read_volatile() })
        });
        let index = self.ops.len();
        self.ops.extend_from_slice(&self.block.ops);
        // SAFETY: by the contract of `page` it is in `pages` still, and nothing else refers to it.
        let page = unsafe { &mut *page.0 };
        let line = page[(first >> 2) / LINE].get_or_insert_with(|| Box::new([0; LINE]));
        line[(first >> 2) % LINE] = index as u32 + 1;
        self.at(index)
    }

    /// Decodes the one instruction at this address in its page, whose memory is at `host`; gives the operation, which
    /// holds until the next call, and the instruction. Nothing is kept.
    pub fn decode_one(&mut self, address: u64, host: *const u8) -> (P, u32) {
        let first = (address & 0xfff) as usize;
        // SAFETY: `host` is a mapped page of guest memory and `first` an aligned offset in it.
        let insn = u32::from_le(unsafe { host.add(first).cast::<u32>().read_volatile() });
        self.single.decode_up_to(1, first, |_| insn);
        // SAFETY: a block has at least one operation; this one is next written to in the next call.
        (unsafe { P::new(self.single.ops.as_ptr()) }, insn)
    }

    /// Forgets a page; the identity of what there was.
    pub fn remove(&mut self, pa: u64) -> Option<usize> {
        self.pages.remove(&(pa >> 12)).map(|page| page.0.identity())
    }

    pub fn clear(&mut self) {
        self.ops.clear();
        self.pages.clear();
    }
}
