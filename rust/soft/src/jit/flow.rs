//! What is known of a block's instructions before any of them is translated.

use super::Input;
use crate::interp::block::End;
use crate::isa::effects::Registers;
use crate::isa::insn::{Insn, Reg};

/// Before each operation, and behind the last one, whether the flags that there are may be looked at: by an
/// instruction, or because the block may be left there.
pub(super) fn flags_live(input: &Input) -> Vec<bool> {
    let mut live = vec![true; input.ops.len() + 1];
    for at in (0..input.ops.len() - 1).rev() {
        let (insn, word) = (input.insns[at], input.words[at]);
        if matches!(insn, Insn::B { .. }) {
            // What it goes to comes next.
            live[at] = live[at + 1];
            continue;
        }
        live[at] = if Some(at) == input.check || !insn.is_plain(word) || insn.reads(word).flags {
            true
        } else {
            !insn.writes(word).flags && live[at + 1]
        };
    }
    live
}

/// The registers of a block that is a loop, by their order of use.
pub(super) struct Around {
    /// Those that it reads before it writes them.
    pub general: Vec<Reg>,
    pub vector: Vec<Reg>,
    pub written: Registers,
}

/// What a block reads and writes that branches to its own begin; `None` for one that does not.
pub(super) fn around(input: &Input) -> Option<Around> {
    let around = |insn: &Insn| match *insn {
        Insn::Bcond { to, .. } | Insn::Cbz { to, .. } | Insn::Tbz { to, .. } => input.goes_around(to),
        Insn::B { link, to } => !link && input.goes_around(to),
        _ => false,
    };
    let falls = input.end == End::Fall && input.goes_around(input.falls_to());
    if !falls && !input.insns.iter().any(around) {
        return None;
    }
    let (mut general, mut vector) = (Vec::new(), Vec::new());
    let mut written = Registers::NONE;
    for (insn, word) in input.insns.iter().zip(input.words) {
        let reads = insn.reads(*word);
        // What is not translated finds all in memory: it is nothing to go by.
        if reads.vector != u32::MAX {
            let first = |g: &Reg| reads.has(*g) && !written.has(*g) && !general.contains(g);
            let new: Vec<Reg> = (0..32).filter(first).collect();
            general.extend(new);
            let first = |g: &Reg| reads.has_vector(*g) && !written.has_vector(*g) && !vector.contains(g);
            let new: Vec<Reg> = (0..32).filter(first).collect();
            vector.extend(new);
        }
        written = written.and(insn.writes(*word));
    }
    Some(Around { general, vector, written })
}

/// Which registers each operation of the block reads and writes, one bit each.
#[derive(Clone, Copy, Default)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "one back end looks at it"))]
struct Use {
    reads: u64,
    writes: u64,
}

/// What the rest of the block does with registers.
#[derive(Default)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "one back end looks at it"))]
pub(super) struct Uses {
    general: Vec<Use>,
    vector: Vec<Use>,
    /// The operation at hand.
    pub at: usize,
    /// Whether the block comes again behind its end.
    pub around: bool,
}

#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "one back end looks at it"))]
impl Uses {
    pub(super) fn new(input: &Input) -> Self {
        let (mut general, mut vector) = (Vec::new(), Vec::new());
        for (insn, word) in input.insns.iter().zip(input.words) {
            let (reads, writes) = (insn.reads(*word), insn.writes(*word));
            general.push(Use { reads: reads.general, writes: writes.general });
            vector.push(Use { reads: reads.vector.into(), writes: writes.vector.into() });
        }
        Self { general, vector, at: 0, around: false }
    }

    /// Of these guest registers one that is wanted late or not at all; `clean` are those that memory has.
    pub(super) fn last(&self, vector: bool, of: u64, clean: u64) -> u8 {
        let uses = if vector { &self.vector } else { &self.general };
        let rest = || uses[self.at..].iter().chain(if self.around { &uses[..self.at] } else { &[] });
        // What nobody reads before it is written costs nothing.
        let mut idle = clean;
        for each in rest() {
            idle &= !each.reads;
            if idle & each.writes != 0 {
                return (idle & each.writes).trailing_zeros() as u8;
            }
        }
        if idle != 0 {
            return idle.trailing_zeros() as u8;
        }
        let mut left = of;
        for each in rest() {
            let later = left & !(each.reads | each.writes);
            if later == 0 {
                break;
            }
            left = later;
        }
        left.trailing_zeros() as u8
    }
}
