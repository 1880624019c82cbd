//! The network card, driven through its registers, with a backend of the test's own.

#![allow(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "tests make small numbers and bytes of counters"
)]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use common::*;
use supermachine_devices::Broken;
use supermachine_devices::net::{Backend, Header, Host, Net, Offloads, Receiver, Segments};
use supermachine_devices::poller::Event;
use vm_memory::VolatileSlice;

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const DATA: u64 = BUFFERS + 0x1000;
const GUEST_CSUM: u32 = 1 << 1;
const GUEST_TSO4: u32 = 1 << 7;
const MRG_RXBUF: u32 = 1 << 15;
const STATUS: u32 = 1 << 16;

/// What a backend was told.
#[derive(Default)]
struct Told {
    frames: Vec<(Header, Vec<u8>)>,
    offloads: Vec<Offloads>,
    /// For the guest, as soon as it has room.
    waiting: Vec<(Header, Vec<u8>)>,
    deadline: Option<Instant>,
    /// For the guest at the deadline.
    later: Vec<(Header, Vec<u8>)>,
    /// Whether the guest was interrupted while the I/O thread was not done.
    interrupted_early: bool,
    /// Sockets that were ready, and who said so.
    ready: Vec<(u64, thread::ThreadId)>,
}

struct Recorder {
    told: Arc<Mutex<Told>>,
    expired: mpsc::Sender<()>,
    level: Arc<AtomicBool>,
}

impl Backend for Recorder {
    fn start(&mut self, offloads: Offloads) {
        self.told.lock().unwrap().offloads.push(offloads);
    }

