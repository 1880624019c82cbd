//! Guest memory as devices see it.

use std::iter::FusedIterator;
use std::sync::Arc;

use vm_memory::guest_memory::{GuestMemorySliceIterator, Result};
use vm_memory::{
    GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap, GuestMemoryRegion,
    Permissions, VolatileSlice,
};

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
        // Nearly all that is asked for lies in one region.
        let region = self.ram.find_region(address).filter(|_| length > 0);
        let one = region.and_then(|region| region.get_slice(region.to_region_addr(address)?, length).ok());
        let several = match one {
            Some(_) => None,
            None => Some(GuestMemory::get_slices(&self.ram, address, length, access)?),
        };
        Ok(Slices { one, several })
    }
}

/// The slices of a range: one, or as many as vm-memory finds, which takes its time.
struct Slices<'a, I> {
    one: Option<VolatileSlice<'a>>,
    several: Option<I>,
}

impl<'a, I: Iterator<Item = Result<VolatileSlice<'a>>>> Iterator for Slices<'a, I> {
    type Item = Result<VolatileSlice<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.one.take() {
            Some(slice) => Some(Ok(slice)),
            None => self.several.as_mut()?.next(),
        }
    }
}

impl<'a, I: FusedIterator<Item = Result<VolatileSlice<'a>>>> FusedIterator for Slices<'a, I> {}

impl<'a, I: GuestMemorySliceIterator<'a, ()>> GuestMemorySliceIterator<'a, ()> for Slices<'a, I> {
    fn stop_on_error(self) -> Result<impl Iterator<Item = VolatileSlice<'a>>> {
        let several = self.several.map(I::stop_on_error).transpose()?;
        Ok(self.one.into_iter().chain(several.into_iter().flatten()))
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    #[test]
    fn what_lies_in_one_region_and_what_lies_in_two_is_found_alike() {
        let at = |address| GuestAddress(address);
        let ram = GuestMemoryMmap::<()>::from_ranges(&[(at(0x1000), 0x1000), (at(0x2000), 0x1000)]).unwrap();
        let memory = Memory::from(ram);
        let bytes: Vec<u8> = (0..=255).collect();
        for begin in [0x1000, 0x1f00, 0x1f80, 0x1fff, 0x2000, 0x2f00] {
            memory.write_slice(&bytes, at(begin)).unwrap();
            let mut found = [0; 256];
            memory.read_slice(&mut found, at(begin)).unwrap();
            assert_eq!(found[..], bytes, "{begin:#x}");
            let slices: Vec<_> = memory.get_slices(at(begin), 256, Permissions::Read).unwrap().collect();
            assert_eq!(slices.len(), if (0x1f01..0x2000).contains(&begin) { 2 } else { 1 }, "{begin:#x}");
        }
        assert_eq!(memory.get_slices(at(0x1000), 0, Permissions::Read).unwrap().count(), 0);
        for outside in [0xfff, 0x2fff, 0x3000, u64::MAX] {
            assert!(memory.write_slice(&bytes, at(outside)).is_err(), "{outside:#x}");
        }
        // As far as there is memory.
        assert_eq!(memory.write(&bytes, at(0x2ff0)).unwrap(), 16);
    }
}
