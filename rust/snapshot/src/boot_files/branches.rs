//! Branches with absolute targets, which compress better, back to what a CPU has: what guest/branches.py packs.

/// The first frame of zstd's, which is skippable (RFC 8878, 3.1.2), with [`MARK`] and the architecture in it.
const SKIPPABLE: u32 = 0x184d_2a5b;
const MARK: &[u8] = b"supermachine branches 1 ";
const HEAD: usize = 8;
/// Where a CALL leads to in a file of x86_64, at most; in guest/branches.py, too.
const MOST: i32 = 1 << 25;

/// Whose branches they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Code {
    Aarch64,
    X86_64,
}

impl Code {
    /// What a packed file says of itself, and the frames behind it; `None` for any other file.
    pub(super) fn of(file: &[u8]) -> Option<(Self, &[u8])> {
        let (head, rest) = file.split_at_checked(HEAD)?;
        let (magic, length) = head.split_at(4);
        let length = usize::try_from(u32::from_le_bytes(length.try_into().ok()?)).ok()?;
        let (mark, frames) = rest.split_at_checked(length)?;
        let code = match mark.strip_prefix(MARK)? {
            b"aarch64" => Self::Aarch64,
            b"x86_64" => Self::X86_64,
            _ => return None,
        };
        (magic == SKIPPABLE.to_le_bytes()).then_some((code, frames))
    }

    /// Gives a piece that is at `place` in its file the branches that it had.
    pub(super) fn restore(self, piece: &mut [u8], place: usize) {
        match self {
            Self::Aarch64 => aarch64(piece, place),
            Self::X86_64 => x86_64(piece, place),
        }
    }
}

/// BL and ADRP, whose offsets are in words and in pages of 4 KiB (Arm ARM, C6.2), modulo 2^26 and 2^21.
#[expect(clippy::cast_possible_truncation, reason = "modulo powers of two below 2^32")]
fn aarch64(piece: &mut [u8], place: usize) {
    let (words, _) = piece.as_chunks_mut::<4>();
    for (number, bytes) in (place / 4..).zip(words) {
        let word = u32::from_le_bytes(*bytes);
        let new = if word & 0xfc00_0000 == 0x9400_0000 {
            0x9400_0000 | word.wrapping_sub(number as u32) & 0x03ff_ffff
        } else if word & 0x9f00_0000 == 0x9000_0000 {
            let page = (word >> 29 & 3 | word >> 3 & 0x001f_fffc).wrapping_sub((number >> 10) as u32);
            word & 0x9f00_001f | (page & 3) << 29 | (page >> 2 & 0x0007_ffff) << 5
        } else {
            continue;
        };
        *bytes = new.to_le_bytes();
    }
}

/// CALL with an offset of 32 bits (Intel SDM, volume 2).
fn x86_64(piece: &mut [u8], place: usize) {
    let mut at = 0;
    while let Some(found) = piece[at..].iter().position(|byte| *byte == 0xe8) {
        at += found + 1;
        let Some(bytes) = piece[at..].first_chunk_mut::<4>() else { return };
        let value = i32::from_le_bytes(*bytes);
        // A piece of a file that is larger has been packed by nobody.
        let here = i32::try_from(place + at).unwrap_or(i32::MAX);
        if (0..MOST).contains(&value) {
            *bytes = (value - here).to_le_bytes();
        } else if (-here..0).contains(&value) {
            *bytes = (value + MOST).to_le_bytes();
        }
        at += 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    }

    /// Pieces at 0x2000 of their file, as they are and as guest/branches.py packs them; its test has the same.
    #[test]
    fn branches_are_as_they_were() {
        for (code, before, packed) in [
            (
                Code::X86_64,
                "90e810000000e8f0ffffffe80000fe01e8ffffff7fe8e8000000e8f0ffff",
                "90e812200000e8f71f0000e80c20fe01e8ffffff7fe8fe200000e8f0ffff",
            ),
            (
                Code::Aarch64,
                "1000009400000090010000b01f2003d5f0ffff97e3ffff90100000",
                "10080094000000d0010000f01f2003d5f4070094e3ffffd0100000",
            ),
        ] {
            let mut piece = bytes(packed);
            code.restore(&mut piece, 0x2000);
            assert_eq!(piece, bytes(before), "{code:?}");
        }
    }
}
