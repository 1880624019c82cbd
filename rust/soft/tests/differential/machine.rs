//! Our side as a whole CPU: one vCPU at EL1 with the memory of a sequence mapped one to one.

#![allow(unsafe_code, reason = "raw memory and C calls, to test with")]

use crate::oracle::{BASE, INSNS, MEMORY, Request, SIGILL, State};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use supermachine_soft::id::{Reg, SimdReg, SysReg};
use supermachine_soft::{Canceller, Exit, Protection, Translation, Vcpu, Vm, VmConfig};

pub(crate) const CODE: u64 = 0x4000_0000;
const CODE_LEN: usize = 4 << 20;
/// Vectors at the start, the translation table after them, then slots of one sequence each.
const TABLE: usize = 0x1000;
const FIRST_SLOT: usize = 0x1_0000;
const SLOT: usize = 4 * INSNS + 16;
/// HVC #0 ends a sequence, HVC #1 stands in every exception vector.
const END: u32 = 0xd400_0002;
const VECTOR: u32 = 0xd400_0022;

/// Page-aligned host memory, zeroed.
struct Pages(NonNull<u8>, Layout);

impl Pages {
    fn new(len: usize) -> Self {
        let layout = Layout::from_size_align(len.next_multiple_of(4096), 4096).expect("a small size");
        // SAFETY: the layout's size is not zero.
        let at = unsafe { alloc_zeroed(layout) };
        Self(NonNull::new(at).expect("memory"), layout)
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.1.size());
        // SAFETY: the range was just checked, no reference to it exists, and the vCPU is not running.
        unsafe { self.0.add(at).copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len()) }
    }

    fn read(&self, bytes: &mut [u8]) {
        assert!(bytes.len() <= self.1.size());
        // SAFETY: as in `write`.
        unsafe { NonNull::from(&mut *bytes).cast().copy_from_nonoverlapping(self.0, bytes.len()) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.0.as_ptr(), self.1) }
    }
}

pub(crate) struct Machine {
    // Dropped in this order: the vCPU and the machine before their memory.
    vcpu: Vcpu,
    vm: Vm,
    code: Pages,
    data: Pages,
    next: usize,
    translation: Translation,
}

/// All that a run leaves behind.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Outcome {
    pub exit: Exit,
    pub registers: Vec<u64>,
    pub system: Vec<u64>,
    pub vectors: Vec<u128>,
    pub instructions: u64,
    pub memory: Vec<u8>,
}

impl Machine {
    pub(crate) fn new(translation: Translation) -> Self {
        let (code, data) = (Pages::new(CODE_LEN), Pages::new(MEMORY));
        for vector in 0..16 {
            code.write(vector * 0x80, &VECTOR.to_le_bytes());
        }
        // One gibibyte at CODE, normal memory, accessed, executable.
        code.write(TABLE + 8, &(CODE | 1 << 10 | 3 << 8 | 1).to_le_bytes());
        let vm = Vm::new(VmConfig { translation, ..VmConfig::default() }).expect("a machine");
        // SAFETY: the memory outlives the machine, see `Machine`, and is referred to only in `Pages`' copies.
        unsafe {
            vm.map(code.0, CODE, CODE_LEN as u64, Protection::ReadWriteExecute).expect("free");
            vm.map(data.0, BASE, data.1.size() as u64, Protection::ReadWriteExecute).expect("free");
        }
        let mut vcpu = vm.create_vcpu(0).expect("the first");
        let wanted = translation != Translation::Off && supermachine_soft::interprets().is_none();
        assert_eq!(vcpu.translates(), wanted);
        let mut set = |reg, value| vcpu.set_sys_reg(reg, value).expect("a register");
        set(SysReg::VBAR_EL1, CODE);
        set(SysReg::MAIR_EL1, 0xff);
        // 39 bits, write-back, inner shareable, 40-bit physical addresses; no TTBR1.
        set(SysReg::TCR_EL1, 25 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23 | 2 << 32);
        set(SysReg::TTBR0_EL1, CODE + TABLE as u64);
        set(SysReg::CPACR_EL1, 3 << 20);
        // MMU, caches, and the bits that read as one.
        set(SysReg::SCTLR_EL1, 0x30d0_0800 & !(1 << 19) | 1 | 1 << 2 | 1 << 12);
        Self { vcpu, vm, code, data, next: FIRST_SLOT, translation }
    }

