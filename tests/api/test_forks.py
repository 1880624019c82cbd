"""A process that is forked from the one with the machine: nothing it does reaches the machine, and it keeps nothing."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import select
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import supermachine
from supermachine import DEVNULL, PIPE, VM, VMExited
from supermachine.cache import locks
from supermachine.cache.store import Cache
from supermachine.snapshots import capture
from supermachine.storage import volumes


def in_child(work) -> int:
    """The status of a forked child that does `work` and ends without unwinding; 0 when that raised nothing."""
    if (pid := os.fork()) == 0:
        try:
            work()
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_dropping_it_in_a_child(stand_in):
    machines = [VM("stand-in").start()]

    def drop():
        machines.clear()
        gc.collect()

    assert in_child(drop) == 0
    with machines[0] as machine:
        assert machine.run(["echo", "alive"], text=True).stdout == "alive\n"


def test_a_child_that_leaves_the_blocks(stand_in):
    with VM("stand-in") as machine, machine.popen(["cat"], stdin=PIPE, stdout=PIPE) as process:
        status = in_child(lambda: (process.__exit__(), machine.__exit__(), machine.stop(), machine.kill()))
        assert status == 0
        assert process.communicate(b"alive")[0] == b"alive"
        assert machine.run(["true"]).returncode == 0


def test_the_childs_copy_is_of_a_machine_that_has_ended(guest):
    process = guest.popen(["sleep", "60"])
    list(guest.path("/").iterdir())

    def look():
        assert not guest.running
        for ask in (lambda: guest.run(["true"]), guest.path("/").stat, process.wait, lambda: process.wait(1)):
            with pytest.raises(VMExited) as caught:
                ask()
            assert caught.value.reason == "other-process"

    assert in_child(look) == 0
    process.kill()
    assert process.wait() == -9


def test_a_child_keeps_no_port(stand_in):
    with VM("stand-in", ports={"80/tcp": None}) as machine:
        [place] = machine.ports["80/tcp"]
        reader, writer = os.pipe()
        if (pid := os.fork()) == 0:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
        os.close(reader)
        machine.kill()
        try:
            with pytest.raises(OSError, match="refused"):
                while True:  # the listener's thread ends on its own time, and resets who waits for it then
                    with contextlib.suppress(ConnectionResetError):
                        socket.create_connection(place, 5).close()
        finally:
            os.close(writer)
            os.waitpid(pid, 0)


def test_a_child_does_not_keep_an_orphan(stand_in):
    """The machine's process is killed while a child of it lives: the worker ends all the same."""
    reader, writer = os.pipe()
    if (owner := os.fork()) == 0:
        machine = VM("stand-in").start()
        worker = os.pidfd_open(machine.pid)
        if (child := os.fork()) == 0:
            os.close(worker)
            os.close(writer)
            os.dup2(os.open("/dev/null", os.O_RDWR), 0)
            select.select([], [], [], 30)
            os._exit(0)
        os.write(writer, f"{machine.pid} {child}".encode())
        os.close(writer)
        select.select([], [], [], 30)
        os._exit(0)
    os.close(writer)
    with open(reader) as said:
        worker, child = map(int, said.read().split())
    ended = os.pidfd_open(worker)
    os.kill(owner, 9)
    os.waitpid(owner, 0)
    try:
        assert select.select([ended], [], [], 5)[0]
    finally:
        os.close(ended)
        os.kill(child, 9)


def _own_machine(queue) -> None:
    with VM("stand-in") as machine:
        queue.put(machine.run(["echo", "child"], text=True).stdout)


def test_multiprocessing_forks(guest):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_own_machine, args=(queue,))
    child.start()
    assert queue.get(timeout=20) == "child\n"
    child.join(20)
    assert child.exitcode == 0
    assert guest.run(["echo", "parent"], text=True).stdout == "parent\n"


