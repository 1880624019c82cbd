//! Reading.

use supermachine_support::to_usize;

use super::registers::Class;
use super::{
    Device, HEADER_BYTES, Listener, MAGIC, MAX_METADATA, Queue, RAM_ALIGNMENT, Snapshot, VERSION, Vcpu,
    check_ram, check_registers,
};
use crate::codec::Cursor;
use crate::{Error, Result, Source, error};

const HEADER: &str = "the header";

/// The header's fields that say how long everything is.
struct Lengths {
    gic_blob: u64,
    vcpus: u32,
    ram_offset: u64,
}

impl Snapshot {
    /// Reads and checks everything but RAM, and that the file ends where RAM does.
    pub fn read<S: Source>(source: &S) -> Result<Self> {
        Self::read_with_ram_offset(source).map(|(snapshot, _)| snapshot)
    }

    /// As [`Snapshot::read`]; gives the offset of RAM in the file too.
    pub fn read_with_ram_offset(source: &dyn Source) -> Result<(Self, u64)> {
        let length = source.length().map_err(Error::io("look at"))?;
        let (mut snapshot, lengths) = Self::read_header(source, length)?;
        let after = lengths.ram_offset - HEADER_BYTES as u64;
        let mut bytes = vec![0; to_usize(after)];
        source.fill_at(&mut bytes, HEADER_BYTES as u64).map_err(Error::io("read"))?;

        let blob = "the state of the interrupt controller";
        let mut cursor = Cursor::new(blob, &bytes, HEADER_BYTES as u64);
        // No blob is longer than what was read, so its length fits.
        let blob_bytes = usize::try_from(lengths.gic_blob).unwrap_or(usize::MAX);
        snapshot.gic_blob = cursor.bytes(blob_bytes)?.to_vec();
        let mut cursor = cursor.renamed("the vCPU records");
        for number in 0..lengths.vcpus {
            snapshot.vcpus.push(vcpu(&mut cursor, number)?);
        }
        let mut cursor = cursor.renamed("the devices");
        for number in 0..cursor.u32()? {
            let device = device(&mut cursor, number, &snapshot)?;
            snapshot.devices.push(device);
        }
        let mut cursor = cursor.renamed("the listeners");
        for _ in 0..cursor.u32()? {
            snapshot.listeners.push(listener(&mut cursor)?);
        }
        padding(cursor.renamed("the space before RAM"))?;
        Ok((snapshot, lengths.ram_offset))
    }

    fn read_header(source: &dyn Source, length: u64) -> Result<(Self, Lengths)> {
        let mut bytes = [0; HEADER_BYTES];
        let at_hand = bytes.len().min(usize::try_from(length).unwrap_or(usize::MAX));
        source.fill_at(&mut bytes[..at_hand], 0).map_err(Error::io("read"))?;
        let mark = at_hand.min(MAGIC.len());
        if bytes[..mark] != MAGIC[..mark] {
            let found = error::beginning(&bytes[..mark]);
            return Err(Error::Magic { expected: "version 8 snapshot", found });
        }
        if at_hand < bytes.len() {
            return Err(Error::Cut {
                section: HEADER.into(),
                offset: 0,
                needed: bytes.len() as u64,
                available: length,
            });
        }
        let mut cursor = Cursor::new(HEADER, &bytes, 0);
        cursor.bytes(MAGIC.len())?;
        let at = cursor.offset();
        let invalid = |offset, reason: String| Err(Error::invalid(HEADER, offset, reason));
        let version = cursor.u64()?;
        if version != VERSION {
            return invalid(at, format!("version {version} behind the mark of version {VERSION}"));
        }
        let mut snapshot = Self {
            captured_mach_time: cursor.u64()?,
            captured_cntvct: cursor.u64()?,
            memory_bytes: cursor.u64()?,
            ..Self::default()
        };
        let gic_blob = cursor.u64()?;
        let vcpus = cursor.u32()?;
        if vcpus == 0 {
            return invalid(48, "no vCPU; a snapshot has at least one".into());
        }
        let at = cursor.offset();
        if cursor.u32()? != 0 {
            return invalid(at, "reserved bytes are not 0".into());
        }
        snapshot.ram_gpa = cursor.u64()?;
        let at = cursor.offset();
        let ram_offset = cursor.u64()?;
        if !ram_offset.is_multiple_of(RAM_ALIGNMENT) || ram_offset < HEADER_BYTES as u64 {
            return invalid(at, format!("RAM at {ram_offset:#x}; it must be at a multiple of 16 KiB"));
        }
        if ram_offset > MAX_METADATA {
            return invalid(
                at,
                format!("RAM at {ram_offset:#x}; there may be at most {MAX_METADATA} bytes before it"),
            );
        }
        check_ram(snapshot.ram_gpa, snapshot.memory_bytes)
            .map_err(|reason| Error::invalid(HEADER, 32, reason))?;
        let available = length.saturating_sub(ram_offset);
        if available < snapshot.memory_bytes {
            return Err(Error::Cut {
                section: "RAM".into(),
                offset: ram_offset,
                needed: snapshot.memory_bytes,
                available,
            });
        }
        let trailing = available - snapshot.memory_bytes;
        if trailing != 0 {
            return Err(Error::invalid("RAM", length - trailing, format!("{trailing} bytes follow its end")));
        }
        Ok((snapshot, Lengths { gic_blob, vcpus, ram_offset }))
    }
}

