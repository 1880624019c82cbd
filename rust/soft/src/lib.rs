//! A software arm64 machine core: CPU, MMU, GICv3 and generic timer, with the shape of Hypervisor.framework.
//!
//! A [`Vm`] maps host memory at guest physical addresses and makes vCPUs; each [`Vcpu`] runs on the thread that
//! uses it until something happens that the machine around it must handle (an [`Exit`]). Registers are named by
//! Hypervisor.framework's ids ([`id`]). The interrupt controller and the virtual timer live in here, as they do in
//! the framework from macOS 15 on; WFI sleeps inside [`Vcpu::run`].

#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "an operation on part of a register is a cast: that is what the architecture says"
)]
#![allow(unsafe_code, reason = "guest memory is shared with the guest, and translated code is called")]

pub mod baked;
mod code;
mod cpu;
mod debug;
mod exception;
pub mod fp;
pub mod gic;
pub mod id;
mod interp;
mod isa;
mod jit;
mod mem;
mod mmu;
mod pmu;
mod regs;
mod requests;
mod state;
mod sysreg;
mod vcpu;
mod vm;

pub use isa::disassemble;
pub use jit::Translation;
pub use regs::Regs;
pub use vcpu::{DataAbort, Exit, Vcpu};
pub use vm::{COUNTER_HZ, Canceller, MAX_VCPUS, Presence, Protection, Vm, VmConfig};

/// What can go wrong outside the guest.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// None, or too many.
    #[error("{0} vCPUs were asked for; a machine has 1 to {MAX_VCPUS}")]
    VcpuCount(u32),
    /// No vCPU has this index.
    #[error("there is no vCPU {0} in this machine; indexes start at 0 and end below its vCPU count")]
    NoSuchVcpu(u32),
    /// There is one of this index.
    #[error("vCPU {0} exists already; each is created once")]
    VcpuExists(u32),
    /// Memory that cannot be the guest's there.
    #[error(
        "cannot map or unmap {len} bytes at guest address {gpa:#x}: regions are whole 4 KiB pages below 1 TiB, do \
         not overlap, and are unmapped as they were mapped"
    )]
    BadRegion {
        /// Guest physical address of its start.
        gpa: u64,
        /// Bytes.
        len: u64,
    },
    /// Its id.
    #[error("register id {0:#x} is not one of this CPU's; ids are Hypervisor.framework's")]
    UnknownRegister(u32),
    /// The value that CPSR was to have.
    #[error("{0:#x} is no processor state of this CPU: the mode must be EL0t, EL1t or EL1h")]
    BadState(u64),
    /// What it says.
    #[error("the interrupt controller did not take its state: {0}")]
    Gic(#[from] gic::Error),
}

/// Maps memory for the next machine's translated code, for a process that will not be let do so later. An error says
/// that the host lets no memory be executable; machines interpret then.
pub fn prepare() -> std::io::Result<()> {
    let wanted = Translation::from_environment() != Translation::Off && jit::TRANSLATES;
    if wanted { jit::memory::prepare() } else { Ok(()) }
}

/// Why nothing is translated on this host; `None` when hot code is.
pub fn interprets() -> Option<String> {
    if Translation::from_environment() == Translation::Off {
        return Some("SUPERMACHINE_JIT is 0".into());
    }
    if !jit::TRANSLATES {
        return Some("there are translators for x86-64 and arm64 hosts only".into());
    }
    jit::memory::CodeMemory::new().err().map(|e| format!("this system lets no memory be executable: {e}"))
}

/// What calls of this crate give.
pub type Result<T> = std::result::Result<T, Error>;
