//! Ways around a policy that were found in programs like this one: none gets through.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use supermachine_netd::address::class;
use supermachine_netd::dns;
use supermachine_netd::policy::{Pins, Policy};
use supermachine_netd::rules::Rule;
use supermachine_proto::netd::{self, Preset, Protocol};

fn policy(preset: Preset, allow: &[&str], deny: &[&str]) -> Policy {
    let texts = |rules: &[&str]| rules.iter().map(ToString::to_string).collect();
    Policy::new(&netd::Policy { preset, allow: texts(allow), deny: texts(deny) }).unwrap()
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn flows(policy: &Policy, to: &str, names: &[&str], protocol: Protocol, port: u16) -> bool {
    let to = address(to);
    policy.flow(to, class(to), names, protocol, port).is_ok()
}

/// A test for each address that the policy for everyone must not let through.
macro_rules! not_public {
    ($($name:ident: $address:literal,)*) => {
        $(#[test]
        fn $name() {
            let public = policy(Preset::Public, &[], &[]);
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Icmp] {
                assert!(!flows(&public, $address, &[], protocol, 80));
                // Nor under a name that a guest is let look up, nor by a rule for names or for all that is public.
                assert!(!flows(&public, $address, &["rebinding.test"], protocol, 80));
                let named = policy(Preset::Public, &["rebinding.test", "*.test", "public"], &[]);
                assert!(!flows(&named, $address, &["rebinding.test"], protocol, 80));
            }
        })*
    };
}

not_public! {
    loopback: "127.0.0.1",
    loopback_far: "127.255.255.254",
    loopback_v6: "::1",
    loopback_mapped: "::ffff:127.0.0.1",
    loopback_mapped_in_hexadecimal: "::ffff:7f00:1",
    loopback_compatible: "::127.0.0.1",
    loopback_translated: "::ffff:0:127.0.0.1",
    loopback_nat64: "64:ff9b::127.0.0.1",
    loopback_local_nat64: "64:ff9b:1::127.0.0.1",
    loopback_6to4: "2002:7f00:1::",
    loopback_teredo: "2001:0:1:2:3:4:80ff:fffe",
    loopback_isatap: "2a00::5efe:127.0.0.1",
    metadata: "169.254.169.254",
    metadata_of_containers: "169.254.170.2",
    metadata_mapped: "::ffff:169.254.169.254",
    metadata_nat64: "64:ff9b::169.254.169.254",
    metadata_6to4: "2002:a9fe:a9fe::1",
    metadata_amazon_v6: "fd00:ec2::254",
    metadata_google_v6: "fd20:ce::254",
    metadata_alibaba: "100.100.100.200",
    metadata_azure: "168.63.129.16",
    metadata_oracle: "192.0.0.192",
    link_local: "169.254.1.1",
    link_local_v6: "fe80::1",
    private_10: "10.1.2.3",
    private_172: "172.16.0.1",
    private_192: "192.168.1.1",
    private_mapped: "::ffff:192.168.1.1",
    private_nat64: "64:ff9b::10.0.0.1",
    private_6to4: "2002:c0a8:101::1",
    private_v6: "fd12:3456::1",
    site_local_v6: "fec0::1",
    shared_address_space: "100.64.0.1",
    this_host: "0.0.0.0",
    this_network: "0.1.2.3",
    unspecified_v6: "::",
    benchmarks: "198.18.0.1",
    documentation: "192.0.2.1",
    multicast: "224.0.0.251",
    multicast_v6: "ff02::fb",
    broadcast: "255.255.255.255",
    reserved: "240.0.0.1",
    relays_of_6to4: "192.88.99.1",
    documentation_v6: "2001:db8::1",
    discard_v6: "100::1",
}

#[test]
fn an_address_of_a_rule_for_names_that_was_not_looked_up_is_not_allowed() {
    let only = policy(Preset::Nothing, &["allowed.test:443"], &[]);
    assert!(!flows(&only, "1.2.3.4", &[], Protocol::Tcp, 443));
    assert!(flows(&only, "1.2.3.4", &["allowed.test"], Protocol::Tcp, 443));
}

#[test]
fn a_rule_for_one_port_or_protocol_is_not_one_for_others() {
    let only = policy(Preset::Nothing, &["1.2.3.4:443/tcp"], &[]);
    assert!(flows(&only, "1.2.3.4", &[], Protocol::Tcp, 443));
    assert!(!flows(&only, "1.2.3.4", &[], Protocol::Udp, 443));
    assert!(!flows(&only, "1.2.3.4", &[], Protocol::Tcp, 80));
    assert!(!flows(&only, "1.2.3.4", &[], Protocol::Icmp, 0));
    assert!(!flows(&only, "1.2.3.5", &[], Protocol::Tcp, 443));
}

#[test]
fn a_wildcard_is_for_what_is_below_a_name_alone() {
    let rule = Rule::parse("*.example.com").unwrap();
    assert!(rule.names("a.example.com") && rule.names("b.a.example.com"));
    for other in ["example.com", "evilexample.com", ".example.com", "example.com.evil.test", "a.example.co"] {
        assert!(!rule.names(other), "{other}");
    }
}

#[test]
fn names_that_no_rule_allows_cannot_carry_bytes_to_their_servers() {
    let only = policy(Preset::Nothing, &["allowed.test:443", "1.2.3.4"], &[]);
    assert!(only.name("allowed.test").is_ok());
    for name in ["c2VjcmV0.evil.test", "c2VjcmV0.allowed.test", "evil.test", ""] {
        assert!(only.name(name).is_err(), "{name}");
    }
}

