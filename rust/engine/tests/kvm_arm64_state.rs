//! The state of vCPUs and of the interrupt controller on KVM, by a bare guest on a real device.

#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests make small numbers and bytes of counters"
)]
#![cfg(all(target_os = "linux", target_arch = "aarch64"))]

mod bare_arm64;
mod common;
mod host;

use bare_arm64::{DOORBELL, FOUND, Guest, Has};
use common::{Machine, RAM};
use host::kvm_here;
use supermachine_engine::Engine;
use supermachine_engine::arm64::state::Clock;
use supermachine_engine::arm64::{Exit, Reg, Vcpu};

/// EL1h, all interrupts masked.
const EL1H: u64 = 0x3c5;

/// A machine with the guest at its start, and its vCPU.
fn started() -> (Machine, Box<dyn Vcpu>, Guest) {
    let features = Machine::of(Engine::Kvm, 1, &[]).vm.create_vcpu(0).unwrap().features();
    let has = Has::of(&features);
    println!("{has:?}");
    let guest = Guest::new(has);
    let code: Vec<u8> = guest.code.iter().flat_map(|instruction| instruction.to_le_bytes()).collect();
    let machine = Machine::of(Engine::Kvm, 1, &code);
    let mut vcpu = machine.vm.create_vcpu(0).unwrap();
    vcpu.set_reg(Reg::CPSR, EL1H).unwrap();
    vcpu.set_reg(Reg::PC, RAM).unwrap();
    (machine, vcpu, guest)
}

/// Runs the guest until it rings, and until KVM has done with that.
fn ring(machine: &Machine, vcpu: &mut dyn Vcpu) {
    let exit = vcpu.run().unwrap();
    assert!(matches!(exit, Exit::Write { address: DOORBELL, .. }), "{exit:?}");
    machine.vm.canceller(0).unwrap()();
    assert_eq!(vcpu.run().unwrap(), Exit::Canceled);
}

#[test]
fn every_class_of_register_goes_over_into_a_new_vm() {
    if !kvm_here() {
        return;
    }
    let (machine, mut vcpu, guest) = started();
    ring(&machine, &mut *vcpu);
    let (machine, mut vcpu) = machine.moved(vcpu);
    ring(&machine, &mut *vcpu);
    let mut wrong = Vec::new();
    for place in &guest.places {
        let [before, after] = FOUND.map(|base| {
            let at = (base - RAM + place.offset) as usize;
            &machine.ram()[at..at + place.bytes as usize]
        });
        let set = before.iter().zip(&place.expected).all(|(found, expected)| found & expected == *expected);
        if !set || before != after {
            wrong.push(format!(
                "{}: set to {:x?}, then {before:x?}, restored {after:x?}",
                place.name, place.expected
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_was_restored_is_saved_as_it_was() {
    if !kvm_here() {
        return;
    }
    let (machine, mut vcpu, _) = started();
    ring(&machine, &mut *vcpu);
    let saved = vcpu.save().unwrap();
    let (machine, vcpu) = machine.moved(vcpu);
    // The counter is no part of it.
    assert_eq!(vcpu.save().unwrap(), saved);
    // KVM gives a table of LPIs that nobody has set other attributes when it is set to nothing (GICR_PROPBASER).
    let controller = machine.vm.gic_state().unwrap();
    let (machine, _vcpu) = machine.moved(vcpu);
    assert_eq!(machine.vm.gic_state().unwrap(), controller);
}

#[test]
fn damaged_state_is_refused_without_harm() {
    if !kvm_here() {
        return;
    }
    let (machine, mut vcpu, _) = started();
    ring(&machine, &mut *vcpu);
    let (saved, controller) = (vcpu.save().unwrap(), machine.vm.gic_state().unwrap());
    let clock = Clock::resuming(0, machine.vm.host_counter());
    for len in (0..saved.len()).step_by(97) {
        assert!(vcpu.restore(&saved[..len], clock).is_err());
    }
    for len in (0..controller.len()).step_by(97) {
        assert!(machine.vm.set_gic_state(&controller[..len]).is_err());
    }
    // Any byte may be wrong: an error or another state, but no panic.
    for at in (0..saved.len()).step_by(53) {
        let mut wrong = saved.clone();
        wrong[at] ^= 0xff;
        let _ = vcpu.restore(&wrong, clock);
    }
    for at in (0..controller.len()).step_by(29) {
        let mut wrong = controller.clone();
        wrong[at] ^= 0xff;
        let _ = machine.vm.set_gic_state(&wrong);
    }
    // And the right ones still work.
    machine.vm.set_gic_state(&controller).unwrap();
    vcpu.restore(&saved, clock).unwrap();
    ring(&machine, &mut *vcpu);
}
