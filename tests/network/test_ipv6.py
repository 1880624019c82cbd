"""IPv6 in guests, where the host has a route and where it has none: hosts are network namespaces of the test's own."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..real import run
from .namespaces import Namespaces, namespaces

BUSYBOX = Path(__file__).parents[2] / "demo" / "busybox.oci.tar"
#: Global unicast addresses that are somebody's elsewhere: the namespaces lead nowhere.
HOST, SERVER, ABROAD = "2a0e:8f01:7::1", "2a0e:8f01:7::2", "2a0e:8f01:8::2"
BYTES = 3 << 20

#: A site, a name server that knows its address and nothing else, and an echo of datagrams.
SERVERS = """
import hashlib, http.server, socket, sys, threading

address, size = sys.argv[1], int(sys.argv[2])
data = hashlib.shake_128(b"site").digest(size)

class Site(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(hashlib.sha256(body).hexdigest().encode())
    def log_message(self, *arguments):
        pass

class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6

def names():
    while True:
        query, peer = udp.recvfrom(2048)
        end = query.index(b"\\0", 12) + 5
        record = b"\\xc0\\x0c\\0\\x1c\\0\\1\\0\\0\\0\\x3c\\0\\x10" + socket.inet_pton(socket.AF_INET6, address)
        is_aaaa = query[end - 4 : end - 2] == b"\\0\\x1c"
        answers = b"\\0\\1" if is_aaaa else b"\\0\\0"
        answer = query[:2] + b"\\x81\\x80\\0\\1" + answers + b"\\0\\0\\0\\0" + query[12:end]
        udp.sendto(answer + (record if is_aaaa else b""), peer)

udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
udp.bind((address, 53))
threading.Thread(target=names, daemon=True).start()
server = Server((address, 80), Site)
print("ready", flush=True)
server.serve_forever()
"""

#: What every program that runs on the host begins with.
PREFACE = """
import json, sys
from supermachine import VM, Network

image, server = sys.argv[1:3]

def said(vm, *command):
    done = vm.run(list(command), text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr

def denied(vm):
    return [[d.name, d.address, d.port, d.protocol, d.reason] for d in vm.network.denials()]
"""


@pytest.fixture(scope="module")
def place() -> Iterator[Namespaces]:
    with namespaces([f"{HOST}/64"], [f"{SERVER}/64", f"{ABROAD}/64"]) as made:
        made.route(SERVER)
        with made.serving(SERVERS, ABROAD, str(BYTES)):
            yield made


def program(place: Namespaces, text: str, *arguments: str | Path) -> dict[str, list[object]]:
    """What a program that uses the package on this host prints."""
    command = [sys.executable, "-c", PREFACE + text, BUSYBOX, ABROAD, *arguments]
    said: dict[str, list[object]] = json.loads(run(*place.command(place.host, *command)))
    return said


DATA = hashlib.shake_128(b"site").digest(BYTES)


def test_a_guest_reaches_what_the_host_has_a_route_to_and_no_more(place: Namespaces) -> None:
    said = program(
        place,
        """
with VM(image, network=Network("public", dns=[f"[{server}]:53"]), bake=False) as vm:
    result = {
        "address": said(vm, "ip", "-6", "addr", "show", "eth0"),
        "name": said(vm, "sh", "-c", "wget -q -O - http://there.test/ | sha256sum"),
        "address literal": said(vm, "sh", "-c", f"wget -q -O - http://[{server}]/ | sha256sum"),
        "datagrams": said(vm, "nslookup", "-type=aaaa", "there.test", server),
        "ping": said(vm, "ping", "-c", "2", server),
        "gateway": said(vm, "ping", "-c", "1", "fd53:4d2f:9c17::2"),
    }
    vm.path("/tmp/up").write_bytes(b"u" * (1 << 20))
    result["upload"] = said(vm, "wget", "-q", "-O", "-", "--post-file", "/tmp/up", f"http://[{server}]/")
    flows = [flow.address for flow in vm.network.flows()]
    result["refused port"] = said(vm, "wget", "-O", "-", f"http://[{server}]:81/")
    for address in sys.argv[3:]:
        result[address] = said(vm, "wget", "-O", "-", f"http://[{address}]/")
    result["denied"] = denied(vm)
    (fork,) = vm.fork(1)
    with fork:
        result["fork"] = said(fork, "sh", "-c", "wget -q -O - http://there.test/ | sha256sum")
print(json.dumps(result))
""", *DENIED)  # fmt: skip
    assert "fd53:4d2f:9c17::15/64" in str(said["address"])
    digest = hashlib.sha256(DATA).hexdigest()
    for way in ("name", "address literal", "fork"):
        assert said[way] == [0, f"{digest}  -\n"]
    assert said["upload"] == [0, hashlib.sha256(b"u" * (1 << 20)).hexdigest()]
    assert ABROAD in str(said["datagrams"])
    assert "2 packets received" in str(said["ping"])
    assert "1 packets received" in str(said["gateway"])
    assert "Connection refused" in str(said["refused port"])
    told = {str(address): str(reason) for _, address, *_, reason in said["denied"]}
    for address in DENIED:
        assert said[address][0] != 0, address
    assert told[HOST] == "it is the host"
    assert set(told) == DENIED


#: The host itself, private and special addresses, and those of IPv4 in disguise.
DENIED = {
    HOST,
    "fd53:4d2f:9c17::2",
    "fd53:4d2f:9c17::99",
    "fd12:3456::1",
    "fd00:ec2::254",
    "fec0::1",
    "2001:db8::1",
    "100::1",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "2002:a00:1::1",
    "2a0e:8f01:7::5efe:a00:1",
}


def test_names_are_held_by_ipv6_as_well(place: Namespaces) -> None:
    said = program(
        place,
        """
network = Network("none", allow=["there.test"], dns=[f"[{server}]:53"])
with VM(image, network=network, bake=False) as vm:
    result = {"before": said(vm, "wget", "-q", "-O", "/dev/null", f"http://[{server}]/")}
    result["name"] = said(vm, "wget", "-q", "-O", "/dev/null", "http://there.test/")
    # The address is the name's now, and is allowed to no other.
    result["other host"] = said(vm, "wget", "-q", "-O", "/dev/null", "--header", "Host: other.test", f"http://[{server}]/")
    result["denied"] = denied(vm)
print(json.dumps(result))
""",
    )
    assert [said[way][0] == 0 for way in ("before", "name", "other host")] == [False, True, False]
    assert len(said["denied"]) == 2


def test_a_machine_on_a_segment_reaches_its_members_and_what_the_host_reaches(place: Namespaces) -> None:
    text = """
def on_it():
    with (
        VM(image, network=Network.private("shop", "public"), hostname="db", bake=False) as db,
        VM(image, network=Network.private("shop", "public"), hostname="web", bake=False) as web,
    ):
        db.popen(["httpd", "-f", "-p", "80", "-h", "/etc"])
        inside = f"http://[{db.network.address_v6}]/passwd"
        return {
            "inside": said(web, "sh", "-c", f"until wget -q -O - {inside} | grep root; do sleep 0.1; done"),
            "outside": said(web, "sh", "-c", f"wget -q -O - http://[{server}]/ | sha256sum"),
            "route": said(web, "ip", "-6", "route"),
        }
print(json.dumps(on_it()))
"""
    there = program(place, text)
    digest = hashlib.sha256(DATA).hexdigest()
    assert (there["inside"][0], there["outside"]) == (0, [0, f"{digest}  -\n"])
    place.route(SERVER, there=False)
    try:
        gone = program(place, text)
    finally:
        place.route(SERVER)
    assert gone["inside"] == there["inside"]
    assert gone["outside"] != there["outside"]
    assert ["default" in str(said["route"]) for said in (there, gone)] == [True, False]


def test_without_a_route_a_guest_has_no_address_and_what_it_sends_goes_nowhere(
    place: Namespaces, tmp_path: Path
) -> None:
    had = program(
        place,
        """
with VM(image, network="public", bake=False) as vm:
    vm.snapshot(sys.argv[3])
    print(json.dumps({"address": said(vm, "ip", "-6", "addr", "show", "eth0")}))
""", tmp_path / "snapshot")  # fmt: skip
    assert "fd53:" in str(had["address"])
    place.route(SERVER, there=False)
    try:
        said = program(
        place,
        """
for name, start in {
    "new": lambda: VM(image, network="public", bake=False),
    "restored": lambda: VM.restore(sys.argv[3], network="public"),
}.items():
    with start() as vm:
        result = globals().setdefault("result", {})
        result[name] = [
            said(vm, "ip", "-6", "addr", "show", "eth0"),
            said(vm, "ip", "-6", "route"),
            said(vm, "wget", "-O", "-", f"http://[{server}]/"),
            said(vm, "sh", "-c", f"ip -6 addr add fd53:4d2f:9c17::15/64 dev eth0 nodad &&"
                 f"ip -6 route add default via fd53:4d2f:9c17::2 && wget -T 2 -O - http://[{server}]/"),
            len(denied(vm)), len(vm.network.flows()),
        ]
print(json.dumps(result))
""", tmp_path / "snapshot")  # fmt: skip
    finally:
        place.route(SERVER)
    for addresses, routes, connection, forced, denials, flows in (said["new"], said["restored"]):
        assert "fd53:" not in str(addresses)
        assert "default" not in str(routes)
        assert "unreachable" in str(connection)
        # Nor does it help the guest to take one.
        assert (forced[0] != 0, denials, flows) == (True, 0, 0)  # type: ignore[index]
    with_route = program(
        place,
        """
with VM.restore(sys.argv[3], network="public") as vm:
    print(json.dumps({"page": said(vm, "wget", "-q", "-O", "/dev/null", f"http://[{server}]/")}))
""", tmp_path / "snapshot")  # fmt: skip
    assert with_route["page"] == [0, ""]