    pub(crate) fn run(&mut self, request: &Request) -> State {
        if self.next + SLOT > CODE_LEN {
            // Code is decoded once: a slot is never written again.
            *self = Self::new(self.translation);
        }
        let slot = self.next;
        self.next += SLOT;
        let s = &request.state;
        let mut bytes = Vec::with_capacity(SLOT);
        for i in request.code().iter().chain(&[END]) {
            bytes.extend_from_slice(&i.to_le_bytes());
        }
        self.code.write(slot, &bytes);
        self.data.write(0, &s.memory);
        let pc = CODE + slot as u64;
        self.load(s, pc);
        let v = &mut self.vcpu;
        match v.run().expect("runs") {
            Exit::Hvc { immediate: 0 } => {}
            Exit::Hvc { immediate: 1 } => {
                let at = (v.sys_reg(SysReg::ELR_EL1).expect("a register") - pc) / 4;
                // Exception class 0 is an undefined instruction; whatever else there is has no equal.
                let class = v.sys_reg(SysReg::ESR_EL1).expect("a register") >> 26;
                let signal = if class == 0 { SIGILL } else { 0x100 | class as u32 };
                return State::signalled(signal, at as u32);
            }
            Exit::DataAbort(_) => {
                let at = (v.reg(Reg::PC).expect("a register") - pc) / 4;
                return State::signalled(11, at as u32);
            }
            other => panic!("{other:?}"),
        }
        let mut out = s.clone();
        let get = |n| v.reg(n).expect("a register");
        for n in 0..29 {
            out.x[n] = get(Reg(n as u32));
        }
        for n in 0..32 {
            out.v[n as usize] = v.simd_reg(SimdReg(n)).expect("a register");
        }
        out.nzcv = get(Reg::CPSR) & 0xf000_0000;
        out.sp = v.sys_reg(SysReg::SP_EL1).expect("a register");
        out.fpcr = get(Reg::FPCR);
        out.fpsr = get(Reg::FPSR);
        self.data.read(&mut out.memory);
        out
    }

    /// Sets the vCPU's registers.
    fn load(&mut self, s: &State, pc: u64) {
        let v = &mut self.vcpu;
        for n in 0..31 {
            v.set_reg(Reg(n), s.x.get(n as usize).copied().unwrap_or(0)).expect("a register");
        }
        for n in 0..32 {
            v.set_simd_reg(SimdReg(n), s.v[n as usize]).expect("a register");
        }
        v.set_reg(Reg::CPSR, s.nzcv | 0x3c5).expect("EL1h");
        v.set_sys_reg(SysReg::SP_EL1, s.sp).expect("a register");
        v.set_reg(Reg::FPCR, s.fpcr).expect("a register");
        v.set_reg(Reg::FPSR, s.fpsr).expect("a register");
        v.set_reg(Reg::PC, pc).expect("a register");
    }

    /// Runs a program of several pieces, which are put so many bytes behind the start of `pages` fresh pages, to
    /// whatever ends it.
    pub(crate) fn program(&mut self, s: &State, pages: usize, pieces: &[(usize, Vec<u32>)]) -> Outcome {
        self.next = self.next.next_multiple_of(4096);
        if self.next + pages * 4096 > CODE_LEN {
            *self = Self::new(self.translation);
        }
        let first = self.next;
        self.next += pages * 4096;
        self.begin(s, first, pages, pieces);
        let before = self.vcpu.instructions();
        let exit = self.vcpu.run().expect("runs");
        self.outcome(first, exit, self.vcpu.instructions() - before)
    }

