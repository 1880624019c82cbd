//! Section records: a head of 40 bytes, data, and zeros up to a multiple of 8.
//!
//! | offset | type | field |
//! |---|---|---|
//! | 0 | 16 bytes | kind, ASCII, filled up with zeros |
//! | 16 | u32 | index |
//! | 20 | u32 | version |
//! | 24 | u64 | bytes of data |
//! | 32 | u32 | flags: bit 0 required, others 0 |
//! | 36 | u32 | CRC-32C of the 36 bytes before and the data |

use supermachine_support::to_usize;

use super::{MAX_KIND, Section};
use crate::codec::Cursor;
use crate::{Error, Result};

pub(super) const HEAD_BYTES: usize = 40;
const ALIGNMENT: usize = 8;
const REQUIRED: u32 = 1;
const UNTIL_CHECKSUM: usize = 36;

pub(super) fn name(kind: &str, index: u32) -> String {
    format!("section {kind} {index}")
}

/// Zeros that follow data of this length.
pub(super) fn padding(bytes: u64) -> usize {
    to_usize(bytes.next_multiple_of(ALIGNMENT as u64) - bytes)
}

fn is_kind(kind: &str) -> bool {
    (1..=MAX_KIND).contains(&kind.len())
        && kind.bytes().all(|c| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_'))
}

impl Section {
    /// Appends the record.
    pub(super) fn encode(&self, out: &mut Vec<u8>) -> Result<()> {
        if !is_kind(&self.kind) {
            return Err(Error::unwritable(format!(
                "a section's kind has 1 to {MAX_KIND} of a-z, 0-9, '-', '.' and '_', unlike {:?}",
                self.kind
            )));
        }
        let start = out.len();
        out.extend(self.kind.bytes());
        out.resize(start + MAX_KIND, 0);
        out.extend(self.index.to_le_bytes());
        out.extend(self.version.to_le_bytes());
        out.extend((self.data.len() as u64).to_le_bytes());
        out.extend((u32::from(self.required) * REQUIRED).to_le_bytes());
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&out[start..]), &self.data);
        out.extend(checksum.to_le_bytes());
        out.extend(&self.data);
        out.resize(out.len() + padding(self.data.len() as u64), 0);
        Ok(())
    }
}

/// A record's head, the data of which is yet to be read.
pub(super) struct Head {
    pub section: Section,
    pub data_bytes: u64,
    pub offset: u64,
    checksum: u32,
    /// CRC-32C of the head alone.
    so_far: u32,
}

impl Head {
    /// Reads a head that lies at `offset` of the file.
    pub(super) fn decode(bytes: &[u8; HEAD_BYTES], offset: u64) -> Result<Self> {
        let mut cursor = Cursor::new("a section's head", bytes, offset);
        let kind = cursor.bytes(MAX_KIND)?;
        let kind = kind.split(|byte| *byte == 0).next().unwrap_or_default();
        let kind = match std::str::from_utf8(kind) {
            Ok(kind) if is_kind(kind) && bytes[kind.len()..MAX_KIND].iter().all(|byte| *byte == 0) => kind,
            _ => return Err(Error::invalid("a section's head", offset, "its kind is not a name")),
        };
        let section = |index, version, required| Section {
            kind: kind.to_owned(),
            index,
            version,
            required,
            data: vec![],
        };
        let (index, version, data_bytes) = (cursor.u32()?, cursor.u32()?, cursor.u64()?);
        let flags = cursor.u32()?;
        if flags & !REQUIRED != 0 {
            return Err(Error::invalid(
                name(kind, index),
                offset + 32,
                format!("flags {flags:#x} are not known to this version of supermachine"),
            ));
        }
        Ok(Self {
            section: section(index, version, flags & REQUIRED != 0),
            data_bytes,
            offset,
            checksum: cursor.u32()?,
            so_far: crc32c::crc32c(&bytes[..UNTIL_CHECKSUM]),
        })
    }

    pub(super) fn name(&self) -> String {
        name(&self.section.kind, self.section.index)
    }

    /// The section, once its data is there and is what was written.
    pub(super) fn complete(self, data: Vec<u8>) -> Result<Section> {
        if crc32c::crc32c_append(self.so_far, &data) != self.checksum {
            return Err(Error::Checksum { section: self.name(), offset: self.offset });
        }
        Ok(Section { data, ..self.section })
    }
}
