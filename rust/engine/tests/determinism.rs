//! A guest whose vCPU is captured again and again, at moments that nobody chose, and restored in a new machine each
//! time, comes to the result that it comes to undisturbed.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use common::{Machine, RAM};
use supermachine_engine::arm64::{Exit, Reg, SimdReg, SysReg, Vcpu};

/// A chain of integer, floating-point, vector and memory operations, X1 times; then HVC, and again X6 times.
const CHAIN: [u32; 15] = [
    0x9b02_7c00, // loop: MUL X0, X0, X2
    0x8b03_0000, // ADD X0, X0, X3
    0xca40_7400, // EOR X0, X0, X0, LSR #29
    0xf900_0080, // STR X0, [X4]
    0xf940_0085, // LDR X5, [X4]
    0x9e63_00a1, // UCVTF D1, X5
    0x1e61_2842, // FADD D2, D2, D1
    0x1e63_0842, // FMUL D2, D2, D3
    0x4ea5_8484, // ADD V4.4S, V4.4S, V5.4S
    0x6e24_1ca5, // EOR V5.16B, V5.16B, V4.16B
    0xf100_0421, // SUBS X1, X1, #1
    0x54ff_fea1, // B.NE loop
    0xd400_00e2, // HVC #7
    0xaa06_03e1, // MOV X1, X6
    0x17ff_fff2, // B loop
];
const ROUNDS: u64 = 400_000;
const DATA: u64 = RAM + 0x8000;

fn begin(vcpu: &mut dyn Vcpu) {
    // No traps of vector instructions.
    vcpu.set_sys_reg(SysReg::CPACR_EL1, 3 << 20).unwrap();
    vcpu.set_reg(Reg::x(0), 0x1234_5678_9abc_def1).unwrap();
    vcpu.set_reg(Reg::x(1), ROUNDS).unwrap();
    vcpu.set_reg(Reg::x(2), 0x5851_f42d_4c95_7f2d).unwrap();
    vcpu.set_reg(Reg::x(3), 0x1405_7b7e_f767_814f).unwrap();
    vcpu.set_reg(Reg::x(4), DATA).unwrap();
    vcpu.set_reg(Reg::x(6), ROUNDS).unwrap();
    vcpu.set_simd_reg(SimdReg(3), 0.75_f64.to_bits().into()).unwrap();
    vcpu.set_simd_reg(SimdReg(5), 0x0000_0001_8000_0003_0000_0007_7fff_fff1).unwrap();
    vcpu.set_reg(Reg::CPSR, 0x3c5).unwrap();
    vcpu.set_reg(Reg::PC, RAM).unwrap();
}

/// X0, D2, V4 and the word in memory.
fn result(machine: &Machine, vcpu: &dyn Vcpu) -> (u64, [u128; 2], Vec<u8>) {
    let simd = [2, 4].map(|n| vcpu.simd_reg(SimdReg(n)).unwrap());
    (vcpu.reg(Reg::x(0)).unwrap(), simd, machine.ram()[0x8000..0x8010].to_vec())
}

fn undisturbed() -> (u64, [u128; 2], Vec<u8>) {
    let machine = Machine::new(1, &CHAIN);
    let mut vcpu = machine.vm.create_vcpu(0).unwrap();
    begin(&mut *vcpu);
    for _ in 0..2 {
        assert_eq!(vcpu.run().unwrap(), Exit::Hvc { immediate: 7 });
    }
    result(&machine, &*vcpu)
}

#[test]
fn a_guest_that_is_captured_at_any_moment_comes_to_the_same_result() {
    let expected = undisturbed();
    let mut machine = Machine::new(1, &CHAIN);
    let mut vcpu = machine.vm.create_vcpu(0).unwrap();
    begin(&mut *vcpu);
    let (mut captures, mut reports) = (0_u64, 0);
    loop {
        let cancel = machine.vm.canceller(0).unwrap();
        let over = AtomicBool::new(false);
        let exit = thread::scope(|scope| {
            scope.spawn(|| {
                // Anything from at once to a few milliseconds.
                thread::sleep(Duration::from_micros(captures * 7919 % 5000));
                if !over.load(Ordering::SeqCst) {
                    cancel();
                }
            });
            let exit = vcpu.run().unwrap();
            over.store(true, Ordering::SeqCst);
            exit
        });
        if exit == (Exit::Hvc { immediate: 7 }) {
            reports += 1;
            if reports == 2 {
                break;
            }
        }
        // Whatever ended the run, the guest goes on elsewhere.
        captures += 1;
        (machine, vcpu) = machine.moved(vcpu);
    }
    assert_eq!(result(&machine, &*vcpu), expected);
    assert!(captures > 0);
}
