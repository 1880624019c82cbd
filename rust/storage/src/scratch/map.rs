//! Where the blocks of a disk are in its own file: memory for what has been written, and none for the rest.

use std::collections::BTreeMap;
use std::ops::Range;

use supermachine_support::to_usize;

/// Blocks that one table has the places of: 2 MiB of the disk in 2 KiB.
const TABLE: u64 = 512;
const NONE: u32 = 0;
const ZERO: u32 = u32::MAX;
/// Blocks of a file that there are places for.
pub(super) const MAX_PLACES: u32 = ZERO - 1;

/// A number of blocks that have places.
pub(super) fn places(count: u64) -> u32 {
    u32::try_from(count).expect("there are MAX_PLACES places")
}

/// What the disk itself has of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// Nothing: it is as the layers below have it.
    Below,
    /// Zeros, whatever is below.
    Zero,
    /// This block of its file.
    At(u32),
}

impl Entry {
    fn of(raw: u32) -> Self {
        match raw {
            NONE => Self::Below,
            ZERO => Self::Zero,
            place => Self::At(place - 1),
        }
    }

    fn raw(self) -> u32 {
        match self {
            Self::Below => NONE,
            Self::Zero => ZERO,
            Self::At(place) => place + 1,
        }
    }
}

#[derive(Default)]
pub(super) struct Map(BTreeMap<u64, Box<[u32; to_usize(TABLE)]>>);

impl Map {
    pub(super) fn get(&self, block: u64) -> Entry {
        self.0.get(&(block / TABLE)).map_or(Entry::Below, |table| Entry::of(table[to_usize(block % TABLE)]))
    }

    /// Sets an entry; what it was.
    pub(super) fn set(&mut self, block: u64, entry: Entry) -> Entry {
        if entry == Entry::Below && !self.0.contains_key(&(block / TABLE)) {
            return Entry::Below;
        }
        let table = self.0.entry(block / TABLE).or_insert_with(|| Box::new([NONE; to_usize(TABLE)]));
        Entry::of(std::mem::replace(&mut table[to_usize(block % TABLE)], entry.raw()))
    }

    /// How many blocks from `block` on, and no more than up to `end`, are certain to be [`Entry::Below`].
    pub(super) fn empty_from(&self, block: u64, end: u64) -> u64 {
        let next = self.0.range(block / TABLE..).next().map_or(end, |(table, _)| table * TABLE);
        next.min(end).saturating_sub(block)
    }

    /// All entries that are not [`Entry::Below`], in ascending order.
    pub(super) fn entries(&self) -> impl Iterator<Item = (u64, Entry)> {
        self.0.iter().flat_map(|(number, table)| {
            let entry = move |(n, raw): (usize, &u32)| (number * TABLE + n as u64, Entry::of(*raw));
            table.iter().enumerate().map(entry).filter(|(_, entry)| *entry != Entry::Below)
        })
    }
}

/// Appends a range to those before it, as part of the last where they touch.
pub(super) fn extend(ranges: &mut Vec<Range<u64>>, range: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => ranges.push(range),
    }
}
