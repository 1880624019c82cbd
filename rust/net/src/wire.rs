//! Ethernet, IP, TCP, UDP and ICMP as they are on the wire: headers read from and written to bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Bytes of an Ethernet header without VLAN tags.
pub const ETHERNET: usize = 14;
/// Headers of a frame at most: Ethernet, IP with options, TCP with options.
pub const HEADERS: usize = ETHERNET + 60 + 60;
/// EtherType of ARP (RFC 826).
pub const ARP: u16 = 0x0806;
/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;
/// Protocol number of ICMP (RFC 792).
pub const ICMP: u8 = 1;
/// Protocol number of TCP (RFC 9293).
pub const TCP: u8 = 6;
/// Protocol number of UDP (RFC 768).
pub const UDP: u8 = 17;
/// Next header of ICMPv6 (RFC 4443).
pub const ICMPV6: u8 = 58;
/// The extension header of a fragment (RFC 8200, 4.5), and its bytes.
pub const FRAGMENT: u8 = 44;
/// Bytes of that header.
pub const FRAGMENT_HEADER: usize = 8;

/// An Ethernet address.
pub type Mac = [u8; 6];

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// What an IP header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip {
    /// Who has sent it.
    pub source: IpAddr,
    /// Whom it is for.
    pub destination: IpAddr,
    /// Number of what follows the header, extension headers of fragments left out.
    pub protocol: u8,
    /// Where the transport header is in the frame, and how many bytes there are from it on.
    pub at: usize,
    /// Bytes from `at` to the end of the packet.
    pub length: usize,
    /// Identification, offset in bytes and whether more follow, of a fragment.
    pub fragment: Option<(u32, usize, bool)>,
}

/// Reads the IP header of a frame of `total` bytes, whose first are `head`. `None` for what is none, or damaged.
pub fn ip(head: &[u8], total: usize) -> Option<Ip> {
    match be16(head, 12)? {
        IPV4 => {
            let header = head.get(ETHERNET..)?;
            let length = usize::from(header.first()? & 15) * 4;
            if header[0] >> 4 != 4 || length < 20 || header.len() < length {
                return None;
            }
            let all = usize::from(be16(header, 2)?);
            if all < length || ETHERNET + all > total || checksum(&header[..length], 0) != 0 {
                return None;
            }
            let fragment = be16(header, 6)?;
            let (offset, more) = (usize::from(fragment & 0x1fff) * 8, fragment & 0x2000 != 0);
            let address = |at| be32(header, at).map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits)));
            Some(Ip {
                source: address(12)?,
                destination: address(16)?,
                protocol: header[9],
                at: ETHERNET + length,
                length: all - length,
                fragment: (offset != 0 || more).then_some((be16(header, 4)?.into(), offset, more)),
            })
        }
        IPV6 => {
            let header = head.get(ETHERNET..ETHERNET + 40)?;
            let length = usize::from(be16(header, 4)?);
            if header[0] >> 4 != 6 || ETHERNET + 40 + length > total {
                return None;
            }
            let address = |at: usize| {
                let bytes: [u8; 16] = header[at..at + 16].try_into().ok()?;
                Some(IpAddr::V6(Ipv6Addr::from(bytes)))
            };
            let (source, destination, at) = (address(8)?, address(24)?, ETHERNET + 40);
            if header[6] == FRAGMENT && length >= FRAGMENT_HEADER {
                let (protocol, field) = (*head.get(at)?, be16(head, at + 2)?);
                let (id, offset, more) = (be32(head, at + 4)?, usize::from(field & !7), field & 1 != 0);
                let (at, length) = (at + FRAGMENT_HEADER, length - FRAGMENT_HEADER);
                let fragment = (offset != 0 || more).then_some((id, offset, more));
                return Some(Ip { source, destination, protocol, at, length, fragment });
            }
            // Other extension headers are not followed: their number is no protocol that is served here.
            Some(Ip { source, destination, protocol: header[6], at, length, fragment: None })
        }
        _ => None,
    }
}

