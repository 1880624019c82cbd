"""Connections of guests that are long, slow, reset or captured, to servers on the host's loopback."""

from __future__ import annotations

import hashlib
import random
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from supermachine import VM

BUSYBOX = Path(__file__).parents[2] / "demo" / "busybox.oci.tar"
HOST = "host.docker.internal"
#: Bytes that go through a guest. Its busybox copies a KiB at a time.
MANY = 8 << 20


@pytest.fixture(scope="module")
def small() -> Iterator[VM]:
    with VM(BUSYBOX, network="none host", bake=False) as vm:
        yield vm


def _listener() -> socket.socket:
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(120)
    return server


def test_many_bytes_go_through_a_guest_as_they_are(small: VM) -> None:
    block = random.Random(3).randbytes(1 << 20)
    sent, received = hashlib.sha256(), hashlib.sha256()
    with _listener() as source, _listener() as sink:
        command = f"nc {HOST} {source.getsockname()[1]} | nc {HOST} {sink.getsockname()[1]}"
        passing = small.popen(["sh", "-c", command])
        outward, _ = source.accept()
        inward, _ = sink.accept()

        def send() -> None:
            with outward:
                for number in range(MANY // len(block)):
                    data = number.to_bytes(8, "big") + block[8:]
                    sent.update(data)
                    outward.sendall(data)

        thread = threading.Thread(target=send)
        thread.start()
        count = 0
        with inward:
            while data := inward.recv(1 << 18):
                received.update(data)
                count += len(data)
        thread.join()
        passing.wait(60)
    assert (count, received.digest()) == (MANY, sent.digest())


def test_a_server_that_resets_is_seen_to(small: VM) -> None:
    with _listener() as server:
        client = small.popen(["sh", "-c", f"sleep 300 | nc {HOST} {server.getsockname()[1]}; echo over"])
        connection, _ = server.accept()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
        deadline = time.monotonic() + 60
        while small.run(["pidof", "nc"]).returncode == 0:
            assert time.monotonic() < deadline
        client.kill()


def test_slow_readers_on_either_side_get_all_of_it(small: VM) -> None:
    data = random.Random(4).randbytes(6 << 20)
    small.path("/tmp/slow").write_bytes(data)
    with _listener() as server:
        place = f"{HOST} {server.getsockname()[1]}"
        sender = small.popen(["sh", "-c", f"nc {place} < /tmp/slow"])
        connection, _ = server.accept()
        time.sleep(1)  # the windows are full by now
        with connection:
            got = b"".join(iter(lambda: connection.recv(1 << 16), b""))
        assert hashlib.sha256(got).digest() == hashlib.sha256(data).digest()
        sender.wait(60)
        reader = small.popen(["sh", "-c", f"nc {place} < /dev/null | (sleep 1; sha256sum)"], stdout=subprocess.PIPE)
        connection, _ = server.accept()
        with connection:
            connection.sendall(data)
        assert reader.communicate(timeout=120)[0].split()[0].decode() == hashlib.sha256(data).hexdigest()


def test_a_capture_leaves_connections_to_their_machine_and_none_to_the_copy(small: VM, tmp_path: Path) -> None:
    with _listener() as server:
        place = f"{HOST} {server.getsockname()[1]}"
        held = small.popen(["sh", "-c", f"nc {place} < /dev/zero | cat > /tmp/heard"])
        connection, _ = server.accept()
        with connection:
            assert connection.recv(1 << 16, socket.MSG_WAITALL) == bytes(1 << 16)
            snapshot = small.snapshot(tmp_path / "snapshot")
            # It goes on here.
            assert connection.recv(1 << 22, socket.MSG_WAITALL) == bytes(1 << 22)
            with snapshot.restore(network="none host") as copy:
                deadline = time.monotonic() + 60
                while copy.run(["pidof", "nc"]).returncode == 0:
                    assert time.monotonic() < deadline
                assert [flow for flow in copy.network.flows() if flow.protocol == "tcp"] == []
            connection.sendall(b"still there")
            assert connection.recv(1 << 20, socket.MSG_WAITALL) == bytes(1 << 20)
        held.kill()


def _served(vm: VM) -> bool:
    """Whether the guest's own listener answers over its loopback."""
    return vm.run(["nc", "127.0.0.1", "8080"], text=True).stdout == "served\n"


@pytest.mark.parametrize("listening", [False, True])
def test_a_copys_idle_connection_ends_at_once_and_its_listeners_stay(listening: bool, tmp_path: Path) -> None:
    with VM(BUSYBOX, network="none host", bake=False) as vm, _listener() as server:
        if listening:
            vm.popen(["nc", "-ll", "-p", "8080", "-e", "echo", "served"])
            while not _served(vm):
                time.sleep(0.1)
        place = f"{HOST} {server.getsockname()[1]}"
        vm.popen(["sh", "-c", f"mkfifo /tmp/idle; sleep 600 > /tmp/idle & nc {place} < /tmp/idle; echo > /tmp/ended"])
        connection, _ = server.accept()
        with connection, vm.snapshot(tmp_path / "snapshot").restore(network="none host") as copy:
            deadline = time.monotonic() + 60
            while not copy.path("/tmp/ended").exists():
                assert time.monotonic() < deadline
            assert not listening or _served(copy)
            assert not vm.path("/tmp/ended").exists()
