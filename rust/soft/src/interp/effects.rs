//! What instructions are said to read and write ([`crate::isa::effects`]) against what they do.

use super::block::Block;
use super::op::{self, P};
use crate::cpu::Cpu;
use crate::isa;
use crate::isa::effects::Registers;
use crate::isa::insn::Insn;
use crate::vm::{Vm, VmConfig};
use crate::{Regs, Translation};

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Numbers, integers and extremes by turns.
    fn value(&mut self) -> u64 {
        match self.next() % 8 {
            0 => 0,
            1 => u64::MAX,
            2 => self.next() % 64,
            3 => (self.next() % 1000) as f64 as u64,
            4 => ((self.next() % 100_000) as f64 / 7.0).to_bits(),
            5 => u64::from((self.next() as u16 as f32 / 3.0).to_bits()) * 0x1_0000_0001,
            _ => self.next(),
        }
    }

    fn regs(&mut self) -> Regs {
        let mut r = Regs::default();
        r.x[..32].fill_with(|| self.value());
        r.v.fill_with(|| u128::from(self.value()) << 64 | u128::from(self.value()));
        r.nzcv = (self.next() as u32) << 28;
        r
    }
}

/// Does one instruction with these registers, and gives what they are then.
fn run(cpu: &mut Cpu, block: &Block, regs: &Regs) -> Regs {
    cpu.state.regs = regs.clone();
    cpu.set_nzcv(regs.nzcv);
    cpu.fp_trap = false;
    cpu.fuel = 0;
    // SAFETY: the block lives as long as it runs.
    op::run(cpu, unsafe { P::new(block.ops.as_ptr()) });
    let mut after = cpu.state.regs.clone();
    after.nzcv = cpu.nzcv();
    after
}

/// The registers in which two states differ.
fn differences(a: &Regs, b: &Regs) -> Registers {
    let mut all = Registers { flags: a.nzcv != b.nzcv, ..Registers::NONE };
    for r in 0..32 {
        if a.x[r] != b.x[r] {
            all = all.x(r as u8);
        }
        if a.v[r] != b.v[r] {
            all = all.v(r as u8);
        }
    }
    all
}

fn without(a: Registers, b: Registers) -> Registers {
    Registers { general: a.general & !b.general, vector: a.vector & !b.vector, flags: a.flags && !b.flags }
}

/// Changes a register that the instruction is said not to read.
fn disturb(random: &mut Random, regs: &mut Regs, reads: Registers) {
    for r in 0..32 {
        if !reads.has(r) && random.next().is_multiple_of(2) {
            regs.x[usize::from(r)] = random.value();
        }
        if !reads.has_vector(r) && random.next().is_multiple_of(2) {
            regs.v[usize::from(r)] ^= u128::from(random.next()) << 32;
        }
    }
    if !reads.flags {
        regs.nzcv ^= 0xf000_0000;
    }
}

/// Words of data processing: the groups of C4.1 that this is about, half of them floating point and vectors.
fn word(random: &mut Random) -> u32 {
    let group = [0b1000, 0b1001, 0b0101, 0b1101, 0b0111, 0b1111, 0b0111, 0b1111][random.next() as usize % 8];
    let mut word = random.next() as u32 & !(0xf << 25) | group << 25;
    if group & 7 == 7 && random.next().is_multiple_of(2) {
        // Scalar floating point has few encodings of what could be.
        word = word & 0x80ff_ffff | 0x1e00_0000;
        if random.next().is_multiple_of(2) {
            word = word & 0x80ff_07ff | 0x1e00_0000;
        }
    }
    word
}

#[test]
fn plain_instructions_read_and_write_what_is_said() {
    let vm = Vm::new(VmConfig { translation: Translation::Off, ..VmConfig::default() }).expect("a machine");
    let mut cpu = vm.bare_cpu();
    let mut random = Random(0x5eed);
    let (mut block, mut seen) = (Block::default(), 0);
    for _ in 0..700_000 {
        let word = word(&mut random);
        let insn = isa::decode(word, 0);
        if !insn.is_plain(word) || matches!(insn, Insn::Hint { .. }) {
            continue;
        }
        seen += 1;
        block.decode_up_to(1, 0, |_| word);
        let (reads, writes) = (insn.reads(word), insn.writes(word));
        let text = || {
            format!("{word:08x} {} {insn:?}: reads {reads:x?}, writes {writes:x?}", isa::disassemble(word, 0))
        };
        let before = random.regs();
        let after = run(&mut cpu, &block, &before);
        let more = without(differences(&before, &after), writes);
        assert_eq!(more, Registers::NONE, "it wrote {more:x?}: {}", text());
        let mut other = before.clone();
        disturb(&mut random, &mut other, reads);
        let third = run(&mut cpu, &block, &other);
        // What was not written is what it was, which may differ.
        let kept = without(differences(&other, &third), writes);
        assert_eq!(kept, Registers::NONE, "it wrote {kept:x?}: {}", text());
        let mut told = differences(&after, &third);
        told = Registers {
            general: told.general & writes.general,
            vector: told.vector & writes.vector,
            flags: told.flags && writes.flags,
        };
        assert_eq!(told, Registers::NONE, "it read more, seen in {told:x?}: {}", text());
        assert_eq!(after.fpsr, third.fpsr, "{}", text());
    }
    assert!(seen > 150_000, "only {seen} instructions");
}
