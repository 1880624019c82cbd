//! The first 160 bytes.
//!
//! | offset | type | field |
//! |---|---|---|
//! | 0 | 8 bytes | magic |
//! | 8 | u32 | minor version |
//! | 12 | u32 | number of sections |
//! | 16 | u64 | bytes of sections |
//! | 24 | u64 | offset of RAM |
//! | 32 | u64 | bytes of RAM |
//! | 40 | u64 | flags: bit 0 set if a disk follows RAM; others 0 |
//! | 48 | 32 bytes | BLAKE3 of the sections |
//! | 80 | 32 bytes | digest of RAM |
//! | 112 | 16 bytes | zeros |
//! | 128 | 32 bytes | BLAKE3 of the 128 bytes before: the snapshot's id |

use super::{MAX_METADATA, MAX_SECTIONS, RAM_ALIGNMENT};
use crate::codec::Cursor;
use crate::ram::PAGE;
use crate::{Digest32, Error, Result, error};

/// How a file of this version begins.
pub const MAGIC: [u8; 8] = *b"SMSNAP\x09\0";
pub(super) const BYTES: usize = 160;
const DIGESTED: usize = 128;
const SECTION: &str = "the header";
/// In the flags: a disk follows RAM.
const DISK: u64 = 1;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub minor: u32,
    pub sections: u32,
    pub metadata_bytes: u64,
    pub ram_offset: u64,
    pub memory_bytes: u64,
    /// Whether a disk follows RAM.
    pub disk: bool,
    pub metadata: Digest32,
    pub ram: Digest32,
}

impl Header {
    /// Where RAM begins after this many bytes of sections.
    pub(super) fn ram_offset(metadata_bytes: u64) -> u64 {
        (BYTES as u64 + metadata_bytes).next_multiple_of(RAM_ALIGNMENT)
    }

    /// The header's bytes, and the snapshot's id.
    pub(super) fn encode(&self) -> ([u8; BYTES], Digest32) {
        let mut out = Vec::with_capacity(BYTES);
        out.extend(MAGIC);
        out.extend(self.minor.to_le_bytes());
        out.extend(self.sections.to_le_bytes());
        out.extend(self.metadata_bytes.to_le_bytes());
        out.extend(self.ram_offset.to_le_bytes());
        out.extend(self.memory_bytes.to_le_bytes());
        out.extend(if self.disk { DISK } else { 0 }.to_le_bytes());
        out.extend(self.metadata.0);
        out.extend(self.ram.0);
        out.extend([0; 16]);
        let id = Digest32::of(&out);
        out.extend(id.0);
        (out.try_into().expect("160 bytes"), id)
    }

    /// Reads a header and checks what can be checked of it alone; gives the snapshot's id too.
    pub(super) fn decode(bytes: &[u8; BYTES]) -> Result<(Self, Digest32)> {
        if bytes[..8] != MAGIC {
            let found = error::beginning(&bytes[..8]);
            return Err(Error::Magic { expected: "version 9 snapshot", found });
        }
        let id = Digest32::of(&bytes[..DIGESTED]);
        if bytes[DIGESTED..] != id.0 {
            return Err(Error::Checksum { section: SECTION.into(), offset: 0 });
        }
        let mut cursor = Cursor::new(SECTION, &bytes[..DIGESTED], 0);
        cursor.bytes(8)?;
        let header = Self {
            minor: cursor.u32()?,
            sections: cursor.u32()?,
            metadata_bytes: cursor.u64()?,
            ram_offset: cursor.u64()?,
            memory_bytes: cursor.u64()?,
            disk: match cursor.u64()? {
                0 => false,
                DISK => true,
                flags => {
                    return Err(Error::invalid(
                        SECTION,
                        40,
                        format!("flags {flags:#x} are not known to this version of supermachine"),
                    ));
                }
            },
            metadata: Digest32(cursor.array()?),
            ram: Digest32(cursor.array()?),
        };
        let reserved = cursor.offset();
        if cursor.array()? != [0; 16] {
            return Err(Error::invalid(SECTION, reserved, "reserved bytes are not 0"));
        }
        header.check()?;
        Ok((header, id))
    }

    fn check(&self) -> Result<()> {
        let wrong = |offset, reason: String| Err(Error::invalid(SECTION, offset, reason));
        if self.sections > MAX_SECTIONS {
            return wrong(12, format!("{} sections; there may be at most {MAX_SECTIONS}", self.sections));
        }
        if self.metadata_bytes > MAX_METADATA {
            return wrong(
                16,
                format!("{} bytes of sections; there may be at most {MAX_METADATA}", self.metadata_bytes),
            );
        }
        let expected = Self::ram_offset(self.metadata_bytes);
        if self.ram_offset != expected {
            return wrong(24, format!("RAM at {:#x}; it must be at {expected:#x}", self.ram_offset));
        }
        if self.memory_bytes == 0
            || !self.memory_bytes.is_multiple_of(PAGE as u64)
            || self.memory_bytes > i64::MAX as u64 - self.ram_offset
        {
            return wrong(
                32,
                format!(
                    "{} bytes of RAM; it must be whole 4 KiB pages that a file can hold",
                    self.memory_bytes
                ),
            );
        }
        Ok(())
    }
}
