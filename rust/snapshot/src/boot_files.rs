//! What a guest boots, as it is on disk: digested, for snapshots, and decompressed.
//!
//! A file of several zstd frames is decompressed by several threads: it is what a guest's first instruction waits for.

mod branches;

use std::io;
use std::num::NonZero;
use std::path::PathBuf;
use std::sync::Mutex;
use std::thread;

use supermachine_support::lock;
use zstd::zstd_safe;

use crate::Digest32;
use branches::Code;

/// What zstd may decompress a file to.
const MAX_SIZE: usize = 256 << 20;
/// Frames that are decompressed side by side; a file of more is decompressed by one thread.
const MAX_FRAMES: usize = 32;
const ZSTD_MAGIC: [u8; 4] = 0xfd2f_b528_u32.to_le_bytes();

/// A kernel or an initramfs that has been read, or nothing.
#[derive(Debug, Default)]
pub struct BootFile {
    /// What errors name.
    pub path: PathBuf,
    /// As they are on disk.
    pub bytes: Vec<u8>,
}

/// What is in a [`BootFile`].
#[derive(Debug)]
pub struct Contents {
    /// BLAKE3 of the file as it is on disk.
    pub digest: Digest32,
    /// Decompressed, when the file is compressed.
    pub bytes: Vec<u8>,
}

/// The contents of both files. The error names the file.
pub fn contents(kernel: BootFile, initramfs: BootFile) -> Result<(Contents, Contents), (PathBuf, io::Error)> {
    let mut digests = [Digest32::default(); 2];
    let mut bytes = [Bytes::of(&kernel.bytes), Bytes::of(&initramfs.bytes)];
    let mut jobs: Vec<Job<'_>> = bytes.iter_mut().flat_map(Bytes::jobs).collect();
    for (digest, file) in digests.iter_mut().zip([&kernel, &initramfs]) {
        jobs.push(Box::new(|| *digest = Digest32::of(&file.bytes)));
    }
    side_by_side(jobs);
    let [kernel_bytes, initramfs_bytes] = bytes.map(Bytes::done);
    let of = |file: BootFile, digest, bytes: io::Result<Option<Vec<u8>>>| match bytes {
        Ok(bytes) => Ok(Contents { digest, bytes: bytes.unwrap_or(file.bytes) }),
        Err(error) => Err((file.path, error)),
    };
    Ok((of(kernel, digests[0], kernel_bytes)?, of(initramfs, digests[1], initramfs_bytes)?))
}

type Job<'a> = Box<dyn FnOnce() + Send + 'a>;

/// Does all jobs, with as many threads as there are processors, of which this one is one: what cannot be started is
/// done here.
fn side_by_side(jobs: Vec<Job<'_>>) {
    let helpers = thread::available_parallelism().map_or(1, NonZero::get).min(jobs.len()) - 1;
    let queue = Mutex::new(jobs.into_iter());
    let next = || lock(&queue).next();
    let work = || std::iter::from_fn(next).for_each(|job| job());
    thread::scope(|scope| {
        for _ in 0..helpers {
            if thread::Builder::new().name("boot-files".into()).spawn_scoped(scope, work).is_err() {
                break;
            }
        }
        work();
    });
}

