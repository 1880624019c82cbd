//! Handlers hand over by jumps: a block costs no stack, however long it is.

use std::cell::RefCell;

use super::block::Block;
use super::op::{Op, P, next};
use crate::cpu::Cpu;
use crate::{Translation, Vm, VmConfig};

thread_local! {
    /// The stack pointer at each [`probe`].
    static SEEN: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

fn stack_pointer() -> usize {
    let at: usize;
    // SAFETY: reads a register and nothing else.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        std::arch::asm!("mov {}, rsp", out(reg) at, options(nomem, nostack, preserves_flags));
        #[cfg(target_arch = "aarch64")]
        std::arch::asm!("mov {}, sp", out(reg) at, options(nomem, nostack, preserves_flags));
    }
    at
}

fn note() {
    SEEN.with_borrow_mut(|seen| seen.push(stack_pointer()));
}

fn probe(c: &mut Cpu, o: P) {
    note();
    next(c, o);
}

fn stop(_: &mut Cpu, _: P) {
    note();
}

fn op(f: super::op::Handler) -> Op {
    Op { f, a: 0, b: 0, c: 0, d: 0, off: 0, n: 0, imm: 0 }
}

/// Where the stack is before and behind the operations of `word`; `None` when a block ends there.
fn depths(c: &mut Cpu, block: &mut Block, word: u32) -> Option<(usize, usize)> {
    block.decode_up_to(2, 0, |off| if off == 0 { word } else { 0xd503_201f });
    // The operation for the NOP, and the one that goes on.
    let own = block.ops.len().checked_sub(2)?;
    if own == 0 || block.ops[own].n != 2 {
        return None;
    }
    let mut ops = vec![op(probe)];
    ops.extend_from_slice(&block.ops[..own]);
    ops.extend([op(probe), op(probe), op(stop)]);
    SEEN.with_borrow_mut(Vec::clear);
    // SAFETY: the operations live until the end of this function, and the last hands over to none.
    let first = unsafe { P::new(ops.as_ptr()) };
    super::op::run(c, first);
    SEEN.with_borrow(|seen| match seen[..] {
        [before, after, again, _] => {
            assert_eq!(after, again, "a handler that does nothing leaves something on the stack");
            Some((before, after))
        }
        // Taken for undefined, say.
        _ => None,
    })
}

#[test]
fn a_block_costs_no_stack() {
    let vm = Vm::new(VmConfig { translation: Translation::Off, ..VmConfig::default() }).expect("a machine");
    let mut vcpu = vm.create_vcpu(0).expect("a vCPU");
    let c = vcpu.cpu();
    c.fp_trap = false;
    let mut block = Block::default();
    let (mut word, mut handlers) = (1_u32, std::collections::HashSet::new());
    for _ in 0..400_000 {
        word = word.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let tried = word.rotate_right(11) ^ word;
        // Data processing: what goes nowhere else.
        if !matches!(tried >> 25 & 15, 5 | 7 | 8 | 9 | 13 | 15) {
            continue;
        }
        if let Some((before, after)) = depths(c, &mut block, tried) {
            assert_eq!(before, after, "{tried:#010x} {}", crate::disassemble(tried, 0));
            handlers.insert(block.ops[0].f as usize);
        }
    }
    println!("{} handlers", handlers.len());
    assert!(handlers.len() > 200, "only {} handlers were tried", handlers.len());
}
