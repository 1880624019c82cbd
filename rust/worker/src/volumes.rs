//! Volumes of the guest: files of the host in slots of the machine, each with a lock that lasts as long as it is open.

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex};

use supermachine_machine::{DiskBacking, Machine};
use supermachine_proto::worker::VolumeSlot;
use supermachine_storage::volume::{Mark, Volume};
use supermachine_support::lock;

use crate::room::Room;
use crate::scratch;
use crate::session::Ended;

/// Those of a machine.
#[derive(Default)]
pub struct Volumes(Vec<Shared>);

type Shared = Arc<Mutex<Volume>>;

impl Volumes {
    /// Puts each into its slot, before the machine starts.
    pub fn insert(
        machine: &Machine,
        slots: &[VolumeSlot],
        files: Vec<File>,
        room: &Room,
    ) -> Result<Self, Ended> {
        let unusable = |e: io::Error| Ended::bad(format!("a volume cannot be used: {e}"));
        let mut files = files.into_iter();
        let mut next = || files.next().ok_or_else(|| Ended::bad("a file of a volume did not come along"));
        let mut all = Vec::new();
        for slot in slots {
            let file = next()?;
            let length = supermachine_machine::snapshot::v9::length_of(&file).map_err(unusable)?;
            let volume = Volume::open(file.try_clone().map_err(unusable)?, length).map_err(unusable)?;
            if slot.read_only {
                let scratch = scratch::over(file, volume.bytes(), next()?);
                scratch::insert(&scratch, machine, slot.slot as usize)
                    .map_err(|e| Ended::bad(e.to_string()))?;
                continue;
            }
            volume.hold().map_err(unusable)?;
            let bytes = volume.bytes();
            room.watch(slot.slot as usize, Arc::new(file), bytes);
            let volume = Arc::new(Mutex::new(volume));
            let device = Box::new(Device { volume: volume.clone(), bytes });
            machine.insert_disk(slot.slot as usize, device, false).map_err(|e| Ended::bad(e.to_string()))?;
            all.push(volume);
        }
        Ok(Self(all))
    }

    /// At a moment in which nothing is written to them, and their file systems are whole.
    pub fn set_mark(&self, mark: Mark) -> io::Result<()> {
        self.0.iter().try_for_each(|volume| lock(volume).set_mark(mark))
    }
}

/// As the guest's device sees it.
struct Device {
    volume: Shared,
    bytes: u64,
}

impl DiskBacking for Device {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        lock(&self.volume).read(buffer, offset)
    }

    fn write(&mut self, buffer: &[u8], offset: u64) -> io::Result<()> {
        lock(&self.volume).write(buffer, offset)
    }

    fn flush(&mut self) -> io::Result<()> {
        lock(&self.volume).flush()
    }

    fn discard(&mut self, offset: u64, length: u64) -> io::Result<()> {
        lock(&self.volume).discard(offset, length)
    }

    fn write_zeroes(&mut self, offset: u64, length: u64, _free: bool) -> io::Result<()> {
        lock(&self.volume).zero(offset, length)
    }
}
