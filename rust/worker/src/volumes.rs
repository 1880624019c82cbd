//! Volumes of the guest: files of the host in slots of the machine, each with a lock that lasts as long as it is open.

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex};

use supermachine_machine::{DiskBacking, Machine};
use supermachine_proto::worker::VolumeSlot;
use supermachine_storage::volume::{Mark, Volume, Wish};
use supermachine_support::lock;

use crate::ended::Ended;
use crate::room::Room;
use crate::scratch;

/// Those of a machine that it may write to.
#[derive(Clone, Default)]
pub(crate) struct Volumes(Vec<(u32, Shared)>);

type Shared = Arc<Mutex<Volume>>;

impl Volumes {
    /// Puts each into its slot, before the machine starts.
    pub(crate) fn insert(
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
                scratch::insert(&scratch, machine, slot.slot).map_err(|e| Ended::bad(e.to_string()))?;
                continue;
            }
            volume.hold().map_err(unusable)?;
            let bytes = volume.bytes();
            room.watch(slot.slot, Arc::new(file), bytes);
            let volume = Arc::new(Mutex::new(volume));
            let device = Box::new(Device { volume: volume.clone(), bytes });
            machine.insert_disk(slot.slot as usize, device, false).map_err(|e| Ended::bad(e.to_string()))?;
            all.push((slot.slot, volume));
        }
        Ok(Self(all))
    }

    /// At a moment in which nothing is written to them, and their file systems are whole.
    pub(crate) fn set_mark(&self, mark: Mark) -> io::Result<()> {
        self.0.iter().try_for_each(|(_, volume)| lock(volume).set_mark(mark))
    }

    /// One that another process wants to be larger: its slot and so many bytes.
    pub(crate) fn wish(&self) -> Option<(u32, u64)> {
        self.0.iter().find_map(|(slot, volume)| match lock(volume).wish() {
            Ok(Wish::Bytes(bytes)) => Some((*slot, bytes)),
            _ => None,
        })
    }

    /// Says to who wished it of the one in a slot what came of it.
    pub(crate) fn answer(&self, slot: u32, done: bool) {
        let answer = if done { Wish::None } else { Wish::Refused };
        for (_, volume) in self.0.iter().filter(|(found, _)| *found == slot) {
            // Without it whoever waits does so until its own deadline.
            let _ = lock(volume).set_wish(answer);
        }
    }

    /// Makes the one in a slot larger; the guest's kernel hears of it.
    pub(crate) fn grow(&self, machine: &Machine, room: &Room, slot: u32, bytes: u64) -> io::Result<()> {
        let found = self.0.iter().find(|(found, _)| *found == slot);
        let (_, volume) =
            found.ok_or_else(|| io::Error::other("there is no volume to write to in this slot"))?;
        lock(volume).grow(bytes).map_err(io::Error::other)?;
        room.grown(slot, bytes);
        let device = Box::new(Device { volume: volume.clone(), bytes });
        machine.insert_disk(slot as usize, device, false).map_err(io::Error::other)
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
