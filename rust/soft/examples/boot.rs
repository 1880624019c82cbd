//! Boots an arm64 kernel on the bare core: `boot IMAGE DTB [VCPUS [MIB [INITRAMFS]]]`. The device tree is taken as it
//! is (RAM at 0x40000000, GICv3, PL011 at 0x09000000, PSCI by HVC; an initramfs is put 64 MiB into RAM); what the
//! guest writes to the PL011 goes to standard output. Ends with the guest (PSCI SYSTEM_OFF or SYSTEM_RESET), and
//! says how many instructions it ran.

#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests make small numbers and bytes of counters"
)]
#![allow(unsafe_code, reason = "raw memory and C calls, to test with")]

use std::io::Write;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Instant;

use supermachine_soft::id::{Reg, SysReg};
use supermachine_soft::{Canceller, Exit, Protection, Vcpu, Vm, VmConfig};

const RAM: u64 = 0x4000_0000;
const UART: u64 = 0x0900_0000;
const INITRAMFS: usize = 64 << 20;

/// PC and X0 that a vCPU starts with.
type Start = (u64, u64);

struct Machine {
    starts: Vec<mpsc::Sender<Start>>,
    cancellers: Vec<Canceller>,
    done: Mutex<bool>,
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let number = |i: usize, default: usize| args.get(i).map_or(default, |v| v.parse().expect("a number"));
    let (vcpus, mib) = (number(3, 1), number(4, 256));
    let image = std::fs::read(&args[1]).expect("the kernel");
    let dtb = std::fs::read(&args[2]).expect("the device tree");
    let size = mib << 20;
    // SAFETY: a fresh anonymous mapping.
    let ram = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            size,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    assert_ne!(ram, libc::MAP_FAILED, "cannot map guest memory");
    let put = |at: usize, bytes: &[u8]| {
        assert!(at + bytes.len() <= size, "the guest's memory is too small");
        // SAFETY: inside the mapping, by the check above.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), ram.cast::<u8>().add(at), bytes.len()) };
    };
    put(0, &image);
    let tree = size - (2 << 20);
    put(tree, &dtb);
    if let Some(path) = args.get(5) {
        put(INITRAMFS, &std::fs::read(path).expect("the initramfs"));
    }

    let vm = Vm::new(VmConfig { vcpus: vcpus as u32, ..VmConfig::default() }).expect("a machine");
    let host = NonNull::new(ram.cast()).expect("mappings are not at zero");
    // SAFETY: the mapping stays until the process ends.
    unsafe { vm.map(host, RAM, size as u64, Protection::ReadWriteExecute) }.expect("memory");
    let (starts, waits): (Vec<_>, Vec<_>) = (0..vcpus).map(|_| mpsc::channel()).unzip();
    let machine = Arc::new(Machine {
        cancellers: (0..vcpus).map(|i| vm.canceller(i as u32).expect("a vCPU")).collect(),
        starts,
        done: Mutex::new(false),
    });
    let start = Instant::now();
    machine.starts[0].send((RAM, RAM + tree as u64)).expect("the receiver is here");
    let threads: Vec<_> = waits
        .into_iter()
        .enumerate()
        .map(|(i, wait)| {
            let machine = machine.clone();
            let mut vcpu = vm.create_vcpu(i as u32).expect("a vCPU");
            std::thread::spawn(move || {
                while let Ok((pc, x0)) = wait.recv() {
                    if pc == 0 {
                        break;
                    }
                    vcpu.set_reg(Reg::PC, pc).expect("PC");
                    vcpu.set_reg(Reg::x(0), x0).expect("X0");
                    if !run(&machine, &mut vcpu) {
                        break;
                    }
                }
                vcpu.instructions()
            })
        })
        .collect();
    let instructions: u64 = threads.into_iter().map(|t| t.join().expect("a vCPU's thread")).sum();
    let seconds = start.elapsed().as_secs_f64();
    eprintln!(
        "\n{:.1} M instructions in {seconds:.3} s: {:.1} M/s",
        instructions as f64 / 1e6,
        instructions as f64 / 1e6 / seconds
    );
}

/// Runs until the vCPU is switched off (true) or the machine ends (false).
fn run(machine: &Machine, vcpu: &mut Vcpu) -> bool {
    loop {
        let exit = vcpu.run().expect("a run");
        let x = |vcpu: &Vcpu, n| vcpu.reg(Reg::x(n)).expect("a register");
        match exit {
            Exit::Canceled => {
                if *machine.done.lock().expect("no panics") {
                    return false;
                }
            }
            Exit::DataAbort(abort) => {
                let (iss, pa) = (abort.syndrome, abort.physical_address);
                let register = (iss >> 16 & 31) as u32;
                if iss >> 6 & 1 == 1 {
                    if pa == UART {
                        let value = if register == 31 { 0 } else { x(vcpu, register) };
                        let mut out = std::io::stdout().lock();
                        out.write_all(&[value as u8]).and_then(|()| out.flush()).expect("standard output");
                    }
                } else if register != 31 {
                    // Flags: transmitter empty. Everything else reads as zero.
                    let value = if pa == UART + 0x18 { 0x90 } else { 0 };
                    vcpu.set_reg(Reg::x(register), value).expect("a register");
                }
                let pc = vcpu.reg(Reg::PC).expect("PC");
                vcpu.set_reg(Reg::PC, pc + 4).expect("PC");
            }
            Exit::Hvc { .. } => {
                let result: i64 = match x(vcpu, 0) as u32 {
                    0x8400_0000 => 0x1_0001,
                    0x8400_000a => match x(vcpu, 1) as u32 {
                        0x8000_0000 => -1,
                        _ => 0,
                    },
                    0x8400_0006 => 2,
                    0xc400_0003 => {
                        let target = x(vcpu, 1) as usize;
                        match machine.starts.get(target) {
                            Some(s) => {
                                s.send((x(vcpu, 2), x(vcpu, 3))).expect("the vCPU's thread is there");
                                0
                            }
                            None => -2,
                        }
                    }
                    0x8400_0002 => return true,
                    0x8400_0008 | 0x8400_0009 => {
                        *machine.done.lock().expect("no panics") = true;
                        for s in &machine.starts {
                            // A vCPU that has ended already needs no word.
                            let _ = s.send((0, 0));
                        }
                        for c in &machine.cancellers {
                            c.cancel();
                        }
                        return false;
                    }
                    _ => -1,
                };
                vcpu.set_reg(Reg::x(0), result as u64).expect("X0");
            }
            Exit::Smc { .. } => {
                let esr = vcpu.sys_reg(SysReg::ESR_EL1).expect("ESR");
                panic!("the guest called a secure monitor that is not there (ESR {esr:#x})");
            }
        }
    }
}
