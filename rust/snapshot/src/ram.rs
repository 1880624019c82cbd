//! Guest RAM in a file: zero pages are holes, and what is not zero has one digest whatever the file system makes of it.

use std::ops::{ControlFlow, Range};

use crate::{Digest32, Error, Result, Source};

/// The unit of holes, extents and digests, in bytes, whatever the page size of host or guest.
pub const PAGE: usize = 4096;

/// The most that is read at once.
pub(crate) const CHUNK: usize = 1 << 20;

static ZEROS: [u8; PAGE] = [0; PAGE];

/// Whether all bytes are zero. Ends at the first that is not; as fast as memory can be read otherwise.
pub fn is_zero(bytes: &[u8]) -> bool {
    // A comparison of slices is the C library's memcmp, which uses the widest vectors there are.
    bytes.chunks(PAGE).all(|page| *page == ZEROS[..page.len()])
}

/// The stretches of pages that are not zero, as byte ranges of `bytes`, whose length is a multiple of [`PAGE`].
pub(crate) fn runs(bytes: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let zero = |at: usize| is_zero(&bytes[at..(at + PAGE).min(bytes.len())]);
        while at < bytes.len() && zero(at) {
            at += PAGE;
        }
        let start = at;
        while at < bytes.len() && !zero(at) {
            at += PAGE;
        }
        (start < at).then(|| start..at.min(bytes.len()))
    })
}

/// Where `range` of the source may hold something else than zeros, in whole pages counted from the range's start.
pub fn data_extents<S: Source + ?Sized>(
    source: &S,
    range: Range<u64>,
) -> impl Iterator<Item = Result<Range<u64>>> + '_ {
    let mut at = range.start;
    std::iter::from_fn(move || {
        if at >= range.end {
            return None;
        }
        let found = next_data(source, at, &range);
        at = match &found {
            Ok(Some(extent)) => extent.end,
            _ => range.end,
        };
        found.transpose()
    })
}

fn next_data<S: Source + ?Sized>(source: &S, at: u64, range: &Range<u64>) -> Result<Option<Range<u64>>> {
    const PAGE: u64 = self::PAGE as u64;
    let found = source.next_data(at..range.end).map_err(Error::io("find the data of"))?;
    Ok(found.map(|data| {
        // Blocks of a file system may be smaller than a page, and the range may begin amid one.
        let start = range.start + (data.start - range.start) / PAGE * PAGE;
        let end = range.start + (data.end - range.start).div_ceil(PAGE).saturating_mul(PAGE);
        start.max(at)..end.min(range.end)
    }))
}

/// Digest of a RAM, fed from its start to its end.
///
/// With the pages that hold a byte other than zero, in ascending order: `BLAKE3(P ‖ R)`, where `P` is the BLAKE3 of
/// their contents and `R` that of the maximal runs that they form, each as first page and number of pages, u64s.
#[derive(Default)]
pub(crate) struct RamHasher {
    contents: blake3::Hasher,
    layout: blake3::Hasher,
    /// The run that goes on: first page, end.
    run: Option<Range<u64>>,
    /// Bytes of pages that are not zero.
    pub data_bytes: u64,
}

impl RamHasher {
    /// Takes bytes at `offset` of the RAM, both multiples of [`PAGE`].
    pub(crate) fn update(&mut self, offset: u64, bytes: &[u8]) {
        for run in runs(bytes) {
            self.contents.update(&bytes[run.clone()]);
            self.data_bytes += run.len() as u64;
            let first = (offset + run.start as u64) / PAGE as u64;
            let end = (offset + run.end as u64) / PAGE as u64;
            match &mut self.run {
                Some(run) if run.end == first => run.end = end,
                _ => {
                    self.end_run();
                    self.run = Some(first..end);
                }
            }
        }
    }

    fn end_run(&mut self) {
        if let Some(run) = self.run.take() {
            self.layout.update(&run.start.to_le_bytes());
            self.layout.update(&(run.end - run.start).to_le_bytes());
        }
    }

    pub(crate) fn finish(mut self) -> Digest32 {
        self.end_run();
        let mut all = blake3::Hasher::new();
        all.update(self.contents.finalize().as_bytes());
        all.update(self.layout.finalize().as_bytes());
        all.finalize().into()
    }
}

