//! What a guest knows and has open of its shares, as a snapshot holds it, so that a guest that is restored with the
//! same shares goes on with it.
//!
//! It is names and identities. Of what is there no more, or is another file by now, the guest has a stale node or
//! handle, and nothing else is touched. Nothing is looked for before the guest first uses a share.
//!
//! A snapshot may be anybody's: what is in it is held to what a guest could have come to by requests.

use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use supermachine_support::saved_structure;

use crate::Session;
use crate::host::Identity;
use crate::nodes::{FIRST_NODE, Known, MAX_SHARES, share_index};
use crate::users::Place;
use crate::wire::is_component;

/// Nodes at most; of a guest that knows more, those of directories and of what is open are kept.
const MAX_NODES: usize = 1 << 16;
/// What is stale that is told of, at most, and bytes of a path (PATH_MAX).
const MAX_TOLD: usize = 1024;
const MAX_PATH: usize = 4096;

/// Why something that the guest had open is stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It has no name any more, or another one, or its name stands for another file.
    Changed,
    /// It was open for writing, and the share may only be read now.
    ReadOnly,
    /// There is no such share, or it is another directory.
    OtherShare,
    /// The host does not let it be opened.
    Refused,
}

/// Something that the guest had open when it was captured, and has not any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stale {
    /// The number of its share, as it was.
    pub share: u16,
    /// Beneath the share, as it was called; empty for the share itself.
    pub path: Vec<u8>,
    /// What is wrong with it.
    pub why: Why,
}

#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Saved {
    /// The top of each.
    shares: Vec<Identity>,
    nodes: Vec<Known>,
    handles: Vec<Handle>,
}

saved_structure!(Saved { shares: Vec<Identity>, nodes: Vec<Known>, handles: Vec<Handle> });

/// What the guest has open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Handle {
    number: u64,
    node: u64,
    /// For reading (0), writing (1) or both (2).
    access: u8,
    /// Whether a write is to be on the disk when it returns: its contents (1), or all of the file (2).
    sync: u8,
}

saved_structure!(Handle { number: u64, node: u64, access: u8, sync: u8 });

/// How the host opens it.
fn flags(access: u8, sync: u8) -> Option<OFlags> {
    let access = [OFlags::RDONLY, OFlags::WRONLY, OFlags::RDWR].get(usize::from(access))?;
    let sync = [OFlags::empty(), OFlags::DSYNC, OFlags::SYNC].get(usize::from(sync)).copied()?;
    Some(*access | sync)
}

impl Session {
    /// What a snapshot is to hold; empty where the guest knows nothing.
    pub fn save(&self) -> Vec<u8> {
        if let Some(saved) = &self.saved {
            // It has not used any since it was restored.
            return saved.clone();
        }
        let mut nodes: Vec<Known> = self.nodes.saved().collect();
        if nodes.len() > MAX_NODES {
            nodes.retain(|node| node.kind == libc::S_IFDIR || self.nodes.is_open(node.id));
        }
        if nodes.len() > MAX_NODES {
            nodes.clear();
        }
        let handles = self.handles.iter().filter_map(|(number, handle)| {
            let now = rustix::fs::fcntl_getfl(&handle.file).ok().filter(|now| !now.contains(OFlags::PATH))?;
            let access = [OFlags::RDONLY, OFlags::WRONLY, OFlags::RDWR];
            let (access, _) = (0_u8..).zip(access).find(|(_, access)| now & OFlags::RWMODE == *access)?;
            let sync = if now.contains(OFlags::SYNC) { 2 } else { u8::from(now.contains(OFlags::DSYNC)) };
            Some(Handle { number, node: handle.node, access, sync })
        });
        let handles: Vec<Handle> = handles.collect();
        if nodes.is_empty() && handles.is_empty() {
            return Vec::new();
        }
        let shares = self.nodes.shares.iter().map(|share| share.identity).collect();
        postcard::to_stdvec(&Saved { shares, nodes, handles }).unwrap_or_default()
    }

    /// Has a guest go on with what [`Session::save`] gave; before it asks for anything.
    pub fn restore(&mut self, saved: Vec<u8>) {
        if self.nodes.shares.is_empty() {
            // All of it is stale, and nothing will be looked for.
            let saved: Saved = postcard::from_bytes(&saved).unwrap_or_default();
            let stale: Vec<_> = saved.handles.iter().map(|handle| (handle, Why::OtherShare)).collect();
            return self.tell_of_stale(&saved, &[], &stale);
        }
        self.saved = Some(saved).filter(|saved| !saved.is_empty());
    }

    /// What is stale of all that the guest had open; each once, when it is known.
    pub fn stale(&mut self) -> Vec<Stale> {
        std::mem::take(&mut self.stale)
    }

    /// Notes what is stale; `same` are the shares that are what they were.
    fn tell_of_stale(&mut self, saved: &Saved, same: &[bool], stale: &[(&Handle, Why)]) {
        if stale.is_empty() {
            return;
        }
        let nodes: HashMap<u64, &Known> = saved.nodes.iter().map(|node| (node.id, node)).collect();
        for (handle, why) in stale.iter().take(MAX_TOLD) {
            // Of what is in no share nothing can be said.
            let Some((share, path)) = place(&nodes, handle.node) else { continue };
            let is_same = same.get(usize::from(share)) == Some(&true);
            self.stale.push(Stale { share, path, why: if is_same { *why } else { Why::OtherShare } });
        }
    }

