//! Memory that grows without ever copying itself: a doubling vector would need half as much again at its peak.

/// A vector in pieces.
pub(crate) struct Pieces<T> {
    pieces: Vec<Vec<T>>,
    len: usize,
}

const PIECE: usize = 4096;

impl<T> Pieces<T> {
    pub(crate) fn new() -> Self {
        Self { pieces: Vec::new(), len: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn push(&mut self, value: T) {
        if self.len.is_multiple_of(PIECE) {
            self.pieces.push(Vec::with_capacity(PIECE));
        }
        if let Some(piece) = self.pieces.last_mut() {
            piece.push(value);
            self.len += 1;
        }
    }
}

impl<T> std::ops::Index<u32> for Pieces<T> {
    type Output = T;

    fn index(&self, i: u32) -> &T {
        &self.pieces[i as usize / PIECE][i as usize % PIECE]
    }
}

impl<T> std::ops::IndexMut<u32> for Pieces<T> {
    fn index_mut(&mut self, i: u32) -> &mut T {
        &mut self.pieces[i as usize / PIECE][i as usize % PIECE]
    }
}

/// Byte strings of up to [`Strings::MAX`] bytes, found again by position and length.
pub(crate) struct Strings {
    pieces: Vec<Vec<u8>>,
}

impl Strings {
    pub(crate) const MAX: usize = 4096;
    const PIECE: usize = 64 << 10;

    pub(crate) fn new() -> Self {
        Self { pieces: Vec::new() }
    }

    pub(crate) fn bytes(&self) -> u64 {
        (self.pieces.len() * Self::PIECE) as u64
    }

    /// `None` when the string is too long or 4 GiB are full.
    pub(crate) fn add(&mut self, s: &[u8]) -> Option<u32> {
        if s.len() > Self::MAX {
            return None;
        }
        if self.pieces.last().is_none_or(|p| p.len() + s.len() > Self::PIECE) {
            self.pieces.push(Vec::with_capacity(Self::PIECE));
        }
        let index = self.pieces.len() - 1;
        let piece = self.pieces.last_mut()?;
        let at = u32::try_from(index * Self::PIECE + piece.len()).ok()?;
        piece.extend_from_slice(s);
        Some(at)
    }

    pub(crate) fn get(&self, at: u32, len: usize) -> &[u8] {
        let (piece, start) = (at as usize / Self::PIECE, at as usize % Self::PIECE);
        &self.pieces[piece][start..start + len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_come_back() {
        let mut strings = Strings::new();
        let made: Vec<Vec<u8>> = (0..5000usize).map(|i| vec![i as u8; i % (Strings::MAX + 1)]).collect();
        let at: Vec<u32> = made.iter().map(|s| strings.add(s).unwrap()).collect();
        for (s, at) in made.iter().zip(at) {
            assert_eq!(strings.get(at, s.len()), s);
        }
        assert_eq!(strings.add(&[0; Strings::MAX + 1]), None);
    }

    #[test]
    fn pieces_index() {
        let mut pieces = Pieces::new();
        (0..10_000u32).for_each(|i| pieces.push(i));
        pieces[9_999] = 7;
        assert_eq!((pieces[0], pieces[4096], pieces[9_999], pieces.len()), (0, 4096, 7, 10_000));
    }
}
