//! One virtual CPU: made, started in long mode, run until something is to be looked at.

use std::sync::Arc;
use std::time::Duration;

use kvm_bindings::{kvm_fpu, kvm_regs, kvm_segment};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::vm::Vm;
use crate::kvm::kick::Kick;
use crate::kvm::{Error, Named, Result};

/// CR0: protection, extension type, write protection, paging (Intel SDM 3A, 2.5).
const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_WP: u64 = 1 << 16;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
/// EFER: long mode enabled and active.
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// RFLAGS with nothing set but the bit that always is.
const RFLAGS: u64 = 2;
/// x87 control word and MXCSR after initialisation: all exceptions masked.
const FCW: u16 = 0x37f;
const MXCSR: u32 = 0x1f80;
/// Local vector table entries for LINT0 and LINT1, and their delivery modes (Intel SDM 3A, 10.5.1).
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const MODE_NMI: u32 = 4 << 8;
const MODE_EXTINT: u32 = 7 << 8;
/// How often a first KVM_RUN that the kernel has no memory for is tried again, and after how long. The kernel makes
/// page tables then and may fail under pressure that passes.
const ENOMEM_TRIES: u32 = 10;
const ENOMEM_WAIT: Duration = Duration::from_millis(5);

/// What answers at ports and at addresses without memory.
pub trait Bus {
    /// IN and INS: fills `data` from the port, one item after the other.
    fn port_read(&mut self, port: u16, data: &mut [u8]);
    /// OUT and OUTS: takes `data`, one item after the other.
    fn port_write(&mut self, port: u16, data: &[u8]);
    /// Fills `data`, at most 8 bytes, from a guest physical address.
    fn mmio_read(&mut self, address: u64, data: &mut [u8]);
    /// Takes `data`, at most 8 bytes, at a guest physical address.
    fn mmio_write(&mut self, address: u64, data: &[u8]);
}

/// Why [`Vcpu::run`] came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// A [`Kick`] asked for it. The last access that the guest made is complete.
    Canceled,
    /// The guest shut itself down by a triple fault: how Linux resets here.
    Shutdown,
}

/// Where a vCPU starts in 64-bit mode, on page tables and segments that are in memory.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// The first instruction's address.
    pub rip: u64,
    /// The stack's end.
    pub rsp: u64,
    /// Where Linux looks for its boot parameters.
    pub rsi: u64,
    /// Where [`tables::identity`](super::tables::identity) is in memory.
    pub cr3: u64,
    /// Where [`tables::gdt`](super::tables::gdt) is.
    pub gdt: u64,
}

impl Start {
    /// Descriptors for the segments that a vCPU starts with: none, (unused), code, data, task state. Linux's 64-bit
    /// boot protocol asks for __BOOT_CS 0x10 and __BOOT_DS 0x18 (Documentation/arch/x86/boot.rst).
    pub(super) const GDT: [u64; 5] =
        [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x008f_8b00_0000_ffff];

    /// Puts a vCPU there: its segments, control and general registers. For [`Vcpu::start`], and for what measures the
    /// ioctls of KVM alone.
    #[doc(hidden)]
    pub fn load(&self, vcpu: &VcpuFd) -> Result<()> {
        let mut sregs = vcpu.get_sregs().named("KVM_GET_SREGS")?;
        let segment = |selector: u16, type_: u8| kvm_segment {
            limit: u32::MAX,
            selector,
            type_,
            present: 1,
            s: 1,
            g: 1,
            ..Default::default()
        };
        let data = kvm_segment { db: 1, ..segment(0x18, 3) };
        sregs.cs = kvm_segment { l: 1, ..segment(0x10, 11) };
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
        sregs.tr = kvm_segment { s: 0, ..segment(0x20, 11) };
        #[expect(clippy::cast_possible_truncation, reason = "a table of a few entries")]
        let limit = (size_of_val(&Self::GDT) - 1) as u16;
        (sregs.gdt.base, sregs.gdt.limit) = (self.gdt, limit);
        (sregs.idt.base, sregs.idt.limit) = (0, 0);
        sregs.cr0 = CR0_PE | CR0_ET | CR0_WP | CR0_PG;
        sregs.cr3 = self.cr3;
        sregs.cr4 = CR4_PAE;
        sregs.efer = EFER_LME | EFER_LMA;
        vcpu.set_sregs(&sregs).named("KVM_SET_SREGS")?;
        let regs = kvm_regs {
            rip: self.rip,
            rsp: self.rsp,
            rbp: self.rsp,
            rsi: self.rsi,
            rflags: RFLAGS,
            ..Default::default()
        };
        vcpu.set_regs(&regs).named("KVM_SET_REGS")
    }
}

/// A vCPU; used on the thread that created it.
pub struct Vcpu {
    pub(super) vm: Arc<Vm>,
    pub(super) fd: VcpuFd,
    kick: Arc<Kick>,
    enomem_left: u32,
}

impl Vcpu {
    pub(super) fn new(vm: Arc<Vm>, index: u32) -> Result<Self> {
        let mut fd = vm.fd.create_vcpu(index.into()).named("KVM_CREATE_VCPU")?;
        if vm.scale_tsc {
            fd.set_tsc_khz(vm.model.tsc_khz).named("KVM_SET_TSC_KHZ")?;
        }
        fd.set_cpuid2(&vm.model.for_vcpu(index, vm.vcpus)?).named("KVM_SET_CPUID2")?;
        let kick = vm.kick(index);
        // SAFETY: `drop` detaches before the page is unmapped; a vCPU is not Send, so this thread outlives it.
        unsafe { kick.attach(fd.get_kvm_run()) };
        Ok(Self { vm, fd, kick, enomem_left: ENOMEM_TRIES })
    }