    /// The guest uses a share for the first time since it was restored.
    pub(crate) fn take_up(&mut self) {
        let Some(saved) = self.saved.take() else { return };
        // Of another release, say. Then all of it is stale.
        let Ok(saved) = postcard::from_bytes::<Saved>(&saved) else { return };
        let same: Vec<bool> =
            self.nodes.shares.iter().zip(&saved.shares).map(|(share, top)| share.identity == *top).collect();
        for node in saved.nodes.iter().take(MAX_NODES) {
            let is_same = same.get(usize::from(node.share)) == Some(&true);
            let is_placed = match share_index(node.parent) {
                Some(index) => index == node.share,
                None => node.parent >= FIRST_NODE,
            };
            if is_same
                && is_placed
                && node.id >= FIRST_NODE
                && node.lookups > 0
                && is_component(&node.name)
                && let Ok(name) = CString::new(node.name.clone())
            {
                self.nodes.take_up(node, name);
            }
        }
        self.nodes.part_shares();
        let mut stale = Vec::new();
        for handle in &saved.handles {
            match self.reopened(handle) {
                Ok((file, place)) => {
                    self.nodes.opened(handle.node, &file);
                    self.handles.take_up(handle.number, file, handle.node, place);
                }
                Err(why) => stale.push((handle, why)),
            }
        }
        self.tell_of_stale(&saved, &same, &stale);
    }

    fn reopened(&mut self, handle: &Handle) -> Result<(Arc<OwnedFd>, Place), Why> {
        let refused = |error| if error == Errno::STALE { Why::Changed } else { Why::Refused };
        // Whose it is was not kept, and root is nobody's neighbour.
        let place = self.handles.place(0).map_err(refused)?;
        let node = handle.node;
        match share_index(node) {
            // The top of a share that is another one now.
            Some(index) if self.nodes.shares.get(usize::from(index)).is_none() => {
                return Err(Why::OtherShare);
            }
            _ => {}
        }
        let fd = self.nodes.fd(node).map_err(refused)?;
        let stat = crate::host::stat(&fd).map_err(refused)?;
        let file = match u32::from(stat.stx_mode) & libc::S_IFMT {
            libc::S_IFDIR => self.open_beside(node, true).map_err(refused)?,
            libc::S_IFREG => {
                let flags = flags(handle.access, handle.sync).ok_or(Why::Refused)?;
                if flags & OFlags::RWMODE != OFlags::RDONLY {
                    self.nodes.share(node).and_then(|share| share.writable()).map_err(|_| Why::ReadOnly)?;
                }
                let descriptors = self.descriptors().map_err(refused)?;
                descriptors.reopen(&fd, flags).map_err(refused)?
            }
            _ => return Err(Why::Changed),
        };
        Ok((Arc::new(file), place))
    }
}

/// The share that a node was in, and its path there.
fn place(nodes: &HashMap<u64, &Known>, mut node: u64) -> Option<(u16, Vec<u8>)> {
    let mut names: Vec<&[u8]> = Vec::new();
    let mut length = 0;
    loop {
        if let Some(index) = share_index(node) {
            names.reverse();
            return Some((index, names.join(&b'/')));
        }
        let known = nodes.get(&node)?;
        length += known.name.len() + 1;
        // A forged one may lie within itself, and be called anything.
        if length > MAX_PATH || !known.name.is_empty() && !is_component(&known.name) {
            return None;
        }
        names.push(&known.name);
        node = known.parent;
    }
}

const _: () = assert!(MAX_SHARES < 1 << 16);

#[cfg(test)]
mod tests {
    use super::*;

    /// What is in files stays readable. When this fails, a saved structure has changed: read
    /// docs/concepts/snapshot-versioning.md before you change the expectation.
    #[test]
    fn the_encoding_stays() {
        let top = Identity { dev: 1, ino: 2, born: (3, 4) };
        let node = Known {
            id: 300,
            share: 0,
            identity: Identity { dev: 1, ino: 5, born: (-1, 0) },
            parent: 2,
            name: b"name".to_vec(),
            lookups: 7,
            kind: libc::S_IFREG,
        };
        let handle = Handle { number: 9, node: 300, access: 2, sync: 1 };
        let saved = Saved { shares: vec![top], nodes: vec![node], handles: vec![handle] };
        let bytes = [
            1, 1, 2, 6, 4, // shares
            1, 0xac, 2, 0, 1, 5, 1, 0, 2, 4, b'n', b'a', b'm', b'e', 7, 0x80, 0x80, 2, // nodes
            1, 9, 0xac, 2, 2, 1, // handles
        ];
        assert_eq!(postcard::to_stdvec(&saved).unwrap(), bytes);
        assert_eq!(postcard::from_bytes::<Saved>(&bytes).unwrap(), saved);
    }
}
