"""Snapshots with a disk, on a host that fails at each of the steps that write and publish one.

The steps are system calls of the real processes, which strace(1) makes fail, or kills at. There is no
half a file then, and no guest that is lost.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from supermachine import VM, _core, errors, snapshots

from ..real import require, require_root, run
from ..vm.guests import wait_for
from .test_acknowledged import sound
from .test_root_disk import disk_of, sums, write
from .test_volumes import BUSYBOX, MOMENTS

#: What a file is written and made to last by.
CALLS = ("pwrite64", "pwritev", "write", "ftruncate", "fallocate", "copy_file_range", "fsync", "fdatasync")
#: Makes them last, and fails with EIO where a write has no room.
SYNCS = ("fsync", "fdatasync")
#: Calls of one kind that are the same ones in every snapshot.
FEW = 5


@contextlib.contextmanager
def traced(pid: int, *options: str, log: Path) -> Iterator[None]:
    """All threads of a process under strace, which lets go of them at the end."""
    command = ["strace", "-f", "-o", str(log), *options, "-p", str(pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
        assert tracer.stderr is not None
        try:
            while "attached" not in (line := tracer.stderr.readline()):
                assert line, "strace has ended"
            yield
        finally:
            tracer.send_signal(signal.SIGINT)
            # It ends by the signal that it was sent, or with what it looked at.
            tracer.communicate(timeout=60)


def unfinished(path: Path) -> Path:
    """The name that the file at `path` has until it is published, if it is the next one of this process."""
    with _core.Publication(str(path)) as publication:
        name = Path(os.readlink(f"/proc/self/fd/{publication.fileno()}")).name
    before, _, number = name.rpartition("-")
    return path.with_name(f"{before}-{int(number) + 1}")


def steps(vm: VM, place: Path, *, diff: bool) -> list[tuple[str, int]]:
    """Calls that write a snapshot, in turn.

    Of writes, of which there are not as many each time, the first, one amid the others and one towards the end; of the
    others all.
    """
    path, log = place / "whole", place / "log"
    assert vm.pid is not None
    with traced(vm.pid, "-P", str(unfinished(path)), log=log):
        vm.snapshot(path, diff=diff)
    made = Counter(found[1] for line in log.read_text().splitlines() if (found := re.match(r"\d+ +(\w+)\(", line)))
    path.unlink()
    log.unlink()
    picked = []
    for name in CALLS:
        count = made[name]
        numbers = range(1, count + 1) if count < FEW else (1, count // 2, count * 4 // 5)
        picked += [(name, number) for number in numbers]
    assert len(picked) >= 5, made
    return picked


@pytest.fixture
def writing(tmp_path: Path) -> Iterator[VM]:
    """A guest that goes on writing to its disk, beside what does not change."""
    require("strace", "e2fsck")
    require_root("tracing a process that is confined")
    with VM(BUSYBOX, memory="64m", disk="1g") as vm:
        write(vm, "file", 3)
        vm.popen("mkdir /more; while true; do cp -r /bin /more; rm -rf /more/bin; sync; done", shell=True)
        yield vm


def is_sound(snapshot: Path, place: Path) -> None:
    disk_of(snapshot, place)
    sound(place)
    place.unlink()


def test_a_call_that_fails(writing: VM, tmp_path: Path) -> None:
    """The guest goes on as if no snapshot had been asked for, and the next one is whole."""
    (tmp_path / "place").mkdir()
    before = sums(writing)
    for name, number in steps(writing, tmp_path, diff=False):
        path = tmp_path / "place" / "snapshot"
        error = "EIO" if name in SYNCS else "ENOSPC"
        inject = f"inject={name}:error={error}:when={number}"
        assert writing.pid is not None
        with (
            traced(writing.pid, "-P", str(unfinished(path)), "-e", inject, log=tmp_path / "log"),
            pytest.raises((errors.DiskFull, errors.SnapshotFailed)) as caught,
        ):
            writing.snapshot(path)
        assert isinstance(caught.value, errors.DiskFull) == (error == "ENOSPC"), (name, number)
        assert os.listdir(path.parent) == [], (name, number)
        assert sums(writing) == before
    path = tmp_path / "snapshot"
    writing.snapshot(path)
    is_sound(path, tmp_path / "image")
    with VM.restore(path) as vm:
        assert sums(vm) == before


def test_a_diff_whose_writer_fails(writing: VM, tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    writing.snapshot(tmp_path / "base")
    with VM.restore(tmp_path / "base") as vm:
        write(vm, "another", 1)
        before = sums(vm)
        for name, number in steps(vm, tmp_path, diff=True):
            path = tmp_path / "place" / "snapshot"
            inject = f"inject={name}:error={'EIO' if name in SYNCS else 'ENOSPC'}:when={number}"
            assert vm.pid is not None
            with (
                traced(vm.pid, "-P", str(unfinished(path)), "-e", inject, log=tmp_path / "log"),
                pytest.raises((errors.DiskFull, errors.SnapshotFailed)),
            ):
                vm.snapshot(path, diff=True)
            assert os.listdir(path.parent) == [], (name, number)
        vm.snapshot(tmp_path / "diff", diff=True).flatten(tmp_path / "flat")
        assert sums(vm) == before
    is_sound(tmp_path / "flat", tmp_path / "image")
    with VM.restore(tmp_path / "diff") as vm:
        assert sums(vm) == before


def test_a_worker_that_is_killed(writing: VM, tmp_path: Path) -> None:
    """Nothing is left of a snapshot whose writer ends amid it."""
    (tmp_path / "place").mkdir()
    before = sums(writing)
    picked = steps(writing, tmp_path, diff=False)
    writing.snapshot(tmp_path / "base")
    for name, number in random.sample(picked, min(MOMENTS, len(picked))):
        with VM.restore(tmp_path / "base") as vm:
            assert sums(vm) == before and vm.pid is not None
            path = tmp_path / "place" / "snapshot"
            inject = f"inject={name}:signal=KILL:when={number}"
            with (
                traced(vm.pid, "-P", str(unfinished(path)), "-e", inject, log=tmp_path / "log"),
                pytest.raises(errors.VMExited),
            ):
                vm.snapshot(path)
            assert os.listdir(path.parent) == [], (name, number)
            with pytest.raises(errors.VMExited):
                vm.run("true")


CALLER = """
import sys
from supermachine import VM
with VM.restore(sys.argv[1]) as vm:
    vm.run("true", check=True)
    print(vm.pid, flush=True)
    sys.stdin.readline()
    vm.snapshot(sys.argv[2])
    sys.stdin.readline()
