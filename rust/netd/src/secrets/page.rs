//! Answers of our own, in place of a host's.

use crate::first;

/// A response that says why there is no other; the connection ends with it.
pub(super) fn page(status: u16, reason: &str) -> Vec<u8> {
    let phrase = match status {
        400 => "Bad Request",
        405 => "Method Not Allowed",
        413 => "Content Too Large",
        421 => "Misdirected Request",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        _ => "Bad Gateway",
    };
    first::answer(
        &format!("{status} {phrase}"),
        "the virtual machine's network has not passed this on",
        reason,
        None,
        "",
    )
}