/// The sender has no more data.
pub const FIN: u8 = 1;
/// The sequence number is the first one.
pub const SYN: u8 = 2;
/// The connection is broken off.
pub const RST: u8 = 4;
/// What has come is to be given to the program at once.
pub const PSH: u8 = 8;
/// The acknowledgement number counts.
pub const ACK: u8 = 16;

/// What a TCP header says (RFC 9293).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tcp {
    /// The sender's port.
    pub source: u16,
    /// The receiver's port.
    pub destination: u16,
    /// Sequence number of the first byte, or of the SYN.
    pub seq: u32,
    /// The next sequence number that the sender waits for, with [`ACK`].
    pub ack: u32,
    /// Of the constants above, as they are in byte 13.
    pub flags: u8,
    /// Bytes that the sender has room for, before they are scaled.
    pub window: u16,
    /// Bytes of the header.
    pub header: usize,
    /// The maximum segment size option, of a SYN.
    pub mss: Option<u16>,
    /// The window scale option, of a SYN: how far windows are shifted left.
    pub scale: Option<u8>,
}

/// Reads a TCP header; `None` for one that is cut or says that it is shorter than 20 bytes.
pub fn tcp(bytes: &[u8]) -> Option<Tcp> {
    let header = usize::from(bytes.get(12)? >> 4) * 4;
    let options = bytes.get(20..header)?;
    let mut tcp = Tcp {
        source: be16(bytes, 0)?,
        destination: be16(bytes, 2)?,
        seq: be32(bytes, 4)?,
        ack: be32(bytes, 8)?,
        flags: bytes[13],
        window: be16(bytes, 14)?,
        header,
        ..Tcp::default()
    };
    let mut at = 0;
    while let Some(&kind) = options.get(at) {
        match kind {
            0 => break,
            1 => at += 1,
            _ => {
                let length = usize::from(*options.get(at + 1)?);
                match (kind, length) {
                    (_, 0 | 1) => return None,
                    (2, 4) => tcp.mss = be16(options, at + 2),
                    (3, 3) => tcp.scale = options.get(at + 2).map(|scale| (*scale).min(14)),
                    _ => {}
                }
                at += length;
            }
        }
    }
    Some(tcp)
}

/// Ports and length of a UDP header.
pub fn udp(bytes: &[u8]) -> Option<(u16, u16, usize)> {
    Some((be16(bytes, 0)?, be16(bytes, 2)?, usize::from(be16(bytes, 4)?)))
}

/// The Internet checksum (RFC 1071) of `bytes`, beginning with `sum`; 0 when they contain their own.
pub fn checksum(bytes: &[u8], sum: u64) -> u16 {
    !fold(add(bytes, sum))
}

/// Adds an even number of bytes, or the last ones, to a sum.
pub fn add(bytes: &[u8], mut sum: u64) -> u64 {
    let mut words = bytes.chunks_exact(4);
    for word in &mut words {
        sum += u64::from(u32::from_be_bytes([word[0], word[1], word[2], word[3]]));
    }
    let rest = words.remainder();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    sum + u64::from(u32::from_be_bytes(last))
}

/// A length of a packet as its header has it.
fn total(length: usize) -> u16 {
    u16::try_from(length).expect("packets have less than 64 KiB")
}

