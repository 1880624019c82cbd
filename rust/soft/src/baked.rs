//! Decoded code in a file: what a process that has run no guest writes for others of the same build that go on from the
//! same memory.
//!
//! A file is a header, an entry for each page, and the operations, page by page, as they are in memory but for what
//! differs between processes: a handler is told by how far it is from [`anchor`], and a branch inside its page by the
//! index of the operation there among the page's. All numbers are as the host has them. A page is read and laid out
//! when the guest first runs there, into memory that decoding it would have taken; what the guest does not run costs
//! nothing.
//!
//! Whoever can write such a file decides what this process runs. Nothing here protects from that: who opens it sees to
//! it that it is the user's own. The sums are for files that are damaged.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::hash::BuildHasherDefault;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::code::PageHasher;
use crate::fp;
use crate::interp::handlers::{system, vector};
use crate::interp::op::{Handler, Op};

const MAGIC: [u8; 8] = *b"SMCODE\x01\0";

/// Operations of a file at most: three times what a shell, or Python, runs until its first output.
pub(crate) const MAX_OPS: usize = 192 << 10;

/// Pages at most.
const MAX_PAGES: usize = 1024;

/// What a file is for, as far as this crate does not know it itself.
pub type Key = [u8; 32];

/// Magic, key, features of the host, pages, operations, and the sum of all that and the entries.
const HEADER: usize = 8 + 32 + 4 + 4 + 8 + 8;
const ENTRY: usize = 24;
const OP: usize = size_of::<Op>();
const _: () = assert!(OP == 24 && align_of::<Op>() == 8);

/// What an operation's first word has in its top byte.
const BEGINS: u8 = 1;
const BRANCH: u8 = 2;
const FUNCTION: u8 = 4;

/// What the offset of a handler has in that word.
const OFFSET: u64 = (1 << 56) - 1;

/// Where handlers are counted from.
fn anchor() -> u64 {
    system::undefined as Handler as usize as u64
}

/// A sum in which any change of one word shows.
#[derive(Clone, Copy)]
struct Sum(u64);

impl Sum {
    const NEW: Self = Self(0x6a09_e667_f3bc_c908);

    #[inline(always)]
    fn add(self, word: u64) -> Self {
        Self((self.0 ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29))
    }
}

/// Of operations: one for each of their words, so that none waits for another.
#[derive(Clone, Copy)]
struct OpSum([Sum; 3]);

impl OpSum {
    const NEW: Self = Self([Sum::NEW; 3]);

    #[inline(always)]
    fn add(&mut self, words: [u64; 3]) {
        for (sum, word) in self.0.iter_mut().zip(words) {
            *sum = sum.add(word);
        }
    }

    fn value(self) -> u64 {
        self.0.into_iter().fold(Sum::NEW, |sum, part| sum.add(part.0)).0
    }
}

/// A page's operations in a file.
#[derive(Clone, Copy)]
struct Entry {
    first: u32,
    ops: u32,
    sum: u64,
}

/// A file of decoded code that fits this process.
pub struct Baked {
    file: File,
    /// Where the operations begin in it.
    ops_at: u64,
    pages: HashMap<u64, Entry, BuildHasherDefault<PageHasher>>,
}

