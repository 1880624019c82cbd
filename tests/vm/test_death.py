"""The worker is killed by SIGKILL, whatever is going on: everyone who waits wakes, with an error that says why."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from supermachine import VM, aio, errors

from ..processes import line, running
from .guests import wait_for

pytestmark = pytest.mark.vm

#: Times that each wait is cut short; the promise is about the median.
ROUNDS = 5
#: What is promised is 100 ms. A test machine may be busy, so only what is far from it fails here.
LIMIT = 1.0


def workers() -> set[int]:
    """Process ids of this process's workers."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().rpartition(")")
        except OSError:
            continue
        if "supermachine-wo" in name and int(rest.split()[1]) == os.getpid():
            found.add(int(stat.parent.name))
    return found


def big(tmp_path: Path) -> Path:
    """A file that takes long to copy, and no room."""
    path = tmp_path / "big"
    with path.open("wb") as file:
        file.truncate(8 << 30)
    return path


def communicate(vm: VM, _tmp: Path) -> None:
    process = vm.popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.communicate(bytes(256 << 20))


def read_pipe(vm: VM, _tmp: Path) -> None:
    """A reader of the pipe sees its end, and then learns why."""
    process = vm.popen(["sleep", "1000"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.read() == b""
    process.wait()


def idle(vm: VM, _tmp: Path) -> None:
    assert vm.wait() == "crashed"
    vm.run(["true"])


def connection(vm: VM, _tmp: Path) -> None:
    """A connection to a port of the guest's: here the agent's own, which waits for a request."""
    with socket.socket(fileno=vm._running().connect(1025)) as stream:
        assert stream.recv(1) == b""
    assert vm.wait() == "crashed"
    vm.run(["true"])


WAITS: dict[str, Callable[[VM, Path], Any]] = {
    "run": lambda vm, _tmp: vm.run(["sleep", "1000"]),
    "run with output": lambda vm, _tmp: vm.run(["cat", "/dev/zero"], stdout=subprocess.DEVNULL),
    "run with a time-out": lambda vm, _tmp: vm.run(["sleep", "1000"], timeout=500),
    "terminal": lambda vm, _tmp: vm.popen(["sh"], tty=(24, 80), stdin=subprocess.PIPE, stdout=subprocess.PIPE).wait(),
    "communicate": communicate,
    "read a pipe": read_pipe,
    "read a file": lambda vm, _tmp: vm.path("/dev/zero").read_bytes(),
    "copy in": lambda vm, tmp: vm.copy_in(big(tmp), "/dev/null"),
    "copy out": lambda vm, tmp: vm.path("/dev/zero").open("rb").read(),
    "idle": idle,
    "connection": connection,
    "shut down": lambda vm, _tmp: (vm.stop(60), vm.run(["true"])),
}


def judge(delays: list[float]) -> None:
    print(f"woken after {', '.join(f'{d * 1000:.1f}' for d in sorted(delays))} ms")
    assert statistics.median(delays) < LIMIT


def wait_in_thread(work: Callable[[], Any], kill: Callable[[], None], settle: float) -> tuple[BaseException, float]:
    """What `work` raised once `kill` was called, and how long after."""
    raised: list[tuple[BaseException, float]] = []

    def body() -> None:
        try:
            work()
        except BaseException as error:
            raised.append((error, time.monotonic()))

    thread = threading.Thread(target=body)
    thread.start()
    time.sleep(settle)
    assert not raised, f"it did not wait: {raised[0][0]!r}"
    kill()
    killed = time.monotonic()
    thread.join(30)
    assert not thread.is_alive(), "it never woke"
    assert raised, "it ended as if nothing had been"
    return raised[0][0], raised[0][1] - killed


@pytest.mark.parametrize("what", WAITS)
def test_a_killed_worker_wakes_who_waits(busybox: str, tmp_path: Path, what: str) -> None:
    delays = []
    for number in range(ROUNDS):
        with VM(busybox) as vm:
            if what == "shut down":
                # Something that does not go by itself keeps the shutdown from its end.
                script = "trap '' TERM; echo deaf; while :; do sleep 1; done"
                deaf = vm.popen(["sh", "-c", script], stdout=subprocess.PIPE)
                assert deaf.stdout is not None
                assert deaf.stdout.readline() == b"deaf\n"
            pid = vm.pid
            assert pid is not None

            def kill(pid: int = pid) -> None:
                os.kill(pid, signal.SIGKILL)

            error, delay = wait_in_thread(lambda vm=vm: WAITS[what](vm, tmp_path), kill, 0.1 + 0.05 * number)
            assert isinstance(error, errors.VMExited), repr(error)
            assert error.reason == "crashed"
            assert "signal 9" in str(error)
            assert not vm.running
            delays.append(delay)
    judge(delays)


def test_a_worker_killed_while_it_boots(busybox: str) -> None:
    delays = []
    for number in range(ROUNDS):
        before = workers()
        # Without one that goes on from a snapshot, which is started anew when it falls.
        vm = VM(busybox, bake=False)

        def kill(before: set[int] = before, moment: float = 0.004 * number) -> None:
            deadline = time.monotonic() + 30
            while not (found := workers() - before):
                assert time.monotonic() < deadline
            time.sleep(moment)
            os.kill(found.pop(), signal.SIGKILL)

        error, delay = wait_in_thread(vm.start, kill, 0)
        assert isinstance(error, errors.VMExited), repr(error)
        assert error.reason == "crashed"
        assert not vm.running
        delays.append(delay)
    judge(delays)


ASYNC_WAITS: dict[str, Callable[[aio.VM, Path], Any]] = {
    "run": lambda vm, _tmp: vm.run(["sleep", "1000"]),
    "read a file": lambda vm, _tmp: vm.path("/dev/zero").read_bytes(),
    "copy in": lambda vm, tmp: vm.copy_in(big(tmp), "/dev/null"),
}


@pytest.mark.parametrize("what", ASYNC_WAITS)
def test_a_killed_worker_wakes_coroutines(busybox: str, tmp_path: Path, what: str) -> None:
    async def once() -> float:
        async with aio.VM(busybox) as vm:
            task = asyncio.ensure_future(ASYNC_WAITS[what](vm, tmp_path))
            idle = asyncio.ensure_future(vm.wait())
            await asyncio.sleep(0.2)
            assert not task.done()
            assert vm.pid is not None
            killed = time.monotonic()
            os.kill(vm.pid, signal.SIGKILL)
            with pytest.raises(errors.VMExited) as caught:
                await asyncio.wait_for(task, 30)
            delay = time.monotonic() - killed
            assert caught.value.reason == "crashed"
            assert await asyncio.wait_for(idle, 30) == "crashed"
            return delay

    judge([asyncio.run(once()) for _ in range(ROUNDS)])


def test_everyone_wakes(busybox: str) -> None:
    """Many who wait for one virtual machine, each in its own way."""
    with VM(busybox) as vm:
        raised: list[BaseException] = []

        def body(work: Callable[[], Any]) -> None:
            try:
                work()
            except BaseException as error:
                raised.append(error)

        works = [lambda: vm.run(["sleep", "1000"]), lambda: vm.path("/dev/zero").read_bytes(), lambda: idle(vm, Path())]
        threads = [threading.Thread(target=body, args=(works[n % 3],)) for n in range(24)]
        for thread in threads:
            thread.start()
        time.sleep(1)
        assert vm.pid is not None
        os.kill(vm.pid, signal.SIGKILL)
        for thread in threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in threads)
        assert len(raised) == 24
        assert all(isinstance(error, errors.VMExited) for error in raised), raised


def has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except OSError:
        return True


def test_a_program_that_dies_takes_its_virtual_machine_with_it(busybox: str) -> None:
    program = (
        "import sys, time; from supermachine import VM; vm = VM(sys.argv[1]).start(); print(vm.pid, flush=True);"
        "time.sleep(1000)"
    )
    with running([sys.executable, "-c", program, busybox], stdout=subprocess.PIPE) as process:
        pid = int(line(process))
        process.kill()
    wait_for(lambda: has_ended(pid), "an end of the worker")
