//! Guest memory as instructions see it: the software TLB on the fast path, the page tables and devices behind it.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::cpu::Cpu;
use crate::interp::op::P;
use crate::mmu::{Access, Fault};
use crate::sysreg::ZVA_BYTES;
use crate::vcpu::{DataAbort, Exit};

/// Entries of one TLB; one page each. Only those that are used cost memory and time.
pub(crate) const TLB_SIZE: usize = 4096;
/// Low bits of the tags of EL1's entries.
pub(crate) const EL1_TAG: u64 = 0x100;
/// In the tags of EL0's entries, beside the ASID (8 bits): no tag is zero, which is what an empty entry has.
pub(crate) const EL0_TAG: u64 = 0x200;
/// A tag that matches nothing: its low bits are no regime's.
const NOTHING: u64 = u64::MAX;

/// A page in the TLB: tags to compare a virtual page with, by kind of access, and how to get to the host's memory.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct TlbEntry {
    pub read: u64,
    pub write: u64,
    /// Added to the virtual address it gives the host's.
    pub addend: u64,
    /// The physical page, and in bit 0 whether a block mapping was behind it.
    pub page: u64,
}

impl TlbEntry {
    pub(crate) const EMPTY: Self = Self { read: 0, write: 0, addend: 0, page: 0 };
}

/// Zeroed memory from the host, page by page as it is used.
///
/// # Safety
/// All zeros are a `T`.
pub(crate) unsafe fn zeroed<T>() -> Box<T> {
    let layout = std::alloc::Layout::new::<T>();
    assert_ne!(layout.size(), 0);
    // SAFETY: the size is not zero, by the check above.
    let at = unsafe { std::alloc::alloc_zeroed(layout) }.cast::<T>();
    if at.is_null() {
        std::alloc::handle_alloc_error(layout);
    }
    // SAFETY: memory of the global allocator's with the layout of a `T`, which zeros are one of by the caller's
    // promise.
    unsafe { Box::from_raw(at) }
}

/// One exception level's TLB.
pub(crate) struct Tlb {
    pub entries: Box<[TlbEntry; TLB_SIZE]>,
    /// By half, one bit for each (hashed) 2 MiB that have entries from block mappings.
    blocks: [[u64; BLOCK_WORDS]; 2],
    /// Whether there are entries of the lower half.
    pub low: bool,
    /// One bit for each entry that has been filled since it was last flushed.
    filled: [u64; TLB_SIZE / 64],
}

impl Tlb {
    pub(crate) fn new() -> Self {
        // SAFETY: an empty entry is all zeros.
        let entries = unsafe { zeroed() };
        Self { entries, blocks: [[0; BLOCK_WORDS]; 2], low: false, filled: [0; TLB_SIZE / 64] }
    }

    pub(crate) fn flush(&mut self) {
        for n in set_bits(&self.filled) {
            self.entries[n] = TlbEntry::EMPTY;
        }
        self.filled = [0; TLB_SIZE / 64];
        self.blocks = [[0; BLOCK_WORDS]; 2];
        self.low = false;
    }

    /// Drops what maps this address, whatever the ASID.
    pub(crate) fn flush_va(&mut self, va: u64) {
        self.entries[index(va)] = TlbEntry::EMPTY;
        let (word, bit) = block_bit(va);
        if self.blocks[half(va)][word] & bit != 0 {
            let block = |tag: u64| tag << 8 >> 8 >> 21;
            let wanted = block(va);
            for n in set_bits(&self.filled) {
                let e = &mut self.entries[n];
                // A block mapping fills many entries, and one of a gibibyte those of other 2 MiB regions too.
                if e.page & 1 == 1 && (e.page & 2 == 2 || block(e.read) == wanted || block(e.write) == wanted)
                {
                    *e = TlbEntry::EMPTY;
                }
            }
        }
    }

    pub(crate) fn flush_asid(&mut self, asid: u64) {
        for n in set_bits(&self.filled) {
            let e = &mut self.entries[n];
            let tag = EL0_TAG | asid;
            if e.read & 0xfff == tag || e.write & 0xfff == tag {
                *e = TlbEntry::EMPTY;
            }
        }
    }
}

/// The numbers of the bits that are set.
pub(crate) fn set_bits(words: &[u64]) -> impl Iterator<Item = usize> {
    words.iter().enumerate().flat_map(|(at, word)| {
        let next = |left: &u64| Some(left & (left - 1)).filter(|left| *left != 0);
        std::iter::successors(Some(*word).filter(|word| *word != 0), next)
            .map(move |left| 64 * at + left.trailing_zeros() as usize)
    })
}

