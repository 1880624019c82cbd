//! From instruction words to operations (Arm ARM, C4.1).

mod alu;
mod branch;
mod memory;
mod pairs;
mod system;

pub(crate) use alu::bit_masks;

use crate::Regs;
use crate::exec::pairs::Half;
use crate::exec::{system as sys, vector};
use crate::fp;
use crate::op::{Handler, Op};

/// Instructions of one block at most.
pub(crate) const BLOCK_MAX: usize = 64;

/// What the operation before was, for those that merge with their successor.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Last {
    #[default]
    Other,
    SubsImm {
        wide: bool,
    },
    Subs {
        wide: bool,
    },
}

/// A block being decoded.
#[derive(Default)]
pub(crate) struct Block {
    pub ops: Vec<Op>,
    /// Offset in the page of the instruction at hand.
    off: u16,
    n: u16,
    last: Last,
    now: Last,
    fp_checked: bool,
    /// Each operation is for one instruction, by itself.
    plain: bool,
    /// Which operation checks that FP is enabled.
    pub check: Option<usize>,
    pub end: End,
}

/// What a block ends with.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum End {
    /// An instruction after which there is no going on.
    #[default]
    Instruction,
    /// An operation that goes on at the next instruction, in this page or the next.
    Fall,
    FallFar,
}

/// Register number as a source where 31 is zero.
pub(crate) fn z(n: u32) -> u8 {
    if n & 31 == 31 { Regs::ZERO as u8 } else { n as u8 & 31 }
}

/// Register number as a destination where 31 is nothing.
pub(crate) fn d(n: u32) -> u8 {
    if n & 31 == 31 { Regs::SINK as u8 } else { n as u8 & 31 }
}

/// Register number where 31 is the stack pointer.
pub(crate) fn s(n: u32) -> u8 {
    n as u8 & 31
}

/// Bits `hi` to `lo`.
pub(crate) fn bits(i: u32, hi: u32, lo: u32) -> u32 {
    i >> lo & (u32::MAX >> (31 - (hi - lo)))
}

/// `bits` low bits of `v`, sign-extended.
pub(crate) fn sext(v: u32, bits: u32) -> i64 {
    i64::from((v << (32 - bits)) as i32 >> (32 - bits))
}

/// Whether a block goes on after an instruction.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    On,
    End,
}

/// `None` stands for an unallocated encoding.
pub(super) type Decoded = Option<Flow>;

pub(super) const ON: Decoded = Some(Flow::On);
pub(super) const END: Decoded = Some(Flow::End);

impl Block {
    /// Decodes from offset `first` of a page on; `fetch` reads the word at an offset.
    pub fn decode(&mut self, first: usize, fetch: impl FnMut(usize) -> u32) {
        self.decode_up_to(BLOCK_MAX, first, fetch);
    }

    /// The same with an operation for each instruction, none of which does its neighbour's work.
    pub fn decode_plain(&mut self, first: usize, fetch: impl FnMut(usize) -> u32) {
        self.plain = true;
        self.decode(first, fetch);
        self.plain = false;
    }

    /// The same for `most` instructions at most.
    pub fn decode_up_to(&mut self, most: usize, first: usize, mut fetch: impl FnMut(usize) -> u32) {
        self.ops.clear();
        self.check = None;
        self.end = End::Instruction;
        self.last = Last::Other;
        let mut half: Option<Half> = None;
        self.fp_checked = false;
        self.n = 0;
        let mut off = first;
        loop {
            self.off = off as u16;
            self.n += 1;
            self.now = Last::Other;
            let mark = self.ops.len();
            let insn = fetch(off);
            let flow = self.instruction(insn).unwrap_or_else(|| {
                self.ops.truncate(mark);
                self.op(sys::undefined, 0, 0, 0, 0, 0);
                Flow::End
            });
            self.last = if self.plain { Last::Other } else { self.now };
            if flow == Flow::End {
                return;
            }
            half = match (half, pairs::half(insn)) {
                (Some(first), Some(second)) if !self.plain => {
                    self.ops[mark - 1].f = first.and(second);
                    None
                }
                (_, second) => second,
            };
            off += 4;
            if off >= 4096 {
                self.end = End::FallFar;
                return self.op(sys::fall_far, 0, 0, 0, 0, 0);
            }
            if self.n as usize >= most {
                self.end = End::Fall;
                let (lo, hi) = (off as u8, (off >> 8) as u8);
                return self.op(sys::fall, 0, 0, lo, hi, 0);
            }
        }
    }

    fn op(&mut self, f: Handler, a: u8, b: u8, c: u8, d: u8, imm: u64) {
        self.ops.push(Op { f, a, b, c, d, off: self.off, n: self.n, imm });
    }

    fn instruction(&mut self, i: u32) -> Decoded {
        match bits(i, 28, 25) {
            0b1000 | 0b1001 => self.immediate(i),
            0b1010 | 0b1011 => self.branch_or_system(i),
            0b0100 | 0b0110 | 0b1100 | 0b1110 => self.load_store(i),
            0b0101 | 0b1101 => self.register(i),
            0b0111 | 0b1111 => self.floating(i),
            _ => None,
        }
    }

    /// Puts the FP trap before the first operation of the block that needs it.
    fn fp(&mut self) {
        if !self.fp_checked {
            self.fp_checked = true;
            self.check = Some(self.ops.len());
            self.op(vector::check, 0, 0, 0, 0, 0);
        }
    }

    fn floating(&mut self, i: u32) -> Decoded {
        let f = fp::decode(i)?;
        self.fp();
        let [a, b, c, d] = i.to_le_bytes();
        // FCMP, FCCMP, FCSEL and FJCVTZS, with some neighbours.
        let flags = bits(i, 28, 24) == 0b11110 && bits(i, 21, 21) == 1 && {
            let op = bits(i, 15, 10);
            op & 1 == 1 || op == 0 || op == 0b1000
        };
        let process = if flags { vector::process_flags } else { vector::process };
        self.op(process, a, b, c, d, f as usize as u64);
        ON
    }
}

/// Picks the 64-bit or the 32-bit form of a handler.
macro_rules! wide {
    ($sf:expr, $($f:ident)::+) => {
        if $sf { $($f)::+::<u64> } else { $($f)::+::<u32> }
    };
    ($sf:expr, $($f:ident)::+, $($k:expr),+) => {
        if $sf { $($f)::+::<u64, $({ $k }),+> } else { $($f)::+::<u32, $({ $k }),+> }
    };
}
pub(super) use wide;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_word_breaks_the_decoder() {
        let mut block = Block::default();
        let mut word = 1u32;
        for _ in 0..2_000_000 {
            word = word.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let w = word.rotate_right(7) ^ word;
            block.decode(4092, |_| w);
            assert!(!block.ops.is_empty() && block.ops.len() <= 3);
        }
    }

    #[test]
    fn blocks_end_with_the_page_or_their_length() {
        let mut block = Block::default();
        block.decode(4000, |_| 0xd503_201f);
        assert_eq!(block.ops.len(), 24 + 1);
        block.decode(0, |_| 0xd503_201f);
        assert_eq!(block.ops.len(), BLOCK_MAX + 1);
    }
}
