//! The section `identity`, version 1.
//!
//! In this order: str `architecture`, str `engine`, u32 `engine_version`, strs `cpu_features`, 32 bytes `kernel`,
//! 32 bytes `initramfs`, option of str `image`, strs `devices`, u32 `vcpus`, u64 `memory_bytes`, u64 `ram_gpa`, option
//! of 32 bytes `parent`, u64 `created_unix_ns`. A str is a u16 length and UTF-8, strs a u32 count and as many str, an
//! option a byte 0, or 1 and the value.

use super::{Identity, Section};
use crate::codec::Cursor;
use crate::ram::PAGE;
use crate::{Digest32, Error, Result};

pub(super) const KIND: &str = "identity";
const VERSION: u32 = 1;
const MAX_STRING: usize = 256;
const MAX_STRINGS: u32 = 1024;

impl Identity {
    pub(super) fn encode(&self) -> Result<Section> {
        self.check().map_err(Error::unwritable)?;
        let mut data = vec![];
        put_str(&mut data, &self.architecture);
        put_str(&mut data, &self.engine);
        data.extend(self.engine_version.to_le_bytes());
        put_strs(&mut data, &self.cpu_features);
        data.extend(self.kernel.0);
        data.extend(self.initramfs.0);
        data.push(self.image.is_some().into());
        if let Some(image) = &self.image {
            put_str(&mut data, image);
        }
        put_strs(&mut data, &self.devices);
        data.extend(self.vcpus.to_le_bytes());
        data.extend(self.memory_bytes.to_le_bytes());
        data.extend(self.ram_gpa.to_le_bytes());
        data.push(self.parent.is_some().into());
        data.extend(self.parent.iter().flat_map(|parent| parent.0));
        data.extend(self.created_unix_ns.to_le_bytes());
        Ok(Section { kind: KIND.into(), index: 0, version: VERSION, required: true, data })
    }

    /// Reads the data of a section that begins at `offset` of the file.
    pub(super) fn decode(section: &Section, offset: u64) -> Result<Self> {
        const NAME: &str = "section identity 0";
        let mut cursor = Cursor::new(NAME, &section.data, offset);
        if section.version != VERSION {
            return Err(cursor.invalid(format!(
                "its version is {} and this version of supermachine reads {VERSION}",
                section.version
            )));
        }
        let identity = Self {
            architecture: take_str(&mut cursor)?,
            engine: take_str(&mut cursor)?,
            engine_version: cursor.u32()?,
            cpu_features: take_strs(&mut cursor)?,
            kernel: Digest32(cursor.array()?),
            initramfs: Digest32(cursor.array()?),
            image: take_option(&mut cursor, take_str)?,
            devices: take_strs(&mut cursor)?,
            vcpus: cursor.u32()?,
            memory_bytes: cursor.u64()?,
            ram_gpa: cursor.u64()?,
            parent: take_option(&mut cursor, |cursor| cursor.array().map(Digest32))?,
            created_unix_ns: cursor.u64()?,
        };
        cursor.end()?;
        identity.check().map_err(|reason| Error::invalid(NAME, offset, reason))?;
        Ok(identity)
    }

    fn check(&self) -> Result<(), String> {
        let lists = [&self.cpu_features, &self.devices];
        let strings = [&self.architecture, &self.engine].into_iter().chain(&self.image);
        for string in strings.chain(lists.into_iter().flatten()) {
            if !is_text(string) {
                return Err(format!("a text must have at most {MAX_STRING} bytes and no control characters"));
            }
        }
        if lists.iter().any(|list| list.len() > MAX_STRINGS as usize) {
            return Err(format!("a list has more than {MAX_STRINGS} entries"));
        }
        if self.vcpus == 0 {
            return Err("a machine has at least one vCPU".into());
        }
        let page = PAGE as u64;
        if self.memory_bytes == 0
            || !self.memory_bytes.is_multiple_of(page)
            || !self.ram_gpa.is_multiple_of(page)
        {
            return Err(format!(
                "RAM of {:#x} bytes at {:#x} is not whole 4 KiB pages",
                self.memory_bytes, self.ram_gpa
            ));
        }
        if self.ram_gpa.checked_add(self.memory_bytes).is_none() {
            return Err("RAM ends beyond the address space".into());
        }
        Ok(())
    }
}

fn is_text(string: &str) -> bool {
    string.len() <= MAX_STRING && !string.chars().any(char::is_control)
}

fn put_str(out: &mut Vec<u8>, text: &str) {
    out.extend(u16::try_from(text.len()).expect("texts have at most MAX_STRING bytes").to_le_bytes());
    out.extend(text.bytes());
}

fn put_strs(out: &mut Vec<u8>, texts: &[String]) {
    out.extend(u32::try_from(texts.len()).expect("lists have at most MAX_STRINGS").to_le_bytes());
    texts.iter().for_each(|text| put_str(out, text));
}

fn take_str(cursor: &mut Cursor) -> Result<String> {
    let bytes = usize::from(cursor.u16()?);
    match std::str::from_utf8(cursor.bytes(bytes)?) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Err(cursor.invalid("a text is not UTF-8")),
    }
}

fn take_strs(cursor: &mut Cursor) -> Result<Vec<String>> {
    let count = cursor.u32()?;
    if count > MAX_STRINGS {
        return Err(cursor.invalid(format!("a list of {count}; there may be at most {MAX_STRINGS} entries")));
    }
    (0..count).map(|_| take_str(cursor)).collect()
}

fn take_option<'a, T>(
    cursor: &mut Cursor<'a>,
    take: impl FnOnce(&mut Cursor<'a>) -> Result<T>,
) -> Result<Option<T>> {
    match cursor.u8()? {
        0 => Ok(None),
        1 => take(cursor).map(Some),
        other => Err(cursor.invalid(format!("{other} where 0 or 1 says whether a value follows"))),
    }
}
