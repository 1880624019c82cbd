//! The devices of every machine, in bus order: the one table that the machine, both snapshot formats and the API go by.
//! Part of the snapshot's contract, as docs/concepts/snapshot-versioning.md has it.

use std::sync::{Arc, Mutex};

use supermachine_devices::balloon::Balloon;
use supermachine_devices::blk::Blk;
use supermachine_devices::console::Console;
use supermachine_devices::fs::Fs;
use supermachine_devices::rng::Rng;
use supermachine_devices::tail::Tail;
use supermachine_devices::{Device, Transport, net, vsock};
use supermachine_proto::agent::{GUEST_CID, SHARES_TAG};

use crate::board::Board;
use crate::machine::{Disk, SharedWindow};
use crate::memory::Memory;
use crate::{Error, capture};

/// A locally administered address: each machine has a network of its own, so that all may have the same.
pub const MAC: [u8; 6] = [0x02, 0x53, 0x4d, 0x00, 0x00, 0x01];
pub const MTU: u16 = 1500;

/// What a place on the bus is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Vsock,
    /// Disks that the machine has from its start.
    Disk,
    Console,
    Rng,
    Net,
    Fs,
    /// Slots for disks that come later.
    Slot,
    Balloon,
}

/// One kind of device.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub kind: Kind,
    /// In a snapshot's identity.
    pub name: &'static str,
    /// Virtio device id (virtio 1.2, 5).
    pub virtio_id: u32,
    /// How many there are; `None` is as many as the machine has disks.
    pub count: Option<usize>,
    /// The first layout that has it.
    pub since: Layout,
    /// Whether the writers of version 8 in the field have it.
    pub in_v8: bool,
}

/// Which devices a machine has. New machines have the newest; one from a snapshot has its snapshot's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Layout {
    First = 1,
    /// With network, file server, slots and balloon.
    Second = 2,
}

/// All devices in bus order. New rows come last, with a new layout: a guest finds its devices by their place.
pub const DEVICES: [Row; 8] = [
    row(Kind::Vsock, "vsock", 19, Some(1), Layout::First, true),
    row(Kind::Disk, "block", 2, None, Layout::First, true),
    row(Kind::Console, "console", 3, Some(1), Layout::First, false),
    row(Kind::Rng, "rng", 4, Some(1), Layout::First, false),
    row(Kind::Net, "net", 1, Some(1), Layout::Second, false),
    row(Kind::Fs, "fs", 26, Some(1), Layout::Second, false),
    row(Kind::Slot, "block", 2, Some(4), Layout::Second, false),
    row(Kind::Balloon, "balloon", 5, Some(1), Layout::Second, false),
];

const fn row(
    kind: Kind,
    name: &'static str,
    virtio_id: u32,
    count: Option<usize>,
    since: Layout,
    in_v8: bool,
) -> Row {
    Row { kind, name, virtio_id, count, since, in_v8 }
}

impl Layout {
    pub const NEWEST: Self = Self::Second;
    const ALL: [Self; 2] = [Self::First, Self::Second];

    /// The kinds of devices that it has, one for each place on the bus.
    pub fn places(self, disks: usize) -> impl Iterator<Item = Kind> {
        DEVICES
            .iter()
            .filter(move |row| row.since <= self)
            .flat_map(move |row| std::iter::repeat_n(row.kind, row.count.unwrap_or(disks)))
    }

    /// The layout of a snapshot with so many devices, of which `disks` are disks.
    pub(crate) fn of(devices: usize, disks: usize) -> Result<Self, Error> {
        let counts = Self::ALL.map(|layout| layout.places(disks).count());
        Self::ALL.into_iter().zip(counts).find(|(_, count)| *count == devices).map(|(layout, _)| layout).ok_or_else(
            || {
                let [first, second] = counts;
                capture::refused(
                    "device list",
                    format!(
                        "it names {devices} devices, and with {disks} disks there are {second}, or {first} in files of older \
                         versions; give it the disks that it had"
                    ),
                )
            },
        )
    }
}

