//! The check of a descriptor chain before a device uses it.
//!
//! virtio-queue's iterator ends a malformed chain early and in silence; here it is an error, so that a guest that lies
//! loses its device and not some bytes. The guest may still change a chain behind the check: the iterator is safe then.

use supermachine_support::to_usize;
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::DescriptorChain;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions, VolatileSlice};

use crate::{Broken, Memory};

/// Bytes of all buffers of one chain. Linux stays below 4 MiB with data, and reports up to 32 times 4 MiB of free
/// pages.
const MAX_BYTES: u64 = 128 << 20;
const DESCRIPTOR_BYTES: u32 = 16;

/// Checks the chain that starts at `head` of a table with `size` entries (virtio 1.2, 2.7.5).
pub(crate) fn check(memory: &Memory, table: u64, size: u16, head: u16) -> Result<(), Broken> {
    let malformed = |why: &str| Err(Broken::Chain(why.into()));
    let (mut table, mut size, mut index) = (table, u32::from(size), u32::from(head));
    let (mut length, mut bytes, mut indirect, mut writable) = (0, 0, false, false);
    loop {
        if index >= size {
            return malformed("a descriptor's number is beyond its table");
        }
        length += 1;
        if length > size {
            return malformed("it is longer than its table, so it loops");
        }
        let at = table.checked_add(u64::from(index * DESCRIPTOR_BYTES)).map(GuestAddress);
        let Some(Ok(descriptor)) = at.map(|at| memory.read_obj::<Descriptor>(at)) else {
            return malformed("its table lies outside guest memory");
        };
        let flags = u32::from(descriptor.flags());
        if flags & VRING_DESC_F_INDIRECT != 0 {
            let entries = descriptor.len() / DESCRIPTOR_BYTES;
            if indirect || flags & VRING_DESC_F_NEXT != 0 {
                return malformed("an indirect table is not its end");
            }
            if !descriptor.len().is_multiple_of(DESCRIPTOR_BYTES) || !(1..=0xffff).contains(&entries) {
                return malformed("an indirect table has an impossible length");
            }
            (table, size, index, length, indirect) = (descriptor.addr().0, entries, 0, 0, true);
            continue;
        }
        if flags & VRING_DESC_F_WRITE != 0 {
            writable = true;
        } else if writable {
            return malformed("a buffer to read follows one to write");
        }
        bytes += u64::from(descriptor.len());
        if bytes > MAX_BYTES {
            return malformed("its buffers are more than 128 MiB");
        }
        if !memory.check_range(descriptor.addr(), descriptor.len() as usize, Permissions::ReadWrite) {
            return malformed("a buffer lies outside guest memory");
        }
        if flags & VRING_DESC_F_NEXT == 0 {
            return Ok(());
        }
        index = descriptor.next().into();
    }
}

/// The buffers of a checked chain that the device reads, where they lie.
pub(crate) fn readable<'m>(
    chain: DescriptorChain<&Memory>,
    memory: &'m Memory,
) -> Result<Vec<VolatileSlice<'m>>, Broken> {
    slices(chain.readable(), memory)
}

/// The buffers of a checked chain that the device writes, where they lie.
pub(crate) fn writable<'m>(
    chain: DescriptorChain<&Memory>,
    memory: &'m Memory,
) -> Result<Vec<VolatileSlice<'m>>, Broken> {
    slices(chain.writable(), memory)
}

fn slices<'m>(
    descriptors: impl Iterator<Item = Descriptor>,
    memory: &'m Memory,
) -> Result<Vec<VolatileSlice<'m>>, Broken> {
    let outside = |_: vm_memory::GuestMemoryError| Broken::Chain("a buffer lies outside guest memory".into());
    let mut all = Vec::new();
    let mut bytes = 0;
    for descriptor in descriptors {
        // Once more: the guest may have changed the chain since it was checked.
        bytes += u64::from(descriptor.len());
        if bytes > MAX_BYTES {
            return Err(Broken::Chain("its buffers are more than 128 MiB".into()));
        }
        let length = descriptor.len() as usize;
        let slices = memory.get_slices(descriptor.addr(), length, Permissions::ReadWrite).map_err(outside)?;
        for slice in slices {
            all.push(slice.map_err(outside)?);
        }
    }
    Ok(all)
}

/// Copies the first bytes of these buffers and leaves the rest in them.
pub(crate) fn take(buffers: &mut Vec<VolatileSlice<'_>>, to: &mut [u8]) -> Result<(), Broken> {
    let mut done = 0;
    while done < to.len() {
        let Some(first) = buffers.first_mut() else {
            return Err(Broken::Chain("a request is shorter than its header".into()));
        };
        let n = first.len().min(to.len() - done);
        first.copy_to(&mut to[done..done + n]);
        done += n;
        *first = first.offset(n).map_err(|e| Broken::Chain(e.to_string()))?;
        if first.is_empty() {
            buffers.remove(0);
        }
    }
    Ok(())
}

/// A length that the driver is told. The buffers of a chain that was checked have fewer bytes than this holds.
pub(crate) fn told(bytes: usize) -> Result<u32, Broken> {
    u32::try_from(bytes).map_err(|_| Broken::Chain("its buffers have grown since it was checked".into()))
}

/// Address and length of the buffers of a checked chain that the device writes.
pub(crate) fn ranges(chain: DescriptorChain<&Memory>, memory: &Memory) -> Result<Vec<(u64, u64)>, Broken> {
    let mut all = Vec::new();
    add_ranges(chain, memory, &mut all)?;
    Ok(all)
}

/// Adds them to `all`; their bytes together.
pub(crate) fn add_ranges(
    chain: DescriptorChain<&Memory>,
    memory: &Memory,
    all: &mut Vec<(u64, u64)>,
) -> Result<usize, Broken> {
    let mut bytes = 0;
    for descriptor in chain.writable() {
        let (address, length) = (descriptor.addr(), descriptor.len());
        // Once more: the guest may have changed the chain since it was checked.
        if !memory.check_range(address, length as usize, Permissions::ReadWrite) {
            return Err(Broken::Chain("a buffer lies outside guest memory".into()));
        }
        all.push((address.0, length.into()));
        bytes += length as usize;
    }
    Ok(bytes)
}

/// Buffers that [`ranges`] gave, where they lie.
pub(crate) fn slices_of<'m>(
    ranges: &[(u64, u64)],
    memory: &'m Memory,
) -> Result<Vec<VolatileSlice<'m>>, Broken> {
    let outside = |_: vm_memory::GuestMemoryError| Broken::Chain("a buffer lies outside guest memory".into());
    let mut all = Vec::new();
    for (address, length) in ranges {
        let slices = memory.get_slices(GuestAddress(*address), to_usize(*length), Permissions::ReadWrite);
        for slice in slices.map_err(outside)? {
            all.push(slice.map_err(outside)?);
        }
    }
    Ok(all)
}
