//! Writing.

use std::fs::File;
use std::os::unix::fs::FileExt;

use supermachine_support::to_usize;

use super::registers::Class;
use super::{
    HEADER_BYTES, HOLE, MAGIC, MAX_METADATA, RAM_ALIGNMENT, Snapshot, VERSION, Vcpu, check_ram,
    check_registers,
};
use crate::{Error, Result, Source, ram};

/// What makes a file that has all but its header a snapshot.
#[must_use]
pub struct Unfinished {
    header: [u8; HEADER_BYTES],
}

impl Unfinished {
    /// Writes the header, after the disk has the rest, and waits until it has that as well.
    pub fn finish(self, file: &File) -> Result<()> {
        let write = Error::io("write");
        file.sync_data().map_err(&write)?;
        file.write_all_at(&self.header, 0).map_err(&write)?;
        file.sync_all().map_err(&write)
    }
}

impl Snapshot {
    /// Writes a whole file into `file`, which is empty, and waits until the disk has it. The header comes last.
    ///
    /// `ram` is all of the guest's; stretches of 64 KiB that are zero become holes.
    pub fn write(&self, file: &File, ram: &[u8]) -> Result<()> {
        self.begin(file, ram)?.finish(file)
    }

    /// As [`Snapshot::write`], but for the header, and without waiting for the disk: `ram` is not looked at any more.
    pub fn begin(&self, file: &File, ram: &[u8]) -> Result<Unfinished> {
        if ram.len() as u64 != self.memory_bytes {
            let reason = format!("RAM has {} bytes and the header says {}", ram.len(), self.memory_bytes);
            return Err(Error::unwritable(reason));
        }
        self.begin_with(file, std::iter::once(Ok((0, ram))))
    }

    /// As [`Snapshot::write`], with stretches of RAM and where they begin, each one a multiple of 64 KiB; what no
    /// stretch covers is zero.
    pub fn write_with<B: AsRef<[u8]>>(
        &self,
        file: &File,
        ram: impl IntoIterator<Item = Result<(u64, B)>>,
    ) -> Result<()> {
        self.begin_with(file, ram)?.finish(file)
    }

    fn begin_with<B: AsRef<[u8]>>(
        &self,
        file: &File,
        ram: impl IntoIterator<Item = Result<(u64, B)>>,
    ) -> Result<Unfinished> {
        let length = file.length().map_err(Error::io("look at"))?;
        if length != 0 {
            return Err(Error::unwritable(format!("the file has {length} bytes already")));
        }
        let metadata = self.metadata()?;
        let ram_offset = metadata.len() as u64;
        let write = Error::io("write");
        let mut written = 0;
        for stretch in ram {
            let (start, bytes) = stretch?;
            let bytes = bytes.as_ref();
            let end = start.saturating_add(bytes.len() as u64);
            if !start.is_multiple_of(HOLE as u64) || end > self.memory_bytes {
                return Err(Error::unwritable(format!(
                    "a stretch of {} bytes at {start:#x} is not inside RAM or not aligned to 64 KiB",
                    bytes.len()
                )));
            }
            for (n, chunk) in bytes.chunks(HOLE).enumerate().filter(|(_, chunk)| !ram::is_zero(chunk)) {
                let at = start + (n * HOLE) as u64;
                file.write_all_at(chunk, ram_offset + at).map_err(&write)?;
                written = written.max(at + chunk.len() as u64);
            }
        }
        if written < self.memory_bytes {
            file.write_all_at(&[0], ram_offset + self.memory_bytes - 1).map_err(&write)?;
        }
        file.write_all_at(&metadata[HEADER_BYTES..], HEADER_BYTES as u64).map_err(&write)?;
        let mut header = [0; HEADER_BYTES];
        header.copy_from_slice(&metadata[..HEADER_BYTES]);
        Ok(Unfinished { header })
    }