def test_a_child_of_a_pool(stand_in):
    with supermachine.Pool("stand-in", min=1, max=2) as pool, pool.acquire() as machine:

        def use():
            with pytest.raises(supermachine.errors.PoolClosed):
                pool.acquire().__enter__()
            pool.close()

        with pool._changed:  # as another thread may have it
            assert in_child(use) == 0
        assert machine.run(["true"], stdout=DEVNULL).returncode == 0


#: What holds a lock, each as a program that has it while the block lasts; and whether another process could have it.
HOLDS = {
    "a lock of the cache": (
        lambda place: locks.locked(place / "lock"),
        "from supermachine.cache import locks\nwith locks.locked(place / 'lock', block=False) as mine: print(mine)",
    ),
    "a directory for work in progress": (
        lambda place: Cache(place).scratch(),
        "from supermachine.cache.store import Cache\nprint(Cache(place).remove_stale() > 0)",
    ),
    "a volume": (
        lambda place: contextlib.closing(Volumes()),
        "from supermachine import Volume, errors\n"
        "try: Volume.get('one').remove(); print(True)\nexcept errors.VolumeInUse: print(False)",
    ),
    "a snapshot that is written": (
        lambda place: capture.published(place / "snapshot"),
        # The next writer of the name removes what a killed one has left.
        "import contextlib, os\nfrom supermachine.snapshots import capture\nbefore = set(os.listdir(place))\n"
        "with contextlib.suppress(ZeroDivisionError), capture.published(place / 'snapshot'):\n"
        "    print(not before & set(os.listdir(place)))\n    1 / 0\n",
    ),
}


class Volumes:
    """The volume "one", open."""

    def __init__(self) -> None:
        self._opened = volumes.opened([volumes.Mounted("/data", "one", 1 << 24, False, 1)])

    def close(self) -> None:
        volumes.close(self._opened)


def is_free(place: Path, ask: str) -> bool:
    """Whether another process could have it now."""
    program = f"import sys\nfrom pathlib import Path\nplace = Path(sys.argv[1])\n{ask}"
    done = subprocess.run([sys.executable, "-c", program, place], check=True, capture_output=True, text=True)
    return {"True": True, "False": False}[done.stdout.strip()]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SUPERMACHINE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("SUPERMACHINE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "tmp").mkdir(parents=True)
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


@pytest.mark.parametrize("what", HOLDS)
def test_a_child_that_unwinds_gives_nothing_back(place: Path, what: str) -> None:
    hold, ask = HOLDS[what]
    with contextlib.ExitStack() as stack:
        stack.enter_context(hold(place))
        assert in_child(stack.close) == 0
        assert in_child(lambda: (gc.collect(), sys.exit(0))) == 1  # which `in_child` takes for an error
        assert not is_free(place, ask)
    if what == "a directory for work in progress":
        assert not list((place / "tmp").iterdir())
    elif what == "a snapshot that is written":
        assert [path.name for path in place.iterdir()] == ["snapshot"]
    else:
        assert is_free(place, ask)


@pytest.mark.parametrize("what", HOLDS)
def test_a_child_holds_nothing_of_a_parent_that_is_killed(place: Path, what: str) -> None:
    hold, ask = HOLDS[what]
    reader, writer = os.pipe()
    if (owner := os.fork()) == 0:
        with hold(place):
            if (child := os.fork()) == 0:
                os.close(writer)
                select.select([], [], [], 60)
                os._exit(0)
            os.write(writer, str(child).encode())
            os.close(writer)
            select.select([], [], [], 60)
            os._exit(0)
    os.close(writer)
    with open(reader) as said:
        child = int(said.read())
    try:
        assert not is_free(place, ask)
        os.kill(owner, 9)
        os.waitpid(owner, 0)
        assert is_free(place, ask)
    finally:
        os.kill(child, 9)


if sys.platform != "linux":
    pytestmark = pytest.mark.skip(reason="forking a process with threads is Linux's habit")