/// Ends a checksum of sums of 16-bit words (RFC 1071).
#[expect(clippy::cast_possible_truncation, reason = "the loop ends when it fits")]
pub fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The sum of the pseudo header (RFC 9293, 3.1; RFC 8200, 8.1).
pub fn pseudo(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> u64 {
    let sum = |address| match address {
        IpAddr::V4(address) => add(&Ipv4Addr::octets(&address), 0),
        IpAddr::V6(address) => add(&Ipv6Addr::octets(&address), 0),
    };
    sum(source) + sum(destination) + u64::from(protocol) + length as u64
}

/// The headers of a frame that is being written.
pub struct Writer {
    bytes: [u8; HEADERS],
    len: usize,
}

impl Writer {
    /// An Ethernet header.
    pub fn ethernet(source: Mac, destination: Mac, kind: u16) -> Self {
        let mut writer = Self { bytes: [0; HEADERS], len: 0 };
        writer.put(&destination);
        writer.put(&source);
        writer.put(&kind.to_be_bytes());
        writer
    }

    /// Ethernet and IP headers before `length` bytes of payload. `fragment` is the field of that name of IPv4, after
    /// its identification.
    pub fn ip(
        macs: (Mac, Mac),
        ends: (IpAddr, IpAddr),
        protocol: u8,
        length: usize,
        id: u16,
        fragment: u16,
    ) -> Self {
        match ends {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut writer = Self::ethernet(macs.0, macs.1, IPV4);
                writer.put(&[0x45, 0]);
                writer.put(&total(20 + length).to_be_bytes());
                writer.put(&id.to_be_bytes());
                writer.put(&fragment.to_be_bytes());
                writer.put(&[64, protocol, 0, 0]);
                writer.put(&source.octets());
                writer.put(&destination.octets());
                let sum = checksum(&writer.bytes[ETHERNET..ETHERNET + 20], 0);
                writer.bytes[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&sum.to_be_bytes());
                writer
            }
            (source, destination) => {
                let octets = |address| match address {
                    IpAddr::V4(address) => Ipv4Addr::to_ipv6_mapped(&address).octets(),
                    IpAddr::V6(address) => address.octets(),
                };
                let mut writer = Self::ethernet(macs.0, macs.1, IPV6);
                writer.put(&[0x60, 0, 0, 0]);
                writer.put(&total(length).to_be_bytes());
                writer.put(&[protocol, if protocol == ICMPV6 { 255 } else { 64 }]);
                writer.put(&octets(source));
                writer.put(&octets(destination));
                writer
            }
        }
    }

    /// Appends bytes.
    pub fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    /// Overwrites two bytes.
    pub fn set(&mut self, at: usize, value: u16) {
        self.bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
    }

    /// What was written so far.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// The address of an end with its port.
pub fn end(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_that_is_written_is_read_as_it_was() {
        let ends: (IpAddr, IpAddr) = ([10, 0, 2, 15].into(), [192, 0, 2, 7].into());
        let writer = Writer::ip(([1; 6], [2; 6]), ends, TCP, 40, 9, 0);
        let read = ip(writer.bytes(), 14 + 20 + 40).unwrap();
        assert_eq!(
            (read.source, read.destination, read.protocol, read.at, read.length),
            (ends.0, ends.1, TCP, 34, 40)
        );
        assert!(ip(writer.bytes(), 14 + 20 + 39).is_none(), "it is shorter than it says");
        let mut damaged = writer.bytes().to_vec();
        damaged[30] ^= 1;
        assert!(ip(&damaged, 74).is_none(), "its checksum is wrong");
    }

    #[test]
    fn options_end_where_the_header_does() {
        let mut bytes = [0; 28];
        bytes[12] = 7 << 4;
        bytes[20..28].copy_from_slice(&[1, 2, 4, 5, 180, 3, 3, 200]);
        let read = tcp(&bytes).unwrap();
        assert_eq!((read.mss, read.scale), (Some(1460), Some(14)));
        bytes[21..23].copy_from_slice(&[9, 0]);
        assert!(tcp(&bytes).is_none(), "an option of no length would never end");
        bytes[12] = 15 << 4;
        assert!(tcp(&bytes).is_none(), "the header is longer than the bytes");
        bytes[12] = 4 << 4;
        assert!(tcp(&bytes).is_none(), "the header is shorter than a header");
    }

    #[test]
    fn checksums_are_those_of_the_standard() {
        // RFC 1071, section 3.
        assert_eq!(fold(add(&[0, 1, 0xf2, 3, 0xf4, 0xf5, 0xf6, 0xf7], 0)), 0xddf2);
        assert_eq!(checksum(&[1], 0), !0x0100);
    }
}
