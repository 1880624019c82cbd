//! Extended attributes: those of users, and access control lists. What the host's kernel goes by (security.*,
//! trusted.*) is not the guest's to see or to set.

use std::ffi::CStr;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use crate::wire::Args;
use crate::{Session, owners};

/// The kernel's own limits (XATTR_SIZE_MAX, XATTR_LIST_MAX).
const MAX_VALUE: usize = 64 * 1024;

/// Access control lists.
const LISTS: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];

/// Whether the guest may see and set an attribute. Where owners are kept, lists of the host's do not go with them.
fn shared(name: &[u8], keeps_owners: bool) -> bool {
    let users = name.starts_with(b"user.") && !name.starts_with(owners::RESERVED);
    users || !keeps_owners && LISTS.contains(&name)
}

/// Why the guest is not told of an attribute that it may not see: of those kinds that every file system has, there is
/// none.
fn hidden(name: &[u8]) -> Errno {
    let common = [&b"security."[..], b"trusted.", owners::RESERVED];
    let absent = common.iter().any(|start| name.starts_with(start)) || LISTS.contains(&name);
    if absent { Errno::NODATA } else { Errno::OPNOTSUPP }
}

impl Session {
    fn check(&self, node: u64, name: &CStr) -> Result<(), Errno> {
        if shared(name.to_bytes(), self.keeps_owners(node)) { Ok(()) } else { Err(Errno::OPNOTSUPP) }
    }

    pub(crate) fn setxattr(&mut self, node: u64, args: &mut Args<'_>) -> Result<(), Errno> {
        let (size, flags, _, _) = (args.u32()?, args.u32()?, args.u32()?, args.u32()?);
        let name = args.text()?;
        let value = args.0.get(..size as usize).ok_or(Errno::INVAL)?;
        self.check(node, name)?;
        self.nodes.share(node)?.writable()?;
        self.wants_room(node)?;
        let flags = XattrFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        let file = self.open_beside(node, false)?;
        let before = self.taken(node, &file);
        let done = rustix::fs::fsetxattr(&file, name, value, flags);
        self.count(node, before, self.taken(node, &file));
        self.own_change(node, &file);
        done
    }

    pub(crate) fn removexattr(&mut self, node: u64, args: &mut Args<'_>) -> Result<(), Errno> {
        let name = args.text()?;
        self.check(node, name)?;
        self.nodes.share(node)?.writable()?;
        let file = self.open_beside(node, false)?;
        let done = rustix::fs::fremovexattr(&file, name);
        self.own_change(node, &file);
        done
    }

    pub(crate) fn getxattr(&mut self, node: u64, args: &mut Args<'_>) -> Result<(), Errno> {
        let (size, _) = (args.u32()?, args.u32()?);
        let name = args.text()?;
        self.check(node, name).map_err(|_| hidden(name.to_bytes()))?;
        let file = match self.open_beside(node, false) {
            Ok(file) => file,
            Err(Errno::OPNOTSUPP) => return Err(Errno::NODATA),
            Err(error) => return Err(error),
        };
        let mut value = vec![0; MAX_VALUE];
        let length = match rustix::fs::fgetxattr(file, name, &mut value[..]) {
            // The guest's kernel asks for lists before it permits anything, and takes another answer for a failure.
            Err(Errno::OPNOTSUPP) if LISTS.contains(&name.to_bytes()) => return Err(Errno::NODATA),
            length => length?,
        };
        self.sized(size, &value[..length])
    }

    pub(crate) fn listxattr(&mut self, node: u64, args: &mut Args<'_>) -> Result<(), Errno> {
        let (size, _) = (args.u32()?, args.u32()?);
        let file = match self.open_beside(node, false) {
            Ok(file) => file,
            Err(Errno::OPNOTSUPP) => return self.sized(size, &[]),
            Err(error) => return Err(error),
        };
        let keeps_owners = self.keeps_owners(node);
        let mut list = vec![0; MAX_VALUE];
        let length = rustix::fs::flistxattr(file, &mut list[..])?;
        let names = list[..length].split_inclusive(|byte| *byte == 0);
        let names: Vec<u8> =
            names.filter(|name| shared(&name[..name.len() - 1], keeps_owners)).flatten().copied().collect();
        self.sized(size, &names)
    }

    /// Answers with the value, or how long it is to who has no room.
    fn sized(&mut self, size: u32, value: &[u8]) -> Result<(), Errno> {
        if size == 0 {
            self.out.length(value.len()).u32(0);
        } else if value.len() > size as usize {
            return Err(Errno::RANGE);
        } else {
            self.out.bytes(value);
        }
        Ok(())
    }
}
