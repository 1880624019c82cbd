//! Version 8: the arm64 snapshots that are in the field.
//!
//! | part | bytes |
//! |---|---|
//! | header | 72 |
//! | state of the interrupt controller, opaque | `gic_blob.len()` |
//! | vCPU records | 28 and 12 (SIMD: 20) for each register, for each vCPU |
//! | devices and listeners | 8, and 20 for each device, 32 for each queue, 20 for each listener |
//! | zeros | up to the next multiple of 16 KiB |
//! | RAM | `memory_bytes` |
//!
//! The format has no checksums: a changed register value is not noticed. Everything else is checked, so that what
//! [`Snapshot::read`] gives can be written again with the same bytes, and mapped, and its queues lie in RAM.

mod decode;
mod encode;
pub mod registers;
#[cfg(test)]
mod tests;

pub use encode::Unfinished;
use registers::Class;

/// How a file of this version begins.
pub const MAGIC: [u8; 8] = *b"SMSNAP\x08\0";
/// RAM begins at a multiple of this in the file.
pub const RAM_ALIGNMENT: u64 = 16 << 10;
/// Zero stretches of RAM of this length, counted from its start, are holes.
pub const HOLE: usize = 64 << 10;
/// The most bytes before RAM. The state of the largest machine has not a tenth of it.
pub const MAX_METADATA: u64 = 16 << 20;

const HEADER_BYTES: usize = 72;
const VERSION: u64 = 8;

/// A version 8 file but for RAM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Host's monotonic ticks at capture.
    pub captured_mach_time: u64,
    /// The guest's virtual counter then: `captured_mach_time` less the vtimer offset of vCPU 0, wrapping.
    pub captured_cntvct: u64,
    /// State of the interrupt controller beyond the redistributor registers below; its engine's affair.
    pub gic_blob: Vec<u8>,
    /// At least one.
    pub vcpus: Vec<Vcpu>,
    /// In bus order: vsock, then block devices.
    pub devices: Vec<Device>,
    /// Ports on which the guest listens, by writers in the field.
    pub listeners: Vec<Listener>,
    /// A multiple of 4 KiB, and not 0.
    pub memory_bytes: u64,
    /// Guest physical address of the RAM; a multiple of 4 KiB.
    pub ram_gpa: u64,
}

/// Registers of one vCPU as id and value, in the order of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vcpu {
    /// What the host's ticks are ahead of the guest's virtual counter (hv_vcpu_set_vtimer_offset).
    pub vtimer_offset: u64,
    /// [`Class::General`].
    pub gp: Vec<(u32, u64)>,
    /// [`Class::Simd`].
    pub simd: Vec<(u32, u128)>,
    /// [`Class::System`].
    pub sys: Vec<(u32, u64)>,
    /// [`Class::Icc`].
    pub icc: Vec<(u32, u64)>,
    /// [`Class::Redistributor`].
    pub redist: Vec<(u32, u64)>,
}

impl Vcpu {
    /// A record as writers store it, with the values that `get` knows; `None` leaves a register out, where that may be.
    pub fn with(vtimer_offset: u64, mut get: impl FnMut(Class, u32) -> Option<u128>) -> Self {
        let mut list = |class: Class| -> Vec<(u32, u128)> {
            class.table().iter().filter_map(|r| Some((r.id, get(class, r.id)?))).collect()
        };
        #[expect(clippy::cast_possible_truncation, reason = "registers of these classes have 64 bits")]
        let narrow =
            |list: Vec<(u32, u128)>| list.into_iter().map(|(id, value)| (id, value as u64)).collect();
        Self {
            vtimer_offset,
            gp: narrow(list(Class::General)),
            simd: list(Class::Simd),
            sys: narrow(list(Class::System)),
            icc: narrow(list(Class::Icc)),
            redist: narrow(list(Class::Redistributor)),
        }
    }
}

/// A virtio-mmio transport.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Low and high word.
    pub driver_features: [u32; 2],
    /// The device status field (virtio 1.2, 2.1).
    pub status: u32,
    /// InterruptStatus (virtio 1.2, 4.2.2).
    pub interrupt_status: u32,
    /// In the order of their indices.
    pub queues: Vec<Queue>,
}

