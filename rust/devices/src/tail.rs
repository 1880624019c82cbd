//! The last bytes of what a guest has written to its consoles.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use supermachine_support::lock;

/// Bytes kept.
const KEPT: usize = 64 * 1024;

/// A bounded record that several consoles write to.
#[derive(Clone, Default)]
pub struct Tail(Arc<Mutex<VecDeque<u8>>>);

impl Tail {
    /// Adds bytes; the oldest go.
    pub fn push(&self, bytes: &[u8]) {
        let mut kept = lock(&self.0);
        let bytes = &bytes[bytes.len().saturating_sub(KEPT)..];
        let excess = (kept.len() + bytes.len()).saturating_sub(KEPT);
        kept.drain(..excess);
        kept.extend(bytes);
    }

    /// What is kept, with what is not UTF-8 replaced.
    pub fn text(&self) -> String {
        let kept = lock(&self.0);
        String::from_utf8_lossy(&kept.iter().copied().collect::<Vec<_>>()).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_bytes_are_kept() {
        let tail = Tail::default();
        tail.push(&vec![b'a'; KEPT - 1]);
        tail.push(b"bcd");
        assert!(tail.text().ends_with("abcd"));
        assert_eq!(tail.text().len(), KEPT);
        tail.push(&vec![b'x'; 3 * KEPT]);
        assert_eq!(tail.text(), "x".repeat(KEPT));
    }
}
