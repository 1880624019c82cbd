//! The file server behind the host directories that a guest is given: FUSE requests in, system calls out.
//!
//! One [`Session`] serves all shares of a machine. Its root directory lists them by number ("0", "1" …); the guest's
//! agent mounts it once and binds the shares to where they are wanted. A request is served where it comes out of its
//! queue, with file contents going directly between guest memory and the file.
//!
//! The guest is hostile, and so may be whoever changes the shares on the host: every name is one component that is
//! looked up beneath an open directory, symbolic links are bytes, devices and FIFOs are never opened, and what is kept
//! for the guest is bounded.

#![cfg(target_os = "linux")]

pub mod abi;
mod attributes;
mod contents;
mod directories;
mod echo;
mod extended;
mod guest;
mod handles;
mod host;
mod locks;
mod names;
mod nodes;
mod ofd;
mod owners;
mod quota;
mod saved;
mod sealed;
mod share;
mod users;
mod wire;

use rustix::io::Errno;
use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

use abi::{IN_HEADER, MAX_IO, OUT_HEADER, WRITE_IN, init, op};
use echo::Echoes;
use handles::Handles;
use host::Descriptors;
use locks::Locks;
pub use nodes::MAX_SHARES;
use nodes::Nodes;
pub use owners::Owner;
pub use saved::{Stale, Why};
pub use sealed::{FCHMODAT2, Sealed};
pub use share::{Cache, Share};
use users::Places;
use wire::{Args, Out};

/// Bytes of arguments at most, file contents aside: two names, or the value of an extended attribute.
const MAX_ARGUMENTS: usize = 68 * 1024;
/// Descriptors at most, whatever the process may have.
const MAX_DESCRIPTORS: u64 = 1 << 20;

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// open(2) has refused its path.
    #[error("a share cannot be opened: {0}")]
    Share(Errno),
    /// It is a socket, a pipe or a device.
    #[error("a share is neither a directory nor a regular file; those two can be shared")]
    Kind,
    /// More shares than [`MAX_SHARES`].
    #[error(
        "there are {count} shares and at most {MAX_SHARES} can be had; share a directory that holds several"
    )]
    TooMany {
        /// As many as were asked for.
        count: usize,
    },
    /// setxattr(2) has refused to keep owners beside the files.
    #[error(
        "it can keep no owners of its own, as its file system has no extended attributes (user.*): {0}; share it with \
         owner=\"map\", or a directory on ext4, XFS or Btrfs"
    )]
    Owners(Errno),
    /// Nothing is opened by its descriptor without it.
    #[error("/proc/self/fd cannot be opened: {0}; shares need it to be mounted")]
    Descriptors(Errno),
    /// mmap(2) has refused it.
    #[error("no page below all others can be made, which shares need: {0}; lower vm.mmap_min_addr to 65536")]
    Sealed(Errno),
}

/// Who serves a guest's requests.
pub struct Session {
    nodes: Nodes,
    handles: Handles,
    locks: Locks,
    descriptors: Option<Descriptors>,
    /// Whether any share is.
    watched: bool,
    echoes: Echoes,
    /// What the guest knew when it was captured, until it first uses a share.
    saved: Option<Vec<u8>>,
    /// What of that is stale, until somebody asks.
    stale: Vec<Stale>,
    arguments: Vec<u8>,
    out: Out,
}

/// What has become of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// So many bytes of the answer are written.
    Answered(usize),
    /// Nothing is written, and nobody in the guest waits for it.
    Unawaited,
    /// Who asks waits for a lock: the request is to be served again when [`Session::has_news`], and now and then.
    Later,
}

/// What a request is answered with.
enum Reply {
    /// What has been put together in [`Session::out`].
    Fields,
    /// So many bytes that lie in the answer already, after the header.
    Contents(usize),
    /// Nothing at all.
    Nothing,
    /// Nothing yet.
    Later,
}

/// A request's header.
struct Header {
    opcode: u32,
    unique: u64,
    node: u64,
    /// Who asks, where something is made.
    uid: u32,
    gid: u32,
    thread: u32,
}