/// A split virtqueue; addresses are guest physical.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Queue {
    /// Entries: a power of two, at most 32,768.
    pub size: u16,
    /// Whether the driver has set it up (QueueReady).
    pub ready: bool,
    /// Of the descriptor table; a multiple of 16.
    pub desc: u64,
    /// Of the available ring; a multiple of 2.
    pub avail: u64,
    /// Of the used ring; a multiple of 4.
    pub used: u64,
    /// How many chains were taken from the available ring, modulo 2^16.
    pub last_avail_idx: u16,
    /// How many chains were put into the used ring, modulo 2^16.
    pub next_used_idx: u16,
}

/// A port on which the guest listens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Listener {
    /// The guest's vsock context id.
    pub cid: u64,
    /// Of the host's end.
    pub peer_port: u32,
    /// Of the guest's end.
    pub vm_port: u32,
    /// AF_VSOCK, as the guest's kernel has it.
    pub family: u16,
    /// SOCK_STREAM or SOCK_SEQPACKET, as the guest's kernel has it.
    pub socktype: u16,
}

impl Queue {
    /// Why a device must not use this queue with RAM of this place and size (virtio 1.2, 2.7).
    fn check(&self, ram_gpa: u64, memory_bytes: u64) -> Result<(), String> {
        if !self.ready {
            return Ok(());
        }
        if !self.size.is_power_of_two() || self.size > 1 << 15 {
            return Err(format!("{} entries; a ready queue has a power of two up to 32768", self.size));
        }
        let size = u64::from(self.size);
        let parts = [
            ("descriptor table", self.desc, 16 * size, 16),
            ("available ring", self.avail, 6 + 2 * size, 2),
            ("used ring", self.used, 6 + 8 * size, 4),
        ];
        for (what, at, bytes, alignment) in parts {
            let inside = at
                .checked_sub(ram_gpa)
                .and_then(|offset| offset.checked_add(bytes))
                .is_some_and(|end| end <= memory_bytes);
            if !inside || !at.is_multiple_of(alignment) {
                return Err(format!("its {what} at {at:#x} is misaligned or not inside RAM"));
            }
        }
        if self.last_avail_idx.wrapping_sub(self.next_used_idx) > self.size {
            return Err("more of its chains are in flight than it has entries".into());
        }
        Ok(())
    }
}

fn check_ram(ram_gpa: u64, memory_bytes: u64) -> Result<(), String> {
    let page = crate::ram::PAGE as u64;
    if memory_bytes == 0 || !memory_bytes.is_multiple_of(page) || !ram_gpa.is_multiple_of(page) {
        return Err(format!("RAM of {memory_bytes:#x} bytes at {ram_gpa:#x} is not whole 4 KiB pages"));
    }
    match ram_gpa.checked_add(memory_bytes) {
        Some(_) => Ok(()),
        None => Err(format!("RAM of {memory_bytes:#x} bytes at {ram_gpa:#x} ends beyond the address space")),
    }
}

/// What is wrong with the registers of one kind, as a sentence that names the register.
fn check_registers<V: PartialEq>(class: Class, registers: &[(u32, V)]) -> Result<(), String> {
    let noun = class.noun();
    for (n, (id, value)) in registers.iter().enumerate() {
        let Some(register) = class.find(*id) else {
            return Err(format!("there is no {noun} {id:#x} in this format"));
        };
        let mut before = registers[..n].iter().filter(|(other, _)| other == id);
        if before.clone().count() >= class.occurrences(*id) {
            return Err(format!("{noun} {} ({id:#x}) is there more often than it may be", register.name));
        }
        if before.any(|(_, other)| other != value) {
            return Err(format!("{noun} {} ({id:#x}) is there twice, with different values", register.name));
        }
    }
    match class.table().iter().find(|r| r.required && !registers.iter().any(|(id, _)| *id == r.id)) {
        None => Ok(()),
        Some(missing) => Err(format!("{noun} {} ({:#x}) is missing", missing.name, missing.id)),
    }
}
