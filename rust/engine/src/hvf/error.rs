//! What Hypervisor.framework's return codes mean to whoever wants a VM.

use applevisor_sys::{hv_error_t, hv_return_t};

/// Why the hvf engine could not do what it was asked to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error(
        "this executable may not use Hypervisor.framework: it lacks the entitlement com.apple.security.hypervisor; \
         `supermachine doctor` says how it is signed"
    )]
    NotEntitled,
    #[error(
        "this host has no hardware virtualisation to offer (it is itself a virtual machine, as hosted runners are); \
         the soft engine runs here"
    )]
    NoHypervisor,
    #[error("macOS {0} lacks the interrupt controller that the hvf engine needs; macOS 15 or newer has it")]
    OldSystem(String),
    #[error("this process has a virtual machine already; Hypervisor.framework allows one for each process")]
    Busy,
    #[error(
        "Hypervisor.framework has no resources for another virtual machine or vCPU; end one and try again"
    )]
    NoResources,
    #[error("{vcpus} vCPUs were asked for, and this host's Hypervisor.framework has at most {most}")]
    VcpuCount { vcpus: u32, most: u32 },
    #[error(
        "this host's interrupt controller does not fit the machine: {what} is {found:#x} and the machine needs \
         {needed:#x}"
    )]
    Layout { what: &'static str, found: u64, needed: u64 },
    #[error("vCPU {0} was not created in time, and no vCPU runs before all are there")]
    Incomplete(u32),
    #[error("there is no vCPU {0} in this machine, or it exists already")]
    BadVcpu(u32),
    #[error("Hypervisor.framework has no {0}; ids are its own")]
    UnknownRegister(String),
    #[error("a vCPU left the guest for a reason that this version does not know: {0}")]
    UnknownExit(u32),
    #[error("the guest's exception with syndrome {syndrome:#x} at {pc:#x} is not one that a machine serves")]
    UnknownException { syndrome: u64, pc: u64 },
    #[error(
        "the interrupt controller's state is not one that this host's Hypervisor.framework takes; it was saved by \
         another version of macOS, or is damaged"
    )]
    GicState,
    #[error("the interrupt controller's state cannot be had while a vCPU runs")]
    GicBusy,
    #[error("Hypervisor.framework's {call} failed: {}", name(*code))]
    Call { call: &'static str, code: hv_return_t },
}

pub type Result<T> = std::result::Result<T, Error>;

/// The error that a return code is, if it is one.
pub fn check(call: &'static str, code: hv_return_t) -> Result<()> {
    const SUCCESS: hv_return_t = hv_error_t::HV_SUCCESS as hv_return_t;
    const DENIED: hv_return_t = hv_error_t::HV_DENIED as hv_return_t;
    const UNSUPPORTED: hv_return_t = hv_error_t::HV_UNSUPPORTED as hv_return_t;
    const BUSY: hv_return_t = hv_error_t::HV_BUSY as hv_return_t;
    const NO_RESOURCES: hv_return_t = hv_error_t::HV_NO_RESOURCES as hv_return_t;
    // The first call that needs them tells what the host and the executable lack; later ones mean something else.
    match code {
        SUCCESS => Ok(()),
        DENIED if call == "hv_vm_create" => Err(Error::NotEntitled),
        UNSUPPORTED if call == "hv_vm_create" => Err(Error::NoHypervisor),
        BUSY if call == "hv_vm_create" => Err(Error::Busy),
        NO_RESOURCES => Err(Error::NoResources),
        code => Err(Error::Call { call, code }),
    }
}

/// A return code's name (hv_error.h).
fn name(code: hv_return_t) -> String {
    let known = [
        (hv_error_t::HV_ERROR, "HV_ERROR"),
        (hv_error_t::HV_BUSY, "HV_BUSY"),
        (hv_error_t::HV_BAD_ARGUMENT, "HV_BAD_ARGUMENT"),
        (hv_error_t::HV_ILLEGAL_GUEST_STATE, "HV_ILLEGAL_GUEST_STATE"),
        (hv_error_t::HV_NO_RESOURCES, "HV_NO_RESOURCES"),
        (hv_error_t::HV_NO_DEVICE, "HV_NO_DEVICE"),
        (hv_error_t::HV_DENIED, "HV_DENIED"),
        (hv_error_t::HV_FAULT, "HV_FAULT"),
        (hv_error_t::HV_UNSUPPORTED, "HV_UNSUPPORTED"),
    ];
    match known.into_iter().find(|(known, _)| *known as hv_return_t == code) {
        Some((_, name)) => name.into(),
        None => format!("{code:#x}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_become_sentences() {
        let code = hv_error_t::HV_DENIED as hv_return_t;
        assert_eq!(check("hv_vm_create", code), Err(Error::NotEntitled));
        let other = check("hv_vcpu_run", code).unwrap_err();
        assert_eq!(other.to_string(), "Hypervisor.framework's hv_vcpu_run failed: HV_DENIED");
        assert!(check("hv_vcpu_run", 7).unwrap_err().to_string().ends_with("0x7"));
        assert_eq!(check("hv_vcpu_run", 0), Ok(()));
    }
}
