"""Many connections, forks and bytes, and servers and packets out of the ordinary; `make soak` has more of each."""

from __future__ import annotations

import hashlib
import os
import random
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from supermachine import VM

from ..real import require, run

ROOT = Path(__file__).parents[2]
BUSYBOX = ROOT / "demo" / "busybox.oci.tar"
GATEWAY = "10.0.2.2"
CONNECTIONS = int(os.environ.get("SUPERMACHINE_TEST_CONNECTIONS", "200"))
FORKS = int(os.environ.get("SUPERMACHINE_TEST_FORKS", "8"))
MIB = int(os.environ.get("SUPERMACHINE_TEST_MIB", "64"))
PATIENCE = 600.0


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The guest's side of these conversations, which the benchmark has too."""
    require("aarch64-linux-gnu-gcc")
    out = tmp_path_factory.mktemp("program") / "network"
    run("aarch64-linux-gnu-gcc", "-O2", "-static", "-o", out, ROOT / "benches" / "programs" / "network.c")
    return out.read_bytes()


class Told:
    """A process in a guest that does as it is told over a connection."""

    def __init__(self, vm: VM, program: bytes) -> None:
        vm.path("/network").write_bytes(program)
        vm.path("/network").chmod(0o755)
        with listening() as listener:
            self.process = vm.popen(["/network", GATEWAY, str(listener.getsockname()[1])])
            self._control, _ = listener.accept()
        self._control.settimeout(PATIENCE)

    def begin(self, command: str) -> None:
        self._control.sendall(command.encode() + b"\n")

    def end(self) -> None:
        assert self._control.recv(5, socket.MSG_WAITALL) == b"done\n"

    def does(self, command: str) -> None:
        self.begin(command)
        self.end()


@pytest.fixture(scope="module")
def guest(program: bytes) -> Iterator[tuple[VM, Told]]:
    with VM(BUSYBOX, network="none host", memory="512MiB", bake=False) as vm:
        yield vm, Told(vm, program)


@contextmanager
def listening(backlog: int = 4096) -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=backlog) as server:
        server.settimeout(PATIENCE)
        yield server


def port_of(server: socket.socket) -> int:
    port: int = server.getsockname()[1]
    return port


def test_bytes_go_there_and_back_as_they_were(guest: tuple[VM, Told]) -> None:
    block = random.Random(7).randbytes(1 << 20)
    sent, received, count = hashlib.sha256(), hashlib.sha256(), 0
    with listening() as source, listening() as sink:
        guest[1].begin(f"relay {port_of(source)} {port_of(sink)}")
        outward, inward = source.accept()[0], sink.accept()[0]

        def send() -> None:
            with outward:
                for number in range(MIB):
                    data = number.to_bytes(8, "big") + block[8:]
                    sent.update(data)
                    outward.sendall(data)

        thread = threading.Thread(target=send)
        thread.start()
        with inward:
            while data := inward.recv(1 << 20):
                received.update(data)
                count += len(data)
        thread.join()
    guest[1].end()
    assert (count, received.digest()) == (MIB << 20, sent.digest())


def _established(vm: VM) -> int:
    """Connections of the guest's, by its own kernel."""
    text = vm.run(["cat", "/proc/net/tcp"], text=True, check=True).stdout
    return sum(line.split()[3] == "01" for line in text.splitlines()[1:])


def test_captures_and_forks_leave_open_connections_to_their_machine(program: bytes, tmp_path: Path) -> None:
    with (
        listening() as server,
        VM(BUSYBOX, network="none host", memory="512MiB", bake=False) as vm,
    ):
        told = Told(vm, program)
        held: list[socket.socket] = []
        accepting = threading.Thread(target=lambda: held.extend(server.accept()[0] for _ in range(CONNECTIONS)))
        accepting.start()
        told.does(f"hold {port_of(server)} {CONNECTIONS}")
        accepting.join(PATIENCE)
        assert _established(vm) >= CONNECTIONS
        snapshot = vm.snapshot(tmp_path / "snapshot")
        forks = vm.fork(2)
        copies = [*forks, snapshot.restore(network="none host")]
        try:
            for copy in copies:
                # What had them has seen them end, before anything else of the user's has run.
                assert _established(copy) == 0
                deadline = time.monotonic() + 60
                while copy.run(["pidof", "network"]).returncode == 0:
                    assert time.monotonic() < deadline
                assert [flow for flow in copy.network.flows() if flow.protocol == "tcp"] == []
                Told(copy, program).does(f"hold {port_of(server)} 3")
        finally:
            for copy in copies:
                copy.stop()
        assert _established(vm) >= CONNECTIONS
        for connection in held:
            connection.sendall(b"still there")
            connection.setblocking(False)
            with pytest.raises(BlockingIOError):
                connection.recv(1)
        # Any other command ends them in order.
        told.does(f"relay {_ended()} {_ended()}")
        for connection in held:
            connection.settimeout(60)
            # With bytes unread the guest's kernel resets it.
            with connection, pytest.raises(ConnectionResetError):
                connection.recv(1)


