"""A snapshot is whole or not there: under kill -9, on a full disk, with two writers at once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import child
import format_v9
import pytest
from supermachine import _core, snapshots
from supermachine.errors import DiskFull, SnapshotExists, SupermachineError

MIB = 1 << 20


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A snapshot that takes a moment to copy: 16 MiB that do not compress."""
    path = tmp_path_factory.mktemp("source") / "snapshot"
    ram = random.Random(1).randbytes(16 * MIB)
    _core.write_snapshot_v9(str(path), format_v9.identity(memory_bytes=len(ram)), [], ram, None, False)
    return path


@pytest.fixture(scope="module")
def packed(source: Path) -> Path:
    path = source.with_name("packed")
    snapshots.export(source, path)
    return path


_IMPORT = "\nprint('ready', flush=True)\nsnapshots.import_(sys.argv[1], sys.argv[2], replace=True)\n"


@pytest.mark.parametrize("old", [False, True])
def test_killed_at_any_moment(tmp_path: Path, source: Path, packed: Path, old: bool):
    dest = tmp_path / "dest"
    new_id = snapshots.verify(source)
    old_id = None
    if old:
        other = format_v9.identity(engine="old")
        old_id = _core.write_snapshot_v9(str(dest), other, [], bytes(4 * format_v9.PAGE), None, False)
    began = time.monotonic()
    child.run(_IMPORT, packed, tmp_path / "whole")
    longest = time.monotonic() - began
    chance = random.Random(2)
    for _ in range(12):
        process = child.start(_IMPORT, packed, dest, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(chance.random() * longest)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
        process.stdout.close()
        found = snapshots.verify(dest) if dest.exists() else None
        assert found in (old_id, new_id)
        if found == new_id:
            dest.unlink()
            old_id = None
    # What the dead have left is cleared up by the next that writes there.
    snapshots.import_(packed, dest, replace=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dest", "whole"]
    assert snapshots.verify(dest) == new_id


_LIMITED = """
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    snapshots.import_(sys.argv[1], sys.argv[2])
except errors.DiskFull as error:
    assert error.code and error.hint and "no room" in str(error), error
else:
    raise AssertionError("there was room")
"""


@pytest.mark.parametrize("most", [0, 4096, MIB, 16 * MIB])
def test_no_room_by_a_limit(tmp_path: Path, packed: Path, most: int):
    child.run(_LIMITED, packed, tmp_path / "dest", most)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a file system")
def test_no_room_on_the_disk(tmp_path: Path, packed: Path, source: Path):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount: {mounted.stderr!r}")
    try:
        before = _core.write_snapshot_v9(
            str(tmp_path / "dest"), format_v9.identity(), [], bytes(4 * format_v9.PAGE), None, False
        )
        for write in (
            lambda: snapshots.import_(packed, tmp_path / "dest", replace=True),
            lambda: snapshots.export(source, tmp_path / "packed"),
        ):
            with pytest.raises(DiskFull) as caught:
                write()
            assert isinstance(caught.value, OSError)
        assert [path.name for path in tmp_path.iterdir()] == ["dest"]
        assert snapshots.verify(tmp_path / "dest") == before
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_two_at_once(tmp_path: Path, source: Path, packed: Path):
    code = """
print('ready', flush=True)
sys.stdin.readline()
try:
    snapshots.import_(sys.argv[1], sys.argv[2])
except errors.SnapshotExists:
    print("second")
else:
    print("first")
"""
    dest = tmp_path / "dest"
    both = [child.start(code, packed, dest, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    said = [process.communicate("go\n", timeout=120)[0].strip() for process in both]
    assert sorted(said) == ["first", "second"]
    assert snapshots.verify(dest) == snapshots.verify(source)
    assert [path.name for path in tmp_path.iterdir()] == ["dest"]


def test_what_is_there_stays_unless_asked(tmp_path: Path, source: Path):
    dest = tmp_path / "dest"
    dest.write_bytes(b"mine")
    with pytest.raises(SnapshotExists) as caught:
        snapshots.import_(source, dest)
    assert isinstance(caught.value, FileExistsError)
    assert isinstance(caught.value, SupermachineError)
    assert dest.read_bytes() == b"mine"
    # It is looked at first, before anything is read.
    with pytest.raises(SnapshotExists):
        snapshots.import_(tmp_path / "dest", dest)
    snapshots.import_(source, dest, replace=True)
    assert snapshots.verify(dest) == snapshots.verify(source)


def test_an_exception_of_a_signal_ends_it_and_leaves_nothing(tmp_path: Path, packed: Path):
    class Enough(Exception):
        pass

    def enough(*_: object) -> None:
        raise Enough

    before = signal.signal(signal.SIGALRM, enough)
    try:
        # So soon that it comes while the first of many frames is unpacked.
        signal.setitimer(signal.ITIMER_REAL, 0.001)
        with pytest.raises(Enough):
            for _ in range(100):
                snapshots.import_(packed, tmp_path / "dest", replace=True)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not list(tmp_path.glob(".*"))
