"""The guest's network on the software engine beside QEMU (TCG) with user networking and with passt: the same guest.

`python -m benches.network` writes network.json. See README.md for what is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import socket
import statistics
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from supermachine import VM, Network

from .guests import PROGRAMS, ROOT, archive, nodes, unpack
from .machines import QEMU

BUSYBOX = str(ROOT / "demo" / "busybox.oci.tar")
GATEWAY = "10.0.2.2"
MEMORY_MIB = 512
#: Seconds after which a guest has failed.
DEADLINE = 300.0
FLOWS = 8
ROUND_TRIPS, CONNECTIONS, QUESTIONS = 2000, 500, 500
#: Bytes of a transfer: a second or two on either side.
BYTES = {"soft": 256 << 20, "qemu": 48 << 20, "passt": 48 << 20}
#: Of an IP packet that fits passt's frames; the guest's card says so, as there is no other way to offload segments.
PASST_MTU = 65520
HELD = 10_000
RESTORES = 20
NAME = "there.test"
_CHUNK = bytes(1 << 20)


class Servers:
    """What guests speak to, each on a port of the host's loopback."""

    def __init__(self) -> None:
        self._open = ExitStack()
        self.sink = self._serve(self._take)
        self.source = self._serve(self._give)
        self.echo = self._serve(self._return)
        self.end = self._serve(lambda client: client.close())
        self.hold = self._serve(self._keep)
        self.names = self._name_server()
        #: Bytes that each connection to `source` is sent.
        self.share = 0
        self._held: list[socket.socket] = []

    def _serve(self, serve: Callable[[socket.socket], None]) -> int:
        server = self._open.enter_context(socket.create_server(("127.0.0.1", 0), backlog=4096))

        def accept() -> None:
            while True:
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if serve == self._keep:
                    serve(client)
                else:
                    threading.Thread(target=serve, args=(client,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        return int(server.getsockname()[1])

    def _take(self, client: socket.socket) -> None:
        buffer = bytearray(1 << 20)
        with client:
            while client.recv_into(buffer):
                pass

    def _give(self, client: socket.socket) -> None:
        left = self.share
        with client:
            while left:
                left -= client.send(_CHUNK[:left])

    def _return(self, client: socket.socket) -> None:
        with client:
            while data := client.recv(4096):
                client.sendall(data)

    def _keep(self, client: socket.socket) -> None:
        self._held.append(client)

    def release(self) -> None:
        while self._held:
            self._held.pop().close()

    def _name_server(self) -> int:
        server = self._open.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        server.bind(("127.0.0.1", 0))
        record = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + socket.inet_aton("203.0.113.9")

        def answer() -> None:
            while True:
                try:
                    query, peer = server.recvfrom(2048)
                except OSError:
                    return
                server.sendto(query[:2] + b"\x81\x80\0\1\0\1\0\0\0\0" + query[12:] + record, peer)

        threading.Thread(target=answer, daemon=True).start()
        return int(server.getsockname()[1])

    def close(self) -> None:
        self.release()
        self._open.close()


class Guest:
    """A guest that does as it is told over a connection of its own."""

    def __init__(self, name: str, listener: socket.socket, pids: Callable[[], list[int]]) -> None:
        listener.settimeout(DEADLINE)
        self.name, self.pids = name, pids
        self._control, _ = listener.accept()
        self._control.settimeout(DEADLINE)
        self._control.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def does(self, command: str) -> float:
        """Seconds that a command takes."""
        began = time.perf_counter()
        self._control.sendall(command.encode() + b"\n")
        if self._control.recv(5, socket.MSG_WAITALL) != b"done\n":
            raise RuntimeError(f"{self.name}: the guest has ended at {command!r}")
        return time.perf_counter() - began


def _program(place: Path) -> Path:
    out = place / "network"
    command = ["aarch64-linux-gnu-gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-static", "-o", str(out)]
    subprocess.run([*command, str(PROGRAMS / "network.c")], check=True)
    return out


@contextmanager
def soft(program: Path, servers: Servers) -> Iterator[Guest]:
    """This product's guest, under a policy that another process holds."""
    network = Network("none", allow=["host", NAME], dns=[f"127.0.0.1:{servers.names}"])
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        VM(BUSYBOX, network=network, memory=f"{MEMORY_MIB}MiB", engine="soft", bake=False) as vm,
    ):
        vm.path("/network").write_bytes(program.read_bytes())
        vm.path("/network").chmod(0o755)
        process = vm.popen(["/network", GATEWAY, str(listener.getsockname()[1])])

        def pids() -> list[int]:
            guest = vm._guest
            assert guest is not None and vm.pid is not None
            return [pid for pid in (vm.pid, guest.worker.network_pid) if pid is not None]

        try:
            yield Guest("soft", listener, pids)
        finally:
            process.kill()


@contextmanager
def passt(place: Path, program: Path) -> Iterator[Guest]:
    """QEMU's, whose frames passt takes and gives."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "passt"
        command = ["passt", "--foreground", "--quiet", "--socket", str(path), "--runas", str(os.getuid())]
        command += ["--address", "10.0.2.15", "--netmask", "255.255.255.0", "--gateway", GATEWAY]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                deadline = time.monotonic() + DEADLINE
                while not path.is_socket():
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise RuntimeError(f"passt has not begun: {process.returncode}")
                    time.sleep(0.05)
                stream = f"stream,id=net,addr.type=unix,addr.path={path}"
                with qemu(place, program, "passt", stream, f",host_mtu={PASST_MTU}") as guest:
                    machine = guest.pids()
                    guest.pids = lambda: [*machine, process.pid]
                    yield guest
            finally:
                process.kill()


@contextmanager
def qemu(
    place: Path, program: Path, name: str = "qemu", network: str = "user,id=net", more: str = ""
) -> Iterator[Guest]:
    """QEMU's, with a network card of virtio and, unless told otherwise, its user networking."""
    kernel, initramfs = place / "Image", place / "network.cpio"
    unpack(ROOT / "guest" / "aarch64" / "Image.zst", kernel)
    init = ("init", 0o100755, (0, 0), program.read_bytes())
    initramfs.write_bytes(archive(iter([*nodes(), init])))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = [QEMU, "-M", "virt,gic-version=3", "-cpu", "cortex-a72", "-accel", "tcg", "-smp", "1"]
        command += ["-m", str(MEMORY_MIB), "-nodefaults", "-display", "none", "-serial", "null", "-no-reboot"]
        command += ["-netdev", network, "-device", f"virtio-net-device,netdev=net{more}"]
        command += ["-kernel", str(kernel), "-initrd", str(initramfs)]
        command += ["-append", f"quiet panic=-1 control={listener.getsockname()[1]}"]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
            try:
                yield Guest(name, listener, lambda: [process.pid])
            finally:
                process.kill()


def _processor_time(pids: list[int]) -> float:
    """Seconds that these processes have run."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _transfers(guest: Guest, servers: Servers, flows: int) -> dict[str, float]:
    """Gbit/s each way, by the clock and for each second that a processor works."""
    size = BYTES[guest.name]
    servers.share = size // flows
    found = {}
    for way, port in (("guest to host", servers.sink), ("host to guest", servers.source)):
        verb = "send" if way == "guest to host" else "receive"
        before, label = _processor_time(guest.pids()), f"{way}, {flows} flow{'s' * (flows > 1)}"
        took = guest.does(f"{verb} {port} {size} {flows}")
        found[f"{label}, Gbit/s"] = size * 8 / took / 1e9
        # On a machine that has other work this is the one to look at.
        used = _processor_time(guest.pids()) - before
        found[f"{label}, by processor time, Gbit/s"] = size * 8 / used / 1e9
    return found


def _question() -> str:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in NAME.split("."))
    return (struct.pack(">HHHHHH", 7, 0x100, 1, 0, 0, 0) + labels + b"\0\0\1\0\1").hex()


def _round(guest: Guest, servers: Servers) -> dict[str, float]:
    found = {**_transfers(guest, servers, 1), **_transfers(guest, servers, FLOWS)}
    found["round trip of a byte, us"] = guest.does(f"echo {servers.echo} {ROUND_TRIPS}") / ROUND_TRIPS * 1e6
    found["connection made and ended, us"] = guest.does(f"connect {servers.end} {CONNECTIONS}") / CONNECTIONS * 1e6
    if guest.name == "soft":
        direct, through = (
            guest.does(f"ask {port} {QUESTIONS} {_question()}") / QUESTIONS * 1e6 for port in (servers.names, 53)
        )
        found["question to a name server itself, us"] = direct
        found["the same through the gateway's, beyond that, us"] = through - direct
    return found


def _anonymous(pids: list[int]) -> int:
    """Bytes of memory that are these processes' own, without the guest's RAM, which is their largest mapping."""
    total = 0
    for pid in pids:
        text = Path(f"/proc/{pid}/smaps").read_text()
        sizes, used = (
            [int(number) for number in re.findall(rf"^{field}:\s+(\d+) kB", text, re.MULTILINE)]
            for field in ("Size", "Anonymous")
        )
        total += 1024 * sum(kib for size, kib in zip(sizes, used, strict=True) if size < MEMORY_MIB << 10)
    return total


def _held(guest: Guest, servers: Servers) -> dict[str, float]:
    # With the first ones the software CPU translates what a guest does for a connection.
    first = HELD // 5
    took = guest.does(f"hold {servers.hold} {first}")
    before = _anonymous(guest.pids())
    took += guest.does(f"hold {servers.hold} {HELD - first}")
    grown = _anonymous(guest.pids()) - before
    guest.does(f"echo {servers.echo} 1")
    servers.release()
    return {f"{HELD} connections opened, s": took, "memory for each open connection, bytes": grown / (HELD - first)}


#: What a snapshot's machine had, and what it has after the restore.
_RESTORES = {
    "without a network": ("none", "none"),
    "with its first one": ("none", "public"),
    "with the one that it had": ("public", "public"),
}


def restores(place: Path, repeats: int) -> dict[str, float]:
    """What the network adds to a restore: by turns, and the medians of the differences within each turn."""
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in _RESTORES}
    with ExitStack() as opened:
        snapshots = {}
        for network in ("none", "public"):
            with VM(BUSYBOX, network=network, memory="256MiB", engine="soft", bake=False) as vm:
                vm.run(["/bin/echo", "hello"], check=True, capture_output=True)
                snapshots[network] = vm.snapshot(place / f"restored-{network}")
                opened.callback(snapshots[network].path.unlink)
        for number in range(repeats + 3):
            order = list(_RESTORES)[:: 1 if number % 2 else -1]
            for name in order:
                had, has = _RESTORES[name]
                before = resource.getrusage(resource.RUSAGE_CHILDREN)
                began = time.perf_counter()
                with snapshots[had].restore(network=has) as vm:
                    ready = time.perf_counter() - began
                    vm.run(["/bin/echo", "hello"], check=True, capture_output=True)
                    output = time.perf_counter() - began
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
                if number >= 3:  # The first ones are for the page cache and the working set.
                    found[name].append((ready * 1e3, output * 1e3, used * 1e3))
    rows = {}
    bare, *others = _RESTORES
    for index, what in enumerate(("ready", "first output", "processor time")):
        rows[f"restore {bare}: {what}, ms"] = statistics.median(row[index] for row in found[bare])
        for name in others:
            differences = [b[index] - a[index] for a, b in zip(found[bare], found[name], strict=True)]
            rows[f"restore {name}, beyond that: {what}, ms"] = statistics.median(differences)
    return rows


def measure(
    place: Path, repeats: int, held: bool, others: Sequence[str], say: Callable[[str], None]
) -> dict[str, object]:
    soft_limit, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
    servers, program = Servers(), _program(place)
    rounds: dict[str, list[dict[str, float]]] = {"soft": [], **{name: [] for name in others}}
    results: dict[str, object] = {}
    with ExitStack() as opened:
        ours = opened.enter_context(soft(program, servers))
        rivals = [opened.enter_context({"qemu": qemu, "passt": passt}[name](place, program)) for name in others]
        for number in range(repeats + 1):
            for guest in (ours, *rivals):
                try:
                    found = _round(guest, servers)
                except (RuntimeError, TimeoutError) as error:
                    if guest is ours:
                        raise
                    # As passt's did on a machine with much other work, whose connections ended before their bytes did.
                    say(f"{guest.name} is left out: {error}")
                    rivals.remove(guest)
                    continue
                say(f"{guest.name}: " + ", ".join(f"{name} {value:.3g}" for name, value in found.items()))
                if number:  # The first is for caches, translated code and windows.
                    rounds[guest.name].append(found)
        if held:
            results.update(_held(ours, servers))
    results.update(restores(place, RESTORES))
    servers.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft_limit, hard_limit))
    for name in rounds["soft"][0]:
        values = [found[name] for found in rounds["soft"]]
        results[f"soft: {name}"] = statistics.median(values)
        for other in (rival.name for rival in rivals):
            if name not in rounds[other][0]:
                continue
            theirs = [found[name] for found in rounds[other]]
            pairs = [b / a if "us" in name.split() else a / b for a, b in zip(values, theirs, strict=True)]
            results[f"{other}: {name}"] = statistics.median(theirs)
            results[f"times as good as {other}: {name.rsplit(',', 1)[0]}"] = statistics.median(pairs)
    results["load at the end"] = os.getloadavg()[0]
    return results


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benches.network", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="rounds of each side (default %(default)s)")
    parser.add_argument("--no-held", action="store_true", help=f"without the {HELD} open connections")
    there = ["qemu", *(["passt"] if shutil.which("passt") else [])]
    parser.add_argument("--others", nargs="*", choices=["qemu", "passt"], default=there, help="sides beside ours")
    parser.add_argument("--place", type=Path, default=ROOT / "target" / "bench", help="for guests and results")
    args = parser.parse_args()
    args.place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["SUPERMACHINE_CACHE"] = cache
        results = measure(args.place, args.repeats, not args.no_held, args.others, lambda line: print(line, flush=True))
    (args.place / "network.json").write_text(json.dumps(results, indent=2) + "\n")
    for name, value in results.items():
        print(f"{name}: {value:.3g}")


if __name__ == "__main__":
    main()
