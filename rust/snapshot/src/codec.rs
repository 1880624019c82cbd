//! Little-endian values from and to bytes that nobody vouches for.

use crate::{Error, Result};

/// Reads values one after another and says where it was when they end too early.
pub(crate) struct Cursor<'a> {
    section: &'a str,
    bytes: &'a [u8],
    at: usize,
    /// Where `bytes` begin in the file.
    base: u64,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(section: &'a str, bytes: &'a [u8], base: u64) -> Self {
        Self { section, bytes, at: 0, base }
    }

    /// The same, for another part of the file.
    pub(crate) fn renamed(self, section: &'a str) -> Self {
        Self { section, ..self }
    }

    /// Offset in the file of what is read next.
    pub(crate) fn offset(&self) -> u64 {
        self.base + self.at as u64
    }

    pub(crate) fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub(crate) fn invalid(&self, reason: impl Into<String>) -> Error {
        Error::invalid(self.section, self.offset(), reason)
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Result<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        let taken = rest.get(..count).ok_or_else(|| {
            self.invalid(format!("{count} bytes are needed here and the section has {} more", rest.len()))
        })?;
        self.at += count;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(self.bytes(N)?.try_into().expect("as long as was asked for"))
    }

    pub(crate) fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn u128(&mut self) -> Result<u128> {
        self.array().map(u128::from_le_bytes)
    }

    /// An unsigned LEB128 number in its shortest form.
    pub(crate) fn varint(&mut self) -> Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                if byte == 0 && shift != 0 {
                    return Err(self.invalid("a number is not in its shortest form"));
                }
                return Ok(value);
            }
        }
        Err(self.invalid("a number exceeds 64 bits"))
    }

    /// An error unless everything was read.
    pub(crate) fn end(&self) -> Result<()> {
        match self.remaining() {
            0 => Ok(()),
            more => Err(self.invalid(format!("{more} bytes too many"))),
        }
    }
}

/// Appends a number as LEB128.
#[expect(clippy::cast_possible_truncation, reason = "seven bits at a time")]
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn varints_are_read_as_written(value: u64, shift in 0_u32..64) {
            let mut bytes = vec![];
            put_varint(&mut bytes, value >> shift);
            let mut cursor = Cursor::new("test", &bytes, 0);
            prop_assert_eq!(cursor.varint().unwrap(), value >> shift);
            cursor.end().unwrap();
        }
    }

    #[test]
    fn varints_are_canonical_and_end() {
        for bytes in [&[0x80, 0][..], &[0x80], &[0xff; 9], &[0xff; 10], &[0xff; 11], &[0x80, 0x80, 0]] {
            assert!(Cursor::new("test", bytes, 0).varint().is_err(), "{bytes:x?}");
        }
        let largest = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1];
        assert_eq!(Cursor::new("test", &largest, 0).varint().unwrap(), u64::MAX);
    }
}
