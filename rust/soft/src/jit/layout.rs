//! Where machine code finds what it reaches: each offset once, for all kinds of hosts.

use std::mem::offset_of;

use crate::cpu::Jump;
use crate::interp::handlers::Flags;
use crate::interp::op::Op;
use crate::mem::TlbEntry;

/// Defines the constants in the form that a host has use for: `cpu` makes `$field` of an offset in the CPU's state,
/// other offsets are numbers of type `$number`.
macro_rules! offsets {
    (cpu: $cpu:ident -> $field:ty, others: $number:ty) => {
        offsets! { @cpu $cpu, $field,
            NZCV = state.regs.nzcv;
            FPCR = state.regs.fpcr;
            FPSR = state.regs.fpsr;
            FLAGS = state.flags;
            PC = state.pc;
            EL = state.el;
            DAIF = state.daif;
            SPSEL = state.spsel;
            /// SP_EL0, while another is in use.
            SP_EL0 = state.sp;
            TPIDR_EL0 = state.sys.tpidr_el0;
            SCTLR = state.sys.sctlr;
            PAGE = page;
            KEY = key;
            TLB = tlb;
            TAG = tag;
            /// The same with the rights of EL0.
            USER_TLB = utlb;
            USER_TAG = utag;
            FUEL = fuel;
            FP_TRAP = fp_trap;
            PATCH = patch;
            JUMPS = jumps;
            /// What an exclusive load has noted.
            MONITOR_SIZE = state.monitor.size;
            MONITOR_VA = state.monitor.va;
            JUMP_OPS = ops;
        }
        /// The two numbers whose comparison the flags are, where they are one's.
        pub(super) const COMPARED: [$field; 2] = [
            $cpu(std::mem::offset_of!(crate::cpu::Cpu, state.compared)),
            $cpu(std::mem::offset_of!(crate::cpu::Cpu, state.compared) + 8),
        ];

        /// The lower and the upper 8 bytes of what it has loaded.
        pub(super) const MONITOR_VALUE: [$field; 2] = [
            $cpu(std::mem::offset_of!(crate::cpu::Cpu, state.monitor.value)),
            $cpu(std::mem::offset_of!(crate::cpu::Cpu, state.monitor.value) + 8),
        ];

        /// What EL1 reads from this system register, where it is kept for nothing else.
        pub(super) fn system(register: u16) -> Option<$field> {
            use crate::id::SysReg;
            let offset = offsets! { @system SysReg(register),
                MPIDR_EL1 = mpidr;
                SCTLR_EL1 = sctlr;
                CPACR_EL1 = cpacr;
                TCR_EL1 = tcr;
                TTBR0_EL1 = ttbr0;
                TTBR1_EL1 = ttbr1;
                MAIR_EL1 = mair;
                VBAR_EL1 = vbar;
                CONTEXTIDR_EL1 = contextidr;
                TPIDR_EL1 = tpidr_el1;
                SPSR_EL1 = spsr;
                ELR_EL1 = elr;
                ESR_EL1 = esr;
                FAR_EL1 = far;
                PAR_EL1 = par;
                TPIDRRO_EL0 = tpidrro_el0;
                CNTKCTL_EL1 = cntkctl;
            };
            Some($cpu(offset))
        }

        /// A general register.
        pub(super) fn x(g: u8) -> $field {
            $cpu(std::mem::offset_of!(crate::cpu::Cpu, state.regs.x) + 8 * usize::from(g))
        }

        /// A vector register.
        pub(super) fn v(g: u8) -> $field {
            $cpu(std::mem::offset_of!(crate::cpu::Cpu, state.regs.v) + 16 * usize::from(g))
        }

        offsets! { @other $number,
            OP_HANDLER = crate::interp::op::Op, f;
            /// A branch's target, 16 bits.
            OP_TARGET = crate::interp::op::Op, c;
            OP_IMM = crate::interp::op::Op, imm;
            JUMP_KEY = crate::cpu::Jump, key;
            JUMP_CODE = crate::cpu::Jump, code;
            TLB_READ = crate::mem::TlbEntry, read;
            TLB_WRITE = crate::mem::TlbEntry, write;
            TLB_ADDEND = crate::mem::TlbEntry, addend;
        }
    };
    (@cpu $cpu:ident, $form:ty, $($(#[$doc:meta])* $name:ident = $($field:ident).+;)*) => {
        $($(#[$doc])* pub(super) const $name: $form = $cpu(std::mem::offset_of!(crate::cpu::Cpu, $($field).+));)*
    };
    (@system $register:expr, $($name:ident = $field:ident;)*) => {
        match $register {
            $(SysReg::$name => std::mem::offset_of!(crate::cpu::Cpu, state.sys.$field),)*
            _ => return None,
        }
    };
    (@other $form:ty, $($(#[$doc:meta])* $name:ident = $type:ty, $field:ident;)*) => {
        $($(#[$doc])* pub(super) const $name: $form = std::mem::offset_of!($type, $field) as $form;)*
    };
}
pub(super) use offsets;

// What machine code does with shifts, masks and zeros.
const _: () = assert!(size_of::<Jump>() == 16 && crate::cpu::JUMPS.is_power_of_two());
const _: () = assert!(size_of::<TlbEntry>() == 32 && crate::mem::TLB_SIZE.is_power_of_two());
const _: () = assert!(offset_of!(Op, c).is_multiple_of(2) && offset_of!(Op, d) == offset_of!(Op, c) + 1);
const _: () = assert!(Flags::Known as u8 == 0 && Flags::Sub32 as u8 == 1 && Flags::Sub64 as u8 == 2);
const _: () = assert!(crate::mem::EL0_TAG < 1 << 12 && crate::mem::EL1_TAG < 1 << 12);
