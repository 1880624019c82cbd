//! virtio-net (virtio 1.2, 5.1): one pair of queues, and a cable that is plugged in and out while the guest runs.
//!
//! The device is the front; [`Backend`] is the seam; what answers the guest's frames is another crate's.

mod backend;
mod device;
mod header;

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use supermachine_support::lock;
use supermachine_support::side_work::{SideWork, Slot};

pub use backend::{Backend, Header, MAX_FRAME, Null, Offloads, Receiver, Segments};
pub use device::Net;

use crate::mmio::Transport;
use crate::poller::{Event, Poller};

/// The host's side: plugs the cable in and out, from any thread.
pub struct Host {
    transport: Arc<Mutex<Transport<Net>>>,
    cable: Mutex<Option<Cable>>,
    /// Where vCPUs that sleep look for work.
    idle: Option<Arc<Slot>>,
}

/// Who waits for the backend's sockets and timers.
struct Cable {
    poller: Arc<Poller>,
    thread: std::thread::JoinHandle<()>,
}

impl Host {
    /// Makes the device, its cable unplugged. vCPUs that sleep wait for the backend's sockets if they look for work
    /// here.
    pub fn new(
        mac: [u8; 6],
        mtu: u16,
        memory: crate::Memory,
        line: crate::IrqLine,
        idle: Option<Arc<Slot>>,
    ) -> (Self, Arc<Mutex<Transport<Net>>>) {
        let transport = Arc::new(Mutex::new(Transport::new(Net::new(mac, mtu), memory, line)));
        (Self { transport: transport.clone(), cable: Mutex::new(None), idle }, transport)
    }

    /// Plugs the cable into the backend that `make` makes, in place of what it was plugged into; the guest sees its
    /// link come up. The backend watches its sockets with the poller that `make` gets.
    pub fn attach(&self, make: impl FnOnce(Arc<Poller>) -> io::Result<Box<dyn Backend>>) -> io::Result<()> {
        let mut cable = lock(&self.cable);
        self.unplug(&mut cable);
        let poller = Arc::new(if self.idle.is_some() { Poller::for_two()? } else { Poller::new()? });
        let backend = make(poller.clone())?;
        lock(&self.transport).device.set_poller(Some(poller.clone()));
        lock(&self.transport).with(|device, rings| device.plug(Some(backend), rings));
        let (waits, serves) = (poller.clone(), self.transport.clone());
        let thread = std::thread::Builder::new().name("net".into()).spawn(move || run(&waits, &serves))?;
        if let Some(idle) = &self.idle {
            let (poller, transport) = (poller.clone(), self.transport.clone());
            idle.set(Some(Arc::new(Idle { poller, transport, events: Mutex::default() })));
        }
        *cable = Some(Cable { poller, thread });
        Ok(())
    }

    /// Unplugs the cable; the guest sees its link go down.
    pub fn detach(&self) {
        let mut cable = lock(&self.cable);
        self.unplug(&mut cable);
        lock(&self.transport).device.set_poller(None);
        lock(&self.transport).with(|device, rings| device.plug(None, rings));
    }
}

impl Host {
    /// Ends the I/O thread.
    fn unplug(&self, cable: &mut Option<Cable>) {
        if let Some(idle) = &self.idle {
            idle.set(None);
        }
        if let Some(Cable { poller, thread }) = cable.take() {
            poller.stop();
            let _ = thread.join();
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.unplug(&mut lock(&self.cable));
    }
}

fn run(poller: &Poller, transport: &Mutex<Transport<Net>>) {
    let mut deadline = lock(transport).device.sleeps();
    while let Some(events) = poller.wait_until(deadline) {
        let mut transport = lock(transport);
        transport.device.wakes();
        serve(&mut transport, events);
        deadline = transport.device.sleeps();
    }
}

fn serve(transport: &mut Transport<Net>, events: Vec<Event>) {
    transport.with_interrupt_last(|device, rings| {
        for event in events {
            device.ready(event, rings)?;
        }
        device.expire(rings)
    });
}

/// What the I/O thread does, done by a vCPU that has nothing to do: an answer that it waits for wakes one thread then
/// and not two, one after the other.
struct Idle {
    poller: Arc<Poller>,
    transport: Arc<Mutex<Transport<Net>>>,
    events: Mutex<Vec<Event>>,
}

impl SideWork for Idle {
    fn begin(&self) -> bool {
        self.poller.begin_beside()
    }

    fn wait(&self, until: Option<Instant>) -> Option<bool> {
        let events = self.poller.wait_beside(until)?;
        let any = !events.is_empty();
        *lock(&self.events) = events;
        Some(any)
    }

    fn work(&self) {
        let events = std::mem::take(&mut *lock(&self.events));
        serve(&mut lock(&self.transport), events);
    }

    fn let_go(&self) {
        self.poller.let_go();
    }

    fn wake(&self) {
        self.poller.wake_beside();
    }

    fn end(&self) {
        self.poller.end_beside();
    }
}
