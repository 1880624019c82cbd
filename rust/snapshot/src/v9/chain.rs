//! A whole snapshot and diffs to it, each to the one before.

use std::fs::File;

use super::disk::{Flattened, disk_layers};
use super::{Identity, Metadata, Snapshot, Summary, Verified, Writer, verify_watched};
use crate::ram::{self, Piece, Watch};
use crate::{Error, Result};

/// Checks that the first is whole and each other a diff to the one before it, all of one machine.
pub fn check_chain(chain: &[&Snapshot]) -> Result<()> {
    let wrong = |position, reason: String| Err(Error::Chain { position, reason });
    let Some((base, diffs)) = chain.split_first() else {
        return wrong(0, "the chain is empty".into());
    };
    if let Some(parent) = base.identity().parent {
        return wrong(0, format!("the first is a diff to {parent}, which must come before it"));
    }
    let mut before = *base;
    for (n, diff) in diffs.iter().enumerate() {
        match diff.identity().parent {
            Some(parent) if parent == before.id() => {}
            Some(parent) => {
                let id = before.id();
                return wrong(n + 1, format!("it is a diff to {parent} and the one before it is {id}"));
            }
            None => return wrong(n + 1, "it is whole; only the first may be".into()),
        }
        let sizes = [*base, *diff].map(|snapshot| snapshot.disk().map(|disk| disk.bytes));
        let disk = (sizes[0] != sizes[1]).then_some("size of the disk");
        if let Some(what) = difference(base.identity(), diff.identity()).or(disk) {
            return wrong(n + 1, format!("its {what} is not that of the first"));
        }
        before = diff;
    }
    Ok(())
}

/// What makes these two different machines.
fn difference(a: &Identity, b: &Identity) -> Option<&'static str> {
    [
        (a.architecture != b.architecture, "architecture"),
        (a.engine != b.engine, "engine"),
        (a.memory_bytes != b.memory_bytes, "amount of RAM"),
        (a.ram_gpa != b.ram_gpa, "address of RAM"),
        (a.vcpus != b.vcpus, "number of vCPUs"),
        (a.devices != b.devices, "list of devices"),
    ]
    .into_iter()
    .find_map(|(differs, what)| differs.then_some(what))
}

/// From which member of a chain each stretch of RAM is to be taken, in ascending order and without a gap.
///
/// Restoring means to map the base, and over it each later piece (or to read it, where that is cheaper).
pub fn layers(chain: &[&Snapshot]) -> Result<Vec<Piece>> {
    check_chain(chain)?;
    let whole = Piece { ram: 0..chain[0].identity().memory_bytes, layer: 0 };
    Ok(chain.iter().enumerate().skip(1).fold(vec![whole], |pieces, (layer, diff)| {
        ram::overlay(pieces, diff.present_extents().unwrap_or_default(), layer)
    }))
}

/// Writes to `out`, an empty file, the whole snapshot that a base and the diffs after it amount to. All are verified.
pub fn flatten(chain: &[&File], out: &File) -> Result<Summary> {
    flatten_watched(chain, out, &mut ram::patient)
}

/// As [`flatten`]; `watch` hears at which byte of a file's RAM it is, and may end it.
pub fn flatten_watched(chain: &[&File], out: &File, watch: Watch) -> Result<Summary> {
    let verified =
        chain.iter().map(|file| verify_watched(*file, watch)).collect::<Result<Vec<Verified>>>()?;
    let snapshots: Vec<&Snapshot> = verified.iter().map(|verified| &verified.snapshot).collect();
    let pieces = layers(&snapshots)?;
    let last = snapshots.last().expect("a checked chain is not empty");
    let metadata = Metadata {
        identity: Identity { parent: None, ..last.identity().clone() },
        sections: last.sections().to_vec(),
    };
    let mut writer = Writer::begin(out, &metadata)?;
    if let Some((bytes, pieces)) = disk_layers(&snapshots) {
        let files = chain.iter().map(|file| file.try_clone()).collect::<std::io::Result<_>>();
        let files = files.map_err(Error::io("keep"))?;
        writer.set_disk(Box::new(Flattened { bytes, pieces, files }))?;
    }
    writer.lay_out(metadata.identity.memory_bytes, None)?;
    for Piece { ram, layer } in pieces {
        let base = snapshots[layer].ram_offset();
        ram::read_data(chain[layer], base + ram.start..base + ram.end, watch, |offset, bytes| {
            writer.write_at(ram.start + offset, bytes)
        })?;
    }
    writer.finish()
}