    /// The bytes before RAM.
    pub fn metadata(&self) -> Result<Vec<u8>> {
        check_ram(self.ram_gpa, self.memory_bytes).map_err(Error::unwritable)?;
        if self.vcpus.is_empty() {
            return Err(Error::unwritable("no vCPU; a snapshot has at least one"));
        }
        let mut out = vec![0; HEADER_BYTES];
        out.extend(&self.gic_blob);
        for (number, vcpu) in self.vcpus.iter().enumerate() {
            vcpu.encode(&mut out).map_err(|reason| Error::unwritable(format!("vCPU {number}: {reason}")))?;
        }
        self.encode_devices(&mut out)?;
        let ram_offset = (out.len() as u64).next_multiple_of(RAM_ALIGNMENT);
        if ram_offset > MAX_METADATA {
            let bytes = out.len();
            return Err(Error::unwritable(format!("{bytes} bytes before RAM; {MAX_METADATA} is the most")));
        }
        out.resize(to_usize(ram_offset), 0);

        let mut header = Vec::with_capacity(HEADER_BYTES);
        header.extend(MAGIC);
        let words = [
            VERSION,
            self.captured_mach_time,
            self.captured_cntvct,
            self.memory_bytes,
            self.gic_blob.len() as u64,
            // The number of vCPUs, and 4 reserved bytes.
            self.vcpus.len() as u64,
            self.ram_gpa,
            ram_offset,
        ];
        header.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        out[..HEADER_BYTES].copy_from_slice(&header);
        Ok(out)
    }

    fn encode_devices(&self, out: &mut Vec<u8>) -> Result<()> {
        put_count(out, self.devices.len());
        for (number, device) in self.devices.iter().enumerate() {
            let [low, high] = device.driver_features;
            for word in [low, high, device.status, device.interrupt_status] {
                out.extend(word.to_le_bytes());
            }
            put_count(out, device.queues.len());
            for (index, queue) in device.queues.iter().enumerate() {
                queue.check(self.ram_gpa, self.memory_bytes).map_err(|reason| {
                    Error::unwritable(format!("device {number}, queue {index}: {reason}"))
                })?;
                out.extend(queue.size.to_le_bytes());
                out.extend([u8::from(queue.ready), 0]);
                for address in [queue.desc, queue.avail, queue.used] {
                    out.extend(address.to_le_bytes());
                }
                out.extend(queue.last_avail_idx.to_le_bytes());
                out.extend(queue.next_used_idx.to_le_bytes());
            }
        }
        put_count(out, self.listeners.len());
        for listener in &self.listeners {
            out.extend(listener.cid.to_le_bytes());
            out.extend(listener.peer_port.to_le_bytes());
            out.extend(listener.vm_port.to_le_bytes());
            out.extend(listener.family.to_le_bytes());
            out.extend(listener.socktype.to_le_bytes());
        }
        Ok(())
    }
}

impl Vcpu {
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), String> {
        check_registers(Class::General, &self.gp)?;
        check_registers(Class::Simd, &self.simd)?;
        check_registers(Class::System, &self.sys)?;
        check_registers(Class::Icc, &self.icc)?;
        check_registers(Class::Redistributor, &self.redist)?;
        out.extend(self.vtimer_offset.to_le_bytes());
        for count in [self.gp.len(), self.simd.len(), self.sys.len(), self.icc.len(), self.redist.len()] {
            put_count(out, count);
        }
        let put = |out: &mut Vec<u8>, registers: &[(u32, u64)]| {
            for (id, value) in registers {
                out.extend(id.to_le_bytes());
                out.extend(value.to_le_bytes());
            }
        };
        put(out, &self.gp);
        for (id, value) in &self.simd {
            out.extend(id.to_le_bytes());
            out.extend(value.to_le_bytes());
        }
        put(out, &self.sys);
        put(out, &self.icc);
        put(out, &self.redist);
        Ok(())
    }
}

/// A count that was checked, or that [`MAX_METADATA`] keeps small.
fn put_count(out: &mut Vec<u8>, count: usize) {
    out.extend(u32::try_from(count).expect("it was checked").to_le_bytes());
}
