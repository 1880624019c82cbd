//! The disk of the guest's root, between the device that the guest writes to, the file that this goes to, and
//! snapshots.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use supermachine_machine::snapshot::v9::{self, Disk, Elsewhere, OpenedDisk};
use supermachine_machine::{DiskBacking, Machine};
use supermachine_snapshot::v9::{DiskContents, Extents};
use supermachine_storage::ext4;
use supermachine_storage::scratch::{Below, Piece, Scope, Scratch, Sealed};
use supermachine_support::entropy;

use crate::ended::Ended;

/// The slot that the root's disk is in.
pub(crate) const SLOT: u32 = 0;

/// A new disk with a file system, for a guest that boots.
pub(crate) fn make(own: File, bytes: u64) -> Result<Scratch, Ended> {
    let mut uuid = [0; 16];
    entropy(&mut uuid).map_err(|e| Ended::bad(e.to_string()))?;
    let created = crate::boot::now_ns() / 1_000_000_000;
    let identity = ext4::Identity { uuid, created: u32::try_from(created).unwrap_or(u32::MAX) };
    let scratch = Scratch::new(own, bytes, Below::default());
    ext4::write(scratch.bytes(), &identity, ext4::Life::Passing, &mut |data, offset| {
        scratch.write(data, offset)
    })
    .map_err(|e| Ended::bad(format!("the root's disk cannot be made: {e}")))?;
    Ok(scratch)
}

/// The disk that a snapshot has, over what it has of it.
pub(crate) fn restored(own: File, opened: OpenedDisk) -> Scratch {
    let pieces = opened.pieces.into_iter().map(|(disk, file, at)| Piece { disk, file, at });
    let files = opened.files.into_iter().map(Arc::new).collect();
    Scratch::new(own, opened.bytes, Below { pieces: pieces.collect(), files })
}

/// A disk that is as a file has it at first. The file is not changed: what is written goes to `own`, as does what a
/// journal has for the file system.
pub(crate) fn over(file: File, bytes: u64, own: File) -> Scratch {
    let whole = Piece { disk: 0..bytes, file: 0, at: 0 };
    Scratch::new(own, bytes, Below { pieces: vec![whole], files: vec![Arc::new(file)] })
}

/// Puts it into a slot of the machine, before that starts.
pub(crate) fn insert(
    scratch: &Scratch,
    machine: &Machine,
    slot: u32,
) -> Result<(), supermachine_machine::Error> {
    let bytes = scratch.bytes();
    machine.insert_disk(slot as usize, Box::new(Device { scratch: scratch.clone(), bytes }), false)
}

/// The disk at this moment, in which nothing writes to it, for a snapshot that holds so much.
pub(crate) fn sealed(scratch: &Scratch, scope: &v9::Scope, elsewhere: bool) -> io::Result<Disk> {
    if !elsewhere {
        let scope = match scope {
            v9::Scope::Whole { .. } => Scope::Whole,
            v9::Scope::Diff { .. } => Scope::Own,
        };
        return Ok(Disk::Held(Box::new(Contents(scratch.seal(scope, false)))));
    }
    let sealed = scratch.seal(Scope::Whole, true);
    let files = sealed.files().iter().map(|file| v9::identity_of(file)).collect::<io::Result<_>>()?;
    let file = |number| u32::try_from(number).expect("a disk has few layers");
    let pieces = sealed.pieces().iter().map(|piece| (piece.disk.clone(), file(piece.file), piece.at));
    Ok(Disk::Elsewhere(Elsewhere { bytes: sealed.bytes(), files, pieces: pieces.collect() }))
}

/// As the guest's device sees it.
struct Device {
    scratch: Scratch,
    bytes: u64,
}

impl DiskBacking for Device {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read(&mut self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.scratch.read(buffer, offset)
    }

    fn write(&mut self, buffer: &[u8], offset: u64) -> io::Result<()> {
        self.scratch.write(buffer, offset)
    }

    /// The file has no name, so it ends with this process: there is nothing to make last. A snapshot's own are synced.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&mut self, offset: u64, length: u64) -> io::Result<()> {
        self.scratch.discard(offset, length);
        Ok(())
    }

    fn write_zeroes(&mut self, offset: u64, length: u64, _free: bool) -> io::Result<()> {
        self.scratch.zero(offset, length)
    }
}

/// As a snapshot's writer sees it.
struct Contents(Sealed);

impl DiskContents for Contents {
    fn bytes(&self) -> u64 {
        self.0.bytes()
    }

    fn present(&self) -> Extents {
        self.0.present()
    }

    fn zeros(&self) -> Vec<Range<u64>> {
        self.0.zeros().to_vec()
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read(buffer, offset)
    }
}
