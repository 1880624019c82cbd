//! Extended attributes as EROFS stores them inline after an inode (Linux, fs/erofs/erofs_fs.h and xattr.h).

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use crate::Error;

/// The number of the empty set.
pub(crate) const NO_XATTRS: u32 = 0;

/// `struct erofs_xattr_ibody_header`.
const HEADER: usize = 12;
/// `i_xattr_icount` is 16 bits of 4-byte units after the first.
const MAX_BODY: usize = HEADER + 4 * (u16::MAX as usize - 1);

/// Prefixes that a number stands for, `EROFS_XATTR_INDEX_*`. The ACL names are whole names.
const PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];

/// Every distinct set once, encoded.
pub(crate) struct Xattrs {
    sets: Vec<Rc<[u8]>>,
    numbers: HashMap<Rc<[u8]>, u32>,
    bytes: u64,
    /// Attributes left out because EROFS has no prefix for them.
    pub dropped: u64,
}

impl Xattrs {
    pub(crate) fn new() -> Self {
        let empty: Rc<[u8]> = Rc::from([]);
        Self { sets: vec![empty.clone()], numbers: HashMap::from([(empty, NO_XATTRS)]), bytes: 0, dropped: 0 }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The bytes between an inode and its data: header and entries, a multiple of 4, or nothing.
    pub(crate) fn encoded(&self, set: u32) -> &[u8] {
        &self.sets[set as usize]
    }

    pub(crate) fn intern(&mut self, file: &[u8], xattrs: Vec<(Vec<u8>, Vec<u8>)>) -> Result<u32, Error> {
        if xattrs.is_empty() {
            return Ok(NO_XATTRS);
        }
        let mut sorted = BTreeMap::new();
        for (name, value) in xattrs {
            let known = PREFIXES.iter().find_map(|(prefix, index)| {
                let rest = name.strip_prefix(*prefix)?;
                let whole = !prefix.ends_with(b".");
                (rest.is_empty() == whole).then(|| (*index, rest.to_vec()))
            });
            match known {
                Some(key) => drop(sorted.insert(key, value)),
                // What the file system cannot name, unpacking tools skip as well (ENOTSUP).
                None => self.dropped += 1,
            }
        }
        if sorted.is_empty() {
            return Ok(NO_XATTRS);
        }
        // Name filter and shared attributes are not used: zero.
        let mut body = vec![0; HEADER];
        for ((index, name), value) in sorted {
            let too_long = || {
                Error::entry(file, "an extended attribute has a name above 255 or a value above 65535 bytes")
            };
            let name_length = u8::try_from(name.len()).map_err(|_| too_long())?;
            let value_size = u16::try_from(value.len()).map_err(|_| too_long())?;
            body.extend_from_slice(&[name_length, index]);
            body.extend_from_slice(&value_size.to_le_bytes());
            body.extend_from_slice(&name);
            body.extend_from_slice(&value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        if body.len() > MAX_BODY {
            return Err(Error::entry(
                file,
                format!("{} bytes of extended attributes; {MAX_BODY} are possible", body.len()),
            ));
        }
        if let Some(number) = self.numbers.get(&body[..]) {
            return Ok(*number);
        }
        let number = u32::try_from(self.sets.len()).expect("each inode has one set at most");
        let body: Rc<[u8]> = Rc::from(body);
        self.bytes += body.len() as u64 + 96;
        self.sets.push(body.clone());
        self.numbers.insert(body, number);
        Ok(number)
    }
}
