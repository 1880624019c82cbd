//! What a hostile guest does to its devices, for tests and for the fuzzer.

use supermachine_devices::balloon::Balloon;
use supermachine_devices::blk::{Blk, FileBacking};
use supermachine_devices::console::Console;
use supermachine_devices::fs::Fs;
use supermachine_devices::rng::Rng;
use supermachine_devices::tail::Tail;
use supermachine_devices::{Device, IrqLine, Memory, net, vsock};
use vm_memory::{Bytes, GuestAddress};

use super::{Driver, file, line, memory};

/// What a guest may do to a device.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    Store(u64, u32),
    Load(u64, usize),
    Describe(u16, u64, u32, u16, u16),
    Offer(u16),
    Scribble(u64, Vec<u8>),
    Notify(u32),
    Reset,
}

/// Does this to each kind of device.
pub(crate) fn to_every_device(acts: &[Act]) {
    perform(&mut Driver::start(Blk::new(file(&[1; 8192]), false).unwrap()), acts);
    perform(&mut Driver::start(Console(Tail::default())), acts);
    perform(&mut Driver::start(Rng), acts);
    perform(&mut Driver::start(Fs::new("tag")), acts);
    perform(&mut Driver::start(Balloon::new(Box::new(|_, _| ()))), acts);
    let mut slot = Driver::start(Blk::slot());
    slot.lock().with(|device, rings| {
        device.insert(Box::new(FileBacking::new(file(&[1; 8192]))?), false, rings);
        Ok(())
    });
    perform(&mut slot, acts);
    let ram: Memory = memory();
    let (irq, level): (IrqLine, _) = line();
    let (host, transport) = net::Host::new([2; 6], 1500, ram.clone(), irq, None);
    host.attach(|_| Ok(Box::new(Loopback))).unwrap();
    perform(&mut Driver::with(transport, ram, level), acts);
    let ram: Memory = memory();
    let (irq, level): (IrqLine, _) = line();
    let (host, transport) = vsock::Host::start(3, ram.clone(), irq).unwrap();
    host.listen(1024, Box::new(drop));
    perform(&mut Driver::with(transport, ram, level), acts);
}

fn perform<D: Device>(driver: &mut Driver<D>, acts: &[Act]) {
    for act in acts {
        match act {
            Act::Store(offset, value) => driver.store(*offset, *value),
            Act::Load(offset, length) => driver.lock().read(*offset, &mut vec![0; *length]),
            Act::Describe(n, address, length, flags, next) => {
                for queue in 0..driver.sizes.len() {
                    driver.describe(queue, *n, *address, *length, *flags, *next);
                }
            }
            Act::Offer(head) => (0..driver.sizes.len()).for_each(|queue| driver.offer(queue, *head)),
            Act::Scribble(at, bytes) => drop(driver.memory.write_slice(bytes, GuestAddress(*at))),
            Act::Notify(queue) => driver.notify(*queue as usize),
            Act::Reset => driver.initialise(),
        }
        // What a guest can bring about can be saved; restoring it may be refused, and never panics.
        let state = driver.lock().state();
        let _ = driver.lock().restore(&state);
    }
    driver.initialise();
    assert!(!driver.is_broken());
}

/// Sends each frame back.
struct Loopback;

impl net::Backend for Loopback {
    fn start(&mut self, _: net::Offloads) {}

    fn transmit(
        &mut self,
        header: &net::Header,
        frame: &[vm_memory::VolatileSlice<'_>],
        guest: &mut dyn net::Receiver,
    ) -> Result<(), supermachine_devices::Broken> {
        let mut pieces = vec![];
        for slice in frame {
            let mut bytes = vec![0; slice.len()];
            slice.copy_to(&mut bytes);
            pieces.push(bytes);
        }
        guest.send(header, &pieces.iter().map(|piece| &piece[..]).collect::<Vec<_>>()).map(drop)
    }

    fn pump(&mut self, guest: &mut dyn net::Receiver) -> Result<(), supermachine_devices::Broken> {
        guest.has_room().map(drop)
    }

    fn ready(
        &mut self,
        _: supermachine_devices::poller::Event,
        _: &mut dyn net::Receiver,
    ) -> Result<(), supermachine_devices::Broken> {
        Ok(())
    }
}