def _ended() -> int:
    """A port whose connections are ended at once."""
    server = socket.create_server(("127.0.0.1", 0))

    def end() -> None:
        with server:
            server.accept()[0].close()

    threading.Thread(target=end, daemon=True).start()
    return port_of(server)


def test_forks_all_fetch_a_page(tmp_path: Path) -> None:
    (tmp_path / "page").write_bytes(random.Random(8).randbytes(100_000))
    digest = hashlib.sha256((tmp_path / "page").read_bytes()).hexdigest()
    with listening() as probe:
        port = port_of(probe)
    command = ["python3", "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(tmp_path), str(port)]
    with subprocess.Popen(command, stdout=-3, stderr=-3) as server:
        deadline = time.monotonic() + 60
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        try:
            with VM(BUSYBOX, network="none host", memory="128MiB", bake=False) as vm:
                forks = vm.fork(FORKS)
                fetch = f"wget -q -O - http://host.docker.internal:{port}/page | sha256sum"
                try:
                    with ThreadPoolExecutor(16) as pool:
                        said = pool.map(lambda fork: fork.run(fetch, shell=True, text=True).stdout.split()[0], forks)
                        assert list(said) == [digest] * FORKS
                finally:
                    for fork in forks:
                        fork.stop()
        finally:
            server.kill()


def test_a_server_that_never_answers_holds_nobody_up(guest: tuple[VM, Told]) -> None:
    vm, told = guest
    with listening(backlog=0) as silent, listening() as other:
        # A queue that is full: the kernel drops who comes.
        waiting = [socket.socket() for _ in range(4)]
        for client in waiting:
            client.setblocking(False)
            client.connect_ex(silent.getsockname())
        time.sleep(0.2)
        asking = vm.popen(["wget", "-O", "-", f"http://{GATEWAY}:{port_of(silent)}/"], stderr=-3)
        told.does(f"hold {port_of(other)} 5")
        assert asking.poll() is None
        asking.kill()
        assert asking.wait(PATIENCE) != 0
        for client in waiting:
            client.close()


@pytest.mark.parametrize("size", [0, 1, 1472, 1473, 8000, 65_507])
def test_datagrams_of_every_size_come_back_as_they_were(guest: tuple[VM, Told], size: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))

        def answer() -> None:
            data, peer = server.recvfrom(1 << 16)
            server.sendto(data, peer)

        thread = threading.Thread(target=answer)
        thread.start()
        guest[1].does(f"datagram {port_of(server)} {size}")
        thread.join(60)


def test_an_urgent_byte_is_one_of_the_stream_either_way(guest: tuple[VM, Told]) -> None:
    with listening() as server:
        guest[1].begin(f"urgent {port_of(server)} 0")
        client, _ = server.accept()
        with client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
            got = b"".join(iter(lambda: client.recv(100), b""))
            client.sendall(b"abc")
            client.send(b"!", socket.MSG_OOB)
            client.sendall(b"def")
        guest[1].end()
    assert got == b"abc!def"


def test_a_guest_with_a_small_mtu_is_served(guest: tuple[VM, Told]) -> None:
    vm, _ = guest
    data = random.Random(9).randbytes(1 << 20)
    vm.run(["ip", "link", "set", "eth0", "mtu", "576"], check=True)
    try:
        with listening() as server:
            command = f"nc {GATEWAY} {port_of(server)} < /dev/null | sha256sum"
            reading = vm.popen(["sh", "-c", command], stdout=subprocess.PIPE)
            client, _ = server.accept()
            with client:
                client.sendall(data)
            assert reading.communicate(timeout=120)[0].split()[0].decode() == hashlib.sha256(data).hexdigest()
    finally:
        vm.run(["ip", "link", "set", "eth0", "mtu", "1500"], check=True)