/// Devices with these disks that the writers of version 8 in the field have.
pub(crate) fn in_v8(disks: usize) -> usize {
    DEVICES.iter().filter(|row| row.in_v8).map(|row| row.count.unwrap_or(disks)).sum()
}

/// Disks that a machine with so many places has room for.
pub(crate) fn most_disks(places: usize) -> usize {
    places - Layout::NEWEST.places(0).count()
}

/// What a device is called in a snapshot's identity.
pub(crate) fn name(virtio_id: u32) -> String {
    let row = DEVICES.iter().find(|row| row.virtio_id == virtio_id);
    row.map_or_else(|| format!("virtio-{virtio_id}"), |row| row.name.into())
}

/// A machine's devices.
pub(crate) struct Devices {
    /// In bus order.
    pub windows: Vec<SharedWindow>,
    pub vsock: vsock::Host,
    /// From [`Layout::Second`] on.
    pub net: Option<net::Host>,
    pub fs: Option<Arc<Mutex<Transport<Fs>>>>,
    pub slots: Vec<Arc<Mutex<Transport<Blk>>>>,
}

impl Devices {
    pub fn assemble(
        layout: Layout,
        board: &dyn Board,
        memory: &Arc<Memory>,
        disks: Vec<Disk>,
        tail: &Tail,
    ) -> Result<Self, Error> {
        let ram = || memory.ram.clone();
        let (vsock, transport) = vsock::Host::start(GUEST_CID, ram(), board.line(0))?;
        let mut all = Self { windows: vec![transport], vsock, net: None, fs: None, slots: Vec::new() };
        let count = disks.len();
        let mut disks = disks.into_iter();
        for (place, kind) in layout.places(count).enumerate().skip(1) {
            let line = board.line(place);
            let window: SharedWindow = match kind {
                // Always the first, and there.
                Kind::Vsock => continue,
                Kind::Disk => {
                    let Some(disk) = disks.next() else { continue };
                    shared(Blk::new(disk.file, disk.read_only)?, ram(), line)
                }
                Kind::Console => shared(Console(tail.clone()), ram(), line),
                Kind::Rng => shared(Rng, ram(), line),
                Kind::Net => {
                    let (host, transport) = net::Host::new(MAC, MTU, ram(), line);
                    all.net = Some(host);
                    transport
                }
                Kind::Fs => {
                    let transport = shared(Fs::new(SHARES_TAG), ram(), line);
                    all.fs = Some(transport.clone());
                    transport
                }
                Kind::Slot => {
                    let transport = shared(Blk::slot(), ram(), line);
                    all.slots.push(transport.clone());
                    transport
                }
                Kind::Balloon => {
                    let memory = memory.clone();
                    shared(
                        Balloon::new(Box::new(move |gpa, length| memory.release(gpa, length))),
                        ram(),
                        line,
                    )
                }
            };
            all.windows.push(window);
        }
        Ok(all)
    }
}

fn shared<D: Device>(
    device: D,
    memory: supermachine_devices::Memory,
    line: supermachine_devices::Line,
) -> Arc<Mutex<Transport<D>>> {
    Arc::new(Mutex::new(Transport::new(device, memory, line)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A guest that was captured finds its devices by their place. When this fails, read docs/concepts/snapshot-versioning.md.
    #[test]
    fn places_of_captured_guests_stay() {
        use Kind::*;
        let first = [Vsock, Disk, Disk, Console, Rng];
        assert_eq!(Layout::First.places(2).collect::<Vec<_>>(), first);
        let second = [&first[..], &[Net, Fs, Slot, Slot, Slot, Slot, Balloon]].concat();
        assert_eq!(Layout::Second.places(2).collect::<Vec<_>>(), second);
        assert_eq!(in_v8(2), 3);
    }

    #[test]
    fn a_layout_is_known_by_the_number_of_its_devices() {
        assert_eq!(Layout::of(4, 1).unwrap(), Layout::First);
        assert_eq!(Layout::of(11, 1).unwrap(), Layout::Second);
        for devices in [0, 3, 5, 10, 12] {
            let error = Layout::of(devices, 1).unwrap_err().to_string();
            assert!(error.contains(&format!("{devices} devices")), "{error}");
        }
    }
}
