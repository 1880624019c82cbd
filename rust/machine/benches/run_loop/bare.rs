//! A guest that does nothing but leave: as a kernel for a machine, and by itself.

#![allow(unsafe_code, reason = "guest memory is raw")]

use std::time::Instant;

use kvm_bindings::{KVM_EXIT_IO, KVM_EXIT_MMIO, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuFd};
use supermachine_machine::kvm::x86_64::{Start, tables};
use supermachine_machine::x86_64::layout;
use supermachine_machine::{Config, Engine, Machine, Stop};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// Exits of one run, and runs of each kind.
pub(crate) const EXITS: u32 = 5000;
pub(crate) const ROUNDS: usize = 15;
const MEMORY: u64 = 64 << 20;
/// Where the guest's program is, and begins.
const PROGRAM: u64 = layout::HIGH_RAM;
/// The keyboard controller's port, at which the guest ends itself.
const LAST_PORT: u16 = 0x64;

/// What makes the guest leave.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Access {
    /// A write to the UART's scratch register.
    Port,
    /// A write to the first virtio device's queue selector (virtio 1.2, 4.2.2).
    Mmio,
}

/// The guest: as many accesses as there are to be exits, then a reset.
fn program(access: Access) -> Vec<u8> {
    let mut code = Vec::new();
    code.push(0xb9); // mov ecx, EXITS
    code.extend(EXITS.to_le_bytes());
    let round: &[u8] = match access {
        Access::Port => {
            code.extend([0x66, 0xba]); // mov dx, the scratch register
            code.extend((layout::UART + 7).to_le_bytes());
            &[0xee] // out dx, al
        }
        Access::Mmio => {
            code.push(0xbb); // mov ebx, the queue selector
            code.extend((layout::VIRTIO_BASE as u32 + 0x30).to_le_bytes());
            code.extend([0x31, 0xc0]); // xor eax, eax
            &[0x89, 0x03] // mov [rbx], eax
        }
    };
    code.extend(round);
    code.extend([0xff, 0xc9]); // dec ecx
    code.extend([0x75, (-(round.len() as i8 + 4)) as u8]); // jnz to the access
    code.extend([0xb0, 0xfe, 0xe6, LAST_PORT as u8]); // mov al, 0xfe; out 0x64, al
    code.extend([0xf4, 0xeb, 0xfd]); // hlt; jmp to it
    code
}

/// The program as an ELF file with one segment.
fn kernel(access: Access) -> Vec<u8> {
    const HEADERS: u64 = 64 + 56;
    let program = program(access);
    let size = program.len() as u64;
    let mut elf = vec![0; HEADERS as usize];
    elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    (elf[16], elf[18]) = (2, 62); // ET_EXEC, EM_X86_64
    elf[24..32].copy_from_slice(&PROGRAM.to_le_bytes());
    elf[32] = 64;
    (elf[54], elf[56]) = (56, 1);
    elf[64] = 1; // PT_LOAD
    for (at, value) in [(72, HEADERS), (88, PROGRAM), (96, size), (104, size)] {
        elf[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    elf.extend(program);
    elf
}

/// Microseconds from exit to exit in a machine.
pub(crate) fn machine(access: Access) -> f64 {
    let machine = Machine::new(Config {
        engine: Engine::Kvm,
        memory_bytes: MEMORY,
        vcpus: 1,
        kernel: kernel(access),
        initramfs: Vec::new(),
        cmdline: String::new(),
        disks: Vec::new(),
    })
    .expect("a machine");
    let began = Instant::now();
    machine.start();
    assert_eq!(machine.wait(None), Some(Stop::Reset));
    let microseconds = began.elapsed().as_secs_f64() * 1e6;
    let exits: u64 = machine.stats().0.iter().map(|(_, count)| count).sum();
    // The last access, and being told to stop.
    assert!((EXITS.into()..=u64::from(EXITS) + 2).contains(&exits), "{exits} exits");
    microseconds / f64::from(EXITS)
}

/// The same with the ioctl alone.
pub(crate) fn ioctl(access: Access) -> f64 {
    let kvm = Kvm::new().expect("KVM");
    let vm = kvm.create_vm().expect("a VM");
    vm.set_tss_address(0xfffb_d000).expect("KVM_SET_TSS_ADDR");
    vm.create_irq_chip().expect("KVM_CREATE_IRQCHIP");
    let ram = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).expect("memory");
    for (bytes, at) in [
        (&tables::gdt(), layout::GDT),
        (&tables::identity(layout::PAGE_TABLES), layout::PAGE_TABLES),
        (&program(access), PROGRAM),
    ] {
        ram.write_slice(bytes, GuestAddress(at)).expect("a write inside the memory");
    }
    let region = kvm_userspace_memory_region {
        memory_size: MEMORY,
        userspace_addr: ram.get_host_address(GuestAddress(0)).expect("memory there") as u64,
        ..Default::default()
    };
    // SAFETY: the memory outlives the VM, which is gone when this returns.
    unsafe { vm.set_user_memory_region(region) }.expect("KVM_SET_USER_MEMORY_REGION");
    let mut vcpu = vm.create_vcpu(0).expect("a vCPU");
    let cpuid = kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES).expect("CPUID");
    vcpu.set_cpuid2(&cpuid).expect("KVM_SET_CPUID2");
    // As a machine's first vCPU.
    let start =
        Start { rip: PROGRAM, rsp: layout::BOOT_PARAMS, rsi: 0, cr3: layout::PAGE_TABLES, gdt: layout::GDT };
    start.load(&vcpu).expect("a vCPU in 64-bit mode");

    let expected = match access {
        Access::Port => KVM_EXIT_IO,
        Access::Mmio => KVM_EXIT_MMIO,
    };
    let began = Instant::now();
    for _ in 0..EXITS {
        run(&mut vcpu, expected);
    }
    let microseconds = began.elapsed().as_secs_f64() * 1e6;
    run(&mut vcpu, KVM_EXIT_IO);
    // SAFETY: the exit was KVM_EXIT_IO, for which the kernel fills in this member of the union.
    let port = unsafe { vcpu.get_kvm_run().__bindgen_anon_1.io.port };
    assert_eq!(port, LAST_PORT, "the guest is not where it should be after {EXITS} exits");
    microseconds / f64::from(EXITS)
}

fn run(vcpu: &mut VcpuFd, expected: u32) {
    vcpu.run().expect("KVM_RUN");
    assert_eq!(vcpu.get_kvm_run().exit_reason, expected);
}
