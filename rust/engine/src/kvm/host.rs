//! /dev/kvm as this host offers it: opened, or a reason why not with what would change it.

use std::ffi::CStr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::OnceLock;

use kvm_ioctls::{Cap, Kvm};

/// The only version of the interface there has been since Linux 2.6.22.
const API_VERSION: i32 = 12;
const DEVICE: &str = "/dev/kvm";

/// What every machine needs, on both architectures.
const COMMON: &[(&str, Cap)] = &[
    ("KVM_CAP_USER_MEMORY", Cap::UserMemory),
    ("KVM_CAP_READONLY_MEM", Cap::ReadonlyMem),
    ("KVM_CAP_IMMEDIATE_EXIT", Cap::ImmediateExit),
    ("KVM_CAP_MP_STATE", Cap::MpState),
    ("KVM_CAP_VCPU_EVENTS", Cap::VcpuEvents),
];

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: &[(&str, Cap)] = &[
    ("KVM_CAP_IRQCHIP", Cap::Irqchip),
    ("KVM_CAP_PIT2", Cap::Pit2),
    ("KVM_CAP_PIT_STATE2", Cap::PitState2),
    ("KVM_CAP_EXT_CPUID", Cap::ExtCpuid),
    ("KVM_CAP_SET_TSS_ADDR", Cap::SetTssAddr),
    ("KVM_CAP_SET_IDENTITY_MAP_ADDR", Cap::SetIdentityMapAddr),
    ("KVM_CAP_ADJUST_CLOCK", Cap::AdjustClock),
    ("KVM_CAP_GET_TSC_KHZ", Cap::GetTscKhz),
    ("KVM_CAP_DEBUGREGS", Cap::Debugregs),
    ("KVM_CAP_XSAVE", Cap::Xsave),
    ("KVM_CAP_XCRS", Cap::Xcrs),
];

#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: &[(&str, Cap)] = &[
    ("KVM_CAP_ONE_REG", Cap::OneReg),
    ("KVM_CAP_ARM_PSCI_0_2", Cap::ArmPsci02),
    ("KVM_CAP_DEVICE_CTRL", Cap::DeviceCtrl),
];

/// Instructions a second below which KVM is not worth having: the soft engine is faster then. Emulated KVM is found
/// far below this and nested virtualisation, even on an emulated CPU, far above.
pub(super) const LEAST_RATE: u64 = 20_000_000;

/// Why this host's KVM cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// ENOENT, ENXIO or ENODEV.
    #[error("/dev/kvm does not exist")]
    Missing,
    /// EACCES or EPERM.
    #[error("/dev/kvm exists but this user may not open it")]
    NotPermitted {
        /// What its owner and mode ask for.
        remedy: String,
    },
    /// EBUSY.
    #[error("another hypervisor holds this host's virtualisation")]
    Busy,
    /// It is emulated, or as slow.
    #[error(
        "KVM runs guest kernel code at {} thousand instructions a second, fewer than the {} million that a guest needs",
        .instructions_per_second / 1000,
        LEAST_RATE / 1_000_000
    )]
    TooSlow {
        /// What was measured.
        instructions_per_second: u64,
    },
    /// A capability, by its name.
    #[error("this host's KVM lacks {0}")]
    Lacking(String),
    /// What the system said.
    #[error("/dev/kvm cannot be used: {0}")]
    Failed(String),
}

impl Unusable {
    /// Older interrupt controllers of hosts give their guests a GICv2 alone.
    #[cfg(target_arch = "aarch64")]
    pub(super) fn no_gicv3() -> Self {
        Self::Lacking("KVM_DEV_TYPE_ARM_VGIC_V3: its interrupt controller gives guests a GICv2 alone".into())
    }

    /// The reason in one word, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::NotPermitted { .. } => "not permitted",
            Self::Busy => "busy",
            Self::TooSlow { .. } => "too slow",
            Self::Lacking(_) => "lacking",
            Self::Failed(_) => "failed",
        }
    }

    /// What would change it: a command, or a sentence.
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::Missing => Some(
                "sudo modprobe -a kvm_intel kvm_amd  # needs virtualisation enabled in the firmware or the outer host"
                    .into(),
            ),
            Self::NotPermitted { remedy } => Some(remedy.clone()),
            Self::Busy => Some("end the other hypervisor's machines (VirtualBox, VMware)".into()),
            Self::TooSlow { .. } => Some("use a host whose KVM is backed by hardware".into()),
            Self::Lacking(_) => Some("use a newer kernel, or a host that gives its guests full virtualisation".into()),
            Self::Failed(_) => None,
        }
    }
}

