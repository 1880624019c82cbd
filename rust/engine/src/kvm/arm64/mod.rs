//! arm64 guests on arm64 hosts: a provider of [`crate::arm64::Vm`] and [`crate::arm64::Vcpu`]. KVM serves PSCI, decodes
//! accesses and emulates the GIC and the timers itself; what it holds goes into snapshots in an encoding of its own.

#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "the kernel's structures and registers have widths of their own, on 64-bit hosts alone"
)]

mod gic;
mod regs;
mod vcpu;
mod vm;

pub use vm::KvmVm;