#[test]
fn a_name_that_is_denied_is_not_looked_up_whatever_its_letters() {
    let public = policy(Preset::Public, &[], &["evil.test", "*.evil.test"]);
    assert!(public.name("evil.test").is_err() && public.name("a.evil.test").is_err());
    assert!(public.name("good.test").is_ok());
    // The question arrives in small letters and without a dot at its end.
    assert_eq!(supermachine_netd::rules::normal("eViL.TeSt.").as_deref(), Some("evil.test"));
}

#[test]
fn an_address_found_under_a_denied_name_is_denied_before_any_rule_that_allows_it() {
    let all = policy(Preset::All, &["evil.test", "1.2.3.4"], &["evil.test"]);
    assert!(!flows(&all, "1.2.3.4", &["evil.test"], Protocol::Tcp, 443));
}

#[test]
fn networks_and_groups_that_are_large_do_not_mean_metadata_or_the_host() {
    for rule in ["any", "0.0.0.0/0", "128.0.0.0/1", "public", "private", "::/0"] {
        let wide = policy(Preset::All, &[rule], &[]);
        for to in ["169.254.169.254", "fd00:ec2::254", "fe80::1", "::ffff:169.254.169.254"] {
            assert!(!flows(&wide, to, &[], Protocol::Tcp, 80), "{rule} {to}");
        }
    }
    for rule in ["0.0.0.0/0", "::/0", "public", "private"] {
        assert!(!flows(&policy(Preset::Public, &[rule], &[]), "127.0.0.1", &[], Protocol::Tcp, 80), "{rule}");
    }
}

#[test]
fn what_is_named_is_allowed() {
    for (rule, to) in [
        ("meta", "169.254.169.254"),
        ("169.254.169.254", "169.254.169.254"),
        ("169.254.0.0/16:80", "169.254.170.2"),
        ("host:80", "127.0.0.1"),
        ("any", "127.0.0.1"),
        ("any", "10.0.0.1"),
        ("host.docker.internal", "127.0.0.1"),
        ("10.0.0.0/8", "10.1.1.1"),
        ("10.0.0.0/8", "::ffff:10.1.1.1"),
        ("[fd12::]:80", "fd12::"),
        ("private", "192.168.1.1"),
    ] {
        assert!(flows(&policy(Preset::Nothing, &[rule], &[]), to, &[], Protocol::Tcp, 80), "{rule} {to}");
    }
}

#[test]
fn a_rule_that_denies_a_network_sees_through_disguises() {
    let all = policy(Preset::All, &[], &["10.0.0.0/8"]);
    for to in ["10.1.1.1", "::ffff:10.1.1.1", "64:ff9b::10.1.1.1", "2002:a01:101::1"] {
        assert!(!flows(&all, to, &[], Protocol::Tcp, 80), "{to}");
    }
}

#[test]
fn texts_that_only_look_like_addresses_are_no_rules() {
    for text in [
        "127.1",
        "0x7f.0.0.1",
        "2130706433",
        "0177.0.0.1",
        "127.0.0.01",
        "1.2.3.4/33",
        "1.2.3.4/8",
        "10.0.0.0/-1",
        "",
        "*",
        "*.",
        "a..b",
        "-:80/icmp",
        "example.com:0",
        "example.com:70000",
        "example.com:2-1",
        "[::1",
        "::1/129",
        "example.com/24",
        "a b",
        "exa\u{ff4d}ple.com",
        "example.com:80:90",
        "1.2.3.4/8/tcp",
        "example.com/sctp",
    ] {
        assert!(Rule::parse(text).is_err(), "{text:?}");
    }
}

#[test]
fn a_clone_knows_no_names_of_its_parents() {
    let (mut parent, clone, now) = (Pins::default(), Pins::default(), Instant::now());
    parent.add(address("1.2.3.4"), "allowed.test", Duration::from_secs(60), now);
    assert_eq!(parent.names(address("1.2.3.4"), now), ["allowed.test"]);
    assert!(clone.names(address("1.2.3.4"), now).is_empty());
}

#[test]
fn a_pin_ends_and_a_guest_cannot_make_more_than_there_is_room_for() {
    let (mut pins, now) = (Pins::default(), Instant::now());
    pins.add(address("1.2.3.4"), "short.test", Duration::ZERO, now);
    assert!(pins.names(address("1.2.3.4"), now + Duration::from_secs(301)).is_empty());
    for number in 0..20_000_u32 {
        let address = IpAddr::V4((0x0101_0000 + number).into());
        (0..3).for_each(|name| pins.add(address, &format!("{name}.test"), Duration::MAX, now));
    }
    assert!(pins.names(address("1.1.0.0"), now).is_empty());
    assert_eq!(pins.names(IpAddr::V4((0x0101_0000 + 19_999).into()), now).len(), 3);
}

#[test]
fn bytes_that_are_no_message_of_the_name_system_are_survived() {
    let mut state = 1_u64;
    for length in 0..600 {
        let bytes: Vec<u8> = (0..length)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 56) as u8 & if length % 2 == 0 { 0xc3 } else { 0xff }
            })
            .collect();
        let _ = dns::addresses(&bytes);
        if let Some(question) = dns::question(&bytes) {
            let _ = dns::answer(&bytes, &question, 0, &[]);
            let _ = dns::answers(&bytes, &question);
        }
    }
}
