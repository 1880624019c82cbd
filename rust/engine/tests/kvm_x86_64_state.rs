//! The state of vCPUs and machines on KVM, by a bare guest on the real device.

#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests make small numbers and bytes of counters"
)]
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod bare;
mod host;

use bare::classes::{CLASSES, EXPECTED};
use bare::{Guest, RESULTS};
use host::kvm_here;
use supermachine_engine::kvm::x86_64::CpuModel;

#[test]
fn every_class_of_register_goes_over_into_a_new_vm() {
    if !kvm_here() {
        return;
    }
    let (guest, mut vcpu) = Guest::running(CLASSES);
    assert_eq!(guest.ring(&mut vcpu), 1);
    let (saved, machine, model) =
        (vcpu.save().unwrap(), guest.vm.save().unwrap(), guest.vm.model().encode().unwrap());
    let memory = guest.memory.copy();
    drop(vcpu);
    drop(guest);

    let guest = Guest::new(1, memory, Some(CpuModel::decode(&model).unwrap()));
    let mut vcpu = guest.vm.create_vcpu(0).unwrap();
    vcpu.restore(&saved).unwrap();
    guest.vm.restore(&machine).unwrap();
    assert_eq!(guest.ring(&mut vcpu), 2);
    for (n, (name, value)) in EXPECTED.iter().enumerate() {
        let found = guest.memory.word(RESULTS + 8 * n as u64);
        assert_eq!(found, *value, "{name} is {found:#x} and not {value:#x}");
    }
    // FXSAVE: the control and status words, the stack, MXCSR, and all of the vector registers.
    let fx = guest.memory.read(RESULTS as usize + 0x400, 512);
    assert_eq!(fx[..5], [0x7f, 2, 0, 0x30, 0x80]);
    assert_eq!(fx[24..28], [0xa0, 0x1f, 0, 0]);
    assert_eq!(fx[32..42], [0, 0, 0, 0, 0, 0, 0, 0x80, 0xff, 0x3f]);
    for n in 0..16 {
        let (low, high) = (0x0102_0304_0506_0708_u64.wrapping_mul(n + 1), 0x1112_1314_1516_1718 + n);
        let at = 160 + 16 * n as usize;
        assert_eq!(fx[at..at + 16], [low.to_le_bytes(), high.to_le_bytes()].concat(), "xmm{n}");
    }
}

#[test]
fn what_was_restored_is_saved_as_it_was() {
    if !kvm_here() {
        return;
    }
    let (guest, mut vcpu) = Guest::running(CLASSES);
    guest.ring(&mut vcpu);
    let (saved, machine) = (vcpu.save().unwrap(), guest.vm.save().unwrap());
    let copy = Guest::new(1, guest.memory.copy(), Some(guest.vm.model().clone()));
    let mut other = copy.vm.create_vcpu(0).unwrap();
    other.restore(&saved).unwrap();
    copy.vm.restore(&machine).unwrap();
    let again = other.save().unwrap();
    // Only the time stamp counter and its offset, at the end, have moved on.
    let same = saved.iter().zip(&again).take_while(|(a, b)| a == b).count();
    assert!(saved.len() - same <= 24, "different from byte {same} of {}", saved.len());
}

#[test]
fn damaged_state_is_refused_without_harm() {
    if !kvm_here() {
        return;
    }
    let (guest, mut vcpu) = Guest::running(CLASSES);
    guest.ring(&mut vcpu);
    let (saved, machine) = (vcpu.save().unwrap(), guest.vm.save().unwrap());
    for bytes in [&saved, &machine] {
        for len in (0..bytes.len()).step_by(97) {
            assert!(vcpu.restore(&bytes[..len]).is_err());
            assert!(guest.vm.restore(&bytes[..len]).is_err());
        }
    }
    // Any byte may be wrong: an error or another state, but no panic.
    for at in (0..saved.len()).step_by(53) {
        let mut wrong = saved.clone();
        wrong[at] ^= 0xff;
        let _ = vcpu.restore(&wrong);
    }
    for at in 0..machine.len().min(400) {
        let mut wrong = machine.clone();
        wrong[at] ^= 0xff;
        let _ = guest.vm.restore(&wrong);
    }
    // And the right ones still work.
    vcpu.restore(&saved).unwrap();
    guest.vm.restore(&machine).unwrap();
    assert_eq!(guest.ring(&mut vcpu), 2);
}