fn vcpu(cursor: &mut Cursor, number: u32) -> Result<Vcpu> {
    let vtimer_offset = cursor.u64()?;
    let mut counts = [0; 5];
    for (count, class) in counts.iter_mut().zip(CLASSES) {
        let offset = cursor.offset();
        *count = cursor.u32()?;
        let most = class.table().len();
        if *count as usize > most {
            let reason = format!("{count} {}s; there are {most}", class.noun());
            return Err(Error::Register { vcpu: number, offset, reason });
        }
    }
    let [gp, simd, sys, icc, redist] = counts;
    Ok(Vcpu {
        vtimer_offset,
        gp: registers(cursor, number, Class::General, gp, Cursor::u64)?,
        simd: registers(cursor, number, Class::Simd, simd, Cursor::u128)?,
        sys: registers(cursor, number, Class::System, sys, Cursor::u64)?,
        icc: registers(cursor, number, Class::Icc, icc, Cursor::u64)?,
        redist: registers(cursor, number, Class::Redistributor, redist, Cursor::u64)?,
    })
}

fn registers<'a, V: PartialEq>(
    cursor: &mut Cursor<'a>,
    vcpu: u32,
    class: Class,
    count: u32,
    value: impl Fn(&mut Cursor<'a>) -> Result<V>,
) -> Result<Vec<(u32, V)>> {
    let offset = cursor.offset();
    let list = (0..count).map(|_| Ok((cursor.u32()?, value(cursor)?))).collect::<Result<Vec<_>>>()?;
    check_registers(class, &list).map_err(|reason| Error::Register { vcpu, offset, reason })?;
    Ok(list)
}

const CLASSES: [Class; 5] = [Class::General, Class::Simd, Class::System, Class::Icc, Class::Redistributor];

fn device(cursor: &mut Cursor, number: u32, snapshot: &Snapshot) -> Result<Device> {
    let mut device = Device {
        driver_features: [cursor.u32()?, cursor.u32()?],
        status: cursor.u32()?,
        interrupt_status: cursor.u32()?,
        queues: vec![],
    };
    for index in 0..cursor.u32()? {
        let offset = cursor.offset();
        let invalid = |offset, reason: String| {
            Error::invalid(format!("device {number}, queue {index}"), offset, reason)
        };
        let size = cursor.u16()?;
        let ready = cursor.u8()?;
        if ready > 1 {
            return Err(invalid(offset + 2, format!("{ready} where 0 or 1 says whether it is ready")));
        }
        if cursor.u8()? != 0 {
            return Err(invalid(offset + 3, "a reserved byte is not 0".into()));
        }
        let queue = Queue {
            size,
            ready: ready == 1,
            desc: cursor.u64()?,
            avail: cursor.u64()?,
            used: cursor.u64()?,
            last_avail_idx: cursor.u16()?,
            next_used_idx: cursor.u16()?,
        };
        queue.check(snapshot.ram_gpa, snapshot.memory_bytes).map_err(|reason| invalid(offset, reason))?;
        device.queues.push(queue);
    }
    Ok(device)
}

fn listener(cursor: &mut Cursor) -> Result<Listener> {
    Ok(Listener {
        cid: cursor.u64()?,
        peer_port: cursor.u32()?,
        vm_port: cursor.u32()?,
        family: cursor.u16()?,
        socktype: cursor.u16()?,
    })
}

/// What is left before RAM: only what aligns it, and zeros.
fn padding(mut cursor: Cursor) -> Result<()> {
    let offset = cursor.offset();
    let left = cursor.remaining();
    if left as u64 >= RAM_ALIGNMENT {
        return Err(cursor.invalid(format!("{left} bytes; RAM begins at the next multiple of 16 KiB")));
    }
    match cursor.bytes(left)?.iter().position(|byte| *byte != 0) {
        None => Ok(()),
        Some(at) => {
            Err(Error::invalid("the space before RAM", offset + at as u64, "a byte is not 0, as it must be"))
        }
    }
}
