//! Extended attributes: those of users, and access control lists. What the host's kernel goes by (security.*, trusted.*)
//! is not the guest's to see or to set.

use std::ffi::CStr;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use crate::Session;
use crate::wire::Args;

/// The kernel's own limits (XATTR_SIZE_MAX, XATTR_LIST_MAX).
const MAX_VALUE: usize = 64 * 1024;

/// Whether the guest may see and set an attribute.
fn shared(name: &[u8]) -> bool {
    name.starts_with(b"user.") || name == b"system.posix_acl_access" || name == b"system.posix_acl_default"
}

fn check(name: &CStr) -> Result<(), Errno> {
    if shared(name.to_bytes()) { Ok(()) } else { Err(Errno::OPNOTSUPP) }
}

impl Session {
    pub(crate) fn setxattr(&mut self, node: u64, args: &mut Args<'_>) -> Result<(), Errno> {
        let (size, flags, _, _) = (args.u32()?, args.u32()?, args.u32()?, args.u32()?);
        let name = args.text()?;
        let value = args.0.get(..size as usize).ok_or(Errno::INVAL)?;
        check(name)?;
        self.nodes.share(node)?.writable()?;
        let flags = XattrFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        rustix::fs::fsetxattr(self.open_beside(node, false)?, name, value, flags)
    }

    pub(crate) fn removexattr(&mut self, node: u64, args: &mut Args<'_>) -> Result<(), Errno> {
        let name = args.text()?;
        check(name)?;
        self.nodes.share(node)?.writable()?;
        rustix::fs::fremovexattr(self.open_beside(node, false)?, name)
    }

    pub(crate) fn getxattr(&mut self, node: u64, args: &mut Args<'_>) -> Result<(), Errno> {
        let (size, _) = (args.u32()?, args.u32()?);
        let name = args.text()?;
        check(name).map_err(|_| Errno::NODATA)?;
        let file = match self.open_beside(node, false) {
            Ok(file) => file,
            Err(Errno::OPNOTSUPP) => return Err(Errno::NODATA),
            Err(error) => return Err(error),
        };
        let mut value = vec![0; MAX_VALUE];
        let length = rustix::fs::fgetxattr(file, name, &mut value[..])?;
        self.sized(size, &value[..length])
    }

    pub(crate) fn listxattr(&mut self, node: u64, args: &mut Args<'_>) -> Result<(), Errno> {
        let (size, _) = (args.u32()?, args.u32()?);
        let file = match self.open_beside(node, false) {
            Ok(file) => file,
            Err(Errno::OPNOTSUPP) => return self.sized(size, &[]),
            Err(error) => return Err(error),
        };
        let mut list = vec![0; MAX_VALUE];
        let length = rustix::fs::flistxattr(file, &mut list[..])?;
        let names = list[..length].split_inclusive(|byte| *byte == 0);
        let names: Vec<u8> =
            names.filter(|name| shared(&name[..name.len() - 1])).flatten().copied().collect();
        self.sized(size, &names)
    }

    /// Answers with the value, or how long it is to who has no room.
    fn sized(&mut self, size: u32, value: &[u8]) -> Result<(), Errno> {
        if size == 0 {
            self.out.u32(value.len() as u32).u32(0);
        } else if value.len() > size as usize {
            return Err(Errno::RANGE);
        } else {
            self.out.bytes(value);
        }
        Ok(())
    }
}
