//! Layer compression: magic numbers, and decoders that read whole multi-part streams.

use std::fmt;
use std::io::{self, BufRead, Read};

use flate2::bufread::GzDecoder;

use crate::memory;

/// How a layer blob is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// A plain tar archive.
    None,
    /// One or more gzip members (RFC 1952).
    Gzip,
    /// One or more zstd frames (RFC 8878).
    Zstd,
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "plain",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        })
    }
}

/// Bytes that [`Compression::detect`] wants to see.
pub(crate) const MAGIC_BYTES: usize = 4;

/// log2 of the largest zstd window that is decoded on any host: 64 MiB, which `zstd -19` and every container tool stay
/// under.
const ZSTD_WINDOW_LOG: u32 = 26;
/// And of the largest where memory allows it: what `zstd --long=31` writes, and the format's decoders take at most on
/// 64-bit hosts (ZSTD_WINDOWLOG_MAX_64).
const ZSTD_WINDOW_LOG_MAX: u32 = 31;

impl Compression {
    /// The compression that the first bytes of a blob show (RFC 1952, RFC 8878); plain when neither matches.
    pub fn detect(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A zstd file may open with a skippable frame (zstd:chunked does not, pzstd does).
            [m, 0x2a, 0x4d, 0x18, ..] if m & 0xf0 == 0x50 => Self::Zstd,
            _ => Self::None,
        }
    }
}

/// A buffered source that can show its next bytes even across a refill.
pub(crate) trait Peek: BufRead {
    /// At least `MAGIC_BYTES` of what comes next, fewer only at the end.
    fn peek(&mut self) -> io::Result<&[u8]>;
}

/// Decodes `source` to its end, whatever the number of gzip members or zstd frames.
pub(crate) enum Decoder<R: Peek> {
    Plain(R),
    Gzip(GzipMembers<R>),
    Zstd(Box<zstd::stream::read::Decoder<'static, R>>),
}

impl<R: Peek> Decoder<R> {
    pub(crate) fn new(source: R, compression: Compression) -> io::Result<Self> {
        Ok(match compression {
            Compression::None => Self::Plain(source),
            Compression::Gzip => Self::Gzip(GzipMembers::Member(Box::new(GzDecoder::new(source)))),
            Compression::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(source)?;
                decoder.window_log_max(window_log(memory::available()))?;
                Self::Zstd(Box::new(decoder))
            }
        })
    }

    /// The source again, to read what the decoder did not want.
    pub(crate) fn into_source(self) -> Option<R> {
        match self {
            Self::Plain(source) => Some(source),
            Self::Gzip(GzipMembers::Member(decoder)) => Some(decoder.into_inner()),
            Self::Gzip(GzipMembers::Rest(source)) => Some(source),
            Self::Gzip(GzipMembers::Moved) => None,
            Self::Zstd(decoder) => Some(decoder.finish()),
        }
    }
}

impl<R: Peek> Read for Decoder<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(source) => source.read(buf),
            Self::Gzip(members) => members.read(buf),
            Self::Zstd(decoder) => decoder.read(buf).map_err(zstd_error),
        }
    }
}

/// log2 of the largest zstd window that is decoded with this many bytes of memory to be had: half of them at most.
fn window_log(available: u64) -> u32 {
    (available / 2).checked_ilog2().unwrap_or(0).clamp(ZSTD_WINDOW_LOG, ZSTD_WINDOW_LOG_MAX)
}

/// The texts are those of zstd's `ERR_getErrorString` for memory_allocation and frameParameter_windowTooLarge; the
/// crate gives no codes. Neither says that the stream is damaged.
fn zstd_error(error: io::Error) -> io::Error {
    let text = error.to_string();
    if text.contains("not enough memory") || text.contains("too much memory") {
        return io::Error::from_raw_os_error(libc::ENOMEM);
    }
    error
}

/// Gzip members one after the other. What follows the last member and is not gzip is ignored, as gzip(1) does: padding
/// and signatures occur, and the digest covers them.
pub(crate) enum GzipMembers<R: Peek> {
    Member(Box<GzDecoder<R>>),
    Rest(R),
    Moved,
}

impl<R: Peek> GzipMembers<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        while let Self::Member(decoder) = self {
            let n = decoder.read(buf)?;
            if n > 0 {
                return Ok(n);
            }
            let Self::Member(decoder) = std::mem::replace(self, Self::Moved) else { return Ok(0) };
            let mut source = decoder.into_inner();
            let more = matches!(source.peek(), Ok([0x1f, 0x8b, ..]));
            *self = if more { Self::Member(Box::new(GzDecoder::new(source))) } else { Self::Rest(source) };
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Peek for &[u8] {
        fn peek(&mut self) -> io::Result<&[u8]> {
            Ok(self)
        }
    }

    #[test]
    fn windows_are_as_large_as_memory_allows() {
        assert_eq!(window_log(0), 26);
        assert_eq!(window_log(1 << 30), 29);
        assert_eq!(window_log(1 << 32), 31);
        assert_eq!(window_log(u64::MAX), 31);
        // A frame of one raw block, whose header says a window of 2^31 bytes, or of 2^32 (RFC 8878, 3.1.1).
        let frame = |window_log: u8| {
            [0x28, 0xb5, 0x2f, 0xfd, 0, (window_log - 10) << 3, 1 | 2 << 3, 0, 0, b'h', b'i']
        };
        let decode = |frame: &[u8], log: u32| {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(frame).unwrap();
            decoder.window_log_max(log).unwrap();
            let mut out = Vec::new();
            Decoder::Zstd(Box::new(decoder)).read_to_end(&mut out).map(|_| out)
        };
        assert_eq!(decode(&frame(31), 31).unwrap(), b"hi");
        for (log, most) in [(31, 30), (32, 31)] {
            assert_eq!(decode(&frame(log), most).unwrap_err().raw_os_error(), Some(libc::ENOMEM));
        }
    }

    #[test]
    fn magic_numbers() {
        assert_eq!(Compression::detect(&[0x1f, 0x8b, 8, 0]), Compression::Gzip);
        assert_eq!(Compression::detect(&[0x28, 0xb5, 0x2f, 0xfd]), Compression::Zstd);
        assert_eq!(Compression::detect(&[0x53, 0x2a, 0x4d, 0x18]), Compression::Zstd);
        assert_eq!(Compression::detect(b"usr/"), Compression::None);
        assert_eq!(Compression::detect(&[]), Compression::None);
    }
}