impl Session {
    /// A session for these shares, with no more than so many descriptors. A guest that was restored goes on with the
    /// numbers of another session: they are stale but for those that [`Session::restore`] tells of, as this one begins
    /// where `first` says, which is to be random.
    ///
    /// The process masks no permission bits afterwards: the guest has applied its own mask.
    pub fn new(shares: Vec<Share>, descriptors: u64, first: u64) -> Result<Self, Error> {
        if shares.len() > MAX_SHARES {
            return Err(Error::TooMany { count: shares.len() });
        }
        rustix::process::umask(rustix::fs::Mode::empty());
        let descriptors = descriptors.clamp(64, MAX_DESCRIPTORS) as usize;
        // Room for as many numbers as can be given.
        let first = first >> 1;
        if !shares.is_empty() {
            Sealed::get().map_err(Error::Sealed)?;
        }
        // Without shares none is needed: that is every machine's, so it costs nothing.
        let reopening =
            if shares.is_empty() { None } else { Some(Descriptors::new().map_err(Error::Descriptors)?) };
        let watched = shares.iter().any(|share| share.watch);
        Ok(Self {
            // Half for what is open or locked; as pinned nodes are bounded like cached ones, a quarter each for those.
            nodes: Nodes::new(shares, descriptors / 4, first),
            handles: Handles::new(Places::new(descriptors / 2), first),
            locks: Locks::new(),
            descriptors: reopening,
            watched,
            echoes: Echoes::default(),
            saved: None,
            stale: Vec::new(),
            arguments: Vec::new(),
            out: Out::default(),
        })
    }

    /// What is served.
    pub fn shares(&self) -> &[Share] {
        &self.nodes.shares
    }

