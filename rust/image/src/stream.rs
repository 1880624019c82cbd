//! The byte source that the tar reader pulls from.

use crate::Error;

pub(crate) trait Stream {
    /// The next bytes, at least one; empty only at the end.
    fn chunk(&mut self) -> Result<&[u8], Error>;

    fn consume(&mut self, n: usize);

    /// Fills as much of `buf` as there is.
    fn read_full(&mut self, buf: &mut [u8]) -> Result<usize, Error> {
        let mut filled = 0;
        while filled < buf.len() {
            let chunk = self.chunk()?;
            if chunk.is_empty() {
                break;
            }
            let n = chunk.len().min(buf.len() - filled);
            buf[filled..filled + n].copy_from_slice(&chunk[..n]);
            self.consume(n);
            filled += n;
        }
        Ok(filled)
    }

    /// Passes over `n` bytes and returns how many there were.
    fn skip(&mut self, n: u64) -> Result<u64, Error> {
        let mut left = n;
        while left > 0 {
            let here = self.chunk()?.len();
            if here == 0 {
                break;
            }
            let step = here.min(usize::try_from(left).unwrap_or(usize::MAX));
            self.consume(step);
            left -= step as u64;
        }
        Ok(n - left)
    }
}

#[cfg(test)]
impl Stream for &[u8] {
    fn chunk(&mut self) -> Result<&[u8], Error> {
        Ok(self)
    }

    fn consume(&mut self, n: usize) {
        *self = &self[n..];
    }
}
