//! Shuffles for structures of three elements.

/// Shuffles for structures of three: by size of an element, which register, and which part of what is in memory (or,
/// for stores, the other way round), for PSHUFB.
pub(super) const TRIPLES: [[[u128; 9]; 4]; 2] = {
    const NOTHING: u8 = 0x80;
    let mut all = [[[0; 9]; 4]; 2];
    let mut n = 0;
    while n < 2 * 4 * 9 * 16 {
        let (byte, place, size, store) = (n % 16, n / 16 % 9, n / 144 % 4, n / 576);
        let (to, from) = (place / 3, place % 3);
        // Of the 48 bytes in memory, and of the register that the byte belongs to.
        let (in_memory, register) = if store == 0 {
            ((((byte >> size) * 3 + to) << size) | byte & ((1 << size) - 1), to)
        } else {
            (16 * to + byte, from)
        };
        let (element, low) = (in_memory >> size, in_memory & ((1 << size) - 1));
        let in_register = ((element / 3) << size) | low;
        let source = if store == 0 && in_memory / 16 == from {
            (in_memory % 16) as u8
        } else if store == 1 && element % 3 == register {
            in_register as u8
        } else {
            NOTHING
        };
        all[store][size][place] |= (source as u128) << (8 * byte);
        n += 1;
    }
    all
};
