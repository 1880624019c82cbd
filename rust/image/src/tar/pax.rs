//! pax extended header records (POSIX.1-2017, pax(1), "pax Extended Header").

use std::collections::BTreeMap;

use super::DataRun;

/// Key and value of each record, in order, the last of a key counting; sparse map records repeat their keys.
#[derive(Debug, Clone, Default)]
pub(crate) struct Records {
    list: Vec<(Vec<u8>, Vec<u8>)>,
    /// The map of GNU sparse format 0.0, which is spread over repeated records.
    pub(super) sparse_runs: Vec<DataRun>,
}

const XATTR: &[u8] = b"SCHILY.xattr.";

impl Records {
    pub(crate) fn parse(mut data: &[u8]) -> Result<Self, String> {
        let mut records = Self::default();
        let mut pending_offset = None;
        while !data.is_empty() {
            let bad = || "a malformed pax record".to_string();
            let space = data.iter().take(20).position(|b| *b == b' ').ok_or_else(bad)?;
            let length = unsigned(&data[..space]).ok_or_else(bad)?;
            let length = usize::try_from(length).ok().filter(|n| *n <= data.len() && *n > space + 1);
            let (record, rest) = data.split_at(length.ok_or_else(bad)?);
            data = rest;
            let record = record[space + 1..].strip_suffix(b"\n").ok_or_else(bad)?;
            let equals = record.iter().position(|b| *b == b'=').filter(|n| *n > 0).ok_or_else(bad)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            match key {
                b"GNU.sparse.offset" => pending_offset = Some(unsigned(value).ok_or_else(bad)?),
                b"GNU.sparse.numbytes" => {
                    let offset = pending_offset.take().ok_or_else(bad)?;
                    records.sparse_runs.push((offset, unsigned(value).ok_or_else(bad)?));
                }
                _ => {
                    let binary = key.starts_with(XATTR);
                    if !binary && value.contains(&0) || key.contains(&0) {
                        return Err("a pax record with a NUL".into());
                    }
                    records.list.push((key.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(records)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.list.iter().map(|(k, v)| (k.len() + v.len() + 48) as u64).sum()
    }

    /// Lays `newer` over these records.
    pub(crate) fn update(&mut self, newer: Records) {
        if !newer.list.is_empty() {
            let keys: std::collections::HashSet<&[u8]> = newer.list.iter().map(|(k, _)| &k[..]).collect();
            self.list.retain(|(k, _)| !keys.contains(&k[..]));
        }
        self.list.extend(newer.list);
        self.sparse_runs = newer.sparse_runs;
    }

    /// The value of a key; an empty one takes the key back (pax(1)).
    pub(crate) fn get(&self, key: &[u8]) -> Option<&[u8]> {
        let found = self.list.iter().rev().find(|(k, _)| k == key);
        found.map(|(_, v)| &v[..]).filter(|v| !v.is_empty())
    }

    pub(crate) fn integer(&self, key: &[u8], or: i64) -> Result<i64, String> {
        let Some(value) = self.get(key) else { return Ok(or) };
        std::str::from_utf8(value).ok().and_then(|s| s.parse().ok()).ok_or_else(|| malformed(key, value))
    }

    pub(crate) fn size(&self, key: &[u8], or: u64) -> Result<u64, String> {
        let Some(value) = self.get(key) else { return Ok(or) };
        unsigned(value).ok_or_else(|| malformed(key, value))
    }

    /// Decimal seconds with an optional fraction, of which nanoseconds are kept, rounded down.
    pub(crate) fn time(&self, key: &[u8], or: i64) -> Result<(i64, u32), String> {
        let Some(value) = self.get(key) else { return Ok((or, 0)) };
        parse_time(value).ok_or_else(|| malformed(key, value))
    }

    /// Extended attributes by name. One without a value is none, as every empty record (pax(1), and so in Go's
    /// archive/tar, whose readers are those of other tools).
    pub(crate) fn xattrs(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut found = BTreeMap::new();
        for (key, value) in &self.list {
            if let Some(name) = key.strip_prefix(XATTR).filter(|name| !name.is_empty()) {
                found.insert(name, value);
            }
        }
        found.retain(|_, value| !value.is_empty());
        found.into_iter().map(|(name, value)| (name.to_vec(), value.clone())).collect()
    }
}

fn malformed(key: &[u8], value: &[u8]) -> String {
    let value = String::from_utf8_lossy(&value[..value.len().min(60)]);
    format!("the pax record {} has the malformed value {value:?}", String::from_utf8_lossy(key))
}

/// Plain decimal digits.
pub(super) fn unsigned(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 20 {
        return None;
    }
    value.iter().try_fold(0u64, |n, b| {
        let digit = b.is_ascii_digit().then(|| u64::from(b - b'0'))?;
        n.checked_mul(10)?.checked_add(digit)
    })
}

fn parse_time(value: &[u8]) -> Option<(i64, u32)> {
    let (negative, value) = match value.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, value),
    };
    let dot = value.iter().position(|b| *b == b'.').unwrap_or(value.len());
    let digits = &value[..dot];
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let seconds = unsigned(digits).and_then(|n| i64::try_from(n).ok()).unwrap_or(i64::MAX);
    let fraction = value.get(dot + 1..).unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let mut nanoseconds = 0;
    for i in 0..9 {
        nanoseconds = nanoseconds * 10 + fraction.get(i).map_or(0, |b| u32::from(b - b'0'));
    }
    Some(in_range(match (negative, nanoseconds) {
        (false, ns) => (seconds, ns),
        (true, 0) => (-seconds, 0),
        (true, ns) => (-seconds - 1, 1_000_000_000 - ns),
    }))
}

/// The nearest time whose nanoseconds since 1970 fit an `i64`, from 1677 to 2262: others are an archiver's mistake, and
/// file systems differ in what they make of them (Linux' own clamp, `timestamp_truncate` in fs/inode.c).
pub(super) fn in_range((seconds, nanoseconds): (i64, u32)) -> (i64, u32) {
    const MOST: i64 = i64::MAX / 1_000_000_000;
    if seconds.unsigned_abs() < MOST.unsigned_abs() {
        (seconds, nanoseconds)
    } else {
        (if seconds < 0 { -MOST } else { MOST }, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(parse_time(b"12"), Some((12, 0)));
        assert_eq!(parse_time(b"12.5"), Some((12, 500_000_000)));
        assert_eq!(parse_time(b"12.0000000019"), Some((12, 1)));
        assert_eq!(parse_time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(parse_time(b"-3"), Some((-3, 0)));
        assert_eq!(parse_time(b""), None);
        assert_eq!(parse_time(b"1.x"), None);
        assert_eq!(parse_time(b".5"), None);
        assert_eq!(parse_time(b"1e9"), None);
        for (text, nearest) in [
            ("99999999999999999999", 9_223_372_036),
            ("-99999999999999999999.5", -9_223_372_036),
            ("9223372036854775807.9", 9_223_372_036),
            ("-9223372036854775808", -9_223_372_036),
            ("9223372036.854775807", 9_223_372_036),
        ] {
            assert_eq!(parse_time(text.as_bytes()), Some((nearest, 0)), "{text}");
        }
        assert_eq!(parse_time(&[b'9'; 5000]), Some((9_223_372_036, 0)));
        assert_eq!(parse_time(b"253402300799"), Some((9_223_372_036, 0)), "the year 9999");
    }

    #[test]
    fn an_attribute_counts_once_and_not_without_a_value() {
        let record = |text: &str| format!("{} {text}\n", text.len() + 4);
        let data = ["user.a=1", "user.b=2", "user.a=3", "user.b=", "user.c="]
            .map(|x| record(&format!("SCHILY.xattr.{x}")));
        let records = Records::parse(data.concat().as_bytes()).unwrap();
        assert_eq!(records.xattrs(), [(b"user.a".to_vec(), b"3".to_vec())]);
    }

    #[test]
    fn records() {
        let r = Records::parse(b"9 path=a\n11 size=12\n8 path=\n").unwrap();
        assert_eq!(r.get(b"path"), None, "an empty value takes the key back");
        assert_eq!(r.size(b"size", 0), Ok(12));
        for bad in [&b"9 path=a"[..], b"x path=a\n", b"99 path=a\n", b"5 =a\n", b"0 path=a\n", b"9path=ab\n"]
        {
            assert!(Records::parse(bad).is_err(), "{bad:?}");
        }
    }
}