    /// Makes this the vCPU that boots.
    pub fn start(&mut self, start: &Start) -> Result<()> {
        start.load(&self.fd)?;
        let fpu = kvm_fpu { fcw: FCW, mxcsr: MXCSR, ..Default::default() };
        self.fd.set_fpu(&fpu).named("KVM_SET_FPU")?;

        // The PICs reach the first CPU by LINT0, as the MP table says.
        let mut lapic = self.fd.get_lapic().named("KVM_GET_LAPIC")?;
        for (at, mode) in [(LVT_LINT0, MODE_EXTINT), (LVT_LINT1, MODE_NMI)] {
            for (to, byte) in lapic.regs[at..at + 4].iter_mut().zip(mode.to_le_bytes()) {
                *to = byte.cast_signed();
            }
        }
        self.fd.set_lapic(&lapic).named("KVM_SET_LAPIC")
    }

    /// General registers.
    pub fn registers(&self) -> Result<kvm_regs> {
        self.fd.get_regs().named("KVM_GET_REGS")
    }

    /// Runs the guest, with `bus` serving its accesses, until there is something else to do.
    pub fn run(&mut self, bus: &mut (impl Bus + ?Sized)) -> Result<Exit> {
        loop {
            match self.fd.run() {
                Ok(VcpuExit::IoIn(port, data)) => bus.port_read(port, data),
                Ok(VcpuExit::IoOut(port, data)) => bus.port_write(port, data),
                Ok(VcpuExit::MmioRead(address, data)) => bus.mmio_read(address, data),
                Ok(VcpuExit::MmioWrite(address, data)) => bus.mmio_write(address, data),
                Ok(VcpuExit::Shutdown) => return Ok(Exit::Shutdown),
                Ok(VcpuExit::Intr) => {}
                Ok(VcpuExit::FailEntry(reason, cpu)) => {
                    return Err(Error::Guest(format!("entry failed on CPU {cpu} for reason {reason:#x}")));
                }
                Ok(VcpuExit::InternalError) => {
                    if !self.breakpoint()? {
                        return Err(self.internal_error());
                    }
                }
                Ok(exit) => {
                    let exit = format!("{exit:?}");
                    return Err(Error::Guest(format!("it left with {exit}{}", self.place())));
                }
                Err(error) => match error.errno() {
                    libc::EINTR => {
                        if self.kick.take() {
                            return Ok(Exit::Canceled);
                        }
                    }
                    // A vCPU that waits to be started was woken for nothing.
                    libc::EAGAIN => {}
                    libc::ENOMEM if self.enomem_left > 0 => {
                        self.enomem_left -= 1;
                        std::thread::sleep(ENOMEM_WAIT);
                        continue;
                    }
                    _ => return Err(Error::Call { call: "KVM_RUN", source: error }),
                },
            }
            self.enomem_left = 0;
        }
    }

    /// Has the guest take the breakpoint exception that it is at, when that is what KVM could not emulate: Linux makes
    /// sure of breakpoints as it boots, and a KVM that runs kernel code by emulation does not know the instruction.
    fn breakpoint(&mut self) -> Result<bool> {
        /// INT3, and the vector of its exception, #BP.
        const INT3: u8 = 0xcc;
        const BREAKPOINT: u8 = 3;
        let run = self.fd.get_kvm_run();
        // SAFETY: the exit was KVM_EXIT_INTERNAL_ERROR, for which the kernel fills in this member of the union.
        let failure = unsafe { run.__bindgen_anon_1.emulation_failure };
        // SAFETY: the instruction's bytes are only looked at when the flag says that the kernel put them there.
        let instruction = unsafe { failure.__bindgen_anon_1.__bindgen_anon_1 };
        let told =
            failure.flags & u64::from(kvm_bindings::KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) != 0;
        let emulation = failure.suberror == kvm_bindings::KVM_INTERNAL_ERROR_EMULATION && failure.ndata >= 3;
        if !(emulation && told && instruction.insn_size > 0 && instruction.insn_bytes[0] == INT3) {
            return Ok(false);
        }
        let mut regs = self.registers()?;
        regs.rip += 1;
        self.fd.set_regs(&regs).named("KVM_SET_REGS")?;
        let mut events = self.fd.get_vcpu_events().named("KVM_GET_VCPU_EVENTS")?;
        (events.exception.injected, events.exception.nr, events.exception.has_error_code) =
            (1, BREAKPOINT, 0);
        self.fd.set_vcpu_events(&events).named("KVM_SET_VCPU_EVENTS")?;
        Ok(true)
    }

    /// What KVM says of an error of its own; most often an instruction that it cannot emulate.
    fn internal_error(&mut self) -> Error {
        let run = self.fd.get_kvm_run();
        // SAFETY: the exit was KVM_EXIT_INTERNAL_ERROR, for which the kernel fills in this member of the union.
        let internal = unsafe { run.__bindgen_anon_1.internal };
        let data = &internal.data[..internal.data.len().min(internal.ndata as usize)];
        Error::Guest(format!("internal error {}, data {data:x?}{}", internal.suberror, self.place()))
    }

    /// Where the guest is, for a message.
    fn place(&self) -> String {
        self.registers().map_or_else(|_| String::new(), |regs| format!(" at {:#x}", regs.rip))
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        self.kick.detach();
    }
}