"""


@pytest.mark.parametrize("step", ["flock:1", "fsync:1", "renameat2:1", "fsync:2"])
def test_a_caller_that_is_killed(writing: VM, tmp_path: Path, step: str) -> None:
    """What is under the name is whole, or there is nothing; what is left beside it goes with the next snapshot."""
    place = tmp_path / "place"
    place.mkdir()
    before = sums(writing)
    writing.snapshot(tmp_path / "base")
    name, _, number = step.partition(":")
    command = [sys.executable, "-c", CALLER, str(tmp_path / "base"), str(place / "snapshot")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as caller:
        assert caller.stdin is not None and caller.stdout is not None
        worker = int(caller.stdout.readline())
        inject = f"inject={name}:signal=KILL:when={number}"
        with traced(caller.pid, "-e", f"trace={name}", "-e", inject, log=tmp_path / "log"):
            caller.stdin.write("go\n")
            caller.stdin.flush()
            assert caller.wait(120) == -signal.SIGKILL
    end = time.monotonic() + 60
    while Path(f"/proc/{worker}").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    assert (place / "snapshot").exists() == (step == "fsync:2")
    writing.snapshot(place / "next")
    assert set(os.listdir(place)) <= {"next", "snapshot"}
    for path in place.iterdir():
        snapshots.verify(path)
        is_sound(path, tmp_path / "image")
        with VM.restore(path) as vm:
            assert sums(vm) == before


def test_a_disk_that_is_full(writing: VM, tmp_path: Path) -> None:
    """At as many places of the file as there are moments."""
    before = sums(writing)
    whole = tmp_path / "whole"
    writing.snapshot(whole)
    size = whole.stat().st_blocks * 512
    place = tmp_path / "small"
    place.mkdir()
    for moment in range(MOMENTS):
        run("mount", "-t", "tmpfs", "-o", f"size={max(4096, size * moment // MOMENTS >> 12 << 12)}", "tmpfs", place)
        try:
            with pytest.raises(errors.DiskFull):
                writing.snapshot(place / "snapshot")
            assert os.listdir(place) == []
        finally:
            # The worker closes the file a moment after it has said how it went.
            wait_for(lambda: subprocess.run(["umount", "-q", place]).returncode == 0, "nobody's having it open", 60)
        assert sums(writing) == before
    writing.snapshot(tmp_path / "snapshot")
    is_sound(tmp_path / "snapshot", tmp_path / "image")
