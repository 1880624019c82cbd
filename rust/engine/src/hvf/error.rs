//! What Hypervisor.framework's return codes mean to whoever wants a VM.

use applevisor_sys::{hv_error_t, hv_return_t};

/// Why the hvf engine could not do what it was asked to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// HV_DENIED.
    #[error(
        "this executable may not use Hypervisor.framework: it lacks the entitlement com.apple.security.hypervisor; \
         `supermachine doctor` says how it is signed"
    )]
    NotEntitled,
    /// The sysctl kern.hv_support says so.
    #[error(
        "this host has no hardware virtualisation to offer (it is itself a virtual machine, as hosted runners are); \
         the soft engine runs here"
    )]
    NoHypervisor,
    /// The version that it is.
    #[error("macOS {0} lacks the interrupt controller that the hvf engine needs; macOS 15 or newer has it")]
    OldSystem(String),
    /// HV_BUSY as the machine is made.
    #[error("this process has a virtual machine already; Hypervisor.framework allows one for each process")]
    Busy,
    /// HV_NO_RESOURCES.
    #[error(
        "Hypervisor.framework has no resources for another virtual machine or vCPU; end one and try again"
    )]
    NoResources,
    /// More vCPUs than hv_vm_get_max_vcpu_count says.
    #[error("{vcpus} vCPUs were asked for, and this host's Hypervisor.framework has at most {most}")]
    VcpuCount {
        /// As many as were asked for.
        vcpus: u32,
        /// As many as there may be.
        most: u32,
    },
    /// A size or an alignment that the address map is not made for.
    #[error(
        "this host's interrupt controller does not fit the machine: {what} is {found:#x} and the machine needs \
         {needed:#x}"
    )]
    Layout {
        /// What it is of.
        what: &'static str,
        /// Of this host, in bytes.
        found: u64,
        /// Of the address map, in bytes.
        needed: u64,
    },
    /// A vCPU's thread did not come in time; its index.
    #[error("vCPU {0} was not created in time, and no vCPU runs before all are there")]
    Incomplete(u32),
    /// An index that no vCPU has, or that one has already.
    #[error("there is no vCPU {0} in this machine, or it exists already")]
    BadVcpu(u32),
    /// An id that the framework's headers do not have.
    #[error("Hypervisor.framework has no {0}; ids are its own")]
    UnknownRegister(String),
    /// A value of `hv_exit_reason_t` that is not in its headers.
    #[error("a vCPU left the guest for a reason that this version does not know: {0}")]
    UnknownExit(u32),
    /// An exception class that no guest of this machine causes.
    #[error("the guest's exception with syndrome {syndrome:#x} at {pc:#x} is not one that a machine serves")]
    UnknownException {
        /// ESR_EL2.
        syndrome: u64,
        /// Where the guest was.
        pc: u64,
    },
    /// hv_gic_set_state has refused it.
    #[error(
        "the interrupt controller's state is not one that this host's Hypervisor.framework takes; it was saved by \
         another version of macOS, or is damaged"
    )]
    GicState,
    /// hv_gic_state_create has refused it.
    #[error("the interrupt controller's state cannot be had while a vCPU runs")]
    GicBusy,
    /// Any other failure.
    #[error("Hypervisor.framework's {call} failed: {}", name(*code))]
    Call {
        /// The function.
        call: &'static str,
        /// What it has returned.
        code: hv_return_t,
    },
}

pub(super) type Result<T> = std::result::Result<T, Error>;

/// The error that a return code is, if it is one.
pub(super) fn check(call: &'static str, code: hv_return_t) -> Result<()> {
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
