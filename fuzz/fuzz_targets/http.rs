//! Requests of a guest and responses of a host, on a connection that is opened for secrets.
#![no_main]

use libfuzzer_sys::fuzz_target;
use supermachine_netd::secrets::body::{self, Framing, Reader};
use supermachine_netd::secrets::head;

/// The data of a body that comes in pieces, or what is wrong with it, and what follows it.
fn read(framing: Framing, bytes: &[u8], piece: usize) -> Result<(Vec<u8>, bool, Vec<u8>), &'static str> {
    let (mut reader, mut input, mut data) = (Reader::new(framing), Vec::new(), Vec::new());
    for part in bytes.chunks(piece) {
        input.extend(part);
        reader.read(&mut input, &mut data)?;
    }
    Ok((data, reader.is_done(), input))
}

fuzz_target!(|data: &[u8]| {
    if let Ok(Some((request, length))) = head::request(data, "a.test", 443) {
        // What is whole is so without what follows, and not before.
        let alone = head::request(&data[..length], "a.test", 443);
        assert_eq!(alone, Ok(Some((request, length))));
        assert!(!matches!(head::request(&data[..length - 1], "a.test", 443), Ok(Some(_))));
    }
    for method in ["GET", "HEAD"] {
        if let Ok(Some((response, length))) = head::response(data, method) {
            assert_eq!(head::response(&data[..length], method), Ok(Some((response, length))));
        }
    }
    let whole = read(Framing::Chunked, data, data.len().max(1));
    for piece in [1, 2, 7] {
        let cut = read(Framing::Chunked, data, piece);
        assert_eq!(whole.is_ok(), cut.is_ok());
        if let (Ok(whole), Ok(cut)) = (&whole, &cut) {
            assert_eq!(whole, cut);
        }
    }
    if let Ok((found, true, _)) = whole {
        let mut again = Vec::new();
        body::write(Framing::Chunked, &found, &mut again);
        body::finish(Framing::Chunked, &mut again);
        assert_eq!(read(Framing::Chunked, &again, 3), Ok((found, true, Vec::new())));
    }
});
