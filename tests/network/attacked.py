"""The host of machines that try ways around the policy: a program that tells of each attempt what has left it.

It runs in a network namespace of its own, where it sees every packet.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

from supermachine import VM, Network

sys.path.insert(0, str(Path(__file__).parent))
import attempts

#: What names lead to, by the world's name server.
NETWORK = Network(
    "none",
    allow=["allowed.test:80,443", "*.rebind.test", "alias.denied.test"],
    deny=["denied.test"],
    dns=[attempts.RESOLVER],
)
#: Where packets may go in the course of an attempt: to the name server, and to what an allowed name leads to.
EXPECTED = {(attempts.RESOLVER, 53), (attempts.ALLOWED, 80), (attempts.ALLOWED, 443)}
#: How long what an attempt has sent may take to be on a wire.
SETTLED = 0.15
OUTGOING, ALL = 4, 3


class Wire:
    """Every packet on the host's interfaces, its loopback included."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._socket.setblocking(False)

    def take(self) -> list[tuple[tuple[str, int], bytes]]:
        """Those since the last call that leave the host, or stay on it: whom each is for, and all of it."""
        found: list[tuple[tuple[str, int], bytes]] = []
        while True:
            try:
                packet, (name, kind, direction, *_) = self._socket.recvfrom(65536)
            except BlockingIOError:
                return found
            if direction != OUTGOING:
                continue
            place = _place(kind, packet)
            if place is not None:
                found.append(((f"{name} {place[0]}" if name == "lo" else place[0], place[1]), packet))


def _place(kind: int, packet: bytes) -> tuple[str, int] | None:
    """Address and port (of what has none, its protocol) of a packet; None for what neighbours say to each other."""
    if kind == 0x0800:
        address, protocol = socket.inet_ntop(socket.AF_INET, packet[16:20]), packet[9]
        body = packet[(packet[0] & 15) * 4 :]
    elif kind == 0x86DD:
        address, protocol, body = socket.inet_ntop(socket.AF_INET6, packet[24:40]), packet[6], packet[40:]
        if address.startswith("ff02:") or (protocol == 58 and body[0] >= 130):
            return None
    else:
        return None
    return address, struct.unpack(">H", body[2:4])[0] if protocol in (6, 17) else protocol


def serve() -> list[socket.socket]:
    """Somebody who listens on the host, by TCP and by UDP."""
    listener = socket.create_server(("::", attempts.SERVICE), family=socket.AF_INET6, dualstack_ipv6=True)
    datagrams = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    datagrams.bind(("::", attempts.SERVICE))

    def accept() -> None:
        while True:
            listener.accept()[0].close()

    threading.Thread(target=accept, daemon=True).start()
    return [listener, datagrams]


def marker(name: str) -> str:
    return f"marker{zlib.crc32(name.encode()):08x}"


def evidence(wire: Wire, name: str) -> dict[str, object]:
    """What has come of an attempt."""
    time.sleep(SETTLED)
    packets = wire.take()
    wanted = marker(name).encode()
    carried = [place for place, packet in packets if wanted in packet.lower()]
    return {"carried": carried, "places": sorted({place for place, _ in packets} - EXPECTED)}


def once(vm: VM, wire: Wire, label: str, program: str) -> dict[str, object]:
    """Something else, tried by a process of its own."""
    wire.take()
    code = f"import sys; sys.path.insert(0, '/'); from attempts import *; marker = {marker(label)!r}; {program}"
    done = vm.run(["python3", "-c", code], text=True, timeout=60)
    return {**evidence(wire, label), "seen": done.stdout + done.stderr[-200:]}


def main() -> None:
    image = sys.argv[1]
    results: dict[str, dict[str, object]] = {}
    _listeners, wire = serve(), Wire()
    ports = {f"{attempts.PUBLISHED}/tcp": attempts.PUBLISHED}
    with VM(image, network=NETWORK, ports=ports, bake=False) as vm:
        vm.path("/attempts.py").write_text(Path(attempts.__file__).read_text())
        # What is allowed gets through, and is seen by who looks for it.
        for label, program in CONTROLS.items():
            results[label] = once(vm, wire, label, program)
        process = vm.popen(["python3", "/attempts.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdin is not None
        assert process.stdout is not None
        for name in attempts.ATTEMPTS:
            wire.take()
            process.stdin.write(f"{name} {marker(name)}\n")
            process.stdin.flush()
            seen = json.loads(process.stdout.readline())
            results[name] = {**evidence(wire, name), "seen": seen["seen"]}
        process.kill()
        (fork,) = vm.fork(1)
        with fork:
            for label, program in CLONES.items():
                results[label] = once(fork, wire, label, program)
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps(results))


CONTROLS = {
    "allowed request": "print(tcp('allowed.test', 80, request('allowed.test', marker)))",
    "allowed hello": "print(tcp('allowed.test', 443, hello('allowed.test', marker)))",
}
CLONES = {
    "address that its parent has looked up": "tcp(ALLOWED, 443, hello('allowed.test', marker))",
    "address that it has looked up itself": "print(tcp('allowed.test', 443, hello('allowed.test', marker)))",
}

if __name__ == "__main__":
    main()
