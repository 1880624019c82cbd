//! virtio-blk (virtio 1.2, 5.2) over a file.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_queue::{Reader, Writer};

use crate::mmio::{Device, Rings};
use crate::{Broken, Memory};

const QUEUE: u16 = 128;
const SECTOR: u64 = 512;
/// Bytes that are moved at once.
const BUFFER: usize = 128 * 1024;

/// A disk whose contents are a file's.
pub struct Blk {
    file: File,
    sectors: u64,
    read_only: bool,
    config: [u8; 24],
    buffer: Box<[u8]>,
}

impl Blk {
    /// A last part of the file that is shorter than a sector cannot be reached.
    pub fn new(file: File, read_only: bool) -> io::Result<Self> {
        let sectors = file.metadata()?.len() / SECTOR;
        // struct virtio_blk_config: capacity, size_max, seg_max, geometry, blk_size.
        let mut config = [0; 24];
        config[..8].copy_from_slice(&sectors.to_le_bytes());
        config[12..16].copy_from_slice(&u32::from(QUEUE - 2).to_le_bytes());
        Ok(Self { file, sectors, read_only, config, buffer: vec![0; BUFFER].into() })
    }

    /// Serves one request; the status byte and the bytes written beside it.
    fn serve(&mut self, request: &mut Reader, answer: &mut Writer) -> Result<u32, Broken> {
        let mut header = [0; 16];
        request.read_exact(&mut header)?;
        let kind = u32::from_le_bytes(header[..4].try_into().expect("four bytes"));
        let sector = u64::from_le_bytes(header[8..].try_into().expect("eight bytes"));
        let done = match kind {
            VIRTIO_BLK_T_IN => self.transfer(sector, answer.available_bytes(), |file, buffer, offset| {
                file.read_exact_at(buffer, offset)?;
                answer.write_all(buffer)
            }),
            VIRTIO_BLK_T_OUT if !self.read_only => {
                self.transfer(sector, request.available_bytes(), |file, buffer, offset| {
                    request.read_exact(buffer)?;
                    file.write_all_at(buffer, offset)
                })
            }
            VIRTIO_BLK_T_OUT => Ok(VIRTIO_BLK_S_IOERR),
            VIRTIO_BLK_T_FLUSH => self.file.sync_data().map(|()| VIRTIO_BLK_S_OK),
            VIRTIO_BLK_T_GET_ID => {
                let length = answer.available_bytes().min(VIRTIO_BLK_ID_BYTES as usize);
                answer.write_all(&[0; VIRTIO_BLK_ID_BYTES as usize][..length]).map(|()| VIRTIO_BLK_S_OK)
            }
            _ => Ok(VIRTIO_BLK_S_UNSUPP),
        };
        Ok(done.unwrap_or(VIRTIO_BLK_S_IOERR))
    }

    /// Moves `length` bytes from `sector` on, a buffer at a time.
    fn transfer(
        &mut self,
        sector: u64,
        length: usize,
        mut part: impl FnMut(&File, &mut [u8], u64) -> io::Result<()>,
    ) -> io::Result<u32> {
        let sectors = length as u64 / SECTOR;
        let fits = sector.checked_add(sectors).is_some_and(|end| end <= self.sectors);
        if !fits || !(length as u64).is_multiple_of(SECTOR) {
            return Ok(VIRTIO_BLK_S_IOERR);
        }
        let (mut offset, mut left) = (sector * SECTOR, length);
        while left > 0 {
            let buffer = &mut self.buffer[..left.min(BUFFER)];
            part(&self.file, buffer, offset)?;
            offset += buffer.len() as u64;
            left -= buffer.len();
        }
        Ok(VIRTIO_BLK_S_OK)
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
        status.write_all(&[code as u8])?;
        // Unwritten bytes of a failed read count as written: the length says where the status byte is.
        rings.push(index, head, data as u32 + 1)?;
        Ok(true)
    }
}

impl Device for Blk {
    fn id(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[QUEUE]
    }

    fn features(&self) -> u64 {
        let read_only = if self.read_only { 1 << VIRTIO_BLK_F_RO } else { 0 };
        1 << VIRTIO_BLK_F_SEG_MAX | 1 << VIRTIO_BLK_F_FLUSH | read_only
    }

    fn config(&self) -> &[u8] {
        &self.config
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
