//! Blocks of operations, and how a block is decoded.

use super::handlers::pairs::Half;
use super::handlers::{system as sys, vector};
use super::op::{Handler, Op};
use crate::isa;

/// Instructions of one block at most.
pub(crate) const BLOCK_MAX: usize = 64;

/// Branches that one block follows at most.
const MOST_FOLLOWED: usize = 8;

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

/// A handler, and how it goes with those of its neighbours.
#[derive(Clone, Copy)]
pub(super) struct Form {
    pub f: Handler,
    pub half: Option<Half>,
    pub last: Last,
}

/// A block being decoded.
#[derive(Default)]
pub(crate) struct Block {
    pub ops: Vec<Op>,
    /// Offset in the page of the instruction at hand.
    off: u16,
    n: u16,
    pub(super) last: Last,
    now: Last,
    /// What the instruction at hand can be in a pair.
    half: Option<Half>,
    fp_checked: bool,
    /// Each operation is for one instruction, by itself.
    plain: bool,
    /// Branches inside the page are followed.
    follows: bool,
    /// Operations up to each that was followed, and where it went.
    followed: Vec<(usize, usize)>,
    /// Operations up to the last that branches to the begin.
    around: usize,
    /// Which operation checks that FP is enabled.
    pub check: Option<usize>,
    pub end: End,
    /// Whether [`Block::branches`] is kept.
    pub notes_branches: bool,
    /// Which operations go on in the page at an offset, by themselves.
    pub branches: Vec<usize>,
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

/// Whether a block goes on after an instruction.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    On,
    End,
}

impl Block {
    /// Decodes from offset `first` of a page on; `fetch` reads the word at an offset.
    pub(crate) fn decode(&mut self, first: usize, fetch: impl FnMut(usize) -> u32) {
        self.decode_up_to(BLOCK_MAX, first, fetch);
    }

    /// The same with an operation for each instruction, none of which does its neighbour's work. Where it `follows`,
    /// what a B inside the page goes to comes behind it, so that a loop of several parts is one block.
    pub(crate) fn decode_plain(&mut self, first: usize, follows: bool, fetch: impl FnMut(usize) -> u32) {
        self.plain = true;
        self.follows = follows;
        self.decode(first, fetch);
        self.plain = false;
        self.follows = false;
        // What is followed no branch to the begin comes behind would only be there twice.
        if let Some((cut, _)) = self.followed.iter().find(|(cut, _)| *cut > self.around) {
            self.ops.truncate(*cut);
            self.check = self.check.filter(|check| check < cut);
            self.end = End::Instruction;
        }
    }

    /// The same for `most` instructions at most.
    pub(crate) fn decode_up_to(&mut self, most: usize, first: usize, mut fetch: impl FnMut(usize) -> u32) {
        self.ops.clear();
        self.branches.clear();
        self.check = None;
        self.end = End::Instruction;
        self.last = Last::Other;
        let mut half: Option<Half> = None;
        self.fp_checked = false;
        self.n = 0;
        let mut off = first;
        self.followed.clear();
        self.around = 0;
        loop {
            self.off = off as u16;
            self.n += 1;
            self.now = Last::Other;
            let mark = self.ops.len();
            let word = fetch(off);
            self.half = None;
            let flow = isa::decode_with(word, self.off, |insn| self.lower(insn, word));
            let flow = flow.unwrap_or_else(|| self.undefined());
            self.last = if self.plain { Last::Other } else { self.now };
            if self.follows && isa::branch_in_page(word, self.off) == Some(first) {
                self.around = self.ops.len();
            }
            if flow == Flow::End {
                if self.follows
                    && (self.n as usize) < most
                    && self.followed.len() < MOST_FOLLOWED
                    && isa::always_branches(word)
                    && let Some(to) = isa::branch_in_page(word, self.off)
                    && to != first
                    && self.followed.iter().all(|(_, known)| *known != to)
                {
                    self.followed.push((self.ops.len(), to));
                    off = to;
                    continue;
                }
                return;
            }
            half = match (half, self.half) {
                (Some(first), Some(second)) if !self.plain => {
                    self.ops[mark - 1].f = first.and(second);
                    None
                }
                (_, second) => second,
            };
            off += 4;
            if off >= 4096 {
                self.end = End::FallFar;
                return self.op(sys::fall_far, [0; 4], 0);
            }
            // Back at the begin, from before it.
            let again = !self.followed.is_empty() && off == first;
            if self.n as usize >= most || again {
                self.end = End::Fall;
                let (lo, hi) = (off as u8, (off >> 8) as u8);
                self.note_branch();
                self.op(sys::fall, [0, 0, lo, hi], 0);
                if again {
                    self.around = self.ops.len();
                }
                return;
            }
        }
    }

    pub(super) fn op(&mut self, f: Handler, [a, b, c, d]: [u8; 4], imm: u64) {
        self.ops.push(Op { f, a, b, c, d, off: self.off, n: self.n, imm });
    }

    /// The next operation goes on in the page.
    pub(super) fn note_branch(&mut self) {
        if self.notes_branches {
            self.branches.push(self.ops.len());
        }
    }

    /// Adds an operation of this form.
    pub(super) fn form(&mut self, form: &Form, operands: [u8; 4], imm: u64) -> Flow {
        self.half = form.half;
        self.now = form.last;
        self.op(form.f, operands, imm);
        Flow::On
    }

    /// Puts the FP trap before the first operation of the block that needs it.
    pub(super) fn fp(&mut self) {
        if !self.fp_checked {
            self.fp_checked = true;
            self.check = Some(self.ops.len());
            self.op(vector::check, [0; 4], 0);
        }
    }
}

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
