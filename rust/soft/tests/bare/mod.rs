//! A machine for programs of a few instructions.

#![allow(unsafe_code, reason = "raw memory and C calls, to test with")]
#![allow(dead_code, reason = "each test file uses a part")]

use std::process::Command;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use supermachine_soft::id::{Reg, SysReg};
use supermachine_soft::{Protection, Translation, Vcpu, Vm, VmConfig};

/// translated.rs has the tests of the other files, and all code translated; bounded.rs too.
fn translation() -> Translation {
    if matches!(env!("CARGO_CRATE_NAME"), "translated" | "bounded") {
        Translation::Always
    } else {
        Translation::Off
    }
}

pub(crate) const RAM: u64 = 0x4000_0000;
pub(crate) const SIZE: usize = 4 << 20;

/// A machine with 4 MiB of RAM. vCPUs made from it must be gone before it.
pub(crate) struct Machine {
    pub vm: Vm,
    ram: NonNull<u8>,
}

impl Machine {
    pub(crate) fn new(vcpus: u32) -> Self {
        Self::with(vcpus, translation())
    }

    pub(crate) fn with(vcpus: u32, translation: Translation) -> Self {
        let vm = Vm::new(VmConfig { vcpus, translation, ..VmConfig::default() }).unwrap();
        let layout = std::alloc::Layout::from_size_align(SIZE, 4096).unwrap();
        // SAFETY: the layout is not empty. The memory is never freed, which a test can afford.
        let ram = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) }).unwrap();
        // SAFETY: nothing else refers to the memory, and it stays.
        unsafe { vm.map(ram, RAM, SIZE as u64, Protection::ReadWriteExecute) }.unwrap();
        Self { vm, ram }
    }

    pub(crate) fn put(&self, at: u64, words: &[u32]) {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        assert!(at as usize + bytes.len() <= SIZE);
        // SAFETY: inside the memory, by the check above.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.ram.as_ptr().add(at as usize), bytes.len())
        };
    }

    pub(crate) fn put64(&self, at: u64, v: u64) {
        self.put(at, &[v as u32, (v >> 32) as u32]);
    }

    pub(crate) fn get64(&self, at: u64) -> u64 {
        assert!(at as usize + 8 <= SIZE);
        // SAFETY: inside the memory, by the check above.
        unsafe { self.ram.as_ptr().add(at as usize).cast::<u64>().read_unaligned() }
    }

    /// A vCPU that starts at RAM + `at` with these registers.
    pub(crate) fn vcpu(&self, index: u32, at: u64, x: &[(u32, u64)]) -> Vcpu {
        let mut v = self.vm.create_vcpu(index).unwrap();
        v.set_reg(Reg::PC, RAM + at).unwrap();
        for (n, value) in x {
            v.set_reg(Reg::x(*n), *value).unwrap();
        }
        v
    }

    /// Tables at RAM + 0x10000 that map the first GiB at RAM to itself, and one page at VA 0x1000_0000 by the entry at
    /// the returned offset.
    pub(crate) fn tables(&self, vcpus: &mut [&mut Vcpu]) -> u64 {
        let table = |n: u64| 0x1_0000 + n * 0x1000;
        let link = |n: u64| (RAM + table(n)) | 3;
        // T0SZ 25: the walk starts at level 1.
        self.put64(table(0), link(1));
        // A block of 1 GiB, normal memory, accessed.
        self.put64(table(0) + 8, RAM | 1 << 10 | 1);
        self.put64(table(1) + (0x1000_0000 >> 21) * 8, link(2));
        for v in vcpus {
            v.set_sys_reg(SysReg::TCR_EL1, 25 | 25 << 16 | 2 << 30).unwrap();
            v.set_sys_reg(SysReg::TTBR0_EL1, RAM + table(0)).unwrap();
            v.set_sys_reg(SysReg::VBAR_EL1, RAM + 0x2000).unwrap();
            let sctlr = v.sys_reg(SysReg::SCTLR_EL1).unwrap();
            v.set_sys_reg(SysReg::SCTLR_EL1, sctlr | 1).unwrap();
        }
        // Exceptions from EL1h come out as HVC #9.
        self.put(0x2200, &[0xd400_0122]);
        table(2)
    }
}

/// The entry of a page that EL1 may read and write.
pub(crate) const fn page(pa: u64) -> u64 {
    pa | 1 << 10 | 3
}

pub(crate) const READ_ONLY: u64 = 1 << 7;

/// The words that GNU as makes of some code.
pub(crate) fn assemble(name: &str, text: &str) -> Vec<u32> {
    // Tests that run beside each other may have names in common.
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let file = |ending: &str| {
        let name = format!("supermachine-code-{}-{number}-{name}.{ending}", std::process::id());
        std::env::temp_dir().join(name)
    };
    let [source, object, binary] = ["s", "o", "bin"].map(file);
    std::fs::write(&source, format!(".arch armv8.3-a\n{text}\n")).expect("a file for the assembler");
    let run = |program: &str, args: &[&std::ffi::OsStr]| {
        let done = Command::new(program).args(args).output();
        let done = done.unwrap_or_else(|e| panic!("{program} does not start: {e}"));
        assert!(done.status.success(), "{name}: {}\n{text}", String::from_utf8_lossy(&done.stderr));
    };
    run("aarch64-linux-gnu-as", &[source.as_os_str(), "-o".as_ref(), object.as_os_str()]);
    run(
        "aarch64-linux-gnu-objcopy",
        &["-O".as_ref(), "binary".as_ref(), object.as_os_str(), binary.as_os_str()],
    );
    let bytes = std::fs::read(&binary).expect("what objcopy wrote");
    for f in [source, object, binary] {
        let _ = std::fs::remove_file(f);
    }
    bytes.chunks_exact(4).map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]])).collect()
}
