//! The section `ram-extents`, version 1: which RAM a diff holds.
//!
//! Pairs of LEB128 numbers, each in its shortest form, up to the end of the data: pages since the end of the extent
//! before (since the start of RAM for the first), and pages of this extent. Neither is 0, the first distance excepted.

use std::ops::Range;

use super::{Extents, Section};
use crate::codec::{Cursor, put_varint};
use crate::ram::PAGE;
use crate::{Error, Result};

pub(super) const KIND: &str = "ram-extents";
const VERSION: u32 = 1;

/// Extents, sorted and maximal, as a section.
pub(super) fn encode(extents: &[Range<u64>]) -> Section {
    let mut data = vec![];
    put(&mut data, extents);
    Section { kind: KIND.into(), index: 0, version: VERSION, required: true, data }
}

/// Appends a list of sorted and maximal extents.
pub(super) fn put(data: &mut Vec<u8>, extents: &[Range<u64>]) {
    let mut end = 0;
    for extent in extents {
        put_varint(data, (extent.start - end) / PAGE as u64);
        put_varint(data, (extent.end - extent.start) / PAGE as u64);
        end = extent.end;
    }
}

/// Reads the data of a section that begins at `offset` of the file, of a guest with this much RAM.
pub(super) fn decode(section: &Section, offset: u64, memory_bytes: u64) -> Result<Extents> {
    let mut cursor = Cursor::new("section ram-extents 0", &section.data, offset);
    if section.version != VERSION {
        return Err(cursor.invalid(format!(
            "its version is {} and this version of supermachine reads {VERSION}",
            section.version
        )));
    }
    take(&mut cursor, "section ram-extents 0", memory_bytes)
}

/// Reads a list of extents of so many bytes, up to the end of the data.
pub(super) fn take(cursor: &mut Cursor, name: &str, bytes: u64) -> Result<Extents> {
    let pages = bytes / PAGE as u64;
    let mut extents = Extents::new();
    let mut end = 0;
    while cursor.remaining() > 0 {
        let at = cursor.offset();
        let (distance, length) = (cursor.varint()?, cursor.varint()?);
        if length == 0 || distance == 0 && !extents.is_empty() {
            return Err(Error::invalid(name, at, "an extent is empty or not maximal"));
        }
        let start = u64::saturating_add(end, distance);
        end = start.saturating_add(length);
        if end > pages {
            let reason = "an extent ends beyond RAM, or beyond the disk";
            return Err(Error::invalid(name, at, reason));
        }
        extents.push(start * PAGE as u64..end * PAGE as u64);
    }
    Ok(extents)
}
