//! Pages of RAM that are blocks of the guest's root image: what it has read is in memory as it is on disk. Whoever has
//! the image takes them from there, and others fetch them as they do all pages.
//!
//! An image is not believed to be the one that was meant: each frame of pages has a digest, and what is another is not
//! taken.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;

use supermachine_support::to_usize;

use super::pack::append;
use super::table::{decode_runs, put_runs};
use super::{FRAME_PAGES, Part, Runs};
use crate::codec::Cursor;
use crate::ram::{self, PAGE, Watch};
use crate::{Digest32, Error, Result, Source};

const NAME: &str = "the list of the root image's blocks";

/// Pages of a part, and the blocks that they are, in one order: that of the blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Same {
    /// Counted from where RAM begins.
    pub pages: Runs,
    /// As many; a block may be there more than once.
    pub blocks: Runs,
}

impl Same {
    /// The pages of `source`, whose RAM begins at `ram.start`, that are blocks of `root`: of the pages in `first`, and
    /// of the others. Of the others not those that `base`, whose RAM begins there, has at the same place.
    pub fn find(
        source: &File,
        ram: Range<u64>,
        root: &File,
        first: &[Range<u64>],
        base: Option<(&File, u64)>,
        watch: Watch<'_>,
    ) -> Result<[Self; 2]> {
        let blocks = index(root, watch)?;
        let mut first = first.to_vec();
        first.sort_unstable_by_key(|run| run.start);
        let mut found = [vec![], vec![]];
        let mut beside = vec![0; PAGE];
        ram::read_data(source, ram, watch, |offset, bytes| {
            for (n, page) in bytes.chunks_exact(PAGE).enumerate() {
                let number = offset / PAGE as u64 + n as u64;
                let Some(block) = (!ram::is_zero(page)).then(|| blocks.get(&Digest32::of(page))).flatten()
                else {
                    continue;
                };
                let at = first.partition_point(|run| run.end <= number);
                let is_first = first.get(at).is_some_and(|run| run.contains(&number));
                if let (false, Some((file, origin))) = (is_first, base) {
                    let at = origin + number * PAGE as u64;
                    file.fill_at(&mut beside, at).map_err(Error::io("read the base of"))?;
                    if beside == page {
                        continue;
                    }
                }
                found[usize::from(!is_first)].push((*block, number));
            }
            Ok(())
        })?;
        Ok(found.map(|mut found| {
            found.sort_unstable();
            let mut same = Self::default();
            for (block, page) in found {
                append(&mut same.blocks, block);
                append(&mut same.pages, page);
            }
            same
        }))
    }

    /// Which blocks they are and the digest of each frame of them, as [`super::Unpacker::from_root`] takes it.
    pub fn describe(&self, source: &File, ram: u64) -> Result<Vec<u8>> {
        let mut out = vec![];
        put_runs(&self.blocks, &mut out);
        let mut frame = vec![];
        for number in self.pages.iter().cloned().flatten() {
            let before = frame.len();
            frame.resize(before + PAGE, 0);
            let at = ram + number * PAGE as u64;
            source.fill_at(&mut frame[before..], at).map_err(Error::io("read the RAM of"))?;
            if frame.len() == to_usize(FRAME_PAGES) * PAGE {
                out.extend(Digest32::of(&frame).0);
                frame.clear();
            }
        }
        if !frame.is_empty() {
            out.extend(Digest32::of(&frame).0);
        }
        Ok(out)
    }
}

/// Where the first block with these contents is, of those that are not zero.
fn index(root: &File, watch: Watch<'_>) -> Result<HashMap<Digest32, u64>> {
    let length = root.length().map_err(Error::io("read the root image of"))?;
    let mut blocks = HashMap::new();
    ram::read_data(root, 0..length - length % PAGE as u64, watch, |offset, bytes| {
        for (n, block) in bytes.chunks_exact(PAGE).enumerate() {
            if !ram::is_zero(block) {
                blocks.entry(Digest32::of(block)).or_insert(offset / PAGE as u64 + n as u64);
            }
        }
        Ok(())
    })?;
    Ok(blocks)
}

/// Reads what [`Same::describe`] wrote of this part; calls `take` with each frame that is as it says, until one is not.
/// How many were.
pub(super) fn frames(
    part: &Part,
    root: &dyn Source,
    said: &[u8],
    mut take: impl FnMut(usize, &[u8]) -> Result<()>,
) -> Result<usize> {
    let mut cursor = Cursor::new(NAME, said, 0);
    let blocks = decode_runs(&mut cursor, u64::MAX / PAGE as u64)?;
    let count = blocks.iter().try_fold(0_u64, |sum, run| sum.checked_add(run.end - run.start));
    if count != Some(part.pages()) {
        return Err(cursor.invalid("it has not as many as the part has pages"));
    }
    let digests = part.frames.iter().map(|_| cursor.array().map(Digest32)).collect::<Result<Vec<_>>>()?;
    cursor.end()?;
    let mut blocks = blocks.into_iter();
    let mut run = 0..0;
    let mut frame = vec![];
    for (number, digest) in digests.iter().enumerate() {
        frame.resize(to_usize(part.frame_pages(number)) * PAGE, 0);
        let mut rest = &mut frame[..];
        while !rest.is_empty() {
            if run.is_empty() {
                run = blocks.next().expect("there are as many blocks as pages");
            }
            let count = (run.end - run.start).min((rest.len() / PAGE) as u64);
            let (now, later) = rest.split_at_mut(to_usize(count) * PAGE);
            // An image that ends before is another one.
            if root.fill_at(now, run.start * PAGE as u64).is_err() {
                return Ok(number);
            }
            run.start += count;
            rest = later;
        }
        if Digest32::of(&frame) != *digest {
            return Ok(number);
        }
        take(number, &frame)?;
    }
    Ok(digests.len())
}
