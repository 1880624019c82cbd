//! One request (virtio 1.2, 5.2.6).

use std::io::{self, Read, Write};

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use virtio_queue::{Reader, Writer};

use super::{Blk, MAX_ZEROES, SECTOR};
use crate::Broken;

/// Bytes that are moved at once.
pub(super) const BUFFER: usize = 128 * 1024;

impl Blk {
    /// Serves one request; its status. `answer` ends before the status byte.
    pub(super) fn serve(&mut self, request: &mut Reader, answer: &mut Writer) -> Result<u32, Broken> {
        let mut header = [0; 16];
        request.read_exact(&mut header)?;
        let kind = u32::from_le_bytes(header[..4].try_into().expect("four bytes"));
        let sector = u64::from_le_bytes(header[8..].try_into().expect("eight bytes"));
        let done = match kind {
            VIRTIO_BLK_T_IN => self.read(sector, answer),
            VIRTIO_BLK_T_OUT if !self.read_only => self.write(sector, request),
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES if !self.slot => Ok(VIRTIO_BLK_S_UNSUPP),
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES if !self.read_only => self.free(kind, request),
            VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => Ok(VIRTIO_BLK_S_IOERR),
            VIRTIO_BLK_T_FLUSH => match &mut self.backing {
                Some(backing) => backing.flush().map(|()| VIRTIO_BLK_S_OK),
                None => Ok(VIRTIO_BLK_S_IOERR),
            },
            VIRTIO_BLK_T_GET_ID => {
                let length = answer.available_bytes().min(VIRTIO_BLK_ID_BYTES as usize);
                answer.write_all(&[0; VIRTIO_BLK_ID_BYTES as usize][..length]).map(|()| VIRTIO_BLK_S_OK)
            }
            _ => Ok(VIRTIO_BLK_S_UNSUPP),
        };
        Ok(done.unwrap_or(VIRTIO_BLK_S_IOERR))
    }

    fn read(&mut self, sector: u64, answer: &mut Writer) -> io::Result<u32> {
        let mut left = answer.available_bytes();
        let Some(mut offset) = self.offset(sector, left as u64) else { return Ok(VIRTIO_BLK_S_IOERR) };
        let Some(backing) = &mut self.backing else { return Ok(VIRTIO_BLK_S_IOERR) };
        while left > 0 {
            let buffer = &mut self.buffer[..left.min(BUFFER)];
            backing.read(buffer, offset)?;
            answer.write_all(buffer)?;
            offset += buffer.len() as u64;
            left -= buffer.len();
        }
        Ok(VIRTIO_BLK_S_OK)
    }

    fn write(&mut self, sector: u64, request: &mut Reader) -> io::Result<u32> {
        let mut left = request.available_bytes();
        let Some(mut offset) = self.offset(sector, left as u64) else { return Ok(VIRTIO_BLK_S_IOERR) };
        let Some(backing) = &mut self.backing else { return Ok(VIRTIO_BLK_S_IOERR) };
        while left > 0 {
            let buffer = &mut self.buffer[..left.min(BUFFER)];
            request.read_exact(buffer)?;
            backing.write(buffer, offset)?;
            offset += buffer.len() as u64;
            left -= buffer.len();
        }
        Ok(VIRTIO_BLK_S_OK)
    }

    /// DISCARD and WRITE_ZEROES: one segment, as the configuration space says.
    fn free(&mut self, kind: u32, request: &mut Reader) -> io::Result<u32> {
        if request.available_bytes() != 16 {
            return Ok(VIRTIO_BLK_S_UNSUPP);
        }
        // struct virtio_blk_discard_write_zeroes: sector, num_sectors, flags.
        let mut segment = [0; 16];
        request.read_exact(&mut segment)?;
        let sector = u64::from_le_bytes(segment[..8].try_into().expect("eight bytes"));
        let sectors = u32::from_le_bytes(segment[8..12].try_into().expect("four bytes"));
        let flags = u32::from_le_bytes(segment[12..].try_into().expect("four bytes"));
        let zeroes = kind == VIRTIO_BLK_T_WRITE_ZEROES;
        let known = if zeroes { VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP } else { 0 };
        if flags & !known != 0 || (zeroes && sectors > MAX_ZEROES) {
            return Ok(VIRTIO_BLK_S_UNSUPP);
        }
        let length = u64::from(sectors) * SECTOR;
        let Some(offset) = self.offset(sector, length) else { return Ok(VIRTIO_BLK_S_IOERR) };
        let Some(backing) = &mut self.backing else { return Ok(VIRTIO_BLK_S_IOERR) };
        match zeroes {
            true => backing.write_zeroes(offset, length, flags != 0)?,
            false => backing.discard(offset, length)?,
        }
        Ok(VIRTIO_BLK_S_OK)
    }

    /// Where `length` bytes from `sector` on are, if they are whole sectors of the disk.
    fn offset(&self, sector: u64, length: u64) -> Option<u64> {
        let sectors = self.backing.as_ref()?.bytes() / SECTOR;
        let fits = sector.checked_add(length / SECTOR).is_some_and(|end| end <= sectors);
        (fits && length.is_multiple_of(SECTOR)).then(|| sector * SECTOR)
    }
}
