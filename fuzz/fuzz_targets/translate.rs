//! Guest code of the software CPU, interpreted and translated: whatever it is, both end with the same exit, registers
//! and memory after the same number of instructions.
//!
//! Eight bytes are the seed of the registers; the rest are instructions. Those that could go back, wait, or change how
//! the CPU works are left out, so that every program ends.
#![no_main]

use std::cell::RefCell;
use std::ptr::NonNull;

use libfuzzer_sys::fuzz_target;
use supermachine_soft::id::{Reg, SimdReg, SysReg};
use supermachine_soft::{Exit, Protection, Translation, Vcpu, Vm, VmConfig};

const CODE: u64 = 0x4000_0000;
const CODE_BYTES: usize = 4 << 20;
/// What one program has: its instructions, and room behind them that no branch of the conditional kind leaves.
const PROGRAM_BYTES: usize = 8192;
const WORDS: usize = 1000;
const DATA: u64 = 0x5000_0000;
const DATA_BYTES: usize = 8192;
const NOP: u32 = 0xd503_201f;

/// Page-aligned memory that stays.
fn pages(len: usize) -> NonNull<u8> {
    let layout = std::alloc::Layout::from_size_align(len, 4096).unwrap();
    // SAFETY: the layout is not empty.
    NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) }).unwrap()
}

struct Machine {
    vcpu: Vcpu,
    _vm: Vm,
    data: NonNull<u8>,
}

/// Both sides, the code that they share, and where the next program goes.
struct Pair {
    sides: [Machine; 2],
    code: NonNull<u8>,
    next: usize,
}

impl Pair {
    fn new(code: NonNull<u8>, data: [NonNull<u8>; 2]) -> Self {
        // SAFETY: nobody else refers to the memory, and its length is this.
        unsafe { code.write_bytes(0, CODE_BYTES) };
        for vector in 0..16 {
            // SAFETY: inside the memory.
            unsafe { code.add(vector * 0x80).cast::<u32>().write(0xd400_0022) };
        }
        let side = |translation, data| {
            let vm = Vm::new(VmConfig { translation, ..VmConfig::default() }).unwrap();
            // SAFETY: the memory is never freed.
            unsafe {
                vm.map(code, CODE, CODE_BYTES as u64, Protection::Read).unwrap();
                vm.map(data, DATA, DATA_BYTES as u64, Protection::ReadWriteExecute).unwrap();
            }
            let mut vcpu = vm.create_vcpu(0).unwrap();
            vcpu.set_sys_reg(SysReg::VBAR_EL1, CODE).unwrap();
            vcpu.set_sys_reg(SysReg::CPACR_EL1, 3 << 20).unwrap();
            Machine { vcpu, _vm: vm, data }
        };
        let sides = [side(Translation::Off, data[0]), side(Translation::Always, data[1])];
        Self { sides, code, next: PROGRAM_BYTES }
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }
}

/// The instruction, or NOP where it could keep a program from its end or is not about registers and memory.
fn harmless(word: u32) -> u32 {
    let distance = |high: u32, low: u32| ((word << (31 - high)) as i32) >> (31 - high + low);
    let forward = match word >> 24 {
        // B and BL; CBZ, CBNZ and B.cond; TBZ and TBNZ.
        _ if word & 0x7c00_0000 == 0x1400_0000 => distance(25, 0) > 0,
        _ if word & 0x7e00_0000 == 0x3400_0000 || word >> 25 == 0x2a => distance(23, 5) > 0,
        _ if word & 0x7e00_0000 == 0x3600_0000 => distance(18, 5) > 0,
        // SVC, HVC, SMC, BRK.
        0xd4 => true,
        // NZCV, FPCR and FPSR; DMB.
        0xd5 => {
            word & 0xffdf_ffe0 == 0xd51b_4200
                || word & 0xffdf_ffc0 == 0xd51b_4400
                || word & 0xffff_f0ff == 0xd503_30bf
        }
        0xd6 | 0xd7 => false,
        _ => true,
    };
    if forward { word } else { NOP }
}

