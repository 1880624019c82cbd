//! Sparse files: GNU's old format (type 'S') and its pax formats 0.0, 0.1 and 1.0 (GNU tar manual, "Sparse Formats").

use supermachine_support::to_usize;

use super::header::number;
use super::pax::{Records, unsigned};
use super::{BLOCK, DataRun, Entry, Reader};
use crate::Error;
use crate::stream::Stream;

/// Runs of data in one file. Real files have thousands at most; 16 bytes each in memory.
const MAX_RUNS: usize = 1 << 18;

impl<S: Stream> Reader<'_, S> {
    /// Old GNU format: four runs in the header, 21 in each extension block, real size at 483.
    pub(super) fn gnu_sparse(&mut self, header: &[u8; BLOCK], entry: &mut Entry) -> Result<(), Error> {
        let mut runs = Vec::new();
        let mut block = *header;
        let (mut area, mut extended_at) = (386..482, 482);
        let real = number(&header[483..495], "real size").map_err(|reason| self.bad(reason))?;
        // The extension blocks come before the data and are not part of its size.
        let (stored, padding) = (std::mem::take(&mut self.unread), std::mem::take(&mut self.padding));
        loop {
            for run in block[area.clone()].chunks_exact(24) {
                if run[0] == 0 {
                    break;
                }
                let field = |f: &[u8]| number(f, "sparse map").ok().and_then(|n| u64::try_from(n).ok());
                let (offset, bytes) = (field(&run[..12]), field(&run[12..]));
                let (Some(offset), Some(bytes)) = (offset, bytes) else {
                    return Err(self.bad("a malformed sparse map"));
                };
                runs.push((offset, bytes));
            }
            if runs.len() > MAX_RUNS {
                return Err(self.too_many_runs());
            }
            if block[extended_at] == 0 {
                break;
            }
            block = self.block()?.ok_or_else(|| self.bad("the archive ends inside a sparse map"))?;
            (area, extended_at) = (0..504, 504);
        }
        (self.unread, self.padding) = (stored, padding);
        let real = u64::try_from(real).map_err(|_| self.bad("a sparse file of negative size"))?;
        self.finish_sparse(entry, runs, real)
    }

    pub(super) fn pax_sparse(&mut self, records: &Records, entry: &mut Entry) -> Result<(), Error> {
        let number = |s: &Self, key: &[u8]| match records.get(key) {
            Some(value) => {
                unsigned(value).map(Some).ok_or_else(|| s.bad("a malformed number in a sparse header"))
            }
            None => Ok(None),
        };
        let name = records.get(b"GNU.sparse.name");
        let major = number(self, b"GNU.sparse.major")?;
        let minor = number(self, b"GNU.sparse.minor")?;
        let (runs, real) = match (major, minor) {
            (Some(1), Some(0)) => {
                let real = number(self, b"GNU.sparse.realsize")?;
                (self.sparse_map_in_data()?, real)
            }
            (None, None) | (Some(0), _) => {
                let real = number(self, b"GNU.sparse.size")?;
                if let Some(map) = records.get(b"GNU.sparse.map") {
                    let mut numbers = Vec::new();
                    for part in map.split(|b| *b == b',') {
                        numbers.push(unsigned(part).ok_or_else(|| self.bad("a malformed sparse map"))?);
                    }
                    if numbers.len() % 2 != 0 {
                        return Err(self.bad("a sparse map with an odd number of numbers"));
                    }
                    (numbers.chunks_exact(2).map(|c| (c[0], c[1])).collect(), real)
                } else if real.is_some() || !records.sparse_runs.is_empty() {
                    (records.sparse_runs.clone(), real)
                } else {
                    return Ok(());
                }
            }
            _ => return Err(self.bad("a sparse format newer than 1.0")),
        };
        let real = real.ok_or_else(|| self.bad("a sparse file without its real size"))?;
        if let Some(name) = name {
            entry.name = name.to_vec();
        }
        self.finish_sparse(entry, runs, real)
    }

    /// Format 1.0: decimal lines at the start of the data, padded to a block.
    fn sparse_map_in_data(&mut self) -> Result<Vec<DataRun>, Error> {
        let start = self.unread;
        let count = self.decimal_line()?;
        if count > MAX_RUNS as u64 {
            return Err(self.too_many_runs());
        }
        let mut runs = Vec::new();
        for _ in 0..count {
            runs.push((self.decimal_line()?, self.decimal_line()?));
        }
        let mut padding = (start - self.unread).wrapping_neg() % BLOCK as u64;
        while padding > 0 {
            let n = self.data()?.len().min(to_usize(padding));
            if n == 0 {
                return Err(self.bad("a sparse map without its padding"));
            }
            self.consume(n);
            padding -= n as u64;
        }
        Ok(runs)
    }

    fn decimal_line(&mut self) -> Result<u64, Error> {
        let mut digits = Vec::new();
        loop {
            let Some(b) = self.data()?.first().copied() else {
                return Err(self.bad("a cut sparse map"));
            };
            self.consume(1);
            match b {
                b'\n' => return unsigned(&digits).ok_or_else(|| self.bad("a malformed sparse map")),
                b if digits.len() < 20 => digits.push(b),
                _ => return Err(self.bad("a malformed sparse map")),
            }
        }
    }

    fn too_many_runs(&self) -> Error {
        self.bad(format!("a sparse file of more than {MAX_RUNS} pieces"))
    }

    fn finish_sparse(&mut self, entry: &mut Entry, runs: Vec<DataRun>, real: u64) -> Result<(), Error> {
        let mut end = 0u64;
        let mut stored = 0u64;
        for (offset, bytes) in &runs {
            let run_end = offset.checked_add(*bytes).filter(|e| *offset >= end && *e <= real);
            end = run_end.ok_or_else(|| self.bad("a sparse map out of order or beyond the file's end"))?;
            stored += bytes;
        }
        if stored != self.unread {
            return Err(
                self.bad(format!("a sparse map of {stored} bytes over {} bytes of data", self.unread))
            );
        }
        entry.size = real;
        entry.stored = stored;
        entry.sparse = Some(runs.into_iter().filter(|(_, bytes)| *bytes > 0).collect());
        Ok(())
    }
}
