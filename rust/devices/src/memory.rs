//! Guest memory as devices see it.

use std::sync::Arc;

use vm_memory::guest_memory::{GuestMemorySliceIterator, Result};
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryMmap, Permissions};

/// Waits until these bytes of guest memory, by address and length, are there; `false` when they will not be.
pub type Presence = Arc<dyn Fn(u64, u64) -> bool + Send + Sync>;

/// Guest memory, some of which may have to be waited for. Cheap to clone.
#[derive(Clone)]
pub struct Memory {
    ram: GuestMemoryMmap<()>,
    presence: Option<Presence>,
}

impl Memory {
    /// Every access to memory waits for `presence`, where there is one.
    pub fn new(ram: GuestMemoryMmap<()>, presence: Option<Presence>) -> Self {
        Self { ram, presence }
    }
}

impl From<GuestMemoryMmap<()>> for Memory {
    fn from(ram: GuestMemoryMmap<()>) -> Self {
        Self::new(ram, None)
    }
}

/// All that reads or writes guest memory asks for slices here, what [`vm_memory::Bytes`] has for it included.
impl GuestMemory for Memory {
    type PhysicalMemory = GuestMemoryMmap<()>;
    type Bitmap = ();

    fn check_range(&self, address: GuestAddress, length: usize, access: Permissions) -> bool {
        GuestMemory::check_range(&self.ram, address, length, access)
    }

    fn get_slices<'a>(
        &'a self,
        address: GuestAddress,
        length: usize,
        access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, ()>> {
        if let Some(presence) = &self.presence
            && !presence(address.0, length as u64)
        {
            return Err(GuestMemoryError::InvalidGuestAddress(address));
        }
        GuestMemory::get_slices(&self.ram, address, length, access)
    }
}
