//! Host memory at guest physical addresses (Documentation/virt/kvm/api.rst, 4.35).

use std::ptr::NonNull;
use std::sync::Mutex;

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use supermachine_support::lock;

use super::{Named, Result};
use crate::Protection;

/// The memory slots of a VM, by how many are taken; none is ever given back.
#[derive(Default)]
pub(super) struct MemorySlots(Mutex<u32>);

impl MemorySlots {
    /// Maps host memory at a guest physical address. KVM refuses what overlaps an earlier slot.
    ///
    /// # Safety
    /// `host` must be valid for `len` bytes (readable, and writable when `protection` says so) until the VM and all its
    /// vCPUs are gone.
    pub(super) unsafe fn map(
        &self,
        vm: &VmFd,
        host: NonNull<u8>,
        gpa: u64,
        len: u64,
        protection: Protection,
    ) -> Result<()> {
        let mut taken = lock(&self.0);
        let region = kvm_userspace_memory_region {
            slot: *taken,
            flags: if protection == Protection::Read { KVM_MEM_READONLY } else { 0 },
            guest_phys_addr: gpa,
            memory_size: len,
            userspace_addr: host.as_ptr() as u64,
        };
        // SAFETY: the caller promises that the memory stays as long as the VM does.
        unsafe { vm.set_user_memory_region(region) }.named("KVM_SET_USER_MEMORY_REGION")?;
        *taken += 1;
        Ok(())
    }
}