/// The device, opened and checked for what machines need. It is opened once for the whole process, so that a process
/// that confines itself afterwards still has it.
pub fn open() -> Result<&'static Kvm, Unusable> {
    static DEVICE: OnceLock<Kvm> = OnceLock::new();
    if let Some(kvm) = DEVICE.get() {
        return Ok(kvm);
    }
    let kvm = Kvm::new().map_err(|e| refused(e.errno()))?;
    let version = kvm.get_api_version();
    if version != API_VERSION {
        return Err(Unusable::Lacking(format!("interface version {API_VERSION}: it has {version}")));
    }
    match COMMON.iter().chain(ARCHITECTURE).find(|(_, cap)| !kvm.check_extension(*cap)) {
        Some((name, _)) => Err(Unusable::Lacking((*name).into())),
        None => Ok(DEVICE.get_or_init(|| kvm)),
    }
}

/// What it means that opening the device, or making a VM, failed with this error number.
pub(super) fn refused(errno: i32) -> Unusable {
    match errno {
        libc::ENOENT | libc::ENXIO | libc::ENODEV => Unusable::Missing,
        libc::EACCES | libc::EPERM => Unusable::NotPermitted { remedy: permit(errno) },
        libc::EBUSY => Unusable::Busy,
        errno => Unusable::Failed(std::io::Error::from_raw_os_error(errno).to_string()),
    }
}

/// The command that lets this user open the device.
fn permit(errno: i32) -> String {
    let metadata = Path::new(DEVICE).metadata().ok();
    let group = metadata.as_ref().map(|m| (m.gid(), m.mode() & 0o060 == 0o060));
    // Only a device control group or a security module says EPERM.
    match (errno, group) {
        (libc::EPERM, _) => "give the container the device: --device=/dev/kvm".into(),
        (_, Some((gid, true))) if gid != 0 => {
            format!("sudo usermod -aG {} $USER  # then log in again", group_name(gid))
        }
        _ => "echo 'KERNEL==\"kvm\", GROUP=\"kvm\", MODE=\"0666\"' | sudo tee /etc/udev/rules.d/99-kvm.rules && \
              sudo udevadm control --reload-rules && sudo udevadm trigger --name-match=kvm"
            .into(),
    }
}

/// The group's name, or its number when it has none.
fn group_name(gid: u32) -> String {
    let mut group = std::mem::MaybeUninit::<libc::group>::zeroed();
    let mut buffer = [0 as libc::c_char; 4096];
    let mut found = std::ptr::null_mut();
    // SAFETY: all pointers are to locals that outlive the call, and the length is the buffer's.
    let status =
        unsafe { libc::getgrgid_r(gid, group.as_mut_ptr(), buffer.as_mut_ptr(), buffer.len(), &mut found) };
    if status != 0 || found.is_null() {
        return gid.to_string();
    }
    // SAFETY: on success `found` points to `group`, whose name is a C string in `buffer`.
    unsafe { CStr::from_ptr((*found).gr_name) }.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_number_is_a_reason_of_its_own() {
        assert_eq!(refused(libc::ENOENT), Unusable::Missing);
        assert_eq!(refused(libc::EBUSY), Unusable::Busy);
        assert!(matches!(refused(libc::EMFILE), Unusable::Failed(_)));
        let Unusable::NotPermitted { remedy } = refused(libc::EACCES) else { panic!("another reason") };
        assert!(remedy.starts_with("sudo usermod -aG ") || remedy.contains("/etc/udev/rules.d/"), "{remedy}");
        let Unusable::NotPermitted { remedy } = refused(libc::EPERM) else { panic!("another reason") };
        assert!(remedy.contains("--device=/dev/kvm"), "{remedy}");
    }

    #[test]
    fn groups_have_names() {
        assert_eq!(group_name(0), "root");
        assert_eq!(group_name(3_000_000_001), "3000000001");
    }
}
