//! A guest's kernel as it lies in RAM when it has been loaded: what frames are packed against.
//!
//! Nothing here is believed: where a file would be loaded decides how well frames pack, and a frame that was packed
//! against another kernel has another checksum.

use std::io;
use std::ops::Range;
use std::path::Path;

use supermachine_support::to_usize;

use super::FRAME_BYTES;
use crate::boot_files::{self, BootFile};
use crate::ram::PAGE;
use crate::{Error, Result};

/// An arm64 Image has it at byte 56 (kernel Documentation/arch/arm64/booting.rst).
const IMAGE_MAGIC: [u8; 4] = *b"ARM\x64";
const ELF_MAGIC: [u8; 4] = *b"\x7fELF";
const MAX_SEGMENTS: usize = 64;

/// A kernel's bytes, and where in RAM they were put.
#[derive(Debug)]
pub struct Kernel {
    bytes: Vec<u8>,
    /// Where in RAM, and what of `bytes`.
    pieces: Vec<(u64, Range<usize>)>,
}

impl Kernel {
    /// Reads a file of a kernel, packed or not, as it is on disk: an arm64 Image or an x86_64 ELF file.
    pub fn read(path: &Path, file: Vec<u8>) -> Result<Self> {
        let failed =
            |error: io::Error| Error::invalid(format!("the kernel {}", path.display()), 0, error.to_string());
        let file = BootFile { path: path.to_owned(), bytes: file };
        let (kernel, _) =
            boot_files::contents(file, BootFile::default()).map_err(|(_, error)| failed(error))?;
        let unknown = || failed(io::Error::new(io::ErrorKind::InvalidData, "it is no kernel"));
        let pieces = pieces(&kernel.bytes).ok_or_else(unknown)?;
        Ok(Self { bytes: kernel.bytes, pieces })
    }

    /// Appends what it has for a page of RAM, zeros around that: nothing where it has nothing.
    pub(super) fn page(&self, number: u64, out: &mut Vec<u8>) {
        let Some(start) = number.checked_mul(PAGE as u64) else { return };
        let before = out.len();
        for (at, range) in &self.pieces {
            // Both ends as bytes of the piece.
            let from = start.saturating_sub(*at);
            let to = start.saturating_add(PAGE as u64).saturating_sub(*at).min(range.len() as u64);
            if from < to {
                out.resize(before + PAGE, 0);
                let bytes = &self.bytes[range.start + to_usize(from)..range.start + to_usize(to)];
                out[before + to_usize(at + from - start)..][..bytes.len()].copy_from_slice(bytes);
            }
        }
    }

    /// What a frame of these pages is packed against.
    pub(super) fn prefix(&self, pages: impl Iterator<Item = u64>) -> Vec<u8> {
        let mut out = Vec::with_capacity(FRAME_BYTES);
        pages.for_each(|page| self.page(page, &mut out));
        out
    }
}

fn pieces(bytes: &[u8]) -> Option<Vec<(u64, Range<usize>)>> {
    if bytes.get(56..60) == Some(&IMAGE_MAGIC) {
        // RAM begins where the Image's offset is counted from.
        return Some(vec![(u64_at(bytes, 8)?, 0..bytes.len())]);
    }
    // ELF-64: e_phoff, e_phentsize, e_phnum; of PT_LOAD p_offset, p_paddr, p_filesz.
    let is_elf = bytes.starts_with(&ELF_MAGIC);
    let (table, size, count) = (u64_at(bytes, 32)?, u16_at(bytes, 54)?, u16_at(bytes, 56)?);
    if !is_elf || usize::from(count) > MAX_SEGMENTS {
        return None;
    }
    let mut found = vec![];
    for number in 0..u64::from(count) {
        let at = usize::try_from(table.checked_add(number * u64::from(size))?).ok()?;
        let entry = bytes.get(at..at.checked_add(56)?)?;
        if entry[..4] != 1_u32.to_le_bytes() {
            continue;
        }
        let (offset, address, length) = (u64_at(entry, 8)?, u64_at(entry, 24)?, u64_at(entry, 32)?);
        let range = usize::try_from(offset).ok()?..usize::try_from(offset.checked_add(length)?).ok()?;
        address.checked_add(length)?;
        bytes.get(range.clone())?;
        found.push((address, range));
    }
    Some(found)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An arm64 Image of these bytes behind its header, `offset` bytes from the start of RAM.
    pub(in super::super) fn image(offset: u64, rest: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[8..16].copy_from_slice(&offset.to_le_bytes());
        bytes[56..60].copy_from_slice(&IMAGE_MAGIC);
        bytes.extend(rest);
        bytes
    }

    fn elf(segments: &[(u32, u64, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[..4].copy_from_slice(&ELF_MAGIC);
        bytes[32] = 64;
        bytes[54] = 56;
        bytes[56] = segments.len() as u8;
        let mut offset = (64 + 56 * segments.len()) as u64;
        for (kind, address, held) in segments {
            let mut entry = vec![0; 56];
            entry[..4].copy_from_slice(&kind.to_le_bytes());
            for (at, value) in [(8, offset), (24, *address), (32, held.len() as u64)] {
                entry[at..at + 8].copy_from_slice(&value.to_le_bytes());
            }
            bytes.extend(entry);
            offset += held.len() as u64;
        }
        segments.iter().for_each(|(_, _, held)| bytes.extend(*held));
        bytes
    }

    fn read(bytes: Vec<u8>) -> Result<Kernel> {
        Kernel::read(Path::new("kernel"), bytes)
    }

    #[test]
    fn an_image_lies_where_its_header_says() {
        let kernel = read(image(PAGE as u64 + 100, &[7; 5000])).unwrap();
        let page = |number| kernel.prefix([number].into_iter());
        assert_eq!(page(0), []);
        assert_eq!(page(u64::MAX), []);
        let first = page(1);
        assert!(first.len() == PAGE && first[..100] == [0; 100] && first[164..] == [7; PAGE - 164]);
        let last = page(2);
        let end = 100 + 64 + 5000 - PAGE;
        assert!(last.len() == PAGE && last[..end] == vec![7; end] && last[end..] == vec![0; PAGE - end]);
        assert_eq!(kernel.prefix([1, 5, 2].into_iter()), [first, last].concat());
    }

    #[test]
    fn the_segments_of_an_elf_file_lie_at_their_physical_addresses() {
        let kernel = read(elf(&[(1, 8192, &[3; 10]), (4, 0, &[9; 9]), (1, 8292, &[4; 4096])])).unwrap();
        let two = kernel.prefix([0, 2, 3].into_iter());
        assert_eq!(two.len(), 2 * PAGE);
        assert_eq!((&two[..10], two[10], two[100], two[PAGE], two[PAGE + 100]), (&[3; 10][..], 0, 4, 4, 0));
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        let good = elf(&[(1, 8192, &[3; 10])]);
        for (at, byte) in [(0, 0), (39, 1), (57, 1), (64 + 15, 1), (64 + 31, 0xff), (64 + 33, 1)] {
            let mut bytes = good.clone();
            bytes[at] = byte;
            if at == 64 + 31 {
                bytes[64 + 24..64 + 32].fill(0xff);
            }
            let error = read(bytes).unwrap_err().to_string();
            assert!(error.contains("no kernel"), "{at}: {error}");
        }
        for length in 0..good.len() {
            assert!(read(good[..length].to_vec()).is_err());
        }
        let zeros = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
        assert!(read(zeros.repeat(5)).is_err());
    }
}