/// What a program leaves behind.
#[derive(Debug, PartialEq)]
struct Outcome {
    exit: Exit,
    registers: Vec<u64>,
    vectors: Vec<u128>,
    system: Vec<u64>,
    instructions: u64,
    memory: Vec<u8>,
}

fn run(m: &mut Machine, seed: u64, pc: u64) -> Outcome {
    let mut r = Random(seed);
    let v = &mut m.vcpu;
    for n in 0..31 {
        let x = r.next();
        let x = if x & 1 == 0 { DATA + (x >> 8) % DATA_BYTES as u64 / 8 * 8 } else { x >> (r.next() & 63) };
        v.set_reg(Reg(n), x).unwrap();
    }
    for n in 0..32 {
        v.set_simd_reg(SimdReg(n), u128::from(r.next()) << 64 | u128::from(r.next())).unwrap();
    }
    v.set_reg(Reg::CPSR, 0x3c5 | r.next() & 0xf000_0000).unwrap();
    v.set_sys_reg(SysReg::SP_EL1, DATA + DATA_BYTES as u64 / 2).unwrap();
    let modes = if r.next() & 3 == 0 { 0x07c8_0000 } else { 0 };
    v.set_reg(Reg::FPCR, r.next() & modes).unwrap();
    v.set_reg(Reg::FPSR, r.next() & 0x10).unwrap();
    v.set_reg(Reg::PC, pc).unwrap();
    for at in (0..DATA_BYTES).step_by(8) {
        // SAFETY: inside the memory, to which nobody refers while the vCPU does not run.
        unsafe { m.data.add(at).cast::<u64>().write(r.next()) };
    }
    let before = v.instructions();
    let exit = v.run().unwrap();
    let registers = (0..31).map(Reg).chain([Reg::PC, Reg::CPSR, Reg::FPCR, Reg::FPSR]);
    let system = [SysReg::SP_EL1, SysReg::ESR_EL1, SysReg::FAR_EL1, SysReg::ELR_EL1, SysReg::SPSR_EL1];
    Outcome {
        exit,
        registers: registers.map(|n| v.reg(n).unwrap()).collect(),
        vectors: (0..32).map(|n| v.simd_reg(SimdReg(n)).unwrap()).collect(),
        system: system.map(|n| v.sys_reg(n).unwrap()).into(),
        instructions: v.instructions() - before,
        // SAFETY: as above.
        memory: unsafe { std::slice::from_raw_parts(m.data.as_ptr(), DATA_BYTES) }.to_vec(),
    }
}

thread_local! {
    static MEMORY: (NonNull<u8>, [NonNull<u8>; 2]) = (pages(CODE_BYTES), [pages(DATA_BYTES), pages(DATA_BYTES)]);
    static PAIR: RefCell<Option<Pair>> = const { RefCell::new(None) };
}

fuzz_target!(|data: &[u8]| {
    let Some((seed, code)) = data.split_first_chunk() else { return };
    PAIR.with_borrow_mut(|pair| {
        if pair.as_ref().is_some_and(|pair| pair.next + PROGRAM_BYTES > CODE_BYTES) {
            // What was decoded is not written over.
            *pair = None;
        }
        let pair = pair.get_or_insert_with(|| MEMORY.with(|(code, data)| Pair::new(*code, *data)));
        let at = pair.next;
        pair.next += PROGRAM_BYTES;
        for (n, word) in code.chunks_exact(4).take(WORDS).enumerate() {
            let word = harmless(u32::from_le_bytes(word.try_into().unwrap()));
            // SAFETY: inside the memory, in a part that no vCPU has run yet.
            unsafe { pair.code.add(at + 4 * n).cast::<u32>().write(word) };
        }
        let [right, mine] =
            pair.sides.each_mut().map(|m| run(m, u64::from_le_bytes(*seed), CODE + at as u64));
        assert_eq!(right, mine);
    });
});
