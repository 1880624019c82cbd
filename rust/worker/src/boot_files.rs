//! What a guest boots, as it is on disk: digested, for snapshots, and decompressed.
//!
//! A file of several zstd frames is decompressed by as many threads: it is what a guest's first instruction waits for.

use std::io;
use std::panic;
use std::path::PathBuf;
use std::thread;

use supermachine_snapshot::Digest32;
use zstd::zstd_safe;

/// What zstd may decompress a file to.
const MAX_SIZE: usize = 256 << 20;
/// Frames that get a thread each; a file of more is decompressed by one.
const MAX_FRAMES: usize = 32;
const ZSTD_MAGIC: [u8; 4] = 0xfd2f_b528_u32.to_le_bytes();

/// A kernel or an initramfs that has been read, or nothing.
#[derive(Default)]
pub struct BootFile {
    pub path: PathBuf,
    /// As they are on disk.
    pub bytes: Vec<u8>,
}

/// What is in a [`BootFile`].
pub struct Contents {
    /// BLAKE3 of the file as it is on disk.
    pub digest: Digest32,
    /// Decompressed, when the file is compressed.
    pub bytes: Vec<u8>,
}

/// The contents of both files. The error names the file.
pub fn contents(kernel: BootFile, initramfs: BootFile) -> Result<(Contents, Contents), (PathBuf, io::Error)> {
    let (digests, kernel_bytes, initramfs_bytes) = thread::scope(|scope| {
        let digests = [&kernel, &initramfs].map(|file| scope.spawn(|| Digest32::of(&file.bytes)));
        let initramfs_bytes = scope.spawn(|| decompressed(&initramfs.bytes));
        let kernel_bytes = decompressed(&kernel.bytes);
        (digests.map(joined), kernel_bytes, joined(initramfs_bytes))
    });
    let of = |file: BootFile, digest, bytes: io::Result<Option<Vec<u8>>>| match bytes {
        Ok(bytes) => Ok(Contents { digest, bytes: bytes.unwrap_or(file.bytes) }),
        Err(error) => Err((file.path, error)),
    };
    Ok((of(kernel, digests[0], kernel_bytes)?, of(initramfs, digests[1], initramfs_bytes)?))
}

/// What a thread came to; its panic goes on in this one.
fn joined<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| panic::resume_unwind(panic))
}

/// What the bytes decompress to; `None` when they are not compressed.
fn decompressed(bytes: &[u8]) -> io::Result<Option<Vec<u8>>> {
    if !bytes.starts_with(&ZSTD_MAGIC) {
        return Ok(None);
    }
    let Some(frames) = frames(bytes) else {
        let size = zstd::bulk::Decompressor::upper_bound(bytes).unwrap_or(MAX_SIZE).min(MAX_SIZE);
        return zstd::bulk::decompress(bytes, size).map(Some);
    };
    let mut out = vec![0; frames.iter().map(|(_, size)| size).sum()];
    let mut rest = &mut out[..];
    thread::scope(|scope| {
        let mut threads = Vec::new();
        for (frame, size) in frames {
            let target;
            (target, rest) = rest.split_at_mut(size);
            threads.push(scope.spawn(move || decompress(frame, target)));
        }
        threads.into_iter().try_for_each(joined)
    })?;
    Ok(Some(out))
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