#[inline(always)]
fn index(va: u64) -> usize {
    (va >> 12) as usize & (TLB_SIZE - 1)
}

const BLOCK_WORDS: usize = 16;

/// Where the bit of an address's 2 MiB is.
fn block_bit(va: u64) -> (usize, u64) {
    let n = va >> 21 & (64 * BLOCK_WORDS as u64 - 1);
    ((n >> 6) as usize, 1 << (n & 63))
}

fn half(va: u64) -> usize {
    (va >> 55 & 1) as usize
}

/// What moves between registers and memory in one piece.
pub(crate) trait Scalar: Copy {
    fn of(v: u64) -> Self;
    fn u(self) -> u64;
}

macro_rules! scalars {
    ($($t:ident)*) => {$(
        impl Scalar for $t {
            #[inline(always)]
            fn of(v: u64) -> Self { v as $t }
            #[inline(always)]
            fn u(self) -> u64 { self as u64 }
        }
    )*};
}

scalars! { u8 u16 u32 u64 i8 i16 i32 i64 }

/// Which translation regime's rules an access follows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum As {
    /// The current exception level.
    Current,
    /// EL0, as LDTR and STTR ask.
    User,
}

/// What an access that the host does atomically is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Load,
    Store,
    Both,
}

impl Cpu {
    #[inline(always)]
    pub(crate) fn probe_read<T>(&self, va: u64, user: bool) -> Option<*mut T> {
        let (tlb, tag) = if user { (self.utlb, self.utag) } else { (self.tlb, self.tag) };
        // SAFETY: both pointers are to the first of TLB_SIZE entries that live as long as the CPU.
        let e = unsafe { &*tlb.add(index(va)) };
        let want = va.wrapping_add(size_of::<T>() as u64 - 1) & !0xfff | tag;
        (e.read == want).then(|| e.addend.wrapping_add(va) as usize as *mut T)
    }

    #[inline(always)]
    pub(crate) fn probe_write<T>(&self, va: u64, user: bool) -> Option<*mut T> {
        let (tlb, tag) = if user { (self.utlb, self.utag) } else { (self.tlb, self.tag) };
        // SAFETY: both pointers are to the first of TLB_SIZE entries that live as long as the CPU.
        let e = unsafe { &*tlb.add(index(va)) };
        let want = va.wrapping_add(size_of::<T>() as u64 - 1) & !0xfff | tag;
        (e.write == want).then(|| e.addend.wrapping_add(va) as usize as *mut T)
    }

    /// Loads, when the TLB knows the page.
    #[inline(always)]
    pub(crate) fn load_fast<T: Copy>(&self, va: u64, user: bool) -> Option<T> {
        let p = self.probe_read::<T>(va, user)?;
        // SAFETY: a TLB hit is `size_of::<T>()` bytes inside one page of mapped guest memory. Other vCPUs and devices
        // may write there meanwhile; on the hosts we run on this is one machine instruction that yields some value.
        Some(unsafe { p.read_unaligned() })
    }

    /// Stores, when the TLB knows the page; false when it does not.
    #[inline(always)]
    pub(crate) fn store_fast<T: Copy>(&self, va: u64, value: T, user: bool) -> bool {
        let Some(p) = self.probe_write::<T>(va, user) else { return false };
        // SAFETY: as in `load_fast`, and the TLB says that the page is mapped writable.
        unsafe { p.write_unaligned(value) };
        true
    }

    /// Translates for data, filling the TLB; raises the fault. `None` when an exception has been taken.
    fn translate(&mut self, va: u64, write: bool, user: As) -> Option<(u64, Option<*mut u8>)> {
        let el0 = user == As::User || self.state.el == 0;
        let access = if write { Access::Write } else { Access::Read };
        match self.walk(va, access, el0) {
            Ok(t) => {
                let host = self.host(t.pa, write);
                if let Some(host) = host
                    && self.state.sys.sctlr & 2 == 0
                    && !self.debug.watches_page(va)
                {
                    let writable = t.writable && self.host(t.pa, true).is_some();
                    let tag = va & !0xfff | if el0 { self.utag } else { EL1_TAG };
                    let tlb = if el0 { &mut self.tlbs[0] } else { &mut self.tlbs[1] };
                    tlb.filled[index(va) / 64] |= 1 << (index(va) % 64);
                    let e = &mut tlb.entries[index(va)];
                    // The other tag stays when it is for the same page in the same place.
                    let addend = (host as u64).wrapping_sub(va);
                    if e.addend != addend {
                        *e = TlbEntry::EMPTY;
                    }
                    e.addend = addend;
                    let size = if t.level < 2 { 3 } else { u64::from(t.level < 3) };
                    e.page = t.pa & !0xfff | size;
                    if write {
                        e.write = tag;
                        // Both tags of an entry are for one page, so that what is noted of it holds for both.
                        if e.read != tag {
                            e.read = NOTHING;
                        }
                    } else {
                        e.read = tag;
                        // One fill for both where a write would need no more than this walk says.
                        if writable {
                            e.write = tag;
                        } else {
                            e.write = NOTHING;
                        }
                    }
                    let (word, bit) = block_bit(va);
                    match size {
                        0 => {}
                        1 => tlb.blocks[half(va)][word] |= bit,
                        _ => tlb.blocks[half(va)] = [u64::MAX; BLOCK_WORDS],
                    }
                    tlb.low |= half(va) == 0;
                }
                Some((t.pa, host))
            }
            Err(fault) => {
                self.data_abort(va, fault, write);
                None
            }
        }
    }

