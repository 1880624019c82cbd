//! Branches (C4.1.94).

use super::{Block, Decoded, END, Last, ON, bits, sext, system, z};
use crate::exec::{branch as x, system as sys};
use crate::op::Handler;

/// One handler for each condition.
macro_rules! conditions {
    ($cond:expr, $($f:ident)::+ $(, $k:tt)*) => {
        match $cond {
            0 => $($f)::+::<$($k,)* 0>,
            1 => $($f)::+::<$($k,)* 1>,
            2 => $($f)::+::<$($k,)* 2>,
            3 => $($f)::+::<$($k,)* 3>,
            4 => $($f)::+::<$($k,)* 4>,
            5 => $($f)::+::<$($k,)* 5>,
            6 => $($f)::+::<$($k,)* 6>,
            7 => $($f)::+::<$($k,)* 7>,
            8 => $($f)::+::<$($k,)* 8>,
            9 => $($f)::+::<$($k,)* 9>,
            10 => $($f)::+::<$($k,)* 10>,
            11 => $($f)::+::<$($k,)* 11>,
            12 => $($f)::+::<$($k,)* 12>,
            13 => $($f)::+::<$($k,)* 13>,
            _ => $($f)::+::<$($k,)* 14>,
        }
    };
}

impl Block {
    /// Where a branch by `distance` goes: whether out of the page, and the operands that say where.
    fn target(&self, distance: i64) -> (bool, u8, u8, u64) {
        let to = i64::from(self.off) + distance;
        if (0..4096).contains(&to) { (false, to as u8, (to >> 8) as u8, 0) } else { (true, 0, 0, to as u64) }
    }

    fn branch(&mut self, near: Handler, far: Handler, a: u8, b: u8, distance: i64) {
        let (is_far, lo, hi, imm) = self.target(distance);
        self.op(if is_far { far } else { near }, a, b, lo, hi, imm);
    }

    pub(super) fn branch_or_system(&mut self, i: u32) -> Decoded {
        match bits(i, 31, 29) {
            0 | 4 => {
                let distance = sext(bits(i, 25, 0), 26) * 4;
                if i >> 31 == 0 {
                    self.branch(x::b, x::b_far, 0, 0, distance);
                } else {
                    self.branch(x::bl, x::bl_far, 0, 0, distance);
                }
                END
            }
            1 | 5 if bits(i, 25, 25) == 0 => {
                let distance = sext(bits(i, 23, 5), 19) * 4;
                let (near, far): (Handler, Handler) = match (i >> 31 == 1, bits(i, 24, 24) == 1) {
                    (false, false) => (x::cbz::<u32, false, false>, x::cbz::<u32, true, false>),
                    (false, true) => (x::cbz::<u32, false, true>, x::cbz::<u32, true, true>),
                    (true, false) => (x::cbz::<u64, false, false>, x::cbz::<u64, true, false>),
                    (true, true) => (x::cbz::<u64, false, true>, x::cbz::<u64, true, true>),
                };
                self.branch(near, far, z(i), 0, distance);
                ON
            }
            1 | 5 => {
                let distance = sext(bits(i, 18, 5), 14) * 4;
                let bit = (bits(i, 31, 31) << 5 | bits(i, 23, 19)) as u8;
                let (near, far): (Handler, Handler) = if bits(i, 24, 24) == 0 {
                    (x::tbz::<false, false>, x::tbz::<true, false>)
                } else {
                    (x::tbz::<false, true>, x::tbz::<true, true>)
                };
                self.branch(near, far, z(i), bit, distance);
                ON
            }
            2 if bits(i, 25, 24) == 0 && bits(i, 4, 4) == 0 => self.conditional(i),
            6 if bits(i, 25, 24) == 0 => self.exception(i),
            6 if bits(i, 25, 22) == 0b0100 => system::system(self, i),
            6 if bits(i, 25, 25) == 1 => self.indirect(i),
            _ => None,
        }
    }

    fn conditional(&mut self, i: u32) -> Decoded {
        let distance = sext(bits(i, 23, 5), 19) * 4;
        let cond = bits(i, 3, 0);
        if cond >= 14 {
            self.branch(x::b, x::b_far, 0, 0, distance);
            return END;
        }
        let (far, ..) = self.target(distance);
        // The comparison before takes the branch with it; its own operation stays behind as the operands.
        let merged: Option<Handler> = match (self.last, far) {
            (Last::SubsImm { wide: false }, false) => Some(conditions!(cond, x::subs_imm_b, u32, false)),
            (Last::SubsImm { wide: false }, true) => Some(conditions!(cond, x::subs_imm_b, u32, true)),
            (Last::SubsImm { wide: true }, false) => Some(conditions!(cond, x::subs_imm_b, u64, false)),
            (Last::SubsImm { wide: true }, true) => Some(conditions!(cond, x::subs_imm_b, u64, true)),
            (Last::Subs { wide: false }, false) => Some(conditions!(cond, x::subs_b, u32, false)),
            (Last::Subs { wide: false }, true) => Some(conditions!(cond, x::subs_b, u32, true)),
            (Last::Subs { wide: true }, false) => Some(conditions!(cond, x::subs_b, u64, false)),
            (Last::Subs { wide: true }, true) => Some(conditions!(cond, x::subs_b, u64, true)),
            _ => None,
        };
        if let Some(f) = merged
            && let Some(op) = self.ops.last_mut()
        {
            op.f = f;
        }
        let near = conditions!(cond, x::b_cond, false);
        let far = conditions!(cond, x::b_cond, true);
        self.branch(near, far, 0, 0, distance);
        ON
    }

    fn exception(&mut self, i: u32) -> Decoded {
        let imm = u64::from(bits(i, 20, 5));
        let f: Handler = match (bits(i, 23, 21), bits(i, 4, 0)) {
            (0, 1) => sys::svc,
            (0, 2) => sys::hvc,
            (0, 3) => sys::smc,
            (1, 0) => sys::brk,
            _ => return None,
        };
        self.op(f, 0, 0, 0, 0, imm);
        END
    }

    fn indirect(&mut self, i: u32) -> Decoded {
        // Pointer authentication is not there, so only the plain forms.
        if bits(i, 20, 10) != 0b11111_000000 || bits(i, 4, 0) != 0 {
            return None;
        }
        let f: Handler = match bits(i, 24, 21) {
            0 | 2 => x::br,
            1 => x::blr,
            4 if bits(i, 9, 5) == 31 => sys::eret,
            _ => return None,
        };
        self.op(f, 0, z(i >> 5), 0, 0, 0);
        END
    }
}
