//! An arm64 VM of an engine, with a little memory.

#![allow(unsafe_code, reason = "raw memory and C calls, to test with")]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use supermachine_engine::arm64::state::Clock;
use supermachine_engine::arm64::{Vcpu, Vm, VmConfig};
use supermachine_engine::{Engine, Protection};

pub(crate) const RAM: u64 = 0x4000_0000;
const RAM_BYTES: usize = 64 << 10;
pub(crate) const CONFIG: VmConfig = VmConfig { vcpus: 1, gicd_base: 0x0800_0000, gicr_base: 0x080a_0000 };

/// A process has one VM at a time, and tests share a process.
static ONE: Mutex<()> = Mutex::new(());

pub(crate) fn exclusive() -> MutexGuard<'static, ()> {
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A machine with `code` at the start of its memory.
pub(crate) struct Machine {
    pub vm: Arc<dyn Vm>,
    engine: Engine,
    ram: NonNull<u8>,
    _exclusive: MutexGuard<'static, ()>,
}

impl Machine {
    /// On the hvf engine over the software framework.
    #[allow(dead_code, reason = "each test program uses a part of this")]
    pub(crate) fn new(vcpus: u32, code: &[u32]) -> Self {
        let code: Vec<u8> = code.iter().flat_map(|instruction| instruction.to_le_bytes()).collect();
        Self::of(Engine::Hvf, vcpus, &code)
    }

    /// A machine whose memory begins with these bytes.
    pub(crate) fn of(engine: Engine, vcpus: u32, bytes: &[u8]) -> Self {
        let exclusive = exclusive();
        let vm = supermachine_engine::create_arm64_vm(engine, VmConfig { vcpus, ..CONFIG }).unwrap();
        // SAFETY: the layout is not empty.
        let ram = NonNull::new(unsafe { alloc_zeroed(layout()) }).unwrap();
        assert!(bytes.len() <= RAM_BYTES);
        // SAFETY: the bytes fit into the memory, which no vCPU uses yet.
        unsafe { ram.as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        // SAFETY: the memory outlives the VM, see `drop`.
        unsafe { vm.map(ram, RAM, RAM_BYTES as u64, Protection::ReadWriteExecute).unwrap() };
        Self { vm, engine, ram, _exclusive: exclusive }
    }

    /// A new machine with all that there was in this one and its only vCPU.
    #[allow(dead_code, reason = "as above")]
    pub(crate) fn moved(self, vcpu: Box<dyn Vcpu>) -> (Self, Box<dyn Vcpu>) {
        let (engine, saved, controller) = (self.engine, vcpu.save().unwrap(), self.vm.gic_state().unwrap());
        let count = self.vm.host_counter().wrapping_sub(vcpu.vtimer_offset());
        let ram = self.ram().to_vec();
        drop(vcpu);
        drop(self);
        let machine = Self::of(engine, 1, &ram);
        let mut vcpu = machine.vm.create_vcpu(0).unwrap();
        machine.vm.set_gic_state(&controller).unwrap();
        vcpu.restore(&saved, Clock::resuming(count, machine.vm.host_counter())).unwrap();
        (machine, vcpu)
    }

    /// The memory, while no vCPU runs.
    #[allow(dead_code, reason = "as above")]
    pub(crate) fn ram(&self) -> &[u8] {
        // SAFETY: the memory is this long, and tests look at it between runs only.
        unsafe { std::slice::from_raw_parts(self.ram.as_ptr(), RAM_BYTES) }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // A test that fails may still have vCPUs somewhere; their memory stays then.
        if Arc::strong_count(&self.vm) == 1 && !std::thread::panicking() {
            // SAFETY: it came from alloc_zeroed with this layout, and the VM, whose last reference this is, runs
            // nothing.
            unsafe { dealloc(self.ram.as_ptr(), layout()) };
        }
    }
}

fn layout() -> Layout {
    Layout::from_size_align(RAM_BYTES, 16 << 10).unwrap()
}
