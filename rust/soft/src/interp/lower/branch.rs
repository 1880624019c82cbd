//! Branches. `to` counts from the start of the page.

use super::Handler;
use crate::interp::block::{Block, Flow, Last};
use crate::interp::handlers::branch as x;
use crate::isa::insn::Reg;

/// Handlers by condition: inside the page and out of it.
macro_rules! conditions {
    ($($f:ident)::+ $(, $k:ty)*) => {
        conditions!(@ [$($f)::+] [$($k)*] 0 1 2 3 4 5 6 7 8 9 10 11 12 13)
    };
    (@ $f:tt $k:tt $($cond:literal)*) => {
        [[$(conditions!(@one $f $k false $cond)),*], [$(conditions!(@one $f $k true $cond)),*]]
    };
    (@one [$($f:ident)::+] [$($k:ty)*] $far:literal $cond:literal) => {
        $($f)::+::<$($k,)* $far, $cond>
    };
}

type ByCondition = [[Handler; 14]; 2];

static B_COND: ByCondition = conditions!(x::b_cond);
/// With the comparison before: of 32 bits, of 64.
static SUBS_IMM_B: [ByCondition; 2] = [conditions!(x::subs_imm_b, u32), conditions!(x::subs_imm_b, u64)];
static SUBS_B: [ByCondition; 2] = [conditions!(x::subs_b, u32), conditions!(x::subs_b, u64)];

fn is_far(to: i64) -> bool {
    !(0..4096).contains(&to)
}

impl Block {
    #[inline(always)]
    fn branch(&mut self, [near, far]: [Handler; 2], a: u8, b: u8, to: i64) {
        if is_far(to) {
            self.op(far, [a, b, 0, 0], to as u64);
        } else {
            self.note_branch();
            self.op(near, [a, b, to as u8, (to >> 8) as u8], 0);
        }
    }

    pub(super) fn b(&mut self, link: bool, to: i64) -> Flow {
        self.branch(if link { [x::bl, x::bl_far] } else { [x::b, x::b_far] }, 0, 0, to);
        Flow::End
    }

    pub(super) fn b_cond(&mut self, cond: u8, to: i64) -> Flow {
        let cond = usize::from(cond);
        // AL, and NV, which is the same.
        if cond >= 14 {
            return self.b(false, to);
        }
        let far = usize::from(is_far(to));
        // The comparison before takes the branch with it; its own operation stays behind as the operands.
        let merged = match self.last {
            Last::SubsImm { wide } => Some(SUBS_IMM_B[usize::from(wide)][far][cond]),
            Last::Subs { wide } => Some(SUBS_B[usize::from(wide)][far][cond]),
            Last::Other => None,
        };
        if let Some(f) = merged
            && let Some(op) = self.ops.last_mut()
        {
            op.f = f;
        }
        self.branch([B_COND[0][cond], B_COND[1][cond]], 0, 0, to);
        Flow::On
    }

    pub(super) fn cbz(&mut self, wide: bool, nonzero: bool, t: Reg, to: i64) -> Flow {
        static BY: [[[Handler; 2]; 2]; 2] = [
            [
                [x::cbz::<u32, false, false>, x::cbz::<u32, true, false>],
                [x::cbz::<u32, false, true>, x::cbz::<u32, true, true>],
            ],
            [
                [x::cbz::<u64, false, false>, x::cbz::<u64, true, false>],
                [x::cbz::<u64, false, true>, x::cbz::<u64, true, true>],
            ],
        ];
        self.branch(BY[usize::from(wide)][usize::from(nonzero)], t, 0, to);
        Flow::On
    }

    pub(super) fn tbz(&mut self, bit: u8, nonzero: bool, t: Reg, to: i64) -> Flow {
        let f: [Handler; 2] = if nonzero {
            [x::tbz::<false, true>, x::tbz::<true, true>]
        } else {
            [x::tbz::<false, false>, x::tbz::<true, false>]
        };
        self.branch(f, t, bit, to);
        Flow::On
    }

    pub(super) fn indirect(&mut self, link: bool, n: Reg) -> Flow {
        self.end(if link { x::blr } else { x::br }, 0, n, 0)
    }
}
