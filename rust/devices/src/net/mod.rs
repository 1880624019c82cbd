//! virtio-net (virtio 1.2, 5.1): one pair of queues, and a cable that is plugged in and out while the guest runs.
//!
//! The device is the front; [`Backend`] is the seam; what answers the guest's frames is another crate's.

mod backend;
mod device;
mod header;

use std::io;
use std::sync::{Arc, Mutex};

use supermachine_support::lock;

pub use backend::{Backend, Header, MAX_FRAME, Null, Offloads, Receiver, Segments};
pub use device::Net;

use crate::mmio::Transport;
use crate::poller::Poller;

/// The host's side: plugs the cable in and out, from any thread.
pub struct Host {
    transport: Arc<Mutex<Transport<Net>>>,
    cable: Mutex<Option<Cable>>,
}

/// Who waits for the backend's sockets and timers.
struct Cable {
    poller: Arc<Poller>,
    thread: std::thread::JoinHandle<()>,
}

impl Host {
    /// Makes the device, its cable unplugged.
    pub fn new(
        mac: [u8; 6],
        mtu: u16,
        memory: crate::Memory,
        line: crate::IrqLine,
    ) -> (Self, Arc<Mutex<Transport<Net>>>) {
        let transport = Arc::new(Mutex::new(Transport::new(Net::new(mac, mtu), memory, line)));
        (Self { transport: transport.clone(), cable: Mutex::new(None) }, transport)
    }

    /// Plugs the cable into the backend that `make` makes, in place of what it was plugged into; the guest sees its link
    /// come up. The backend watches its sockets with the poller that `make` gets.
    pub fn attach(&self, make: impl FnOnce(Arc<Poller>) -> io::Result<Box<dyn Backend>>) -> io::Result<()> {
        let mut cable = lock(&self.cable);
        unplug(&mut cable);
        let poller = Arc::new(Poller::new()?);
        let backend = make(poller.clone())?;
        lock(&self.transport).device.set_poller(Some(poller.clone()));
        lock(&self.transport).with(|device, rings| device.plug(Some(backend), rings));
        let (waits, serves) = (poller.clone(), self.transport.clone());
        let thread = std::thread::Builder::new().name("net".into()).spawn(move || run(&waits, &serves))?;
        *cable = Some(Cable { poller, thread });
        Ok(())
    }

    /// Unplugs the cable; the guest sees its link go down.
    pub fn detach(&self) {
        let mut cable = lock(&self.cable);
        unplug(&mut cable);
        lock(&self.transport).device.set_poller(None);
        lock(&self.transport).with(|device, rings| device.plug(None, rings));
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        unplug(&mut lock(&self.cable));
    }
}

/// Ends the I/O thread.
fn unplug(cable: &mut Option<Cable>) {
    if let Some(Cable { poller, thread }) = cable.take() {
        poller.stop();
        let _ = thread.join();
    }
}

fn run(poller: &Poller, transport: &Mutex<Transport<Net>>) {
    let mut deadline = lock(transport).device.sleeps();
    while let Some(events) = poller.wait_until(deadline) {
        let mut transport = lock(transport);
        transport.with_interrupt_last(|device, rings| {
            for event in events {
                device.ready(event, rings)?;
            }
            device.expire(rings)
        });
        deadline = transport.device.sleeps();
    }
}