    /// Serves one request; how many bytes of `answer` it is answered with. No answer is wanted for some, and none can
    /// be given to a request without a header.
    pub fn serve<B: BitmapSlice>(
        &mut self,
        request: &[VolatileSlice<'_, B>],
        answer: &[VolatileSlice<'_, B>],
    ) -> Served {
        let mut header = [0; IN_HEADER];
        if guest::read(request, &mut header) < IN_HEADER {
            return Served::Answered(0);
        }
        let mut fields = Args(&header[4..]);
        let (Ok(opcode), Ok(unique), Ok(node), Ok(uid), Ok(gid), Ok(thread)) =
            (fields.u32(), fields.u64(), fields.u64(), fields.u32(), fields.u32(), fields.u32())
        else {
            return Served::Answered(0);
        };
        let header = Header { opcode, unique, node, uid, gid, thread };
        // The contents of a WRITE stay where they are.
        let most = if opcode == op::WRITE { IN_HEADER + WRITE_IN } else { IN_HEADER + MAX_ARGUMENTS };
        let mut arguments = std::mem::take(&mut self.arguments);
        arguments.resize(guest::length(request).min(most), 0);
        let length = guest::read(request, &mut arguments);
        arguments.truncate(length);
        self.out.0.clear();
        let room = guest::length(answer).saturating_sub(OUT_HEADER);
        let args = Args(arguments.get(IN_HEADER..).unwrap_or_default());
        let reply = self.dispatch(&header, args, request, answer, room);
        self.arguments = arguments;
        let (error, fields, contents) = match reply {
            Ok(Reply::Nothing) => return Served::Unawaited,
            Ok(Reply::Later) => return Served::Later,
            Ok(Reply::Fields) if self.out.0.len() > room => (Errno::NOBUFS.raw_os_error(), 0, 0),
            Ok(Reply::Fields) => (0, self.out.0.len(), 0),
            Ok(Reply::Contents(length)) => (0, 0, length),
            Err(errno) => (errno.raw_os_error(), 0, 0),
        };
        let mut start = Out::default();
        let length = OUT_HEADER + fields + contents;
        start.length(length).u32(error.wrapping_neg().cast_unsigned()).u64(header.unique);
        start.bytes(&self.out.0[..fields]);
        if guest::write(answer, &start.0) < start.0.len() {
            return Served::Answered(0);
        }
        Served::Answered(length)
    }

    fn dispatch<B: BitmapSlice>(
        &mut self,
        header: &Header,
        mut args: Args<'_>,
        request: &[VolatileSlice<'_, B>],
        answer: &[VolatileSlice<'_, B>],
        room: usize,
    ) -> Result<Reply, Errno> {
        let node = header.node;
        if self.saved.is_some() && node != abi::ROOT_ID && !matches!(header.opcode, op::INIT | op::DESTROY) {
            self.take_up();
        }
        if self.watched
            && self.echoes.is_known(header.thread)
            && let Some(echoed) = self.echo(header, Args(args.0))
        {
            return echoed.map(|()| Reply::Fields);
        }
        match header.opcode {
            op::INIT => self.init(&mut args)?,
            op::DESTROY => self.clear(),
            op::FORGET => {
                self.nodes.forget(node, args.u64()?);
                return Ok(Reply::Nothing);
            }
            op::BATCH_FORGET => {
                let count = args.u32()?;
                args.u32()?;
                for _ in 0..count {
                    let (Ok(node), Ok(lookups)) = (args.u64(), args.u64()) else { break };
                    self.nodes.forget(node, lookups);
                }
                return Ok(Reply::Nothing);
            }
            op::INTERRUPT => return Ok(Reply::Nothing),
            op::LOOKUP => self.lookup(header, &mut args)?,
            op::GETATTR => self.getattr(node, &mut args)?,
            op::SETATTR => self.setattr(node, &mut args)?,
            op::READLINK => self.readlink(node)?,
            op::SYMLINK => self.symlink(node, &mut args)?,
            op::MKNOD => self.mknod(header, &mut args)?,
            op::MKDIR => self.mkdir(header, &mut args)?,
            op::UNLINK => self.unlink(node, &mut args, false)?,
            op::RMDIR => self.unlink(node, &mut args, true)?,
            op::RENAME => self.rename(node, &mut args, false)?,
            op::RENAME2 => self.rename(node, &mut args, true)?,
            op::LINK => self.link(node, &mut args)?,
            op::OPEN => self.open(header, &mut args)?,
            op::CREATE => self.create(header, &mut args)?,
            op::TMPFILE => self.tmpfile(header, &mut args)?,
            op::READ => return self.read(node, &mut args, answer, room).map(Reply::Contents),
            op::WRITE => self.write(node, &mut args, request)?,
            op::STATFS => self.statfs(node)?,
            op::RELEASE | op::RELEASEDIR => self.release(args.u64()?),
            op::FLUSH => self.flush(node, &mut args)?,
            op::GETLK => self.getlk(node, &mut args)?,
            op::SETLK | op::SETLKW => {
                let waits = header.opcode == op::SETLKW;
                if !self.setlk(header, &mut args, waits)? {
                    return Ok(Reply::Later);
                }
            }
            op::FSYNC => self.fsync(node, &mut args)?,
            op::FSYNCDIR => self.fsync(node, &mut args)?,
            op::SETXATTR => self.setxattr(node, &mut args)?,
            op::GETXATTR => self.getxattr(node, &mut args)?,
            op::LISTXATTR => self.listxattr(node, &mut args)?,
            op::REMOVEXATTR => self.removexattr(node, &mut args)?,
            op::OPENDIR => self.opendir(header)?,
            op::READDIR => self.readdir(node, &mut args, room, false)?,
            op::READDIRPLUS => self.readdir(node, &mut args, room, true)?,
            op::FALLOCATE => self.fallocate(node, &mut args)?,
            op::LSEEK => self.lseek(node, &mut args)?,
            op::COPY_FILE_RANGE => self.copy_file_range(node, &mut args)?,
            // The guest's kernel does without, and does not ask again.
            _ => return Err(Errno::NOSYS),
        }
        Ok(Reply::Fields)
    }

    /// The session begins. What is offered does not depend on the shares: a guest is restored with others than it was
    /// begun with.
    fn init(&mut self, args: &mut Args<'_>) -> Result<(), Errno> {
        let (major, minor, readahead) = (args.u32()?, args.u32()?, args.u32()?);
        let low = args.u32()?;
        let high = if u64::from(low) & init::INIT_EXT == 0 { 0 } else { args.u32()? };
        self.clear();
        if major > abi::MAJOR {
            // The kernel asks again in a version of ours.
            self.out.u32(abi::MAJOR).u32(abi::MINOR).zeros(56);
            return Ok(());
        }
        if major < abi::MAJOR || minor < abi::MIN_MINOR {
            return Err(Errno::PROTO);
        }
        let offered = init::ASYNC_READ
            | init::POSIX_LOCKS
            | init::FLOCK_LOCKS
            | init::ATOMIC_O_TRUNC
            | init::BIG_WRITES
            | init::AUTO_INVAL_DATA
            | init::DO_READDIRPLUS
            | init::ASYNC_DIO
            | init::PARALLEL_DIROPS
            | init::POSIX_ACL
            | init::MAX_PAGES
            | init::HANDLE_KILLPRIV_V2
            | init::SETXATTR_EXT
            | init::INIT_EXT
            | init::DIRECT_IO_ALLOW_MMAP
            | init::ALLOW_IDMAP;
        let flags = offered & (u64::from(low) | u64::from(high) << 32);
        #[expect(clippy::cast_possible_truncation, reason = "one half after the other")]
        let (low, high) = (flags as u32, (flags >> 32) as u32);
        let out = &mut self.out;
        out.u32(abi::MAJOR).u32(abi::MINOR.min(minor)).u32(readahead).u32(low);
        // max_background, congestion_threshold, max_write, time_gran (1 ns), max_pages, map_alignment.
        out.u16(64).u16(48).u32(MAX_IO).u32(1).u16(abi::MAX_PAGES).u16(0);
        out.u32(high).zeros(28);
        Ok(())
    }

    /// Forgets what the guest knew: its driver starts over.
    pub fn clear(&mut self) {
        self.saved = None;
        self.locks = Locks::new();
        self.echoes = Echoes::default();
        self.nodes.clear();
        self.handles.clear();
    }

    fn descriptors(&self) -> Result<&Descriptors, Errno> {
        self.descriptors.as_ref().ok_or(Errno::STALE)
    }
}
