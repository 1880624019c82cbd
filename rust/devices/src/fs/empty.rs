//! A read-only file system without a file in it.

use vm_memory::VolatileSlice;

use super::{Served, Server, copy};

/// Bytes of struct fuse_in_header and fuse_out_header.
const IN_HEADER: usize = 40;
const OUT_HEADER: usize = 16;

/// Opcodes (include/uapi/linux/fuse.h).
const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const STATFS: u32 = 17;
const INIT: u32 = 26;
const OPENDIR: u32 = 27;
const READDIR: u32 = 28;
const RELEASEDIR: u32 = 29;
const ACCESS: u32 = 34;
const BATCH_FORGET: u32 = 42;
const READDIRPLUS: u32 = 44;

const ROOT: u64 = 1;
/// A directory (Linux: 0o040000) that everyone reads and nobody writes.
const MODE: u32 = 0o040_555;
/// The protocol's version that this speaks, and what requests hold at most.
const VERSION: (u32, u32) = (7, 31);
const MAX_WRITE: u32 = 4096;
/// Linux's numbers, whatever the host's are.
const ENOENT: i32 = 2;
const EROFS: i32 = 30;

/// Serves the root directory alone.
pub struct Empty;

impl Server for Empty {
    fn serve(&mut self, request: &[VolatileSlice<'_>], answer: &[VolatileSlice<'_>]) -> Served {
        let mut bytes = [0; IN_HEADER + 16];
        let length = copy(request, &mut bytes);
        if length < IN_HEADER {
            return Served::Answered(0);
        }
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let unique: [u8; 8] = bytes[8..16].try_into().expect("eight bytes");
        let node = u64::from(word(16)) | u64::from(word(20)) << 32;
        let body = match word(4) {
            FORGET | BATCH_FORGET => return Served::Unawaited,
            INIT => Ok(init(word(IN_HEADER), word(IN_HEADER + 8))),
            _ if node != ROOT => Err(ENOENT),
            LOOKUP => Err(ENOENT),
            GETATTR => Ok(attributes()),
            STATFS => Ok(vec![0; 80]),
            OPENDIR => Ok(vec![0; 16]),
            READDIR | READDIRPLUS | RELEASEDIR | ACCESS => Ok(Vec::new()),
            _ => Err(EROFS),
        };
        let (error, body) = match body {
            Ok(body) => (0, body),
            Err(error) => (-error, Vec::new()),
        };
        // struct fuse_out_header: len, error, unique.
        let mut out = Vec::with_capacity(OUT_HEADER + body.len());
        let length = u32::try_from(OUT_HEADER + body.len()).expect("bodies are those above");
        out.extend(length.to_le_bytes());
        out.extend(error.to_le_bytes());
        out.extend(unique);
        out.extend(body);
        Served::Answered(write(answer, &out))
    }
}

/// struct fuse_init_out for a kernel that speaks `major` and can read ahead so much.
fn init(major: u32, readahead: u32) -> Vec<u8> {
    if major < VERSION.0 {
        // The kernel gives up on one that does not speak its version.
        return [VERSION.0, VERSION.1].iter().flat_map(|word| word.to_le_bytes()).collect();
    }
    // major, minor, max_readahead, flags, max_background and congestion_threshold, max_write, time_gran.
    let words = [VERSION.0, VERSION.1, readahead, 0, 0, MAX_WRITE, 1];
    let mut out: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    out.resize(64, 0);
    out
}

/// struct fuse_attr_out of the root: valid for an hour.
fn attributes() -> Vec<u8> {
    let mut out = Vec::with_capacity(104);
    out.extend(3600_u64.to_le_bytes());
    out.extend([0; 8]);
    // struct fuse_attr: ino; size, blocks and three times; their nanoseconds; mode, nlink, uid, gid, rdev, blksize,
    // flags.
    out.extend(ROOT.to_le_bytes());
    out.extend([0; 5 * 8 + 3 * 4]);
    out.extend([MODE, 2, 0, 0, 0, 4096, 0].iter().flat_map(|word| word.to_le_bytes()));
    out
}

fn write(to: &[VolatileSlice<'_>], bytes: &[u8]) -> usize {
    let mut done = 0;
    for slice in to {
        let n = slice.len().min(bytes.len() - done);
        slice.copy_from(&bytes[done..done + n]);
        done += n;
    }
    done
}