impl Baked {
    /// Reads what there is in a file; an error for one that is not for this process, or is none.
    pub fn open(file: File, key: &Key) -> io::Result<Self> {
        let refused = |why: &str| Err(io::Error::new(io::ErrorKind::InvalidData, why));
        let length = (&file).seek(SeekFrom::End(0))?;
        let mut start = vec![0; HEADER + ENTRY * MAX_PAGES];
        start.truncate(usize::try_from(length).unwrap_or(usize::MAX).min(start.len()));
        file.read_exact_at(&mut start, 0)?;
        let mut words = Words(&start);
        let (Some(magic), Some(of), Some(features)) = (words.array(), words.array(), words.u32()) else {
            return refused("it is too short");
        };
        if magic != MAGIC || of != *key || features != fp::host_features() {
            return refused("it is for another");
        }
        let (Some(pages), Some(ops), Some(sum)) = (words.u32(), words.u64(), words.u64()) else {
            return refused("it is too short");
        };
        let ops_at = HEADER + ENTRY * pages as usize;
        if pages as usize > MAX_PAGES || ops > MAX_OPS as u64 || length != ops_at as u64 + ops * OP as u64 {
            return refused("it has another length");
        }
        if sum != head_sum(&start[..HEADER - 8], &start[HEADER..ops_at]) {
            return refused("it is damaged");
        }
        let mut found = HashMap::with_capacity_and_hasher(pages as usize, BuildHasherDefault::default());
        let mut next = 0;
        for _ in 0..pages {
            let (Some(number), Some(count), Some(sum)) = (words.u64(), words.u64(), words.u64()) else {
                return refused("it is too short");
            };
            if count > ops - next
                || found.insert(number, Entry { first: next as u32, ops: count as u32, sum }).is_some()
            {
                return refused("its pages are none");
            }
            next += count;
        }
        Ok(Self { file, ops_at: ops_at as u64, pages: found })
    }
}

/// Takes numbers from the start of bytes.
struct Words<'a>(&'a [u8]);

impl Words<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_ne_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_ne_bytes)
    }
}

fn head_sum(header: &[u8], entries: &[u8]) -> u64 {
    let words = [header, entries].into_iter().flat_map(|part| part.chunks_exact(8));
    words.fold(Sum::NEW, |sum, word| sum.add(u64::from_ne_bytes(word.try_into().expect("8 bytes")))).0
}

/// The pages of a file that one vCPU has not run in yet, and that are as they were.
pub(crate) struct Unread {
    baked: Arc<Baked>,
    pages: HashMap<u64, Entry, BuildHasherDefault<PageHasher>>,
    /// Where blocks begin in the page that was read last: offsets in the page, and indexes of operations.
    begins: Vec<(u16, u32)>,
}

impl Unread {
    pub(crate) fn new(baked: Arc<Baked>) -> Self {
        let pages = baked.pages.clone();
        Self { baked, pages, begins: Vec::new() }
    }

    pub(crate) fn pages(&self) -> Vec<u64> {
        self.pages.keys().copied().collect()
    }

    /// What is in the file of a page is not what the page has any more.
    pub(crate) fn forget(&mut self, number: u64) {
        self.pages.remove(&number);
    }

    /// Takes a page from it, and adds the page's operations to those that there are, if there is room for them up to
    /// `capacity`: tells at which offsets in the page blocks begin, and at which operations. `None` where the file is
    /// not what it was.
    pub(crate) fn lay(&mut self, number: u64, ops: &mut Vec<Op>, capacity: usize) -> Option<&[(u16, u32)]> {
        self.begins.clear();
        let Some(entry) = self.pages.remove(&number) else { return Some(&[]) };
        let (first, count) = (ops.len(), entry.ops as usize);
        if first + count > capacity.min(ops.capacity()) {
            return Some(&[]);
        }
        // The words are where the operations will be.
        let words = ops.spare_capacity_mut().as_mut_ptr().cast::<[u64; 3]>();
        self.read(entry, words.cast())?;
        let (base, page) = (anchor(), words as u64);
        let mut sum = OpSum::NEW;
        for index in 0..count {
            // SAFETY: `count` of them have been read, and the memory is aligned for operations, as their words are.
            let [f, operands, imm] = unsafe { &mut *words.add(index) };
            sum.add([*f, *operands, *imm]);
            let kinds = (*f >> 56) as u8;
            // The offset has a sign.
            *f = base.wrapping_add(((*f << 8) as i64 >> 8) as u64);
            if kinds & BRANCH != 0 {
                *imm = page.wrapping_add(imm.wrapping_mul(OP as u64));
            } else if kinds & FUNCTION != 0 {
                *imm = base.wrapping_add(*imm);
            }
            if kinds & BEGINS != 0 {
                self.begins.push(((*operands >> 32) as u16 & 0xfff, (first + index) as u32));
            }
        }
        if sum.value() != entry.sum {
            return None;
        }
        // SAFETY: by the sum these are the words that `write` has made of operations, in a process of this build with
        // these features (`Baked::open`); with this process's addresses in them they are such operations again.
        unsafe { ops.set_len(first + count) };
        Some(&self.begins)
    }

