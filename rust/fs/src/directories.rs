//! Listing directories.

use std::mem::MaybeUninit;
use std::sync::Arc;

use rustix::fs::{FileType, OFlags, RawDir, SeekFrom};
use rustix::io::Errno;

use crate::abi::ROOT_ID;
use crate::abi::opened::{CACHE_DIR, KEEP_CACHE};
use crate::attributes::ENTRY;
use crate::host;
use crate::nodes::FIRST_SHARE;
use crate::share::Cache;
use crate::wire::Args;
use crate::{Header, Session};

/// Bytes of an entry before its name (`fuse_dirent`).
const ENTRY_HEAD: usize = 24;
/// Bytes of entries that are asked of the host at once. They take more room in the answer, and what finds none is asked
/// for again.
const LISTING: usize = 8 * 1024;
/// Bytes of answer at most.
const MAX_ANSWER: usize = 128 * 1024;
/// What a handle of the session's root is called; it needs none.
const ROOT_HANDLE: u64 = 0;

impl Session {
    pub(crate) fn opendir(&mut self, header: &Header) -> Result<(), Errno> {
        let node = header.node;
        if node == ROOT_ID {
            self.out.u64(ROOT_HANDLE).u32(0).u32(0);
            return Ok(());
        }
        let place = self.handles.place(header.uid)?;
        let fd = self.nodes.fd(node)?;
        let stat = host::stat(&fd)?;
        if u32::from(stat.stx_mode) & libc::S_IFMT != libc::S_IFDIR {
            return Err(Errno::NOTDIR);
        }
        let file = Arc::new(self.descriptors()?.reopen(&fd, OFlags::RDONLY | OFlags::DIRECTORY)?);
        let mut flags = self.cache_flags(node, true);
        if self.nodes.share(node)?.cache == Cache::Auto {
            // Which names there are the guest need not ask again while it goes by what they stand for; after that it is
            // to ask for all of it at once.
            flags |= if self.nodes.is_listed(node, &stat) { CACHE_DIR | KEEP_CACHE } else { CACHE_DIR };
        }
        self.nodes.opened(node, &file);
        let handle = self.handles.insert(file, node, place);
        self.out.u64(handle).u32(flags).u32(0);
        Ok(())
    }

    pub(crate) fn readdir(
        &mut self,
        node: u64,
        args: &mut Args<'_>,
        room: usize,
        plus: bool,
    ) -> Result<(), Errno> {
        let (handle, offset, size) = (args.u64()?, args.u64()?, args.u32()?);
        let room = room.min(size as usize).min(MAX_ANSWER);
        if node == ROOT_ID {
            return self.list_shares(offset, room, plus);
        }
        let open = self.handles.get(handle, node)?;
        let file = open.file.clone();
        if open.position != Some(offset) {
            // An offset is what the host has given with an entry; a wrong one finds nothing or other entries.
            rustix::fs::seek(&file, SeekFrom::Start(offset))?;
        }
        open.position = None;
        let keeps_owners = self.keeps_owners(node);
        let mut buffer = [MaybeUninit::uninit(); LISTING];
        let mut entries = RawDir::new(&file, &mut buffer);
        let mut position = offset;
        let whole = loop {
            if entries.is_buffer_empty() && position != offset && self.out.0.len() > room / 2 {
                break true;
            }
            let Some(entry) = entries.next() else { break true };
            let entry = match entry {
                Ok(entry) => entry,
                // What has been found is said first.
                Err(_) if !self.out.0.is_empty() => break false,
                Err(error) => return Err(error),
            };
            let name = entry.file_name();
            let bytes = name.to_bytes();
            let head = if plus { ENTRY + ENTRY_HEAD } else { ENTRY_HEAD };
            if self.out.0.len() + (head + bytes.len()).next_multiple_of(8) > room {
                break false;
            }
            let (next, mut kind, ino) = (entry.next_entry_cookie(), entry.file_type(), entry.ino());
            // What is kept beside a file may say that it is of another kind.
            if keeps_owners && kind == FileType::RegularFile {
                kind = FileType::Unknown;
            }
            let ino = if plus && !matches!(bytes, b"." | b"..") {
                match host::stat_name(&file, name) {
                    Ok(stat) => {
                        let id = match self.nodes.remember(node, name, &stat) {
                            Ok(id) => id,
                            Err(_) if !self.out.0.is_empty() => break false,
                            Err(error) => return Err(error),
                        };
                        self.entry(id, &stat);
                        self.nodes.inode_number(&stat)
                    }
                    // Gone since it was listed.
                    Err(_) => {
                        position = next;
                        continue;
                    }
                }
            } else {
                if plus {
                    self.out.zeros(ENTRY);
                }
                ino
            };
            self.dirent(ino, next, kind, bytes);
            position = next;
        };
        if whole && let Ok(open) = self.handles.get(handle, node) {
            open.position = Some(position);
        }
        Ok(())
    }

    /// `fuse_dirent`.
    fn dirent(&mut self, ino: u64, next: u64, kind: FileType, name: &[u8]) {
        // DT_UNKNOWN, for which the guest asks.
        let kind = if kind == FileType::Unknown { 0 } else { kind.as_raw_mode() >> 12 };
        self.out.u64(ino).u64(next).length(name.len()).u32(kind).bytes(name);
        self.out.zeros(self.out.0.len().next_multiple_of(8) - self.out.0.len());
    }

    /// The session's root: one name a share.
    fn list_shares(&mut self, offset: u64, room: usize, plus: bool) -> Result<(), Errno> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(self.nodes.shares.len());
        for index in from..self.nodes.shares.len() {
            let head = if plus { ENTRY + ENTRY_HEAD } else { ENTRY_HEAD };
            if self.out.0.len() + head + 8 > room {
                break;
            }
            if plus {
                self.out.zeros(ENTRY);
            }
            let id = FIRST_SHARE + index as u64;
            let kind = if self.nodes.share(id)?.is_dir { FileType::Directory } else { FileType::RegularFile };
            self.dirent(id, index as u64 + 1, kind, index.to_string().as_bytes());
        }
        Ok(())
    }
}
