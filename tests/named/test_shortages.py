"""Keepers and clients where something is short, or others do something meanwhile."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import supermachine
from supermachine import errors, local_sockets, shortage
from supermachine.named import logs
from supermachine.named.records import Record
from supermachine.named.registry import Place, Registry
from supermachine.named.server import Server

from .conftest import sm, until


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """There is none left for this process."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = {int(name) for name in os.listdir("/dev/fd")}
    highest = max(taken) + 1
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(highest)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(held) + 1, before[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            os.open(os.devnull, os.O_RDONLY)
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for fd in held:
            os.close(fd)


@pytest.fixture
def registry(runtime: Path) -> Registry:
    return Registry(runtime)


@pytest.fixture
def kept(registry: Registry) -> Iterator[Place]:
    """A machine that this process keeps."""
    place, fd = registry.create("web")
    Record("web", "x", "image", started=1.0).write(place.record_path)
    (place.path / "log").mkdir()
    yield place
    os.close(fd)


def ended(place: Place) -> None:
    """Its record says that it has."""
    record = place.record()
    assert record is not None
    record.finished = 2.0
    record.write(place.record_path)


class Late(Registry):
    """One whose lock is had only after another process has started the machine again."""

    def __init__(self, directory: Path, place: Place) -> None:
        super().__init__(directory)
        self._late = place
        self.keeper = -1

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        if self.keeper < 0:
            self.keeper = os.open(self._late.lock, os.O_RDWR)
            fcntl.flock(self.keeper, fcntl.LOCK_EX)
            self._late.socket.touch()
        with super()._locked():
            yield


def test_without_descriptors_nobody_says_that_a_machine_is_not_there(registry: Registry, kept: Place) -> None:
    machine = supermachine.attach("web")
    logs.LogWriter(kept.log).close()
    for ask in (
        lambda: supermachine.attach("web"),
        lambda: supermachine.machines(all=True),
        lambda: machine.state,
        lambda: machine.running,
        lambda: machine.remove(),
        lambda: registry.create("web"),
        lambda: list(machine.logs()),
        kept.kept,
        kept.record,
    ):
        with no_descriptors(), pytest.raises(errors.HostShortage, match="open files") as lacking:
            ask()
        assert lacking.value.hint
    assert kept.path.is_dir()
    assert supermachine.attach("web").name == "web"


@pytest.mark.parametrize("what", ["remove", "places", "rename"])
def test_one_that_is_started_again_meanwhile_keeps_what_it_has(runtime: Path, kept: Place, what: str) -> None:
    ended(kept)
    late = Late(runtime, kept)
    # The keeper of this test ends: whoever looks now sees that nobody has it.
    other = Registry(runtime)
    for fd in _locks_of(kept):
        fcntl.flock(fd, fcntl.LOCK_UN)
    kept.socket.touch()
    assert not kept.kept()
    record = kept.record()
    assert record is not None
    try:
        if what == "places":
            assert [place.name for place in late.places()] == ["web"]
        else:
            record.finished = None
            record.write(kept.record_path)
            with pytest.raises(errors.MachineRunning):
                late.remove(kept) if what == "remove" else late.rename(kept, "other")
        assert kept.socket.exists()
        assert other.find("web").kept()
    finally:
        os.close(late.keeper)


def _locks_of(place: Place) -> list[int]:
    """This process's descriptors of its lock."""
    mine = place.lock.stat()
    found = []
    for name in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError):
            there = os.fstat(int(name))
            if (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino):
                found.append(int(name))
    return found


def _keeper(path: Path) -> Any:
    place = SimpleNamespace(socket=path / "socket")
    return SimpleNamespace(place=place, over=None)


def answers(path: Path) -> bool:
    """Whether whoever listens there says something."""
    with local_sockets.connect(path, 5) as client:
        client.sendall(b'{"ask":"nothing"}\n')
        return client.recv(1000).startswith(b'{"error"')


class Listener:
    """A listening socket, the first of whose connections fail."""

    def __init__(self, inner: socket.socket, failures: list[Exception]) -> None:
        self._inner = inner
        self.failures = failures

    def accept(self) -> Any:
        if self.failures:
            raise self.failures.pop(0)
        return self._inner.accept()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def test_a_keeper_is_reached_again_after_a_shortage(tmp_path: Path) -> None:
    server = Server(_keeper(tmp_path))
    server._socket = Listener(  # type: ignore[assignment]
        server._socket, [OSError(24, "Too many open files"), ConnectionAbortedError(103, "aborted"), MemoryError()]
    )
    server.start()
    try:
        assert answers(tmp_path / "socket")
    finally:
        server.close()
    assert until(lambda: not any(thread.name == "server" for thread in threading.enumerate()))


def test_a_keeper_is_reached_again_after_a_shortage_of_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = 2
    start = threading.Thread.start

    def fails(thread: threading.Thread) -> None:
        nonlocal left
        if thread.name == "client" and left:
            left -= 1
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", fails)
    server = Server(_keeper(tmp_path)).start()
    try:
        for _ in range(2):
            with local_sockets.connect(tmp_path / "socket", 5) as client:
                assert client.recv(1) == b""
        assert answers(tmp_path / "socket")
        assert until(lambda: not server._threads)
    finally:
        server.close()


def test_who_comes_to_a_full_queue_waits(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(local_sockets.listen(tmp_path / "socket"))
        with pytest.raises(TimeoutError):
            while True:
                stack.enter_context(local_sockets.connect(tmp_path / "socket", 0.1))
        later = threading.Timer(0.2, listener.accept)
        later.start()
        stack.enter_context(local_sockets.connect(tmp_path / "socket", 20))
        later.join()


def test_a_thread_that_does_not_start_is_a_shortage(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fails)
    with pytest.raises(errors.HostShortage, match="nothing works: "):
        shortage.start(threading.Thread(), "nothing works")


@pytest.mark.vm
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_output_of_a_health_check_is_bounded(busybox: str) -> None:
    """And its last bytes are told, of one that ends."""
    check = ("--health-cmd", "cat /dev/zero", "--health-interval", "0.2s", "--health-timeout", "8s")
    sm("run", "-q", "-d", "--name", "web", "-m", "64m", *check, busybox, "sleep", "1000")
    machine = supermachine.attach("web")
    keeper = machine.inspect()["keeper"]

    def resident() -> int:
        lines = Path(f"/proc/{keeper}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) >> 10

    before, most = resident(), 0
    deadline = time.monotonic() + 60
    while not (log := machine.inspect()["health"]["Log"]) and time.monotonic() < deadline:
        most = max(most, resident())
        time.sleep(0.1)
    assert log[0]["ExitCode"] == -1
    assert "longer than 8 seconds" in log[0]["Output"]
    assert most < before + 48, (before, most)
    machine.remove(force=True)

    check = ("--health-cmd", "seq 5000; exit 3", "--health-interval", "0.2s")
    sm("run", "-q", "-d", "--name", "web", *check, busybox, "sleep", "1000")
    assert until(lambda: supermachine.attach("web").inspect()["health"]["Log"])
    first = supermachine.attach("web").inspect()["health"]["Log"][0]
    assert first["ExitCode"] == 3
    assert first["Output"].endswith("4999\n5000\n")
    assert len(first["Output"]) == 4096
