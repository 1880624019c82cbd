//! The first bytes of a connection: TLS hellos and heads of HTTP requests.
#![no_main]

use libfuzzer_sys::fuzz_target;
use supermachine_netd::first::{self, Seen};
use supermachine_netd::rules;

fuzz_target!(|data: &[u8]| {
    for read in [first::hello as fn(&[u8]) -> Seen, first::request] {
        let seen = read(data);
        if let Seen::Name(name) = &seen {
            assert_eq!(rules::normal(name).as_ref(), Some(name));
        }
        // What is decided by the first bytes stays so, whatever comes after them.
        for cut in (0..data.len()).step_by(1 + data.len() / 64) {
            let early = read(&data[..cut]);
            assert!(early == Seen::Incomplete || early == seen, "{early:?} at {cut}, then {seen:?}");
        }
    }
});