/// A file's bytes on their way.
enum Bytes<'a> {
    /// Not compressed.
    Plain,
    /// Compressed in frames that say their sizes, each with what has come of it; and what was done to it before.
    Frames { frames: Vec<(&'a [u8], usize, io::Result<()>)>, code: Option<Code>, out: Vec<u8> },
    /// Compressed in some other way.
    Stream(&'a [u8], io::Result<Vec<u8>>),
}

impl<'a> Bytes<'a> {
    fn of(bytes: &'a [u8]) -> Self {
        let (code, bytes) = Code::of(bytes).map_or((None, bytes), |(code, frames)| (Some(code), frames));
        if code.is_none() && !bytes.starts_with(&ZSTD_MAGIC) {
            return Self::Plain;
        }
        let Some(frames) = frames(bytes) else {
            let unknown =
                || Err(io::Error::new(io::ErrorKind::InvalidData, "its frames do not say their sizes"));
            return Self::Stream(bytes, code.map_or_else(|| Ok(Vec::new()), |_| unknown()));
        };
        let out = vec![0; frames.iter().map(|(_, size)| size).sum()];
        Self::Frames {
            frames: frames.into_iter().map(|(frame, size)| (frame, size, Ok(()))).collect(),
            code,
            out,
        }
    }

    fn jobs(&mut self) -> Vec<Job<'_>> {
        match self {
            Self::Plain => Vec::new(),
            Self::Frames { frames, code, out } => {
                let (mut rest, mut place, code) = (&mut out[..], 0, *code);
                let mut jobs: Vec<Job<'_>> = Vec::new();
                for (frame, size, result) in frames {
                    let (target, here);
                    (target, rest) = rest.split_at_mut(*size);
                    (here, place) = (place, place + *size);
                    jobs.push(Box::new(move || {
                        *result = decompress(frame, target);
                        if let Some(code) = code {
                            code.restore(target, here);
                        }
                    }));
                }
                jobs
            }
            Self::Stream(_, Err(_)) => Vec::new(),
            Self::Stream(bytes, result) => vec![Box::new(|| {
                let size = zstd::bulk::Decompressor::upper_bound(bytes).unwrap_or(MAX_SIZE).min(MAX_SIZE);
                *result = zstd::bulk::decompress(bytes, size);
            })],
        }
    }

    /// What they decompress to, after the jobs are done; `None` when they are not compressed.
    fn done(self) -> io::Result<Option<Vec<u8>>> {
        match self {
            Self::Plain => Ok(None),
            Self::Frames { frames, out, .. } => {
                frames.into_iter().try_for_each(|(_, _, result)| result)?;
                Ok(Some(out))
            }
            Self::Stream(_, result) => result.map(Some),
        }
    }
}

/// Each frame and the size that it says it decompresses to; `None` where that is not said, or is too much.
fn frames(mut bytes: &[u8]) -> Option<Vec<(&[u8], usize)>> {
    let (mut frames, mut total) = (Vec::new(), 0usize);
    while !bytes.is_empty() {
        let end = zstd_safe::find_frame_compressed_size(bytes).ok()?;
        let (frame, rest) = bytes.split_at_checked(end)?;
        let size = usize::try_from(zstd_safe::get_frame_content_size(frame).ok()??).ok()?;
        total = total.checked_add(size)?;
        if frames.len() == MAX_FRAMES || total > MAX_SIZE {
            return None;
        }
        frames.push((frame, size));
        bytes = rest;
    }
    Some(frames)
}

/// Decompresses one frame to all of `target`.
fn decompress(frame: &[u8], target: &mut [u8]) -> io::Result<()> {
    let done = zstd::bulk::decompress_to_buffer(frame, target)?;
    if done != target.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame is not as long as it says"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file(bytes: Vec<u8>) -> BootFile {
        BootFile { path: "a file".into(), bytes }
    }

    fn plain() -> Vec<u8> {
        (0..300_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect()
    }

    /// `count` frames that each say their size.
    fn compressed(bytes: &[u8], count: usize) -> Vec<u8> {
        let mut compressor = zstd::bulk::Compressor::new(3).unwrap();
        compressor.include_checksum(true).unwrap();
        let pieces = bytes.chunks(bytes.len().div_ceil(count));
        pieces.flat_map(|piece| compressor.compress(piece).unwrap()).collect()
    }

    /// A frame that does not say its size.
    fn streamed(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn a_file_is_digested_as_it_is_and_given_as_what_it_decompresses_to() {
        let bytes = plain();
        for on_disk in [
            bytes.clone(),
            compressed(&bytes, 1),
            compressed(&bytes, 5),
            compressed(&bytes, MAX_FRAMES),
            compressed(&bytes, MAX_FRAMES + 1),
            streamed(&bytes),
            Vec::new(),
        ] {
            let digest = Digest32::of(&on_disk);
            let empty = on_disk.is_empty();
            let (kernel, initramfs) = contents(file(on_disk.clone()), file(on_disk)).unwrap();
            for got in [kernel, initramfs] {
                assert!(got.bytes == if empty { Vec::new() } else { bytes.clone() });
                assert_eq!(got.digest, digest);
            }
        }
    }

    #[test]
    fn a_packed_file_has_its_branches_again() {
        let call = [0x90, 0xe8, 0x10, 0, 0, 0];
        let mut bytes = call.repeat(3);
        let mut packed = b"\x5b\x2a\x4d\x18\x1e\0\0\0supermachine branches 1 x86_64".to_vec();
        packed.extend(compressed(&bytes, 2));
        // The second piece starts 9 bytes into the file, in the middle of the second call.
        for (at, place) in [(2, 2_u32), (14, 14)] {
            bytes[at..at + 4].copy_from_slice(&0x10_u32.wrapping_sub(place).to_le_bytes());
        }
        let (kernel, _) = contents(file(packed.clone()), file(Vec::new())).unwrap();
        assert_eq!(kernel.bytes, bytes);
        assert_eq!(kernel.digest, Digest32::of(&packed));
        packed.truncate(38);
        packed.extend(streamed(&bytes));
        let (_, error) = contents(file(packed), file(Vec::new())).err().unwrap();
        assert!(error.to_string().contains("sizes"), "{error}");
    }

    #[test]
    fn a_damaged_file_is_an_error_that_names_it() {
        let good = compressed(&plain(), 4);
        let mut flipped = good.clone();
        flipped[good.len() / 2] ^= 1;
        for bad in [good[..good.len() - 5].to_vec(), flipped, ZSTD_MAGIC.to_vec()] {
            let (path, _) = contents(file(bad), file(Vec::new())).err().unwrap();
            assert_eq!(path, PathBuf::from("a file"));
        }
    }

    #[test]
    fn no_more_is_decompressed_than_a_guest_could_boot() {
        let zeros = vec![0; 64 << 20];
        let frame = zstd::bulk::compress(&zeros, 1).unwrap();
        assert!(frames(&frame.repeat(4)).is_some());
        assert!(contents(file(frame.repeat(5)), file(Vec::new())).is_err());
    }
}
