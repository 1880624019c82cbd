//! The driver's side of virtio-mmio, written from the specification (virtio 1.2, 2.7 and 4.2).
#![allow(dead_code, reason = "each test program uses a part of this")]

pub(crate) mod acts;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use supermachine_devices::{Device, Memory, Transport};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

pub(crate) const MEMORY_BYTES: usize = 32 << 20;
pub(crate) const RAM: u64 = 0x4000_0000;
/// Where buffers may lie: behind the rings.
pub(crate) const BUFFERS: u64 = RAM + 0x10_0000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const NEEDS_RESET: u32 = 0x40;
const VERSION_1: u64 = 1 << 32;

pub(crate) fn memory() -> Memory {
    Memory::from(GuestMemoryMmap::from_ranges(&[(GuestAddress(RAM), MEMORY_BYTES)]).unwrap())
}

/// A line that remembers its level.
pub(crate) fn line() -> (supermachine_devices::IrqLine, Arc<AtomicBool>) {
    let level = Arc::new(AtomicBool::new(false));
    let remembered = level.clone();
    (Arc::new(move |high| remembered.store(high, Ordering::SeqCst)), level)
}

/// A buffer of a chain.
#[derive(Clone, Copy)]
pub(crate) struct Buffer {
    pub address: u64,
    pub length: u32,
    pub write: bool,
}

pub(crate) fn readable(address: u64, length: u32) -> Buffer {
    Buffer { address, length, write: false }
}

pub(crate) fn writable(address: u64, length: u32) -> Buffer {
    Buffer { address, length, write: true }
}

pub(crate) struct Driver<D> {
    pub transport: Arc<Mutex<Transport<D>>>,
    pub memory: Memory,
    pub level: Arc<AtomicBool>,
    /// Low word of what the driver takes of the features.
    pub features: u32,
    pub sizes: Vec<u16>,
    offered: Vec<u16>,
    used: Vec<u16>,
}

impl<D: Device> Driver<D> {
    pub(crate) fn start(device: D) -> Self {
        let memory = memory();
        let (line, level) = line();
        let transport = Arc::new(Mutex::new(Transport::new(device, memory.clone(), line)));
        Self::with(transport, memory, level)
    }

    pub(crate) fn with(transport: Arc<Mutex<Transport<D>>>, memory: Memory, level: Arc<AtomicBool>) -> Self {
        let (sizes, offered, used) = (vec![], vec![], vec![]);
        let mut driver = Self { transport, memory, level, features: 0, sizes, offered, used };
        driver.initialise();
        driver
    }

    /// Steps 1 to 8 of virtio 1.2, 3.1.1.
    pub(crate) fn initialise(&mut self) {
        assert_eq!(self.load(0), 0x7472_6976);
        assert_eq!(self.load(4), 2);
        self.store(0x70, 0);
        assert_eq!(self.load(0x70), 0);
        self.store(0x70, 1);
        self.store(0x70, 3);
        self.store(0x24, 0);
        self.store(0x20, self.features);
        self.store(0x24, 1);
        self.store(0x20, (VERSION_1 >> 32) as u32);
        self.store(0x70, 11);
        assert_eq!(self.load(0x70), 11, "the features are accepted");
        (self.sizes, self.offered, self.used) = (vec![], vec![], vec![]);
        for queue in 0.. {
            self.store(0x30, queue);
            let size = self.load(0x34);
            if size == 0 {
                break;
            }
            self.sizes.push(size as u16);
            self.offered.push(0);
            self.used.push(0);
            self.store(0x38, size);
            let [desc, avail, used] = rings(queue as usize);
            self.memory.write_slice(&[0; 0x4000], GuestAddress(desc)).unwrap();
            for (register, address) in [(0x80, desc), (0x90, avail), (0xa0, used)] {
                self.store(register, address as u32);
                self.store(register + 4, (address >> 32) as u32);
            }
            self.store(0x44, 1);
            assert_eq!(self.load(0x44), 1);
        }
        self.store(0x70, 15);
        assert_eq!(self.load(0x70), 15);
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Transport<D>> {
        self.transport.lock().unwrap()
    }

    pub(crate) fn load(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.lock().read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub(crate) fn store(&self, offset: u64, value: u32) {
        self.lock().write(offset, &value.to_le_bytes());
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.load(0x70) & NEEDS_RESET != 0
    }

    pub(crate) fn describe(
        &self,
        queue: usize,
        index: u16,
        address: u64,
        length: u32,
        flags: u16,
        next: u16,
    ) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&length.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.memory.write_slice(&bytes, GuestAddress(rings(queue)[0] + 16 * u64::from(index))).unwrap();
    }

    /// Offers the chain that starts at descriptor `head`, without a notification.
    pub(crate) fn offer(&mut self, queue: usize, head: u16) {
        let avail = rings(queue)[1];
        let slot = u64::from(self.offered[queue] % self.sizes[queue]);
        self.memory.write_obj(head, GuestAddress(avail + 4 + 2 * slot)).unwrap();
        self.offered[queue] = self.offered[queue].wrapping_add(1);
        self.memory.write_obj(self.offered[queue], GuestAddress(avail + 2)).unwrap();
    }

    /// Puts a chain at descriptors from `first` on and offers it.
    pub(crate) fn add(&mut self, queue: usize, first: u16, buffers: &[Buffer]) {
        for (n, buffer) in buffers.iter().enumerate() {
            let index = first + n as u16;
            let more = if n + 1 < buffers.len() { NEXT } else { 0 };
            let write = if buffer.write { WRITE } else { 0 };
            self.describe(queue, index, buffer.address, buffer.length, more | write, index + 1);
        }
        self.offer(queue, first);
    }

    pub(crate) fn notify(&self, queue: usize) {
        self.store(0x50, queue as u32);
    }

    /// Whether the device has asked to hear of the next chain of a queue (virtio 1.2, 2.7.10.1).
    pub(crate) fn would_notify(&self, queue: usize) -> bool {
        let used = rings(queue)[2];
        let event = GuestAddress(used + 4 + 8 * u64::from(self.sizes[queue]));
        self.memory.load::<u16>(event, Ordering::Acquire).unwrap() == self.offered[queue]
    }

    /// The next chain that came back: its first descriptor and the bytes written.
    pub(crate) fn take(&mut self, queue: usize) -> Option<(u16, u32)> {
        let used = rings(queue)[2];
        let index: u16 = self.memory.load(GuestAddress(used + 2), Ordering::Acquire).unwrap();
        if index == self.used[queue] {
            return None;
        }
        let slot = u64::from(self.used[queue] % self.sizes[queue]);
        self.used[queue] = self.used[queue].wrapping_add(1);
        let element: [u32; 2] = [0, 4].map(|at| {
            let address = GuestAddress(used + 4 + 8 * slot + at);
            self.memory.read_obj(address).unwrap()
        });
        Some((element[0] as u16, element[1]))
    }

    pub(crate) fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    pub(crate) fn put(&self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
    }
}

/// Descriptor table, available and used ring of a queue.
pub(crate) fn rings(queue: usize) -> [u64; 3] {
    let base = RAM + 0x4000 * queue as u64;
    [base, base + 0x2000, base + 0x3000]
}

/// A file that is nowhere to be found, with these contents.
pub(crate) fn file(contents: &[u8]) -> std::fs::File {
    use std::io::Write;
    use std::sync::atomic::AtomicU32;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name =
        format!("supermachine-devices-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let path = std::env::temp_dir().join(name);
    let mut file = std::fs::File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    file.write_all(contents).unwrap();
    file
}