/// Calls `each` with every stretch of `range` that is not a hole, as offset in the range and bytes, in order, at most
/// [`CHUNK`] at a time. `watch` hears before each how far this is and may end it.
pub(crate) fn read_data(
    source: &dyn Source,
    range: Range<u64>,
    watch: Watch,
    mut each: impl FnMut(u64, &[u8]) -> Result<()>,
) -> Result<()> {
    let mut buffer = vec![0; CHUNK.min(usize::try_from(range.end - range.start).unwrap_or(CHUNK))];
    for extent in data_extents(source, range.clone()) {
        let extent = extent?;
        let mut at = extent.start;
        while at < extent.end {
            if watch(at - range.start).is_break() {
                return Err(Error::Cancelled);
            }
            let chunk = &mut buffer[..usize::try_from(extent.end - at).map_or(CHUNK, |left| left.min(CHUNK))];
            source.fill_at(chunk, at).map_err(Error::io("read the RAM of"))?;
            each(at - range.start, chunk)?;
            at += chunk.len() as u64;
        }
    }
    Ok(())
}

/// Hears, at least every few milliseconds, at which byte something long is, and may end it: [`Error::Cancelled`].
pub type Watch<'a> = &'a mut dyn FnMut(u64) -> ControlFlow<()>;

/// Lets things take their time.
pub(crate) fn patient(_: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Digest of the RAM at `range` of the source, and the bytes of pages that are not zero.
pub(crate) fn digest(source: &dyn Source, range: Range<u64>) -> Result<(Digest32, u64)> {
    let mut hasher = RamHasher::default();
    read_data(source, range, &mut patient, |offset, bytes| {
        hasher.update(offset, bytes);
        Ok(())
    })?;
    let data_bytes = hasher.data_bytes;
    Ok((hasher.finish(), data_bytes))
}

/// A stretch of RAM and the layer of a chain that it is to be taken from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Bytes of RAM; at the same distance from the layer's `ram_offset` in its file.
    pub ram: Range<u64>,
    /// 0 is the base.
    pub layer: usize,
}

/// Lays the extents of one more layer over pieces; both sorted and without overlaps.
pub(crate) fn overlay(below: Vec<Piece>, extents: &[Range<u64>], layer: usize) -> Vec<Piece> {
    let mut out = Vec::with_capacity(below.len() + 2 * extents.len());
    let mut extents = extents.iter().cloned().peekable();
    for mut piece in below {
        while let Some(extent) = extents.peek()
            && extent.start < piece.ram.end
        {
            if piece.ram.start < extent.start {
                out.push(Piece { ram: piece.ram.start..extent.start, layer: piece.layer });
            }
            // An extent that begins in this piece is put out here, whole.
            if extent.start >= piece.ram.start {
                out.push(Piece { ram: extent.clone(), layer });
            }
            piece.ram.start = extent.end.min(piece.ram.end).max(piece.ram.start);
            if extent.end > piece.ram.end {
                break;
            }
            extents.next();
        }
        if piece.ram.start < piece.ram.end {
            out.push(piece);
        }
    }
    out
}

