//! A guest's kernel as far as the protocol goes: requests in, answers out, with scattered buffers.
#![allow(dead_code, reason = "each test file uses some of it")]

use std::path::Path;

use supermachine_fs::abi::{IN_HEADER, OUT_HEADER, op};
use supermachine_fs::{Cache, Served, Session, Share};
use vm_memory::VolatileSlice;

pub(crate) const SHARE: u64 = 2;
pub(crate) type Answer = Result<Vec<u8>, i32>;

pub(crate) struct Client {
    pub session: Session,
    pub unique: u64,
    /// Which of the guest's asks, and whose it is.
    pub thread: u32,
    pub user: u32,
    /// What became of the last request.
    pub served: Served,
}

/// What `fuse_entry_out` or `fuse_attr_out` says of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub ino: u64,
    pub size: u64,
    pub mode: u32,
    pub nlink: u32,
    pub mtime: (u64, u32),
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

pub(crate) fn attributes(bytes: &[u8]) -> Attributes {
    Attributes {
        ino: u64_at(bytes, 0),
        size: u64_at(bytes, 8),
        mode: u32_at(bytes, 60),
        nlink: u32_at(bytes, 64),
        mtime: (u64_at(bytes, 32), u32_at(bytes, 52)),
    }
}

pub(crate) fn share(path: &Path, read_only: bool) -> Share {
    Share::open(path, read_only, Cache::Auto).unwrap()
}

/// The bytes of these numbers, one after the other: the arguments of a request.
#[macro_export]
macro_rules! args {
    ($($value:expr),* $(,)?) => {{
        #[allow(unused_mut, reason = "without a value nothing is pushed")]
        let mut bytes: Vec<u8> = Vec::new();
        $(bytes.extend_from_slice(&$value.to_le_bytes());)*
        bytes
    }};
}

pub(crate) fn named(mut args: Vec<u8>, names: &[&[u8]]) -> Vec<u8> {
    for name in names {
        args.extend_from_slice(name);
        args.push(0);
    }
    args
}

impl Client {
    pub(crate) fn new(shares: Vec<Share>) -> Self {
        let mut client = Self {
            session: Session::new(shares, 4096, 0).unwrap(),
            unique: 0,
            thread: 0,
            user: 0,
            served: Served::Later,
        };
        client.init().unwrap();
        client
    }

    pub(crate) fn init(&mut self) -> Answer {
        let mut args = args!(7_u32, 41_u32, 1_u32 << 20, u32::MAX, u32::MAX);
        args.resize(64, 0);
        self.call(op::INIT, 0, &args)
    }

    /// Sends a request as it is; its answer as it is.
    pub(crate) fn raw(&mut self, mut request: Vec<u8>, room: usize) -> Vec<u8> {
        let mut answer = vec![0xee; room];
        self.served = {
            let request = scattered(&mut request, 23);
            let answer = scattered(&mut answer, 4096 - 16);
            self.session.serve(&request, &answer)
        };
        let Served::Answered(length) = self.served else { return Vec::new() };
        answer.truncate(length);
        answer
    }

    pub(crate) fn call_with_room(&mut self, opcode: u32, node: u64, args: &[u8], room: usize) -> Answer {
        self.unique += 2;
        let mut request = args!((IN_HEADER + args.len()) as u32, opcode, self.unique, node);
        request.extend_from_slice(&args!(self.user, 0_u32, self.thread));
        request.resize(IN_HEADER, 0);
        request.extend_from_slice(args);
        let answer = self.raw(request, OUT_HEADER + room);
        if answer.is_empty() {
            return Ok(answer);
        }
        assert_eq!(u32_at(&answer, 0) as usize, answer.len());
        assert_eq!(u64_at(&answer, 8), self.unique);
        match u32_at(&answer, 4) as i32 {
            0 => Ok(answer[OUT_HEADER..].to_vec()),
            error => {
                assert_eq!(answer.len(), OUT_HEADER);
                Err(-error)
            }
        }
    }

