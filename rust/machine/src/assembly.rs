//! A machine's devices, made in bus order from the one table of them ([`supermachine_snapshot::layout`]).

use std::fs::File;
use std::sync::{Arc, Mutex};

use supermachine_devices::balloon::Balloon;
use supermachine_devices::blk::Blk;
use supermachine_devices::console::Console;
use supermachine_devices::fs::Fs;
use supermachine_devices::rng::Rng;
use supermachine_devices::tail::Tail;
use supermachine_devices::{Device, IrqLine, Transport, net, vsock};
use supermachine_proto::agent::{GUEST_CID, SHARES_TAG};
use supermachine_snapshot::layout::{Kind, Layout};

use crate::Error;
use crate::builder::MachineBuilder;
use crate::bus::SharedDevice;
use crate::memory::Memory;
use crate::state::refused;

/// A locally administered address: each machine has a network of its own, so that all may have the same.
pub const MAC: [u8; 6] = [0x02, 0x53, 0x4d, 0x00, 0x00, 0x01];
/// Bytes of an IP packet at most, as the guest is told.
pub const MTU: u16 = 1500;

/// The layout of a snapshot with so many devices, of which `disks` are disks.
pub(crate) fn layout_of(devices: usize, disks: usize) -> Result<Layout, Error> {
    Layout::of(devices, disks).ok_or_else(|| {
        let [first, second] = Layout::ALL.map(|layout| layout.places(disks).count());
        refused(
            "device list",
            format!(
                "it names {devices} devices, and with {disks} disks there are {second}, or {first} in files of older \
                 versions; give it the disks that it had"
            ),
        )
    })
}

/// A disk's contents.
pub struct Disk {
    /// Its contents, from the first byte on.
    pub file: File,
    /// Whether the guest sees a disk that cannot be written to.
    pub read_only: bool,
}

/// A machine's devices.
pub(crate) struct Devices {
    pub in_bus_order: Vec<SharedDevice>,
    pub vsock: vsock::Host,
    /// From [`Layout::Second`] on.
    pub net: Option<net::Host>,
    pub fs: Option<Arc<Mutex<Transport<Fs>>>>,
    pub slots: Vec<Arc<Mutex<Transport<Blk>>>>,
}

impl Devices {
    pub(crate) fn assemble(
        layout: Layout,
        builder: &dyn MachineBuilder,
        memory: &Arc<Memory>,
        disks: Vec<Disk>,
        tail: &Tail,
    ) -> Result<Self, Error> {
        let ram = || memory.for_devices();
        let (vsock, transport) = vsock::Host::start(GUEST_CID, ram(), builder.irq_line(0))?;
        let mut all = Self { in_bus_order: vec![transport], vsock, net: None, fs: None, slots: Vec::new() };
        let count = disks.len();
        let mut disks = disks.into_iter();
        for (place, row) in layout.places(count).enumerate().skip(1) {
            let line = builder.irq_line(place);
            let device: SharedDevice = match row.kind {
                // Always the first, and there.
                Kind::Vsock => continue,
                Kind::Disk => {
                    let Some(disk) = disks.next() else { continue };
                    shared(Blk::new(disk.file, disk.read_only)?, ram(), line)
                }
                Kind::Console => shared(Console(tail.clone()), ram(), line),
                Kind::Rng => shared(Rng, ram(), line),
                Kind::Net => {
                    let (host, transport) = net::Host::new(MAC, MTU, ram(), line, builder.side_work());
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
            all.in_bus_order.push(device);
        }
        Ok(all)
    }
}

fn shared<D: Device>(
    device: D,
    memory: supermachine_devices::Memory,
    line: IrqLine,
) -> Arc<Mutex<Transport<D>>> {
    Arc::new(Mutex::new(Transport::new(device, memory, line)))
}

#[cfg(test)]
mod tests {

    use supermachine_support::lock;

    use super::*;
    use crate::architecture::Architecture;
    use crate::power::EntryPoint;
    use crate::vcpus::VcpuSet;

    struct NoBuilder;

    impl MachineBuilder for NoBuilder {
        fn irq_line(&self, _: usize) -> IrqLine {
            Arc::new(|_| {})
        }

        fn load(&self, _: &Memory, _: &crate::builder::Load) -> Result<EntryPoint, Error> {
            unreachable!("nothing is booted")
        }

        fn start(self: Box<Self>, _: Vec<SharedDevice>, _: Tail) -> Result<Arc<dyn VcpuSet>, Error> {
            unreachable!("nothing is started")
        }
    }

    #[test]
    fn the_devices_are_those_of_the_table() {
        let memory = Arc::new(Memory::new(Architecture::Arm64.map(), 64 << 20).unwrap());
        for layout in Layout::ALL {
            let disk = || Disk { file: File::open("Cargo.toml").unwrap(), read_only: true };
            let disks = vec![disk(), disk()];
            let devices = Devices::assemble(layout, &NoBuilder, &memory, disks, &Tail::default()).unwrap();
            let made = devices.in_bus_order.iter().map(|device| {
                let state = lock(device).save();
                (state.id, state.transport.queues.len())
            });
            let said = layout.places(2).map(|row| (row.virtio_id, row.queues));
            assert_eq!(made.collect::<Vec<_>>(), said.collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_number_of_devices_that_no_layout_has_is_named() {
        assert_eq!(layout_of(11, 1).unwrap(), Layout::Second);
        for devices in [0, 3, 5, 10, 12] {
            let error = layout_of(devices, 1).unwrap_err().to_string();
            assert!(error.contains(&format!("{devices} devices")), "{error}");
        }
    }
}
