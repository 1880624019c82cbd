"""Ways around the policy, each tried inside a real guest: what leaves the host is looked for on its wires."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..real import require, run
from ..vm.conftest import packages_layout
from . import attempts
from .namespaces import namespaces

PACKAGES = "python3,coreutils,base-files,base-passwd,netbase,dash"
WORLD = [
    "45.0.1.2/24",
    *(f"{address}/32" for address in (attempts.ALLOWED, "45.0.0.11", attempts.EVIL, "45.0.0.67", attempts.RESOLVER)),
    f"{attempts.PRIVATE}/32",
    f"{attempts.METADATA}/32",
    "2a0e:8f01:7::2/64",
    f"{attempts.ALLOWED_V6}/128",
    f"{attempts.EVIL_V6}/128",
]

#: Servers that take whatever comes at every address, and a name server that leads astray.
SERVERS = """
import socket, struct, sys, threading

ALIAS = b"\\6denied\\4test\\0"
TABLE = {
    b"allowed.test": "45.0.0.10", b"denied.test": "45.0.0.67", b"loopback.rebind.test": "127.0.0.1",
    b"private.rebind.test": "10.9.0.5", b"metadata.rebind.test": "169.254.169.254",
    b"host.rebind.test": "45.0.1.1", b"gateway.rebind.test": "10.0.2.2",
    b"mapped.rebind.test": "::ffff:10.9.0.5", b"nat64.rebind.test": "64:ff9b::a09:5",
}

def answered(query):
    end = query.index(b"\\0", 12) + 5
    kind, at, labels = query[end - 4 : end - 2], 12, []
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]])
        at += 1 + query[at]
    name = b".".join(labels).lower()
    records = []
    def add(owner, kind, data):
        records.append(owner + struct.pack(">HHIH", kind, 1, 60, len(data)) + data)
    if name == b"alias.denied.test":
        add(b"\\xc0\\x0c", 5, ALIAS)
        if kind == b"\\0\\1":
            add(ALIAS, 1, socket.inet_aton(TABLE[b"denied.test"]))
    elif name in TABLE:
        v6 = ":" in TABLE[name]
        number, family = (28, socket.AF_INET6) if v6 else (1, socket.AF_INET)
        if kind == bytes([0, number]):
            add(b"\\xc0\\x0c", number, socket.inet_pton(family, TABLE[name]))
    header = query[:2] + b"\\x81\\x80\\0\\1" + struct.pack(">H", len(records)) + bytes(4)
    return header + query[12:end] + b"".join(records)

def names(server):
    while True:
        query, peer = server.recvfrom(4096)
        server.sendto(answered(query), peer)

def serve(client):
    with client:
        client.settimeout(3)
        try:
            said = client.recv(4096)
            if b"/redirect " in said:
                client.sendall(b"HTTP/1.1 302 Found\\r\\nLocation: http://45.0.0.66/\\r\\n\\r\\n")
            else:
                client.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok")
        except OSError:
            pass

def accept(server):
    while True:
        threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()

for port in (22, 80, 443, 853, 5000, 8080):
    server = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    threading.Thread(target=accept, args=(server,), daemon=True).start()
datagrams = []
for port in (443, 5000):
    datagrams.append(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
    datagrams[-1].bind(("::", port))
resolver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
resolver.bind(("45.0.0.53", 53))
print("ready", flush=True)
names(resolver)
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[str, list[list[object]]]]]:
    require("mmdebstrap", "umoci")
    place = tmp_path_factory.mktemp("attacker")
    layout = packages_layout(place, PACKAGES)
    with namespaces([f"{attempts.HOST}/24", f"{attempts.HOST_V6}/64"], WORLD) as made:
        made.route("45.0.1.2")
        made.route("2a0e:8f01:7::2")
        with made.serving(SERVERS):
            program = Path(__file__).with_name("attacked.py")
            yield json.loads(run(*made.command(made.host, sys.executable, program, layout)))


@pytest.mark.parametrize("name", attempts.ATTEMPTS)
def test_nothing_gets_through(results: dict[str, dict[str, list[list[object]]]], name: str) -> None:
    result = results[name]
    assert (result["carried"], result["places"]) == ([], []), result["seen"]


@pytest.mark.parametrize(("what", "port"), [("allowed request", 80), ("allowed hello", 443)])
def test_what_is_allowed_is_seen_to_leave(
    results: dict[str, dict[str, list[list[object]]]], what: str, port: int
) -> None:
    assert [attempts.ALLOWED, port] in results[what]["carried"], results[what]
    assert "200 OK" in str(results[what]["seen"])


def test_a_clone_has_no_pins_of_its_parents(results: dict[str, dict[str, list[list[object]]]]) -> None:
    inherited = results["address that its parent has looked up"]
    assert (inherited["carried"], inherited["places"]) == ([], []), inherited["seen"]
    assert [attempts.ALLOWED, 443] in results["address that it has looked up itself"]["carried"]
