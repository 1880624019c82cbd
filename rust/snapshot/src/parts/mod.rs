//! A snapshot's files as few compressed blobs that can be fetched in pieces, each of which is checked by itself.
//!
//! A *part* is a stretch of a file: its metadata, its RAM, the pages of RAM that a clone needs first. Of a part, the
//! pages that are sent are packed by [`FRAME_PAGES`] into Zstandard frames, one after another in a blob of the part's
//! own. The [`Table`] says which pages those are, and length and BLAKE3 of each packed frame. Pages that are not sent
//! are zero, or those of another snapshot, the base.
//!
//! A good part of what a guest needs first is its kernel, which every installation has as a file. A frame may be packed
//! [against](Kernel) it: then pages of the kernel, where it was loaded, are the prefix that Zstandard finds matches in.
//! They differ from the file in few bytes (alternatives, static keys), or not at all.
//!
//! Most of the rest is what the guest has read from its root image, which the host needs as well. Such pages are parts
//! of their own, of which it is said [which blocks](Same) they are.

mod kernel;
mod pack;
mod root;
mod table;
#[cfg(test)]
mod tests;
mod unpack;

pub use kernel::Kernel;
pub use pack::{Packed, Wanted, pack};
pub use root::Same;
pub use table::{Frame, Part, Runs, Table};
pub use unpack::Unpacker;

use supermachine_support::to_usize;

use crate::ram::PAGE;

/// Pages of a frame, the last of a part excepted: 256 KiB.
pub const FRAME_PAGES: u64 = 64;
pub(crate) const FRAME_BYTES: usize = to_usize(FRAME_PAGES) * PAGE;
