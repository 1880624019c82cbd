//! The devices of every machine, in bus order: the one table that the machine, both formats and the API go by.
//! Part of the snapshot's contract, as docs/concepts/snapshot-versioning.md has it.

/// What a place on the bus is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Sockets between host and guest.
    Vsock,
    /// Disks that the machine has from its start.
    Disk,
    /// The guest's console.
    Console,
    /// Entropy.
    Rng,
    /// The network card.
    Net,
    /// Shares of host directories.
    Fs,
    /// Slots for disks that come later.
    Slot,
    /// Free page reporting.
    Balloon,
}

/// One kind of device.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// What it is for.
    pub kind: Kind,
    /// In a snapshot's identity.
    pub name: &'static str,
    /// Virtio device id (virtio 1.2, 5).
    pub virtio_id: u32,
    /// Virtqueues that the device has.
    pub queues: usize,
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
    /// Sockets, disks, console and entropy.
    First = 1,
    /// With network, file server, slots and balloon.
    Second = 2,
}

/// All devices in bus order. New rows come last, with a new layout: a guest finds its devices by their place.
pub const DEVICES: [Row; 8] = [
    Row::new(Kind::Vsock, "vsock", 19, 3).fixed(1).in_v8(),
    Row::new(Kind::Disk, "block", 2, 1).in_v8(),
    Row::new(Kind::Console, "console", 3, 2).fixed(1),
    Row::new(Kind::Rng, "rng", 4, 1).fixed(1),
    Row::new(Kind::Net, "net", 1, 2).fixed(1).since(Layout::Second),
    Row::new(Kind::Fs, "fs", 26, 2).fixed(1).since(Layout::Second),
    Row::new(Kind::Slot, "block", 2, 1).fixed(4).since(Layout::Second),
    Row::new(Kind::Balloon, "balloon", 5, 3).fixed(1).since(Layout::Second),
];

impl Row {
    const fn new(kind: Kind, name: &'static str, virtio_id: u32, queues: usize) -> Self {
        Self { kind, name, virtio_id, queues, count: None, since: Layout::First, in_v8: false }
    }

    const fn fixed(self, count: usize) -> Self {
        Self { count: Some(count), ..self }
    }

    const fn since(self, since: Layout) -> Self {
        Self { since, ..self }
    }

    const fn in_v8(self) -> Self {
        Self { in_v8: true, ..self }
    }
}

impl Layout {
    /// The one that new machines have.
    pub const NEWEST: Self = Self::Second;
    /// Every layout, the oldest first.
    pub const ALL: [Self; 2] = [Self::First, Self::Second];

    /// The devices that it has, one row for each place on the bus.
    pub fn places(self, disks: usize) -> impl Iterator<Item = &'static Row> {
        DEVICES
            .iter()
            .filter(move |row| row.since <= self)
            .flat_map(move |row| std::iter::repeat_n(row, row.count.unwrap_or(disks)))
    }

    /// The layout of a snapshot with so many devices, of which `disks` are disks.
    pub fn of(devices: usize, disks: usize) -> Option<Self> {
        Self::ALL.into_iter().find(|layout| layout.places(disks).count() == devices)
    }
}

/// Devices with these disks that the writers of version 8 in the field have.
pub fn in_v8(disks: usize) -> usize {
    DEVICES.iter().filter(|row| row.in_v8).map(|row| row.count.unwrap_or(disks)).sum()
}

/// Disks that a machine with so many places has room for.
pub fn most_disks(places: usize) -> usize {
    places - Layout::NEWEST.places(0).count()
}

/// What a device is called in a snapshot's identity.
pub fn name(virtio_id: u32) -> String {
    let row = DEVICES.iter().find(|row| row.virtio_id == virtio_id);
    row.map_or_else(|| format!("virtio-{virtio_id}"), |row| row.name.into())
}

/// Names of a version 8 file's devices, which it has no types of, by how many queues each has. A file of this project
/// has the devices of a layout; one of the field's has what [`in_v8`] counts.
pub fn names_v8(queues: &[usize]) -> Vec<&'static str> {
    let of_layout = |layout: &Layout| {
        let disks = queues.len().checked_sub(layout.places(0).count())?;
        let rows: Vec<_> = layout.places(disks).collect();
        let same = rows.iter().zip(queues).skip(in_v8(disks)).all(|(row, count)| row.queues == *count);
        same.then(|| rows.iter().map(|row| row.name).collect())
    };
    Layout::ALL.iter().rev().find_map(of_layout).unwrap_or_else(|| {
        let disks = queues.len().saturating_sub(in_v8(0));
        let rows = Layout::First.places(disks).filter(|row| row.in_v8);
        rows.take(queues.len()).map(|row| row.name).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A guest that was captured finds its devices by their place. When this fails, read
    /// docs/concepts/snapshot-versioning.md.
    #[test]
    fn places_of_captured_guests_stay() {
        use Kind::*;
        let kinds = |layout: Layout| layout.places(2).map(|row| row.kind).collect::<Vec<_>>();
        let first = [Vsock, Disk, Disk, Console, Rng];
        assert_eq!(kinds(Layout::First), first);
        let second = [&first[..], &[Net, Fs, Slot, Slot, Slot, Slot, Balloon]].concat();
        assert_eq!(kinds(Layout::Second), second);
        assert_eq!(in_v8(2), 3);
    }

    #[test]
    fn a_layout_is_known_by_the_number_of_its_devices() {
        assert_eq!(Layout::of(4, 1), Some(Layout::First));
        assert_eq!(Layout::of(11, 1), Some(Layout::Second));
        for devices in [0, 3, 5, 10, 12] {
            assert_eq!(Layout::of(devices, 1), None);
        }
    }

    #[test]
    fn devices_of_version_8_have_their_places_names() {
        let fields = names_v8(&[3, 1, 1]);
        assert_eq!(fields, ["vsock", "block", "block"]);
        assert_eq!(names_v8(&[3]), ["vsock"]);
        assert_eq!(names_v8(&[]), [""; 0]);
        for layout in Layout::ALL {
            for disks in 0..3 {
                let rows: Vec<_> = layout.places(disks).collect();
                let queues: Vec<_> = rows.iter().map(|row| row.queues).collect();
                assert_eq!(names_v8(&queues), rows.iter().map(|row| row.name).collect::<Vec<_>>());
            }
        }
    }
}
