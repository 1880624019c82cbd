//! KVM calls that kvm-ioctls does not wrap (include/uapi/linux/kvm.h).

use std::os::fd::AsRawFd;

use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, kvm_device_attr, kvm_sregs2};
use kvm_ioctls::{VcpuFd, VmFd};

use crate::kvm::{Named, Result};

const NONE: u64 = 0;
const WRITE: u64 = 1;
const READ: u64 = 2;

/// The number of a KVM ioctl: direction, size of the argument, KVM's letter, number.
const fn number<T>(direction: u64, nr: u64) -> libc::Ioctl {
    // Of 32 bits, which musl's ioctl(2) takes as an int and glibc's as an unsigned long.
    (direction << 30 | (size_of::<T>() as u64) << 16 | 0xae << 8 | nr) as libc::Ioctl
}

const KVM_GET_TSC_KHZ: libc::Ioctl = number::<()>(NONE, 0xa3);
const KVM_GET_SREGS2: libc::Ioctl = number::<kvm_sregs2>(READ, 0xcc);
const KVM_SET_SREGS2: libc::Ioctl = number::<kvm_sregs2>(WRITE, 0xcd);
const KVM_SET_DEVICE_ATTR: libc::Ioctl = number::<kvm_device_attr>(WRITE, 0xe1);
const KVM_GET_DEVICE_ATTR: libc::Ioctl = number::<kvm_device_attr>(WRITE, 0xe2);

/// # Safety
/// `argument` is what KVM's call of this number takes, and so is whatever it points to.
unsafe fn call<T>(
    vcpu: &VcpuFd,
    number: libc::Ioctl,
    argument: *mut T,
) -> std::result::Result<(), kvm_ioctls::Error> {
    // SAFETY: the descriptor is open, and the caller answers for the argument.
    match unsafe { libc::ioctl(vcpu.as_raw_fd(), number, argument) } {
        0 => Ok(()),
        _ => Err(kvm_ioctls::Error::last()),
    }
}

/// The frequency of a VM's time stamp counters; `None` on kernels before 5.18, which do not say.
pub(super) fn tsc_khz(vm: &VmFd) -> Option<u32> {
    // SAFETY: the descriptor is open and the call takes no argument.
    let khz = unsafe { libc::ioctl(vm.as_raw_fd(), KVM_GET_TSC_KHZ, 0) };
    u32::try_from(khz).ok().filter(|khz| *khz != 0)
}

/// The special registers, with the page directory pointers of PAE paging.
pub(super) fn sregs2(vcpu: &VcpuFd) -> Result<kvm_sregs2> {
    let mut sregs = kvm_sregs2::default();
    // SAFETY: KVM_GET_SREGS2 fills in a kvm_sregs2.
    unsafe { call(vcpu, KVM_GET_SREGS2, &mut sregs) }.named("KVM_GET_SREGS2")?;
    Ok(sregs)
}

pub(super) fn set_sregs2(vcpu: &VcpuFd, sregs: &kvm_sregs2) -> Result<()> {
    let mut sregs = *sregs;
    // SAFETY: KVM_SET_SREGS2 reads a kvm_sregs2.
    unsafe { call(vcpu, KVM_SET_SREGS2, &mut sregs) }.named("KVM_SET_SREGS2")
}

/// What KVM adds to the (scaled) host's time stamp counter; `None` on kernels before 5.16, which do not say.
pub(super) fn tsc_offset(vcpu: &VcpuFd) -> Option<u64> {
    let mut offset = 0_u64;
    let mut attribute = tsc_attribute(&mut offset);
    // SAFETY: the attribute points to the u64 that it is; KVM writes it.
    unsafe { call(vcpu, KVM_GET_DEVICE_ATTR, &mut attribute) }.ok().map(|()| offset)
}

pub(super) fn set_tsc_offset(vcpu: &VcpuFd, mut offset: u64) -> Result<()> {
    let mut attribute = tsc_attribute(&mut offset);
    // SAFETY: the attribute points to the u64 that it is; KVM reads it.
    unsafe { call(vcpu, KVM_SET_DEVICE_ATTR, &mut attribute) }.named("KVM_SET_DEVICE_ATTR for the TSC offset")
}

fn tsc_attribute(offset: &mut u64) -> kvm_device_attr {
    let addr = std::ptr::from_mut(offset) as u64;
    kvm_device_attr { flags: 0, group: KVM_VCPU_TSC_CTRL, attr: KVM_VCPU_TSC_OFFSET.into(), addr }
}
