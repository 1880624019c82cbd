//! arm64 guests on arm64 hosts: a provider of [`crate::arm64::Vm`] and [`crate::arm64::Vcpu`]. KVM serves PSCI, decodes
//! accesses and emulates the GIC and the timers itself; what it holds goes into snapshots in an encoding of its own.

mod gic;
mod regs;
mod vcpu;
mod vm;

pub use vm::KvmVm;
