//! OCI layers to one read-only EROFS image, streamed.
//!
//! [`convert`] reads each layer once, from the lowest to the highest, and never unpacks anything on the host. File
//! contents go straight into the image; names, attributes and block addresses stay in memory, compactly, until the
//! last layer has been laid over the ones below, and are written at the end. What a guest sees in the image is what
//! `umoci unpack` would have put on disk. The same layers give the same bytes.
//!
//! ```no_run
//! use std::ops::ControlFlow;
//! use supermachine_image::{Layer, Limits, convert};
//!
//! let layer = Layer {
//!     path: "blobs/sha256/1234".into(),
//!     offset: 0,
//!     length: 65_000_000,
//!     digest: None,
//!     diff_id: None,
//!     compression: None,
//! };
//! let summary =
//!     convert(&[layer], "image.erofs".as_ref(), &Limits::default(), &mut |_| ControlFlow::Continue(()))?;
//! println!("{} bytes", summary.image_bytes);
//! # Ok::<(), supermachine_image::Error>(())
//! ```

#![cfg_attr(
    test,
    allow(
        clippy::cast_lossless,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        reason = "tests make small numbers and bytes of counters"
    )
)]

mod apply;
mod archive;
mod arena;
mod compression;
mod data;
mod digest;
mod erofs;
mod error;
mod id;
mod layout;
mod limits;
mod media_type;
mod memory;
mod output;
mod source;
mod stream;
mod tar;
mod tree;
mod xattr;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::mpsc;

use apply::Applier;
pub use archive::{TarMember, decompress_archive, index_tar};
pub use compression::Compression;
use data::{Appender, DataArea};
pub use digest::sha256;
pub use error::Error;
pub use limits::Limits;
use output::Output;
pub use source::Layer;
use source::{BUFFERS, LayerStream, decode_all};
use tree::Tree;

/// How far a conversion is. Reported about every 256 KiB of uncompressed data and at the end of each layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The layer at work, from 0.
    pub layer: usize,
    /// How many there are.
    pub layers: usize,
    /// Bytes of blobs read so far, over all layers.
    pub bytes: u64,
    /// Bytes of all blobs.
    pub total_bytes: u64,
}

/// What a conversion made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Size of the image file; a multiple of 4096.
    pub image_bytes: u64,
    /// Files, directories and other inodes in the image.
    pub inodes: u64,
    /// Tar entries read.
    pub entries: u64,
    /// Digest of each layer's uncompressed tar, in the algorithm of [`Layer::diff_id`], SHA-256 when there is none.
    pub diff_ids: Vec<String>,
    /// Extended attributes left out because EROFS cannot name them (only user., trusted., security. and POSIX ACLs).
    pub dropped_xattrs: u64,
}

/// Converts layers, lowest first, to an EROFS image at `output`.
///
/// The image is written beside `output` under a temporary name, synced, and renamed; on any failure the temporary is
/// removed. What kill -9 leaves is removed by the next conversion to the same `output`. An existing file there is
/// replaced atomically. Concurrent conversions to one `output` do not disturb each other; the last one wins.
///
/// # Errors
/// Every kind of [`Error`]; `progress` answering `Break` gives [`Error::Cancelled`].
pub fn convert(
    layers: &[Layer],
    output: &Path,
    limits: &Limits,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Summary, Error> {
    if layers.len() > usize::from(u16::MAX) {
        return Err(Error::Limit {
            limit: "the 16-bit layer number",
            what: "layers",
            value: u64::from(u16::MAX),
            remedy: "merge layers",
        });
    }
    let output = Output::create(output)?;
    let image = output.file.try_clone().map_err(|e| Error::io("open", output.temporary(), e))?;
    let mut image = Appender::new(image, output.temporary().to_owned());
    // The superblock's place.
    image.write(&[0; data::BLOCK])?;
    let spool = Appender::new(output.spool()?, output.temporary().to_owned());
    let mut applier =
        Applier { tree: Tree::new(limits), area: DataArea { image, spool }, limits, entries: 0 };
    let diff_ids = apply_all(layers, limits, progress, &mut applier)?;
    let uuid = digest::uuid_of(diff_ids.iter().map(String::as_str));
    let written = layout::Writer { tree: &mut applier.tree, area: &mut applier.area, uuid }.finish()?;
    output.publish()?;
    Ok(Summary {
        image_bytes: written.bytes,
        inodes: written.inodes,
        entries: applier.entries,
        diff_ids,
        dropped_xattrs: applier.tree.xattrs.dropped,
    })
}

fn apply_all(
    layers: &[Layer],
    limits: &Limits,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    applier: &mut Applier<'_>,
) -> Result<Vec<String>, Error> {
    let (sender, messages) = mpsc::sync_channel(BUFFERS);
    let (spare, spares) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || decode_all(layers, limits, &sender, &spares));
        // Dropped when this closure ends, which ends the decoder too.
        let mut stream = LayerStream::new(layers, messages, spare, progress);
        let mut diff_ids = Vec::with_capacity(layers.len());
        for (i, layer) in layers.iter().enumerate() {
            stream.begin_layer(i);
            // Layer 0 of the tree is the empty root that everything is laid over.
            let number = u16::try_from(i + 1).expect("`convert` refuses more layers");
            let applied = applier.layer(number, &mut stream);
            let applied = match applied {
                // A damaged blob rarely parses; when its digest is wrong as well, that is the better message.
                Err(e @ (Error::Tar { .. } | Error::Entry { .. })) => {
                    Err(match stream.finish_layer(layer.length) {
                        Err(digest @ (Error::DigestMismatch { .. } | Error::Cancelled)) => digest,
                        _ => e,
                    })
                }
                Ok(()) => stream.finish_layer(layer.length),
                Err(e) => Err(e),
            };
            diff_ids.push(applied.map_err(|e| e.in_layer(i, &layer.path))?);
        }
        Ok(diff_ids)
    })
}