/// Page-aligned ranges inside `bytes` of RAM as sorted, maximal extents.
pub(crate) fn normalize(ranges: &[Range<u64>], bytes: u64) -> Result<Vec<Range<u64>>> {
    const PAGE: u64 = self::PAGE as u64;
    let mut sorted: Vec<_> = ranges.iter().filter(|range| range.start != range.end).cloned().collect();
    for range in &sorted {
        if !range.start.is_multiple_of(PAGE)
            || !range.end.is_multiple_of(PAGE)
            || range.start > range.end
            || range.end > bytes
        {
            return Err(Error::unwritable(format!(
                "the range {:#x}..{:#x} is not one of whole 4 KiB pages inside {bytes:#x} bytes of RAM",
                range.start, range.end
            )));
        }
    }
    sorted.sort_unstable_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::with_capacity(sorted.len());
    for range in sorted {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    Ok(merged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Pages, each zero or not, and sometimes not zero in one byte alone.
    fn pages() -> impl Strategy<Value = Vec<u8>> {
        let page = prop_oneof![
            Just(vec![0; PAGE]),
            any::<u8>().prop_map(|byte| vec![byte; PAGE]),
            (0..PAGE, 1_u8..).prop_map(|(at, byte)| {
                let mut page = vec![0; PAGE];
                page[at] = byte;
                page
            }),
        ];
        prop::collection::vec(page, 0..24).prop_map(|pages| pages.concat())
    }

    fn ranges(pages: u64) -> impl Strategy<Value = Vec<Range<u64>>> {
        let range = (0..pages, 0_u64..8)
            .prop_map(move |(start, length)| start * PAGE as u64..(start + length).min(pages) * PAGE as u64);
        prop::collection::vec(range, 0..8)
    }

    proptest! {
        #[test]
        fn runs_are_the_maximal_stretches_that_are_not_zero(bytes in pages()) {
            let mut of_run = vec![false; bytes.len() / PAGE];
            let mut last = None;
            for run in runs(&bytes) {
                prop_assert!(last.is_none_or(|end| end < run.start), "runs touch");
                last = Some(run.end);
                of_run[run.start / PAGE..run.end / PAGE].fill(true);
            }
            for (page, of_run) in bytes.chunks(PAGE).zip(of_run) {
                prop_assert_eq!(page.iter().any(|byte| *byte != 0), of_run);
            }
        }

        #[test]
        fn the_digest_does_not_depend_on_how_ram_is_cut(bytes in pages(), cut in 1_usize..8) {
            let mut whole = RamHasher::default();
            whole.update(0, &bytes);
            let mut parts = RamHasher::default();
            for (n, part) in bytes.chunks(cut * PAGE).enumerate() {
                parts.update((n * cut * PAGE) as u64, part);
            }
            prop_assert_eq!(whole.finish(), parts.finish());
        }

        #[test]
        fn each_page_comes_from_the_highest_layer_that_has_it(layers in prop::collection::vec(ranges(40), 0..4)) {
            const PAGES: u64 = 40;
            let bytes = PAGES * PAGE as u64;
            let mut pieces = vec![Piece { ram: 0..bytes, layer: 0 }];
            let mut expected = [0; PAGES as usize];
            for (n, layer) in layers.iter().enumerate() {
                let extents = normalize(layer, bytes).unwrap();
                pieces = overlay(pieces, &extents, n + 1);
                for range in layer {
                    expected[range.start as usize / PAGE..range.end as usize / PAGE].fill(n + 1);
                }
            }
            let mut found = vec![];
            let mut end = 0;
            for piece in pieces {
                prop_assert_eq!(piece.ram.start, end);
                prop_assert!(piece.ram.end > end);
                end = piece.ram.end;
                found.extend(std::iter::repeat_n(piece.layer, (piece.ram.end - piece.ram.start) as usize / PAGE));
            }
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn the_digest_is_the_documented_one() {
        let mut ram = vec![0; 8 * PAGE];
        ram[PAGE + 7] = 1;
        ram[2 * PAGE] = 2;
        ram[7 * PAGE] = 3;
        let mut hasher = RamHasher::default();
        hasher.update(0, &ram);
        assert_eq!(hasher.data_bytes, 3 * PAGE as u64);
        let contents = Digest32::of(&[&ram[PAGE..3 * PAGE], &ram[7 * PAGE..]].concat());
        let layout = Digest32::of(&[1_u64, 2, 7, 1].map(u64::to_le_bytes).concat());
        assert_eq!(hasher.finish(), Digest32::of(&[contents.0, layout.0].concat()));
    }

    #[test]
    fn ranges_must_be_whole_pages_of_ram() {
        let page = PAGE as u64;
        for wrong in [1..page, 0..page + 1, 0..5 * page, 2 * page..page] {
            assert!(normalize(std::slice::from_ref(&wrong), 4 * page).is_err(), "{wrong:?}");
        }
        let mixed = [4 * page..5 * page, 2 * page..3 * page, 0..page, page..2 * page, 3 * page..3 * page];
        assert_eq!(normalize(&mixed, 5 * page).unwrap(), [0..3 * page, 4 * page..5 * page]);
    }
}
