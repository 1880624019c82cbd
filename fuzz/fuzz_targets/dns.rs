//! Messages of the domain name system, from guests and from servers.
#![no_main]

use std::net::IpAddr;

use libfuzzer_sys::fuzz_target;
use supermachine_netd::dns;

fuzz_target!(|data: &[u8]| {
    let found = dns::addresses(data);
    assert!(found.len() <= 512);
    assert!(dns::aliases(data).len() <= 16);
    let Some(question) = dns::question(data) else { return };
    // Whatever is asked, answers of our own answer it, and say what they are to.
    let addresses = [IpAddr::from([192, 0, 2, 1]), IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1])];
    let answer = dns::answer(data, &question, 0, &addresses);
    assert_eq!(dns::answers(&answer, &question), Some(0));
    assert!(dns::addresses(&answer).iter().all(|(address, _)| addresses.contains(address)));
    let denied = dns::denied(&answer, &question);
    assert_eq!(dns::answers(&denied, &question), Some(dns::NO_SUCH_NAME));
    assert!(dns::addresses(&denied).is_empty());
});
