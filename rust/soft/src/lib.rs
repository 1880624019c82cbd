//! A software arm64 machine core: CPU, MMU, GICv3 and generic timer, with the shape of Hypervisor.framework.
//!
//! A [`Vm`] maps host memory at guest physical addresses and makes vCPUs; each [`Vcpu`] runs on the thread that
//! uses it until something happens that the machine around it must handle (an [`Exit`]). Registers are named by
//! Hypervisor.framework's ids ([`id`]). The interrupt controller and the virtual timer live in here, as they do in
//! the framework from macOS 15 on; WFI sleeps inside [`Vcpu::run`].

pub mod fp;
pub mod gic;
pub mod id;
mod regs;

pub use regs::Regs;
