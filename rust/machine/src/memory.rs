//! Guest memory: anonymous, private, and taken from the host only page by page as the guest touches it.

use std::ptr::NonNull;

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use crate::{Error, layout};

/// Memory of a machine: its RAM, and the page of the VM generation id.
pub struct Memory {
    pub ram: GuestMemoryMmap<()>,
    host: NonNull<u8>,
    len: u64,
    vmgenid: GuestRegionMmap<()>,
}

// SAFETY: `host` points into `ram`, which may itself be shared; it is only handed out as an address to map.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// Maps `bytes` of zeroed RAM at [`layout::RAM_BASE`].
    pub fn new(bytes: u64) -> Result<Self, Error> {
        let ram = anonymous(bytes, layout::RAM_BASE)?;
        let host =
            NonNull::new(ram.as_ptr()).ok_or(Error::Memory { bytes, reason: "it is at address 0".into() })?;
        let ram = GuestMemoryMmap::from_regions(vec![ram])
            .map_err(|e| Error::Memory { bytes, reason: e.to_string() })?;
        let vmgenid = anonymous(layout::VMGENID_SIZE, layout::VMGENID_BASE)?;
        Ok(Self { ram, host, len: bytes, vmgenid })
    }

    /// Host address and length of the RAM.
    pub fn host(&self) -> (NonNull<u8>, u64) {
        (self.host, self.len)
    }

    /// Host address of the VM generation id's page.
    pub fn vmgenid_host(&self) -> NonNull<u8> {
        NonNull::new(self.vmgenid.as_ptr()).expect("mmap does not give address 0")
    }

    /// Writes a new VM generation id.
    pub fn set_generation(&self, id: [u8; 16]) {
        use vm_memory::{Bytes, MemoryRegionAddress};
        self.vmgenid.write_slice(&id, MemoryRegionAddress(0)).expect("the id lies inside its page");
    }
}

fn anonymous(bytes: u64, gpa: u64) -> Result<GuestRegionMmap<()>, Error> {
    let failed = |reason: String| Error::Memory { bytes, reason };
    let size = usize::try_from(bytes).map_err(|e| failed(e.to_string()))?;
    let region = MmapRegionBuilder::new(size)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_NORESERVE)
        .build()
        .map_err(|e| failed(e.to_string()))?;
    GuestRegionMmap::new(region, GuestAddress(gpa))
        .ok_or_else(|| failed("it ends beyond the address space".into()))
}
