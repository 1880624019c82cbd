//! virtio-blk (virtio 1.2, 5.2): disks that the machine has from its start, and empty slots that one is put into later.

mod backing;
mod request;

use std::fs::File;
use std::io::{self, Write};

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use crate::mmio::{Device, Rings};
use crate::{Broken, Memory, chain};
pub use backing::{Backing, FileBacking};

const QUEUE: u16 = 128;
const SLOT_QUEUE: u16 = 64;
const SECTOR: u64 = 512;
/// Sectors that one request zeroes at most, as a vCPU waits for it: 32 MiB.
const MAX_ZEROES: u32 = 1 << 16;
/// Sectors that one request discards at most: 2 GiB.
const MAX_DISCARD: u32 = 1 << 22;
/// struct virtio_blk_config up to blk_size, which disks show, and up to the end of write_zeroes, which slots show. What
/// a disk shows is in snapshots and stays.
const DISK_CONFIG: usize = 24;
const SLOT_CONFIG: usize = 60;

/// A disk, or a slot for one.
pub struct Blk {
    backing: Option<Box<dyn Backing>>,
    read_only: bool,
    slot: bool,
    config: Vec<u8>,
    buffer: Box<[u8]>,
}

impl Blk {
    /// A disk whose contents are a file's. A last part of the file that is shorter than a sector cannot be reached.
    pub fn new(file: File, read_only: bool) -> io::Result<Self> {
        let backing = FileBacking::new(file)?;
        let mut config = vec![0; DISK_CONFIG];
        config[..8].copy_from_slice(&(backing.bytes() / SECTOR).to_le_bytes());
        config[12..16].copy_from_slice(&u32::from(QUEUE - 2).to_le_bytes());
        let buffer = vec![0; request::BUFFER].into();
        Ok(Self { backing: Some(Box::new(backing)), read_only, slot: false, config, buffer })
    }

    /// A slot: a disk of no bytes, until [`Blk::insert`].
    pub fn slot() -> Self {
        let mut config = vec![0; SLOT_CONFIG];
        let mut put = |at: usize, value: u32| config[at..at + 4].copy_from_slice(&value.to_le_bytes());
        // seg_max; max_discard_sectors, max_discard_seg, discard_sector_alignment; the same two of write_zeroes.
        put(12, u32::from(SLOT_QUEUE - 2));
        put(36, MAX_DISCARD);
        put(40, 1);
        put(44, 8);
        put(48, MAX_ZEROES);
        put(52, 1);
        config[56] = 1;
        Self { backing: None, read_only: true, slot: true, config, buffer: Box::default() }
    }

    /// Puts a disk into a slot, in place of what is in it; the driver hears of the new capacity. Writes to a read-only
    /// one fail: slots cannot tell the driver beforehand, whose features were negotiated when they were empty.
    pub fn insert(&mut self, backing: Box<dyn Backing>, read_only: bool, rings: &mut Rings) {
        (self.backing, self.read_only) = (Some(backing), read_only);
        self.buffer = vec![0; request::BUFFER].into();
        self.show_capacity(rings);
    }

    /// Takes the disk out of a slot.
    pub fn eject(&mut self, rings: &mut Rings) -> Option<Box<dyn Backing>> {
        let backing = self.backing.take();
        self.read_only = true;
        self.show_capacity(rings);
        backing
    }

    fn show_capacity(&mut self, rings: &mut Rings) {
        let sectors = self.backing.as_ref().map_or(0, |backing| backing.bytes() / SECTOR).to_le_bytes();
        if self.config[..8] != sectors {
            self.config[..8].copy_from_slice(&sectors);
            rings.config_changed();
        }
    }

    fn request(&mut self, memory: &Memory, rings: &mut Rings, index: usize) -> Result<bool, Broken> {
        let Some(chain) = rings.pop(index)? else { return Ok(false) };
        let head = chain.head_index();
        let mut request = chain.clone().reader(memory)?;
        let mut answer = chain.writer(memory)?;
        let Some(data) = answer.available_bytes().checked_sub(1) else {
            return Err(Broken::Chain("a block request has no room for its status".into()));
        };
        let mut status = answer.split_at(data)?;
        let code = self.serve(&mut request, &mut answer)?;
        status.write_all(&[u8::try_from(code).expect("codes are 0 to 2")])?;
        // Unwritten bytes of a failed read count as written: the length says where the status byte is.
        rings.push(index, head, chain::told(data + 1)?)?;
        Ok(true)
    }
}

impl Device for Blk {
    fn id(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn queue_sizes(&self) -> &'static [u16] {
        if self.slot { &[SLOT_QUEUE] } else { &[QUEUE] }
    }

    fn features(&self) -> u64 {
        let own = match (self.slot, self.read_only) {
            (true, _) => 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES,
            (false, true) => 1 << VIRTIO_BLK_F_RO,
            (false, false) => 0,
        };
        1 << VIRTIO_BLK_F_SEG_MAX | 1 << VIRTIO_BLK_F_FLUSH | own
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    /// The disk in a slot may be another one than it was, or none.
    fn restore_config(&mut self, saved: &[u8]) -> bool {
        if !self.slot {
            return self.config == saved;
        }
        let same = saved.len() == self.config.len() && saved[8..] == self.config[8..];
        if same {
            self.config.copy_from_slice(saved);
        }
        same
    }

    fn resume(&mut self, rings: &mut Rings) {
        self.show_capacity(rings);
    }

    fn notify(&mut self, index: usize, rings: &mut Rings) -> Result<(), Broken> {
        let memory = rings.memory();
        loop {
            while self.request(&memory, rings, index)? {}
            if !rings.enable_notification(index)? {
                return Ok(());
            }
        }
    }

    fn reset(&mut self) {}
}
