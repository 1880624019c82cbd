//! What kind of place an address is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Kinds of addresses, by who is there (IANA's special-purpose registries).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Addresses of the Internet.
    Public,
    /// Private and shared address space (RFC 1918, RFC 6598, RFC 4193).
    Private,
    /// The host itself.
    Host,
    /// Services of clouds that tell secrets to whoever runs there.
    Metadata,
    /// Of one link alone (RFC 3927; RFC 4291, 2.5.6).
    LinkLocal,
    /// Nobody's, or everybody's: unspecified, multicast, reserved, for documentation.
    Special,
}

/// Metadata services outside of the link-local addresses: Azure's, Alibaba's, Oracle's; and of IPv6 Amazon's and
/// Google's.
const METADATA_V4: [Ipv4Addr; 3] =
    [Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(192, 0, 0, 192)];
const METADATA_V6: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)];
/// What more there is among the link-local ones: Amazon's and others', and for its containers, and for DNS and time.
const METADATA_LINK: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 0);

/// The address without its disguises: those of IPv6 that carry one of IPv4 (RFC 4291, RFC 6052, RFC 3056, RFC 4380)
/// lead where that leads.
pub fn plain(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    let octets = v6.octets();
    let v4 =
        |at: usize| IpAddr::V4(Ipv4Addr::new(octets[at], octets[at + 1], octets[at + 2], octets[at + 3]));
    match v6.segments() {
        // Mapped, "translated" (RFC 2765), compatible.
        [0, 0, 0, 0, 0, 0xffff, ..] | [0, 0, 0, 0, 0xffff, 0, ..] => v4(12),
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 || low > 1 => v4(12),
        // NAT64, by its well-known prefix and by the local one.
        [0x64, 0xff9b, 0, 0, 0, 0, ..] | [0x64, 0xff9b, 1, ..] => v4(12),
        // 6to4.
        [0x2002, ..] => v4(2),
        // Teredo: the client's address with its bits turned.
        [0x2001, 0, ..] => {
            let bits = u32::from_be_bytes([octets[12], octets[13], octets[14], octets[15]]);
            IpAddr::V4(Ipv4Addr::from_bits(!bits))
        }
        // ISATAP (RFC 5214).
        [.., 0x0 | 0x200, 0x5efe, _, _] => v4(12),
        _ => address,
    }
}

/// The class of an address, disguised or not.
pub fn class(address: IpAddr) -> Class {
    match plain(address) {
        IpAddr::V4(address) => class_v4(address),
        IpAddr::V6(address) => class_v6(address),
    }
}

fn class_v4(address: Ipv4Addr) -> Class {
    if METADATA_V4.contains(&address) {
        return Class::Metadata;
    }
    match address.octets() {
        [127, ..] => Class::Host,
        // All of it: which of them a cloud uses differs, and nothing else on the link is the guest's business.
        [169, 254, ..] if address >= METADATA_LINK => Class::Metadata,
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] | [100, 64..=127, ..] => Class::Private,
        [0, ..] | [192, 0, 0, _] | [192, 0, 2, _] | [192, 88, 99, _] | [198, 18..=19, ..] => Class::Special,
        [198, 51, 100, _] | [203, 0, 113, _] | [224..=255, ..] => Class::Special,
        _ => Class::Public,
    }
}

fn class_v6(address: Ipv6Addr) -> Class {
    if METADATA_V6.contains(&address) {
        return Class::Metadata;
    }
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 1] => Class::Host,
        [0xfe80..=0xfebf, ..] => Class::LinkLocal,
        [0xfc00..=0xfdff, ..] | [0xfec0..=0xfeff, ..] => Class::Private,
        [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] | [0x2001, 0x2, 0, ..] | [0x100, 0, 0, 0, ..] => {
            Class::Special
        }
        // Global unicast.
        [0x2000..=0x3fff, ..] => Class::Public,
        _ => Class::Special,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Class {
        class(text.parse().unwrap())
    }

    #[test]
    fn addresses_are_what_the_registries_say() {
        let expected = [
            (
                Class::Public,
                "1.1.1.1 8.8.8.8 172.15.0.1 172.32.0.1 100.63.0.1 100.128.0.1 2606:4700::1111 2a00::1",
            ),
            (Class::Host, "127.0.0.1 127.255.255.254 ::1"),
            (
                Class::Private,
                "10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1 100.64.0.1 fd12::1 fc00::1 fec0::1",
            ),
            (
                Class::Metadata,
                "169.254.169.254 169.254.170.2 169.254.0.1 168.63.129.16 100.100.100.200 192.0.0.192",
            ),
            (Class::Metadata, "fd00:ec2::254 fd20:ce::254"),
            (Class::LinkLocal, "fe80::1 febf::1"),
            (
                Class::Special,
                "0.0.0.0 0.1.2.3 224.0.0.1 239.1.1.1 255.255.255.255 240.0.0.1 192.0.2.1 198.18.0.1 :: ff02::1",
            ),
            (Class::Special, "2001:db8::1 3fff::1 100::1 4000::1"),
        ];
        for (class, addresses) in expected {
            for address in addresses.split(' ') {
                assert_eq!(of(address), class, "{address}");
            }
        }
    }

    #[test]
    fn disguises_are_seen_through() {
        for (class, addresses) in [
            (
                Class::Host,
                "::ffff:127.0.0.1 ::127.0.0.1 64:ff9b::127.0.0.1 2002:7f00:1:: 64:ff9b:1::127.0.0.1",
            ),
            (Class::Private, "::ffff:10.0.0.1 64:ff9b::192.168.0.1 2002:c0a8:1::1 ::ffff:0:10.1.1.1"),
            (
                Class::Metadata,
                "::ffff:169.254.169.254 64:ff9b::a9fe:a9fe 2002:a9fe:a9fe:: 2001:0:1:2:3:4:5601:5601",
            ),
            (Class::Private, "2a00::5efe:10.0.0.1 2a00::200:5efe:192.168.3.4"),
            (Class::Special, "::ffff:0.0.0.0 64:ff9b::224.0.0.1"),
            (Class::Public, "64:ff9b::1.1.1.1 ::ffff:8.8.8.8"),
        ] {
            for address in addresses.split(' ') {
                assert_eq!(of(address), class, "{address}");
            }
        }
    }
}
