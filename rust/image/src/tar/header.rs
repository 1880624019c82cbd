//! The 512-byte header block.

use super::BLOCK;

pub(crate) struct Header {
    pub name: Vec<u8>,
    pub link: Vec<u8>,
    pub type_flag: u8,
    pub mode: u16,
    pub uid: i64,
    pub gid: i64,
    pub size: u64,
    pub mtime: i64,
    pub device: (u32, u32),
}

impl Header {
    pub(crate) fn parse(block: &[u8; BLOCK]) -> Result<Self, String> {
        verify_checksum(block)?;
        let ustar = &block[257..263] == b"ustar\0";
        let gnu = &block[257..265] == b"ustar  \0";
        let mut name = text(&block[..100]).to_vec();
        if ustar {
            // star uses the end of the prefix for times and marks that with a trailer.
            let prefix = if &block[508..512] == b"tar\0" { &block[345..476] } else { &block[345..500] };
            let prefix = text(prefix);
            if !prefix.is_empty() {
                name = [prefix, b"/", &name].concat();
            }
        }
        let type_flag = block[156];
        let device = if (ustar || gnu) && matches!(type_flag, b'3' | b'4') {
            (device(&block[329..337])?, device(&block[337..345])?)
        } else {
            (0, 0)
        };
        let size = number(&block[124..136], "size")?;
        Ok(Self {
            name,
            link: text(&block[157..257]).to_vec(),
            type_flag,
            // The format's own bits may be there too (S_IFMT); the type flag says it already.
            mode: u16::try_from(number(&block[100..108], "mode")? & 0o7777).expect("it has twelve bits"),
            uid: number(&block[108..116], "user id")?,
            gid: number(&block[116..124], "group id")?,
            size: u64::try_from(size).map_err(|_| format!("the size {size} is negative"))?,
            mtime: number(&block[136..148], "modification time")?,
            device,
        })
    }
}

fn device(field: &[u8]) -> Result<u32, String> {
    let n = number(field, "device number")?;
    u32::try_from(n).map_err(|_| format!("the device number {n} is out of range"))
}

fn verify_checksum(block: &[u8; BLOCK]) -> Result<(), String> {
    let stated = number(&block[148..156], "checksum")?;
    let byte = |(i, b): (usize, &u8)| if (148..156).contains(&i) { b' ' } else { *b };
    let unsigned: i64 = block.iter().enumerate().map(byte).map(i64::from).sum();
    // Some old writers summed signed characters.
    let signed: i64 = block.iter().enumerate().map(byte).map(|b| i64::from(b.cast_signed())).sum();
    if stated == unsigned || stated == signed {
        return Ok(());
    }
    Err(format!("the header's checksum is {unsigned} but the header says {stated}; this is no tar header"))
}

/// A field up to its first NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|b| *b == 0).next().unwrap_or_default()
}

/// Octal digits, or GNU's base-256 two's complement when the first bit is set.
pub(super) fn number(field: &[u8], what: &str) -> Result<i64, String> {
    let too_large = || format!("the {what} does not fit in 64 bits");
    if let Some(first) = field.first().filter(|b| **b & 0x80 != 0) {
        let negative = first & 0x40 != 0;
        let mut value: i64 = if negative { -1 } else { 0 };
        for (i, b) in field.iter().enumerate() {
            let b = match (i, negative) {
                (0, false) => b & 0x7f,
                _ => *b,
            };
            value = value.checked_mul(256).ok_or_else(too_large)? | i64::from(b);
        }
        return Ok(value);
    }
    let blank = |b: &u8| *b == b' ' || *b == 0;
    let start = field.iter().position(|b| !blank(b)).unwrap_or(field.len());
    let digits = &field[start..];
    let end = digits.iter().position(blank).unwrap_or(digits.len());
    let mut value: i64 = 0;
    for b in &digits[..end] {
        if !(b'0'..=b'7').contains(b) {
            return Err(format!("the {what} is not an octal number"));
        }
        value = value.checked_mul(8).ok_or_else(too_large)? | i64::from(b - b'0');
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn numbers() {
        assert_eq!(number(b"0000644\0", "x"), Ok(0o644));
        assert_eq!(number(b"   644 \0", "x"), Ok(0o644));
        assert_eq!(number(b"\0\0\0\0", "x"), Ok(0));
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 1, 0], "x"), Ok(256));
        assert_eq!(number(&[0xff; 12], "x"), Ok(-1));
        assert_eq!(number(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe], "x"), Ok(-2));
        assert_eq!(
            number(&[0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], "x"),
            Ok(i64::MAX)
        );
        assert!(number(&[0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], "x").is_err());
        assert!(number(b"12a", "x").is_err());
        assert!(number(b"8", "x").is_err());
    }
}
