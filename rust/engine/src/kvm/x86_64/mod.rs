//! x86_64 guests on x86_64 hosts.

pub mod cpuid;
pub mod features;
mod ioctl;
mod state;
pub mod tables;
mod vcpu;
mod vm;

pub use cpuid::CpuModel;
pub use vcpu::{Bus, Exit, Start, Vcpu};
pub use vm::Vm;