    /// Reads a page's words to `to`, where there is room for them.
    fn read(&self, entry: Entry, to: *mut u8) -> Option<()> {
        let (length, at) = (entry.ops as usize * OP, self.baked.ops_at + u64::from(entry.first) * OP as u64);
        let mut done = 0;
        while done < length {
            let (fd, left) = (self.baked.file.as_raw_fd(), length - done);
            // SAFETY: the caller has room for `length` bytes, of which `left` have not been read yet.
            let read =
                unsafe { libc::pread(fd, to.add(done).cast(), left, (at + done as u64) as libc::off_t) };
            match usize::try_from(read) {
                Ok(0) => return None,
                Ok(read) => done += read,
                Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
        Some(())
    }
}

/// A page that is to be in a file: its number, its operations, and which of them have what for the file.
pub(crate) struct Page<'a> {
    pub number: u64,
    pub ops: &'a [Op],
    /// Those that a block begins with, by index.
    pub begins: BTreeSet<usize>,
    /// Those whose `imm` is, or will be, where a branch goes to inside the page.
    pub branches: BTreeSet<usize>,
}

/// The file of these pages, as many as it may have.
pub(crate) fn write<'a>(pages: impl Iterator<Item = Page<'a>>, key: &Key) -> Vec<u8> {
    let base = anchor();
    let (mut entries, mut all, mut count) = (Vec::new(), Vec::new(), 0_u32);
    for Page { number, ops, begins, branches } in pages {
        if count as usize >= MAX_PAGES || all.len() / OP + ops.len() > MAX_OPS {
            break;
        }
        let mut sum = OpSum::NEW;
        for (index, op) in ops.iter().enumerate() {
            let mut kinds = if begins.contains(&index) { BEGINS } else { 0 };
            let mut imm = op.imm;
            if branches.contains(&index) && imm != 0 {
                kinds |= BRANCH;
                imm = imm.wrapping_sub(ops.as_ptr() as u64) / OP as u64;
            } else if is(op.f, vector::process) || is(op.f, vector::process_flags) {
                kinds |= FUNCTION;
                imm = imm.wrapping_sub(base);
            }
            let offset = (op.f as usize as u64).wrapping_sub(base) & OFFSET;
            let [a, b, c, d] = [op.a, op.b, op.c, op.d];
            let operands = u32::from_le_bytes([a, b, c, d]);
            let operands = u64::from(operands) | u64::from(op.off) << 32 | u64::from(op.n) << 48;
            let words = [offset | u64::from(kinds) << 56, operands, imm];
            sum.add(words);
            all.extend(words.into_iter().flat_map(u64::to_ne_bytes));
        }
        count += 1;
        entries.extend([number, ops.len() as u64, sum.value()].into_iter().flat_map(u64::to_ne_bytes));
    }
    let mut file = Vec::with_capacity(HEADER + entries.len() + all.len());
    file.extend(MAGIC);
    file.extend(key);
    file.extend(fp::host_features().to_ne_bytes());
    file.extend(count.to_ne_bytes());
    file.extend(((all.len() / OP) as u64).to_ne_bytes());
    let sum = head_sum(&file, &entries);
    file.extend(sum.to_ne_bytes());
    file.extend(entries);
    file.extend(all);
    file
}

fn is(f: Handler, of: Handler) -> bool {
    std::ptr::fn_addr_eq(f, of)
}

const _: () = assert!(cfg!(target_endian = "little"), "the words of an operation are put together so");
