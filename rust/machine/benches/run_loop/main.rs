//! What the run loop adds to an exit: from one KVM_RUN to the next beyond the ioctl itself.
//!
//! The same few instructions run in a machine, with its devices, counters and vCPU thread, and in a VM with nothing
//! around it but the ioctl; by turns, since exits take as long as the host likes. `cargo bench -p supermachine-machine`

#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests make small numbers and bytes of counters"
)]

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod bare;

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn main() {
    if let Err(reason) = supermachine_machine::kvm::host::open() {
        println!("nothing to measure: {reason}");
        return;
    }
    for access in [bare::Access::Port, bare::Access::Mmio] {
        let mut rounds = Vec::new();
        for _ in 0..bare::ROUNDS {
            let (with, without) = (bare::machine(access), bare::ioctl(access));
            rounds.push((with, without, with - without));
        }
        let median = |of: fn(&(f64, f64, f64)) -> f64| {
            let mut values: Vec<_> = rounds.iter().map(of).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        println!(
            "{{\"access\": \"{access:?}\", \"exits\": {}, \"rounds\": {}, \"machine_us\": {:.3}, \"ioctl_us\": {:.3}, \"overhead_us\": {:.3}}}",
            bare::EXITS,
            bare::ROUNDS,
            median(|round| round.0),
            median(|round| round.1),
            median(|round| round.2),
        );
    }
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn main() {
    println!("nothing to measure: this bench is for KVM on x86_64");
}