    pub(crate) fn call(&mut self, opcode: u32, node: u64, args: &[u8]) -> Answer {
        self.call_with_room(opcode, node, args, 72 * 1024)
    }

    pub(crate) fn lookup(&mut self, parent: u64, name: &[u8]) -> Result<(u64, Attributes), i32> {
        entry(self.call(op::LOOKUP, parent, &named(vec![], &[name])))
    }

    /// The node of a path below a share; looked up anew, as when the kernel's cache has run out.
    pub(crate) fn walk(&mut self, share: u64, path: &[u8]) -> Result<u64, i32> {
        let mut node = share;
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            node = self.lookup(node, name)?.0;
        }
        Ok(node)
    }

    pub(crate) fn getattr(&mut self, node: u64) -> Result<Attributes, i32> {
        self.call(op::GETATTR, node, &[0; 16]).map(|answer| attributes(&answer[16..]))
    }

    pub(crate) fn setattr(&mut self, node: u64, valid: u32, size: u64, mode: u32) -> Result<Attributes, i32> {
        let mut args =
            args!(valid, 0_u32, 0_u64, size, 0_u64, 0_u64, 0_u64, 0_u64, 0_u32, 0_u32, 0_u32, mode);
        args.resize(88, 0);
        self.call(op::SETATTR, node, &args).map(|answer| attributes(&answer[16..]))
    }

    pub(crate) fn create(
        &mut self,
        parent: u64,
        name: &[u8],
        flags: u32,
        mode: u32,
    ) -> Result<(u64, u64), i32> {
        let args = named(args!(flags, mode, 0_u32, 0_u32), &[name]);
        self.call(op::CREATE, parent, &args).map(|answer| (u64_at(&answer, 0), u64_at(&answer, 128)))
    }

    pub(crate) fn open(&mut self, node: u64, flags: u32) -> Result<u64, i32> {
        self.call(op::OPEN, node, &args!(flags, 0_u32)).map(|answer| u64_at(&answer, 0))
    }

    pub(crate) fn release(&mut self, node: u64, handle: u64) {
        self.call(op::RELEASE, node, &args!(handle, 0_u64, 0_u64)).unwrap();
    }

    pub(crate) fn read(&mut self, node: u64, handle: u64, offset: u64, size: u32) -> Answer {
        let args = args!(handle, offset, size, 0_u32, 0_u64, 0_u32, 0_u32);
        self.call_with_room(op::READ, node, &args, size as usize)
    }

    pub(crate) fn write(&mut self, node: u64, handle: u64, offset: u64, data: &[u8]) -> Result<u32, i32> {
        self.write_as(node, handle, offset, data, (0, 0))
    }

    /// With flags of the write itself (`FUSE_WRITE_*`) and of the open file.
    pub(crate) fn write_as(
        &mut self,
        node: u64,
        handle: u64,
        offset: u64,
        data: &[u8],
        (flags, open_flags): (u32, u32),
    ) -> Result<u32, i32> {
        let mut args = args!(handle, offset, data.len() as u32, flags, 0_u64, open_flags, 0_u32);
        args.extend_from_slice(data);
        self.call(op::WRITE, node, &args).map(|answer| u32_at(&answer, 0))
    }

    pub(crate) fn mkdir(&mut self, parent: u64, name: &[u8], mode: u32) -> Result<u64, i32> {
        entry(self.call(op::MKDIR, parent, &named(args!(mode, 0_u32), &[name]))).map(|entry| entry.0)
    }

    pub(crate) fn mknod(&mut self, parent: u64, name: &[u8], mode: u32) -> Result<u64, i32> {
        let args = named(args!(mode, 0_u32, 0_u32, 0_u32), &[name]);
        entry(self.call(op::MKNOD, parent, &args)).map(|entry| entry.0)
    }

    pub(crate) fn symlink(&mut self, parent: u64, name: &[u8], target: &[u8]) -> Result<u64, i32> {
        entry(self.call(op::SYMLINK, parent, &named(vec![], &[name, target]))).map(|entry| entry.0)
    }

    pub(crate) fn readlink(&mut self, node: u64) -> Answer {
        self.call(op::READLINK, node, &[])
    }

    pub(crate) fn link(&mut self, node: u64, parent: u64, name: &[u8]) -> Result<u64, i32> {
        entry(self.call(op::LINK, parent, &named(args!(node), &[name]))).map(|entry| entry.0)
    }

    pub(crate) fn unlink(&mut self, parent: u64, name: &[u8]) -> Result<(), i32> {
        self.call(op::UNLINK, parent, &named(vec![], &[name])).map(drop)
    }

    pub(crate) fn rmdir(&mut self, parent: u64, name: &[u8]) -> Result<(), i32> {
        self.call(op::RMDIR, parent, &named(vec![], &[name])).map(drop)
    }

    pub(crate) fn rename(&mut self, from: (u64, &[u8]), to: (u64, &[u8]), flags: u32) -> Result<(), i32> {
        let args = named(args!(to.0, flags, 0_u32), &[from.1, to.1]);
        self.call(op::RENAME2, from.0, &args).map(drop)
    }

    pub(crate) fn setxattr(&mut self, node: u64, name: &[u8], value: &[u8]) -> Result<(), i32> {
        let mut args = named(args!(value.len() as u32, 0_u32, 0_u32, 0_u32), &[name]);
        args.extend_from_slice(value);
        self.call(op::SETXATTR, node, &args).map(drop)
    }

    pub(crate) fn getxattr(&mut self, node: u64, name: &[u8]) -> Answer {
        self.call(op::GETXATTR, node, &named(args!(65536_u32, 0_u32), &[name]))
    }

    pub(crate) fn forget(&mut self, node: u64, lookups: u64) {
        assert_eq!(self.call(op::FORGET, node, &args!(lookups)), Ok(vec![]));
    }

    /// All names of a directory, asked for with so much room at a time.
    pub(crate) fn list(&mut self, node: u64, room: u32, plus: bool) -> Result<Vec<Vec<u8>>, i32> {
        let handle = u64_at(&self.call(op::OPENDIR, node, &[0; 8])?, 0);
        let (mut names, mut offset) = (Vec::new(), 0_u64);
        loop {
            let args = args!(handle, offset, room, 0_u32, 0_u64, 0_u32, 0_u32);
            let opcode = if plus { op::READDIRPLUS } else { op::READDIR };
            let answer = self.call_with_room(opcode, node, &args, room as usize)?;
            if answer.is_empty() {
                break;
            }
            let mut left = &answer[..];
            while !left.is_empty() {
                let head = if plus { 128 } else { 0 };
                let length = u32_at(left, head + 16) as usize;
                let name = left[head + 24..head + 24 + length].to_vec();
                offset = u64_at(left, head + 8);
                let known = plus && u64_at(left, 0) != 0;
                assert_eq!(known, plus && node != 1 && name != b"." && name != b"..");
                if known {
                    self.forget(u64_at(left, 0), 1);
                }
                names.push(name);
                left = &left[(head + 24 + length).next_multiple_of(8)..];
            }
        }
        self.call(op::RELEASEDIR, node, &args!(handle, 0_u64, 0_u64)).unwrap();
        Ok(names)
    }
}

fn entry(answer: Answer) -> Result<(u64, Attributes), i32> {
    answer.map(|answer| (u64_at(&answer, 0), attributes(&answer[40..])))
}

/// The buffer in parts of no more than `size` bytes.
fn scattered(buffer: &mut [u8], size: usize) -> Vec<VolatileSlice<'_, ()>> {
    buffer.chunks_mut(size.max(1)).map(VolatileSlice::from).collect()
}