    /// Puts a program's pieces behind `first`, and its state into the vCPU.
    fn begin(&mut self, s: &State, first: usize, pages: usize, pieces: &[(usize, Vec<u32>)]) {
        for (at, words) in pieces {
            let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
            assert!(at + bytes.len() <= pages * 4096);
            self.code.write(first + at, &bytes);
        }
        self.data.write(0, &s.memory);
        self.load(s, CODE + first as u64);
    }

    /// The same from the first slot of new machines, one for each of `moves` and the first again behind the last:
    /// `stop` is given what makes each leave its run, and where one does the next goes on. Gives how often one has.
    pub(crate) fn moving(
        s: &State,
        pages: usize,
        pieces: &[(usize, Vec<u32>)],
        moves: &[Translation],
        mut stop: impl FnMut(Canceller),
    ) -> (Outcome, usize) {
        let first = FIRST_SLOT;
        let mut moves = moves.iter().copied().cycle();
        let mut next = || Self::new(moves.next().expect("there is one"));
        let mut machine = next();
        machine.begin(s, first, pages, pieces);
        let (mut instructions, mut moved) = (0, 0);
        loop {
            stop(machine.vm.canceller(0).expect("there is one"));
            let exit = machine.vcpu.run().expect("runs");
            instructions += machine.vcpu.instructions();
            if exit != Exit::Canceled {
                return (machine.outcome(first, exit, instructions), moved);
            }
            moved += 1;
            let from = std::mem::replace(&mut machine, next());
            machine.take(&from, first + pages * 4096);
        }
    }

    /// Has all that a snapshot has of another machine, whose code ends at `end`.
    fn take(&mut self, from: &Self, end: usize) {
        let mut bytes = vec![0; end];
        from.code.read(&mut bytes);
        self.code.write(0, &bytes);
        // Programs reach beyond what is compared.
        let mut bytes = vec![0; from.data.1.size()];
        from.data.read(&mut bytes);
        self.data.write(0, &bytes);
        for n in (0..31).map(Reg).chain([Reg::PC, Reg::CPSR, Reg::FPCR, Reg::FPSR]) {
            self.vcpu.set_reg(n, from.vcpu.reg(n).expect("a register")).expect("a register");
        }
        for n in (0..32).map(SimdReg) {
            self.vcpu.set_simd_reg(n, from.vcpu.simd_reg(n).expect("a register")).expect("a register");
        }
        let system = [SysReg::SP_EL1, SysReg::ESR_EL1, SysReg::FAR_EL1, SysReg::SPSR_EL1, SysReg::ELR_EL1];
        for n in system.into_iter().chain([SysReg::TPIDR_EL0]) {
            self.vcpu.set_sys_reg(n, from.vcpu.sys_reg(n).expect("a register")).expect("a register");
        }
    }

    fn outcome(&self, first: usize, exit: Exit, instructions: u64) -> Outcome {
        let v = &self.vcpu;
        let start = CODE + first as u64;
        // Two machines may have put a program in different places.
        let place = |at: u64| if at >> 31 == 0 { at.wrapping_sub(start) } else { at };
        let mut registers: Vec<u64> = (0..29).map(|n| v.reg(Reg(n)).expect("a register")).collect();
        registers.extend([Reg(29), Reg(30), Reg::PC].map(|r| place(v.reg(r).expect("a register"))));
        registers.extend([Reg::CPSR, Reg::FPCR, Reg::FPSR].map(|r| v.reg(r).expect("a register")));
        let system = [SysReg::SP_EL1, SysReg::ESR_EL1, SysReg::FAR_EL1, SysReg::SPSR_EL1];
        let mut system: Vec<u64> = system.map(|r| v.sys_reg(r).expect("a register")).into();
        system.push(place(v.sys_reg(SysReg::ELR_EL1).expect("a register")));
        let mut memory = vec![0; MEMORY];
        self.data.read(&mut memory);
        Outcome {
            exit,
            registers,
            system,
            vectors: (0..32).map(|n| v.simd_reg(SimdReg(n)).expect("a register")).collect(),
            instructions,
            memory,
        }
    }
}
