//! The reader on archives made here, whole, cut and damaged.

use super::{BLOCK, Entry, Kind, Reader};
use crate::Error;

/// A ustar header with a right checksum.
fn header(name: &[u8], kind: u8, size: u64) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    block[..name.len()].copy_from_slice(name);
    block[100..107].copy_from_slice(b"0000644");
    block[108..115].copy_from_slice(b"0000000");
    block[116..123].copy_from_slice(b"0000000");
    block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    block[136..147].copy_from_slice(b"00000000001");
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar\x0000");
    seal(&mut block);
    block
}

fn seal(block: &mut [u8]) {
    block[148..156].copy_from_slice(b"        ");
    let sum: u32 = block[..BLOCK].iter().map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn padded(data: &[u8]) -> Vec<u8> {
    let mut data = data.to_vec();
    data.resize(data.len().next_multiple_of(BLOCK), 0);
    data
}

fn member(name: &[u8], kind: u8, data: &[u8]) -> Vec<u8> {
    [header(name, kind, data.len() as u64), padded(data)].concat()
}

fn pax(kind: u8, records: &[(&str, &str)]) -> Vec<u8> {
    let mut data = String::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let length = (rest + 1..).find(|n| n.to_string().len() + rest == *n).expect("a length");
        data += &format!("{length} {key}={value}\n");
    }
    member(b"pax", kind, data.as_bytes())
}

/// Every entry with its data.
fn read(mut archive: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, Error> {
    let mut reader = Reader::new(&mut archive);
    let mut found = Vec::new();
    while let Some(entry) = reader.next()? {
        let mut data = Vec::new();
        loop {
            let chunk = reader.data()?;
            if chunk.is_empty() {
                break;
            }
            data.extend_from_slice(chunk);
            let n = chunk.len();
            reader.consume(n);
        }
        found.push((entry, data));
    }
    Ok(found)
}

#[test]
fn an_archive_may_end_with_its_last_byte_of_data() {
    let whole = member(b"file", b'0', b"data");
    for end in [whole.len(), BLOCK + 4, BLOCK + 5, whole.len() - 1] {
        let found = read(&whole[..end]).unwrap();
        assert_eq!(found.len(), 1, "cut at {end}");
        assert_eq!(found[0].1, b"data");
    }
    for end in [1, BLOCK - 1, BLOCK, BLOCK + 1, BLOCK + 3] {
        assert!(matches!(read(&whole[..end]), Err(Error::Tar { .. })), "cut at {end}");
    }
}

#[test]
fn what_describes_another_entry_needs_one() {
    for archive in
        [pax(b'x', &[("path", "a")]), member(b"long", b'L', b"name\0"), member(b"long", b'K', b"link\0")]
    {
        assert!(matches!(read(&archive), Err(Error::Tar { .. })));
        let found = read(&[archive, member(b"file", b'2', b"")].concat()).unwrap();
        assert_eq!((found.len(), found[0].0.kind), (1, Kind::Symlink));
    }
}

#[test]
fn records_of_the_entry_go_before_global_ones_and_both_before_the_header() {
    let archive = [
        pax(b'g', &[("uid", "7"), ("gid", "8"), ("SCHILY.xattr.user.all", "1")]),
        member(b"first", b'0', b"1"),
        pax(b'x', &[("uid", "9"), ("path", "renamed"), ("mtime", "5.25"), ("SCHILY.xattr.user.all", "")]),
        member(b"second", b'0', b"22"),
        pax(b'g', &[("gid", "")]),
        member(b"third", b'0', b""),
    ];
    let found = read(&archive.concat()).unwrap();
    let seen: Vec<_> =
        found.iter().map(|(e, _)| (e.name.as_slice(), e.uid, e.gid, e.mtime, e.xattrs.len())).collect();
    assert_eq!(seen[0], (&b"first"[..], 7, 8, (1, 0), 1));
    assert_eq!(seen[1], (&b"renamed"[..], 9, 8, (5, 250_000_000), 0));
    assert_eq!(seen[2], (&b"third"[..], 7, 0, (1, 0), 1));
    assert_eq!(seen.len(), 3);
}

#[test]
fn what_has_no_data_has_none_whatever_its_size_says() {
    for kind in [b'1', b'2', b'3', b'4', b'5', b'6'] {
        let archive = [header(b"odd", kind, 1 << 30), member(b"next", b'0', b"data")].concat();
        let found = read(&archive).unwrap();
        assert_eq!((found.len(), found[0].0.size), (2, 0), "type {}", char::from(kind));
    }
}

#[test]
fn a_size_that_nothing_backs_is_an_error_and_not_an_allocation() {
    let mut huge = header(b"huge", b'0', 0);
    // Base 256, as GNU writes what octal digits cannot hold.
    huge[124..136].copy_from_slice(&[0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    seal(&mut huge);
    for archive in [huge, header(b"pax", b'x', 1 << 32), header(b"long", b'L', 1 << 20)] {
        assert!(matches!(read(&archive), Err(Error::Tar { .. })));
    }
}

#[test]
fn no_damage_makes_it_fall() {
    let archive = [
        pax(b'g', &[("comment", "x")]),
        pax(b'x', &[("path", "a/b"), ("GNU.sparse.map", "0,1,5,2"), ("GNU.sparse.size", "9")]),
        member(b"sparse", b'0', b"abc"),
        member(b"long", b'L', b"a long name\0"),
        member(b"file", b'0', &[7; 700]),
        member(b"old sparse", b'S', b""),
        member(b"device", b'3', b""),
        vec![0; 2 * BLOCK],
    ]
    .concat();
    assert!(read(&archive).is_ok());
    let mut seed = 1_u64;
    let mut random = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize
    };
    for _ in 0..20_000 {
        let mut damaged = archive.clone();
        for _ in 0..=random() % 4 {
            let at = random() % damaged.len();
            damaged[at] = [0, b'0', b'7', b'9', 0x80, 0xff, random() as u8][random() % 7];
            // Without right checksums nothing behind a header would ever be reached.
            let start = at / BLOCK * BLOCK;
            if damaged[start + 257..start + 262] == *b"ustar" {
                seal(&mut damaged[start..start + BLOCK]);
            }
        }
        damaged.truncate(damaged.len() - random() % 2 * (random() % damaged.len()));
        if let Ok(found) = read(&damaged) {
            assert!(found.iter().map(|(_, data)| data.len()).sum::<usize>() <= damaged.len());
        }
    }
}
