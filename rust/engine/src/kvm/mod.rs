//! The KVM engine: Linux's /dev/kvm. The provider of an architecture is built on that architecture alone.

#[cfg(target_arch = "aarch64")]
pub mod arm64;
pub(crate) mod creation;
pub mod host;
pub mod kick;
mod memory_slots;
pub mod probe;
#[cfg(target_arch = "x86_64")]
pub mod x86_64;

pub use host::Unusable;

/// Why KVM could not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// This host's KVM cannot be used.
    #[error(transparent)]
    Unusable(#[from] Unusable),
    /// An ioctl has failed.
    #[error("KVM refused {call}: {source}")]
    Call {
        /// Its name.
        call: &'static str,
        /// What the kernel said.
        source: kvm_ioctls::Error,
    },
    /// More vCPUs than KVM_CAP_MAX_VCPUS says.
    #[error("{vcpus} vCPUs are asked for and this host's KVM gives a machine at most {most}")]
    TooManyVcpus {
        /// As many as were asked for.
        vcpus: u32,
        /// As many as there may be.
        most: usize,
    },
    /// KVM_RUN came back with what no guest should cause.
    #[error("KVM cannot go on with the guest: {0}")]
    Guest(String),
    /// It is no state of this kind.
    #[error("saved KVM state cannot be decoded: {0}")]
    Encoding(postcard::Error),
    /// Another release has saved it.
    #[error("saved KVM state is of version {found} and this release reads version {known}")]
    Version {
        /// Of what was saved.
        found: u32,
        /// Of this release.
        known: u32,
    },
    /// A value in it, or a length, that cannot be.
    #[error("saved KVM state is impossible: {0}")]
    State(String),
    /// CPUID's vendors differ.
    #[error("the snapshot was made on a CPU of {saved} and this one is of {host}; restore it on the former")]
    Vendor {
        /// Of the CPU that it was taken on.
        saved: String,
        /// Of this one.
        host: String,
    },
    /// Names of the features.
    #[error("the snapshot needs CPU features that this host does not give its guests: {}", .0.join(", "))]
    Features(Vec<String>),
    /// The counter cannot be scaled to the saved pace.
    #[error(
        "the snapshot's time stamp counter runs at {saved} kHz, this host's at {host} kHz, and it cannot be scaled; \
         restore it on a host of the former"
    )]
    TscFrequency {
        /// In kHz.
        saved: u32,
        /// In kHz.
        host: u32,
    },
    /// KVM_SET_MSRS has stopped at this register.
    #[error("model specific register {index:#x} does not take the saved value {value:#x}")]
    Msr {
        /// Of the register.
        index: u32,
        /// What it was to have.
        value: u64,
    },
    /// KVM_SET_ONE_REG has refused it, or the register is this CPU's own.
    #[error("register {id:#x} is {host} on this CPU and does not take the saved value {saved}")]
    Register {
        /// As KVM has it (Documentation/virt/kvm/api.rst, 4.68).
        id: u64,
        /// In hexadecimal.
        saved: String,
        /// In hexadecimal.
        host: String,
    },
}

/// What calls of this engine give.
pub type Result<T> = std::result::Result<T, Error>;

/// Names the call that failed.
pub(crate) trait Named<T> {
    fn named(self, call: &'static str) -> Result<T>;
}

impl<T> Named<T> for std::result::Result<T, kvm_ioctls::Error> {
    fn named(self, call: &'static str) -> Result<T> {
        self.map_err(|source| Error::Call { call, source })
    }
}

/// Encodes state behind its version.
pub(crate) fn encode<T: serde::Serialize>(version: u32, state: &T) -> Result<Vec<u8>> {
    postcard::to_stdvec(&(version, state)).map_err(Error::Encoding)
}

/// What [`encode`] gave, of exactly this version and length.
pub(crate) fn decode<T: serde::de::DeserializeOwned>(known: u32, bytes: &[u8]) -> Result<T> {
    let (found, bytes) = postcard::take_from_bytes::<u32>(bytes).map_err(Error::Encoding)?;
    if found != known {
        return Err(Error::Version { found, known });
    }
    let (state, rest) = postcard::take_from_bytes::<T>(bytes).map_err(Error::Encoding)?;
    if !rest.is_empty() {
        return Err(Error::State(format!("{} bytes follow it", rest.len())));
    }
    Ok(state)
}
