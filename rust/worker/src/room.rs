//! Room on the host's disks, of which guests are told before there is none: a guest whose file system gives out what
//! the host has not got would lose what it was promised.

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use supermachine_proto::agent::{BootCommand, BootEvent};
use supermachine_proto::worker::slot_device;
use supermachine_support::lock;

use crate::boot::BootChannel;

/// Bytes that guests leave free on a file system of the host's, or this part of it where that is less: for the host
/// itself, for what guests have been promised and not yet written, and for their file systems' own.
const MINIMUM: u64 = 1 << 30;
const PART: u64 = 20;
/// How much there may be for guests before one is told: more than it can write between two looks.
const NEAR: u64 = 16 << 30;
/// The same before the first look, for which a guest has less time.
pub(crate) const URGENT: u64 = 1 << 30;
pub(crate) const ANY: u64 = NEAR;
/// Bytes by which it may change untold, beside an eighth.
const STEP: u64 = 1 << 20;
/// How long the guest may take to answer; it has the message all the same.
const ANSWER: Duration = Duration::from_secs(1);

/// The disks of a guest whose contents are files of the host's.
#[derive(Default)]
pub(crate) struct Room(Mutex<Vec<Disk>>);

struct Disk {
    device: String,
    file: Arc<File>,
    bytes: u64,
    /// What the guest was told, if it is limited.
    told: Option<u64>,
}

impl Room {
    /// Looks after the disk of so many bytes in a slot from now on.
    pub(crate) fn watch(&self, slot: u32, file: Arc<File>, bytes: u64) {
        let device = slot_device(slot);
        lock(&self.0).push(Disk { device, file, bytes, told: None });
    }

    /// The disk in a slot has become larger.
    pub(crate) fn grown(&self, slot: u32, bytes: u64) {
        let device = slot_device(slot);
        lock(&self.0).iter_mut().filter(|disk| disk.device == device).for_each(|disk| disk.bytes = bytes);
    }

    /// Whether the guest is to be told something, where there is less than `near` left.
    pub(crate) fn has_changed(&self, near: u64) -> bool {
        lock(&self.0).iter().any(|disk| disk.news(near).is_some())
    }

    /// Tells the guest.
    pub(crate) fn tell(&self, boot: &BootChannel) {
        let mut news = Vec::new();
        for disk in lock(&self.0).iter_mut() {
            if let Some(bytes) = disk.news(NEAR) {
                disk.told = (bytes != u64::MAX).then_some(bytes);
                news.push(BootCommand::Room { device: disk.device.clone(), bytes });
            }
        }
        for command in news {
            boot.ask(&command, &BootEvent::RoomSet, ANSWER);
        }
    }
}

impl Disk {
    /// What the guest does not know yet.
    fn news(&self, near: u64) -> Option<u64> {
        // A file system that says nothing is not looked after.
        said(self.told, left(&self.file).ok()?, near.min(self.bytes))
    }
}

/// Bytes that the host has for guests where a file is.
fn left(file: &File) -> io::Result<u64> {
    let found = rustix::fs::fstatvfs(file)?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    Ok(bytes(found.f_bavail).saturating_sub(MINIMUM.min(bytes(found.f_blocks) / PART)))
}

/// What a guest that was told this is to be told now.
fn said(told: Option<u64>, left: u64, near: u64) -> Option<u64> {
    match told {
        None => (left < near).then_some(left),
        // Not to and fro: for what takes room and gives it back at once.
        Some(_) if left >= near.saturating_add(near / 8) => Some(u64::MAX),
        Some(told) => (told.abs_diff(left) > told / 8 + STEP || left == 0 && told != 0).then_some(left),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_told_when_it_comes_near_and_when_there_is_room_again() {
        assert_eq!(said(None, 100 << 30, 16 << 30), None);
        assert_eq!(said(None, 15 << 30, 16 << 30), Some(15 << 30));
        assert_eq!(said(Some(15 << 30), 14 << 30, 16 << 30), None);
        assert_eq!(said(Some(15 << 30), 8 << 30, 16 << 30), Some(8 << 30));
        assert_eq!(said(Some(1 << 20), 0, 16 << 30), Some(0));
        assert_eq!(said(Some(0), 0, 16 << 30), None);
        assert_eq!(said(Some(0), 17 << 30, 16 << 30), Some(17 << 30));
        assert_eq!(said(Some(0), 18 << 30, 16 << 30), Some(u64::MAX));
        // A disk that is smaller than what is left needs no limit.
        assert_eq!(said(None, 1 << 30, 1 << 30), None);
    }

    #[test]
    fn what_is_left_is_less_than_what_is_free() {
        let file = tempfile::tempfile().unwrap();
        let found = rustix::fs::fstatvfs(&file).unwrap();
        assert!(left(&file).unwrap() < found.f_bavail * found.f_frsize || found.f_bavail == 0);
    }
}
