//! Two operations in one: the most frequent neighbours run without a jump between them.
//!
//! Only the first operation of a pair gets the pair's handler. The second keeps its own, and runs by it when the first
//! could not be finished at once (its page is not in the TLB, say).

use super::alu::{self, apply};
use super::memory::{self as m, OFFSET, POST, PRE};
use crate::cpu::Cpu;
use crate::op::{Handler, P, next};

/// An operation that can be half of a pair.
trait Step {
    /// Its own handler.
    const WHOLE: Handler;
    /// What it does before it goes on to the next; false when that takes its own handler.
    fn now(c: &mut Cpu, o: P) -> bool;
}

fn pair<A: Step, B: Step>(c: &mut Cpu, o: P) {
    if !A::now(c, o) {
        return (A::WHOLE)(c, o);
    }
    let o = o.succ();
    if !B::now(c, o) {
        return (B::WHOLE)(c, o);
    }
    next(c, o);
}

macro_rules! pairs {
    ($(#[$m:meta])* $kind:ident in $module:ident { $($name:ident: $whole:expr, $now:expr;)* }) => {
        $(#[$m])*
        #[derive(Clone, Copy, PartialEq, Eq)]
        pub(crate) enum $kind { $($name),* }

        mod $module {
            use super::*;
            $(
                pub(super) struct $name;
                impl Step for $name {
                    const WHOLE: Handler = $whole;
                    #[inline(always)]
                    fn now(c: &mut Cpu, o: P) -> bool {
                        let now: fn(&mut Cpu, P) -> bool = $now;
                        now(c, o)
                    }
                }
            )*
            /// Handlers by both kinds.
            pub(super) static TABLE: [[Handler; COUNT]; COUNT] = table!($($name)*);
            const COUNT: usize = [$($kind::$name),*].len();
        }

        impl $kind {
            /// The handler of this operation and one of kind `second` behind it.
            pub fn and(self, second: Self) -> Handler {
                $module::TABLE[self as usize][second as usize]
            }
        }
    };
}

macro_rules! table {
    ($($a:ident)*) => { table!(@rows [$($a)*] [$($a)*]) };
    (@rows [$($a:ident)*] $all:tt) => { [$(table!(@row $a $all)),*] };
    (@row $a:ident [$($b:ident)*]) => { [$(pair::<$a, $b> as Handler),*] };
}

macro_rules! applied {
    ($($f:tt)*) => {
        |c, o| {
            apply::$($f)*(c, o);
            true
        }
    };
}

pairs! {
    /// 32-bit arithmetic, as hash functions have it.
    Narrow in narrow {
        Add: alu::add::<u32>, applied!(add::<u32>);
        And: alu::and::<u32>, applied!(and::<u32>);
        Orr: alu::orr::<u32>, applied!(orr::<u32>);
        Eor: alu::eor::<u32>, applied!(eor::<u32>);
        Bic: alu::bic::<u32>, applied!(bic::<u32>);
        Ror: alu::ror_imm::<u32>, applied!(ror_imm::<u32>);
        EorRor: alu::eor_shift::<u32, 3>, applied!(eor_shift::<u32, 3>);
        EorLsr: alu::eor_shift::<u32, 1>, applied!(eor_shift::<u32, 1>);
        Mov: alu::mov_imm::<u32>, applied!(mov_imm::<u32>);
        Movk: alu::movk::<u32>, applied!(movk::<u32>);
        Load: m::load::<u32, 32, OFFSET>, m::load_now::<u32, 32, OFFSET>;
        Store: m::store::<u32, OFFSET>, m::store_now::<u32, OFFSET>;
    }
}

pairs! {
    /// Addresses, pointers and spilled registers.
    Wide in wide {
        Mov: alu::mov::<u64>, applied!(mov::<u64>);
        AddImm: alu::add_imm::<u64>, applied!(add_imm::<u64>);
        Add: alu::add::<u64>, applied!(add::<u64>);
        Lsl: alu::lsl_imm::<u64>, applied!(lsl_imm::<u64>);
        AndImm: alu::and_imm::<u64>, applied!(and_imm::<u64>);
        MovImm: alu::mov_imm::<u64>, applied!(mov_imm::<u64>);
        MovImm32: alu::mov_imm::<u32>, applied!(mov_imm::<u32>);
        Adr: alu::adr, |c, o| {
            alu::adr_now(c, o);
            true
        };
        Load: m::load::<u64, 64, OFFSET>, m::load_now::<u64, 64, OFFSET>;
        Load32: m::load::<u32, 32, OFFSET>, m::load_now::<u32, 32, OFFSET>;
        Load8: m::load::<u8, 32, OFFSET>, m::load_now::<u8, 32, OFFSET>;
        Store: m::store::<u64, OFFSET>, m::store_now::<u64, OFFSET>;
        Store32: m::store::<u32, OFFSET>, m::store_now::<u32, OFFSET>;
        LoadPair: m::load_pair::<u64, OFFSET>, m::load_pair_now::<u64, OFFSET>;
        StorePair: m::store_pair::<u64, OFFSET>, m::store_pair_now::<u64, OFFSET>;
        Push: m::store_pair::<u64, PRE>, m::store_pair_now::<u64, PRE>;
        Pop: m::load_pair::<u64, POST>, m::load_pair_now::<u64, POST>;
    }
}