    /// The host's address of guest physical memory, when something is mapped there and has come.
    pub(crate) fn host(&self, pa: u64, write: bool) -> Option<*mut u8> {
        if !self.vm.is_present(pa) {
            return None;
        }
        // The copy can lack what has been added since, but holds nothing that is gone: see `Request::TlbAll`.
        let known = self.memory.iter().find(|r| r.holds(pa));
        match known {
            Some(r) => r.host(pa, write),
            None => self.vm.region(pa)?.host(pa, write),
        }
    }

    /// Checks alignment where SCTLR_EL1.A or the instruction asks for it. False when an exception has been taken.
    pub(crate) fn check_align(&mut self, va: u64, size: u64, write: bool, always: bool) -> bool {
        if va & (size - 1) != 0 && (always || self.state.sys.sctlr & 2 != 0) {
            self.data_abort(va, Fault::ALIGNMENT, write);
            return false;
        }
        true
    }

    /// Reads `buf.len()` bytes, of which `size` make one element; devices get one access of up to 8 bytes, with
    /// `iss` for the machine to finish it by. `None` when the instruction is not to be finished here.
    pub(crate) fn read_slow(
        &mut self,
        o: P,
        va: u64,
        buf: &mut [u8],
        size: u64,
        iss: u32,
        user: As,
    ) -> Option<()> {
        self.sync(o);
        if !self.check_align(va, size, false, false) {
            return None;
        }
        let len = buf.len() as u64;
        let first = (4096 - (va & 0xfff)).min(len);
        let (pa, host) = self.translate(va, false, user)?;
        if first == len {
            self.watch(va, len, true, false, user == As::User)?;
        }
        let Some(host) = host else {
            let v = self.device(pa, va, len, None, iss)?;
            buf.copy_from_slice(&v.to_le_bytes()[..buf.len()]);
            return Some(());
        };
        // SAFETY: `first` bytes from here are in one mapped page of guest memory.
        unsafe { std::ptr::copy_nonoverlapping(host, buf.as_mut_ptr(), first as usize) };
        if first < len {
            let second = va.wrapping_add(first);
            let (pa, host) = self.translate(second, false, user)?;
            self.watch(va, len, true, false, user == As::User)?;
            let Some(host) = host else {
                return self.device(pa, second, len, None, 0).and(None);
            };
            // SAFETY: the rest is at the start of one mapped page of guest memory.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    host,
                    buf.as_mut_ptr().add(first as usize),
                    (len - first) as usize,
                );
            }
        }
        Some(())
    }

    /// Writes; see [`Cpu::read_slow`].
    pub(crate) fn write_slow(
        &mut self,
        o: P,
        va: u64,
        buf: &[u8],
        size: u64,
        iss: u32,
        user: As,
    ) -> Option<()> {
        self.sync(o);
        if !self.check_align(va, size, true, false) {
            return None;
        }
        let len = buf.len() as u64;
        let first = (4096 - (va & 0xfff)).min(len);
        let (pa, host) = self.translate(va, true, user)?;
        if first == len {
            self.watch(va, len, false, true, user == As::User)?;
        }
        let Some(host) = host else {
            let mut value = [0; 8];
            if buf.len() <= 8 {
                value[..buf.len()].copy_from_slice(buf);
            }
            self.device(pa, va, len, Some(u64::from_le_bytes(value)), iss)?;
            return Some(());
        };
        let mut rest = None;
        if first < len {
            let second = va.wrapping_add(first);
            match self.translate(second, true, user)? {
                (_, Some(host)) => rest = Some(host),
                (pa, None) => return self.device(pa, second, len, None, 0).and(None),
            }
            self.watch(va, len, false, true, user == As::User)?;
        }
        // SAFETY: `first` bytes from here are in one mapped, writable page of guest memory.
        unsafe { std::ptr::copy_nonoverlapping(buf.as_ptr(), host, first as usize) };
        if let Some(rest) = rest {
            // SAFETY: likewise for what is left, at the start of the next page.
            unsafe {
                std::ptr::copy_nonoverlapping(buf.as_ptr().add(first as usize), rest, (len - first) as usize);
            }
        }
        Some(())
    }

    /// DC ZVA of the block around `va`, which is what faults name (D24.2.41, FAR_EL1). `None` as for the others.
    pub(crate) fn zero_slow(&mut self, o: P, va: u64) -> Option<()> {
        self.sync(o);
        let (pa, host) = self.translate(va, true, As::Current)?;
        let offset = va & (ZVA_BYTES - 1);
        self.watch(va - offset, ZVA_BYTES, false, true, false)?;
        let Some(host) = host else {
            return self.device(pa, va, ZVA_BYTES, Some(0), 0).map(drop);
        };
        // SAFETY: the block is aligned to its size, and so in the mapped, writable page that `host` is in.
        unsafe { std::ptr::write_bytes(host.sub(offset as usize), 0, ZVA_BYTES as usize) };
        Some(())
    }

    /// An address for an atomic access of `size` bytes, aligned. `None` when the instruction is not to be finished.
    pub(crate) fn atomic_ptr(&mut self, o: P, va: u64, size: u64, kind: Kind) -> Option<*mut u8> {
        self.sync(o);
        let write = kind != Kind::Load;
        // WnR: of an access that does both, what a read would meet too is a read's (D24.2.40).
        if !self.check_align(va, size, kind == Kind::Store, true) {
            return None;
        }
        if kind == Kind::Both
            && let Err(fault) = self.walk(va, Access::Read, self.state.el == 0)
        {
            self.data_abort(va, fault, false);
            return None;
        }
        let (pa, host) = self.translate(va, write, As::Current)?;
        self.watch(va, size, kind != Kind::Store, write, false)?;
        if host.is_none() {
            self.abort_exit(pa, va, 0, write);
        }
        let host = host?;
        Some(host)
    }

    /// Bytes of an instruction with several registers or a size of its own.
    pub(crate) fn read_bytes(&mut self, o: P, va: u64, buf: &mut [u8], size: u64) -> Option<()> {
        if let Some(p) = self.probe_read::<u8>(va, false)
            && (va & 0xfff) as usize + buf.len() <= 4096
        {
            // SAFETY: a TLB hit, and all the bytes are in its page.
            unsafe { std::ptr::copy_nonoverlapping(p, buf.as_mut_ptr(), buf.len()) };
            return Some(());
        }
        self.read_slow(o, va, buf, size, 0, As::Current)
    }

    /// See [`Cpu::read_bytes`].
    pub(crate) fn write_bytes(&mut self, o: P, va: u64, buf: &[u8], size: u64) -> Option<()> {
        if let Some(p) = self.probe_write::<u8>(va, false)
            && (va & 0xfff) as usize + buf.len() <= 4096
        {
            // SAFETY: a TLB hit on a writable page, and all the bytes are in it.
            unsafe { std::ptr::copy_nonoverlapping(buf.as_ptr(), p, buf.len()) };
            return Some(());
        }
        self.write_slow(o, va, buf, size, 0, As::Current)
    }

    /// An access to what is no memory: the interrupt controller's registers, or an exit.
    fn device(&mut self, pa: u64, va: u64, len: u64, write: Option<u64>, iss: u32) -> Option<u64> {
        if len <= 8
            && let Some(v) = self.vm.gic.mmio(self.index, pa, len as usize, write)
        {
            return Some(v);
        }
        self.abort_exit(pa, va, iss, write.is_some());
        None
    }

    fn abort_exit(&mut self, pa: u64, va: u64, iss: u32, write: bool) {
        self.fuel -= self.reached;
        // EC of a data abort from a lower level, IL; translation fault at level 3 (ESR_EL2).
        let syndrome = 0x24 << 26 | 1 << 25 | u64::from(iss) | u64::from(write) << 6 | 7;
        self.exit = Some(Exit::DataAbort(DataAbort { syndrome, virtual_address: va, physical_address: pa }));
    }

    /// Notes where the instruction is, before it may fault.
    pub(crate) fn sync(&mut self, o: P) {
        self.state.pc = self.page | o.off();
        self.reached = o.n();
    }
}

/// Reads a naturally aligned descriptor.
pub(crate) fn read_descriptor(host: *mut u8) -> u64 {
    // SAFETY: descriptors are eight bytes, aligned, inside one mapped page; others access them atomically too.
    unsafe { AtomicU64::from_ptr(host.cast()) }.load(Ordering::Relaxed)
}
