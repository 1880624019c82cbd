//! Two operations in one: the most frequent neighbours run without a jump between them.
//!
//! Only the first operation of a pair gets the pair's handler. The second keeps its own, and runs by it when the first
//! could not be finished at once (its page is not in the TLB, say).

use super::alu::{self, apply};
use super::memory::{self as m, INDEX, OFFSET, POST, PRE};
use crate::cpu::Cpu;
use crate::interp::op::{Handler, P, next};

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

macro_rules! steps {
    ($($name:ident: $whole:expr, $now:expr;)*) => {
        /// What has a place in pairs.
        #[derive(Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Half { $($name),* }

        mod half {
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
            const COUNT: usize = [$(Half::$name),*].len();
            /// Handlers by both halves.
            pub(super) static TABLE: [[Handler; COUNT]; COUNT] = table!($($name)*);
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

// Every one costs a row and a column of handlers: these are the most frequent in kernels, interpreters, compilers'
// output and hash functions.
steps! {
    Mov: alu::mov::<u64>, applied!(mov::<u64>);
    MovImm: alu::mov_imm::<u64>, applied!(mov_imm::<u64>);
    AddImm: alu::add_imm::<u64>, applied!(add_imm::<u64>);
    Add: alu::add::<u64>, applied!(add::<u64>);
    Lsl: alu::lsl_imm::<u64>, applied!(lsl_imm::<u64>);
    AndImm: alu::and_imm::<u64>, applied!(and_imm::<u64>);
    Adr: alu::adr, |c, o| {
        alu::adr_now(c, o);
        true
    };
    Mov32: alu::mov::<u32>, applied!(mov::<u32>);
    Movk32: alu::movk::<u32>, applied!(movk::<u32>);
    AddImm32: alu::add_imm::<u32>, applied!(add_imm::<u32>);
    Add32: alu::add::<u32>, applied!(add::<u32>);
    And32: alu::and::<u32>, applied!(and::<u32>);
    Bic32: alu::bic::<u32>, applied!(bic::<u32>);
    Orr32: alu::orr::<u32>, applied!(orr::<u32>);
    Eor32: alu::eor::<u32>, applied!(eor::<u32>);
    EorRor32: alu::eor_shift::<u32, 3>, applied!(eor_shift::<u32, 3>);
    EorLsr32: alu::eor_shift::<u32, 1>, applied!(eor_shift::<u32, 1>);
    Ror32: alu::ror_imm::<u32>, applied!(ror_imm::<u32>);
    Load: m::load::<u64, 64, OFFSET>, m::load_now::<u64, 64, OFFSET>;
    Load32: m::load::<u32, 32, OFFSET>, m::load_now::<u32, 32, OFFSET>;
    Load8: m::load::<u8, 32, OFFSET>, m::load_now::<u8, 32, OFFSET>;
    LoadIndex: m::load::<u64, 64, INDEX>, m::load_now::<u64, 64, INDEX>;
    LoadIndex32: m::load::<u32, 32, INDEX>, m::load_now::<u32, 32, INDEX>;
    Store: m::store::<u64, OFFSET>, m::store_now::<u64, OFFSET>;
    Store32: m::store::<u32, OFFSET>, m::store_now::<u32, OFFSET>;
    LoadPair: m::load_pair::<u64, OFFSET>, m::load_pair_now::<u64, OFFSET>;
    StorePair: m::store_pair::<u64, OFFSET>, m::store_pair_now::<u64, OFFSET>;
    Push: m::store_pair::<u64, PRE>, m::store_pair_now::<u64, PRE>;
    Pop: m::load_pair::<u64, POST>, m::load_pair_now::<u64, POST>;
}

impl Half {
    /// The handler of this operation and `second` behind it.
    pub(crate) fn and(self, second: Self) -> Handler {
        half::TABLE[self as usize][second as usize]
    }
}
