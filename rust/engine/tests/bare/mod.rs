//! Bare guests for KVM on x86_64: a few hundred instructions in 64-bit mode, on page tables made here.

#![allow(unsafe_code, reason = "raw memory and C calls, to test with")]
// Each file of tests needs some of it.
#![allow(dead_code, reason = "each test program uses a part of this")]

pub(crate) mod classes;

use std::ptr::NonNull;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use supermachine_engine::Protection;
use supermachine_engine::kvm::kick::Kick;
use supermachine_engine::kvm::x86_64::{Bus, CpuModel, Exit, Start, Vcpu, Vm, tables};

/// The port whose writes the tests wait for.
pub(crate) const DOORBELL: u16 = 0x420;
pub(crate) const CODE: u64 = 0x1_0000;
pub(crate) const RESULTS: u64 = 0x2_0000;
/// How long a guest may take to ring.
const PATIENCE: Duration = Duration::from_secs(60);
const MEMORY: usize = 0x4_0000;
const TABLES: u64 = 0x1000;
const GDT: u64 = 0x8000;
const STACK: u64 = 0x9000;
/// Where a guest's program begins and ends in this test's own code.
pub(crate) type Program = (unsafe extern "C" fn(), unsafe extern "C" fn());

/// Page-aligned memory of a guest.
pub(crate) struct Memory(NonNull<u8>);

impl Memory {
    pub(crate) fn new() -> Self {
        // SAFETY: a new anonymous mapping, which nothing else refers to.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                MEMORY,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(at, libc::MAP_FAILED);
        Self(NonNull::new(at.cast()).unwrap())
    }

    pub(crate) fn copy(&self) -> Self {
        let copy = Self::new();
        copy.write(0, &self.read(0, MEMORY));
        copy
    }

    pub(crate) fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= MEMORY);
        // SAFETY: inside the mapping; no vCPU runs while tests write.
        unsafe { self.0.as_ptr().add(at).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    pub(crate) fn read(&self, at: usize, len: usize) -> Vec<u8> {
        assert!(at + len <= MEMORY);
        let mut bytes = vec![0; len];
        // SAFETY: as above.
        unsafe { self.0.as_ptr().add(at).copy_to_nonoverlapping(bytes.as_mut_ptr(), len) };
        bytes
    }

    pub(crate) fn word(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.read(at as usize, 8).try_into().unwrap())
    }

    /// Page tables, segments and the program.
    pub(crate) fn load(&self, (start, end): Program) {
        self.write(TABLES as usize, &tables::identity(TABLES));
        self.write(GDT as usize, &tables::gdt());
        let len = end as usize - start as usize;
        // SAFETY: the assembler put the program between these two symbols.
        self.write(CODE as usize, unsafe { std::slice::from_raw_parts(start as *const u8, len) });
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`; the VM that it was mapped into is gone or never runs again.
        unsafe { libc::munmap(self.0.as_ptr().cast(), MEMORY) };
    }
}

/// A VM with its memory. Fields drop in order: the VM first.
pub(crate) struct Guest {
    pub vm: Arc<Vm>,
    pub memory: Memory,
}

impl Guest {
    pub(crate) fn new(vcpus: u32, memory: Memory, model: Option<CpuModel>) -> Self {
        let vm = Vm::new(vcpus, model).unwrap();
        // SAFETY: the memory lives as long as the VM.
        unsafe { vm.map(memory.0, 0, MEMORY as u64, Protection::ReadWriteExecute) }.unwrap();
        Self { vm, memory }
    }

    /// A guest of one vCPU about to run `program`.
    pub(crate) fn running(program: Program) -> (Self, Vcpu) {
        let memory = Memory::new();
        memory.load(program);
        let guest = Self::new(1, memory, None);
        let mut vcpu = guest.vm.create_vcpu(0).unwrap();
        vcpu.start(&start()).unwrap();
        (guest, vcpu)
    }

    /// Runs until the guest rings the doorbell; what it wrote.
    pub(crate) fn ring(&self, vcpu: &mut Vcpu) -> u8 {
        let mut doorbell = Doorbell { kick: self.vm.kick(0), rung: None };
        // A guest that never rings is brought back, and the test fails in place of hanging.
        let (done, watched) = mpsc::channel::<()>();
        let kick = self.vm.kick(0);
        let watchdog = thread::spawn(move || {
            if watched.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
                kick.request();
            }
        });
        assert_eq!(vcpu.run(&mut doorbell).unwrap(), Exit::Canceled, "{:x?}", vcpu.registers());
        drop(done);
        watchdog.join().unwrap();
        doorbell.rung.expect("the guest left without ringing")
    }
}

pub(crate) fn start() -> Start {
    Start { rip: CODE, rsp: STACK, rsi: 0, cr3: TABLES, gdt: GDT }
}

/// Stops the vCPU when the guest writes to [`DOORBELL`].
struct Doorbell {
    kick: Arc<Kick>,
    rung: Option<u8>,
}

impl Bus for Doorbell {
    fn port_read(&mut self, _: u16, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn port_write(&mut self, port: u16, data: &[u8]) {
        if port == DOORBELL {
            self.rung = Some(data[0]);
            self.kick.request();
        }
    }

    fn mmio_read(&mut self, address: u64, _: &mut [u8]) {
        panic!("the guest read {address:#x}");
    }

    fn mmio_write(&mut self, address: u64, _: &[u8]) {
        panic!("the guest wrote to {address:#x}");
    }
}