    fn transmit(
        &mut self,
        header: &Header,
        frame: &[VolatileSlice<'_>],
        _: &mut dyn Receiver,
    ) -> Result<(), Broken> {
        let mut bytes = vec![];
        for slice in frame {
            let mut part = vec![0; slice.len()];
            slice.copy_to(&mut part);
            bytes.extend(part);
        }
        self.told.lock().unwrap().frames.push((*header, bytes));
        Ok(())
    }

    fn pump(&mut self, guest: &mut dyn Receiver) -> Result<(), Broken> {
        let mut told = self.told.lock().unwrap();
        while let Some((header, bytes)) = told.waiting.first() {
            if !guest.send(header, &[&bytes[..5], &[], &bytes[5..]])? {
                break;
            }
            told.waiting.remove(0);
        }
        Ok(())
    }

    fn ready(&mut self, event: Event, _: &mut dyn Receiver) -> Result<(), Broken> {
        self.told.lock().unwrap().ready.push((event.token, thread::current().id()));
        Ok(())
    }

    fn deadline(&self) -> Option<Instant> {
        self.told.lock().unwrap().deadline
    }

    fn expired(&mut self, guest: &mut dyn Receiver) -> Result<(), Broken> {
        {
            let mut told = self.told.lock().unwrap();
            told.deadline = None;
            told.waiting = std::mem::take(&mut told.later);
        }
        self.pump(guest)?;
        self.told.lock().unwrap().interrupted_early = self.level.load(Ordering::SeqCst);
        let _ = self.expired.send(());
        Ok(())
    }
}

struct Card {
    host: Host,
    driver: Driver<Net>,
    told: Arc<Mutex<Told>>,
    expired: mpsc::Receiver<()>,
}

/// A driver with these features, and the cable plugged in.
fn card(features: u32) -> Card {
    let (memory, (line, level)) = (memory(), line());
    let (host, transport) = Host::new([2, 0x53, 0x4d, 0, 0, 1], 1500, memory.clone(), line, None);
    let mut driver = Driver::with(transport, memory, level.clone());
    driver.features = features;
    driver.initialise();
    let told = Arc::new(Mutex::new(Told::default()));
    let (sender, expired) = mpsc::channel();
    host.attach(|_| Ok(Box::new(Recorder { told: told.clone(), expired: sender, level }))).unwrap();
    Card { host, driver, told, expired }
}

fn link(driver: &Driver<Net>) -> u32 {
    driver.load(0x104) >> 16 & 1
}

#[test]
fn the_cable_is_plugged_in_and_out_and_the_driver_hears_of_it() {
    let Card { host, driver, told, .. } = card(STATUS | GUEST_CSUM);
    assert_eq!((link(&driver), driver.load(0x60)), (1, 2));
    assert_eq!(driver.load(0x108) >> 16, 1500, "the MTU");
    assert_eq!(told.lock().unwrap().offloads, [Offloads { checksum: true, tcp_v4: false, tcp_v6: false }]);
    driver.store(0x64, 2);
    host.detach();
    assert_eq!((link(&driver), driver.load(0x60)), (0, 2));
}

#[test]
fn a_restored_guest_sees_its_link_go_down_only_if_nobody_plugs_it_in() {
    let (config, state) = {
        let Card { driver, host: _host, .. } = card(STATUS);
        driver.store(0x64, 2);
        let transport = driver.lock();
        (supermachine_devices::Device::config(&transport.device).to_vec(), transport.state())
    };
    for plugged in [true, false] {
        let (memory, (line, level)) = (memory(), line());
        let (host, transport) = Host::new([2, 0x53, 0x4d, 0, 0, 1], 1500, memory.clone(), line, None);
        let driver = Driver::with(transport, memory, level.clone());
        {
            let mut transport = driver.lock();
            assert!(supermachine_devices::Device::restore_config(&mut transport.device, &config));
            transport.restore(&state).unwrap();
        }
        if plugged {
            let (sender, _) = mpsc::channel();
            host.attach(|_| Ok(Box::new(Recorder { told: Arc::default(), expired: sender, level }))).unwrap();
        }
        driver.lock().with(|device, rings| {
            supermachine_devices::Device::resume(device, rings);
            Ok(())
        });
        let expected = if plugged { (1, 0) } else { (0, 2) };
        assert_eq!((link(&driver), driver.load(0x60)), expected);
    }
}

#[test]
fn frames_of_the_guest_reach_the_backend_with_what_their_header_says() {
    let Card { mut driver, told, host: _host, .. } = card(0);
    let frame: Vec<u8> = (0..100).collect();
    // NEEDS_CSUM, TCPv4, header 54, segments of 1448, checksum at 34 + 16.
    driver.put(DATA, &[1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0]);
    driver.put(DATA + 12, &frame);
    driver.add(TRANSMIT, 0, &[readable(DATA, 5), readable(DATA + 5, 20), readable(DATA + 25, 87)]);
    // Too short to be a frame: it goes nowhere.
    driver.add(TRANSMIT, 4, &[readable(DATA, 20)]);
    driver.notify(TRANSMIT);
    assert_eq!((driver.take(TRANSMIT), driver.take(TRANSMIT)), (Some((0, 0)), Some((4, 0))));
    let header = Header {
        needs_checksum: true,
        checksum_valid: false,
        checksum_start: 34,
        checksum_offset: 16,
        segments: Segments::TcpV4,
        header_bytes: 54,
        segment_bytes: 1448,
    };
    assert_eq!(told.lock().unwrap().frames, [(header, frame)]);
    for bad in [[0, 9, 0, 0, 1, 0], [0, 1, 0, 0, 0, 0]] {
        driver.initialise();
        driver.put(DATA, &bad);
        driver.add(TRANSMIT, 0, &[readable(DATA, 100)]);
        driver.notify(TRANSMIT);
        assert!(driver.is_broken());
    }
}

#[test]
fn a_large_frame_lies_in_several_buffers_and_waits_until_there_are_enough() {
    let Card { mut driver, told, host: _host, .. } = card(MRG_RXBUF | GUEST_TSO4 | GUEST_CSUM);
    let frame: Vec<u8> = (0..4000_u32).map(|n| n as u8).collect();
    let header = Header { segments: Segments::TcpV4, segment_bytes: 1448, ..Header::default() };
    // One that the driver does not take is dropped, and does not keep others waiting.
    let not_taken = Header { segments: Segments::TcpV6, ..header };
    told.lock().unwrap().waiting = vec![(not_taken, frame.clone()), (header, frame.clone())];
    for n in 0..2 {
        driver.add(RECEIVE, n, &[writable(DATA + 0x1000 * u64::from(n), 1526)]);
    }
    driver.notify(RECEIVE);
    assert_eq!(driver.take(RECEIVE), None);
    driver.add(RECEIVE, 2, &[writable(DATA + 0x2000, 1526)]);
    driver.notify(RECEIVE);
    let lengths = [1526, 1526, 4012 - 2 * 1526];
    for (n, length) in lengths.iter().enumerate() {
        assert_eq!(driver.take(RECEIVE), Some((n as u16, *length)));
    }
    assert_eq!(driver.bytes(DATA, 12), [0, 1, 0, 0, 0xa8, 5, 0, 0, 0, 0, 3, 0]);
    let got: Vec<u8> =
        (0..3).flat_map(|n| driver.bytes(DATA + 0x1000 * n, lengths[n as usize] as usize)).collect();
    assert_eq!(got[12..], frame);
}

#[test]
fn a_deadline_of_the_backend_is_kept_by_the_io_thread() {
    let Card { mut driver, told, host, expired } = card(0);
    told.lock().unwrap().deadline = Some(Instant::now() + Duration::from_millis(1));
    // The I/O thread sleeps without a deadline until a frame brings one.
    driver.add(TRANSMIT, 0, &[readable(DATA, 60)]);
    driver.notify(TRANSMIT);
    expired.recv_timeout(Duration::from_secs(60)).unwrap();
    drop(host);
}

#[test]
fn the_io_thread_interrupts_when_it_is_done_with_the_device() {
    let Card { mut driver, told, host, expired } = card(0);
    // The link came up, which the guest has seen.
    driver.store(0x64, 2);
    driver.add(RECEIVE, 0, &[writable(DATA, 1526)]);
    told.lock().unwrap().later = vec![(Header::default(), vec![0; 60])];
    told.lock().unwrap().deadline = Some(Instant::now() + Duration::from_millis(1));
    driver.notify(RECEIVE);
    expired.recv_timeout(Duration::from_secs(60)).unwrap();
    while !driver.level.load(Ordering::SeqCst) {
        std::thread::yield_now();
    }
    assert!(!told.lock().unwrap().interrupted_early);
    assert_eq!(driver.take(RECEIVE), Some((0, 72)));
    drop(host);
}

/// What a vCPU without work does: it serves the sockets in place of the I/O thread.
#[cfg(target_os = "linux")]
#[test]
fn who_waits_beside_the_io_thread_serves_the_sockets() {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use supermachine_support::side_work::Slot;

    let (memory, (line, level)) = (memory(), line());
    let slot = Arc::new(Slot::default());
    let (host, transport) =
        Host::new([2, 0x53, 0x4d, 0, 0, 1], 1500, memory.clone(), line, Some(slot.clone()));
    Driver::with(transport, memory, level.clone()).initialise();
    assert!(slot.get().is_none());
    let told = Arc::new(Mutex::new(Told::default()));
    let (sender, _expired) = mpsc::channel();
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    host.attach(|poller| {
        poller.add(&ours, 7)?;
        Ok(Box::new(Recorder { told: told.clone(), expired: sender, level }))
    })
    .unwrap();
    let work = slot.get().unwrap();
    // The I/O thread waits before.
    thread::sleep(Duration::from_millis(50));
    assert!(work.begin());
    let writer = thread::spawn(move || {
        thread::sleep(Duration::from_millis(50));
        theirs.write_all(b"x").unwrap();
        theirs
    });
    assert_eq!(work.wait(None), Some(true));
    work.work();
    work.end();
    work.let_go();
    assert_eq!(told.lock().unwrap().ready, [(7, thread::current().id())]);
    drop(writer.join().unwrap());
    host.detach();
    assert!(slot.get().is_none());
}
